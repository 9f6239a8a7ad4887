"""Every address, made from the table of routes, against everybody who may not use it.

A route that is added and forgets to ask who calls, or whose the thing is, fails here without a test of its own.
"""

import base64
import json
import time
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from starlette.routing import Route

from server.objects import audio_key, reference_key
from server.storage import Bucket
from tests.gateway import Client, Gateway, insert_voice
from tests.support import AUTH_JWT_SECRET
from tests.voices import recording

Rows = Any
Calls = list[tuple[str, str]]

# What anybody may ask, and what looks at who asks without refusing anybody.
OPEN = {
    "/api/health",
    "/api/ready",
    "/api/languages",
    "/api/openapi.json",
    "/api/me",
    "/metrics",
}
# A signed link, or a ticket instead of a token, is what opens these; they have tests of their own.
SIGNED = {"/api/storage/{bucket}/{key:path}"}


def signed(secret: str = AUTH_JWT_SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    now = int(time.time())
    payload = {"sub": str(uuid4()), "aud": "authenticated", "iat": now, "exp": now + 3600, **claims}
    return jwt.encode(payload, secret.encode().ljust(64, b"\0"), algorithm=algorithm)


def unsigned() -> str:
    parts = [{"alg": "none", "typ": "JWT"}, {"sub": str(uuid4()), "aud": "authenticated", "exp": int(time.time()) + 99}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


STRANGERS: dict[str, str | None] = {
    "anonymous": None,
    "garbage": "garbage",
    "expired": signed(exp=int(time.time()) - 60),
    "not yet": signed(nbf=int(time.time()) + 3600),
    "another audience": signed(aud="somebody-else"),
    "another secret": signed("another secret that is long enough for the algorithm"),
    "another algorithm": signed(algorithm="HS512"),
    "the algorithm none": unsigned(),
    "no user": signed(sub="admin"),
    "a key that is none": "utr_" + "a" * 40,
}


def routed(gateway: Gateway) -> Calls:
    """Every method of every address that the server has, but for the page and for what is opened by a signed link."""
    routes = [route for route in gateway.server.config.app.routes if isinstance(route, Route)]  # type: ignore[union-attr]
    return [
        (method, route.path)
        for route in routes
        for method in sorted((route.methods or set()) - {"OPTIONS"})
        if route.path.startswith(("/api/", "/v1/", "/metrics")) and route.path not in SIGNED
    ]


@pytest.fixture
async def filled(gateway: Gateway, client: Client, rows: Rows, database_url: str) -> dict[str, str]:
    """One of each thing that a user may have, by the name that an address gives it."""
    voice_id = await insert_voice(database_url, client.user_id)
    generation_id, task_id = uuid4(), uuid4()
    key = audio_key(client.user_id, generation_id, "wav")
    for bucket, name in ((Bucket.GENERATIONS, key), (Bucket.REFERENCES, reference_key(client.user_id, voice_id))):
        content = recording()
        await gateway.parts.storage.put(bucket, name, content, content_type="audio/wav", size=len(content))
    await rows.execute(
        "UPDATE public.voices SET reference_object_key = $2 WHERE id = $1",
        voice_id,
        reference_key(client.user_id, voice_id),
    )
    await rows.execute(
        """INSERT INTO public.generations (id, user_id, voice_id, text, status, tts_provider, output_format,
                  audio_object_key, completed_at)
           VALUES ($1, $2, $3, 'Mine.', 'completed', 'qwen', 'wav', $4, now())""",
        generation_id,
        client.user_id,
        voice_id,
        key,
    )
    await rows.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, generation_id, provider)
           VALUES ($1, $2, 'generate', 'completed', $3, 'qwen')""",
        task_id,
        client.user_id,
        generation_id,
    )
    await rows.execute("""INSERT INTO internal.words VALUES ($1, 0, '[["Mine.", 0, 900]]')""", generation_id)
    made = (await client.http.post("/api/keys", json={"name": "mine"})).json()
    return {
        "task_id": str(task_id),
        "generation_id": str(generation_id),
        "voice_id": str(voice_id),
        "key_id": made["id"],
        "model": "tts-1",
    }


def named_in_the_body(filled: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Requests that name somebody's voice, task or generation, and not in their address."""
    voice_id, text = filled["voice_id"], "Good evening."
    voice = {"name": "Taken", "language": "English", "text": text, "instruct": "Warm.", "transcript": text}
    return {
        "/api/generate": {"voice_id": voice_id, "text": text},
        "/api/generate/stream": {"voice_id": voice_id, "text": text},
        "/v1/audio/speech": {"model": "tts-1", "voice": voice_id, "input": text},
        "/api/clone/finalize": {**voice, "voice_id": voice_id},
        "/api/voices/design": {**voice, "task_id": filled["task_id"]},
        "/api/generations/zip": {"ids": [filled["generation_id"]]},
    }


def address(path: str, filled: dict[str, str]) -> str:
    for name, value in filled.items():
        path = path.replace(f"{{{name}}}", value)
    return path


async def token_that_was_good(who: str, client: Client, gateway: Gateway, rows: Rows, filled: dict[str, str]) -> str:
    """What once opened something, or opens something else."""
    if who == "a ticket":
        task_id, generation_id = UUID(filled["task_id"]), UUID(filled["generation_id"])
        return gateway.parts.tickets.mint(user_id=client.user_id, task_id=task_id, generation_id=generation_id)
    key = (await client.http.post("/api/keys", json={"name": who})).json()
    if who == "a revoked key":
        assert (await client.http.delete(f"/api/keys/{key['id']}")).status_code == 200
    else:
        await rows.execute(
            "UPDATE internal.api_keys SET expires_at = now() - interval '1 second' WHERE id = $1", UUID(key["id"])
        )
    return str(key["key"])


@pytest.mark.parametrize("who", [*STRANGERS, "a revoked key", "an expired key", "a ticket"])
async def test_nobody_without_a_good_token_uses_any_address(
    client: Client, filled: dict[str, str], gateway: Gateway, rows: Rows, who: str
) -> None:
    known = who in STRANGERS
    token = STRANGERS[who] if known else await token_that_was_good(who, client, gateway, rows, filled)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    calls = [call for call in routed(gateway) if call[1] not in OPEN]
    assert len(calls) > 40
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as stranger:
        for method, path in calls:
            query = {"task_id": filled["task_id"]} if path == "/api/generate/stream" else None
            answer = await stranger.request(method, address(path, filled), json={}, params=query)
            assert answer.status_code == 401, (method, path, answer.status_code, answer.text)
            assert "Mine." not in answer.text
        assert (await stranger.get("/api/me")).json()["signed_in"] is False


async def test_a_ticket_opens_its_stream_and_nothing_else(
    client: Client, filled: dict[str, str], gateway: Gateway, rows: Rows
) -> None:
    ticket = await token_that_was_good("a ticket", client, gateway, rows, filled)
    query = {"task_id": filled["task_id"], "ticket": ticket}
    stream = ("GET", "/api/generate/stream"), ("HEAD", "/api/generate/stream")
    other_task = str(uuid4())
    async with httpx.AsyncClient(base_url=gateway.url) as anybody:
        for method, path in routed(gateway):
            if path in OPEN:
                continue
            answer = await anybody.request(method, address(path, filled), json={}, params=query)
            if (method, path) not in stream:
                assert answer.status_code == 401, (method, path, answer.status_code, answer.text)
                continue
            assert answer.status_code == 200
            altered = ticket[:40] + ("A" if ticket[40] != "A" else "B") + ticket[41:]
            for bad in ({**query, "ticket": altered}, {**query, "task_id": other_task}):
                answer = await anybody.request(method, path, params=bad)
                assert answer.status_code == 401, (method, bad)


async def test_whose_it_is_gets_an_answer(client: Client, filled: dict[str, str], gateway: Gateway) -> None:
    """Else it would say little that nobody else does."""
    for method, path in routed(gateway):
        if method == "GET" and "{" in path:
            answer = await client.http.get(address(path, filled))
            assert answer.status_code in (200, 302), (path, answer.status_code, answer.text)


async def test_what_belongs_to_somebody_else_is_not_there_for_anybody_else(
    client: Client, filled: dict[str, str], gateway: Gateway, rows: Rows
) -> None:
    body = {"name": "Taken", "default": True}
    before = [await rows.fetch(f"SELECT * FROM public.{table}") for table in ("voices", "generations", "tasks")]
    calls = [call for call in routed(gateway) if "{" in call[1]]
    async with gateway.client() as stranger:
        for method, path in calls:
            if "{model}" in path:
                continue
            answer = await stranger.http.request(method, address(path, filled), json=body)
            assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
        stream = await stranger.http.get("/api/generate/stream", params={"task_id": filled["task_id"]})
        assert stream.status_code == 404, stream.text
        for path, asked in named_in_the_body(filled).items():
            answer = await stranger.http.post(path, json=asked)
            assert answer.status_code in (400, 404), (path, answer.status_code, answer.text)
        for listing in ("/api/generations", "/api/voices", "/api/keys", "/v1/audio/voices", "/api/usage"):
            answer = await stranger.http.get(listing)
            assert answer.status_code == 200
            assert not any(value and value in answer.text for name, value in filled.items() if name != "model")
    after = [await rows.fetch(f"SELECT * FROM public.{table}") for table in ("voices", "generations", "tasks")]
    assert before == after, "nothing of it has changed"
