"""The world that bad things happen to: processes, each with doors of its own, on one PostgreSQL and one store."""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import httpx

from server.database.connections import prepare
from server.database.migrations import migrate
from server.dev import postgres
from server.dev.postgres import EmbeddedPostgres, running_postgres
from server.dev.simulator import AT_ONCE, Simulator, running_simulator
from server.dev.simulator.ledger import now_iso
from server.settings import VC_REALTIME
from tests.chaos.store_door import StoreDoor
from tests.gateway import Client, Process, insert_voice, read_events
from tests.modal import recording
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.storage.conftest import s3_settings
from tests.support import AUTH_JWT_SECRET, fast_folder, free_port, open_to_all, wait_for
from tests.voices import DESIGN

Source = Literal["realtime", "inference", "http", "design", "clone", "modal"]
MODELS = {"realtime": VC_REALTIME, "inference": "qwen-audio-3.0-tts-flash", "http": "qwen3-tts-vc-2026-01-22"}
# Where Debian's package puts the library that shows a process another time of day.
FAKE_CLOCK = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
# Longer than any outage: whoever runs a process starts it again for as long.
_STARTED_WITHIN_SECONDS = 240.0
# When everything has ended, a listener that comes back hears so.
_FOLLOWED_AFTERWARDS_SECONDS = 120.0


@dataclass
class Said:
    """One text that was taken, what may be done for it, and what its listener heard.

    Attributes:
        gone: Its rows were lost with a fail-over.
        at: When it was asked for: a process may die between that and its answer's arrival.
        end: What the terminal event said.
    """

    source: Source
    text: str
    task_id: str
    generation_id: str | None
    stream_url: str | None
    at: float = field(default_factory=time.monotonic)
    heard: bytearray = field(default_factory=bytearray)
    end: dict[str, Any] | None = None
    gone: bool = False
    ended_at: float | None = None


class Node:
    """One server process with its own ways to the database and to the store."""

    def __init__(self, name: str, variables: dict[str, str], log: Path, door: PostgresProxy, store: StoreDoor) -> None:
        self.name, self.variables, self.door, self.store = name, variables, door, store
        self.process = Process(variables, log)
        self.alive = True
        self.paused = False
        self.doomed = False  # somebody has chosen it to die: nobody else tells it to leave
        self.doors = AsyncExitStack()

    @property
    def speaks(self) -> str:
        """The mode in which it takes new texts."""
        return self.variables.get("TTS_PROVIDER_MODE", "qwen")

    @property
    def serves(self) -> bool:
        return self.alive and not self.paused


class World:
    """See the module.

    Attributes:
        losses: From when to when commits were lost, as the provider's book tells the time.
        misbehaved: Texts that their provider was told to fail at.
        findings: What was wrong as soon as it was seen; the judge has the last word on all of them.
        clocks: How far each further process's own clock is from the right one, in turns; none: not at all.
        unanswered: Requests whose answer never came: whether they were taken is for the database to say.
    """

    def __init__(self, folder: Path, simulator: Simulator, s3_endpoint: str, variables: dict[str, str]) -> None:
        self.folder, self.simulator, self.s3_endpoint, self.variables = folder, simulator, s3_endpoint, variables
        self.nodes: list[Node] = []
        self.said: list[Said] = []
        self.user_id = uuid4()
        self.voices: dict[str, UUID] = {}
        self._interruptions: list[tuple[float, float]] = []
        self._losses: list[tuple[float, float]] = []  # from when to when commits were lost
        self.losses: list[tuple[str, str]] = []
        self.misbehaved: set[str] = set()
        self.findings: list[str] = []
        self.clocks: tuple[str, ...] = ()
        self.unanswered = 0
        self.counted: dict[str, int] = {}
        self._closed = False
        self._numbers = itertools.count(1)
        self._following = asyncio.TaskGroup()
        self._stack = AsyncExitStack()
        self.database: EmbeddedPostgres
        self._clusters: dict[EmbeddedPostgres, contextlib.AbstractContextManager[EmbeddedPostgres]] = {}

    def count(self, what: str, number: int = 1) -> None:
        """So many more of these happened; the figures of the run."""
        self.counted[what] = self.counted.get(what, 0) + number

    # --- processes ------------------------------------------------------------------------------------------------

    async def start(self, **environ: str) -> Node:
        """One more process, ready to serve."""
        number = next(self._numbers)
        doors = AsyncExitStack()
        self._stack.push_async_callback(doors.aclose)
        door = await doors.enter_async_context(postgres_proxy(self.database.url()))
        store = await doors.enter_async_context(StoreDoor(self.s3_endpoint).listening())
        variables = {
            **self.variables,
            "DATABASE_URL": door.url,
            "STORAGE_URL": f"s3://?endpoint={quote(store.url, safe='')}&region=us-east-1",
            "PORT": str(free_port()),
            **self._clock(number),
            **environ,
        }
        node = Node(f"p{number}", variables, self.folder / f"p{number}.log", door, store)
        node.doors = doors
        node.alive = False
        self.nodes.append(node)  # a fail-over has to lead its door, too
        door.lead_to(self.database.url())  # and there may have been one while the doors were made
        deadline = time.monotonic() + _STARTED_WITHIN_SECONDS
        while True:
            try:
                await node.process.start()
                break
            except AssertionError:  # it said what is missing and left; whoever runs it starts it again
                if time.monotonic() > deadline:
                    raise
                await node.process.kill()
                (self.folder / f"p{number}.log").rename(self.folder / f"p{number}-not-started.log")
                self.count("starts of a process that were tried again")
                await asyncio.sleep(1.0)
        node.alive = True
        return node

    def _clock(self, number: int) -> dict[str, str]:
        """What shows a process a time of day of its own; what it measures with (monotonic) is left alone."""
        if not self.clocks:
            return {}
        apart = self.clocks[number % len(self.clocks)]
        if apart:
            self.count("processes whose clock is wrong")
        return {"LD_PRELOAD": str(FAKE_CLOCK), "FAKETIME": apart, "FAKETIME_DONT_FAKE_MONOTONIC": "1"} if apart else {}

    async def kill(self, node: Node) -> None:
        """As a power cut would."""
        node.alive = False
        with self.interrupting():
            await node.process.kill()
        self.count("kills")
        await node.doors.aclose()

    @asynccontextmanager
    async def stopped(self, node: Node) -> AsyncIterator[None]:
        """SIGSTOP while the block lasts."""
        node.paused = True
        self.count("pauses")
        with self.interrupting():
            node.process.send(signal.SIGSTOP)
            try:
                yield
            finally:
                node.process.send(signal.SIGCONT)
                node.paused = False

    async def leave(self, node: Node) -> int:
        """SIGTERM; its exit status."""
        node.alive = False
        self.count("departures")
        with self.interrupting():
            node.process.send(signal.SIGTERM)
            status = await node.process.exited(120.0)
        await node.doors.aclose()
        return status

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """A process dies, stands still or is cut off: a text under way may be its own, and may be begun again."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._interruptions.append((began, time.monotonic()))

    def interruptions(self, said: Said) -> int:
        """How many deaths, pauses, departures and fail-overs a text lived through; each may cost one more speech."""
        return sum(said.at <= end and (said.ended_at or end) >= begin for begin, end in self._interruptions)

    def at_risk(self, said: Said) -> bool:
        """Whether commits were lost while it was under way: then nobody promises that its rows are there."""
        return any(said.at <= end and (said.ended_at or end) >= begin for begin, end in self._losses)

    def serving(self, *, but: Node | None = None) -> Node:
        """A process that can be asked, the one that was not asked last first."""
        able = [node for node in self.nodes if node.serves and node is not but]
        assert able, "no process is left"
        self.nodes.sort(key=lambda node: node is able[0])
        return able[0]

    # --- people ---------------------------------------------------------------------------------------------------

    async def design(self, node: Node, text: str) -> Said | None:
        """Ask a process for the preview of a voice; None as for ``say``."""
        at = time.monotonic()
        async with node.process.client(self.user_id) as client:
            try:
                answer = await client.http.post("/api/voices/design/preview", json={**DESIGN, "text": text})
            except httpx.TransportError:
                self.unanswered += 1
                return None
        if answer.status_code != 200:
            self.refused(f"design {text!r}", answer)
            return None
        said = Said("design", text, answer.json()["task_id"], None, None, at=at)
        self.said.append(said)
        self.count("previews")
        return said

    async def say(self, node: Node, source: Source, text: str, *, listen_at: Node | None = None) -> Said | None:
        """Ask a process to speak; None where its answer never came or was a refusal with words."""
        at = time.monotonic()
        async with node.process.client(self.user_id) as client:
            try:
                body = {"voice_id": str(self.voices[source]), "text": text}
                answer = await client.http.post("/api/generate", json=body)
            except httpx.TransportError:
                self.unanswered += 1
                return None
        if answer.status_code != 200:
            self.refused(f"{source} {text!r}", answer)
            return None
        task = answer.json()
        said = Said(source, text, task["task_id"], task["generation_id"], task.get("stream_url"), at=at)
        self.said.append(said)
        self.count("texts")
        if said.stream_url:
            self._following.create_task(self._follow(said, listen_at))
        return said

    def refused(self, what: str, answer: httpx.Response) -> None:
        """A refusal is one of those that pass, and has words."""
        self.count(f"answered {answer.status_code}")
        try:
            words = answer.json()["detail"]
        except (ValueError, KeyError):
            words = ""
        if answer.status_code not in (429, 502, 503) or not words:
            self.findings.append(f"{what}: answered {answer.status_code} {answer.text[:300]!r}")

    async def _follow(self, said: Said, node: Node | None) -> None:
        """Listen as a browser does: come back at another process with the id of the last event, until the end."""
        assert said.stream_url
        while said.end is None and not self._closed:
            if node is None or not node.serves:
                serving = [each for each in self.nodes if each.serves]
                if not serving:
                    await asyncio.sleep(0.2)
                    continue
                node = serving[hash(said.task_id) % len(serving)]
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(len(said.heard))}
            try:
                async with (
                    asyncio.timeout(45.0),
                    httpx.AsyncClient(base_url=node.process.url, timeout=20.0) as http,
                    http.stream("GET", said.stream_url, headers=headers) as response,
                ):
                    if response.status_code == 200:
                        await self._hear(said, response)
                    elif response.status_code in (404, 410) and self.at_risk(said):
                        said.gone = True
                        return
            except (httpx.TransportError, TimeoutError):
                pass
            if said.end is None:
                node = None
                await asyncio.sleep(0.2)

    async def _hear(self, said: Said, response: httpx.Response) -> None:
        async for event in read_events(response):
            if event.name == "response.audio.delta":
                said.heard += base64.b64decode(event.data["delta"])
                if event.id != str(len(said.heard)):
                    self.findings.append(f"{said.text!r}: {len(said.heard)} bytes heard, and the event says {event.id}")
            if event.terminal:
                said.end, said.ended_at = event.data, time.monotonic()

    # --- the database ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def rows(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection past every door."""
        connection = await asyncpg.connect(self.database.url())
        try:
            await prepare(connection)
            yield connection
        finally:
            await connection.close()

    async def _cluster(self, folder: Path) -> EmbeddedPostgres:
        manager = running_postgres(folder)
        server = await asyncio.to_thread(manager.__enter__)
        self._clusters[server] = manager
        return server

    async def standby(self) -> EmbeddedPostgres:
        """A copy of the primary that follows it, by `pg_basebackup` and streaming replication."""
        folder = open_to_all(tempfile.mkdtemp(prefix="standby-", dir=self.folder))
        cluster = folder / "postgres"
        programs = postgres._package_dir() / "pginstall" / "bin"
        command = [str(programs / "pg_basebackup"), "-D", str(cluster), "--checkpoint=fast", "--write-recovery-conf"]
        command += ["--no-sync", "--wal-method=stream", "-h", str(self.database.socket_dir), "-U", postgres.USER]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=60)
        owner = (self.database.home / "postgres").stat()
        for path in (cluster, *cluster.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        return await self._cluster(folder)

    async def fail_over(self, *, lose_seconds: float = 0.0) -> int:
        """The primary dies and a standby takes its place, for every door; how many bytes of its log were lost.

        Args:
            lose_seconds: For so long before, nothing reaches the standby any more.
        """
        old, new = self.database, await self.standby()
        successor = await asyncpg.connect(new.url())
        try:
            if lose_seconds:
                await self._level(successor)
                cut_at, cut_at_utc = time.monotonic(), now_iso()
                await successor.execute("ALTER SYSTEM SET primary_conninfo = ''")
                await successor.execute("SELECT pg_reload_conf()")
                await asyncio.sleep(lose_seconds)
            else:
                for node in self.nodes:
                    node.door.shut()
                await self._level(successor)
            async with self.rows() as rows:
                end = await rows.fetchval("SELECT pg_current_wal_lsn()::text")
            os.kill(old.pid, signal.SIGKILL)
            for node in self.nodes:
                node.door.shut()
            lost: int = await successor.fetchval(
                "SELECT greatest(0, pg_wal_lsn_diff($1::text::pg_lsn, pg_last_wal_receive_lsn()))::bigint", str(end)
            )
            assert await successor.fetchval("SELECT pg_promote(wait_seconds => 30)")
        finally:
            await successor.close()
        if lose_seconds:
            self._losses.append((cut_at, time.monotonic()))
            self.losses.append((cut_at_utc, now_iso()))
        self.database = new
        for node in self.nodes:
            node.door.lead_to(new.url())
            node.door.open()
        await asyncio.to_thread(self._clusters.pop(old).__exit__, None, None, None)
        self.count("fail-overs with lost commits" if lose_seconds else "fail-overs")
        return lost

    async def _level(self, successor: "asyncpg.Connection[asyncpg.Record]") -> None:
        async with self.rows() as rows:
            stands = str(await rows.fetchval("SELECT pg_current_wal_flush_lsn()::text"))

        async def level() -> bool:
            return bool(await successor.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", stands))

        await wait_for(level, 30.0)

    # --- coming and going -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncIterator["World"]:
        try:
            self.database = await self._cluster(open_to_all(tempfile.mkdtemp(prefix="primary-", dir=self.folder)))
            await migrate(self.database.url())
            for source, model in MODELS.items():
                self.voices[source] = await insert_voice(self.database.url(), self.user_id, model=model)
            self.voices["modal"] = await self._modal_voice()
            async with self._stack, self._following:
                try:
                    yield self
                finally:
                    self._closed = True
                    for node in self.nodes:
                        if node.paused:
                            node.process.send(signal.SIGCONT)
                        await node.process.kill()
        finally:
            for manager in self._clusters.values():
                await asyncio.to_thread(manager.__exit__, None, None, None)

    async def _modal_voice(self) -> UUID:
        voice_id = await insert_voice(self.database.url(), self.user_id, name="Grace", provider="modal")
        key = f"{self.user_id}/{voice_id}/reference.wav"
        async with httpx.AsyncClient(base_url=self.s3_endpoint) as http:
            put = await http.put(f"/{self.variables['STORAGE_BUCKET_REFERENCES']}/{key}", content=recording())
            put.raise_for_status()
        async with self.rows() as rows:
            await rows.execute("UPDATE public.voices SET reference_object_key = $2 WHERE id = $1", voice_id, key)
        return voice_id

    async def followed(self) -> None:
        """Wait until every listener has heard the end of what it listens to; the judge names those who have not."""
        with contextlib.suppress(AssertionError):
            await wait_for(
                lambda: all(said.end or said.gone or not said.stream_url for said in self.said),
                _FOLLOWED_AFTERWARDS_SECONDS,
            )

    def client(self, node: Node) -> Client:
        return node.process.client(self.user_id)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    path = open_to_all(tempfile.mkdtemp(prefix="utter-chaos-", dir=fast_folder()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def world(s3_endpoint: str, credentials: dict[str, str]) -> AsyncIterator[World]:
    """An empty world with no process yet; everything is gone afterwards.

    Args:
        s3_endpoint: An S3-compatible server.
        credentials: The AWS variables that it takes.
    """
    storage = await s3_settings(s3_endpoint)
    with _folder() as folder:
        async with running_simulator(pace=AT_ONCE) as simulator:
            variables = {
                **simulator.environment(),
                **credentials,
                "PATH": os.environ["PATH"],
                "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
                "HOST": "127.0.0.1",
                "LOG_FORMAT": "json",
                "QWEN_STARTS_PER_MINUTE": "100000",
                "SHUTDOWN_GRACE_SECONDS": "10",
                "STORAGE_BUCKET_REFERENCES": storage.bucket_references,
                "STORAGE_BUCKET_GENERATIONS": storage.bucket_generations,
            }
            async with World(folder, simulator, s3_endpoint, variables).open() as opened:
                yield opened
