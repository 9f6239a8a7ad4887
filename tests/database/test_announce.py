"""Telling processes that something has changed: names alone, gathered, and never waited for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.announce import INTEREST_CHANNEL, INTEREST_SECONDS, LIVE_CHANNEL, NAMES_AT_MOST, Announcer, names
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


@pytest.mark.parametrize(("count", "payloads"), [(NAMES_AT_MOST, 1), (NAMES_AT_MOST + 1, 2), (1000, 5)])
async def test_more_names_than_a_notification_holds_become_several(world: World, count: int, payloads: int) -> None:
    """243 names in one would be refused altogether."""
    task_ids = {uuid4() for _ in range(count)}
    world.announcer.changed(*task_ids)
    await wait_for(lambda: world.told == task_ids)
    assert len(world.payloads) == payloads
    assert all(world.announcer.is_ours(payload) for payload in world.payloads)


async def test_growth_is_told_while_somebody_has_asked_for_it_lately(world: World) -> None:
    followed, alone = uuid4(), uuid4()
    assert world.announcer.asked({followed}) == {followed}
    assert world.announcer.asked({followed}) == set(), "it is known already"
    world.announcer.grew([followed, alone])
    await wait_for(lambda: world.payloads)
    assert world.told == {followed}


async def test_an_interest_lapses(database_url: str) -> None:
    now = 1000.0
    async with Database.open(database_url, size=1) as database:
        announcer = Announcer(database, lambda: now)
        told: list[set[UUID]] = []
        listening = await asyncpg.connect(database_url)
        await listening.add_listener(LIVE_CHANNEL, lambda *heard: told.append(names(str(heard[3])) or set()))
        announcing = asyncio.create_task(announcer.run())
        early, late, last = uuid4(), uuid4(), uuid4()
        announcer.asked({early})
        now += INTEREST_SECONDS - 1
        announcer.asked({late})
        now += 1
        announcer.grew([early, late])
        await wait_for(lambda: told)
        announcer.changed(last)
        await wait_for(lambda: len(told) > 1)
        assert told == [{late}, {last}]
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)
        await listening.close()


async def test_an_interest_is_said_where_nobody_takes_it_for_a_change(world: World, database_url: str) -> None:
    asked: list[str] = []
    listening = await asyncpg.connect(database_url)
    await listening.add_listener(INTEREST_CHANNEL, lambda *heard: asked.append(str(heard[3])))
    followed, changed = uuid4(), uuid4()
    world.announcer.ask([followed])
    world.announcer.changed(changed)
    await wait_for(lambda: asked and world.payloads)
    assert (names(asked[0]), world.told) == ({followed}, {changed})
    await listening.close()


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
