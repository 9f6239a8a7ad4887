"""What a misbehaving provider does to a speech, through the whole pipeline: its end, its reason, and what it cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from server.dev.simulator import ENGINE_411, TO_MANY, TOO_MANY, Simulator
from server.settings import VC_REALTIME, Deadlines, Settings
from server.storage import Bucket
from tests.end_to_end.conftest import QWEN_AUDIO
from tests.end_to_end.hearing import Ears
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import free_port, make_settings

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def voice_id(database_url: str, client: Client, spoken_model: str) -> UUID:
    """A cloned voice of that user, on one lane after the other."""
    return await insert_voice(database_url, client.user_id, model=spoken_model)


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """Settings of a server that does not wait long for its provider."""
    return make_settings(
        database_url,
        simulator,
        tmp_path,
        qwen_starts_per_minute=100_000,
        deadlines=Deadlines(first_delta_seconds=0.5, silence_seconds=0.4),
    )


async def metadata_of(rows: Rows, task: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = await rows.fetchval(
        "SELECT provider_metadata FROM public.generations WHERE id = $1", UUID(task["generation_id"])
    )
    return metadata


class Good(NamedTuple):
    """A session that is odd and yet says everything."""

    name: str
    behaviour: dict[str, Any]
    responses: int = 1
    sessions: int = 1


GOOD = [
    Good("normal", {}),
    Good("three cycles", {"cycles": 3}, responses=3),
    Good("three cycles, each a file of its own", {"cycles": 3, "restart_encoder": True}, responses=3),
    Good("a repeated response.done", {"repeat_done": 2}),
    Good("deltas that split frames and samples", {"delta_sizes": [1, 3, 1001]}),
    Good("a delta of a mebibyte", {"delta_bytes": 1_048_576, "minimum_bytes": 1_048_576}),
    Good("session.finished and no close", {"after_finished": "stay_open"}),
    Good("unknown events", {"unknown_events": True}),
    Good("unknown members", {"extra_fields": True}),
    Good("slow deltas", {"speed": 20.0}),
    Good("a burst", {"speed": 0.0, "minimum_bytes": 300_000}),
    Good("refused once by a busy provider", {"refuse": 500}, sessions=2),
    Good("broken off once before the text was sent", {"do": "abort", "at": "created"}, sessions=2),
    Good("closed once before the text was sent", {"do": "close", "at": "open", "code": 1011}, sessions=2),
    Good("throttled once by a close", {"do": "close", "at": "text", "code": 1011, "reason": TO_MANY}, sessions=2),
]


@pytest.mark.parametrize("format_name", ["mp3", "wav"])
async def test_an_odd_session_is_a_whole_speech(
    settings: Settings, simulator: Simulator, rows: Rows, database_url: str, format_name: Literal["mp3", "wav"]
) -> None:
    """Heard byte for byte, stored, counted once, and every extra start written down."""
    async with (
        running_gateway(replace(settings, qwen_default_response_format=format_name, deadlines=Deadlines())) as gateway,
        gateway.client() as client,
        Ears(gateway.url) as ears,
    ):
        voice_id = await insert_voice(database_url, client.user_id)
        header = 44 if format_name == "wav" else 0
        for case in GOOD:
            simulator.reset()
            simulator.behave("realtime", case.behaviour)
            task = await client.generate(voice_id, "One sentence here. Another one there. And a third.")
            heard = await ears.hear(task["stream_url"])
            assert heard.end, case.name
            assert heard.end["status"] == "completed", case.name
            assert (await client.audio(task["generation_id"]))[header:] == heard.audio, case.name
            assert len(simulator.calls) == case.sessions, case.name
            last = simulator.calls[-1]
            assert len(heard.audio) == last["audio_bytes"], case.name
            metadata = await metadata_of(rows, task)
            assert metadata["usage"] == {"characters": last["billed_characters"]}, case.name
            assert metadata["responses"] == case.responses, case.name
            assert metadata["session_id"] == f"sess_sim{last['id']:08d}", case.name
            assert metadata["event_id"].startswith("event_sim"), case.name
            assert len(metadata["attempts"]) == case.sessions - 1, case.name
            assert {attempt["category"] for attempt in metadata["attempts"]} <= {"provider_unavailable"}, case.name


# What the lane of tasks does, and is a whole speech all the same.
GOOD_TASKS: dict[str, dict[str, Any]] = {
    "three sentences in one": {"cycles": 1},
    "ends that are told twice": {"repeat_done": 2},
    "deltas that split frames": {"delta_sizes": [1, 3, 1001]},
    "one frame a sentence": {"delta_bytes": 1_048_576},
    "task-finished and no close": {"after_finished": "stay_open"},
    "unknown events": {"unknown_events": True},
    "unknown members": {"extra_fields": True},
    "a sentence without its words": {"original_text": False},
    "frames that nobody announced": {"announces": False},
    "a frame that was announced and never comes": {"do": "invalid_base64", "after_deltas": 1},
    "a late frame of another task": {"do": "binary", "after_deltas": 1},
    "words with the end": {"words": "finished"},
    "words from each sentence on": {"word_times": "sentence"},
    "no words": {"words": "none"},
    "broken off once before the text was sent": {"do": "abort", "at": "created"},
}


async def test_an_odd_task_is_a_whole_speech(
    settings: Settings, simulator: Simulator, rows: Rows, database_url: str
) -> None:
    """The same on the other lane: heard byte for byte, stored, and counted by the last count, not by their sum."""
    patient = replace(settings, deadlines=Deadlines())
    async with running_gateway(patient) as gateway, gateway.client() as client, Ears(gateway.url) as ears:
        voice_id = await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)
        for name, behaviour in GOOD_TASKS.items():
            simulator.reset()
            simulator.behave("realtime", behaviour)
            task = await client.generate(voice_id, "One sentence here. Another one there. And a third.")
            heard = await ears.hear(task["stream_url"])
            assert heard.end, name
            assert heard.end["status"] == "completed", (name, heard.end)
            assert await client.audio(task["generation_id"]) == heard.audio, name
            last = simulator.calls[-1]
            assert 0 <= last["audio_bytes"] - len(heard.audio) < 384, name  # but for what is no whole frame
            metadata = await metadata_of(rows, task)
            assert metadata["usage"] == {"characters": last["billed_characters"]}, name
            assert (metadata["session_id"], metadata["sentences"]) == (last["task_id"], 3), name
            assert len(metadata["attempts"]) == len(simulator.calls) - 1, name


@pytest.mark.parametrize("how", ["late", "never"])
async def test_a_cancel_waits_for_no_answer_of_the_provider(
    client: Client, simulator: Simulator, database_url: str, how: str
) -> None:
    voice_id = await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)
    plan = simulator.behave("realtime", {"cancel": how, "do": "hold", "after_deltas": 1})
    task = await client.generate(voice_id)
    await plan.held()
    assert (await client.http.post(f"/api/tasks/{task['task_id']}/cancel")).json()["cancelled"] is True
    plan.release()
    await simulator.until(lambda calls: "closed_at" in calls[0])
    assert (await client.task(task["task_id"]))["status"] == "cancelled"


async def test_what_is_billed_by_tokens_is_kept_so(
    client: Client, simulator: Simulator, database_url: str, rows: Rows
) -> None:
    voice_id = await insert_voice(database_url, client.user_id, model="qwen-audio-3.1-tts-flash")
    task = await client.generate(voice_id, "One sentence here. Another one there.")
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    usage = (await metadata_of(rows, task))["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens"] == simulator.calls[0]["billed_characters"]


class Bad(NamedTuple):
    """A session that ends badly, and how the task ends then."""

    name: str
    behaviour: dict[str, Any]
    category: str
    sessions: int = 1
    code: str | int | None = None


def closing(code: int, reason: str = "", **when: Any) -> dict[str, Any]:
    return {"do": "close", "code": code, "reason": reason, **when}


BAD = [
    Bad("no audio", {"audio": False}, "provider_unavailable", code="no_audio"),
    Bad("not even a response", {"response": False}, "provider_unavailable", code="no_audio"),
    Bad("silence before audio", {"do": "silence", "at": "audio"}, "timeout"),
    Bad("silence after audio", {"do": "silence", "after_deltas": 2}, "timeout", code="silence"),
    Bad("refused with 401", {"refuse": 401}, "provider_rejected", code="InvalidApiKey"),
    Bad("refused with 403", {"refuse": 403}, "provider_rejected", code="AccessDenied"),
    Bad("refused with 500 each time", {"refuse": 500}, "provider_unavailable", sessions=3),
    Bad("error before audio", {"do": "error", "at": "text", "code": "InternalError"}, "provider_unavailable"),
    Bad("error after audio", {"do": "error", "after_deltas": 2, "code": "InternalError"}, "provider_unavailable"),
    Bad("content refused", {"do": "error", "at": "text", "code": "DataInspectionFailed"}, "provider_rejected"),
    Bad("unpaid", {"do": "error", "at": "text", "code": "Arrearage"}, "provider_rejected"),
    Bad(
        "wrong voice",
        {"do": "error", "at": "text", "code": "CLIENT_ERROR", "message": ENGINE_411},
        "provider_rejected",
    ),
    Bad("close 1000 before audio", closing(1000, at="audio"), "provider_unavailable", code=1000),
    Bad("close 1000 after audio", closing(1000, after_deltas=2), "provider_unavailable", code=1000),
    Bad("close 1006 before audio", {"do": "abort", "at": "audio"}, "provider_unavailable", code=1006),
    Bad("close 1006 after audio", {"do": "abort", "after_deltas": 2}, "provider_unavailable", code=1006),
    Bad("close 1007 before audio", closing(1007, "Model not found.", at="audio"), "provider_rejected", code=1007),
    Bad("close 1007 after audio", closing(1007, after_deltas=2), "provider_rejected", code=1007),
    Bad("close 1011 before audio", closing(1011, at="audio"), "provider_unavailable", code=1011),
    Bad("throttled after audio", closing(1011, TOO_MANY, after_deltas=2), "provider_unavailable", code=1011),
    Bad("no session.finished", closing(1000, at="response_end"), "provider_unavailable", code=1000),
    Bad("a binary frame", {"do": "binary", "after_deltas": 1}, "provider_unavailable", code="protocol_violation"),
    Bad("invalid JSON", {"do": "invalid_json", "after_deltas": 1}, "provider_unavailable", code="protocol_violation"),
    Bad(
        "invalid Base64",
        {"do": "invalid_base64", "after_deltas": 1},
        "provider_unavailable",
        code="protocol_violation",
    ),
    Bad("a failed response", {"response_status": "failed"}, "provider_unavailable"),
    Bad("an incomplete response", {"response_status": "incomplete"}, "provider_unavailable"),
]


# Where sentences are told, a break is mended once, and what was told whole is whole.
MENDED = {
    "error after audio",
    "close 1000 after audio",
    "close 1006 after audio",
    "throttled after audio",
    "invalid JSON",
}
TOLD_WHOLE = {"no session.finished", "a failed response", "an incomplete response"}
# Whether a voice is there can be asked on the lane of tasks, and there it is: what the engine said may pass.
ASKED_AGAIN = {"wrong voice"}
# A lane whose audio comes in binary frames takes these for what they say.
REALTIME_ONLY = {"a binary frame", "invalid Base64"}


async def believe_nothing_retired(gateway: Gateway, rows: Rows) -> None:
    """As an hour later: a model that was refused as gone is asked again."""
    await rows.execute("DELETE FROM internal.retired_models")
    await gateway.parts.retirements.refresh()


async def test_a_bad_session_fails_the_task_with_its_reason(
    client: Client,
    voice_id: UUID,
    spoken_model: str,
    simulator: Simulator,
    rows: Rows,
    anybody: Ears,
    gateway: Gateway,
) -> None:
    """One sentence for the user, the diagnostics for the operator, no audio kept, no session more than allowed."""
    cases = [case for case in BAD if spoken_model == VC_REALTIME or case.name not in REALTIME_ONLY | TOLD_WHOLE]
    for case in cases:
        simulator.reset()
        await believe_nothing_retired(gateway, rows)
        simulator.behave("realtime", {"minimum_bytes": 10_000, "delta_bytes": 1000, **case.behaviour}, times=0)
        task = await client.generate(voice_id)
        ended = await client.ended(task["task_id"])
        assert (ended["status"], ended["error_category"]) == ("failed", case.category), case.name
        assert ended["error"].endswith("."), case.name
        assert "Engine" not in ended["error"], case.name
        assert "simulat" not in ended["error"].lower(), case.name
        twice = spoken_model != VC_REALTIME and case.name in MENDED | ASKED_AGAIN
        sessions = case.sessions + twice
        calls = [call for call in simulator.calls if call["surface"] == "realtime"]
        assert len(calls) == sessions, case.name
        metadata = await metadata_of(rows, task)
        error = metadata["error"]
        if case.code is not None:
            assert case.code in (error.get("code"), error.get("close_code")), (case.name, error)
        if calls[-1].get("status") is None:
            call = calls[-1]
            assert metadata["session_id"] == call.get("task_id", f"sess_sim{call['id']:08d}"), case.name
            assert error.get("event_id", "event_sim").startswith("event_sim"), case.name
        else:
            assert metadata["request_id"].startswith("simulated-"), case.name
            assert (await client.task(task["task_id"]))["provider_request_id"] == metadata["request_id"], case.name
        assert len(metadata["attempts"]) == (sessions if sessions > 1 else 0), case.name
        assert (await anybody.hear(task["stream_url"])).end == {**ended}, case.name
    for table in ("runs", "spool"):
        assert await rows.fetchval(f"SELECT count(*) FROM internal.{table}") == 0  # a session may not leave a byte
    assert [stored async for stored in gateway.parts.storage.list(Bucket.GENERATIONS)] == []
    history = (await client.http.get("/api/generations?per_page=100")).json()["generations"]
    assert [entry["status"] for entry in history] == ["failed"] * len(cases)
    assert all(entry["error_message"] for entry in history)


@pytest.mark.parametrize("name", sorted(TOLD_WHOLE))
async def test_a_speech_whose_sentences_were_all_told_is_whole(
    client: Client, database_url: str, simulator: Simulator, rows: Rows, name: str
) -> None:
    """It was heard to its end and paid for; only the word that this is the end did not come."""
    [behaviour] = [case.behaviour for case in BAD if case.name == name]
    simulator.behave("realtime", behaviour, times=0)
    task = await client.generate(await insert_voice(database_url, client.user_id, model=QWEN_AUDIO))
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    assert len(simulator.calls) == 1
    [attempt] = (await metadata_of(rows, task))["attempts"]
    assert (attempt["goes_on_at_character"], attempt["sentence_paid_again"]) == (len("Good evening."), False)


async def test_a_provider_that_cannot_be_reached_is_tried_three_times(
    settings: Settings, simulator: Simulator, database_url: str, rows: Rows
) -> None:
    nowhere = replace(settings, dashscope_ws_url=f"ws://127.0.0.1:{free_port()}/api-ws/v1/realtime")
    async with running_gateway(nowhere) as gateway, gateway.client() as client:
        task = await client.generate(await insert_voice(database_url, client.user_id))
        ended = await client.ended(task["task_id"])
    assert (ended["status"], ended["error_category"]) == ("failed", "provider_unavailable")
    assert [attempt["code"] for attempt in (await metadata_of(rows, task))["attempts"]] == ["connect_failed"] * 3


LOST_VOICE = {"do": "error", "at": "text", "code": "VoiceNotFound", "message": "Voice not found"}


async def test_a_voice_that_the_provider_cannot_find_is_asked_for_again(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """One node that lags behind must not take a voice from its owner for good."""
    simulator.behave("realtime", LOST_VOICE)
    task = await client.generate(voice_id)
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    assert [attempt["code"] for attempt in (await metadata_of(rows, task))["attempts"]] == ["VoiceNotFound"]
    assert len(simulator.calls) == 2
    await client.ended((await client.generate(voice_id))["task_id"])


async def test_a_voice_that_the_provider_has_lost_is_believed_the_second_time(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("realtime", LOST_VOICE, times=2)
    task = await client.generate(voice_id)
    ended = await client.ended(task["task_id"])
    assert (ended["status"], ended["error_category"]) == ("failed", "provider_rejected")
    again = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Again."})
    assert again.status_code == 409
    assert len(simulator.calls) == 2


def engine(code: int) -> dict[str, Any]:
    message = f"[tts:]Engine return error code: {code}"
    return {"do": "error", "at": "text", "code": "InvalidParameter", "message": message}


@pytest.mark.parametrize("code", [411, 418])
async def test_an_engine_that_does_not_take_a_voice_which_is_there_is_asked_once_more(
    client: Client, simulator: Simulator, database_url: str, rows: Rows, code: int
) -> None:
    """Observed to pass: only the list of voices tells."""
    voice_id = await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)
    simulator.behave("realtime", engine(code))
    task = await client.generate(voice_id)
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    assert len((await metadata_of(rows, task))["attempts"]) == 1
    assert [call["action"] for call in simulator.calls] == ["synthesize", "query", "synthesize"]


@pytest.mark.parametrize(
    ("voice", "sessions", "told", "again"),
    [
        ("deleted", 2, "no longer has this voice", 409),
        ("refused by review", 1, "does not fit the model", 200),
        ("not ready", 1, "still preparing this voice", 200),
        ("of another model", 1, "does not fit the model", 200),
    ],
)
async def test_an_engine_that_does_not_take_a_voice_has_its_reason(
    client: Client, simulator: Simulator, database_url: str, voice: str, sessions: int, told: str, again: int
) -> None:
    status = "UNDEPLOYED" if voice == "refused by review" else "OK"
    made = simulator.voices.enroll(
        "vc", "u123456789", QWEN_AUDIO, "en", deploying=1000 if voice == "not ready" else 0, status=status
    )
    known_as = made.id.replace("flash", "plus") if voice == "of another model" else made.id
    if voice == "deleted":
        simulator.voices.dismiss(made.id)
    voice_id = await insert_voice(database_url, client.user_id, model=QWEN_AUDIO, provider_voice_id=known_as)
    ended = await client.ended((await client.generate(voice_id))["task_id"])
    assert ended["status"] == "failed"
    assert told in ended["error"]
    assert sum(call["action"] == "synthesize" for call in simulator.calls) == sessions
    answer = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Again."})
    assert answer.status_code == again


async def test_a_text_that_the_provider_has_no_words_for_is_no_outage(
    client: Client, simulator: Simulator, database_url: str
) -> None:
    """A sign that stands for letters may be spoken, so it is tried; when nothing comes of it, the text is to blame."""
    voice_id = await insert_voice(database_url, client.user_id)
    for text, category in (("℃", "validation"), ("Hello there.", "provider_unavailable")):
        simulator.behave("realtime", {"audio": False})
        task = await client.ended((await client.generate(voice_id, text))["task_id"])
        assert (task["status"], task["error_category"]) == ("failed", category)
        assert ("nothing to speak" in task["error"]) is (category == "validation")
