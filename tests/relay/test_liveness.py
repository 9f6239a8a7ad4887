"""Who is dead, as the rows tell it: silence while others speak, and never silence of all."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from server.records import processes, runs

Rows = Any
JUDGE = uuid4()
SILENT_SECONDS = 15.0


async def process(rows: Rows, *, silent_for_seconds: float) -> UUID:
    """A process that last said so long ago that it lives."""
    owner = uuid4()
    await rows.execute(
        "INSERT INTO internal.processes (owner, beat_at) VALUES ($1, now() - make_interval(secs => $2))",
        owner,
        silent_for_seconds,
    )
    return owner


async def run_of(rows: Rows, owner: UUID, *, beat_seconds_ago: float = 0.0, byte_length: int = 0) -> UUID:
    task_id = uuid4()
    await rows.execute(
        """INSERT INTO internal.runs (task_id, job_name, state, owner, byte_length, beat_at, object_key)
           VALUES ($1, 'synthesize', 'speaking', $2, $3, now() - make_interval(secs => $4), 'a/b.mp3')""",
        task_id,
        owner,
        byte_length,
        beat_seconds_ago,
    )
    return task_id


async def beat(rows: Rows, owner: UUID) -> None:
    await processes.beat(rows, owner, quiet_after_seconds=SILENT_SECONDS / 3, quiet_seconds=SILENT_SECONDS * 2 / 3)


async def lost(rows: Rows) -> set[UUID]:
    return {run.task_id for run in await runs.lost(rows, SILENT_SECONDS, JUDGE)}


async def quiet_passes(rows: Rows) -> None:
    await rows.execute("UPDATE internal.processes SET quiet_until = clock_timestamp() - interval '1 second'")


async def test_who_is_silent_while_others_speak_is_dead(rows: Rows) -> None:
    await process(rows, silent_for_seconds=1)
    dead = await run_of(rows, await process(rows, silent_for_seconds=20))
    await run_of(rows, await process(rows, silent_for_seconds=10))
    await beat(rows, JUDGE)
    assert await lost(rows) == {dead}


async def test_after_a_silence_of_all_nobody_is_judged_until_the_living_have_come_back(rows: Rows) -> None:
    healthy, dead = [await process(rows, silent_for_seconds=30) for _ in range(2)]
    await run_of(rows, healthy)
    task_id = await run_of(rows, dead)
    await beat(rows, JUDGE)
    assert await lost(rows) == set()
    await beat(rows, healthy)
    assert await lost(rows) == set(), "the quiet time is not over because somebody has come back"
    await quiet_passes(rows)
    assert await lost(rows) == {task_id}


async def test_a_process_that_was_not_able_to_write_neither_judges_nor_is_judged_at_once(rows: Rows) -> None:
    """Two processes, an outage of 30 s for both: the first that comes back must not end the speeches of the other."""
    first, second = [await process(rows, silent_for_seconds=30) for _ in range(2)]
    await run_of(rows, second, byte_length=5)
    await beat(rows, first)
    assert await runs.lost(rows, SILENT_SECONDS, first) == []
    await beat(rows, second)
    await quiet_passes(rows)
    assert await runs.lost(rows, SILENT_SECONDS, first) == []


async def test_who_comes_back_from_an_outage_judges_nobody_before_anybody_has_spoken(rows: Rows) -> None:
    """A sweep may be the first statement that goes through, up to a second before the first beat."""
    for owner in [await process(rows, silent_for_seconds=90) for _ in range(2)]:
        task_id = await run_of(rows, owner, beat_seconds_ago=90, byte_length=5)
        assert await lost(rows) == set()
        assert await runs.stop(rows, task_id, attempt=1, silent_for_seconds=SILENT_SECONDS) is None
    await run_of(rows, uuid4(), beat_seconds_ago=90)
    assert await runs.lost_unregistered(rows, SILENT_SECONDS) == []


async def test_a_clock_that_was_set_back_makes_nobody_silent(rows: Rows) -> None:
    """A standby took over whose clock is a minute behind: who has beaten since seems older than who has not."""
    back, not_yet = [await process(rows, silent_for_seconds=-60) for _ in range(2)]
    await beat(rows, back)
    await run_of(rows, back)
    await run_of(rows, not_yet)
    assert await lost(rows) == set()


async def test_a_process_never_judges_its_own_runs(rows: Rows) -> None:
    await process(rows, silent_for_seconds=1)
    mine = await process(rows, silent_for_seconds=20)
    await run_of(rows, mine)
    assert await runs.lost(rows, SILENT_SECONDS, mine) == []
    of_the_dead = await run_of(rows, await process(rows, silent_for_seconds=20))
    assert [run.task_id for run in await runs.lost(rows, SILENT_SECONDS, mine)] == [of_the_dead]


async def test_an_owner_that_has_spoken_up_since_it_was_looked_at_keeps_its_run(rows: Rows) -> None:
    await process(rows, silent_for_seconds=1)
    owner = await process(rows, silent_for_seconds=20)
    task_id = await run_of(rows, owner)
    assert await lost(rows) == {task_id}
    await beat(rows, owner)
    assert await runs.stop(rows, task_id, attempt=1, silent_for_seconds=SILENT_SECONDS) is None
    assert await rows.fetchval("SELECT attempt FROM internal.runs WHERE task_id = $1", task_id) == 1


async def test_the_deed_judges_this_owner_alone_and_nobody_in_a_quiet_time(rows: Rows) -> None:
    of_the_living = await run_of(rows, await process(rows, silent_for_seconds=1))
    of_the_dead = await run_of(rows, await process(rows, silent_for_seconds=20))

    async def may_be_ended(task_id: UUID) -> bool:
        return await runs.stop(rows, task_id, attempt=1, silent_for_seconds=SILENT_SECONDS) is not None

    assert not await may_be_ended(of_the_living)
    await rows.execute("UPDATE internal.processes SET quiet_until = now() + interval '1 minute'")
    assert not await may_be_ended(of_the_dead)
    await quiet_passes(rows)
    assert await may_be_ended(of_the_dead)


async def test_who_leaves_speaks_for_itself_alone(rows: Rows) -> None:
    leaves, stays = [await process(rows, silent_for_seconds=1) for _ in range(2)]
    await processes.leave(rows, leaves)
    assert await processes.dead(rows, SILENT_SECONDS) == {leaves}
    assert stays != leaves


async def test_whoever_left_by_itself_need_not_be_waited_for(rows: Rows) -> None:
    owner = uuid4()
    await beat(rows, owner)
    task_id = await run_of(rows, owner)
    await beat(rows, JUDGE)
    assert await lost(rows) == set()
    await processes.leave(rows, owner)
    assert await lost(rows) == {task_id}


async def test_the_only_process_comes_back_after_everybody_left(rows: Rows) -> None:
    """A restart is no outage: what the process before has left behind is taken up at once."""
    before = uuid4()
    await beat(rows, before)
    task_id = await run_of(rows, before)
    await processes.leave(rows, before)
    await beat(rows, JUDGE)
    assert await lost(rows) == {task_id}


@pytest.mark.parametrize("seconds_ago", [5, 20])
async def test_a_process_of_an_older_release_lives_by_its_runs(rows: Rows, seconds_ago: int) -> None:
    task_id = await run_of(rows, uuid4(), beat_seconds_ago=seconds_ago)
    await beat(rows, JUDGE)
    found = {run.task_id for run in await runs.lost_unregistered(rows, SILENT_SECONDS)}
    assert found == ({task_id} if seconds_ago > SILENT_SECONDS else set())
    assert await lost(rows) == set()


async def test_rows_of_processes_go_when_they_hold_nothing(rows: Rows) -> None:
    gone, holding = [await process(rows, silent_for_seconds=90_000) for _ in range(2)]
    idle = await process(rows, silent_for_seconds=80_000)
    await run_of(rows, holding)
    await processes.forget_old(rows)
    assert {row["owner"] for row in await rows.fetch("SELECT owner FROM internal.processes")} == {holding, idle}
    assert gone not in (holding, idle)


async def test_the_look_for_the_dead_does_not_depend_on_how_long_others_have_spoken(rows: Rows) -> None:
    """With an old snapshot open nothing of what the ticks leave behind can be cleared away."""
    living = await process(rows, silent_for_seconds=0)
    dead = await process(rows, silent_for_seconds=20)
    speaking = [await run_of(rows, living) for _ in range(20)]
    await run_of(rows, dead)

    async def pages_read() -> int:
        plan = await rows.fetchval(
            """EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
               SELECT task_id FROM internal.runs WHERE owner = ANY($1::uuid[]) AND state = 'speaking'""",
            [dead],
        )
        top = json.loads(plan)[0]["Plan"]
        return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])

    await rows.execute("SET enable_seqscan = off")
    before = await pages_read()
    for _ in range(100):
        await rows.execute("UPDATE internal.runs SET byte_length = byte_length + 1 WHERE task_id = ANY($1)", speaking)
    assert await pages_read() <= before + 5
