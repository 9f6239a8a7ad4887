"""WAV files: the header we write, and the ones that other people write.

Source: Microsoft, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF) and ``WAVEFORMATEXTENSIBLE``.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.audio.errors import AudioError

WAV_HEADER_BYTES = 44
UNKNOWN_SIZE = 0xFFFF_FFFF

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_WIDTHS = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}
_MOST_CHUNKS = 1000  # real files have a handful; ten megabytes of empty chunks would cost a second
_MOST_CHANNELS = 64
_RATES_HZ = range(1000, 1_000_001)


@dataclass(frozen=True)
class Wav:
    """What is inside a WAV file.

    Attributes:
        bits_per_sample: Width of one stored sample (a multiple of 8); fewer valid bits are left-justified in it.
        is_float: IEEE floats instead of integers.
        samples: Whole frames only (one sample per channel, interleaved, little-endian); a view, not a copy.
        data_offset: Where the samples begin in the file; not always 44.
    """

    sample_rate_hz: int
    channels: int
    bits_per_sample: int
    is_float: bool
    samples: memoryview
    data_offset: int

    @property
    def frames(self) -> int:
        return len(self.samples) // (self.channels * self.bits_per_sample // 8)

    @property
    def duration_seconds(self) -> float:
        return self.frames / self.sample_rate_hz


def wav_header(payload_bytes: int | None, sample_rate_hz: int) -> bytes:
    """The 44 bytes in front of that much 16-bit mono audio.

    ``None`` writes 0xFFFFFFFF for both sizes: a stream whose length nobody knows yet. (Observed: Chromium plays such a
    file and shows the right duration once it has it all.) A payload too long for 32 bits is written the same way.
    """
    data_size = UNKNOWN_SIZE
    riff_size = UNKNOWN_SIZE
    if payload_bytes is not None and payload_bytes + WAV_HEADER_BYTES - 8 < UNKNOWN_SIZE:
        data_size = payload_bytes
        riff_size = payload_bytes + WAV_HEADER_BYTES - 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        riff_size,
        b"WAVE",
        b"fmt ",
        16,
        _PCM,
        1,
        sample_rate_hz,
        sample_rate_hz * 2,
        2,
        16,
        b"data",
        data_size,
    )


def has_sound(data: bytes | bytearray | memoryview) -> bool:
    """Whether this is a WAV file that we can read, with something in it.

    Up to a second of work for ten hostile megabytes (millions of empty chunks): call it in a thread.
    """
    try:
        return parse_wav(data).frames > 0
    except AudioError:
        return False


def parse_wav(data: bytes | bytearray | memoryview) -> Wav:
    """Find the samples of a WAV file.

    Sizes that lie are survived: one that reaches behind the end means "to the end", and so does a data size of zero
    with bytes behind it that are no chunk (what a recorder leaves that could not seek back).

    Raises:
        AudioError: If it is no WAV, is cut off before its samples, or stores them in a way we cannot read.
    """
    view = memoryview(data).cast("B")
    start = bytes(view[:12])
    if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        raise AudioError("This is not a WAV file.")
    layout: tuple[int, int, int, int] | None = None
    found: tuple[int, int] | None = None
    offset = 12
    for _ in range(_MOST_CHUNKS):
        if offset + 8 > len(view):
            break
        name, size = struct.unpack_from("<4sI", view, offset)
        begin = offset + 8
        end = min(begin + size, len(view))
        if name == b"fmt " and layout is None:
            layout = _parse_layout(view[begin:end])
        elif name == b"data" and found is None:
            if size == 0 and not _chunk_at(view, begin):
                end = len(view)
            found = (begin, end)
        if layout is not None and found is not None:
            return _wav(view, layout, found)
        offset = end + (size & 1)  # chunks begin at even offsets
    raise AudioError("This WAV file holds no audio.")


def _wav(view: memoryview, layout: tuple[int, int, int, int], found: tuple[int, int]) -> Wav:
    tag, channels, sample_rate_hz, width = layout
    begin, end = found
    whole = (end - begin) // (channels * width) * (channels * width)
    return Wav(sample_rate_hz, channels, width * 8, tag == _FLOAT, view[begin : begin + whole], begin)


def _parse_layout(body: memoryview) -> tuple[int, int, int, int]:
    """``(format tag, channels, sample rate, bytes per sample)`` of a ``fmt`` chunk."""
    if len(body) < 16:
        raise AudioError("This WAV file is damaged.")
    tag, channels, sample_rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE:
        if len(body) < 40:
            raise AudioError("This WAV file is damaged.")
        (tag,) = struct.unpack_from("<H", body, 24)  # the sub-format's GUID begins with the tag it stands for
    if tag not in _WIDTHS:
        raise AudioError("This WAV file is compressed. Please use one with plain samples.")
    if not 1 <= channels <= _MOST_CHANNELS or sample_rate_hz not in _RATES_HZ:
        raise AudioError("This WAV file is damaged.")
    width, rest = divmod(frame_bytes, channels)
    if rest or width not in _WIDTHS[tag] or not 0 < bits <= width * 8:
        raise AudioError("This WAV file is damaged.")
    return tag, channels, sample_rate_hz, width


def _chunk_at(view: memoryview, offset: int) -> bool:
    """Whether a well-formed chunk (or the end of the file) stands there."""
    if offset == len(view):
        return True
    if offset + 8 > len(view):
        return False
    name, size = struct.unpack_from("<4sI", view, offset)
    return all(0x20 <= letter < 0x7F for letter in name) and offset + 8 + size <= len(view)


def to_mono(wav: Wav) -> NDArray[np.float32]:
    """The samples as floats in [-1, 1], all channels averaged into one."""
    width = wav.bits_per_sample // 8
    samples: NDArray[np.float32]
    if wav.is_float:
        floats = np.frombuffer(wav.samples, dtype=f"<f{width}")
        samples = np.clip(np.nan_to_num(floats, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0).astype(np.float32)
    elif width == 1:
        samples = (np.frombuffer(wav.samples, dtype=np.uint8).astype(np.float32) - 128.0) / 128.0
    elif width == 3:
        padded = np.zeros((len(wav.samples) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(wav.samples, dtype=np.uint8).reshape(-1, 3)
        samples = padded.view("<i4").reshape(-1).astype(np.float32) / np.float32(2**31)
    else:
        samples = np.frombuffer(wav.samples, dtype=f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))
    if wav.channels == 1:
        return samples
    mono: NDArray[np.float32] = samples.reshape(-1, wav.channels).mean(axis=1, dtype=np.float32)
    return mono


def to_pcm16(samples: NDArray[np.float32]) -> bytes:
    """Floats in [-1, 1] as 16-bit little-endian samples; what is louder is clipped."""
    loudest = np.clip(np.rint(samples * np.float32(32768.0)), -32768, 32767)
    return bytes(loudest.astype("<i2").tobytes())


def to_mono_pcm16(wav: Wav) -> bytes:
    """The samples as 16-bit little-endian mono at the file's own rate: a payload that can be logged.

    Exact for what is 16-bit mono already. About 10 ms for a minute of anything else.
    """
    if wav.channels == 1 and wav.bits_per_sample == 16 and not wav.is_float:
        return bytes(wav.samples)
    return to_pcm16(to_mono(wav))
