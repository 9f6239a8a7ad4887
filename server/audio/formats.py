"""What the payload of a generation is: its name, its MIME type and what a file has in front of it.

Every offset in the product counts payload bytes: for ``mp3`` the file itself, for ``wav`` raw 16-bit little-endian
mono samples, to which whoever hands out a file adds the header.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from server.audio.mp3 import Mp3Clock
from server.audio.wav import WAV_HEADER_BYTES, wav_header

FormatName = Literal["mp3", "wav"]
SAMPLE_BYTES = 2


class Clock(Protocol):
    """Measures a payload that arrives in slices cut anywhere, without keeping it."""

    def feed(self, data: bytes | bytearray | memoryview) -> None: ...

    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class AudioFormat:
    """One of the formats that a generation can have.

    Attributes:
        name: The word of the contract and of ``generations.output_format``; also the file's suffix.
        mime: The type under which the file is stored and served.
        header_bytes: What a file has in front of the payload: offset n is byte n + ``header_bytes`` of the object.
        provider_format: What the provider is asked for; a WAV's header is always ours.
    """

    name: FormatName
    mime: str
    header_bytes: int
    provider_format: Literal["mp3", "pcm"]

    def file_header(self, payload_bytes: int | None, sample_rate_hz: int) -> bytes:
        """The ``header_bytes`` bytes of a file with this payload; None for one that still grows."""
        return wav_header(payload_bytes, sample_rate_hz) if self.header_bytes else b""

    def clock(self, sample_rate_hz: int) -> Clock:
        """A clock for this format's payload. MP3 frames carry their own rate, so it matters for samples only."""
        return Mp3Clock() if self.name == "mp3" else PcmClock(sample_rate_hz)


MP3 = AudioFormat("mp3", "audio/mpeg", 0, "mp3")
WAV = AudioFormat("wav", "audio/wav", WAV_HEADER_BYTES, "pcm")
_BY_NAME = {known.name: known for known in (MP3, WAV)}


def format_named(name: str) -> AudioFormat:
    """The format of that name.

    Raises:
        KeyError: If there is none.
    """
    return _BY_NAME[name]  # type: ignore[index]


class PcmClock:
    """The clock of raw samples: counting is enough, an odd last byte is half a sample."""

    def __init__(self, sample_rate_hz: int) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._bytes = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._bytes += len(data)

    @property
    def seconds(self) -> float:
        return pcm_duration_seconds(self._bytes, self._sample_rate_hz)


def pcm_duration_seconds(payload_bytes: int, sample_rate_hz: int) -> float:
    """How long that many bytes of 16-bit mono samples sound."""
    return payload_bytes // SAMPLE_BYTES / sample_rate_hz


def duration_seconds(audio_format: AudioFormat, payload: bytes | bytearray | memoryview, sample_rate_hz: int) -> float:
    """How long a whole payload sounds. Linear for MP3 (about 2 ms a minute of speech), constant for samples."""
    clock = audio_format.clock(sample_rate_hz)
    clock.feed(payload)
    return clock.seconds
