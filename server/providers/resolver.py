"""Which provider speaks: the one place that knows the mode, and turns it into capabilities.

New work follows the mode; work that is under way follows its own row, so ``source`` asks for the row's provider. Which
lane that is stands in ``lanes``.
"""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Literal, Protocol

import msgspec

from server.errors import (
    Conflict,
    Invalid,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    UtterError,
    VoiceGone,
)
from server.providers.lanes import Lane, Variable, lane_of
from server.providers.languages import AUTO, LANGUAGES
from server.providers.modal.api import Modal
from server.providers.modal.speech import ModalSpeech
from server.providers.qwen.customization import CreatedVoice, Kind, ListedVoice, QwenCustomization
from server.providers.qwen.pieces import QwenHttp
from server.providers.qwen.voice_enrollment import VoiceEnrollment, model_in
from server.providers.speech import SpeechProvider
from server.settings import ProviderMode, Settings, speaks_by_tasks, suits_kind

_LEAST_SPOKEN_CHARACTERS = 120


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
    def reference_object_key(self) -> str | None: ...
    @property
    def reference_transcript(self) -> str | None: ...
    @property
    def gone_from(self) -> str | None: ...


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider offers; handlers and jobs ask this, never for the provider's name.

    Attributes:
        streams: Its speech can be followed while it is spoken.
        takes_jobs: Its speech is a job that is submitted and looked at (the lane ``jobs``).
        enrolls: A voice is something that the provider makes, keeps and bills; elsewhere the recording is the voice.
        languages: The names that clients may send, ``Auto`` first.
    """

    provider: ProviderMode
    streams: bool
    takes_jobs: bool
    enrolls: bool
    languages: tuple[str, ...] = (AUTO, *LANGUAGES)


class SpokenProvider(SpeechProvider, Protocol):
    """Who speaks over a socket, which can be tried without saying a word."""

    async def knock(self, model: str) -> None:
        """Open the socket on which a model speaks, and leave it. Nothing is said, and nothing is billed.

        Raises:
            ProviderError: It does not open.
        """


class VoiceMaker(Protocol):
    """Who clones voices, finds them again by the name that they were made under, and takes them back."""

    async def clone(
        self,
        *,
        preferred_name: str,
        recording: bytes | str,
        mime: str,
        target_model: str,
        transcript: str = "",
        language: str = "Auto",
    ) -> CreatedVoice: ...

    async def find(self, kind: Kind, preferred_name: str) -> ListedVoice | None: ...

    async def delete(self, kind: Kind, voice_id: str) -> None: ...


# By the provider that speaks with it, or spoken by the other one and then cloned.
Description = Literal["designed", "spoken"]


class DesignedPreview(msgspec.Struct, frozen=True, kw_only=True):
    """A preview as a WAV file, and what the provider keeps of the voice, if anything."""

    audio: bytes
    voice_id: str | None = None
    target_model: str | None = None
    request_id: str = ""


def account_of(settings: Settings) -> str:
    """Names the provider's account without telling its key."""
    named = (settings.dashscope_base_url, settings.dashscope_workspace or "", settings.dashscope_api_key)
    return sha256("\n".join(named).encode()).hexdigest()[:16]


class Providers:
    """Everything that can speak, by the row's provider and the voice's target model.

    Attributes:
        abilities: Those of the active mode, for new work.
        account: Names the provider's account without telling its key. A key of another account knows none of the
            voices; what it says of them must not outlive it.
        customization: Where voices of the qwen-tts models are made and found.
        retired: Models and services that the provider no longer offers; ``Retirements`` keeps it.
        enrollment: Where those of the family that speaks in tasks are.
        pieces: Qwen's non-streaming lane, a piece of text at a time.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        realtime: SpokenProvider,
        inference: SpokenProvider,
        modal: Modal,
        customization: QwenCustomization,
        enrollment: VoiceEnrollment,
        pieces: QwenHttp,
    ) -> None:
        self._settings = settings
        self.account = account_of(settings)
        self._spoken: dict[str, SpokenProvider] = {"realtime": realtime, "inference": inference}
        self.modal = modal
        self.customization = customization
        self.enrollment = enrollment
        self.pieces = pieces
        self._abilities = {
            "qwen": Abilities(provider="qwen", streams=True, takes_jobs=False, enrolls=True),
            "modal": Abilities(provider="modal", streams=False, takes_jobs=True, enrolls=False),
        }
        self.abilities = self._abilities[settings.tts_provider_mode]
        self.retired: frozenset[str] = frozenset()

    def abilities_of(self, provider: str) -> Abilities:
        """Those of the provider that a row names, for work that is under way whatever the mode."""
        return self._abilities[provider]

    def source(self, provider: str, model: str | None, *, in_pieces: SpeechProvider) -> SpeechProvider:
        """Who speaks a run, by the lane of its provider and its target model.

        Args:
            in_pieces: Who speaks on the lane where every piece is bought: buying is the caller's business.

        Raises:
            ProviderRejected: Nothing here can speak it.
            ProviderUnavailable: This server is not configured to reach whoever could.
        """
        lane = lane_of(provider, model)
        if lane is None:
            raise ProviderRejected("This server cannot speak with this voice.")
        if lane.begins == "submitted":
            return ModalSpeech(self.modal)
        self._require_key()
        return in_pieces if lane.begins == "bought" else self._spoken[lane.name]

    def spoken(self, model: str) -> SpokenProvider | None:
        """Who speaks with a model over a socket; None for a lane without one."""
        lane = lane_of("qwen", model)
        return self._spoken.get(lane.name) if lane else None

    async def standing(self, model: str, voice_id: str) -> str:
        """What the provider says of a voice that speaks with this model, in its own word.

        Returns:
            ``OK``, ``DEPLOYING``, ``UNDEPLOYED`` or what else it says; ``GONE`` where it does not know the voice; empty
            where it has nobody to ask, or does not answer.
        """
        if not speaks_by_tasks(model) or model_in(voice_id) not in ("", model):
            return ""
        try:
            async with asyncio.timeout(self._settings.deadlines.connect_seconds):
                return await self.enrollment.status(voice_id)
        except VoiceGone:
            return "GONE"
        except (ProviderError, TimeoutError):
            return ""

    def maker(self, model: str) -> VoiceMaker:
        """Who makes and finds the voices that speak with this model."""
        return self.enrollment if speaks_by_tasks(model) else self.customization

    def voices_kept(self) -> dict[str, AsyncIterator[ListedVoice]]:
        """What each of Qwen's services keeps for this account, by what the service makes; read them to ask.

        The services of the two families are asked alike, but the newer one only where its models are used.
        """
        kept: dict[str, AsyncIterator[ListedVoice]] = {
            "vc": self.customization.voices("vc"),
            "vd": self.customization.voices("vd"),
        }
        models = (self._settings.qwen_vc_target_model, self._settings.qwen_vd_target_model)
        if any(map(speaks_by_tasks, models)):
            kept["enrolled"] = self.enrollment.voices()
        return kept

    def _require_key(self) -> None:
        """A server in the other mode may lack Qwen's key; what is under way there must say so, not fail by chance."""
        if not self._settings.dashscope_api_key:
            raise ProviderUnavailable(
                "This server is not set up for the speech provider of this voice. Please ask its operator.",
                diagnostics={"code": "not_configured"},
            )

    def lane(self, voice: VoiceFacts) -> Lane | None:
        """The lane on which a voice speaks, whatever the mode; None where there is none for it."""
        return lane_of(voice.tts_provider, voice.provider_target_model)

    @property
    def clone_service(self) -> str:
        """What the provider calls the service that clones voices for the model of new ones."""
        return "voice-enrollment" if speaks_by_tasks(self._settings.qwen_vc_target_model) else "qwen-voice-enrollment"

    @property
    def design_service(self) -> str:
        """The same for designed voices."""
        return "voice-enrollment" if speaks_by_tasks(self._settings.qwen_vd_target_model) else "qwen-voice-design"

    @property
    def designs(self) -> bool:
        """Whether voices can be designed at the moment."""
        needed = {self.design_service, self._settings.qwen_vd_target_model}
        return not self.abilities.enrolls or not needed & self.retired

    @property
    def speaks_live(self) -> bool:
        """Whether new voices can be heard while they speak, at the moment."""
        return self.abilities.streams and self._settings.qwen_vc_target_model not in self.retired

    def streams(self, voice: VoiceFacts) -> bool:
        """Whether a voice can be followed while it speaks, in the active mode."""
        lane = self.lane(voice)
        return lane is not None and lane.streams and self.objection(voice) is None

    def varies(self, voice: VoiceFacts) -> tuple[Variable, ...]:
        """What a request may vary about the speech of a voice."""
        lane = self.lane(voice)
        return lane.varies if lane is not None else ()

    async def design(self, provider: str, *, name: str, text: str, language: str, instruct: str) -> DesignedPreview:
        """Have a voice designed by the provider that a preview's row names.

        Raises:
            ProviderError: Also where this server was not told how to reach it.
        """
        if not self.abilities_of(provider).enrolls:
            return DesignedPreview(audio=await self.modal.design(text=text, language=language, instruct=instruct))
        self._require_key()
        model = self._settings.qwen_vd_target_model
        if speaks_by_tasks(model) and self._settings.dashscope_region != "cn":
            return await self._designed_elsewhere(model, name=name, text=text, language=language, instruct=instruct)
        return await self.designed(model, name=name, text=text, language=language, instruct=instruct)

    @property
    def describes(self) -> Description | None:
        """How a voice of which only its description is known comes to speak; None where it cannot."""
        settings = self._settings
        model = self.described_model
        if speaks_by_tasks(model):
            designs = settings.dashscope_region == "cn"
        else:
            designs = not {self.design_service, model} & self.retired
        if designs:
            return "designed"
        return "spoken" if settings.modal_endpoint_voice_design else None

    @property
    def described_model(self) -> str:
        """The model that such a voice is designed for: the one of new clones in the family that knows no difference."""
        cloned = self._settings.qwen_vc_target_model
        return cloned if speaks_by_tasks(cloned) else self._settings.qwen_vd_target_model

    async def designed(self, model: str, *, name: str, text: str, language: str, instruct: str) -> DesignedPreview:
        """Have a voice designed by the provider that speaks with it."""
        designer = self.enrollment if speaks_by_tasks(model) else self.customization
        created = await designer.design(
            preferred_name=name, instruct=instruct, preview_text=text, target_model=model, language=language
        )
        return DesignedPreview(
            audio=created.preview,
            voice_id=created.voice_id,
            target_model=created.target_model,
            request_id=created.request_id,
        )

    async def _designed_elsewhere(
        self, model: str, *, name: str, text: str, language: str, instruct: str
    ) -> DesignedPreview:
        """The region designs no voices for this model: the other provider speaks the preview, which is then cloned."""
        spoken = text
        while len(spoken) < _LEAST_SPOKEN_CHARACTERS:  # a clone needs five seconds of speech
            spoken = f"{spoken} {text}"
        audio = await self.modal.design(text=spoken, language=language, instruct=instruct)
        created = await self.enrollment.clone(
            preferred_name=name,
            recording=audio,
            mime="audio/wav",
            target_model=model,
            transcript=spoken,
            language=language,
            # A preview that was given up while its voice was being prepared could not be had again.
            ready_within_seconds=self._settings.deadlines.design_deploying_seconds,
        )
        return DesignedPreview(
            audio=audio, voice_id=created.voice_id, target_model=created.target_model, request_id=created.request_id
        )

    def objection(self, voice: VoiceFacts) -> str | None:
        """Why the active provider cannot speak with a voice, with guidance; None where it can."""
        refusal = self._refusal(voice)
        return refusal.detail if refusal else None

    def _refusal(self, voice: VoiceFacts) -> UtterError | None:
        again = "Please re-clone it." if voice.source == "uploaded" else "Please re-design it."
        if voice.tts_provider != self.abilities.provider:
            return Conflict(
                f"This voice was made for another speech provider and cannot speak with the current one. {again}"
            )
        if voice.gone_from == self.account:
            return Conflict(f"The speech provider no longer has this voice. {again}")
        if self.abilities.takes_jobs:
            return _without_reference(voice, again)
        objection = self._qwen_objection(voice, again)
        return Conflict(objection) if objection else None

    def _qwen_objection(self, voice: VoiceFacts, again: str) -> str | None:
        if not voice.provider_voice_id or not voice.provider_target_model:
            return f"This voice is incomplete: the speech provider's part of it is missing. {again}"
        if voice.provider_target_model not in self._settings.speakable_models:
            return f"This voice was made for a speech model that this server does not support. {again}"
        if voice.provider_target_model in self.retired:
            return f"The speech provider no longer offers the model of this voice. {again}"
        if not suits_kind(voice.provider_target_model, voice.provider_voice_kind):
            return f"This voice and its speech model do not belong together. {again}"
        return None

    def require_lane(self, voice: VoiceFacts) -> Lane:
        """The lane of a voice that the active provider can speak with.

        Raises:
            Conflict: It cannot; with guidance to create the voice again.
            Invalid: What the provider needs of the voice each time, its recording or transcript, is not there.
        """
        if refusal := self._refusal(voice):
            raise refusal
        lane = self.lane(voice)
        if lane is None:
            raise Conflict("This voice cannot speak on this server.")
        return lane


def _without_reference(voice: VoiceFacts, again: str) -> Invalid | None:
    if not voice.reference_object_key:
        return Invalid(f"This voice has no reference recording. {again}")
    if not (voice.reference_transcript or "").strip():
        return Invalid("This voice has no transcript of its reference recording. Please re-clone it with a transcript.")
    return None
