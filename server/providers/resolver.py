"""Which provider speaks: the one place that knows the mode, and turns it into capabilities.

New work follows the mode; work that is under way follows its own row, so ``source`` asks for the row's provider.
"""

from typing import Protocol

import msgspec

from server.errors import Conflict, ProviderRejected
from server.providers.languages import AUTO, LANGUAGES
from server.providers.speech import SpeechProvider
from server.settings import ProviderMode, Settings, model_family


class VoiceFacts(Protocol):
    """What decides whether a voice can speak."""

    @property
    def tts_provider(self) -> str: ...
    @property
    def provider_voice_id(self) -> str | None: ...
    @property
    def provider_target_model(self) -> str | None: ...
    @property
    def provider_voice_kind(self) -> str | None: ...
    @property
    def source(self) -> str: ...
    @property
    def gone(self) -> bool: ...


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the active provider offers; handlers ask this, never for the provider's name.

    Attributes:
        streams: Its speech can be followed while it is spoken.
        languages: The names that clients may send, ``Auto`` first.
    """

    provider: ProviderMode
    streams: bool
    languages: tuple[str, ...]


class Providers:
    """Everything that can speak, by the row's provider and the voice's target model."""

    def __init__(self, settings: Settings, *, realtime: SpeechProvider) -> None:
        self._settings = settings
        self._realtime = realtime
        self.abilities = Abilities(provider=settings.tts_provider_mode, streams=True, languages=(AUTO, *LANGUAGES))

    def source(self, provider: str, model: str | None) -> SpeechProvider:
        """Who speaks a run: its target model decides the transport.

        Raises:
            ProviderRejected: Nothing here can speak it.
        """
        if provider == "qwen" and model and is_realtime(model):
            return self._realtime
        raise ProviderRejected("This server cannot speak with this voice.")

    def objection(self, voice: VoiceFacts) -> str | None:
        """Why the active provider cannot speak with a voice, with guidance; None where it can."""
        again = "Please re-clone it." if voice.source == "uploaded" else "Please re-design it."
        mode = self._settings.tts_provider_mode
        if voice.tts_provider != mode:
            return f"This voice was made for another speech provider and cannot speak with the present one. {again}"
        if voice.gone:
            return f"The speech provider no longer has this voice. {again}"
        return None if mode != "qwen" else self._qwen_objection(voice, again)

    def _qwen_objection(self, voice: VoiceFacts, again: str) -> str | None:
        if not voice.provider_voice_id or not voice.provider_target_model:
            return f"This voice is incomplete: the speech provider's part of it is missing. {again}"
        if voice.provider_target_model not in self._settings.speakable_models:
            return f"This voice was made for a speech model that this server does not support. {again}"
        if model_family(voice.provider_target_model) != voice.provider_voice_kind:
            return f"This voice and its speech model do not belong together. {again}"
        return None

    def check(self, voice: VoiceFacts) -> None:
        """Refuse a voice that the active provider cannot speak with.

        Raises:
            Conflict: With guidance to create the voice again.
        """
        if objection := self.objection(voice):
            raise Conflict(objection)


def is_realtime(model: str) -> bool:
    """Whether a target model is spoken over the realtime WebSocket. Source: the vendor's model names."""
    return "-realtime" in model
