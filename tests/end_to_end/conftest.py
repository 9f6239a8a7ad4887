"""A world with more than one server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from server.queue import SYNTHESIS
from server.settings import Settings
from tests.end_to_end.hearing import Ears
from tests.gateway import Gateway, running_gateway
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import wait_for


async def take_no_jobs(gateway: Gateway, queue: str = SYNTHESIS) -> None:
    """Let a server leave the jobs of one queue to others, so that a test knows who does them."""
    gateway.parts.queue.stop(queue)
    await wait_for(lambda: not gateway.parts.queue.up([queue]))


@asynccontextmanager
async def gateway_behind(door: PostgresProxy, settings: Settings) -> AsyncIterator[Gateway]:
    """One more server on the same database and storage, with memory of its own."""
    async with running_gateway(replace(settings, database_url=door.url)) as running:
        yield running


@pytest.fixture
async def anybody(gateway: Gateway) -> AsyncIterator[Ears]:
    """Somebody without a token at the server."""
    async with Ears(gateway.url) as ears:
        yield ears


@pytest.fixture
async def door(database_url: str) -> AsyncIterator[PostgresProxy]:
    """What stands between the second server and PostgreSQL."""
    async with postgres_proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def neighbour(settings: Settings, door: PostgresProxy, gateway: Gateway) -> AsyncIterator[Gateway]:
    """A second server, which speaks nothing itself."""
    async with gateway_behind(door, settings) as running:
        await take_no_jobs(running)
        yield running


@pytest.fixture
async def visitor(neighbour: Gateway) -> AsyncIterator[Ears]:
    """Somebody without a token at the second server."""
    async with Ears(neighbour.url) as ears:
        yield ears


@pytest.fixture
async def speaker(settings: Settings, door: PostgresProxy, gateway: Gateway) -> AsyncIterator[Gateway]:
    """A second server, which speaks whatever is asked for; the first one speaks nothing."""
    async with gateway_behind(door, settings) as running:
        await take_no_jobs(gateway)
        yield running
