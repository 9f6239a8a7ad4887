"""A running server for tests: in this process over a real socket, or as a process of its own that can be killed."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any, Self
from uuid import UUID, uuid4

import asyncpg
import httpx

from server.app import create_app
from server.auth.tokens import mint_bearer
from server.database.connections import prepare
from server.dev.simulator import Simulator
from server.parts import Parts
from server.serve import Server
from server.settings import VC_REALTIME, Settings, model_family, speaks_by_tasks
from tests.support import AUTH_JWT_SECRET, free_port, wait_for


class _QuietServer(Server):
    """As in production, but signals are pytest's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Event:
    """One event of a stream."""

    name: str
    data: Any
    id: str | None = None

    @property
    def terminal(self) -> bool:
        return self.id == "end"


@dataclass
class Client:
    """One user at one server, with the requests that many tests make."""

    url: str
    user_id: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        self.http = httpx.AsyncClient(base_url=self.url, timeout=30.0, headers=self.headers, follow_redirects=False)

    @property
    def token(self) -> str:
        return mint_bearer(self.user_id, days=1, secret=AUTH_JWT_SECRET, audience="authenticated")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def generate(self, voice_id: UUID, text: str = "Good evening.", **body: Any) -> dict[str, Any]:
        """POST /api/generate; its answer."""
        response = await self.http.post("/api/generate", json={"voice_id": str(voice_id), "text": text, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def task(self, task_id: str) -> dict[str, Any]:
        """GET /api/tasks/:id; its answer."""
        response = await self.http.get(f"/api/tasks/{task_id}")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def ended(self, task_id: str, timeout: float = 20.0) -> dict[str, Any]:
        """The task's answer once it is terminal."""

        async def terminal() -> dict[str, Any] | None:
            answer = await self.task(task_id)
            return answer if answer["status"] not in ("pending", "processing") else None

        return await wait_for(terminal, timeout)

    async def audio(self, generation_id: str) -> bytes:
        """The stored file of a generation."""
        redirect = await self.http.get(f"/api/generations/{generation_id}/audio")
        assert redirect.status_code == 302, redirect.text
        async with httpx.AsyncClient(base_url=self.url) as anybody:
            response = await anybody.get(redirect.headers["location"])
        assert response.status_code == 200, response.text
        return response.content

    @contextlib.asynccontextmanager
    async def events(self, url: str, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
        """The events behind a stream's address, without a token: the ticket has to do."""
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=30.0) as anybody,
            anybody.stream("GET", url, headers={"Accept": "text/event-stream", **headers}) as response,
        ):
            assert response.status_code == 200, (await response.aread()).decode()
            yield read_events(response)


async def read_events(response: httpx.Response) -> AsyncIterator[Event]:
    """Events as they arrive, by the rules of the EventSource standard; comments and ``retry`` are passed over."""
    name, event_id = "message", None
    data: list[str] = []
    async for line in response.aiter_lines():
        if not line:
            if data:
                yield Event(name, json.loads("\n".join(data)), event_id)
            name, data, event_id = "message", [], None
            continue
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            data.append(value)
        elif key == "id":
            event_id = value


@dataclass
class Gateway:
    """A server of this test, its parts within reach."""

    url: str
    parts: Parts
    server: Server

    def client(self, user_id: UUID | None = None) -> Client:
        return Client(self.url, user_id or uuid4())


@contextlib.asynccontextmanager
async def running_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Serve in this process until the block is left, then shut down as on SIGTERM."""
    app = create_app(settings)
    server = _QuietServer(app, settings)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve())
        await wait_for(lambda: server.started or serving.done())
        assert server.started, "the server did not start; its log says why"
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Gateway(f"http://127.0.0.1:{port}", app.state.parts, server)
        finally:
            server.should_exit = True


class Process:
    """`python -m server serve` as its own process, or another command that serves."""

    def __init__(
        self,
        environ: Mapping[str, str],
        log: Path,
        *,
        command: Sequence[str] = (sys.executable, "-m", "server", "serve"),
        folder: Path | None = None,
    ) -> None:
        self._command = command
        self._folder = folder
        self._environ = dict(environ)
        self._log = log
        self.port = int(self._environ["PORT"])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environ, cwd=self._folder, stdout=log, stderr=log
            )
        async with httpx.AsyncClient() as http:

            async def ready() -> bool:
                assert self._process
                assert self._process.returncode is None, self._log.read_text()
                try:
                    return (await http.get(f"{self.url}/api/ready")).status_code == 200
                except httpx.HTTPError:
                    return False

            await wait_for(ready, 60.0, every_seconds=0.05)  # asking more often would take the time that it needs

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def send(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    async def exited(self, timeout: float = 40.0) -> int:
        """Its exit status, once it is gone."""
        assert self._process
        return await asyncio.wait_for(self._process.wait(), timeout)

    async def kill(self) -> None:
        """End it as a power cut would; paused ones too."""
        if self._process and self._process.returncode is None:
            self.send(signal.SIGKILL)
            await self.exited()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def client(self, user_id: UUID) -> Client:
        return Client(self.url, user_id)


@contextlib.asynccontextmanager
async def process(settings: Settings, simulator: Simulator, log: Path, **environ: str) -> AsyncIterator[Process]:
    """A server process with the same settings, on a port of its own; killed at the end if it is still there.

    Args:
        environ: Environment variables that are to differ.
    """
    variables = {
        **simulator.environment(),
        "PATH": os.environ["PATH"],
        "DATABASE_URL": settings.database_url,
        "STORAGE_URL": Path(settings.storage.root).as_uri(),
        "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        **environ,
    }
    started = Process(variables, log)
    await started.start()
    try:
        yield started
    finally:
        await started.kill()


async def insert_voice(
    database_url: str,
    user_id: UUID,
    *,
    name: str = "Ada",
    model: str | None = VC_REALTIME,
    kind: str | None = None,
    provider: str = "qwen",
    provider_voice_id: str | EllipsisType | None = ...,
    source: str = "uploaded",
) -> UUID:
    """A voice as cloning would have left it; the simulator knows it by its shape, unless it is told another.

    One that lacks what the provider knows it by is as old as the writers who left such voices.
    """
    voice_id = uuid4()
    by_tasks = model is not None and speaks_by_tasks(model)
    if provider_voice_id is ...:
        provider_voice_id = f"{model}-ada-{1:032x}" if by_tasks else "qwen-tts-vc-ada-voice-20260101000000000-0001"
    connection = await asyncpg.connect(database_url)
    try:
        await prepare(connection)
        await connection.execute(
            """INSERT INTO public.voices (id, user_id, name, language, source, tts_provider, provider_voice_id,
                    provider_target_model, provider_voice_kind, reference_transcript, created_at)
               VALUES ($1, $2, $3, 'English', $4, $5, $6, $7, $8, 'What the recording says.',
                       CASE WHEN $5 = 'qwen' AND ($6::text IS NULL OR $7::text IS NULL)
                            THEN timestamptz '2020-01-01 00:00Z' ELSE now() END)""",
            voice_id,
            user_id,
            name,
            source,
            provider,
            provider_voice_id if provider == "qwen" else None,
            model if provider == "qwen" else None,
            kind or (("vc" if by_tasks else model_family(model)) if model and provider == "qwen" else None),
        )
    finally:
        await connection.close()
    return voice_id
