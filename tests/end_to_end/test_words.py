"""Words with their times: kept, shown as captions, and told beside the deltas to those who ask."""

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from server.dev.simulator import Simulator
from tests.end_to_end.conftest import QWEN_AUDIO
from tests.gateway import Client, Gateway, insert_voice

TEXT = "Good morning. This is a test. And a third sentence."
WORDS = ["Good", "morning", "This", "is", "a", "test", "And", "a", "third", "sentence"]


@pytest.fixture
async def voice_id(database_url: str, client: Client) -> UUID:
    return await insert_voice(database_url, client.user_id, model=QWEN_AUDIO)


async def told(client: Client, url: str) -> tuple[list[dict[str, Any]], bytes, list[str | None]]:
    """The words that a stream tells, its audio, and the ids of its words' events."""
    import base64

    words: list[dict[str, Any]] = []
    audio, ids = b"", []
    async with client.events(url) as events:
        async for event in events:
            if event.name == "words":
                words += event.data["words"]
                ids.append(event.id)
            if event.name == "response.audio.delta":
                audio += base64.b64decode(event.data["delta"])
    return words, audio, ids


@pytest.mark.parametrize(
    "behaviour", [{}, {"word_times": "sentence"}, {"words": "finished"}], ids=["task", "sentence", "at_the_end"]
)
async def test_words_are_told_beside_the_deltas_and_kept_as_captions(
    client: Client, voice_id: UUID, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    simulator.behave("realtime", behaviour)
    task = await client.generate(voice_id, TEXT)
    words, audio, ids = await told(client, f"{task['stream_url']}&words=1")
    assert [word["text"] for word in words] == WORDS
    starts = [word["start_ms"] for word in words]
    assert starts == sorted(starts)
    assert 2000 < words[-1]["end_ms"] < 6000
    assert set(ids) == {None}
    assert audio == await client.audio(task["generation_id"])
    # Long after, and to whoever comes back, all of them again.
    again, same, _ = await told(client, f"{task['stream_url']}&words=1")
    assert (again, same) == (words, audio)
    assert await told(client, task["stream_url"]) == ([], audio, [])
    kept = await client.http.get(f"/api/generations/{task['generation_id']}/words")
    assert kept.json() == {"words": words}

    vtt = await client.http.get(f"/api/generations/{task['generation_id']}/captions.vtt")
    assert (vtt.status_code, vtt.headers["content-type"]) == (200, "text/vtt; charset=utf-8")
    assert vtt.text.startswith("WEBVTT\n\n00:00:00.000 --> ")
    srt = await client.http.get(f"/api/generations/{task['generation_id']}/captions.srt")
    assert srt.headers["content-type"] == "application/x-subrip; charset=utf-8"
    assert srt.text.startswith("1\n00:00:00,000 --> ")


async def test_where_nobody_said_when_there_are_no_captions(
    client: Client, database_url: str, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"words": "none"})
    older = await insert_voice(database_url, client.user_id)
    for voice in (voice_id, older):
        task = await client.generate(voice, TEXT)
        assert (await told(client, f"{task['stream_url']}&words=1"))[0] == []
        for form in ("vtt", "srt"):
            answer = await client.http.get(f"/api/generations/{task['generation_id']}/captions.{form}")
            assert answer.status_code == 404
        kept = await client.http.get(f"/api/generations/{task['generation_id']}/words")
        assert (kept.status_code, kept.json()) == (200, {"words": []})


async def test_captions_are_their_users_own_and_go_with_the_generation(
    gateway: Gateway, client: Client, voice_id: UUID, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    task = await client.generate(voice_id, TEXT)
    await client.ended(task["task_id"])
    address = f"/api/generations/{task['generation_id']}/captions.vtt"
    async with gateway.client() as stranger:
        for path in (address, address.replace("captions.vtt", "words")):
            assert (await stranger.http.get(path)).status_code == 404
    assert await rows.fetchval("SELECT count(*) FROM internal.words") > 0
    assert (await client.http.delete(f"/api/generations/{task['generation_id']}")).status_code == 200
    assert await rows.fetchval("SELECT count(*) FROM internal.words") == 0
    assert (await client.http.get(address)).status_code == 404
