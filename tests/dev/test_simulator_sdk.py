"""The simulator against the provider's official Python SDK: a client that nobody here has written."""

import asyncio
import base64
import gc
import io
import threading
import warnings
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.dev.simulator import API_KEY, Simulator

from .realtime_client import TEXT, VC_REALTIME, VOICE, mp3_seconds, spoken

dashscope = pytest.importorskip("dashscope")


@pytest.fixture
def sdk(simulator: Simulator) -> Iterator[Any]:
    """The SDK, pointed at the simulator; afterwards it points where it did before."""
    before = dashscope.api_key, dashscope.base_http_api_url
    dashscope.api_key = API_KEY
    dashscope.base_http_api_url = f"{simulator.base_url}/api/v1"
    yield dashscope
    dashscope.api_key, dashscope.base_http_api_url = before
    # The SDK leaves sockets of its own to the garbage collector, which complains wherever it happens to find them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def speak_with_the_sdk(simulator: Simulator, audio_format: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """One whole session, the way the SDK's own documentation holds it. Blocks."""
    from dashscope.audio.qwen_tts_realtime import QwenTtsRealtime, QwenTtsRealtimeCallback

    events: list[dict[str, Any]] = []
    closed: list[Any] = []
    over = threading.Event()

    class Callback(QwenTtsRealtimeCallback):  # type: ignore[misc, unused-ignore]
        def on_event(self, message: Any) -> None:
            events.append(message)
            if message["type"] in ("session.finished", "error"):
                over.set()

        def on_close(self, close_status_code: Any, close_msg: Any) -> None:
            closed.append(close_status_code)
            over.set()

    session = QwenTtsRealtime(model=VC_REALTIME, callback=Callback(), url=simulator.environment()["DASHSCOPE_WS_URL"])
    session.connect()
    session.update_session(voice=VOICE, audio_format=audio_format, language_type="English", mode="server_commit")
    session.append_text(TEXT[:20])
    session.append_text(TEXT[20:])
    session.finish()
    assert over.wait(20)
    session.close()
    session.thread.join(10)
    return events, closed


@pytest.mark.parametrize("audio_format", ["mp3", "pcm"])
async def test_the_sdk_hears_a_whole_session(simulator: Simulator, sdk: Any, audio_format: str) -> None:
    events, _ = await asyncio.to_thread(speak_with_the_sdk, simulator, audio_format)
    audio = b"".join(base64.b64decode(event["delta"]) for event in events if event["type"] == "response.audio.delta")
    heard = await spoken(simulator, response_format=audio_format)

    assert events[0]["type"] == "session.created"
    assert events[-1]["type"] == "session.finished"
    assert audio == heard.audio
    if audio_format == "mp3":
        assert mp3_seconds(audio) > 3
    call = simulator.calls[0]
    assert (call["text"], call["format"], call["ended"]) == (TEXT, audio_format, "finished")


async def test_the_sdk_synthesises_without_a_stream(simulator: Simulator, sdk: Any) -> None:
    answer = await asyncio.to_thread(
        sdk.MultiModalConversation.call,
        model="qwen3-tts-vc-2026-01-22",
        text="你好, this is the SDK.",
        voice=VOICE,
        language_type="English",
    )

    assert answer.status_code == 200
    assert answer.output.finish_reason == "stop"
    async with httpx.AsyncClient(trust_env=False) as client:
        file = await client.get(answer.output.audio["url"])
    with wave.open(io.BytesIO(file.content)) as audio:
        assert audio.getnframes() > 24_000
    assert simulator.calls[0]["billed_characters"] == 22


async def test_the_sdk_synthesises_as_events(simulator: Simulator, sdk: Any) -> None:
    def listen() -> list[Any]:
        return list(
            sdk.MultiModalConversation.call(
                model="qwen3-tts-vc-2026-01-22", text="Hello, this is the SDK.", voice=VOICE, stream=True
            )
        )

    answers = await asyncio.to_thread(listen)

    assert all(answer.status_code == 200 for answer in answers)
    assert sum(len(base64.b64decode(answer.output.audio["data"] or "")) for answer in answers) > 24_000
    assert answers[-1].output.audio["url"]


async def test_the_sdk_understands_a_refusal(simulator: Simulator, sdk: Any) -> None:
    simulator.behave("http", {"do": "error", "code": "Throttling.RateQuota"})
    answer = await asyncio.to_thread(
        sdk.MultiModalConversation.call, model="qwen3-tts-vc-2026-01-22", text="Hello.", voice=VOICE
    )

    assert (answer.status_code, answer.code) == (429, "Throttling.RateQuota")
