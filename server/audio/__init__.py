"""The arithmetic of sound: pure functions on bytes and integers, no I/O.

``formats`` says what a payload is, ``wav`` and ``mp3`` read and write it, ``mp4`` reads how long an M4A is, and
``references`` judges the recordings that people upload. What takes longer than a few milliseconds says so; call that
in a thread.
"""

from server.audio.errors import AudioError
from server.audio.formats import (
    MP3,
    SAMPLE_BYTES,
    WAV,
    AudioFormat,
    Clock,
    PcmClock,
    duration_seconds,
    format_named,
    pcm_duration_seconds,
)
from server.audio.mp3 import Mp3Clock, mp3_duration_seconds
from server.audio.mp4 import m4a_duration_seconds
from server.audio.references import (
    REFERENCE_MIME_TYPES,
    REFERENCE_SAMPLE_RATE_HZ,
    ReferenceKind,
    identify,
    reference_duration_seconds,
    to_reference_wav,
)
from server.audio.wav import WAV_HEADER_BYTES, Wav, has_sound, parse_wav, to_mono_pcm16, wav_header

__all__ = [
    "MP3",
    "REFERENCE_MIME_TYPES",
    "REFERENCE_SAMPLE_RATE_HZ",
    "SAMPLE_BYTES",
    "WAV",
    "WAV_HEADER_BYTES",
    "AudioError",
    "AudioFormat",
    "Clock",
    "Mp3Clock",
    "PcmClock",
    "ReferenceKind",
    "Wav",
    "duration_seconds",
    "format_named",
    "has_sound",
    "identify",
    "m4a_duration_seconds",
    "mp3_duration_seconds",
    "parse_wav",
    "pcm_duration_seconds",
    "reference_duration_seconds",
    "to_mono_pcm16",
    "to_reference_wav",
    "wav_header",
]
