"""Cloning and designing over the wire: what is sent, what comes back, and what every refusal means."""

import asyncio
import io
import wave
from typing import Any

import httpx
import pytest

from server.dev.simulator import Simulator
from server.dev.simulator.refusals import FREE_QUOTA_EXCEEDED, REFUSALS, VOICE_LIMIT_EXCEEDED
from server.errors import ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable
from server.providers.qwen.customization import CreatedVoice, QwenCustomization
from server.providers.qwen.errors import ModelRetired, ProviderMisconfigured
from tests.providers.conftest import VC_REALTIME, MakeSettings

VD_REALTIME = "qwen3-tts-vd-realtime-2026-01-15"
NAME = "u0123456789abcde"


@pytest.fixture
def customization(provider_settings: MakeSettings, http: httpx.AsyncClient) -> QwenCustomization:
    return QwenCustomization(provider_settings(), http)


@pytest.fixture(scope="module")
def recording() -> bytes:
    """Five seconds of 24 kHz mono that swing loudly enough to count as speech."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(24_000)
        wav.writeframes((b"\x00\x20" * 60 + b"\x00\xe0" * 60) * 1000)
    return file.getvalue()


async def clone(customization: QwenCustomization, recording: bytes, **changes: Any) -> CreatedVoice:
    given = {"preferred_name": NAME, "mime": "audio/wav", "target_model": VC_REALTIME, "transcript": "Hello there"}
    return await customization.clone(recording=recording, **{**given, **changes})


async def design(customization: QwenCustomization, **changes: Any) -> CreatedVoice:
    given = {"preferred_name": NAME, "instruct": "A calm old man", "preview_text": "Good evening", "language": "German"}
    return await customization.design(**{**given, "target_model": VD_REALTIME, **changes})


async def test_clone_sends_the_recording_and_answers_the_voice(
    customization: QwenCustomization, simulator: Simulator, recording: bytes
) -> None:
    voice = await clone(customization, recording, language="French")
    [call] = simulator.calls
    assert voice.voice_id == call["voice"]
    assert NAME in voice.voice_id
    assert voice.target_model == VC_REALTIME
    assert voice.request_id
    assert (call["action"], call["feature"], call["model"]) == ("create", "qwen-voice-enrollment", VC_REALTIME)
    assert (call["preferred_name"], call["text"], call["language"]) == (NAME, "Hello there", "fr")


async def test_clone_without_language_or_transcript_leaves_them_out(
    customization: QwenCustomization, simulator: Simulator, recording: bytes
) -> None:
    await clone(customization, recording, language="Auto", transcript="")
    [call] = simulator.calls
    assert "language" not in call
    assert call["text"] == ""


async def test_design_answers_the_voice_with_its_preview(
    customization: QwenCustomization, simulator: Simulator
) -> None:
    voice = await design(customization)
    with wave.open(io.BytesIO(voice.preview)) as preview:
        assert (preview.getframerate(), preview.getnchannels(), preview.getsampwidth()) == (24_000, 1, 2)
        assert preview.getnframes() > 1000
    [call] = simulator.calls
    assert (call["feature"], call["voice_prompt"], call["text"]) == (
        "qwen-voice-design",
        "A calm old man",
        "Good evening",
    )
    assert call["language"] == "de"


async def test_design_in_auto_names_the_language_of_the_script(
    customization: QwenCustomization, simulator: Simulator
) -> None:
    await design(customization, language="Auto", preview_text="Добрый вечер")
    assert simulator.calls[0]["language"] == "ru"


@pytest.mark.parametrize("total_count", [True, False])
async def test_voices_are_found_by_their_name_over_pages(
    customization: QwenCustomization, simulator: Simulator, total_count: bool
) -> None:
    wanted = simulator.voices.create("vc", NAME, VC_REALTIME, "en")
    for number in range(130):
        simulator.voices.create("vc", f"other_{number}", VC_REALTIME, "en")
    simulator.voices.create("vd", "u0123", VD_REALTIME, "en")
    simulator.behave("customization", {"total_count": total_count}, times=0)

    found = await customization.find("vc", NAME)
    assert found is not None
    assert (found.voice_id, found.target_model) == (wanted.id, VC_REALTIME)
    assert await customization.find("vc", NAME[:-1]) is None
    assert len([voice async for voice in customization.voices("vc")]) == 131
    assert len([voice async for voice in customization.voices("vd")]) == 1
    assert {call["action"] for call in simulator.calls} == {"list"}


async def test_list_that_ignores_its_page_number_comes_to_an_end(
    customization: QwenCustomization, simulator: Simulator
) -> None:
    page = {"output": {"voice_list": [{"voice": "qwen-tts-vc-a-voice-1", "target_model": "m", "new": {}}]}}
    simulator.behave("customization", {"do": "answer", "json": page}, times=0)
    assert [voice.voice_id async for voice in customization.voices("vc")] == ["qwen-tts-vc-a-voice-1"]
    assert len(simulator.calls) == 2


_BETTER_RECORDING = {
    "InvalidParameter",
    "DataInspectionFailed",
    "Audio.PreprocessError",
    "Audio.DecoderError",
    "Audio.AudioRateError",
    "Audio.DurationLimitError",
}


@pytest.mark.parametrize("envelope", ["native", "openai"])
@pytest.mark.parametrize("code", REFUSALS)
async def test_every_refusal_is_one_of_ours(
    customization: QwenCustomization, simulator: Simulator, recording: bytes, code: str, envelope: str
) -> None:
    simulator.behave("customization", {"do": "error", "code": code, "envelope": envelope})
    with pytest.raises(ProviderError) as caught:
        await clone(customization, recording)
    error, http_status = caught.value, REFUSALS[code][0]
    if code in _BETTER_RECORDING:
        assert (type(error), error.status) == (ProviderRejected, 400)
    elif code in ("ModelNotFound", "model_not_found", "Model.AccessDenied"):
        assert (type(error), error.status) == (ModelRetired, 502)
    elif http_status in (401, 403, 404) or "Bill" in code or "ommodity" in code or code == "Arrearage":
        assert (type(error), error.status) == (ProviderMisconfigured, 502)
    elif http_status >= 429 or code == "ClientDisconnect":
        assert (type(error), error.status) == (ProviderUnavailable, 503)
        assert error.throttled is (http_status == 429 or code == "ServiceUnavailable")
    else:
        assert isinstance(error, ProviderRejected)
        assert error.status == 502
    assert error.diagnostics["code"] == code
    assert error.diagnostics["request_id"].startswith("simulated-")
    assert REFUSALS[code][1] not in error.detail


@pytest.mark.parametrize("message", [FREE_QUOTA_EXCEEDED, VOICE_LIMIT_EXCEEDED])
async def test_quota_that_will_not_come_back_is_no_throttle(
    customization: QwenCustomization, simulator: Simulator, recording: bytes, message: str
) -> None:
    simulator.behave("customization", {"do": "error", "code": "Throttling.AllocationQuota", "message": message})
    with pytest.raises(ProviderMisconfigured):
        await clone(customization, recording)


@pytest.mark.parametrize(
    ("behaviour", "kind", "status"),
    [
        ({"do": "empty"}, ProviderRejected, 502),
        ({"do": "html"}, ProviderUnavailable, 503),
        ({"do": "html", "status": 504}, ProviderTimeout, 504),
        ({"do": "answer", "status": 200, "text": "<html>"}, ProviderTimeout, 504),
        ({"do": "answer", "status": 200, "json": {"output": {}}}, ProviderTimeout, 504),
        ({"do": "answer", "status": 200, "json": {"code": "Throttling", "message": "no"}}, ProviderUnavailable, 503),
        ({"do": "answer", "status": 302, "text": "", "headers": {"location": "/x"}}, ProviderMisconfigured, 502),
        ({"do": "abort"}, ProviderTimeout, 504),
    ],
)
async def test_odd_answers_tell_whether_the_outcome_is_known(
    customization: QwenCustomization,
    simulator: Simulator,
    recording: bytes,
    behaviour: dict[str, Any],
    kind: type[ProviderError],
    status: int,
) -> None:
    simulator.behave("customization", behaviour)
    with pytest.raises(ProviderError) as caught:
        await clone(customization, recording)
    assert (type(caught.value), caught.value.status) == (kind, status)
    assert caught.value.diagnostics["text_sent"] is True


async def test_creation_that_never_answers_has_an_unknown_outcome_and_can_be_found(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator, recording: bytes
) -> None:
    customization = QwenCustomization(provider_settings(customization_seconds=0.3), http)
    simulator.behave("customization", {"do": "hang"})
    with pytest.raises(ProviderTimeout):
        await clone(customization, recording)
    found = await customization.find("vc", NAME)
    assert found is not None
    assert len([call for call in simulator.calls if call["action"] == "create"]) == 1


async def test_provider_that_cannot_be_reached_was_not_asked(
    provider_settings: MakeSettings, http: httpx.AsyncClient, recording: bytes
) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    customization = QwenCustomization(provider_settings(dashscope_base_url=f"http://127.0.0.1:{port}"), http)
    with pytest.raises(ProviderUnavailable) as caught:
        await clone(customization, recording)
    assert caught.value.diagnostics["text_sent"] is False


async def test_preview_that_is_missing_is_paid_for_and_not_bought_again(
    customization: QwenCustomization, simulator: Simulator
) -> None:
    answer = {"output": {"voice": "qwen-tts-vd-x-voice-1", "preview_audio": {"data": None}}, "request_id": None}
    simulator.behave("customization", {"do": "answer", "json": answer})
    with pytest.raises(ProviderTimeout) as caught:
        await design(customization)
    assert caught.value.diagnostics["voice"] == "qwen-tts-vd-x-voice-1"


async def test_recording_over_the_providers_limit_is_not_sent(
    customization: QwenCustomization, simulator: Simulator
) -> None:
    with pytest.raises(ProviderRejected) as caught:
        await clone(customization, bytes(8_000_000))
    assert caught.value.status == 400
    assert simulator.calls == []
