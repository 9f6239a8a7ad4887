"""Which runs each statement means: of several that differ in one thing each, the right ones and no others.

What an attempt may change of a whole speech is in ``test_speech.py``.
"""

from typing import Any, NamedTuple, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.connections import Database, Listener
from server.database.queue import SYNTHESIS, Queue
from server.records import runs
from server.records.runs import PREVIEW_JOB, RENEW_JOB, SYNTHESIZE_JOB, WATCH_MODAL_JOB, Fenced

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
OWNER, STRANGER, DEAD = uuid4(), uuid4(), uuid4()
LATE, LONG_AGO = "now() - interval '1 second'", "now() - interval '1 hour'"


class World(NamedTuple):
    """Rows without any run, and a queue that nobody works on."""

    rows: Rows
    queue: Queue

    async def run(self, **values: Any) -> UUID:
        """A run that waits to be spoken, but for ``values``; text in them is SQL."""
        task_id = uuid4()
        known = {"job_name": f"'{SYNTHESIZE_JOB}'", "object_key": "'a/b.mp3'", **values}
        if known.get("state") in ("'spoken'", "'unstored'"):
            known.setdefault("byte_length", 5)
        written = [value if isinstance(value, str) else f"'{value}'" for value in known.values()]
        await self.rows.execute(
            f"INSERT INTO internal.runs (task_id, {', '.join(known)}) VALUES ('{task_id}', {', '.join(written)})"
        )
        return task_id

    async def jobs(self) -> list[tuple[str, str]]:
        """Names and tasks of the jobs in the queue; they are taken out."""
        found = await self.rows.fetch("DELETE FROM internal.procrastinate_jobs RETURNING task_name, args ->> 'task_id'")
        return sorted((row[0], row[1]) for row in found)

    async def row(self, task_id: UUID) -> dict[str, Any]:
        return dict(await self.rows.fetchrow("SELECT * FROM internal.runs WHERE task_id = $1", task_id) or {})


@pytest.fixture
async def world(database_url: str, rows: Rows) -> World:
    async with Database.open(database_url, size=1) as database:
        return World(rows, Queue(database, Listener(database_url)))


async def test_what_piles_up_is_counted_by_what_waits_and_whose_it_is(world: World) -> None:
    user_id = uuid4()
    await world.run(user_id=user_id)
    await world.run(user_id=uuid4())
    await world.run(user_id=user_id, state="'speaking'", owner=OWNER)
    await world.run(user_id=user_id, job_name=f"'{PREVIEW_JOB}'")
    waiting = await runs.waiting(world.rows, SYNTHESIZE_JOB, 100, user_id)
    assert (waiting.all, waiting.of_user) == (2, 1)
    for state in ("'spoken'", "'unstored'"):
        await world.run(state=state, byte_length=100)
    await world.run(state="'speaking'", byte_length=7)
    assert await runs.unstored_bytes(world.rows) == 200


async def test_only_what_can_begin_now_comes_next(world: World) -> None:
    await world.run(created_at=LONG_AGO, state="'speaking'", owner=OWNER)
    await world.run(created_at=LONG_AGO, job_name=f"'{PREVIEW_JOB}'")
    await world.run(created_at=LONG_AGO, start_by=LATE)
    await world.run(created_at=LONG_AGO, model="'barred'")
    wanted = await world.run(model="'free'")
    following = await runs.next_in_turn(world.rows, SYNTHESIZE_JOB, ["barred"])
    assert following
    assert following.task_id == wanted


async def test_a_run_is_claimed_by_one_process_in_its_time(world: World) -> None:
    async def claimed(attempt: int = 1, **values: Any) -> bool:
        return await runs.claim(world.rows, await world.run(**values), attempt, OWNER) is not None

    assert await claimed()
    assert await claimed(start_by="now() + interval '1 minute'")
    assert not await claimed(start_by=LATE)
    assert not await claimed(attempt=2)
    # The answer to its own claim may have been lost; then it says it again.
    assert await claimed(state="'speaking'", owner=OWNER)
    assert await claimed(state="'speaking'", owner=OWNER, goes_on="true", byte_length=5, kept_bytes=5)
    assert not await claimed(state="'speaking'", owner=OWNER, byte_length=5)
    assert not await claimed(state="'speaking'", owner=STRANGER)
    assert not await claimed(state="'spoken'", owner=OWNER)


async def test_a_run_is_held_by_its_owner_at_its_attempt(world: World) -> None:
    mine = await world.run(state="'speaking'", owner=OWNER)
    later = await world.run(state="'speaking'", owner=OWNER, attempt=2)
    foreign = await world.run(state="'speaking'", owner=STRANGER)
    for task_id in (mine, later, foreign, uuid4()):
        assert await runs.holds(world.rows, task_id, 1, OWNER) == (task_id == mine)
    assert await runs.still_held(world.rows, {mine: 1, later: 1, foreign: 1, uuid4(): 1}, OWNER) == {mine}


async def test_a_run_is_marked_as_spoken_by_whoever_spoke_it_and_whole(world: World) -> None:
    async def marked(**values: Any) -> bool:
        task_id = await world.run(**{"state": "'speaking'", "owner": OWNER, "byte_length": 5, **values})
        try:
            await runs.mark_spoken(
                world.rows, world.queue, task_id, 1, OWNER, byte_length=5, sample_rate_hz=8000, store_in_seconds=0.0
            )
        except Fenced:
            assert await world.jobs() == []
            return False
        assert await world.jobs() == [("finalize", str(task_id))]
        assert await runs.is_spoken(world.rows, task_id, 1, OWNER)
        return True

    assert await marked()
    assert not await marked(attempt=2)
    assert not await marked(owner=STRANGER)
    assert not await marked(state="'spoken'")
    assert not await marked(byte_length=4)
    spoken = await world.run(state="'spoken'", owner=OWNER)
    assert await runs.is_spoken(world.rows, spoken, 1, OWNER)
    assert not await runs.is_spoken(world.rows, spoken, 2, OWNER)
    assert not await runs.is_spoken(world.rows, spoken, 1, STRANGER)
    speaking = await world.run(state="'speaking'", owner=OWNER)
    assert not await runs.is_spoken(world.rows, speaking, 1, OWNER)


async def test_what_an_attempt_notes_is_of_this_attempt(world: World) -> None:
    task_id = await world.run(state="'speaking'", owner=OWNER, attempt=2)
    for attempt, noted in ((1, (24_000, -1)), (2, (8000, 30))):
        await runs.note_sample_rate(world.rows, task_id, attempt, 8000)
        await runs.note_begun_again(world.rows, task_id, attempt, 30)
        row = await world.row(task_id)
        assert (row["sample_rate_hz"], row["paid_twice_from"]) == noted


async def test_only_what_is_spoken_is_given_up_for_now(world: World) -> None:
    for state in ("'queued'", "'speaking'", "'spoken'", "'unstored'"):
        task_id = await world.run(state=state)
        await runs.keep_unstored(world.rows, task_id)
        assert (await world.row(task_id))["state"] == ("unstored" if state == "'spoken'" else state.strip("'"))


async def test_only_a_run_that_waits_at_this_attempt_is_woken(world: World) -> None:
    waits = await world.run()
    for task_id in (waits, await world.run(attempt=2), await world.run(state="'speaking'", owner=OWNER)):
        await runs.wake(world.rows, world.queue, task_id, 1)
    assert await world.jobs() == [(SYNTHESIZE_JOB, str(waits))]


WATCHED = {"job_name": f"'{WATCH_MODAL_JOB}'"}


async def test_only_what_is_watched_is_watched_again_and_collected(world: World) -> None:
    """A poll that comes late finds a run that is collected, or another attempt, and leaves it alone."""
    watched = await world.run(**WATCHED)
    later = await world.run(**WATCHED, attempt=2)
    held = await world.run(**WATCHED, state="'speaking'", owner=OWNER)
    for task_id in (watched, later, held, await world.run(), uuid4()):
        assert (await runs.watch(world.rows, task_id, 1) is not None) == (task_id == watched)
        await runs.watch_again(world.rows, world.queue, task_id, 1, in_seconds=0.0)
    assert await world.jobs() == [(WATCH_MODAL_JOB, str(watched))]
    assert await runs.collect(world.rows, world.queue, watched)
    assert not await runs.collect(world.rows, world.queue, watched), "once, whoever asks"
    assert not await runs.collect(world.rows, world.queue, held)
    assert await world.jobs() == [("collect_modal", str(watched))]
    assert await runs.is_being_collected(world.rows, watched)
    assert not await runs.is_being_collected(world.rows, later)


async def test_one_poll_waits_for_a_watched_run_and_another_job_is_none(world: World) -> None:
    watched = await world.run(**WATCHED)
    other = await world.run(**WATCHED)
    await world.queue.defer(world.rows, WATCH_MODAL_JOB, task_id=other, attempt=1)
    await world.queue.defer(world.rows, "finalize", task_id=watched, object_key="a/b.mp3")
    await world.rows.execute("UPDATE internal.procrastinate_jobs SET status = 'doing' WHERE task_name = 'finalize'")
    await world.queue.defer(world.rows, "remove", task_id=watched)
    for _ in range(2):
        await runs.watch_again(world.rows, world.queue, watched, 1, in_seconds=0.0)
    assert (WATCH_MODAL_JOB, str(watched)) in (jobs := await world.jobs())
    assert len(jobs) == 4
    # The poll that is under way is no poll to come.
    await world.queue.defer(world.rows, WATCH_MODAL_JOB, task_id=watched, attempt=1)
    await world.rows.execute("UPDATE internal.procrastinate_jobs SET status = 'doing'")
    await runs.watch_again(world.rows, world.queue, watched, 1, in_seconds=0.0)
    assert len(await world.jobs()) == 2


async def test_the_sweep_finds_what_the_dead_were_speaking_and_nothing_else(world: World) -> None:
    await world.rows.execute(
        "INSERT INTO internal.processes VALUES ($1, now()), ($2, now()), ($3, now() - interval '1 hour')",
        OWNER,
        STRANGER,
        DEAD,
    )
    speaking = [await world.run(state="'speaking'", owner=owner) for owner in (OWNER, STRANGER, DEAD)]
    for owner in (OWNER, DEAD):
        await world.run(state="'spoken'", owner=owner, beat_at=LONG_AGO)
        await world.run(owner=owner, beat_at=LONG_AGO)
    assert [run.task_id for run in await runs.lost(world.rows, 15.0, OWNER)] == [speaking[2]]
    unregistered = await world.run(state="'speaking'", owner=uuid4(), beat_at=LONG_AGO)
    await world.run(state="'spoken'", owner=uuid4(), beat_at=LONG_AGO)
    await world.run(state="'speaking'", owner=uuid4())
    assert [run.task_id for run in await runs.lost_unregistered(world.rows, 15.0)] == [unregistered]
    assert [run.task_id for run in await runs.strays(world.rows, OWNER, [])] == [speaking[0]]
    assert await runs.strays(world.rows, OWNER, [speaking[0]]) == []


async def test_the_dead_leave_what_may_be_begun_once_more(world: World) -> None:
    """Nothing of it was heard and it was begun once, or its sentences are known and none would be paid for thrice."""
    await world.rows.execute("INSERT INTO internal.processes VALUES ($1, '-infinity'), ($2, now())", DEAD, OWNER)
    collected: dict[str, Any] = {"job_name": "'collect_modal'"}
    goes_on: dict[str, Any] = {"goes_on": "true", "byte_length": 5}
    known: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"attempt": 2}, False),
        ({"byte_length": 5}, False),
        ({**goes_on, "marked_characters": 20}, True),
        ({**goes_on, "marked_characters": 20, "attempt": 7}, True),
        ({**goes_on, "marked_characters": 20, "paid_twice_from": 20}, False),
        ({**goes_on, "byte_length": 0, "attempt": 2, "marked_characters": 0}, False),
        ({**collected, "attempt": 4, "byte_length": 5}, True),
        ({**collected, "attempt": 5}, False),
    ]
    told = {await world.run(**{"state": "'speaking'", "owner": DEAD, **values}): may for values, may in known}
    found = {run.task_id: run.repeatable for run in await runs.lost(world.rows, 15.0, OWNER)}
    assert [found[task_id] for task_id in told] == list(told.values())


async def test_overdue_is_what_nobody_has_begun_and_nobody_else(world: World) -> None:
    """What a job API makes has deadlines of its own."""
    late = [await world.run(start_by=LATE)]
    late += [await world.run(job_name=f"'{name}'", created_at=LONG_AGO) for name in (PREVIEW_JOB, RENEW_JOB)]
    await world.run(start_by="now() + interval '1 minute'", created_at=LONG_AGO)
    await world.run()
    await world.run(state="'speaking'", owner=OWNER, start_by=LATE)
    await world.run(**WATCHED, created_at=LONG_AGO)
    assert {task_id for task_id, _ in await runs.overdue(world.rows, 300.0)} == set(late)


async def test_a_job_is_missed_where_a_run_waits_for_one_that_is_not_to_come(world: World) -> None:
    idle = [await world.run(beat_at=LONG_AGO), await world.run(state="'spoken'", beat_at=LONG_AGO)]
    await world.run()
    for state in ("'speaking'", "'unstored'"):
        await world.run(state=state, owner=OWNER, beat_at=LONG_AGO)
    # A job under way is none that is to come; one without a task says nothing about any.
    await world.queue.defer(world.rows, SYNTHESIZE_JOB, queue=SYNTHESIS, task_id=idle[0], attempt=1)
    await world.rows.execute("UPDATE internal.procrastinate_jobs SET status = 'doing'")
    await world.queue.defer(world.rows, "remove", object_key="a/b.mp3")
    expected = await world.run(beat_at=LONG_AGO)
    await world.queue.defer(world.rows, SYNTHESIZE_JOB, queue=SYNTHESIS, task_id=expected, attempt=1)
    assert set(await runs.restart_idle(world.rows, world.queue, 30.0)) == set(idle)
    assert ("finalize", str(idle[1])) in await world.jobs()


async def test_what_nobody_stored_goes_after_its_time_and_takes_its_audio_along(world: World) -> None:
    gone = await world.run(state="'unstored'", spoken_at=LONG_AGO)
    kept = [
        await world.run(state="'unstored'", spoken_at="now()"),
        await world.run(state="'spoken'", spoken_at=LONG_AGO),
    ]
    for task_id in (gone, *kept):
        await world.rows.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, 'audio')", task_id)
    await runs.forget_unstored(world.rows, 60.0)
    for table in ("runs", "spool"):
        left = await world.rows.fetch(f"SELECT task_id FROM internal.{table}")
        assert {row["task_id"] for row in left} == set(kept), table


async def test_turns_fade_in_a_minute_and_go_after_an_hour(world: World) -> None:
    lately, long_ago = uuid4(), uuid4()
    await world.rows.execute(
        "INSERT INTO internal.turns (user_id, starts, counted_at) VALUES ($1, 3, now()), ($2, 3, $3)",
        lately,
        long_ago,
        await world.rows.fetchval("SELECT now() - interval '61 minutes'"),
    )
    await runs.forget_turns(world.rows)
    assert [row["user_id"] for row in await world.rows.fetch("SELECT user_id FROM internal.turns")] == [lately]


async def test_a_task_that_has_ended_gets_no_watcher(world: World) -> None:
    found = {}
    for status in ("pending", "processing", "completed", "failed", "cancelled"):
        task_id = uuid4()
        await world.rows.execute(
            """INSERT INTO public.tasks (id, user_id, type, status, provider)
               VALUES ($1, gen_random_uuid(), 'generate', $2, 'modal')""",
            task_id,
            status,
        )
        found[status] = await runs.add_watched(world.rows, task_id)
        assert not await runs.add_watched(world.rows, task_id), "it has one"
    assert {status for status, added in found.items() if added} == {"pending", "processing"}


async def test_what_is_given_back_keeps_the_audio_that_the_next_one_goes_on_from(world: World) -> None:
    silent = await world.run(state="'speaking'", owner=OWNER)
    goes_on = await world.run(
        state="'speaking'", owner=OWNER, goes_on="true", byte_length=5, marked_characters=3, attempt=2
    )
    for task_id in (silent, goes_on):
        await world.rows.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, 'audio'), ($1, 1, 5, 'more')", task_id)
    assert await runs.requeue(world.rows, world.queue, silent, 2) is None
    assert await runs.requeue(world.rows, world.queue, silent, 1)
    assert await runs.requeue(world.rows, world.queue, goes_on, 2)
    assert await runs.requeue(world.rows, world.queue, goes_on, 3) is None, "nobody has taken it yet"
    left = await world.rows.fetch("SELECT task_id, byte_offset FROM internal.spool")
    assert [tuple(row) for row in left] == [(goes_on, 0)]
    kept = await world.row(goes_on)
    assert (kept["state"], kept["attempt"], kept["kept_bytes"], kept["paid_twice_from"]) == ("queued", 3, 5, 3)


@pytest.mark.parametrize(
    ("task", "generation", "active"),
    [
        ("processing", "processing", True),
        ("pending", "pending", True),
        ("processing", "cancelled", False),
        ("cancelled", "processing", False),
        ("processing", None, False),
    ],
)
async def test_a_watcher_learns_that_its_speech_has_ended(
    world: World, task: str, generation: str | None, active: bool
) -> None:
    """Somebody may have ended it past us, or deleted its rows."""
    task_id, generation_id = await world.run(**WATCHED), None
    if generation:
        generation_id = await world.rows.fetchval(
            """INSERT INTO public.generations (id, user_id, text, status)
               VALUES (gen_random_uuid(), gen_random_uuid(), 'Hello.', $1) RETURNING id""",
            generation,
        )
    await world.rows.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, generation_id)
           VALUES ($1, gen_random_uuid(), 'generate', $2, $3)""",
        task_id,
        task,
        generation_id,
    )
    watched = await runs.watch(world.rows, task_id, 1)
    assert watched
    assert watched.active is active


async def test_no_sentence_is_paid_for_thrice(world: World) -> None:
    begun_twice: dict[str, Any] = {
        "state": "'speaking'",
        "owner": OWNER,
        "goes_on": "true",
        "byte_length": 5,
        "paid_twice_from": 3,
    }

    async def given_back(marked_characters: int, *, begun: bool) -> bool:
        task_id = await world.run(**begun_twice, marked_characters=marked_characters)
        return await runs.requeue(world.rows, world.queue, task_id, 1, begun=begun) is not None

    assert not await given_back(3, begun=True)
    assert await given_back(3, begun=False), "its text was not sent this time"
    assert await given_back(4, begun=True), "it is another sentence"


async def test_what_is_stored_is_the_run_s_own_generation(world: World) -> None:
    for format_name in ("mp3", "wav"):
        generation_id = await world.rows.fetchval(
            """INSERT INTO public.generations (id, user_id, text, status, output_format)
               VALUES (gen_random_uuid(), gen_random_uuid(), 'Hello.', 'processing', $1) RETURNING id""",
            format_name,
        )
        task_id = await world.run(state="'spoken'", spoken_at="now()", generation_id=generation_id)
        storable = await runs.take_spoken(world.rows, task_id, OWNER)
        assert storable
        assert (storable.generation_id, storable.format_name) == (generation_id, format_name)
