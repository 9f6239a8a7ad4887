"""Cloning and designing for the family that speaks in tasks: bought once, waited for, and heard in one's own voice."""

from dataclasses import replace
from typing import Any, TypeAlias

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.jobs.reconcile import reconcile
from server.settings import Settings
from tests.gateway import Client, Gateway, running_gateway
from tests.support import with_limits
from tests.voices import billed, creations, finalize, listed, previewed, recording, save, upload

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
QWEN_AUDIO = "qwen-audio-3.0-tts-flash"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a server that was told one more variable, and does not wait long for a voice."""
    return with_limits(
        settings,
        qwen_vc_target_model=QWEN_AUDIO,
        deploying_seconds=0.2,
        deploying_look_seconds=0.02,
        customization_broken_seconds=0.1,
    )


async def uploaded(client: Client) -> str:
    return await upload(client, recording(6.0))


async def test_a_cloned_voice_speaks_with_its_new_model(client: Client, simulator: Simulator) -> None:
    voice_id = await uploaded(client)
    answer = await finalize(client, voice_id)
    assert answer.status_code == 200, answer.text
    [voice] = await listed(client)
    assert voice["provider_target_model"] == QWEN_AUDIO
    assert voice["provider_voice_id"].startswith(f"{QWEN_AUDIO}-u")
    assert (voice["compatible"], voice["streamable"]) == (True, True)
    assert voice["varies"] == ["speed", "pitch", "volume"]
    task = await client.generate(voice["id"])
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    spoken = [call for call in simulator.calls if call["surface"] == "realtime"]
    assert [(call["model"], call["voice"]) for call in spoken] == [(QWEN_AUDIO, voice["provider_voice_id"])]
    assert 1 <= spoken[0]["seed"] <= 65_535
    assert await client.audio(task["generation_id"])


async def test_a_voice_that_is_not_ready_yet_is_bought_once(client: Client, simulator: Simulator) -> None:
    simulator.behave("customization", {"deploying": 25}, action="create")
    voice_id = await uploaded(client)
    answer = await finalize(client, voice_id)
    assert answer.status_code == 504
    assert "preparing" in answer.json()["detail"]
    while (answer := await finalize(client, voice_id)).status_code == 504:
        assert "pay twice" in answer.json()["detail"]
    assert answer.status_code == 200, answer.text
    assert billed(simulator) == 1


async def test_a_voice_whose_making_was_not_heard_of_is_adopted(client: Client, simulator: Simulator) -> None:
    simulator.behave("customization", {"do": "abort"}, action="create")
    voice_id = await uploaded(client)
    assert (await finalize(client, voice_id)).status_code == 504
    assert (await finalize(client, voice_id)).status_code == 200
    assert billed(simulator) == len(creations(simulator)) == 1


async def test_what_was_bought_and_not_kept_is_listed_until_it_is_adopted(
    gateway: Gateway, client: Client, simulator: Simulator
) -> None:
    simulator.behave("customization", {"do": "abort"}, action="create")
    voice_id = await uploaded(client)
    assert (await finalize(client, voice_id)).status_code == 504
    [voice] = (await reconcile(gateway.parts)).provider_voices
    assert (voice["kind"], voice["target_model"]) == ("enrolled", QWEN_AUDIO)
    assert str(voice["awaited_by"]) == voice_id
    assert (await finalize(client, voice_id)).status_code == 200
    assert (await reconcile(gateway.parts)).provider_voices == []


async def test_a_voice_that_review_has_refused_is_refused_with_words(client: Client, simulator: Simulator) -> None:
    simulator.behave("customization", {"voice_status": "UNDEPLOYED"}, action="create")
    answer = await finalize(client, await uploaded(client))
    assert answer.status_code == 400
    assert "another" in answer.json()["detail"]
    assert await listed(client) == []


async def designing(settings: Settings, **changes: Any) -> dict[str, Any]:
    """A voice that was designed, saved and heard at a server with these settings."""
    changed = replace(settings, qwen_vd_target_model=QWEN_AUDIO, **changes)
    async with running_gateway(changed) as gateway, gateway.client() as client:
        answer = await save(client, await previewed(client))
        assert answer.status_code == 200, answer.text
        [voice] = await listed(client)
        task = await client.generate(voice["id"])
        assert (await client.ended(task["task_id"]))["status"] == "completed"
        return voice


async def test_where_the_region_designs_voices_it_is_asked(settings: Settings, simulator: Simulator) -> None:
    voice = await designing(settings, dashscope_region="cn")
    assert voice["provider_voice_id"].startswith(f"{QWEN_AUDIO}-vd-u")
    assert (voice["provider_voice_kind"], voice["source"]) == ("vd", "designed")
    assert [call["voice_prompt"] for call in creations(simulator)] == ["A calm, low voice."]


async def test_where_it_does_not_the_other_providers_design_is_cloned(settings: Settings, simulator: Simulator) -> None:
    simulator.behave("customization", {"deploying": 3}, action="create")
    voice = await designing(settings)
    assert voice["provider_voice_id"].startswith(f"{QWEN_AUDIO}-u")
    assert (voice["provider_voice_kind"], voice["source"], voice["compatible"]) == ("vd", "designed", True)
    [design] = [call for call in simulator.calls if call["surface"] == "modal"]
    assert design["action"] == "design"
    assert billed(simulator) == 1
