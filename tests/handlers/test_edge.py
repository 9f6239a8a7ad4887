"""What every answer carries, and what no log ever holds."""

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from server import logs
from server.dev.simulator import API_KEY, Simulator
from server.serve import KEEP_ALIVE_SECONDS
from server.settings import Settings
from tests.end_to_end.conftest import storing_by_job, take_no_jobs
from tests.gateway import Client, Gateway, Process, insert_voice, process, running_gateway
from tests.handlers.wire import exchange, problem_of
from tests.support import AUTH_JWT_SECRET, wait_for, with_limits

ADDRESSES = (
    "/api/health",
    "/api/ready",
    "/api/languages",
    "/api/me",
    "/api/openapi.json",
    "/metrics",
    "/api/voices",
    "/api/generations",
    "/api/nothing",
    "/api/generate",
    "/api/storage/generations/a",
    "/api/tasks/x",
)


async def test_every_answer_refers_nobody_and_is_no_guess(client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    audio = f"/api/generations/{answer['generation_id']}/audio"
    link = (await client.http.get(audio)).headers["location"]
    for address in (*ADDRESSES, audio, link, answer["stream_url"], f"{answer['stream_url']}&as=audio"):
        for method in ("GET", "HEAD", "OPTIONS"):
            response = await client.http.request(method, address)
            assert response.headers.get_list("referrer-policy") == ["no-referrer"], (method, address)
            assert "nosniff" in response.headers["x-content-type-options"], (method, address)
            assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"]), (method, address)


async def test_answers_that_change_are_not_kept_by_caches(client: Client) -> None:
    for address in ADDRESSES:
        assert "no-store" in (await client.http.get(address)).headers["cache-control"], address


async def test_a_request_id_that_was_given_comes_back(client: Client) -> None:
    for given in ("abc", "7f1c:2.3-4_5", "a" * 128):
        for address in ADDRESSES:
            response = await client.http.get(address, headers={"X-Request-Id": given})
            assert response.headers["x-request-id"] == given
            if response.status_code >= 400 and "detail" in response.text:
                assert response.json()["request_id"] == given


async def test_a_request_id_that_could_do_harm_is_replaced(gateway: Gateway) -> None:
    for given in ("", "a" * 129, "a b", "<script>", "a\tb", "\xe4", '"', "a;b", "a,b"):
        head = f"GET /api/nothing HTTP/1.1\nHost: x\nX-Request-Id: {given}\n"
        answer = await exchange(gateway.url, head)
        problem_of(answer, 404, "not_found")
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"]), given


async def test_two_requests_have_two_ids(client: Client) -> None:
    ids = [(await client.http.get("/api/health")).headers["x-request-id"] for _ in range(5)]
    assert len(set(ids)) == 5


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def talkative(settings: Settings, simulator: Simulator, tmp_path: Path) -> AsyncIterator[Process]:
    """A server process that logs all it can."""
    async with process(settings, simulator, tmp_path / "server.log", LOG_LEVEL="debug", LOG_FORMAT="json") as running:
        yield running


async def test_logs_hold_no_text_no_token_no_key_and_no_query(
    talkative: Process, simulator: Simulator, database_url: str
) -> None:
    """A session with successes, refusals and failures, at the level at which everything is written down."""
    simulator.behave("realtime", {"do": "error", "after_deltas": 1}, text_contains="fails")
    async with talkative.client(uuid4()) as client:
        voice_id = await insert_voice(database_url, client.user_id, provider_voice_id="qwen-tts-vc-marzipan-voice-1")
        token = client.token
        client.http.headers["Authorization"] = f"Bearer {token}"
        secrets = [token, AUTH_JWT_SECRET, API_KEY, "marmalade", "Idempotently", "task_id=", "ticket="]
        secrets += ["signature=", "search=", "expires="]
        for text in ("A secret about marmalade.", "A secret about marmalade that fails."):
            answer = (
                await client.http.post(
                    "/api/generate",
                    json={"voice_id": str(voice_id), "text": text},
                    headers={"Idempotency-Key": f"Idempotently {text}"},
                )
            ).json()
            secrets.append(answer["stream_url"].partition("ticket=")[2])
            await client.ended(answer["task_id"])
            async with client.events(answer["stream_url"]) as events:
                assert [event async for event in events][-1].terminal
            redirect = await client.http.get(f"/api/generations/{answer['generation_id']}/audio")
            if link := redirect.headers.get("location"):
                secrets += httpx.URL(link).query.decode().split("&")
                async with httpx.AsyncClient(base_url=client.url) as anybody:
                    assert (await anybody.get(link)).status_code == 200
                    assert (await anybody.get(link.replace("signature=", "signature=x"))).status_code == 403
            await client.http.post(f"/api/generations/{answer['generation_id']}/regenerate")
            await client.http.delete(f"/api/tasks/{answer['task_id']}")
        for address in (
            "/api/generations?search=marmalade",
            "/api/voices?search=marmalade&page=0",
            f"/api/tasks/{token}",
        ):
            await client.http.get(address)
        await client.http.post("/api/generate", content=b'{"text": "marmalade", "voice_id": 7}')
        await client.http.post("/api/generate", content=b'{"text": "marmalade \\ud800')
        await client.http.get("/api/me", headers={"Authorization": f"Bearer {token}x"})
        await client.http.get("/" + "x-amz-" * 9_000)
    await wait_for(lambda: "x-amz-" in talkative.log)
    lines = talkative.log
    for secret in secrets:
        assert secret not in lines, f"the log holds {secret[:40]!r}"
    records = [json.loads(line) for line in lines.splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert max(len(line) for line in lines.splitlines() if "server.access" in line) < 1000
    assert not [record for record in records if record["level"] in ("error", "critical")]


async def test_the_access_log_says_who_asked_what_and_how_it_ended(talkative: Process) -> None:
    user_id = uuid4()
    async with talkative.client(user_id) as client:
        await client.http.get("/api/voices?page=1", headers={"X-Request-Id": "first"})
        await client.http.get("/api/voices?page=0", headers={"X-Request-Id": "second"})
        await client.http.get("/api/health", headers={"X-Request-Id": "third"})

    def logged() -> dict[str, dict[str, object]] | None:
        records = [json.loads(line) for line in talkative.log.splitlines()]
        found = {
            record["request_id"]: record
            for record in records
            if record["logger"] == "server.access" and "request_id" in record
        }
        return found if found.keys() >= {"first", "second", "third"} else None

    found = await wait_for(logged)
    assert [(found[name]["message"], found[name]["status"]) for name in ("first", "second", "third")] == [
        ("GET /api/voices", 200),
        ("GET /api/voices", 400),
        ("GET /api/health", 200),
    ]
    assert found["first"]["user_id"] == found["second"]["user_id"] == str(user_id)
    assert "user_id" not in found["third"]
    assert all(isinstance(record["milliseconds"], float) for record in found.values())


async def test_an_idle_connection_stays_open_longer_than_a_proxy_keeps_it(gateway: Gateway) -> None:
    """Six seconds of silence are nothing (they used to be too much), and the setting is beyond what proxies keep."""
    assert gateway.server.config.timeout_keep_alive == KEEP_ALIVE_SECONDS >= 75
    address = httpx.URL(gateway.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    request = b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(request)
    assert (await reader.readuntil(b'{"ok":true}')).startswith(b"HTTP/1.1 200")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 6.0)
    writer.write(request)
    assert (await reader.readuntil(b'{"ok":true}')).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_request_leads_to_its_speech_in_whichever_process(
    gateway: Gateway,
    client: Client,
    voice_id: UUID,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line of the request has the task, and so has the line of its end, which another process writes; whatever that
    one says on the way carries the id of the request."""
    await take_no_jobs(gateway)
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonFormatter())
    monkeypatch.setattr(logging.getLogger("server"), "handlers", [handler])
    with caplog.at_level(logging.INFO):
        body = {"voice_id": str(voice_id), "text": "Good evening."}
        answer = await client.http.post("/api/generate", json=body, headers={"X-Request-Id": "a-complaint"})
        async with running_gateway(with_limits(settings, store_elsewhere_seconds=0.05)) as other:
            async with storing_by_job(other):
                await wait_for(lambda: "audio not stored at once" in written.getvalue())
            await client.ended(answer.json()["task_id"])
            await wait_for(lambda: "speech ended" in written.getvalue())
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    [asked] = [line for line in lines if line["logger"] == "server.access" and line.get("request_id") == "a-complaint"]
    [ended] = [line for line in lines if line["message"] == "speech ended" and line["task_id"] == asked["task_id"]]
    [on_the_way] = [line for line in lines if line["message"].startswith("audio not stored at once")]
    assert on_the_way["request_id"] == ended["request_id"] == "a-complaint"
    assert asked["task_id"] == answer.json()["task_id"]
    assert ended["generation_id"] == answer.json()["generation_id"]
    assert (ended["status"], ended["user_id"]) == ("completed", str(client.user_id))
