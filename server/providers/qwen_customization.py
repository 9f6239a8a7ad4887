"""Qwen's customization API: voices cloned from a recording, voices designed from a description, and finding both again.

Creating is billed per success and is not idempotent: the job that calls it claims the purchase first, gives the voice
a ``preferred_name`` of its own, and after an unknown end looks for that name before it creates again. Nothing here
deletes a voice: the provider's list is what a lost answer is found in.

Source: Model Studio, "Qwen-TTS voice cloning" and "Qwen-TTS voice design"; protocols.md §3.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import httpx
import msgspec

from server.audio import AudioError, parse_wav
from server.errors import ProviderRejected
from server.providers.errors import OperatorAlarm, operator_alarm
from server.providers.languages import language_iso, spoken_iso
from server.providers.qwen_rest import QwenRest, unknown_outcome
from server.settings import Settings

_PATH = "/api/v1/services/audio/tts/customization"
_CLONE, _DESIGN = "qwen-voice-enrollment", "qwen-voice-design"
# "must stay under 10 MB after base64"; read as the smaller of the two megabytes.
_MOST_DATA_URL_BYTES = 10_000_000
_PAGE_SIZE = 100
# An account holds 1000 voices of each kind; an unpaged or endless list ends here.
_MOST_PAGES = 60

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
    target_model: str
    created_at: str = ""


class _Preview(msgspec.Struct):
    data: str | None = None


class _Voice(msgspec.Struct):
    voice: Annotated[str, msgspec.Meta(min_length=1)]
    target_model: str | None = None
    gmt_create: Any = None
    preview_audio: _Preview | None = None


class _Created(msgspec.Struct):
    output: _Voice
    request_id: str | None = None


class _Page(msgspec.Struct):
    voice_list: list[_Voice] | None = None
    total_count: int | None = None


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
        if len(body) > _MOST_DATA_URL_BYTES + 20_000:
            raise ProviderRejected(
                "The recording is too large for the speech provider. Please use a smaller file.",
                status=400,
                diagnostics={"code": "too_large", "text_sent": False},
            )
        created = await self._rest.post(_PATH, body, _Created, within_seconds=self._within_seconds)
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
        created = await self._rest.post(_PATH, msgspec.json.encode(body), _Created, within_seconds=self._within_seconds)
        voice = _created(created, target_model)
        if not await asyncio.to_thread(_is_heard, voice.preview):
            code = "unreadable_preview" if voice.preview else "no_preview"
            raise unknown_outcome(code, request_id=voice.request_id, voice=voice.voice_id)
        return voice

    async def voices(self, kind: Kind) -> AsyncIterator[ListedVoice]:
        """Every voice of one kind that the account holds, in the provider's order, each once."""
        seen: set[str] = set()
        for page_index in range(_MOST_PAGES):
            page = await self._page(kind, page_index)
            fresh = [voice for voice in page.voice_list or [] if voice.voice not in seen]
            for voice in fresh:
                seen.add(voice.voice)
                created_at = voice.gmt_create if isinstance(voice.gmt_create, str) else ""
                yield ListedVoice(voice_id=voice.voice, target_model=voice.target_model or "", created_at=created_at)
            # Clones are listed without a total, so the end is a page with nothing new; a server that ignores the
            # page's number comes to the same.
            if not fresh or (page.total_count is not None and len(seen) >= page.total_count):
                return

    async def find(self, kind: Kind, preferred_name: str) -> ListedVoice | None:
        """The voice that was created under this name; None if there is none."""
        named = re.compile(rf"(^|-){re.escape(preferred_name)}(-|$)")
        async for voice in self.voices(kind):
            if named.search(voice.voice_id):
                return voice
        return None

    async def _page(self, kind: Kind, page_index: int) -> _Page:
        body = {
            "model": _CLONE if kind == "vc" else _DESIGN,
            "input": {"action": "list", "page_index": page_index, "page_size": _PAGE_SIZE},
        }
        listed = await self._rest.post(_PATH, msgspec.json.encode(body), _Listed, within_seconds=self._within_seconds)
        return listed.output


def _is_heard(preview: bytes) -> bool:
    """Whether a designed voice's sample is a WAV file with something in it."""
    try:
        return bool(preview) and len(parse_wav(preview).samples) > 0
    except AudioError:
        return False


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


def data_url(recording: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(recording).decode()}"


def _created(created: _Created, target_model: str) -> CreatedVoice:
    voice = created.output
    try:
        preview = base64.b64decode((voice.preview_audio and voice.preview_audio.data) or "")
    except ValueError:
        preview = b""
    return CreatedVoice(
        voice_id=voice.voice,
        target_model=voice.target_model or target_model,
        request_id=created.request_id or "",
        preview=preview,
    )
