"""The simulated customization REST (docs/providers.md, "Voices at Qwen"): create, list, query, delete."""

import base64
import re
from typing import Any, Literal, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .behaviours import RestBehaviour
from .enrolling import Enrolling
from .fetching import audio_bytes, moment_of
from .ledger import Call
from .reference_audio import checked
from .refusals import Refusal
from .rest import answer, asked_for
from .speech import ISO_LANGUAGES, AudioFormat, Coding
from .state import Simulator
from .voices import Kind, Voice, model_of

_FEATURES: dict[str, Kind] = {"qwen-voice-enrollment": "vc", "qwen-voice-design": "vd"}
_ACTIONS = {"vc": ("create", "list", "delete"), "vd": ("create", "list", "query", "delete")}
_NAME = re.compile(r"[A-Za-z0-9_]{1,16}")


async def customize(simulator: Simulator, request: Request) -> Response:
    """Answer one ``POST /api/v1/services/audio/tts/customization``."""
    call = simulator.ledger.record("customization", "unknown", model=None, voice=None)
    asked, given, refusal = asked_for(simulator, request, await request.body())
    facts = _noted(simulator, call, asked, given)

    async def work(behaviour: RestBehaviour) -> Response:
        if refusal is not None:
            raise refusal
        if asked.get("model") == "voice-enrollment":
            return await Enrolling(simulator, call, asked, given, behaviour).answered()
        kind = _FEATURES.get(str(asked.get("model")))
        if kind is None:
            raise Refusal("ModelNotFound")
        if given.get("action") not in _ACTIONS[kind]:
            raise Refusal("InvalidParameter", "action is not supported.")
        return await _Feature(simulator, kind, call, asked, given, behaviour).answered()

    return await answer(simulator, request, "customization", call, facts, work)


def _noted(simulator: Simulator, call: Call, asked: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Write into the call what was asked, and return what behaviours may ask for."""
    text = given.get("preview_text") or given.get("text") or ""
    action = given.get("action")
    if asked.get("model") == "voice-enrollment" and isinstance(action, str):
        action = action.removesuffix("_voice")  # the same words as of the older service, for whoever counts calls
    notes = {
        "action": action if isinstance(action, str) else "unknown",
        "model": given.get("target_model") or asked.get("model"),
        "voice": given.get("voice") or given.get("voice_id"),
        "text": text,
        "feature": asked.get("model"),
        "preferred_name": given.get("preferred_name") or given.get("prefix"),
        "language": given.get("language"),
        "voice_prompt": given.get("voice_prompt"),
    }
    if isinstance(given.get("audio"), dict):
        notes["audio_characters"] = len(str(given["audio"].get("data", "")))
    simulator.ledger.note(call, **{key: value for key, value in notes.items() if value is not None})
    return {"action": notes["action"], "model": notes["model"], "voice": notes["voice"], "text": str(text)}


class _Feature:
    """One request of one of the two features."""

    def __init__(
        self,
        simulator: Simulator,
        kind: Kind,
        call: Call,
        asked: dict[str, Any],
        given: dict[str, Any],
        behaviour: RestBehaviour,
    ) -> None:
        self._simulator, self._kind, self._call = simulator, kind, call
        self._asked, self._given, self._behaviour = asked, given, behaviour

    async def answered(self) -> Response:
        match self._given["action"]:
            case "create" if self._kind == "vc":
                return await self._clone()
            case "create":
                return await self._design()
            case "list":
                return self._list()
            case "query":
                return self._query()
            case _:
                return self._delete()

    async def _clone(self) -> Response:
        name, target, language = self._common(default_language="")
        audio = self._given.get("audio")
        where = audio.get("data") if isinstance(audio, dict) else None
        if not isinstance(where, str) or not where:
            raise Refusal("InvalidParameter", "audio.data is required.")
        checked(await audio_bytes(where))
        voice = self._simulator.voices.create("vc", name, target, language)
        self._simulator.ledger.note(self._call, voice=voice.id, billed=1)
        return self._answer({"voice": voice.id, "target_model": target}, {"count": 1})

    async def _design(self) -> Response:
        name, target, language = self._common(default_language="zh")
        prompt = self._text("voice_prompt", 2048)
        preview_text = self._text("preview_text", 1024)
        parameters = self._asked.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise Refusal("InvalidParameter", "parameters must be an object.")
        rate = parameters.get("sample_rate", 24_000)
        form = parameters.get("response_format", "wav")
        if rate not in (8000, 16000, 24000, 48000) or form not in ("pcm", "wav", "mp3"):
            raise Refusal("InvalidParameter", "This simulation supports pcm, wav and mp3 at 8, 16, 24 or 48 kHz.")
        voice = self._simulator.voices.create("vd", name, target, language, prompt, preview_text)
        self._simulator.ledger.note(self._call, voice=voice.id, billed=1)
        coding = Coding(cast(AudioFormat, form), rate)
        speech = await self._simulator.speech.encoded(preview_text, voice.id, ISO_LANGUAGES[language], coding)
        preview = {"data": base64.b64encode(speech).decode(), "sample_rate": rate, "response_format": form}
        return self._answer({"voice": voice.id, "target_model": target, "preview_audio": preview}, {"count": 1})

    def _list(self) -> Response:
        index, size = self._given.get("page_index", 0), self._given.get("page_size", 10)
        for number in (index, size):
            if not isinstance(number, int) or not 0 <= number <= 1_000_000:
                raise Refusal("InvalidParameter", "page_index and page_size must be between 0 and 1000000.")
        voices = self._simulator.voices.newest_first(self._kind)
        page = voices[index * size : (index + 1) * size]
        with_total = self._kind == "vd" if self._behaviour.total_count is None else self._behaviour.total_count
        output: dict[str, Any] = {"voice_list": [self._shown(voice) for voice in page]}
        if with_total:
            output |= {"page_index": index, "page_size": size, "total_count": len(voices)}
        return self._answer(output, {"count": 0} if self._kind == "vc" else {})

    def _query(self) -> Response:
        voice = self._simulator.voices.find(self._voice_id(), self._kind)
        if voice is None:
            raise Refusal("VoiceNotFound", f"Voice not found: {self._voice_id()}")
        return self._answer(self._shown(voice), {"count": 0})

    def _delete(self) -> Response:
        voice_id = self._voice_id()
        if not self._simulator.voices.delete(voice_id, self._kind):
            code = "BadRequest.VoiceNotFound" if self._kind == "vc" else "VoiceNotFound"
            raise Refusal(code, f"Voice not found: {voice_id}")
        if self._kind == "vc":
            return self._answer(None, {"count": 0})
        return self._answer({"voice": voice_id}, {})

    def _common(self, default_language: str) -> tuple[str, str, str]:
        """Preferred name, target model and language of a creation."""
        # One page of the vendor's requires a name and another does not; the SDK leaves a design's out.
        unnamed = None if self._kind == "vc" else "design"
        name, target = self._given.get("preferred_name") or unnamed, self._given.get("target_model")
        language = self._given.get("language") or default_language
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Refusal("InvalidParameter", "preferred_name must be up to 16 letters, digits or underscores.")
        model = model_of(target) if isinstance(target, str) else None
        if model is None or model.kind != self._kind:
            raise Refusal("InvalidParameter", "target_model is not one that such a voice can be created for.")
        if language and (not isinstance(language, str) or language not in ISO_LANGUAGES):
            raise Refusal("InvalidParameter", f"language must be one of {', '.join(ISO_LANGUAGES)}.")
        return name, model.name, str(language)

    def _text(self, field: str, most: int) -> str:
        text = self._given.get(field)
        if not isinstance(text, str) or not text.strip() or len(text) > most:
            raise Refusal("InvalidParameter", f"{field} is required and may have up to {most} characters.")
        return text

    def _voice_id(self) -> str:
        voice_id = self._given.get("voice")
        if not isinstance(voice_id, str) or not voice_id:
            raise Refusal("InvalidParameter", "voice is required.")
        return voice_id

    def _shown(self, voice: Voice) -> dict[str, Any]:
        moment = moment_of(voice.created_at)
        if self._kind == "vc":
            return {"voice": voice.id, "gmt_create": moment, "target_model": voice.target_model}
        return {
            "voice": voice.id,
            "target_model": voice.target_model,
            "language": voice.language,
            "voice_prompt": voice.prompt,
            "preview_text": voice.preview_text,
            "gmt_create": moment,
            "gmt_modified": moment,
        }

    def _answer(self, output: dict[str, Any] | None, usage: dict[str, Literal[0, 1]]) -> Response:
        body: dict[str, Any] = {"usage": usage, "request_id": self._simulator.request_id()}
        if self._behaviour.status_code:
            body["status_code"] = 200
        return JSONResponse(body if output is None else {"output": output, **body})
