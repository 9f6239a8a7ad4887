"""Processes that die, pause or lose their database: nobody hears a wrong byte, and nothing waits for ever."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.dev.simulator import Call, Simulator
from server.records.speech import RESTARTED
from server.relay.sweep import NOBODY_FREE
from server.settings import Deadlines, Intervals, Settings
from server.storage import Bucket
from tests.end_to_end.conftest import (
    QWEN_AUDIO,
    followers,
    gateway_behind,
    storing_by_job,
    storing_nothing,
    take_no_jobs,
)
from tests.end_to_end.hearing import DELTA_BYTES, Ears, hold_after
from tests.gateway import Gateway, Process, insert_voice, process, running_gateway
from tests.postgres_proxy import PostgresProxy
from tests.support import make_settings, wait_for, with_limits

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
DELTAS = 5
HELD_BYTES = DELTAS * DELTA_BYTES
# The victim is a process of its own with the usual deadlines: it says that it lives once a second.
IMPATIENT = {
    "renew_every_seconds": 0.3,
    "lost_after_seconds": 2.0,
    "sweep_every_seconds": 0.1,
    "idle_run_seconds": 0.5,
    "store_elsewhere_seconds": 0.5,
}


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """Settings of a server that soon takes another one for dead."""
    usual = make_settings(database_url, simulator, tmp_path, qwen_starts_per_minute=100_000, shutdown_grace_seconds=2.0)
    return with_limits(usual, **IMPATIENT)


@pytest.fixture
def user_id() -> UUID:
    return uuid4()


@pytest.fixture
async def voice_id(database_url: str, user_id: UUID, slowly_either_model: str) -> UUID:
    """A voice of one lane after the other."""
    return await insert_voice(database_url, user_id, model=slowly_either_model)


@pytest.fixture
def goes_on(slowly_either_model: str) -> bool:
    """Whether another process takes up what somebody has heard already."""
    return slowly_either_model == QWEN_AUDIO


def session_of(call: Call) -> str:
    """What the provider called the session of a call."""
    return str(call.get("task_id") or f"sess_sim{call['id']:08d}")


@pytest.fixture
async def victim(settings: Settings, simulator: Simulator, tmp_path: Path) -> AsyncIterator[Process]:
    """A server process that something will happen to. No other is there yet."""
    async with process(settings, simulator, tmp_path / "victim.log") as started:
        yield started


async def row_of(rows: Rows, task: dict[str, Any]) -> dict[str, Any]:
    found = await rows.fetchrow(
        """SELECT g.status, g.error_message, g.provider_metadata, g.completed_at, g.audio_object_key,
                  t.status AS task_status, t.error_category, t.updated_at, r.state, r.attempt, r.byte_length
             FROM public.generations g JOIN public.tasks t ON t.generation_id = g.id
             LEFT JOIN internal.runs r ON r.generation_id = g.id WHERE g.id = $1""",
        UUID(task["generation_id"]),
    )
    assert found
    return dict(found)


async def durable(rows: Rows, task: dict[str, Any], byte_length: int = HELD_BYTES) -> None:
    """Wait until so much of a speech is in the spool."""

    async def enough() -> bool:
        return bool((await row_of(rows, task))["byte_length"] == byte_length)

    await wait_for(enough)


async def objects(gateway: Gateway) -> set[str]:
    return {stored.key async for stored in gateway.parts.storage.list(Bucket.GENERATIONS)}


def test_a_dead_processs_tasks_move_on_within_half_a_minute() -> None:
    """The tests below wait for shorter deadlines; these are the usual ones."""
    usual, every = Deadlines(), Intervals()
    found_after = usual.lost_after_seconds + 1.2 * every.sweep_every_seconds
    assert found_after + every.renew_every_seconds < 30.0
    assert usual.idle_run_seconds + 1.2 * every.sweep_every_seconds < 30.0
    assert usual.lost_after_seconds > 5 * every.renew_every_seconds, "a hiccup must not look like death"


# --- killed ----------------------------------------------------------------------------------------------------------


async def test_a_speech_that_nobody_has_heard_is_spoken_again_by_another_process(
    victim: Process, settings: Settings, simulator: Simulator, user_id: UUID, voice_id: UUID, rows: Rows
) -> None:
    plan = simulator.behave("realtime", {"do": "hold", "at": "audio"})
    async with victim.client(user_id) as client:
        task = await client.generate(voice_id)
    await plan.held()
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client, Ears(survivor.url) as ears:
        following = asyncio.create_task(ears.hear(task["stream_url"]))
        await followers(survivor, 1)
        await victim.kill()
        assert (await client.ended(task["task_id"]))["status"] == "completed"
        assert (await following).audio == await client.audio(task["generation_id"])
    assert len(simulator.calls) == 2
    attempts = (await row_of(rows, task))["provider_metadata"]["attempts"]
    assert [(attempt["attempt"], attempt["reason"]) for attempt in attempts] == [(1, "its process died")]
    plan.release()


async def test_a_speech_that_somebody_has_heard_goes_on_or_fails_and_keeps_its_diagnostics(
    victim: Process, settings: Settings, simulator: Simulator, user_id: UUID, voice_id: UUID, rows: Rows, goes_on: bool
) -> None:
    """A second speech must never be spliced onto the first, unless its lane says where."""
    plan = hold_after(simulator, DELTAS)
    async with victim.client(user_id) as client:
        task = await client.generate(voice_id)
    await plan.held()
    await durable(rows, task)
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client, Ears(survivor.url) as ears:
        following = asyncio.create_task(ears.hear(task["stream_url"]))
        await ears.hear(task["stream_url"], until=HELD_BYTES)
        await followers(survivor, 1)
        await victim.kill()
        heard = await following
        assert heard.end
        if goes_on:
            assert heard.end["status"] == "completed"
            assert heard.audio == await client.audio(task["generation_id"])
            assert len(heard.audio) > HELD_BYTES
            [attempt] = (await row_of(rows, task))["provider_metadata"]["attempts"]
            assert (attempt["goes_on_at_character"], attempt["sentence_paid_again"]) == (0, True)
            assert len(simulator.calls) == 2
            return
        assert len(heard.audio) == HELD_BYTES
        assert (heard.end["status"], heard.end["error"], heard.end["error_category"]) == (
            "failed",
            RESTARTED,
            "internal",
        )
        assert await objects(survivor) == set()
        assert b'utter_tasks_total{category="internal",provider="qwen",status="failed"} 1.0' in (
            survivor.parts.metrics.exposition()
        )
    assert len(simulator.calls) == 1
    assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
    metadata = (await row_of(rows, task))["provider_metadata"]
    assert metadata["error"] == {"code": "process_died", "attempt": 1}
    assert metadata["session_id"].startswith("sess_sim")
    plan.release()


async def test_a_speech_that_is_spoken_is_stored_by_another_process(
    victim: Process, settings: Settings, simulator: Simulator, user_id: UUID, voice_id: UUID, rows: Rows
) -> None:
    """It was paid for: the finalizer dies between storing and publishing, and the next one begins again."""
    async with rows.transaction():
        await rows.execute(
            """CREATE FUNCTION public.wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   IF NEW.status = 'completed' THEN PERFORM pg_catalog.pg_advisory_xact_lock(42); END IF;
                   RETURN NEW;
               END $$"""
        )
        await rows.execute(
            """CREATE TRIGGER wait_for_the_test BEFORE UPDATE ON public.generations
                   FOR EACH ROW EXECUTE FUNCTION public.wait_for_the_test()"""
        )
    await rows.execute("SELECT pg_advisory_lock(42)")
    async with victim.client(user_id) as client:
        task = await client.generate(voice_id)

    async def publishing() -> bool:
        return bool(
            await rows.fetchval("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
        )

    await wait_for(publishing)
    await victim.kill()
    assert (await row_of(rows, task))["state"] == "spoken"
    await rows.execute("SELECT pg_advisory_unlock(42)")
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client:
        assert (await client.ended(task["task_id"]))["status"] == "completed"
        async with Ears(survivor.url) as ears:
            assert (await ears.hear(task["stream_url"])).audio == await client.audio(task["generation_id"])
    assert len(simulator.calls) == 1
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0


# --- paused, and back again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [True, False], ids=["after its first byte", "before its first byte"])
async def test_a_process_that_was_taken_for_dead_and_comes_back_writes_nothing(
    victim: Process,
    settings: Settings,
    simulator: Simulator,
    user_id: UUID,
    voice_id: UUID,
    rows: Rows,
    heard: bool,
    goes_on: bool,
) -> None:
    fails = heard and not goes_on
    plan = hold_after(simulator, DELTAS) if heard else simulator.behave("realtime", {"do": "hold", "at": "audio"})
    async with victim.client(user_id) as client:
        task = await client.generate(voice_id)
    await plan.held()
    if heard:
        await durable(rows, task)
    victim.send(signal.SIGSTOP)
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client:
        ended = await client.ended(task["task_id"])
        assert ended["status"] == ("failed" if fails else "completed")
        await wait_for(lambda: not survivor.parts.leases.speaking)
        before = await row_of(rows, task), await objects(survivor)
        plan.release()
        victim.send(signal.SIGCONT)
        # It learns that the run is not its own any more, and hangs up.
        await simulator.until(lambda calls: "closed_at" in calls[0])
        async with victim.client(user_id) as again:
            assert (await again.http.get("/api/health")).status_code == 200
        victim.send(signal.SIGTERM)
        assert await victim.exited() == 0
        assert (await row_of(rows, task), await objects(survivor)) == before
        assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
        assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
        if not fails:
            async with Ears(survivor.url) as ears:
                assert (await ears.hear(task["stream_url"])).audio == await client.audio(task["generation_id"])
    assert len(simulator.calls) == (1 if fails else 2)


async def test_a_process_that_is_cut_off_from_the_database_writes_nothing_when_it_is_back(
    gateway: Gateway,
    speaker: Gateway,
    door: PostgresProxy,
    simulator: Simulator,
    user_id: UUID,
    voice_id: UUID,
    rows: Rows,
    goes_on: bool,
) -> None:
    """It goes on speaking meanwhile, to its own listeners too; then its bytes, and its end, are refused."""
    plan = hold_after(simulator, DELTAS)
    async with gateway.client(user_id) as client:
        task = await client.generate(voice_id)
        await plan.held()
        await durable(rows, task)
        with door.held():
            plan.release()
            await wait_for(lambda: speaker.parts.live.logs()[0].length > HELD_BYTES)
            if not goes_on:
                assert (await client.ended(task["task_id"]))["status"] == "failed"

            async def given_away() -> bool:
                row = await row_of(rows, task)
                return bool(row["status"] == "failed" or (row["state"], row["attempt"]) == ("queued", 2))

            await wait_for(given_away)
            before = await row_of(rows, task)
            assert before["byte_length"] == (HELD_BYTES if goes_on else None)
        if goes_on:
            # What it has received meanwhile is nobody's; it speaks the rest as anybody would, from what is durable.
            assert (await client.ended(task["task_id"]))["status"] == "completed"
            async with Ears(gateway.url) as ears:
                assert (await ears.hear(task["stream_url"])).audio == await client.audio(task["generation_id"])
            assert len(simulator.calls) == 2
            return
        await wait_for(lambda: not speaker.parts.leases.speaking)
        assert await row_of(rows, task) == before
        assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
        assert await objects(gateway) == set()


@pytest.mark.parametrize("ending", ["with audio", "with an error"])
async def test_what_a_process_says_of_a_speech_that_was_taken_over_changes_nothing(
    gateway: Gateway,
    speaker: Gateway,
    door: PostgresProxy,
    simulator: Simulator,
    user_id: UUID,
    voice_id: UUID,
    rows: Rows,
    ending: str,
) -> None:
    """It was cut off before its first byte; when it is back, another process is in the middle of the text."""
    faults: list[dict[str, Any]] = [{"do": "hold", "at": "audio"}]
    if ending == "with an error":
        faults.append({"do": "error", "at": "audio", "code": "InternalError"})
    first = simulator.behave("realtime", {"faults": faults})
    async with gateway.client(user_id) as client:
        task = await client.generate(voice_id)
        await first.held()
        second = hold_after(simulator, DELTAS)
        with door.held():
            first.release()
            async with running_gateway(gateway.parts.settings) as successor, Ears(successor.url) as ears:
                await second.held()
                await durable(rows, task)
                await wait_for(lambda: simulator.calls[0]["deltas"] or simulator.calls[0].get("ended"))
                door.go_on()
                await wait_for(lambda: not speaker.parts.leases.speaking)
                await simulator.until(lambda calls: "closed_at" in calls[0])
                row = await row_of(rows, task)
                assert (row["status"], row["state"], row["attempt"]) == ("processing", "speaking", 2)
                assert row["provider_metadata"]["session_id"] == session_of(simulator.calls[1])
                second.release()
                heard = await ears.hear(task["stream_url"])
                assert heard.audio == await client.audio(task["generation_id"])
    assert (await row_of(rows, task))["provider_metadata"]["session_id"] == session_of(simulator.calls[1])


async def test_nobody_hears_a_byte_that_is_lost_with_its_process(
    gateway: Gateway,
    speaker: Gateway,
    door: PostgresProxy,
    simulator: Simulator,
    user_id: UUID,
    voice_id: UUID,
) -> None:
    """The first delta is in memory and not yet durable: were it heard, the second speech would be spliced onto it."""
    plan = simulator.behave("realtime", {"do": "hold", "at": "audio", "minimum_bytes": HELD_BYTES})
    async with gateway.client(user_id) as client, Ears(speaker.url) as near, Ears(gateway.url) as far:
        task = await client.generate(voice_id)
        await plan.held()
        listening = [asyncio.create_task(ears.hear(task["stream_url"])) for ears in (near, far)]
        await followers(speaker, 1)
        await followers(gateway, 1)
        with door.held():
            plan.release()
            [log] = speaker.parts.live.logs()
            await wait_for(lambda: log.length)
            assert log.visible == 0
            async with running_gateway(gateway.parts.settings):
                assert (await client.ended(task["task_id"]))["status"] == "completed"
        audio = await client.audio(task["generation_id"])
        for heard in [await task_ for task_ in listening]:
            assert heard.audio == audio
    assert len(simulator.calls) == 2


# --- an outage of the database ---------------------------------------------------------------------------------------


async def test_an_outage_of_a_second_and_a_half_kills_no_speech(
    settings: Settings, door: PostgresProxy, simulator: Simulator, user_id: UUID, voice_id: UUID
) -> None:
    """Some speak through it, some begin or end in it; followers of this process hear on, requests fail at once.

    It is long enough here for a process that is taken for dead; but nobody's beat counts that nobody could hear.
    """
    simulator.behave("realtime", {"minimum_bytes": 60_000, "delta_bytes": 1000, "speed": 1.5}, times=3)
    plan = simulator.behave("realtime", {"do": "hold", "at": "text", "minimum_bytes": HELD_BYTES}, times=3)
    hasty = with_limits(settings, lost_after_seconds=1.0)
    async with (
        gateway_behind(door, hasty) as speaker,
        speaker.client(user_id) as client,
        Ears(speaker.url) as ears,
    ):
        through = [await client.generate(voice_id, f"Speech {number}.") for number in range(3)]
        listening = [asyncio.create_task(ears.hear(task["stream_url"])) for task in through]
        for task in through:
            await ears.hear(task["stream_url"], until=1)
        within = [await client.generate(voice_id, f"Speech {number}.") for number in range(3, 6)]
        await plan.held(3)
        lengths = [log.length for log in speaker.parts.live.logs()]
        door.shut()
        plan.release()
        refused = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Now?"})
        assert refused.status_code == 503
        assert refused.json()["category"] == "internal"
        await asyncio.sleep(1.5)  # this is the outage
        assert sum(log.length for log in speaker.parts.live.logs()) > sum(lengths)
        assert door.refused
        door.open()
        for task in (*through, *within):
            assert (await client.ended(task["task_id"]))["status"] == "completed"
        for task, following in zip(through, listening, strict=True):
            heard = await following
            assert heard.audio == await client.audio(task["generation_id"])
            assert heard.end
        after = await client.generate(voice_id, "And afterwards.")
        assert (await client.ended(after["task_id"]))["status"] == "completed"
    assert len(simulator.calls) == 7


# --- the sweep -------------------------------------------------------------------------------------------------------


async def lose(rows: Rows, task: dict[str, Any], *, minutes: int = 1) -> None:
    """Make a speech look as if its second process had died some time ago without a byte."""
    await rows.execute(
        """UPDATE internal.runs SET state = 'speaking', owner = gen_random_uuid(), attempt = 2,
                  beat_at = now() - make_interval(mins => $2) WHERE task_id = $1""",
        UUID(task["task_id"]),
        minutes,
    )


async def test_a_text_that_kills_its_process_twice_is_not_spoken_a_third_time(
    gateway: Gateway, user_id: UUID, voice_id: UUID, rows: Rows, simulator: Simulator
) -> None:
    await take_no_jobs(gateway)
    async with gateway.client(user_id) as client:
        task = await client.generate(voice_id)
        await lose(rows, task)
        ended = await client.ended(task["task_id"])
    assert (ended["status"], ended["error"], ended["error_category"]) == ("failed", RESTARTED, "internal")
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0


async def test_a_row_that_somebody_holds_keeps_nobody_else_waiting(
    gateway: Gateway, user_id: UUID, voice_id: UUID, rows: Rows, database_url: str
) -> None:
    """A process may be paused in the middle of a transaction; its locks stay."""
    await take_no_jobs(gateway)
    holder = await asyncpg.connect(database_url)
    try:
        async with gateway.client(user_id) as client:
            held, free = [await client.generate(voice_id, text) for text in ("Held.", "Free.")]
            async with holder.transaction():
                held_id = UUID(held["generation_id"])
                await holder.execute("SELECT 1 FROM public.generations WHERE id = $1 FOR UPDATE", held_id)
                await lose(rows, held, minutes=2)  # so it is looked at first
                await lose(rows, free)
                assert (await client.ended(free["task_id"], 5.0))["status"] == "failed"
                assert (await client.task(held["task_id"]))["status"] == "processing"
            assert (await client.ended(held["task_id"]))["status"] == "failed"
    finally:
        await holder.close()


async def test_a_job_that_was_lost_is_deferred_again(
    gateway: Gateway, settings: Settings, door: PostgresProxy, user_id: UUID, voice_id: UUID, rows: Rows
) -> None:
    """However it came to be lost: of a run that waits to be spoken, and of one that waits to be stored."""
    async with storing_nothing(gateway), gateway.client(user_id) as client:
        spoken = await client.generate(voice_id, "To be stored.")

        async def is_spoken() -> bool:
            return bool((await row_of(rows, spoken))["state"] == "spoken")

        await wait_for(is_spoken)
        await take_no_jobs(gateway)
        queued = await client.generate(voice_id, "To be spoken.")
        await rows.execute("DELETE FROM internal.procrastinate_jobs")
        async with gateway_behind(door, settings):
            for task in (spoken, queued):
                assert (await client.ended(task["task_id"]))["status"] == "completed"


async def test_a_speech_that_nobody_was_free_for_fails_with_words(
    gateway: Gateway, user_id: UUID, voice_id: UUID, rows: Rows
) -> None:
    await take_no_jobs(gateway)
    async with gateway.client(user_id) as client:
        task = await client.generate(voice_id)
        await rows.execute("UPDATE internal.runs SET start_by = now() - interval '1 second'")
        ended = await client.ended(task["task_id"])
    assert (ended["status"], ended["error_category"]) == ("failed", "provider_unavailable")
    assert ended["error"] == NOBODY_FREE.detail


async def test_an_owner_that_has_spoken_up_since_it_was_looked_at_keeps_its_run(
    gateway: Gateway,
    simulator: Simulator,
    settings: Settings,
    door: PostgresProxy,
    user_id: UUID,
    voice_id: UUID,
    rows: Rows,
    database_url: str,
) -> None:
    """Between the sweep's look and its deed a process may come back; the deed looks again, with the row locked."""
    plan = hold_after(simulator, DELTAS)
    async with gateway.client(user_id) as client:
        task = await client.generate(voice_id)
        await plan.held()
        await durable(rows, task)
        owner = await rows.fetchval("SELECT owner FROM internal.runs")
        holder = await asyncpg.connect(database_url)
        try:
            async with holder.transaction():
                await holder.execute("SELECT 1 FROM public.generations FOR UPDATE")
                async with gateway_behind(door, settings) as neighbour:
                    await take_no_jobs(neighbour)

                    async def sweep_waits() -> bool:
                        # Again each time: the owner says that it lives, and may do so before the sweep has looked.
                        await rows.execute(
                            "UPDATE internal.processes SET beat_at = now() - interval '1 minute' WHERE owner = $1",
                            owner,
                        )
                        return bool(
                            await rows.fetchval(
                                """SELECT EXISTS (SELECT 1 FROM pg_stat_activity
                                    WHERE datname = current_database() AND wait_event_type = 'Lock')"""
                            )
                        )

                    await wait_for(sweep_waits, 20.0)
                    await rows.execute("UPDATE internal.processes SET beat_at = now()")
        finally:
            await holder.close()
        plan.release()
        assert (await client.ended(task["task_id"]))["status"] == "completed"


async def test_purchases_of_speech_go_after_three_months_and_those_of_voices_never(
    gateway: Gateway, rows: Rows, settings: Settings, door: PostgresProxy
) -> None:
    """A saved or repeated voice is known by its purchase, however old it is."""
    for kind in ("http", "modal", "clone", "design"):
        for days in (80, 100):
            await rows.execute(
                """INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until, updated_at)
                   SELECT gen_random_uuid(), $1, gen_random_uuid(), 'done', now(), now() - make_interval(days => $2)""",
                kind,
                days,
            )
    async with gateway_behind(door, with_limits(settings, sweep_every_seconds=0.05)):

        async def gone() -> bool:
            return bool(await rows.fetchval("SELECT count(*) FROM internal.purchases") == 6)

        await wait_for(gone)
    kept = await rows.fetch("SELECT kind, count(*) FROM internal.purchases GROUP BY kind ORDER BY kind")
    assert [tuple(row) for row in kept] == [("clone", 2), ("design", 2), ("http", 1), ("modal", 1)]


async def test_what_has_served_its_time_goes(
    gateway: Gateway, user_id: UUID, voice_id: UUID, rows: Rows, settings: Settings, door: PostgresProxy
) -> None:
    async with gateway.client(user_id) as client:
        done = await client.generate(voice_id)
        await client.ended(done["task_id"])
        await client.http.delete(f"/api/tasks/{done['task_id']}")
        kept = await client.generate(voice_id)
        await client.ended(kept["task_id"])
        await client.http.delete(f"/api/tasks/{kept['task_id']}")
    await rows.execute(
        "UPDATE public.tasks SET deleted_at = now() - interval '25 hours' WHERE id = $1", UUID(done["task_id"])
    )
    async with gateway_behind(door, with_limits(settings, sweep_every_seconds=0.05)):

        async def gone() -> bool:
            found = await rows.fetch("SELECT id FROM public.tasks")
            return [str(row["id"]) for row in found] == [kept["task_id"]]

        await wait_for(gone)
    assert await rows.fetchval("SELECT count(*) FROM public.generations") == 2


async def test_a_finalizer_that_loses_the_database_while_it_reads_the_spool_waits_for_it(
    settings: Settings, door: PostgresProxy, user_id: UUID, voice_id: UUID, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway_behind(door, settings) as gateway, gateway.client(user_id) as client:
        with door.holding_back(b"max(byte_offset) FROM internal.spool") as held:
            async with storing_by_job(gateway):
                task = await client.generate(voice_id)
                await held.wait()
            door.shut()
        door.open()

        async def completed() -> bool:
            return bool((await row_of(rows, task))["status"] == "completed")

        await wait_for(completed)
    lines = [record.getMessage() for record in caplog.records]
    assert "database away, waiting for it" in lines
    assert "job lost, deferred again" not in lines
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
