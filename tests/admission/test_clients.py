"""Clients that send too much, too slowly, or are too many: they are told so, and nobody else notices."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest

from server.admission import clients
from server.admission.clients import HEAD_BYTES, most_connections, raise_file_limit
from server.dev.simulator import Simulator
from server.handlers import requests
from server.settings import Deadlines, Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.support import wait_for


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a server that soon loses patience, and has room for few."""
    return replace(settings, connections_limit=5, streams_per_user=2, deadlines=Deadlines(head_seconds=0.5))


class Wire:
    """A connection on which a test says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, words: bytes) -> None:
        self.writer.write(words)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer that has a length."""
        async with asyncio.timeout(10.0):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def closed(self) -> bool:
        """Wait until the server has hung up."""
        async with asyncio.timeout(10.0):
            try:
                return await self.reader.read() is not None
            except ConnectionResetError:
                return True

    async def get(self, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        await self.say("\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())
        return await self.answer()


@asynccontextmanager
async def wire(gateway: Gateway) -> AsyncIterator[Wire]:
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def says(body: bytes, category: str) -> str:
    problem: dict[str, Any] = json.loads(body)
    assert problem["category"] == category
    assert problem["request_id"]
    return str(problem["detail"])


async def refused(gateway: Gateway, what: str) -> float:
    """How often that was counted."""
    return gateway.parts.metrics.registry.get_sample_value("utter_refused_total", {"what": what}) or 0.0


def door(gateway: Gateway) -> clients.Door:
    return cast(type[clients.GuardedProtocol], gateway.server.config.http_protocol_class).door


def connected(gateway: Gateway) -> int:
    return len(gateway.server.server_state.connections)


def half_a_request(client: Client) -> bytes:
    """A text whose last byte is still to come."""
    words = ["POST /api/generate HTTP/1.1", "Host: x", f"Authorization: Bearer {client.token}", "Content-Length: 2"]
    return "\r\n".join([*words, "", "{"]).encode()


# --- heads ------------------------------------------------------------------------------------------------------------


async def test_a_head_that_never_ends_is_cut_at_64_kilobytes(gateway: Gateway) -> None:
    async with wire(gateway) as rude, wire(gateway) as polite:
        await rude.say(b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Long: ")
        for _ in range(HEAD_BYTES // 8192 + 1):
            await rude.say(b"a" * 8192)
        status, _, body = await rude.answer()
        assert (status, says(body, "too_large")) == (431, "The head of this request is too large.")
        assert await rude.closed()
        assert (await polite.get("/api/health"))[0] == 200
        assert await refused(gateway, "heads") == 1


async def test_a_head_that_comes_at_once_is_measured_too(gateway: Gateway) -> None:
    async with wire(gateway) as rude:
        lines = "".join(f"X-{number}: {'a' * 1000}\r\n" for number in range(80))
        await rude.say(f"GET /api/health HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        assert (await rude.answer())[0] == 431
    async with wire(gateway) as fair:
        assert (await fair.get("/api/health", f"X-Long: {'a' * 50_000}"))[0] == 200


@pytest.mark.parametrize("said", [b"", b"\r\n\r\n", b"GET /api/health HTTP/1.1\r\nHost: x\r\n"])
async def test_who_does_not_come_to_the_point_is_sent_away(gateway: Gateway, said: bytes) -> None:
    async with wire(gateway) as slow:
        await slow.say(said)
        async with asyncio.timeout(5.0):
            assert await slow.closed()


async def test_a_slow_body_is_not_a_slow_head(gateway: Gateway, client: Client) -> None:
    async with wire(gateway) as slow:
        await slow.say(half_a_request(client))
        await asyncio.sleep(0.8)
        await slow.say(b"}")
        status, _, body = await slow.answer()
        assert (status, says(body, "validation")) == (400, "`voice_id` is missing.")


async def test_what_is_no_http_is_refused_in_json(gateway: Gateway) -> None:
    async with wire(gateway) as strange:
        await strange.say(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        status, headers, body = await strange.answer()
        assert (status, headers["content-type"]) == (400, "application/json")
        assert says(body, "validation")


# --- connections ------------------------------------------------------------------------------------------------------


async def test_who_only_waits_makes_room_for_who_asks(gateway: Gateway) -> None:
    async with AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(wire(gateway)) for _ in range(5)]
        for each in idle:
            assert (await each.get("/api/health"))[0] == 200
        one_more = await stack.enter_async_context(wire(gateway))
        assert (await one_more.get("/api/languages"))[0] == 200
        assert await idle[0].closed(), "who has waited for the longest"
        assert (await idle[1].get("/api/languages"))[0] == 200


async def test_over_the_limit_only_what_cannot_wait_is_served(
    gateway: Gateway,
) -> None:
    async with AsyncExitStack() as stack:
        user = gateway.client()
        for _ in range(5):
            busy = await stack.enter_async_context(wire(gateway))
            await busy.say(half_a_request(user))
        wires = [await stack.enter_async_context(wire(gateway)) for _ in range(3)]
        status, headers, body = await wires[0].get("/api/voices")
        assert (status, headers["connection"]) == (503, "close")
        assert says(body, "overloaded") == "Too many are connected right now. Please try again in a moment."
        assert int(headers["retry-after"]) > 0
        assert (await wires[1].get("/api/health"))[0] == 200
        assert (await wires[1].get("/api/ready"))[0] in (200, 503)
        cancel = "/api/tasks/5f0c4a7e-8f3b-4f8e-9d5c-0123456789ab/cancel"
        token = f"Authorization: Bearer {user.token}"
        assert (await wires[2].get(cancel, token, "Content-Length: 0", method="POST"))[0] == 404, "it was looked for"
        assert await refused(gateway, "crowded") == 1


@pytest.fixture
async def patient(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A server with room for five, and for two more heads, that takes its time with each."""
    monkeypatch.setattr(clients, "SPARE", 2)
    async with running_gateway(replace(settings, deadlines=Deadlines(head_seconds=60.0))) as gateway:
        yield gateway


async def test_who_says_nothing_makes_room_for_who_asks(patient: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "SILENT_SECONDS", 0.0)
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(wire(patient)) for _ in range(5)]
        await silent[1].say(b"GET /api/health HTTP/1.1\r\n")
        await wait_for(lambda: connected(patient) == 5)
        asking = [await stack.enter_async_context(wire(patient)) for _ in range(2)]
        for one in asking:
            assert (await one.get("/api/languages"))[0] == 200
        assert await silent[0].closed(), "who had said nothing for the longest"
        status, headers, body = await silent[1].answer()
        assert (status, headers["connection"], says(body, "overloaded")) == (503, "close", clients.TOO_MANY)
        assert int(headers["retry-after"]) > 0
        assert (await silent[2].get("/api/languages"))[0] == 200, "as many went as came"
        assert await refused(patient, "connections") == 2


async def test_however_many_say_nothing_what_cannot_wait_is_served(patient: Gateway) -> None:
    async with AsyncExitStack() as stack:
        user = patient.client()
        for _ in range(5):
            busy = await stack.enter_async_context(wire(patient))
            await busy.say(half_a_request(user))
        await wait_for(lambda: connected(patient) == 5 and not door(patient).unsaid)
        crowd = [await stack.enter_async_context(wire(patient)) for _ in range(20)]
        await wait_for(lambda: connected(patient) == 7)
        for path, expected in (("/api/health", 200), ("/api/ready", 200), ("/metrics", 200), ("/api/voices", 503)):
            async with wire(patient) as one:
                assert (await one.get(path, "Connection: close"))[0] == expected
        for one in crowd[:18]:
            assert await one.closed()
        assert await refused(patient, "connections") >= 18


async def test_one_person_leaves_room_for_others(
    settings: Settings, database_url: str, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream and two bodies that do not come are as much as one may have of twelve connections."""
    monkeypatch.setattr(clients, "LEAST_SHARE", 1)
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    async with (
        running_gateway(replace(settings, connections_limit=12, deadlines=Deadlines())) as gateway,
        gateway.client() as user,
        gateway.client() as other,
        AsyncExitStack() as stack,
    ):
        task = await user.generate(await insert_voice(database_url, user.user_id))
        await stack.enter_async_context(user.events(task["stream_url"]))
        busy = [await stack.enter_async_context(wire(gateway)) for _ in range(2)]
        for one in busy:
            await one.say(half_a_request(user))

        async def full() -> bool:
            return (await user.http.get("/api/usage")).status_code == 429

        await wait_for(full)
        before = await refused(gateway, "requests_of_one")
        for address in ("/api/usage", task["stream_url"]):
            response = await user.http.get(address)
            problem_of(response, 429, "overloaded", says="too many requests open")
            assert int(response.headers["retry-after"]) > 0
        assert await refused(gateway, "requests_of_one") == before + 2
        assert (await other.http.get("/api/usage")).status_code == 200
        assert (await user.http.post(f"/api/tasks/{task['task_id']}/cancel")).json()["cancelled"] is True
        busy[0].writer.transport.abort()

        async def has_room() -> bool:
            return (await user.http.get("/api/usage")).status_code == 200

        await wait_for(has_room)
        held.release()


async def test_all_together_have_so_many_streams_and_no_more(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.parts.streams, "_at_most", 1)
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    task = await client.generate(voice_id)
    async with client.events(task["stream_url"]) as events:
        await anext(events)
        response = await client.http.get(task["stream_url"])
        problem_of(response, 503, "overloaded", says="Too many people are listening")
        assert int(response.headers["retry-after"]) > 0
        assert await refused(gateway, "streams") == 1
    held.release()


@pytest.mark.parametrize("drops", [b"", b" "], ids=["silence", "drops"])
async def test_a_body_that_hardly_comes_holds_no_connection(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, drops: bytes
) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.5)
    async with wire(gateway) as slow, asyncio.timeout(10.0):
        await slow.say(half_a_request(gateway.client()).replace(b"Length: 2", b"Length: 2000"))
        answering = asyncio.create_task(slow.answer())
        while not (await asyncio.wait({answering}, timeout=0.1))[0]:
            await slow.say(drops)
        status, headers, body = answering.result()
        assert (status, headers["connection"]) == (408, "close")
        assert says(body, "validation") == "The body of this request took too long."
        assert await slow.closed()
        assert await refused(gateway, "bodies") == 1


def test_as_many_files_may_be_open_as_the_system_lets_us() -> None:
    files = raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= files
    assert most_connections(1024) == 312
    assert most_connections(65_536) > 30_000


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_one_person_has_so_many_streams_and_no_more(
    settings: Settings, database_url: str, simulator: Simulator
) -> None:
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    async with running_gateway(replace(settings, connections_limit=50)) as gateway, gateway.client() as client:
        voice_id: UUID = await insert_voice(database_url, client.user_id)
        task = await client.generate(voice_id)
        async with client.events(task["stream_url"]) as one, client.events(task["stream_url"]) as two:
            await anext(one)
            await anext(two)
            async with httpx.AsyncClient(base_url=gateway.url) as anybody:
                response = await anybody.get(task["stream_url"], headers={"Accept": "text/event-stream"})
            problem_of(response, 429, "overloaded", says="too many streams")
            response = await client.http.post(
                "/api/generate/stream", json={"voice_id": str(voice_id), "text": "Not said."}
            )
            problem_of(response, 429, "overloaded", says="too many streams")
            async with gateway.client() as other:
                other_voice = await insert_voice(database_url, other.user_id)
                other_task = await other.generate(other_voice)
                async with other.events(other_task["stream_url"]) as events:
                    await anext(events)
            assert await refused(gateway, "streams_of_one") == 2
            history = (await client.http.get("/api/generations")).json()
            assert history["pagination"]["total"] == 1, "nothing was bought for a stream that could not be opened"
        async with client.events(task["stream_url"]) as again:
            await anext(again)
        held.release()
