"""Many syntheses that hang: what was paid for never waits behind them for a connection."""

import asyncio
from dataclasses import replace

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import insert_voice, running_gateway
from tests.voices import cloned, previewed

HANGING, PAID = 130, 5
IN_PIECES = "qwen3-tts-vc-2026-01-22"


async def test_hanging_syntheses_keep_nothing_that_was_paid_for_from_its_connection(
    settings: Settings, simulator: Simulator, database_url: str
) -> None:
    syntheses = simulator.behave("http", {"do": "hold"}, times=HANGING, text_contains="hangs")
    downloads = simulator.behave("download", {"do": "hold"}, times=PAID, text_contains="paid")
    wide = replace(settings, synthesis_concurrency=2 * HANGING, qwen_starts_per_minute=100_000)
    async with running_gateway(wide) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id, model=IN_PIECES)
        paid = [await client.generate(voice_id, f"Number {number} is paid for.") for number in range(PAID)]
        await downloads.held(PAID)
        hanging = await asyncio.gather(
            *(client.generate(voice_id, f"Number {number} hangs.") for number in range(HANGING))
        )
        await syntheses.held(HANGING)
        downloads.release()
        for task in paid:
            assert (await client.ended(task["task_id"]))["status"] == "completed"
        after = await client.generate(voice_id, "One more.")
        assert (await client.ended(after["task_id"]))["status"] == "completed"
        await previewed(client)
        await cloned(client)
        syntheses.release()
        for task in hanging:
            assert (await client.ended(task["task_id"]))["status"] == "completed"
