"""The recordings that people upload to clone a voice: what they are, how long, and how a provider wants them.

What is read here comes from strangers: nothing hangs, and `AudioError` is all that is ever raised.
"""

from typing import Literal

import numpy as np
import soxr

from server.audio.errors import AudioError
from server.audio.mp3 import Mp3Clock
from server.audio.mp4 import m4a_duration_seconds
from server.audio.wav import parse_wav, to_mono, to_pcm16, wav_header

ReferenceKind = Literal["wav", "mp3", "m4a"]

#: The MIME types that the provider's enrollment documents for each kind (protocols: DOC D5).
REFERENCE_MIME_TYPES: dict[ReferenceKind, str] = {"wav": "audio/wav", "mp3": "audio/mpeg", "m4a": "audio/mp4"}
REFERENCE_SAMPLE_RATE_HZ = 24_000  # enrollment refuses less (`Audio.AudioRateError`)

_LONGEST_SECONDS = 600.0  # far over what enrollment takes; keeps a hostile header from asking for gigabytes
_LOOK_AT_BYTES = 16_384


def identify(data: bytes | bytearray | memoryview) -> ReferenceKind | None:
    """What these bytes are, whatever their name or content type says; None for anything else.

    Looks at the beginning only, so it says nothing about damage further on.
    """
    view = memoryview(data).cast("B")
    start = bytes(view[:12])
    if start[:4] in (b"RIFF", b"RF64") and start[8:12] == b"WAVE":
        return "wav"
    if start[4:8] == b"ftyp":
        return "m4a"
    if start[:3] == b"ID3":
        return "mp3"
    clock = Mp3Clock()
    clock.feed(view[:_LOOK_AT_BYTES])
    return "mp3" if clock.frames else None


def reference_duration_seconds(data: bytes | bytearray | memoryview, kind: ReferenceKind) -> float:
    """How long a recording lasts. Up to half a second of work for ten hostile megabytes: call it in a thread.

    Raises:
        AudioError: If the bytes are not what ``kind`` says, or hold no audio.
    """
    if kind == "wav":
        seconds = parse_wav(data).duration_seconds
    elif kind == "m4a":
        seconds = m4a_duration_seconds(data)
    else:
        clock = Mp3Clock()
        clock.feed(data)
        seconds = 0.0 if clock.lost else clock.seconds
    if seconds <= 0:
        raise AudioError(f"This {kind.upper()} file holds no audio.")
    return seconds


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
