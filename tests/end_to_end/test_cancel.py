"""Cancelling: committed before it is answered, heard by whoever speaks, and nothing is left of it."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import httpx
import pytest

from server.dev.simulator import Planned, Simulator
from server.records.runs import FINALIZE_JOB
from server.settings import Settings
from server.storage import Bucket
from tests.end_to_end.conftest import gateway_behind, storing_nothing, take_no_jobs
from tests.end_to_end.hearing import DELTA_BYTES, Ears, hold_after
from tests.gateway import Client, Gateway, insert_voice
from tests.postgres_proxy import PostgresProxy
from tests.support import make_settings, wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
DELTAS = 5
MOMENTS = ["queued", "speaking", "spoken", "published"]


@pytest.fixture
async def voice_id(database_url: str, client: Client, spoken_model: str) -> UUID:
    """A cloned voice of that user, on one lane after the other."""
    return await insert_voice(database_url, client.user_id, model=spoken_model)


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """Settings of a server that waits for its speeches as long as a test lasts, but not for who stores them."""
    made = make_settings(database_url, simulator, tmp_path, shutdown_grace_seconds=15.0, qwen_starts_per_minute=100_000)
    return replace(made, deadlines=replace(made.deadlines, store_elsewhere_seconds=0.2))


@pytest.fixture
async def plan(simulator: Simulator) -> AsyncIterator[Planned]:
    """The next session stands still in the middle of its text."""
    planned = hold_after(simulator, DELTAS)
    yield planned
    planned.release()


async def cancel(client: Client, task_id: str) -> dict[str, Any]:
    response = await client.http.post(f"/api/tasks/{task_id}/cancel")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def left_behind(rows: Rows) -> list[str]:
    """What is still there of speeches that have ended: rows of ours, jobs, and records of objects to be removed."""
    return [
        table
        for table in ("runs", "spool", "removals", "procrastinate_jobs")
        if await rows.fetchval(f"SELECT EXISTS (SELECT 1 FROM internal.{table})")
    ]


async def nothing_left(rows: Rows) -> None:
    async def gone() -> bool:
        return not await left_behind(rows)

    await wait_for(gone)


async def stored_keys(gateway: Gateway) -> set[str]:
    return {stored.key async for stored in gateway.parts.storage.list(Bucket.GENERATIONS)}


def closed(calls: list[dict[str, Any]]) -> bool:
    return all("closed_at" in call for call in calls)


# --- one cancel ------------------------------------------------------------------------------------------------------


async def test_a_cancel_is_committed_before_it_is_answered(
    client: Client, voice_id: UUID, plan: Planned, rows: Rows, gateway: Gateway, simulator: Simulator
) -> None:
    task = await client.generate(voice_id)
    await plan.held()
    await wait_for(lambda: gateway.parts.live.logs()[0].durable == DELTAS * DELTA_BYTES)
    assert await cancel(client, task["task_id"]) == {"cancelled": True, "task_id": task["task_id"]}
    row = await rows.fetchrow(
        """SELECT t.status AS task, g.status AS generation, t.error, t.error_category, g.error_message, t.completed_at
             FROM public.tasks t JOIN public.generations g ON g.id = t.generation_id"""
    )
    assert row
    assert (row["task"], row["generation"]) == ("cancelled", "cancelled")
    assert (row["error"], row["error_message"]) == ("Cancelled by user", "Cancelled by user")
    assert row["error_category"] == "cancelled"
    assert row["completed_at"]
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
    await simulator.until(closed, 1.0)
    plan.release()
    await nothing_left(rows)
    assert await stored_keys(gateway) == set()
    assert (await client.task(task["task_id"]))["status"] == "cancelled"
    history = (await client.http.get("/api/generations")).json()["generations"]
    assert [entry["status"] for entry in history] == ["cancelled"]


async def test_a_speech_that_nobody_has_begun_is_cancelled_without_a_session(
    client: Client, voice_id: UUID, gateway: Gateway, rows: Rows, settings: Settings, door: PostgresProxy
) -> None:
    await take_no_jobs(gateway)
    task = await client.generate(voice_id)
    assert (await cancel(client, task["task_id"]))["cancelled"]
    async with gateway_behind(door, settings):
        await nothing_left(rows)
    assert (await client.task(task["task_id"]))["status"] == "cancelled"


async def test_a_cancel_closes_the_session_at_any_moment(
    client: Client, voice_id: UUID, rows: Rows, simulator: Simulator, gateway: Gateway
) -> None:
    for moment in ("upgrade", "open", "created", "updated", "text", "audio", "audio_end", "response_end"):
        plan = simulator.behave("realtime", {"do": "hold", "at": moment})
        task = await client.generate(voice_id)
        await plan.held()
        await cancel(client, task["task_id"])
        await wait_for(lambda: not gateway.parts.leases.speaking, 1.0)
        plan.release()  # before the first audio a simulated session that is held does not look at its socket
        await simulator.until(closed)
        await nothing_left(rows)
        assert (await client.task(task["task_id"]))["status"] == "cancelled", moment


async def test_a_cancel_that_waits_for_another_start_stops_waiting(
    client: Client, voice_id: UUID, rows: Rows, simulator: Simulator, gateway: Gateway
) -> None:
    simulator.behave("realtime", {"refuse": 429}, times=0)
    task = await client.generate(voice_id)
    await simulator.until(lambda calls: len(calls) == 1)
    await cancel(client, task["task_id"])
    await wait_for(lambda: not gateway.parts.leases.speaking, 1.0)
    await nothing_left(rows)
    assert len(simulator.calls) == 1


# --- in another process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draining", [False, True], ids=["at work", "draining"])
@pytest.mark.parametrize("notified", [True, False], ids=["notified", "not notified"])
async def test_a_cancel_reaches_another_process_within_a_second(
    client: Client,
    voice_id: UUID,
    plan: Planned,
    simulator: Simulator,
    speaker: Gateway,
    door: PostgresProxy,
    rows: Rows,
    notified: bool,
    draining: bool,
) -> None:
    """Also one that is told nothing, and one that has been told to stop and lets its speeches finish."""
    task = await client.generate(voice_id)
    await plan.held()
    await wait_for(lambda: speaker.parts.live.logs()[0].durable == DELTAS * DELTA_BYTES)
    door.notifications = notified
    if draining:
        speaker.server.should_exit = True
        await wait_for(lambda: speaker.parts.stopping.is_set() and not speaker.server.server_state.connections)
    assert (await cancel(client, task["task_id"]))["cancelled"]
    # Renewed once a second; the rest is what a busy machine may take to say so.
    await simulator.until(closed, 0.5 if notified else 1.5)
    assert await left_behind_by_speech(rows) == []
    assert (await client.task(task["task_id"]))["status"] == "cancelled"


async def left_behind_by_speech(rows: Rows) -> list[str]:
    return [table for table in await left_behind(rows) if table in ("runs", "spool")]


# --- against whoever else ends it ------------------------------------------------------------------------------------

Act: TypeAlias = Callable[[Client, dict[str, Any]], Coroutine[Any, Any, httpx.Response]]
ACTS: dict[str, Act] = {
    "cancel": lambda client, task: client.http.post(f"/api/tasks/{task['task_id']}/cancel"),
    "delete the task": lambda client, task: client.http.delete(f"/api/tasks/{task['task_id']}"),
    "delete the generation": lambda client, task: client.http.delete(f"/api/generations/{task['generation_id']}"),
}


async def waiting_for_locks(rows: Rows, count: int) -> None:
    async def enough() -> bool:
        waiting: int = await rows.fetchval(
            """SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        )
        return waiting == count

    await wait_for(enough)


@pytest.mark.parametrize("first", ["the user", "the finalizer"])
@pytest.mark.parametrize("act", ACTS)
async def test_user_and_finalizer_meet_at_the_row_and_one_of_them_wins(
    client: Client,
    voice_id: UUID,
    gateway: Gateway,
    rows: Rows,
    settings: Settings,
    door: PostgresProxy,
    database_url: str,
    act: str,
    first: str,
) -> None:
    """The audio is uploaded and about to be published when the user ends the speech; both orders, made to happen."""
    async with storing_nothing(gateway):
        task = await client.generate(voice_id)

        async def spoken() -> bool:
            return bool(await rows.fetchval("SELECT state = 'spoken' FROM internal.runs"))

        await wait_for(spoken)
        holder = await asyncpg.connect(database_url)
        try:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT 1 FROM public.generations FOR UPDATE")
            if first == "the user":
                acting = asyncio.create_task(ACTS[act](client, task))
                await waiting_for_locks(rows, 1)
            async with gateway_behind(door, settings):
                await waiting_for_locks(rows, 2 if first == "the user" else 1)
                assert await stored_keys(gateway), "the finalizer has uploaded"
                if first == "the finalizer":
                    acting = asyncio.create_task(ACTS[act](client, task))
                    await waiting_for_locks(rows, 2)
                await transaction.rollback()
                response = await acting
                assert response.status_code == 200, response.text
                await nothing_left(rows)
        finally:
            await holder.close()
        generations = await rows.fetch("SELECT status, audio_object_key FROM public.generations")
        if first == "the finalizer" and act != "delete the generation":
            assert [row["status"] for row in generations] == ["completed"]
            assert await stored_keys(gateway) == {generations[0]["audio_object_key"]}
        else:
            assert [row["status"] for row in generations] == (["cancelled"] if act != "delete the generation" else [])
            assert await stored_keys(gateway) == set()
        if act == "cancel":
            assert response.json()["cancelled"] == (first == "the user")
            assert response.json().get("status") == (None if first == "the user" else "completed")


async def test_ending_a_speech_in_every_way_at_once_leaves_nothing_half_done(
    client: Client, voice_id: UUID, gateway: Gateway, neighbour: Gateway, rows: Rows, simulator: Simulator
) -> None:
    """Many speeches, each ended by several at once just after some moment of it, while one or two finalizers store it.

    Afterwards an object exists exactly where a completed row shows it, and nothing else is left.
    """
    simulator.behave("realtime", {"minimum_bytes": 20_000}, times=0)
    run_state = "SELECT state FROM internal.runs WHERE task_id = $1"

    async def reached(moment: str, task: dict[str, Any], key: str) -> bool:
        if moment == "uploaded":
            return await gateway.parts.storage.head(Bucket.GENERATIONS, key) is not None
        async with gateway.parts.database.connection() as connection:
            state = await connection.fetchval(run_state, UUID(task["task_id"]))
        return MOMENTS.index(state or "published") >= MOMENTS.index(moment)

    chance = random.Random(20261121)
    elsewhere = Client(neighbour.url, client.user_id)
    answers: list[httpx.Response] = []

    async def one_speech() -> None:
        task = await client.generate(voice_id)
        key = f"{client.user_id}/{task['generation_id']}.mp3"
        moment = chance.choice([*MOMENTS, "spoken", "uploaded", "uploaded"])
        await wait_for(lambda: reached(moment, task, key), every_seconds=chance.uniform(0.001, 0.004))
        if chance.random() < 0.5:
            async with gateway.parts.database.transaction() as connection:
                await gateway.parts.queue.defer(connection, FINALIZE_JOB, task_id=UUID(task["task_id"]), object_key=key)
        acts = chance.choices(list(ACTS.values()), k=chance.randint(1, 4))
        answers.extend(await asyncio.gather(*[act(chance.choice([client, elsewhere]), task) for act in acts]))

    async with elsewhere:
        for _ in range(4):
            await asyncio.gather(*[one_speech() for _ in range(12)])
        await nothing_left(rows)
    assert {response.status_code for response in answers} <= {200, 404}
    statuses = await rows.fetch("SELECT status, audio_object_key FROM public.generations")
    shown = {row["audio_object_key"] for row in statuses if row["status"] == "completed"}
    assert await stored_keys(gateway) == shown
    assert {row["audio_object_key"] for row in statuses if row["status"] != "completed"} <= {None}
    assert {row["status"] for row in statuses} == {"completed", "cancelled"}, "both sides should have won sometimes"
    unfinished = await rows.fetchval("SELECT count(*) FROM public.tasks WHERE status IN ('pending', 'processing')")
    assert unfinished == 0
    await rows.execute("SELECT pg_stat_force_next_flush()")
    assert await rows.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_a_generation_deleted_past_us_counts_as_cancelled(
    client: Client, voice_id: UUID, plan: Planned, rows: Rows, gateway: Gateway
) -> None:
    """A browser may delete its rows through the database's own REST layer."""
    task = await client.generate(voice_id)
    await plan.held()
    await rows.execute("DELETE FROM public.generations")
    plan.release()
    await nothing_left(rows)
    assert (await client.task(task["task_id"]))["status"] == "cancelled"
    assert await stored_keys(gateway) == set()


async def test_rows_deleted_past_us_leave_no_object(
    client: Client, voice_id: UUID, plan: Planned, rows: Rows, gateway: Gateway
) -> None:
    await client.generate(voice_id)
    await plan.held()
    await rows.execute("DELETE FROM public.tasks")
    await rows.execute("DELETE FROM public.generations")
    plan.release()
    await nothing_left(rows)
    assert await stored_keys(gateway) == set()


async def test_a_generation_deleted_past_us_before_it_is_stored_leaves_no_object(
    client: Client, voice_id: UUID, rows: Rows, gateway: Gateway, settings: Settings, door: PostgresProxy
) -> None:
    async with storing_nothing(gateway):
        task = await client.generate(voice_id)

        async def spoken() -> bool:
            return bool(await rows.fetchval("SELECT state = 'spoken' FROM internal.runs"))

        await wait_for(spoken)
        await rows.execute("DELETE FROM public.generations")
        async with gateway_behind(door, settings):
            await nothing_left(rows)
        assert (await client.task(task["task_id"]))["status"] == "cancelled"
        assert await stored_keys(gateway) == set()


# --- terminal tasks --------------------------------------------------------------------------------------------------


async def test_cancelling_what_has_ended_answers_its_state_and_changes_nothing(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, anybody: Ears
) -> None:
    tasks = {}
    tasks["completed"] = await client.generate(voice_id)
    await client.ended(tasks["completed"]["task_id"])
    simulator.behave("realtime", {"refuse": 403})
    tasks["failed"] = await client.generate(voice_id)
    await client.ended(tasks["failed"]["task_id"])
    plan = hold_after(simulator, 1)
    tasks["cancelled"] = await client.generate(voice_id)
    await plan.held()
    await cancel(client, tasks["cancelled"]["task_id"])
    for status, task in tasks.items():
        before = await rows.fetch("SELECT t, g FROM public.tasks t JOIN public.generations g ON g.id = t.generation_id")
        assert await cancel(client, task["task_id"]) == {
            "cancelled": status == "cancelled",
            "task_id": task["task_id"],
            "status": status,
        }
        after = await rows.fetch("SELECT t, g FROM public.tasks t JOIN public.generations g ON g.id = t.generation_id")
        assert before == after
    assert (await anybody.hear(tasks["completed"]["stream_url"])).end


async def test_deleting_a_task_that_runs_cancels_it(
    client: Client, voice_id: UUID, plan: Planned, rows: Rows, simulator: Simulator, anybody: Ears, gateway: Gateway
) -> None:
    task = await client.generate(voice_id)
    await plan.held()
    following = asyncio.create_task(anybody.hear(task["stream_url"]))
    await anybody.hear(task["stream_url"], until=DELTAS * DELTA_BYTES)
    assert (await client.http.delete(f"/api/tasks/{task['task_id']}")).json() == {"ok": True}
    await simulator.until(closed, 1.0)
    heard = await following
    assert heard.end
    assert heard.end["status"] == "cancelled"
    assert (await client.http.get(f"/api/tasks/{task['task_id']}")).status_code == 404
    assert await rows.fetchval("SELECT status FROM public.generations") == "cancelled"
    await nothing_left(rows)
    exposition = gateway.parts.metrics.exposition()
    assert b'utter_tasks_total{category="cancelled",provider="qwen",status="cancelled"} 1.0' in exposition


async def test_deleting_a_generation_that_runs_cancels_it(
    client: Client, voice_id: UUID, plan: Planned, rows: Rows, simulator: Simulator, anybody: Ears, gateway: Gateway
) -> None:
    task = await client.generate(voice_id)
    await plan.held()
    following = asyncio.create_task(anybody.hear(task["stream_url"]))
    await anybody.hear(task["stream_url"], until=DELTAS * DELTA_BYTES)
    assert (await client.http.delete(f"/api/generations/{task['generation_id']}")).json() == {"ok": True}
    await simulator.until(closed, 1.0)
    heard = await following
    assert heard.end
    assert heard.end["status"] == "cancelled"
    assert (await client.task(task["task_id"]))["status"] == "cancelled"
    await nothing_left(rows)
    assert await stored_keys(gateway) == set()


async def test_nobody_cancels_somebody_elses_speech(
    client: Client, voice_id: UUID, plan: Planned, gateway: Gateway, database_url: str
) -> None:
    task = await client.generate(voice_id)
    await plan.held()
    async with gateway.client() as stranger:
        await insert_voice(database_url, stranger.user_id)
        for act in ACTS.values():
            assert (await act(stranger, task)).status_code == 404
    assert (await client.task(task["task_id"]))["status"] == "processing"
