"""Which runs a process holds, and how it learns that one is no longer its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.connections import Database, Listener
from server.relay.leases import Leases
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
EVERY_SECONDS = 0.05


@dataclass
class World:
    """A process with leases, behind a door, and the rows of its runs."""

    door: PostgresProxy
    leases: Leases
    rows: Rows

    async def run(self, attempt: int = 1) -> UUID:
        """A run that is this process's at that attempt."""
        task_id = uuid4()
        await self.rows.execute(
            """INSERT INTO internal.runs (task_id, job_name, state, attempt, owner)
               VALUES ($1, 'synthesize', 'speaking', $2, $3)""",
            task_id,
            attempt,
            self.leases.owner,
        )
        return task_id

    async def change(self, task_id: UUID, change: str) -> None:
        await self.rows.execute(change, task_id)

    async def renewed(self, task_id: UUID, times: int = 2) -> None:
        """Return when the run was renewed so often from now on."""

        async def beat() -> datetime | None:
            at: datetime | None = await self.rows.fetchval(
                "SELECT beat_at FROM internal.runs WHERE task_id = $1", task_id
            )
            return at

        for _ in range(times):
            before = await beat()

            async def moved(before: datetime | None = before) -> bool:
                return await beat() != before

            await wait_for(moved)


@contextlib.asynccontextmanager
async def a_process(url: str) -> AsyncIterator[Leases]:
    listener = Listener(url)
    async with Database.open(url, size=4) as database:
        leases = Leases(database, listener, renew_every_seconds=EVERY_SECONDS, lost_after_seconds=15.0)
        loops = [asyncio.create_task(listener.run()), asyncio.create_task(leases.run())]
        await listener.connected.wait()
        try:
            yield leases
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


@pytest.fixture
async def world(database_url: str, rows: Rows) -> AsyncIterator[World]:
    async with postgres_proxy(database_url) as door, a_process(door.url) as leases:
        yield World(door, leases, rows)


async def test_a_run_that_is_held_is_renewed_and_one_that_is_let_go_is_not(world: World) -> None:
    held, let_go = await world.run(), await world.run()
    lost = asyncio.Event()
    with world.leases.hold(held, 1, lost.set):
        with world.leases.hold(let_go, 1, lost.set):
            await world.renewed(let_go)
        # A renewal may be under way; after the next one nothing speaks for it any more.
        await world.renewed(held)
        before = await world.rows.fetchval("SELECT beat_at FROM internal.runs WHERE task_id = $1", let_go)
        await world.renewed(held)
        assert await world.rows.fetchval("SELECT beat_at FROM internal.runs WHERE task_id = $1", let_go) == before
    assert not lost.is_set()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM internal.runs WHERE task_id = $1",
        "UPDATE internal.runs SET attempt = attempt + 1 WHERE task_id = $1",
        "UPDATE internal.runs SET owner = gen_random_uuid() WHERE task_id = $1",
    ],
)
async def test_a_run_that_is_no_longer_ours_is_lost_and_no_other(world: World, change: str) -> None:
    taken, kept = await world.run(), await world.run()
    lost, other = asyncio.Event(), asyncio.Event()
    with world.leases.hold(taken, 1, lost.set), world.leases.hold(kept, 1, other.set):
        await world.change(taken, change)
        async with asyncio.timeout(10.0):
            await lost.wait()
        await world.renewed(kept)
    assert not other.is_set()


async def test_a_row_that_somebody_holds_is_neither_lost_nor_waited_for(world: World, database_url: str) -> None:
    locked, free = await world.run(), await world.run()
    lost = asyncio.Event()
    holder = await asyncpg.connect(database_url)
    try:
        with world.leases.hold(locked, 1, lost.set), world.leases.hold(free, 1, lost.set):
            async with holder.transaction():
                await holder.execute("SELECT 1 FROM internal.runs WHERE task_id = $1 FOR UPDATE", locked)
                await world.renewed(free)
            await world.renewed(locked)
    finally:
        await holder.close()
    assert not lost.is_set()


async def test_a_hold_that_the_rows_do_not_know_of_yet_is_not_lost(world: World) -> None:
    """It is taken before the run is there, so that a cancel may come with the commit."""
    held, lost = await world.run(), asyncio.Event()
    with world.leases.hold(held, 1), world.leases.hold(uuid4(), 1, lost.set, claimed=False) as begun:
        await world.renewed(held)
        assert not lost.is_set()
        begun.claimed = True
        async with asyncio.timeout(10.0):
            await lost.wait()


async def test_a_process_that_takes_its_own_run_again_keeps_it_while_the_first_attempt_closes(world: World) -> None:
    """Taken for dead by another one, it may be the first to claim the second attempt."""
    task_id = await world.run()
    first, second = asyncio.Event(), asyncio.Event()
    with contextlib.ExitStack() as closing:
        closing.enter_context(world.leases.hold(task_id, 1, first.set))
        await world.change(task_id, "UPDATE internal.runs SET attempt = 2 WHERE task_id = $1")
        with world.leases.hold(task_id, 2, second.set):
            closing.close()
            assert world.leases.speaking == 1
            await world.renewed(task_id)
            world.leases.drop(task_id)
            assert second.is_set(), "what is held is the second attempt"
    assert world.leases.speaking == 0


async def test_a_renewal_that_found_the_first_attempt_gone_does_not_stop_the_second(world: World) -> None:
    """The second is taken after the question has left and before the answer is there."""
    task_id = await world.run(attempt=2)
    first, second = asyncio.Event(), asyncio.Event()
    with contextlib.ExitStack() as question, world.leases.hold(task_id, 1, first.set):
        asked = question.enter_context(world.door.holding_back(task_id.bytes))
        async with asyncio.timeout(10.0):
            await asked.wait()
        with world.leases.hold(task_id, 2, second.set):
            question.close()
            await world.renewed(task_id)
    assert not second.is_set()


async def test_a_run_that_was_ended_here_is_dropped_at_once(world: World) -> None:
    task_id, storing = await world.run(), await world.run()
    lost = asyncio.Event()
    with world.leases.hold(task_id, 1, lost.set), world.leases.hold(storing, 1):
        assert world.leases.speaking == 1, "what is only stored cannot be lost"
        world.leases.drop(storing)
        world.leases.drop(uuid4())
        assert not lost.is_set()
        world.leases.drop(task_id)
        assert lost.is_set()


async def test_the_owner_in_another_process_is_told(world: World, database_url: str) -> None:
    task_id = await world.run()
    lost = asyncio.Event()
    async with a_process(database_url) as elsewhere:
        with world.leases.hold(task_id, 1, lost.set):
            await elsewhere.tell_owner(task_id)
            async with asyncio.timeout(10.0):
                await lost.wait()


async def test_an_owner_that_nobody_can_tell_finds_out_by_itself(world: World, database_url: str) -> None:
    task_id = await world.run()
    lost = asyncio.Event()
    async with postgres_proxy(database_url) as door, a_process(door.url) as elsewhere:
        with world.leases.hold(task_id, 1, lost.set):
            await world.change(task_id, "DELETE FROM internal.runs WHERE task_id = $1")
            door.shut()
            await elsewhere.tell_owner(task_id)
            async with asyncio.timeout(10.0):
                await lost.wait()


async def test_a_process_that_leaves_lets_go_of_everything_that_still_speaks(world: World) -> None:
    lost = [asyncio.Event(), asyncio.Event()]
    with contextlib.ExitStack() as held:
        for event in lost:
            held.enter_context(world.leases.hold(await world.run(), 1, event.set))
        held.enter_context(world.leases.hold(await world.run(), 1))
        world.leases.release()
        assert world.leases.released
        assert all(event.is_set() for event in lost)


async def test_a_process_that_has_left_says_no_more_that_it_lives(world: World) -> None:
    """Its last beat must not make others wait for a process that is gone."""
    beat_at = "SELECT beat_at FROM internal.processes WHERE owner = $1"

    async def beats() -> bool:
        return await world.rows.fetchval(beat_at, world.leases.owner) is not None

    await wait_for(beats)
    await world.leases.leave()
    left = await world.rows.fetchval(beat_at, world.leases.owner)
    for _ in range(3):
        await world.leases._beat()
    assert await world.rows.fetchval(beat_at, world.leases.owner) == left
    assert await world.rows.fetchval("SELECT beat_at = '-infinity' FROM internal.processes")
