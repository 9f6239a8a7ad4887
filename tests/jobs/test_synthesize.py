"""One run, spoken: what is bought, what is written down of it, and how it ends when it does not end well."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.jobs.synthesize import synthesize
from server.records.runs import FINALIZE_JOB, SYNTHESIZE_JOB
from server.records.speech import RESTARTED
from server.settings import Settings
from tests.end_to_end.conftest import QWEN_AUDIO, storing_nothing, take_no_jobs
from tests.end_to_end.hearing import DELTA_BYTES, hold_after
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import wait_for, with_limits

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Whoever speaks does not wait for its turn to store."""
    return with_limits(settings, store_elsewhere_seconds=0.01)


@pytest.fixture
async def gateway(gateway: Gateway) -> AsyncIterator[Gateway]:
    """A server that takes texts, and speaks only what the test tells it to; nobody stores it."""
    await take_no_jobs(gateway)
    async with storing_nothing(gateway):
        yield gateway


@pytest.fixture
async def task(client: Client, voice_id: UUID) -> dict[str, Any]:
    """A speech that waits to be spoken."""
    return await client.generate(voice_id)


async def speak(gateway: Gateway, task: dict[str, Any], attempt: int = 1) -> None:
    await synthesize(gateway.parts, task_id=UUID(task["task_id"]), attempt=attempt)


async def run_of(rows: Rows, task: dict[str, Any]) -> Any:
    return await rows.fetchrow("SELECT * FROM internal.runs WHERE task_id = $1", UUID(task["task_id"]))


async def row_of(rows: Rows, task: dict[str, Any]) -> Any:
    return await rows.fetchrow(
        """SELECT t.status, t.error, t.error_category, g.status AS generation, g.provider_metadata AS facts
             FROM public.tasks t LEFT JOIN public.generations g ON g.id = t.generation_id WHERE t.id = $1""",
        UUID(task["task_id"]),
    )


async def jobs(rows: Rows) -> list[tuple[str, int | None]]:
    """Name and attempt of everything deferred but the job that the test stands in for."""
    found = await rows.fetch(
        """SELECT task_name, (args ->> 'attempt')::int AS attempt FROM internal.procrastinate_jobs
            WHERE NOT (task_name = $1 AND args ->> 'attempt' = '1') ORDER BY id""",
        SYNTHESIZE_JOB,
    )
    return [tuple(row) for row in found]


async def test_what_is_spoken_is_whole_in_the_spool_and_only_storing_is_left(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator
) -> None:
    await speak(gateway, task)
    run = await run_of(rows, task)
    assert (run["state"], run["attempt"], run["owner"]) == ("spoken", 1, gateway.parts.leases.owner)
    assert await rows.fetchval("SELECT sum(length(bytes)) FROM internal.spool") == run["byte_length"] > 0
    assert await jobs(rows) == [(FINALIZE_JOB, None)]
    row = await row_of(rows, task)
    assert (row["status"], row["generation"]) == ("processing", "processing")
    assert {"session_id", "usage", "audio"} <= row["facts"].keys()
    assert row["facts"]["attempts"] == []
    assert len(simulator.calls) == 1


@pytest.mark.parametrize("status", ["cancelled", "failed"])
async def test_what_has_ended_past_us_is_not_spoken(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator, status: str
) -> None:
    """A browser may end its rows through the database's own REST layer while the run waits."""
    await rows.execute("UPDATE public.generations SET status = $1", status)
    await speak(gateway, task)
    assert simulator.calls == []
    row = await row_of(rows, task)
    assert (row["status"], row["generation"]) == (status, status)
    assert await run_of(rows, task) is None


async def test_what_was_deleted_past_us_is_not_spoken(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator
) -> None:
    await rows.execute("DELETE FROM public.generations")
    await speak(gateway, task)
    assert simulator.calls == []
    assert (await row_of(rows, task))["status"] == "cancelled"
    assert await run_of(rows, task) is None


@pytest.mark.parametrize(
    ("attempt", "change"),
    [
        (1, "UPDATE internal.runs SET attempt = 2"),
        (1, "UPDATE internal.runs SET state = 'speaking', owner = gen_random_uuid()"),
        (1, "DELETE FROM internal.runs"),
        (2, "SELECT 1"),
    ],
)
async def test_a_job_that_comes_too_late_or_twice_speaks_nothing(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator, attempt: int, change: str
) -> None:
    await rows.execute(change)
    before = await run_of(rows, task)
    await speak(gateway, task, attempt)
    assert simulator.calls == []
    assert await run_of(rows, task) == before


async def test_a_provider_that_fails_after_the_first_byte_ends_the_speech_with_its_diagnostics(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"do": "error", "after_deltas": 1})
    await speak(gateway, task)
    row = await row_of(rows, task)
    assert (row["status"], row["generation"]) == ("failed", "failed")
    assert row["facts"]["error"]["code"]
    assert row["facts"]["session_id"]
    assert row["facts"]["error"]["code"] not in row["error"], "people read words, not the provider's codes"
    assert await run_of(rows, task) is None
    assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
    assert await jobs(rows) == []


async def test_a_mistake_of_ours_ends_the_speech_with_words(
    gateway: Gateway,
    task: dict[str, Any],
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And not with a silent wait for the sweep."""
    monkeypatch.delattr(type(gateway.parts.providers), "source")
    await speak(gateway, task)
    row = await row_of(rows, task)
    assert (row["status"], row["error_category"]) == ("failed", "internal")
    assert "synthesis failed" in caplog.text


async def test_a_lost_lease_stops_at_once_and_writes_nothing_more(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator
) -> None:
    plan = hold_after(simulator, 2)
    speaking = asyncio.create_task(speak(gateway, task))
    await plan.held()
    await rows.execute("UPDATE internal.runs SET attempt = 2, owner = gen_random_uuid()")
    before = (await run_of(rows, task), await row_of(rows, task))
    gateway.parts.leases.drop(UUID(task["task_id"]))
    async with asyncio.timeout(5.0):
        await speaking
    assert (await run_of(rows, task), await row_of(rows, task)) == before
    await simulator.until(lambda calls: all("closed_at" in call for call in calls), 5.0)
    assert gateway.parts.live.logs() == []
    plan.release()


async def test_a_process_that_leaves_gives_back_what_nobody_has_heard(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator
) -> None:
    plan = simulator.behave("realtime", {"do": "hold", "at": "text"})
    speaking = asyncio.create_task(speak(gateway, task))
    await plan.held()
    gateway.parts.leases.release()
    await speaking
    run = await run_of(rows, task)
    assert (run["state"], run["attempt"], run["owner"]) == ("queued", 2, None)
    assert await jobs(rows) == [(SYNTHESIZE_JOB, 2)]
    facts = (await row_of(rows, task))["facts"]
    assert facts["attempts"] == [{"attempt": 1, "reason": "server restarted"}]
    plan.release()


async def test_a_process_that_leaves_fails_what_somebody_has_heard(
    gateway: Gateway, task: dict[str, Any], rows: Rows, simulator: Simulator
) -> None:
    """Spoken again from its start it would be another speech."""
    plan = hold_after(simulator, 2)
    speaking = asyncio.create_task(speak(gateway, task))
    await plan.held()
    await wait_for(lambda: gateway.parts.live.logs()[0].durable == 2 * DELTA_BYTES)
    gateway.parts.leases.release()
    await speaking
    row = await row_of(rows, task)
    assert (row["status"], row["error"], row["error_category"]) == ("failed", RESTARTED, "internal")
    assert row["facts"]["error"] == {"code": "server_restarted"}
    assert await run_of(rows, task) is None
    assert await jobs(rows) == []
    plan.release()


async def test_a_process_that_leaves_gives_every_byte_away_of_what_goes_on(
    settings: Settings, database_url: str, rows: Rows, simulator: Simulator
) -> None:
    """Also those that the next tick would have brought: what was received was paid for."""
    async with running_gateway(with_limits(settings, spool_every_seconds=60.0)) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)
        holds = [{"do": "hold", "after_deltas": count, "name": str(count)} for count in (1, 4)]
        shape = {"minimum_bytes": 7 * DELTA_BYTES, "delta_bytes": DELTA_BYTES}
        plan = simulator.behave("realtime", {**shape, "faults": holds})
        task = await client.generate(voice_id)
        await wait_for(lambda: [log.durable for log in gateway.parts.live.logs()] == [DELTA_BYTES])
        plan.release("1")
        [log] = gateway.parts.live.logs()
        await wait_for(lambda: log.length == 4 * DELTA_BYTES)
        assert log.durable == DELTA_BYTES
        await take_no_jobs(gateway)
        gateway.parts.leases.release()

        async def given_back() -> bool:
            return bool((await run_of(rows, task))["state"] == "queued")

        await wait_for(given_back)
        assert (await run_of(rows, task))["byte_length"] == 4 * DELTA_BYTES
        plan.release()
