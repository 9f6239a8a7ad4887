"""Voices of the run-task family: cloned and designed by ``voice-enrollment``, waited for, and found again.

Creating is not idempotent here either. What was made under a name is found by its prefix, which is the name's first ten
characters, so a doubtful call is looked for before another one is made. A new voice cannot always speak at once: it is
asked about until it can, or until the provider's review has refused it.

Source: Model Studio, "Voice cloning and design API" (``voice-enrollment``), of October 2026.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from server.audio import has_sound
from server.errors import ProviderRejected, ProviderTimeout, ProviderUnavailable
from server.providers.languages import spoken_iso
from server.providers.qwen.customization import (
    CUSTOMIZATION_PATH,
    MOST_BODY_BYTES,
    CreatedVoice,
    Kind,
    ListedVoice,
    data_url,
    preview_of,
    too_large,
)
from server.providers.qwen.errors import OperatorAlarm, operator_alarm, storable
from server.providers.qwen.rest import QwenRest, unknown_outcome
from server.settings import TASK_MODEL, Settings

_MODEL = "voice-enrollment"
_PREFIX_CHARACTERS = 10
_PAGE_SIZE = 100
# Voices of all the family's services come in one list; 1000 of each are kept.
_MOST_PAGES = 120
# The provider's own is ten seconds; more of the recording makes a better voice where the model takes it.
_PROMPT_SECONDS = 30.0
_TAKES_LONG_PROMPTS = re.compile(r"qwen-audio-3\.0-|cosyvoice-v3-flash|cosyvoice-v3\.5-")
_LONGEST_PROMPT, _LONGEST_PREVIEW = 500, 200
UNDEPLOYED = "undeployed"
"""The code of a voice that the provider's review has refused: final, whoever asks again."""


class _Output(msgspec.Struct):
    """All of it is of any type: an oddity must not lose a voice that is paid for."""

    voice_id: Any = None
    preview_audio: Any = None
    status: Any = None
    target_model: Any = None
    voice_list: Any = None


class _Answer(msgspec.Struct):
    output: _Output
    request_id: Any = None


class VoiceEnrollment:
    """Creates voices and finds them again. Errors are those of ``QwenRest.post``."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient, alarm: OperatorAlarm = operator_alarm) -> None:
        self._rest = QwenRest(settings, http, alarm)
        self._deadlines = settings.deadlines
        self._look_every_seconds = settings.intervals.deploying_look_seconds

    async def clone(
        self,
        *,
        preferred_name: str,
        recording: bytes | str,
        mime: str,
        target_model: str,
        transcript: str = "",
        language: str = "Auto",
        ready_within_seconds: float | None = None,
    ) -> CreatedVoice:
        """Clone a voice, and wait until it can speak.

        Args:
            preferred_name: Its first ten characters become part of the voice's id: lower-case letters and digits.
            recording: WAV (16-bit), MP3 or M4A; 16 kHz or more, 5 to 60 s. The bytes themselves, or an address that
                the provider can fetch them from.
            mime: ``audio/wav``, ``audio/mpeg`` or ``audio/mp4``.
            transcript: What the recording says. It is not sent; with ``Auto`` its script tells the language.
            language: A v1 name.
            ready_within_seconds: How long to wait until it can speak, if not as long as a request may.

        Raises:
            ProviderTimeout: Also where the voice was made and cannot speak yet (``code`` ``deploying``).
            ProviderRejected: Also, with status 400, where the provider's review has refused the voice.
        """
        given: dict[str, Any] = {
            "action": "create_voice",
            "target_model": target_model,
            "prefix": prefix_of(preferred_name),
            # The provider takes every recording for Chinese that it is told nothing about.
            "language_hints": [spoken_iso(language, transcript)],
        }
        if _TAKES_LONG_PROMPTS.match(target_model):
            given["max_prompt_audio_length"] = _PROMPT_SECONDS
        body = await asyncio.to_thread(_clone_body, given, recording, mime)
        if len(body) > MOST_BODY_BYTES:
            raise too_large()
        answer = await self._post(body)
        voice_id = _voice_id(answer)
        await self.ready(voice_id, within_seconds=ready_within_seconds)
        return CreatedVoice(
            voice_id=voice_id, target_model=model_in(voice_id) or target_model, request_id=storable(answer.request_id)
        )

    async def design(
        self, *, preferred_name: str, instruct: str, preview_text: str, target_model: str, language: str = "Auto"
    ) -> CreatedVoice:
        """Design a voice from a description, where the region does; with a preview that says ``preview_text``.

        Raises:
            ProviderRejected: Also, with status 400 and before any call, for what the provider is known to refuse.
            ProviderTimeout: Also where the answer came without a preview that can be heard.
        """
        if len(instruct) > _LONGEST_PROMPT or len(preview_text) > _LONGEST_PREVIEW:
            raise ProviderRejected(
                f"The speech provider takes a description of up to {_LONGEST_PROMPT} characters and a preview text of "
                f"up to {_LONGEST_PREVIEW}. Please shorten them.",
                status=400,
                diagnostics={"code": "too_long", "text_sent": False},
            )
        body = {
            "model": _MODEL,
            "input": {
                "action": "create_voice",
                "target_model": target_model,
                "prefix": prefix_of(preferred_name),
                "voice_prompt": instruct,
                "preview_text": preview_text,
                "language_hints": [spoken_iso(language, preview_text)],
            },
            "parameters": {"sample_rate": 24_000, "response_format": "wav"},
        }
        answer = await self._post(msgspec.json.encode(body))
        voice_id, preview = _voice_id(answer), preview_of(answer.output.preview_audio)
        request_id = storable(answer.request_id)
        if not await asyncio.to_thread(has_sound, preview):
            code = "unreadable_preview" if preview else "no_preview"
            raise unknown_outcome(code, request_id=request_id, voice=voice_id)
        await self.ready(voice_id, within_seconds=self._deadlines.design_deploying_seconds)
        return CreatedVoice(
            voice_id=voice_id, target_model=model_in(voice_id) or target_model, request_id=request_id, preview=preview
        )

    async def ready(self, voice_id: str, *, within_seconds: float | None = None) -> None:
        """Wait until a voice can speak.

        A look that fails says nothing about the voice, and neither does a word that no document lists.

        Raises:
            ProviderTimeout: It still cannot; ``code`` is ``deploying``.
            ProviderRejected: It was refused and never will.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + (within_seconds or self._deadlines.deploying_seconds)
        while True:
            try:
                status = await self.status(voice_id)
            except (ProviderUnavailable, ProviderTimeout):
                status = "?"
            if status == "OK":
                return
            if status == "UNDEPLOYED":
                raise ProviderRejected(
                    "The speech provider does not accept this recording. Please use another one.",
                    status=400,
                    diagnostics={"code": UNDEPLOYED, "voice": voice_id},
                )
            if clock() + self._look_every_seconds > until:
                raise ProviderTimeout(
                    "The speech provider is still preparing this voice. Please try again in a minute: you will not pay "
                    "twice.",
                    diagnostics={"code": "deploying", "voice": voice_id, "status": status},
                )
            await asyncio.sleep(self._look_every_seconds)

    async def status(self, voice_id: str) -> str:
        """The provider's word for how a voice stands: ``OK``, ``DEPLOYING``, ``UNDEPLOYED``, or one of tomorrow's."""
        body = {"model": _MODEL, "input": {"action": "query_voice", "voice_id": voice_id}}
        answer = await self._post(msgspec.json.encode(body))
        return storable(answer.output.status).upper()

    async def find(self, kind: Kind, preferred_name: str) -> ListedVoice | None:
        """The voice that was created under this name, once it can speak; None if there is none.

        Raises:
            ProviderTimeout, ProviderRejected: As ``ready``.
        """
        prefix = prefix_of(preferred_name)
        # Whether the provider's own filter wants the whole prefix or its beginning is not said: ours wants the whole.
        named = re.compile(rf"-{re.escape(prefix)}(-|$)")
        async for voice in self.voices(kind, prefix=prefix):
            if named.search(voice.voice_id):
                await self.ready(voice.voice_id)
                return voice
        return None

    async def voices(self, _kind: Kind | None = None, *, prefix: str = "") -> AsyncIterator[ListedVoice]:
        """Every voice of the family that the account holds, clones and designs in one list, each once.

        Raises:
            ProviderUnavailable: Also where the list does not come to an end: what it lacks cannot be known then.
        """
        seen: set[str] = set()
        for page_index in range(_MOST_PAGES):
            given = {"action": "list_voice", "page_index": page_index, "page_size": _PAGE_SIZE}
            if prefix:
                given["prefix"] = prefix
            answer = await self._post(msgspec.json.encode({"model": _MODEL, "input": given}))
            entries = answer.output.voice_list if isinstance(answer.output.voice_list, list) else []
            fresh = [voice for entry in entries if (voice := _listed(entry)) and voice.voice_id not in seen]
            for voice in fresh:
                seen.add(voice.voice_id)
                yield voice
            # There is no total: a page that is not full is the last.
            if not fresh or len(entries) < _PAGE_SIZE:
                return
        raise ProviderUnavailable(diagnostics={"code": "endless_list", "text_sent": True})

    async def delete(self, _kind: Kind, voice_id: str) -> None:
        """Have a voice removed for good, a clone or a design.

        Raises:
            VoiceGone: It was not there (any more).
        """
        body = {"model": _MODEL, "input": {"action": "delete_voice", "voice_id": voice_id}}
        await self._post(msgspec.json.encode(body))

    async def _post(self, body: bytes) -> _Answer:
        within = self._deadlines.customization_seconds
        return await self._rest.post(CUSTOMIZATION_PATH, body, _Answer, within_seconds=within)


def prefix_of(preferred_name: str) -> str:
    """What of a name goes into a voice's id."""
    return preferred_name[:_PREFIX_CHARACTERS]


def model_in(voice_id: str) -> str:
    """The model that an id begins with; empty for an id of another shape."""
    match = TASK_MODEL.match(voice_id)
    return match[0] if match else ""


def _clone_body(given: dict[str, Any], recording: bytes | str, mime: str) -> bytes:
    """Milliseconds of work for megabytes of recording: for a thread."""
    where = recording if isinstance(recording, str) else data_url(recording, mime)
    return msgspec.json.encode({"model": _MODEL, "input": {**given, "url": where}})


def _voice_id(answer: _Answer) -> str:
    voice_id = storable(answer.output.voice_id)
    if not voice_id:
        raise unknown_outcome("no_voice_id", request_id=storable(answer.request_id))
    return voice_id


def _listed(entry: Any) -> ListedVoice | None:
    """One entry of a list; None where it is no voice. Somebody else's odd voice must not hide all others."""
    if not isinstance(entry, dict) or not isinstance(entry.get("voice_id"), str):
        return None
    voice_id, created_at = storable(entry["voice_id"]), entry.get("gmt_create")
    return ListedVoice(
        voice_id=voice_id,
        target_model=model_in(voice_id),
        created_at=created_at if isinstance(created_at, str) else "",
    )
