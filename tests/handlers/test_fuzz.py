"""Requests that nobody would think of: whatever comes, the answer is one that the document describes, and no 5xx.

The requests are made from the OpenAPI document by a seeded generator: right ones, and ones that break the document's
rules. Half of them carry ids of things that are there, of the user who asks or of another.
"""

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as bounds
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import Client, insert_voice, running_gateway

EXAMPLES = 15
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# A member of a path or a query, and whose table its id is found in.
NAMED = ("task_id", "voice_id", "generation_id", "key_id")


async def things_of(client: Client, database_url: str) -> dict[str, str]:
    """Ids of what a user has: one of each kind."""
    voice_id = await insert_voice(database_url, client.user_id)
    spoken = await client.generate(voice_id)
    await client.ended(spoken["task_id"])
    key = (await client.http.post("/api/keys", json={"name": "A program"})).json()
    return {
        "task_id": spoken["task_id"],
        "generation_id": spoken["generation_id"],
        "voice_id": str(voice_id),
        "key_id": key["id"],
    }


# The library draws some of its own randomness inside of its strategies, all of it seeded.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
async def test_no_request_finds_an_answer_that_the_document_does_not_describe(
    settings: Settings, database_url: str, simulator: Simulator
) -> None:
    async with running_gateway(settings) as gateway, gateway.client() as ada, gateway.client() as grace:
        things = [await things_of(user, database_url) for user in (ada, grace)]
        headers: list[dict[str, str]] = [ada.headers, grace.headers, {}]
        asked = await asyncio.to_thread(ask_everything, gateway.url, headers, things)
    assert len(asked) > 30
    assert sum(asked.values()) > 3 * len(asked)


def ask_everything(url: str, headers: list[dict[str, str]], things: list[dict[str, str]]) -> dict[str, int]:
    """Ask every operation of the document again and again; how often each was asked."""
    asked: dict[str, int] = {}
    for found in schemathesis.openapi.from_url(f"{url}/api/openapi.json").get_all_operations():
        assert isinstance(found, Ok)
        asked[found.ok().label] = ask(found.ok(), url, headers, things)
    return asked


def ask(operation: Any, url: str, headers: list[dict[str, str]], things: list[dict[str, str]]) -> int:
    """Ask one operation, by whom and for what is chosen as well; how often."""
    times = 0

    @seed(1)
    @bounds(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)),
        user=st.sampled_from(headers),
        known=st.sampled_from([{}, *things]),
    )
    def once(case: Any, user: dict[str, str], known: dict[str, str]) -> None:
        nonlocal times
        for place in (case.path_parameters, case.query):
            for name in NAMED:
                if known and isinstance(place, dict) and name in place:
                    place[name] = known[name]
        response = case.call(base_url=url, headers=user, timeout=20)
        case.validate_response(response, checks=CHECKS)
        times += 1

    once()
    return times
