"""WAV files: the header we write, and the ones that other people write.

Source: Microsoft, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF, RIFX) and
``WAVEFORMATEXTENSIBLE``; EBU Tech 3306 (RF64) and ITU-R BS.2088 (BW64) for ``ds64``.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.audio.codecs import wave_codec
from server.audio.errors import AudioError

WAV_HEADER_BYTES = 44
UNKNOWN_SIZE = 0xFFFF_FFFF

_ORDERS: dict[bytes, Literal["<", ">"]] = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}
_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_WIDTHS = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}
_MOST_CHUNKS = 1000  # real files have a handful; ten megabytes of empty chunks would cost a second
_MOST_CHANNELS = 64
_RATES_HZ = range(1000, 1_000_001)
# A chunk that is longer or shorter than it says is so by a pad byte, a field or two.
_NEARBY_BYTES = 16
_KNOWN_CHUNKS = frozenset(
    b"fmt |data|LIST|fact|cue |smpl|inst|bext|iXML|JUNK|junk|PAD |PEAK|id3 |ID3 |cart|axml|chna|ds64|plst|labl|note|"
    b"ltxt|acid|DISP|FLLR|minf|elm1|regn|umid|_PMX|aXML|slnt|wavl|levl|link|r64m|afsp|SAUR|Fake|CSET|strc|MEXT".split(
        b"|"
    )
)


def is_wav(start: bytes) -> bool:
    """Whether a file with these first twelve bytes is a WAV or one of its relatives (RF64, BW64, RIFX)."""
    return start[:4] in _ORDERS and start[8:12] == b"WAVE"


@dataclass(frozen=True)
class Wav:
    """What is inside a WAV file.

    Attributes:
        bits_per_sample: Width of one stored sample (a multiple of 8); fewer valid bits are left-justified in it.
        is_float: IEEE floats instead of integers.
        samples: Whole frames only (one sample per channel, interleaved, little-endian); a view, but for RIFX.
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
    """Find the samples of a WAV file, or of a relative of it: RF64 and BW64 (sizes in ``ds64``), RIFX (big-endian).

    What is wrong in a file is survived where players survive it:

    - A size that reaches beyond the end means "to the end", and so does a data size of zero with bytes after it that
      are no chunk (what a recorder leaves that could not seek back).
    - A chunk that is a few bytes longer or shorter than it says: the next one is looked for nearby, and what the file
      cannot do without is at last looked for everywhere.
    - Fields of the format that contradict each other: what two of three say. An extensible format that does not say of
      which kind it is holds PCM.
    - Of several chunks of samples the first that is not empty counts.

    Raises:
        AudioError: If it is no WAV, is cut off before its samples, or stores them in a way we cannot read.
    """
    view = memoryview(data).cast("B")
    start = bytes(view[:12])
    if not is_wav(start):
        raise AudioError("This is not a WAV file.")
    order = _ORDERS[start[:4]]
    layout: _Layout | None = None
    found: tuple[int, int] | None = None
    long_data_size: int | None = None
    for name, size, begin in _chunks(view, order):
        end = min(begin + size, len(view))
        if name == b"ds64" and end - begin >= 16:
            (long_data_size,) = struct.unpack_from(f"{order}Q", view, begin + 8)
        elif name == b"fmt " and layout is None:
            layout = _parse_layout(view[begin : max(end, begin + 16)], order)
        elif name == b"data" and (found is None or found[0] == found[1]):
            if size == UNKNOWN_SIZE and long_data_size:
                end = min(begin + long_data_size, len(view))
            elif size == 0 and not _plausible(view, begin, order):
                end = len(view)
            found = (begin, end)
        if layout is not None and found is not None and found[0] < found[1]:
            return _wav(view, layout, found, order)
    if layout is not None and found is not None:
        return _wav(view, layout, found, order)
    raise AudioError("This WAV file holds no audio.")


def _chunks(view: memoryview, order: str) -> Iterator[tuple[bytes, int, int]]:
    """``(name, size as it stands there, where the body begins)`` of each chunk that can be found."""
    missing = [b"fmt ", b"data"]
    body, expected = 12, 12
    for _ in range(_MOST_CHUNKS):
        at = _nearby(view, expected, body, order)
        while at is None and missing:
            at = _anywhere(view, body, missing.pop(0), order)
        if at is None:
            return
        name = bytes(view[at : at + 4])
        (size,) = struct.unpack_from(f"{order}I", view, at + 4)
        if name in missing:
            missing.remove(name)
        body = at + 8
        yield name, size, body
        expected = body + size + (size & 1)  # chunks begin at even offsets


def _nearby(view: memoryview, expected: int, least: int, order: str) -> int | None:
    """Where the next chunk begins: where it should, else a few bytes from there."""
    if _plausible(view, expected, order):
        return expected
    spots = [
        spot
        for distance in range(1, _NEARBY_BYTES + 1)
        for spot in (expected - distance, expected + distance)
        if spot >= least and _plausible(view, spot, order)
    ]
    known = [spot for spot in spots if bytes(view[spot : spot + 4]) in _KNOWN_CHUNKS]
    return next(iter(known or spots), None)


def _anywhere(view: memoryview, least: int, name: bytes, order: str) -> int | None:
    """The first chunk of this name whose size makes sense. Linear; called twice a file at most."""
    for match in islice(re.finditer(re.escape(name), view[least:-8]), _MOST_CHUNKS):
        at = least + match.start()
        (size,) = struct.unpack_from(f"{order}I", view, at + 4)
        if size in (0, UNKNOWN_SIZE) or at + 8 + size <= len(view):
            return at
    return None


def _plausible(view: memoryview, at: int, order: str) -> bool:
    """Whether a chunk with a printable name may begin there: one that ends in the file, or whose size says nothing."""
    if not 0 <= at <= len(view) - 8:
        return False
    name = bytes(view[at : at + 4])
    (size,) = struct.unpack_from(f"{order}I", view, at + 4)
    if name in (b"fmt ", b"data"):
        return True
    return all(0x20 <= letter < 0x7F for letter in name) and at + 8 + size <= len(view)


def _wav(view: memoryview, layout: "_Layout", found: tuple[int, int], order: str) -> Wav:
    begin, end = found
    frame_bytes = layout.channels * layout.width
    samples = view[begin : begin + (end - begin) // frame_bytes * frame_bytes]
    if order == ">" and layout.width > 1:
        samples = memoryview(np.frombuffer(samples, dtype=np.uint8).reshape(-1, layout.width)[:, ::-1].tobytes())
    return Wav(layout.sample_rate_hz, layout.channels, layout.width * 8, layout.tag == _FLOAT, samples, begin)


class _Layout(NamedTuple):
    """What a ``fmt`` chunk says; ``width`` is in bytes per sample."""

    tag: int
    channels: int
    sample_rate_hz: int
    width: int


def _parse_layout(body: memoryview, order: str) -> _Layout:
    if len(body) < 16:
        raise AudioError("This WAV file is damaged.")
    tag, channels, rate_hz, byte_rate, frame_bytes, bits = struct.unpack_from(f"{order}HHIIHH", body)
    if tag == _EXTENSIBLE:
        tag = _sub_format(body, order)
    if tag not in _WIDTHS:
        raise AudioError(
            f"This WAV file holds {wave_codec(tag)} audio, which cannot be used. "
            "Please save it as a WAV with PCM samples, or as M4A (AAC)."
        )
    if not channels and 8 <= bits <= 64:
        channels = frame_bytes // (bits // 8)
    if rate_hz not in _RATES_HZ and frame_bytes:
        rate_hz = byte_rate // frame_bytes
    if not 1 <= channels <= _MOST_CHANNELS or rate_hz not in _RATES_HZ:
        raise AudioError("This WAV file is damaged.")
    width = _width(bits, frame_bytes / channels, byte_rate / channels / rate_hz)
    if width not in _WIDTHS[tag]:
        kind = "floats" if tag == _FLOAT else "samples"
        raise AudioError(
            f"This WAV file stores {bits}-bit {kind}, which cannot be used. Please save it with 16-bit PCM samples."
        )
    return _Layout(tag, channels, rate_hz, width)


def _sub_format(body: memoryview, order: str) -> int:
    """The tag with which the sub-format's GUID begins, in whichever order it was written; PCM where none was."""
    if len(body) < 28:
        return _PCM
    (said,) = struct.unpack_from(f"{order}I", body, 24)
    (turned,) = struct.unpack_from(f"{'<' if order == '>' else '>'}I", body, 24)
    return said & 0xFFFF or turned & 0xFFFF or _PCM


def _width(bits: int, by_frame: float, by_rate: float) -> int:
    """Bytes per sample: what two of three fields say, else what the bits do, as players decide."""
    by_bits = (bits + 7) // 8
    if by_frame == by_rate and by_frame * 8 >= bits and by_frame == int(by_frame):
        return int(by_frame)  # a sample may lie in a container that is wider than its bits
    return by_bits or int(by_frame) or int(by_rate)


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
