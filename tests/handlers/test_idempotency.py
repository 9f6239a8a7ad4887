"""Idempotency-Key: a request that is repeated, by a person, a program or a proxy, makes one speech."""

import asyncio
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import httpx
import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, Gateway, insert_voice, read_events
from tests.handlers.wire import problem_of

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def post(
    client: Client,
    voice_id: UUID,
    key: str,
    text: str = "Good evening.",
    address: str = "/api/generate",
    **headers: str,
) -> httpx.Response:
    """A request to speak under a key."""
    return await client.http.post(
        address, json={"voice_id": str(voice_id), "text": text}, headers={"Idempotency-Key": key, **headers}
    )


def without_ticket(response: httpx.Response) -> dict[str, Any]:
    """The answer but for its ticket, which is made afresh each time."""
    answer: dict[str, Any] = response.json()
    answer["stream_url"] = answer["stream_url"].partition("&ticket=")[0]
    return answer


async def count(rows: Rows, table: str = "public.generations") -> int:
    number: int = await rows.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def test_the_same_key_and_body_return_the_first_answer(
    client: Client, voice_id: UUID, rows: Rows, simulator: Simulator
) -> None:
    """At once, after the speech has ended, and after its task was put away."""
    first = await post(client, voice_id, "a key")
    task_id = first.json()["task_id"]
    assert without_ticket(await post(client, voice_id, "a key")) == without_ticket(first)
    await client.ended(task_id)
    ended = await post(client, voice_id, "a key")
    assert (ended.status_code, without_ticket(ended)) == (200, without_ticket(first))
    await client.http.delete(f"/api/tasks/{task_id}")
    hidden = await post(client, voice_id, "a key")
    assert (hidden.status_code, without_ticket(hidden)) == (200, without_ticket(first))
    assert await count(rows) == 1
    assert len([call for call in simulator.calls if call["action"] == "synthesize"]) == 1


async def test_a_failed_or_cancelled_speech_is_not_spoken_again_under_its_key(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("realtime", {"do": "error", "after_deltas": 1}, text_contains="fails")
    simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="holds")
    for text in ("fails", "holds"):
        first = await post(client, voice_id, text, text)
        if text == "holds":
            await client.http.post(f"/api/tasks/{first.json()['task_id']}/cancel")
        await client.ended(first.json()["task_id"])
        again = await post(client, voice_id, text, text)
        assert (again.status_code, without_ticket(again)) == (200, without_ticket(first))
    assert await count(rows) == 2


@pytest.mark.usefixtures("unspoken")
async def test_the_same_key_with_another_body_is_409(
    client: Client, voice_id: UUID, database_url: str, rows: Rows
) -> None:
    await post(client, voice_id, "a key")
    other_voice = await insert_voice(database_url, client.user_id)
    for address in ("/api/generate", "/api/generate/stream"):
        for response in (
            await post(client, voice_id, "a key", "Another text.", address),
            await post(client, other_voice, "a key", address=address),
        ):
            problem_of(response, 409, "conflict", says="Idempotency-Key")
    assert await count(rows) == 1


@pytest.mark.usefixtures("unspoken")
async def test_what_says_the_same_is_the_same_body(client: Client, voice_id: UUID, rows: Rows) -> None:
    """Blanks, the order of members, what is unknown and what is left to its default make no difference."""
    first = await post(client, voice_id, "a key")
    for body in (
        f'{{"text":"Good evening.","voice_id":"{voice_id}"}}',
        f'{{"voice_id": "{voice_id.hex.upper()}", "text": "Good evening.", "language": "Auto", "model": "0.6B"}}',
    ):
        again = await client.http.post("/api/generate", content=body, headers={"Idempotency-Key": "a key"})
        assert again.json()["task_id"] == first.json()["task_id"]
    assert await count(rows) == 1


@pytest.mark.usefixtures("unspoken")
async def test_twins_at_once_make_one_speech(client: Client, voice_id: UUID, rows: Rows) -> None:
    answers = await asyncio.gather(*(post(client, voice_id, "twins") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    for table in ("public.generations", "public.tasks", "internal.runs", "internal.procrastinate_jobs"):
        assert await count(rows, table) == 1


@pytest.mark.usefixtures("unspoken")
async def test_twins_that_differ_are_decided_by_who_was_first(client: Client, voice_id: UUID, rows: Rows) -> None:
    answers = await asyncio.gather(*(post(client, voice_id, "twins", f"Text {number}.") for number in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    assert await count(rows) == 1


@pytest.mark.usefixtures("unspoken")
async def test_a_key_is_its_users_own(gateway: Gateway, client: Client, voice_id: UUID, database_url: str) -> None:
    mine = await post(client, voice_id, "a key")
    async with gateway.client() as other:
        theirs = await post(other, await insert_voice(database_url, other.user_id), "a key")
        assert theirs.status_code == 200
        assert theirs.json()["task_id"] != mine.json()["task_id"]
        problem_of(await post(other, voice_id, "another key"), 404, "not_found")


@pytest.mark.usefixtures("unspoken")
async def test_a_key_is_forgotten_after_a_day(client: Client, voice_id: UUID, rows: Rows) -> None:
    """Also by a server whose sweep has not come by yet, and whatever the body."""
    first = await post(client, voice_id, "a key")
    await rows.execute("UPDATE internal.idempotency SET created_at = now() - interval '23 hours 59 minutes'")
    assert (await post(client, voice_id, "a key")).json()["task_id"] == first.json()["task_id"]
    await rows.execute("UPDATE internal.idempotency SET created_at = now() - interval '24 hours 1 minute'")
    second = await post(client, voice_id, "a key", "Another text.")
    assert second.status_code == 200
    assert second.json()["task_id"] != first.json()["task_id"]
    assert (await post(client, voice_id, "a key", "Another text.")).json()["task_id"] == second.json()["task_id"]
    assert await count(rows, "internal.idempotency") == 1


@pytest.mark.usefixtures("unspoken")
async def test_a_refusal_is_not_kept(client: Client, voice_id: UUID, rows: Rows) -> None:
    """What was wrong may be put right under the same key: nothing was bought yet."""
    problem_of(await post(client, voice_id, "a key", ""), 400, "validation")
    await rows.execute("UPDATE public.voices SET provider_voice_id = ''")
    problem_of(await post(client, voice_id, "a key"), 409, "conflict")
    await rows.execute("UPDATE public.voices SET provider_voice_id = 'qwen-tts-vc-ada-voice-20260101000000000-0001'")
    assert (await post(client, voice_id, "a key")).status_code == 200


@pytest.mark.usefixtures("unspoken")
async def test_every_key_that_fits_a_header_will_do(client: Client, voice_id: UUID) -> None:
    for key in ("k" * 255, "a b", "0", '"quoted"', "'; DROP TABLE x; --", "%00", "{}"):
        first = await post(client, voice_id, key)
        assert first.status_code == 200, key
        assert (await post(client, voice_id, key)).json()["task_id"] == first.json()["task_id"]


async def test_a_repeated_request_to_stream_attaches_to_the_same_speech(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """Whichever of the two addresses came first; and the second listener hears everything from the start."""
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 2, "delta_bytes": 1000, "minimum_bytes": 5000})
    first = await post(client, voice_id, "a key")
    await held.held()
    asked = {"json": {"voice_id": str(voice_id), "text": "Good evening."}, "headers": {"Idempotency-Key": "a key"}}
    async with client.http.stream("POST", "/api/generate/stream", **asked) as response:  # type: ignore[arg-type]
        assert response.status_code == 200
        assert response.headers["x-utter-task-id"] == first.json()["task_id"]
        heard = []
        async for event in read_events(response):
            heard.append(event)
            if event.id == "2000":
                held.release()
    deltas = [event.id for event in heard if event.name == "response.audio.delta"]
    assert deltas[:2] == ["1000", "2000"]
    assert (heard[-1].id, heard[-1].data["status"]) == ("end", "completed")
    as_json = await post(client, voice_id, "a key", address="/api/generate/stream", Accept="application/json")
    assert (as_json.status_code, without_ticket(as_json)) == (201, without_ticket(first))
    assert await count(rows) == 1
    assert len([call for call in simulator.calls if call["action"] == "synthesize"]) == 1


@pytest.mark.usefixtures("unspoken")
@pytest.mark.parametrize("address", ["/api/generate", "/api/voices/design/preview"])
async def test_every_address_answers_a_repeated_key_alike(
    client: Client, voice_id: UUID, rows: Rows, address: str
) -> None:
    headers = {"Idempotency-Key": "a key"}
    body = {"voice_id": str(voice_id), "text": "Good evening.", "instruct": "A calm voice.", "language": "Auto"}
    first = await client.http.post(address, json=body, headers=headers)
    again = await client.http.post(address, json=body, headers=headers)
    assert first.json()["task_id"] == again.json()["task_id"]
    # The key is looked at before the rest: what would be refused anew is still another request.
    other = await client.http.post(address, json={**body, "text": " ", "language": "Klingon"}, headers=headers)
    problem_of(other, 409, "conflict", says="different request")
    await rows.execute("DELETE FROM public.tasks")
    gone = await client.http.post(address, json=body, headers=headers)
    problem_of(gone, 409, "conflict", says="no longer exists")
