"""The OpenAI-shaped door: what each member means, what every error looks like, and that nobody pays twice."""

import asyncio
import base64
import io
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import numpy as np
import pytest

from server.audio import mp3_duration_seconds, parse_wav
from server.auth.keyring import new_key
from server.database.queue import SYNTHESIS
from server.dev.simulator import Planned, Simulator
from server.handlers.openai import client_name
from server.settings import VC_REALTIME, Settings
from tests.audio.samples import tone, wav
from tests.end_to_end.hearing import hold_after
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import counted, exchange, is_a_sentence
from tests.jobs.test_pieces import files
from tests.modal import in_modal_mode, insert_modal_voice
from tests.postgres_proxy import postgres_proxy
from tests.support import LEAVES_AT_ONCE, wait_for, with_limits

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SPEECH = "/v1/audio/speech"
IN_PIECES = "qwen3-tts-vc-2026-01-22"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a server that soon ends what nobody follows, and paces nobody."""
    deadlines = replace(settings.deadlines, unfollowed_seconds=2.0)
    intervals = replace(settings.intervals, heartbeat_seconds=0.3)
    return replace(settings, deadlines=deadlines, intervals=intervals, qwen_starts_per_minute=100_000)


def impatient(settings: Settings) -> Settings:
    """The same server, which keeps nobody waiting."""
    return replace(settings, deadlines=replace(settings.deadlines, door_wait_seconds=1.0))


async def say(
    client: Client, text: str = "Good evening.", *, headers: dict[str, str] | None = None, **members: Any
) -> httpx.Response:
    return await client.http.post(SPEECH, json={"input": text, **members}, headers=headers)


async def said(client: Client, text: str = "Good evening.", **members: Any) -> httpx.Response:
    response = await say(client, text, **members)
    assert response.status_code == 200, response.text
    return response


def error_of(
    response: httpx.Response,
    status: int,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    says: str = "",
) -> str:
    """The sentence of an error that must be of this shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == (kind, param), error
    assert code is None or error["code"] == code, error
    assert is_a_sentence(error["message"]), error["message"]
    assert says in error["message"], error["message"]
    message: str = error["message"]
    return message


def spoken(simulator: Simulator) -> list[dict[str, Any]]:
    """The calls for speech on the realtime lane, which are what costs."""
    return [dict(call) for call in simulator.calls if call["surface"] == "realtime"]


async def history(client: Client) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = (await client.http.get("/api/generations")).json()["generations"]
    return entries


@asynccontextmanager
async def listening(
    client: Client, text: str = "Good evening.", *, headers: dict[str, str] | None = None, **members: Any
) -> AsyncIterator[httpx.Response]:
    """A client of its own connection, which hangs up at the end of the block."""
    async with (
        httpx.AsyncClient(base_url=client.url, headers=client.headers, timeout=20.0) as http,
        http.stream("POST", SPEECH, json={"input": text, **members}, headers=headers) as response,
    ):
        yield response


# --- input ------------------------------------------------------------------------------------------------------------


async def test_a_text_is_spoken_and_stands_in_the_history(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    """Trimmed, as MP3, with the name of the client and without anything else having been said."""
    response = await said(client, "  Good evening. \n", headers={"User-Agent": "OpenAI/Python 2.8.1"})
    assert response.headers["content-type"] == "audio/mpeg"
    assert mp3_duration_seconds(response.content) > 0.3
    [entry] = await history(client)
    assert (entry["text"], entry["voice_id"], entry["client"]) == (
        "Good evening.",
        str(voice_id),
        "OpenAI/Python 2.8.1",
    )
    assert (entry["status"], entry["output_format"], entry["language"]) == ("completed", "mp3", "Auto")
    assert await client.audio(entry["id"]) == response.content
    assert response.headers["x-utter-generation-id"] == entry["id"]
    assert len(spoken(simulator)) == 1


@pytest.mark.parametrize("accept", ["application/octet-stream", "image/png", "text/html", "audio/ogg;q=0"])
async def test_any_accept_is_fine(client: Client, voice_id: UUID, accept: str) -> None:
    headers = {"Accept": accept}
    assert (await said(client, headers=headers)).headers["content-type"] == "audio/mpeg"
    for path in ("/v1/models", "/v1/audio/voices"):
        assert (await client.http.get(path, headers=headers)).status_code == 200


@pytest.mark.usefixtures("voice_id")
async def test_an_input_that_is_none_is_400(client: Client) -> None:
    for text in ("", "  \n", "\u200b"):
        error_of(await say(client, text), 400, "invalid_request_error", param="input")
    for body in (b"", b"{", b"[]", b'{"voice": "x"}', b'{"input": 7}', b'{"input": "a\\u0000b"}', b"\xff"):
        response = await client.http.post(SPEECH, content=body)
        error_of(
            response, 400, "invalid_request_error", param="input" if b"input" in body or b"voice" in body else None
        )


async def test_a_text_may_have_4096_characters_on_either_lane(
    client: Client, voice_id: UUID, database_url: str, simulator: Simulator
) -> None:
    """More than anywhere else here; the one of the pieces arrives piece by piece."""
    text = ("This is a sentence of forty characters. " * 103)[:4096].rstrip()
    in_pieces = await insert_voice(database_url, client.user_id, name="Pieces", model=IN_PIECES)
    for voice in (voice_id, in_pieces):
        response = await said(client, text, voice=str(voice))
        assert mp3_duration_seconds(response.content) > 60
    assert len([call for call in simulator.calls if call["surface"] == "http"]) >= 7
    [longest, _] = await history(client)
    assert len(longest["text"]) == len(text)
    again = (await client.http.post(f"/api/generations/{longest['id']}/regenerate")).json()
    assert again["text"] == text
    error_of(await say(client, "a" * 4097), 400, "invalid_request_error", param="input", says="4096")


async def test_a_server_that_allows_more_allows_more_here_too(settings: Settings, database_url: str) -> None:
    async with running_gateway(replace(settings, qwen_max_text_chars=5000)) as gateway, gateway.client() as client:
        await insert_voice(database_url, client.user_id)
        error_of(await say(client, "a" * 5001), 400, "invalid_request_error", param="input", says="5000")
        await said(client, "word " * 900)


# --- voice ------------------------------------------------------------------------------------------------------------


async def voices_of(client: Client) -> list[str | None]:
    """Which voices have spoken, newest first."""
    return [entry["voice_name"] for entry in await history(client)]


async def test_a_voice_is_named_by_id_or_by_name_as_a_string_or_an_object(client: Client, database_url: str) -> None:
    ada = await insert_voice(database_url, client.user_id, name="Ada")
    await insert_voice(database_url, client.user_id, name="Bea Ünder")
    named: tuple[Any, ...] = (str(ada), str(ada).upper(), {"id": str(ada)}, "Ada", "aDA ", {"id": "ada"})
    for voice in named:
        await said(client, voice=voice)
    await said(client, voice="bea üNDER")
    assert await voices_of(client) == ["Bea Ünder", *["Ada"] * 6]


async def test_no_voice_means_the_default_one_else_the_newest_that_can_speak(client: Client, database_url: str) -> None:
    ada = await insert_voice(database_url, client.user_id, name="Ada")
    await insert_voice(database_url, client.user_id, name="Bea")
    await insert_voice(database_url, client.user_id, name="Of another provider", provider="modal")
    for voice in ({}, {"voice": None}, {"voice": ""}, {"voice": "alloy"}):
        await said(client, **voice)
    assert await voices_of(client) == ["Bea"] * 4
    await client.http.patch(f"/api/voices/{ada}", json={"default": True})
    await said(client)
    await said(client, voice="Nova")
    assert (await voices_of(client))[:2] == ["Ada", "Ada"]


@pytest.mark.parametrize(
    "name",
    ["alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse"],
)
async def test_openai_s_own_names_mean_the_default_voice(client: Client, voice_id: UUID, name: str) -> None:
    await said(client, voice=name)
    assert await voices_of(client) == ["Ada"]


async def test_an_openai_name_that_one_has_given_oneself_means_that_voice(client: Client, database_url: str) -> None:
    await insert_voice(database_url, client.user_id, name="Nova")
    await insert_voice(database_url, client.user_id, name="Newer")
    await said(client, voice="nova")
    assert await voices_of(client) == ["Nova"]


async def test_a_name_that_several_have_is_400_and_lists_their_ids(client: Client, database_url: str) -> None:
    twins = [await insert_voice(database_url, client.user_id, name=name) for name in ("Ada", "ada")]
    message = error_of(await say(client, voice="Ada"), 400, "invalid_request_error", param="voice")
    assert all(str(twin) in message for twin in twins)


async def test_an_unknown_voice_is_400_with_the_names_that_there_are(
    client: Client, gateway: Gateway, database_url: str
) -> None:
    none_yet = error_of(await say(client), 400, "invalid_request_error", param="voice")
    assert "Clone or design one first" in none_yet
    await insert_voice(database_url, client.user_id, name="Ada")
    deleted = await insert_voice(database_url, client.user_id, name="Gone")
    await client.http.delete(f"/api/voices/{deleted}")
    async with gateway.client() as other:
        theirs = await insert_voice(database_url, other.user_id, name="Theirs")
    for voice in ("Zoe", str(uuid4()), str(theirs), "Theirs", str(deleted), "Gone"):
        message = error_of(await say(client, voice=voice), 400, "invalid_request_error", param="voice")
        assert message.endswith("Yours are: Ada.")
    for odd in (7, ["Ada"], {}, {"id": 7}, {"id": None}, {"name": "Ada"}):
        error_of(await say(client, voice=odd), 400, "invalid_request_error", param="voice")


async def test_a_voice_of_the_other_provider_is_409_and_not_asked_for_again(client: Client, database_url: str) -> None:
    await insert_voice(database_url, client.user_id, name="Old", provider="modal")
    response = await say(client, voice="Old")
    error_of(response, 409, "invalid_request_error", code="conflict", says="re-clone")
    assert response.headers["x-should-retry"] == "false"


# --- model, formats, speed, instructions ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tts-1", "gpt-4o-mini-tts", "", "anything/at all", None, 7])
async def test_any_model_will_do(client: Client, voice_id: UUID, model: object) -> None:
    await said(client, model=model)


async def every_lane(settings: Settings, database_url: str, rows: Rows) -> AsyncIterator[tuple[str, Client, str]]:
    """A client and a voice of each lane and provider."""
    async with running_gateway(settings) as gateway, gateway.client() as client:
        for lane, model in (("realtime", None), ("pieces", IN_PIECES)):
            named = {"model": model} if model else {}
            yield lane, client, str(await insert_voice(database_url, client.user_id, name=lane, **named))
    async with running_gateway(in_modal_mode(settings, modal_watch_seconds=0.1)) as gateway, gateway.client() as client:
        yield "jobs", client, str(await insert_modal_voice(gateway.parts, rows, client.user_id))


async def test_every_lane_speaks_all_three_formats(settings: Settings, database_url: str, rows: Rows) -> None:
    """MP3 whatever the environment says; raw samples are those of the file, without its header."""
    settings = replace(settings, qwen_default_response_format="wav")
    lanes = []
    async for lane, client, voice in every_lane(settings, database_url, rows):
        lanes.append(lane)
        default = await said(client, voice=voice)
        assert default.headers["content-type"] == "audio/mpeg"
        mp3 = await said(client, voice=voice, response_format="mp3")
        assert mp3.headers["content-type"] == "audio/mpeg"
        wav = await said(client, voice=voice, response_format="wav")
        assert wav.headers["content-type"] == "audio/wav"
        pcm = await said(client, voice=voice, response_format="pcm")
        assert pcm.headers["content-type"] == "audio/pcm"
        assert pcm.content == wav.content[44:]
        with wave.open(io.BytesIO(wav.content)) as opened:
            assert (opened.getnchannels(), opened.getsampwidth(), opened.getframerate()) == (1, 2, 24_000)
        seconds = len(pcm.content) / 2 / 24_000
        for heard in (default, mp3):
            assert mp3_duration_seconds(heard.content) == pytest.approx(seconds, abs=0.2)
        assert (await said(client, voice=voice, response_format=None)).headers["content-type"] == "audio/mpeg"
    assert lanes == ["realtime", "pieces", "jobs"]


async def test_raw_samples_have_24_khz_whatever_the_lane_speaks(
    client: Client, database_url: str, simulator: Simulator
) -> None:
    """A file may have any rate, since it says so; raw samples cannot."""
    await insert_voice(database_url, client.user_id, model=IN_PIECES)
    low = wav(tone(1.0, 16_000, hz=440.0).tobytes(), sample_rate_hz=16_000)
    async with files(simulator, low, low):
        file = parse_wav((await said(client, response_format="wav")).content)
        pcm = np.frombuffer((await said(client, response_format="pcm")).content, "<i2")
    assert (file.sample_rate_hz, len(file.samples)) == (16_000, 32_000)
    assert len(pcm) == pytest.approx(24_000, abs=10)
    assert np.abs(np.fft.rfft(pcm)).argmax() == pytest.approx(440, abs=1)


@pytest.mark.parametrize("name", ["opus", "aac", "flac", "ogg", "MP3"])
async def test_another_format_is_400_and_names_the_three(client: Client, voice_id: UUID, name: str) -> None:
    response = await say(client, response_format=name)
    error_of(response, 400, "invalid_request_error", param="response_format", says="mp3, wav, pcm")


async def test_speed_is_clamped_to_what_the_lane_can_do(
    client: Client, voice_id: UUID, database_url: str, simulator: Simulator
) -> None:
    for speed in (0.25, 0.7, 1, 1.5, 4.0, None):
        await said(client, speed=speed)
    assert [call["speech_rate"] for call in spoken(simulator)] == [0.5, 0.7, 1.0, 1.5, 2.0, 1.0]
    for wrong in (0.24, 4.01, "1"):
        error_of(await say(client, speed=wrong), 400, "invalid_request_error", param="speed")
    await insert_voice(database_url, client.user_id, name="Pieces", model=IN_PIECES)
    await said(client, voice="Pieces", speed=2.0)


async def test_instructions_and_whatever_else_is_accepted(client: Client, voice_id: UUID) -> None:
    await said(client, instructions="Whisper.", user="me", temperature=0.3, stream=True, extra_body={"a": 1})


# --- events -----------------------------------------------------------------------------------------------------------


def events_of(body: str) -> list[dict[str, Any]]:
    """The data lines; comments are passed over."""
    return [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("audio_format", ["mp3", "wav", "pcm"])
async def test_events_carry_the_same_audio(client: Client, voice_id: UUID, audio_format: str) -> None:
    response = await said(client, stream_format="sse", response_format=audio_format)
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events_of(response.text)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    heard = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    whole = await said(client, response_format=audio_format)
    if audio_format == "mp3":
        assert heard == whole.content
    else:
        assert heard[-100:] == whole.content[-100:]
    assert done == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 13, "output_tokens": 0, "total_tokens": 13},
    }


async def test_a_quiet_line_is_kept_alive_by_comments(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    plan = hold_after(simulator, 2)
    async with listening(client, stream_format="sse") as response:
        lines = response.aiter_lines()
        async for line in lines:
            if line.startswith(":"):
                break
        plan.release()
        rest = [line async for line in lines]
    assert "speech.audio.done" in "\n".join(rest)


async def test_another_stream_format_is_400(client: Client, voice_id: UUID) -> None:
    response = await say(client, stream_format="websocket")
    error_of(response, 400, "invalid_request_error", param="stream_format", says="must be one of: audio, sse.")


async def test_the_first_bytes_come_with_the_first_delta(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    for audio_format in ("mp3", "wav", "pcm"):
        plan = hold_after(simulator, 2)
        async with listening(client, response_format=audio_format) as response:
            first = await anext(response.aiter_raw())
            assert first
            if audio_format == "wav":
                with wave.open(io.BytesIO(first)) as opened:  # as one does who reads nothing but the first bytes
                    assert opened.getframerate() == 24_000
            plan.release()


# --- truncation -------------------------------------------------------------------------------------------------------


async def cut_off(client: Client, plan: Planned, **members: Any) -> tuple[bytes, Exception | None]:
    """What a client hears of a speech that goes on once its first byte was heard, and what its connection says."""
    heard = bytearray()
    async with listening(client, **members) as response:
        assert response.status_code == 200
        slices = response.aiter_raw()
        heard += await anext(slices)
        plan.release()
        try:
            async for part in slices:
                heard += part
        except httpx.RemoteProtocolError as exc:
            return bytes(heard), exc
    return bytes(heard), None


async def test_a_failure_after_the_first_byte_breaks_the_connection(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    """Whoever ignores the event would take a clean end for the whole."""
    for stream_format in ("audio", "sse"):
        plan = hold_after(simulator, 3, then={"do": "error"})
        heard, broken = await cut_off(client, plan, stream_format=stream_format)
        assert "incomplete chunked read" in str(broken)
        assert heard
        if stream_format == "sse":
            *deltas, error = events_of(heard.decode())
            assert {event["type"] for event in deltas} == {"speech.audio.delta"}
            assert error["type"] == "speech.audio.error"
            assert error["error"]["type"] == "server_error"
            assert is_a_sentence(error["error"]["message"])


async def test_a_failure_before_the_first_byte_is_an_error_that_nobody_repeats(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    """The text may have been paid for: a client library that repeats by itself is told not to."""
    for stream_format in ("audio", "sse"):
        simulator.behave("realtime", {"do": "error", "after_deltas": 0})
        response = await say(client, stream_format=stream_format)
        error_of(response, response.status_code, "server_error")
        assert response.status_code >= 500
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers


async def test_a_cancel_while_it_waits_is_an_error_too(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    plan = simulator.behave("realtime", {"do": "hold", "at": "text"})
    asking = asyncio.create_task(say(client))
    await plan.held()
    [entry] = await history(client)
    await client.http.delete(f"/api/generations/{entry['id']}")
    response = await asking
    assert (response.status_code, response.headers["x-should-retry"]) == (409, "false")
    plan.release()


# --- nothing is paid for twice ----------------------------------------------------------------------------------------

FIRST, AGAIN = {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}


async def test_a_retry_joins_the_speech_of_the_first(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    """While it is spoken, from its first byte on, and after it was stored."""
    plan = hold_after(simulator, 3)
    async with listening(client, headers=FIRST) as response:
        assert await anext(response.aiter_raw())
    again = asyncio.create_task(say(client, headers=AGAIN))
    plan.release()
    heard = await again
    assert heard.status_code == 200
    once_more = await said(client, headers={"x-stainless-retry-count": "2"})
    assert once_more.content == heard.content
    assert len(spoken(simulator)) == 1
    assert len(await history(client)) == 1


async def test_a_retry_joins_through_another_process(
    settings: Settings, client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    plan = hold_after(simulator, 3)
    async with running_gateway(settings) as neighbour, neighbour.client(client.user_id) as elsewhere:
        async with listening(client, headers=FIRST) as response:
            assert await anext(response.aiter_raw())
        async with listening(elsewhere, headers=AGAIN) as response:
            slices = response.aiter_raw()
            heard = await anext(slices)
            # Longer than a speech goes on that nobody follows.
            await asyncio.sleep(2 * settings.deadlines.unfollowed_seconds)
            plan.release()
            heard += b"".join([part async for part in slices])
        [entry] = await history(elsewhere)
        assert (entry["status"], await elsewhere.audio(entry["id"])) == ("completed", heard)
    assert len(spoken(simulator)) == 1


@pytest.mark.parametrize(
    ("headers", "members"),
    [(FIRST, {}), ({}, {}), (AGAIN, {"speed": 1.5}), (AGAIN, {"text": "Good morning."}),
     (AGAIN, {"response_format": "wav"})],
    ids=["not a retry", "a client that does not say", "another speed", "another text", "another format"],
)  # fmt: skip
async def test_what_is_no_retry_is_spoken_anew(
    client: Client, voice_id: UUID, simulator: Simulator, headers: dict[str, str], members: dict[str, Any]
) -> None:
    await said(client, headers=FIRST)
    await said(client, headers=headers, **members)
    assert len(spoken(simulator)) == 2


async def test_nobody_joins_somebody_else_s_speech_nor_one_that_failed_or_is_old(
    client: Client, gateway: Gateway, voice_id: UUID, database_url: str, simulator: Simulator, rows: Rows
) -> None:
    await said(client, headers=FIRST)
    async with gateway.client() as other:
        await insert_voice(database_url, other.user_id)
        await said(other, headers=AGAIN)
        assert len(await history(other)) == 1
    await rows.execute("UPDATE internal.attended SET followed_at = now() - interval '61 seconds'")
    await said(client, headers=AGAIN)
    assert len(await history(client)) == 2
    await rows.execute("DELETE FROM internal.attended")
    simulator.behave("realtime", {"do": "error", "after_deltas": 0})
    assert (await say(client, headers=FIRST)).status_code >= 500
    await said(client, headers=AGAIN)
    assert len(await history(client)) == 4


async def test_a_retry_of_what_was_deleted_is_spoken_anew(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    first = await said(client, headers=FIRST)
    await client.http.delete(f"/api/generations/{first.headers['x-utter-generation-id']}")
    again = await said(client, headers=AGAIN)
    assert again.content == first.content
    assert len(spoken(simulator)) == 2


async def test_an_idempotency_key_works_as_elsewhere(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    twins = await asyncio.gather(*(said(client, headers=headers) for _ in range(3)))
    assert len({twin.content for twin in twins}) == 1
    assert len(spoken(simulator)) == 1
    error_of(await say(client, "Another text.", headers=headers), 409, "invalid_request_error", code="conflict")
    error_of(await say(client, headers={"Idempotency-Key": "x" * 256}), 400, "invalid_request_error")


# --- waiting, and leaving ---------------------------------------------------------------------------------------------


async def test_who_would_wait_too_long_is_refused_and_nothing_is_left(
    settings: Settings, database_url: str, simulator: Simulator, rows: Rows
) -> None:
    """In the queue, where nobody takes it on."""
    async with running_gateway(impatient(settings)) as gateway, gateway.client() as client:
        await insert_voice(database_url, client.user_id)
        gateway.parts.queue.stop(SYNTHESIS)
        await wait_for(lambda: not gateway.parts.queue.up([SYNTHESIS]))
        for stream_format in ("audio", "sse"):
            response = await say(client, stream_format=stream_format)
            error_of(response, 503, "server_error", code="overloaded")
            assert int(response.headers["retry-after"]) > 0
            assert "x-should-retry" not in response.headers
        assert await counted(client.http, "queue") == 2
        assert await history(client) == []
    assert spoken(simulator) == []
    for table in ("internal.runs", "public.tasks WHERE deleted_at IS NULL"):
        assert await rows.fetchval(f"SELECT count(*) FROM {table}") == 0, table


async def test_the_pacer_s_queue_counts_as_waiting(settings: Settings, database_url: str, simulator: Simulator) -> None:
    """The second of two starts waits for a minute, on either lane; what has begun is not taken back."""
    slow = replace(impatient(settings), qwen_starts_per_minute=1)
    for model in (VC_REALTIME, IN_PIECES):
        async with running_gateway(slow) as gateway, gateway.client() as client:
            await insert_voice(database_url, client.user_id, model=model)
            simulator.behave("realtime", {"first_delta_seconds": 1.5})
            assert (await say(client)).status_code == 200
            before = len(simulator.calls)
            error_of(await say(client), 503, "server_error", code="overloaded")
            assert [call for call in simulator.calls[before:] if call.get("text")] == []
            assert len(await history(client)) == 1


async def test_a_speech_whose_client_hangs_up_is_cancelled(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    """Before and after its first byte, but not at once: a retry may come."""
    hold_after(simulator, 3, text_contains="begun")
    waiting = simulator.behave("realtime", {"do": "hold", "at": "text"}, text_contains="waiting")
    async with listening(client, "It has begun.") as response:
        assert await anext(response.aiter_raw())
    asking = asyncio.create_task(listen_until_cancelled(client, "It is waiting."))
    await waiting.held()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert [entry["status"] for entry in await history(client)] == ["processing", "processing"]

    async def both_cancelled() -> bool:
        return [entry["status"] for entry in await history(client)] == ["cancelled", "cancelled"]

    await wait_for(both_cancelled)
    await wait_for(lambda: all(call.get("ended") for call in spoken(simulator)))


async def listen_until_cancelled(client: Client, text: str) -> None:
    async with listening(client, text):
        pass


async def test_who_follows_elsewhere_keeps_it_alive(
    client: Client, voice_id: UUID, simulator: Simulator, settings: Settings, rows: Rows
) -> None:
    """The page in its native stream counts as somebody."""
    plan = hold_after(simulator, 3)
    async with listening(client) as response:
        assert await anext(response.aiter_raw())
        task_id = response.headers["x-utter-task-id"]
    task = await client.task(task_id)
    async with client.events(task["stream_url"]) as events:
        await asyncio.sleep(2 * settings.deadlines.unfollowed_seconds)
        plan.release()
        last = [event async for event in events][-1]
    assert last.data["status"] == "completed"


async def test_other_speeches_do_without_followers(
    client: Client, voice_id: UUID, simulator: Simulator, settings: Settings
) -> None:
    plan = hold_after(simulator, 3)
    answer = await client.generate(voice_id)
    await asyncio.sleep(2 * settings.deadlines.unfollowed_seconds)
    plan.release()
    assert (await client.ended(answer["task_id"]))["status"] == "completed"


async def test_after_an_outage_nothing_is_ended_before_everybody_could_say_so(
    settings: Settings, database_url: str, simulator: Simulator
) -> None:
    plan = hold_after(simulator, 3)
    async with (
        postgres_proxy(database_url) as door,
        running_gateway(with_limits(settings, database_url=door.url, **LEAVES_AT_ONCE)) as gateway,
        gateway.client() as client,
    ):
        await insert_voice(database_url, client.user_id)
        async with listening(client) as response:
            slices = response.aiter_raw()
            assert await anext(slices)
            door.shut()
            await asyncio.sleep(1.5 * settings.deadlines.unfollowed_seconds)
            door.open()
            await asyncio.sleep(0.75 * settings.deadlines.unfollowed_seconds)
            plan.release()
            assert b"".join([part async for part in slices])
        assert [entry["status"] for entry in await history(client)] == ["completed"]


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_every_error_under_v1_has_openai_s_shape(client: Client, gateway: Gateway) -> None:
    """Also those that no handler has seen."""
    async with httpx.AsyncClient(base_url=gateway.url) as anybody:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {new_key()}"}):
            for method, path in (
                ("POST", SPEECH),
                ("GET", "/v1/models"),
                ("GET", "/v1/models/x"),
                ("GET", "/v1/audio/voices"),
            ):
                response = await anybody.request(method, path, headers=headers)
                error_of(response, 401, "authentication_error", code="invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1", "/v1/", "/v1/nothing", "/v1/audio", "/v1/chat/completions"):
        error_of(await client.http.get(path), 404, "not_found_error", code="not_found")
    response = await client.http.get(SPEECH)
    error_of(response, 405, "invalid_request_error")
    assert response.headers["allow"] == "POST"
    large = await exchange(
        gateway.url,
        f"POST {SPEECH} HTTP/1.1\nHost: x\nAuthorization: Bearer {client.token}\nContent-Length: 9999999\n",
    )
    assert large.status == 413
    assert large.json()["error"]["type"] == "invalid_request_error"
    ours = await client.http.get("/v10/nothing")
    assert ours.json().keys() == {"detail", "category", "request_id"}


async def test_without_a_database_it_is_503_in_openai_s_shape(settings: Settings, database_url: str) -> None:
    async with (
        postgres_proxy(database_url) as door,
        running_gateway(replace(settings, database_url=door.url)) as gateway,
        gateway.client() as client,
    ):
        door.shut()
        response = await say(client)
        error_of(response, 503, "server_error")
        assert int(response.headers["retry-after"]) > 0


async def test_a_full_queue_is_503_with_retry_after(settings: Settings, database_url: str) -> None:
    async with running_gateway(replace(settings, queue_limit=0)) as gateway, gateway.client() as client:
        await insert_voice(database_url, client.user_id)
        response = await say(client)
        error_of(response, 503, "server_error", code="overloaded")
        assert int(response.headers["retry-after"]) > 0
        assert "x-should-retry" not in response.headers


# --- lists, keys, browsers, names ------------------------------------------------------------------------------------


async def test_the_voices_that_can_speak_are_listed(client: Client, database_url: str) -> None:
    ada = await insert_voice(database_url, client.user_id, name="Ada")
    bea = await insert_voice(database_url, client.user_id, name="Bea")
    await insert_voice(database_url, client.user_id, name="Of another provider", provider="modal")
    await client.http.patch(f"/api/voices/{ada}", json={"default": True})
    response = await client.http.get("/v1/audio/voices")
    assert response.json() == {
        "voices": [
            {"id": str(ada), "name": "Ada", "object": "voice", "language": "English", "default": True},
            {"id": str(bea), "name": "Bea", "object": "voice", "language": "English", "default": False},
        ]
    }


async def test_models_are_listed_in_openai_s_shape(client: Client) -> None:
    listed = (await client.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tts-1", "tts-1-hd", "gpt-4o-mini-tts", "utter"]
    for model in listed["data"]:
        assert model.keys() == {"id", "object", "created", "owned_by"}
        assert (await client.http.get(f"/v1/models/{model['id']}")).json() == model
    error_of(await client.http.get("/v1/models/gpt-5"), 404, "not_found_error", param="model")


async def test_a_key_opens_the_door(client: Client, voice_id: UUID) -> None:
    key = (await client.http.post("/api/keys", json={"name": "x"})).json()["key"]
    async with httpx.AsyncClient(base_url=client.url, headers={"Authorization": f"Bearer {key}"}) as program:
        response = await program.post(SPEECH, json={"input": "Good evening."})
        assert (response.status_code, response.headers["content-type"]) == (200, "audio/mpeg")
        for path in ("/v1/models", "/v1/audio/voices"):
            assert (await program.get(path)).status_code == 200


async def test_browsers_of_allowed_pages_may_come_in(settings: Settings, database_url: str) -> None:
    page = "https://app.example"
    async with running_gateway(replace(settings, cors_allow_origins=(page,))) as gateway, gateway.client() as client:
        await insert_voice(database_url, client.user_id)
        preflight = await client.http.options(
            SPEECH,
            headers={
                "Origin": page,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-stainless-os",
            },
        )
        allowed = {name.strip() for name in preflight.headers["access-control-allow-headers"].split(",")}
        assert {"authorization", "content-type", "x-stainless-lang", "x-stainless-os"} <= allowed
        response = await say(client, headers={"Origin": page})
        assert response.headers["access-control-allow-origin"] == page
        refused = await say(client, "", headers={"Origin": page})
        assert refused.headers["access-control-allow-origin"] == page


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        ("OpenAI/Python 2.8.1", "OpenAI/Python 2.8.1"),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)", "Mozilla/5.0 AppleWebKit/537.36"),
        ("curl/8.5.0", "curl/8.5.0"),
        ("", None),
        ("  ", None),
        ("x" * 500, "x" * 60),
        ("a\x07b", "ab"),
    ],
)
def test_a_client_s_name_is_the_short_of_what_it_says(user_agent: str, name: str | None) -> None:
    assert client_name(user_agent) == name
