"""The simulated realtime WebSocket: one ``Session`` per connection (docs/providers.md, "Qwen in real time")."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from itertools import cycle, repeat
from typing import Any, NoReturn, cast

from starlette.websockets import WebSocket, WebSocketDisconnect

from .behaviours import ENGINE_411, Fault, Moment, Planned, RealtimeBehaviour
from .ledger import Call, now_iso
from .refusals import REFUSALS, Refusal
from .serving import drain, transport_of
from .speech import (
    ISO_LANGUAGES,
    LANGUAGES,
    AudioFormat,
    Coding,
    Manner,
    Utterance,
    billed_characters,
    language_of,
    pieces_of,
    portions_of,
    sound_of,
)
from .state import Simulator
from .voices import Model, model_of

_IDLE_COMMIT_SECONDS = 0.5
"""In ``server_commit`` mode: how long after the last append the simulated server decides to speak what it has. When
the real one does is not documented."""

_WAITING_COMMITS = 64

_NUMBERS: dict[str, tuple[float, float, bool]] = {
    # name: smallest, greatest, whole numbers only
    "speech_rate": (0.5, 2.0, False),
    "pitch_rate": (0.5, 2.0, False),
    "volume": (0, 100, True),
    "bit_rate": (6, 510, True),
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "mode": ("server_commit", "commit"),
    "language_type": ("Auto", *LANGUAGES),
    "response_format": ("pcm", "wav", "mp3"),
    "sample_rate": (8000, 16000, 24000, 48000),
}
_DEFAULTS: dict[str, Any] = {
    "mode": "server_commit",
    "language_type": "Auto",
    "response_format": "pcm",
    "sample_rate": 24000,
    "speech_rate": 1.0,
    "volume": 50,
    "pitch_rate": 1.0,
    "bit_rate": 128,
}


class Failed(Exception):
    """The session said ``error`` and speaks no more; the socket stays open until the client closes it."""


class Over(Exception):
    """The socket was closed or broken off from this side."""


class Session:
    """One conversation, from the upgrade to the end of the socket.

    A reader and a speaker share the socket: the reader answers what can be answered at once and hands texts to the
    speaker, which sends one response cycle after the other, at the pace it was told.
    """

    def __init__(self, simulator: Simulator, socket: WebSocket) -> None:
        self._simulator, self._socket = simulator, socket
        self._model_name = socket.query_params.get("model", "")
        self._call: Call = simulator.ledger.record(
            "realtime", "synthesize", model=self._model_name, voice=None, text="", characters=0, deltas=0, audio_bytes=0
        )
        self._number = self._call["id"]
        self._id = f"sess_sim{self._number:08d}"
        self._planned: Planned | None = None
        self._behaviour = RealtimeBehaviour()
        self._happened: set[int] = set()
        self._fields: dict[str, Any] = dict(_DEFAULTS)
        self._updated = self._started = self._finishing = False
        self._ended = self._failed = False
        self._buffer: list[str] = []
        self._texts: asyncio.Queue[str | None] = asyncio.Queue(_WAITING_COMMITS)
        self._seen_event_ids: set[str] = set()
        self._events = 0
        self._responses = 0
        self._deltas = 0
        self._billed = 0

    # --- from the upgrade to the end ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold the conversation. Returns when it is over, in whichever way."""
        try:
            if not await self._upgrade():
                return
            model = model_of(self._model_name)
            if model is None or not model.realtime:
                self._end("refused", close_code=1007)
                await self._socket.close(1007, "Model not found.")
                return
            await self._play("open")
            await self._send("session.created", session=self._session_object())
            await self._play("created")
            await self._converse(model)
        except Failed:
            await self._until_gone()
        except (Over, WebSocketDisconnect):
            pass
        finally:
            self._end("client_closed")
            self._simulator.ledger.note(self._call, closed_at=now_iso())

    async def _upgrade(self) -> bool:
        """Answer the upgrade; False when it was refused."""
        if (refusal := self._simulator.unauthorized(self._socket)) is None:
            self._claim(action="synthesize", model=self._model_name)
            await self._play("upgrade")
            if (status := self._behaviour.refuse) is not None:
                code = {401: "InvalidApiKey", 403: "AccessDenied", 429: "Throttling.RateQuota"}.get(status)
                refusal = Refusal(code or "InternalError", status=status)
        if refusal is None:
            await self._socket.accept()
            return True
        self._end("refused", status=refusal.status, code=refusal.code)
        await self._socket.send_denial_response(refusal.response(self._simulator.request_id()))
        return False

    async def _converse(self, model: Model) -> None:
        reader = asyncio.create_task(self._read(model))
        speaker = asyncio.create_task(self._speak(model))
        try:
            done, _ = await asyncio.wait({reader, speaker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, speaker):
                task.cancel()
            await asyncio.gather(reader, speaker, return_exceptions=True)
        for task in done:
            if not task.cancelled():
                task.result()

    async def _until_gone(self) -> None:
        while (await self._socket.receive())["type"] != "websocket.disconnect":
            pass

    def _end(self, how: str, **facts: Any) -> None:
        """Note how the session ended; what came first counts."""
        if not self._ended:
            self._ended = True
            self._simulator.ledger.note(self._call, ended=how, ended_at=now_iso(), **facts)

    # --- what the client says -----------------------------------------------------------------------------------------

    async def _read(self, model: Model) -> None:
        while True:
            # A socket that has been told to finish needs no more commits by itself.
            idle = bool(self._buffer) and self._fields["mode"] == "server_commit" and not self._finishing
            try:
                async with asyncio.timeout(_IDLE_COMMIT_SECONDS if idle else None):
                    message = await self._socket.receive()
            except TimeoutError:
                await self._flush()
                continue
            if message["type"] == "websocket.disconnect":
                self._end("client_closed", close_code=message.get("code"))
                return
            try:
                await self._take(message.get("text"), model)
            except Failed:
                continue

    async def _take(self, frame: str | None, model: Model) -> None:
        try:
            event = json.loads(frame or "")
        except ValueError:
            event = None
        if not isinstance(event, dict):
            await self._complain("The message is not a JSON object in a text frame.")
            return
        event_id = event.get("event_id")
        if not isinstance(event_id, str) or not event_id or event_id in self._seen_event_ids:
            await self._complain("event_id is required and must be unique within the connection.")
            return
        self._seen_event_ids.add(event_id)
        match event.get("type"):
            case _ if self._failed:
                await self._complain("The session is already started, finished or failed.")
            case "session.update":
                await self._update(event.get("session"), model)
            case _ if not self._updated:
                await self._complain("session.update must be the first message.")
            case "input_text_buffer.append":
                await self._append(event.get("text"))
            case "input_text_buffer.commit" if not "".join(self._buffer).strip():
                await self._complain("The input text buffer is empty.")
            case "input_text_buffer.commit":
                await self._flush()
            case "input_text_buffer.clear" if self._fields["mode"] != "commit":
                await self._complain("only client commit mode supports clear operation")
            case "input_text_buffer.clear":
                self._buffer.clear()
                await self._send("input_text_buffer.cleared")
            case "session.finish" if self._finishing:
                await self._complain("The session is already started, finished or failed.")
            case "session.finish":
                self._finishing = True
                if "".join(self._buffer).strip():
                    await self._flush(announce=False)
                await self._texts.put(None)
            case other:
                await self._complain(f"Unknown event type: {other!r}.")

    async def _update(self, session: Any, model: Model) -> None:
        if self._started or self._finishing:
            await self._complain("session.update is not possible: the session is already started, finished or failed.")
            return
        if not isinstance(session, dict):
            await self._complain("session must be an object.")
            return
        fields = {**self._fields, **session}
        if problem := _problem(fields, model):
            await self._complain(problem)
            return
        self._fields, self._updated = fields, True
        self._simulator.ledger.note(
            self._call,
            voice=fields["voice"],
            language=fields["language_type"],
            format=fields["response_format"],
            sample_rate=fields["sample_rate"],
            speech_rate=fields["speech_rate"],
            pitch_rate=fields["pitch_rate"],
            volume=fields["volume"],
        )
        self._claim(action="synthesize", model=model.name, voice=fields["voice"])
        await self._play("update")
        await self._send("session.updated", session=self._session_object())
        await self._play("updated")

    async def _append(self, text: Any) -> None:
        if not isinstance(text, str):
            await self._complain("text must be a string.")
        elif self._finishing:
            await self._complain("The session is already finished.")
        else:
            self._buffer.append(text)
            whole = self._call["text"] + text
            self._simulator.ledger.note(self._call, text=whole, characters=billed_characters(whole))

    async def _flush(self, *, announce: bool = True) -> None:
        """Hand what was appended to the speaker."""
        text = "".join(self._buffer)
        self._buffer.clear()
        if not text.strip():
            return
        self._started = True
        if announce:
            await self._send("input_text_buffer.committed", item_id="")
        await self._texts.put(text)

    async def _complain(self, message: str) -> None:
        """An ``error`` event about one message of the client; the session goes on."""
        await self._send("error", error={"code": "invalid_value", "message": message})

    # --- what is spoken -----------------------------------------------------------------------------------------------

    async def _speak(self, model: Model) -> None:
        try:
            while (text := await self._texts.get()) is not None:
                self._claim(action="synthesize", model=model.name, voice=self._fields["voice"], text=text)
                await self._play("text")
                await self._check_voice(model)
                if self._behaviour.response:
                    await self._respond(text)
            self._claim(action="synthesize", model=model.name, voice=self._fields["voice"], text=self._call["text"])
            await self._play("response_end")
            await self._send("session.finished")
            self._end("finished")
            await self._play("finished")
            if self._behaviour.after_finished == "close":
                await self._socket.close(1000)
                return
        except Failed:
            pass
        await asyncio.Event().wait()  # the reader notices when the client is gone

    async def _check_voice(self, model: Model) -> None:
        match self._simulator.voices.can_speak(self._fields["voice"], model):
            case "mismatch":
                await self._fail("CLIENT_ERROR", ENGINE_411)
            case "unknown":
                await self._fail("VoiceNotFound", f"Voice not found: {self._fields['voice']}")

    async def _fail(self, code: str, message: str) -> NoReturn:
        self._failed = True
        self._end("refused", code=code)
        await self._send("error", error={"code": code, "message": message})
        raise Failed

    async def _respond(self, text: str) -> None:
        """Speak one text, in as many response cycles as told."""
        fields, behaviour = self._fields, self._behaviour
        language = fields["language_type"]
        if language == "Auto":
            created_for = ISO_LANGUAGES.get(self._simulator.voices.language_of(fields["voice"]), "English")
            language = language_of(text, created_for)
        manner = Manner(
            sound_of(fields["voice"]), language, fields["speech_rate"], fields["pitch_rate"], int(fields["volume"])
        )
        coding = Coding(cast(AudioFormat, fields["response_format"]), fields["sample_rate"], int(fields["bit_rate"]))
        clock = Clock(self._simulator.pace, behaviour, coding.bytes_per_second)
        portions = [pieces_of(text)] if behaviour.cycles == 1 else portions_of(text, behaviour.cycles)
        whole = self._simulator.speech.utterance([piece for portion in portions for piece in portion], manner, coding)
        begun = 0
        for number, portion in enumerate(portions):
            if behaviour.restart_encoder:
                utterance, first = self._simulator.speech.utterance(portion, manner, coding), 0
            else:
                utterance, first = whole, begun
            begun += len(portion)
            last = number == len(portions) - 1
            minimum = behaviour.minimum_bytes if last else 0
            async with aclosing(audio_of(utterance, range(first, first + len(portion)), minimum)) as chunks:
                await self._cycle("".join(portion), chunks, clock, last=last)

    async def _cycle(self, text: str, chunks: AsyncIterator[bytes], clock: "Clock", *, last: bool) -> None:
        """One response cycle, with its eight kinds of events in the documented order."""
        self._responses += 1
        response_id, item_id = (f"{what}_sim{self._number:08d}_{self._responses}" for what in ("resp", "item"))
        place = {"response_id": response_id, "output_index": 0}
        part = {**place, "item_id": item_id, "content_index": 0}
        response = {"id": response_id, "object": "realtime.response", "conversation_id": ""}
        item = {"id": item_id, "object": "realtime.item", "type": "message", "role": "assistant"}
        status = self._behaviour.response_status
        voice = self._fields["voice"]

        characters = billed_characters(text)
        self._billed += characters
        self._simulator.ledger.note(self._call, billed_characters=self._billed)
        await self._send(
            "response.created", response={**response, "status": "in_progress", "voice": voice, "output": []}
        )
        await self._send("response.output_item.added", **place, item={**item, "status": "in_progress", "content": []})
        await self._send("response.content_part.added", **part, part={"type": "audio", "text": ""})
        if self._deltas == 0:
            await self._play("audio")
        if self._behaviour.audio:
            await self._send_audio(part, chunks, clock)
        if last:
            await self._play("delta", at_the_end=True)
        await self._play("audio_end")
        await self._send("response.audio.done", **part)
        await self._send("response.content_part.done", **part, part={"type": "audio", "text": ""})
        done = {**item, "status": "completed" if status == "completed" else "incomplete"}
        await self._send(
            "response.output_item.done", **place, item={**done, "content": [{"type": "audio", "text": ""}]}
        )
        for _ in range(1 + self._behaviour.repeat_done):
            await self._send(
                "response.done",
                response={
                    **response,
                    "status": status,
                    "modalities": ["text", "audio"],
                    "voice": voice,
                    "output": [{**done, "content": [{"type": "audio", "transcript": ""}]}],
                    **self._usage(characters),
                },
            )

    def _usage(self, characters: int) -> dict[str, Any]:
        match self._behaviour.usage:
            case "characters":
                return {"usage": {"characters": characters}}
            case "tokens":
                spoken = {"text_tokens": 0, "audio_tokens": characters * 4}
                return {
                    "usage": {
                        "total_tokens": characters * 5,
                        "input_tokens": characters,
                        "output_tokens": characters * 4,
                        "input_tokens_details": {"text_tokens": characters},
                        "output_tokens_details": spoken,
                    }
                }
            case _:
                return {}

    async def _send_audio(self, part: dict[str, Any], chunks: AsyncIterator[bytes], clock: "Clock") -> None:
        waiting = bytearray()
        size = clock.next_size()
        async for chunk in chunks:
            waiting += chunk
            while len(waiting) >= size:
                await self._send_delta(part, bytes(waiting[:size]), clock)
                del waiting[:size]
                size = clock.next_size()
        if waiting:
            await self._send_delta(part, bytes(waiting), clock)

    async def _send_delta(self, part: dict[str, Any], audio: bytes, clock: "Clock") -> None:
        await clock.until_due(len(audio))
        await self._send("response.audio.delta", **part, delta=base64.b64encode(audio).decode("ascii"))
        self._deltas += 1
        self._simulator.ledger.note(self._call, deltas=self._deltas, audio_bytes=self._call["audio_bytes"] + len(audio))
        await self._play("delta")

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def _claim(self, **facts: Any) -> None:
        """Look whether a behaviour is meant for this session, now that more is known of it. One is enough."""
        if self._planned is None:
            planned = self._simulator.behaviours.claim("realtime", **facts)
            if planned is not None and isinstance(planned.behaviour, RealtimeBehaviour):
                self._planned, self._behaviour = planned, planned.behaviour
                self._simulator.ledger.note(self._call, behaviour=planned.id)

    async def _play(self, moment: Moment, *, at_the_end: bool = False) -> None:
        """Let happen what was planned for this moment, each fault once."""
        for number, fault in enumerate(self._behaviour.faults):
            if number in self._happened:
                continue
            if fault.after_deltas:
                if moment != "delta" or (self._deltas < fault.after_deltas and not at_the_end):
                    continue
            elif fault.at != moment:
                continue
            self._happened.add(number)
            await self._happen(fault)

    async def _happen(self, fault: Fault) -> None:
        match fault.do:
            case "error":
                code = str(fault.code or "InternalError")
                message = fault.message or REFUSALS.get(code, (500, "An internal error has occurred."))[1]
                if fault.fatal:
                    await self._fail(code, message)
                await self._send("error", error={"code": code, "message": message})
            case "close":
                number = int(fault.code or 1000)
                self._end("misbehaved", close_code=number)
                await self._socket.close(number, fault.reason)
                raise Over
            case "abort":
                self._end("misbehaved", close_code=1006)
                await drain(self._socket.scope)
                transport_of(self._socket.scope).abort()
                await asyncio.sleep(0.01)  # until the server has noticed that its connection is lost
                raise Over
            case "silence":
                await asyncio.sleep(fault.seconds) if fault.seconds is not None else await asyncio.Event().wait()
            case "hold":
                if self._planned is not None:
                    self._simulator.ledger.note(self._call, holding=True)
                    try:
                        await self._planned.hold(fault.name)
                    finally:
                        self._simulator.ledger.note(self._call, holding=False)
            case "event":
                await self._send(**{"type": "simulated.event", **(fault.event or {})})
            case "binary":
                await self._socket.send_bytes(b"\x00\x01simulated")
            case "invalid_json":
                await self._socket.send_text('{"event_id":"event_sim","type":"response.audio.delta","delta":')
            case "invalid_base64":
                await self._send("response.audio.delta", delta="not*base64!")

    # --- frames -------------------------------------------------------------------------------------------------------

    def _session_object(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "realtime.session",
            "model": self._model_name,
            **self._fields,
            "simulated": True,
        }

    async def _send(self, type: str, **members: Any) -> None:
        self._events += 1
        event = {"event_id": f"event_sim{self._number:08d}_{self._events}", "type": type, **members}
        if self._behaviour.extra_fields:
            event["simulated_extra"] = {"nobody": ["documented", 1, None]}
            if isinstance(event.get("response"), dict):
                event["response"] = {**event["response"], "simulated_extra": True}
        await self._socket.send_text(json.dumps(event, separators=(",", ":")))
        if self._behaviour.unknown_events:
            self._events += 1
            strange = {"event_id": f"event_sim{self._number:08d}_{self._events}", "type": "response.simulated.progress"}
            await self._socket.send_text(json.dumps({**strange, "progress": 0.5}))


async def audio_of(utterance: Utterance, indexes: range, minimum_bytes: int) -> AsyncGenerator[bytes, None]:
    """Some pieces of an utterance, over again until there are ``minimum_bytes``."""
    sent = 0
    while True:
        for index in indexes:
            chunk = await utterance.chunk(index)
            sent += len(chunk)
            yield chunk
        if sent >= minimum_bytes or not sent:
            return


class Clock:
    """When the next delta of a text is due, and how large it is."""

    def __init__(self, pace: Any, behaviour: RealtimeBehaviour, bytes_per_second: int) -> None:
        self._loop = asyncio.get_running_loop()
        first = behaviour.first_delta_seconds
        self._begins = self._loop.time() + (pace.first_delta_seconds if first is None else first)
        speed = pace.speed if behaviour.speed is None else behaviour.speed
        self._seconds_per_byte = 1 / (bytes_per_second * speed) if speed else 0.0
        self._sent = 0
        usual = behaviour.delta_bytes or pace.delta_bytes or max(2, round(bytes_per_second * 0.15 / 2) * 2)
        self._sizes: Iterator[int] = cycle(behaviour.delta_sizes) if behaviour.delta_sizes else repeat(usual)

    def next_size(self) -> int:
        return next(self._sizes)

    async def until_due(self, size: int) -> None:
        """Wait until this delta would have been spoken."""
        now = self._loop.time()
        due = self._begins + self._sent * self._seconds_per_byte
        if now - due > 1.0:
            # Who stood still for long (a hold, a slow reader) goes on at the usual pace, with no burst to catch up.
            self._begins += now - due
            due = now
        self._sent += size
        if due > now:
            await asyncio.sleep(due - now)


def _problem(fields: dict[str, Any], model: Model) -> str | None:
    """What is wrong with a session's fields, if anything is."""
    if not isinstance(fields.get("voice"), str) or not fields["voice"]:
        return "voice is required."
    for name, choices in _CHOICES.items():
        if fields[name] not in choices or isinstance(fields[name], bool):
            return f"Invalid value for {name}; this simulation supports {', '.join(map(str, choices))}."
    for name, (smallest, greatest, whole) in _NUMBERS.items():
        value = fields[name]
        if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
            return f"{name} must be a number."
        if not smallest <= value <= greatest:
            return f"{name} must be between {smallest} and {greatest}."
    if fields.get("instructions") and "-instruct-" not in model.name:
        return "instructions are not supported by this model."
    return None
