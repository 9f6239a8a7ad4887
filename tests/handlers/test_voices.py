"""GET /api/voices: the library."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.gateway import Client, Gateway, insert_voice
from tests.handlers.wire import problem_of

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def listed(client: Client, **query: Any) -> list[dict[str, Any]]:
    response = await client.http.get("/api/voices", params=query)
    assert response.status_code == 200, response.text
    voices: list[dict[str, Any]] = response.json()["voices"]
    return voices


async def insert_voices(rows: Rows, user_id: UUID, *names: str, source: str = "uploaded") -> None:
    """Voices of these names, each a minute older than the one before."""
    for age, name in enumerate(names):
        await rows.execute(
            """INSERT INTO public.voices (user_id, name, source, tts_provider, created_at)
               VALUES ($1, $2, $3, 'qwen', $4)""",
            user_id,
            name,
            source,
            datetime(2026, 1, 1, tzinfo=UTC) - timedelta(minutes=age),
        )


async def test_a_voice_has_the_members_of_the_contract(client: Client, voice_id: UUID) -> None:
    (voice,) = await listed(client)
    assert voice.pop("created_at").endswith("Z")
    assert voice.pop("incompatible_reason") is None
    assert voice == {
        "id": str(voice_id),
        "name": "Ada",
        "reference_transcript": "What the recording says.",
        "language": "English",
        "source": "uploaded",
        "description": None,
        "consent": None,
        "tts_provider": "qwen",
        "provider_voice_id": "qwen-tts-vc-ada-voice-20260101000000000-0001",
        "provider_target_model": "qwen3-tts-vc-realtime-2026-01-15",
        "provider_voice_kind": "vc",
        "compatible": True,
        "streamable": True,
        "varies": ["speed", "pitch", "volume"],
        "default": False,
    }


async def change(client: Client, voice_id: object, **members: Any) -> dict[str, Any]:
    response = await client.http.patch(f"/api/voices/{voice_id}", json=members)
    assert response.status_code == 200, response.text
    voice: dict[str, Any] = response.json()
    return voice


async def test_a_voice_is_renamed_and_answered_as_it_is_listed(client: Client, voice_id: UUID) -> None:
    changed = await change(client, voice_id, name="  Ada, evenings ", id="ignored")
    assert changed["name"] == "Ada, evenings"
    assert await listed(client) == [changed]
    assert await change(client, voice_id) == changed, "nothing said, nothing changed"


async def test_one_voice_a_person_is_the_default(client: Client, gateway: Gateway, database_url: str) -> None:
    """Marking another takes the mark from the first, also when both are marked at once; somebody else's stays."""
    mine = [await insert_voice(database_url, client.user_id, name=name) for name in ("Ada", "Bea")]
    assert [voice["default"] for voice in await listed(client)] == [False, False]
    async with gateway.client() as other:
        theirs = await insert_voice(database_url, other.user_id)
        assert (await change(other, theirs, default=True))["default"] is True
        assert (await change(client, mine[0], default=True))["default"] is True
        assert (await change(client, mine[1], default=True, name="Bea 2"))["default"] is True
        assert {voice["name"]: voice["default"] for voice in await listed(client)} == {"Ada": False, "Bea 2": True}
        assert (await change(client, mine[0], default=False))["default"] is False
        assert {voice["name"]: voice["default"] for voice in await listed(client)} == {"Ada": False, "Bea 2": True}
        await asyncio.gather(*(change(client, voice, default=True) for voice in mine * 5))
        assert sum(voice["default"] for voice in await listed(client)) == 1
        assert (await listed(other))[0]["default"] is True
    for voice in mine:
        await change(client, voice, default=False)
    assert sum(voice["default"] for voice in await listed(client)) == 0


async def test_a_voice_that_is_not_there_or_not_ones_own_is_not_changed(
    client: Client, gateway: Gateway, voice_id: UUID, rows: Rows
) -> None:
    async with gateway.client() as other:
        answer = await other.http.patch(f"/api/voices/{voice_id}", json={"name": "Mine now", "default": True})
        problem_of(answer, 404, "not_found")
    assert await rows.fetchval("SELECT count(*) FROM internal.default_voices") == 0
    assert (await listed(client))[0]["name"] == "Ada"
    await change(client, voice_id, default=True)
    await client.http.delete(f"/api/voices/{voice_id}")
    problem_of(await client.http.patch(f"/api/voices/{voice_id}", json={"name": "x"}), 404, "not_found")
    problem_of(await client.http.patch("/api/voices/x", json={"name": "x"}), 400, "validation")


@pytest.mark.parametrize(
    "body", [{"name": ""}, {"name": "  "}, {"name": "x" * 101}, {"name": None}, {"name": "\u200b"}, {"default": "yes"}]
)
async def test_a_name_that_is_none_changes_nothing(client: Client, voice_id: UUID, body: dict[str, Any]) -> None:
    problem_of(await client.http.patch(f"/api/voices/{voice_id}", json=body), 400, "validation")
    assert [(voice["name"], voice["default"]) for voice in await listed(client)] == [("Ada", False)]


async def test_voices_of_both_providers_are_listed_and_say_who_can_speak(client: Client, database_url: str) -> None:
    await insert_voice(database_url, client.user_id, name="Modal", provider="modal")
    await insert_voice(database_url, client.user_id, name="Half", provider_voice_id=None)
    await insert_voice(database_url, client.user_id, name="File", model="qwen3-tts-vc-2026-01-22")
    await insert_voice(database_url, client.user_id, name="Ada")
    voices = {voice["name"]: voice for voice in await listed(client)}
    assert {name: voice["compatible"] for name, voice in voices.items()} == {
        "Modal": False,
        "Half": False,
        "File": True,
        "Ada": True,
    }
    assert {name for name, voice in voices.items() if voice["streamable"]} == {"File", "Ada"}
    assert {name for name, voice in voices.items() if voice["varies"]} == {"Half", "Ada"}
    assert {name for name, voice in voices.items() if voice["incompatible_reason"]} == {"Modal", "Half"}


async def test_the_newest_voice_is_first_and_the_first_page_has_a_hundred(client: Client, rows: Rows) -> None:
    names = [f"voice {number}" for number in range(103)]
    await insert_voices(rows, client.user_id, *names)
    first = (await client.http.get("/api/voices")).json()
    assert [voice["name"] for voice in first["voices"]] == names[:100]
    assert first["pagination"] == {"page": 1, "per_page": 100, "total": 103, "pages": 2}
    second = (await client.http.get("/api/voices?page=2&per_page=20")).json()
    assert [voice["name"] for voice in second["voices"]] == names[20:40]
    assert second["pagination"] == {"page": 2, "per_page": 20, "total": 103, "pages": 6}


async def test_voices_without_any_are_an_empty_page(client: Client) -> None:
    assert (await client.http.get("/api/voices")).json() == {
        "voices": [],
        "pagination": {"page": 1, "per_page": 100, "total": 0, "pages": 1},
    }


async def test_deleted_and_foreign_voices_are_not_listed(client: Client, voice_id: UUID, rows: Rows) -> None:
    await insert_voices(rows, uuid4(), "Somebody else's")
    await insert_voices(rows, client.user_id, "Deleted")
    await rows.execute("UPDATE public.voices SET deleted_at = now() WHERE name = 'Deleted'")
    assert [voice["id"] for voice in await listed(client)] == [str(voice_id)]
    assert (await client.http.get("/api/voices?search=e")).json()["pagination"]["total"] == 0


async def test_search_means_the_name_and_its_characters_are_plain(client: Client, rows: Rows) -> None:
    names = ["100% Ada", "100 Ada", "snake_case", "snakeXcase", "a:b & c+d", "back\\slash", "Ünal", "'; DROP TABLE x"]
    await insert_voices(rows, client.user_id, *names)
    for search, found in (
        ("%", ["100% Ada"]),
        ("_", ["snake_case"]),
        ("\\", ["back\\slash"]),
        ("A:B & C+D", ["a:b & c+d"]),
        ("ünAL", ["Ünal"]),
        ("'; drop", ["'; DROP TABLE x"]),
        ("ada", ["100% Ada", "100 Ada"]),
        ("  ada  ", ["100% Ada", "100 Ada"]),
        ("", names),
        ("nobody", []),
    ):
        assert [voice["name"] for voice in await listed(client, search=search)] == found, search
    plus_is_a_space = (await client.http.get("/api/voices?search=100+Ada")).json()["voices"]
    assert [voice["name"] for voice in plus_is_a_space] == ["100 Ada"]


async def test_source_chooses_between_cloned_and_designed(client: Client, rows: Rows) -> None:
    await insert_voices(rows, client.user_id, "cloned")
    await insert_voices(rows, client.user_id, "designed", source="designed")
    assert [voice["name"] for voice in await listed(client, source="uploaded")] == ["cloned"]
    assert [voice["name"] for voice in await listed(client, source="designed")] == ["designed"]
    assert len(await listed(client, source="all")) == len(await listed(client, source="")) == 2
    response = await client.http.get("/api/voices?source=stolen")
    problem_of(response, 400, "validation", says="uploaded, designed")


async def test_a_voice_of_another_system_is_listed(client: Client, rows: Rows) -> None:
    """No language, no transcript, no provider's facts: the oldest writers know none of it."""
    await rows.execute("ALTER TABLE public.voices ALTER COLUMN language DROP NOT NULL")
    await rows.execute(
        "INSERT INTO public.voices (user_id, name, source, language) VALUES ($1, 'Old', 'uploaded', NULL)",
        client.user_id,
    )
    (voice,) = await listed(client)
    assert (voice["language"], voice["tts_provider"], voice["compatible"]) == ("Auto", "modal", False)


async def test_words_are_looked_for_in_all_that_is_said_of_a_voice(client: Client, rows: Rows) -> None:
    await insert_voices(rows, client.user_id, "Ada", "Bea")
    await insert_voices(rows, client.user_id, "Old storyteller", source="designed")
    await rows.execute(
        "UPDATE public.voices SET description = '50% gravel', language = 'German' WHERE source = 'designed'"
    )
    for words, found in (
        ("ada", {"Ada"}),
        ("german", {"Old storyteller"}),
        ("cloned", {"Ada", "Bea"}),
        ("gravel designed", {"Old storyteller"}),
        ("50%", {"Old storyteller"}),
        ("5_%", set()),
        ("gravel cloned", set()),
    ):
        assert {voice["name"] for voice in await listed(client, q=words)} == found, words
    assert await listed(client, search="german") == []
