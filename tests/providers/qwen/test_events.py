"""The realtime session as a state machine, tested with strings."""

import base64
import json
from typing import Any

import msgspec
import pytest

from server.errors import ProviderError, ProviderRejected, ProviderUnavailable, VoiceGone
from server.providers.qwen.errors import ProviderMisconfigured
from server.providers.qwen.events import Dialogue
from server.providers.speech import AudioDelta, SpeechEnd, SpeechEvent, SpeechRequest, SpeechStatus

REQUEST = SpeechRequest(
    text="Two sentences. Spoken once.",
    voice="qwen-tts-vc-narrator",
    model="qwen3-tts-vc-realtime-2026-01-15",
    language="English",
)


def frame(type_: str, **members: Any) -> str:
    return json.dumps({"event_id": f"event_of_{type_}", "type": type_, **members})


def delta(audio: bytes, **members: Any) -> str:
    return frame("response.audio.delta", delta=base64.b64encode(audio).decode(), **members)


def done(response_id: str | None, characters: int = 0, status: str = "completed", **members: Any) -> str:
    usage = {"characters": characters}
    return frame("response.done", response={"id": response_id, "status": status, "usage": usage, **members})


UPDATED = frame("session.updated", session={"id": "sess_1", "response_format": "mp3", "sample_rate": 24000})
FINISHED = frame("session.finished")


@pytest.fixture
def dialogue() -> Dialogue:
    """A session that has been updated and was given its text."""
    dialogue = Dialogue(REQUEST)
    dialogue.frames_to_send()
    dialogue.receive(frame("session.created", session={"id": "sess_1"}))
    dialogue.receive(UPDATED)
    dialogue.frames_to_send()
    return dialogue


def run(dialogue: Dialogue, *frames: str | bytes) -> list[SpeechEvent]:
    return [event for one in frames for event in dialogue.receive(one)]


def audio_of(events: list[SpeechEvent]) -> bytes:
    return b"".join(event.audio for event in events if isinstance(event, AudioDelta))


def test_session_is_updated_before_the_text_leaves_us() -> None:
    dialogue = Dialogue(REQUEST)
    [update] = map(json.loads, dialogue.frames_to_send())
    assert update["type"] == "session.update"
    assert update["session"] == {
        "voice": "qwen-tts-vc-narrator",
        "mode": "server_commit",
        "language_type": "English",
        "response_format": "mp3",
        "sample_rate": 24000,
    }
    assert run(dialogue, frame("session.created", session={"id": "sess_1"})) == []
    assert dialogue.frames_to_send() == []

    assert run(dialogue, UPDATED) == [SpeechStatus("session_updated", 24000)]
    sent_before = dialogue.text_sent
    append, finish = map(json.loads, dialogue.frames_to_send())
    assert (append["type"], append["text"]) == ("input_text_buffer.append", REQUEST.text)
    assert finish["type"] == "session.finish"
    assert (sent_before, dialogue.text_sent) == (False, True)
    assert len({update["event_id"], append["event_id"], finish["event_id"]}) == 3


def test_what_is_varied_is_asked_for_and_nothing_else() -> None:
    varied = msgspec.structs.replace(REQUEST, speed=1.25, pitch=0.9, volume=0, instruction="softly", seed=7)
    [update] = map(json.loads, Dialogue(varied).frames_to_send())
    plain = json.loads(Dialogue(REQUEST).frames_to_send()[0])
    added = {name: value for name, value in update["session"].items() if name not in plain["session"]}
    assert added == {"speech_rate": 1.25, "pitch_rate": 0.9, "volume": 0}


def test_second_session_updated_sends_nothing_twice(dialogue: Dialogue) -> None:
    assert run(dialogue, UPDATED) == []
    assert dialogue.frames_to_send() == []


def test_confirmed_sample_rate_is_the_one_that_counts() -> None:
    dialogue = Dialogue(REQUEST)
    updated = frame("session.updated", session={"id": "s", "response_format": "mp3", "sample_rate": 16000})
    assert run(dialogue, updated) == [SpeechStatus("session_updated", 16000)]


@pytest.mark.parametrize("session", [None, "x", [], {}, {"sample_rate": "fast"}, {"sample_rate": True}])
def test_session_updated_without_details_is_taken_as_asked(session: Any) -> None:
    assert run(Dialogue(REQUEST), frame("session.updated", session=session)) == [SpeechStatus("session_updated", 24000)]


def test_another_format_than_asked_ends_before_the_text_is_sent() -> None:
    dialogue = Dialogue(REQUEST)
    with pytest.raises(ProviderRejected):
        run(dialogue, frame("session.updated", session={"id": "s", "response_format": "pcm"}))
    assert not dialogue.text_sent


def test_deltas_arrive_in_order_with_their_base64(dialogue: Dialogue) -> None:
    events = run(dialogue, delta(b"abc"), delta(b"d"), delta(b"efgh"))
    assert events[0] == SpeechStatus("streaming")
    assert events[1] == AudioDelta(b"abc", b"YWJj")
    assert audio_of(events) == b"abcdefgh"
    assert dialogue.audio_bytes == 8


def test_only_session_finished_ends_a_session_of_several_cycles(dialogue: Dialogue) -> None:
    events: list[SpeechEvent] = []
    for cycle in range(3):
        events += run(dialogue, frame("response.created", response={"id": f"resp_{cycle}", "status": "in_progress"}))
        events += run(dialogue, delta(b"ab"), frame("response.audio.done"), done(f"resp_{cycle}", 10 + cycle))
        assert not dialogue.finished
    events += run(dialogue, FINISHED)
    assert dialogue.finished
    assert audio_of(events) == b"ababab"
    assert events[-2] == SpeechStatus("finalizing")
    end = events[-1]
    assert isinstance(end, SpeechEnd)
    assert end.facts == {
        "request_id": "sess_1",
        "session_id": "sess_1",
        "event_id": "event_of_session.finished",
        "responses": 3,
        "usage": {"characters": 33},
        "audio_bytes": 6,
    }


def test_repeated_response_is_counted_once(dialogue: Dialogue) -> None:
    run(dialogue, delta(b"ab"), done("resp_1", 25), done("resp_1", 25), done("resp_2", 5))
    assert dialogue.facts()["usage"] == {"characters": 30}
    assert dialogue.facts()["responses"] == 2


def test_responses_without_an_id_are_all_counted(dialogue: Dialogue) -> None:
    run(dialogue, delta(b"ab"), done(None, 7), done(None, 8))
    assert dialogue.facts()["usage"] == {"characters": 15}


@pytest.mark.parametrize("usage", [None, "x", {"characters": "many"}, {"details": {"text_tokens": 3}}, {"flag": True}])
def test_usage_of_another_shape_is_left_out(dialogue: Dialogue, usage: Any) -> None:
    run(dialogue, delta(b"ab"), frame("response.done", response={"id": "r", "status": "completed", "usage": usage}))
    assert "usage" not in dialogue.facts()


@pytest.mark.parametrize("status", ["failed", "incomplete", "cancelled", "in_progress", None])
def test_response_that_is_not_completed_is_a_failure(dialogue: Dialogue, status: Any) -> None:
    run(dialogue, delta(b"ab"))
    with pytest.raises(ProviderUnavailable) as caught:
        run(dialogue, done("resp_1", status=status))
    assert caught.value.diagnostics["code"] == f"response_{status}"


def test_failed_response_tells_its_own_reason(dialogue: Dialogue) -> None:
    failed = done("r", status="failed", status_details={"error": {"code": "DataInspectionFailed", "message": "no"}})
    with pytest.raises(ProviderRejected) as caught:
        run(dialogue, failed)
    assert caught.value.diagnostics["code"] == "DataInspectionFailed"


def test_session_without_any_audio_is_a_failure(dialogue: Dialogue) -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        run(dialogue, delta(b""), done("resp_1", 25), FINISHED)
    assert caught.value.diagnostics["code"] == "no_audio"
    assert not dialogue.finished


@pytest.mark.parametrize(
    ("error", "kind", "throttled"),
    [
        ({"code": "invalid_value", "message": "Session is already started"}, ProviderRejected, False),
        ({"code": "InvalidParameter", "message": "Invalid voice specified"}, ProviderRejected, False),
        ({"code": "Throttling.RateQuota", "message": "slow down"}, ProviderUnavailable, True),
        ({"code": "InternalError.Algo", "message": "Engine return error code: 411"}, ProviderRejected, False),
        ({"code": "", "message": "Engine return error code: 418"}, ProviderRejected, False),
        ({"code": "VoiceNotFound", "message": "Voice not found: x"}, VoiceGone, False),
        ({"code": "InternalError", "message": "oops"}, ProviderUnavailable, False),
        ({"code": "Arrearage", "message": "pay"}, ProviderMisconfigured, False),
        ({"code": 500, "message": "oops", "type": "server_error", "param": None}, ProviderUnavailable, False),
        ("just a sentence", ProviderUnavailable, False),
        (None, ProviderUnavailable, False),
        ({}, ProviderUnavailable, False),
    ],
)
def test_error_event_ends_the_session_by_its_code(
    dialogue: Dialogue, error: Any, kind: type[ProviderError], throttled: bool
) -> None:
    with pytest.raises(kind) as caught:
        run(dialogue, delta(b"ab"), frame("error", error=error))
    assert caught.value.throttled is throttled


def test_bare_error_envelope_counts_as_an_error(dialogue: Dialogue) -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        run(dialogue, '{"code": "Throttling", "message": "slow down", "request_id": "r-1"}')
    assert caught.value.throttled
    assert dialogue.facts()["request_id"] == "r-1"


@pytest.mark.parametrize(
    "unknown",
    [
        frame("response.audio_transcript.delta", delta="Hello"),
        frame("response.audio.stats", delta={"bytes": 3}, session="x", response=[1], error=0),
        frame("rate_limits.updated", rate_limits=[]),
        '{"type": 7}',
        "{}",
        '{"type": "x", "event_id": 12}',
    ],
)
def test_unknown_events_mean_nothing(dialogue: Dialogue, unknown: str) -> None:
    assert run(dialogue, unknown) == []


def test_unknown_members_are_skipped(dialogue: Dialogue) -> None:
    events = run(dialogue, delta(b"ab", surprise={"deep": [1, 2, {"x": None}]}, encoding="base64"))
    assert audio_of(events) == b"ab"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff\xfb\x90\x00",  # what a binary frame of MP3 looks like
        b"[]",
        b"7",
        b'{"type": "response.audio.delta", "delta": "YWJ',
        b'{"x": ' + b"[" * 100_000,
        b'{"type": "\xff"}',
        '{"type": "x", "a": "\\ud800"}',
        frame("response.audio.delta", delta="YW Jj"),
        frame("response.audio.delta", delta="YWJ"),
        frame("response.audio.delta", delta="YW!j"),
        frame("response.audio.delta", delta="YWJj\n"),
        frame("response.audio.delta", delta=12),
        frame("response.audio.delta"),
    ],
)
def test_what_cannot_be_read_ends_the_session(dialogue: Dialogue, broken: bytes | str) -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        run(dialogue, broken)
    assert caught.value.diagnostics["code"] == "protocol_violation"


def test_delta_of_several_megabytes_is_one_delta(dialogue: Dialogue) -> None:
    audio = bytes(range(256)) * 4096 * 4
    assert audio_of(run(dialogue, delta(audio).encode())) == audio
