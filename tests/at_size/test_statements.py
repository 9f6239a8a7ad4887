"""Every statement that the product issues, on a database in which it has been used for long.

The statements are collected from a run of the product, then each is explained with the values it had: none reads more
than it returns, but for a few that are named here with a reason.
"""

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from server.database.migrations import Runner
from server.dev.simulator import Simulator
from server.jobs.reconcile import reconcile
from server.records import (
    attended,
    idempotency,
    modal,
    pace,
    previews,
    purchases,
    removals,
    retired,
    runs,
    speech,
    usage,
    voices,
    words,
)
from server.relay.spool import spooled
from server.serve import calm_the_collector
from server.settings import Settings
from tests.at_size.conftest import Size, size_of
from tests.at_size.statements import Collected, Place, explain, nodes, places_in_sources, rows_read
from tests.conftest import PostgresServer, Session, fresh_database
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.modal import in_modal_mode, insert_modal_voice
from tests.support import wait_for
from tests.voices import finalize, recording, upload

FIXTURES = Path(__file__).parent.parent / "fixtures"
REMOVED_AT_MOST = 100
BLOCKS_AT_MOST = 100
LIVE_TABLES = {"generations", "tasks", "voices"}

#: A piece of a statement, and why it may read more than it returns.
READS_MORE: dict[str, str] = {
    "AS has_words": "the newest entries show whether words are common; never more than 16 000 at once",
    "LIMIT 10000) counted": "the history says how many entries there are, as far as 10 000; read by an index alone",
    "SELECT count(*) FROM public.voices v WHERE": "the list says how many pages there are; read by its user's index,"
    " a few at a time for one person",
    "v.name ILIKE $2": "a search of the list reads its own user's voices, by their index",
    "procrastinate_": "the queue library's functions, the first call of which in a session plans what is in them",
    "WITH RECURSIVE typeinfo_tree": "the driver's, once for each type",
    "SELECT provider_voice_kind AS kind FROM public.voices": "counts what the provider keeps (a thousand of a kind),"
    " once a minute in a process, and never more than 10 000",
    "array_agg(provider_voice_id ORDER BY": "a command reads all voices, once (`doctor`)",
    "ORDER BY v.created_at, v.id LIMIT $4": "a command reads all voices, in batches (`renew`)",
}


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
    # Ten million rows go in at once: their indexes are made afterwards, each in one go.
    indexes = await connection.fetch(
        """SELECT format('%I.%I', schemaname, indexname) AS name, indexdef FROM pg_indexes
            WHERE schemaname = 'public' AND tablename IN ('generations', 'tasks')
              AND indexname NOT IN (SELECT conname FROM pg_constraint)"""
    )
    await connection.execute("SET maintenance_work_mem = '512MB'; SET work_mem = '256MB'")
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['name']}")
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
        INSERT INTO public.generations (id, user_id, voice_id, text, language, status, created_at, completed_at,
                                        audio_object_key, duration_seconds)
        SELECT g.id, g.user_id, v.id, 'What was said some time ago, number ' || g.number
                 || CASE WHEN g.number % 4500 = 0 THEN ' 你好 🎉' ELSE '' END
                 || CASE WHEN g.number % 1500 = 0 THEN ', of kittens' ELSE '' END,
               'English', CASE WHEN g.number % 2500 = 0 THEN 'failed' ELSE 'completed' END,
               now() - make_interval(secs => g.number), now() - make_interval(secs => g.number),
               g.user_id || '/' || g.id || '.wav', 3
          FROM (SELECT gen_random_uuid() AS id, n AS number,
                       CASE WHEN n % 3 = 0 THEN '{much}' ELSE p.id END AS user_id
                  FROM generate_series(1, {size.generations}) n JOIN people p ON p.number = 1 + n % 400) g
          LEFT JOIN public.voices v ON v.user_id = '{much}' AND g.number % 3 = 0
                                   AND v.name = 'Voice ' || g.number % {size.voices};
        """
    )
    await connection.execute(
        f"""
        INSERT INTO public.tasks (user_id, type, status, generation_id, created_at, updated_at, completed_at,
                                  modal_job_id)
        SELECT g.user_id, 'generate', 'completed', g.id, g.created_at, g.created_at, g.created_at,
               CASE WHEN copy = 2 THEN 'job-' || g.id END
          FROM public.generations g CROSS JOIN generate_series(1, {size.tasks // size.generations}) copy
         WHERE g.status IN ('completed', 'failed') AND g.text LIKE 'What was said%';
        """,
        timeout=3600,
    )
    for index in indexes:
        await connection.execute(index["indexdef"], timeout=3600)
    await connection.execute("RESET ALL; ANALYZE", timeout=3600)
    return much


async def _use_for_long(connection: "asyncpg.Connection[asyncpg.Record]", much: UUID) -> None:
    """What this server adds in that time."""
    await connection.execute(
        f"""
        UPDATE public.voices SET tts_provider = 'qwen', provider_voice_id = 'qwen-tts-vc-' || id,
               provider_target_model = 'qwen3-tts-vc-realtime-2026-01-15', provider_voice_kind = 'vc';
        -- What was written meanwhile is not what this person looks at.
        UPDATE public.generations SET created_at = created_at - interval '10 years' WHERE text = 'Now';
        UPDATE public.tasks SET deleted_at = now() WHERE id IN (SELECT id FROM public.tasks LIMIT 2000);
        INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until, outcome, created_at, updated_at)
        SELECT gen_random_uuid(), (ARRAY['http', 'clone', 'design'])[1 + n % 3], '{much}', 'done', now(),
               jsonb_build_object('voice', 'qwen-tts-vd-' || n, 'instruct', 'A voice, number ' || n),
               now(), now() - make_interval(mins => n)
          FROM generate_series(1, 20000) n;
        """,
        timeout=3600,
    )
    await connection.execute("VACUUM ANALYZE", timeout=3600)


@pytest.fixture
def database_url(lived_in: LivedIn) -> str:
    """That database, instead of an empty one."""
    return lived_in.url


@asynccontextmanager
async def in_use(settings: Settings, user_id: UUID) -> AsyncIterator[tuple[Gateway, Client]]:
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        yield gateway, client


async def everything_a_person_does(
    gateway: Gateway,
    client: Client,
    database_url: str,
    simulator: Simulator,
    rows: "asyncpg.Connection[asyncpg.Record]",
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
    async with gateway.parts.database.connection() as connection:
        await gateway.parts.leases._renew(connection)
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
    await what_happens_seldom(gateway, client, voice_id)
    assert (await http.delete(f"/api/voices/{voice_id}")).status_code == 200


async def what_happens_seldom(gateway: Gateway, client: Client, voice_id: UUID) -> None:
    """Retries, refusals and take-overs, and what only commands ask: said as their callers say it, and undone."""
    parts, user_id, task_id, generation_id, nobody = gateway.parts, client.user_id, uuid4(), uuid4(), uuid4()
    account = usage.Account(user_id=user_id, lane="qwen", key_id=None)
    preview = previews.Preview(
        task_id=nobody, user_id=user_id, attempt=1, object_key="", text="", language="", instruct="", provider="qwen"
    )
    new = speech.NewSpeech(
        task_id=task_id,
        generation_id=generation_id,
        user_id=user_id,
        voice_id=voice_id,
        text="Never heard.",
        text_length=12,
        language="English",
        provider="qwen",
        model="a model",
        format_name="mp3",
        object_key=f"{user_id}/{generation_id}.mp3",
        lane="qwen",
    )
    async with parts.database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await speech.create(connection, parts.queue, new, owner=nobody)
            assert await speech.requeue(connection, parts.queue, task_id, 1, reason="nobody has heard it", begun=False)
            await runs.wake(connection, parts.queue, task_id, 2)
            await runs.next_in_turn(connection, runs.SYNTHESIZE_JOB, [])
            await runs.standings(connection, [task_id])
            await runs.waiting_characters(connection, runs.SYNTHESIZE_JOB, 1000)
            await runs.characters_of(connection, task_id)
            await runs.still_held(connection, {task_id: 2}, nobody)
            await runs.note_begun_again(connection, task_id, 2, 5)
            await runs.note_sample_rate(connection, task_id, 2, 44_100)
            stored = runs.Storable(
                task_id=task_id,
                generation_id=generation_id,
                attempt=1,  # another process has begun it again: nothing is published
                byte_length=0,
                sample_rate_hz=24_000,
                format_name="mp3",
                provider="qwen",
                spoken_for_seconds=0.0,
            )
            assert not await speech.publish_again(
                connection,
                parts.queue,
                stored,
                nobody,
                object_key=new.object_key,
                duration_seconds=0.0,
                bits_per_second=0,
            )
            await runs.take_spoken(connection, task_id, nobody)
            await runs.keep_unstored(connection, task_id)
            assert await runs.forget_generation(connection, generation_id)
            await spooled(connection, task_id)
            await speech.verdict(connection, task_id, new.object_key)
            await speech.account_of(connection, generation_id)
            await words.next_position(connection, generation_id)
            await usage.take_back_start(connection, account, 12, datetime.now(UTC))
            design = {"text": "Never made.", "language": "English", "instruct": "A voice that nobody waits for."}
            preview_id = uuid4()
            await previews.create(
                connection, parts.queue, task_id=preview_id, user_id=user_id, provider="qwen", key_id=None, **design
            )
            await speech.end(connection, preview_id, speech.CANCELLED)
            await attended.join(connection, user_id, b"asked before")
            await attended.note_followed(connection, [task_id])
            await attended.take_abandoned(connection, 0.0)
            await attended.forget_old(connection)
            await idempotency.recall(connection, user_id, "a key")
            await idempotency.forget(connection, task_id)
            await idempotency.take(connection, user_id, "a key")
            await modal.forget_failure(connection, task_id, datetime.now(UTC))
            await pace.slow_down(connection, "account", "a model", slowest=0.1, same_throttle_seconds=1.0)
            await previews.complete(connection, preview, request_id=None)
            await purchases.any_of(connection, nobody)
            await purchases.take_back(connection, nobody, attempt=1)
            await purchases.newest_preview(connection, user_id, text="a", language="b", instruct="c")
            await removals.tries(connection, "generations", "a key")
            await retired.note(connection, "account", "a model", "gone")
            await retired.forget(connection, "account", "a model")
            await voices.note_recording(connection, nobody, "a key", "said")
            await voices.after(connection, None, provider="qwen", limit=100)
            await voices.models(connection)
            await voices.named(connection, user_id, "voice 12")
            await voices.change(connection, voice_id, user_id, name="Another", default=True)
            await voices.change(connection, voice_id, user_id, name=None, default=False)
            await voices.mark_gone(connection, voice_id, "account")
        finally:
            await transaction.rollback()


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


def complaints(plan: dict[str, Any]) -> list[str]:
    """What a plan reads in vain."""
    found = []
    blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    if blocks > BLOCKS_AT_MOST:
        found.append(f"reads {blocks} blocks")
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
        await everything_a_person_does(gateway, client, database_url, simulator, rows)
        await reconcile(gateway.parts)
    async with in_use(in_modal_mode(settings), user_id) as (gateway, client):
        await what_the_other_provider_does(gateway, client, rows)
        await rows.execute("INSERT INTO internal.processes VALUES (gen_random_uuid(), '-infinity')")  # one that left

        async def nothing_is_left() -> bool:
            return not await rows.fetchval(
                "SELECT (SELECT count(*) FROM internal.runs) + (SELECT count(*) FROM internal.removals"
                " WHERE reason <> 'never finalized')"
            )

        await wait_for(nothing_is_left, 20.0)

        def never_said() -> list[Place]:
            return [
                place for place in places if not any((place.module, line) in collected.places for line in place.lines)
            ]

        places = places_in_sources()
        assert len(places) > 150
        with contextlib.suppress(AssertionError):
            await wait_for(lambda: not never_said(), 20.0)  # some are said once in a while
        assert not never_said(), "\n".join(f"{place.module}: {place.call}" for place in never_said())
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


#: What whoever has much looks at, and how many rows may be read for it: a page, the newest entries where words are
#: looked for, the next two thousand where they are common, and those that are found.
PAGES = {
    "": 10_100,  # of the index alone, to count
    "page=300": 17_000,  # the same, and what lies before the page
    "status=failed": 10_100,
    "status=completed": 10_100,
    "search=number+4242": 1200,
    "q=number+4242": 1200,
    "search=of+kittens": 2400,
    "search=said+some": 3600,  # in every text
    "q=said": 3600,
    "search=zz": 1200,  # nowhere
    "q=zz": 1200,
    "search=🎉": 1200,
    "q=你好": 1200,
    "q=voice+42": 10_000,
    "search=100%25": 1200,
    "before=2030-01-01T00:00:00Z,00000000-0000-4000-8000-000000000000&q=kittens": 2400,
}


async def test_a_page_or_a_search_reads_a_share_of_what_there_is(
    settings: Settings,
    user_id: UUID,
    size: Size,
    collected: Collected,
    rows: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """Held by the rows that are read; the long form holds the time as well, and prints it."""
    slow, greedy = [], []
    await rows.execute("SET search_path TO internal, public")
    async with in_use(settings, user_id) as (_, client):
        for query, most in PAGES.items():
            path = f"/api/generations?{query}"
            collected.statements.clear()
            answer = await client.http.get(path)
            assert answer.status_code == 200, answer.text
            assert bool(answer.json()["generations"]) != ("zz" in query or "100" in query)
            said = {text: values for text, values in collected.statements.items() if "public.generations" in text}
            assert said
            read = sum([rows_read(await explain(rows, text, values)) for text, values in said.items()])
            if read > most:
                greedy.append(f"{path}: {read:.0f} rows")
            if size.long:
                calm_the_collector()  # as `serve` does; a round over all that a run of tests holds takes 100 ms
                took = []
                for _ in range(40):
                    began = time.monotonic()
                    assert (await client.http.get(path)).status_code == 200
                    took.append(1000 * (time.monotonic() - began))
                p95 = statistics.quantiles(took, n=20)[-1]
                middle = statistics.median(took)
                print(f"{path}: best {min(took):.0f}, p50 {middle:.0f}, p95 {p95:.0f} ms, {read:.0f} rows")
                if p95 > 50.0:
                    slow.append(f"{path}: {p95:.0f} ms")
    assert greedy == []
    assert slow == []
