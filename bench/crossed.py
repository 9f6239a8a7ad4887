"""Two processes on one database, and what it costs them when speech is followed in the one that does not speak it."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import httpx

from bench.children import Child
from bench.report import Crossed, percentiles
from bench.stamps import INTERVAL_SECONDS
from bench.usage import usage

_BEGIN_SECONDS = 120.0
_SETTLE_SECONDS = 1.0
_STORED_SECONDS = 120.0


class Server(Protocol):
    """One of the two."""

    @property
    def child(self) -> Child: ...

    @property
    def port(self) -> int: ...

    @property
    def token(self) -> str: ...

    @property
    def voice_id(self) -> str: ...


async def crossed(
    servers: tuple[Server, Server],
    database_pid: int | None,
    source: Child,
    folder: Path,
    *,
    speeches: int,
    seconds: float,
) -> Crossed:
    """So many speeches in each, first followed where they are spoken, then each in the other process."""
    here = await _followed(servers, servers, database_pid, source, folder, speeches, seconds)
    there = await _followed(servers, servers[::-1], database_pid, source, folder, speeches, seconds)
    return Crossed(
        speeches=speeches,
        microseconds_here=here[0],
        microseconds_there=there[0],
        latency_milliseconds_here=percentiles(here[1]),
        latency_milliseconds_there=percentiles(there[1]),
        problems=[*here[2], *there[2]],
    )


async def _followed(
    speaking: Sequence[Server],
    following: Sequence[Server],
    database_pid: int | None,
    source: Child,
    folder: Path,
    speeches: int,
    seconds: float,
) -> tuple[float, list[float], list[str]]:
    """CPU of both processes for each delta in µs, the latencies in ms, and what was not as it should be."""
    async with contextlib.AsyncExitStack() as stack:
        followers = []
        for speaker, listener in zip(speaking, following, strict=True):
            paths = await _begun(speaker, speeches)
            arguments = ["-m", "bench.followers", "--port", str(listener.port), "--streams", str(speeches)]
            arguments += ["--probes", "0", "--path", *paths]
            followers.append(await stack.enter_async_context(Child.running("crossed", *arguments, folder=folder)))
        for child in followers:
            await child.hear(_BEGIN_SECONDS)
        await asyncio.sleep(_SETTLE_SECONDS)
        opened = [usage(server.child.pid, database_pid) for server in speaking]
        await asyncio.sleep(seconds)
        closed = [usage(server.child.pid, database_pid) for server in speaking]
        for child in followers:
            child.tell("probe")
            await child.hear(_BEGIN_SECONDS)
        source.tell("stop")
        latencies, problems = [], []
        for child in followers:
            seen = await child.hear(_STORED_SECONDS)
            problems += seen["problems"]
            latencies += [
                (received - sent) / 1e6
                for sent, received in zip(seen["sent_ns"], seen["received_ns"], strict=True)
                if opened[0].at_ns <= received < closed[0].at_ns
            ]
    used = sum(after.since(before).process for before, after in zip(opened, closed, strict=True))
    # In real time; that no byte was missing each follower has found.
    deltas = len(speaking) * speeches * closed[0].since(opened[0]).seconds / INTERVAL_SECONDS
    return used / deltas * 1e6, latencies, problems


async def _begun(server: Server, speeches: int) -> list[str]:
    """Speeches begun in one process; the addresses of their streams."""
    headers = {"Authorization": f"Bearer {server.token}"}
    base_url = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=base_url, trust_env=False, headers=headers, timeout=30.0) as http:
        body = {"voice_id": server.voice_id, "text": "Good evening."}
        answers = [(await http.post("/api/generate", json=body)).raise_for_status() for _ in range(speeches)]
    return [answer.json()["stream_url"] for answer in answers]
