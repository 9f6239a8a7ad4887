"""What was paid for never waits for a connection that unpaid work holds."""

import asyncio
from dataclasses import replace

from server.app import assembled
from server.settings import Settings


async def test_hanging_syntheses_keep_no_download_and_no_design_from_a_connection(settings: Settings) -> None:
    """As many syntheses as there may be hang at the provider; a piece that was bought is fetched all the same."""
    arrived = 0
    full = asyncio.Event()
    at_once = 20

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == at_once:
            full.set()
        await reader.read()
        writer.close()

    async with assembled(settings) as parts:
        piece = await parts.providers.pieces.synthesize(
            text="Paid for.", voice="qwen-tts-vc-ada-voice-20260101000000000-0001", model="qwen3-tts-vc-2026-01-22"
        )
    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    crowded = replace(settings, dashscope_base_url=base, synthesis_concurrency=at_once, qwen_starts_per_minute=100_000)
    async with silent, assembled(crowded) as parts, asyncio.TaskGroup() as group:
        hanging = [
            group.create_task(
                parts.providers.pieces.synthesize(text="Unpaid.", voice=piece.url, model="qwen3-tts-vc-2026-01-22")
            )
            for _ in range(at_once + 10)
        ]
        async with asyncio.timeout(20.0):
            await full.wait()
        async with asyncio.timeout(5.0):
            assert (await parts.providers.pieces.download(piece)).wav[:4] == b"RIFF"
        looking = group.create_task(parts.providers.customization.find("vc", "uabc"))
        async with asyncio.timeout(5.0):
            while arrived == at_once:  # noqa: ASYNC110 - the server counts
                await asyncio.sleep(0.01)
        for task in [*hanging, looking]:
            task.cancel()
