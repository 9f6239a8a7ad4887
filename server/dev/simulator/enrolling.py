"""The simulated ``voice-enrollment``: voices of the run-task family, cloned, designed, listed, queried and deleted."""

import base64
import re
from typing import Any, NoReturn, cast

from starlette.responses import JSONResponse, Response

from .behaviours import RestBehaviour
from .fetching import audio_bytes, moment_of
from .ledger import Call
from .reference_audio import checked
from .refusals import Refusal
from .speech import ISO_LANGUAGES, AudioFormat, Coding
from .state import Simulator
from .voices import model_of

_PREFIX = re.compile(r"[a-z0-9]{1,10}")


class Enrolling:
    """One request."""

    def __init__(
        self, simulator: Simulator, call: Call, asked: dict[str, Any], given: dict[str, Any], behaviour: RestBehaviour
    ) -> None:
        self._simulator, self._call = simulator, call
        self._asked, self._given, self._behaviour = asked, given, behaviour

    async def answered(self) -> Response:
        match self._given.get("action"):
            case "create_voice" if self._given.get("voice_prompt") is not None:
                return await self._design()
            case "create_voice":
                return await self._clone()
            case "list_voice":
                return self._list()
            case "query_voice":
                return self._query()
            case "update_voice":
                checked(await audio_bytes(self._where()), least_seconds=5, least_rate_hz=16_000)
                self._known()
                return self._answer({})
            case "delete_voice":
                if not self._simulator.voices.dismiss(self._voice_id()):
                    self._unknown()
                return self._answer({})
        raise Refusal("InvalidParameter", "action is not supported.")

    async def _clone(self) -> Response:
        prefix, target = self._common()
        language = self._hint()
        checked(await audio_bytes(self._where()), least_seconds=5, least_rate_hz=16_000)
        voice = self._simulator.voices.enroll(
            "vc",
            prefix,
            target,
            language,
            deploying=self._behaviour.deploying,
            status=self._behaviour.voice_status or "OK",
        )
        self._simulator.ledger.note(self._call, voice=voice.id, billed=1, language=language)
        return self._answer({"voice_id": voice.id})

    async def _design(self) -> Response:
        prefix, target = self._common()
        language = self._hint()
        prompt, text = self._given.get("voice_prompt"), self._given.get("preview_text")
        if not isinstance(prompt, str) or not 0 < len(prompt) <= 500:
            raise Refusal("InvalidParameter", "voice_prompt may have up to 500 characters.")
        if not isinstance(text, str) or not 15 <= len(text) <= 200 or language not in ("zh", "en"):
            raise Refusal("InvalidParameter", "preview_text must have 15 to 200 characters, in Chinese or English.")
        parameters = self._asked.get("parameters")
        wanted = parameters if isinstance(parameters, dict) else {}
        rate, form = wanted.get("sample_rate", 24_000), wanted.get("response_format", "wav")
        voice = self._simulator.voices.enroll(
            "vd", prefix, target, language, prompt=prompt, preview_text=text, deploying=self._behaviour.deploying
        )
        self._simulator.ledger.note(self._call, voice=voice.id, billed=1, language=language)
        preview: dict[str, Any] = {}
        if self._behaviour.preview_audio:
            coding = Coding(cast(AudioFormat, form), rate)
            speech = await self._simulator.speech.encoded(text, voice.id, ISO_LANGUAGES[language], coding)
            preview = {"data": base64.b64encode(speech).decode(), "sample_rate": rate, "response_format": form}
        return self._answer({"voice_id": voice.id, "preview_audio": preview})

    def _list(self) -> Response:
        prefix, index, size = (self._given.get(name) for name in ("prefix", "page_index", "page_size"))
        index, size = index or 0, size or 10
        if not isinstance(index, int) or not isinstance(size, int) or not 0 < size <= 1000 or index < 0:
            raise Refusal("InvalidParameter", "page_index and page_size are not valid.")
        named = [voice for voice in self._simulator.voices.enrolled() if not prefix or f"-{prefix}" in voice.id]
        page = named[index * size : (index + 1) * size]
        shown = [
            {
                "voice_id": voice.id,
                "gmt_create": moment_of(voice.created_at),
                "gmt_modified": moment_of(voice.created_at),
                "status": "DEPLOYING" if voice.deploying else voice.status,
            }
            for voice in page
        ]
        return self._answer({"voice_list": shown})

    def _query(self) -> Response:
        voice_id = self._voice_id()
        voice = self._simulator.voices.look(voice_id) or self._simulator.voices.forgotten(voice_id)
        if voice is None:
            self._unknown()
        return self._answer(
            {
                "status": "DEPLOYING" if voice.deploying else voice.status,
                "target_model": voice.target_model,
                "gmt_create": moment_of(voice.created_at),
                "gmt_modified": moment_of(voice.created_at),
                "resource_link": f"{self._simulator.base_url}/resources/{voice.id}",
            }
        )

    def _known(self) -> None:
        if self._simulator.voices.look(self._voice_id()) is None:
            self._unknown()

    def _unknown(self) -> NoReturn:
        raise Refusal("BadRequest.VoiceNotFound", f"Voice not found: {self._voice_id()}")

    def _common(self) -> tuple[str, str]:
        prefix, target = self._given.get("prefix"), self._given.get("target_model")
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise Refusal("InvalidParameter", "prefix should not be longer than 10 characters, letters and digits.")
        model = model_of(target) if isinstance(target, str) else None
        if model is None or not model.tasks:
            raise Refusal("InvalidParameter", "preprocess service not found")
        return prefix, model.name

    def _hint(self) -> str:
        hints = self._given.get("language_hints") or ["zh"]
        if not isinstance(hints, list) or len(hints) != 1:
            raise Refusal("InvalidLanguageHints", "language_hints must have exactly one element.", 400)
        language = str(hints[0])
        if language not in ISO_LANGUAGES:
            raise Refusal("InvalidLanguageHints", f"{language} is not supported.", 400)
        return language

    def _where(self) -> str:
        where = self._given.get("url")
        if not isinstance(where, str) or not where:
            raise Refusal("InvalidParameter", "url is required.")
        return where

    def _voice_id(self) -> str:
        voice_id = self._given.get("voice_id")
        if not isinstance(voice_id, str) or not voice_id:
            raise Refusal("InvalidParameter", "voice_id is required.")
        return voice_id

    def _answer(self, output: dict[str, Any]) -> Response:
        return JSONResponse({"output": output, "usage": {"count": 1}, "request_id": self._simulator.request_id()})
