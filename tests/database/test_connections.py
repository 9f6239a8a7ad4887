"""What counts as a lost database, judged by what the driver really raises."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from server.database.connections import Database, Listener
from server.database.refusals import will_pass
from tests.postgres_proxy import postgres_proxy
from tests.support import wait_for

if TYPE_CHECKING:
    from server.database.connections import Connection


async def failure_of(work: Callable[[], Awaitable[object]]) -> BaseException:
    with pytest.raises(Exception) as caught:
        await work()
    return caught.value


@pytest.mark.parametrize(
    "mistake",
    [
        lambda connection: connection.fetchval("SELECT $1::int", "no number"),
        lambda connection: connection.fetchval("SELECT $1::int"),
        lambda connection: connection.fetchval("SELECT nothing"),
        lambda connection: connection.fetchval("SELECT 1 / 0"),
        lambda connection: asyncio.gather(connection.fetchval("SELECT 1"), connection.fetchval("SELECT 2")),
    ],
)
async def test_a_mistake_of_ours_is_not_taken_for_a_lost_database(
    database_url: str, mistake: "Callable[[Connection], Awaitable[object]]"
) -> None:
    async with Database.open(database_url, size=1) as database, database.connection() as connection:
        exc = await failure_of(lambda: mistake(connection))
        assert not will_pass(exc), exc


async def test_a_file_that_is_missing_is_no_lost_database() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open("/nowhere/at/all")  # noqa: ASYNC230, SIM115
    assert not will_pass(caught.value)


async def test_a_lost_database_is_one_whatever_was_being_done(database_url: str) -> None:
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=1) as database:
        async with database.connection() as connection:
            door.shut()
            assert will_pass(await failure_of(lambda: connection.fetchval("SELECT 1")))
            assert will_pass(await failure_of(lambda: connection.fetchval("SELECT 1"))), "closed by now"
        assert will_pass(await failure_of(database.connection().__aenter__)), "nobody answers"


async def test_all_connections_in_use_is_trouble_of_the_database(database_url: str) -> None:
    async with Database.open(database_url, size=1) as database, database.connection():
        hasty = Database(database.pool, database.pulse, acquire_seconds=0.05)
        assert will_pass(await failure_of(hasty.connection().__aenter__))


async def test_a_socket_that_is_not_there_is_a_lost_database(database_url: str) -> None:
    """Where PostgreSQL's folder has gone the driver says only that a file is missing."""
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=1) as database:
        async with database.connection() as connection:
            await connection.execute("SELECT 1")
        await database.pool.expire_connections()
        door.shut()
        door.remove()
        exc = await failure_of(database.connection().__aenter__)
        assert isinstance(exc.__cause__, FileNotFoundError)
        assert will_pass(exc)


# --- silence, cancellation, and rooms of one's own --------------------------------------------------------------------


async def test_a_host_that_vanished_is_found_out_within_three_seconds_and_known_from_then_on(database_url: str) -> None:
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=2) as database:
        listener = Listener(door.url, database.pulse)
        listening = asyncio.create_task(listener.run())
        try:
            await listener.connected.wait()
            with door.held():
                started = time.monotonic()
                async with asyncio.timeout(3.0):
                    ends = await asyncio.gather(*(one_answer(database) for _ in range(4)), return_exceptions=True)
                assert all(isinstance(end, BaseException) and will_pass(end) for end in ends), ends
                assert time.monotonic() - started > 1.0, "slow is not yet silent"
                async with asyncio.timeout(0.2):
                    assert will_pass(await failure_of(lambda: one_answer(database)))
                assert not database.pulse.writable
            await wait_for(lambda: database.pulse.writable)
            assert await one_answer(database) == 1
        finally:
            listening.cancel()


async def one_answer(database: Database) -> int:
    async with database.transaction() as connection:
        answer: int = await connection.fetchval("SELECT 1")
        return answer


@pytest.mark.parametrize("cut", [b"BEGIN", b"COMMIT", b"ROLLBACK"])
async def test_a_cancellation_never_cuts_the_ends_of_a_transaction(
    database_url: str, caplog: pytest.LogCaptureFixture, cut: bytes
) -> None:
    """The connection goes back as it came, and no line alarms anybody."""
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=1) as database:

        async def work() -> None:
            async with database.transaction() as connection:
                await connection.execute("SELECT 1")
                if cut == b"ROLLBACK":
                    raise KeyError

        await asyncio.gather(work(), return_exceptions=True)
        with door.holding_back(cut) as held:
            task = asyncio.create_task(work())
            await held.wait()
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done(), "it waits for the end of what it says"
        with pytest.raises(asyncio.CancelledError):
            await task
        async with database.connection() as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT 1") == 1
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_transaction_that_cannot_be_ended_costs_its_connection_and_little_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.database.connections.END_SECONDS", 0.2)
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=1) as database:

        async def work() -> None:
            async with database.transaction() as connection:
                await connection.execute("SELECT 1")

        await work()
        with door.holding_back(b"COMMIT") as held:
            task = asyncio.create_task(work())
            await held.wait()
            task.cancel()
            async with asyncio.timeout(2.0):
                await asyncio.wait({task})
            assert task.cancelled()
        await work()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_many_cancelled_transactions_leave_nothing_behind(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it comes: a user may cancel in any moment."""
    async with Database.open(database_url, size=2) as database:

        async def work() -> None:
            async with database.transaction() as connection:
                await connection.execute("SELECT pg_sleep(0.002)")

        for number in range(150):
            task = asyncio.create_task(work())
            for _ in range(number % 30):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            async with database.connection() as connection:
                assert not connection.is_in_transaction()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_spool_and_leases_have_connections_that_no_request_can_take(database_url: str) -> None:
    async with Database.open(database_url, size=4) as database, database.connection(), database.connection():
        hasty = Database(database.pool, database.pulse, acquire_seconds=0.05)
        assert will_pass(await failure_of(hasty.connection().__aenter__)), "two are all that others have"
        for apart in (database.for_spool, database.for_leases):
            async with apart.connection() as connection:
                assert await connection.fetchval("SELECT 1") == 1
        async with database.for_spool.connection() as connection:
            in_all = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            )
        assert in_all == 4
