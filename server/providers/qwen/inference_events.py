"""One task of the run-task family as a state machine: frames in, meanings out, no socket and no clock.

The conversation (Model Studio, "Qwen-Audio-TTS" and "CosyVoice", client and server events)::

    we                          they
    run-task
                                task-started
    continue-task (the text)
    finish-task
                                result-generated sentence-begin
                                  (result-generated sentence-synthesis, one binary frame) × n
                                result-generated sentence-end                                once a sentence
                                task-finished

Nothing but ``run-task`` may be said before ``task-started``; the finish goes out with the text, because the provider
waits for it before it finishes, and fails a task that has heard nothing for 23 seconds.
"""

from typing import Any
from uuid import uuid4

import msgspec

from server.audio import SAMPLE_BYTES, Mp3Joint, SampleJoint, WholeFrames
from server.errors import NothingToSpeak, ProviderError, ProviderRejected, ProviderUnavailable
from server.providers.languages import language_iso
from server.providers.qwen.errors import classify, read_envelope, violation
from server.providers.speech import (
    AudioDelta,
    SpeechEnd,
    SpeechEvent,
    SpeechMark,
    SpeechRequest,
    SpeechStatus,
    SpeechWords,
    SpokenWord,
)
from server.text import has_letters

BIT_RATE_KBPS = 128
# A frame may carry 20,000 characters; which ones count twice is not said.
_MOST_CHARACTERS_A_FRAME = 10_000
# Measured, where older pages say 100.
_MOST_INSTRUCTION_CHARACTERS = 128
_TAKES_NO_INSTRUCTION = frozenset({"cosyvoice-v3-plus"})
# What an encoder may hold back of a sentence when its end is told: two frames or three, and what its filters delay.
_HELD_BACK_SECONDS = 0.1
_NOTHING: tuple[SpeechEvent, ...] = ()


class _Head(msgspec.Struct, gc=False):
    """Everything is optional and of any type: an event that we do not know may use the same names differently."""

    event: Any = None
    task_id: Any = None
    error_code: Any = None
    error_message: Any = None
    attributes: Any = None


class _Frame(msgspec.Struct, gc=False):
    header: Any = None
    payload: Any = None


_decoder = msgspec.json.Decoder(_Frame)


class InferenceDialogue:
    """One text spoken in one task. Feed it frames, send what it wants sent, stop at its ``SpeechEnd``.

    With ``mp3`` only whole frames of the audio are handed on. A speech that goes on is the rest of its text, without
    the beginning of its audio that was handed on before.

    Attributes:
        text_sent: The frames that carry the text were handed out, so the provider may bill them.
        audio_bytes: Bytes of audio so far, also of what was handed on before.
        finished: ``task-finished`` arrived, there was audio, and no error.
    """

    def __init__(self, request: SpeechRequest) -> None:
        self.text_sent = False
        self.audio_bytes = 0
        self.finished = False
        self._request = request
        self._task_id = uuid4().hex
        self._frames = WholeFrames() if request.response_format == "mp3" else None
        self._received_bytes = 0
        self._streaming = False
        self._joint = _joint(request)
        self._place = _Place(request.text, request.going_on.characters if request.going_on else 0)
        self._begins_ms = round(request.going_on.spoken_seconds * 1000) if request.going_on else 0
        self._outgoing: list[str] = [self._run_task()]
        self._asked = False
        self._started = False
        self._left = False
        self._theirs_due = 0  # binary frames that another task has announced
        self._request_id: str | None = None
        self._usage: dict[str, int] = {}
        self._timing = _Timing()

    def frames_to_send(self) -> list[str]:
        """Text frames to send now, in order. Drained: each is returned once."""
        frames, self._outgoing = self._outgoing, []
        self._asked = self._asked or bool(frames)
        if self._started and frames:
            self.text_sent = True
        return frames

    def frames_to_leave(self) -> list[str]:
        """The directive that stops a task which is under way; whatever comes after it means nothing any more."""
        if self._left or self.finished or not self._started:
            return []
        self._left = True
        return [self._message("finish-task", {"input": {"directive": "cancel"}})]

    def facts(self) -> dict[str, Any]:
        """What is known so far, for the row: of a success as of a failure. Unknown members are absent."""
        known = {
            "request_id": self._request_id or self._task_id,
            "session_id": self._task_id,
            "sentences": self._timing.sentences or None,
            "usage": self._usage or None,
            "audio_bytes": self.audio_bytes,
        }
        return {name: value for name, value in known.items() if value is not None}

    def note_request(self, request_id: object) -> None:
        """A request id that was learnt outside the frames, e.g. from the upgrade's headers."""
        if isinstance(request_id, str) and request_id:
            self._request_id = request_id

    def receive(self, frame: bytes | str) -> tuple[SpeechEvent, ...]:
        """Take one frame, audio as bytes and events as text, and return what it means, in order.

        Events that we have no use for mean nothing, and so does what belongs to another task.

        Raises:
            ProviderRejected, ProviderUnavailable: On ``task-failed``, by its code; on ``task-finished`` without audio;
                on audio before ``task-started`` and on what is no JSON object (``protocol_violation``).
        """
        if self._left:
            return _NOTHING
        if isinstance(frame, bytes):
            return self._audio(frame)
        try:
            message = _decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            raise violation("A frame is not a JSON object.") from exc
        if not isinstance(message.header, dict):
            # Some gateways answer a refused call with the bare native envelope instead of an event.
            if (envelope := read_envelope(frame)).code:
                self.note_request(envelope.request_id)
                raise classify(envelope.code, envelope.message)
            return _NOTHING
        head = msgspec.convert(message.header, _Head)
        payload = message.payload if isinstance(message.payload, dict) else {}
        ours = not isinstance(head.task_id, str) or head.task_id.replace("-", "") == self._task_id
        if not ours:
            output = payload.get("output")
            if isinstance(output, dict) and output.get("type") == "sentence-synthesis":
                self._theirs_due += 1
            return _NOTHING
        match head.event:
            case "task-started":
                return self._task_started()
            case "result-generated":
                return self._result(payload)
            case "task-finished":
                return self._task_finished(head, payload)
            case "task-failed":
                self._note_attributes(head)
                raise self._failure(classify(_words(head.error_code), _words(head.error_message)))
            case _:
                return _NOTHING

    def _failure(self, error: ProviderError) -> ProviderError:
        """What a failed task means for this text: one without a letter is refused as invalid here, not left silent."""
        if isinstance(error, ProviderRejected) and error.status == 400 and not has_letters(self._request.text):
            return NothingToSpeak(diagnostics=error.diagnostics)
        return error

    def _task_started(self) -> tuple[SpeechEvent, ...]:
        if self._started:
            return _NOTHING
        self._started = True
        text = self._request.text[self._place.characters :]
        pieces = [text[at : at + _MOST_CHARACTERS_A_FRAME] for at in range(0, len(text), _MOST_CHARACTERS_A_FRAME)]
        self._outgoing += [self._message("continue-task", {"input": {"text": piece}}) for piece in pieces]
        self._outgoing.append(self._message("finish-task", {"input": {}}))
        return (SpeechStatus("session_updated", self._request.sample_rate_hz),)

    def _audio(self, audio: bytes) -> tuple[SpeechEvent, ...]:
        if self._theirs_due:
            self._theirs_due -= 1
            return _NOTHING
        if not self._started:
            raise violation("Audio came before the task was started.")
        self._received_bytes += len(audio)
        return self._hand_on(self._frames.feed(audio) if self._frames else audio)

    def _hand_on(self, audio: bytes) -> tuple[SpeechEvent, ...]:
        if not audio:
            return _NOTHING
        self.audio_bytes += len(audio)
        if self._joint and not (audio := self._joint.feed(audio)):
            return _NOTHING
        first, self._streaming = not self._streaming, True
        event = AudioDelta(audio)
        return (SpeechStatus("streaming"), event) if first else (event,)

    def _heard_ms(self) -> int:
        """How long everything sounds that has come."""
        if self._frames:
            return round(self._frames.seconds * 1000)
        return self.audio_bytes * 1000 // (SAMPLE_BYTES * self._request.sample_rate_hz)

    def _result(self, payload: dict[str, Any]) -> tuple[SpeechEvent, ...]:
        self._note_usage(payload)
        output = payload.get("output")
        if not isinstance(output, dict):
            return _NOTHING
        sentence = output.get("sentence")
        match output.get("type"):
            case "sentence-begin":
                self._timing.begin(sentence, self._heard_ms())
                self._place.begin(_index(sentence), output.get("original_text"))
            case "sentence-end":
                if self._joint:
                    self._joint.leave_away_at_most(_HELD_BACK_SECONDS)
                ends = self._place.end(_index(sentence), output.get("original_text"))
                return *self._said(self._timing.words(sentence)), *ends
        return _NOTHING

    def _said(self, words: tuple[SpokenWord, ...]) -> tuple[SpeechEvent, ...]:
        offset = self._begins_ms
        if offset:
            words = tuple(SpokenWord(word.text, word.start_ms + offset, word.end_ms + offset) for word in words)
        return (SpeechWords(words),) if words else ()

    def _task_finished(self, head: _Head, payload: dict[str, Any]) -> tuple[SpeechEvent, ...]:
        self._note_usage(payload)
        self._note_attributes(head)
        last = self._hand_on(self._frames.finish()) if self._frames else _NOTHING
        if not self.audio_bytes:
            unreadable = self._received_bytes > 0
            if not unreadable and not has_letters(self._request.text):
                raise NothingToSpeak(diagnostics={"code": "no_audio"})
            raise ProviderUnavailable(
                "The speech provider ended without any audio. Please try again.",
                diagnostics={"code": "unreadable_audio" if unreadable else "no_audio"},
            )
        output = payload.get("output")
        said = output.get("sentence") if isinstance(output, dict) else None
        late = [word for one in (said if isinstance(said, list) else [said]) for word in self._timing.words(one)]
        self.finished = True
        return *last, *self._said(tuple(late)), SpeechStatus("finalizing"), SpeechEnd(self.facts())

    def _note_usage(self, payload: dict[str, Any]) -> None:
        """Usage counts up within the task: the last one seen is all of it."""
        usage = payload.get("usage")
        amounts = (
            {name: amount for name, amount in usage.items() if type(amount) is int} if isinstance(usage, dict) else {}
        )
        self._usage = amounts or self._usage

    def _note_attributes(self, head: _Head) -> None:
        if isinstance(head.attributes, dict):
            self.note_request(head.attributes.get("request_uuid"))

    def _run_task(self) -> str:
        request = self._request
        parameters: dict[str, Any] = {
            "text_type": "PlainText",
            "voice": request.voice,
            "format": request.response_format,
            # Both are asked for: the provider's own are 22,050 Hz and, as one page has it, 32 kbit/s.
            "sample_rate": request.sample_rate_hz,
            "word_timestamp_enabled": True,
        }
        if request.response_format == "mp3":
            parameters["bit_rate"] = BIT_RATE_KBPS
        language = language_iso(request.language)
        instruction = (request.instruction or "")[:_MOST_INSTRUCTION_CHARACTERS]
        asked = {
            "language_hints": [language] if language else None,
            "rate": request.speed,
            "pitch": request.pitch,
            "volume": request.volume,
            "seed": request.seed,
            "instruction": None if request.model in _TAKES_NO_INSTRUCTION else instruction or None,
        }
        parameters |= {name: value for name, value in asked.items() if value is not None}
        return self._message(
            "run-task",
            {
                "task_group": "audio",
                "task": "tts",
                "function": "SpeechSynthesizer",
                "model": request.model,
                "parameters": parameters,
                "input": {},
            },
        )

    def _message(self, action: str, payload: dict[str, Any]) -> str:
        head = {"action": action, "task_id": self._task_id, "streaming": "duplex"}
        return msgspec.json.encode({"header": head, "payload": payload}).decode()


def _joint(request: SpeechRequest) -> Mp3Joint | SampleJoint | None:
    """What the audio is joined to, where the speech goes on."""
    if request.going_on is None:
        return None
    given = request.going_on.given_seconds
    if request.response_format == "mp3":
        return Mp3Joint(given)
    return SampleJoint(round(given * request.sample_rate_hz) * SAMPLE_BYTES)


class _Place:
    """Where in the text the sentences end that are whole, told by what the provider says that it speaks.

    A sentence whose words do not stand where the last one ended cannot be placed, nor can any that follows.

    Attributes:
        characters: Of the text, up to where the next sentence begins.
    """

    def __init__(self, text: str, characters: int) -> None:
        self.characters = characters
        self._text = text
        self._begun: dict[int | None, object] = {}
        self._ended: set[int | None] = set()

    def begin(self, index: int | None, original: object) -> None:
        """A sentence begins; its words may be told again with its end, or not."""
        self._begun.setdefault(index, original)

    def end(self, index: int | None, original: object) -> tuple[SpeechEvent, ...]:
        """A sentence has ended; that may be told more than once."""
        if index in self._ended:
            return _NOTHING
        self._ended.add(index)
        words = original if isinstance(original, str) else self._begun.get(index)
        words = words.strip() if isinstance(words, str) else ""
        begins = self._text.find(words, self.characters) if words else -1
        if begins < 0 or any(map(str.isalnum, self._text[self.characters : begins])):
            return (SpeechMark(None),)
        ends = begins + len(words)
        self.characters = len(self._text) - len(self._text[ends:].lstrip())
        return (SpeechMark(self.characters),)


class _Timing:
    """When each sentence begins, and so when its words are heard.

    Whether the provider counts a word's time from the beginning of the task or of its sentence is not documented. A
    first word that lies nearer to the beginning of the task than to where its sentence began is counted by sentence.

    Attributes:
        sentences: How many have begun.
    """

    def __init__(self) -> None:
        self.sentences = 0
        self._begins: dict[int, int] = {}
        self._told: set[int] = set()
        self._until = 0

    def begin(self, sentence: object, heard_ms: int) -> None:
        """A sentence begins after so much sound."""
        if (index := _index(sentence)) is not None and index not in self._begins:
            self.sentences += 1
            self._begins[index] = heard_ms

    def words(self, sentence: object) -> tuple[SpokenWord, ...]:
        """The words of a sentence, unless they were told before."""
        index = _index(sentence)
        timed = [word for one in _words_of(sentence) if (word := _timed(one)) is not None]
        if index is None or index in self._told or not timed:
            return ()
        self._told.add(index)
        begins = self._begins.get(index, self._until)
        offset = begins if timed[0][1] < begins / 2 else 0
        words: list[SpokenWord] = []
        for text, start, end in timed:
            from_ms = max(self._until, start + offset)
            self._until = max(from_ms, end + offset)
            words.append(SpokenWord(text, from_ms, self._until))
        return tuple(words)


def _index(sentence: object) -> int | None:
    index = sentence.get("index") if isinstance(sentence, dict) else None
    return index if type(index) is int else None


def _words_of(sentence: object) -> list[Any]:
    words = sentence.get("words") if isinstance(sentence, dict) else None
    return words if isinstance(words, list) else []


def _timed(word: object) -> tuple[str, int, int] | None:
    """Text, begin and end in milliseconds; None where the provider has not said all of it."""
    if not isinstance(word, dict):
        return None
    text, begin, end = word.get("text"), word.get("begin_time"), word.get("end_time")
    if not (isinstance(text, str) and isinstance(begin, int | float) and isinstance(end, int | float)):
        return None
    return text.replace("\0", ""), max(0, round(begin)), max(0, round(end))


def _words(value: object) -> str:
    return value if isinstance(value, str) else ""
