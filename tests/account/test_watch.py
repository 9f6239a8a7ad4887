"""What an operator sees: the numbers of what piles up, and what `degraded` says."""

import re
from typing import Any
from uuid import UUID, uuid4

import pytest

from server.dev.simulator import Simulator
from server.settings import VC_REALTIME, Settings
from tests.gateway import Client, Gateway, insert_voice
from tests.support import wait_for, with_limits

Rows = Any


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_limits(settings, watch_every_seconds=0.1)


async def shown(client: Client) -> dict[str, float]:
    """All that `/metrics` shows, by series."""
    answer = await client.http.get("/metrics")
    return {
        series: float(value)
        for series, value in re.findall(r"^(utter_\S+?(?:\{[^}]*\})?) (\S+)$", answer.text, re.MULTILINE)
    }


async def degraded(client: Client) -> list[str]:
    names: list[str] = (await client.http.get("/api/ready")).json()["degraded"]
    return names


async def test_series_are_there_before_anything_has_happened(client: Client) -> None:
    """Prometheus sees no increase where a series begins with its first event."""
    found = await shown(client)
    for series in (
        'utter_tasks_total{category="",provider="qwen",status="completed"}',
        'utter_tasks_total{category="provider_unavailable",provider="modal",status="failed"}',
        'utter_refused_total{what="unstored"}',
        'utter_provider_closes_total{code="1011"}',
        "utter_provider_throttles_total",
        'utter_first_audio_seconds_count{provider="qwen"}',
        'utter_modal_looks_total{by="poll",seen="status_error"}',
        f'utter_model_retired{{model="{VC_REALTIME}"}}',
    ):
        assert found[series] == 0.0
    assert found[f'utter_pace_share{{model="{VC_REALTIME}"}}'] == 1.0


async def test_what_waits_is_counted(client: Client, voice_id: UUID, rows: Rows) -> None:
    """Speeches that nobody has begun, and those that are not stored, whoever has left them."""
    for state, size in (("queued", 0), ("unstored", 48_000)):
        await rows.execute(
            """INSERT INTO internal.runs (task_id, generation_id, job_name, state, byte_length, created_at, start_by)
               VALUES ($1, $2, 'synthesize', $3, $4, now() - interval '40 seconds', now() + interval '1 hour')""",
            uuid4(),
            uuid4(),
            state,
            size,
        )

    async def counted() -> bool:
        found = await shown(client)
        waits = found["utter_waiting_starts"] == 1 and found["utter_waiting_start_seconds"] >= 40
        return waits and found["utter_unstored_bytes"] == 48_000

    await wait_for(counted, 20.0)


async def test_a_silent_process_that_holds_a_speech_is_seen(client: Client, rows: Rows) -> None:
    await rows.execute(
        """WITH p AS (INSERT INTO internal.processes (owner, beat_at)
                      VALUES (gen_random_uuid(), now() - interval '8 seconds') RETURNING owner)
           INSERT INTO internal.runs (task_id, generation_id, job_name, state, owner)
           SELECT gen_random_uuid(), gen_random_uuid(), 'synthesize', 'speaking', owner FROM p"""
    )

    async def old() -> bool:
        return (await shown(client))["utter_oldest_beat_seconds"] > 8

    await wait_for(old, 20.0)


async def test_a_throttle_is_counted_and_told(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    """It slows all processes of the account, so `degraded` names it until the pace is whole again."""
    assert "throttled" not in await degraded(client)
    simulator.behave("realtime", {"do": "error", "at": "text", "code": "Throttling.RateQuota"}, times=1)
    await client.ended((await client.generate(voice_id))["task_id"])

    async def told() -> bool:
        found = await shown(client)
        slowed = found[f'utter_pace_share{{model="{VC_REALTIME}"}}'] < 1.0
        return slowed and found["utter_provider_throttles_total"] == 1.0 and "throttled" in await degraded(client)

    await wait_for(told, 20.0)
    assert (await client.http.get("/api/ready")).status_code == 200


async def test_a_close_by_the_provider_is_counted_by_its_code(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"do": "close", "at": "text", "code": 1011, "reason": "Internal error"}, times=1)
    await client.ended((await client.generate(voice_id))["task_id"])
    assert (await shown(client))['utter_provider_closes_total{code="1011"}'] == 1.0


async def test_an_account_without_room_for_voices_is_told(
    gateway: Gateway, client: Client, database_url: str, rows: Rows
) -> None:
    """Before somebody's clone fails for it. A voice that was deleted here is still kept there."""
    await insert_voice(database_url, uuid4())
    await rows.execute(
        """INSERT INTO public.voices (user_id, name, source, tts_provider, provider_voice_id, provider_target_model,
                                      provider_voice_kind, deleted_at)
           SELECT user_id, name, source, tts_provider, provider_voice_id || '-' || n, provider_target_model,
                  provider_voice_kind, now()
             FROM public.voices, generate_series(1, 999) AS n"""
    )
    gateway.parts.watch.look_at_voices_again()

    async def told() -> bool:
        return (await shown(client))['utter_voices_in_use{kind="vc"}'] == 1000 and "voices_full" in (
            await degraded(client)
        )

    await wait_for(told, 20.0)


async def test_connections_the_spool_and_the_loop_are_measured(client: Client, voice_id: UUID) -> None:
    await client.ended((await client.generate(voice_id))["task_id"])

    async def measured() -> bool:
        found = await shown(client)
        waits = [
            found[f'utter_database_wait_seconds_count{{pool="{pool}"}}'] for pool in ("requests", "spool", "leases")
        ]
        return min(waits) > 0 and found["utter_event_loop_lag_seconds_count"] > 0

    await wait_for(measured, 20.0)


async def test_speech_that_the_database_does_not_take_is_seen(client: Client, voice_id: UUID, rows: Rows) -> None:
    async def lag() -> tuple[bool, bool]:
        found = await shown(client)
        return found["utter_spool_lag_seconds"] > 0.1, found["utter_spool_behind_bytes"] > 0

    async with rows.transaction():
        await rows.execute("LOCK TABLE internal.spool IN EXCLUSIVE MODE")
        task = await client.generate(voice_id)

        async def is_behind() -> bool:
            return await lag() == (True, True)

        await wait_for(is_behind)
    await client.ended(task["task_id"])
    assert await lag() == (False, False)
