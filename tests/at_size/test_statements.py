"""Every statement that the product issues, on a database in which it has been used for long.

The statements are collected from a run of the product, then each is explained with the values it had: none reads more
than it returns, but for a few that are named here with a reason.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database import connections
from server.dev.simulator import Simulator
from server.jobs.reconcile import reconcile
from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import wait_for
from tests.voices import finalize, recording, upload

if TYPE_CHECKING:
    from asyncpg.connection import LoggedQuery

    from server.database.connections import Connection

GENERATIONS, TASKS, VOICES = 30_000, 60_000, 6_000
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


@pytest.fixture
async def user_id(rows: "asyncpg.Connection[asyncpg.Record]") -> UUID:
    """The person who has much, in a database where many have something."""
    much = uuid4()
    await rows.execute(
        f"""
        CREATE TEMPORARY TABLE people AS SELECT gen_random_uuid() AS id FROM generate_series(1, 400);
        ALTER TABLE people ADD COLUMN number serial;
        INSERT INTO public.voices (id, user_id, name, language, source, tts_provider, reference_object_key, created_at,
                                   provider_voice_id, provider_target_model, provider_voice_kind)
        SELECT v.id, v.user_id, 'Voice ' || v.number, 'English', 'uploaded', 'qwen',
               v.user_id || '/' || v.id || '/reference.wav', now() - make_interval(mins => v.number),
               'qwen-tts-vc-u' || v.number, 'qwen3-tts-vc-realtime-2026-01-15', 'vc'
          FROM (SELECT gen_random_uuid() AS id, n AS number,
                       CASE WHEN n % 3 = 0 THEN '{much}'::uuid ELSE (SELECT id FROM people WHERE number = 1 + n % 400)
                       END AS user_id
                  FROM generate_series(1, {VOICES}) n) v;
        INSERT INTO public.generations (id, user_id, text, language, status, tts_provider, output_format, created_at,
                                        completed_at, audio_object_key, duration_seconds)
        SELECT g.id, g.user_id, 'What was said some time ago, number ' || g.number, 'English', 'completed', 'qwen',
               'mp3',
               now() - make_interval(mins => g.number), now() - make_interval(mins => g.number),
               g.user_id || '/' || g.id || '.mp3', 3
          FROM (SELECT gen_random_uuid() AS id, n AS number,
                       CASE WHEN n % 3 = 0 THEN '{much}'::uuid ELSE (SELECT id FROM people WHERE number = 1 + n % 400)
                       END AS user_id
                  FROM generate_series(1, {GENERATIONS}) n) g;
        INSERT INTO public.tasks (id, user_id, type, status, provider, generation_id, created_at, updated_at,
                                  completed_at, modal_job_id)
        SELECT gen_random_uuid(), g.user_id, 'generate', 'completed', 'qwen', g.id, g.created_at, g.created_at,
               g.created_at, CASE WHEN copy = 2 THEN 'job-' || g.id END
          FROM public.generations g CROSS JOIN generate_series(1, {TASKS // GENERATIONS}) copy;
        UPDATE public.tasks SET deleted_at = now() WHERE id IN (SELECT id FROM public.tasks LIMIT 2000);
        INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until, outcome, created_at, updated_at)
        SELECT gen_random_uuid(), (ARRAY['http', 'clone', 'design'])[1 + n % 3], '{much}', 'done', now(),
               jsonb_build_object('voice', 'qwen-tts-vd-' || n), now(), now() - make_interval(mins => n)
          FROM generate_series(1, 20000) n;
        ANALYZE;
        """
    )
    return much


@asynccontextmanager
async def in_use(settings: Settings, user_id: UUID) -> AsyncIterator[tuple[Gateway, Client]]:
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        yield gateway, client


async def everything_a_person_does(client: Client, database_url: str, simulator: Simulator) -> None:
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
    ):
        response = await http.get(path)
        assert response.status_code in (200, 302, 404), response.text
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
    preview = {"text": "Good evening.", "language": "English", "instruct": "A calm voice."}
    task_id = (await http.post("/api/voices/design/preview", json=preview)).json()["task_id"]
    await client.ended(task_id)
    saved = await http.post("/api/voices/design", json={"name": "Calm", "task_id": task_id, **preview})
    assert saved.status_code == 200, saved.text
    assert (await http.delete(f"/api/voices/{voice_id}")).status_code == 200


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
        await everything_a_person_does(client, database_url, simulator)
        await reconcile(gateway.parts)

        async def nothing_is_left() -> bool:
            return not await rows.fetchval(
                "SELECT (SELECT count(*) FROM internal.runs) + (SELECT count(*) FROM internal.removals)"
            )

        await wait_for(nothing_is_left, 20.0)
    assert len(collected.statements) > 60, "the run must have come everywhere"
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
    await rows.execute("DROP INDEX public.idx_generations_audio_object_key")
    removing = next(statement for statement in collected.statements if "g.audio_object_key = a.key" in statement)
    assert complaints(await explain(rows, removing, collected.statements[removing]))
