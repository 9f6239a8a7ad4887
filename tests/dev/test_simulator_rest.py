"""The simulated customization REST and the non-streaming synthesis, with their refusals and misbehaviours."""

import asyncio
import base64
import io
import json
import math
import struct
import time
import wave
from collections.abc import AsyncIterator
from typing import Any

import httpx
import lameenc
import pytest

from server.dev.simulator import API_KEY, AT_ONCE, Simulator, running_simulator
from server.dev.simulator.refusals import REFUSALS, VOICE_LIMIT_EXCEEDED
from server.dev.simulator.speech import wav_file

from .realtime_client import VC_REALTIME, VD_REALTIME, spoken

CUSTOMIZATION = "/api/v1/services/audio/tts/customization"
GENERATION = "/api/v1/services/aigc/multimodal-generation/generation"
VC_HTTP = "qwen3-tts-vc-2026-01-22"
VOICE = "qwen-tts-vc-narrator-voice-20260101000000000-abcd"


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the simulator that has the key."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(base_url=simulator.base_url, headers=headers, trust_env=False, timeout=10.0) as one:
        yield one


def tone(seconds: float = 5.0, sample_rate: int = 24_000, loudness: int = 8000) -> bytes:
    """A tone as 16-bit mono samples."""
    count = int(seconds * sample_rate)
    wave_length = [round(loudness * math.sin(index * 0.1)) for index in range(200)]
    return struct.pack(f"<{count}h", *(wave_length[index % 200] for index in range(count)))


def data_url(audio: bytes, mime: str = "audio/wav") -> str:
    return f"data:{mime};base64,{base64.b64encode(audio).decode()}"


def mp3(seconds: float, sample_rate: int = 24_000) -> bytes:
    encoder = lameenc.Encoder()
    encoder.set_channels(1)
    encoder.set_in_sample_rate(sample_rate)
    encoder.set_bit_rate(64)
    encoder.silence()
    return bytes(encoder.encode(tone(seconds, sample_rate))) + bytes(encoder.flush())


def m4a(seconds: float, sample_rate: int = 48_000) -> bytes:
    """The headers of an M4A file, which is all that is looked at."""
    movie = b"mvhd" + struct.pack(">IIIII", 0, 0, 0, 1000, round(seconds * 1000))
    sound = b"stsd" + bytes(8) + struct.pack(">I", 36) + b"mp4a" + bytes(6) + struct.pack(">H", 1)
    sound += bytes(8) + struct.pack(">HHHH", 1, 16, 0, 0) + struct.pack(">I", sample_rate << 16)
    return struct.pack(">I", 12) + b"ftypM4A " + movie + sound


def clone(recording: str, **changes: Any) -> dict[str, Any]:
    given = {
        "action": "create",
        "target_model": VC_REALTIME,
        "preferred_name": "narrator_1",
        "audio": {"data": recording},
        "language": "en",
    }
    return {"model": "qwen-voice-enrollment", "input": {**given, **changes}}


def design(**changes: Any) -> dict[str, Any]:
    given = {
        "action": "create",
        "target_model": VD_REALTIME,
        "voice_prompt": "A calm narrator.",
        "preview_text": "This is how I sound.",
        "preferred_name": "announcer",
        "language": "en",
    }
    return {"model": "qwen-voice-design", "input": {**given, **changes}}


def generation(text: str = "Hello from the simulation.", **changes: Any) -> dict[str, Any]:
    return {"model": VC_HTTP, "input": {"text": text, "voice": VOICE, "language_type": "English", **changes}}


# --- clones -----------------------------------------------------------------------------------------------------------


async def test_a_clone_is_created_spoken_with_listed_and_deleted(
    simulator: Simulator, client: httpx.AsyncClient
) -> None:
    created = await client.post(CUSTOMIZATION, json=clone(data_url(wav_file(tone()))))
    assert created.status_code == 200
    assert created.json()["usage"] == {"count": 1}
    voice = created.json()["output"]["voice"]
    assert voice.startswith("qwen-tts-vc-narrator_1-voice-")
    assert created.json()["output"]["target_model"] == VC_REALTIME
    assert (await spoken(simulator, voice=voice)).audio

    listing = {"model": "qwen-voice-enrollment", "input": {"action": "list", "page_index": 0, "page_size": 10}}
    listed = (await client.post(CUSTOMIZATION, json=listing)).json()
    assert [one["voice"] for one in listed["output"]["voice_list"]] == [voice]
    assert "total_count" not in listed["output"]

    deleting = {"model": "qwen-voice-enrollment", "input": {"action": "delete", "voice": voice}}
    assert (await client.post(CUSTOMIZATION, json=deleting)).json()["usage"] == {"count": 0}
    again = await client.post(CUSTOMIZATION, json=deleting)
    assert (again.status_code, again.json()["code"]) == (400, "BadRequest.VoiceNotFound")
    assert [(call["action"], call["status"]) for call in simulator.calls if call["surface"] == "customization"] == [
        ("create", 200),
        ("list", 200),
        ("delete", 200),
        ("delete", 400),
    ]
    assert simulator.calls[0]["billed"] == 1


@pytest.mark.parametrize(
    ("audio", "mime"),
    [(mp3(4), "audio/mpeg"), (b"ID3\x03\0\0\0\0\0\x05tag.." + mp3(4), "audio/mpeg"), (m4a(12), "audio/mp4")],
)
async def test_mp3_and_m4a_are_enrolled_too(client: httpx.AsyncClient, audio: bytes, mime: str) -> None:
    assert (await client.post(CUSTOMIZATION, json=clone(data_url(audio, mime)))).status_code == 200


async def test_audio_can_be_fetched_from_an_address(simulator: Simulator, client: httpx.AsyncClient) -> None:
    spoken_file = await client.post(GENERATION, json=generation("This is a recording that is longer than that. " * 2))
    address = spoken_file.json()["output"]["audio"]["url"]

    assert (await client.post(CUSTOMIZATION, json=clone(address))).status_code == 200
    missing = await client.post(CUSTOMIZATION, json=clone(f"{simulator.base_url}/downloads/nothing.wav"))
    assert missing.json()["code"] == "InvalidParameter"


@pytest.mark.parametrize(
    ("audio", "code"),
    [
        (b"this is no audio at all", "Audio.DecoderError"),
        (wav_file(tone(5, 16_000), 16_000), "Audio.AudioRateError"),
        (wav_file(tone(61)), "Audio.DurationLimitError"),
        (wav_file(tone(2)), "Audio.PreprocessError"),
        (wav_file(tone(5, loudness=20)), "Audio.PreprocessError"),
        (mp3(4, 16_000), "Audio.AudioRateError"),
        (mp3(1), "Audio.PreprocessError"),
        (m4a(75), "Audio.DurationLimitError"),
    ],
)
async def test_a_recording_that_cannot_be_enrolled_is_refused(
    simulator: Simulator, client: httpx.AsyncClient, audio: bytes, code: str
) -> None:
    refused = await client.post(CUSTOMIZATION, json=clone(data_url(audio)))

    assert (refused.status_code, refused.json()["code"]) == (400, code)
    assert refused.json()["request_id"]
    assert "billed" not in simulator.calls[0]


async def test_a_stereo_recording_is_refused(client: httpx.AsyncClient) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as stereo:
        stereo.setnchannels(2)
        stereo.setsampwidth(2)
        stereo.setframerate(24_000)
        stereo.writeframes(tone(10))
    refused = await client.post(CUSTOMIZATION, json=clone(data_url(file.getvalue())))

    assert refused.json()["code"] == "Audio.PreprocessError"


@pytest.mark.parametrize(
    "changes",
    [
        {"preferred_name": "has spaces"},
        {"preferred_name": "seventeen_letters"},
        {"preferred_name": None},
        {"target_model": VD_REALTIME},
        {"target_model": "nonsense"},
        {"language": "English"},
        {"language": ["en"]},
        {"audio": {}},
        {"audio": {"data": "http://[::1"}},
        {"audio": {"data": "ftp://somewhere/file.wav"}},
        {"action": "query"},
    ],
)
async def test_wrong_fields_of_a_clone_are_refused(client: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    refused = await client.post(CUSTOMIZATION, json=clone(data_url(wav_file(tone())), **changes))

    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "qwen-voice-design", "input": {"action": "create", "voice_prompt": "\\ud800"}}',
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"model": "qwen-voice-design", "parameters": "x", "input": {"action": "create", "target_model":'
        b' "qwen3-tts-vd-realtime-2026-01-15", "voice_prompt": "x", "preview_text": "Hello"}}',
    ],
    ids=["half an emoji", "no number", "deep", "parameters that are none"],
)
async def test_what_no_real_provider_could_read_is_refused_and_hides_no_call(
    client: httpx.AsyncClient, body: bytes
) -> None:
    refused = await client.post(CUSTOMIZATION, content=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
    [call] = (await client.get("/calls")).json()
    assert (call["status"], call["code"]) == (400, "InvalidParameter")


async def test_a_design_may_go_without_a_name_as_the_sdk_sends_it(client: httpx.AsyncClient) -> None:
    body = design()
    del body["input"]["preferred_name"]
    made = await client.post(CUSTOMIZATION, json=body)
    assert made.status_code == 200
    assert "-design-" in made.json()["output"]["voice"]


async def test_the_account_can_be_full(client: httpx.AsyncClient) -> None:
    async with running_simulator(pace=AT_ONCE, voice_limit=1) as small:
        address = small.base_url + CUSTOMIZATION
        body = clone(data_url(wav_file(tone())))
        assert (await client.post(address, json=body)).status_code == 200
        full = await client.post(address, json=body)
        assert (await client.post(address, json=design())).status_code == 200

    assert (full.status_code, full.json()["code"]) == (429, "Throttling.AllocationQuota")
    assert full.json()["message"] == VOICE_LIMIT_EXCEEDED


# --- designs ----------------------------------------------------------------------------------------------------------


async def test_a_design_comes_with_a_preview_that_speaks(simulator: Simulator, client: httpx.AsyncClient) -> None:
    created = (await client.post(CUSTOMIZATION, json=design())).json()

    preview = created["output"]["preview_audio"]
    with wave.open(io.BytesIO(base64.b64decode(preview["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert file.getnframes() > 24_000
    assert (preview["sample_rate"], preview["response_format"]) == (24_000, "wav")
    voice = created["output"]["voice"]
    assert voice.startswith("qwen-tts-vd-announcer-voice-")
    assert (await spoken(simulator, voice=voice, model=VD_REALTIME)).audio

    asking: dict[str, Any] = {"model": "qwen-voice-design", "input": {"action": "query", "voice": voice}}
    asked = (await client.post(CUSTOMIZATION, json=asking)).json()["output"]
    assert (asked["voice_prompt"], asked["preview_text"]) == ("A calm narrator.", "This is how I sound.")
    asking["input"]["action"] = "delete"
    assert (await client.post(CUSTOMIZATION, json=asking)).json()["output"] == {"voice": voice}
    asking["input"]["action"] = "query"
    gone = await client.post(CUSTOMIZATION, json=asking)
    assert (gone.status_code, gone.json()["code"]) == (400, "VoiceNotFound")
    assert gone.json()["message"] == f"Voice not found: {voice}"


async def test_designs_are_listed_in_pages_with_their_total(simulator: Simulator, client: httpx.AsyncClient) -> None:
    for number in range(5):
        simulator.voices.create("vd", f"v{number}", VD_REALTIME, "en", "p", "t")
    listing = {"model": "qwen-voice-design", "input": {"action": "list", "page_index": 1, "page_size": 2}}
    output = (await client.post(CUSTOMIZATION, json=listing)).json()["output"]
    simulator.behave("customization", {"total_count": False}, action="list")
    without = (await client.post(CUSTOMIZATION, json=listing)).json()["output"]

    assert (output["total_count"], output["page_index"], output["page_size"]) == (5, 1, 2)
    assert ["-v2-" in one["voice"] or "-v1-" in one["voice"] for one in output["voice_list"]] == [True, True]
    assert "total_count" not in without


@pytest.mark.parametrize(
    "changes",
    [{"voice_prompt": ""}, {"voice_prompt": "x" * 2049}, {"preview_text": "x" * 1025}, {"target_model": VC_REALTIME}],
)
async def test_wrong_fields_of_a_design_are_refused(client: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    assert (await client.post(CUSTOMIZATION, json=design(**changes))).json()["code"] == "InvalidParameter"


# --- synthesis --------------------------------------------------------------------------------------------------------


async def test_a_synthesis_answers_with_the_address_of_a_wav(simulator: Simulator, client: httpx.AsyncClient) -> None:
    answered = await client.post(GENERATION, json=generation("你好 ok"))
    body = answered.json()

    assert answered.status_code == 200
    assert "status_code" not in body
    assert body["code"] == ""
    assert body["usage"]["characters"] == 7
    audio = body["output"]["audio"]
    assert audio["expires_at"] == pytest.approx(time.time() + 86_400, abs=60)
    async with httpx.AsyncClient(trust_env=False) as anybody:
        downloaded = await anybody.get(audio["url"])
    assert downloaded.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(downloaded.content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert file.getnframes() > 12_000
    assert downloaded.content[36:40] == b"LIST"  # so that nobody takes byte 44 for the first sample
    call = simulator.calls[0]
    assert (call["surface"], call["action"], call["text"], call["billed_characters"]) == (
        "http",
        "synthesize",
        "你好 ok",
        7,
    )


async def test_a_synthesis_can_answer_as_events(client: httpx.AsyncClient) -> None:
    answered = await client.post(GENERATION, json=generation(), headers={"X-DashScope-SSE": "enable"})
    data = [json.loads(line[5:]) for line in answered.text.splitlines() if line.startswith("data:")]
    pcm = b"".join(base64.b64decode(one["output"]["audio"]["data"]) for one in data)
    file = (await client.get(data[-1]["output"]["audio"]["url"])).content

    assert file.endswith(pcm)
    assert len(pcm) > 24_000
    assert data[-1]["output"]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (generation("x" * 601), 400, "InvalidParameter"),
        (generation("语" * 301), 400, "InvalidParameter"),
        (generation(""), 400, "InvalidParameter"),
        (generation(voice="Cherry"), 400, "InvalidParameter"),
        (generation(language_type="Klingon"), 400, "InvalidParameter"),
        ({**generation(), "model": VC_REALTIME}, 400, "InvalidParameter"),
        ({**generation(), "model": "nonsense"}, 404, "ModelNotFound"),
        ([], 400, "InvalidParameter"),
    ],
)
async def test_what_cannot_be_synthesised_is_refused(
    simulator: Simulator, client: httpx.AsyncClient, body: Any, status: int, code: str
) -> None:
    refused = await client.post(GENERATION, json=body)

    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert "billed_characters" not in simulator.calls[0]


async def test_rest_needs_the_key_and_no_asynchronous_header(client: httpx.AsyncClient) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    for path, body in [(GENERATION, generation()), (CUSTOMIZATION, design())]:
        refused = await client.post(path, json=body, headers=wrong)
        assert (refused.status_code, refused.json()["code"]) == (401, "InvalidApiKey")
    asynchronous = await client.post(GENERATION, json=generation(), headers={"X-DashScope-Async": "enable"})
    assert asynchronous.status_code == 403


# --- misbehaviours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(REFUSALS))
async def test_every_documented_refusal_can_be_had(simulator: Simulator, client: httpx.AsyncClient, code: str) -> None:
    simulator.behave("http", {"do": "error", "code": code})
    refused = await client.post(GENERATION, json=generation())

    assert refused.status_code == REFUSALS[code][0]
    assert refused.json() == {"code": code, "message": REFUSALS[code][1], "request_id": refused.json()["request_id"]}
    assert "billed_characters" not in simulator.calls[0]


async def test_answers_can_be_empty_html_or_anything(simulator: Simulator, client: httpx.AsyncClient) -> None:
    behaviours: list[dict[str, Any]] = [
        {"do": "empty"},
        {"do": "html"},
        {"do": "error", "code": "invalid_api_key", "envelope": "openai"},
        {"do": "error", "code": "ServiceUnavailable", "status": 500, "message": "own words"},
        {"do": "answer", "status": 200, "text": "not json"},
        {"do": "answer", "status": 429, "json": {"code": "x"}, "headers": {"Retry-After": "3"}},
        {"status_code": True},
    ]
    for behaviour in behaviours:
        simulator.behave("customization", behaviour)
    answers = [await client.post(CUSTOMIZATION, json=design()) for _ in range(7)]

    assert (answers[0].status_code, answers[0].json()) == (400, {})
    assert (answers[1].status_code, answers[1].text[:6]) == (502, "<html>")
    assert answers[2].json()["error"]["code"] == "invalid_api_key"
    assert (answers[3].status_code, answers[3].json()["message"]) == (500, "own words")
    assert answers[4].text == "not json"
    assert (answers[5].status_code, answers[5].headers["retry-after"]) == (429, "3")
    assert answers[6].json()["status_code"] == 200
    assert len(simulator.voices.newest_first("vd")) == 1


@pytest.mark.parametrize(
    ("behaviour", "voices"),
    [
        ({"do": "hang"}, 1),
        ({"do": "hang", "effect": False}, 0),
        ({"do": "abort"}, 1),
        ({"do": "late", "seconds": 0.4}, 1),
    ],
)
async def test_an_answer_can_never_come_although_the_voice_was_created(
    simulator: Simulator, client: httpx.AsyncClient, behaviour: dict[str, Any], voices: int
) -> None:
    simulator.behave("customization", behaviour, action="create")
    with pytest.raises((httpx.ReadTimeout, httpx.TransportError)):
        await client.post(CUSTOMIZATION, json=design(), timeout=0.3)

    assert len(simulator.voices.newest_first("vd")) == voices
    assert simulator.calls[0].get("billed", 0) == voices


async def test_a_held_request_waits_until_it_is_released(simulator: Simulator, client: httpx.AsyncClient) -> None:
    planned = simulator.behave("customization", {"do": "hold"}, text_contains="how I sound")
    asking = asyncio.create_task(client.post(CUSTOMIZATION, json=design()))
    await planned.held()
    assert simulator.voices.newest_first("vd") == []
    planned.release()

    assert (await asking).status_code == 200


async def test_downloads_can_expire_move_fail_and_break_off(simulator: Simulator, client: httpx.AsyncClient) -> None:
    async def address() -> str:
        return str((await client.post(GENERATION, json=generation())).json()["output"]["audio"]["url"])

    simulator.behave("http", {"expires_in_seconds": 0})
    expired = await client.get(await address())
    assert (expired.status_code, "expired" in expired.text) == (403, True)

    simulator.behave("http", {"url_host": "files.example"})
    assert (await address()).startswith("http://files.example/downloads/")

    simulator.behave("download", {"do": "answer", "status": 503, "text": ""}, text_contains="simulation")
    failed = await client.get(await address())
    assert failed.status_code == 503

    simulator.behave("download", {"truncate_bytes": 5000})
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get(await address())

    simulator.behave("download", {"minimum_bytes": 3_000_000})
    assert len((await client.get(await address())).content) == 3_000_000

    assert (await client.get("/downloads/nothing.wav")).status_code == 404
    assert all(call["action"] == "synthesize" for call in simulator.calls)
