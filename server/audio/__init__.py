"""The arithmetic of sound: pure functions on bytes and integers, no I/O.

``formats`` says what a payload is, ``wav`` and ``mp3`` read and write it, ``encoding`` makes MP3 of samples and
``conversion`` of WAV files,
``resampling`` changes their rate, ``mp4`` reads what an M4A holds, ``tags`` steps over what stands in front, ``codecs``
has the names of what we do not take, and ``references`` judges the recordings that people upload. What takes longer
than a few milliseconds says so; call that in a thread.
"""

from server.audio.conversion import WavAsMp3
from server.audio.encoding import Mp3Encoder
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
from server.audio.mp3_frames import Mp3Joint, SampleJoint, WholeFrames
from server.audio.mp4 import parse_m4a
from server.audio.references import (
    REFERENCE_MIME_TYPES,
    REFERENCE_SAMPLE_RATE_HZ,
    Recording,
    ReferenceKind,
    for_other_readers,
    lengthened,
    read_recording,
    to_reference_wav,
)
from server.audio.resampling import Resampler
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
    "Mp3Encoder",
    "Mp3Joint",
    "PcmClock",
    "Recording",
    "ReferenceKind",
    "Resampler",
    "SampleJoint",
    "Wav",
    "WavAsMp3",
    "WholeFrames",
    "duration_seconds",
    "for_other_readers",
    "format_named",
    "has_sound",
    "lengthened",
    "mp3_duration_seconds",
    "parse_m4a",
    "parse_wav",
    "pcm_duration_seconds",
    "read_recording",
    "to_mono_pcm16",
    "to_reference_wav",
    "wav_header",
]
