"""Voices of the run-task family, made at a provider that takes its time and says odd things."""

import asyncio
from typing import Any

import httpx
import pytest

from server.audio import has_sound
from server.dev.simulator import Simulator
from server.errors import ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable
from server.providers.qwen.voice_enrollment import UNDEPLOYED, VoiceEnrollment
from tests.providers.conftest import QWEN_AUDIO, MakeSettings
from tests.voices import recording

NAME = "u0123456789abcdef"
PREFIX = "u012345678"


@pytest.fixture
def enrollment(provider_settings: MakeSettings, http: httpx.AsyncClient) -> VoiceEnrollment:
    return VoiceEnrollment(
        provider_settings(deploying_seconds=10.0, deploying_look_seconds=0.05, customization_seconds=5.0), http
    )


async def cloned(enrollment: VoiceEnrollment, **changes: Any) -> str:
    wanted: dict[str, Any] = {
        "preferred_name": NAME,
        "recording": recording(6.0),
        "mime": "audio/wav",
        "target_model": QWEN_AUDIO,
        "transcript": "What it says.",
        **changes,
    }
    return (await enrollment.clone(**wanted)).voice_id


async def test_a_voice_is_cloned_and_can_speak(enrollment: VoiceEnrollment, simulator: Simulator) -> None:
    voice = await enrollment.clone(
        preferred_name=NAME,
        recording=recording(6.0),
        mime="audio/wav",
        target_model=QWEN_AUDIO,
        transcript="Guten Abend.",
        language="German",
    )
    assert voice.voice_id.startswith(f"{QWEN_AUDIO}-{PREFIX}-")
    assert (voice.target_model, voice.preview) == (QWEN_AUDIO, b"")
    assert voice.request_id
    [create, query] = simulator.calls
    assert (create["action"], create["feature"], create["language"]) == ("create", "voice-enrollment", "de")
    assert (query["action"], query["voice"]) == ("query", voice.voice_id)


@pytest.mark.parametrize(("transcript", "language"), [("你好，世界", "zh"), ("Доброе утро", "ru"), ("", "en")])
async def test_the_language_is_always_told(
    enrollment: VoiceEnrollment, simulator: Simulator, transcript: str, language: str
) -> None:
    await cloned(enrollment, transcript=transcript, language="Auto")
    assert simulator.calls[0]["language"] == language


async def test_a_voice_that_is_being_prepared_is_waited_for(enrollment: VoiceEnrollment, simulator: Simulator) -> None:
    simulator.behave("customization", {"deploying": 2}, action="create")
    simulator.behave("customization", {"do": "error", "code": "InternalError"}, action="query")
    await cloned(enrollment)
    assert [call["action"] for call in simulator.calls] == ["create", "query", "query", "query", "query"]


@pytest.mark.parametrize("behaviour", [{"deploying": 1000}, {"voice_status": "PENDING_REVIEW"}])
async def test_a_voice_that_does_not_get_ready_is_not_lost(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    impatient = VoiceEnrollment(provider_settings(deploying_seconds=0.1, deploying_look_seconds=0.05), http)
    simulator.behave("customization", behaviour, action="create")
    with pytest.raises(ProviderTimeout) as caught:
        await cloned(impatient)
    assert caught.value.diagnostics["code"] == "deploying"
    with pytest.raises(ProviderTimeout):
        await impatient.find("vc", NAME)


async def test_a_voice_that_was_refused_by_review_is_refused_for_good(
    enrollment: VoiceEnrollment, simulator: Simulator
) -> None:
    simulator.behave("customization", {"voice_status": "UNDEPLOYED"}, action="create")
    for _ in range(2):
        with pytest.raises(ProviderRejected) as caught:
            await (cloned(enrollment) if not simulator.calls else enrollment.find("vc", NAME))
        assert (caught.value.status, caught.value.diagnostics["code"]) == (400, UNDEPLOYED)


async def test_what_a_doubtful_call_has_made_is_found_by_its_prefix(
    enrollment: VoiceEnrollment, simulator: Simulator
) -> None:
    simulator.behave("customization", {"do": "abort"}, action="create")
    with pytest.raises(ProviderTimeout):
        await cloned(enrollment)
    await cloned(enrollment, preferred_name="u012345679")
    found = await enrollment.find("vc", NAME)
    assert found is not None
    assert found.voice_id.startswith(f"{QWEN_AUDIO}-{PREFIX}-")
    assert found.target_model == QWEN_AUDIO
    assert await enrollment.find("vc", "uffffffffff") is None


async def test_a_list_of_several_pages_is_read_to_its_end(enrollment: VoiceEnrollment, simulator: Simulator) -> None:
    made = {simulator.voices.enroll("vc", f"p{number}", QWEN_AUDIO, "en").id for number in range(205)}
    assert {voice.voice_id async for voice in enrollment.voices()} == made
    assert len(simulator.calls) == 3


async def test_odd_entries_of_a_list_hide_no_voice(enrollment: VoiceEnrollment, simulator: Simulator) -> None:
    entries = [None, {"voice": "x"}, {"voice_id": 7}, {"voice_id": f"{QWEN_AUDIO}-a-1"}, {"voice_id": "foreign-1"}]
    simulator.behave("customization", {"do": "answer", "json": {"output": {"voice_list": entries}}}, action="list")
    listed = [(voice.voice_id, voice.target_model) async for voice in enrollment.voices()]
    assert listed == [(f"{QWEN_AUDIO}-a-1", QWEN_AUDIO), ("foreign-1", "")]


async def test_a_voice_is_designed_with_a_preview(enrollment: VoiceEnrollment, simulator: Simulator) -> None:
    voice = await enrollment.design(
        preferred_name=NAME,
        instruct="A calm older man.",
        preview_text="Welcome back. Here is the news.",
        target_model="cosyvoice-v3-flash",
    )
    assert voice.voice_id.startswith(f"cosyvoice-v3-flash-vd-{PREFIX}-")
    assert voice.target_model == "cosyvoice-v3-flash"
    assert await asyncio.to_thread(has_sound, voice.preview)


async def test_a_design_without_a_preview_is_paid_for_and_cannot_be_shown(
    enrollment: VoiceEnrollment, simulator: Simulator
) -> None:
    simulator.behave("customization", {"preview_audio": False}, action="create")
    with pytest.raises(ProviderTimeout) as caught:
        await enrollment.design(
            preferred_name=NAME,
            instruct="A calm man.",
            preview_text="Welcome back. Here is the news.",
            target_model=QWEN_AUDIO,
        )
    assert caught.value.diagnostics["code"] == "no_preview"


async def test_what_is_known_to_be_refused_is_not_asked(enrollment: VoiceEnrollment, simulator: Simulator) -> None:
    with pytest.raises(ProviderRejected) as caught:
        await enrollment.design(
            preferred_name=NAME, instruct="x" * 501, preview_text="Hello there, hello.", target_model=QWEN_AUDIO
        )
    assert caught.value.status == 400
    with pytest.raises(ProviderRejected):
        await cloned(enrollment, recording=bytes(8_000_000))
    assert simulator.calls == []


@pytest.mark.parametrize(
    ("behaviour", "kind", "status"),
    [
        ({"do": "error", "code": "Audio.PreprocessError", "status": 430}, ProviderRejected, 400),
        ({"do": "empty", "status": 400}, ProviderRejected, 502),
        ({"do": "error", "code": "InvalidLanguageHints", "status": 400, "message": "no"}, ProviderRejected, 502),
        ({"do": "error", "code": "Throttling.RateQuota"}, ProviderUnavailable, 503),
        ({"do": "html", "status": 502}, ProviderUnavailable, 503),
        ({"do": "answer", "json": {"output": {}}}, ProviderTimeout, 504),
        ({"do": "answer", "text": "<html>"}, ProviderTimeout, 504),
    ],
)
async def test_refusals_have_their_class(
    enrollment: VoiceEnrollment, simulator: Simulator, behaviour: dict[str, Any], kind: type[ProviderError], status: int
) -> None:
    simulator.behave("customization", behaviour, action="create")
    with pytest.raises(ProviderError) as caught:
        await cloned(enrollment)
    assert isinstance(caught.value, kind)
    assert caught.value.status == status


async def test_a_recording_of_three_seconds_is_too_short_here(
    enrollment: VoiceEnrollment, simulator: Simulator
) -> None:
    with pytest.raises(ProviderRejected) as caught:
        await cloned(enrollment, recording=recording(4.0))
    assert caught.value.status == 400
