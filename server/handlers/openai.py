"""/v1: the door that every program knows which speaks to OpenAI's speech endpoint.

A speech that comes in here is like any other, but for two things: it lasts only as long as somebody follows it, and a
client that repeats its request gets the same speech, not another one.
"""

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.audio import Resampler
from server.contract import Model, ModelList, SpeakingVoice, SpeakingVoices, SpeechWanted
from server.database.connections import REFUSED
from server.errors import NotFound, UtterError
from server.handlers.problems import openai_error
from server.handlers.requests import bearer, idempotency_key, json_response, key_id_of, parts_of, read_json
from server.handlers.sending import ended_or_left
from server.handlers.stream import Walk, about, raw
from server.jobs import door, modal
from server.parts import Parts
from server.records import attended, voices
from server.records.tasks import SpeechTask

MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "utter")
_MODELS_SINCE = 1_700_000_000
_MIMES = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm"}
PCM_RATE_HZ = 24_000
POLL_SECONDS = 2.0
CLIENT_CHARS = 60

_STATUSES = {
    "validation": 400,
    "cancelled": 409,
    "provider_rejected": 502,
    "provider_unavailable": 503,
    "storage": 503,
    "timeout": 504,
}
_COMMENTS = re.compile(r"\([^()]*\)")


# --- the addresses ----------------------------------------------------------------------------------------------------


async def speech(request: Request) -> Response:
    """Speak a text, and answer with its audio while it is being spoken."""
    arrived_at = time.monotonic()
    parts = parts_of(request)
    user_id = await bearer(request)
    key = idempotency_key(request)
    wanted = await read_json(request, SpeechWanted)
    parts.streams.require_room(user_id)
    repeats = request.headers.get("x-stainless-retry-count", "")
    if await request.is_disconnected():  # it may have asked again already, and two would be paid for
        return Response(status_code=499)
    task = await door.speak(
        parts,
        user_id,
        wanted,
        key=key,
        key_id=key_id_of(request),
        client=client_name(request.headers.get("user-agent", "")),
        asks_again=repeats.isdigit() and int(repeats) > 0,
    )
    return Spoken(parts, user_id, task, wanted, arrived_at=arrived_at, joins=bool(repeats))


async def list_voices(request: Request) -> Response:
    """The voices that can speak, newest first."""
    parts = parts_of(request)
    user_id = await bearer(request)
    async with parts.database.connection() as connection:
        mine = await voices.newest(connection, user_id)
    shown = [
        SpeakingVoice(id=voice.id, name=voice.name, language=voice.language, default=voice.is_default)
        for voice in mine
        if parts.providers.objection(voice) is None
    ]
    return json_response(SpeakingVoices(shown))


async def list_models(request: Request) -> Response:
    await bearer(request)
    return json_response(ModelList(data=[_model(name) for name in MODELS]))


async def get_model(request: Request) -> Response:
    await bearer(request)
    name = request.path_params["model"]
    if name not in MODELS:
        raise NotFound(f"There is no such model. There are: {', '.join(MODELS)}.", param="model")
    return json_response(_model(name))


def _model(name: str) -> Model:
    return Model(id=name, created=_MODELS_SINCE)


def client_name(user_agent: str) -> str | None:
    """What the history calls a client: the first words of its own name for itself, without what it says of machines."""
    words = _COMMENTS.sub(" ", "".join(letter for letter in user_agent if letter.isprintable())).split()
    return " ".join(words)[:CLIENT_CHARS].rstrip() or None


# --- the answer -------------------------------------------------------------------------------------------------------


class SpeechFailed(UtterError):
    """A speech that ended without its audio. Its text may have been paid for, so nobody may ask again by itself."""

    def __init__(self, task: SpeechTask) -> None:
        category = task.error_category or "internal"
        super().__init__(task.error, status=_STATUSES.get(category, 500), headers={"x-should-retry": "false"})
        self.code = category


class Restarting(UtterError):
    """This process is leaving while nobody has heard anything of a speech yet."""

    category, default_status = "internal", 503
    default_detail = "The server is being restarted. Please try again in a moment."


class Spoken(Response):
    """The audio of one speech: as it is, or in events.

    The status waits for the first audio, so that a speech that comes to nothing is an error like any other. After that
    a failure breaks the connection: there are clients that take a clean end for the whole.

    Args:
        arrived_at: When the request came, by the monotonic clock.
        joins: Should this client ask again, it says so, and gets the same speech.
    """

    def __init__(
        self, parts: Parts, user_id: UUID, task: SpeechTask, wanted: SpeechWanted, *, arrived_at: float, joins: bool
    ) -> None:
        self._as_events = wanted.stream_format == "sse"
        self._format = wanted.response_format or "mp3"
        super().__init__(
            media_type="text/event-stream" if self._as_events else _MIMES[self._format],
            headers={**about(task), "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        del self.headers["content-length"]
        self._parts = parts
        self._user_id = user_id
        self._walk = Walk(parts, task, 0)
        self._give_up_at = arrived_at + parts.settings.deadlines.door_wait_seconds
        self._joins = joins
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._parts.streams.open(self._user_id):
            sender = await ended_or_left(receive, self._send(send), self._poll())
        if sender.cancelled():
            await self._note_left()
        elif problem := sender.result():
            raise problem

    async def _note_left(self) -> None:
        """The client has hung up: the time in which a retry may take its speech over begins now."""
        with suppress(*REFUSED):
            async with self._parts.database.connection() as connection:
                await attended.note_followed(connection, [self._walk.task.id])

    async def _poll(self) -> None:
        """Ask for a job as a client of the task API would, so that it is collected as soon as it is done."""
        if not self._parts.providers.abilities_of(self._walk.task.provider).takes_jobs:
            return
        while True:
            await asyncio.sleep(POLL_SECONDS)
            with suppress(UtterError, *REFUSED):
                await modal.poll(self._parts, self._user_id, self._walk.task.id)

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _send(self, send: Send) -> UtterError | None:
        """Send everything; or the failure that the client has yet to be told."""
        try:
            async with aclosing(self._slices()) as slices:
                await self._pass_on(slices, send)
            problem = self._problem()
        except UtterError as exc:
            problem = exc
        if problem is None:
            await self._end(send)
        elif not self._started:
            return problem
        elif self._as_events:
            error = {"type": "speech.audio.error", "error": openai_error(problem)}
            await self._body(send, _event(error))
        # A body that was not ended breaks the connection.
        return None

    async def _pass_on(self, slices: AsyncGenerator[bytes, None], send: Send) -> None:
        """Send what comes. Whoever waits for too long is told whether to go on waiting."""
        getting: asyncio.Future[bytes] | None = None
        asked = False
        try:
            while True:
                getting = getting or asyncio.ensure_future(anext(slices, b""))
                await asyncio.wait({getting}, timeout=self._pause(asked))
                if getting.done():
                    audio, getting = getting.result(), None
                    if not audio:
                        return
                    await self._start(send)
                    await self._body(send, self._written(audio))
                elif not asked and not self._started and time.monotonic() >= self._give_up_at:
                    asked = True
                    await door.give_up_waiting(self._parts, self._user_id, self._walk.task.id)
                    if self._as_events:
                        await self._start(send)
                elif self._as_events and self._started:
                    await self._body(send, b": still here\n\n")
        finally:
            if getting is not None:
                getting.cancel()
                await asyncio.gather(getting, return_exceptions=True)

    def _pause(self, asked: bool) -> float:
        pause = self._parts.settings.intervals.heartbeat_seconds
        if asked or self._started:
            return pause
        return min(pause, max(0.0, self._give_up_at - time.monotonic()))

    async def _start(self, send: Send) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    @staticmethod
    async def _body(send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _end(self, send: Send) -> None:
        await self._start(send)
        if self._as_events:
            characters = self._walk.task.text_length
            usage = {"input_tokens": characters, "output_tokens": 0, "total_tokens": characters}
            await self._body(send, _event({"type": "speech.audio.done", "usage": usage}))
        await send({"type": "http.response.body", "body": b""})

    def _written(self, audio: bytes) -> bytes:
        if not self._as_events:
            return audio
        return b'data: {"type":"speech.audio.delta","audio":"%b"}\n\n' % b64encode(audio)

    def _problem(self) -> UtterError | None:
        """What came between the client and the whole of the audio."""
        task = self._walk.task
        if task.status == "completed" and not self._parts.stopping.is_set():
            return None
        if task.terminal and task.status != "completed":
            return SpeechFailed(task)
        # A client that says when it asks again gets this same speech from the next process.
        return Restarting(headers={"Retry-After": "1"} if self._joins else {"x-should-retry": "false"})

    # --- the audio ----------------------------------------------------------------------------------------------------

    async def _slices(self) -> AsyncGenerator[bytes, None]:
        """The audio in the form that was asked for, never empty."""
        header, resampler = b"", None
        async with aclosing(raw(self._walk, with_header=self._format == "wav")) as slices:
            async for audio in slices:
                if self._format == "wav" and not self._walk.offset:
                    header = audio  # some read it from whatever comes first
                elif self._format == "pcm" and self._walk.sample_rate_hz != PCM_RATE_HZ:
                    resampler = resampler or Resampler(self._walk.sample_rate_hz, PCM_RATE_HZ)
                    if resampled := await asyncio.to_thread(resampler.feed, audio):
                        yield resampled
                else:
                    yield header + audio
                    header = b""
        if resampler and (rest := await asyncio.to_thread(resampler.flush)):
            yield rest


def _event(value: object) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(value)
