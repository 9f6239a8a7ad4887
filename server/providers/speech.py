"""What every provider says while it speaks: the provider-neutral types between a job and its source of audio.

A source is used like this, and only like this::

    async with provider.speak(request) as speech:
        async for event in speech:
            ...

The loop ends normally only when all of success' three facts hold (the provider said that it is done, more than zero
bytes arrived, nothing failed); its last event is then a ``SpeechEnd``. Everything else raises a ``ProviderError``.
Leaving the ``async with``, by cancellation too, closes the provider's socket at once.
"""

import random
from collections.abc import AsyncGenerator, Callable, Iterator
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import msgspec

from server.errors import ProviderError

ResponseFormat = Literal["mp3", "pcm"]

ProviderStatus = Literal[
    "ws_connecting",
    "session_updated",
    "streaming",
    "finalizing",
    "provider_synthesizing",
    "provider_downloading",
    "provider_persisting",
]
"""The words of ``provider_status``: the first four on the realtime lane, the last three on the non-streaming one."""


class GoingOn(msgspec.Struct, frozen=True, kw_only=True):
    """Where a speech that broke off is taken up: at the end of the last sentence that is whole.

    Attributes:
        characters: Of the text, that need not be spoken again.
        spoken_seconds: How long they sound.
        given_seconds: How much has been handed on of what follows them; it is left away.
    """

    characters: int
    spoken_seconds: float
    given_seconds: float


class SpeechRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One text to be spoken once.

    Attributes:
        text: What to say, already trimmed and within the cap.
        voice: The provider's own id of the voice.
        model: The target model that the voice was created for; a voice works with no other.
        language: A v1 language name such as ``English``, or ``Auto``.
        response_format: What the provider is asked for. ``pcm`` is 16-bit little-endian mono without a header.
        sample_rate_hz: What the provider is asked for; ``SpeechStatus`` says what it gives.
        speed: Factor of 0.5 to 2.0; None leaves it to the provider, as for all that follow.
        pitch: Factor of 0.5 to 2.0.
        volume: From 0 to 100; the provider's own is 50.
        instruction: How to say it, in free words.
        seed: Repeats the same audio where the lane knows seeds, 0 to 65535.
        job: Where a job API has spoken the text already, what it calls that job.
        going_on: Where the beginning of the speech is there already, on a lane that goes on.
        start_by: When a start must have been had at the latest, by ``time.monotonic``; None for whenever there is one.
    """

    text: str
    voice: str
    model: str
    language: str = "Auto"
    response_format: ResponseFormat = "mp3"
    sample_rate_hz: int = 24_000
    speed: float | None = None
    pitch: float | None = None
    volume: int | None = None
    instruction: str | None = None
    seed: int | None = None
    job: str | None = None
    going_on: GoingOn | None = None
    start_by: float | None = None


class SpeechStatus(msgspec.Struct, frozen=True):
    """How far the provider is. ``sample_rate_hz`` stands there once the provider has confirmed it."""

    provider_status: ProviderStatus
    sample_rate_hz: int | None = None


class AudioDelta(msgspec.Struct, frozen=True, gc=False):
    """One slice of speech, in playback order, never empty. May end anywhere, even inside a sample or an MP3 frame.

    Attributes:
        audio: The raw bytes, as they belong into the file or the sample stream.
        encoded: The same bytes in Base64 where the provider sent them so, checked and without whitespace: whoever
            passes them on as Base64 need not encode them again.
    """

    audio: bytes
    encoded: bytes | None = None


class SpokenWord(msgspec.Struct, frozen=True):
    """One word and when it is heard, in milliseconds from the beginning of the speech."""

    text: str
    start_ms: int
    end_ms: int


class SpeechWords(msgspec.Struct, frozen=True):
    """Words whose audio has been handed on, in the order in which they are heard."""

    words: tuple[SpokenWord, ...]


class SpeechMark(msgspec.Struct, frozen=True):
    """A sentence is whole: all audio so far is that of so many characters of the text; None where that is not known."""

    characters: int | None


class SpeechEnd(msgspec.Struct, frozen=True):
    """The speech is complete.

    Attributes:
        facts: What the row keeps: ``request_id``, ``session_id``, ``event_id`` (the last one seen), ``usage``
            (e.g. ``{"characters": 25}``, summed), ``responses`` (how many cycles), ``audio_bytes``; where known.
    """

    facts: dict[str, Any]


PACED_OUT = "paced_out"
"""The code of a start that waited for its turn as long as a start may; the next one would wait as long again."""

SpeechEvent = SpeechStatus | AudioDelta | SpeechWords | SpeechMark | SpeechEnd


class Speech(Protocol):
    """One speech under way: an async context manager that is iterated once."""

    @property
    def text_sent(self) -> bool:
        """Whether the text has left us, so that the provider may have billed it."""

    @property
    def audio_bytes(self) -> int:
        """Bytes of audio that the provider has sent so far."""

    def facts(self) -> dict[str, Any]:
        """What is known so far, as in ``SpeechEnd``; also for a speech that was cancelled."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> SpeechEvent: ...


class WholeSpeech:
    """The iterating half of a ``Speech`` whose audio comes in files, not by deltas: one generator says it all."""

    def __init__(self) -> None:
        self.audio_bytes = 0
        self._events = self._speak()

    def _speak(self) -> AsyncGenerator[SpeechEvent, None]:
        """What is said, in order."""
        raise NotImplementedError

    def _cut(self, samples: bytes, delta_bytes: int) -> Iterator[AudioDelta]:
        """The samples of a file as deltas; they count as handed on."""
        for start in range(0, len(samples), delta_bytes):
            audio = samples[start : start + delta_bytes]
            self.audio_bytes += len(audio)
            yield AudioDelta(audio)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        return await anext(self._events)


Take = Callable[[AudioDelta], None]
"""Takes audio at once; waits for nothing."""


class SpeechProvider(Protocol):
    """Whoever can turn a request into speech."""

    def speak(self, request: SpeechRequest, take: Take | None = None, /) -> Speech:
        """Prepare a speech; nothing is connected before it is iterated.

        Args:
            take: Whoever iterates, for audio that follows audio: a lane may hand it there the moment it comes, in its
                place among the events, instead of waking a task to yield it.
        """


def may_start_again(error: ProviderError, *, text_sent: bool, bytes_heard: int) -> bool:
    """Whether the same speech may be started once more after this error
    (docs/architecture.md, "What may be attempted again").

    Nothing may start again once a byte was heard, after a refusal, or after a timeout with an unknown outcome. Before
    the text has left us nothing can have been billed; a throttled start is known not to have been served.
    The number of starts is the caller's to count (``Deadlines.starts``).
    """
    if bytes_heard or not error.retryable or error.diagnostics.get("code") == PACED_OUT:
        return False
    return error.throttled or not text_sent


def pause_before_start(starts_so_far: int, *, throttled: bool) -> float:
    """Seconds to wait before the next start: short and doubling, four times as long where we were throttled.

    Jittered by up to a half, so that speeches refused in the same moment do not return in the same moment.
    """
    base = 0.25 * 2.0 ** max(0, starts_so_far - 1) * (4 if throttled else 1)
    return min(base, 10.0) * random.uniform(1.0, 1.5)  # noqa: S311 - spreads load, guards nothing
