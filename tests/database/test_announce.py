"""Telling processes that something has changed: names alone, gathered, and never waited for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.announce import LIVE_CHANNEL, NAMES_AT_MOST, Announcer, names
from server.database.connections import Database
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import wait_for


@dataclass
class World:
    """A process that announces, behind a door, and everything that others hear of it."""

    door: PostgresProxy
    announcer: Announcer
    payloads: list[str] = field(default_factory=list)

    @property
    def told(self) -> set[UUID]:
        """Every task that was named so far."""
        return set[UUID]().union(*(names(payload) or set() for payload in self.payloads))


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=2) as database:
        world = World(door, Announcer(database))
        elsewhere = await asyncpg.connect(database_url)
        await elsewhere.add_listener(LIVE_CHANNEL, lambda *arguments: world.payloads.append(str(arguments[3])))
        announcing = asyncio.create_task(world.announcer.run())
        try:
            yield world
        finally:
            announcing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await announcing
            await elsewhere.close()


async def test_others_are_told_the_names_and_who_says_so(world: World) -> None:
    task_id = uuid4()
    world.announcer.changed(task_id)
    await wait_for(lambda: world.payloads)
    assert names(world.payloads[0]) == {task_id}
    assert world.announcer.is_ours(world.payloads[0])
    assert not world.announcer.is_ours(f"{uuid4().hex}:{task_id.hex}")


async def test_this_process_is_told_at_once_and_only_of_what_it_did_not_see_itself(world: World) -> None:
    here: list[set[UUID]] = []
    world.announcer.tell_here(here.append)
    changed, grown = uuid4(), uuid4()
    world.announcer.changed(changed)
    assert here == [{changed}]
    world.announcer.spread([grown])
    assert here == [{changed}], "its own followers read the growing audio where it grows"
    await wait_for(lambda: world.told == {changed, grown})


async def test_what_comes_together_is_said_together(world: World) -> None:
    """A process with two hundred speeches says something about each of them thirty times a second."""
    task_ids = {uuid4() for _ in range(50)}
    for _ in range(20):
        for task_id in task_ids:
            world.announcer.changed(task_id)
    await wait_for(lambda: world.told == task_ids)
    assert len(world.payloads) == 1


@pytest.mark.parametrize(("count", "named"), [(NAMES_AT_MOST, True), (NAMES_AT_MOST + 1, False), (1000, False)])
async def test_more_names_than_a_notification_holds_become_none(world: World, count: int, named: bool) -> None:
    """A payload without names means: read everything. 243 names would be refused altogether."""
    task_ids = {uuid4() for _ in range(count)}
    world.announcer.changed(*task_ids)
    await wait_for(lambda: world.payloads)
    assert names(world.payloads[0]) == (task_ids if named else None)
    assert world.announcer.is_ours(world.payloads[0])


async def test_what_cannot_be_said_is_dropped_and_the_next_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    dropped, said = uuid4(), uuid4()
    world.door.shut()
    world.announcer.changed(dropped)
    await wait_for(lambda: "could not notify other processes" in caplog.text)
    world.door.open()
    world.announcer.changed(said)
    await wait_for(lambda: said in world.told)
    assert dropped not in world.told


@pytest.mark.parametrize("payload", ["", "sender:", "nonsense", "a:b,c", f"sender:{UUID(int=1).hex},oops"])
def test_what_names_nobody_may_mean_anybody(payload: str) -> None:
    assert names(payload) is None


def test_names_are_read_with_or_without_their_sender() -> None:
    task_ids = {uuid4(), uuid4()}
    listed = ",".join(task_id.hex for task_id in task_ids)
    assert names(listed) == names(f"{uuid4().hex}:{listed}") == task_ids
