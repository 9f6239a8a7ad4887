"""The demo voices: whichever mode a newcomer starts with, two voices speak at once."""

from dataclasses import replace

import pytest

from server.dev.demo import DEMO_USER, seed
from server.settings import ProviderMode, Settings
from tests.gateway import running_gateway


@pytest.mark.parametrize("mode", ["qwen", "modal"])
async def test_demo_voices_speak_in_their_mode(settings: Settings, mode: ProviderMode) -> None:
    settings = replace(settings, tts_provider_mode=mode)
    await seed(settings)
    await seed(settings)
    async with running_gateway(settings) as gateway, gateway.client(DEMO_USER) as client:
        voices = (await client.http.get("/api/voices")).json()["voices"]
        assert [(voice["source"], voice["compatible"]) for voice in voices] in (
            [("designed", True), ("uploaded", True)],
            [("uploaded", True), ("designed", True)],
        )
        for voice in voices:
            assert (await client.http.get(f"/api/voices/{voice['id']}/preview")).status_code == 302
            answer = await client.generate(voice["id"], "Good evening.")
            assert (await client.ended(answer["task_id"]))["status"] == "completed"
