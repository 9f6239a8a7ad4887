"""The simulated non-streaming synthesis (docs/providers.md, "Qwen in pieces, over HTTP"), and its downloads."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .behaviours import ENGINE_411, RestBehaviour
from .ledger import Call
from .refusals import Refusal
from .rest import answer, asked_for
from .serving import drain, transport_of
from .speech import ISO_LANGUAGES, LANGUAGES, billed_characters, language_of, wav_file
from .state import Simulator
from .voices import model_of

MOST_CHARACTERS = 600
"""Text cap of one request. Whether an ideograph counts once or twice there is not documented: here it counts twice, so
that who passes here passes either way."""

_VALID_SECONDS = 24 * 3600
_REMARK = "Simulated speech (eSpeak NG)"
_SLICE_BYTES = 24_000


async def download(simulator: Simulator, request: Request) -> Response:
    """Answer ``GET /downloads/<name>``, which needs no key."""
    file = simulator.downloads.find(request.path_params["name"])

    async def work(behaviour: RestBehaviour) -> Response:
        if file is None:
            return _storage_error(404, "NoSuchKey", "The specified key does not exist.")
        if time.time() >= file.expires_at:
            return _storage_error(403, "AccessDenied", "Request has expired.")
        audio = file.audio.ljust(behaviour.minimum_bytes, b"\0")
        headers = {"Content-Length": str(len(audio))}
        body = _body(request, audio, behaviour)
        return StreamingResponse(body, media_type="audio/wav", headers=headers)

    return await answer(simulator, request, "download", None, file.facts if file else {}, work)


async def _body(request: Request, audio: bytes, behaviour: RestBehaviour) -> AsyncIterator[bytes]:
    """The file's bytes: in ``seconds`` if told, and broken off after ``truncate_bytes`` if told."""
    end = len(audio) if behaviour.truncate_bytes is None else min(behaviour.truncate_bytes, len(audio))
    pause = behaviour.seconds * _SLICE_BYTES / max(1, end)
    for at in range(0, end, _SLICE_BYTES):
        yield audio[at : min(at + _SLICE_BYTES, end)]
        if pause:
            await asyncio.sleep(pause)
    if end < len(audio):
        await drain(request.scope)
        transport_of(request.scope).abort()
        await asyncio.sleep(0.01)


def _storage_error(status: int, code: str, message: str) -> Response:
    page = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response(page, status_code=status, media_type="application/xml")


async def synthesize(simulator: Simulator, request: Request) -> Response:
    """Answer one ``POST /api/v1/services/aigc/multimodal-generation/generation``."""
    call = simulator.ledger.record("http", "synthesize", model=None, voice=None, text="", characters=0)
    asked, given, refusal = asked_for(simulator, request, await request.body())
    text = given["text"] if isinstance(given.get("text"), str) else ""
    language = given.get("language_type", "Auto")
    facts = {"action": "synthesize", "model": asked.get("model"), "voice": given.get("voice"), "text": text}
    simulator.ledger.note(call, **facts, characters=billed_characters(text), language=language)

    async def work(behaviour: RestBehaviour) -> Response:
        if refusal is not None:
            raise refusal
        if "x-dashscope-async" in request.headers:
            raise Refusal("AccessDenied", "This model does not support asynchronous calls.")
        return await _spoken(simulator, request, call, facts, language, behaviour)

    return await answer(simulator, request, "http", call, facts, work)


async def _spoken(
    simulator: Simulator,
    request: Request,
    call: Call,
    facts: dict[str, Any],
    language: Any,
    behaviour: RestBehaviour,
) -> Response:
    voice, text = _checked(simulator, facts, language)
    characters = billed_characters(text)
    simulator.ledger.note(call, billed_characters=characters)
    if language == "Auto":
        language = language_of(text, ISO_LANGUAGES.get(simulator.voices.language_of(voice), "English"))
    pcm = await simulator.speech.samples(text, voice, language) if behaviour.audio else b""
    simulator.ledger.note(call, audio_bytes=len(pcm))

    pace = simulator.pace
    # The whole is ready about four times sooner than it could be heard live. An estimate.
    await asyncio.sleep(pace.first_delta_seconds + (len(pcm) / 48_000 / pace.speed / 4 if pace.speed else 0.0))

    expires_in = _VALID_SECONDS if behaviour.expires_in_seconds is None else behaviour.expires_in_seconds
    expires_at = time.time() + expires_in
    path = simulator.downloads.offer(wav_file(pcm, remark=_REMARK), expires_at, facts)
    here = urlsplit(str(request.url))
    request_id = simulator.request_id()
    audio = {
        "data": "",
        "url": f"{here.scheme}://{behaviour.url_host or request.headers.get('host', here.netloc)}{path}",
        "id": f"audio_{request_id}",
        "expires_at": int(expires_at),
    }
    body: dict[str, Any] = {
        "request_id": request_id,
        "code": "",
        "message": "",
        "output": {"text": None, "finish_reason": "stop", "choices": None, "audio": audio},
        "usage": {"input_tokens": 0, "output_tokens": 0, "characters": characters},
    }
    if behaviour.status_code:
        body["status_code"] = 200
    if request.headers.get("x-dashscope-sse") == "enable":
        return StreamingResponse(_events(body, pcm), media_type="text/event-stream")
    return JSONResponse(body)


def _checked(simulator: Simulator, facts: dict[str, Any], language: Any) -> tuple[str, str]:
    """Voice and text of a request that can be spoken."""
    model = model_of(facts["model"]) if isinstance(facts["model"], str) else None
    if model is None:
        raise Refusal("ModelNotFound")
    if model.realtime:
        raise Refusal("InvalidParameter", "This model is spoken with over WebSocket only.")
    voice, text = facts["voice"], facts["text"]
    if not text.strip() or billed_characters(text) > MOST_CHARACTERS:
        raise Refusal("InvalidParameter", f"text is required and may have up to {MOST_CHARACTERS} characters.")
    if language not in ("Auto", *LANGUAGES):
        raise Refusal("InvalidParameter", "language_type is not supported.")
    if not isinstance(voice, str) or not voice:
        raise Refusal("InvalidParameter", "voice is required.")
    match simulator.voices.can_speak(voice, model):
        case "mismatch":
            raise Refusal("InvalidParameter", f"Invalid voice specified. {ENGINE_411}")
        case "unknown":
            raise Refusal("VoiceNotFound", f"Voice not found: {voice}")
    return voice, text


async def _events(body: dict[str, Any], pcm: bytes) -> AsyncIterator[bytes]:
    """The SSE form of an answer: slices of samples, then the whole as an address."""
    audio, usage = body["output"]["audio"], body["usage"]
    slices = [pcm[at : at + _SLICE_BYTES] for at in range(0, len(pcm), _SLICE_BYTES)]
    for number, part in enumerate(slices, 1):
        data = base64.b64encode(part).decode()
        output = {**body["output"], "finish_reason": "null", "audio": {**audio, "data": data, "url": ""}}
        yield _event(number, {**body, "output": output, "usage": usage})
    yield _event(len(slices) + 1, body)


def _event(number: int, data: dict[str, Any]) -> bytes:
    return f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{json.dumps(data)}\n\n".encode()
