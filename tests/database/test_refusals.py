"""What a refusal means, judged by what PostgreSQL and its driver really raise."""

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
import psycopg
import pytest

from server.database.connections import Database, Listener
from server.database.refusals import Meaning, meaning_of, will_pass
from server.dev.postgres import running_postgres
from tests.postgres_proxy import postgres_proxy
from tests.support import wait_for

if TYPE_CHECKING:
    from server.database.connections import Connection


Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def refusal(connection: "Connection", statement: str) -> BaseException:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.execute(statement)
    return caught.value


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("08006", Meaning.AWAY),
        ("28P01", Meaning.AWAY),
        ("57P01", Meaning.AWAY),
        ("57P03", Meaning.AWAY),
        ("25006", Meaning.DEMOTED),
        ("40001", Meaning.BUSY),
        ("40P01", Meaning.BUSY),
        ("53100", Meaning.BUSY),
        ("53300", Meaning.BUSY),
        ("55P03", Meaning.BUSY),
        ("57014", Meaning.BUSY),
        ("58030", Meaning.BUSY),
        ("XX000", Meaning.BUSY),
        ("XX001", Meaning.OURS),
        ("22012", Meaning.OURS),
        ("23505", Meaning.OURS),
        ("42P01", Meaning.OURS),
    ],
)
async def test_a_code_means_the_same_to_everybody(database_url: str, code: str, meaning: Meaning) -> None:
    async with Database.open(database_url, size=1) as database, database.connection() as connection:
        exc = await refusal(connection, f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{code}'; END $$")
        assert meaning_of(exc) is meaning


async def test_a_slow_statement_is_ended_by_the_server_before_we_take_it_for_lost(database_url: str) -> None:
    async with Database.open(database_url, size=1) as database, database.connection() as connection:
        assert await connection.fetchval("SHOW statement_timeout") == "8s", "two seconds before the driver's limit"
        await connection.execute("SET statement_timeout = '20ms'")
        exc = await refusal(connection, "SELECT pg_sleep(10)")
        assert meaning_of(exc) is Meaning.BUSY
        assert not connection.is_closed()


async def test_what_a_vanished_host_holds_is_let_go_of_within_half_a_minute(database_url: str, rows: Rows) -> None:
    async with Database.open(database_url, size=1) as database, database.connection() as connection:
        shown = {
            name: await connection.fetchval(f"SHOW {name}")
            for name in ("idle_in_transaction_session_timeout", "transaction_timeout")
        }
        assert shown == {"idle_in_transaction_session_timeout": "10s", "transaction_timeout": "30s"}
        await connection.execute("SET idle_in_transaction_session_timeout = '20ms'")
        pid = connection.get_server_pid()
        await connection.execute("BEGIN")

        async def is_gone() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid)

        await wait_for(is_gone)
        with pytest.raises(Exception) as caught:
            await connection.execute("SELECT 1")
        assert meaning_of(caught.value) is Meaning.AWAY


@pytest.mark.parametrize("words", [b"tcp_keepalives_idle = 10; ", b"tcp_user_timeout = '25s'"])
async def test_the_server_is_asked_to_notice_that_our_host_has_vanished(database_url: str, words: bytes) -> None:
    """It heeds this on TCP alone, and these tests use sockets of Unix: so only that it was said is seen."""
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=1) as database:
        with door.holding_back(words) as said:
            connecting = asyncio.create_task(database.patiently_say(lambda connection: connection.fetchval("SELECT 1")))
            async with asyncio.timeout(5.0):
                await said.wait()
        assert await connecting == 1


async def test_a_lock_that_is_not_to_be_had_is_busy_and_so_is_a_deadlock(database_url: str) -> None:
    async with Database.open(database_url, size=2) as database:
        async with database.transaction() as one:
            await one.execute("SELECT pg_advisory_xact_lock(1)")
            async with database.connection() as other:
                await other.execute("SET lock_timeout = '20ms'")
                assert meaning_of(await refusal(other, "SELECT pg_advisory_xact_lock(1)")) is Meaning.BUSY
                await other.execute("RESET lock_timeout")

        async def crosswise(first: int, second: int, met: asyncio.Barrier) -> None:
            async with database.transaction() as connection:
                await connection.execute("SET LOCAL deadlock_timeout = '10ms'")
                await connection.execute("SELECT pg_advisory_xact_lock($1)", first)
                await met.wait()
                await connection.execute("SELECT pg_advisory_xact_lock($1)", second)

        met = asyncio.Barrier(2)
        ends = await asyncio.gather(crosswise(1, 2, met), crosswise(2, 1, met), return_exceptions=True)
        (exc,) = [end for end in ends if end is not None]
        assert isinstance(exc, asyncpg.DeadlockDetectedError)
        assert meaning_of(exc) is Meaning.BUSY


async def test_a_server_that_crashes_in_our_hands_is_a_lost_one(data_dir: Path) -> None:
    """Its last words may come while nothing was asked, which the driver has names of its own for."""
    with running_postgres(data_dir, durable=False) as server:
        async with Database.open(server.url(), size=1) as database:
            async with database.connection() as connection:
                with psycopg.connect(server.url()) as victim:
                    os.kill(victim.info.backend_pid, signal.SIGKILL)

                async def until_it_is_gone() -> None:
                    while True:
                        await connection.fetchval("SELECT 1")

                with pytest.raises(Exception) as caught:
                    await until_it_is_gone()
                assert will_pass(caught.value), repr(caught.value)
            assert await database.patiently(lambda connection: connection.fetchval("SELECT 1")) == 1


def test_a_driver_that_lost_count_lost_its_server() -> None:
    assert meaning_of(asyncpg.InternalClientError("got result for unknown protocol state 3")) is Meaning.AWAY


async def test_a_server_that_takes_no_writes_any_more_loses_our_connections(database_url: str) -> None:
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=2) as database:
        async with database.connection() as one, database.connection() as two:
            await one.execute("SELECT 1")
            await two.execute("SELECT 1")
        assert await door.demote() == 2
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as caught:
            async with database.connection() as connection:
                await connection.execute("CREATE TABLE public.written ()")
        assert meaning_of(caught.value) is Meaning.DEMOTED
        async with database.connection() as one, database.connection() as two:
            await one.execute("CREATE TABLE public.written ()")
            await two.execute("DROP TABLE public.written")


async def test_who_only_reads_is_led_away_from_such_a_server_as_well(database_url: str) -> None:
    """A read is never refused there, and may bring what is old: the connection that listens finds it out for all."""
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=2) as database:

        async def everybody_may_write() -> bool:
            async with database.connection() as one, database.connection() as two:
                asked = "SELECT current_setting('transaction_read_only') = 'off'"
                return all([await each.fetchval(asked) for each in (one, two)])

        listener = Listener(door.url, database.pulse)
        listening = asyncio.create_task(listener.run())
        try:
            await listener.connected.wait()
            assert await everybody_may_write()
            assert await door.demote() == 3
            await wait_for(everybody_may_write)
        finally:
            listening.cancel()


async def test_a_worker_says_it_again_where_the_database_is_busy_but_not_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.database.connections.LONGEST_PAUSE_SECONDS", 0.01)
    tries = 0

    async def work(connection: "Connection") -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$")
        return "kept"

    async def never(connection: "Connection") -> None:
        nonlocal tries
        tries += 1
        await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'no login' USING ERRCODE = 'XX000'; END $$")

    async def wrong(connection: "Connection") -> None:
        nonlocal tries
        tries += 1
        await connection.execute("SELECT nothing")

    async with Database.open(database_url, size=1) as database:
        assert await database.patiently(work) == "kept"
        tries = 0
        with pytest.raises(asyncpg.PostgresError):
            await database.patiently(never)
        assert tries == 61
        tries = 0
        with pytest.raises(asyncpg.UndefinedColumnError):
            await database.patiently(wrong)
        assert tries == 1
