"""Keys over HTTP: made, shown once, listed, used wherever a bearer token is taken, and revoked."""

import asyncio
import io
import logging
import time
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from server import logs
from server.auth.keyring import new_key
from server.records import keys
from server.settings import Settings
from tests.auth.test_tokens import KeyServer, jwk, key_server  # noqa: F401 - a fixture
from tests.gateway import Client, Gateway, running_gateway
from tests.handlers.wire import counted, problem_of
from tests.postgres_proxy import postgres_proxy
from tests.support import LEAVES_AT_ONCE, wait_for, with_limits


async def make(client: Client, name: str = "A program", **members: Any) -> dict[str, Any]:
    response = await client.http.post("/api/keys", json={"name": name, **members})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def using(key: str, url: str) -> httpx.AsyncClient:
    """A program that has this key and nothing else."""
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30.0)


async def test_a_key_is_shown_once_and_listed_without_itself(client: Client) -> None:
    made = await make(client, "  Kitchen radio ")
    assert made.keys() == {"id", "name", "prefix", "key", "created_at", "expires_at"}
    assert (made["name"], made["prefix"], made["expires_at"]) == ("Kitchen radio", made["key"][:8], None)
    response = await client.http.get("/api/keys")
    (listed,) = response.json()["keys"]
    assert listed.keys() == {"id", "name", "prefix", "created_at", "last_used_at", "expires_at"}
    assert (listed["id"], listed["last_used_at"]) == (made["id"], None)
    assert made["key"] not in response.text
    assert response.headers["cache-control"] == "no-store"


async def test_the_list_is_ones_own_newest_first(client: Client, gateway: Gateway) -> None:
    for name in ("first", "second"):
        await make(client, name)
    async with gateway.client() as other:
        await make(other, "theirs")
        assert [key["name"] for key in (await other.http.get("/api/keys")).json()["keys"]] == ["theirs"]
    assert [key["name"] for key in (await client.http.get("/api/keys")).json()["keys"]] == ["second", "first"]


async def test_a_key_is_good_wherever_a_token_is(client: Client, voice_id: UUID) -> None:
    made = await make(client)
    async with using(made["key"], client.url) as program:
        assert (await program.get("/api/me")).json() == {
            "signed_in": True,
            "user": {"id": str(client.user_id)},
            "profile": None,
        }
        for path in ("/api/voices", "/api/generations"):
            assert (await program.get(path)).status_code == 200
        answer = await program.post("/api/generate", json={"voice_id": str(voice_id), "text": "Good evening."})
        assert answer.status_code == 200
        assert (await program.get(f"/api/tasks/{answer.json()['task_id']}")).status_code == 200
        stream = f"/api/generate/stream?task_id={answer.json()['task_id']}&as=audio"
        assert (await program.get(stream)).status_code in (200, 302)


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x" * 101}, {"name": 7}, {"name": " \u200b"}])
async def test_a_name_has_one_to_a_hundred_characters(client: Client, body: dict[str, Any]) -> None:
    problem_of(await client.http.post("/api/keys", json=body), 400, "validation")


@pytest.mark.parametrize("days", [0, -1, 3651, 1.5, "7", True])
async def test_days_are_whole_ones(client: Client, days: object) -> None:
    answer = await client.http.post("/api/keys", json={"name": "x", "expires_in_days": days})
    problem_of(answer, 400, "validation", says="expires_in_days")


async def test_a_key_ends_when_it_expires(client: Client, rows: Any) -> None:
    made = await make(client, expires_in_days=7)
    days: float = await rows.fetchval(
        "SELECT extract(epoch FROM expires_at - created_at)::float8 / 86400 FROM internal.api_keys"
    )
    assert days == 7
    await rows.execute("UPDATE internal.api_keys SET expires_at = now() - interval '1 second'")
    async with using(made["key"], client.url) as program:
        problem_of(await program.get("/api/voices"), 401, "unauthorized", says="expired")


async def test_a_revoked_key_is_refused_and_its_removal_is_ones_own_affair(client: Client, gateway: Gateway) -> None:
    made = await make(client)
    async with using(made["key"], client.url) as program:
        assert (await program.get("/api/voices")).status_code == 200
        async with gateway.client() as other:
            problem_of(await other.http.delete(f"/api/keys/{made['id']}"), 404, "not_found")
        assert (await program.get("/api/voices")).status_code == 200
        assert (await client.http.delete(f"/api/keys/{made['id']}")).json() == {"ok": True}
        refused = await program.get("/api/voices")
        problem_of(refused, 401, "unauthorized", says="revoked")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert (await program.get("/api/me")).json()["signed_in"] is False
    problem_of(await client.http.delete(f"/api/keys/{made['id']}"), 404, "not_found")
    problem_of(await client.http.delete("/api/keys/x"), 400, "validation")


async def test_a_key_makes_no_keys_and_deletes_none(client: Client) -> None:
    made = await make(client)
    async with using(made["key"], client.url) as program:
        problem_of(await program.post("/api/keys", json={"name": "x"}), 403, "unauthorized", says="sign in")
        problem_of(await program.delete(f"/api/keys/{made['id']}"), 403, "unauthorized", says="sign in")
        assert len((await program.get("/api/keys")).json()["keys"]) == 1


async def test_twenty_keys_are_as_many_as_one_may_have_also_at_once(client: Client) -> None:
    answers = await asyncio.gather(
        *(client.http.post("/api/keys", json={"name": f"Key {number}"}) for number in range(24))
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 20 + [409] * 4
    refused = next(answer for answer in answers if answer.status_code == 409)
    problem_of(refused, 409, "conflict", says="20 keys")
    await client.http.delete(f"/api/keys/{next(a for a in answers if a.status_code == 201).json()['id']}")
    await make(client)


async def test_the_last_use_is_written_at_most_once_a_minute(client: Client, rows: Any) -> None:
    made = await make(client)

    async def used_at() -> Any:
        return await rows.fetchval("SELECT last_used_at FROM internal.api_keys")

    async with using(made["key"], client.url) as program:
        await program.get("/api/voices")
        first = await wait_for(used_at)
        for _ in range(3):
            await program.get("/api/voices")
    # Another process, which has noted nothing itself yet.
    await keys.note_used(rows, [UUID(made["id"])])
    assert await used_at() == first
    await rows.execute("UPDATE internal.api_keys SET last_used_at = now() - interval '61 seconds'")
    aged = await used_at()
    await keys.note_used(rows, [UUID(made["id"])])
    assert await used_at() > aged


async def test_without_a_database_a_key_is_503_and_not_401(settings: Settings, database_url: str) -> None:
    async with (
        postgres_proxy(database_url) as door,
        running_gateway(with_limits(settings, database_url=door.url, **LEAVES_AT_ONCE)) as gateway,
        gateway.client() as client,
    ):
        made = await make(client)
        door.shut()
        async with using(made["key"], client.url) as program:
            for path in ("/api/voices", "/api/me", "/api/keys"):
                answer = await program.get(path)
                problem_of(answer, 503, "internal")
                assert int(answer.headers["retry-after"]) > 0
        async with using(new_key()[:-1] + "?", client.url) as program:
            problem_of(await program.get("/api/voices"), 401, "unauthorized", says="not written correctly")


async def test_guessing_is_429(client: Client) -> None:
    async with using("", client.url) as stranger:
        answers = [await stranger.get("/api/me", headers={"Authorization": f"Bearer {new_key()}"}) for _ in range(21)]
    # The twenty before it took less than a second, or there is nothing to be seen.
    statuses = [answer.status_code for answer in answers]
    assert statuses[:20] == [200] * 20
    problem_of(answers[20], 429, "overloaded", says="unknown keys")
    assert await counted(client.http, "keys") == 1
    assert answers[20].headers["retry-after"] == "1"


async def test_keys_work_where_only_a_key_set_is_configured(
    settings: Settings,
    key_server: KeyServer,  # noqa: F811
) -> None:
    signer = ec.generate_private_key(ec.SECP256R1())
    key_server.entries = [jwk(signer, "k")]
    only_a_key_set = replace(
        settings, auth_jwt_secret=None, auth_jwks_url=key_server.url, stream_ticket_secret="tickets have their own"
    )
    claims = {"sub": str(uuid4()), "aud": "authenticated", "exp": int(time.time()) + 600}
    token = jwt.encode(claims, signer, "ES256", {"kid": "k"})
    async with running_gateway(only_a_key_set) as gateway:
        async with using(token, gateway.url) as person:
            made = (await person.post("/api/keys", json={"name": "x"})).json()
        async with using(made["key"], gateway.url) as program:
            assert (await program.get("/api/me")).json()["user"] == {"id": claims["sub"]}


async def test_logs_never_hold_a_key(client: Client, rows: Any) -> None:
    """Not when it is made, used, refused or revoked, nor when a statement about it fails."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    try:
        made = await make(client)
        async with using(made["key"], client.url) as program:
            await program.get("/api/voices")
            await program.get(f"/api/nothing/{made['key']}?key={made['key']}")
            await rows.execute("ALTER TABLE internal.api_keys RENAME COLUMN user_id TO mislaid")
            await client.http.delete(f"/api/keys/{made['id']}")
            await client.http.post("/api/keys", json={"name": "x"})
            await program.get("/api/voices")
        logging.getLogger("server").error("failed with %s", made["key"])
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
    assert "request failed" in stream.getvalue()
    assert made["key"][12:] not in stream.getvalue()
