"""Every statement that the product issues, on a database in which it has been used for long.

The statements are collected from a run of the product, then each is explained with the values it had: none reads more
than it returns, but for a few that are named here with a reason.
"""

import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from server.database import connections
from server.database.migrations import Runner
from server.dev.simulator import Simulator
from server.jobs.reconcile import reconcile
from server.settings import Settings
from tests.at_size.conftest import Size, size_of
from tests.conftest import PostgresServer, Session, fresh_database
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.modal import in_modal_mode, insert_modal_voice
from tests.support import wait_for
from tests.voices import finalize, recording, upload

if TYPE_CHECKING:
    from asyncpg.connection import LoggedQuery

    from server.database.connections import Connection

FIXTURES = Path(__file__).parent.parent / "fixtures"
REMOVED_AT_MOST = 100
LIVE_TABLES = {"generations", "tasks", "voices"}

#: A piece of a statement, and why it may read more than it returns.
READS_MORE: dict[str, str] = {
    "SELECT count(*) FROM public.generations g WHERE": "v1 says how many pages there are; read by its user's index,"
    " a few at a time for one person",
    "g.text ILIKE $2": "a search reads its own user's texts, by their index; a few at a time for one person",
    "SELECT count(*) FROM public.voices v WHERE": "the same for voices",
    "WITH RECURSIVE typeinfo_tree": "the driver's, once for each type",
    "SELECT provider_voice_kind AS kind FROM public.voices": "counts what the provider keeps (a thousand of a kind),"
    " once a minute in a process, and never more than 10 000",
    "v.name ILIKE $2": "the same for the names of voices",
}


@dataclass
class Collected:
    """What was said to the database, by its text; the values are those of the last time."""

    statements: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def add(self, said: "LoggedQuery") -> None:
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", said.query) and said.exception is None:
            self.statements[said.query] = tuple(said.args)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Collected:
    """What the servers of this test say to their database, from its start."""
    found = Collected()
    prepare_as_ever = connections._prepare_bounded

    async def prepare_and_listen(connection: "Connection") -> None:
        await prepare_as_ever(connection)
        connection.add_query_logger(found.add)

    monkeypatch.setattr(connections, "_prepare_bounded", prepare_and_listen)
    return found


@dataclass
class Writer:
    """The older system, which goes on writing while its database is migrated.

    Attributes:
        longest_seconds: The longest that one of its statements stood.
        written: How many it has said.
    """

    longest_seconds: float = 0.0
    written: int = 0

    async def run(self, url: str, user_id: UUID) -> None:
        """Insert a generation and its task, and change both, again and again until cancelled."""
        connection = await asyncpg.connect(url)
        try:
            while True:
                generation_id = uuid4()
                for said, *values in (
                    (
                        "INSERT INTO public.generations (id, user_id, text, status) VALUES ($1, $2, 'Now', 'failed')",
                        generation_id,
                        user_id,
                    ),
                    (
                        "INSERT INTO public.tasks (user_id, type, status, generation_id)"
                        " VALUES ($2, 'generate', 'failed', $1)",
                        generation_id,
                        user_id,
                    ),
                    ("UPDATE public.tasks SET modal_poll_count = 1 WHERE generation_id = $1", generation_id),
                    ("UPDATE public.generations SET duration_seconds = 1 WHERE id = $1", generation_id),
                ):
                    began = time.monotonic()
                    await connection.execute(said, *values)
                    self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                    self.written += 1
                await asyncio.sleep(0.005)
        finally:
            connection.terminate()


@dataclass(frozen=True)
class LivedIn:
    """A database in which much has happened, of the current schema.

    Attributes:
        much: The person who has a third of it.
        writer: What the older system met while it was migrated.
    """

    url: str
    much: UUID
    writer: Writer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lived_in(
    postgres_server: PostgresServer, maintenance: Session, request: pytest.FixtureRequest
) -> AsyncIterator[LivedIn]:
    """The older system's database, migrated while that one went on working, and then used for long."""
    with fresh_database(postgres_server, maintenance, "template1") as url:
        connection = await asyncpg.connect(url)
        try:
            for name in ("live_platform", "live_oldest"):
                await connection.execute((FIXTURES / f"{name}.sql").read_text())
            much = await _fill_as_found(connection, size_of(request.config))
            writer = Writer()
            began = time.monotonic()
            writing = asyncio.create_task(writer.run(url, much))
            await wait_for(lambda: writer.written or writing.done())
            await Runner(database_url=url).migrate()
            assert not writing.done(), writing.exception()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            print(f"migrated in {time.monotonic() - began:.1f} s; a write stood {writer.longest_seconds:.3f} s at most")
            await _use_for_long(connection, much)
        finally:
            await connection.close()
        yield LivedIn(url, much, writer)


@pytest.fixture
def user_id(lived_in: LivedIn) -> UUID:
    """The person who has much, in a database where many have something."""
    return lived_in.much


async def _fill_as_found(connection: "asyncpg.Connection[asyncpg.Record]", size: Size) -> UUID:
    """What the older system has left in a busy time, before us; the id of whoever has much."""
    much = uuid4()
    await connection.execute(
        f"""
        SET session_replication_role = replica;  -- what is made here refers to what is there, and need not be asked
        CREATE TEMPORARY TABLE people AS SELECT gen_random_uuid() AS id FROM generate_series(1, 400);
        ALTER TABLE people ADD COLUMN number serial PRIMARY KEY;
        INSERT INTO auth.users (id) SELECT id FROM people UNION SELECT '{much}';
        INSERT INTO public.voices (id, user_id, name, language, source, reference_object_key, created_at)
        SELECT v.id, v.user_id, 'Voice ' || v.number, 'English', 'uploaded',
               v.user_id || '/' || v.id || '/reference.wav', now() - make_interval(mins => v.number)
          FROM (SELECT gen_random_uuid() AS id, n AS number,
                       CASE WHEN n % 3 = 0 THEN '{much}' ELSE p.id END AS user_id
                  FROM generate_series(1, {size.voices}) n JOIN people p ON p.number = 1 + n % 400) v;
        INSERT INTO public.generations (id, user_id, text, language, status, created_at, completed_at,
                                        audio_object_key, duration_seconds)
        SELECT g.id, g.user_id, 'What was said some time ago, number ' || g.number, 'English', 'completed',
               now() - make_interval(secs => g.number), now() - make_interval(secs => g.number),
               g.user_id || '/' || g.id || '.wav', 3
          FROM (SELECT gen_random_uuid() AS id, n AS number,
                       CASE WHEN n % 3 = 0 THEN '{much}' ELSE p.id END AS user_id
                  FROM generate_series(1, {size.generations}) n JOIN people p ON p.number = 1 + n % 400) g;
        """
    )
    await connection.execute(
        f"""
        INSERT INTO public.tasks (user_id, type, status, generation_id, created_at, updated_at, completed_at,
                                  modal_job_id)
        SELECT g.user_id, 'generate', 'completed', g.id, g.created_at, g.created_at, g.created_at,
               CASE WHEN copy = 2 THEN 'job-' || g.id END
          FROM public.generations g CROSS JOIN generate_series(1, {size.tasks // size.generations}) copy
         WHERE g.status = 'completed';
        RESET session_replication_role;
        ANALYZE;
        """,
        timeout=3600,
    )
    return much


async def _use_for_long(connection: "asyncpg.Connection[asyncpg.Record]", much: UUID) -> None:
    """What this server adds in that time."""
    await connection.execute(
        f"""
        UPDATE public.voices SET tts_provider = 'qwen', provider_voice_id = 'qwen-tts-vc-' || id,
               provider_target_model = 'qwen3-tts-vc-realtime-2026-01-15', provider_voice_kind = 'vc';
        UPDATE public.tasks SET deleted_at = now() WHERE id IN (SELECT id FROM public.tasks LIMIT 2000);
        INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until, outcome, created_at, updated_at)
        SELECT gen_random_uuid(), (ARRAY['http', 'clone', 'design'])[1 + n % 3], '{much}', 'done', now(),
               jsonb_build_object('voice', 'qwen-tts-vd-' || n), now(), now() - make_interval(mins => n)
          FROM generate_series(1, 20000) n;
        ANALYZE;
        """,
        timeout=3600,
    )


@pytest.fixture
def database_url(lived_in: LivedIn) -> str:
    """That database, instead of an empty one."""
    return lived_in.url


@asynccontextmanager
async def in_use(settings: Settings, user_id: UUID) -> AsyncIterator[tuple[Gateway, Client]]:
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        yield gateway, client


async def everything_a_person_does(
    client: Client, database_url: str, simulator: Simulator, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Speak, listen, look back, search, delete, cancel, clone and design."""
    voice_id = await insert_voice(database_url, client.user_id, name="Ada")
    http = client.http
    task = await client.generate(voice_id, "Something new.")
    async with client.events(task["stream_url"]) as events:
        async for event in events:
            if event.terminal:
                break
    await client.ended(task["task_id"])
    await client.audio(task["generation_id"])
    for path in (
        "/api/generations",
        "/api/generations?page=300&per_page=20",
        "/api/generations?search=number+4242",
        "/api/generations?status=failed",
        "/api/voices",
        "/api/voices?search=Voice+12",
        "/api/me",
        f"/api/voices/{voice_id}/preview",
        f"/api/generations/{task['generation_id']}/audio",
        f"/api/generations/{task['generation_id']}/captions.vtt",
        f"/api/generations?ids={task['generation_id']}",
        "/api/generations?q=number+4242",
        "/api/usage",
        "/api/keys",
        "/v1/audio/voices",
    ):
        response = await http.get(path)
        assert response.status_code in (200, 302, 404), response.text
    page = (await http.get("/api/generations?page=2")).json()["generations"]
    for side in ("before", "since"):
        at = f"{page[0]['created_at']},{page[0]['id']}"
        assert (await http.get("/api/generations", params={side: at})).status_code == 200
    zipped = await http.post("/api/generations/zip", json={"ids": [task["generation_id"]]})
    assert zipped.status_code == 200, zipped.text
    key = (await http.post("/api/keys", json={"name": "A program"})).json()
    program = {"Authorization": f"Bearer {key['key']}"}
    asked = {"model": "tts-1", "input": "From a program.", "voice": str(voice_id)}
    spoken = await http.post("/v1/audio/speech", json=asked, headers=program)
    assert spoken.status_code == 200, spoken.text
    assert (await http.delete(f"/api/keys/{key['id']}")).status_code == 200
    assert (await http.post(f"/api/generations/{task['generation_id']}/regenerate")).status_code == 200
    assert (await http.delete(f"/api/tasks/{task['task_id']}")).status_code == 200
    assert (await http.delete(f"/api/generations/{task['generation_id']}")).status_code == 200
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="stopped")
    going = await client.generate(voice_id, "To be stopped.")
    await held.held()
    assert (await http.post(f"/api/tasks/{going['task_id']}/cancel")).status_code == 200
    held.release()
    cloned = await upload(client, recording())
    assert (await finalize(client, cloned)).status_code == 200
    older = "qwen3-tts-vc-realtime-2025-11-27"
    await rows.execute("UPDATE public.voices SET provider_target_model = $2 WHERE id = $1", UUID(cloned), older)
    renewing = await http.post(f"/api/voices/{cloned}/renew")
    assert renewing.status_code == 200, renewing.text
    await client.ended(renewing.json()["task_id"])
    preview = {"text": "Good evening.", "language": "English", "instruct": "A calm voice."}
    task_id = (await http.post("/api/voices/design/preview", json=preview)).json()["task_id"]
    await client.ended(task_id)
    saved = await http.post("/api/voices/design", json={"name": "Calm", "task_id": task_id, **preview})
    assert saved.status_code == 200, saved.text
    assert (await http.delete(f"/api/voices/{voice_id}")).status_code == 200


async def what_the_other_provider_does(
    gateway: Gateway, client: Client, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Submitted, polled and collected; and another one cancelled."""
    voice_id = await insert_modal_voice(gateway.parts, rows, client.user_id)
    task = await client.generate(voice_id, "From a job.")
    await client.ended(task["task_id"])
    going = await client.generate(voice_id, "To be stopped there.")
    assert (await client.http.post(f"/api/tasks/{going['task_id']}/cancel")).status_code == 200
    assert (await client.http.get("/api/voices")).status_code == 200


async def explain(connection: "asyncpg.Connection[asyncpg.Record]", statement: str, values: tuple[Any, ...]) -> Any:
    """The plan of a statement as it is carried out, and undone."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        shown = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *values)
    finally:
        await transaction.rollback()
    return (json.loads(shown) if isinstance(shown, str) else shown)[0]["Plan"]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def complaints(plan: dict[str, Any]) -> list[str]:
    """What a plan reads in vain."""
    found = []
    for node in nodes(plan):
        relation = node.get("Relation Name", "")
        removed = sum(
            node.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Join Filter", "Index Recheck")
        ) * node.get("Actual Loops", 1)
        if node["Node Type"] == "Seq Scan" and relation in LIVE_TABLES:
            found.append(f"reads all of {relation}")
        if removed > REMOVED_AT_MOST:
            found.append(f"throws away {removed:.0f} rows of {relation or node['Node Type']}")
    return found


async def test_no_statement_reads_more_than_it_returns(
    settings: Settings,
    database_url: str,
    simulator: Simulator,
    collected: Collected,
    user_id: UUID,
    rows: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    async with in_use(settings, user_id) as (gateway, client):
        await everything_a_person_does(client, database_url, simulator, rows)
        await reconcile(gateway.parts)
    async with in_use(in_modal_mode(settings), user_id) as (gateway, client):
        await what_the_other_provider_does(gateway, client, rows)

        async def nothing_is_left() -> bool:
            return not await rows.fetchval(
                "SELECT (SELECT count(*) FROM internal.runs) + (SELECT count(*) FROM internal.removals)"
            )

        await wait_for(nothing_is_left, 20.0)
    assert len(collected.statements) > 100, "the run must have come everywhere"
    await rows.execute("SET search_path TO internal, public")
    bad: dict[str, list[str]] = {}
    for statement, values in collected.statements.items():
        if any(piece in statement for piece in READS_MORE):
            continue
        try:
            plan = await explain(rows, statement, values)
        except asyncpg.PostgresError as exc:
            if isinstance(exc, asyncpg.IntegrityConstraintViolationError | asyncpg.RaiseError):
                continue  # what was inserted once cannot be again; such a statement reads nothing
            raise
        if found := complaints(plan):
            bad[" ".join(statement.split())[:300]] = found
    assert not bad, json.dumps(bad, indent=1)

    # The rule sees what it is there for.
    removing = next(statement for statement in collected.statements if "g.audio_object_key = a.key" in statement)
    transaction = rows.transaction()
    await transaction.start()
    await rows.execute("DROP INDEX public.idx_generations_audio_object_key")
    assert complaints(await explain(rows, removing, collected.statements[removing]))
    await transaction.rollback()


async def test_the_older_system_writes_on_while_its_database_is_migrated(
    lived_in: LivedIn, size: Size, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Every write came through; how long one stood is looked at where it says something, at live size."""
    written = await rows.fetchval(
        "SELECT count(*) FROM public.generations WHERE text = 'Now' AND user_id = $1", lived_in.much
    )
    assert written >= lived_in.writer.written // 4 > 0
    if size.long:
        assert lived_in.writer.longest_seconds < 1.0


async def test_pages_and_searches_are_quick_for_whoever_has_much(settings: Settings, user_id: UUID, size: Size) -> None:
    """Figures in the long form; in the small one the answers alone, since a loaded machine has no clock."""
    async with in_use(settings, user_id) as (_, client):
        found = (await client.http.get("/api/generations?search=number+4242")).json()
        assert any(entry["text"].endswith("number 4242") for entry in found["generations"]) or size.long
        if not size.long:
            return
        for path in ("", "?page=300", "?search=number+424242", "?q=number+424242", "?search=said+some", "?search=zz"):
            took = []
            for _ in range(20):
                began = time.monotonic()
                response = await client.http.get(f"/api/generations{path}")
                took.append(time.monotonic() - began)
                assert response.status_code == 200, response.text
            print(f"/api/generations{path}: p95 {statistics.quantiles(took, n=20)[-1] * 1000:.0f} ms")
