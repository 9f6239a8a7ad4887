"""The durable copy of growing audio: nothing twice, nothing missing, nobody waited for, nobody else's."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias
from uuid import uuid4

import asyncpg
import pytest

from server.audio import MP3
from server.database.announce import LIVE_CHANNEL, Announcer, names
from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.metrics import Metrics
from server.records import runs
from server.relay.kept import KeptLogs
from server.relay.live import AudioLog, Note
from server.relay.spool import ROW_BYTES, STATEMENT_BYTES, SpoolWriter, spooled
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
OWNER = uuid4()


@dataclass
class Speech:
    """One synthesis of this process as the writer sees it."""

    log: AudioLog
    lost: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class World:
    """A writer at work on a database that can be reached through a door."""

    proxy: PostgresProxy
    database: Database
    writer: SpoolWriter
    rows: Rows
    speeches: contextlib.ExitStack
    announcer: Announcer

    async def speech(self, state: str = "speaking", attempt: int = 1, log: type[AudioLog] = AudioLog) -> Speech:
        """A run that speaks, and its log under this writer's care."""
        task_id = uuid4()
        await self.rows.execute(
            """INSERT INTO internal.runs (task_id, job_name, state, attempt, owner)
               VALUES ($1, 'synthesize', $2, $3, $4)""",
            task_id,
            state,
            attempt,
            OWNER,
        )
        speech = Speech(log(task_id=task_id, attempt=1, audio_format=MP3, sample_rate_hz=24_000))
        self.speeches.enter_context(self.writer.writing(speech.log, speech.lost.set))
        return speech

    def say(self, speech: Speech, *deltas: bytes) -> None:
        for delta in deltas:
            speech.log.append(delta)
            self.writer.grew(speech.log)

    async def kept(self, speech: Speech) -> bytes:
        """What the spool holds: rows without gap or overlap, together as long as the run says."""
        found = await self.rows.fetch(
            "SELECT byte_offset, bytes FROM internal.spool WHERE task_id = $1 ORDER BY byte_offset", speech.log.task_id
        )
        whole = b""
        for row in found:
            assert row["byte_offset"] == len(whole)
            whole += row["bytes"]
        length = await self.rows.fetchval(
            "SELECT byte_length FROM internal.runs WHERE task_id = $1", speech.log.task_id
        )
        assert length is None or length == len(whole)
        return whole


@pytest.fixture
async def world(database_url: str, rows: Rows) -> AsyncIterator[World]:
    """A spool without a row, and a writer that runs."""
    async with postgres_proxy(database_url) as proxy, Database.open(proxy.url, size=3) as database:
        announcer = Announcer(database)
        writer = SpoolWriter(database, OWNER, announcer, Metrics(), every_seconds=0.03)
        tasks = [asyncio.create_task(writer.run()), asyncio.create_task(announcer.run())]
        with contextlib.ExitStack() as speeches:
            yield World(proxy, database, writer, rows, speeches, announcer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def within(seconds: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await work


async def test_many_speeches_are_kept_byte_for_byte(world: World) -> None:
    speeches = [await world.speech() for _ in range(30)]
    for number in range(20):
        for speech in speeches:
            world.say(speech, os.urandom(50 + number))
        await asyncio.sleep(0)
    await asyncio.gather(*[world.writer.flush(speech.log) for speech in speeches])
    for speech in speeches:
        assert await world.kept(speech) == speech.log.read(0, speech.log.length)
        assert speech.log.durable == speech.log.length
        assert not speech.lost.is_set()


async def test_a_speech_larger_than_a_statement_is_kept_whole(world: World) -> None:
    speech = await world.speech()
    world.say(speech, *[os.urandom(1024 * 1024) for _ in range(6)])
    await world.writer.flush(speech.log)
    assert await world.kept(speech) == speech.log.read(0, speech.log.length)


class StepsNoted(AudioLog):
    """A log that knows how much each statement made durable."""

    steps: ClassVar[list[int]] = []

    def committed(self, offset: int) -> None:
        self.steps.append(offset - self.durable)
        super().committed(offset)


async def test_however_much_has_waited_no_statement_is_larger_than_its_share(world: World) -> None:
    """One that holds all of a long outage could run into its own time limit, again and again."""
    speech = await world.speech(log=StepsNoted)
    world.proxy.shut()
    world.say(speech, *[os.urandom(1024 * 1024) for _ in range(20)])
    world.proxy.open()
    await within(30.0, world.writer.flush(speech.log))
    assert sum(StepsNoted.steps) == 20 * 1024 * 1024
    assert max(StepsNoted.steps) <= STATEMENT_BYTES + ROW_BYTES
    assert await world.kept(speech) == speech.log.read(0, speech.log.length)


async def test_the_first_delta_does_not_wait_for_the_tick(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears it before it is durable, so it is the one that must not wait; the later ones must, to be cheap."""
    monkeypatch.setattr(world.writer, "_every_seconds", 60.0)
    speech = await world.speech()
    world.say(speech, b"first")
    await wait_for(lambda: speech.log.durable == 5, 5.0)
    world.say(speech, b"second")
    other = await world.speech()
    world.say(other, b"first of another")
    await wait_for(lambda: other.log.durable, 5.0)
    world.say(speech, b"third")
    for _ in range(20):
        await asyncio.sleep(0)
    assert speech.log.durable < speech.log.length
    await within(5.0, world.writer.flush(speech.log))
    assert await world.kept(speech) == b"firstsecondthird"


async def test_a_commit_whose_answer_was_lost_is_not_kept_twice(world: World) -> None:
    """The batch is repeated as it was, refused, and the run's length tells that it had arrived."""
    speech = await world.speech()
    world.say(speech, b"heard by all")
    await world.writer.flush(speech.log)
    world.proxy.lose_the_answer_to(b"the marker")
    world.say(speech, b"the marker")
    await world.proxy.lost_the_answer()
    assert await world.kept(speech) == b"heard by allthe marker"
    assert speech.log.durable == len(b"heard by all")
    world.say(speech, b" and more")
    await within(5.0, world.writer.flush(speech.log))
    assert await world.kept(speech) == b"heard by allthe marker and more"
    assert not speech.lost.is_set()


async def test_what_was_said_while_an_answer_was_lost_comes_in_its_place(world: World) -> None:
    """New bytes must not slip into the repeated batch: the database would refuse them with it, or keep half."""
    first, second = await world.speech(), await world.speech()
    world.proxy.lose_the_answer_to(b"the marker")
    world.say(first, b"the marker")
    for _ in range(50):
        world.say(first, os.urandom(100))
        world.say(second, os.urandom(100))
        await asyncio.sleep(0.001)
    await world.proxy.lost_the_answer()
    await within(5.0, world.writer.flush(first.log))
    await within(5.0, world.writer.flush(second.log))
    for speech in (first, second):
        assert await world.kept(speech) == speech.log.read(0, speech.log.length)


async def test_bytes_that_are_already_kept_are_not_kept_again(world: World) -> None:
    """However the writer came to forget them, the run's length is the truth."""
    speech = await world.speech()
    await world.rows.execute("UPDATE internal.runs SET byte_length = 4 WHERE task_id = $1", speech.log.task_id)
    await world.rows.execute("INSERT INTO internal.spool VALUES ($1, 1, 0, 'kept')", speech.log.task_id)
    world.say(speech, b"kept already")
    await within(5.0, world.writer.flush(speech.log))
    assert await world.kept(speech) == b"kept already"


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM internal.runs WHERE task_id = $1",
        "UPDATE internal.runs SET attempt = attempt + 1 WHERE task_id = $1",
        "UPDATE internal.runs SET state = 'spoken', byte_length = 5 WHERE task_id = $1",
    ],
    ids=["cancelled", "taken over", "spoken"],
)
async def test_a_run_that_is_no_longer_ours_drops_out_alone(world: World, change: str) -> None:
    """In one and the same batch another speech is kept; the lost one writes nothing and is told."""
    ours, theirs = await world.speech(), await world.speech()
    world.say(ours, b"hello")
    world.say(theirs, b"hello")
    await world.writer.flush(ours.log)
    await world.writer.flush(theirs.log)
    await world.rows.execute(change, theirs.log.task_id)
    world.say(theirs, b" world")
    world.say(ours, b" world")
    await within(5.0, world.writer.flush(ours.log))
    await within(5.0, wait_until(theirs.lost))
    assert await world.kept(ours) == b"hello world"
    found = await world.rows.fetch("SELECT bytes FROM internal.spool WHERE task_id = $1", theirs.log.task_id)
    assert [row["bytes"] for row in found] == [b"hello"]
    assert not ours.lost.is_set()


async def wait_until(event: asyncio.Event) -> None:
    await event.wait()


async def test_nobody_waits_for_a_row_that_somebody_holds(world: World) -> None:
    held, free = await world.speech(), await world.speech()
    transaction = world.rows.transaction()
    await transaction.start()
    await world.rows.execute("SELECT 1 FROM internal.runs WHERE task_id = $1 FOR UPDATE", held.log.task_id)
    world.say(held, b"held")
    world.say(free, b"free")
    await within(2.0, world.writer.flush(free.log))
    assert (held.log.durable, held.log.visible) == (0, 0)
    await transaction.rollback()
    await within(2.0, world.writer.flush(held.log))
    assert await world.kept(held) == b"held"
    assert not held.lost.is_set()


async def test_no_row_appears_after_a_cancel_has_deleted_them(world: World, database_url: str) -> None:
    """Cancels and appends race; whoever comes second finds nothing to write to."""
    other = await asyncpg.connect(database_url)
    try:
        for _ in range(40):
            speech = await world.speech()
            world.say(speech, b"some audio")
            if os.urandom(1)[0] & 1:
                await asyncio.sleep(0.003)
            async with other.transaction():
                await other.execute("DELETE FROM internal.runs WHERE task_id = $1", speech.log.task_id)
                await other.execute("DELETE FROM internal.spool WHERE task_id = $1", speech.log.task_id)
            world.say(speech, b"more audio")
            await within(5.0, wait_until(speech.lost))
    finally:
        await other.close()
    assert await world.rows.fetchval("SELECT count(*) FROM internal.spool") == 0


async def test_an_outage_loses_nothing(world: World) -> None:
    speeches = [await world.speech() for _ in range(5)]
    for speech in speeches:
        world.say(speech, os.urandom(100))
        await world.writer.flush(speech.log)
    world.proxy.shut()
    for _ in range(20):
        for speech in speeches:
            world.say(speech, os.urandom(100))
    await wait_for(lambda: world.proxy.refused)
    for speech in speeches:
        assert speech.log.visible == 2100, "followers of this process go on hearing"
        assert speech.log.durable == 100
    world.proxy.open()
    for speech in speeches:
        await within(5.0, world.writer.flush(speech.log))
        assert await world.kept(speech) == speech.log.read(0, 2100)


async def test_a_log_that_is_put_away_is_not_written_any_more(world: World) -> None:
    speech = await world.speech()
    world.speeches.close()
    speech.log.append(b"nobody's")
    other = await world.speech()
    world.say(other, b"somebody's")
    await within(5.0, world.writer.flush(other.log))
    assert await world.kept(speech) == b""


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 8, 9])
async def test_the_spool_is_read_from_any_byte(world: World, start: int) -> None:
    speech = await world.speech()
    for delta in (b"abc", b"d", b"efgh"):
        world.say(speech, delta)
        await world.writer.flush(speech.log)
    parts = await spooled(world.rows, speech.log.task_id, start=start)
    assert b"".join(parts) == b"abcdefgh"[start:]


async def test_the_spool_is_read_over_many_rows(world: World) -> None:
    speech = await world.speech()
    for number in range(40):
        world.say(speech, b"%04d" % number)
        await world.writer.flush(speech.log)
    read = b""
    while parts := await spooled(world.rows, speech.log.task_id, start=len(read)):
        assert len(parts) <= 16, "a few rows at a time"
        read += b"".join(parts)
    assert read == b"".join(b"%04d" % number for number in range(40))


# --- telling others ---------------------------------------------------------------------------------------------------


async def listen(database_url: str, heard: Callable[[str], None]) -> "asyncpg.Connection[asyncpg.Record]":
    connection = await asyncpg.connect(database_url)
    await connection.add_listener(LIVE_CHANNEL, lambda *arguments: heard(str(arguments[3])))
    return connection


async def test_other_processes_are_told_which_speeches_grew_that_they_follow(world: World, database_url: str) -> None:
    payloads: list[str] = []
    connection = await listen(database_url, payloads.append)
    try:
        speech, alone = await world.speech(), await world.speech()
        world.announcer.asked({speech.log.task_id})
        world.say(alone, b"audio")
        await within(5.0, world.writer.flush(alone.log))
        world.say(speech, b"audio")
        await wait_for(lambda: payloads)
        assert [names(payload) for payload in payloads] == [{speech.log.task_id}]
    finally:
        await connection.close()


# --- a database that comes back behind us -----------------------------------------------------------------------------


async def lose_commits(world: World, speech: Speech, *, after: int) -> None:
    """As a standby that took over without the last commits would have it: whole rows of the spool are missing."""
    task_id = speech.log.task_id
    await world.rows.execute("DELETE FROM internal.spool WHERE task_id = $1 AND byte_offset >= $2", task_id, after)
    await world.rows.execute("UPDATE internal.runs SET byte_length = $2 WHERE task_id = $1", task_id, after)


@pytest.mark.parametrize("kept", [0, 100], ids=["nothing kept", "a part kept"])
async def test_what_a_failover_lost_is_written_again_from_memory(world: World, kept: int) -> None:
    speech = await world.speech()
    world.say(speech, os.urandom(100))
    await world.writer.flush(speech.log)
    world.say(speech, os.urandom(200))
    await world.writer.flush(speech.log)
    await lose_commits(world, speech, after=kept)
    world.say(speech, os.urandom(300))
    assert speech.log.visible == 600, "whoever listens has heard it and goes on"
    await within(10.0, world.writer.flush(speech.log))
    assert await world.kept(speech) == speech.log.read(0, 600)
    assert not speech.lost.is_set()


async def test_a_flushed_speech_whose_end_was_lost_is_written_again(world: World) -> None:
    speech = await world.speech()
    for _ in range(2):
        world.say(speech, os.urandom(100))
        await world.writer.flush(speech.log)
    await lose_commits(world, speech, after=100)
    assert await world.writer.is_behind_us(speech.log)
    await within(10.0, world.writer.flush(speech.log))
    assert await world.kept(speech) == speech.log.read(0, 200)


async def test_a_shorter_run_of_another_process_is_not_written_to(world: World) -> None:
    """Task and attempt may be the same after a failover; whoever claimed the run again speaks it from its start."""
    speech = await world.speech()
    world.say(speech, b"heard already")
    await world.writer.flush(speech.log)
    await lose_commits(world, speech, after=0)
    await world.rows.execute("UPDATE internal.runs SET owner = $1", uuid4())
    world.say(speech, b"more")
    await wait_for(speech.lost.is_set, 10.0)
    assert await world.kept(speech) == b""
    assert not await world.writer.is_behind_us(speech.log)


async def test_a_run_that_another_process_has_at_the_same_attempt_is_not_written_to(world: World) -> None:
    """After a failover two may have claimed the same attempt, and be equally far."""
    speech = await world.speech()
    world.say(speech, b"heard")
    await world.writer.flush(speech.log)
    await world.rows.execute("UPDATE internal.runs SET owner = $1", uuid4())
    world.say(speech, b" of one, and not of the other")
    await wait_for(speech.lost.is_set, 10.0)
    assert await world.kept(speech) == b"heard"


async def test_what_each_tick_changes_stands_in_no_index(world: World) -> None:
    """An update that stays within its page costs no index anything, however long a speech goes on."""
    speeches = [await world.speech() for _ in range(10)]
    for _ in range(40):
        for speech in speeches:
            world.say(speech, os.urandom(100))
        await asyncio.gather(*[world.writer.flush(speech.log) for speech in speeches])
    await world.rows.execute("SELECT pg_stat_clear_snapshot()")

    async def counted() -> bool:
        await world.rows.execute("SELECT pg_stat_force_next_flush()")
        [(updated, hot)] = await world.rows.fetch(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'internal.runs'::regclass"
        )
        return bool(updated >= 350 and hot >= 0.9 * updated)

    await wait_for(counted, 20.0)


async def test_marks_and_words_are_durable_with_their_audio_and_wait_for_nobody(
    world: World, database_url: str
) -> None:
    """Whoever ends a speech locks its generation first: the append leaves words for later instead of waiting."""
    generation_id = uuid4()
    await world.rows.execute(
        "INSERT INTO public.generations (id, user_id, text) VALUES ($1, gen_random_uuid(), 'Hello.')",
        generation_id,
    )
    speech = await world.speech()
    await world.rows.execute(
        "UPDATE internal.runs SET generation_id = $2 WHERE task_id = $1", speech.log.task_id, generation_id
    )
    speech.log.goes_on = True
    run = "SELECT byte_length, goes_on, marked_bytes, marked_characters FROM internal.runs WHERE task_id = $1"
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("SELECT 1 FROM public.generations WHERE id = $1 FOR UPDATE", generation_id)
            speech.log.notes.append(Note(5, 0, 0, 0, [("Hello", 0, 300)]))
            speech.log.notes.append(Note(5, 5, 6))
            world.say(speech, b"hello", b" and on")
            await wait_for(lambda: speech.log.durable == 12)
            assert tuple(await world.rows.fetchrow(run, speech.log.task_id) or ()) == (12, True, 0, 0)
            assert not speech.log.kept
    finally:
        await other.close()
    await within(5.0, world.writer.flush(speech.log))
    assert tuple(await world.rows.fetchrow(run, speech.log.task_id) or ()) == (12, True, 5, 6)
    [words] = await world.rows.fetch("SELECT position, words FROM internal.words")
    assert (words["position"], words["words"]) == (0, [["Hello", 0, 300]])
    # A mark without a byte behind it is written as well.
    speech.log.notes.append(Note(12, 12, 9))
    await within(5.0, world.writer.flush(speech.log))
    assert tuple(await world.rows.fetchrow(run, speech.log.task_id) or ()) == (12, True, 12, 9)
    assert await world.kept(speech) == b"hello and on"


async def test_nothing_of_a_speech_that_goes_on_is_heard_before_it_is_durable(world: World) -> None:
    speech = await world.speech()
    speech.log.goes_on = True
    world.say(speech, b"first")
    assert speech.log.visible == 0
    await world.writer.flush(speech.log)
    assert speech.log.visible == 5
    wake = asyncio.Event()
    speech.log.wakes.add(wake.set)
    speech.log.append(b"second")
    assert (speech.log.visible, wake.is_set()) == (5, False)
    assert speech.log.events(5) == (b"", 5)
    await world.writer.flush(speech.log)
    assert (speech.log.visible, wake.is_set()) == (11, True)
    speech.log.append(b"third")
    speech.log.committed(13)  # in the middle of a delta
    assert speech.log.events(11)[1] == 13


# --- logs that are kept until they are stored ------------------------------------------------------------------------


async def test_a_kept_speech_that_ends_while_it_is_marked_again_keeps_no_other_from_it(world: World) -> None:
    """A fail-over forgot that both were spoken; one is cancelled between the look at its row and the mark."""
    kept = KeptLogs(world.database, world.writer, OWNER)
    marked = asyncio.Event()
    cancelled, other = await world.speech(), await world.speech()

    async def mark_one_that_ends() -> None:
        await world.rows.execute("DELETE FROM internal.runs WHERE task_id = $1", cancelled.log.task_id)
        async with world.database.transaction() as connection:
            await runs.mark_spoken(
                connection,
                Queue(world.database, Listener("")),
                cancelled.log.task_id,
                1,
                OWNER,
                byte_length=cancelled.log.length,
                sample_rate_hz=24_000,
                store_in_seconds=0.0,
            )

    async def mark_other() -> None:
        marked.set()

    for speech, mark in ((cancelled, mark_one_that_ends), (other, mark_other)):
        world.say(speech, b"spoken")
        await world.writer.flush(speech.log)
        kept.keep(speech.log, mark)
    world.speeches.close()  # nobody speaks them any more
    keeping = asyncio.create_task(kept.run())
    await asyncio.wait({keeping, asyncio.create_task(marked.wait())}, timeout=30.0, return_when=asyncio.FIRST_COMPLETED)
    assert not keeping.done()
    assert marked.is_set()
    keeping.cancel()


async def test_a_kept_speech_that_ends_while_it_is_written_again_keeps_no_other_from_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, between the look at its row and the writing of its bytes, which can come to no end any more."""
    kept = KeptLogs(world.database, world.writer, OWNER)
    marked = asyncio.Event()
    cancelled, other = await world.speech(), await world.speech()
    looked = world.writer.is_behind_us

    async def looked_and_cancelled(log: AudioLog) -> bool:
        is_ours = await looked(log)
        await world.rows.execute("DELETE FROM internal.runs WHERE task_id = $1", cancelled.log.task_id)
        return is_ours

    async def mark() -> bool:
        marked.set()
        return True

    for speech in (cancelled, other):
        world.say(speech, b"spoken")
        await world.writer.flush(speech.log)
        kept.keep(speech.log, mark)
    world.speeches.close()
    await lose_commits(world, cancelled, after=0)
    monkeypatch.setattr(world.writer, "is_behind_us", looked_and_cancelled)
    keeping = asyncio.create_task(kept.run())
    await wait_for(marked.is_set, 10.0)
    assert not kept.keeps(cancelled.log.task_id)
    assert kept.keeps(other.log.task_id)
    keeping.cancel()


async def test_a_kept_speech_outlives_an_outage_that_is_longer_than_it_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a standby lacks is seen when it answers, however long that took; afterwards nothing of it is in memory."""
    monkeypatch.setattr("server.relay.kept.KEPT_SECONDS", 1.2)
    in_memory = [0]
    kept = KeptLogs(world.database, world.writer, OWNER, in_memory.append)
    marked = asyncio.Event()
    speech = await world.speech()

    async def mark() -> bool:
        await world.rows.execute("UPDATE internal.runs SET state = 'spoken'")
        marked.set()
        return True

    world.say(speech, b"spoken")
    await world.writer.flush(speech.log)
    world.speeches.close()
    world.proxy.shut()
    kept.keep(speech.log, mark)
    assert sum(in_memory) == 6
    keeping = asyncio.create_task(kept.run())
    await asyncio.sleep(1.5)  # so long nobody answers
    await lose_commits(world, speech, after=0)
    world.proxy.open()
    await wait_for(marked.is_set, 10.0)
    assert await world.kept(speech) == b"spoken"
    await wait_for(lambda: not kept.keeps(speech.log.task_id))
    assert sum(in_memory) == 0
    keeping.cancel()
