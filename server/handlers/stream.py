"""The v2 stream: one speech as events or as raw audio, while it is being spoken and ever after.

Both are the same walk along the payload: what is in the log, then what is in the stored object, waiting where the
client is ahead. They differ in how a slice is written and in how the walk ends.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal, cast
from uuid import UUID

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.audio import format_named
from server.contract import GenerateRequest, SpokenWord, WordsEvent
from server.database.connections import REFUSED
from server.errors import Conflict, Invalid, NotAcceptable, NotFound, StorageUnavailable, Unauthorized
from server.handlers.links import answer_with_link, audio_filename
from server.handlers.present import can_be_streamed, generate_answer, task_answer
from server.handlers.requests import (
    bearer,
    idempotency_key,
    json_response,
    key_id_of,
    note_user,
    parts_of,
    query_uuid,
    read_json,
)
from server.handlers.sending import Listener, body_part, ended_or_left
from server.jobs.generate import Origin, submit
from server.parts import Parts
from server.records import tasks, words
from server.records.tasks import SpeechTask
from server.relay.following import Feed
from server.relay.live import BATCH_BYTES, DELTA_BYTES, delta_event
from server.storage import Bucket, in_parts

Kind = Literal["events", "audio", "json"]
# Under these names polyfills of EventSource say in the query what a browser says in its header: Yaffle's and what came
# of it, amvtek's, and those that people write by themselves.
_LAST_EVENT_ID = ("lastEventId", "evs_last_event_id", "Last-Event-ID", "last-event-id", "last_event_id")
END = "end"
# How soon words are looked for again, for those who ask for them; a sentence of words comes every few seconds.
WORDS_EVERY_SECONDS = 0.25
# A proxy that compresses holds events back until it has enough of them.
_UNCHANGED = {"Cache-Control": "no-store, no-transform"}


# --- the addresses ----------------------------------------------------------------------------------------------------


async def post_stream(request: Request) -> Response:
    """Create a speech and answer with its events, its audio, or (for JSON) what POST /api/generate answers."""
    parts = parts_of(request)
    user_id = await bearer(request)
    if not parts.providers.abilities.streams:
        raise Conflict(
            "The current speech provider cannot be streamed. Use POST /api/generate and poll GET /api/tasks/:id."
        )
    kind = wanted_kind(request, json_allowed=True)
    key = idempotency_key(request)
    if kind != "json":
        parts.streams.require_room(user_id)
    task = await submit(
        parts, user_id, await read_json(request, GenerateRequest), key, Origin(key_id=key_id_of(request))
    )
    request.state.task_id = task.id
    if kind == "json":
        return json_response(generate_answer(parts, task), status=201, headers=about(task))
    return await _stream(parts, request, task, kind, 0)


async def get_stream(request: Request) -> Response:
    """Follow a speech. Creates nothing, so an ``EventSource`` may come back as often as it likes."""
    parts = parts_of(request)
    task_id = query_uuid(request, "task_id")
    if task_id is None:
        raise Invalid("`task_id` is missing.")
    task = await _own_task(parts, request, task_id)
    kind = wanted_kind(request)
    if task.type == "generate" and task.generation_id is None:
        raise NotFound("This generation was deleted.")
    if not can_be_streamed(parts, task):
        raise Conflict(f"This task cannot be streamed. Poll GET /api/tasks/{task.id} instead.")
    resume = _resume(request)
    if resume == END:
        return Response(status_code=204, headers=_UNCHANGED)
    return await _stream(parts, request, task, kind, _offset(resume))


async def _own_task(parts: Parts, request: Request, task_id: UUID) -> SpeechTask:
    """The task that a ticket names, hidden or not; or the bearer's own task as long as it is not hidden."""
    ticket = request.query_params.get("ticket")
    by_ticket = None
    if ticket:
        try:
            by_ticket = parts.tickets.verify(ticket, task_id)
        except Unauthorized:
            if "authorization" not in request.headers:
                raise
    if by_ticket:
        user_id = by_ticket.user_id
        note_user(request, user_id)
    else:
        user_id = await bearer(request)
    async with parts.database.connection() as connection:
        task = await tasks.find(connection, task_id, user_id)
    if task is None or (task.hidden and by_ticket is None):
        raise NotFound("This task does not exist.")
    return task


def _resume(request: Request) -> str:
    """Where to go on: what a browser's own ``EventSource`` says, what polyfills say, what a page says itself."""
    asked = request.query_params
    by_polyfill = next((asked[name] for name in _LAST_EVENT_ID if asked.get(name)), None)
    return request.headers.get("last-event-id") or by_polyfill or asked.get("offset") or "0"


def _offset(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Invalid("The place to resume at must be a whole number of bytes.")
    return int(text)


def wanted_kind(request: Request, *, json_allowed: bool = False) -> Kind:
    """Events or audio, as docs/streaming.md, "Events or audio?" has it.

    Raises:
        Invalid: ``as`` says neither.
        NotAcceptable: The Accept header wants something else.
    """
    explicit = request.query_params.get("as")
    if explicit is not None:
        if explicit not in ("events", "audio"):
            raise Invalid("`as` must be `events` or `audio`.")
        return "events" if explicit == "events" else "audio"
    any_kind: Kind = (
        "audio"
        if "range" in request.headers or request.headers.get("sec-fetch-dest") in ("audio", "video")
        else "events"
    )
    for media_range in _media_ranges(", ".join(request.headers.getlist("accept"))):
        if media_range in ("text/event-stream", "text/*"):
            return "events"
        if media_range.startswith("audio/"):
            return "audio"
        if media_range == "application/json" and json_allowed:
            return "json"
        if media_range == "*/*":
            return any_kind
    raise NotAcceptable


def _media_ranges(accept: str) -> list[str]:
    """The media ranges of an Accept header, most wanted first; nothing said means anything."""
    weighted: list[tuple[float, str]] = []
    for entry in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if media_range and weight > 0:
            weighted.append((weight, media_range))
    # Specific beats general at the same weight: `*/*, audio/*` means audio.
    weighted.sort(key=lambda pair: (-pair[0], pair[1] == "*/*"))
    return [media_range for _, media_range in weighted] or (["*/*"] if not accept.strip() else [])


def about(task: SpeechTask) -> dict[str, str]:
    return {
        "X-Utter-Provider": task.provider,
        "X-Utter-Generation-Id": str(task.generation_id),
        "X-Utter-Task-Id": str(task.id),
    }


async def _stream(parts: Parts, request: Request, task: SpeechTask, kind: Kind, offset: int) -> Response:
    if task.status == "completed" and offset > await _payload_bytes(parts, task):
        raise Invalid("The place to resume at lies after the end of the audio.")
    if kind == "audio" and task.status in ("failed", "cancelled"):
        raise Conflict(task.error or "There is no audio.")
    if kind == "audio" and task.status == "completed":
        if not task.object_key or task.generation_id is None:
            raise NotFound("This generation has no audio.")
        name = audio_filename(task.generation_id, task.object_key)
        return await answer_with_link(request, Bucket.GENERATIONS, task.object_key, name)
    if request.method == "HEAD":
        media_type = "text/event-stream" if kind == "events" else _mime(task)
        return Response(media_type=media_type, headers={**about(task), **_UNCHANGED})
    walk = Walk(parts, task, offset, with_words=request.query_params.get("words") == "1")
    return Events(parts, walk) if kind == "events" else RawAudio(parts, walk)


def _mime(task: SpeechTask) -> str:
    return task.audio_format.mime if task.audio_format else "application/octet-stream"


async def _payload_bytes(parts: Parts, task: SpeechTask) -> int:
    """Length of a completed speech; of one that another system stored, by asking the store."""
    if task.byte_length or not task.object_key:
        return task.byte_length
    stored = await parts.storage.head(Bucket.GENERATIONS, task.object_key)
    return max(0, stored.size - _header_bytes(task)) if stored else 0


def _header_bytes(task: SpeechTask) -> int:
    if task.audio_format:
        return task.audio_format.header_bytes
    suffix = (task.object_key or "").rpartition(".")[2]
    return format_named(suffix).header_bytes if suffix in ("mp3", "wav") else 0


# --- the walk ---------------------------------------------------------------------------------------------------------


class Walk:
    """One follower's way along a speech, from its offset to the end."""

    def __init__(self, parts: Parts, task: SpeechTask, offset: int, *, with_words: bool = False) -> None:
        self.with_words = with_words
        self.batches = 0  # of words that were told
        self.parts = parts
        self.task = task
        self.offset = offset
        self.sample_rate_hz = task.sample_rate_hz

    async def words(self) -> bytes:
        """What is new of the words and their times, as one event; nothing where nothing is."""
        if not self.with_words or self.task.generation_id is None:
            return b""
        try:
            async with self.parts.database.connection() as connection:
                batches = await words.since(connection, self.task.generation_id, self.batches, self.task.user_id)
        except REFUSED:
            return b""  # they are told with the next look, or at the end
        self.batches += len(batches)
        told = [SpokenWord(text, start, end) for batch in batches for text, start, end in batch]
        return b"event: words\ndata: %b\n\n" % msgspec.json.encode(WordsEvent(told)) if told else b""

    async def stored(self) -> AsyncGenerator[bytes, None]:
        """The stored object from this follower's offset on, in slices as large as one delta may be."""
        if not self.task.object_key:
            raise NotFound("This generation was deleted.")
        begin = self.offset + _header_bytes(self.task)
        whole = in_parts(self.parts.storage, Bucket.GENERATIONS, self.task.object_key, start=begin)
        async with aclosing(whole) as parts:
            async for held in parts:
                for start in range(0, len(held), DELTA_BYTES):
                    if self.parts.stopping.is_set():
                        return
                    yield held[start : start + DELTA_BYTES]


# --- as events --------------------------------------------------------------------------------------------------------


class Events(EventSourceResponse):
    """Serialised events, and a comment line now and then, so that no proxy takes the connection for dead.

    The events come as ready bytes: a delta is serialised once, for however many follow it. The library's own loop is
    not used: it wakes this response's task for every event, and has three more tasks for each stream.
    """

    def __init__(self, parts: Parts, walk: Walk) -> None:
        self._listener = Listener()
        super().__init__(_events(walk, self._listener), headers={**about(walk.task), **_UNCHANGED}, sep="\n")
        self._streams = parts.streams
        self._heartbeat_seconds = parts.settings.intervals.heartbeat_seconds
        self._user_id = walk.task.user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.open(self._user_id):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            sender = await ended_or_left(receive, self._send_all(send), self._beat(send))
        if not sender.cancelled():
            await send({"type": "http.response.body", "body": b""})

    async def _send_all(self, send: Send) -> None:
        self._listener.send = send
        async with aclosing(cast("AsyncGenerator[bytes, None]", self.body_iterator)) as events:
            async for event in events:
                await send(body_part(event))

    async def _beat(self, send: Send) -> None:
        comment = ServerSentEvent(comment="still here", sep="\n").encode()
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await send(body_part(comment))


async def _events(walk: Walk, listener: Listener) -> AsyncGenerator[bytes, None]:
    """Serialised events. Returning ends the response cleanly; without the terminal event the browser comes back."""
    parts = walk.parts
    # Spread what comes back at once after a restart.
    yield b"retry: %d\n\n" % random.randint(1000, 3000)  # noqa: S311
    async with parts.following.follow(walk.task) as feed:
        listener.catch_up = lambda: _new_audio(walk, feed)
        with feed.followed_by(listener.changed, None if walk.with_words else listener.grew):
            shown: tuple[str, str | None] | None = None
            words_due = 0.0
            while not parts.stopping.is_set() and not feed.gone:
                walk.task = task = feed.task
                if (task.status, task.provider_status) != shown and not (shown and task.terminal):
                    shown = task.status, task.provider_status
                    if task.status not in ("failed", "cancelled"):
                        yield _task_event(parts, task)
                if walk.with_words and time.monotonic() >= words_due:
                    words_due = time.monotonic() + WORDS_EVERY_SECONDS
                    if told := await walk.words():
                        yield told
                if (new := _new_audio(walk, feed)) is not None:
                    yield new
                elif task.terminal:
                    break
                else:
                    await listener.wait()
    if not walk.task.terminal:
        return
    if told := await walk.words():
        yield told
    if walk.task.status == "completed":
        try:
            async with aclosing(walk.stored()) as slices:
                async for audio in slices:
                    walk.offset += len(audio)
                    yield delta_event(audio, walk.offset)
        except NotFound:
            # It will not come back: say so, or the browser asks again for ever.
            yield _task_event(parts, _without_audio(walk.task), last=True)
            return
        except StorageUnavailable:
            return
        if parts.stopping.is_set():
            return
    yield _task_event(parts, walk.task, last=True)


def _new_audio(walk: Walk, feed: Feed) -> bytes | None:
    log = feed.log
    if log is None or walk.offset >= log.visible:
        return None
    events, walk.offset = log.events(walk.offset)
    return events


def _without_audio(task: SpeechTask) -> SpeechTask:
    return msgspec.structs.replace(
        task, status="failed", error="The audio of this speech is no longer there.", error_category="not_found"
    )


def _task_event(parts: Parts, task: SpeechTask, *, last: bool = False) -> bytes:
    data = msgspec.json.encode(task_answer(parts, task))
    return b"event: task\n%bdata: %b\n\n" % (b"id: end\n" if last else b"", data)


# --- as raw audio -----------------------------------------------------------------------------------------------------


class RawAudio(Response):
    """The audio itself, chunked. Its body ends properly only when the task completed and every byte was sent."""

    def __init__(self, parts: Parts, walk: Walk) -> None:
        super().__init__(
            media_type=_mime(walk.task),
            headers={**about(walk.task), **_UNCHANGED, "X-Accel-Buffering": "no"},
        )
        del self.headers["content-length"]
        self._parts = parts
        self._walk = walk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._parts.streams.open(self._walk.task.user_id):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            sender = await ended_or_left(receive, self._send(send))
        if not sender.cancelled() and sender.result():
            await send({"type": "http.response.body", "body": b""})
        # Otherwise the server closes the connection under a body that was not ended: nobody takes it for the whole.

    async def _send(self, send: Send) -> bool:
        """Whether everything was sent."""
        try:
            async with aclosing(raw(self._walk)) as slices:
                async for audio in slices:
                    await send(body_part(audio))
        except (OSError, NotFound, StorageUnavailable):
            return False
        return self._walk.task.status == "completed" and not self._parts.stopping.is_set()


def _whole_bytes(task: SpeechTask) -> int | None:
    """How long the whole audio is, once that is settled; a file's header tells it then."""
    settled = task.status == "completed" or task.run_state in ("spoken", "unstored")
    return task.byte_length or None if settled else None


async def raw(walk: Walk, *, with_header: bool = True) -> AsyncGenerator[bytes, None]:
    """The audio from the walk's offset to its end; a file's header comes first and by itself.

    Args:
        with_header: False leaves it out: samples as they are.
    """
    parts = walk.parts
    wake = asyncio.Event()
    started = walk.offset > 0 or not with_header
    async with parts.following.follow(walk.task) as feed:
        with feed.followed_by(wake.set):
            while not parts.stopping.is_set() and not feed.gone:
                wake.clear()
                known = _whole_bytes(walk.task) or _whole_bytes(feed.task)
                walk.task = feed.task
                if log := feed.log:
                    walk.sample_rate_hz = log.sample_rate_hz
                    visible = min(log.visible, walk.offset + BATCH_BYTES)
                    if walk.offset < visible:
                        if not started:
                            started = True
                            yield log.audio_format.file_header(known, log.sample_rate_hz)
                        audio = log.read(walk.offset, visible)
                        walk.offset = visible
                        yield audio
                        continue
                if walk.task.terminal:
                    break
                await wake.wait()
    if walk.task.status == "completed":
        walk.sample_rate_hz = walk.task.sample_rate_hz
        if not started and walk.task.audio_format:
            yield walk.task.audio_format.file_header(_whole_bytes(walk.task), walk.task.sample_rate_hz)
        async with aclosing(walk.stored()) as slices:
            async for audio in slices:
                walk.offset += len(audio)
                yield audio
