"""The demo voices: whichever mode a newcomer starts with, two voices speak at once."""

from dataclasses import replace
from typing import cast

import pytest

from server.dev.demo import DEMO_USER, seed
from server.dev.run import QWEN_AUDIO
from server.settings import ProviderMode, Settings
from tests.gateway import running_gateway


@pytest.mark.parametrize("mode", ["qwen", "modal", "qwen-audio"])
async def test_demo_voices_speak_in_their_mode(settings: Settings, mode: str) -> None:
    if mode == "qwen-audio":
        settings = replace(settings, qwen_vc_target_model=QWEN_AUDIO, qwen_vd_target_model=QWEN_AUDIO)
    else:
        settings = replace(settings, tts_provider_mode=cast(ProviderMode, mode))
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
