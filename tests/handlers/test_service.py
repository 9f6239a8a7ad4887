"""What the service says about itself, and how it behaves while a part of it is down."""

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import jwt
import pytest

from server.admission.readiness import FRESH_SECONDS
from server.auth.tokens import mint_bearer
from server.dev.simulator import Simulator
from server.settings import Settings
from tests.conftest import AWS_ENVIRONMENT, Session
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.support import AUTH_JWT_SECRET, wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

QUICKLY_SECONDS = 3.0
PROVIDERS_LANGUAGES = (
    "Chinese",
    "English",
    "German",
    "Italian",
    "Portuguese",
    "Spanish",
    "Japanese",
    "Korean",
    "French",
    "Russian",
)


@pytest.fixture
async def anybody(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody without a token at that server."""
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        yield http


# --- what anybody may ask ---------------------------------------------------------------------------------------------


async def test_health_asks_nobody(anybody: httpx.AsyncClient) -> None:
    response = await anybody.get("/api/health")
    assert (response.status_code, response.json()) == (200, {"ok": True})


async def test_languages_name_what_the_provider_speaks(anybody: httpx.AsyncClient) -> None:
    response = await anybody.get("/api/languages")
    assert response.status_code == 200
    answer = response.json()
    languages = answer.pop("languages")
    assert sorted(languages) == sorted(["Auto", *PROVIDERS_LANGUAGES])
    assert answer == {
        "default": "Auto",
        "provider": "qwen",
        "capabilities": {
            "supports_generate": True,
            "supports_generate_stream": True,
            "supports_design": True,
            "default_generate_mode": "stream",
            "allow_generate_mode_toggle": False,
            "max_text_chars": 2000,
        },
        "transcription": {"enabled": False, "provider": "none", "model": ""},
    }


async def test_languages_offer_the_choice_of_mode_where_it_is_configured(settings: Settings) -> None:
    async with (
        running_gateway(replace(settings, allow_generate_mode_toggle=True)) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        assert (await http.get("/api/languages")).json()["capabilities"]["allow_generate_mode_toggle"] is True


async def test_me_is_the_signed_in_user(client: Client) -> None:
    response = await client.http.get("/api/me")
    assert response.status_code == 200
    assert response.json() == {"signed_in": True, "user": {"id": str(client.user_id)}, "profile": None}


async def test_me_without_a_good_token_is_nobody(anybody: httpx.AsyncClient) -> None:
    expired = mint_bearer(uuid4(), days=-1, secret=AUTH_JWT_SECRET, audience="authenticated")
    for token in (None, "Bearer", "Bearer nonsense", f"Bearer {expired}", f"Basic {expired}"):
        response = await anybody.get("/api/me", headers={"Authorization": token} if token else {})
        assert response.status_code == 200, token
        assert response.json() == {"signed_in": False, "user": None, "profile": None}


# --- who may ask for more ---------------------------------------------------------------------------------------------


def forged_tokens() -> dict[str, str]:
    """Tokens that say who one is, each with one thing wrong."""
    user = str(uuid4())
    claims: dict[str, Any] = {"sub": user, "aud": "authenticated", "exp": int(time.time()) + 3600}

    def signed(secret: str = AUTH_JWT_SECRET, *, without: str = "", **changes: Any) -> str:
        wanted = {name: value for name, value in {**claims, **changes}.items() if name != without}
        return jwt.encode(wanted, secret, algorithm="HS256")

    header, _, payload_and_signature = signed().partition(".")
    return {
        "no claims": "Bearer e30.e30.e30",
        "garbage": "Bearer \xff\xfe",
        "spaces": "Bearer a b c",
        "only dots": "Bearer ..",
        "another scheme": f"Token {signed()}",
        "no scheme": signed(),
        "expired": f"Bearer {signed(exp=int(time.time()) - 3600)}",
        "not yet": f"Bearer {signed(nbf=int(time.time()) + 3600)}",
        "never expires": f"Bearer {signed(without='exp')}",
        "nobody": f"Bearer {signed(without='sub')}",
        "no uuid": f"Bearer {signed(sub='admin')}",
        "another audience": f"Bearer {signed(aud='anon')}",
        "no audience": f"Bearer {signed(without='aud')}",
        "another secret": f"Bearer {signed('somebody else signs with this secret')}",
        "unsigned": f"Bearer {jwt.encode(claims, '', algorithm='none')}",
        "another algorithm": f"Bearer {jwt.encode(claims, AUTH_JWT_SECRET * 2, algorithm='HS512')}",
        "changed": f"Bearer {header}.A{payload_and_signature}",
        "cut": f"Bearer {signed()[:-5]}",
        "huge": f"Bearer {signed()}{'A' * 20_000}",
    }


async def test_what_needs_a_token_is_401_without_a_good_one_and_before_anything_else(
    anybody: httpx.AsyncClient, voice_id: UUID, rows: Rows
) -> None:
    """Bodies, ids and queries are wrong here, too: only whoever is signed in learns that."""
    doors = (
        ("POST", "/api/generate"),
        ("POST", "/api/generate/stream?as=nothing"),
        ("GET", "/api/tasks/nonsense"),
        ("DELETE", "/api/tasks/nonsense"),
        ("POST", "/api/tasks/nonsense/cancel"),
        ("GET", "/api/generations?page=0"),
        ("DELETE", "/api/generations/nonsense"),
        ("GET", "/api/generations/nonsense/audio"),
        ("POST", "/api/generations/nonsense/regenerate"),
        ("GET", "/api/voices?per_page=0"),
    )
    for method, address in doors:
        response = await anybody.request(method, address, content=b"{" if method == "POST" else None)
        assert problem_of(response, 401, "unauthorized") == "Please sign in."
        assert response.headers["www-authenticate"] == "Bearer"
        for wrong, token in forged_tokens().items():
            headers = {"Authorization": token.encode("latin-1")}
            response = await anybody.request(method, address, headers=headers)  # type: ignore[arg-type]
            assert response.status_code == 401, f"{wrong}: {response.text}"
            detail = problem_of(response, 401, "unauthorized", says="sign")
            assert ("expired" in detail) == (wrong == "expired")
    assert not await rows.fetchval("SELECT count(*) FROM public.tasks")


# --- readiness --------------------------------------------------------------------------------------------------------

READY = {"database": True, "migrations": True, "workers": True, "storage": True, "degraded": []}


async def ready(http: httpx.AsyncClient) -> None:
    """Wait until every part is up: the workers are a moment later than the address."""

    async def up() -> bool:
        return (await http.get("/api/ready")).status_code == 200

    await wait_for(up)


async def looks_like(http: httpx.AsyncClient, status: int, **changes: Any) -> None:
    """Wait until readiness says so: what was found out a moment ago is not found out again."""

    async def so() -> bool:
        response = await http.get("/api/ready")
        return (response.status_code, response.json()) == (status, {**READY, **changes})

    await wait_for(so)


async def test_ready_says_yes_to_every_part(anybody: httpx.AsyncClient, settings: Settings) -> None:
    await looks_like(anybody, 200)
    probes = [path for path in Path(settings.storage.root).rglob("probe/ready") if path.read_bytes()]
    assert len(probes) == 2, "both buckets were written to"


async def test_ready_says_no_while_migrations_are_missing(anybody: httpx.AsyncClient, rows: Rows) -> None:
    await ready(anybody)
    await rows.execute("DELETE FROM internal.schema_migrations WHERE version = 5")
    await looks_like(anybody, 503, migrations=False)


async def test_a_store_that_is_away_takes_nobody_out(anybody: httpx.AsyncClient, settings: Settings) -> None:
    """Speech is heard and kept all the same. A file in place of the folder is what even root cannot write below."""
    await ready(anybody)
    root = Path(settings.storage.root)
    shutil.rmtree(root)
    root.write_bytes(b"")
    await looks_like(anybody, 200, storage=False, degraded=["storage"])
    root.unlink()
    await looks_like(anybody, 200)


@pytest.fixture
def probes(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the store was written to for whoever asked."""
    times: list[float] = []
    probe = gateway.parts.storage.probe

    async def noted() -> None:
        times.append(time.monotonic())
        await probe()

    monkeypatch.setattr(gateway.parts.storage, "probe", noted)
    return times


async def test_ready_costs_its_askers_nothing(probes: list[float], anybody: httpx.AsyncClient) -> None:
    """Whether they come at once, before anything was found out, or one after the other."""
    started = time.monotonic()
    await asyncio.gather(*(anybody.get("/api/ready") for _ in range(200)))
    for _ in range(50):
        await anybody.get("/api/ready")
    rounds = 1 + int((time.monotonic() - started) / FRESH_SECONDS)
    assert 1 <= len(probes) <= rounds, "one for all of them"


async def test_an_asker_that_goes_away_takes_nobody_s_answer_along(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        asked.set()
        await go_on.wait()

    monkeypatch.setattr(gateway.parts.storage, "probe", held)
    monkeypatch.setattr("server.admission.readiness.PROBE_SECONDS", 10.0)
    impatient = asyncio.create_task(gateway.parts.readiness.check())
    await asked.wait()
    patient = asyncio.create_task(gateway.parts.readiness.check())
    impatient.cancel()
    await asyncio.wait({impatient})
    go_on.set()
    answer, _ = await patient
    assert answer.storage is True


async def test_a_silent_store_does_not_hold_up_the_answer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, gateway: Gateway, anybody: httpx.AsyncClient
) -> None:
    """A service that takes connections and never answers, as one behind a broken network does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in AWS_ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        storage = replace(settings.storage, kind="s3", endpoint=endpoint, region="us-east-1")
        async with (
            running_gateway(replace(settings, storage=storage)) as other,
            httpx.AsyncClient(base_url=other.url) as http,
        ):
            started = time.monotonic()
            await looks_like(http, 200, storage=False, degraded=["storage"])
            assert time.monotonic() - started < 5.0


async def test_ready_says_no_while_a_worker_is_down(anybody: httpx.AsyncClient, unspoken: None) -> None:
    response = await anybody.get("/api/ready")
    assert (response.status_code, response.json()) == (503, {**READY, "workers": False})


# --- without a database -----------------------------------------------------------------------------------------------


@pytest.fixture
async def door(database_url: str) -> AsyncIterator[PostgresProxy]:
    """What stands between the server and PostgreSQL."""
    async with postgres_proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def cut_off(settings: Settings, door: PostgresProxy) -> AsyncIterator[Gateway]:
    """A server behind that door."""
    async with running_gateway(replace(settings, database_url=door.url)) as gateway:
        yield gateway


async def everything_is_503(client: Client, voice_id: UUID) -> None:
    """Every door that needs the database, at once, answers soon and says when to come back."""
    some_id, body = uuid4(), {"voice_id": str(voice_id), "text": "Good evening."}

    async def knock(method: str, address: str, **request: Any) -> None:
        started = time.monotonic()
        response = await client.http.request(method, address, **request)
        assert problem_of(response, 503, "internal", says="not available right now"), address
        assert int(response.headers["retry-after"]) > 0
        assert time.monotonic() - started < QUICKLY_SECONDS, address

    async with asyncio.TaskGroup() as group:
        group.create_task(knock("POST", "/api/generate", json=body))
        group.create_task(knock("POST", "/api/generate", json=body, headers={"Idempotency-Key": "k"}))
        group.create_task(knock("POST", "/api/generate/stream", json=body))
        group.create_task(knock("GET", f"/api/generate/stream?task_id={some_id}"))
        group.create_task(knock("GET", f"/api/tasks/{some_id}"))
        group.create_task(knock("DELETE", f"/api/tasks/{some_id}"))
        group.create_task(knock("POST", f"/api/tasks/{some_id}/cancel"))
        group.create_task(knock("GET", "/api/generations"))
        group.create_task(knock("DELETE", f"/api/generations/{some_id}"))
        group.create_task(knock("GET", f"/api/generations/{some_id}/audio"))
        group.create_task(knock("POST", f"/api/generations/{some_id}/regenerate"))
        group.create_task(knock("GET", "/api/voices"))


async def test_without_a_database_everything_that_needs_it_is_503_at_once(
    cut_off: Gateway, door: PostgresProxy, database_url: str
) -> None:
    """And what does not need it goes on; and when it is back, so is everything."""
    async with cut_off.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        door.shut()
        await everything_is_503(client, voice_id)
        for address in ("/api/health", "/api/languages", "/api/me", "/api/openapi.json", "/metrics"):
            assert (await client.http.get(address)).status_code == 200, address
        problem_of(await client.http.get("/api/tasks/nonsense"), 400, "validation")
        response = await client.http.get("/api/ready")
        assert response.status_code == 503
        answer = response.json()
        assert (answer["database"], answer["migrations"], answer["storage"]) == (False, None, True)
        door.open()
        await speaks_again(client, voice_id)
        await ready(client.http)


async def speaks_again(client: Client, voice_id: UUID) -> None:
    """A request may still meet a connection that has died in the pool; soon none does."""

    async def taken() -> str | None:
        response = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Good evening."})
        return str(response.json()["task_id"]) if response.status_code == 200 else None

    task_id = await wait_for(taken)

    async def completed() -> bool:
        response = await client.http.get(f"/api/tasks/{task_id}")
        return response.status_code == 200 and response.json()["status"] == "completed"

    await wait_for(completed)


@asynccontextmanager
async def altered(maintenance: Session, settings: Settings, what: str, back: str) -> AsyncIterator[None]:
    """The database is so, for every session, while the block lasts."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]

    def alter(how: str) -> None:
        maintenance.execute(f'ALTER DATABASE "{name}" {how}'.encode())
        maintenance.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    alter(what)
    try:
        yield
    finally:
        alter(back)


async def test_a_database_that_takes_no_connections_is_503(
    client: Client, voice_id: UUID, settings: Settings, maintenance: Session
) -> None:
    """It answers, but with a refusal: as useless to the client as one that is gone, and no fault of the program."""
    async with altered(maintenance, settings, "ALLOW_CONNECTIONS false", "ALLOW_CONNECTIONS true"):
        await everything_is_503(client, voice_id)
    await speaks_again(client, voice_id)


async def test_a_database_that_was_made_read_only_is_503(
    client: Client, voice_id: UUID, settings: Settings, maintenance: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What remains of a primary after a failover: what it could still read may be old already. Readiness says so,
    whatever was found out a moment ago."""
    monkeypatch.setattr("server.admission.readiness.FRESH_SECONDS", 60.0)
    await ready(client.http)
    read_only = "SET default_transaction_read_only = on", "RESET default_transaction_read_only"
    async with altered(maintenance, settings, *read_only):
        await everything_is_503(client, voice_id)
        await looks_like(client.http, 503, database=False, migrations=None)
    await speaks_again(client, voice_id)


async def test_connections_to_a_demoted_server_are_replaced(
    cut_off: Gateway, door: PostgresProxy, database_url: str
) -> None:
    async with cut_off.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        await speaks_again(client, voice_id)
        assert await door.demote() > 1
        async with asyncio.timeout(10.0):
            await speaks_again(client, voice_id)
            await ready(client.http)
        for _ in range(20):
            await client.generate(voice_id)


async def test_a_host_that_vanished_is_503_within_three_seconds(
    cut_off: Gateway, door: PostgresProxy, database_url: str
) -> None:
    async with cut_off.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        await speaks_again(client, voice_id)
        with door.held():
            await everything_is_503(client, voice_id)
            await everything_is_503(client, voice_id)
        await speaks_again(client, voice_id)


# --- numbers ----------------------------------------------------------------------------------------------------------


async def test_metrics_count_what_happens(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "error", "after_deltas": 1}, text_contains="fails")
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="holds")
    await client.ended((await client.generate(voice_id))["task_id"])
    await client.ended((await client.generate(voice_id, "fails"))["task_id"])
    going = await client.generate(voice_id, "holds")
    async with client.events(going["stream_url"]) as events:
        await anext(events)
        await held.held()
        response = await client.http.get("/metrics")
        lines = response.text.splitlines()
    held.release()
    assert response.headers["content-type"].startswith("text/plain")
    assert 'utter_tasks_total{category="",provider="qwen",status="completed"} 1.0' in lines
    assert 'utter_tasks_total{category="provider_unavailable",provider="qwen",status="failed"} 1.0' in lines
    assert any(line.startswith('utter_first_audio_seconds_count{provider="qwen"} ') for line in lines)
    assert 'utter_active_sessions{provider="qwen"} 1.0' in lines
    assert "utter_active_streams 1.0" in lines
    assert any(line.startswith("utter_queue_depth ") for line in lines)
    assert "utter_finalize_retries_total 0.0" in lines
    await client.ended(going["task_id"])


async def test_metrics_are_for_the_near_where_there_is_no_token(anybody: httpx.AsyncClient) -> None:
    """A router in front of us is near itself; whom it names decides."""
    for forwarded in (None, "10.1.2.3", "127.0.0.1, 192.168.0.7", "fd00::1"):
        headers = {"X-Forwarded-For": forwarded} if forwarded else {}
        assert (await anybody.get("/metrics", headers=headers)).status_code == 200, forwarded
    for forwarded in ("93.184.216.34", "93.184.216.34, 10.0.0.1", "10.0.0.1, 93.184.216.34", "2606:2800::1", "unknown"):
        response = await anybody.get("/metrics", headers={"X-Forwarded-For": forwarded})
        problem_of(response, 403, "unauthorized", says="METRICS_TOKEN")


@pytest.mark.parametrize(
    ("header", "near"),
    [
        ({"X-Real-IP": "10.1.2.3"}, True),
        ({"X-Real-IP": "93.184.216.34"}, False),
        ({"Forwarded": "for=10.1.2.3;proto=https;by=10.0.0.1, For=127.0.0.1"}, True),
        ({"Forwarded": 'for="[fd00::1]:4711"'}, True),
        ({"Forwarded": "for=10.1.2.3, for=93.184.216.34"}, False),
        ({"Forwarded": 'for="93.184.216.34:80"'}, False),
        ({"Forwarded": 'proto=https;FOR="[2606:2800::1]:4711"'}, False),
        ({"Forwarded": "for=_hidden"}, False),
    ],
)
async def test_whoever_names_the_sender_is_heard(
    anybody: httpx.AsyncClient, header: dict[str, str], near: bool
) -> None:
    assert (await anybody.get("/metrics", headers=header)).status_code == (200 if near else 403)


async def test_metrics_with_a_token_are_for_whoever_has_it(settings: Settings) -> None:
    async with (
        running_gateway(replace(settings, metrics_token="the operator's own")) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as http,
    ):
        far = {"X-Forwarded-For": "93.184.216.34"}
        for scheme in ("Bearer", "bearer"):
            good = {"Authorization": f"{scheme} the operator's own"}
            assert (await http.get("/metrics", headers={**far, **good})).status_code == 200
        for token in (None, "Bearer", "Bearer the operator", "Bearer the operator's own!", "Bearer \xff"):
            headers = {"Authorization": token.encode("latin-1")} if token else {}
            problem_of(await http.get("/metrics", headers=headers), 401, "unauthorized", says="token")  # type: ignore[arg-type]
