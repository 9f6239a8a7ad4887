"""What may pile up is bounded, and who waits for one thing keeps nobody from another."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from server.admission.limits import AudioMemory, LongReads, Unstored
from server.dev.simulator import Simulator
from server.errors import Overloaded, TooMany
from server.metrics import Metrics
from server.settings import Settings
from tests.gateway import insert_voice, running_gateway
from tests.handlers.wire import counted, problem_of
from tests.support import wait_for
from tests.voices import DESIGN

# --- long reads -------------------------------------------------------------------------------------------------------


async def test_many_long_lists_keep_nobody_else_from_the_database(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LongReads, "WAIT_SECONDS", 1.0)
    other = await asyncpg.connect(database_url)
    async with (
        running_gateway(replace(settings, database_pool_size=4)) as gateway,
        gateway.client() as client,
        asyncio.TaskGroup() as group,
    ):
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE public.voices IN ACCESS EXCLUSIVE MODE")
        asked = [group.create_task(client.http.get("/api/voices")) for _ in range(15)]
        await wait_for(lambda: gateway.parts.long_reads._all.locked())
        async with asyncio.timeout(3.0):
            assert (await client.http.get("/api/keys")).status_code == 200
        async with asyncio.timeout(5.0):
            for number, answer in enumerate(asyncio.as_completed(asked), 1):
                response = await answer
                problem_of(response, response.status_code, "overloaded", says="searc")
                assert response.status_code in (429, 503)
                if number == 13:
                    break
        # One has the turn of all, one waits for it with this person's other own, and the rest for an own.
        of_all, of_one = [await counted(client.http, what) for what in ("reads", "reads_of_one")]
        assert of_all >= 1
        assert of_one >= 10
        assert of_all + of_one >= 13
        await transaction.rollback()
        assert [(await answer).status_code for answer in asked].count(200) >= 1
    await other.close()


async def test_turns_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LongReads, "WAIT_SECONDS", 0.05)
    metrics, one, other = Metrics(), uuid4(), uuid4()
    reads = LongReads(metrics, at_once=3)
    for _ in range(3):
        async with reads.turn(one), reads.turn(one):
            with pytest.raises(TooMany):
                await reads.turn(one).__aenter__()
            async with reads.turn(other):
                with pytest.raises(Overloaded):
                    await reads.turn(other).__aenter__()
    assert b'utter_refused_total{what="reads"} 3.0' in metrics.exposition()


# --- bytes in memory --------------------------------------------------------------------------------------------------


async def test_a_process_without_memory_takes_no_text_in_hand_and_refuses_what_nobody_could_take(
    settings: Settings, simulator: Simulator, database_url: str, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """There is room for one of these texts at a time, and one more may wait for it."""
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="first")
    async with running_gateway(replace(settings, memory_for_audio=100_000)) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        first = await client.generate(voice_id, "The first one.")
        await held.held()
        second = await client.generate(voice_id, "Another one.")
        await wait_for(lambda: gateway.parts.memory.waited_for)
        states = "SELECT state FROM internal.runs ORDER BY created_at"
        assert [row["state"] for row in await rows.fetch(states)] == ["speaking", "queued"]
        body = {"voice_id": str(voice_id), "text": "A third one."}
        refused = await client.http.post("/api/generate", json=body)
        problem_of(refused, 503, "overloaded", says="Too much is being spoken")
        assert int(refused.headers["retry-after"]) > 0
        assert b'utter_refused_total{what="memory"} 1.0' in gateway.parts.metrics.exposition()
        assert await rows.fetchval("SELECT count(*) FROM public.generations") == 2, "nothing is left of it"
        # What waits is anybody's: a process that has memory takes it, though this one has fetched its job.
        async with running_gateway(settings) as other:
            assert (await client.ended(second["task_id"]))["status"] == "completed"
            assert other.parts.memory.has_room(1)
        assert (await client.task(first["task_id"]))["status"] == "processing"
        assert (await client.http.post("/api/generate", json=body)).status_code == 200
        held.release()
        assert (await client.ended(first["task_id"]))["status"] == "completed"


async def test_what_is_cancelled_while_it_waits_for_memory_is_not_bought(
    settings: Settings, simulator: Simulator, database_url: str
) -> None:
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="first")
    async with running_gateway(replace(settings, memory_for_audio=120_000)) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        first = await client.generate(voice_id, "The first one.")
        await held.held()
        second = await client.generate(voice_id, "Another one.")
        assert (await client.http.post(f"/api/tasks/{second['task_id']}/cancel")).json()["cancelled"] is True
        third = await client.generate(voice_id, "A third one.")
        held.release()
        for task in (first, third):
            assert (await client.ended(task["task_id"]))["status"] == "completed"
        assert len([call for call in simulator.calls if call.get("text")]) == 2


async def test_memory_is_given_to_who_came_first_and_comes_back() -> None:
    memory = AudioMemory(Metrics(), 100)
    order: list[str] = []

    async def use(name: str, size: int, leave: asyncio.Event) -> None:
        async with memory.room(size, within_seconds=5.0):
            order.append(name)
            await leave.wait()

    leave = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(use("half", 60, leave))
        await wait_for(lambda: order)
        large = group.create_task(use("larger than all", 500, leave))
        group.create_task(use("small", 10, leave))
        await asyncio.sleep(0.01)
        assert order == ["half"], "nobody overtakes"
        large.cancel()
        await wait_for(lambda: order == ["half", "small"])
        with pytest.raises(TimeoutError):
            await memory.room(90, within_seconds=0.01).__aenter__()
        leave.set()
    async with memory.room(500, within_seconds=0.01):
        order.append("alone")
    async with memory.room(100, within_seconds=0.01):
        order.append("all of it")
    assert order[-2:] == ["alone", "all of it"]
    memory.remember(30)  # what is there already asks nobody
    assert memory.has_room(70)
    assert not memory.has_room(71)
    memory.remember(-30)
    assert memory.has_room(100)


# --- bytes that wait for the store ------------------------------------------------------------------------------------


async def test_texts_are_refused_while_too_much_waits_for_the_store(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    monkeypatch.setattr(Unstored, "FRESH_SECONDS", 0.0)
    async with running_gateway(replace(settings, unstored_limit=1000)) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        root = Path(settings.storage.root) / "generations"
        shutil.rmtree(root)
        root.write_bytes(b"")
        task = await client.generate(voice_id)

        async def waits() -> bool:
            return bool(await rows.fetchval("SELECT count(*) FROM internal.runs WHERE state = 'spoken'"))

        await wait_for(waits)
        body = {"voice_id": str(voice_id), "text": "One too many."}
        response = await client.http.post("/api/generate", json=body)
        problem_of(response, 503, "overloaded", says="away for long")
        assert int(response.headers["retry-after"]) >= 10
        assert "unstored" in (await client.http.get("/api/ready")).json()["degraded"]
        root.unlink()
        assert (await client.ended(task["task_id"]))["status"] == "completed"
        assert (await client.http.post("/api/generate", json=body)).status_code == 200


async def test_previews_are_refused_while_too_much_waits_for_the_store(
    settings: Settings, simulator: Simulator, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with running_gateway(replace(settings, unstored_limit=1000)) as gateway, gateway.client() as client:
        await rows.execute(
            """INSERT INTO internal.runs (task_id, job_name, object_key, state, byte_length, spoken_at)
               VALUES (gen_random_uuid(), 'synthesize', 'a/b.mp3', 'unstored', 1000, now())"""
        )
        response = await client.http.post("/api/voices/design/preview", json=DESIGN)
        problem_of(response, 503, "overloaded", says="away for long")
        assert response.headers["retry-after"] == "60"
        assert b'utter_refused_total{what="unstored"} 1.0' in gateway.parts.metrics.exposition()
        assert not simulator.calls
