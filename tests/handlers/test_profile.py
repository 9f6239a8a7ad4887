"""GET /api/me and PATCH /api/profile in a database that keeps profiles, as the app's own does."""

from typing import Any, TypeAlias

import asyncpg
import pytest

from tests.gateway import Client, Gateway
from tests.handlers.wire import problem_of

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def profiles(rows: Rows) -> None:
    """The table as the app has it."""
    await rows.execute(
        """CREATE TABLE public.profiles (
               id uuid PRIMARY KEY, handle text UNIQUE, display_name text, avatar_url text,
               subscription_tier text NOT NULL DEFAULT 'free', credits_remaining integer NOT NULL DEFAULT 10,
               created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now())"""
    )


async def profile_of(client: Client) -> dict[str, Any] | None:
    profile: dict[str, Any] | None = (await client.http.get("/api/me")).json()["profile"]
    return profile


@pytest.mark.usefixtures("profiles")
async def test_a_profile_is_made_at_the_first_look_and_changed(client: Client) -> None:
    made = await profile_of(client)
    assert made
    assert made.keys() == {
        *("id", "handle", "display_name", "avatar_url"),
        *("subscription_tier", "credits_remaining", "created_at", "updated_at"),
    }
    assert (made["id"], made["credits_remaining"]) == (str(client.user_id), 10)
    wanted = {
        "display_name": "Ada",
        "handle": "ada_1815",
        "avatar_url": "https://x.example/a.png",
        "credits_remaining": 9,
    }
    answer = await client.http.patch("/api/profile", json=wanted)
    assert answer.status_code == 200, answer.text
    changed = answer.json()["profile"]
    assert {name: changed[name] for name in wanted} == {**wanted, "credits_remaining": 10}
    assert await profile_of(client) == changed
    emptied = await client.http.patch("/api/profile", json={"display_name": "", "handle": None})
    assert (emptied.json()["profile"]["display_name"], emptied.json()["profile"]["handle"]) == (None, None)
    assert emptied.json()["profile"]["avatar_url"] == wanted["avatar_url"]


@pytest.mark.usefixtures("profiles")
async def test_a_handle_belongs_to_one(client: Client, gateway: Gateway) -> None:
    assert (await client.http.patch("/api/profile", json={"handle": "ada"})).status_code == 200
    async with gateway.client() as other:
        refused = await other.http.patch("/api/profile", json={"handle": "ada"})
        problem_of(refused, 409, "conflict", says="handle is taken")
        profile = await profile_of(other)
        assert profile
        assert profile["handle"] is None


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"nothing": 1},
        {"handle": "ab"},
        {"handle": "a b c"},
        {"avatar_url": "javascript:alert(1)"},
        {"display_name": 7},
    ],
)
async def test_what_is_no_change_is_refused(client: Client, body: dict[str, Any]) -> None:
    problem_of(await client.http.patch("/api/profile", json=body), 400, "validation")


async def test_without_the_table_there_is_none_and_nothing_is_made(client: Client, rows: Rows) -> None:
    assert await profile_of(client) is None
    problem_of(await client.http.patch("/api/profile", json={"display_name": "Ada"}), 404, "not_found")
    assert await rows.fetchval("SELECT to_regclass('public.profiles')") is None
