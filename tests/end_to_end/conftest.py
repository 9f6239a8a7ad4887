"""A world with more than one server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from server.database.queue import DEFAULT, SYNTHESIS
from server.parts import STORED_AT_ONCE
from server.settings import VC_REALTIME, Settings
from tests.end_to_end.hearing import Ears
from tests.gateway import Gateway, running_gateway
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import wait_for

QWEN_AUDIO = "qwen-audio-3.0-tts-flash"


async def take_no_jobs(gateway: Gateway, queue: str = SYNTHESIS) -> None:
    """Let a server leave the jobs of one queue to others, so that a test knows who does them."""
    await wait_for(lambda: gateway.parts.queue.up([queue]))  # one that only begins would not hear that it is to stop
    gateway.parts.queue.stop(queue)
    await wait_for(lambda: not gateway.parts.queue.up([queue]))


@asynccontextmanager
async def storing_by_job(gateway: Gateway) -> AsyncIterator[None]:
    """Keep a server from storing from memory what it has spoken, until the block is left."""
    for _ in range(STORED_AT_ONCE):
        await gateway.parts.storing.acquire()
    try:
        yield
    finally:
        for _ in range(STORED_AT_ONCE):
            gateway.parts.storing.release()


@asynccontextmanager
async def storing_nothing(gateway: Gateway) -> AsyncIterator[None]:
    """Let a server leave what it has spoken to others to store, until the block is left."""
    await take_no_jobs(gateway, DEFAULT)
    async with storing_by_job(gateway):
        yield


@asynccontextmanager
async def gateway_behind(door: PostgresProxy, settings: Settings) -> AsyncIterator[Gateway]:
    """One more server on the same database and storage, with memory of its own."""
    async with running_gateway(replace(settings, database_url=door.url)) as running:
        yield running


async def followers(gateway: Gateway, count: int) -> None:
    """Wait until so many streams are open."""
    await wait_for(lambda: f"utter_active_streams {count}.0".encode() in gateway.parts.metrics.exposition())


@asynccontextmanager
async def deaf(server_url: str, url: str, accept: str = "text/event-stream") -> AsyncIterator[socket.socket]:
    """A listener that asks and then reads nothing."""
    parts = urlsplit(server_url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (parts.hostname, parts.port))
        await loop.sock_sendall(connection, f"GET {url} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
        yield connection


@pytest.fixture(params=[VC_REALTIME, QWEN_AUDIO], ids=["realtime", "inference"])
def spoken_model(request: pytest.FixtureRequest) -> str:
    """The model of one lane after the other: what a listener hears of a speech is the same on both."""
    model: str = request.param
    return model


@pytest.fixture(params=[VC_REALTIME, pytest.param(QWEN_AUDIO, marks=pytest.mark.slow)], ids=["realtime", "inference"])
def slowly_either_model(request: pytest.FixtureRequest) -> str:
    """The same where it takes its time; what is spoken in tasks waits for `make more`."""
    model: str = request.param
    return model


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
