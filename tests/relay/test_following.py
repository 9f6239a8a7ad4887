"""One shared view per followed task: what makes it look at the rows, and what does not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.audio import format_named
from server.database.announce import INTEREST_CHANNEL, LIVE_CHANNEL, Announcer, names
from server.database.connections import Database, Listener
from server.records import tasks
from server.relay.following import ASK_EVERY_SECONDS, READ_EVERY_SECONDS, Feed, Following
from server.relay.live import AudioLog, LiveAudio
from tests.support import wait_for

if TYPE_CHECKING:
    from server.database.connections import Connection

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class CountingDatabase(Database):
    """A database that knows how often it was asked."""

    asked = 0

    @contextlib.asynccontextmanager
    async def connection(self) -> "AsyncIterator[Connection]":
        self.asked += 1
        async with super().connection() as connection:
            yield connection


@dataclass
class World:
    """One process that follows, and rows that others change."""

    database: CountingDatabase
    announcer: Announcer
    following: Following
    live: LiveAudio
    rows: Rows
    asks: list[set[UUID] | None]

    async def new_task(self) -> UUID:
        task_id = uuid4()
        await self.rows.execute(
            "INSERT INTO public.tasks (id, user_id, type, status) VALUES ($1, $2, 'generate', 'processing')",
            task_id,
            uuid4(),
        )
        return task_id

    async def move(self, task_id: UUID, provider_status: str) -> None:
        """Change a row as another process would, one that tells nobody."""
        await self.rows.execute("UPDATE public.tasks SET provider_status = $2 WHERE id = $1", task_id, provider_status)

    @contextlib.asynccontextmanager
    async def followed(self, task_id: UUID) -> AsyncIterator[Feed]:
        task = await tasks.find(self.rows, task_id)
        assert task
        async with self.following.follow(task) as feed:
            yield feed


@pytest.fixture
async def world(database_url: str, rows: Rows) -> AsyncIterator[World]:
    """A process that announces, listens and follows; nothing is followed yet."""
    async with CountingDatabase.open(database_url, size=2) as database:
        assert isinstance(database, CountingDatabase)
        listener = Listener(database_url)
        announcer = Announcer(database)
        live = LiveAudio()
        following = Following(database, listener, live, announcer)
        asks: list[set[UUID] | None] = []
        elsewhere = await asyncpg.connect(database_url)
        await elsewhere.add_listener(INTEREST_CHANNEL, lambda *heard: asks.append(names(str(heard[3]))))
        loops = [asyncio.create_task(part.run()) for part in (listener, announcer, following)]
        await listener.connected.wait()
        try:
            yield World(database, announcer, following, live, rows, asks)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await elsewhere.close()


async def test_a_change_here_is_seen_at_once(world: World) -> None:
    task_id = await world.new_task()
    async with world.followed(task_id) as feed:
        await world.move(task_id, "streaming")
        world.announcer.changed(task_id)
        await wait_for(lambda: feed.task.provider_status == "streaming", timeout=READ_EVERY_SECONDS / 2)


async def test_a_change_elsewhere_is_seen_when_it_is_told(world: World, database_url: str) -> None:
    task_id = await world.new_task()
    async with world.followed(task_id) as feed, Database.open(database_url, size=2) as theirs:
        elsewhere = Announcer(theirs)
        telling = asyncio.create_task(elsewhere.run())
        await world.move(task_id, "streaming")
        elsewhere.changed(task_id)
        await wait_for(lambda: feed.task.provider_status == "streaming", timeout=READ_EVERY_SECONDS / 2)
        telling.cancel()


async def test_a_change_that_nobody_tells_is_seen_by_the_clock_whatever_else_is_told(
    world: World, database_url: str
) -> None:
    """Its one notification may be lost while a speech of another process is told about at every tick."""
    quiet, busy = await world.new_task(), await world.new_task()
    mouth = await asyncpg.connect(database_url)
    async with world.followed(quiet) as feed, world.followed(busy):
        await world.move(quiet, "session_updated")
        world.announcer.changed(quiet)
        await wait_for(lambda: feed.task.provider_status == "session_updated")

        async def chatter() -> None:
            while True:
                await mouth.execute("SELECT pg_notify($1, $2)", LIVE_CHANNEL, f"another-process:{busy.hex}")
                await asyncio.sleep(READ_EVERY_SECONDS / 20)

        chattering = asyncio.create_task(chatter())
        await world.move(quiet, "streaming")
        await wait_for(lambda: feed.task.provider_status == "streaming", timeout=READ_EVERY_SECONDS * 5)
        chattering.cancel()
        await asyncio.gather(chattering, return_exceptions=True)
    await mouth.close()


async def test_growth_that_this_process_announces_makes_it_look_at_nothing(world: World, database_url: str) -> None:
    """Its own followers have the log; a look per tick of its own spool would double the cost of streaming."""
    task_id = await world.new_task()
    heard: list[object] = []
    listening = await asyncpg.connect(database_url)
    await listening.add_listener(LIVE_CHANNEL, lambda *arguments: heard.append(arguments))
    try:
        async with world.followed(task_id):
            before = world.database.asked
            for count in range(1, 21):
                world.announcer.spread([task_id])
                await wait_for(lambda count=count: len(heard) >= count)  # type: ignore[misc]
            told = len(heard)
            by_clock = 5
            assert world.database.asked - before <= told + by_clock, "one connection each to announce, none to look"
    finally:
        await listening.close()


async def test_who_comes_late_at_another_process_is_level_at_once(world: World) -> None:
    """What is behind is read again at once: by the clock alone, 500 rows would take half a minute."""
    task_id, generation_id = await world.new_task(), uuid4()
    await world.rows.execute(
        """INSERT INTO public.generations (id, user_id, text, status, tts_provider, output_format)
           SELECT $1, user_id, 'Long.', 'processing', 'qwen', 'mp3' FROM public.tasks WHERE id = $2""",
        generation_id,
        task_id,
    )
    await world.rows.execute("UPDATE public.tasks SET generation_id = $2 WHERE id = $1", task_id, generation_id)
    await world.rows.execute(
        """INSERT INTO internal.runs (task_id, generation_id, job_name, state, attempt, byte_length)
           VALUES ($1, $2, 'synthesize', 'speaking', 1, 5000)""",
        task_id,
        generation_id,
    )
    await world.rows.execute(
        """INSERT INTO internal.spool (task_id, attempt, byte_offset, bytes)
           SELECT $1, 1, n * 10, convert_to(lpad(n::text, 10, '0'), 'UTF8') FROM generate_series(0, 499) AS n""",
        task_id,
    )
    async with world.followed(task_id) as feed:
        await wait_for(lambda: feed.log and feed.log.length == 5000, timeout=READ_EVERY_SECONDS * 5)
        assert feed.log
        assert feed.log.read(0, 5000) == b"".join(b"%010d" % number for number in range(500))


async def _run_of(world: World, task_id: UUID) -> None:
    await world.rows.execute(
        "INSERT INTO internal.runs (task_id, job_name, state, attempt) VALUES ($1, 'synthesize', 'speaking', 1)",
        task_id,
    )


async def test_who_follows_another_s_speech_asks_for_it_again_and_again(world: World) -> None:
    """And when it changes hands: its new owner may have started only now. What is over is asked for no more."""
    task_id = await world.new_task()
    await _run_of(world, task_id)
    async with world.followed(task_id) as feed:
        await wait_for(lambda: len(world.asks) == 1, timeout=ASK_EVERY_SECONDS)
        await wait_for(lambda: feed.task.attempt == 1)
        await world.rows.execute("UPDATE internal.runs SET attempt = 2 WHERE task_id = $1", task_id)
        world.announcer.changed(task_id)
        await wait_for(lambda: len(world.asks) >= 2, timeout=ASK_EVERY_SECONDS * 5)
        told = len(world.asks)
        await wait_for(lambda: len(world.asks) > told, timeout=ASK_EVERY_SECONDS * 5)
        assert world.asks == [{task_id}] * len(world.asks)


async def test_who_speaks_tells_at_once_whoever_asks(world: World, database_url: str) -> None:
    """And does not ask for what it speaks itself."""
    task_id, unknown = await world.new_task(), uuid4()
    told: list[set[UUID] | None] = []
    mouth = await asyncpg.connect(database_url)
    await mouth.add_listener(LIVE_CHANNEL, lambda *heard: told.append(names(str(heard[3]))))
    log = AudioLog(task_id=task_id, attempt=1, audio_format=format_named("mp3"), sample_rate_hz=24000)
    with world.live.speaking(log):
        async with world.followed(task_id):
            await mouth.execute(
                "SELECT pg_notify($1, $2)", INTEREST_CHANNEL, f"another-process:{task_id.hex},{unknown.hex}"
            )
            await wait_for(lambda: told)
    await mouth.close()
    assert told == [{task_id}]
    assert world.asks == [{task_id, unknown}], "what the other said, and nothing of ours"
