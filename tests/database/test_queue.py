"""What starts work: jobs that exist exactly when their rows do, start at once, and survive what ends a worker."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast
from uuid import UUID, uuid4

import asyncpg
import procrastinate
import pytest
from procrastinate import exceptions
from procrastinate.connector import Notify

from server.database.connections import Database, Listener
from server.database.queue import DEFAULT, SYNTHESIS, AsyncpgConnector, Queue, _translate, _Worker
from tests.postgres_proxy import postgres_proxy
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class World:
    """A queue with one job that notes when it ran, and with what."""

    def __init__(self, database: Database, listener: Listener) -> None:
        self.database = database
        self.listener = listener
        self.queue = Queue(database, listener)
        self.queue.register("note", self._note)
        self.ran: dict[UUID, float] = {}
        self.arguments: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0

    async def _note(self, **arguments: Any) -> None:
        self.begun += 1
        self.arguments.append(arguments)
        self.ran[arguments["task_id"]] = time.perf_counter()
        await self.gate.wait()

    async def defer(self, **arguments: Any) -> UUID:
        task_id = uuid4()
        async with self.database.transaction() as connection:
            await self.queue.defer(connection, "note", task_id=task_id, **arguments)
        return task_id

    @asynccontextmanager
    async def working(self, queue: str = DEFAULT, concurrency: int = 50) -> AsyncIterator[None]:
        """A worker, for as long as the block lasts."""
        worker = asyncio.create_task(self.queue.work(queue, concurrency=concurrency))
        await wait_for(lambda: self.queue.up([queue]) and self.listener.connected.is_set())
        try:
            yield
        finally:
            self.gate.set()
            self.queue.stop(queue)
            await worker


@asynccontextmanager
async def world_at(url: str) -> AsyncIterator[World]:
    listener = Listener(url)
    async with Database.open(url, size=10) as database:
        listening = asyncio.create_task(listener.run())
        try:
            yield World(database, listener)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """A queue without a job; no worker runs yet."""
    async with world_at(database_url) as made:
        yield made


# --- deferring -------------------------------------------------------------------------------------------------------


async def jobs(rows: Rows) -> int:
    count: int = await rows.fetchval("SELECT count(*) FROM internal.procrastinate_jobs")
    return count


async def defer_in_vain(world: World) -> None:
    async with world.database.transaction() as connection:
        await world.queue.defer(connection, "note", task_id=uuid4())
        raise ZeroDivisionError


async def test_a_job_exists_exactly_when_its_transaction_commits(world: World, rows: Rows) -> None:
    with pytest.raises(ZeroDivisionError):
        await defer_in_vain(world)
    assert await jobs(rows) == 0
    async with world.database.transaction() as connection:
        await world.queue.defer(connection, "note", task_id=uuid4())
        assert await jobs(rows) == 0, "nobody sees it before the commit"
    assert await jobs(rows) == 1


async def test_a_job_that_is_rolled_back_never_runs(world: World) -> None:
    async with world.working():
        with pytest.raises(ZeroDivisionError):
            await defer_in_vain(world)
        kept = await world.defer()
        await wait_for(lambda: world.ran)
        assert set(world.ran) == {kept}


async def test_ids_arrive_as_ids_and_a_finished_job_leaves_nothing(world: World, rows: Rows) -> None:
    async with world.working():
        task_id = await world.defer(attempt=3, object_key="a/b.mp3")
        await wait_for(lambda: world.arguments)
        assert world.arguments == [{"task_id": task_id, "attempt": 3, "object_key": "a/b.mp3"}]

        async def gone() -> bool:
            return await jobs(rows) == 0

        await wait_for(gone)


async def test_a_job_for_later_waits(world: World, rows: Rows) -> None:
    async with world.working():
        later = await world.defer(in_seconds=0.6)
        at = time.perf_counter()
        sooner = await world.defer()
        await wait_for(lambda: len(world.ran) == 2)
    assert world.ran[sooner] - at < 0.5
    assert world.ran[later] - at > 0.5
    assert await world.queue.depth(rows) == 0


async def test_a_job_of_another_queue_is_left_alone(world: World, rows: Rows) -> None:
    async with world.working(SYNTHESIS):
        await world.defer()
        async with world.database.transaction() as connection:
            await world.queue.defer(connection, "note", queue=SYNTHESIS, task_id=uuid4())
        await wait_for(lambda: world.begun == 1)
        assert await world.queue.depth(rows, DEFAULT) == 1


async def test_a_failing_job_does_not_stop_the_worker(world: World, rows: Rows) -> None:
    async def fail(**_: Any) -> None:
        raise RuntimeError("on purpose")

    world.queue.register("fail", fail)
    async with world.working():
        async with world.database.transaction() as connection:
            await world.queue.defer(connection, "fail", task_id=uuid4())
        await world.defer()
        await wait_for(lambda: world.ran)

        async def gone() -> bool:
            return await jobs(rows) == 0

        await wait_for(gone)


# --- dispatch --------------------------------------------------------------------------------------------------------


async def test_no_job_waits_for_the_polling_interval(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    """Two defers a few milliseconds apart and then silence are what makes the library's worker lose a wake-up."""
    asked: dict[UUID, float] = {}

    async def one(delay: float) -> None:
        await asyncio.sleep(delay)
        task_id = await world.defer()
        asked[task_id] = time.perf_counter()

    async with world.working():
        for number in range(60):
            await asyncio.gather(one(0.0), one((number % 9) * 0.0005))
            await wait_for(lambda: len(world.ran) == len(asked), every_seconds=0.002)
    waits = sorted(world.ran[task_id] - at for task_id, at in asked.items())
    figures = {"p50": waits[len(waits) // 2], "p99": waits[int(len(waits) * 0.99)], "max": waits[-1]}
    record_property("dispatch", figures)
    print("dispatch, ms:", {name: round(seconds * 1000, 1) for name, seconds in figures.items()})
    assert waits[-1] < 0.5


@pytest.mark.parametrize("in_seconds", [0.0, 60.0])
async def test_a_job_for_later_has_no_worker_look_for_it_now(
    world: World, rows: Rows, monkeypatch: pytest.MonkeyPatch, in_seconds: float
) -> None:
    monkeypatch.setattr("server.database.queue._REPEAT_AFTER_SECONDS", (0.0,))
    heard: list[str] = []
    after = asyncio.Event()

    async def note(*, channel: str, payload: str) -> None:
        heard.append(channel)

    listening = asyncio.create_task(
        world.queue._connector.listen_notify(cast(Notify, note), ["procrastinate_queue_v1#default"])
    )
    with world.listener.on("afterwards", lambda payload: after.set() if payload else None):
        await wait_for(lambda: heard)  # once, for what was sent before anybody listened
        heard.clear()
        await world.defer(in_seconds=in_seconds)
        await rows.execute("NOTIFY afterwards, 'now'")
        await after.wait()
        if in_seconds:
            await asyncio.sleep(0.01)
            assert not heard
        else:
            await wait_for(lambda: heard)
    listening.cancel()


async def test_jobs_run_side_by_side(world: World) -> None:
    world.gate.clear()
    async with world.working(concurrency=5):
        for _ in range(8):
            await world.defer()
        await wait_for(lambda: world.begun == 5)
        world.gate.set()
        await wait_for(lambda: world.begun == 8)


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def listening(rows: Rows) -> int | None:
    """The backend of the connection that listens."""
    pid: int | None = await rows.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
    )
    return pid


async def test_a_lost_listening_connection_comes_back_by_itself(world: World, rows: Rows) -> None:
    """And brings a wake-up with it, for what was deferred while nobody listened."""
    async with world.working():
        for _ in range(3):
            lost = await wait_for(lambda: listening(rows))
            await rows.execute("SELECT pg_terminate_backend($1)", lost)
            meanwhile = await world.defer()
            await wait_for(lambda: meanwhile in world.ran)  # noqa: B023

            async def is_back() -> bool:
                return await listening(rows) not in (None, lost)  # noqa: B023

            await wait_for(is_back)
            at = time.perf_counter()
            told = await world.defer()
            await wait_for(lambda: told in world.ran)  # noqa: B023
            assert world.ran[told] - at < 0.5
    assert world.begun == 6


async def test_a_worker_outlives_an_outage_and_does_not_run_a_job_twice(database_url: str) -> None:
    async with postgres_proxy(database_url) as door, world_at(door.url) as world:
        world.gate.clear()
        async with world.working():
            running = await world.defer()
            await wait_for(lambda: world.begun == 1)
            door.shut()
            await wait_for(lambda: door.refused)
            world.gate.set()
            door.open()
            await wait_for(world.listener.connected.is_set)
            after = await eventually(world.defer)
            await wait_for(lambda: after in world.ran)
            assert world.queue.up([DEFAULT])
    assert set(world.ran) == {running, after}
    assert world.begun == 2


async def eventually(defer: Callable[[], Any]) -> UUID:
    """Defer as soon as the database takes it; a request would have answered 503 meanwhile."""

    async def attempt() -> UUID | None:
        try:
            result: UUID = await defer()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None
        return result

    return await wait_for(attempt)


async def test_a_worker_that_dies_is_replaced(world: World, rows: Rows) -> None:
    async with world.working():
        await rows.execute("ALTER TABLE internal.procrastinate_workers RENAME TO mislaid")
        await rows.execute("DELETE FROM internal.mislaid")
        await world.defer()
        await wait_for(lambda: not world.queue.up([DEFAULT]))
        await rows.execute("ALTER TABLE internal.mislaid RENAME TO procrastinate_workers")
        await wait_for(lambda: world.begun == 1)
        assert world.queue.up([DEFAULT])


async def test_a_worker_whose_fetch_fails_goes_on_while_its_jobs_run(
    world: World, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process may have pruned its row, or a fail-over lost it: the next fetch violates a foreign key.

    Ended and replaced it would wait for the longest speech before the next one could begin.
    """
    world.gate.clear()
    async with world.working():
        await world.defer()
        await wait_for(lambda: world.begun == 1)
        before = await worker_ids(rows)
        await rows.execute("DELETE FROM internal.procrastinate_workers")
        await world.defer()
        await wait_for(lambda: world.begun == 2, 5.0)
        assert await worker_ids(rows) != before
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_job_that_has_left_the_queue_meanwhile_is_no_error(
    world: World, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """A fail-over may lose it, or the answer that it was finished: then it is finished twice."""
    caplog.set_level(logging.INFO, "server")
    world.gate.clear()
    async with world.working():
        await world.defer()
        await wait_for(lambda: world.begun == 1)
        await rows.execute("DELETE FROM internal.procrastinate_jobs")
        world.gate.set()
        await world.defer()
        await wait_for(lambda: world.begun == 2)
        await wait_for(lambda: "a job had left the queue" in caplog.text)
    gc.collect()  # a task that nobody asks how it ended says so then
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_worker_whose_heartbeat_fails_goes_on_while_its_jobs_run(
    world: World, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    world.gate.clear()
    worker = _Worker(
        world.queue._app, queues=[DEFAULT], name=DEFAULT, update_heartbeat_interval=0.02, install_signal_handlers=False
    )
    working = asyncio.create_task(worker.run())  # type: ignore[no-untyped-call]
    try:
        await world.defer()
        await wait_for(lambda: world.begun == 1)
        await rows.execute("ALTER TABLE internal.procrastinate_workers RENAME TO mislaid")
        await wait_for(lambda: "heartbeat of the queue not written" in caplog.text)
        await rows.execute("ALTER TABLE internal.mislaid RENAME TO procrastinate_workers")
        world.gate.set()
        await world.defer()
        await wait_for(lambda: world.begun == 2)
    finally:
        worker.stop()  # type: ignore[no-untyped-call]
        await working


async def worker_ids(rows: Rows) -> list[int]:
    return [row["id"] for row in await rows.fetch("SELECT id FROM internal.procrastinate_workers")]


async def test_a_worker_that_is_told_to_stop_finishes_what_it_runs(world: World) -> None:
    world.gate.clear()
    async with world.working(SYNTHESIS):
        async with world.database.transaction() as connection:
            await world.queue.defer(connection, "note", queue=SYNTHESIS, task_id=uuid4())
        await wait_for(lambda: world.begun == 1)
        world.queue.stop(SYNTHESIS)
        async with world.database.transaction() as connection:
            await world.queue.defer(connection, "note", queue=SYNTHESIS, task_id=uuid4())
        assert world.queue.up([SYNTHESIS])
        world.gate.set()
        await wait_for(lambda: not world.queue.up([SYNTHESIS]))
    assert world.begun == 1


# --- the connector ---------------------------------------------------------------------------------------------------


def test_named_places_become_numbered_ones() -> None:
    statement = _translate("SELECT %(a)s, %(b)s, %(a)s, '100%%' WHERE x LIKE %(c)s")
    assert statement.sql == "SELECT $1, $2, $1, '100%' WHERE x LIKE $3"
    assert statement.values({"c": 3, "b": 2, "a": 1, "unused": 0}) == [1, 2, 3]


def test_a_number_that_is_joined_to_text_goes_as_text() -> None:
    statement = _translate("SELECT (%(n)s || ' SECOND')::interval, %(m)s")
    assert statement.values({"n": 30, "m": 30}) == ["30", 30]


async def test_every_query_of_the_library_that_joins_numbers_to_text_works(world: World) -> None:
    app = procrastinate.App(connector=AsyncpgConnector(world.database, world.listener))
    assert list(await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=30)) == []
    assert list(await app.job_manager.prune_stalled_workers(86_400.0)) == []
    await app.job_manager.delete_old_jobs(nb_hours=1)
    assert await app.check_connection_async()


async def test_the_connector_speaks_the_librarys_errors(world: World) -> None:
    connector = AsyncpgConnector(world.database, world.listener)
    with pytest.raises(exceptions.NoResult):
        await connector.execute_query_one_async("SELECT 1 WHERE %(no)s", no=False)
    with pytest.raises(exceptions.ConnectorException):
        await connector.execute_query_async("SELECT nonsense")
    app = procrastinate.App(connector=connector)
    job = app.configure_task("anything", queueing_lock="one")
    await job.defer_async()
    with pytest.raises(exceptions.AlreadyEnqueued):
        await job.defer_async()
