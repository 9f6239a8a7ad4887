"""The recordings that people upload to clone a voice: what they are, how long, and how a provider wants them.

What is read here comes from strangers: nothing hangs, and `AudioError` is all that is ever raised.
"""

import math
import re
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import soxr

from server.audio.codecs import foreign_format
from server.audio.errors import AudioError
from server.audio.formats import SAMPLE_BYTES
from server.audio.mp3 import Mp3Clock, find_frames
from server.audio.mp4 import is_m4a, parse_m4a
from server.audio.tags import end_of_tags, id3v2_bytes
from server.audio.wav import WAV_HEADER_BYTES, is_wav, parse_wav, to_mono, to_pcm16, wav_header

ReferenceKind = Literal["wav", "mp3", "m4a"]

#: The MIME types that the provider's enrollment documents for each kind (Model Studio, "Voice cloning").
REFERENCE_MIME_TYPES: dict[ReferenceKind, str] = {"wav": "audio/wav", "mp3": "audio/mpeg", "m4a": "audio/mp4"}
REFERENCE_SAMPLE_RATE_HZ = 24_000  # enrollment refuses less (`Audio.AudioRateError`)

_LONGEST_SECONDS = 600.0  # far over what enrollment takes; keeps a hostile header from asking for gigabytes
_MARKS = re.compile(rb"WAVE|ftyp")
_MOST_MARKS = 1000


@dataclass(frozen=True)
class Recording:
    """What an uploaded recording turned out to be.

    Attributes:
        start: Where it begins in the file, in bytes. What stands before is no part of it (tags, zeros), and is to be
            left out where somebody else is to read it.
        sample_rate_hz: As its header says; 0 where it says nothing.
    """

    kind: ReferenceKind
    start: int
    seconds: float
    sample_rate_hz: int


def read_recording(data: bytes | bytearray | memoryview) -> Recording:
    """What these bytes are, whatever their name or content type says. About half a second for ten hostile megabytes:
    call it in a thread.

    Tags and zeros in front of anything are stepped over, and so is what nobody knows (a byte order mark, a tag with a
    wrong size): a WAV or an M4A is found by its mark, an MP3 wherever its frames begin.

    Raises:
        AudioError: They are no WAV, MP3 or M4A, or nothing that can be used is in it. The sentence says what it is.
    """
    view = memoryview(data).cast("B")
    at = end_of_tags(view)
    packed, frames, foreign = (at if _is_packed(view, at) else None), None, None
    if packed is None:
        foreign = foreign_format(view[at:])
    if packed is None and not foreign:
        frames = find_frames(view, at)
        if frames is None and at:
            frames = find_frames(view)  # a tag may be shorter than it says
        packed = _find_packed(view, frames)
    if packed is not None:
        return _sounding(_unpacked(view, packed))
    if frames is None:
        if at and at == len(view):
            foreign = "nothing but tags"
        raise AudioError(
            "The recording must be a WAV, MP3 or M4A file." + (f" This one is {foreign}." if foreign else "")
        )
    clock = Mp3Clock()
    clock.feed(view[frames:])
    if clock.lost:
        raise AudioError("This MP3 file is damaged.")
    return _sounding(Recording("mp3", _mp3_start(view, frames), clock.seconds, clock.sample_rate_hz))


def _is_packed(view: memoryview, at: int) -> bool:
    """Whether a WAV or an M4A begins here."""
    start = bytes(view[at : at + 12])
    return is_wav(start) or is_m4a(start)


def _find_packed(view: memoryview, frames: int | None) -> int | None:
    """Where a WAV or an M4A begins behind something that nobody knows, before the first frame of an MP3."""
    end = len(view) if frames is None else frames
    for mark in islice(_MARKS.finditer(view[:end]), _MOST_MARKS):
        begin = mark.start() - (8 if mark.group() == b"WAVE" else 4)
        if begin >= 0 and _is_packed(view, begin):
            return begin
    return None


def _unpacked(view: memoryview, at: int) -> Recording:
    if is_wav(bytes(view[at : at + 12])):
        wav = parse_wav(view[at:])
        return Recording("wav", at, wav.duration_seconds, wav.sample_rate_hz)
    m4a = parse_m4a(view[at:])
    return Recording("m4a", at, m4a.seconds, m4a.sample_rate_hz)


def _sounding(recording: Recording) -> Recording:
    if recording.seconds <= 0:
        raise AudioError(f"This {recording.kind.upper()} file holds no audio.")
    return recording


def _mp3_start(view: memoryview, frames: int) -> int:
    """The beginning of the file where only ID3v2 tags stand before the frames, which every decoder steps over."""
    at = 0
    while at < frames and (length := id3v2_bytes(bytes(view[at : at + 10]))):
        at += length
    return 0 if at == frames else frames


def to_reference_wav(data: bytes | bytearray | memoryview) -> bytes:
    """A WAV as the provider's enrollment wants it: 24 kHz, mono, 16 bit, a plain 44-byte header.

    The samples of a file that is all this already are kept bit for bit. A minute of 48 kHz stereo takes about 50 ms:
    call it in a thread.

    Raises:
        AudioError: If it is no WAV that we can read, or lasts longer than ten minutes.
    """
    wav = parse_wav(data)
    if wav.duration_seconds > _LONGEST_SECONDS:
        raise AudioError("This recording is too long.")
    if (wav.sample_rate_hz, wav.channels, wav.bits_per_sample, wav.is_float) == (
        REFERENCE_SAMPLE_RATE_HZ,
        1,
        16,
        False,
    ):
        payload = bytes(wav.samples)
    else:
        samples = to_mono(wav)
        if wav.sample_rate_hz != REFERENCE_SAMPLE_RATE_HZ:
            samples = np.asarray(soxr.resample(samples, wav.sample_rate_hz, REFERENCE_SAMPLE_RATE_HZ), dtype=np.float32)
        payload = to_pcm16(samples)
    return wav_header(len(payload), REFERENCE_SAMPLE_RATE_HZ) + payload


def lengthened(data: bytes | bytearray | memoryview, least_seconds: float) -> bytes:
    """A WAV as ``to_reference_wav`` has it, heard again and again with a breath between until it is long enough.

    Raises:
        AudioError: As ``to_reference_wav``.
    """
    payload = to_reference_wav(data)[WAV_HEADER_BYTES:]
    breath = bytes(SAMPLE_BYTES * round(0.4 * REFERENCE_SAMPLE_RATE_HZ))
    least_bytes = least_seconds * SAMPLE_BYTES * REFERENCE_SAMPLE_RATE_HZ
    times = max(1, math.ceil((least_bytes + len(breath)) / (len(payload) + len(breath))))
    whole = breath.join([payload] * times)
    return wav_header(len(whole), REFERENCE_SAMPLE_RATE_HZ) + whole


def for_other_readers(data: bytes, recording: Recording) -> bytes:
    """The recording as a reader less patient than ours takes it: nothing in front, and a WAV of the plain kind.

    A file that is plain already is returned as it is.

    Raises:
        AudioError: As ``to_reference_wav``.
    """
    if recording.kind == "wav" and not _is_plain_wav(data):
        return to_reference_wav(memoryview(data)[recording.start :])
    return data[recording.start :] if recording.start else data


def _is_plain_wav(data: bytes) -> bool:
    """Whether samples follow the format at once, as in the files that we write."""
    return data[:4] == b"RIFF" and data[12:16] == b"fmt " and data[36:40] == b"data"
