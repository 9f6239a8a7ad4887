"""What a simulated enrollment finds out about a recording: enough to refuse what the real one refuses."""

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from .refusals import Refusal

_SILENCE = 150
"""Peak of 16-bit samples below which a recording counts as silent. A guess."""

_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MP3_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# What an encoder adds at both ends, which a decoder takes away again. How strict the real one is was not observed.
_PADDING_SECONDS = 0.3


@dataclass(frozen=True)
class Recording:
    """``peak`` is the loudest sample (0..32768), None where only a decoder could tell."""

    format: str
    sample_rate_hz: int
    channels: int
    seconds: float
    peak: int | None = None


def checked(data: bytes, *, least_seconds: float = 3, least_rate_hz: int = 24_000) -> Recording:
    """A recording that can be enrolled: of that rate or more, mono (known of WAV alone), up to 60 s long, not silent.

    Raises:
        Refusal: With the code that tells what is wrong.
    """
    recording = parsed(data)
    if recording is None:
        raise Refusal("Audio.DecoderError")
    if recording.sample_rate_hz < least_rate_hz:
        raise Refusal("Audio.AudioRateError")
    if recording.format == "wav" and recording.channels != 1:
        raise Refusal("Audio.PreprocessError", "The audio must have one channel.")
    if recording.seconds > 60 + (0 if recording.format == "wav" else _PADDING_SECONDS):
        raise Refusal("Audio.DurationLimitError")
    if recording.seconds < least_seconds or (recording.peak is not None and recording.peak < _SILENCE):
        raise Refusal("Audio.PreprocessError")
    return recording


def parsed(data: bytes) -> Recording | None:
    """What the bytes say they are: 16-bit WAV, MP3 or M4A; None for anything else."""
    try:
        if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            return _wav(data)
        if data[4:8] == b"ftyp":
            return _m4a(data)
        return _mp3(data)
    except (struct.error, IndexError, ZeroDivisionError):
        return None


def _wav(data: bytes) -> Recording | None:
    form: tuple[int, ...] | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt ":
            form = struct.unpack_from("<HHIIHH", body)
        elif name == b"data" and form is not None:
            kind, channels, rate, _, _, bits = form
            if kind not in (1, 0xFFFE) or bits != 16 or channels < 1:
                return None
            samples = array("h", body[: len(body) // 2 * 2])
            if sys.byteorder == "big":
                samples.byteswap()
            peak = max(max(samples), -min(samples)) if samples else 0
            return Recording("wav", rate, channels, len(samples) / channels / rate, peak)
        at += 8 + size + size % 2
    return None


def _mp3(data: bytes) -> Recording | None:
    at = 0
    if data[:3] == b"ID3":
        at = 10 + ((data[6] & 0x7F) << 21 | (data[7] & 0x7F) << 14 | (data[8] & 0x7F) << 7 | (data[9] & 0x7F))
    seconds, first = 0.0, (0, 0)
    frames = 0
    for rate, channels, samples in _mp3_frames(data, at):
        first = first if frames else (rate, channels)
        seconds += samples / rate
        frames += 1
    return Recording("mp3", first[0], first[1], seconds) if frames >= 2 else None


def _mp3_frames(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Sample rate, channels and samples of each layer III frame, up to the first thing that is none."""
    while at + 4 <= len(data):
        head = int.from_bytes(data[at : at + 4], "big")
        version, layer, kbps_index, rate_index = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
        if head >> 21 != 0x7FF or version == 1 or layer != 1 or kbps_index in (0, 15) or rate_index == 3:
            return
        rate = _MP3_RATES[version][rate_index]
        samples = 1152 if version == 3 else 576
        yield rate, 1 if head >> 6 & 3 == 3 else 2, samples
        at += samples // 8 * _MP3_KBPS[version == 3][kbps_index] * 1000 // rate + (head >> 9 & 1)


def _m4a(data: bytes) -> Recording | None:
    movie, sound = data.find(b"mvhd"), data.find(b"mp4a", data.find(b"stsd"))
    if movie < 0 or sound < 0:
        return None
    if data[movie + 4] == 1:
        timescale, duration = struct.unpack_from(">IQ", data, movie + 24)
    else:
        timescale, duration = struct.unpack_from(">II", data, movie + 16)
    channels = struct.unpack_from(">H", data, sound + 20)[0]
    rate = struct.unpack_from(">I", data, sound + 28)[0] >> 16
    return Recording("m4a", rate, channels, duration / timescale)
