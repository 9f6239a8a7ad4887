"""A speech in the format that was asked for, on every lane: heard, stored and measured as that."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.audio import Mp3Encoder, mp3_duration_seconds, parse_wav
from server.dev.simulator import Simulator
from server.settings import Settings
from tests.end_to_end.hearing import Ears
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.modal import in_modal_mode, insert_modal_voice

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
IN_PIECES = "qwen3-tts-vc-2026-01-22"
SECOND = "And here begins the second piece."
LONG = "This is the first piece. " * 23 + SECOND + " It is spoken after the first." * 3


@pytest.fixture
async def piecemeal(database_url: str, client: Client) -> UUID:
    """A voice of that user that speaks in pieces, which its provider hands out as WAV."""
    return await insert_voice(database_url, client.user_id, model=IN_PIECES)


@pytest.fixture
async def ears(gateway: Gateway) -> AsyncIterator[Ears]:
    """Somebody without a token at the server."""
    async with Ears(gateway.url) as anybody:
        yield anybody


def as_mp3(wav: bytes) -> bytes:
    """What one encoder makes of a whole file."""
    parsed = parse_wav(wav)
    encoder = Mp3Encoder(parsed.sample_rate_hz)
    return encoder.encode(bytes(parsed.samples)) + encoder.flush()


async def check_file(client: Client, answer: dict[str, Any], audio_format: str) -> bytes:
    """The stored file, which must be what the task says of it."""
    task = await client.ended(answer["task_id"])
    assert task["status"] == "completed", task
    stored = await client.audio(answer["generation_id"])
    mime, header = {"mp3": ("audio/mpeg", 0), "wav": ("audio/wav", 44)}[audio_format]
    audio = task["audio"]
    assert (audio["format"], audio["mime"], audio["header_bytes"]) == (audio_format, mime, header)
    assert len(stored) == header + audio["bytes"]
    if audio_format == "mp3":
        assert audio["seconds"] == pytest.approx(mp3_duration_seconds(stored))
    else:
        assert audio["seconds"] == pytest.approx(len(parse_wav(stored).samples) / 2 / audio["sample_rate"])
    [entry] = [
        entry
        for entry in (await client.http.get("/api/generations")).json()["generations"]
        if entry["id"] == answer["generation_id"]
    ]
    assert (entry["output_format"], entry["duration_seconds"]) == (audio_format, audio["seconds"])
    return stored


@pytest.mark.parametrize("audio_format", ["mp3", "wav"])
async def test_a_realtime_voice_speaks_what_was_asked_for(
    client: Client, voice_id: UUID, simulator: Simulator, ears: Ears, audio_format: str
) -> None:
    """The provider makes it itself, so nothing is encoded here."""
    answer = await client.generate(voice_id, format=audio_format)
    heard = await ears.hear(answer["stream_url"])
    stored = await check_file(client, answer, audio_format)
    assert stored[-len(heard.audio) :] == heard.audio
    [call] = [call for call in simulator.calls if call["surface"] == "realtime"]
    assert call["format"] == {"mp3": "mp3", "wav": "pcm"}[audio_format]


async def test_a_voice_in_pieces_is_heard_as_one_mp3_without_a_seam(
    client: Client, piecemeal: UUID, simulator: Simulator, ears: Ears
) -> None:
    """Byte for byte what one encoder makes of all samples: a new one per piece would leave a gap between two."""
    plain = await client.generate(piecemeal, LONG)
    wav = await check_file(client, plain, "wav")
    answer = await client.generate(piecemeal, LONG, format="mp3")
    heard = await ears.hear(answer["stream_url"])
    stored = await check_file(client, answer, "mp3")
    assert stored == heard.audio == as_mp3(wav)
    assert mp3_duration_seconds(stored) == pytest.approx(len(parse_wav(wav).samples) / 2 / 24_000, abs=0.1)
    assert len([call for call in simulator.calls if call["surface"] == "http"]) == 4
    for offset in (1, len(stored) // 2, len(stored) - 1):
        rest = await ears.hear(f"{answer['stream_url']}&offset={offset}", start=offset)
        assert rest.audio == stored[offset:]


async def test_a_piece_is_heard_as_mp3_before_the_next_one_is_bought(
    client: Client, piecemeal: UUID, simulator: Simulator, ears: Ears
) -> None:
    plan = simulator.behave("http", {"do": "hold"}, text_contains=SECOND)
    answer = await client.generate(piecemeal, LONG, format="mp3")
    await plan.held()
    [first] = [call for call in simulator.calls if call["surface"] == "http" and SECOND not in call["text"]]
    spoken_seconds = first["audio_bytes"] / 2 / 24_000
    until = int((spoken_seconds - 0.2) * 64_000 / 8)  # all but the few frames that the encoder holds
    heard = await ears.hear(answer["stream_url"], until=until)
    assert mp3_duration_seconds(heard.audio) > spoken_seconds - 0.3
    following = asyncio.create_task(
        ears.hear(answer["stream_url"], {"Last-Event-ID": str(until // 2)}, start=until // 2)
    )
    plan.release()
    rest = await following
    assert heard.audio[: until // 2] + rest.audio == await check_file(client, answer, "mp3")


@pytest.mark.parametrize("audio_format", [None, "wav", "mp3"])
async def test_a_job_api_s_speech_is_stored_as_what_was_asked_for(
    settings: Settings, rows: Rows, audio_format: str | None
) -> None:
    async with running_gateway(in_modal_mode(settings, modal_watch_seconds=0.1)) as gateway, gateway.client() as client:
        voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id)
        answer = await client.generate(voice_id, format=audio_format)
        stored = await check_file(client, answer, audio_format or "wav")
        plain = await client.generate(voice_id, format="wav")
        wav = await check_file(client, plain, "wav")
    assert stored == (as_mp3(wav) if audio_format == "mp3" else wav)


async def test_the_stream_of_one_s_own_post_takes_a_format_too(client: Client, piecemeal: UUID) -> None:
    body = {"voice_id": str(piecemeal), "text": "Good evening.", "format": "mp3"}
    heard = await client.http.post("/api/generate/stream", json=body, headers={"Accept": "audio/*"})
    assert heard.headers["content-type"] == "audio/mpeg"
    assert await client.audio(heard.headers["x-utter-generation-id"]) == heard.content
    assert mp3_duration_seconds(heard.content) > 0.3


async def test_speed_pitch_and_volume_reach_the_provider_and_are_kept(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """Regenerate repeats them, together with the format; what nobody asked for is not made up."""
    asked: dict[str, Any] = {"speed": 1.25, "pitch": 0.9, "volume": 70, "format": "wav"}
    answer = await client.generate(voice_id, **asked)
    await client.ended(answer["task_id"])
    [call] = [call for call in simulator.calls if call["surface"] == "realtime"]
    assert (call["speech_rate"], call["pitch_rate"], call["volume"]) == (1.25, 0.9, 70)
    again = (await client.http.post(f"/api/generations/{answer['generation_id']}/regenerate")).json()
    assert {name: again[name] for name in asked} == asked
    query = parse_qs(urlsplit(again["redirect_url"]).query)
    assert {name: query[name] for name in asked} == {name: [str(value)] for name, value in asked.items()}
    plain = await client.generate(voice_id, speed=None, format=None)
    await client.ended(plain["task_id"])
    again = (await client.http.post(f"/api/generations/{plain['generation_id']}/regenerate")).json()
    assert again.keys() == {"voice_id", "text", "language", "redirect_url"}
    # Rows are everybody's: what another writer left there says nothing, and breaks nothing.
    await rows.execute("""UPDATE public.generations SET provider_metadata = '{"asked": {"speed": "fast"}}'""")
    again = (await client.http.post(f"/api/generations/{plain['generation_id']}/regenerate")).json()
    assert again.keys() == {"voice_id", "text", "language", "redirect_url"}


@pytest.mark.parametrize("name", ["speed", "pitch", "volume"])
async def test_what_a_lane_cannot_vary_is_400_with_words(
    client: Client, piecemeal: UUID, rows: Rows, name: str
) -> None:
    body = {"voice_id": str(piecemeal), "text": "Good evening.", name: 1}
    for path in ("/api/generate", "/api/generate/stream"):
        problem_of(await client.http.post(path, json=body), 400, "validation", says=f"cannot vary its {name}")
    assert await rows.fetchval("SELECT count(*) FROM public.tasks") == 0


@pytest.mark.parametrize(
    "member",
    [{"speed": 0.49}, {"speed": 2.01}, {"speed": "1"}, {"pitch": 0}, {"volume": 101}, {"volume": -1}, {"volume": 1.5},
     {"format": "ogg"}, {"format": "MP3"}, {"format": 3}],
)  # fmt: skip
async def test_what_is_out_of_bounds_is_400_and_names_the_member(
    client: Client, voice_id: UUID, member: dict[str, Any]
) -> None:
    body = {"voice_id": str(voice_id), "text": "Good evening.", **member}
    response = await client.http.post("/api/generate", json=body)
    message = problem_of(response, 400, "validation", says=next(iter(member)))
    if isinstance(member.get("format"), str):
        assert message.endswith("must be one of: mp3, wav.")


async def test_the_same_key_with_another_format_is_another_request(client: Client, voice_id: UUID) -> None:
    async def post(**members: Any) -> int:
        body = {"voice_id": str(voice_id), "text": "Good evening.", **members}
        return (await client.http.post("/api/generate", json=body, headers={"Idempotency-Key": key})).status_code

    key = uuid4().hex
    assert [await post(), await post(), await post(format="wav")] == [200, 200, 409]
