"""A task of the run-task family as a state machine, tested with frames."""

import json
from typing import Any

import msgspec
import pytest

from server.audio import mp3_duration_seconds
from server.errors import NothingToSpeak, ProviderError, ProviderRejected, ProviderUnavailable, VoiceMismatch
from server.providers.qwen.errors import ModelRetired
from server.providers.qwen.inference_events import InferenceDialogue
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
from tests.audio.samples import mp3

MP3_REQUEST = SpeechRequest(
    text="Two sentences. Spoken once.",
    voice="qwen-audio-3.0-tts-flash-narrator-1",
    model="qwen-audio-3.0-tts-flash",
    language="English",
)
REQUEST = msgspec.structs.replace(MP3_REQUEST, response_format="pcm")
SECOND = bytes(48_000)


class Task:
    """A dialogue and what the provider says to it."""

    def __init__(self, request: SpeechRequest = REQUEST, *, started: bool = True) -> None:
        self.dialogue = InferenceDialogue(request)
        [self.run_task] = map(json.loads, self.dialogue.frames_to_send())
        self.id = self.run_task["header"]["task_id"]
        if started:
            self.say("task-started")
            self.sent = [json.loads(frame) for frame in self.dialogue.frames_to_send()]

    def say(self, event: str, payload: Any = None, **head: Any) -> tuple[SpeechEvent, ...]:
        header = {"task_id": self.id, "event": event, "attributes": {}, **head}
        return self.dialogue.receive(json.dumps({"header": header, "payload": payload or {}}))

    def result(
        self, kind: str, index: int, *, words: Any = (), usage: Any = None, **head: Any
    ) -> tuple[SpeechEvent, ...]:
        output = {"type": kind, "sentence": {"index": index, "words": words}}
        return self.say("result-generated", {"output": output} | ({"usage": usage} if usage else {}), **head)

    def hear(self, audio: bytes) -> bytes:
        return b"".join(event.audio for event in self.dialogue.receive(audio) if isinstance(event, AudioDelta))


def word(text: str, begin: Any, end: Any) -> dict[str, Any]:
    return {"text": text, "begin_index": 0, "end_index": len(text), "begin_time": begin, "end_time": end}


def ended(events: tuple[SpeechEvent, ...]) -> dict[str, Any]:
    assert isinstance(events[-1], SpeechEnd)
    return events[-1].facts


def test_a_task_is_asked_for_before_anything_is_said() -> None:
    task = Task(MP3_REQUEST, started=False)
    assert (task.run_task["header"]["action"], task.run_task["header"]["streaming"]) == ("run-task", "duplex")
    payload = task.run_task["payload"]
    assert payload["input"] == {}
    assert (payload["task_group"], payload["task"], payload["function"]) == ("audio", "tts", "SpeechSynthesizer")
    assert payload["model"] == "qwen-audio-3.0-tts-flash"
    assert payload["parameters"] == {
        "text_type": "PlainText",
        "voice": "qwen-audio-3.0-tts-flash-narrator-1",
        "format": "mp3",
        "sample_rate": 24000,
        "bit_rate": 128,
        "word_timestamp_enabled": True,
        "language_hints": ["en"],
    }
    assert task.dialogue.frames_to_send() == []
    assert not task.dialogue.text_sent


def test_the_text_and_the_finish_go_out_together_and_once() -> None:
    task = Task()
    said, finished = task.sent
    assert (said["header"]["action"], said["payload"]) == ("continue-task", {"input": {"text": REQUEST.text}})
    assert (finished["header"]["action"], finished["payload"]) == ("finish-task", {"input": {}})
    assert {said["header"]["task_id"], finished["header"]["task_id"]} == {task.id}
    assert task.dialogue.text_sent
    assert task.say("task-started") == ()
    assert task.dialogue.frames_to_send() == []


def test_a_text_longer_than_a_frame_goes_out_in_order() -> None:
    text = "word " * 5000
    task = Task(msgspec.structs.replace(REQUEST, text=text))
    *said, finished = task.sent
    assert "".join(frame["payload"]["input"]["text"] for frame in said) == text
    assert max(len(frame["payload"]["input"]["text"]) for frame in said) <= 20_000
    assert finished["header"]["action"] == "finish-task"


def test_what_is_varied_is_asked_for() -> None:
    varied = msgspec.structs.replace(
        REQUEST, speed=1.25, pitch=0.9, volume=0, seed=7, instruction="softly" * 40, language="Auto"
    )
    parameters = Task(varied).run_task["payload"]["parameters"]
    assert (parameters["rate"], parameters["pitch"], parameters["volume"], parameters["seed"]) == (1.25, 0.9, 0, 7)
    assert len(parameters["instruction"]) == 128
    assert "language_hints" not in parameters
    assert "bit_rate" not in parameters
    deaf = msgspec.structs.replace(varied, model="cosyvoice-v3-plus")
    assert "instruction" not in Task(deaf).run_task["payload"]["parameters"]


def test_a_whole_task_is_heard_and_counted() -> None:
    task = Task()
    task.result("sentence-begin", 0)
    task.result("sentence-synthesis", 0)
    assert task.dialogue.receive(SECOND) == (SpeechStatus("streaming"), AudioDelta(SECOND))
    task.result("sentence-end", 0, usage={"characters": 14})
    task.result("sentence-end", 0, usage={"characters": 14})
    task.result("sentence-begin", 1)
    assert task.dialogue.receive(SECOND) == (AudioDelta(SECOND),)
    task.result("sentence-end", 1, usage={"characters": 27})
    events = task.say("task-finished", {"usage": {"characters": 27}}, attributes={"request_uuid": "r-1"})
    assert events[0] == SpeechStatus("finalizing")
    assert ended(events) == {
        "request_id": "r-1",
        "session_id": task.id,
        "sentences": 2,
        "usage": {"characters": 27},
        "audio_bytes": 96_000,
    }
    assert task.dialogue.finished


def test_usage_in_tokens_is_the_last_one_seen() -> None:
    task = Task()
    task.hear(SECOND)
    task.result("sentence-end", 0, usage={"input_tokens": 3, "output_tokens": 12, "total_tokens": 15})
    facts = ended(task.say("task-finished", {"usage": {"input_tokens": 5, "output_tokens": 25, "total_tokens": 30}}))
    assert facts["usage"] == {"input_tokens": 5, "output_tokens": 25, "total_tokens": 30}
    assert facts["request_id"] == task.id


def test_a_frame_without_its_event_is_audio_and_an_event_without_its_frame_is_none() -> None:
    task = Task()
    assert task.hear(b"ab") == b"ab"
    task.result("sentence-synthesis", 0)
    assert ended(task.say("task-finished"))["audio_bytes"] == 2


def test_what_belongs_to_another_task_means_nothing() -> None:
    task = Task()
    assert task.result("sentence-synthesis", 0, task_id="f" * 32) == ()
    assert task.hear(b"theirs") == b""
    assert task.say("task-failed", error_code="InternalError", task_id="f" * 32) == ()
    assert task.hear(b"ours") == b"ours"


def test_our_id_may_come_back_with_dashes_or_not_at_all() -> None:
    dashed = Task(started=False)
    dashed.say(
        "task-started",
        task_id="-".join((dashed.id[:8], dashed.id[8:12], dashed.id[12:16], dashed.id[16:20], dashed.id[20:])),
    )
    assert len(dashed.dialogue.frames_to_send()) == 2
    bare = Task(started=False)
    bare.dialogue.receive('{"header":{"event":"task-started"},"payload":{}}')
    assert len(bare.dialogue.frames_to_send()) == 2


@pytest.mark.parametrize(
    "frame", ['{"header":{"event":"task-progress","task_id":7},"payload":[1]}', '{"header":{},"payload":null}', "{}"]
)
def test_what_no_document_lists_is_passed_over(frame: str) -> None:
    assert Task().dialogue.receive(frame) == ()


@pytest.mark.parametrize("frame", ["", "[]", '{"header":', '"task-started"'])
def test_what_is_no_object_is_a_violation(frame: str) -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        Task().dialogue.receive(frame)
    assert caught.value.diagnostics["code"] == "protocol_violation"


def test_audio_before_the_start_is_a_violation() -> None:
    with pytest.raises(ProviderUnavailable):
        Task(started=False).dialogue.receive(b"ab")


def test_a_task_without_audio_is_a_failure() -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        Task().say("task-finished")
    assert caught.value.diagnostics["code"] == "no_audio"


@pytest.mark.parametrize(
    ("event", "head"),
    [
        ("task-failed", {"error_code": "InvalidParameter", "error_message": "Please ensure input text is valid."}),
        ("task-finished", {}),
    ],
)
def test_a_text_without_letters_is_to_blame_for_it(event: str, head: dict[str, Any]) -> None:
    task = Task(msgspec.structs.replace(REQUEST, text="℃"))
    with pytest.raises(NothingToSpeak):
        task.say(event, **head)


@pytest.mark.parametrize(
    ("code", "message", "kind", "throttled"),
    [
        ("InvalidParameter", "[tts:]Engine return error code: 418", VoiceMismatch, False),
        ("InvalidParameter", "[tts:]Engine return error code: 411", VoiceMismatch, False),
        ("InvalidParameter", "Request voice is invalid!", VoiceMismatch, False),
        ("CLIENT_ERROR", "request timeout after 23 seconds.", ProviderUnavailable, False),
        ("Throttling.RateQuota", "", ProviderUnavailable, True),
        ("DataInspectionFailed", "", ProviderRejected, False),
        ("InternalError", "", ProviderUnavailable, False),
        ("ModelNotFound", "Model not found.", ModelRetired, False),
        ("Model.AccessDenied", "", ModelRetired, False),
        (None, None, ProviderUnavailable, False),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_task_has_its_reason(
    code: Any, message: Any, kind: type[ProviderError], throttled: bool, when: str
) -> None:
    task = Task()
    if when == "after":
        task.hear(SECOND)
    with pytest.raises(ProviderError) as caught:
        task.say("task-failed", error_code=code, error_message=message)
    assert type(caught.value) is kind
    assert caught.value.throttled is throttled


def test_a_task_that_is_left_is_told_so_and_says_nothing_any_more() -> None:
    task = Task()
    task.hear(SECOND)
    [cancel] = map(json.loads, task.dialogue.frames_to_leave())
    assert (cancel["header"]["action"], cancel["header"]["task_id"]) == ("finish-task", task.id)
    assert cancel["payload"] == {"input": {"directive": "cancel"}}
    assert task.dialogue.frames_to_leave() == []
    assert task.hear(SECOND) == b""
    assert task.say("task-failed", error_code="InternalError") == ()


def test_nothing_is_said_on_leaving_a_task_that_never_began() -> None:
    assert Task(started=False).dialogue.frames_to_leave() == []


@pytest.mark.parametrize("sizes", [[1, 3, 1001], [384], [100_000]])
def test_only_whole_frames_of_an_mp3_are_handed_on(sizes: list[int]) -> None:
    whole = mp3(2.0, 24_000, kbps=128)
    sound = mp3_duration_seconds(whole)
    task, at, heard, turn = Task(MP3_REQUEST), 0, [], 0
    while at < len(whole):
        size = sizes[turn % len(sizes)]
        heard.append(task.hear(whole[at : at + size]))
        at, turn = at + size, turn + 1
    events = task.say("task-finished")
    heard += [event.audio for event in events if isinstance(event, AudioDelta)]
    assert b"".join(heard) in whole
    assert mp3_duration_seconds(b"".join(heard)) == sound
    for length in range(1, len(heard)):
        so_far = b"".join(heard[:length])
        # What was heard so far ends where a frame ends: cut anywhere else, the next one would be lost.
        assert mp3_duration_seconds(so_far + whole) == pytest.approx(mp3_duration_seconds(so_far) + sound, abs=1e-6)


def test_a_frame_that_never_became_whole_is_left_out() -> None:
    whole = mp3(1.0, 24_000, kbps=128)
    task = Task(MP3_REQUEST)
    heard = task.hear(whole[:-50])
    facts = ended(task.say("task-finished"))
    assert facts["audio_bytes"] == len(heard) < len(whole) - 50


def test_bytes_that_are_no_mp3_are_no_audio() -> None:
    task = Task(MP3_REQUEST)
    assert task.hear(b"RIFF" + bytes(5000)) == b""
    with pytest.raises(ProviderUnavailable) as caught:
        task.say("task-finished")
    assert caught.value.diagnostics["code"] == "unreadable_audio"


@pytest.mark.parametrize("offset", [0, 1000], ids=["by_sentence", "by_task"])
def test_words_are_timed_from_the_beginning_however_the_provider_counts(offset: int) -> None:
    task = Task()
    task.result("sentence-begin", 0)
    task.hear(SECOND)
    first = task.result("sentence-end", 0, words=[word("Two", 0, 300), word("sentences", 310, 900)])
    task.result("sentence-begin", 1)
    task.hear(SECOND)
    second = task.result("sentence-end", 1, words=[word("Spoken", 50 + offset, 400 + offset)])
    assert first == (SpeechWords((SpokenWord("Two", 0, 300), SpokenWord("sentences", 310, 900))), SpeechMark(None))
    assert second == (SpeechWords((SpokenWord("Spoken", 1050, 1400),)), SpeechMark(None))


@pytest.mark.parametrize("many", [True, False])
def test_words_that_come_with_the_end_are_told_once(many: bool) -> None:
    task = Task()
    task.result("sentence-begin", 0)
    task.hear(SECOND)
    task.result("sentence-end", 0)
    sentence = {"index": 0, "words": [word("Two", 0, 300)]}
    events = task.say("task-finished", {"output": {"sentence": [sentence, sentence] if many else sentence}})
    assert [event for event in events if isinstance(event, SpeechWords)] == [SpeechWords((SpokenWord("Two", 0, 300),))]


@pytest.mark.parametrize("odd", [None, "x", [None, {}], [word("a", "0", 1)], [{"text": 1}], {"a": 1}])
def test_odd_words_are_none(odd: Any) -> None:
    assert Task().result("sentence-end", 0, words=odd) == (SpeechMark(None),)
