"""SIGTERM: streams end, speeches finish or are given back, and the process leaves in time with status 0."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from starlette.types import Message

from server.database.queue import SYNTHESIS
from server.dev.simulator import Simulator
from server.handlers.stream import RawAudio, Walk
from server.lifecycle import stop
from server.logs import JsonFormatter
from server.parts import STORED_AT_ONCE
from server.records import tasks
from server.records.speech import RESTARTED
from server.settings import Settings
from server.storage import Bucket
from tests.end_to_end.conftest import QWEN_AUDIO, deaf, take_no_jobs
from tests.end_to_end.hearing import DELTA_BYTES, Ears, Heard, hold_after
from tests.gateway import Client, Gateway, Process, insert_voice, process, read_events, running_gateway
from tests.postgres_proxy import postgres_proxy
from tests.support import make_settings, wait_for, with_limits

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
DELTAS = 5
WAITING = (
    "INSERT INTO internal.runs (task_id, job_name, object_key) VALUES (gen_random_uuid(), 'synthesize', 'a/b.mp3')"
)
HELD_BYTES = DELTAS * DELTA_BYTES


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """Settings of the server that comes after the one that is told to stop."""
    return make_settings(database_url, simulator, tmp_path, qwen_starts_per_minute=100_000)


@pytest.fixture
def user_id() -> UUID:
    return uuid4()


@pytest.fixture
async def voice_id(database_url: str, user_id: UUID, slowly_either_model: str) -> UUID:
    """A voice of one lane after the other."""
    return await insert_voice(database_url, user_id, model=slowly_either_model)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture
async def server(settings: Settings, simulator: Simulator, log: Path) -> AsyncIterator[Process]:
    """A server process that gives its speeches ten seconds."""
    async with process(settings, simulator, log, SHUTDOWN_GRACE_SECONDS="10", LOG_FORMAT="json") as started:
        yield started


@pytest.fixture
async def client(server: Process, user_id: UUID) -> AsyncIterator[Client]:
    async with server.client(user_id) as signed_in:
        yield signed_in


async def followers(client: Client, count: int) -> None:
    async def enough() -> bool:
        return f"utter_active_streams {count}.0" in (await client.http.get("/metrics")).text

    await wait_for(enough)


async def asked(gateway: Gateway, client: Client, voice_id: UUID, rows: Rows, *, by_job: bool) -> dict[str, Any]:
    """What POST /api/generate answers for a text that is spoken at once, or by a job."""
    await wait_for(lambda: gateway.parts.queue.up([SYNTHESIS]))
    async with gateway.parts.speeches.turns if by_job else contextlib.nullcontext():
        if by_job:  # somebody waits already, so the text waits, too
            await rows.execute(WAITING)
        task = await client.generate(voice_id)
        await rows.execute("DELETE FROM internal.runs WHERE generation_id IS NULL")
    return task


def lines_of(log: str, **members: str) -> list[dict[str, Any]]:
    """The lines of a log in JSON that have these members."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if members.items() <= line.items()]


async def row_of(rows: Rows, task: dict[str, Any]) -> dict[str, Any]:
    found = await rows.fetchrow(
        """SELECT g.status, g.error_message, g.provider_metadata, g.completed_at, r.state, r.attempt
             FROM public.generations g LEFT JOIN internal.runs r ON r.generation_id = g.id WHERE g.id = $1""",
        UUID(task["generation_id"]),
    )
    assert found
    return dict(found)


async def test_sigterm_ends_streams_and_lets_the_speech_be_finished_and_stored(
    server: Process,
    client: Client,
    voice_id: UUID,
    simulator: Simulator,
    rows: Rows,
    settings: Settings,
    user_id: UUID,
) -> None:
    """Fifty event streams end cleanly, a raw one is broken off; their listeners go on with the next process."""
    plan = hold_after(simulator, DELTAS)
    task = await client.generate(voice_id, "Something to be heard.")
    await plan.held()
    async with Ears(server.url) as ears:
        listening = [asyncio.create_task(ears.hear(task["stream_url"])) for _ in range(50)]
        raw = asyncio.create_task(ears.hear_audio(task["stream_url"]))
        await followers(client, 51)
        server.send(signal.SIGTERM)
        ended = [await heard for heard in listening]
        assert [len(heard.audio) for heard in ended] == [HELD_BYTES] * 50
        assert {heard.end for heard in ended} == {None}, "a browser must come back, so it is told of no end"
        audio, whole = await raw
        assert (len(audio), whole) == (HELD_BYTES, False)
        with pytest.raises(httpx.ConnectError):
            await ears.http.get("/api/health")
    assert (await row_of(rows, task))["state"] == "speaking"
    plan.release()
    assert await server.exited() == 0
    assert (await row_of(rows, task))["status"] == "completed"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    ticket = task["stream_url"].partition("ticket=")[2]
    assert ticket not in server.log
    assert "Something to be heard" not in server.log
    async with running_gateway(settings) as successor, Ears(successor.url) as ears:
        heard = await ears.hear(task["stream_url"], {"Last-Event-ID": str(HELD_BYTES)}, start=HELD_BYTES)
        async with successor.client(user_id) as again:
            assert ended[0].audio + heard.audio == await again.audio(task["generation_id"])


async def test_balancers_have_notice_before_anything_ends(
    settings: Settings, simulator: Simulator, log: Path, user_id: UUID, voice_id: UUID
) -> None:
    plan = hold_after(simulator, DELTAS)
    async with (
        process(settings, simulator, log, SHUTDOWN_NOTICE_SECONDS="3") as server,
        server.client(user_id) as client,
        Ears(server.url) as ears,
    ):
        task = await client.generate(voice_id, "Something to be heard.")
        await plan.held()
        listening = asyncio.create_task(ears.hear(task["stream_url"]))
        await followers(client, 1)
        started = time.monotonic()
        server.send(signal.SIGTERM)

        async def not_ready() -> bool:
            return (await client.http.get("/api/ready")).status_code == 503

        await wait_for(not_ready, 2.0)
        assert (await client.http.get("/api/health")).status_code == 200
        assert not listening.done(), "nobody is sent away before balancers had their notice"
        await client.generate(voice_id, "Whoever comes all the same is served.")
        await listening
        assert 2.5 < time.monotonic() - started < 8.0
        plan.release()
        assert await server.exited() == 0


async def test_what_does_not_finish_in_time_fails_or_is_spoken_by_the_next_process(
    settings: Settings,
    simulator: Simulator,
    log: Path,
    user_id: UUID,
    voice_id: UUID,
    rows: Rows,
    slowly_either_model: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The grace is counted from the signal: a listener that reads nothing holds up the shutdown, but not for them.

    The id of a request leads through the logs of both processes.
    """
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level("INFO", "server")
    goes_on = slowly_either_model == QWEN_AUDIO
    async with (
        process(settings, simulator, log, SHUTDOWN_GRACE_SECONDS="1", LOG_FORMAT="json") as server,
        server.client(user_id) as client,
    ):
        simulator.behave("realtime", {"minimum_bytes": 8_000_000, "delta_bytes": 65536})
        large = await client.generate(voice_id, "Large.")
        await client.ended(large["task_id"])
        heard_plan = hold_after(simulator, DELTAS, text_contains="Heard")
        heard = await client.generate(voice_id, "Heard by somebody.")
        await heard_plan.held()
        silent_plan = simulator.behave("realtime", {"do": "hold", "at": "text"}, text_contains="silent")
        silent = await client.generate(voice_id, "Still silent.")
        await silent_plan.held()
        async with Ears(server.url) as ears, deaf(server.url, large["stream_url"]):
            await ears.hear(heard["stream_url"], until=HELD_BYTES)
            await followers(client, 1)
            server.send(signal.SIGTERM)
            told_at = time.monotonic()

            async def both_moved() -> bool:
                row = await row_of(rows, heard)
                moved = row["attempt"] == 2 if goes_on else row["status"] == "failed"
                return bool(moved and (await row_of(rows, silent))["attempt"] == 2)

            await wait_for(both_moved)
            assert 0.9 < time.monotonic() - told_at < 3.5
            assert await server.exited() == 0
    left = await row_of(rows, heard)
    if not goes_on:
        assert left["error_message"] == RESTARTED == "The server was restarted while speaking. Please try again."
    assert (await row_of(rows, silent))["state"] == "queued"
    heard_plan.release()
    silent_plan.release()
    async with running_gateway(settings) as successor, successor.client(user_id) as again:
        assert (await again.ended(silent["task_id"]))["status"] == "completed"
        answer = await again.ended(heard["task_id"])
        expected = ("completed", None) if goes_on else ("failed", "internal")
        assert (answer["status"], answer["error_category"]) == expected
        async with Ears(successor.url) as ears:
            assert (await ears.hear(silent["stream_url"])).audio == await again.audio(silent["generation_id"])
    attempts = (await row_of(rows, silent))["provider_metadata"]["attempts"]
    assert [(attempt["attempt"], attempt["reason"]) for attempt in attempts] == [(1, "server restarted")]
    assert len([call for call in simulator.calls if call["text"] == "Still silent."]) == 2
    for task, there in ((heard, caplog.text if goes_on else server.log), (silent, caplog.text)):
        [asked] = lines_of(server.log, message="POST /api/generate", task_id=task["task_id"])
        [ended] = lines_of(there, message="speech ended", request_id=asked["request_id"])
        assert (ended["task_id"], ended["generation_id"]) == (task["task_id"], task["generation_id"])


async def test_a_process_that_leaves_takes_nothing_new(
    settings: Settings, simulator: Simulator, user_id: UUID, voice_id: UUID, rows: Rows
) -> None:
    plan = hold_after(simulator, DELTAS, text_contains="First")
    async with running_gateway(settings) as other:
        async with running_gateway(settings) as leaving, other.client(user_id) as client:
            await take_no_jobs(other)
            first = await client.generate(voice_id, "First.")
            await plan.held()
            leaving.server.should_exit = True
            await wait_for(lambda: leaving.parts.stopping.is_set())
            second = await client.generate(voice_id, "Second.")
            plan.release()
            assert (await client.ended(first["task_id"]))["status"] == "completed"
        assert (await row_of(rows, second))["state"] == "queued"
    assert [call["text"] for call in simulator.calls] == ["First."]


@pytest.mark.parametrize(
    ("by_job", "cut_seconds", "needs_seconds"),
    [(False, 0.2, 2.0), (True, 0.2, 2.0), pytest.param(True, 5.0, 7.0, marks=pytest.mark.slow)],
)
async def test_a_speech_has_the_whole_grace_however_soon_the_rest_is_cut(
    settings: Settings,
    simulator: Simulator,
    user_id: UUID,
    voice_id: UUID,
    rows: Rows,
    by_job: bool,
    cut_seconds: float,
    needs_seconds: float,
) -> None:
    """What the other queues run is cut a few seconds after the stop, and done again; a speech is paid for."""
    patient = with_limits(settings, shutdown_grace_seconds=20.0, drain_seconds=cut_seconds)
    async with running_gateway(patient) as leaving, leaving.client(user_id) as client:
        plan = hold_after(simulator, DELTAS)
        task = await asked(leaving, client, voice_id, rows, by_job=by_job)
        await plan.held()
        leaving.server.should_exit = True
        await leaving.parts.stopping.wait()
        await asyncio.sleep(needs_seconds)  # so long it would not have been left
        assert leaving.parts.leases.speaking == 1
        plan.release()
    row = await row_of(rows, task)
    assert row["status"] == "completed" or row["state"] == "spoken"
    assert row["provider_metadata"]["attempts"] == []
    assert [call["action"] for call in simulator.calls] == ["synthesize"]


@pytest.mark.parametrize("speaking", [True, False])
async def test_a_database_that_is_gone_does_not_keep_the_process(
    database_url: str,
    settings: Settings,
    simulator: Simulator,
    user_id: UUID,
    voice_id: UUID,
    speaking: bool,
) -> None:
    """Nothing can be written any more; other processes find what this one held."""
    async with postgres_proxy(database_url) as door:
        brief = with_limits(settings, database_url=door.url, shutdown_grace_seconds=0.5, drain_seconds=0.5)
        async with running_gateway(brief) as leaving, leaving.client(user_id) as client:
            plan = hold_after(simulator, DELTAS)
            if speaking:
                await client.generate(voice_id)
                await plan.held()
            door.shut()
            stop(leaving.parts)
            told_at = time.monotonic()
        assert time.monotonic() - told_at < 10.0
        plan.release()


@pytest.mark.parametrize("by_job", [False, True])
async def test_a_store_that_does_not_take_a_speech_does_not_keep_the_process(
    settings: Settings, user_id: UUID, voice_id: UUID, rows: Rows, by_job: bool
) -> None:
    """It is spoken and durable: the next process stores it."""
    brief = with_limits(settings, shutdown_grace_seconds=0.1, drain_seconds=0.5, store_elsewhere_seconds=600.0)
    async with asyncio.timeout(30.0), running_gateway(brief) as leaving, leaving.client(user_id) as client:
        for _ in range(STORED_AT_ONCE):
            await leaving.parts.storing.acquire()
        task = await asked(leaving, client, voice_id, rows, by_job=by_job)

        async def is_spoken() -> bool:
            return bool((await row_of(rows, task))["state"] == "spoken")

        await wait_for(is_spoken)
    assert (await row_of(rows, task))["state"] == "spoken"


async def test_a_stream_that_is_opened_while_the_server_leaves_ends_at_once(
    settings: Settings, simulator: Simulator, user_id: UUID, voice_id: UUID
) -> None:
    """One connection may be older than the signal, and its request younger."""
    plan = hold_after(simulator, DELTAS)
    async with running_gateway(settings) as leaving, leaving.client(user_id) as client, Ears(leaving.url) as ears:
        task = await client.generate(voice_id)
        await plan.held()
        stop(leaving.parts)
        heard = await ears.hear(task["stream_url"])
        assert heard.end is None
        assert await ears.hear_audio(task["stream_url"]) == (b"", False)
        plan.release()


async def test_what_is_read_from_the_store_is_not_taken_for_the_whole(
    settings: Settings, user_id: UUID, database_url: str, rows: Rows
) -> None:
    """Events end without an end, raw audio is broken off, and who comes back to the next process has every byte."""
    async with running_gateway(settings) as leaving, leaving.client(user_id) as client, Ears(leaving.url) as ears:
        parts = leaving.parts
        answer = await client.generate(await insert_voice(database_url, user_id))
        assert (await client.ended(answer["task_id"]))["status"] == "completed"
        async with parts.database.connection() as connection:
            task = await tasks.get(connection, UUID(answer["task_id"]))
        assert task.object_key
        audio = (await client.audio(answer["generation_id"]) * 2000)[:12_000_000]  # more than sockets hold
        await parts.storage.put(Bucket.GENERATIONS, task.object_key, audio, content_type="audio/mpeg", size=len(audio))
        await rows.execute(
            """UPDATE public.generations
                  SET provider_metadata = jsonb_set(provider_metadata, '{audio,bytes}', to_jsonb($1::int))""",
            len(audio),
        )
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)
            if message.get("body"):
                stop(parts)

        async def receive() -> Message:
            await asyncio.Event().wait()
            return {}

        heard = Heard(0)
        async with ears.open(answer["stream_url"]) as response:
            async for event in read_events(response):
                heard.take(event)
                if len(heard.deltas) == 1 and not sent:
                    await RawAudio(parts, Walk(parts, task, 0))({"type": "http"}, receive, send)
        assert 0 < len(heard.audio) < len(audio)
        assert heard.end is None
        assert len(b"".join(message.get("body", b"") for message in sent)) < len(audio)
        assert sent[-1]["more_body"], "the server ends no body that it has not ended itself"
    async with running_gateway(settings) as successor, Ears(successor.url) as ears:
        start = len(heard.audio)
        rest = await ears.hear(answer["stream_url"], {"Last-Event-ID": str(start)}, start=start)
        assert rest.end is not None
        assert heard.audio + rest.audio == audio
