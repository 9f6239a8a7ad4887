"""Crowds of the size that they come in: more silent sockets than a process may have files, 300 who want one voice."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from server.admission.clients import SPARE, most_connections, raise_file_limit
from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import Process, insert_voice, process
from tests.support import AUTH_JWT_SECRET, free_port
from tests.voices import billed, finalize, recording, upload

FILES, SOCKETS = 1024, 1100
HEAD_MB = 40
HALF_A_HEAD = b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Long: "
FINALIZES = 300
# What 300 recordings would take is 3 GB. One takes some 40 MB: as it came, as the provider wants it, and in Base64.
MOST_MB = 120


async def peak_mb(server: Process) -> int:
    """The most memory that the process has had so far."""
    assert server.pid
    status = await asyncio.to_thread(Path(f"/proc/{server.pid}/status").read_text)
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) // 1024


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "said", [b"", b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Long: "], ids=["silent", "half a head"]
)
async def test_more_silent_sockets_than_files_keep_nobody_from_what_cannot_wait(
    settings: Settings, simulator: Simulator, database_url: str, tmp_path: Path, said: bytes
) -> None:
    assert raise_file_limit() > 2 * SOCKETS, "this test needs more open files (ulimit -n)"
    variables = {
        **simulator.environment(),
        "PATH": os.environ["PATH"],
        "DATABASE_URL": settings.database_url,
        "STORAGE_URL": Path(settings.storage.root).as_uri(),
        "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
        "PORT": str(free_port()),
    }
    narrow = ("prlimit", f"--nofile={FILES}", sys.executable, "-m", "server", "serve")
    server = Process(variables, tmp_path / "log", command=narrow)
    await server.start()
    user = server.client(uuid4())
    await insert_voice(database_url, user.user_id)
    try:
        async with AsyncExitStack() as stack:
            crowd = []
            for _ in range(SOCKETS):
                reader, writer = await stack.enter_async_context(connected(server.port))
                writer.write(said)
                crowd.append(reader)
            opened = asyncio.get_running_loop().time()
            for method, path, expected in (
                ("GET", "/api/health", {200}),
                ("GET", "/api/ready", {200}),
                ("POST", f"/api/tasks/{uuid4()}/cancel", {404}),
                ("GET", "/api/voices", {200, 503}),
            ):
                async with httpx.AsyncClient(base_url=server.url, headers=user.headers, timeout=3.0) as anybody:
                    answer = await anybody.request(method, path)
                    assert answer.status_code in expected, (path, answer.text)
                    if answer.status_code >= 400:
                        assert answer.json()["detail"]
            reader, writer = await stack.enter_async_context(connected(server.port))
            writer.write(HALF_A_HEAD)
            for _ in range(HEAD_MB):
                writer.write(b"a" * 1_000_000)
                await writer.drain()
            assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
            async with asyncio.timeout(20.0):
                ends = Counter([(await end.read())[:12] for end in crowd])
            patience = asyncio.get_running_loop().time() - opened
            assert patience < 12.0
            places = most_connections(FILES) + SPARE
            if said:
                # Those who made room for others were told so, the rest that they were too slow.
                assert places - 20 <= ends[b"HTTP/1.1 408"] <= places
                assert ends[b"HTTP/1.1 408"] + ends[b"HTTP/1.1 503"] == SOCKETS
            else:
                assert ends == {b"": SOCKETS}
        assert (await user.http.get("/api/voices")).status_code == 200
        counted = (await user.http.get("/metrics")).text
        assert 'utter_refused_total{what="connections"} 0.0' not in counted
        assert 'utter_refused_total{what="heads"} 0.0' not in counted
        assert '"level": "error"' not in server.log
    finally:
        await user.http.aclose()
        await server.kill()


async def test_three_hundred_finalizes_of_one_recording_are_one_voice_and_one_recording_in_memory(
    settings: Settings, simulator: Simulator, tmp_path: Path
) -> None:
    async with process(settings, simulator, tmp_path / "log") as server, server.client(uuid4()) as user:
        voice_id = await upload(user, recording(54.0, 96_000))
        before = await peak_mb(server)
        buying = simulator.behave("customization", {"do": "hold"}, action="create")
        await user.http.aclose()
        user.http = httpx.AsyncClient(
            base_url=server.url, headers=user.headers, timeout=60.0, limits=httpx.Limits(max_connections=FINALIZES)
        )
        asked = [asyncio.create_task(finalize(user, voice_id)) for _ in range(FINALIZES)]
        await buying.held()
        buying.release()
        answers = Counter([(await one).status_code for one in asked])
        assert answers == {200: FINALIZES}
        assert billed(simulator) == 1
        assert await peak_mb(server) - before < MOST_MB
        assert '"level": "error"' not in server.log
