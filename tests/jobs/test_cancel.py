"""Ending a speech because its user says so: committed first, then told to whoever is speaking, and nothing is left."""

from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.errors import NotFound
from server.jobs.cancel import cancel, delete_generation, hide_task
from server.settings import Settings
from server.storage import Bucket
from tests.end_to_end.conftest import storing_nothing, take_no_jobs
from tests.end_to_end.hearing import hold_after
from tests.gateway import Client, Gateway, running_gateway
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def id_of(task: dict[str, Any]) -> UUID:
    return UUID(task["task_id"])


def key_of(client: Client, task: dict[str, Any]) -> str:
    return f"{client.user_id}/{task['generation_id']}.mp3"


async def spoken(rows: Rows, task: dict[str, Any]) -> None:
    """Wait until nothing is left but storing."""

    async def state() -> bool:
        found = await rows.fetchval("SELECT state FROM internal.runs WHERE task_id = $1", id_of(task))
        return bool(found == "spoken")

    await wait_for(state)


def cancelled_tasks(gateway: Gateway) -> bool:
    """Whether this process has counted exactly one."""
    line = b'utter_tasks_total{category="cancelled",provider="qwen",status="cancelled"} 1.0'
    return line in gateway.parts.metrics.exposition()


async def test_a_speech_that_runs_is_ended_and_whoever_speaks_it_stops(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    plan = hold_after(simulator, 2)
    task = await client.generate(voice_id)
    await plan.held()
    here, found = await cancel(gateway.parts, client.user_id, id_of(task))
    assert here
    assert found.status == "processing", "as it stood before"
    await wait_for(lambda: not gateway.parts.leases.speaking)
    row = await rows.fetchrow("SELECT * FROM public.tasks")
    assert row
    assert (row["status"], row["cancellation_requested"], row["error_category"]) == ("cancelled", True, "cancelled")
    assert cancelled_tasks(gateway)
    plan.release()
    assert await cancel(gateway.parts, client.user_id, id_of(task)) == (False, await _task(gateway, client, task))
    assert cancelled_tasks(gateway), "twice is once"


async def test_the_older_system_reads_that_a_cancel_was_asked_for(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """Its column says so where a user has cancelled, and nowhere else."""
    simulator.behave("realtime", {"do": "error", "after_deltas": 1}, text_contains="fails")
    plan = hold_after(simulator, 1, text_contains="cancelled")
    failed = await client.generate(voice_id, "This one fails.")
    await client.ended(failed["task_id"])
    task = await client.generate(voice_id, "This one is cancelled.")
    await plan.held()
    assert (await client.http.post(f"/api/tasks/{task['task_id']}/cancel")).status_code == 200
    plan.release()
    found = await rows.fetch("SELECT id, cancellation_requested FROM public.tasks")
    assert {row["id"]: row["cancellation_requested"] for row in found} == {id_of(failed): False, id_of(task): True}


async def test_what_was_uploaded_by_a_process_that_died_before_it_published_is_removed(
    gateway: Gateway, client: Client, voice_id: UUID, rows: Rows, settings: Settings
) -> None:
    async with storing_nothing(gateway):
        task = await client.generate(voice_id)
        await spoken(rows, task)
        key = key_of(client, task)
        await gateway.parts.storage.put(Bucket.GENERATIONS, key, b"audio", content_type="audio/mpeg", size=5)
        await rows.execute("DELETE FROM internal.procrastinate_jobs")
        here, _ = await cancel(gateway.parts, client.user_id, id_of(task))
        assert here
    assert await rows.fetchval("SELECT object_key FROM internal.removals") == key
    async with running_gateway(settings):

        async def gone() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM internal.removals")

        await wait_for(gone)
    assert await gateway.parts.storage.head(Bucket.GENERATIONS, key) is None


@pytest.mark.parametrize("hidden", [False, True])
async def test_nobody_ends_what_is_not_theirs_or_was_put_away(
    gateway: Gateway, client: Client, voice_id: UUID, rows: Rows, hidden: bool
) -> None:
    await take_no_jobs(gateway)
    task = await client.generate(voice_id)
    if hidden:
        await rows.execute("UPDATE public.tasks SET deleted_at = now()")
    user_id = client.user_id if hidden else uuid4()
    for deed in (cancel, hide_task):
        with pytest.raises(NotFound):
            await deed(gateway.parts, user_id, id_of(task))
    with pytest.raises(NotFound):
        await delete_generation(gateway.parts, uuid4(), UUID(task["generation_id"]))
    assert await rows.fetchval("SELECT status FROM public.tasks") == "processing"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 1


async def test_a_task_that_is_put_away_ends_before_and_one_that_has_ended_keeps_its_end(
    gateway: Gateway, client: Client, voice_id: UUID, rows: Rows
) -> None:
    done = await client.generate(voice_id)
    await client.ended(done["task_id"])
    await take_no_jobs(gateway)
    waiting = await client.generate(voice_id)
    for task in (done, waiting):
        await hide_task(gateway.parts, client.user_id, id_of(task))
    found = await rows.fetch("SELECT id, status, deleted_at FROM public.tasks")
    assert {row["id"]: row["status"] for row in found} == {id_of(done): "completed", id_of(waiting): "cancelled"}
    assert all(row["deleted_at"] for row in found)
    assert await client.audio(done["generation_id"]), "the history is another thing"


async def test_an_entry_of_the_history_goes_with_its_object_and_whatever_is_at_work_on_it(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    done = await client.generate(voice_id)
    await client.ended(done["task_id"])
    plan = hold_after(simulator, 2)
    running = await client.generate(voice_id)
    await plan.held()
    for task in (done, running):
        await delete_generation(gateway.parts, client.user_id, UUID(task["generation_id"]))
        with pytest.raises(NotFound):
            await delete_generation(gateway.parts, client.user_id, UUID(task["generation_id"]))
    await wait_for(lambda: not gateway.parts.leases.speaking)
    plan.release()

    async def gone() -> bool:
        return await gateway.parts.storage.head(Bucket.GENERATIONS, key_of(client, done)) is None

    await wait_for(gone)
    for table in ("public.generations", "internal.runs", "internal.spool"):
        assert await rows.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert (await _task(gateway, client, running)).status == "cancelled"


async def _task(gateway: Gateway, client: Client, task: dict[str, Any]) -> Any:
    _, found = await cancel(gateway.parts, client.user_id, id_of(task))
    return found
