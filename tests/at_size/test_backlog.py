"""Twelve thousand texts came at once, and no ANALYZE has seen them yet."""

from uuid import uuid4

import asyncpg
import pytest

from server.database.announce import Announcer
from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.metrics import Metrics
from server.records import runs
from server.records.runs import SYNTHESIZE_JOB
from server.relay.endings import Endings
from server.relay.leases import Leases
from server.relay.sweep import Sweeper
from server.settings import Settings
from tests.at_size.statements import Collected, explain, rows_read

BACKLOG = 12_000


@pytest.fixture
async def backlog(rows: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Texts that wait with their jobs, but for one whose job was lost, where the planner knows of none that waits."""
    for table in ("public.generations", "public.tasks", "internal.runs", "internal.procrastinate_jobs"):
        await rows.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    await rows.execute(
        f"""
        SET session_replication_role = replica;
        -- When they were looked at last, nothing waited.
        INSERT INTO internal.procrastinate_jobs (queue_name, task_name, args, status)
        SELECT 'synthesis', '{SYNTHESIZE_JOB}', jsonb_build_object('task_id', gen_random_uuid()), 'doing'
          FROM generate_series(1, 200);
        INSERT INTO internal.runs (task_id, job_name, object_key, state, owner)
        SELECT gen_random_uuid(), '{SYNTHESIZE_JOB}', 'a/b.mp3', 'speaking', gen_random_uuid()
          FROM generate_series(1, 200);
        ANALYZE internal.procrastinate_jobs, internal.runs;
        DELETE FROM internal.procrastinate_jobs;
        DELETE FROM internal.runs;
        CREATE TEMPORARY TABLE waiting AS
            SELECT gen_random_uuid() AS task_id, gen_random_uuid() AS generation_id, gen_random_uuid() AS user_id, n
              FROM generate_series(1, {BACKLOG}) n;
        INSERT INTO public.generations (id, user_id, text, status, tts_provider, output_format)
        SELECT generation_id, user_id, 'Good evening.', 'processing', 'qwen', 'mp3' FROM waiting;
        INSERT INTO public.tasks (id, user_id, type, status, generation_id, provider)
        SELECT task_id, user_id, 'generate', 'processing', generation_id, 'qwen' FROM waiting;
        INSERT INTO internal.runs (task_id, generation_id, user_id, job_name, object_key, start_by, beat_at)
        SELECT task_id, generation_id, user_id, '{SYNTHESIZE_JOB}', 'a/b.mp3', now() + interval '1 hour',
               now() - interval '1 hour' FROM waiting;
        INSERT INTO internal.procrastinate_jobs (queue_name, task_name, args)
        SELECT 'synthesis', '{SYNTHESIZE_JOB}', jsonb_build_object('task_id', task_id, 'attempt', 1)
          FROM waiting WHERE n > 1;
        """
    )


async def test_a_backlog_is_swept_without_reading_it_again_for_each_of_its_texts(
    settings: Settings,
    database_url: str,
    backlog: None,
    collected: Collected,
    rows: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """A plan that was made for an empty table must not look through all jobs once for each run."""
    async with Database.open(database_url, size=3) as database:
        queue, announcer, metrics = Queue(database, Listener(database_url)), Announcer(database), Metrics()
        leases = Leases(database, Listener(database_url), renew_every_seconds=1.0, lost_after_seconds=15.0)
        endings = Endings(database, announcer, metrics)
        sweeper = Sweeper(database, queue, announcer, endings, leases, metrics, settings)
        await sweeper.sweep()
        await sweeper.clean()
        async with database.connection() as connection:
            assert await runs.next_in_turn(connection, SYNTHESIZE_JOB, [])
            assert await runs.waiting(connection, SYNTHESIZE_JOB, 1000, user_id=uuid4())
    assert await rows.fetchval("SELECT count(*) FROM internal.procrastinate_jobs") == BACKLOG
    await rows.execute("SET search_path TO internal, public")
    greedy = {}
    for text, values in collected.statements.items():
        read = rows_read(await explain(rows, text, values))
        if read > 5 * BACKLOG:
            greedy[" ".join(text.split())[:200]] = read
    assert len(collected.statements) > 15
    assert greedy == {}
