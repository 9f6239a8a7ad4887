"""What the provider tests share: settings that point at the simulator, without a database."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from server.dev.simulator import API_KEY, Simulator
from server.providers.pacing import OwnLedger, Pacer
from server.settings import Intervals, Settings, StorageSettings
from tests.support import with_limits

VC_REALTIME = "qwen3-tts-vc-realtime-2026-01-15"
QWEN_AUDIO = "qwen-audio-3.0-tts-flash"
VC_HTTP = "qwen3-tts-vc-2026-01-22"

MakeSettings = Callable[..., Settings]


@pytest.fixture
def provider_settings(simulator: Simulator) -> MakeSettings:
    """Makes settings for the simulator; keywords that name a deadline set it, all others set a setting."""
    base = Settings(
        database_url="postgresql://nowhere",
        storage=StorageSettings(kind="disk", root="/nowhere"),
        dashscope_api_key=API_KEY,
        dashscope_base_url=simulator.base_url,
        dashscope_ws_url=f"ws{simulator.base_url.removeprefix('http')}/api-ws/v1/realtime",
        dashscope_inference_ws_url=f"ws{simulator.base_url.removeprefix('http')}/api-ws/v1/inference",
        provider_download_hosts=("127.0.0.1",),
        intervals=Intervals(download_pauses_seconds=(0.01,), modal_result_pauses_seconds=(0.01,)),
    )

    def make(**changes: Any) -> Settings:
        return with_limits(base, **changes)

    return make


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """The client that all REST surfaces share."""
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


def pacer_in_memory() -> Pacer:
    """One that nobody in a test waits for."""
    return Pacer(OwnLedger(6000))
