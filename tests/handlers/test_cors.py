"""Pages of other origins: which may read answers, and what their browsers ask first."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import httpx
import pytest

from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of

PAGE = "https://app.example"
STRANGER = "https://elsewhere.example"
ALLOWED_HEADERS = {"authorization", "content-type", "idempotency-key", "last-event-id"}
EXPOSED = {"X-Utter-Provider", "X-Utter-Generation-Id", "X-Utter-Task-Id", "X-Request-Id"}


def words(header: str) -> set[str]:
    return {word.strip() for word in header.split(",")}


@pytest.fixture
async def open_to(settings: Settings) -> AsyncIterator[Gateway]:
    """A server that lets the page at `PAGE` in, and another."""
    async with running_gateway(replace(settings, cors_allow_origins=("http://localhost:5173", PAGE))) as gateway:
        yield gateway


@pytest.fixture
async def visitor(open_to: Gateway) -> AsyncIterator[Client]:
    """A signed-in user of that server."""
    async with open_to.client() as client:
        yield client


def preflight(method: str, origin: str = PAGE) -> dict[str, str]:
    """What a browser sends before a request with a token and a body; it never sends the token itself."""
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,last-event-id",
    }


async def test_a_preflight_of_an_allowed_page_is_answered_everywhere_without_a_token(open_to: Gateway) -> None:
    async with httpx.AsyncClient(base_url=open_to.url) as anybody:
        for method, address in (
            ("POST", "/api/generate"),
            ("POST", "/api/generate/stream"),
            ("GET", "/api/generate/stream"),
            ("DELETE", f"/api/tasks/{uuid4()}"),
            ("POST", f"/api/tasks/{uuid4()}/cancel"),
            ("GET", "/api/generations"),
            ("DELETE", f"/api/generations/{uuid4()}"),
            ("GET", "/api/me"),
        ):
            response = await anybody.options(address, headers=preflight(method))
            assert (response.status_code, response.content) == (204, b"")
            assert response.headers["access-control-allow-origin"] == PAGE
            assert method in words(response.headers["access-control-allow-methods"])
            assert words(response.headers["access-control-allow-headers"]) == ALLOWED_HEADERS
            assert "Origin" in response.headers["vary"]
            assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "asked",
    [
        "cache-control",
        "baggage,sentry-trace",
        "authorization, traceparent, x-requested-with, x-request-id, range, apikey, x-client-info",
        "X-Anything-At-All",
    ],
)
async def test_headers_that_a_library_adds_are_allowed(open_to: Gateway, asked: str) -> None:
    async with httpx.AsyncClient(base_url=open_to.url) as anybody:
        headers = {**preflight("POST"), "Access-Control-Request-Headers": asked}
        for address in ("/api/generate", "/api/generate/stream", "/api/storage/references/a"):
            response = await anybody.options(address, headers=headers)
            assert response.status_code == 204
            assert {word.lower() for word in words(asked)} <= words(response.headers["access-control-allow-headers"])


async def test_what_is_no_list_of_headers_is_not_echoed(open_to: Gateway) -> None:
    async with httpx.AsyncClient(base_url=open_to.url) as anybody:
        for asked in ("a" * 3000, "a: b", "x(y)", ""):
            headers = {**preflight("POST"), "Access-Control-Request-Headers": asked}
            response = await anybody.options("/api/generate", headers=headers)
            assert words(response.headers["access-control-allow-headers"]) == ALLOWED_HEADERS


async def test_a_stranger_and_a_program_get_no_permission(open_to: Gateway) -> None:
    async with httpx.AsyncClient(base_url=open_to.url) as anybody:
        for origin in (
            STRANGER,
            "https://app.example.evil.example",
            "http://app.example",
            "null",
            PAGE + "/",
            PAGE.upper(),
        ):
            refused = await anybody.options("/api/generate", headers=preflight("POST", origin))
            problem_of(refused, 405, "validation")
            answered = await anybody.get("/api/health", headers={"Origin": origin})
            assert answered.status_code == 200
            for response in (refused, answered):
                assert "access-control-allow-origin" not in response.headers, origin
                assert "Origin" in response.headers["vary"]
        assert "access-control-allow-origin" not in (await anybody.get("/api/health")).headers


async def test_an_allowed_page_reads_successes_problems_and_the_products_headers(
    visitor: Client, database_url: str
) -> None:
    voice_id = await insert_voice(database_url, visitor.user_id)
    headers = {"Origin": PAGE, "Accept": "application/json"}
    good, bad = {"voice_id": str(voice_id), "text": "Good evening."}, {"voice_id": "x"}
    responses = [
        await visitor.http.post("/api/generate/stream", json=good, headers=headers),
        await visitor.http.post("/api/generate", json=bad, headers=headers),
        await visitor.http.post("/api/generate", json=good, headers={**headers, "Authorization": "Bearer no"}),
        await visitor.http.get("/api/nothing", headers=headers),
        await visitor.http.get("/api/generate", headers=headers),
    ]
    assert [response.status_code for response in responses] == [201, 400, 401, 404, 405]
    for response in responses:
        assert response.headers.get_list("access-control-allow-origin") == [PAGE]
        assert words(response.headers["access-control-expose-headers"]) == EXPOSED
    assert responses[0].headers["x-utter-task-id"] == responses[0].json()["task_id"]


async def test_an_allowed_page_hears_streams_and_stored_audio(visitor: Client, database_url: str) -> None:
    """The redirect and what it leads to both let it, once each; others may fetch, but not read."""
    answer = await visitor.generate(await insert_voice(database_url, visitor.user_id))
    await visitor.ended(answer["task_id"])
    async with httpx.AsyncClient(base_url=visitor.url, headers={"Origin": PAGE}) as page:
        stream = await page.get(answer["stream_url"], headers={"Accept": "text/event-stream"})
        assert stream.headers.get_list("access-control-allow-origin") == [PAGE]
        redirect = await visitor.http.get(f"/api/generations/{answer['generation_id']}/audio", headers={"Origin": PAGE})
        assert redirect.status_code == 302
        assert redirect.headers.get_list("access-control-allow-origin") == [PAGE]
        audio = await page.get(redirect.headers["location"])
        assert audio.status_code == 200
        assert audio.headers.get_list("access-control-allow-origin") == [PAGE]
        stranger = await page.get(redirect.headers["location"], headers={"Origin": STRANGER})
        assert stranger.status_code == 200
        assert "access-control-allow-origin" not in stranger.headers
        # A browser that keeps the header across the redirect asks first.
        asked = await page.options(redirect.headers["location"], headers=preflight("GET"))
        assert asked.status_code == 204
        assert "authorization" in words(asked.headers["access-control-allow-headers"])


async def test_without_the_setting_no_other_origin_is_allowed(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as anybody:
        refused = await anybody.options("/api/generate", headers=preflight("POST"))
        problem_of(refused, 405, "validation")
        for response in (refused, await anybody.get("/api/health", headers={"Origin": PAGE})):
            assert not [name for name in response.headers if name.startswith("access-control-")]


async def test_a_star_lets_every_page_in(settings: Settings) -> None:
    """Tokens travel in a header and never in cookies, so no page can act for somebody else's user."""
    async with (
        running_gateway(replace(settings, cors_allow_origins=("*",))) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as anybody,
    ):
        asked = await anybody.options("/api/generate", headers=preflight("POST", STRANGER))
        assert asked.status_code == 204
        assert words(asked.headers["access-control-allow-headers"]) == ALLOWED_HEADERS
        for response in (asked, await anybody.get("/api/voices", headers={"Origin": STRANGER})):
            assert response.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in response.headers
