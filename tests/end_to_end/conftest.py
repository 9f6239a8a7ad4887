"""A world with more than one server."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from server.queue import SYNTHESIS
from server.settings import Settings
from tests.end_to_end.hearing import Ears
from tests.gateway import Gateway, running_gateway
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import wait_for


async def speak_nothing(gateway: Gateway) -> None:
    """Let a server take no synthesis, so that a test knows who speaks."""
    gateway.parts.queue.stop(SYNTHESIS)
    await wait_for(lambda: not gateway.parts.queue.up([SYNTHESIS]))


@pytest.fixture
async def anybody(gateway: Gateway) -> AsyncIterator[Ears]:
    """Somebody without a token at that server."""
    async with Ears(gateway.url) as ears:
        yield ears


@pytest.fixture
async def neighbours_door(database_url: str) -> AsyncIterator[PostgresProxy]:
    """What stands between the neighbour and PostgreSQL."""
    async with postgres_proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def neighbour(settings: Settings, neighbours_door: PostgresProxy, gateway: Gateway) -> AsyncIterator[Gateway]:
    """A second server on the same database and storage, with memory of its own. It speaks nothing itself."""
    async with running_gateway(replace(settings, database_url=neighbours_door.url)) as running:
        await speak_nothing(running)
        yield running


@pytest.fixture
async def visitor(neighbour: Gateway) -> AsyncIterator[Ears]:
    """Somebody without a token at the neighbour."""
    async with Ears(neighbour.url) as ears:
        yield ears
