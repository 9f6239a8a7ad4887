"""The guards of a speech's rows: who may move them from which state, and that everybody else changes nothing."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

import asyncpg
import pytest

from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.records import runs, speech, tasks
from server.records.runs import Fenced, Storable
from server.records.speech import Assignment, Ending, NewSpeech, SpeechGone
from tests.gateway import insert_voice

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
OWNER = uuid4()
FAILED = Ending(detail="No.", category="internal")


class World:
    """One speech, attempt 1 of which is what every actor below believes to be at work on."""

    def __init__(self, connection: Rows, queue: Queue, wanted: NewSpeech) -> None:
        self.connection = connection
        self.queue = queue
        self.task_id = wanted.task_id
        self.assignment = Assignment(
            task_id=wanted.task_id,
            attempt=1,
            generation_id=wanted.generation_id,
            user_id=wanted.user_id,
            voice_id=wanted.voice_id,
            text=wanted.text,
            language=wanted.language,
            format_name=wanted.format_name,
            object_key=wanted.object_key,
            provider=wanted.provider,
            provider_voice_id=None,
            provider_target_model=None,
            job=None,
            waited_seconds=0.0,
        )
        self.storable = Storable(
            task_id=wanted.task_id,
            generation_id=wanted.generation_id,
            attempt=1,
            byte_length=5,
            sample_rate_hz=24_000,
            format_name="mp3",
            provider="qwen",
            spoken_for_seconds=0.0,
        )

    async def snapshot(self) -> list[Any]:
        """All that an actor could change."""
        return [
            await self.connection.fetch(f"SELECT to_jsonb(x) - 'updated_at' AS row FROM {table} x ORDER BY 1")
            for table in ("public.generations", "public.tasks", "internal.runs", "internal.spool", "internal.removals")
        ]


@pytest.fixture
async def world(database_url: str, rows: Rows) -> World:
    user_id = uuid4()
    generation_id = uuid4()
    wanted = NewSpeech(
        lane="realtime",
        task_id=uuid4(),
        generation_id=generation_id,
        user_id=user_id,
        voice_id=await insert_voice(database_url, user_id),
        text="Hello.",
        text_length=6,
        language="Auto",
        provider="qwen",
        model=None,
        format_name="mp3",
        object_key=f"{user_id}/{generation_id}.mp3",
    )
    async with Database.open(database_url, size=1) as database:
        queue = Queue(database, Listener(database_url))
        async with rows.transaction():
            await speech.create(rows, queue, wanted)
    return World(rows, queue, wanted)


class Run(NamedTuple):
    """A run as an actor may find it."""

    state: str
    attempt: int
    byte_length: int


QUEUED, AGAIN_QUEUED = Run("queued", 1, 0), Run("queued", 2, 0)
SILENT, HEARD = Run("speaking", 1, 0), Run("speaking", 1, 5)
SILENT_SUCCESSOR, SUCCESSOR = Run("speaking", 2, 0), Run("speaking", 2, 5)
SPOKEN, SPOKEN_BY_SUCCESSOR, UNSTORED = Run("spoken", 1, 5), Run("spoken", 2, 5), Run("unstored", 1, 5)
RUNS = [QUEUED, AGAIN_QUEUED, SILENT, HEARD, SILENT_SUCCESSOR, SUCCESSOR, SPOKEN, SPOKEN_BY_SUCCESSOR, UNSTORED]

Actor: TypeAlias = Callable[[World], Awaitable[object]]


async def claim(world: World) -> object:
    return await speech.claim(world.connection, world.task_id, 1, OWNER)


async def show_progress(world: World) -> object:
    return await speech.progress(world.connection, world.task_id, 1, "streaming")


async def show_progress_of_many(world: World) -> object:
    return await speech.show_progress(world.connection, [speech.Progress(world.task_id, 1, "streaming")])


async def note_audio(world: World) -> None:
    await speech.note_audio(
        world.connection,
        world.assignment,
        sample_rate_hz=8000,
        bits_per_second=1,
        facts={"session_id": "mine"},
    )


async def mark_spoken(world: World) -> object:
    return await speech.mark_spoken(
        world.connection,
        world.queue,
        world.assignment,
        OWNER,
        provider_status="finalizing",
        byte_length=5,
        sample_rate_hz=24_000,
        store_in_seconds=10.0,
        facts={"session_id": "mine"},
    )


async def requeue(world: World) -> object:
    return await speech.requeue(world.connection, world.queue, world.task_id, 1, reason="on purpose")


async def fail(world: World) -> object:
    return await speech.end(world.connection, world.task_id, FAILED, attempt=1)


async def fail_while_waiting(world: World) -> object:
    return await speech.end(world.connection, world.task_id, FAILED, attempt=1, state="queued")


async def take_for_dead(world: World) -> object:
    return await speech.end(world.connection, world.task_id, FAILED, attempt=1, silent_for_seconds=60.0)


async def begin_to_store(world: World) -> object:
    return await runs.take_spoken(world.connection, world.task_id, OWNER)


async def publish(world: World, *, late: bool = False) -> object:
    return await speech.publish(
        world.connection,
        world.queue,
        world.storable,
        object_key=world.assignment.object_key,
        duration_seconds=1.0,
        bits_per_second=1,
        late=late,
    )


async def cancel(world: World) -> object:
    return await speech.cancel(world.connection, world.queue, "generations", world.task_id)


#: Which run each actor may change; it leaves all others as they are.
MAY: dict[Actor, set[Run]] = {
    claim: {QUEUED, SILENT},  # its own: the answer to a claim may have been lost
    show_progress: {QUEUED, SILENT, HEARD, SPOKEN, UNSTORED},
    show_progress_of_many: {SILENT, HEARD},
    note_audio: {QUEUED, SILENT, HEARD, SPOKEN, UNSTORED},
    mark_spoken: {HEARD},
    requeue: {SILENT},
    fail: {SILENT, HEARD},
    fail_while_waiting: {QUEUED},
    take_for_dead: set(),
    begin_to_store: {SPOKEN, SPOKEN_BY_SUCCESSOR},
    cancel: set(RUNS),
}


async def act(world: World, actor: Actor) -> bool:
    """Let an actor act in a transaction of its own; whether anything is different afterwards."""
    before = await world.snapshot()
    try:
        async with world.connection.transaction():
            await actor(world)
    except (Fenced, SpeechGone):
        assert await world.snapshot() == before, "who is refused leaves nothing behind"
    return await world.snapshot() != before


async def find(world: World, run: Run) -> None:
    await world.connection.execute(
        """UPDATE internal.runs SET state = $2, attempt = $3, byte_length = $4, spoken_at = now(),
                  owner = CASE WHEN $2 <> 'queued' THEN $5::uuid END WHERE task_id = $1""",
        world.task_id,
        *run,
        OWNER,
    )


@pytest.mark.parametrize("actor", MAY, ids=lambda actor: actor.__name__)
async def test_an_attempt_changes_only_what_is_its_own(world: World, actor: Actor) -> None:
    for run in RUNS:
        undo = world.connection.transaction()
        await undo.start()
        await find(world, run)
        assert await act(world, actor) == (run in MAY[actor]), run
        await undo.rollback()


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_what_has_ended_is_never_ended_otherwise(world: World, status: str) -> None:
    """Whatever is left of the run, neither the generation nor its task changes any more."""
    for run in RUNS:
        for actor in [*MAY, publish]:
            undo = world.connection.transaction()
            await undo.start()
            await find(world, run)
            await world.connection.execute(
                """UPDATE public.generations SET status = $1,
                          audio_object_key = CASE WHEN $1 = 'completed' THEN 'a/b.mp3' END""",
                status,
            )
            await world.connection.execute("UPDATE public.tasks SET status = $1, provider_status = $1", status)
            before = (await world.snapshot())[:2]
            try:
                async with world.connection.transaction():
                    await actor(world)
            except (Fenced, SpeechGone):
                pass
            assert (await world.snapshot())[:2] == before, (actor.__name__, run)
            await undo.rollback()


async def test_nobody_is_taken_for_dead_who_has_just_spoken_up(world: World) -> None:
    await find(world, HEARD)
    assert not await act(world, take_for_dead)
    await world.connection.execute("UPDATE internal.runs SET beat_at = now() - interval '61 seconds'")
    assert await act(world, take_for_dead)
    assert await world.connection.fetchval("SELECT status FROM public.generations") == "failed"


async def test_audio_that_was_paid_for_and_not_stored_is_kept_whatever_its_user_does(world: World) -> None:
    """The task has failed; its operator can still store the audio."""
    await find(world, SPOKEN)
    await world.connection.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, 'audio')", world.task_id)
    assert await speech.give_up_storing(world.connection, world.storable)
    for actor in (cancel, fail, publish):
        before = await world.snapshot()
        await actor(world)
        assert await world.snapshot() == before, actor.__name__
    assert await runs.take_spoken(world.connection, world.task_id, OWNER, "unstored")


async def test_publishing_completes_both_rows_and_forgets_the_run(world: World) -> None:
    await find(world, SPOKEN)
    await world.connection.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, 'audio')", world.task_id)
    assert await act(world, publish)
    task = await tasks.get(world.connection, world.task_id)
    assert (task.status, task.object_key, task.byte_length, task.run_state) == (
        "completed",
        world.assignment.object_key,
        5,
        None,
    )
    assert await world.connection.fetchval("SELECT count(*) FROM internal.spool") == 0
    assert not await act(world, publish), "twice is once"


async def test_a_task_whose_generation_was_deleted_past_us_can_still_be_ended(world: World) -> None:
    await find(world, HEARD)
    await world.connection.execute("DELETE FROM public.generations")
    await find(world, QUEUED)
    with pytest.raises(SpeechGone):
        await claim(world)
    await find(world, HEARD)
    assert await mark_spoken(world) is None
    ended = await speech.end(world.connection, world.task_id, speech.CANCELLED, attempt=1)
    assert ended.here
    assert (await tasks.get(world.connection, world.task_id)).status == "cancelled"
    assert await world.connection.fetchval("SELECT count(*) FROM internal.runs") == 0


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_what_has_ended_is_not_claimed(world: World, status: str) -> None:
    """Also where somebody ended it past us while its run waited: no session is opened for it."""
    key = "a/b.mp3" if status == "completed" else None
    await world.connection.execute("UPDATE public.generations SET status = $1, audio_object_key = $2", status, key)
    before = await world.snapshot()
    with pytest.raises(SpeechGone):
        async with world.connection.transaction():
            await claim(world)
    assert await world.snapshot() == before


async def test_neither_a_stranger_s_voice_nor_a_stranger_s_task_is_taken_for_ours(world: World) -> None:
    """Rows of the public schema may have been written by people, past us."""
    for table, job in (("voices", "job-1"), ("tasks", None)):
        undo = world.connection.transaction()
        await undo.start()
        await world.connection.execute("UPDATE public.tasks SET provider_job_id = 'job-1'")
        await world.connection.execute(f"UPDATE public.{table} SET user_id = gen_random_uuid()")
        assignment = await speech.claim(world.connection, world.task_id, 1, OWNER)
        assert assignment
        assert (assignment.provider_voice_id is None) == (table == "voices")
        assert assignment.job == job
        await undo.rollback()


async def test_a_task_ends_no_generation_of_a_stranger(world: World) -> None:
    """Somebody may have written its id into a task of theirs, past us."""
    await world.connection.execute("DELETE FROM internal.runs")
    await world.connection.execute("UPDATE public.generations SET user_id = gen_random_uuid()")
    assert await cancel(world)
    assert await world.connection.fetchval("SELECT status FROM public.tasks") == "cancelled"
    assert await world.connection.fetchval("SELECT status FROM public.generations") == "processing"


@pytest.mark.parametrize("late", [False, True])
async def test_what_could_not_be_stored_in_time_is_completed_when_that_is_asked_for(world: World, late: bool) -> None:
    await find(world, SPOKEN)
    await speech.give_up_storing(world.connection, world.storable)
    assert await publish(world, late=late) is late
    statuses = await world.connection.fetchrow(
        "SELECT g.status, t.status FROM public.generations g JOIN public.tasks t ON t.generation_id = g.id"
    )
    assert statuses
    assert tuple(statuses) == (("completed",) * 2 if late else ("failed",) * 2)


async def test_nobody_takes_a_run_from_an_owner_who_has_just_spoken_up(world: World) -> None:
    await find(world, SILENT)

    async def take_back(world: World) -> object:
        return await speech.requeue(
            world.connection, world.queue, world.task_id, 1, reason="its process died", silent_for_seconds=60.0
        )

    assert not await act(world, take_back)
    await world.connection.execute("UPDATE internal.runs SET beat_at = now() - interval '61 seconds'")
    assert await act(world, take_back)


@pytest.mark.parametrize("run", RUNS)
async def test_a_cancel_removes_what_may_have_been_stored_and_says_that_it_was_asked_for(
    world: World, run: Run
) -> None:
    """Whoever stores it may have uploaded the object a moment ago, or have died between that and publishing it."""
    await find(world, run)
    assert await cancel(world)
    removals = await world.connection.fetch("SELECT object_key, reason FROM internal.removals")
    wanted = [(world.assignment.object_key, "cancelled while storing")] if run.state == "spoken" else []
    assert [tuple(row) for row in removals] == wanted
    deferred = await world.connection.fetch(
        "SELECT args ->> 'object_key' AS key FROM internal.procrastinate_jobs WHERE task_name = 'remove'"
    )
    assert [row["key"] for row in deferred] == [key for key, _ in wanted]
    assert await world.connection.fetchval("SELECT cancellation_requested FROM public.tasks")


async def test_a_failure_does_not_look_like_a_cancel(world: World) -> None:
    await find(world, HEARD)
    await fail(world)
    assert await world.connection.fetchval("SELECT cancellation_requested FROM public.tasks") is False


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("UPDATE public.generations SET text = text", "open"),
        ("UPDATE public.generations SET status = 'failed'", "unwanted"),
        ("UPDATE public.generations SET status = 'cancelled'", "unwanted"),
        ("UPDATE public.generations SET status = 'completed', audio_object_key = 'mine'", "stored"),
        ("UPDATE public.generations SET status = 'completed', audio_object_key = 'another'", "unwanted"),
        ("DELETE FROM public.generations", "unwanted"),
    ],
)
async def test_the_row_says_what_an_object_is_worth(world: World, change: str, verdict: str) -> None:
    await find(world, SPOKEN)
    await world.connection.execute(change)
    assert await speech.verdict(world.connection, world.task_id, "mine") == verdict


async def test_a_completed_speech_is_known_by_its_key_when_its_task_is_gone(world: World) -> None:
    await world.connection.execute("UPDATE public.generations SET status = 'completed', audio_object_key = 'mine'")
    await world.connection.execute("DELETE FROM internal.runs")
    await world.connection.execute("DELETE FROM public.tasks")
    assert await speech.verdict(world.connection, world.task_id, "mine") == "stored"
