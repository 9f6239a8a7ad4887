"""The simulated run-task family against both surfaces of the provider's official Python SDK."""

import asyncio
import base64
import gc
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from server.audio import mp3_duration_seconds
from server.dev.simulator import API_KEY, Simulator
from server.dev.simulator.serving import serving
from tests.voices import recording

from .realtime_client import TEXT

dashscope = pytest.importorskip("dashscope")

# The 2.x surface says so of itself wherever it is touched.
pytestmark = [
    pytest.mark.filterwarnings("ignore:dashscope 2.0 audio API:FutureWarning"),
    # It leaves sockets of its own to the garbage collector, which may come before the fixture does.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MODEL = "qwen-audio-3.0-tts-flash"
VOICE = f"{MODEL}-narrator-0000000000000000000000000000abcd"


@pytest.fixture
def sdk(simulator: Simulator) -> Iterator[Any]:
    """The 1.x surface, pointed at the simulator; afterwards it points where it did before."""
    before = dashscope.api_key, dashscope.base_http_api_url, dashscope.base_websocket_api_url
    dashscope.api_key = API_KEY
    dashscope.base_http_api_url = f"{simulator.base_url}/api/v1"
    dashscope.base_websocket_api_url = simulator.environment()["DASHSCOPE_INFERENCE_WS_URL"]
    yield dashscope
    dashscope.api_key, dashscope.base_http_api_url, dashscope.base_websocket_api_url = before
    # The SDK leaves sockets of its own to the garbage collector, which complains wherever it happens to find them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def client(simulator: Simulator, sdk: Any) -> Iterator[Any]:
    """The 2.x surface."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = sdk.Client(api_key=API_KEY, base_url=f"{simulator.base_url}/api/v1", max_retries=0, timeout=20)
    yield made
    made.close()


@pytest.fixture
async def recording_url() -> AsyncIterator[str]:
    """Where the provider may fetch a recording from."""
    app = Starlette(routes=[Route("/ada.wav", lambda _: Response(recording(6.0), media_type="audio/wav"))])
    async with serving(app, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}/ada.wav"


def address(simulator: Simulator) -> str:
    return simulator.environment()["DASHSCOPE_INFERENCE_WS_URL"]


async def test_the_older_surface_speaks_in_one_call(simulator: Simulator, sdk: Any) -> None:
    from dashscope.audio.tts_v2 import SpeechSynthesizer

    audio = await asyncio.to_thread(
        lambda: SpeechSynthesizer(model=MODEL, voice=VOICE).call("Hello there.", timeout_millis=20_000)
    )

    assert mp3_duration_seconds(audio) > 0.3
    [call] = simulator.calls
    # It says "Default" and a rate of 0, which mean MP3 at 22,050 Hz.
    assert (call["text"], call["format"], call["sample_rate"]) == ("Hello there.", "mp3", 22_050)
    assert call["ended"] == "finished"


async def test_the_older_surface_speaks_while_text_grows(simulator: Simulator, sdk: Any) -> None:
    from dashscope.audio.tts_v2 import AudioFormat, ResultCallback, SpeechSynthesizer

    heard, events, done = bytearray(), list[str](), threading.Event()

    class Callback(ResultCallback):  # type: ignore[misc, unused-ignore]
        def on_data(self, data: bytes) -> None:
            heard.extend(data)

        def on_event(self, message: str) -> None:
            events.append(message)

        def on_complete(self) -> None:
            done.set()

        def on_error(self, message: Any) -> None:
            done.set()

    def speak() -> None:
        synthesizer: Any = SpeechSynthesizer(
            model=MODEL,
            voice=VOICE,
            format=AudioFormat.PCM_24000HZ_MONO_16BIT,
            language_hints=["en"],
            callback=Callback(),
            additional_params={"word_timestamp_enabled": True},
        )
        synthesizer.streaming_call(TEXT[:20])
        synthesizer.streaming_call(TEXT[20:])
        synthesizer.streaming_complete(20_000)

    await asyncio.to_thread(speak)

    assert done.is_set()
    [call] = simulator.calls
    assert len(heard) == call["audio_bytes"] > 48_000
    assert (call["text"], call["format"], call["language"]) == (TEXT, "pcm", "English")
    assert any('"begin_time"' in event for event in events)


async def test_the_older_surface_cancels_by_directive(simulator: Simulator, sdk: Any) -> None:
    from dashscope.audio.tts_v2 import ResultCallback, SpeechSynthesizer

    first = threading.Event()

    class Callback(ResultCallback):  # type: ignore[misc, unused-ignore]
        def on_data(self, data: bytes) -> None:
            first.set()

    plan = simulator.behave("realtime", {"do": "hold", "after_deltas": 2, "delta_bytes": 1152})

    def speak() -> None:
        synthesizer: Any = SpeechSynthesizer(model=MODEL, voice=VOICE, callback=Callback())
        synthesizer.streaming_call(TEXT)
        synthesizer.async_streaming_complete(20_000)
        assert first.wait(10)
        synthesizer.streaming_cancel()

    await asyncio.to_thread(speak)

    await simulator.until(lambda calls: calls[0].get("ended") == "cancelled")
    plan.release()


async def test_the_older_surface_hears_of_a_failed_task(simulator: Simulator, sdk: Any) -> None:
    from dashscope.audio.tts_v2 import SpeechSynthesizer

    simulator.behave("realtime", {"do": "error", "at": "text", "code": "DataInspectionFailed"})

    with pytest.raises(Exception, match="DataInspectionFailed"):
        await asyncio.to_thread(
            lambda: SpeechSynthesizer(model=MODEL, voice=VOICE).call("Hello there.", timeout_millis=20_000)
        )


async def test_the_newer_surface_speaks_while_text_grows(simulator: Simulator, client: Any) -> None:
    def speak() -> tuple[bytes, Any]:
        with client.audio.tts.connect(
            model=MODEL, voice=VOICE, format="mp3", sample_rate=24_000, ws_url=address(simulator)
        ) as session:
            session.send_text(TEXT[:20])
            session.flush()
            session.send_text(TEXT[20:])
            session.stop()
            audio = b"".join(frame for frame in session.events() if isinstance(frame, bytes))
            return audio, session.usage

    audio, usage = await asyncio.to_thread(speak)

    assert mp3_duration_seconds(audio) > 3
    assert usage == {"characters": simulator.calls[0]["billed_characters"]}


async def test_the_newer_surface_cancels_by_directive(simulator: Simulator, client: Any) -> None:
    plan = simulator.behave("realtime", {"do": "hold", "after_deltas": 2, "delta_bytes": 1152})

    def speak() -> int:
        with client.audio.tts.connect(model=MODEL, voice=VOICE, ws_url=address(simulator)) as session:
            session.send_text(TEXT)
            session.stop()
            frames = 0
            for frame in session.events():
                frames += isinstance(frame, bytes)
                if frames == 2 and isinstance(frame, bytes):
                    session.cancel()
            return frames

    assert await asyncio.to_thread(speak) == 2
    assert simulator.calls[0]["ended"] == "cancelled"
    plan.release()


async def test_the_older_surface_enrolls_queries_lists_and_deletes(
    simulator: Simulator, sdk: Any, recording_url: str
) -> None:
    from dashscope.audio.tts_v2 import SpeechSynthesizer, VoiceEnrollmentException, VoiceEnrollmentService

    simulator.behave("customization", {"deploying": 1}, action="create")

    def enroll() -> None:
        service: Any = VoiceEnrollmentService()
        voice = service.create_voice(MODEL, "k3n9x0q7ab", recording_url, language_hints=["en"])
        assert voice.startswith(f"{MODEL}-k3n9x0q7ab-")
        assert service.query_voice(voice)["status"] == "DEPLOYING"
        assert service.query_voice(voice)["status"] == "OK"
        assert [one["voice_id"] for one in service.list_voices("k3n9x0q7ab")] == [voice]
        assert SpeechSynthesizer(model=MODEL, voice=voice).call("Hello there.", timeout_millis=20_000)
        service.update_voice(voice, recording_url)
        service.delete_voice(voice)
        assert service.list_voices() == []
        for prefix in ("k3n9x0q7abc", "with-hyphen"):
            with pytest.raises(VoiceEnrollmentException, match="prefix"):
                service.create_voice(MODEL, prefix, recording_url)
        with pytest.raises(VoiceEnrollmentException, match="exactly one"):
            service.create_voice(MODEL, "two", recording_url, language_hints=["en", "zh"])

    await asyncio.to_thread(enroll)


async def test_the_newer_surface_enrolls_by_data_url_and_designs(simulator: Simulator, client: Any) -> None:
    link = f"data:audio/wav;base64,{base64.b64encode(recording(6.0)).decode()}"

    def enroll() -> None:
        voices = client.audio.voices
        cloned = voices.create(target_model=MODEL, prefix="ada", url=link, extra_input={"language_hints": ["en"]})
        assert voices.get(cloned.voice_id).status == "OK"
        designed = voices.create(
            target_model=MODEL,
            prefix="max",
            url="",
            extra_input={
                "voice_prompt": "A calm older man.",
                "preview_text": "Welcome back. Here is the news.",
                "language_hints": ["en"],
            },
        )
        assert base64.b64decode(designed.preview_audio["data"])[:4] == b"RIFF"
        assert len(voices.list().voices) == 2
        voices.delete(cloned.voice_id)
        assert len(voices.list().voices) == 1

    await asyncio.to_thread(enroll)
