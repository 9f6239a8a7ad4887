"""A retired model is a state, and not a thousand failures."""

import re
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.providers.qwen.errors import ModelRetired
from server.settings import VC_REALTIME, Settings
from tests.end_to_end.conftest import QWEN_AUDIO
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import wait_for, with_limits
from tests.voices import creations, finalize, listed, recording, start_preview, upload

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
GONE = {"do": "close", "at": "open", "code": 1007, "reason": "Model not found."}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_limits(settings, retirements_every_seconds=0.05)


async def capabilities(client: Client) -> dict[str, bool]:
    answer = await client.http.get("/api/languages")
    said: dict[str, bool] = answer.json()["capabilities"]
    return said


@pytest.mark.parametrize(
    "behaviour",
    [
        GONE,
        {"do": "error", "at": "text", "code": "ModelNotFound"},
        {"do": "error", "at": "text", "code": "Model.AccessDenied"},
    ],
)
async def test_a_model_that_is_gone_is_asked_for_once(
    gateway: Gateway,
    client: Client,
    voice_id: UUID,
    simulator: Simulator,
    behaviour: dict[str, object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    simulator.behave("realtime", behaviour, times=0)
    assert (await capabilities(client))["supports_generate_stream"] is True
    task = await client.generate(voice_id)
    ended = await client.ended(task["task_id"])
    assert (ended["status"], ended["error_category"]) == ("failed", "provider_rejected")
    assert ended["error"] == ModelRetired.default_detail
    assert "try again" not in ended["error"]

    answer = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Again."})
    assert answer.status_code == 409
    assert "no longer offers the model" in answer.json()["detail"]
    [voice] = await listed(client)
    assert (voice["compatible"], voice["streamable"]) == (False, False)
    assert (await capabilities(client))["supports_generate_stream"] is False
    assert len(simulator.calls) == 1
    ready = await client.http.get("/api/ready")
    assert (ready.status_code, "model_retired" in ready.json()["degraded"]) == (200, True)
    shown = gateway.parts.metrics.exposition().decode()
    assert re.search(rf'utter_model_retired{{model="{VC_REALTIME}"}} 1', shown)
    [line] = [record.getMessage() for record in caplog.records if "has retired" in record.getMessage()]
    assert VC_REALTIME in line
    assert "python -m server doctor" in line


async def test_every_process_knows_and_an_hour_later_the_provider_is_asked_again(
    settings: Settings, gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("realtime", GONE)
    await client.ended((await client.generate(voice_id))["task_id"])
    async with running_gateway(settings) as neighbour, neighbour.client(client.user_id) as there:
        await wait_for(lambda: neighbour.parts.providers.retired == {VC_REALTIME})
        assert (await capabilities(there))["supports_generate_stream"] is False
        await rows.execute("UPDATE internal.retired_models SET seen_at = now() - interval '61 minutes'")
        await wait_for(lambda: not neighbour.parts.providers.retired and not gateway.parts.providers.retired)
        task = await there.generate(voice_id)
        assert (await there.ended(task["task_id"]))["status"] == "completed"
    assert 'utter_model_retired{model="' + VC_REALTIME + '"} 0' in gateway.parts.metrics.exposition().decode()


async def test_a_design_service_that_is_gone_is_not_offered_any_more(client: Client, simulator: Simulator) -> None:
    simulator.behave("customization", {"do": "error", "code": "ModelNotFound"}, times=0)
    assert (await capabilities(client))["supports_design"] is True
    ended = await client.ended(await start_preview(client))
    assert ended["error"] == ModelRetired.default_detail
    assert (await capabilities(client))["supports_design"] is False
    answer = await client.http.post(
        "/api/voices/design/preview", json={"text": "Hello.", "language": "English", "instruct": "Calm."}
    )
    assert answer.status_code == 409
    assert len(creations(simulator)) == 1


async def test_a_clone_service_that_is_gone_says_so(client: Client, simulator: Simulator, gateway: Gateway) -> None:
    simulator.behave("customization", {"do": "error", "code": "Model.AccessDenied"}, times=0)
    answer = await finalize(client, await upload(client, recording()))
    assert (answer.status_code, answer.json()["detail"]) == (502, ModelRetired.default_detail)
    assert gateway.parts.providers.retired == {"qwen-voice-enrollment"}


async def test_a_key_of_another_account_knows_nothing_of_it(
    settings: Settings, client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("realtime", GONE)
    await client.ended((await client.generate(voice_id))["task_id"])
    other = with_limits(settings, dashscope_workspace="another")
    async with running_gateway(other) as neighbour:
        await neighbour.parts.retirements.refresh()
        assert neighbour.parts.providers.retired == frozenset()


SILENT = {"do": "close", "at": "created", "code": 1000}


@pytest.mark.parametrize(
    ("model", "fault"),
    [(VC_REALTIME, SILENT), (QWEN_AUDIO, {"do": "abort", "at": "created"})],
    ids=["closed", "broken off"],
)
async def test_a_model_whose_sessions_open_and_close_without_a_word_is_asked_again_before_it_is_believed(
    settings: Settings, simulator: Simulator, database_url: str, rows: Rows, model: str, fault: dict[str, Any]
) -> None:
    """Nothing says that it is gone, so it is believed for minutes at a time, and the sentence says what was seen."""
    async with running_gateway(with_limits(settings, doubted_model_seconds=0.2)) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id, model=model)
        simulator.behave("realtime", fault, times=3)
        task = await client.generate(voice_id)
        assert (await client.ended(task["task_id"]))["status"] == "completed", "the fourth time it speaks"
        assert gateway.parts.providers.retired == frozenset()

        simulator.reset()
        simulator.behave("realtime", fault, times=0)
        ended = await client.ended((await client.generate(voice_id))["task_id"])
        assert (ended["status"], ended["error_category"]) == ("failed", "provider_rejected")
        assert "without a word" in ended["error"]
        assert len(simulator.calls) == 4
        assert gateway.parts.providers.retired == {model}
        answer = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Again."})
        assert answer.status_code == 409

        simulator.behaviours.clear()
        await rows.execute("UPDATE internal.retired_models SET seen_at = now() - interval '6 minutes'")
        await wait_for(lambda: not gateway.parts.providers.retired)
        assert (await client.ended((await client.generate(voice_id))["task_id"]))["status"] == "completed"


@pytest.mark.parametrize(
    "other",
    [
        {"do": "close", "at": "created", "code": 1011},
        {"do": "close", "at": "created", "code": 1000, "reason": "Going away."},
        {"do": "close", "at": "audio", "code": 1000},
        {"refuse": 500},
    ],
    ids=["their fault", "with a reason", "after the text", "not opened"],
)
async def test_an_outage_is_no_retirement(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, other: dict[str, Any]
) -> None:
    simulator.behave("realtime", other, times=0)
    ended = await client.ended((await client.generate(voice_id))["task_id"])
    assert (ended["status"], ended["error_category"]) == ("failed", "provider_unavailable")
    assert gateway.parts.providers.retired == frozenset()
