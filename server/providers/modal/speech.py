"""A completed Modal job as a source of speech: its result, fetched whole and handed on as samples."""

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self

from server.audio import AudioError, parse_wav, to_mono_pcm16
from server.errors import NothingToSpeak, ProviderUnavailable
from server.providers.modal.api import Modal
from server.providers.speech import AudioDelta, SpeechEnd, SpeechEvent, SpeechRequest, SpeechStatus
from server.text import has_letters

_DELTA_BYTES = 64 * 1024


class ModalSpeech:
    """Hands on what jobs have spoken already; ``SpeechRequest.job`` says which. Nothing is bought here."""

    def __init__(self, modal: Modal) -> None:
        self._modal = modal

    def speak(self, request: SpeechRequest) -> "_Fetched":
        return _Fetched(self._modal, request.job or "", request.text)


class _Fetched:
    """One result on its way."""

    def __init__(self, modal: Modal, job: str, text: str) -> None:
        self._modal = modal
        self._job = job
        self._text = text
        self._events = self._fetch()
        self.audio_bytes = 0

    @property
    def text_sent(self) -> bool:
        """Long ago: what fails here was tried several times already, and is not started again."""
        return True

    def facts(self) -> dict[str, Any]:
        return {"job_id": self._job, "audio_bytes": self.audio_bytes}

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

    async def _fetch(self) -> AsyncGenerator[SpeechEvent, None]:
        yield SpeechStatus("provider_downloading")
        wav = await self._modal.result(self._job)
        try:
            parsed = parse_wav(wav)
            samples = await asyncio.to_thread(to_mono_pcm16, parsed)
        except AudioError as exc:
            raise ProviderUnavailable(diagnostics={"code": "unreadable_audio"}) from exc
        if not samples and not has_letters(self._text):
            raise NothingToSpeak(diagnostics={"code": "no_audio"})
        if not samples:
            raise ProviderUnavailable(
                "The speech provider handed out no audio. Please try again.", diagnostics={"code": "no_audio"}
            )
        yield SpeechStatus("provider_persisting", parsed.sample_rate_hz)
        for start in range(0, len(samples), _DELTA_BYTES):
            audio = samples[start : start + _DELTA_BYTES]
            self.audio_bytes += len(audio)
            yield AudioDelta(audio)
        yield SpeechEnd(self.facts())
