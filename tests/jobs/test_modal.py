"""Jobs of the second provider when nobody polls: watched, collected, ended, and taken over from the older system."""

import asyncio
import dataclasses
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from server.audio import parse_wav
from server.database.queue import DEFAULT_CONCURRENCY
from server.dev.simulator import Simulator
from server.records import modal as modal_records
from server.records import runs
from server.records.runs import WATCH_MODAL_JOB
from server.relay.sweep import Sweeper
from server.settings import Settings
from tests.gateway import Client, Gateway, running_gateway
from tests.modal import in_modal_mode, insert_modal_voice
from tests.support import wait_for

Rows = Any


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Watchers look twenty times a second."""
    return in_modal_mode(settings, modal_watch_seconds=0.05, modal_result_pauses_seconds=(0.01,))


@pytest.fixture
async def voice_id(gateway: Gateway, client: Client, rows: Rows) -> UUID:
    return await insert_modal_voice(gateway.parts, rows, client.user_id)


def calls(simulator: Simulator, action: str) -> list[dict[str, Any]]:
    return [call for call in simulator.calls if call["action"] == action]


def sweeper(gateway: Gateway, **settings: Any) -> Sweeper:
    parts = gateway.parts
    return Sweeper(
        parts.database,
        parts.queue,
        parts.announcer,
        parts.endings,
        parts.leases,
        parts.metrics,
        dataclasses.replace(parts.settings, **settings),
    )


async def ended(rows: Rows, task_id: Any, timeout: float = 15.0) -> Any:
    """The task's row once it is terminal; asking the API would be a poll."""

    async def terminal() -> Any:
        return await rows.fetchrow(
            "SELECT * FROM public.tasks WHERE id = $1 AND status NOT IN ('pending', 'processing')", UUID(str(task_id))
        )

    return await wait_for(terminal, timeout)


async def looked(simulator: Simulator, times: int) -> None:
    """Wait until the provider has been asked for a status so often."""
    await simulator.until(lambda _: len(calls(simulator, "status")) >= times)


# --- the watcher ------------------------------------------------------------------------------------------------------


async def test_a_task_that_nobody_polls_is_finished(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"reports": "running"}, action="status", times=3)
    answer = await client.generate(voice_id)
    task = await ended(rows, answer["task_id"])
    assert task["status"] == "completed"
    assert (task["modal_poll_count"], task["provider_poll_count"]) == (0, 0)
    assert len(calls(simulator, "status")) == 4
    assert len(calls(simulator, "result")) == 1
    assert parse_wav(await client.audio(answer["generation_id"])).frames > 0


async def test_status_checks_that_fail_never_fail_a_task(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"do": "answer", "status": 500, "text": ""}, action="status", times=2)
    simulator.behave("modal", {"do": "abort"}, action="status", times=2)
    task = await ended(rows, (await client.generate(voice_id))["task_id"])
    assert task["status"] == "completed"


async def test_a_failure_is_confirmed_by_a_second_look(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"fails": "CUDA out of memory"}, action="submit")
    task = await ended(rows, (await client.generate(voice_id))["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_unavailable")
    first, *_, last = (datetime.fromisoformat(call["at"]) for call in calls(simulator, "status"))
    assert (last - first).total_seconds() >= modal_records.SECOND_POLL_SECONDS


async def test_a_job_that_never_ends_is_ended_by_our_own_deadline(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"job_seconds": 600}, action="submit")
    async with (
        running_gateway(in_modal_mode(settings, modal_job_seconds=0.3)) as gateway,
        gateway.client() as client,
    ):
        answer = await client.generate(await insert_modal_voice(gateway.parts, rows, client.user_id))
        task = await ended(rows, answer["task_id"])
        assert (task["status"], task["error_category"]) == ("failed", "timeout")
        job = calls(simulator, "submit")[0]["job_id"]
        await simulator.until(lambda _: [call["job_id"] for call in calls(simulator, "cancel")] == [job])
        [entry] = (await client.http.get("/api/generations")).json()["generations"]
        assert (entry["status"], entry["error_message"]) == ("failed", task["error"])


async def test_a_job_that_is_done_at_the_deadline_is_collected_all_the_same(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """The deadline ends what runs on, not what is there: the last look comes before it."""
    async with (
        running_gateway(in_modal_mode(settings, modal_job_seconds=0.0, modal_watch_seconds=0.3)) as gateway,
        gateway.client() as client,
    ):
        answer = await client.generate(await insert_modal_voice(gateway.parts, rows, client.user_id))
        assert (await ended(rows, answer["task_id"]))["status"] == "completed"


async def test_a_submission_without_an_answer_is_ended_and_its_late_job_cancelled(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """As for a process that died in the middle: nobody will ever write the job's id down."""
    held = simulator.behave("modal", {"do": "hold", "job_seconds": 600}, action="submit")
    async with (
        running_gateway(in_modal_mode(settings, modal_no_id_seconds=0.2)) as gateway,
        gateway.client() as client,
    ):
        voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id)
        submitting = asyncio.create_task(client.generate(voice_id))
        await held.held()
        task_id = await rows.fetchval("SELECT id FROM public.tasks")
        task = await ended(rows, task_id)
        assert (task["status"], task["error_category"]) == ("failed", "timeout")
        assert await rows.fetchval("SELECT state FROM internal.purchases") == "unknown"
        held.release()
        await submitting
        await simulator.until(lambda _: len(calls(simulator, "cancel")) == 1)
        assert await rows.fetchval("SELECT status FROM public.tasks") == "failed"
        assert await rows.fetchval("SELECT state FROM internal.purchases") == "done"


async def test_watchers_do_not_multiply(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """A second one, which the sweep may bring, finds that a look is deferred already and leaves it at that."""
    simulator.behave("modal", {"job_seconds": 600}, action="submit")
    task_id = UUID((await client.generate(voice_id))["task_id"])
    async with gateway.parts.database.transaction() as connection:
        for _ in range(10):
            await runs.start_job(connection, gateway.parts.queue, WATCH_MODAL_JOB, task_id, 1)
    await looked(simulator, 15)

    async def one_left() -> bool:
        waiting = await rows.fetchval(
            "SELECT count(*) FROM internal.procrastinate_jobs WHERE task_name = $1", WATCH_MODAL_JOB
        )
        return bool(waiting == 1)

    await wait_for(one_left)
    await client.http.post(f"/api/tasks/{task_id}/cancel")


async def test_looks_that_hang_hold_up_nothing_else(settings: Settings, simulator: Simulator, rows: Rows) -> None:
    """A provider that does not answer is watched by as many as there are tasks; storing has workers of its own."""
    held = simulator.behave("modal", {"do": "hold"}, action="status", times=0, text_contains="Slow")
    patient = in_modal_mode(settings, connect_seconds=60.0)
    async with running_gateway(patient) as gateway, gateway.client() as client:
        voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id)
        slow = [await client.generate(voice_id, f"Slow, number {number}.") for number in range(DEFAULT_CONCURRENCY + 5)]
        await held.held(len(slow))
        quick = await client.generate(voice_id, "Quick.")
        assert (await ended(rows, quick["task_id"]))["status"] == "completed"
        held.release()
        for answer in slow:
            assert (await ended(rows, answer["task_id"]))["status"] == "completed"


async def test_a_watcher_that_was_lost_is_brought_back(settings: Settings, simulator: Simulator, rows: Rows) -> None:
    never = in_modal_mode(settings, modal_watch_seconds=600, idle_run_seconds=0.0)
    async with running_gateway(never) as gateway, gateway.client() as client:
        answer = await client.generate(await insert_modal_voice(gateway.parts, rows, client.user_id))
        await rows.execute("DELETE FROM internal.procrastinate_jobs")
        await sweeper(gateway).sweep()
        assert (await ended(rows, answer["task_id"]))["status"] == "completed"


async def test_a_task_whose_generation_a_browser_deleted_is_ended(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"job_seconds": 600}, action="submit")
    answer = await client.generate(voice_id)
    await rows.execute("DELETE FROM public.generations WHERE id = $1", UUID(answer["generation_id"]))
    assert (await ended(rows, answer["task_id"]))["status"] == "cancelled"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    await simulator.until(lambda _: len(calls(simulator, "cancel")) == 1)


# --- collecting -------------------------------------------------------------------------------------------------------


async def test_completed_and_then_500_on_the_result_is_tried_again(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"do": "answer", "status": 500, "json": {"detail": "no"}}, action="result", times=2)
    simulator.behave("modal", {"reports": "processing"}, action="result", times=2)
    task = await ended(rows, (await client.generate(voice_id))["task_id"])
    assert task["status"] == "completed"
    assert len(calls(simulator, "result")) == 5


async def test_a_result_that_keeps_failing_ends_the_task(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"do": "answer", "status": 500, "json": {"detail": "no"}}, action="result", times=0)
    task = await ended(rows, (await client.generate(voice_id))["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_unavailable")
    assert len(calls(simulator, "result")) == 3
    facts = await rows.fetchval("SELECT provider_metadata FROM public.generations")
    assert (facts["error"]["code"], facts["error"]["tries"]) == ("result_failed", 3)


async def test_a_collection_that_died_in_the_middle_is_done_again(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """Also when bytes of it were spooled: nobody has heard them, and the result is still there."""
    held = simulator.behave("modal", {"do": "hold"}, action="result")
    lossy = in_modal_mode(settings, lost_after_seconds=5.0)
    async with running_gateway(lossy) as gateway, gateway.client() as client:
        answer = await client.generate(await insert_modal_voice(gateway.parts, rows, client.user_id))
        await held.held()
        task_id = UUID(answer["task_id"])
        await rows.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, $2)", task_id, b"\xff" * 1000)
        await rows.execute(
            """UPDATE internal.runs SET owner = $2, byte_length = 1000, beat_at = now() - interval '1 minute'
                WHERE task_id = $1 AND state = 'speaking'""",
            task_id,
            uuid4(),
        )
        await sweeper(gateway).sweep()
        assert (await ended(rows, task_id))["status"] == "completed"
        held.release()
        samples = parse_wav(await client.audio(answer["generation_id"])).samples
        assert bytes(samples[:1000]) != b"\xff" * 1000
        assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
    assert len(calls(simulator, "submit")) == 1


async def test_a_shutdown_in_the_middle_leaves_the_collection_to_the_next_process(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    held = simulator.behave("modal", {"do": "hold"}, action="result")
    hasty = dataclasses.replace(settings, shutdown_grace_seconds=0.1)
    async with running_gateway(hasty) as gateway, gateway.client() as client:
        answer = await client.generate(await insert_modal_voice(gateway.parts, rows, client.user_id))
        await held.held()
    assert await rows.fetchval("SELECT status FROM public.tasks") == "processing"
    async with running_gateway(settings) as gateway, gateway.client(client.user_id) as client:
        assert (await ended(rows, answer["task_id"]))["status"] == "completed"
        assert parse_wav(await client.audio(answer["generation_id"])).frames > 0
    assert len(calls(simulator, "submit")) == 1


# --- cancelling -------------------------------------------------------------------------------------------------------


async def test_a_server_without_a_cancel_endpoint_cancels_at_home(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("modal", {"job_seconds": 600}, action="submit")
    async with running_gateway(in_modal_mode(settings, modal_job_cancel=None)) as gateway, gateway.client() as client:
        answer = await client.generate(await insert_modal_voice(gateway.parts, rows, client.user_id))
        cancelled = await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")
        assert cancelled.json() == {"cancelled": True, "task_id": answer["task_id"]}

        async def nothing_waits() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM internal.procrastinate_jobs")

        await wait_for(nothing_waits)
        assert not calls(simulator, "cancel")


# --- tasks of the older system ----------------------------------------------------------------------------------------


async def older_task(rows: Rows, user_id: UUID, job: str | None, *, age: str = "1 minute", **columns: Any) -> Any:
    """A task as the older system left it: no provider columns, no run, nothing in the queue."""
    generation_id = await rows.fetchval(
        """INSERT INTO public.generations (user_id, text, language, status, created_at)
           VALUES ($1, 'Said long ago.', 'English', 'processing', now() - $2::text::interval) RETURNING id""",
        user_id,
        age,
    )
    return await rows.fetchrow(
        """INSERT INTO public.tasks (user_id, type, status, generation_id, modal_job_id, created_at)
           VALUES ($1, 'generate', $4, $2, $3, now() - $5::text::interval) RETURNING *""",
        user_id,
        generation_id,
        job,
        columns.get("status", "processing"),
        age,
    )


async def job_of_the_older_system(simulator: Simulator, settings: Settings, **behaviour: Any) -> str:
    """A job that somebody else has submitted."""
    if behaviour:
        simulator.behave("modal", behaviour, action="submit")
    body = {"text": "Said long ago.", "language": "English", "ref_audio_base64": "AAAA", "ref_text": "a"}
    async with httpx.AsyncClient() as http:
        answer = await http.post(str(settings.modal_job_submit), json=body)
    simulator.ledger.clear()
    return str(answer.json()["job_id"])


async def test_an_older_task_is_polled_and_collected_once(settings: Settings, simulator: Simulator, rows: Rows) -> None:
    """By whoever polls: the server took over what it found when it started, and will look again in a minute."""
    user_id = uuid4()
    found = await older_task(rows, user_id, None, age="4 minutes")
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        await ended(rows, found["id"])
        task = await older_task(rows, user_id, await job_of_the_older_system(simulator, settings), status="pending")
        simulator.behave("modal", {"reports": "running"}, action="status")
        first = await client.task(str(task["id"]))
        assert (first["provider"], first["modal_status"], first["modal_poll_count"]) == ("modal", "running", 1)
        await asyncio.gather(*(client.task(str(task["id"])) for _ in range(10)))
        done = await client.ended(str(task["id"]))
        assert done["status"] == "completed"
        assert done["result"] == {"audio_url": f"/api/generations/{task['generation_id']}/audio"}
        assert parse_wav(await client.audio(str(task["generation_id"]))).frames > 0
    generation = await rows.fetchrow("SELECT * FROM public.generations WHERE id = $1", task["generation_id"])
    assert generation["audio_object_key"] == f"{user_id}/{task['generation_id']}.wav"
    assert generation["generation_time_seconds"] >= 60
    assert len(calls(simulator, "result")) == 1


async def test_older_tasks_that_nobody_polls_are_finished(
    gateway: Gateway, client: Client, settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """Also those from yesterday: the result waits for a week."""
    recent = await older_task(rows, client.user_id, await job_of_the_older_system(simulator, settings))
    old = await older_task(rows, client.user_id, await job_of_the_older_system(simulator, settings), age="1 day")
    await asyncio.gather(sweeper(gateway).clean(), sweeper(gateway).clean())
    for task in (recent, old):
        assert (await ended(rows, task["id"]))["status"] == "completed"
        assert parse_wav(await client.audio(str(task["generation_id"]))).frames > 0
    assert len(calls(simulator, "result")) == 2


async def test_older_tasks_that_came_to_nothing_are_ended(
    gateway: Gateway, client: Client, settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    runs_for_ever = await job_of_the_older_system(simulator, settings, job_seconds=600)
    endless = await older_task(rows, client.user_id, runs_for_ever, age="31 minutes")
    expired = await older_task(rows, client.user_id, "fc-expired-a-week-ago", age="8 days")
    never_submitted = await older_task(rows, client.user_id, None, age="4 minutes", status="pending")
    being_submitted = await older_task(rows, client.user_id, None, age="10 seconds", status="pending")
    await sweeper(gateway).clean()
    assert (await ended(rows, endless["id"]))["error_category"] == "timeout"
    assert (await ended(rows, never_submitted["id"]))["error_category"] == "timeout"
    assert (await ended(rows, expired["id"]))["status"] == "failed"
    assert await rows.fetchval("SELECT status FROM public.tasks WHERE id = $1", being_submitted["id"]) == "pending"
    states = await rows.fetch("SELECT status FROM public.generations ORDER BY created_at")
    assert [row["status"] for row in states] == ["failed", "failed", "failed", "processing"]


async def test_older_previews_that_nobody_makes_are_ended(gateway: Gateway, client: Client, rows: Rows) -> None:
    for age in ("31 minutes", "1 minute"):
        await rows.execute(
            """INSERT INTO public.tasks (user_id, type, status, created_at, updated_at)
               VALUES ($1, 'design_preview', 'pending', now() - $2::text::interval, now() - $2::text::interval)""",
            client.user_id,
            age,
        )
    await sweeper(gateway).clean()
    states = await rows.fetch("SELECT status, error_category FROM public.tasks ORDER BY created_at")
    assert [tuple(row) for row in states] == [("failed", "timeout"), ("pending", None)]


async def test_where_the_older_system_still_works_its_tasks_are_left_to_it_for_a_day(
    gateway: Gateway, client: Client, rows: Rows
) -> None:
    for age in ("25 hours", "23 hours"):
        await rows.execute(
            """INSERT INTO public.tasks (user_id, type, status, created_at, updated_at)
               VALUES ($1, 'design_preview', 'pending', now() - $2::text::interval, now() - $2::text::interval)""",
            client.user_id,
            age,
        )
    await sweeper(gateway, older_tasks_minutes=24 * 60).clean()
    states = await rows.fetch("SELECT status FROM public.tasks ORDER BY created_at")
    assert [row["status"] for row in states] == ["failed", "pending"]


async def test_an_older_task_follows_its_generation(
    gateway: Gateway, client: Client, settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """The older system wrote the two rows one after the other, and may have died in between."""
    stored = await older_task(rows, client.user_id, await job_of_the_older_system(simulator, settings))
    await rows.execute(
        "UPDATE public.generations SET status = 'completed', audio_object_key = 'somewhere' WHERE id = $1",
        stored["generation_id"],
    )
    deleted = await older_task(rows, client.user_id, await job_of_the_older_system(simulator, settings))
    await rows.execute("DELETE FROM public.generations WHERE id = $1", deleted["generation_id"])
    await sweeper(gateway).clean()
    task = await client.task(str(stored["id"]))
    assert (task["status"], task["error"]) == ("completed", None)
    assert task["result"] == {"audio_url": f"/api/generations/{stored['generation_id']}/audio"}
    assert (await client.task(str(deleted["id"])))["status"] == "cancelled"
    assert not simulator.calls


async def test_an_older_task_can_be_cancelled(
    client: Client, settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    job = await job_of_the_older_system(simulator, settings, job_seconds=600)
    task = await older_task(rows, client.user_id, job)
    assert (await client.http.post(f"/api/tasks/{task['id']}/cancel")).json()["cancelled"] is True
    assert await rows.fetchval("SELECT status FROM public.generations") == "cancelled"
    await simulator.until(lambda _: [call["job_id"] for call in calls(simulator, "cancel")] == [job])


async def test_speech_of_an_older_system_of_this_provider_ends_too(
    gateway: Gateway, client: Client, rows: Rows
) -> None:
    """Its stream would wait for ever. What was touched lately may be another system's work."""
    for touched in ("31 minutes", "29 minutes"):
        generation_id = await rows.fetchval(
            """INSERT INTO public.generations (user_id, text, language, status, tts_provider, created_at)
               VALUES ($1, 'Said long ago.', 'English', 'processing', 'qwen', now() - interval '2 hours')
               RETURNING id""",
            client.user_id,
        )
        await rows.execute(
            """INSERT INTO public.tasks (user_id, type, status, provider, generation_id, created_at, updated_at)
               VALUES ($1, 'generate', 'processing', 'qwen', $2, now() - interval '2 hours',
                       now() - $3::text::interval)""",
            client.user_id,
            generation_id,
            touched,
        )
    await sweeper(gateway).clean()
    states = await rows.fetch(
        """SELECT t.status AS task, g.status AS generation FROM public.tasks t
             JOIN public.generations g ON g.id = t.generation_id ORDER BY t.updated_at"""
    )
    assert sorted(tuple(row) for row in states) == [("failed", "failed"), ("processing", "processing")]
