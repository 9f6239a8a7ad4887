"""The switch, thrown in both directions while people speak: nothing is lost, doubled or stuck.

Every server here has the same database and storage; they differ in their mode, as before and after a deploy.
"""

import asyncio
import base64
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import boto3
import httpx
import pytest

from server.dev.simulator import Simulator
from server.settings import Settings, StorageSettings
from tests.end_to_end.hearing import DELTA_BYTES
from tests.gateway import Client, Gateway, insert_voice, read_events, running_gateway
from tests.handlers.wire import problem_of
from tests.modal import in_modal_mode, insert_modal_voice
from tests.support import wait_for, with_limits

Rows = Any
SPEECHES = 6
DELTAS = 6


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Servers look often and leave soon; both providers are configured, as the cut-over asks for."""
    return with_limits(
        settings,
        modal_watch_seconds=0.2,
        sweep_every_seconds=0.5,
        idle_run_seconds=2.0,
        shutdown_grace_seconds=10.0,
    )


@dataclass
class World:
    """Whoever serves at the moment, and a user with a voice of each provider."""

    settings: Settings
    rows: Rows
    simulator: Simulator
    user_id: UUID = field(default_factory=uuid4)
    serving: list[Gateway] = field(default_factory=list)
    voices: dict[str, UUID] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def server(self, mode: str) -> AsyncIterator[Gateway]:
        """A server of that mode; new requests go to whoever came last."""
        async with running_gateway(in_modal_mode(self.settings) if mode == "modal" else self.settings) as gateway:
            if not self.voices:
                self.voices = {
                    "qwen": await insert_voice(self.settings.database_url, self.user_id),
                    "modal": await insert_modal_voice(gateway.parts, self.rows, self.user_id),
                }
            self.serving.append(gateway)
            try:
                yield gateway
            finally:
                self.serving.remove(gateway)

    @property
    def newest(self) -> str:
        return self.serving[-1].url

    @contextlib.asynccontextmanager
    async def client(self, gateway: Gateway) -> AsyncIterator[Client]:
        async with gateway.client(self.user_id) as client:
            yield client

    async def speak(self, gateway: Gateway, what: str, count: int = SPEECHES) -> list["Speech"]:
        """Have the server's own voice say so many texts."""
        voice = self.voices[gateway.parts.settings.tts_provider_mode]
        async with self.client(gateway) as client:
            return [Speech(**await client.generate(voice, f"{what}, number {n}.")) for n in range(count)]

    def calls(self, surface: str, action: str) -> list[dict[str, Any]]:
        return [call for call in self.simulator.calls if (call["surface"], call["action"]) == (surface, action)]


@dataclass
class Speech:
    task_id: str
    generation_id: str
    status: str
    is_long_running: bool
    estimated_duration_minutes: float
    stream_url: str = ""


@pytest.fixture
async def world(settings: Settings, simulator: Simulator, rows: Rows) -> World:
    return World(settings, rows, simulator)


def sessions(world: World) -> list[dict[str, Any]]:
    """The realtime sessions so far: what Qwen was asked to speak."""
    return world.calls("realtime", "synthesize")


async def followed(address: Callable[[], str], speech: Speech) -> tuple[bytes, dict[str, Any]]:
    """Follow as a browser's EventSource: come back with the last id whenever the stream ends without its end.

    Args:
        address: Where to connect to at the moment.
    """
    heard, last_id = b"", ""
    async with httpx.AsyncClient(timeout=20.0) as http:
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
            try:
                async with http.stream("GET", address() + speech.stream_url, headers=headers) as response:
                    assert response.status_code == 200, await response.aread()
                    async for event in read_events(response):
                        if event.terminal:
                            return heard, event.data
                        if event.name == "response.audio.delta":
                            heard += base64.b64decode(event.data["delta"])
                            last_id = event.id or ""
                            assert last_id == str(len(heard))
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)  # what a browser calls retry


async def polled(address: Callable[[], str], world: World, speech: Speech) -> dict[str, Any]:
    """Poll as a tab does until the task has ended, through restarts; the answer that said so."""
    headers = Client(world.newest, world.user_id).headers
    async with httpx.AsyncClient(timeout=20.0, headers=headers) as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = await http.get(f"{address()}/api/tasks/{speech.task_id}")
                assert response.status_code in (200, 503), response.text
                answer = response.json()
                if response.status_code == 200 and answer["status"] not in ("pending", "processing"):
                    ended: dict[str, Any] = answer
                    return ended
            await asyncio.sleep(0.25)  # a tab's pause


async def check_everything(world: World, gateway: Gateway, qwen: list[Speech], modal: list[Speech]) -> None:
    """Every speech is there once, and nothing is left over."""
    rows = world.rows
    async with world.client(gateway) as client:
        for speech in (*qwen, *modal):
            task = await client.task(speech.task_id)
            assert task["status"] == "completed", task
            assert await client.audio(speech.generation_id)
        listed = (await client.http.get("/api/generations?per_page=100")).json()["generations"]
        assert Counter(entry["id"] for entry in listed) == Counter(s.generation_id for s in (*qwen, *modal))
        assert {entry["status"] for entry in listed} == {"completed"}
    for table in ("internal.runs", "internal.spool", "internal.removals"):
        assert await rows.fetchval(f"SELECT count(*) FROM {table}") == 0, table
    assert await rows.fetchval("SELECT count(*) FROM internal.purchases WHERE state <> 'done'") == 0
    assert len(world.calls("modal", "submit")) == len(modal)
    results = Counter(call["job_id"] for call in world.calls("modal", "result"))
    assert sorted(results.values()) == [1] * len(modal)


async def test_back_and_forth_under_load_with_both_servers_up(world: World) -> None:
    """A rolling deploy: the new server is there before the old one leaves, in both directions."""
    world.simulator.behave(
        "realtime",
        {
            "faults": [{"do": "hold", "after_deltas": DELTAS}],
            "delta_bytes": DELTA_BYTES,
            "minimum_bytes": 3 * DELTAS * DELTA_BYTES,
        },
        times=0,
    )
    running = world.simulator.behave("modal", {"reports": "running"}, action="status", times=0)
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        # Qwen speaks, half of every text is heard.
        first_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        first = await first_stack.enter_async_context(world.server("qwen"))
        qwen = await world.speak(first, "Spoken by Qwen")
        at_first = [group.create_task(followed(lambda: world.serving[0].url, speech)) for speech in qwen]
        polls = [group.create_task(polled(lambda: world.newest, world, speech)) for speech in qwen]
        await wait_for(lambda: sum(call["deltas"] >= DELTAS for call in sessions(world)) == SPEECHES)

        # Roll back: Modal takes new texts, the old server goes on with its own, everybody may ask either.
        second_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        second = await second_stack.enter_async_context(world.server("modal"))
        async with world.client(second) as client:
            assert (await client.http.get("/api/languages")).json()["provider"] == "modal"
            old_voice = {"voice_id": str(world.voices["qwen"]), "text": "Not any more."}
            problem_of(await client.http.post("/api/generate", json=old_voice), 409, "conflict", says="re-clone")
        modal = await world.speak(second, "Spoken by Modal")
        at_second = [group.create_task(followed(lambda: world.newest, speech)) for speech in qwen]
        polls += [group.create_task(polled(lambda: world.serving[0].url, world, speech)) for speech in modal]
        polls += [group.create_task(polled(lambda: world.newest, world, speech)) for speech in modal]
        world.simulator.behaviours.release()
        await first_stack.aclose()

        # Roll forward: Qwen takes new texts, and the jobs that Modal has still under way come to their end.
        third = await stack.enter_async_context(world.server("qwen"))
        later = await world.speak(third, "Spoken by Qwen again")
        at_third = [group.create_task(followed(lambda: world.newest, speech)) for speech in later]
        assert not any(poll.done() for poll in polls[SPEECHES:])
        running.remaining = 0
        await second_stack.aclose()

        for follower, speech in zip([*at_first, *at_second, *at_third], [*qwen, *qwen, *later], strict=True):
            heard, task = await follower
            assert task["status"] == "completed"
            async with world.client(third) as client:
                assert await client.audio(speech.generation_id) == heard
        for poll in polls:
            assert (await poll)["status"] == "completed"
        assert len(sessions(world)) == 2 * SPEECHES
        await check_everything(world, third, [*qwen, *later], modal)


async def test_back_and_forth_with_nobody_up_in_between(world: World) -> None:
    """One server stops before the next begins. Whoever comes finishes what it finds, of whichever provider."""
    async with world.server("qwen") as gateway:
        gateway.parts.queue.stop("synthesis")
        await wait_for(lambda: not gateway.parts.queue.up(["synthesis"]))
        qwen = await world.speak(gateway, "Taken by Qwen, spoken later")
    world.simulator.behave("modal", {"reports": "running"}, action="status", times=0)
    async with world.server("modal") as gateway:
        modal = await world.speak(gateway, "Taken by Modal, fetched later")
        for speech in qwen:
            _, task = await followed(lambda: world.newest, speech)
            assert task["status"] == "completed"
    world.simulator.behaviours.clear()
    async with world.server("qwen") as gateway:
        for speech in modal:
            # Nobody polls here: the watcher does it.
            async def ended(generation_id: str = speech.generation_id) -> bool:
                status = await world.rows.fetchval(
                    "SELECT status FROM public.generations WHERE id = $1", UUID(generation_id)
                )
                return bool(status == "completed")

            await wait_for(ended, 20.0)
        assert len(sessions(world)) == SPEECHES
        await check_everything(world, gateway, qwen, modal)


async def test_a_cancel_reaches_the_other_provider_in_either_mode(world: World) -> None:
    world.simulator.behave("modal", {"job_seconds": 600}, action="submit", times=0)
    world.simulator.behave("realtime", {"do": "hold", "at": "audio"}, times=0)
    async with world.server("qwen") as qwen_server, world.server("modal") as modal_server:
        [by_qwen] = await world.speak(qwen_server, "Spoken by Qwen", 1)
        [by_modal] = await world.speak(modal_server, "Spoken by Modal", 1)
        await world.simulator.until(lambda _: bool(sessions(world)))
        for gateway, speech in ((modal_server, by_qwen), (qwen_server, by_modal)):
            async with world.client(gateway) as client:
                cancelled = await client.http.post(f"/api/tasks/{speech.task_id}/cancel")
                assert cancelled.json() == {"cancelled": True, "task_id": speech.task_id}
        await world.simulator.until(lambda _: len(world.calls("modal", "cancel")) == 1)
        await world.simulator.until(lambda _: "closed_at" in sessions(world)[0])
        assert await world.rows.fetchval("SELECT count(*) FROM internal.runs") == 0


async def test_qwen_speech_under_way_fails_with_words_where_its_key_is_gone(world: World, settings: Settings) -> None:
    """The operator took the key away with the mode: that is said, at once, and nothing is tried for minutes."""
    async with world.server("qwen") as gateway:
        gateway.parts.queue.stop("synthesis")
        await wait_for(lambda: not gateway.parts.queue.up(["synthesis"]))
        [speech] = await world.speak(gateway, "Taken by Qwen", 1)
    async with running_gateway(in_modal_mode(settings, dashscope_api_key="")) as gateway, world.client(gateway) as user:
        task = await user.ended(speech.task_id)
    assert (task["status"], task["error_category"]) == ("failed", "provider_unavailable")
    assert "not set up" in task["error"]
    assert world.simulator.calls == []


async def test_voices_of_both_providers_stay_listed(world: World) -> None:
    """And come back into use with the switch, recording and transcript included."""
    for mode in ("qwen", "modal", "qwen"):
        async with world.server(mode) as gateway, world.client(gateway) as client:
            listed = (await client.http.get("/api/voices")).json()["voices"]
            assert {voice["tts_provider"]: voice["compatible"] for voice in listed} == {
                "qwen": mode == "qwen",
                "modal": mode == "modal",
            }
            for voice in listed:
                assert voice["reference_transcript"]
                assert (voice["incompatible_reason"] is None) is voice["compatible"]
            answer = await client.generate(world.voices[mode])
            assert (await client.ended(answer["task_id"]))["status"] == "completed"


# --- one upload -------------------------------------------------------------------------------------------------------


@pytest.fixture
def versioned_store(s3_server: str) -> Iterator[tuple[StorageSettings, Any]]:
    """Buckets that keep every version of every object, and a client that can list them."""
    name = f"b{hashlib.sha256(uuid4().bytes).hexdigest()[:20]}"
    with contextlib.closing(boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")) as s3:
        buckets = {"bucket_references": f"{name}-r", "bucket_generations": f"{name}-g"}
        for bucket in buckets.values():
            s3.create_bucket(Bucket=bucket)
            s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        yield StorageSettings(kind="s3", endpoint=s3_server, region="us-east-1", **buckets), s3


async def test_tabs_at_two_servers_cause_one_upload(world: World, versioned_store: tuple[StorageSettings, Any]) -> None:
    storage, s3 = versioned_store
    world.settings = replace(world.settings, storage=storage)
    async with world.server("modal") as one, world.server("modal") as other:
        [speech] = await world.speak(one, "Spoken once", 1)
        async with asyncio.TaskGroup() as tabs:
            for gateway in (one, other):
                for _ in range(5):
                    tabs.create_task(polled(partial(str, gateway.url), world, speech))
        key = f"{world.user_id}/{speech.generation_id}.wav"
        versions = await asyncio.to_thread(s3.list_object_versions, Bucket=storage.bucket_generations, Prefix=key)
        assert [version["Key"] for version in versions["Versions"]] == [key]
        assert len(world.calls("modal", "result")) == 1
        async with world.client(other) as client:
            task = await client.task(speech.task_id)
        assert task["modal_poll_count"] == task["provider_poll_count"]
