"""A preview is bought once, ever: cancelled, cut off, killed, or with the storage or the database gone."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.queue import DEFAULT, SYNTHESIS, WATCHING
from server.dev.simulator import Planned, Simulator
from server.jobs import buying, design
from server.jobs.reconcile import reconcile
from server.records.speech import RESTARTED
from server.relay.sweep import NOBODY_FREE
from server.settings import Settings
from server.storage import Bucket
from tests.end_to_end.conftest import take_no_jobs
from tests.gateway import Client, Gateway, Process, process, running_gateway
from tests.handlers.wire import problem_of
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import make_settings, wait_for, with_limits
from tests.voices import (
    billed,
    creations,
    listed,
    previewed,
    purchase,
    purchase_in,
    save,
    save_form,
    start_preview,
)

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
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
    return with_limits(make_settings(database_url, simulator, tmp_path, shutdown_grace_seconds=0.2), **IMPATIENT)


@pytest.fixture
async def victim(settings: Settings, simulator: Simulator, tmp_path: Path) -> AsyncIterator[Process]:
    """A server process that something will happen to. No other is there yet."""
    async with process(
        settings, simulator, tmp_path / "victim.log", SHUTDOWN_GRACE_SECONDS="0.2", QWEN_STARTS_PER_MINUTE="100000"
    ) as started:
        yield started


@pytest.fixture
async def door(database_url: str) -> AsyncIterator[PostgresProxy]:
    """What stands between the server and PostgreSQL."""
    async with postgres_proxy(database_url) as proxy:
        yield proxy


async def objects(gateway: Gateway) -> set[str]:
    return {stored.key async for stored in gateway.parts.storage.list(Bucket.GENERATIONS)}


def held(simulator: Simulator, **behaviour: Any) -> Planned:
    """The next creation waits until it is released."""
    return simulator.behave("customization", {"do": "hold", **behaviour}, action="create")


# --- cancelled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_a_cancel_reaches_the_call_and_nothing_completes_afterwards(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows, how: str
) -> None:
    plan = held(simulator)
    task_id = await start_preview(client)
    await plan.held()
    if how == "cancel":
        answer = await client.http.post(f"/api/tasks/{task_id}/cancel")
        assert answer.json() == {"cancelled": True, "task_id": task_id}
        assert (await client.task(task_id))["status"] == "cancelled"
    else:
        assert (await client.http.delete(f"/api/tasks/{task_id}")).json() == {"ok": True}
    assert (await purchase_in(rows, task_id, "unknown"))["outcome"]["diagnostics"]["code"] == "cut_off"
    plan.release()
    await simulator.until(lambda _: billed(simulator) == 1)
    assert await rows.fetchval("SELECT status FROM public.tasks") == "cancelled"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    assert await objects(gateway) == set()
    found = await reconcile(gateway.parts)
    assert [voice["voice"] for voice in found.provider_voices] == [creations(simulator)[0]["voice"]]
    assert [entry["subject"] for entry in found.purchases] == [UUID(task_id)]


async def test_a_preview_that_is_cancelled_while_it_is_stored_is_neither_shown_nor_saved(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows
) -> None:
    """The row was locked by somebody while the audio went into the store, and ended cancelled."""
    plan = held(simulator)
    task_id = await start_preview(client)
    await plan.held()
    async with rows.transaction():
        await rows.execute("SELECT FROM public.tasks WHERE id = $1 FOR UPDATE", UUID(task_id))
        plan.release()

        async def stored() -> bool:
            return bool(await objects(gateway))

        await wait_for(stored)
        await rows.execute("UPDATE public.tasks SET status = 'cancelled' WHERE id = $1", UUID(task_id))
        await rows.execute("DELETE FROM internal.runs")
    assert (await purchase_in(rows, task_id, "unknown"))["outcome"]["voice"] == creations(simulator)[0]["voice"]

    async def removed() -> bool:
        return not await objects(gateway)

    await wait_for(removed)
    problem_of(await save(client, task_id), 409, "conflict")
    problem_of(await save_form(client), 400, "validation")
    assert len((await reconcile(gateway.parts)).provider_voices) == 1


# --- cut off ----------------------------------------------------------------------------------------------------------


async def test_a_killed_process_whose_call_was_carried_out_is_not_paid_for_twice(
    victim: Process, settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """The voice is there and its preview is lost: the task fails with words, and reconciliation lists the voice."""
    user_id = uuid4()
    plan = held(simulator)
    async with victim.client(user_id) as client:
        task_id = await start_preview(client)
    await plan.held()
    await victim.kill()
    plan.release()
    await simulator.until(lambda _: billed(simulator) == 1)
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client:
        task = await client.ended(task_id)
        assert (task["status"], task["error_category"]) == ("failed", "timeout")
        assert "make it again" in task["error"]
        problem_of(await save(client, task_id), 409, "conflict")
        found = await reconcile(survivor.parts)
    assert len(creations(simulator)) == billed(simulator) == 1
    assert [voice["voice"] for voice in found.provider_voices] == [creations(simulator)[0]["voice"]]
    assert [(entry["subject"], entry["state"]) for entry in found.purchases] == [(UUID(task_id), "unknown")]


async def test_a_killed_process_whose_call_is_still_under_way_is_not_followed_by_another(
    victim: Process, settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """The provider may carry it out yet, whoever has hung up: the task moves on without a second call."""
    user_id = uuid4()
    plan = held(simulator)
    async with victim.client(user_id) as client:
        task_id = await start_preview(client)
    await plan.held()
    await victim.kill()
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client:
        assert (await client.ended(task_id))["status"] == "failed"
        assert (await purchase_in(rows, task_id, "unknown"))["outcome"]["diagnostics"]["code"] == "preview_lost"
        plan.release()
        await simulator.until(lambda _: billed(simulator) == 1)
        again = await previewed(client)
        assert (await save(client, again)).status_code == 200
    assert (len(creations(simulator)), billed(simulator)) == (2, 2)


async def test_a_shutdown_in_the_middle_of_a_call_fails_the_preview_and_keeps_the_record(
    victim: Process, simulator: Simulator, rows: Rows
) -> None:
    plan = held(simulator)
    async with victim.client(uuid4()) as client:
        task_id = await start_preview(client)
    await plan.held()
    victim.send(signal.SIGTERM)
    await victim.exited()
    row = await rows.fetchrow("SELECT status, error, error_category FROM public.tasks")
    assert row
    assert tuple(row) == ("failed", RESTARTED, "internal")
    bought = await purchase(rows, task_id)
    assert bought is not None
    assert bought["state"] == "unknown"
    plan.release()


async def test_a_job_that_is_lost_before_it_began_is_found_by_the_sweep(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    async with running_gateway(settings) as gateway, gateway.client() as client:
        await take_no_jobs(gateway)
        task_id = await start_preview(client)
        await rows.execute("DELETE FROM internal.procrastinate_jobs")
        async with running_gateway(settings):
            assert (await client.ended(task_id))["status"] == "completed"
    assert billed(simulator) == 1


# --- the storage and the database -------------------------------------------------------------------------------------


async def test_a_storage_that_is_away_for_a_moment_loses_nothing(
    gateway: Gateway, client: Client, simulator: Simulator
) -> None:
    bucket = Path(gateway.parts.settings.storage.root) / "generations"
    plan = held(simulator)
    task_id = await start_preview(client)
    await plan.held()
    away = bucket.with_name("away")
    shutil.move(bucket, away)
    bucket.write_text("no folder")
    plan.release()

    async def persisting() -> bool:
        return bool((await client.task(task_id))["provider_status"] == "provider_persisting")

    await wait_for(persisting)
    bucket.unlink()
    shutil.move(away, bucket)
    assert (await client.ended(task_id))["status"] == "completed"
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_a_storage_that_stays_away_fails_the_preview_and_keeps_the_record(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    brief = with_limits(settings, preview_storage_seconds=0.1)
    async with running_gateway(brief) as gateway, gateway.client() as client:
        bucket = Path(gateway.parts.settings.storage.root) / "generations"
        shutil.rmtree(bucket)
        bucket.write_text("no folder")
        task_id = await start_preview(client)
        task = await client.ended(task_id)
        assert (task["status"], task["error_category"]) == ("failed", "storage")
        bought = await purchase_in(rows, task_id, "unknown")
        assert bought["outcome"]["voice"] == creations(simulator)[0]["voice"]
        assert bought["request_id"].startswith("simulated-")
        bucket.unlink()
        assert len((await reconcile(gateway.parts)).provider_voices) == 1


async def test_a_database_that_is_gone_when_the_answer_comes_is_waited_for(
    settings: Settings, door: PostgresProxy, simulator: Simulator
) -> None:
    async with running_gateway(replace(settings, database_url=door.url)) as gateway, gateway.client() as client:
        plan = held(simulator)
        task_id = await start_preview(client)
        await plan.held()
        door.shut()
        plan.release()
        await wait_for(lambda: door.refused > 2)
        door.open()
        assert (await client.ended(task_id))["status"] == "completed"
        assert (await save(client, task_id)).status_code == 200
        assert len(await listed(client)) == 1
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_a_commit_whose_answer_is_lost_completes_one_preview(
    settings: Settings, door: PostgresProxy, simulator: Simulator, rows: Rows
) -> None:
    """It is repeated, and finds a completed task: the audio stays."""
    quiet = with_limits(settings, database_url=door.url, sweep_every_seconds=60.0)
    async with running_gateway(quiet) as gateway, gateway.client() as client:
        # Nothing but the preview may commit, so the test runs its job itself.
        for queue in (SYNTHESIS, DEFAULT, WATCHING):
            await take_no_jobs(gateway, queue)
        task_id = await start_preview(client)
        plan = held(simulator)
        making = asyncio.create_task(design.make_preview(gateway.parts, task_id=UUID(task_id), attempt=1))
        await plan.held()
        door.lose_the_answer_to(b"COMMIT")
        plan.release()
        await door.lost_the_answer()
        await making
        assert (await client.task(task_id))["status"] == "completed"
        await purchase_in(rows, task_id, "done")
        assert await rows.fetchval("SELECT count(*) FROM internal.removals") == 0
        assert await objects(gateway) == {f"{client.user_id}/preview_{task_id}.wav"}
        assert (await save(client, task_id)).status_code == 200


async def test_a_claim_whose_commit_was_not_heard_of_is_ones_own(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows
) -> None:
    """The first attempt at a preview finds that it is being bought: nobody but itself can have said so."""
    await take_no_jobs(gateway)
    task_id = await start_preview(client)
    await rows.execute(
        """INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until)
           VALUES ($1, 'design', $2, 'calling', now() + interval '1 minute')""",
        UUID(task_id),
        client.user_id,
    )
    await design.make_preview(gateway.parts, task_id=UUID(task_id), attempt=1)
    assert (await client.task(task_id))["status"] == "completed"
    assert (await save(client, task_id)).status_code == 200
    assert billed(simulator) == 1


@pytest.mark.parametrize("meanwhile", ["taken over", "cancelled"])
async def test_a_preview_that_is_no_longer_ones_own_is_not_bought(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """A process that comes back after an outage buys nothing before it has looked whose the run is."""
    await take_no_jobs(gateway)
    task_id = await start_preview(client)
    show = design._show

    async def show_and_be_overtaken(*arguments: Any) -> None:
        await show(*arguments)
        if meanwhile == "cancelled":
            await client.http.post(f"/api/tasks/{task_id}/cancel")
            return
        await rows.execute("UPDATE internal.runs SET attempt = 2, owner = gen_random_uuid()")
        await rows.execute(
            """INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until)
               VALUES ($1, 'design', $2, 'calling', now() + interval '1 minute')""",
            UUID(task_id),
            client.user_id,
        )

    async def nobody_is_told(*_: Any) -> None:
        """The cancel's word to whoever speaks is late."""

    monkeypatch.setattr(design, "_show", show_and_be_overtaken)
    monkeypatch.setattr(gateway.parts.leases, "drop", lambda _task_id: None)
    monkeypatch.setattr(gateway.parts.leases, "_renew", nobody_is_told)
    await design.make_preview(gateway.parts, task_id=UUID(task_id), attempt=1)
    assert simulator.calls == []
    bought = await purchase(rows, task_id)
    assert (bought and bought["state"]) == ("calling" if meanwhile == "taken over" else None)


async def test_a_refusal_that_was_written_down_before_the_task_could_end_is_told(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows
) -> None:
    """The process died between the two; the next one asks nobody again."""
    await take_no_jobs(gateway)
    task_id = await start_preview(client)
    await rows.execute(
        """INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until, outcome)
           VALUES ($1, 'design', $2, 'refused', now(), $3)""",
        UUID(task_id),
        client.user_id,
        {"detail": "The filter refused this.", "category": "provider_rejected", "status": 400, "diagnostics": {}},
    )
    await design.make_preview(gateway.parts, task_id=UUID(task_id), attempt=1)
    task = await client.task(task_id)
    assert (task["status"], task["error"]) == ("failed", "The filter refused this.")
    assert simulator.calls == []


async def test_a_preview_that_nobody_takes_up_fails_in_time(gateway: Gateway, client: Client, rows: Rows) -> None:
    await take_no_jobs(gateway)
    task_id = await start_preview(client)
    await rows.execute("UPDATE internal.runs SET created_at = now() - interval '301 seconds'")
    task = await client.ended(task_id)
    assert (task["status"], task["error"]) == ("failed", NOBODY_FREE.detail)


async def test_a_database_that_stays_away_leaves_one_line_with_what_was_bought(
    settings: Settings,
    door: PostgresProxy,
    simulator: Simulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    brief = with_limits(settings, database_url=door.url, purchase_database_seconds=0.3)
    async with running_gateway(brief) as gateway, gateway.client() as client:
        plan = held(simulator)
        task_id = await start_preview(client)
        await plan.held()
        door.shut()
        plan.release()

        def lines() -> list[dict[str, Any]]:
            return [
                vars(record)
                for record in caplog.records
                if record.levelname == "ERROR" and record.name == buying.__name__
            ]

        [said] = await wait_for(lines)
        assert (said["task_id"], said["voice"]) == (task_id, creations(simulator)[0]["voice"])
        assert said["request_id"].startswith("simulated-")
        door.open()
        assert (await client.ended(task_id))["status"] == "failed"
    assert billed(simulator) == 1
