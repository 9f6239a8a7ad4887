"""How large the database of these tests is: small enough for everybody's patience, or as large as one gets in years."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from server.database import connections
from tests.at_size.statements import Collected

if TYPE_CHECKING:
    from server.database.connections import Connection


@dataclass(frozen=True)
class Size:
    """How many rows there are; whoever has much has a third of the generations and voices."""

    generations: int
    tasks: int
    voices: int
    objects: int
    long: bool = False


SMALL = Size(generations=18_000, tasks=36_000, voices=6_000, objects=1_500)
LONG = Size(generations=1_000_000, tasks=10_000_000, voices=100_000, objects=200_000, long=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="a million generations and ten million tasks")


def size_of(config: pytest.Config) -> Size:
    """The size of this run's database: `make size` is the long form."""
    return LONG if config.getoption("long", default=False) else SMALL


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    return size_of(request.config)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Collected:
    """What the servers of this test say to their database, from its start."""
    found = Collected()
    prepare_as_ever = connections._prepare_bounded

    async def prepare_and_listen(connection: "Connection") -> None:
        await prepare_as_ever(connection)
        connection.add_query_logger(found.add)

    monkeypatch.setattr(connections, "_prepare_bounded", prepare_and_listen)
    say_as_ever = vars(asyncpg.Connection)["_time_and_log"]

    def say(connection: Any, *said: Any) -> Any:
        found.note_place()
        return say_as_ever(connection, *said)

    monkeypatch.setattr(asyncpg.Connection, "_time_and_log", say)
    return found
