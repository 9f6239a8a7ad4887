"""Qwen's customization API: voices cloned from a recording, voices designed from a description, and finding both again.

Creating is billed per success and is not idempotent: the job that calls it claims the purchase first, gives the voice
a ``preferred_name`` of its own, and after an unknown end looks for that name before it creates again. A lost
answer is found again in the provider's list; what is deleted was given up before (``jobs/give_back.py``).

Source: Model Studio, "Qwen-TTS voice cloning" and "Qwen-TTS voice design"; docs/providers.md, "Voices at Qwen".
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import httpx
import msgspec

from server.audio import has_sound
from server.errors import ProviderRejected, ProviderUnavailable
from server.providers.languages import language_iso, spoken_iso
from server.providers.qwen.errors import OperatorAlarm, operator_alarm, storable
from server.providers.qwen.rest import QwenRest, unknown_outcome
from server.settings import Settings, model_family

CUSTOMIZATION_PATH = "/api/v1/services/audio/tts/customization"
_CLONE, _DESIGN = "qwen-voice-enrollment", "qwen-voice-design"
# "must stay under 10 MB after base64"; read as the smaller of the two megabytes.
MOST_BODY_BYTES = 10_020_000
_PAGE_SIZE = 100
# An account holds 1000 voices of each kind; an unpaged or endless list ends here.
_MOST_PAGES = 120

Kind = Literal["vc", "vd"]


class CreatedVoice(msgspec.Struct, frozen=True, kw_only=True):
    """A voice that the provider has just made, and billed.

    Attributes:
        voice_id: The provider's id of it, which every synthesis names.
        target_model: The only model that speaks with it.
        preview: The designed voice's sample as a WAV file; empty for clones, which come without.
    """

    voice_id: str
    target_model: str
    request_id: str = ""
    preview: bytes = b""


class ListedVoice(msgspec.Struct, frozen=True, kw_only=True):
    """A voice as the provider lists it. ``created_at`` is its own text (``2025-08-11 17:59:32``, zone unknown)."""

    voice_id: str
    target_model: str = ""
    created_at: str = ""


class _Voice(msgspec.Struct):
    """All but the voice's id is of any type: an oddity beside it must not lose a voice that is paid for."""

    voice: Annotated[str, msgspec.Meta(min_length=1)]
    target_model: Any = None
    gmt_create: Any = None
    preview_audio: Any = None


class _Created(msgspec.Struct):
    output: _Voice
    request_id: Any = None


class _Page(msgspec.Struct):
    voice_list: list[Any] | None = None
    total_count: Any = None


class _Listed(msgspec.Struct):
    output: _Page


class QwenCustomization:
    """Creates voices and finds them again. Errors are those of ``QwenRest.post``."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient, alarm: OperatorAlarm = operator_alarm) -> None:
        self._settings = settings
        self._rest = QwenRest(settings, http, alarm)
        self._within_seconds = settings.deadlines.customization_seconds

    async def clone(
        self,
        *,
        preferred_name: str,
        recording: bytes | str,
        mime: str,
        target_model: str,
        transcript: str = "",
        language: str = "Auto",
    ) -> CreatedVoice:
        """Clone a voice.

        Args:
            preferred_name: Up to 16 of ``[A-Za-z0-9_]``; becomes part of the voice's id.
            recording: WAV (16-bit), MP3 or M4A; mono, 24 kHz or more, 3 to 60 s. The bytes themselves, or an address
                that the provider can fetch them from.
            mime: ``audio/wav``, ``audio/mpeg`` or ``audio/mp4``.
            transcript: What the recording says, if known.
            language: A v1 name; with ``Auto`` the provider finds out itself.

        Raises:
            ProviderRejected: Also, with status 400 and before any call, for a recording that is too large to send.
        """
        body = await asyncio.to_thread(
            _clone_body, preferred_name, recording, mime, target_model, transcript, language_iso(language)
        )
        if len(body) > MOST_BODY_BYTES:
            raise too_large()
        created = await self._rest.post(CUSTOMIZATION_PATH, body, _Created, within_seconds=self._within_seconds)
        return _created(created, target_model)

    async def design(
        self, *, preferred_name: str, instruct: str, preview_text: str, target_model: str, language: str = "Auto"
    ) -> CreatedVoice:
        """Design a voice from a description, with a preview that says ``preview_text``.

        Args:
            language: A v1 name; for ``Auto`` the one that the preview text's script tells, because here the provider
                does not find out itself.

        Raises:
            ProviderTimeout: Also where the answer came without a preview that can be heard: the voice is paid for and
            cannot be shown.
        """
        body = {
            "model": _DESIGN,
            "input": {
                "action": "create",
                "target_model": target_model,
                "voice_prompt": instruct,
                "preview_text": preview_text,
                "preferred_name": preferred_name,
                "language": spoken_iso(language, preview_text),
            },
            "parameters": {"sample_rate": 24_000, "response_format": "wav"},
        }
        created = await self._rest.post(
            CUSTOMIZATION_PATH, msgspec.json.encode(body), _Created, within_seconds=self._within_seconds
        )
        voice = _created(created, target_model)
        if not await asyncio.to_thread(has_sound, voice.preview):
            code = "unreadable_preview" if voice.preview else "no_preview"
            raise unknown_outcome(code, request_id=voice.request_id, voice=voice.voice_id)
        return voice

    async def voices(self, kind: Kind) -> AsyncIterator[ListedVoice]:
        """Every voice of one kind that the account holds, in the provider's order, each once.

        Raises:
            ProviderUnavailable: Also where the list does not come to an end: what it lacks cannot be known then.
        """
        seen: set[str] = set()
        for page_index in range(_MOST_PAGES):
            page = await self._page(kind, page_index)
            entries = page.voice_list or []
            fresh = [voice for entry in entries if (voice := _listed(entry)) and voice.voice_id not in seen]
            for voice in fresh:
                seen.add(voice.voice_id)
                yield voice
            # Clones are listed without a total, so the end is a page with nothing new; a server that ignores the
            # page's number comes to the same.
            whole = type(page.total_count) is int and len(seen) >= page.total_count
            if not fresh or (whole and len(entries) < _PAGE_SIZE):
                return
        raise ProviderUnavailable(diagnostics={"code": "endless_list", "text_sent": True})

    async def find(self, kind: Kind, preferred_name: str) -> ListedVoice | None:
        """The voice that was created under this name; None if there is none. One of the other kind is none."""
        named = re.compile(rf"(^|-){re.escape(preferred_name)}(-|$)")
        async for voice in self.voices(kind):
            other_kind = model_family(voice.target_model) not in (None, kind)
            if named.search(voice.voice_id) and not other_kind:
                return voice
        return None

    async def delete(self, kind: Kind, voice_id: str) -> None:
        """Have a voice removed for good; nothing can speak with it afterwards.

        Raises:
            VoiceGone: It was not there (any more).
        """
        body = {"model": _CLONE if kind == "vc" else _DESIGN, "input": {"action": "delete", "voice": voice_id}}
        await self._rest.post(
            CUSTOMIZATION_PATH, msgspec.json.encode(body), dict[str, Any], within_seconds=self._within_seconds
        )

    async def _page(self, kind: Kind, page_index: int) -> _Page:
        body = {
            "model": _CLONE if kind == "vc" else _DESIGN,
            "input": {"action": "list", "page_index": page_index, "page_size": _PAGE_SIZE},
        }
        listed = await self._rest.post(
            CUSTOMIZATION_PATH, msgspec.json.encode(body), _Listed, within_seconds=self._within_seconds
        )
        return listed.output


def _clone_body(
    preferred_name: str, recording: bytes | str, mime: str, target_model: str, transcript: str, language: str | None
) -> bytes:
    """Milliseconds of work for megabytes of recording: for a thread."""
    given: dict[str, Any] = {
        "action": "create",
        "target_model": target_model,
        "preferred_name": preferred_name,
        "audio": {"data": recording if isinstance(recording, str) else data_url(recording, mime)},
    }
    if transcript:
        given["text"] = transcript
    if language is not None:
        given["language"] = language
    return msgspec.json.encode({"model": _CLONE, "input": given})


def too_large() -> ProviderRejected:
    """A recording that the provider would not take: said before it is sent."""
    return ProviderRejected(
        "The recording is too large for the speech provider. Please use a smaller file.",
        status=400,
        diagnostics={"code": "too_large", "text_sent": False},
    )


def data_url(recording: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(recording).decode()}"


def _created(created: _Created, wanted_model: str) -> CreatedVoice:
    voice = created.output
    return CreatedVoice(
        voice_id=storable(voice.voice),
        target_model=speaking_model(voice.target_model, wanted_model),
        request_id=storable(created.request_id),
        preview=preview_of(voice.preview_audio),
    )


def speaking_model(said: object, wanted: str) -> str:
    """The model that a voice speaks with: what the provider says, unless that is none of the family asked for."""
    fits = isinstance(said, str) and model_family(said) == model_family(wanted)
    return str(said) if fits else wanted


def preview_of(sample: Any) -> bytes:
    """The bytes of ``{"data": "<Base64>"}``, also as a data URL; empty where there are none."""
    data = sample.get("data") if isinstance(sample, dict) else None
    if not isinstance(data, str):
        return b""
    try:
        return base64.b64decode(data.partition(",")[2] if data.startswith("data:") else data)
    except ValueError:
        return b""


def _listed(entry: Any) -> ListedVoice | None:
    """One entry of a list; None where it is no voice. Somebody else's odd voice must not hide all others."""
    try:
        voice = msgspec.convert(entry, _Voice)
    except msgspec.ValidationError:
        return None
    facts = {"target_model": voice.target_model, "created_at": voice.gmt_create}
    return ListedVoice(voice_id=voice.voice, **{name: fact for name, fact in facts.items() if isinstance(fact, str)})
