"""What other processes left behind: runs of the dead, jobs that were lost, rows that have served their time."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.announce import Announcer
from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.metrics import Metrics
from server.records import processes, speech
from server.records.runs import ATTEMPTS, COLLECT_ATTEMPTS, COLLECT_MODAL_JOB, PREVIEW_JOB, SYNTHESIZE_JOB
from server.records.speech import RESTARTED
from server.relay.endings import Endings
from server.relay.leases import Leases
from server.relay.sweep import NOBODY_FREE, Sweeper
from server.settings import Settings
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
LONG_AGO = "now() - interval '1 hour'"


@dataclass
class World:
    """A process that sweeps when it is told to, behind a door, and the rows that it finds."""

    door: PostgresProxy
    sweeper: Sweeper
    leases: Leases
    metrics: Metrics
    rows: Rows
    database: Database
    queue: Queue

    async def speech(self, **run: Any) -> UUID:
        """A speech whose run has these columns; they are SQL."""
        task_id, generation_id, user_id = uuid4(), uuid4(), uuid4()
        await self.rows.execute(
            """INSERT INTO public.generations (id, user_id, text, status, tts_provider, output_format)
               VALUES ($1, $2, 'Good evening.', 'processing', 'qwen', 'mp3')""",
            generation_id,
            user_id,
        )
        await self.rows.execute(
            """INSERT INTO public.tasks (id, user_id, type, status, generation_id, provider)
               VALUES ($1, $2, 'generate', 'processing', $3, 'qwen')""",
            task_id,
            user_id,
            generation_id,
        )
        columns = {"job_name": f"'{SYNTHESIZE_JOB}'", "object_key": "'a/b.mp3'", **run}
        await self.rows.execute(
            f"""INSERT INTO internal.runs (task_id, generation_id, {", ".join(columns)})
                VALUES ($1, $2, {", ".join(columns.values())})""",
            task_id,
            generation_id,
        )
        return task_id

    async def run_of(self, task_id: UUID) -> Any:
        return await self.rows.fetchrow("SELECT * FROM internal.runs WHERE task_id = $1", task_id)

    async def task(self, task_id: UUID) -> Any:
        return await self.rows.fetchrow("SELECT * FROM public.tasks WHERE id = $1", task_id)

    async def jobs(self) -> list[tuple[str, str, int | None]]:
        """Name, task and attempt of everything that is deferred."""
        found = await self.rows.fetch(
            """SELECT task_name, args ->> 'task_id' AS task_id, (args ->> 'attempt')::int AS attempt
                 FROM internal.procrastinate_jobs ORDER BY id"""
        )
        return [tuple(row) for row in found]


@pytest.fixture
async def world(database_url: str, settings: Settings, rows: Rows) -> AsyncIterator[World]:
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=3) as database:
        queue, announcer, metrics = Queue(database, Listener(door.url)), Announcer(database), Metrics()
        endings = Endings(database, announcer, metrics)
        leases = Leases(database, Listener(door.url), renew_every_seconds=1.0, lost_after_seconds=15.0)
        sweeper = Sweeper(database, queue, announcer, endings, leases, metrics, settings)
        yield World(door, sweeper, leases, metrics, rows, database, queue)


# --- runs of the dead -------------------------------------------------------------------------------------------------


async def test_a_silent_run_that_nobody_has_heard_is_given_to_another_process(world: World) -> None:
    task_id = await world.speech(state="'speaking'", beat_at=LONG_AGO, owner="gen_random_uuid()")
    await world.sweeper.sweep()
    run = await world.run_of(task_id)
    assert (run["state"], run["attempt"], run["owner"]) == ("queued", 2, None)
    assert await world.jobs() == [(SYNTHESIZE_JOB, str(task_id), 2)]
    assert (await world.task(task_id))["status"] == "processing"
    facts = await world.rows.fetchval("SELECT provider_metadata FROM public.generations")
    assert facts["attempts"] == [{"attempt": 1, "reason": "its process died"}]


async def test_what_was_given_back_before_its_text_was_sent_was_no_attempt(world: World) -> None:
    """Three deploys fall into one wait, and then a process dies."""
    task_id = await world.speech(state="'speaking'", owner="gen_random_uuid()")
    for attempt in (1, 2, 3):
        await world.rows.execute("UPDATE internal.runs SET state = 'speaking', owner = gen_random_uuid()")
        async with world.database.transaction() as connection:
            assert await speech.requeue(
                connection, world.queue, task_id, attempt, reason="server restarted", begun=False
            )
    await world.rows.execute(
        f"UPDATE internal.runs SET state = 'speaking', owner = gen_random_uuid(), beat_at = {LONG_AGO}"
    )
    await world.sweeper.sweep()
    run = await world.run_of(task_id)
    assert (run["state"], run["attempt"], run["not_begun"]) == ("queued", 5, 3)
    await world.rows.execute(
        f"UPDATE internal.runs SET state = 'speaking', owner = gen_random_uuid(), beat_at = {LONG_AGO}"
    )
    await world.sweeper.sweep()
    assert (await world.task(task_id))["error"] == RESTARTED, "two have died of it"


@pytest.mark.parametrize("found", [{"byte_length": "5"}, {"attempt": str(ATTEMPTS)}])
async def test_one_that_was_heard_or_has_killed_two_processes_fails(world: World, found: dict[str, str]) -> None:
    task_id = await world.speech(state="'speaking'", beat_at=LONG_AGO, **found)
    await world.rows.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, 'heard')", task_id)
    await world.sweeper.sweep()
    task = await world.task(task_id)
    assert (task["status"], task["error"], task["error_category"]) == ("failed", RESTARTED, "internal")
    assert await world.run_of(task_id) is None
    assert await world.jobs() == []
    assert await world.rows.fetchval("SELECT count(*) FROM internal.spool") == 0
    assert b'utter_tasks_total{category="internal",provider="qwen",status="failed"} 1.0' in world.metrics.exposition()


@pytest.mark.parametrize(("paid_twice_from", "goes_on"), [(-1, True), (12, True), (30, False), (31, False)])
async def test_one_that_goes_on_keeps_its_bytes_unless_a_sentence_would_be_paid_for_thrice(
    world: World, paid_twice_from: int, goes_on: bool
) -> None:
    task_id = await world.speech(
        state="'speaking'",
        beat_at=LONG_AGO,
        byte_length="5",
        goes_on="true",
        marked_bytes="3",
        marked_characters="30",
        paid_twice_from=str(paid_twice_from),
        attempt="7",
    )
    await world.rows.execute("INSERT INTO internal.spool VALUES ($1, 4, 0, 'he'), ($1, 7, 2, 'ard')", task_id)
    await world.sweeper.sweep()
    assert (await world.task(task_id))["status"] == ("processing" if goes_on else "failed")
    if not goes_on:
        assert await world.run_of(task_id) is None
        return
    run = await world.run_of(task_id)
    assert (run["state"], run["attempt"], run["byte_length"], run["kept_bytes"]) == ("queued", 8, 5, 5)
    assert (run["marked_bytes"], run["marked_characters"], run["paid_twice_from"]) == (3, 30, 30)
    assert (
        await world.rows.fetchval("SELECT string_agg(bytes, '' ORDER BY byte_offset) FROM internal.spool") == b"heard"
    )
    facts = await world.rows.fetchval("SELECT provider_metadata FROM public.generations")
    assert facts["attempts"] == [
        {
            "attempt": 7,
            "reason": "its process died",
            "bytes": 5,
            "goes_on_at_character": 30,
            "sentence_paid_again": True,
        }
    ]


@pytest.mark.parametrize(("attempt", "repeated"), [(1, True), (COLLECT_ATTEMPTS - 1, True), (COLLECT_ATTEMPTS, False)])
async def test_a_jobs_result_is_collected_again_unless_it_kills_whoever_collects_it(
    world: World, attempt: int, repeated: bool
) -> None:
    """However much of it was spooled: it is heard only when it is stored."""
    task_id = await world.speech(
        job_name=f"'{COLLECT_MODAL_JOB}'", state="'speaking'", beat_at=LONG_AGO, byte_length="5", attempt=str(attempt)
    )
    await world.rows.execute("INSERT INTO internal.spool VALUES ($1, $2, 0, 'heard')", task_id, attempt)
    await world.sweeper.sweep()
    assert (await world.task(task_id))["status"] == ("processing" if repeated else "failed")
    assert await world.jobs() == ([(COLLECT_MODAL_JOB, str(task_id), attempt + 1)] if repeated else [])
    assert await world.rows.fetchval("SELECT count(*) FROM internal.spool") == 0


async def test_who_says_that_it_lives_is_left_alone(world: World) -> None:
    task_id = await world.speech(state="'speaking'", beat_at="now() - interval '5 seconds'")
    await world.sweeper.sweep()
    assert (await world.run_of(task_id))["state"] == "speaking"


@pytest.mark.parametrize("byte_length", [0, 5])
async def test_an_owner_that_speaks_up_before_the_deed_keeps_its_run(
    world: World, database_url: str, byte_length: int
) -> None:
    """Between reading and acting a paused process may come back: a second session would be paid for."""
    task_id = await world.speech(state="'speaking'", beat_at=LONG_AGO, byte_length=str(byte_length))
    holder = await asyncpg.connect(database_url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM public.generations FOR UPDATE")
            sweeping = asyncio.create_task(world.sweeper.sweep())

            async def waits() -> bool:
                return bool(
                    await world.rows.fetchval(
                        """SELECT EXISTS (SELECT 1 FROM pg_stat_activity
                            WHERE datname = current_database() AND wait_event_type = 'Lock')"""
                    )
                )

            await wait_for(waits)
            await world.rows.execute("UPDATE internal.runs SET beat_at = now()")
        await sweeping
    finally:
        await holder.close()
    run = await world.run_of(task_id)
    assert (run["state"], run["attempt"], run["byte_length"]) == ("speaking", 1, byte_length)
    assert (await world.task(task_id))["status"] == "processing"
    assert await world.jobs() == []


async def test_a_row_that_somebody_holds_is_left_to_the_next_sweep(world: World, database_url: str) -> None:
    held = await world.speech(state="'speaking'", beat_at=LONG_AGO)
    free = await world.speech(state="'speaking'", beat_at=LONG_AGO)
    holder = await asyncpg.connect(database_url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM internal.runs WHERE task_id = $1 FOR UPDATE", held)
            async with asyncio.timeout(8.0):
                await world.sweeper.sweep()
            assert (await world.run_of(free))["state"] == "queued"
    finally:
        await holder.close()
    assert (await world.run_of(held))["attempt"] == 1
    await world.sweeper.sweep()
    assert (await world.run_of(held))["attempt"] == 2


async def test_after_an_outage_nobody_is_dead_before_the_living_could_say_so(world: World) -> None:
    """An outage makes everybody silent alike; the first one that comes back must not judge the others."""
    owner = await world.rows.fetchval(
        "INSERT INTO internal.processes VALUES (gen_random_uuid(), now() - interval '30 seconds') RETURNING owner"
    )
    task_id = await world.speech(state="'speaking'", owner=f"'{owner}'::uuid")
    await processes.beat(world.rows, uuid4(), quiet_after_seconds=5.0, quiet_seconds=10.0)
    await world.sweeper.sweep()
    assert (await world.run_of(task_id))["attempt"] == 1
    await world.rows.execute("UPDATE internal.processes SET quiet_until = now()")
    await world.sweeper.sweep()
    assert (await world.run_of(task_id))["attempt"] == 2


async def test_a_run_of_our_own_that_nobody_here_works_on_is_taken_up_at_once(world: World) -> None:
    """The answer to a claim was lost; no other process may judge a run whose owner lives."""
    stray, held = [await world.speech(state="'speaking'", owner=f"'{world.leases.owner}'::uuid") for _ in range(2)]
    await processes.beat(world.rows, world.leases.owner, quiet_after_seconds=5.0, quiet_seconds=10.0)
    with world.leases.hold(held, 1):
        await world.sweeper.sweep()
    assert (await world.run_of(stray))["attempt"] == 2
    assert (await world.run_of(held))["attempt"] == 1


async def test_what_is_taken_while_the_sweep_looks_is_no_stray(world: World, database_url: str) -> None:
    """The question names what is held as it leaves; the answer may come after a claim."""
    task_id = await world.speech(state="'speaking'", owner=f"'{world.leases.owner}'::uuid")
    holder = await asyncpg.connect(database_url)
    try:
        await holder.execute("BEGIN; LOCK TABLE internal.runs")
        looking = asyncio.create_task(world.sweeper._strays())

        async def waits() -> bool:
            return bool(await world.rows.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await wait_for(waits)
        with world.leases.hold(task_id, 1):
            await holder.execute("COMMIT")
            assert await looking == []
    finally:
        await holder.close()


# --- runs that wait ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_name", [SYNTHESIZE_JOB, PREVIEW_JOB])
async def test_what_nobody_was_free_for_fails_with_words(world: World, job_name: str) -> None:
    late = await world.speech(job_name=f"'{job_name}'", created_at="now() - interval '301 seconds'")
    young = await world.speech(job_name=f"'{job_name}'", created_at="now() - interval '200 seconds'")
    await world.sweeper.sweep()
    task = await world.task(late)
    assert (task["status"], task["error"]) == ("failed", NOBODY_FREE.detail)
    assert (await world.task(young))["status"] == "processing"


async def test_a_job_that_is_not_in_the_queue_any_more_is_deferred_again_once(world: World) -> None:
    queued = await world.speech(beat_at=LONG_AGO)
    spoken = await world.speech(state="'spoken'", byte_length="5", spoken_at="now()", beat_at=LONG_AGO)
    watched = await world.speech(job_name="'watch_modal'", beat_at=LONG_AGO)
    await world.speech(beat_at="now() - interval '5 seconds'")
    await world.sweeper.sweep()
    expected = {
        (SYNTHESIZE_JOB, str(queued), 1),
        ("finalize", str(spoken), None),
        ("watch_modal", str(watched), 1),
    }
    assert set(await world.jobs()) == expected
    await world.rows.execute("UPDATE internal.runs SET beat_at = now() - interval '1 hour'")
    await world.sweeper.sweep()
    assert len([job for job in await world.jobs() if job in expected]) == 3, "they are there already"


async def test_an_object_whose_removal_was_forgotten_is_removed(world: World) -> None:
    await world.rows.execute(
        """INSERT INTO internal.removals (bucket, object_key, reason, next_at)
           VALUES ('generations', 'a/old.mp3', 'x', now() - interval '1 second'),
                  ('generations', 'a/new.mp3', 'x', now() + interval '1 minute')"""
    )
    for _ in range(2):
        await world.sweeper.sweep()
    keys = await world.rows.fetch("SELECT args ->> 'object_key' AS key FROM internal.procrastinate_jobs")
    assert [row["key"] for row in keys] == ["a/old.mp3"]


# --- what has served its time -----------------------------------------------------------------------------------------


async def test_a_hidden_task_goes_after_a_day_but_not_before_it_has_ended(world: World) -> None:
    active, ended, lately = [await world.speech() for _ in range(3)]
    await world.rows.execute("UPDATE public.tasks SET deleted_at = now() - interval '25 hours'")
    await world.rows.execute("UPDATE public.tasks SET status = 'failed' WHERE id <> $1", active)
    await world.rows.execute("UPDATE public.tasks SET deleted_at = now() - interval '23 hours' WHERE id = $1", lately)
    await world.sweeper.clean()
    left = {row["id"] for row in await world.rows.fetch("SELECT id FROM public.tasks")}
    assert left == {active, lately}
    await world.rows.execute("UPDATE public.tasks SET status = 'cancelled' WHERE id = $1", active)
    await world.sweeper.clean()
    assert await world.task(active) is None
    assert await world.task(ended) is None


async def test_audio_that_could_not_be_stored_is_kept_for_seven_days_after_it_was_given_up(world: World) -> None:
    """It was given up a day after it was spoken."""
    kept = await world.speech(state="'unstored'", byte_length="8", spoken_at="now() - interval '7 days 23 hours'")
    gone = await world.speech(state="'unstored'", byte_length="8", spoken_at="now() - interval '8 days 1 hour'")
    for task_id in (kept, gone):
        await world.rows.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, 'paid for')", task_id)
    await world.sweeper.clean()
    assert await world.run_of(gone) is None
    assert (await world.run_of(kept))["state"] == "unstored"
    assert [row["task_id"] for row in await world.rows.fetch("SELECT task_id FROM internal.spool")] == [kept]


async def test_keys_of_requests_are_free_after_a_day(world: World) -> None:
    for hours in (23, 25):
        await world.rows.execute(
            """INSERT INTO internal.idempotency (user_id, key, request_hash, task_id, created_at)
               VALUES (gen_random_uuid(), $1, '', gen_random_uuid(), now() - make_interval(hours => $2))""",
            str(hours),
            hours,
        )
    await world.sweeper.clean()
    assert [row["key"] for row in await world.rows.fetch("SELECT key FROM internal.idempotency")] == ["23"]
