"""GET /api/usage, and the limits that are held against it."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import httpx
import pytest

from server.database.queue import SYNTHESIS
from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import Client, insert_voice, running_gateway
from tests.handlers.wire import counted, problem_of
from tests.support import wait_for
from tests.voices import cloned, finalize, recording, start_preview, upload

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
IN_PIECES = "qwen3-tts-vc-2026-01-22"


def today() -> str:
    return datetime.now(UTC).date().isoformat()


async def usage(client: Client, **query: Any) -> dict[str, Any]:
    response = await client.http.get("/api/usage", params=query)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def speak(client: Client, voice_id: UUID, text: str = "Good evening.") -> dict[str, Any]:
    answer = await client.generate(voice_id, text)
    return await client.ended(answer["task_id"])


async def test_a_speech_is_counted_and_deleting_it_lowers_nothing(client: Client, voice_id: UUID) -> None:
    """Characters as browsers count them, seconds of what came of them, by day, lane and key."""
    assert await usage(client) == {
        "days": [],
        "limits": {"characters_per_day": None, "starts_per_minute": None, "designs_per_day": 20, "clones_per_day": 20},
    }
    seconds = 0.0
    for text in ("Good evening.", "A smile 🙂"):
        task = await speak(client, voice_id, text)
        seconds += task["audio"]["seconds"]
        await client.http.delete(f"/api/generations/{task['generation_id']}")
    [day] = (await usage(client))["days"]
    assert day.pop("seconds") == pytest.approx(seconds)
    assert day == {"day": today(), "lane": "realtime", "key_id": None, "characters": 13 + 10, "starts": 2}


async def test_lanes_and_keys_have_rows_of_their_own(
    client: Client, voice_id: UUID, database_url: str, rows: Rows
) -> None:
    in_pieces = await insert_voice(database_url, client.user_id, model=IN_PIECES)
    key = (await client.http.post("/api/keys", json={"name": "x"})).json()
    await speak(client, in_pieces)
    async with httpx.AsyncClient(
        base_url=client.url, headers={"Authorization": f"Bearer {key['key']}"}, timeout=20.0
    ) as program:
        body = {"voice_id": str(voice_id), "text": "Good evening."}
        tasks = [(await program.post("/api/generate", json=body)).json()["task_id"]]
        streamed = await program.post("/api/generate/stream", json=body, headers={"Accept": "application/json"})
        tasks.append(streamed.json()["task_id"])
        await program.post("/v1/audio/speech", json={"input": "Good evening.", "voice": str(voice_id)})
        for task in tasks:
            await client.ended(task)
        assert (await program.get("/api/usage")).json() == await usage(client)
    counted = [(day["lane"], day["key_id"], day["starts"]) for day in (await usage(client))["days"]]
    assert counted == [("pieces", None, 1), ("realtime", key["id"], 3)]
    # A key that is gone has used what it has used.
    await client.http.delete(f"/api/keys/{key['id']}")
    assert [day["key_id"] for day in (await usage(client))["days"]] == [None, key["id"]]


async def test_days_are_chosen_and_those_of_others_are_not_shown(client: Client, rows: Rows) -> None:
    now = datetime.now(UTC).date()
    for days_ago, user_id in ((0, client.user_id), (29, client.user_id), (30, client.user_id), (0, UUID(int=1))):
        await rows.execute(
            "INSERT INTO internal.usage (user_id, day, lane, starts) VALUES ($1, $2, 'realtime', 1)",
            user_id,
            now - timedelta(days=days_ago),
        )
    assert len((await usage(client))["days"]) == 2
    assert len((await usage(client, **{"from": str(now - timedelta(days=30))}))["days"]) == 3
    [day] = (await usage(client, **{"from": str(now - timedelta(days=40)), "to": str(now - timedelta(days=30))}))[
        "days"
    ]
    assert day["day"] == str(now - timedelta(days=30))
    for wrong in ({"from": "yesterday"}, {"to": "2026-13-01"}, {"from": "2020-01-01"}, {"to": "2026-1-1"}):
        problem_of(await client.http.get("/api/usage", params=wrong), 400, "validation")
    problem_of(
        await client.http.get("/api/usage", params={"from": "2026-02-02", "to": "2026-02-01"}), 400, "validation"
    )


async def test_characters_of_a_day_are_limited(settings: Settings, database_url: str, rows: Rows) -> None:
    """At the limit nothing is made, on any way in; tomorrow there is more. Others are not concerned."""
    limited = replace(settings, characters_per_user_per_day=30)
    async with running_gateway(limited) as gateway, gateway.client() as client, gateway.client() as other:
        voice_id = await insert_voice(database_url, client.user_id)
        theirs = await insert_voice(database_url, other.user_id)
        assert (await usage(client))["limits"]["characters_per_day"] == 30
        task = await speak(client, voice_id, "x" * 20)
        await client.http.delete(f"/api/generations/{task['generation_id']}")
        body = {"voice_id": str(voice_id), "text": "y" * 11}
        for path in ("/api/generate", "/api/generate/stream"):
            refused = await client.http.post(path, json=body)
            problem_of(refused, 429, "overloaded", says="10 are left")
            assert 0 < int(refused.headers["retry-after"]) <= 86_400
        door = await client.http.post("/v1/audio/speech", json={"input": "y" * 11})
        assert (door.status_code, door.json()["error"]["type"]) == (429, "rate_limit_error")
        assert await counted(client.http, "characters_of_one") == 3
        # A client library would repeat it at once, in vain; in the last minute of the day it may.
        tomorrow = int(door.headers["retry-after"]) > 60
        assert door.headers.get("x-should-retry") == ("false" if tomorrow else None)
        assert await rows.fetchval("SELECT count(*) FROM public.generations") == 0
        await speak(client, voice_id, "z" * 10)
        await speak(other, theirs)
        await rows.execute("UPDATE internal.usage SET day = day - 1")
        await speak(client, voice_id, "z" * 30)


async def test_starts_of_a_minute_are_limited_also_at_once(settings: Settings, database_url: str, rows: Rows) -> None:
    async with running_gateway(replace(settings, starts_per_user_per_minute=3)) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        body = {"voice_id": str(voice_id), "text": "Good evening."}
        at = await rows.fetchval("SELECT date_trunc('minute', now())")
        answers = await asyncio.gather(*(client.http.post("/api/generate", json=body) for _ in range(8)))
        if await rows.fetchval("SELECT date_trunc('minute', now())") == at:
            assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
        refused = next(answer for answer in answers if answer.status_code == 429)
        problem_of(refused, 429, "overloaded", says="3 speeches a minute")
        assert await counted(client.http, "starts_of_one") == sum(answer.status_code == 429 for answer in answers)
        assert 0 < int(refused.headers["retry-after"]) <= 60
        await rows.execute("UPDATE internal.usage SET minute = minute - interval '1 minute'")
        assert (await client.http.post("/api/generate", json=body)).status_code == 200


async def test_a_repeated_request_is_counted_once(client: Client, voice_id: UUID) -> None:
    for _ in range(3):
        headers = {"Idempotency-Key": "once"}
        body = {"voice_id": str(voice_id), "text": "Good evening."}
        assert (await client.http.post("/api/generate", json=body, headers=headers)).status_code == 200
    [day] = (await usage(client))["days"]
    assert (day["characters"], day["starts"]) == (13, 1)


async def test_what_was_refused_for_lack_of_room_is_not_counted(settings: Settings, database_url: str) -> None:
    deadlines = replace(settings.deadlines, door_wait_seconds=0.3)
    async with running_gateway(replace(settings, deadlines=deadlines)) as gateway, gateway.client() as client:
        await insert_voice(database_url, client.user_id)
        gateway.parts.queue.stop(SYNTHESIS)
        await wait_for(lambda: not gateway.parts.queue.up([SYNTHESIS]))
        assert (await client.http.post("/v1/audio/speech", json={"input": "Good evening."})).status_code == 503
        [day] = (await usage(client))["days"]
        assert (day["characters"], day["starts"]) == (0, 0)


async def test_designs_of_a_day_are_limited(settings: Settings) -> None:
    async with running_gateway(replace(settings, designs_per_user_per_day=2)) as gateway, gateway.client() as client:
        for _ in range(2):
            await start_preview(client, key="the first")
        await start_preview(client)
        design = {"text": "Good evening.", "language": "English", "instruct": "Calm."}
        refused = await client.http.post("/api/voices/design/preview", json=design)
        problem_of(refused, 429, "overloaded", says="2 voices designed a day")
        assert await counted(client.http, "designs_of_one") == 1
        assert int(refused.headers["retry-after"]) > 0
        [day] = (await usage(client))["days"]
        assert (day["lane"], day["starts"], day["characters"]) == ("design", 2, 0)


async def test_clones_of_a_day_are_limited_and_counted_once_each(settings: Settings) -> None:
    async with running_gateway(replace(settings, clones_per_user_per_day=2)) as gateway, gateway.client() as client:
        first = await upload(client, recording())
        for _ in range(3):
            assert (await finalize(client, first)).status_code == 200
        await cloned(client)
        third = await upload(client, recording())
        problem_of(await finalize(client, third), 429, "overloaded", says="2 voices cloned a day")
        assert await counted(client.http, "clones_of_one") == 1
        assert (await finalize(client, first)).status_code == 200
        [day] = (await usage(client))["days"]
        assert (day["lane"], day["starts"]) == ("clone", 2)


async def test_what_came_to_nothing_is_held_against_nobody(settings: Settings, simulator: Simulator) -> None:
    """A recording without speech, a refusal by the provider, a preview nobody made: none of them was bought."""
    limited = replace(settings, designs_per_user_per_day=1, clones_per_user_per_day=1)
    async with running_gateway(limited) as gateway, gateway.client() as client:
        problem_of(await finalize(client, await upload(client, b"no recording")), 400, "validation")
        simulator.behave("customization", {"do": "error", "code": "InvalidParameter"}, action="create")
        voice_id = await upload(client, recording())
        problem_of(await finalize(client, voice_id), 400, "provider_rejected")
        simulator.behave("customization", {"do": "error", "code": "InvalidParameter"}, action="create")
        assert (await client.ended(await start_preview(client)))["status"] == "failed"
        gateway.parts.queue.stop(SYNTHESIS)
        await wait_for(lambda: not gateway.parts.queue.up([SYNTHESIS]))
        waiting = await start_preview(client)
        assert (await client.http.post(f"/api/tasks/{waiting}/cancel")).json()["cancelled"] is True
        assert [day["starts"] for day in (await usage(client))["days"]] == [0, 0]
        assert (await finalize(client, voice_id)).status_code == 200
        await start_preview(client)
        assert [(day["lane"], day["starts"]) for day in (await usage(client))["days"]] == [("clone", 1), ("design", 1)]
        problem_of(await finalize(client, await upload(client, recording())), 429, "overloaded")


async def test_what_may_have_been_bought_counts(settings: Settings, simulator: Simulator) -> None:
    limited = replace(settings, designs_per_user_per_day=1, clones_per_user_per_day=1)
    async with running_gateway(limited) as gateway, gateway.client() as client:
        simulator.behave("customization", {"do": "abort"}, action="create", times=2)
        assert (await finalize(client, await upload(client, recording()))).status_code >= 500
        assert (await client.ended(await start_preview(client)))["status"] == "failed"
        assert [(day["lane"], day["starts"]) for day in (await usage(client))["days"]] == [("clone", 1), ("design", 1)]
