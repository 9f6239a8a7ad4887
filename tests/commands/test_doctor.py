"""`python -m server doctor`: what is alive, what is gone, and what to set."""

import asyncio
import json
from typing import Any

import pytest

from server.commands import doctor
from server.dev.simulator import Simulator
from server.settings import VC_REALTIME, VD_REALTIME, Settings
from tests.gateway import Client, Gateway, insert_voice
from tests.support import with_limits

QWEN_AUDIO = "qwen-audio-3.0-tts-flash"
GONE = {"do": "close", "at": "open", "code": 1007, "reason": "Model not found."}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a command that asks again soon."""
    return with_limits(settings, stays_open_seconds=0.05, doubted_model_seconds=0.05)


async def examined(
    settings: Settings, capsys: pytest.CaptureFixture[str], *, speak: bool = False
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The command's status, and its findings by name."""
    status = await asyncio.to_thread(doctor.run, settings, speak=speak, as_json=True)
    findings = json.loads(capsys.readouterr().out)["findings"]
    return status, {finding["name"]: finding for finding in findings}


async def test_where_all_is_well_it_says_so_and_buys_nothing(
    settings: Settings, client: Client, database_url: str, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    await insert_voice(database_url, client.user_id)
    await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)
    status, found = await examined(with_limits(settings, qwen_vc_target_model=QWEN_AUDIO), capsys)
    assert status == 0
    assert {finding["state"] for finding in found.values()} == {"ok"}
    assert {"qwen-voice-enrollment", "qwen-voice-design", "voice-enrollment", VC_REALTIME, VD_REALTIME, QWEN_AUDIO} <= (
        found.keys()
    )
    assert found["modal"]["needed"] is False
    assert found[VC_REALTIME]["detail"] == "1 voices"
    assert {call["action"] for call in simulator.calls} <= {"list", "synthesize", "status"}
    assert not [call for call in simulator.calls if call.get("text")]


async def test_what_is_gone_is_said_with_what_to_set_and_known_to_the_server(
    settings: Settings,
    gateway: Gateway,
    client: Client,
    database_url: str,
    simulator: Simulator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await insert_voice(database_url, client.user_id)
    simulator.behave("realtime", GONE, model=VC_REALTIME, times=0)
    status, found = await examined(settings, capsys)
    assert status == 1
    assert found[VC_REALTIME]["state"] == "gone"
    assert "Set QWEN_VC_TARGET_MODEL" in found[VC_REALTIME]["advice"]
    assert found[VD_REALTIME]["state"] == "ok"
    await gateway.parts.retirements.refresh()
    assert gateway.parts.providers.retired == {VC_REALTIME}

    simulator.behaviours.clear()
    assert (await examined(settings, capsys))[0] == 0
    await gateway.parts.retirements.refresh()
    assert gateway.parts.providers.retired == frozenset(), "what answers again is no longer retired"


async def test_a_design_service_that_is_gone_is_said(
    settings: Settings, client: Client, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator.behave("customization", {"do": "error", "code": "ModelNotFound"}, times=2)
    status = await asyncio.to_thread(doctor.run, settings, speak=False, as_json=False)
    said = capsys.readouterr().out
    assert status == 1
    assert "GONE    qwen-voice-design" in said
    assert "Set QWEN_VD_TARGET_MODEL" in said


async def test_ten_characters_are_spoken_where_that_is_asked_for(
    settings: Settings, client: Client, database_url: str, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    await insert_voice(database_url, client.user_id)
    await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)
    simulator.behave("realtime", {"do": "error", "at": "text", "code": "ModelNotFound"}, model=QWEN_AUDIO)
    status = await asyncio.to_thread(doctor.run, settings, speak=True, as_json=False)
    said = capsys.readouterr().out
    assert status == 1
    assert "may cost up to" in said.splitlines()[0]
    assert f"GONE    speech with {QWEN_AUDIO}" in said
    assert f"python -m server renew --model {QWEN_AUDIO}" in said
    assert f"ok      speech with {VC_REALTIME}" in said
    assert {call["text"] for call in simulator.calls if call.get("text")} == {"Good day. "}


async def test_a_wrong_key_is_no_retirement(
    settings: Settings, gateway: Gateway, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = await examined(with_limits(settings, dashscope_api_key="sk-wrong"), capsys)
    assert status == 1
    assert {finding["state"] for name, finding in found.items() if name != "modal"} == {"failed"}
    assert "sk-wrong" not in json.dumps(found)


async def test_a_model_that_opens_sessions_and_closes_them_without_a_word_is_asked_twice(
    settings: Settings, client: Client, database_url: str, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    await insert_voice(database_url, client.user_id)
    silent = {"do": "close", "at": "created", "code": 1000}
    slow = with_limits(settings, stays_open_seconds=5.0)
    simulator.behave("realtime", silent, model=VC_REALTIME)
    simulator.behave("realtime", GONE, model=VD_REALTIME)
    _, found = await examined(with_limits(settings, stays_open_seconds=0.3), capsys)
    assert found[VC_REALTIME]["state"] == "ok", "once is nothing"
    simulator.reset()
    simulator.behave("realtime", silent, model=VC_REALTIME, times=0)
    simulator.behave("realtime", GONE, model=VD_REALTIME)
    status, found = await examined(slow, capsys)
    assert status == 1
    assert found[VC_REALTIME]["state"] == "gone"
    assert "(code opened_and_closed, close_code 1000" in found[VC_REALTIME]["detail"]


async def test_a_task_that_closes_without_a_word_is_found_by_those_who_speak(
    settings: Settings, client: Client, database_url: str, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)
    simulator.behave("realtime", {"do": "close", "at": "created", "code": 1000}, model=QWEN_AUDIO, times=0)
    status, found = await examined(settings, capsys, speak=True)
    assert status == 1
    assert found[QWEN_AUDIO]["state"] == "ok"
    assert found[f"speech with {QWEN_AUDIO}"]["state"] == "gone"
