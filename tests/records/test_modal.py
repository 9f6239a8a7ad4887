"""The rows of tasks that a job API works on: each move finds the tasks that it is about, and no others."""

from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.records import modal

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
ENDED = ("completed", "failed", "cancelled")


class World(NamedTuple):
    """Rows without any task, and a queue that nobody works on."""

    rows: Rows
    queue: Queue

    async def task(self, **values: Any) -> UUID:
        """A task that the older system has submitted an hour ago, but for ``values``."""
        known = {"type": "generate", "status": "processing", "provider": "modal", "modal_job_id": "job-1", **values}
        task_id: UUID = await self.rows.fetchval(
            f"""INSERT INTO public.tasks (id, user_id, created_at, updated_at, {", ".join(known)})
                VALUES (gen_random_uuid(), gen_random_uuid(), now() - interval '1 hour', now() - interval '1 hour',
                        {", ".join(f"${place}" for place in range(1, len(known) + 1))}) RETURNING id""",
            *known.values(),
        )
        return task_id

    async def row(self, task_id: UUID) -> dict[str, Any]:
        return dict(await self.rows.fetchrow("SELECT * FROM public.tasks WHERE id = $1", task_id) or {})

    async def watched(self, task_id: UUID) -> None:
        await self.rows.execute(
            "INSERT INTO internal.runs (task_id, job_name, object_key) VALUES ($1, 'watch_modal', 'a/b.wav')", task_id
        )


@pytest.fixture
async def world(database_url: str, rows: Rows) -> World:
    async with Database.open(database_url, size=1) as database:
        return World(rows, Queue(database, Listener(database_url)))


async def test_a_job_that_nobody_waits_for_any_more_is_cancelled_where_it_runs(world: World) -> None:
    waits = await world.task(modal_job_id=None)
    assert await modal.note_submitted(world.rows, world.queue, waits, "job-2")
    assert (await world.row(waits))["modal_job_id"] == "job-2"
    others = [await world.task(status=status, modal_job_id=None) for status in ENDED]
    others.append(await world.task())
    for task_id in others:
        before = await world.row(task_id)
        assert not await modal.note_submitted(world.rows, world.queue, task_id, "job-3")
        assert await world.row(task_id) == before
    jobs = await world.rows.fetch("SELECT task_name, args ->> 'job' AS job FROM internal.procrastinate_jobs")
    assert [tuple(row) for row in jobs] == [("cancel_modal", "job-3")] * len(others)


async def test_only_polls_of_what_runs_count(world: World) -> None:
    assert await modal.count_poll(world.rows, await world.task())
    for status in ENDED:
        task_id = await world.task(status=status)
        assert await modal.count_poll(world.rows, task_id) is None
        assert (await world.row(task_id))["modal_poll_count"] == 0


async def test_a_failure_is_believed_from_a_second_poll_that_is_late_enough(world: World) -> None:
    task_id = await world.task()
    now = await world.rows.fetchval("SELECT clock_timestamp()")
    later = await world.rows.fetchval("SELECT clock_timestamp() + interval '2 seconds'")
    assert not await modal.confirm_failure(world.rows, task_id, now)
    assert not await modal.confirm_failure(world.rows, task_id, now), "both may have been asked at once"
    assert await modal.confirm_failure(world.rows, task_id, later)
    # A poll that was asked before the failure was noted knows nothing about it.
    await modal.forget_failure(world.rows, task_id, now)
    assert "modal_failed_at" in (await world.row(task_id))["metadata"]
    assert await modal.confirm_failure(world.rows, task_id, later)
    await modal.forget_failure(world.rows, task_id, later)
    assert not await modal.confirm_failure(world.rows, task_id, now)
    for status in ENDED:
        ended = await world.task(status=status)
        await modal.confirm_failure(world.rows, ended, now)
        assert not await modal.confirm_failure(world.rows, ended, later)


async def test_tasks_of_the_older_system_are_watched_or_given_up(world: World) -> None:
    """A speech that was submitted, or should have been by now, is watched; whatever else is old is given up."""
    submitted = await world.task()
    by_a_newer_release = await world.task(modal_job_id=None, provider_job_id="job-2")
    never_submitted = await world.task(modal_job_id=None)
    about_to_be = await world.task(modal_job_id=None)
    await world.rows.execute("UPDATE public.tasks SET created_at = now() WHERE id = $1", about_to_be)
    given_up = {await world.task(type="clone"), await world.task(type="design_preview")}
    given_up.add(await world.task(provider="qwen"))
    for values in ({}, {"type": "clone"}):
        await world.watched(await world.task(**values))
    for status in ENDED:
        await world.task(status=status)
        await world.task(status=status, type="clone")
    unwatched = await modal.unwatched(world.rows, older_than_seconds=60.0)
    assert set(unwatched) == {submitted, by_a_newer_release, never_submitted}
    assert set(await modal.abandoned(world.rows, older_than_seconds=60.0)) == given_up
    assert await modal.abandoned(world.rows, older_than_seconds=7200.0) == []


@pytest.mark.parametrize(("known", "becomes"), [(None, "wav"), ("mp3", "mp3")])
async def test_the_older_system_wrote_wav_and_said_nothing_of_it(world: World, known: str | None, becomes: str) -> None:
    generation_id = await world.rows.fetchval(
        """INSERT INTO public.generations (id, user_id, text, status, output_format)
           VALUES (gen_random_uuid(), gen_random_uuid(), 'Hello.', 'processing', $1) RETURNING id""",
        known,
    )
    assert await modal.adopt(world.rows, await world.task(generation_id=generation_id))
    assert await world.rows.fetchval("SELECT output_format FROM public.generations") == becomes
