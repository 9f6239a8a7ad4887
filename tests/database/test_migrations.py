"""Databases that we find: empty ones, and three that others have written to for months."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.connections import prepare
from server.database.migrations import (
    ADVISORY_LOCK,
    DIRECTORY,
    MigrationError,
    Runner,
    migrate,
    pending,
    read_migrations,
    roll_back,
    run_migrate,
)
from server.startup import check_startup
from tests.support import wait_for

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

FIXTURES: Final = Path(__file__).parent.parent / "fixtures"
SHAPES: Final = {
    "oldest": ["live_platform", "live_oldest"],
    "with providers": ["live_platform", "live_oldest", "live_with_providers"],
    "qwen only": ["live_platform", "live_oldest", "live_with_providers", "live_qwen_only"],
}
CORE_TABLES: Final = ("voices", "generations", "tasks")
ADA: Final = UUID("a0000000-0000-4000-8000-000000000001")
PAID_VOICE: Final = UUID("b0000000-0000-4000-8000-000000000003")
EVERYTHING: Final = [migration.name for migration in read_migrations()]


@asynccontextmanager
async def session(url: str, **options: Any) -> "AsyncIterator[Connection]":
    connection = await asyncpg.connect(url, timeout=10, **options)
    try:
        yield connection
    finally:
        await connection.close(timeout=10)


async def execute(url: str, sql: str, *values: object) -> None:
    async with session(url) as connection:
        await connection.execute(sql, *values)


async def fetchval(url: str, sql: str, *values: object) -> Any:
    async with session(url) as connection:
        return await connection.fetchval(sql, *values)


@pytest.fixture(params=[*SHAPES, "empty"])
async def live_url(request: pytest.FixtureRequest, empty_database_url: str) -> str:
    """A database as it is found in production, in one of its shapes, with rows; or an empty one."""
    async with session(empty_database_url) as connection:
        for name in SHAPES.get(request.param, []):
            await connection.execute((FIXTURES / f"{name}.sql").read_text())
    return empty_database_url


def only(*shapes: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("live_url", shapes, indirect=True)


async def schema_of(url: str) -> list[tuple[str, ...]]:
    """Everything about the database's own relations that a dump would show, whatever the order of columns."""
    async with session(url) as connection:
        await connection.execute("SET search_path = ''")
        rows = await connection.fetch(
            """
            WITH tables AS (
                SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
            )
            SELECT 'schema', nspname::text, coalesce(nspacl::text, '') FROM pg_namespace
             WHERE nspname NOT LIKE 'pg\\_%'
            UNION ALL
            SELECT 'table', oid::regclass::text,
                   concat_ws(' ', relrowsecurity, relforcerowsecurity, relowner::regrole, relacl) FROM tables
            UNION ALL
            SELECT 'column', a.attrelid::regclass || '.' || a.attname,
                   concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl,
                             pg_get_expr(d.adbin, d.adrelid))
              FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
              LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            UNION ALL
            SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
             WHERE conrelid IN (SELECT oid FROM tables)
            UNION ALL
            SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
             WHERE indrelid IN (SELECT oid FROM tables)
            UNION ALL
            SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) FROM pg_trigger
             WHERE tgrelid IN (SELECT oid FROM tables) AND NOT tgisinternal
            UNION ALL
            SELECT 'policy', schemaname || '.' || tablename || '.' || policyname, concat_ws(' ', cmd, roles, qual)
              FROM pg_policies
            UNION ALL
            SELECT 'function', oid::regprocedure::text, prosrc FROM pg_proc
             WHERE pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'auth', 'internal'))
            UNION ALL
            SELECT 'type', oid::regtype::text, '' FROM pg_type WHERE typrelid = 0 AND typelem = 0
               AND typnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'internal'))
            UNION ALL
            SELECT 'published', pubname || '.' || tablename, '' FROM pg_publication_tables
            """
        )
    return sorted(tuple(row) for row in rows)


async def rows_of(url: str, columns: dict[str, list[str]] | None = None) -> dict[str, list[tuple[object, ...]]]:
    """The rows of the live tables, in the given columns or in all that they have."""
    found: dict[str, list[tuple[object, ...]]] = {}
    async with session(url) as connection:
        for table, names in (columns or await columns_of(url)).items():
            if names:
                listed = ", ".join(f'"{name}"' for name in names)
                found[table] = [
                    tuple(row) for row in await connection.fetch(f"SELECT {listed} FROM public.{table} ORDER BY id")
                ]
    return found


async def columns_of(url: str) -> dict[str, list[str]]:
    async with session(url) as connection:
        return {
            table: [
                row[0]
                for row in await connection.fetch(
                    "SELECT column_name::text FROM information_schema.columns"
                    " WHERE table_schema = 'public' AND table_name = $1 ORDER BY 1",
                    table,
                )
            ]
            for table in CORE_TABLES
        }


async def insert_modal_rows(url: str) -> None:
    """A voice, a generation and a task, by a writer that knows no provider."""
    async with session(url) as connection:
        voice = await connection.fetchval(
            "INSERT INTO public.voices (user_id, name, source) VALUES ($1, 'Mine', 'uploaded') RETURNING id", ADA
        )
        generation = await connection.fetchval(
            "INSERT INTO public.generations (user_id, voice_id, text) VALUES ($1, $2, 'Hello.') RETURNING id",
            ADA,
            voice,
        )
        await connection.execute(
            "INSERT INTO public.tasks (user_id, type, generation_id, voice_id, modal_job_id)"
            " VALUES ($1, 'generate', $2, $3, 'fc-9')",
            ADA,
            generation,
            voice,
        )


async def insert_qwen_voice(url: str, **values: object) -> UUID:
    voice = {"user_id": ADA, "name": "Q", "source": "designed", "tts_provider": "qwen"} | values
    marks = ", ".join(f"${number}" for number in range(1, len(voice) + 1))
    voice_id: UUID = await fetchval(
        url, f"INSERT INTO public.voices ({', '.join(voice)}) VALUES ({marks}) RETURNING id", *voice.values()
    )
    return voice_id


async def relations_in(url: str, schema: str) -> set[str]:
    async with session(url) as connection:
        rows = await connection.fetch("SELECT tablename::text FROM pg_tables WHERE schemaname = $1", schema)
        return {row[0] for row in rows}


# --- up, down, up -----------------------------------------------------------------------------------------------------


async def test_up_down_up_loses_nothing_and_leaves_the_database_as_it_was(live_url: str) -> None:
    before, columns = await schema_of(live_url), await columns_of(live_url)
    rows = await rows_of(live_url, columns)

    assert [name for name in await migrate(live_url) if not name.startswith("queue")] == EVERYTHING
    assert await rows_of(live_url, columns) == rows
    migrated = await schema_of(live_url)

    assert await roll_back(live_url, 0) == [*reversed(EVERYTHING), "queue"]
    assert await schema_of(live_url) == before
    assert await rows_of(live_url, columns) == rows

    await migrate(live_url)
    again = await schema_of(live_url)
    assert await rows_of(live_url, columns) == rows
    assert [row[:2] for row in again] == [row[:2] for row in migrated]


@only("oldest", "qwen only")
async def test_every_step_down_can_be_taken_up_again(live_url: str) -> None:
    await migrate(live_url)
    rows, schema = await rows_of(live_url), await schema_of(live_url)
    for version in range(len(EVERYTHING) - 1, -1, -1):
        await roll_back(live_url, version)
        assert [name for name in await pending(live_url) if not name.startswith("queue")] == EVERYTHING[version:]
    await migrate(live_url)
    assert [row[:2] for row in await schema_of(live_url)] == [row[:2] for row in schema]
    assert {table: len(found) for table, found in (await rows_of(live_url)).items()} == {
        table: len(found) for table, found in rows.items()
    }


@only("oldest", "with providers", "qwen only")
async def test_every_shape_ends_in_the_columns_of_an_empty_database(live_url: str, database_url: str) -> None:
    async def core_columns(url: str) -> set[tuple[str, ...]]:
        theirs = ("public.profiles", "public.voices.is_favorite", "auth.users")
        return {row for row in await schema_of(url) if row[0] == "column" and not row[1].startswith(theirs)}

    await migrate(live_url)
    assert await core_columns(live_url) == await core_columns(database_url)


@only("oldest", "with providers", "qwen only")
async def test_a_writer_that_names_no_provider_writes_modal_rows(live_url: str) -> None:
    await migrate(live_url)
    await insert_modal_rows(live_url)
    async with session(live_url) as connection:
        assert await connection.fetchval("SELECT tts_provider FROM public.voices WHERE name = 'Mine'") == "modal"
        assert await connection.fetchval("SELECT tts_provider FROM public.generations WHERE text = 'Hello.'") == "modal"
        task = await connection.fetchrow("SELECT * FROM public.tasks WHERE modal_job_id = 'fc-9'")
        assert task is not None
        assert (task["provider"], task["modal_poll_count"], task["cancellation_requested"]) == ("modal", 0, False)


async def test_no_third_provider_is_accepted(database_url: str) -> None:
    await insert_modal_rows(database_url)
    for table, column in (("voices", "tts_provider"), ("generations", "tts_provider"), ("tasks", "provider")):
        with pytest.raises(asyncpg.CheckViolationError, match=f"{table}_{column}_check"):
            await execute(database_url, f"UPDATE public.{table} SET {column} = 'abacus'")
        speaks = ", provider_voice_id = 'v', provider_target_model = 'm'" if table == "voices" else ""
        await execute(database_url, f"UPDATE public.{table} SET {column} = 'qwen'{speaks}")


@only("qwen only")
async def test_modal_rows_survive_going_back_to_a_database_that_knows_only_qwen(live_url: str) -> None:
    await migrate(live_url)
    await insert_modal_rows(live_url)
    await roll_back(live_url, 0)
    assert await fetchval(live_url, "SELECT tts_provider FROM public.voices WHERE name = 'Mine'") == "modal"
    with pytest.raises(asyncpg.CheckViolationError):
        await execute(
            live_url,
            "INSERT INTO public.voices (user_id, name, source, tts_provider) VALUES ($1, 'x', 'uploaded', 'modal')",
            ADA,
        )
    await migrate(live_url)
    assert await fetchval(live_url, "SELECT tts_provider FROM public.voices WHERE name = 'Mine'") == "modal"


@only("oldest", "with providers", "qwen only")
async def test_a_user_who_leaves_takes_every_row_along(live_url: str) -> None:
    """Older rows may break rules that came after them; nothing that touches them may fail for it."""
    await migrate(live_url)
    await execute(
        live_url,
        "INSERT INTO internal.api_keys (user_id, name, prefix, key_hash) VALUES ($1, 'Mine', 'utr_', $2)",
        ADA,
        bytes(32),
    )
    await execute(live_url, "UPDATE public.voices SET deleted_at = now()")
    await execute(live_url, "DELETE FROM public.voices WHERE user_id = $1", ADA)
    await execute(live_url, "UPDATE public.generations SET voice_id = NULL")
    await execute(live_url, "DELETE FROM auth.users")
    assert await fetchval(live_url, "SELECT count(*) FROM internal.api_keys") == 0
    assert all(found == [] for found in (await rows_of(live_url)).values())


@only("oldest", "with providers")
async def test_the_rule_of_one_active_generation_stays(live_url: str) -> None:
    await migrate(live_url)
    submit = "INSERT INTO public.tasks (user_id, type) VALUES ($1, 'generate')"
    await execute(live_url, submit, ADA)
    with pytest.raises(asyncpg.UniqueViolationError, match="idx_tasks_generate_one_active_per_user"):
        await execute(live_url, submit, ADA)


# --- an empty database ------------------------------------------------------------------------------------------------


@only("empty")
async def test_tables_we_made_go_only_when_they_are_empty(live_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await migrate(live_url)
    await insert_modal_rows(live_url)
    rows = await rows_of(live_url, {"voices": ["id", "name"], "tasks": ["id", "modal_job_id"], "generations": ["text"]})
    assert await run_migrate(live_url, down_to=0) == 0
    assert "holds rows, so the tables stay" in capsys.readouterr().out
    assert await relations_in(live_url, "public") == set(CORE_TABLES)
    await migrate(live_url)
    kept = await rows_of(live_url, {"voices": ["id", "name"], "tasks": ["id", "modal_job_id"], "generations": ["text"]})
    assert kept == rows


@only("empty")
async def test_discard_takes_the_tables_we_made(live_url: str) -> None:
    await migrate(live_url)
    await insert_modal_rows(live_url)
    await roll_back(live_url, 0, discard=True)
    assert await relations_in(live_url, "public") == set()


@only("empty")
async def test_only_the_missing_tables_are_made(live_url: str) -> None:
    await execute(
        live_url,
        "CREATE TABLE public.voices (id uuid PRIMARY KEY, user_id uuid NOT NULL, name text NOT NULL,"
        " reference_object_key text, reference_transcript text, language text NOT NULL DEFAULT 'Auto',"
        " source text NOT NULL, description text, created_at timestamptz NOT NULL DEFAULT now())",
    )
    before = await schema_of(live_url)
    await migrate(live_url)
    assert await relations_in(live_url, "public") == set(CORE_TABLES)
    assert not await fetchval(live_url, "SELECT relrowsecurity FROM pg_class WHERE oid = 'public.voices'::regclass")
    await roll_back(live_url, 0)
    assert await schema_of(live_url) == before


@only("empty")
async def test_a_task_says_when_it_was_last_touched(live_url: str) -> None:
    await migrate(live_url)
    await execute(
        live_url,
        "INSERT INTO public.tasks (user_id, type, updated_at) VALUES ($1, 'clone', '2020-01-01')",
        ADA,
    )
    await execute(live_url, "UPDATE public.tasks SET error = 'x'")
    assert await fetchval(live_url, "SELECT now() - updated_at < interval '1 minute' FROM public.tasks")


# --- what must not be lost --------------------------------------------------------------------------------------------


@only("oldest", "empty")
async def test_going_back_is_refused_while_voices_were_paid_for(live_url: str) -> None:
    await migrate(live_url)
    await insert_qwen_voice(live_url, provider_voice_id="v", provider_target_model="m")
    before = await schema_of(live_url)
    with pytest.raises(MigrationError, match=r"1 voice\(s\) that were paid for .* --discard"):
        await roll_back(live_url, 0)
    assert await schema_of(live_url) == before
    assert await pending(live_url) == []

    await roll_back(live_url, 0, discard=True)
    assert await relations_in(live_url, "internal") == set()


@only("with providers", "qwen only")
async def test_paid_voices_that_were_there_before_us_stay_and_refuse_nothing(live_url: str) -> None:
    await migrate(live_url)
    await roll_back(live_url, 0)
    paid = "SELECT provider_voice_id FROM public.voices WHERE id = $1"
    assert await fetchval(live_url, paid, PAID_VOICE) == "qwen-tts-vc-paid-voice-20260227"


@only("empty")
@pytest.mark.parametrize(
    "only_record",
    [
        "INSERT INTO internal.runs (task_id, job_name, state, byte_length)"
        " VALUES (gen_random_uuid(), 'finalize', 'unstored', 10)",
        "INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until)"
        " VALUES (gen_random_uuid(), 'clone', gen_random_uuid(), 'unknown', now())",
    ],
    ids=["audio", "purchase"],
)
async def test_going_back_is_refused_while_something_paid_for_stands_nowhere_else(
    live_url: str, only_record: str
) -> None:
    await migrate(live_url)
    await execute(live_url, only_record)
    with pytest.raises(MigrationError, match=r"paid for|purchase"):
        await roll_back(live_url, 4)
    assert "runs" in await relations_in(live_url, "internal")
    await roll_back(live_url, 4, discard=True)
    assert "runs" not in await relations_in(live_url, "internal")


async def test_what_another_release_applied_is_not_undone_by_guessing(empty_database_url: str) -> None:
    await migrate(empty_database_url)
    await execute(
        empty_database_url, "INSERT INTO internal.schema_migrations VALUES (99, '0099_of_tomorrow', 'x', now())"
    )
    assert await migrate(empty_database_url) == []
    with pytest.raises(MigrationError, match="0099_of_tomorrow was applied by another release"):
        await roll_back(empty_database_url, 0)
    with pytest.raises(MigrationError, match="oldest version"):
        await roll_back(empty_database_url, -1)


# --- the rules the schema keeps ---------------------------------------------------------------------------------------


@only("with providers")
async def test_what_we_spoke_is_completed_exactly_when_it_is_stored(live_url: str) -> None:
    await migrate(live_url)
    generation = await fetchval(
        live_url,
        "INSERT INTO public.generations (user_id, text, tts_provider, output_format)"
        " VALUES ($1, 'Hi.', 'qwen', 'mp3') RETURNING id",
        ADA,
    )
    for broken in ("status = 'completed'", "status = 'cancelled', audio_object_key = 'k'"):
        with pytest.raises(asyncpg.CheckViolationError, match="qwen_completed_has_audio"):
            await execute(live_url, f"UPDATE public.generations SET {broken} WHERE id = $1", generation)
    await execute(
        live_url,
        "UPDATE public.generations SET status = 'completed', audio_object_key = 'k' WHERE id = $1",
        generation,
    )


@only("empty")
async def test_a_preview_is_saved_once_and_only_as_a_voice_that_can_speak(live_url: str) -> None:
    await migrate(live_url)
    preview = uuid4()
    with pytest.raises(asyncpg.CheckViolationError, match="can_speak"):
        await insert_qwen_voice(live_url, preview_task_id=preview, provider_voice_id="v")
    saved = {"preview_task_id": preview, "provider_voice_id": "v", "provider_target_model": "m"}
    await insert_qwen_voice(live_url, **saved)
    with pytest.raises(asyncpg.UniqueViolationError, match="preview_task_id"):
        await insert_qwen_voice(live_url, **saved)


@only("with providers")
async def test_a_new_qwen_voice_can_speak_and_an_older_one_may_still_be_hidden(live_url: str) -> None:
    half = {"provider_voice_id": None, "provider_target_model": "m"}
    await insert_qwen_voice(live_url, **half)
    await migrate(live_url)
    for lacking in (half, {"provider_voice_id": "v", "provider_target_model": None}):
        with pytest.raises(asyncpg.CheckViolationError, match="qwen_can_speak"):
            await insert_qwen_voice(live_url, **lacking)
    hidden = "UPDATE public.voices SET deleted_at = now() WHERE provider_voice_id IS NULL RETURNING id"
    assert await fetchval(live_url, hidden)


@only("empty")
async def test_only_a_silent_run_may_be_spoken(live_url: str) -> None:
    await migrate(live_url)
    run = (
        "INSERT INTO internal.runs (task_id, job_name, state, byte_length)"
        " VALUES (gen_random_uuid(), 'synthesize', $1, $2)"
    )
    await execute(live_url, run, "queued", 0)
    await execute(live_url, run, "speaking", 10)
    with pytest.raises(asyncpg.CheckViolationError, match="queued_is_silent"):
        await execute(live_url, run, "queued", 10)
    with pytest.raises(asyncpg.CheckViolationError, match="spoken_has_audio"):
        await execute(live_url, run, "spoken", 0)


# --- who may look -----------------------------------------------------------------------------------------------------


@only("oldest", "qwen only")
async def test_the_roles_of_an_http_api_see_nothing_of_ours(live_url: str) -> None:
    await migrate(live_url)
    async with session(live_url) as connection:
        for role in ("anon", "authenticated"):
            await connection.execute(f"SET ROLE {role}")
            for table in ("runs", "spool", "api_keys", "schema_migrations", "procrastinate_jobs"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.fetch(f"SELECT FROM internal.{table}")
            await connection.execute("RESET ROLE")
            for right in ("USAGE", "CREATE"):
                assert not await connection.fetchval("SELECT has_schema_privilege($1, 'internal', $2)", role, right)


@only("empty")
async def test_tables_we_made_are_empty_for_whoever_is_not_their_owner(live_url: str) -> None:
    await execute(live_url, (FIXTURES / "live_platform.sql").read_text())
    await migrate(live_url)
    await insert_modal_rows(live_url)
    async with session(live_url) as connection:
        await connection.execute("SET ROLE anon")
        for table in CORE_TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM public.{table}") == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute("INSERT INTO public.tasks (user_id, type) VALUES ($1, 'clone')", ADA)


@only("with providers")
async def test_an_owner_without_further_rights_can_migrate(live_url: str) -> None:
    owner = f"owner_{uuid4().hex[:8]}"
    async with session(live_url) as connection:
        await connection.execute(f"CREATE ROLE {owner} LOGIN NOSUPERUSER")
        database = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"GRANT CREATE ON DATABASE {database} TO {owner}")
        await connection.execute(f"GRANT ALL ON SCHEMA public, auth TO {owner}")
        for table in CORE_TABLES:
            await connection.execute(f"ALTER TABLE public.{table} OWNER TO {owner}")
    url = live_url.replace("//postgres@", f"//{owner}@")
    before = await schema_of(live_url)
    await migrate(url)
    async with session(url) as connection:
        await prepare(connection)
        assert await check_startup(connection) == []
    await roll_back(url, 0)
    assert await schema_of(live_url) == before


@only("oldest")
async def test_who_does_not_own_the_tables_is_told_so(live_url: str) -> None:
    stranger = f"stranger_{uuid4().hex[:8]}"
    database = await fetchval(live_url, "SELECT current_database()")
    await execute(live_url, f"CREATE ROLE {stranger} LOGIN; GRANT CREATE ON DATABASE {database} TO {stranger}")
    with pytest.raises(MigrationError, match="0002_provider_columns: must be owner of table voices"):
        await migrate(live_url.replace("//postgres@", f"//{stranger}@"))


# --- two at once, twice in a row, and somebody else's locks -----------------------------------------------------------


@only("empty", "with providers")
async def test_three_at_once_apply_everything_once(live_url: str) -> None:
    rows = await rows_of(live_url, columns := await columns_of(live_url))
    applied = await asyncio.gather(*(migrate(live_url) for _ in range(3)))
    assert sorted(len(names) for names in applied) == [0, 0, len(EVERYTHING) + 1]
    assert await rows_of(live_url, columns) == rows
    assert await migrate(live_url) == []


async def test_a_runner_that_waits_says_so_and_gives_up_in_the_end(empty_database_url: str) -> None:
    said: list[str] = []
    async with session(empty_database_url) as connection:
        await connection.execute("SELECT pg_advisory_lock($1, $2)", *ADVISORY_LOCK)
        waiting = asyncio.create_task(Runner(database_url=empty_database_url, say=said.append).migrate())
        await wait_for(lambda: said)
        assert said == ["Another migration is running; waiting for it."]
        with pytest.raises(MigrationError, match="Another migration has been running"):
            await Runner(database_url=empty_database_url, wait_seconds=0).migrate()
        await connection.execute("SELECT pg_advisory_unlock($1, $2)", *ADVISORY_LOCK)
        assert len(await waiting) == len(EVERYTHING) + 1


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    """Our migrations, but waiting 50 ms for a lock instead of three seconds."""
    folder = tmp_path / "sql"
    shutil.copytree(DIRECTORY, folder)
    for path in folder.glob("*.sql"):
        path.write_text(path.read_text().replace("lock_timeout = '3s'", "lock_timeout = '50ms'"))
    return folder


@only("oldest")
async def test_a_long_transaction_on_a_table_is_waited_out(live_url: str, impatient: Path) -> None:
    said: list[str] = []
    runner = Runner(database_url=live_url, directory=impatient, say=said.append, pause_seconds=0.01, tries=1000)
    async with session(live_url) as busy:
        async with busy.transaction():
            await busy.execute("UPDATE public.tasks SET error = 'still writing' WHERE status = 'failed'")
            migrating = asyncio.create_task(runner.migrate())
            await wait_for(lambda: said)
            # Between two tries everybody else gets through.
            async with asyncio.timeout(5):
                assert await fetchval(live_url, "SELECT count(*) FROM public.tasks") == 3
        await migrating
    assert said[0] == "0002_provider_columns: a table is locked by others; trying again (1 of 1000)."
    assert await fetchval(live_url, "SELECT provider FROM public.tasks WHERE error = 'still writing'") == "modal"


@only("oldest")
async def test_a_table_that_stays_locked_ends_in_a_sentence_and_changes_nothing(live_url: str, impatient: Path) -> None:
    runner = Runner(database_url=live_url, directory=impatient, pause_seconds=0.01, tries=3)
    columns = await columns_of(live_url)
    async with session(live_url) as busy, busy.transaction():
        await busy.execute("LOCK TABLE public.generations IN ROW EXCLUSIVE MODE")
        with pytest.raises(MigrationError, match="locked by others in 3 tries"):
            await runner.migrate()
    assert await columns_of(live_url) == columns
    assert (await runner.migrate())[0] == "0002_provider_columns"


async def test_a_migration_that_is_killed_leaves_whole_files(empty_database_url: str, impatient: Path) -> None:
    (impatient / "0099_slow.up.sql").write_text("CREATE TABLE internal.half (); SELECT pg_sleep(60);")
    runner = Runner(database_url=empty_database_url, directory=impatient)
    sleepers = "FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60);' AND wait_event = 'PgSleep'"
    migrating = asyncio.create_task(runner.migrate())
    await wait_for(lambda: fetchval(empty_database_url, f"SELECT count(*) {sleepers}"))
    migrating.cancel()
    await asyncio.wait({migrating})
    # A statement may outlive its client, and is then committed by nobody.
    await wait_for(lambda: fetchval(empty_database_url, f"SELECT count(pg_terminate_backend(pid)) = 0 {sleepers}"))
    assert "runs" in await relations_in(empty_database_url, "internal")
    assert "half" not in await relations_in(empty_database_url, "internal")
    (impatient / "0099_slow.up.sql").unlink()
    assert [name.split()[0] for name in await runner.migrate()] == ["queue"]


# --- checking ---------------------------------------------------------------------------------------------------------


@only("empty", "qwen only")
async def test_check_lists_what_is_missing_and_says_it_by_its_exit_status(
    live_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await schema_of(live_url)
    assert await run_migrate(live_url, check=True) == 1
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == [*EVERYTHING, "queue"]
    assert await schema_of(live_url) == before

    assert await run_migrate(live_url) == 0
    assert capsys.readouterr().out.splitlines()[0] == "applied: 0001_core_tables"
    assert await run_migrate(live_url, check=True) == 0
    assert await run_migrate(live_url) == 0
    assert capsys.readouterr().out.splitlines() == ["everything is applied", "nothing to apply"]

    assert await run_migrate(live_url, down_to=3) == 0
    assert capsys.readouterr().out.splitlines() == [f"undone: {name}" for name in reversed(EVERYTHING[3:])]
    assert await run_migrate(live_url, check=True) == 1


async def test_an_applied_file_that_was_changed_is_an_error(empty_database_url: str, impatient: Path) -> None:
    runner = Runner(database_url=empty_database_url, directory=impatient)
    await runner.migrate()
    changed = impatient / "0003_provider_checks.up.sql"
    changed.write_bytes(changed.read_bytes().replace(b"\n", b"\r\n"))
    assert await runner.pending() == []
    changed.write_text(changed.read_text() + "-- and one more thing\n")
    for attempt in (runner.migrate, runner.pending):
        with pytest.raises(MigrationError, match=r"sql/0003_provider_checks\.up\.sql was changed after"):
            await attempt()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["1_first.up.sql"], "is not named"),
        (["0001_a.up.sql", "0001_b.up.sql"], "the same number"),
        ([], "no migrations"),
    ],
)
def test_a_folder_that_is_out_of_order_is_an_error(tmp_path: Path, names: list[str], sentence: str) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(MigrationError, match=sentence):
        read_migrations(tmp_path)


async def test_a_broken_file_ends_in_a_sentence(empty_database_url: str, impatient: Path) -> None:
    (impatient / "0099_broken.up.sql").write_text("CREATE TABLE voices ();")
    with pytest.raises(MigrationError, match="0099_broken: no schema has been selected to create in"):
        await Runner(database_url=empty_database_url, directory=impatient).migrate()


@pytest.mark.parametrize("url", ["postgresql://u:secret@127.0.0.1:1/x", "postgresql://u:secret@127.0.0.1:port/x"])
async def test_a_database_that_cannot_be_reached_ends_in_a_sentence_without_its_password(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_migrate(url) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "DATABASE_URL" in said.err
    assert "secret" not in said.err


@only("with providers")
async def test_what_others_took_away_later_is_noticed_and_put_back(live_url: str) -> None:
    """The other writers of these tables have migrations too, and theirs may come after ours."""
    await migrate(live_url)
    await execute(live_url, "DELETE FROM public.tasks WHERE provider = 'modal'")
    await execute(live_url, (FIXTURES / "live_qwen_only.sql").read_text())
    damage = [
        "column public.tasks.modal_job_id",
        "column public.tasks.modal_poll_count",
        "check generations_tts_provider_check",
        "check tasks_provider_check",
        "check voices_tts_provider_check",
    ]
    assert sorted(await pending(live_url)) == sorted(damage)
    assert sorted(await migrate(live_url)) == sorted(f"{what} (restored)" for what in damage)
    assert await pending(live_url) == []
    await insert_modal_rows(live_url)


# --- the queue's own schema -------------------------------------------------------------------------------------------


@only("qwen only")
async def test_the_queue_lives_in_our_schema_alone(live_url: str) -> None:
    await migrate(live_url)
    queue = {name for name in await relations_in(live_url, "internal") if name.startswith("procrastinate_")}
    assert {"procrastinate_jobs", "procrastinate_events", "procrastinate_workers"} <= queue
    strays = (
        "SELECT count(*) FROM pg_proc WHERE proname LIKE 'procrastinate%' AND pronamespace <> 'internal'::regnamespace"
    )
    assert await fetchval(live_url, strays) == 0
    assert not any(name.startswith("procrastinate") for name in await relations_in(live_url, "public"))


async def test_a_newer_queue_library_applies_its_own_files(empty_database_url: str, database_url: str) -> None:
    """The schema of the library's release 3.2.0, built from its files, becomes that of the installed one."""
    await migrate(empty_database_url)
    folder = resources.files("procrastinate.sql") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    await roll_back(empty_database_url, 0)
    await execute(empty_database_url, "CREATE SCHEMA internal")
    async with session(empty_database_url) as connection:
        await connection.execute("SET search_path = internal")
        for name in names:
            if name < "03.02.01":
                await connection.execute((folder / name).read_text(encoding="utf-8"))
        await connection.execute(
            "CREATE TABLE internal.queue_migrations"
            " (name text PRIMARY KEY, library_version text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());"
            " INSERT INTO internal.queue_migrations VALUES ('schema', '3.2.0')"
        )
    newer = [f"queue {name.removesuffix('.sql')}" for name in names if name > "03.02.01"]
    assert len(newer) >= 3
    assert await pending(empty_database_url) == [*EVERYTHING, *newer]
    assert await migrate(empty_database_url) == [*EVERYTHING, *newer]
    assert await pending(empty_database_url) == []

    async def queue_of(url: str) -> set[tuple[str, ...]]:
        kinds = ("function", "column", "type", "trigger")
        return {row[:2] for row in await schema_of(url) if "procrastinate" in row[1] and row[0] in kinds}

    assert await queue_of(empty_database_url) == await queue_of(database_url)
    await roll_back(empty_database_url, 0)
    assert await fetchval(empty_database_url, "SELECT to_regnamespace('internal') IS NULL")


async def test_what_others_keep_in_the_schema_internal_stays(empty_database_url: str) -> None:
    await execute(empty_database_url, "CREATE SCHEMA internal; CREATE TABLE internal.theirs ()")
    await migrate(empty_database_url)
    await roll_back(empty_database_url, 0)
    assert await relations_in(empty_database_url, "internal") == {"theirs"}


# --- start-up ---------------------------------------------------------------------------------------------------------


async def test_a_good_database_has_no_problems_at_start_up(database_url: str) -> None:
    async with session(database_url) as connection, session(database_url) as other:
        await prepare(connection)
        await prepare(other)
        assert await check_startup(connection) == []
        assert await check_startup(connection, other) == []
        assert await connection.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0


@only("oldest", "empty")
async def test_start_up_names_what_was_not_migrated(live_url: str) -> None:
    async with session(live_url) as connection:
        await prepare(connection)
        (problem,) = await check_startup(connection)
    assert "0002_provider_columns" in problem
    assert "python -m server migrate" in problem


@only("qwen only")
async def test_start_up_says_when_row_level_security_would_hide_every_row(live_url: str) -> None:
    await migrate(live_url)
    guest = f"guest_{uuid4().hex[:8]}"
    await execute(
        live_url,
        f"CREATE ROLE {guest} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {guest};"
        f" GRANT USAGE ON SCHEMA internal TO {guest}; GRANT ALL ON ALL TABLES IN SCHEMA internal TO {guest}",
    )
    async with session(live_url.replace("//postgres@", f"//{guest}@")) as connection:
        await prepare(connection)
        assert await connection.fetch("SELECT * FROM public.tasks") == []
        problems = await check_startup(connection)
    assert len(problems) == 3
    assert all("Row-level security hides public." in problem and "BYPASSRLS" in problem for problem in problems)


async def test_start_up_says_when_the_user_may_not_use_our_schema(database_url: str) -> None:
    guest = f"guest_{uuid4().hex[:8]}"
    await execute(database_url, f"CREATE ROLE {guest} LOGIN BYPASSRLS")
    async with session(database_url.replace("//postgres@", f"//{guest}@")) as connection:
        await prepare(connection)
        (problem,) = await check_startup(connection)
    assert "may not use the schema internal" in problem


async def test_start_up_says_when_the_search_path_is_not_kept(database_url: str) -> None:
    async with session(database_url) as connection:
        (problem,) = await check_startup(connection)
    assert "search path" in problem


class TransactionPooler:
    """A pooler that lends a server connection for one transaction, as poolers in transaction mode do.

    It reads just enough of PostgreSQL's wire protocol: who is asking (first packet), where a client's turn ends
    (Query, Sync), and whether the server is out of the transaction (the status byte of ReadyForQuery).
    """

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._opened: list[asyncio.StreamWriter] = []

    @classmethod
    @asynccontextmanager
    async def running(cls, url: str) -> AsyncIterator[str]:
        """Yields the URL of the same database behind the pooler."""
        match = re.fullmatch(r"postgresql://(\w+)@/(\w+)\?host=(.+)&port=(\d+)", url)
        assert match is not None
        pooler = cls(f"{match[3]}/.s.PGSQL.{match[4]}")
        server = await asyncio.start_server(pooler._serve, "127.0.0.1", 0)
        try:
            yield f"postgresql://{match[1]}@127.0.0.1:{server.sockets[0].getsockname()[1]}/{match[2]}?sslmode=disable"
        finally:
            server.close()
            for writer in pooler._opened:
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._opened.append(writer)
        lent: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            size = await reader.readexactly(4)
            hello = size + await reader.readexactly(int.from_bytes(size, "big") - 4)
            fresh = await asyncio.open_unix_connection(self._socket_path)
            self._opened.append(fresh[1])
            fresh[1].write(hello)
            await self._relay_answer(fresh[0], writer)
            self._idle.append(fresh)
            while (kind := await reader.readexactly(1)) != b"X":
                size = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(size, "big") - 4)
                lent = lent or self._idle.pop()
                lent[1].write(kind + size + body)
                if kind in b"QS" and await self._relay_answer(lent[0], writer) == b"I":
                    self._idle.append(lent)
                    lent = None
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _relay_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while True:
            kind = await reader.readexactly(1)
            size = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(size, "big") - 4)
            writer.write(kind + size + body)
            if kind == b"Z":
                return body


async def test_start_up_says_when_a_pooler_forgets_between_transactions(database_url: str) -> None:
    async with (
        TransactionPooler.running(database_url) as pooled,
        session(pooled, statement_cache_size=0) as connection,
        session(pooled, statement_cache_size=0) as other,
    ):
        (problem,) = await check_startup(connection, other)
    assert "transaction pooler" in problem
    assert "session-mode" in problem


# --- the files themselves ---------------------------------------------------------------------------------------------


def sql_files() -> list[Path]:
    return sorted(DIRECTORY.glob("*.sql"))


def without_comments(path: Path) -> str:
    return re.sub(r"--.*", "", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sql_files(), ids=lambda path: path.name)
def test_every_name_in_sql_says_its_schema(path: Path) -> None:
    """An unqualified name would make a shadowing table, or find nothing, depending on somebody's search path."""
    text = without_comments(path)
    maybe = r"(?:IF\s+(?:NOT\s+)?EXISTS\s+)?"
    made = rf"\b(?:CREATE|ALTER|DROP)\s+(?:TABLE|FUNCTION|VIEW|TYPE|SEQUENCE)\s+{maybe}(\S+)"
    dropped = rf"\bDROP\s+INDEX\s+{maybe}(\S+)"
    pointed_at = r"\b(?:REFERENCES|INSERT\s+INTO|BEFORE\s+UPDATE\s+ON)\s+(\S+)"
    indexed = rf"\bINDEX\s+(?:CONCURRENTLY\s+)?{maybe}\w+\s+ON\s+(\S+)"
    for pattern in (made, dropped, pointed_at, indexed):
        for name in re.findall(pattern, text):
            assert re.match(r"(public|internal)\.", name), f"{name} in {path.name}"
    known = r"voices|generations|tasks|runs|spool|purchases|idempotency|removals|inventory|schema_migrations"
    literals_out = re.sub(r"'(?:[^']|'')*'", "''", text)
    bare = re.findall(rf"(?<![\w.])(?:{known}|procrastinate_\w+)\b(?!\s*\()", literals_out)
    assert bare == [], path.name


@pytest.mark.parametrize("path", sql_files(), ids=lambda path: path.name)
def test_every_file_says_why_and_waits_three_seconds_for_a_lock_at_most(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("-- ")
    if text.startswith("-- without a transaction\n"):
        statements = [statement for statement in without_comments(path).split(";") if statement.strip()]
        migration = next(migration for migration in read_migrations() if path.name.startswith(migration.name))
        assert len(migration.indexes) == len(statements), "what is no index would be passed over"
        assert all("INDEX CONCURRENTLY IF NOT EXISTS" in statement for statement in statements)
        return
    assert "SET LOCAL lock_timeout = '3s';" in text
    assert "CONCURRENTLY" not in without_comments(path)


def test_every_way_up_has_its_way_down() -> None:
    assert all(migration.down for migration in read_migrations())
    assert [migration.version for migration in read_migrations()] == list(range(1, len(EVERYTHING) + 1))
    assert len(sql_files()) == 2 * len(EVERYTHING)


# --- beside those who write -------------------------------------------------------------------------------------------


def files_up_to(version: int, folder: Path) -> Path:
    """Our migrations as a release knew them that ended there."""
    folder.mkdir()
    for path in sql_files():
        if int(path.name[:4]) <= version:
            shutil.copy(path, folder)
    return folder


async def index_is_valid(url: str, name: str) -> bool | None:
    async with session(url) as connection:
        found: bool | None = await connection.fetchval(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", name
        )
        return found


@only("oldest")
@pytest.mark.parametrize("known", [3, 9])
async def test_whoever_writes_meanwhile_is_not_held_up_by_an_index(live_url: str, tmp_path: Path, known: int) -> None:
    """An index waits for a transaction that has written, and nobody waits for the index."""
    await Runner(database_url=live_url, directory=files_up_to(known, tmp_path / "sql")).migrate()
    async with session(live_url) as busy, session(live_url) as other:
        transaction = busy.transaction()
        await transaction.start()
        await busy.execute("UPDATE public.generations SET language = language")
        migrating = asyncio.create_task(migrate(live_url))

        async def building() -> bool:
            return bool(await other.fetchval("SELECT count(*) FROM pg_stat_progress_create_index"))

        await wait_for(building)
        async with asyncio.timeout(1.0):
            await other.execute(
                "INSERT INTO public.generations (user_id, text, status) SELECT user_id, text, 'failed'"
                " FROM public.generations LIMIT 1"
            )
        assert not migrating.done()
        await transaction.rollback()
        await migrating
    assert await pending(live_url) == []
    assert await index_is_valid(live_url, "public.idx_generations_user_provider_created")
    assert await index_is_valid(live_url, "public.idx_generations_audio_object_key")


@only("oldest")
async def test_a_writer_in_the_middle_of_its_work_is_not_ended_as_a_deadlock(live_url: str) -> None:
    """Whoever has inserted a task goes on to the generation and the voice; the tables are taken in that order."""
    async with session(live_url) as busy, session(live_url) as other:
        transaction = busy.transaction()
        await transaction.start()
        await busy.execute("SET LOCAL deadlock_timeout = '50ms'")  # were there one, this would be its victim
        await busy.execute("UPDATE public.tasks SET error = error")
        migrating = asyncio.create_task(migrate(live_url))

        async def waiting() -> bool:
            return bool(
                await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL")
            )

        await wait_for(waiting)
        await busy.execute("UPDATE public.generations SET language = language")
        await busy.execute("UPDATE public.voices SET language = language")
        await transaction.commit()
        await migrating
    assert await pending(live_url) == []


@only("oldest")
async def test_an_index_that_was_broken_off_is_begun_again(live_url: str, tmp_path: Path) -> None:
    await Runner(database_url=live_url, directory=files_up_to(9, tmp_path / "sql")).migrate()
    name = "public.idx_generations_audio_object_key"
    async with session(live_url) as connection:
        await connection.execute("CREATE INDEX idx_generations_audio_object_key ON public.generations (id)")
        await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass($1)", name)
    said: list[str] = []
    await Runner(database_url=live_url, say=said.append).migrate()
    assert await index_is_valid(live_url, name)
    assert any("was broken off" in line for line in said)


@only("oldest")
async def test_a_long_build_says_how_far_it_is(live_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.database.migrations.PROGRESS_SECONDS", 0.02)
    await Runner(database_url=live_url, directory=files_up_to(9, tmp_path / "sql")).migrate()
    said: list[str] = []
    async with session(live_url) as busy, busy.transaction():
        await busy.execute("UPDATE public.generations SET language = language")
        migrating = asyncio.create_task(Runner(database_url=live_url, say=said.append).migrate())
        await wait_for(lambda: said)
    await migrating
    assert said[0].startswith("0010_looks_at_live_size: idx_generations_audio_object_key: waiting")
