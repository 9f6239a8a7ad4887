"""What a request or an answer may look like: made up member by member, for people who read the document of the API."""

from typing import Any, Final

_ID: Final = "1255a0b4-7b0e-4b55-9f0a-0d8f0c9a4e11"
_VOICE: Final = "7d357a71-3a4e-4b6b-8f6c-58f9f2f1f0aa"
_GENERATION: Final = "c2b7d8a4-51a3-4b0e-9a55-0a4b0a3b7f7d"
_MOMENT: Final = "2026-11-20T09:30:00Z"

#: By the name of a member, or of a schema and its member where the name alone does not tell.
_VALUES: Final[dict[str, Any]] = {
    "voice_id": _VOICE,
    "generation_id": _GENERATION,
    "VoiceEntry.id": _VOICE,
    "SpeakingVoice.id": _VOICE,
    "GenerationEntry.id": _GENERATION,
    "text": "Good evening, and welcome.",
    "input": "Good evening, and welcome.",
    "language": "English",
    "languages": ["Auto", "English"],
    "default": "Auto",
    "VoiceEntry.default": True,
    "SpeakingVoice.default": True,
    "VoiceChange.default": True,
    "name": "Ada",
    "voice_name": "Ada",
    "voice": "Ada",
    "KeyRequest.name": "My laptop",
    "KeyEntry.name": "My laptop",
    "KeyCreated.name": "My laptop",
    "prefix": "utr_4fB2",
    "key": "utr_4fB2…",
    "instruct": "A woman in her fifties with a low, warm voice, who takes her time.",
    "transcript": "The morning train was late again, so I walked along the river instead.",
    "reference_transcript": "The morning train was late again, so I walked along the river instead.",
    "description": "Warm, close to the microphone.",
    "consent": "This is my own voice.",
    "status": "completed",
    "GenerateAnswer.status": "processing",
    "DesignPreviewAnswer.status": "pending",
    "RenewAnswer.status": "processing",
    "estimated_duration_minutes": 0.1,
    "stream_url": f"/api/generate/stream?task_id={_ID}&ticket=AVV_6qdgbUoYqr8j",
    "audio_url": f"/api/generations/{_GENERATION}/audio",
    "audio_path": f"/api/generations/{_GENERATION}/audio",
    "object_key": f"{_ID}/preview_{_ID}.wav",
    "CloneUploadAnswer.object_key": f"{_ID}/{_VOICE}/reference.wav",
    "upload_url": "https://store.example/references/reference.wav?signature=abc",
    "preview_url": f"/api/voices/{_VOICE}/preview",
    "url": "https://store.example/speech.mp3?signature=abc",
    "redirect_url": f"/generate?voice={_VOICE}&text=Good%20evening&language=English",
    "avatar_url": "https://people.example/ada.png",
    "error": None,
    "error_category": None,
    "error_message": None,
    "incompatible_reason": None,
    "modal_status": None,
    "modal_elapsed_seconds": None,
    "provider": "qwen",
    "tts_provider": "qwen",
    "LanguagesAnswer.provider": "qwen",
    "Transcription.provider": "none",
    "provider_status": "completed",
    "provider_request_id": "8f0c9a4e",
    "provider_voice_id": "ada-voice",
    "provider_target_model": "qwen3-tts-vc-realtime-2026-01-15",
    "provider_voice_kind": "vc",
    "source": "uploaded",
    "format": "mp3",
    "output_format": "mp3",
    "mime": "audio/mpeg",
    "sample_rate": 24_000,
    "bytes": 48_000,
    "header_bytes": 0,
    "seconds": 3.0,
    "duration_seconds": 3.0,
    "generation_time_seconds": 1.4,
    "expires_in": 3600,
    "expires_at": None,
    "client": "OpenAI/Python",
    "model": "tts-1",
    "Model.id": "tts-1",
    "created": 1_780_000_000,
    "owned_by": "utter",
    "lane": "qwen-realtime",
    "key_id": None,
    "characters": 26,
    "starts": 1,
    "characters_per_day": None,
    "starts_per_minute": None,
    "designs_per_day": 20,
    "clones_per_day": 20,
    "max_text_chars": 2000,
    "degraded": [],
    "detail": "Please enter text to speak",
    "message": "Please enter text to speak",
    "type": "generate",
    "request_id": "r-4711",
    "handle": "ada",
    "display_name": "Ada",
    "subscription_tier": "free",
    "credits_remaining": 12.5,
    "page": 1,
    "per_page": 20,
    "total": 1,
    "pages": 1,
    "ids": [_GENERATION],
    "speed": 1.0,
    "pitch": 1.0,
    "volume": 50,
    "varies": ["speed", "pitch", "volume"],
}
#: What a request says beside what it has to.
_ALSO: Final = {"VoiceChange": ("name",), "ProfileChange": ("display_name",), "SpeechWanted": ("voice",)}
_CATEGORIES: Final = {
    400: "validation", 401: "unauthorized", 403: "unauthorized", 404: "not_found", 406: "validation", 409: "conflict",
    413: "too_large", 429: "overloaded", 502: "provider_rejected", 503: "provider_unavailable", 504: "timeout",
}  # fmt: skip
_SENTENCES: Final = {
    400: "Please enter text to speak", 401: "Please sign in.", 403: "Please sign in for that.",
    404: "This does not exist.", 406: "This cannot be answered in the form that was asked for.",
    409: "This Idempotency-Key was used for a different request.", 413: "The request body is too large.",
    429: "You have asked for too much. Please try again later.", 502: "The speech provider refused this text.",
    503: "The speech provider cannot be reached. Please try again.", 504: "The speech provider did not answer in time.",
}  # fmt: skip
_OPENAI_TYPES: Final = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Examples:
    """Examples of the schemas of one document."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self.schemas = schemas

    def of(self, name: str) -> Any:
        """One of the schema of this name: an answer with all of its members, a request with those that it needs."""
        schema = self.schemas[name]
        if "oneOf" in schema:
            return self.of(_named(schema["oneOf"][0]))
        asks = name.endswith(("Request", "Wanted", "Change"))
        wanted = [*schema.get("required", ()), *_ALSO.get(name, ())] if asks else schema["properties"]
        return {member: self._member(name, member, schema["properties"][member]) for member in wanted}

    def problem(self, name: str, status: int | None) -> dict[str, Any]:
        """A problem that is answered with this status."""
        sentence = _SENTENCES.get(status or 500, "Something went wrong here. Please try again.")
        category = _CATEGORIES.get(status or 500, "internal")
        if name == "Problem":
            return {"detail": sentence, "category": category, "request_id": "r-4711"}
        type_ = _OPENAI_TYPES.get(status or 500, "server_error" if (status or 500) >= 500 else "invalid_request_error")
        return {"error": {"message": sentence, "type": type_, "param": None, "code": category}}

    def _member(self, schema: str, member: str, shape: dict[str, Any]) -> Any:
        for name in (f"{schema}.{member}", member):
            if name in _VALUES and (name != member or "$ref" not in shape) and _fits(_VALUES[name], shape):
                return _VALUES[name]
        return self._value(shape)

    def _value(self, shape: dict[str, Any]) -> Any:
        if "$ref" in shape:
            return self.of(_named(shape))
        if "anyOf" in shape:
            return self._value(shape["anyOf"][0])
        if "enum" in shape:
            return shape["enum"][0]
        made: dict[str, Any] = {
            "uuid": _ID, "date-time": _MOMENT, "date": _MOMENT[:10], "boolean": True, "integer": 1, "number": 1.0,
            "string": "…", "object": {},
        }  # fmt: skip
        if shape.get("type") == "array":
            return [self._value(shape["items"])]
        format_ = str(shape.get("format"))
        return made[format_ if format_ in made else shape.get("type", "object")]


def _named(reference: dict[str, str]) -> str:
    return reference["$ref"].rpartition("/")[2]


def _fits(value: Any, shape: dict[str, Any]) -> bool:
    """Whether the value can be meant: members of one name are not of one type everywhere."""
    if "anyOf" in shape:
        return any(_fits(value, one) for one in shape["anyOf"])
    types = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", type(None): "null"}
    kind = types[type(value)]
    allowed = shape.get("enum")
    return (shape.get("type") == kind or (kind, shape.get("type")) == ("integer", "number")) and (
        allowed is None or value in allowed
    )
