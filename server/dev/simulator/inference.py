"""The simulated run-task socket: one ``InferenceSession`` per connection, one task after the other on it.

It misbehaves as the realtime socket does, told by the same behaviours; what they call a response cycle is a sentence
here, an error is a ``task-failed`` after which the socket is closed, and a delta is an event with one binary frame.
"""

import asyncio
import json
import re
from contextlib import aclosing
from typing import Any, NoReturn, cast

from starlette.websockets import WebSocket, WebSocketDisconnect

from .behaviours import Fault
from .ledger import now_iso
from .realtime import Clock, Failed, Over, Session, audio_of
from .refusals import REFUSALS
from .speech import (
    ISO_LANGUAGES,
    AudioFormat,
    Coding,
    Manner,
    billed_characters,
    language_of,
    pieces_of,
    portions_of,
    sound_of,
)
from .state import Simulator
from .voices import Model, model_of

_FORMATS = ("pcm", "wav", "mp3")
_RATES = (8000, 16000, 22050, 24000, 44100, 48000)
_RANGES: dict[str, tuple[float, float]] = {
    "rate": (0.5, 2.0),
    "pitch": (0.5, 2.0),
    "volume": (0, 100),
    "seed": (0, 65535),
    "bit_rate": (6, 510),
}
_ENGINE = "[tts:]Engine return error code: {0}"


class InferenceSession(Session):
    """One conversation, from the upgrade to the end of the socket."""

    def __init__(self, simulator: Simulator, socket: WebSocket) -> None:
        super().__init__(simulator, socket)
        self._task_id = ""
        self._speaking: asyncio.Task[None] | None = None
        self._texts = asyncio.Queue()
        self._told: list[str] = []  # text that is not spoken yet, because its sentence may go on

    async def run(self) -> None:
        """Hold the conversation. Returns when it is over, in whichever way."""
        try:
            if not await self._upgrade():
                return
            await self._play("open")
            await self._listen()
        except (Failed, Over, WebSocketDisconnect):
            pass
        finally:
            await self._stop_speaking()
            self._end("client_closed")
            self._simulator.ledger.note(self._call, closed_at=now_iso())

    # --- what the client says -----------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            waiting = asyncio.create_task(self._socket.receive())
            try:
                message = await self._next(waiting)
            finally:
                waiting.cancel()
            if message is None:
                continue
            if message["type"] == "websocket.disconnect":
                self._end("client_closed", close_code=message.get("code"))
                return
            await self._take_message(message.get("text"))

    async def _next(self, waiting: "asyncio.Task[Any]") -> Any:
        """The next message, or None when the task has ended meanwhile.

        A task whose client says nothing for 23 s fails; a socket without a task is closed after a minute.
        """
        speaking = self._speaking
        limit: float | None = self._simulator.silent_seconds if self._task_id else self._simulator.idle_seconds
        if speaking is not None and self._finishing:
            limit = None
        tasks: set[asyncio.Task[Any]] = {waiting} | ({speaking} if speaking is not None else set())
        done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done:
            return waiting.result()
        if speaking is not None and speaking in done:
            self._speaking = None
            speaking.result()
            self._task_id = ""
            # The message that is still to come belongs to the next round.
            return await self._next(waiting)
        if self._task_id:
            await self._fail("CLIENT_ERROR", f"request timeout after {limit:g} seconds.")
        await self._socket.close(1000, "Idle.")
        raise Over

    async def _take_message(self, frame: str | None) -> None:
        try:
            message = json.loads(frame or "")
            head, payload = message["header"], message["payload"]
            action, task_id = head["action"], head["task_id"]
        except (ValueError, TypeError, KeyError):
            await self._socket.close(1007, "Invalid payload.")
            raise Over from None
        try:
            match action:
                case "run-task":
                    await self._run_task(str(task_id), head, payload)
                case "continue-task" if task_id == self._task_id and self._updated:
                    await self._continue(payload.get("input"))
                case "finish-task" if task_id == self._task_id and self._updated:
                    await self._finish(payload)
                case _:
                    await self._fail("InvalidParameter", "The task is not started.")
        except Failed:
            raise Over from None

    async def _run_task(self, task_id: str, head: dict[str, Any], payload: Any) -> None:
        if self._speaking is not None or self._ended:
            # A second task ends the one that runs, and has a record of its own.
            await self._stop_speaking()
            self._begin_again()
        self._task_id, self._updated, self._finishing = task_id, False, False
        self._told = []
        if not isinstance(payload, dict) or not isinstance(payload.get("input"), dict):
            await self._fail("InvalidParameter", "task can not be null")
        if head.get("streaming") != "duplex" or re.fullmatch(r"[0-9a-f]{32}", task_id.replace("-", "")) is None:
            await self._fail("InvalidParameter", "The header is not valid.")
        name = payload.get("model")
        if not isinstance(name, str) or not name:
            await self._fail(
                "InvalidParameter", "Missing required parameter 'payload.model'! Please follow the protocol!"
            )
        model = model_of(name)
        self._model_name = name
        self._simulator.ledger.note(self._call, model=name, task_id=task_id)
        if model is None or not model.tasks:
            await self._fail("ModelNotFound", "Model not found.")
        self._fields = self._parameters(payload.get("parameters"))
        fields = self._fields
        self._simulator.ledger.note(
            self._call,
            voice=fields["voice"],
            language=ISO_LANGUAGES.get(fields["language"] or "", fields["language"] or "Auto"),
            format=fields["format"],
            sample_rate=fields["sample_rate"],
            seed=fields["seed"],
            instruction=fields["instruction"],
        )
        self._claim(action="synthesize", model=name, voice=fields["voice"])
        await self._play("created")
        if problem := fields["problem"]:
            await self._fail("InvalidParameter", problem)
        await self._play("update")
        await self._say("task-started", {})
        self._updated = True
        self._texts = asyncio.Queue()
        await self._play("updated")
        self._speaking = asyncio.create_task(self._speak_task(model))

    def _begin_again(self) -> None:
        self._call = self._simulator.ledger.record(
            "realtime", "synthesize", model="", voice=None, text="", characters=0, deltas=0, audio_bytes=0
        )
        self._number = self._call["id"]
        self._ended = self._failed = False
        self._deltas = self._billed = self._responses = 0
        self._planned, self._happened = None, set()
        self._behaviour = type(self._behaviour)()

    def _parameters(self, given: Any) -> dict[str, Any]:
        asked = given if isinstance(given, dict) else {}
        form, rate = asked.get("format", "mp3"), asked.get("sample_rate", 22050)
        if form == "Default":
            form, rate = "mp3", rate or 22050
        hints = asked.get("language_hints") or [None]
        fields = {
            "voice": asked.get("voice"),
            "format": form,
            "sample_rate": rate,
            "bit_rate": asked.get("bit_rate", 32),
            "volume": asked.get("volume", 50),
            "rate": asked.get("rate", 1.0),
            "pitch": asked.get("pitch", 1.0),
            "seed": asked.get("seed", 0),
            "language": hints[0] if isinstance(hints, list) else None,
            "instruction": asked.get("instruction"),
            "words": asked.get("word_timestamp_enabled") is True,
        }
        return {**fields, "problem": _problem(asked, fields)}

    async def _continue(self, given: Any) -> None:
        told = given if isinstance(given, dict) else {}
        if told.get("flush"):
            await self._hand_over(whole=True)
            return
        text = told.get("text")
        if not isinstance(text, str) or len(text) > 20_000:
            await self._fail("InvalidParameter", "Please ensure input text is valid.")
        whole = self._call["text"] + text
        self._simulator.ledger.note(self._call, text=whole, characters=billed_characters(whole))
        self._told.append(text)
        await self._hand_over(whole=False)

    async def _hand_over(self, *, whole: bool) -> None:
        """Give the speaker the sentences that are complete; a remainder waits for more text."""
        sentences = pieces_of("".join(self._told)) if "".join(self._told) else []
        ready, rest = (sentences, "") if whole else (sentences[:-1], sentences[-1] if sentences else "")
        self._told = [rest] if rest else []
        for sentence in ready:
            await self._texts.put(sentence)

    async def _finish(self, payload: Any) -> None:
        given = payload.get("input") if isinstance(payload, dict) else None
        if not isinstance(given, dict):
            await self._fail("InvalidParameter", "task can not be null")
        if given.get("directive") == "cancel":
            await self._cancelled()
            return
        if self._finishing:
            return
        self._finishing = True
        if not any(map(str.isalnum, self._call["text"])):
            await self._fail("InvalidParameter", "Please ensure input text is valid.")
        await self._hand_over(whole=True)
        await self._texts.put(None)

    async def _cancelled(self) -> None:
        self._end("cancelled")
        self._simulator.ledger.note(self._call, cancelled_at=now_iso())
        if self._behaviour.cancel == "never":
            return
        if self._behaviour.cancel == "at_once":
            await self._stop_speaking()
        else:  # late: what is being spoken goes on for a moment
            await asyncio.sleep(0.3)
            await self._stop_speaking()
        await self._say("task-finished", {"usage": self._counted()})
        self._task_id = ""

    async def _stop_speaking(self) -> None:
        speaking, self._speaking = self._speaking, None
        if speaking is not None:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)

    # --- what is spoken -----------------------------------------------------------------------------------------------

    async def _speak_task(self, model: Model) -> None:
        try:
            await self._speak_sentences(model)
        except Failed:
            raise Over from None

    async def _speak_sentences(self, model: Model) -> None:
        first = await self._texts.get()
        # The whole text is known only when the client has finished; a behaviour may ask for what stands in it.
        self._claim(action="synthesize", model=model.name, voice=self._fields["voice"], text=self._call["text"])
        await self._play("text")
        match self._simulator.voices.can_speak(self._fields["voice"], model):
            case "mismatch" | "unknown":
                await self._fail("InvalidParameter", _ENGINE.format(418 if "cosyvoice" in model.name else 411))
        voice, fields, behaviour = self._fields["voice"], self._fields, self._behaviour
        coding = Coding(cast(AudioFormat, fields["format"]), fields["sample_rate"], int(fields["bit_rate"]))
        clock = Clock(self._simulator.pace, behaviour, coding.bytes_per_second)
        index, spoken_ms, late_words = 0, 0.0, []
        sentences: list[str] = []
        sentence = first
        while sentence is not None:
            sentences.append(sentence)
            sentence = await self._texts.get()
        if not behaviour.response:
            sentences = []
        hinted = ISO_LANGUAGES.get(fields["language"] or "")
        language = hinted or language_of("".join(sentences))
        manner = Manner(sound_of(voice), language, fields["rate"], fields["pitch"], int(fields["volume"]))
        if sentences and behaviour.cycles > 1:
            sentences = ["".join(portion) for portion in portions_of("".join(sentences), behaviour.cycles)]
        utterance = self._simulator.speech.utterance(sentences or [" "], manner, coding)
        for index, words_text in enumerate(sentences):
            characters = billed_characters(words_text)
            self._billed += characters
            self._simulator.ledger.note(self._call, billed_characters=self._billed)
            shown = (
                {}
                if behaviour.original_text is False and index == len(sentences) - 1
                else {"original_text": words_text}
            )
            await self._result("sentence-begin", index, **shown)
            if not self._deltas:
                await self._play("audio")
            last = index == len(sentences) - 1
            sent = 0
            if behaviour.audio:
                minimum = behaviour.minimum_bytes if last else 0
                async with aclosing(audio_of(utterance, range(index, index + 1), minimum)) as chunks:
                    sent = await self._send_sentence(index, chunks, clock)
            if last:
                await self._play("delta", at_the_end=True)
            await self._play("audio_end")
            duration_ms = sent * 1000 / coding.bytes_per_second
            words = _words(words_text, duration_ms, spoken_ms if behaviour.word_times == "task" else 0.0)
            spoken_ms += duration_ms
            timed = fields["words"] and behaviour.words != "none"
            if timed and behaviour.words == "finished":
                late_words.append({"index": index, "words": words})
            for _ in range(1 + behaviour.repeat_done):
                await self._result(
                    "sentence-end",
                    index,
                    words=words if timed and behaviour.words == "sentence" else [],
                    usage=self._counted(),
                    **shown,
                )
        await self._play("response_end")
        payload: dict[str, Any] = {"usage": self._counted()}
        if late_words:
            payload["output"] = {"sentence": late_words if len(late_words) > 1 else late_words[0]}
        if behaviour.response_status != "completed":
            await self._fail("InternalError", "The task did not come to its end.")
        await self._say("task-finished", payload, attributes={"request_uuid": f"simulated-{self._number:08d}"})
        self._end("finished")
        await self._play("finished")
        if behaviour.after_finished == "close":
            await self._socket.close(1000)
            raise Over

    def _counted(self) -> dict[str, Any]:
        """What the task has cost so far: characters, or tokens for the models that are billed by them."""
        if self._behaviour.usage == "characters" and "-3.1-" in self._model_name:
            spoken = round(self._call["audio_bytes"] / 3840)  # an observed rate of 12.5 a second, whatever the format
            return {"input_tokens": self._billed, "output_tokens": spoken, "total_tokens": self._billed + spoken}
        counted: dict[str, Any] = self._usage(self._billed).get("usage", {})
        return counted

    async def _send_sentence(self, index: int, chunks: Any, clock: Clock) -> int:
        waiting = bytearray()
        size, sent = clock.next_size(), 0
        async for chunk in chunks:
            waiting += chunk
            sent += len(chunk)
            while len(waiting) >= size:
                await self._send_frame(index, bytes(waiting[:size]), clock)
                del waiting[:size]
                size = clock.next_size()
        if waiting:
            await self._send_frame(index, bytes(waiting), clock)
        return sent

    async def _send_frame(self, index: int, audio: bytes, clock: Clock) -> None:
        await clock.until_due(len(audio))
        if self._behaviour.announces:
            await self._result("sentence-synthesis", index)
        await self._socket.send_bytes(audio)
        self._deltas += 1
        self._simulator.ledger.note(self._call, deltas=self._deltas, audio_bytes=self._call["audio_bytes"] + len(audio))
        await self._play("delta")

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    async def _fail(self, code: str, message: str) -> NoReturn:
        self._failed = True
        self._end("refused", code=code)
        await self._say("task-failed", {}, error_code=code, error_message=message)
        await self._socket.close(1000)
        raise Failed

    async def _happen(self, fault: Fault) -> None:
        match fault.do:
            case "error":
                code = str(fault.code or "InternalError")
                await self._fail(code, fault.message or REFUSALS.get(code, (500, "An internal error has occurred."))[1])
            case "event":
                await self._say(**{"event": "simulated-event", "payload": {}, **(fault.event or {})})
            case "binary":
                # A frame that belongs to a task which was cancelled before.
                other = "0" * 32
                output = {"type": "sentence-synthesis", "sentence": {"index": 0, "words": []}}
                await self._say("result-generated", {"output": output}, task_id=other)
                await self._socket.send_bytes(b"\x00\x01simulated")
            case "invalid_json":
                await self._socket.send_text('{"header":{"event":"result-generated",')
            case "invalid_base64":  # there is no Base64 here: an event that announces a frame which never comes
                await self._result("sentence-synthesis", 0)
            case _:
                await super()._happen(fault)

    # --- frames -------------------------------------------------------------------------------------------------------

    async def _result(self, kind: str, index: int, *, usage: Any = None, words: Any = (), **members: Any) -> None:
        output = {"type": kind, **members, "sentence": {"index": index, "words": list(words)}}
        await self._say("result-generated", {"output": output} | ({"usage": usage} if usage else {}))

    async def _say(
        self, event: str, payload: dict[str, Any], *, attributes: Any = None, task_id: str | None = None, **head: Any
    ) -> None:
        header = {"task_id": task_id or self._task_id, "event": event, "attributes": attributes or {}, **head}
        message: dict[str, Any] = {"header": header, "payload": payload}
        if self._behaviour.extra_fields:
            message["simulated_extra"] = {"nobody": ["documented", 1, None]}
            header["simulated_extra"] = True
        await self._socket.send_text(json.dumps(message, separators=(",", ":")))
        if self._behaviour.unknown_events:
            strange = {"header": {"task_id": self._task_id, "event": "task-progress"}, "payload": {"progress": 0.5}}
            await self._socket.send_text(json.dumps(strange))


def _words(sentence: str, duration_ms: float, offset_ms: float) -> list[dict[str, Any]]:
    """The words of a sentence, each as long as its letters make it."""
    found = list(re.finditer(r"\w[\w'’-]*", sentence))
    if not found or not duration_ms:
        return []
    share = duration_ms / max(1, len(sentence))
    return [
        {
            "text": word.group(),
            "begin_index": word.start(),
            "end_index": word.end(),
            "begin_time": round(offset_ms + word.start() * share),
            "end_time": round(offset_ms + word.end() * share),
        }
        for word in found
    ]


def _problem(asked: dict[str, Any], fields: dict[str, Any]) -> str | None:
    """What is wrong with the parameters of a task, if anything is."""
    if not isinstance(fields["voice"], str) or not fields["voice"]:
        return "Request voice is invalid!"
    if asked.get("text_type") not in ("PlainText", "SSML"):
        return "Missing required parameter 'payload.parameters.text_type'! Please follow the protocol!"
    if fields["format"] not in _FORMATS or fields["sample_rate"] not in _RATES:
        return "This simulation speaks pcm, wav and mp3 at the documented rates."
    for name, (smallest, greatest) in _RANGES.items():
        value = fields[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not smallest <= value <= greatest:
            return f"{name} must be between {smallest} and {greatest}."
    instruction = fields["instruction"]
    if isinstance(instruction, str) and len(instruction) > 128:
        return f"Instruction length is limited: 128, current: {len(instruction)}"
    return None
