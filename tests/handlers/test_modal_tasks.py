"""v1 in modal mode: what a client of the task API sees, and what the provider was asked for it."""

import asyncio
import os
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.modal import TRANSCRIPT, in_modal_mode, insert_modal_voice, recording
from tests.support import free_port, wait_for, with_limits

Rows = Any
REFERENCE_LIMIT = 10 * 1024 * 1024


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return in_modal_mode(settings)


@pytest.fixture
async def voice_id(gateway: Gateway, client: Client, rows: Rows) -> UUID:
    """A voice with a recording and a transcript."""
    return await insert_modal_voice(gateway.parts, rows, client.user_id)


@pytest.fixture
def busy(simulator: Simulator) -> None:
    """Jobs run for longer than any test."""
    simulator.behave("modal", {"job_seconds": 600}, action="submit", times=0)


def calls(simulator: Simulator, action: str) -> list[dict[str, Any]]:
    return [call for call in simulator.calls if call["action"] == action]


async def post(client: Client, voice_id: UUID, text: str = "Good evening.", key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": text}, headers=headers)


async def purchase_of(rows: Rows, task_id: Any) -> str | None:
    state: str | None = await rows.fetchval(
        "SELECT state FROM internal.purchases WHERE subject = $1", UUID(str(task_id))
    )
    return state


async def failed_long_ago(rows: Rows, task_id: str) -> None:
    """As if the failure had been noted some seconds earlier."""
    changed = await rows.execute(
        """UPDATE public.tasks SET metadata = metadata || jsonb_build_object('modal_failed_at',
                  (metadata ->> 'modal_failed_at')::timestamptz - interval '5 seconds')
            WHERE id = $1 AND metadata ? 'modal_failed_at'""",
        UUID(task_id),
    )
    assert changed == "UPDATE 1", "no failure was noted"


# --- POST /api/generate -----------------------------------------------------------------------------------------------


async def test_a_text_is_submitted_and_answered_as_v1_always_did(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, busy: None
) -> None:
    answer = await client.generate(voice_id, "  Good evening, everybody. ", language="english")
    assert answer.keys() == {
        "task_id",
        "generation_id",
        "status",
        "is_long_running",
        "estimated_duration_minutes",
    }
    assert (answer["status"], answer["is_long_running"]) == ("processing", True)
    [submitted] = simulator.calls
    assert (submitted["action"], submitted["text"], submitted["language"], submitted["transcript"]) == (
        "submit",
        "Good evening, everybody.",
        "English",
        TRANSCRIPT,
    )
    task = await rows.fetchrow("SELECT * FROM public.tasks WHERE id = $1", UUID(answer["task_id"]))
    assert (task["provider"], task["modal_job_id"], task["provider_job_id"]) == (
        "modal",
        submitted["job_id"],
        submitted["job_id"],
    )
    assert task["metadata"] == {"text_length": 24, "language": "English"}
    generation = await rows.fetchrow("SELECT * FROM public.generations WHERE id = $1", UUID(answer["generation_id"]))
    assert (generation["tts_provider"], generation["output_format"], generation["status"]) == (
        "modal",
        "wav",
        "processing",
    )
    assert await purchase_of(rows, answer["task_id"]) == "done"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"audio": None}, "no reference recording"),
        ({"transcript": None}, "transcript"),
        ({"transcript": "  "}, "transcript"),
    ],
)
async def test_a_voice_without_recording_or_transcript_is_refused(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows, changes: dict[str, Any], says: str
) -> None:
    voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id, **changes)
    problem_of(await post(client, voice_id), 400, "validation", says=says)
    [listed] = (await client.http.get("/api/voices")).json()["voices"]
    assert listed["compatible"] is False
    assert simulator.calls == []
    assert await rows.fetchval("SELECT count(*) FROM public.tasks") == 0


async def test_a_recording_that_is_gone_is_said(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    await rows.execute(
        "UPDATE public.voices SET reference_object_key = $1", f"{client.user_id}/{uuid4()}/reference.wav"
    )
    problem_of(await post(client, voice_id), 400, "validation", says="missing")
    assert simulator.calls == []


async def test_an_oversized_recording_is_refused_before_it_is_fetched(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """Nobody could hold a hundred gigabytes, so the size was asked first."""
    stored = gateway.parts.settings.storage
    key = f"{client.user_id}/{voice_id}/reference.wav"
    os.truncate(f"{stored.root}/{stored.bucket_references}/{key}", 100 * 1024**3)
    problem_of(await post(client, voice_id), 400, "validation", says="10 MB")
    assert simulator.calls == []
    assert await rows.fetchval("SELECT count(*) FROM public.tasks") == 0


async def test_a_recording_of_exactly_the_limit_is_taken(gateway: Gateway, client: Client, rows: Rows) -> None:
    audio = recording(1.0)
    audio += bytes(REFERENCE_LIMIT - len(audio))
    voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id, audio=audio)
    assert (await post(client, voice_id)).status_code == 200


async def test_a_voice_of_the_other_provider_is_listed_and_refused_with_guidance(
    client: Client, database_url: str, simulator: Simulator
) -> None:
    voice_id = await insert_voice(database_url, client.user_id)
    [listed] = (await client.http.get("/api/voices")).json()["voices"]
    assert (listed["tts_provider"], listed["compatible"], listed["streamable"]) == ("qwen", False, False)
    assert "re-clone" in problem_of(await post(client, voice_id), 409, "conflict")
    assert simulator.calls == []


@pytest.mark.parametrize(
    ("behaviour", "category", "purchase"),
    [
        ({"do": "answer", "status": 400, "json": {"detail": "ref_text is missing"}}, "provider_rejected", "refused"),
        ({"do": "answer", "status": 500, "json": {"detail": "boom"}}, "provider_unavailable", "refused"),
        ({"do": "answer", "status": 200, "json": {"status": "submitted"}}, "timeout", "unknown"),
        ({"do": "abort"}, "timeout", "unknown"),
    ],
)
async def test_a_failed_submission_is_502_and_both_rows_have_failed(
    client: Client,
    voice_id: UUID,
    simulator: Simulator,
    rows: Rows,
    behaviour: dict[str, Any],
    category: Any,
    purchase: str,
) -> None:
    simulator.behave("modal", behaviour, action="submit")
    detail = problem_of(await post(client, voice_id), 502, category)
    task = await rows.fetchrow("SELECT * FROM public.tasks")
    assert (task["status"], task["error"], task["error_category"]) == ("failed", detail, category)
    generation = await rows.fetchrow("SELECT * FROM public.generations")
    assert (generation["status"], generation["error_message"]) == ("failed", detail)
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    assert await purchase_of(rows, task["id"]) == purchase
    assert len(simulator.calls) == 1


async def test_what_never_left_us_is_sent_again_before_it_fails(
    settings: Settings, database_url: str, rows: Rows
) -> None:
    nowhere = in_modal_mode(settings, modal_job_submit=f"http://127.0.0.1:{free_port()}/")
    async with running_gateway(nowhere) as gateway, gateway.client() as client:
        voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id)
        problem_of(await post(client, voice_id), 502, "provider_unavailable")
    assert await rows.fetchval("SELECT status FROM public.generations") == "failed"
    assert await rows.fetchval("SELECT state FROM internal.purchases") == "refused"


async def test_a_failed_submission_frees_its_key(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    simulator.behave("modal", {"do": "answer", "status": 500, "text": ""}, action="submit")
    assert (await post(client, voice_id, key="once")).status_code == 502
    first = await post(client, voice_id, key="once")
    again = await post(client, voice_id, key="once")
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert len(calls(simulator, "submit")) == 2


@pytest.mark.parametrize("fails", [False, True])
async def test_a_twin_waits_for_the_first_and_gets_its_answer(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, fails: bool
) -> None:
    held = simulator.behave("modal", {"do": "hold", "effect": not fails}, action="submit")
    first = asyncio.create_task(post(client, voice_id, key="twins"))
    await held.held()
    twin = asyncio.create_task(post(client, voice_id, key="twins"))
    other = await post(client, voice_id, "Something else.", key="twins")
    assert other.status_code == 409
    assert not twin.done()
    held.release()
    answers = [await first, await twin]
    assert [answer.status_code for answer in answers] == ([502, 502] if fails else [200, 200])
    if not fails:
        assert answers[0].json() == answers[1].json()
    assert len(calls(simulator, "submit")) == 1
    assert await rows.fetchval("SELECT count(*) FROM public.tasks") == 1


async def test_jobs_beyond_the_limit_are_refused_unsubmitted(
    settings: Settings, simulator: Simulator, rows: Rows, busy: None
) -> None:
    async with running_gateway(in_modal_mode(settings, queue_limit=1)) as gateway, gateway.client() as client:
        voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id)
        await client.generate(voice_id)
        refused = await post(client, voice_id)
    problem_of(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    assert len(simulator.calls) == 1


# --- v2 ---------------------------------------------------------------------------------------------------------------


async def test_v2_names_the_v1_addresses(client: Client, voice_id: UUID, simulator: Simulator, busy: None) -> None:
    body = {"voice_id": str(voice_id), "text": "Good evening."}
    refused = await client.http.post("/api/generate/stream", json=body, headers={"Accept": "text/event-stream"})
    detail = problem_of(refused, 409, "conflict", says="/api/generate")
    assert "/api/tasks/:id" in detail
    assert simulator.calls == []
    task_id = (await client.generate(voice_id))["task_id"]
    followed = await client.http.get(f"/api/generate/stream?task_id={task_id}", headers={"Accept": "text/event-stream"})
    problem_of(followed, 409, "conflict", says=f"/api/tasks/{task_id}")


async def test_the_page_is_told_to_poll(client: Client) -> None:
    said = (await client.http.get("/api/languages")).json()
    assert said["provider"] == "modal"
    assert said["default"] == "Auto"
    assert "Auto" in said["languages"]
    assert said["capabilities"] == {
        "supports_generate": True,
        "supports_generate_stream": False,
        "supports_design": True,
        "default_generate_mode": "task",
        "allow_generate_mode_toggle": False,
        "max_text_chars": 2000,
    }


# --- GET /api/tasks/:id -----------------------------------------------------------------------------------------------


async def test_each_poll_makes_one_look_and_counts_it(
    client: Client, voice_id: UUID, simulator: Simulator, busy: None
) -> None:
    task_id = (await client.generate(voice_id))["task_id"]
    for polls in range(1, 4):
        task = await client.task(task_id)
        assert (task["status"], task["modal_status"], task["provider"]) == ("processing", "running", "modal")
        assert task["modal_elapsed_seconds"] >= 0
        assert task["modal_poll_count"] == task["provider_poll_count"] == len(calls(simulator, "status")) == polls
        assert "stream_url" not in task
        assert "result" not in task


async def test_a_poll_that_sees_the_end_leads_to_the_audio(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    answer = await client.generate(voice_id)
    first = await client.task(answer["task_id"])
    assert (first["status"], first["modal_status"]) == ("processing", "completed")
    task = await client.ended(answer["task_id"])
    assert task["status"] == "completed"
    assert task["result"] == {"audio_url": f"/api/generations/{answer['generation_id']}/audio"}
    audio = await client.audio(answer["generation_id"])
    assert len(audio) == task["audio"]["bytes"] + 44
    assert (task["audio"]["format"], audio[:4]) == ("wav", b"RIFF")
    assert len(calls(simulator, "result")) == 1


async def test_an_ended_task_is_not_looked_at(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    task = await client.ended((await client.generate(voice_id))["task_id"])
    looks = len(calls(simulator, "status"))
    again = await client.task(task["id"])
    assert (again["modal_poll_count"], again["modal_status"]) == (looks, None)
    assert len(calls(simulator, "status")) == looks


@pytest.mark.parametrize(
    "behaviour",
    [
        {"do": "answer", "status": 500, "json": {"detail": "no"}},
        {"do": "answer", "status": 200, "text": "<html>"},
        {"do": "hang"},
        {"do": "abort"},
    ],
)
async def test_a_look_that_fails_never_fails_the_task(
    client: Client, voice_id: UUID, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    task_id = (await client.generate(voice_id))["task_id"]
    simulator.behave("modal", behaviour, action="status")
    task = await client.task(task_id)
    assert (task["status"], task["modal_status"], task["error"]) == ("processing", "status_error", None)
    assert task["modal_poll_count"] == task["provider_poll_count"] == 1
    assert (await client.ended(task_id))["status"] == "completed"


async def test_a_server_without_modal_endpoints_still_answers_polls(
    settings: Settings, client: Client, voice_id: UUID, simulator: Simulator, busy: None
) -> None:
    task_id = (await client.generate(voice_id))["task_id"]
    without = in_modal_mode(
        settings, modal_job_submit=None, modal_job_status=None, modal_job_result=None, modal_job_cancel=None
    )
    async with running_gateway(without) as elsewhere, elsewhere.client(client.user_id) as same_user:
        task = await same_user.task(task_id)
        assert (task["status"], task["modal_status"], task["modal_poll_count"]) == ("processing", "status_error", 1)
        assert (await same_user.http.post(f"/api/tasks/{task_id}/cancel")).json()["cancelled"] is True
    assert not calls(simulator, "status")


async def test_a_first_failed_is_only_noted_and_the_next_look_decides(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"fails": "CUDA out of memory"}, action="submit")
    answer = await client.generate(voice_id)
    for _ in range(3):  # too soon after the first to decide
        task = await client.task(answer["task_id"])
        assert (task["status"], task["modal_status"]) == ("processing", "failed")
    await failed_long_ago(rows, answer["task_id"])
    task = await client.task(answer["task_id"])
    assert (task["status"], task["modal_status"]) == ("failed", "failed")
    assert task["error_category"] == "provider_unavailable"
    assert "CUDA" not in task["error"]
    generation = await rows.fetchrow("SELECT * FROM public.generations WHERE id = $1", UUID(answer["generation_id"]))
    assert (generation["status"], generation["error_message"]) == ("failed", task["error"])
    assert generation["provider_metadata"]["error"]["message"] == "CUDA out of memory"


async def test_running_takes_a_failed_back(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, busy: None
) -> None:
    """So that two passing faults, minutes apart, are not taken for a failure."""
    task_id = (await client.generate(voice_id))["task_id"]
    simulator.behave("modal", {"reports": "failed"}, action="status")
    assert (await client.task(task_id))["modal_status"] == "failed"
    await failed_long_ago(rows, task_id)
    assert (await client.task(task_id))["modal_status"] == "running"
    simulator.behave("modal", {"reports": "failed"}, action="status")
    task = await client.task(task_id)
    assert (task["status"], task["modal_status"]) == ("processing", "failed")


async def test_a_look_that_was_asked_before_the_note_decides_nothing(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, busy: None
) -> None:
    """Two tabs that ask in the same moment have seen the same fault, however late one of them is answered."""
    task_id = (await client.generate(voice_id))["task_id"]
    late = simulator.behave("modal", {"do": "hold", "reports": "failed"}, action="status")
    first_tab = asyncio.create_task(client.task(task_id))
    await late.held()
    simulator.behave("modal", {"reports": "failed"}, action="status")
    await client.task(task_id)
    await rows.execute(
        """UPDATE public.tasks SET metadata = metadata || jsonb_build_object('modal_failed_at', now())
            WHERE id = $1""",
        UUID(task_id),
    )
    late.release()
    assert (await first_tab)["status"] == "processing"


async def test_completed_after_a_failed_is_believed(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    task_id = (await client.generate(voice_id))["task_id"]
    simulator.behave("modal", {"reports": "failed"}, action="status")
    assert (await client.task(task_id))["modal_status"] == "failed"
    assert (await client.ended(task_id))["status"] == "completed"


async def test_many_tabs_collect_once(
    settings: Settings, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    unhurried = with_limits(settings, modal_status_seconds=60.0)  # a poll that is given up may never reach the provider
    async with running_gateway(unhurried) as gateway, gateway.client(client.user_id) as tabs:
        answer = await tabs.generate(voice_id)
        await asyncio.gather(*(tabs.task(answer["task_id"]) for _ in range(20)))
        task = await tabs.ended(answer["task_id"])
        assert task["status"] == "completed"
    assert len(calls(simulator, "result")) == 1
    assert task["modal_poll_count"] == len(calls(simulator, "status"))
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0


async def test_a_look_during_the_collection_changes_nothing(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """Even one that says failed: the audio is on its way."""
    held = simulator.behave("modal", {"do": "hold"}, action="result")
    task_id = (await client.generate(voice_id))["task_id"]
    await client.task(task_id)
    await held.held()
    simulator.behave("modal", {"reports": "failed"}, action="status", times=2)
    await client.task(task_id)
    await failed_long_ago(rows, task_id)
    task = await client.task(task_id)
    assert (task["status"], task["modal_status"]) == ("processing", "failed")
    held.release()
    assert (await client.ended(task_id))["status"] == "completed"
    assert len(calls(simulator, "result")) == 1


async def test_nobody_else_can_look(gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator) -> None:
    task_id = (await client.generate(voice_id))["task_id"]
    async with gateway.client() as stranger:
        problem_of(await stranger.http.get(f"/api/tasks/{task_id}"), 404, "not_found")
        problem_of(await stranger.http.post(f"/api/tasks/{task_id}/cancel"), 404, "not_found")
    assert [call["action"] for call in simulator.calls] == ["submit"]


# --- cancelling -------------------------------------------------------------------------------------------------------


async def cancelled_at_the_provider(simulator: Simulator) -> None:
    job = calls(simulator, "submit")[0]["job_id"]
    await simulator.until(lambda _: [call["job_id"] for call in calls(simulator, "cancel")] == [job])


@pytest.mark.parametrize("how", ["cancel", "delete task", "delete generation"])
async def test_a_cancel_is_exact_at_home_and_passed_on(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, busy: None, how: str
) -> None:
    answer = await client.generate(voice_id)
    task, generation = f"/api/tasks/{answer['task_id']}", f"/api/generations/{answer['generation_id']}"
    response = await {
        "cancel": lambda: client.http.post(f"{task}/cancel"),
        "delete task": lambda: client.http.delete(task),
        "delete generation": lambda: client.http.delete(generation),
    }[how]()
    assert response.status_code == 200
    assert await rows.fetchval("SELECT status FROM public.tasks") == "cancelled"
    assert await rows.fetchval("SELECT coalesce((SELECT status FROM public.generations), 'cancelled')") == "cancelled"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    await cancelled_at_the_provider(simulator)


async def test_a_result_after_a_cancel_is_discarded(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"job_seconds": 0.1, "ignores_cancel": True}, action="submit")
    simulator.behave("modal", {"reports": "completed"}, action="status", times=0)
    held = simulator.behave("modal", {"do": "hold"}, action="result")
    answer = await client.generate(voice_id)
    await client.task(answer["task_id"])
    await held.held()
    assert (await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")).json() == {
        "cancelled": True,
        "task_id": answer["task_id"],
    }
    held.release()
    await cancelled_at_the_provider(simulator)
    await wait_for(lambda: not gateway.parts.leases.speaking)
    assert (await client.task(answer["task_id"]))["status"] == "cancelled"
    assert (await client.http.get(f"/api/generations/{answer['generation_id']}/audio")).status_code == 404
    assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
    again = await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")
    assert again.json() == {"cancelled": True, "task_id": answer["task_id"], "status": "cancelled"}


async def test_a_cancel_that_the_provider_refuses_holds_at_home(
    client: Client, voice_id: UUID, simulator: Simulator, busy: None
) -> None:
    simulator.behave("modal", {"do": "answer", "status": 500, "json": {"detail": "no"}}, action="cancel", times=0)
    task_id = (await client.generate(voice_id))["task_id"]
    assert (await client.http.post(f"/api/tasks/{task_id}/cancel")).json()["cancelled"] is True
    await simulator.until(lambda _: len(calls(simulator, "cancel")) == 1)
    assert (await client.task(task_id))["status"] == "cancelled"


async def test_a_text_cancelled_while_it_is_submitted_is_cancelled_at_the_provider(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    held = simulator.behave("modal", {"do": "hold", "job_seconds": 600}, action="submit")
    submitting = asyncio.create_task(post(client, voice_id))
    await held.held()
    task_id = await rows.fetchval("SELECT id FROM public.tasks")
    assert (await client.task(str(task_id)))["modal_status"] is None  # there is nothing to look at yet
    assert (await client.http.post(f"/api/tasks/{task_id}/cancel")).json()["cancelled"] is True
    held.release()
    assert (await submitting).json()["task_id"] == str(task_id)
    await cancelled_at_the_provider(simulator)
    assert (await client.task(str(task_id)))["status"] == "cancelled"
    assert await purchase_of(rows, task_id) == "done"
