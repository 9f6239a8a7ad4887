"""One run: the processes are started, floor and server take turns at every number of streams, everything is ended."""

import asyncio
import contextlib
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx

from bench.children import Child, ChildFailed
from bench.crossed import crossed
from bench.report import Audience, Beside, Burst, Firsts, Kind, Point, Polls, Report, percentiles
from bench.stamps import INTERVAL_SECONDS
from bench.usage import memory, usage
from server.auth.tokens import mint_bearer
from server.database.migrations import migrate
from server.dev.postgres import EmbeddedPostgres, running_postgres
from server.dev.simulator import API_KEY
from server.settings import VC_REALTIME

# Streams that have just begun are not yet what they are in the long run.
_SETTLE_SECONDS = 0.5
_START_SECONDS = 60.0
_POLL_SECONDS = 2.0
# Connections, statements and caches as they are in a server that has been running for a while.
_WARM_UP_STREAMS = 12
PROBES = 10
# Starts of a burst come within two seconds, each at a time of its own.
_BURST_SECONDS = 2.0
_AUDIENCE = 200
# Of two processes each speaks this part of the most streams.
_CROSSED_PART = 4
_PIECES_MODEL = "qwen3-tts-vc-2026-01-22"
_PIECES_VOICE = "qwen-tts-vc-measured-voice-20260101000000000-0000"
# What is spoken in pieces beside the streams, and how many such texts come one after the other.
_PIECES_TEXT, _PIECES_TEXTS, _PIECES_STREAMS = "Good evening, and welcome to all of you. " * 14, 3, 100
_FIRSTS = 20
# Who asks, of every server of the run.
_SECRET, _USER_ID = secrets.token_hex(32), uuid4()
# How long a store may take with what all streams of a turn have left it.
_STORED_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One of the two things that are compared.

    Attributes:
        child: Its process.
        poll_path: The address that is polled, up to the task's id.
        token, voice_id: What its followers need to say; ``pieces_voice_id`` speaks on the lane that is not streamed.
        database_pid: PostgreSQL's, where it has a part in this.
    """

    kind: Kind
    child: Child
    port: int
    poll_path: str
    token: str = ""
    voice_id: str = ""
    pieces_voice_id: str = ""
    database_pid: int | None = None
    cold_start_seconds: float = 0.0

    @property
    def name(self) -> str:
        return {"floor": "the bare relay", "plain": "the plain handler", "server": "the server"}[self.kind]


async def measure(
    streams: Sequence[int],
    seconds: float,
    progress: Callable[[str], None],
    *,
    rounds: int = 1,
    floor: bool = True,
    extras: bool = True,
) -> Report:
    """Measure all lanes at every number of streams.

    Args:
        streams: How many at a time, one entry a turn.
        seconds: How long each turn is measured, beside its beginning and end.
        progress: Takes one sentence for each step.
        rounds: How often all of that, for the spread.
        floor: False measures the server alone.
        extras: False leaves out polls, bursts, first audio and audiences.

    Raises:
        ChildFailed: One of the processes did not do its part.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(_folder())
        progress("Starting PostgreSQL, the server, the source and the relay…")
        postgres = stack.enter_context(running_postgres(folder / "data"))
        await migrate(postgres.url())
        source = await stack.enter_async_context(Child.running("source", "-m", "bench.source", folder=folder))
        source_port = (await source.hear(_START_SECONDS))["port"]
        lanes = []
        if floor:
            lanes.append(await stack.enter_async_context(_floor(folder, source_port, postgres.url())))
            lanes.append(await stack.enter_async_context(_plain(folder, source_port)))
        pieces = await stack.enter_async_context(_simulator(folder))
        lanes.append(await stack.enter_async_context(_server(folder, source_port, pieces, postgres, max(streams))))
        progress("Warming up…")
        for lane in lanes:
            await _streams(lane, source, folder, _WARM_UP_STREAMS, 0.0, probes=0)
        server = lanes[-1]
        report = Report(points=[], cold_start_seconds=server.cold_start_seconds)
        for _ in range(rounds):
            for count in streams:
                for lane in lanes:
                    progress(f"{count} streams through {lane.name}, {seconds:g} s…")
                    report.points.append(await _streams(lane, source, folder, count, seconds))
        if extras:
            for lane in lanes:
                progress(f"{max(streams)} starts within {_BURST_SECONDS:g} s through {lane.name}…")
                report.bursts.append(await _burst(lane, source, folder, max(streams)))
            progress(f"First audio of {_FIRSTS} texts, by stream and at the door…")
            report.firsts.append(await _firsts(server, source, folder))
            progress(f"{_AUDIENCE} followers of one speech…")
            report.audiences.append(await _audience(server, source, folder, seconds))
            for audio_format in ("wav", "mp3"):
                progress(f"{_PIECES_STREAMS} streams beside texts in pieces, as {audio_format}…")
                report.besides.append(await _beside(server, source, folder, audio_format))
            second = await stack.enter_async_context(
                _server(folder, source_port, pieces, postgres, max(streams), name="second")
            )
            speeches = max(1, max(streams) // _CROSSED_PART)
            progress(f"Two processes with {speeches} speeches each, followed crosswise…")
            pair = (server, second)
            report.crosseds.append(
                await crossed(pair, postgres.pid, source, folder, speeches=speeches, seconds=seconds)
            )
            task_id = await _speaking_task(server)
            for lane in (lane for lane in lanes if lane.poll_path):
                progress("Polling " + ("one SELECT…" if lane.kind == "floor" else "the server…"))
                report.polls.append(await _polls(lane, folder, task_id, min(seconds, _POLL_SECONDS)))
            source.tell("stop")
        return report


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder that root's PostgreSQL can reach, which runs as somebody else."""
    with tempfile.TemporaryDirectory(prefix="utter-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


# --- the two lanes ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _floor(folder: Path, source_port: int, database_url: str) -> AsyncIterator[Lane]:
    source_url = f"ws://127.0.0.1:{source_port}/"
    arguments = ("-m", "bench.relay", "--source", source_url, "--database", database_url)
    async with Child.running("relay", *arguments, folder=folder) as child:
        port = (await child.hear(_START_SECONDS))["port"]
        yield Lane(kind="floor", child=child, port=port, poll_path="/poll/")


@contextlib.asynccontextmanager
async def _plain(folder: Path, source_port: int) -> AsyncIterator[Lane]:
    arguments = ("-m", "bench.plain", "--source", f"ws://127.0.0.1:{source_port}/")
    async with Child.running("plain", *arguments, folder=folder) as child:
        port = (await child.hear(_START_SECONDS))["port"]
        yield Lane(kind="plain", child=child, port=port, poll_path="")


@contextlib.asynccontextmanager
async def _simulator(folder: Path) -> AsyncIterator[str]:
    """The simulated provider of the lane that is not streamed; its address."""
    port = _free_port()
    arguments = ("-m", "server", "simulate", "--port", str(port))
    async with Child.running("simulator", *arguments, folder=folder) as child:
        await _answers(child, port, "/")
        yield f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def _server(
    folder: Path,
    source_port: int,
    pieces_url: str,
    postgres: EmbeddedPostgres,
    most_streams: int,
    *,
    name: str = "server",
) -> AsyncIterator[Lane]:
    port = _free_port()
    environ = {
        "DATABASE_URL": postgres.url(),
        "DASHSCOPE_BASE_URL": pieces_url,
        "PROVIDER_DOWNLOAD_HOSTS": "127.0.0.1",
        "DASHSCOPE_WS_URL": f"ws://127.0.0.1:{source_port}/",
        "DASHSCOPE_API_KEY": API_KEY,
        "STORAGE_URL": (folder / "storage").as_uri(),
        "AUTH_JWT_SECRET": _SECRET,
        # Samples: what the source sends is no music, and need not be.
        "QWEN_DEFAULT_RESPONSE_FORMAT": "wav",
        "QWEN_STARTS_PER_MINUTE": "100000",
        "SYNTHESIS_CONCURRENCY": str(max(most_streams, 2 * _FIRSTS, _PIECES_STREAMS) + 20),
        "SHUTDOWN_GRACE_SECONDS": "1",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    began = time.monotonic()
    async with Child.running(name, "-m", "bench.served", folder=folder, environ=environ) as child:
        await _answers(child, port, "/api/ready")
        cold_start_seconds = time.monotonic() - began
        yield Lane(
            kind="server",
            child=child,
            port=port,
            poll_path="/api/tasks/",
            token=mint_bearer(_USER_ID, days=1, secret=_SECRET, audience="authenticated"),
            voice_id=str(await _new_voice(postgres.url(), _USER_ID, VC_REALTIME)),
            pieces_voice_id=str(await _new_voice(postgres.url(), _USER_ID, _PIECES_MODEL)),
            database_pid=postgres.pid,
            cold_start_seconds=cold_start_seconds,
        )


async def _answers(child: Child, port: int, path: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and not child.ended:
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get(path)).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise child.failed("did not become ready")


def _free_port() -> int:
    """A port that nobody listens on at the moment: the server wants to be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _new_voice(database_url: str, user_id: UUID, model: str) -> UUID:
    voice_id = uuid4()
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """INSERT INTO public.voices (id, user_id, name, language, source, tts_provider, provider_voice_id,
                    provider_target_model, provider_voice_kind, reference_transcript)
               VALUES ($1, $2, 'Measured', 'English', 'uploaded', 'qwen', $4, $3, 'vc', 'Good evening.')""",
            voice_id,
            user_id,
            model,
            _PIECES_VOICE,
        )
    finally:
        await connection.close()
    return voice_id


# --- one turn ---------------------------------------------------------------------------------------------------------


async def _streams(
    lane: Lane, source: Child, folder: Path, count: int, seconds: float, *, probes: int = PROBES
) -> Point:
    """So many streams through one lane, from their starts to their ends; what is measured lies in between."""
    arguments = _following(lane, "--streams", str(count), "--probes", str(probes))
    async with _blaming(lane.child), Child.running("followers", *arguments, folder=folder) as followers:
        held_before = memory(lane.child.pid)
        begin = usage(lane.child.pid, lane.database_pid)
        running = await followers.hear(_START_SECONDS + count * 0.1)
        if running["problems"]:
            raise ChildFailed(f"Not all of {count} streams began: {running['problems'][0]}")
        started = usage(lane.child.pid, lane.database_pid)
        await asyncio.sleep(_SETTLE_SECONDS)
        await _loop_lag(lane)
        opened = usage(lane.child.pid, lane.database_pid)
        await asyncio.sleep(seconds)
        closed = usage(lane.child.pid, lane.database_pid)
        late = await _loop_lag(lane)
        held = memory(lane.child.pid)
        followers.tell("probe")
        await followers.hear(_START_SECONDS)
        told_ns = time.monotonic_ns()
        source.tell("stop")
        seen = await followers.hear(_STORED_SECONDS)
        whole = usage(lane.child.pid, lane.database_pid).since(begin)
    window = closed.since(opened)
    latencies = [
        (received - sent) / 1e6
        for sent, received in zip(seen["sent_ns"], seen["received_ns"], strict=True)
        if opened.at_ns <= received < closed.at_ns
    ]
    cpu_per_delta = window.process / max(1, len(latencies))
    # What the streams that had begun already cost meanwhile is not the starting's.
    deltas_before = sum(received < started.at_ns for received in seen["received_ns"])
    cpu_of_starts = started.since(begin).process - deltas_before * cpu_per_delta
    return Point(
        kind=lane.kind,
        streams=count,
        deltas=len(latencies),
        cpu_per_delta_microseconds=cpu_per_delta * 1e6,
        cpu_per_start_milliseconds=max(0.0, cpu_of_starts) / count * 1e3,
        whole_life_microseconds=whole.process / max(1, len(seen["received_ns"])) * 1e6,
        ends_per_second=len(seen["ended_ns"]) / max(1e-3, (max(seen["ended_ns"], default=told_ns) - told_ns) / 1e9),
        memory_per_stream_kilobytes=(held - held_before) / count / 1e3,
        cores=window.process / window.seconds,
        database_cores=window.database / window.seconds if lane.database_pid else None,
        other_cores=max(0.0, window.others / window.seconds),
        latency_milliseconds=percentiles(latencies),
        first_audio_milliseconds=percentiles([waited / 1e6 for waited in seen["first_audio_ns"]]),
        loop_lag_milliseconds=percentiles(late),
        pace=len(latencies) / (count * window.seconds / INTERVAL_SECONDS),
        problems=seen["problems"],
    )


async def _loop_lag(lane: Lane) -> list[float]:
    """How late the timers of its loop were since this was last asked, in milliseconds."""
    lane.child.tell("lag")
    late: list[float] = (await lane.child.hear(_START_SECONDS))["lag_milliseconds"]
    return late


def _following(lane: Lane, *arguments: str) -> list[str]:
    """The command of clients of a lane."""
    own = ["--token", lane.token, "--voice", lane.voice_id] if lane.token else []
    return ["-m", "bench.followers", "--port", str(lane.port), *arguments, *own]


async def _burst(lane: Lane, source: Child, folder: Path, count: int) -> Burst:
    """So many starts within two seconds, and how long each waits for its first audio."""
    gap = _BURST_SECONDS / count
    arguments = _following(lane, "--streams", "0", "--probes", str(count), "--probe-gap", "0", str(2 * gap))
    async with _blaming(lane.child), Child.running("burst", *arguments, folder=folder) as followers:
        await followers.hear(_START_SECONDS)
        followers.tell("probe")
        await followers.hear(_START_SECONDS + count * 0.1)
        source.tell("stop")
        seen = await followers.hear(_STORED_SECONDS)
    first = percentiles([waited / 1e6 for waited in seen["first_audio_ns"]])
    return Burst(kind=lane.kind, starts=count, first_audio_milliseconds=first, problems=seen["problems"])


async def _firsts(lane: Lane, source: Child, folder: Path) -> Firsts:
    """The same text by the native stream and at the OpenAI-shaped door, in turns."""
    arguments = ["-m", "bench.firsts", "--port", str(lane.port), "--token", lane.token, "--voice", lane.voice_id]
    async with Child.running("firsts", *arguments, "--times", str(_FIRSTS), folder=folder) as asking:
        waited = await asking.hear(_START_SECONDS)
        source.tell("stop")
    return Firsts(
        texts=_FIRSTS,
        stream_milliseconds=percentiles([ns / 1e6 for ns in waited["stream"]]),
        door_milliseconds=percentiles([ns / 1e6 for ns in waited["door"]]),
    )


async def _beside(lane: Lane, source: Child, folder: Path, audio_format: str) -> Beside:
    """Streams, beside which texts are spoken in pieces and kept in a format."""
    arguments = _following(lane, "--streams", str(_PIECES_STREAMS), "--probes", "0")
    async with _blaming(lane.child), Child.running("beside", *arguments, folder=folder) as followers:
        await followers.hear(_START_SECONDS + _PIECES_STREAMS * 0.1)
        opened_ns = time.monotonic_ns()
        spoken_seconds = await _in_pieces(lane, audio_format)
        closed_ns = time.monotonic_ns()
        followers.tell("probe")
        await followers.hear(_START_SECONDS)
        source.tell("stop")
        seen = await followers.hear(_STORED_SECONDS)
    latencies = [
        (received - sent) / 1e6
        for sent, received in zip(seen["sent_ns"], seen["received_ns"], strict=True)
        if opened_ns <= received < closed_ns
    ]
    return Beside(
        audio_format=audio_format,
        streams=_PIECES_STREAMS,
        spoken_seconds=spoken_seconds,
        latency_milliseconds=percentiles(latencies),
        problems=seen["problems"],
    )


async def _in_pieces(lane: Lane, audio_format: str) -> float:
    """Have texts spoken one after the other; how many seconds of speech they became."""
    headers = {"Authorization": f"Bearer {lane.token}"}
    spoken_seconds = 0.0
    base_url = f"http://127.0.0.1:{lane.port}"
    async with httpx.AsyncClient(base_url=base_url, trust_env=False, headers=headers, timeout=60.0) as http:
        for _ in range(_PIECES_TEXTS):
            body = {"voice_id": lane.pieces_voice_id, "text": _PIECES_TEXT, "format": audio_format}
            task_id = (await http.post("/api/generate", json=body)).raise_for_status().json()["task_id"]
            spoken_seconds += await _spoken_whole(http, task_id)
    return spoken_seconds


async def _spoken_whole(http: httpx.AsyncClient, task_id: str) -> float:
    """How many seconds of speech a text became, once it has."""
    while True:
        task = (await http.get(f"/api/tasks/{task_id}")).raise_for_status().json()
        if task["status"] == "completed":
            seconds: float = task["audio"]["seconds"]
            return seconds
        if task["status"] == "failed":
            raise ChildFailed(f"A text in pieces failed: {task['error']}")
        await asyncio.sleep(0.05)


async def _audience(lane: Lane, source: Child, folder: Path, seconds: float) -> Audience:
    """Many that follow one speech."""
    headers = {"Authorization": f"Bearer {lane.token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{lane.port}", trust_env=False, headers=headers) as http:
        body = {"voice_id": lane.voice_id, "text": "Good evening."}
        path = (await http.post("/api/generate", json=body)).raise_for_status().json()["stream_url"]
    arguments = _following(lane, "--streams", str(_AUDIENCE), "--probes", "0", "--path", path)
    async with _blaming(lane.child), Child.running("audience", *arguments, folder=folder) as followers:
        await followers.hear(_START_SECONDS)
        opened = usage(lane.child.pid, lane.database_pid)
        await asyncio.sleep(seconds)
        closed = usage(lane.child.pid, lane.database_pid)
        followers.tell("probe")
        await followers.hear(_START_SECONDS)
        source.tell("stop")
        seen = await followers.hear(_STORED_SECONDS)
    latencies = [
        (received - sent) / 1e6
        for sent, received in zip(seen["sent_ns"], seen["received_ns"], strict=True)
        if opened.at_ns <= received < closed.at_ns
    ]
    return Audience(
        followers=_AUDIENCE,
        cpu_per_event_microseconds=closed.since(opened).process / max(1, len(latencies)) * 1e6,
        latency_milliseconds=percentiles(latencies),
        problems=seen["problems"],
    )


@contextlib.asynccontextmanager
async def _blaming(child: Child) -> AsyncIterator[None]:
    """Where clients did not get what they wait for, the reason stands in the log of the one who should have sent it."""
    try:
        yield
    except ChildFailed as exc:
        raise child.failed(f"let its clients down. {exc}") from exc


async def _speaking_task(lane: Lane) -> str:
    """A task that is being spoken, for those who poll."""
    headers = {"Authorization": f"Bearer {lane.token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{lane.port}", trust_env=False, headers=headers) as http:
        body = {"voice_id": lane.voice_id, "text": "Good evening."}
        answer = (await http.post("/api/generate", json=body)).raise_for_status()
    return str(answer.json()["task_id"])


async def _polls(lane: Lane, folder: Path, task_id: str, seconds: float) -> Polls:
    arguments = ["-m", "bench.polls", "--port", str(lane.port), "--path", f"{lane.poll_path}{task_id}"]
    arguments += ["--seconds", str(seconds), *(["--token", lane.token] if lane.token else [])]
    async with Child.running("pollers", *arguments, folder=folder) as pollers:
        polled = await pollers.hear(_START_SECONDS + seconds)
    return Polls(kind=lane.kind, requests_per_second=polled["requests_per_second"], problems=polled["problems"])
