"""The simulated realtime WebSocket: what a session looks like, what it refuses, and how it misbehaves when told to."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
import websockets

from server.dev.simulator import ENGINE_411, TO_MANY, TOO_MANY, Pace, Simulator, running_simulator
from server.settings import Settings

from .realtime_client import TEXT, VC_REALTIME, VD_REALTIME, VOICE, conversation, mp3_info, mp3_seconds, spoken

ONE_CYCLE = [
    "response.created",
    "response.output_item.added",
    "response.content_part.added",
    "response.audio.delta",
    "response.audio.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
]
OPENING = ["session.created", "session.updated"]


# --- a session as it should be ----------------------------------------------------------------------------------------


async def test_a_session_tells_its_events_in_the_documented_order_and_closes(simulator: Simulator) -> None:
    heard = await spoken(simulator)

    assert heard.types == [*OPENING, *ONE_CYCLE, "session.finished"]
    assert heard.close_code == 1000
    assert len({event["event_id"] for event in heard.events}) == len(heard.events)
    done = heard.of("response.done")[0]["response"]
    assert done["status"] == "completed"
    assert done["usage"] == {"characters": len(TEXT)}


async def test_the_audio_is_speech_of_a_plausible_length_in_every_format(simulator: Simulator) -> None:
    mp3 = await spoken(simulator)
    pcm = await spoken(simulator, response_format="pcm")
    wav = await spoken(simulator, response_format="wav")

    seconds = len(pcm.audio) / 48_000
    assert 3 < seconds < 10
    assert mp3_seconds(mp3.audio) == pytest.approx(seconds, abs=0.2)
    assert wav.audio[:4] == b"RIFF"
    assert wav.audio[44:] == pcm.audio
    assert max(pcm.audio[1::2]) > 0  # not silence


@pytest.mark.parametrize("sample_rate", [8000, 16000, 48000])
async def test_other_sample_rates_last_as_long(simulator: Simulator, sample_rate: int) -> None:
    usual = await spoken(simulator, response_format="pcm")
    other = await spoken(simulator, response_format="pcm", sample_rate=sample_rate)
    other_mp3 = await spoken(simulator, sample_rate=sample_rate)

    assert len(other.audio) / sample_rate == pytest.approx(len(usual.audio) / 24_000, rel=0.01)
    assert mp3_info(other_mp3.audio).sample_rate == sample_rate


async def test_the_same_text_and_voice_are_the_same_bytes_in_every_simulator(simulator: Simulator) -> None:
    first = await spoken(simulator)
    await spoken(simulator, "Something else in between.", voice="qwen-tts-vc-other")
    async with running_simulator(pace=Pace(first_delta_seconds=0, speed=0)) as another:
        second = await spoken(another)

    assert first.audio == second.audio


async def test_every_voice_sounds_different(simulator: Simulator) -> None:
    heard = [await spoken(simulator, voice=f"qwen-tts-vc-voice-{number}") for number in range(5)]

    assert len({one.audio for one in heard}) == 5


@pytest.mark.parametrize(
    "text",
    ["你好，世界。今天天气很好。", "こんにちは、世界。", "안녕하세요 세계.", "Привет, мир.", "¿Qué tal?", "🎉", "—"],
)
async def test_a_text_in_any_script_is_heard(simulator: Simulator, text: str) -> None:
    heard = await spoken(simulator, text)

    assert heard.types[-1] == "session.finished"
    assert len(heard.audio) > 1000


async def test_an_ideograph_counts_twice(simulator: Simulator) -> None:
    heard = await spoken(simulator, "你好 ok。")

    assert heard.of("response.done")[0]["response"]["usage"] == {"characters": 8}


async def test_first_delta_and_speed_are_those_of_the_pace(simulator: Simulator) -> None:
    simulator.pace = Pace(first_delta_seconds=0.2, speed=8.0)
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE, "response_format": "mp3"})
        await talk.until("session.updated")
        begun = time.monotonic()
        await talk.send("input_text_buffer.append", text=TEXT)
        await talk.send("session.finish")
        await talk.until("response.audio.delta")
        first = time.monotonic() - begun
        heard = await talk.until_the_end()
        whole = time.monotonic() - begun

    # Never earlier than told; how much later is the machine's business, within reason.
    assert 0.19 < first < 2.0
    expected = 0.2 + (mp3_seconds(heard.audio) - 0.2) / 8
    assert expected - 0.02 < whole < expected + 2.0


async def test_sixty_sessions_at_once_are_all_heard(simulator: Simulator) -> None:
    heard = await asyncio.gather(*(spoken(simulator, voice=f"qwen-tts-vc-{number % 6}") for number in range(60)))

    assert all(one.types[-1] == "session.finished" for one in heard)
    assert len({one.audio for one in heard}) == 6


async def test_every_language_of_the_api_has_a_voice_of_its_own(simulator: Simulator) -> None:
    languages = ["Chinese", "English", "German", "Italian", "Portuguese", "Spanish", "Japanese", "Korean", "French"]
    heard = [await spoken(simulator, "Taxi 123", language_type=language) for language in [*languages, "Russian"]]

    assert len({one.audio for one in heard}) == 10


# --- the client's events ----------------------------------------------------------------------------------------------


async def test_commit_mode_speaks_at_each_commit_and_not_before(simulator: Simulator) -> None:
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE, "mode": "commit", "response_format": "mp3"})
        await talk.send("input_text_buffer.append", text="This is thrown away.")
        await talk.send("input_text_buffer.clear")
        await talk.until("input_text_buffer.cleared")
        await talk.send("input_text_buffer.append", text="One.")
        await talk.send("input_text_buffer.commit")
        await talk.until("response.done")
        await talk.send("input_text_buffer.append", text="Two.")
        await talk.send("session.finish")
        heard = await talk.until_the_end()

    assert [event["response"]["usage"]["characters"] for event in heard.of("response.done")] == [4, 4]
    assert heard.types[2:5] == ["input_text_buffer.cleared", "input_text_buffer.committed", "response.created"]


async def test_server_commit_mode_speaks_by_itself_when_no_more_text_comes(simulator: Simulator) -> None:
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE, "response_format": "mp3"})
        await talk.send("input_text_buffer.append", text="Nobody commits this.")
        await talk.until("response.done")
        await talk.send("session.finish")
        heard = await talk.until_the_end()

    assert heard.types[-2:] == ["response.done", "session.finished"]


async def test_wrong_events_are_answered_with_invalid_value_and_the_session_goes_on(simulator: Simulator) -> None:
    async with conversation(simulator) as talk:
        complaints = []

        async def complaint() -> None:
            error = (await talk.until("error"))["error"]
            assert error["code"] == "invalid_value"
            complaints.append(error["message"])

        await talk.send("input_text_buffer.append", text="Too early.")
        await complaint()
        for fields in [{}, {"voice": VOICE, "response_format": "opus"}, {"voice": VOICE, "speech_rate": 9}]:
            await talk.send("session.update", session=fields)
            await complaint()
        await talk.send("session.update", session={"voice": VOICE, "response_format": "mp3"})
        await talk.until("session.updated")
        await talk.send("input_text_buffer.commit")
        await complaint()
        await talk.send("input_text_buffer.clear")
        await complaint()
        assert complaints[-1] == "only client commit mode supports clear operation"
        await talk.send("response.frobnicate")
        await complaint()
        await talk.socket.send("no JSON")
        await complaint()
        await talk.socket.send(json.dumps({"type": "session.finish"}))
        await complaint()
        await talk.socket.send(json.dumps({"event_id": "e1", "type": "session.finish"}))
        await complaint()
        await talk.send("input_text_buffer.append", text="At last.")
        await talk.send("input_text_buffer.commit")
        await talk.until("response.created")
        await talk.send("session.update", session={"voice": VOICE})
        await complaint()
        assert "already started, finished or failed" in complaints[-1]
        await talk.send("session.finish")
        heard = await talk.until_the_end()

    assert heard.types[-1] == "session.finished"


async def test_a_finish_without_text_is_just_finished(simulator: Simulator) -> None:
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE})
        await talk.send("session.finish")
        heard = await talk.until_the_end()

    assert heard.types == [*OPENING, "session.finished"]


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_a_wrong_key_is_refused_at_the_upgrade(simulator: Simulator) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with conversation(simulator, key="wrong"):
            pass

    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"")["code"] == "InvalidApiKey"
    assert simulator.calls[0]["ended"] == "refused"


@pytest.mark.parametrize("model", ["qwen3-tts-nonsense", "qwen3-tts-vc-2026-01-22", ""])
async def test_an_unknown_model_is_closed_with_1007(simulator: Simulator, model: str) -> None:
    async with conversation(simulator, model=model) as talk:
        heard = await talk.until_the_end()

    assert (heard.close_code, heard.close_reason) == (1007, "Model not found.")


async def test_a_voice_speaks_only_with_the_model_it_was_created_for(simulator: Simulator) -> None:
    voice = simulator.voices.create("vc", "mine", "qwen3-tts-vc-realtime-2025-11-27", "en")

    for model, its_voice in [
        (VC_REALTIME, voice.id),
        (VD_REALTIME, VOICE),
        (VC_REALTIME, "Cherry"),
        ("qwen3-tts-flash-realtime", VOICE),
    ]:
        heard = await spoken(simulator, model=model, voice=its_voice)
        assert heard.of("error")[0]["error"]["message"] == ENGINE_411
        assert heard.audio == b""
    right = await spoken(simulator, model="qwen3-tts-vc-realtime-2025-11-27", voice=voice.id)
    assert right.types[-1] == "session.finished"


async def test_a_deleted_voice_is_not_found_and_a_forgotten_one_is_spoken_with(simulator: Simulator) -> None:
    voice = simulator.voices.create("vc", "mine", VC_REALTIME, "en")
    simulator.voices.delete(voice.id, "vc")

    assert (await spoken(simulator, voice=voice.id)).of("error")[0]["error"]["code"] == "VoiceNotFound"
    assert (await spoken(simulator, voice="qwen-tts-vc-of-an-earlier-run")).audio
    async with running_simulator(pace=Pace(first_delta_seconds=0, speed=0), strict_voices=True) as strict:
        assert (await spoken(strict, voice=VOICE)).of("error")[0]["error"]["code"] == "VoiceNotFound"


# --- misbehaviours ----------------------------------------------------------------------------------------------------


async def test_three_cycles_share_the_text_and_its_usage(simulator: Simulator) -> None:
    usual = await spoken(simulator)
    simulator.behave("realtime", {"cycles": 3})
    heard = await spoken(simulator)

    assert heard.types == [*OPENING, *ONE_CYCLE * 3, "session.finished"]
    assert heard.audio == usual.audio
    usages = [event["response"]["usage"]["characters"] for event in heard.of("response.done")]
    assert sum(usages) == len(TEXT)
    assert len({event["response"]["id"] for event in heard.of("response.done")}) == 3


async def test_each_cycle_can_be_a_file_of_its_own(simulator: Simulator) -> None:
    usual = await spoken(simulator)
    simulator.behave("realtime", {"cycles": 3, "restart_encoder": True})
    heard = await spoken(simulator)

    assert heard.audio != usual.audio
    assert mp3_seconds(heard.audio) == pytest.approx(mp3_seconds(usual.audio), abs=0.3)


async def test_a_repeated_done_carries_the_same_response_id(simulator: Simulator) -> None:
    simulator.behave("realtime", {"repeat_done": 2})
    heard = await spoken(simulator)

    assert len(heard.of("response.done")) == 3
    assert len({event["response"]["id"] for event in heard.of("response.done")}) == 1


async def test_deltas_can_split_frames_and_samples_anywhere(simulator: Simulator) -> None:
    usual = await spoken(simulator)
    simulator.behave("realtime", {"delta_sizes": [1, 3, 1001]})
    heard = await spoken(simulator)

    assert [len(delta) for delta in heard.deltas[:4]] == [1, 3, 1001, 1]
    assert heard.audio == usual.audio


async def test_a_delta_can_be_a_mebibyte(simulator: Simulator) -> None:
    simulator.behave("realtime", {"delta_bytes": 1_048_576, "minimum_bytes": 1_048_576})
    heard = await spoken(simulator)

    assert len(heard.deltas[0]) == 1_048_576


async def test_a_session_can_end_without_any_audio(simulator: Simulator) -> None:
    simulator.behave("realtime", {"audio": False})
    without_deltas = await spoken(simulator)
    simulator.behave("realtime", {"response": False})
    without_response = await spoken(simulator)

    assert without_deltas.types == [*OPENING, *ONE_CYCLE[:3], *ONE_CYCLE[4:], "session.finished"]
    assert without_response.types == [*OPENING, "session.finished"]


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_the_upgrade_can_be_refused(simulator: Simulator, status: int) -> None:
    simulator.behave("realtime", {"refuse": status})

    with pytest.raises(websockets.InvalidStatus) as refused:
        await spoken(simulator)
    assert refused.value.response.status_code == status
    assert (await spoken(simulator)).types[-1] == "session.finished"


@pytest.mark.parametrize(("when", "deltas"), [({"at": "text"}, 0), ({"at": "audio"}, 0), ({"after_deltas": 2}, 2)])
async def test_an_error_can_come_before_and_after_audio(
    simulator: Simulator, when: dict[str, Any], deltas: int
) -> None:
    simulator.behave("realtime", {"do": "error", "code": "InternalError", **when})
    heard = await spoken(simulator)

    assert len(heard.deltas) == deltas
    assert heard.events[-1]["error"]["code"] == "InternalError"
    await simulator.until(lambda calls: "closed_at" in calls[0])
    assert (simulator.calls[0]["ended"], simulator.calls[0]["code"]) == ("refused", "InternalError")


@pytest.mark.parametrize(("when", "deltas"), [({"at": "audio"}, 0), ({"after_deltas": 3}, 3)])
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1007, "no"), (1011, TO_MANY), (1011, TOO_MANY)])
async def test_the_socket_can_be_closed_before_and_after_audio(
    simulator: Simulator, when: dict[str, Any], deltas: int, code: int, reason: str
) -> None:
    simulator.behave("realtime", {"do": "close", "code": code, "reason": reason, **when})
    heard = await spoken(simulator)

    assert (heard.close_code, heard.close_reason, len(heard.deltas)) == (code, reason, deltas)
    assert "session.finished" not in heard.types
    assert simulator.calls[0]["ended"] == "misbehaved"


@pytest.mark.parametrize(("when", "deltas"), [({"at": "audio"}, 0), ({"after_deltas": 3}, 3)])
async def test_the_connection_can_break_off(simulator: Simulator, when: dict[str, Any], deltas: int) -> None:
    simulator.behave("realtime", {"do": "abort", **when})
    heard = await spoken(simulator)

    assert (heard.close_code, len(heard.deltas)) == (1006, deltas)


async def test_the_upgrade_can_break_off(simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "abort", "at": "upgrade"})

    with pytest.raises(websockets.InvalidMessage):
        await spoken(simulator)


async def test_the_session_can_close_without_finished_or_finish_without_close(simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "close", "at": "response_end"})
    unfinished = await spoken(simulator)
    assert unfinished.types == [*OPENING, *ONE_CYCLE]
    assert unfinished.close_code == 1000

    simulator.behave("realtime", {"after_finished": "stay_open"})
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE})
        await talk.send("session.finish")
        await talk.until("session.finished")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await talk.socket.recv()


async def test_unknown_events_and_members_can_appear_everywhere(simulator: Simulator) -> None:
    simulator.behave("realtime", {"unknown_events": True, "extra_fields": True})
    heard = await spoken(simulator)

    assert len(heard.of("response.simulated.progress")) >= 10
    assert "simulated_extra" in heard.of("response.done")[0]["response"]


async def test_frames_can_be_broken(simulator: Simulator) -> None:
    simulator.behave(
        "realtime",
        {
            "faults": [
                {"do": "binary", "after_deltas": 1},
                {"do": "invalid_json", "after_deltas": 2},
                {"do": "event", "at": "audio_end", "event": {"type": "response.strange", "n": 1}},
            ]
        },
    )
    heard = await spoken(simulator)
    assert sum(isinstance(frame, bytes) for frame in heard.frames) == 1
    assert len(heard.frames) - len(heard.events) == 2
    assert heard.of("response.strange")[0]["n"] == 1
    assert heard.types[-1] == "session.finished"

    simulator.behave("realtime", {"do": "invalid_base64", "after_deltas": 1})
    heard = await spoken(simulator)
    assert heard.of("response.audio.delta")[1]["delta"] == "not*base64!"


async def test_a_response_can_fail_and_count_in_other_ways(simulator: Simulator) -> None:
    simulator.behave("realtime", {"response_status": "failed", "usage": "tokens"})
    response = (await spoken(simulator)).of("response.done")[0]["response"]

    assert response["status"] == "failed"
    assert response["usage"]["total_tokens"] > 0


async def test_a_session_can_fall_silent_and_be_slow_or_a_burst(simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "silence", "after_deltas": 1, "seconds": 0.4})
    begun = time.monotonic()
    assert (await spoken(simulator)).types[-1] == "session.finished"
    assert time.monotonic() - begun > 0.4

    simulator.behave("realtime", {"speed": 0.5, "first_delta_seconds": 0})
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE, "response_format": "mp3"})
        await talk.send("input_text_buffer.append", text=TEXT)
        await talk.send("session.finish")
        begun = time.monotonic()
        while len(talk.heard.deltas) < 4:
            await talk.until("response.audio.delta")
        assert time.monotonic() - begun > 0.7  # three deltas of 150 ms at half speed


async def test_after_a_long_silence_the_pace_is_the_usual_one(simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "silence", "after_deltas": 1, "seconds": 1.3, "speed": 1.0})
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE, "response_format": "mp3"})
        await talk.send("input_text_buffer.append", text=TEXT)
        await talk.send("session.finish")
        while len(talk.heard.deltas) < 2:
            await talk.until("response.audio.delta")
        begun = time.monotonic()
        while len(talk.heard.deltas) < 5:
            await talk.until("response.audio.delta")

    assert time.monotonic() - begun > 0.35  # three deltas of 150 ms


async def test_a_held_session_waits_until_it_is_released(simulator: Simulator) -> None:
    planned = simulator.behave("realtime", {"do": "hold", "after_deltas": 3}, text_contains="simulation")
    other = await spoken(simulator, "Something else.")
    assert other.types[-1] == "session.finished"

    speaking = asyncio.create_task(spoken(simulator))
    await planned.held()
    call = await simulator.deltas_sent(3, text_contains="simulation")
    assert (call["deltas"], call["holding"]) == (3, True)
    planned.release()
    heard = await speaking

    assert heard.types[-1] == "session.finished"
    assert call["holding"] is False


async def test_a_fault_later_than_the_last_delta_happens_at_the_end_of_the_audio(simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "close", "code": 1011, "after_deltas": 5000})
    heard = await spoken(simulator)

    assert heard.close_code == 1011
    assert heard.types[-1] == "response.audio.delta"


async def test_behaviours_are_matched_in_order_and_used_up(simulator: Simulator) -> None:
    simulator.behave("realtime", {"audio": False}, times=2, voice=VOICE)
    simulator.behave("realtime", {"repeat_done": 1}, times=0, text_contains="third")

    assert (await spoken(simulator, voice="qwen-tts-vc-other", text="No match.")).audio
    assert not (await spoken(simulator)).audio
    assert not (await spoken(simulator)).audio
    assert len((await spoken(simulator)).of("response.done")) == 2
    assert len((await spoken(simulator)).of("response.done")) == 2
    simulator.reset()
    assert len((await spoken(simulator)).of("response.done")) == 1


@pytest.mark.parametrize(
    ("surface", "behaviour", "match"),
    [
        ("realtime", {"do": "explode"}, {}),
        ("realtime", {"cycels": 3}, {}),
        ("realtime", {"cycles": 0}, {}),
        ("realtime", {"refuse": 401}, {"text_contains": "x"}),
        ("realtime", {"do": "error", "at": "update"}, {"text_contains": "x"}),
        ("realtime", {"do": "error", "at": "upgrade"}, {}),
        ("telegraph", {}, {}),
        ("http", {"do": "explode"}, {}),
        ("http", {}, {"colour": "red"}),
    ],
)
async def test_what_could_never_happen_is_refused(
    simulator: Simulator, surface: str, behaviour: dict[str, Any], match: dict[str, Any]
) -> None:
    async with httpx.AsyncClient(base_url=simulator.base_url, trust_env=False) as client:
        refused = await client.post("/behaviours", json={"surface": surface, "behaviour": behaviour, "match": match})

    assert refused.status_code == 400
    assert refused.json()["detail"]


# --- what it tells about itself ---------------------------------------------------------------------------------------


async def test_every_session_stands_among_the_calls_with_its_end(simulator: Simulator) -> None:
    await spoken(simulator)
    async with conversation(simulator) as talk:
        await talk.send("session.update", session={"voice": VOICE, "response_format": "mp3"})
        await talk.until("session.updated")
    await simulator.until(lambda calls: len(calls) == 2 and "closed_at" in calls[1])
    async with httpx.AsyncClient(base_url=simulator.base_url, trust_env=False) as client:
        calls = (await client.get("/calls")).json()
        assert (await client.delete("/calls")).json() == []

    assert [(call["surface"], call["action"], call["ended"]) for call in calls] == [
        ("realtime", "synthesize", "finished"),
        ("realtime", "synthesize", "client_closed"),
    ]
    assert calls[0]["text"] == TEXT
    assert calls[0]["characters"] == calls[0]["billed_characters"] == len(TEXT)
    assert calls[0]["voice"] == VOICE
    assert calls[0]["model"] == VC_REALTIME
    assert "billed_characters" not in calls[1]
    assert simulator.calls == []


async def test_the_front_door_tells_the_environment_that_points_here(simulator: Simulator) -> None:
    async with httpx.AsyncClient(base_url=simulator.base_url, trust_env=False) as client:
        here = await client.get("/")
        elsewhere = (await client.get("/", headers={"Host": "providers.test:99"})).json()

    assert here.json() == simulator.environment()
    assert "simulation" in here.headers["server"]
    assert elsewhere["DASHSCOPE_BASE_URL"] == "http://providers.test:99"
    assert elsewhere["DASHSCOPE_WS_URL"] == "ws://providers.test:99/api-ws/v1/realtime"
    assert elsewhere["PROVIDER_DOWNLOAD_HOSTS"] == "providers.test"
    assert {name for name in elsewhere if name.startswith("MODAL_")} == {
        "MODAL_JOB_SUBMIT",
        "MODAL_JOB_STATUS",
        "MODAL_JOB_RESULT",
        "MODAL_JOB_CANCEL",
        "MODAL_ENDPOINT_VOICE_DESIGN",
    }


async def test_a_server_takes_its_settings_from_there(simulator: Simulator) -> None:
    for mode in ("qwen", "modal"):
        settings = Settings.from_environ(
            {
                **simulator.environment(),
                "TTS_PROVIDER_MODE": mode,
                "DATABASE_URL": "postgresql://localhost/any",
                "AUTH_JWT_SECRET": "a secret that is long enough for anyone",
                "STORAGE_URL": "file:///nowhere",
            }
        )
        assert settings.dashscope_ws_url == f"{simulator.base_url.replace('http', 'ws')}/api-ws/v1/realtime"
        assert settings.provider_download_hosts == ("127.0.0.1",)
        assert settings.modal_job_cancel == f"{simulator.base_url}/modal/cancel"


async def test_it_is_driven_over_http_as_well(simulator: Simulator) -> None:
    async with httpx.AsyncClient(base_url=simulator.base_url, trust_env=False) as client:
        wish = {"surface": "realtime", "match": {"voice": VOICE}, "behaviour": {"do": "hold", "at": "audio"}}
        planned = (await client.post("/behaviours", json=wish)).json()
        speaking = asyncio.create_task(spoken(simulator))
        await simulator.until(lambda calls: any(call.get("holding") for call in calls))
        listed = (await client.get("/behaviours")).json()
        assert [(one["id"], one["remaining"], one["holding"]) for one in listed] == [(planned["id"], 0, 1)]
        await client.post("/behaviours/release", json={"id": planned["id"]})
        assert (await speaking).types[-1] == "session.finished"
        assert (await client.delete("/behaviours")).json() == []
        paced = (await client.post("/pace", json={"speed": 4.0})).json()
        assert paced["speed"] == 4.0
        assert (await client.post("/pace", json={"speed": -1})).status_code == 400
        assert (await client.get("/pace")).json() == paced
