"""What counts as a lost database, judged by what the driver really raises."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from server.database import Database, is_away
from tests.postgres_proxy import postgres_proxy

if TYPE_CHECKING:
    from server.database import Connection


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
        assert not is_away(exc), exc


async def test_a_file_that_is_missing_is_no_lost_database() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open("/nowhere/at/all")  # noqa: ASYNC230, SIM115
    assert not is_away(caught.value)


async def test_a_lost_database_is_one_whatever_was_being_done(database_url: str) -> None:
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=1) as database:
        async with database.connection() as connection:
            door.shut()
            assert is_away(await failure_of(lambda: connection.fetchval("SELECT 1")))
            assert is_away(await failure_of(lambda: connection.fetchval("SELECT 1"))), "closed by now"
        assert is_away(await failure_of(database.connection().__aenter__)), "nobody answers"


async def test_all_connections_in_use_is_trouble_of_the_database(database_url: str) -> None:
    async with (
        Database.open(database_url, size=1, acquire_seconds=0.05) as database,
        database.connection(),
    ):
        assert is_away(await failure_of(database.connection().__aenter__))


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
        assert is_away(exc)
