"""Rows that somebody wrote past the server and that name another user's object: nothing of it is heard, sent or gone.

Where the database publishes the schema `public` over REST, any signed-in person can write rows of their own.
"""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from server.dev.simulator import Simulator
from server.objects import own_key
from server.settings import Settings
from server.storage import Bucket
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.modal import in_modal_mode
from tests.support import wait_for
from tests.voices import recording

Rows = Any


@pytest.fixture
async def victim(gateway: Gateway) -> AsyncIterator[Client]:
    """Another user of the same server."""
    async with gateway.client() as other:
        yield other


async def stored(gateway: Gateway, bucket: Bucket, key: str) -> str:
    content = recording()
    await gateway.parts.storage.put(bucket, key, content, content_type="audio/wav", size=len(content))
    return key


def disguises(victim: UUID, intruder: UUID, rest: str) -> list[str]:
    """Keys of the victim's object, as an intruder might write them."""
    return [
        f"{victim}/{rest}",
        f"{str(victim).upper()}/{rest}",
        f"{intruder}/../{victim}/{rest}",
        f"{intruder}/./../{victim}/{rest}",
        f"./{victim}/{rest}",
        f"/{victim}/{rest}",
        f"{intruder}//../{victim}/{rest}",
        f"{intruder}\\..\\{victim}\\{rest}",
        f"{intruder}{victim}/{rest}",
    ]


async def plant_voice(rows: Rows, database_url: str, user_id: UUID, key: str, *, provider: str = "qwen") -> UUID:
    voice_id = await insert_voice(database_url, user_id, provider=provider)
    await rows.execute("UPDATE public.voices SET reference_object_key = $2 WHERE id = $1", voice_id, key)
    return voice_id


async def plant_generation(rows: Rows, user_id: UUID, key: str | None, **columns: Any) -> UUID:
    generation_id = uuid4()
    await rows.execute(
        """INSERT INTO public.generations (id, user_id, voice_id, text, status, tts_provider, output_format,
                  audio_object_key, completed_at)
           VALUES ($1, $2, $3, 'Mine.', $4, $5, 'wav', $6, now())""",
        generation_id,
        user_id,
        columns.get("voice_id"),
        columns.get("status", "completed"),
        columns.get("provider", "modal"),
        key,
    )
    return generation_id


async def plant_task(rows: Rows, user_id: UUID, **columns: Any) -> UUID:
    task_id = uuid4()
    await rows.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, generation_id, provider, result)
           VALUES ($1, $2, $3, $4, $5, 'qwen', $6)""",
        task_id,
        user_id,
        columns.get("type", "generate"),
        columns.get("status", "completed"),
        columns.get("generation_id"),
        columns.get("result"),
    )
    return task_id


async def test_a_planted_reference_is_not_signed(
    gateway: Gateway, client: Client, victim: Client, rows: Rows, database_url: str
) -> None:
    rest = f"{uuid4()}/reference.wav"
    await stored(gateway, Bucket.REFERENCES, f"{victim.user_id}/{rest}")
    for key in disguises(victim.user_id, client.user_id, rest):
        voice_id = await plant_voice(rows, database_url, client.user_id, key)
        problem_of(await client.http.get(f"/api/voices/{voice_id}/preview"), 404, "not_found")


async def test_a_reference_of_ones_own_is_signed(
    gateway: Gateway, client: Client, rows: Rows, database_url: str
) -> None:
    key = await stored(gateway, Bucket.REFERENCES, f"{client.user_id}/{uuid4()}/reference.wav")
    voice_id = await plant_voice(rows, database_url, client.user_id, key)
    assert (await client.http.get(f"/api/voices/{voice_id}/preview")).status_code == 302


async def test_a_planted_reference_is_not_sent_to_the_provider(
    settings: Settings, simulator: Simulator, rows: Rows, database_url: str
) -> None:
    async with running_gateway(in_modal_mode(settings)) as gateway, gateway.client() as client:
        victim, rest = uuid4(), f"{uuid4()}/reference.wav"
        await stored(gateway, Bucket.REFERENCES, f"{victim}/{rest}")
        for key in disguises(victim, client.user_id, rest):
            voice_id = await plant_voice(rows, database_url, client.user_id, key, provider="modal")
            body = {"voice_id": str(voice_id), "text": "Good evening."}
            problem_of(await client.http.post("/api/generate", json=body), 404, "not_found")
    assert not [call for call in simulator.calls if call["action"] == "submit"]


async def test_planted_audio_is_not_signed(gateway: Gateway, client: Client, victim: Client, rows: Rows) -> None:
    rest = f"{uuid4()}.wav"
    await stored(gateway, Bucket.GENERATIONS, f"{victim.user_id}/{rest}")
    for key in disguises(victim.user_id, client.user_id, rest):
        generation_id = await plant_generation(rows, client.user_id, key, provider="qwen")
        problem_of(await client.http.get(f"/api/generations/{generation_id}/audio"), 404, "not_found")
        task_id = await plant_task(rows, client.user_id, generation_id=generation_id)
        raw = await client.http.get("/api/generate/stream", params={"task_id": str(task_id), "as": "audio"})
        problem_of(raw, 404, "not_found")
        async with client.http.stream(
            "GET", "/api/generate/stream", params={"task_id": str(task_id), "as": "events"}
        ) as events:
            told = b""
            try:
                async for part in events.aiter_bytes():
                    told += part
            except httpx.HTTPError:
                pass  # broken off is fine as well, as long as nothing is heard
        assert b"response.audio.delta" not in told


async def test_a_planted_preview_is_neither_signed_nor_saved(
    gateway: Gateway, client: Client, victim: Client, rows: Rows
) -> None:
    rest = f"preview_{uuid4()}.wav"
    await stored(gateway, Bucket.GENERATIONS, f"{victim.user_id}/{rest}")
    for key in disguises(victim.user_id, client.user_id, rest):
        task_id = await plant_task(rows, client.user_id, type="design_preview", result={"object_key": key})
        answer = (await client.http.get(f"/api/tasks/{task_id}")).json()
        assert str(victim.user_id) not in str(answer).lower()
        assert "audio_url" not in (answer.get("result") or {})


async def test_a_planted_preview_is_not_saved_as_a_voice(settings: Settings, rows: Rows) -> None:
    async with running_gateway(in_modal_mode(settings)) as gateway, gateway.client() as client:
        victim = uuid4()
        key = await stored(gateway, Bucket.GENERATIONS, f"{victim}/preview_{uuid4()}.wav")
        task_id = await plant_task(rows, client.user_id, type="design_preview", result={"object_key": key})
        body = {"name": "Mine", "text": "Hello.", "language": "English", "instruct": "Warm.", "task_id": str(task_id)}
        saved = await client.http.post("/api/voices/design", json=body)
        assert saved.status_code in (404, 409), saved.text
        assert await rows.fetchval("SELECT count(*) FROM public.voices WHERE user_id = $1", client.user_id) == 0


async def test_deleting_a_planted_generation_leaves_the_others_audio(
    gateway: Gateway, client: Client, victim: Client, rows: Rows
) -> None:
    rest = f"{uuid4()}.wav"
    key = await stored(gateway, Bucket.GENERATIONS, f"{victim.user_id}/{rest}")
    for planted in disguises(victim.user_id, client.user_id, rest):
        generation_id = await plant_generation(rows, client.user_id, planted)
        assert (await client.http.delete(f"/api/generations/{generation_id}")).status_code == 200
    assert await rows.fetchval("SELECT count(*) FROM internal.removals") == 0
    assert await gateway.parts.storage.head(Bucket.GENERATIONS, key) is not None


async def test_a_row_that_names_anothers_audio_does_not_keep_it(
    gateway: Gateway, client: Client, victim: Client, rows: Rows
) -> None:
    """Whoever deletes a recording of their own is rid of it, whatever others have written."""
    generation_id = uuid4()
    key = await stored(gateway, Bucket.GENERATIONS, f"{victim.user_id}/{generation_id}.wav")
    own = await plant_generation(rows, victim.user_id, key)
    await plant_generation(rows, client.user_id, key)
    assert (await victim.http.delete(f"/api/generations/{own}")).status_code == 200

    async def gone() -> bool:
        return await gateway.parts.storage.head(Bucket.GENERATIONS, key) is None

    await wait_for(gone)


async def test_a_task_sees_no_generation_of_another_user(client: Client, victim: Client, rows: Rows) -> None:
    key = f"{victim.user_id}/{uuid4()}.wav"
    generation_id = await plant_generation(rows, victim.user_id, key, status="processing")
    task_id = await plant_task(rows, client.user_id, status="processing", generation_id=generation_id)
    answer = (await client.http.get(f"/api/tasks/{task_id}")).json()
    assert answer.get("audio") is None
    cancelled = await client.http.post(f"/api/tasks/{task_id}/cancel")
    assert cancelled.json()["cancelled"] is True
    assert await rows.fetchval("SELECT status FROM public.generations WHERE id = $1", generation_id) == "processing"


async def test_a_generation_does_not_tell_the_name_of_anothers_voice(
    client: Client, victim: Client, rows: Rows, database_url: str
) -> None:
    voice_id = await insert_voice(database_url, victim.user_id, name="A secret name")
    generation_id = await plant_generation(rows, client.user_id, None, voice_id=voice_id)
    assert "A secret name" not in (await client.http.get("/api/generations")).text
    problem_of(await client.http.post(f"/api/generations/{generation_id}/regenerate"), 400, "validation")


def test_a_key_is_ones_own_letter_by_letter() -> None:
    me, you = UUID("abcdef00-0000-4000-8000-00000000000a"), uuid4()
    assert own_key(me, f"{me}/a/reference.wav") == f"{me}/a/reference.wav"
    for key in (
        *disguises(you, me, "a.wav"),
        f"{me}/../{you}/a.wav",
        f"{str(me).upper()}/a.wav",
        f"{me}",
        f"{me}/",
        "",
        None,
        7,
        f"{me}/a\x00.wav",
    ):
        assert own_key(me, key) is None
