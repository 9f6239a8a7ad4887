"""`python -m server renew`: count and price first, then everybody's voices, and again what was left."""

import asyncio

import pytest

from server.commands import renew
from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import Client, Gateway
from tests.jobs.test_renew import QWEN_AUDIO, Rows, older_voice
from tests.support import with_limits
from tests.voices import billed, listed


async def command(settings: Settings, *, dry_run: bool = False) -> int:
    return await asyncio.to_thread(renew.run, settings, everything=True, model=None, dry_run=dry_run)


async def test_an_operator_sets_one_variable_and_everybody_keeps_their_voice(
    gateway: Gateway,
    client: Client,
    rows: Rows,
    simulator: Simulator,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(renew, "PAUSE_SECONDS", 0.0)
    changed = with_limits(settings, qwen_vc_target_model=QWEN_AUDIO, deploying_look_seconds=0.02)
    for kept in (True, True, False):
        await older_voice(gateway, rows, client.user_id, kept=kept)

    assert await command(changed, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "2 voices are to be made again for qwen-audio-3.0-tts-flash" in said
    assert "0.02 USD" in said
    assert "1 cannot be made again" in said
    assert billed(simulator) == 0

    simulator.behave("customization", {"do": "error", "code": "InternalError"}, action="create")
    assert await command(changed) == 1
    assert "1 voices were made again" in capsys.readouterr().out
    assert await command(changed) == 0
    assert "[##############################] 1/1" in capsys.readouterr().out
    assert billed(simulator) == 2
    models = sorted(voice["provider_target_model"] for voice in await listed(client))
    assert models == [QWEN_AUDIO, QWEN_AUDIO, "qwen3-tts-vc-realtime-2026-01-15"]
    assert await command(changed) == 0
    assert "0 voices" in capsys.readouterr().out
