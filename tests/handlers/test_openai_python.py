"""OpenAI's own library for Python, unmodified, at the door: what its users type, and what they get."""

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import openai
import pytest

from server.audio import mp3_duration_seconds
from server.dev.simulator import Simulator
from tests.end_to_end.hearing import hold_after
from tests.gateway import Client, Gateway

TEXT = "Good evening, and welcome."


@pytest.fixture
async def key(client: Client) -> str:
    """A key of that user."""
    made: str = (await client.http.post("/api/keys", json={"name": "A program"})).json()["key"]
    return made


@pytest.fixture
async def sdk(gateway: Gateway, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key) as library:
        yield library


def spoken(simulator: Simulator) -> int:
    return sum(call["surface"] == "realtime" for call in simulator.calls)


def create(sdk: openai.AsyncOpenAI, **members: Any) -> Any:
    wanted: dict[str, Any] = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": TEXT, **members}
    return sdk.audio.speech.create(**wanted)


async def test_it_speaks(sdk: openai.AsyncOpenAI, voice_id: UUID, client: Client) -> None:
    response = await create(sdk, instructions="Warmly.", speed=1.1)
    assert mp3_duration_seconds(response.content) > 0.5
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    assert (entry["text"], entry["client"]) == (TEXT, f"AsyncOpenAI/Python {openai.__version__}")


async def test_it_speaks_without_asyncio(gateway: Gateway, key: str, voice_id: UUID, tmp_path: Path) -> None:
    """As a script does, into a file."""

    def script() -> bytes:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key) as library:
            file = tmp_path / "speech.wav"
            with library.audio.speech.with_streaming_response.create(
                model="tts-1", voice="Ada", input=TEXT, response_format="wav"
            ) as response:
                response.stream_to_file(file)
            return file.read_bytes()

    with wave.open(io.BytesIO(await asyncio.to_thread(script))) as opened:
        assert (opened.getframerate(), opened.getnchannels(), opened.getsampwidth()) == (24_000, 1, 2)


async def test_it_streams_to_a_file_from_the_first_delta_on(
    sdk: openai.AsyncOpenAI, voice_id: UUID, simulator: Simulator, tmp_path: Path
) -> None:
    plan = hold_after(simulator, 2)
    async with sdk.audio.speech.with_streaming_response.create(
        model="tts-1", voice="ada", input=TEXT, response_format="pcm"
    ) as response:
        assert response.headers["content-type"] == "audio/pcm"
        slices = response.iter_bytes(512)
        first = await anext(slices)
        plan.release()
        (tmp_path / "speech.pcm").write_bytes(first + b"".join([part async for part in slices]))
    assert (tmp_path / "speech.pcm").stat().st_size > 5000


async def test_its_raw_response_has_our_headers(sdk: openai.AsyncOpenAI, voice_id: UUID) -> None:
    response = await sdk.audio.speech.with_raw_response.create(model="tts-1", voice=str(voice_id), input=TEXT)
    assert response.headers["content-type"] == "audio/mpeg"
    assert UUID(response.headers["x-utter-generation-id"])


async def test_its_events_are_read(sdk: openai.AsyncOpenAI, voice_id: UUID) -> None:
    lines = []
    async with sdk.audio.speech.with_streaming_response.create(
        model="tts-1", voice="ada", input=TEXT, stream_format="sse"
    ) as response:
        lines = [line async for line in response.iter_lines() if line.startswith("data: ")]
    assert '"speech.audio.delta"' in lines[0]
    assert '"speech.audio.done"' in lines[-1]


async def test_a_wrong_key_and_a_wrong_voice_are_its_own_errors(
    gateway: Gateway, sdk: openai.AsyncOpenAI, voice_id: UUID, key: str, simulator: Simulator
) -> None:
    for wrong in ("utr_nothing", key[:-1] + ("a" if key[-1] != "a" else "b"), "sk-of-somebody-else"):
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=wrong) as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                await create(stranger)
            assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError, match="Yours are: Ada") as unknown:
        await create(sdk, voice="Zoe")
    assert (unknown.value.param, unknown.value.type) == ("voice", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("gpt-5")
    assert spoken(simulator) == 0


async def test_its_models_are_ours(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["tts-1", "tts-1-hd", "gpt-4o-mini-tts", "utter"]


async def test_a_failure_is_not_tried_again(sdk: openai.AsyncOpenAI, voice_id: UUID, simulator: Simulator) -> None:
    """The library tries twice more by itself after such a status; the text may have been paid for."""
    simulator.behave("realtime", {"do": "error", "after_deltas": 0}, times=0)
    with pytest.raises(openai.APIStatusError) as failed:
        await create(sdk)
    assert failed.value.status_code >= 500
    assert spoken(simulator) == 1


async def test_a_time_out_is_retried_and_paid_for_once(
    sdk: openai.AsyncOpenAI, voice_id: UUID, simulator: Simulator, client: Client
) -> None:
    """Its own time-out, with its own retry: the second request joins the speech of the first."""
    plan = simulator.behave("realtime", {"do": "hold", "at": "text"})
    asking = asyncio.create_task(create(sdk.with_options(timeout=1.5, max_retries=5)))
    await plan.held()
    await asyncio.sleep(2.0)
    plan.release()
    response = await asking
    assert mp3_duration_seconds(response.content) > 0.5
    assert spoken(simulator) == 1
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    assert await client.audio(entry["id"]) == response.content


async def test_a_broken_connection_is_retried_and_paid_for_once(
    client: Client, key: str, voice_id: UUID, simulator: Simulator
) -> None:
    """Something between the two breaks off before the first byte has come."""
    plan = simulator.behave("realtime", {"do": "hold", "at": "text"})
    broken = asyncio.Event()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = client.url.removeprefix("http://").split(":")
        theirs, ours = await asyncio.open_connection(host, int(port))
        pumps = [asyncio.create_task(pump(reader, ours)), asyncio.create_task(pump(theirs, writer))]
        if not broken.is_set():
            await plan.held()
            broken.set()
            for pumping in pumps:
                pumping.cancel()
            plan.release()
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pumping in pumps:
            pumping.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for side in (writer, ours):
            side.transport.abort()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()

    server = await asyncio.start_server(between, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key) as library:
            response = await create(library)
    finally:
        server.close()
    assert broken.is_set()
    assert mp3_duration_seconds(response.content) > 0.5
    assert spoken(simulator) == 1
