"""A source of samples as a source of MP3, for lanes that yield nothing else themselves."""

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self

from server.audio import Mp3Encoder
from server.providers.speech import AudioDelta, Speech, SpeechEvent, SpeechProvider, SpeechRequest, SpeechStatus, Take


class AsMp3:
    """Speaks as its source does, and encodes as the audio comes: one encoder a speech, each slice in a thread."""

    def __init__(self, source: SpeechProvider) -> None:
        self._source = source

    def speak(self, request: SpeechRequest, _take: Take | None = None, /) -> "_Encoded":
        return _Encoded(self._source.speak(request), request.sample_rate_hz)


class _Encoded:
    """One speech on its way. Its first slice goes out with the first of the source's that completes a frame."""

    def __init__(self, speech: Speech, sample_rate_hz: int) -> None:
        self._speech = speech
        self._sample_rate_hz = sample_rate_hz
        self._events = self._encode()

    @property
    def text_sent(self) -> bool:
        return self._speech.text_sent

    @property
    def audio_bytes(self) -> int:
        return self._speech.audio_bytes

    def facts(self) -> dict[str, Any]:
        return self._speech.facts()

    async def __aenter__(self) -> Self:
        await self._speech.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._events.aclose()
        finally:
            await self._speech.__aexit__(exc_type, exc, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        return await anext(self._events)

    async def _encode(self) -> AsyncGenerator[SpeechEvent, None]:
        encoder: Mp3Encoder | None = None
        async for event in self._speech:
            if isinstance(event, AudioDelta):
                encoder = encoder or Mp3Encoder(self._sample_rate_hz)
                if frames := await asyncio.to_thread(encoder.encode, event.audio):
                    yield AudioDelta(frames)
            elif isinstance(event, SpeechStatus):
                self._sample_rate_hz = event.sample_rate_hz or self._sample_rate_hz
                yield event
            else:
                if encoder and (frames := await asyncio.to_thread(encoder.flush)):
                    yield AudioDelta(frames)
                yield event
