"""Every address, made from the document of addresses, against everybody who may not use it.

A route that is added and forgets to ask who calls, or whose the thing is, fails here without a test of its own.
"""

import base64
import json
import time
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

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
SIGNED = {"/api/storage/{bucket}/{key}"}


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


async def documented(client: Client) -> Calls:
    """Every method of every address that the document names."""
    document = (await client.http.get("/api/openapi.json")).json()
    methods = {"get", "post", "patch", "delete", "put"}
    return [(method.upper(), path) for path, item in document["paths"].items() for method in item if method in methods]


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
    made = (await client.http.post("/api/keys", json={"name": "mine"})).json()
    return {
        "task_id": str(task_id),
        "generation_id": str(generation_id),
        "voice_id": str(voice_id),
        "key_id": made["id"],
        "model": "tts-1",
    }


def address(path: str, filled: dict[str, str]) -> str:
    for name, value in filled.items():
        path = path.replace(f"{{{name}}}", value)
    return path


@pytest.mark.parametrize("who", STRANGERS)
async def test_nobody_without_a_good_token_uses_any_address(
    client: Client, filled: dict[str, str], gateway: Gateway, who: str
) -> None:
    token = STRANGERS[who]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    calls = [call for call in await documented(client) if call[1] not in OPEN | SIGNED]
    assert len(calls) > 25
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as stranger:
        for method, path in calls:
            query = {"task_id": filled["task_id"]} if path == "/api/generate/stream" else None
            answer = await stranger.request(method, address(path, filled), json={}, params=query)
            assert answer.status_code == 401, (method, path, answer.status_code, answer.text)
            assert "Mine." not in answer.text


async def test_what_belongs_to_somebody_else_is_not_there_for_anybody_else(
    client: Client, filled: dict[str, str], gateway: Gateway, rows: Rows
) -> None:
    body = {"name": "Taken", "default": True}
    before = [await rows.fetch(f"SELECT * FROM public.{table}") for table in ("voices", "generations", "tasks")]
    calls = [call for call in await documented(client) if "{" in call[1] and call[1] not in OPEN | SIGNED]
    async with gateway.client() as stranger:
        for method, path in calls:
            if "{model}" in path:
                continue
            answer = await stranger.http.request(method, address(path, filled), json=body)
            assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
        stream = await stranger.http.get("/api/generate/stream", params={"task_id": filled["task_id"]})
        assert stream.status_code == 404, stream.text
        zipped = await stranger.http.post("/api/generations/zip", json={"ids": [filled["generation_id"]]})
        assert zipped.status_code == 404, zipped.text
        for listing in ("/api/generations", "/api/voices", "/api/keys", "/v1/audio/voices"):
            answer = await stranger.http.get(listing)
            assert answer.status_code == 200
            assert not any(value and value in answer.text for name, value in filled.items() if name != "model")
    after = [await rows.fetch(f"SELECT * FROM public.{table}") for table in ("voices", "generations", "tasks")]
    assert before == after, "nothing of it has changed"
