"""How large the database of these tests is: small enough for everybody's patience, or as large as one gets in years."""

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Size:
    """How many rows there are; whoever has much has a third of the generations and voices."""

    generations: int
    tasks: int
    voices: int
    long: bool = False


SMALL = Size(generations=30_000, tasks=60_000, voices=6_000)
LONG = Size(generations=1_000_000, tasks=10_000_000, voices=100_000, long=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="a million generations and ten million tasks")


def size_of(config: pytest.Config) -> Size:
    """The size of this run's database: `make size` is the long form."""
    return LONG if config.getoption("long", default=False) else SMALL


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    return size_of(request.config)
