"""A completed Modal job as a source of speech: its result, fetched whole and handed on as samples."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from server.audio import AudioError, parse_wav, to_mono_pcm16
from server.errors import NothingToSpeak, ProviderUnavailable
from server.providers.modal.api import Modal
from server.providers.speech import SpeechEnd, SpeechEvent, SpeechRequest, SpeechStatus, Take, WholeSpeech
from server.text import has_letters

_DELTA_BYTES = 64 * 1024


class ModalSpeech:
    """Hands on what jobs have spoken already; ``SpeechRequest.job`` says which. Nothing is bought here."""

    def __init__(self, modal: Modal) -> None:
        self._modal = modal

    def speak(self, request: SpeechRequest, _take: Take | None = None, /) -> "_Fetched":
        return _Fetched(self._modal, request.job or "", request.text)


class _Fetched(WholeSpeech):
    """One result on its way."""

    def __init__(self, modal: Modal, job: str, text: str) -> None:
        self._modal = modal
        self._job = job
        self._text = text
        super().__init__()

    @property
    def text_sent(self) -> bool:
        """Long ago: what fails here was tried several times already, and is not started again."""
        return True

    def facts(self) -> dict[str, Any]:
        return {"job_id": self._job, "audio_bytes": self.audio_bytes}

    async def _speak(self) -> AsyncGenerator[SpeechEvent, None]:
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
        for delta in self._cut(samples, _DELTA_BYTES):
            yield delta
        yield SpeechEnd(self.facts())
