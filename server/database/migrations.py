"""Brings a database to the shape this release needs, and back.

Plain SQL files under ``sql/``, one transaction each, then the queue library's own schema. A file that begins with
``-- without a transaction`` builds indexes beside those who write: one statement each, with progress instead of a time
limit, and what was broken off is begun again. Two runners at once are safe,
and so is the same one twice. Every file says in its first lines why it is there; what it found is written down by
0001, so that going back takes away only what came from us.
"""

import asyncio
import contextlib
import hashlib
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Final

import asyncpg

from server.database.connections import Connection, trouble

logger = logging.getLogger(__name__)

DIRECTORY: Final = Path(__file__).resolve().parent.parent / "sql"  # in a checkout a link to the sql/ beside server/
OLDEST_SERVER: Final = 14
CONNECT_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 30.0
ADVISORY_LOCK: Final = (0x75747472, 0x6D696772)  # "uttr", "migr": ours among the database's advisory locks
_REFUSED_STATE: Final = "UT001"  # raised by a down file that would lose what was paid for

# What the code relies on in tables that others may also change (sql/0002). These files may be applied again.
_REPAIRING: Final = range(2, 5)
_NEEDED_COLUMNS: Final = {
    "voices": (
        *("tts_provider", "provider_voice_id", "provider_target_model", "provider_voice_kind", "provider_region"),
        *("provider_request_id", "provider_metadata", "deleted_at", "preview_task_id"),
    ),
    "generations": ("tts_provider", "provider_model", "output_format", "provider_metadata"),
    "tasks": (
        *("provider", "provider_job_id", "provider_status", "provider_poll_count", "cancellation_requested"),
        *("error_category", "deleted_at", "modal_job_id", "modal_poll_count"),
    ),
}
_PROVIDER_CHECKS: Final = ("voices_tts_provider_check", "generations_tts_provider_check", "tasks_provider_check")

# A file whose indexes are built like that before it is applied, and finds them then.
_BUILT_BEFOREHAND: Final = frozenset({4})
# A file that changes all three live tables takes them beforehand, in the order in which whoever inserts a task does: in
# any other, one of the two would be ended as a deadlock. Briefly, since everybody queues up behind a waiting lock.
_CHANGES_LIVE_TABLES: Final = frozenset({2})
_OWNS_LIVE_TABLES: Final = """
SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_catalog.pg_class
 WHERE relnamespace = 'public'::regnamespace AND relname IN ('tasks', 'generations', 'voices')
"""
_TAKE_LIVE_TABLES: Final = """
SET LOCAL lock_timeout = '700ms';
LOCK TABLE public.tasks IN ACCESS EXCLUSIVE MODE;
LOCK TABLE public.generations IN ACCESS EXCLUSIVE MODE;
LOCK TABLE public.voices IN ACCESS EXCLUSIVE MODE;
"""
_WITHOUT_TRANSACTION: Final = "-- without a transaction\n"
_INDEX: Final = re.compile(
    r"CREATE (?P<unique>UNIQUE )?INDEX (?P<beside>CONCURRENTLY )?IF NOT EXISTS (?P<name>\w+)\s+"
    r"ON (?P<schema>public|internal)\.(?P<rest>[^;]+);"
)
PROGRESS_SECONDS: Final = 5.0

Say = Callable[[str], None]


class MigrationError(Exception):
    """A migration could not be done. The message is a sentence for the operator."""


@dataclass(frozen=True)
class Index:
    """An index that is built beside those who write; ``what`` is its table and all that follows."""

    name: str
    schema: str
    what: str
    unique: bool

    @property
    def sql(self) -> str:
        unique = "UNIQUE " if self.unique else ""
        return f"CREATE {unique}INDEX CONCURRENTLY IF NOT EXISTS {self.name} ON {self.schema}.{self.what}"


@dataclass(frozen=True)
class Migration:
    """One numbered pair of files.

    Attributes:
        name: The files' common part, number included, e.g. ``0001_core_tables``.
        checksum: SHA-256 of the up file, in hex, independent of how line ends are checked out.
    """

    version: int
    name: str
    up: str = field(repr=False)
    down: str | None = field(repr=False)

    @property
    def beside_writers(self) -> bool:
        """Whether it consists of indexes that are built without a transaction around them."""
        return self.up.startswith(_WITHOUT_TRANSACTION)

    @property
    def indexes(self) -> list["Index"]:
        """The indexes that it makes, in order."""
        found = _INDEX.finditer(re.sub(r"--.*", "", self.up))
        return [Index(match["name"], match["schema"], match["rest"].strip(), bool(match["unique"])) for match in found]

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.up.encode()).hexdigest()


def read_migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """All numbered files of a folder, by number.

    Raises:
        MigrationError: If a name is not ``NNNN_name.up.sql`` / ``.down.sql``, or a number is there twice.
    """
    found: dict[int, Migration] = {}
    for path in sorted(directory.glob("*.sql")):
        match = re.fullmatch(r"((\d{4})_\w+)\.(up|down)\.sql", path.name)
        if match is None:
            raise MigrationError(f"{path.name} is not named NNNN_name.up.sql or NNNN_name.down.sql.")
        if match[3] == "down":
            continue
        down = path.with_name(f"{match[1]}.down.sql")
        migration = Migration(
            version=int(match[2]),
            name=match[1],
            up=path.read_text(encoding="utf-8"),
            down=down.read_text(encoding="utf-8") if down.exists() else None,
        )
        if migration.version in found:
            raise MigrationError(f"{found[migration.version].name} and {migration.name} have the same number.")
        found[migration.version] = migration
    if not found:
        raise MigrationError(f"There are no migrations in {directory}.")
    return [found[version] for version in sorted(found)]


# --- The queue library's schema -------------------------------------------------------------------------------------


def _queue_version() -> str:
    return metadata.version("procrastinate")


def _release(text: str) -> tuple[int, ...]:
    """``3.10.0`` and ``03.10.00`` are the same release; what follows the numbers does not count."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _queue_schema() -> str:
    return (resources.files("procrastinate.sql") / "schema.sql").read_text(encoding="utf-8")


def _queue_files_after(version: str) -> dict[str, str]:
    """The library's own migration files that are newer than ``version``, in the order they are meant to be applied.

    Source: procrastinate, "Migrations": files are named ``xx.yy.zz_ab_[pre|post]_name.sql`` by the release that
    brings them, and sort in order. ``pre`` is meant for before the new library starts, ``post`` for after the old one
    has stopped; a release of ours is one command, so both are applied by it.
    """
    folder = resources.files("procrastinate.sql") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {name: (folder / name).read_text(encoding="utf-8") for name in names if _release(name) > _release(version)}


# --- What is applied ------------------------------------------------------------------------------------------------


async def _applied(connection: Connection) -> dict[int, tuple[str, str]]:
    """Version → (name, checksum); empty on a database that never saw us."""
    if await connection.fetchval("SELECT to_regclass('internal.schema_migrations') IS NULL"):
        return {}
    rows = await connection.fetch("SELECT version, name, checksum FROM internal.schema_migrations")
    return {row["version"]: (row["name"], row["checksum"]) for row in rows}


async def _queue_pending(connection: Connection) -> dict[str, str]:
    """Names and SQL of what the queue's schema lacks; the name ``schema`` stands for all of it."""
    if await connection.fetchval("SELECT to_regclass('internal.queue_migrations') IS NULL"):
        return {"schema": _queue_schema()}
    rows = await connection.fetch("SELECT name, library_version FROM internal.queue_migrations")
    applied = {row["name"]: row["library_version"] for row in rows}
    if "schema" not in applied:
        return {"schema": _queue_schema()}
    return {name: sql for name, sql in _queue_files_after(applied["schema"]).items() if name not in applied}


def _queue_label(name: str) -> str:
    return f"queue {_queue_version()}" if name == "schema" else f"queue {name.removesuffix('.sql')}"


def _unapplied(migrations: list[Migration], applied: dict[int, tuple[str, str]]) -> list[Migration]:
    for migration in migrations:
        if migration.version in applied and applied[migration.version][1] != migration.checksum:
            raise MigrationError(
                f"sql/{migration.name}.up.sql was changed after it had been applied to this database."
                " Give the file its old contents back, and put the change into a new file with the next number."
            )
    return [migration for migration in migrations if migration.version not in applied]


async def _damage(connection: Connection) -> list[str]:
    """What somebody else took away from the live tables after we had put it there."""
    columns = {
        (row["relation"], row["name"])
        for row in await connection.fetch(
            "SELECT c.relname::text AS relation, a.attname::text AS name FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relname IN ('voices', 'generations', 'tasks')"
        )
    }
    missing = [
        f"column public.{table}.{column}"
        for table, needed in _NEEDED_COLUMNS.items()
        for column in needed
        if (table, column) not in columns
    ]
    checks = await connection.fetch(
        "SELECT c.conname::text AS name, pg_get_constraintdef(c.oid) AS definition FROM pg_catalog.pg_constraint c"
        " WHERE c.connamespace = 'public'::regnamespace AND c.conname::text = ANY($1::text[])",
        list(_PROVIDER_CHECKS),
    )
    narrow = [f"check {row['name']}" for row in checks if "'modal'" not in row["definition"]]
    return missing + narrow


async def unapplied(connection: Connection, *, directory: Path = DIRECTORY) -> list[str]:
    """What `migrate` would do, in order, asked over a connection that is already there; empty means nothing.

    Raises:
        MigrationError: If a file was changed after it had been applied.
    """
    migrations = await asyncio.to_thread(read_migrations, directory)
    applied = await _applied(connection)
    names = [migration.name for migration in _unapplied(migrations, applied)]
    if all(version in applied for version in _REPAIRING):
        names += await _damage(connection)
    return names + [_queue_label(name) for name in await _queue_pending(connection)]


# --- Doing it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Applies and undoes migrations on a connection of its own.

    Attributes:
        say: Told in short lines what is being waited for.
        tries: How often one file may run into a lock before we give up.
        pause_seconds: Between two tries, so that those who queued up after us get their turn.
        wait_seconds: How long another runner is waited for.
    """

    database_url: str = field(repr=False)
    directory: Path = DIRECTORY
    say: Say = logger.info
    tries: int = 20
    pause_seconds: float = 1.0
    wait_seconds: float = 600.0

    async def migrate(self) -> list[str]:
        """Apply everything that is missing; returns the names of what was applied."""
        migrations = await asyncio.to_thread(read_migrations, self.directory)
        async with self._connection() as connection, self._alone(connection):
            await self._prepare(connection)
            applied = await _applied(connection)
            done: list[str] = []
            for migration in _unapplied(migrations, applied):
                if migration.beside_writers or migration.version in _BUILT_BEFOREHAND:
                    for index in migration.indexes:
                        await self._build(migration.name, connection, index)
                await self._attempt(migration.name, connection, partial(self._apply, connection, migration))
                done.append(migration.name)
            done += await self._repair(connection, migrations)
            for name, sql in (await _queue_pending(connection)).items():
                label = _queue_label(name)
                await self._attempt(label, connection, partial(self._apply_queue, connection, name, sql))
                done.append(label)
            return done

    async def pending(self) -> list[str]:
        async with self._connection(statement_seconds=CHECK_SECONDS) as connection:
            return await unapplied(connection, directory=self.directory)

    async def roll_back(self, down_to: int, *, discard: bool = False) -> list[str]:
        """Undo everything above ``down_to`` in one transaction: all of it or nothing.

        The queue's schema and our own book-keeping go with the last file, at ``down_to=0``.
        """
        if down_to < 0:
            raise MigrationError("The oldest version to go back to is 0, the database before us.")
        files = await asyncio.to_thread(read_migrations, self.directory)
        migrations = {migration.version: migration for migration in files}
        async with self._connection() as connection, self._alone(connection):
            if await connection.fetchval("SELECT to_regclass('internal.schema_migrations') IS NULL"):
                return []
            applied = await _applied(connection)
            undoing: list[tuple[int, str, str]] = []
            for version in sorted((v for v in applied if v > down_to), reverse=True):
                migration = migrations.get(version)
                if migration is None or migration.down is None:
                    raise MigrationError(
                        f"{applied[version][0]} was applied by another release, and this one cannot undo it."
                    )
                undoing.append((version, migration.name, migration.down))
            clear = down_to == 0
            what = f"going back to {down_to}"
            await self._attempt(
                what, connection, partial(self._undo, connection, undoing, clear=clear, discard=discard)
            )
            return [name for _, name, _ in undoing] + (["queue"] if clear else [])

    @contextlib.asynccontextmanager
    async def _connection(self, *, statement_seconds: float | None = None) -> AsyncIterator[Connection]:
        """A connection without a search path, so that a name without its schema finds nothing.

        Set by a plain SET: a pooler refuses it as a start-up parameter.
        """
        try:
            connection = await asyncpg.connect(
                self.database_url, timeout=CONNECT_SECONDS, command_timeout=statement_seconds
            )
        except (OSError, asyncpg.PostgresError, ValueError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
            raise MigrationError(trouble(exc)) from exc
        try:
            problem = too_old(connection)
            if problem is not None:
                raise MigrationError(problem)
            # Validating or indexing a large table takes its time, whatever the role's own limit says.
            await connection.execute("SET search_path = ''; SET statement_timeout = 0")
            connection.add_log_listener(self._on_notice)
            yield connection
            connection.remove_log_listener(self._on_notice)
            await connection.close(timeout=CONNECT_SECONDS)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            raise MigrationError(f"The database gave up in between: {exc or type(exc).__name__}.") from exc
        finally:
            # Frees the advisory lock too, if closing it properly did not come about.
            connection.terminate()

    def _on_notice(self, _connection: object, message: object) -> None:
        """Pass on what a file of ours warns of; notices are the database's chatter about what is there already."""
        if getattr(message, "severity_en", "") == "WARNING":
            self.say(f"{getattr(message, 'message', message)}.")

    @contextlib.asynccontextmanager
    async def _alone(self, connection: Connection) -> AsyncIterator[None]:
        """Hold the migration lock. Tried in a loop: a blocking wait is a transaction that others can deadlock with."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.wait_seconds
        told = False
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", *ADVISORY_LOCK):
            if loop.time() > deadline:
                raise MigrationError(
                    f"Another migration has been running for {self.wait_seconds:.0f} seconds. Wait for it or end it."
                )
            if not told:
                self.say("Another migration is running; waiting for it.")
                told = True
            await asyncio.sleep(0.1)
        yield
        await connection.fetchval("SELECT pg_advisory_unlock($1, $2)", *ADVISORY_LOCK)

    async def _attempt(self, what: str, connection: Connection, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` in a transaction, again where it ran into somebody's lock.

        Every file waits 3 s for a lock at most: all queries queue up after a waiting ALTER TABLE.
        """
        for number in range(1, self.tries + 1):
            try:
                async with connection.transaction():
                    await work()
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as exc:
                if number == self.tries:
                    raise MigrationError(
                        f"{what}: a table was locked by others in {self.tries} tries. Nothing of it was applied."
                        " Look for a long transaction in pg_stat_activity and try again."
                    ) from exc
                self.say(f"{what}: a table is locked by others; trying again ({number} of {self.tries}).")
                await asyncio.sleep(self.pause_seconds)
            except asyncpg.PostgresError as exc:
                if exc.sqlstate == _REFUSED_STATE:
                    raise MigrationError(
                        f"Refused, and nothing was changed: {exc.args[0]}. To do it all the same, add --discard."
                    ) from exc
                raise MigrationError(f"{what}: {exc.args[0]} ({exc.sqlstate}). Nothing of it was applied.") from exc
            except (OSError, asyncpg.InterfaceError) as exc:
                raise MigrationError(f"{what}: the connection to the database was lost. Run it again.") from exc
            else:
                return

    async def _prepare(self, connection: Connection) -> None:
        async def create() -> None:
            # Asked first, because IF NOT EXISTS wants the right to create also where nothing is to be created.
            if await connection.fetchval("SELECT to_regnamespace('internal') IS NULL"):
                await connection.execute("CREATE SCHEMA internal")
            await connection.execute(
                """
                CREATE TABLE IF NOT EXISTS internal.schema_migrations (
                    version integer PRIMARY KEY,
                    name text NOT NULL,
                    checksum text NOT NULL,
                    applied_at timestamptz NOT NULL DEFAULT now()
                );
                CREATE TABLE IF NOT EXISTS internal.queue_migrations (
                    name text PRIMARY KEY,
                    library_version text NOT NULL,
                    applied_at timestamptz NOT NULL DEFAULT now()
                )
                """
            )

        await self._attempt("schema internal", connection, create)

    async def _apply(self, connection: Connection, migration: Migration) -> None:
        if not migration.beside_writers:
            await self._execute(connection, migration)
        await connection.execute(
            "INSERT INTO internal.schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
            migration.version,
            migration.name,
            migration.checksum,
        )

    async def _build(self, what: str, connection: Connection, index: Index) -> None:
        """Build an index while others write. It waits for whoever is at work, and holds nobody up.

        One that was broken off is still there, of no use and kept up to date by every writer: it goes first.
        """
        broken_off = (
            "SELECT NOT i.indisvalid FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
            " WHERE c.relnamespace = $1::text::regnamespace AND c.relname = $2"
        )
        try:
            if await connection.fetchval(broken_off, index.schema, index.name):
                self.say(f"{what}: {index.name} was broken off; beginning again.")
                await connection.execute(f"DROP INDEX CONCURRENTLY {index.schema}.{index.name}")
            building = asyncio.create_task(connection.execute(index.sql))
            try:
                while not (await asyncio.wait({building}, timeout=PROGRESS_SECONDS))[0]:
                    await self._say_how_far(what, index)
            finally:
                building.cancel()
            await building
        except asyncpg.PostgresError as exc:
            raise MigrationError(
                f"{what}: {index.name}: {exc.args[0]} ({exc.sqlstate}). Run it again: what is built stays."
            ) from exc

    async def _say_how_far(self, what: str, index: Index) -> None:
        async with self._connection(statement_seconds=CHECK_SECONDS) as other:
            row = await other.fetchrow(
                "SELECT phase, CASE WHEN blocks_total > 0 THEN 100 * blocks_done / blocks_total END AS percent"
                " FROM pg_catalog.pg_stat_progress_create_index WHERE datname = current_database()"
            )
        percent = f", {row['percent']} %" if row and row["percent"] is not None else ""
        self.say(f"{what}: {index.name}: {row['phase'] if row else 'waiting'}{percent}.")

    async def _repair(self, connection: Connection, migrations: list[Migration]) -> list[str]:
        damage = await _damage(connection)
        if not damage:
            return []
        for migration in migrations:
            if migration.version in _REPAIRING:
                await self._attempt(migration.name, connection, partial(self._execute, connection, migration))
        return [f"{what} (restored)" for what in damage]

    async def _execute(self, connection: Connection, migration: Migration) -> None:
        # Who does not own them hears of it from the file.
        if migration.version in _CHANGES_LIVE_TABLES and await connection.fetchval(_OWNS_LIVE_TABLES):
            await connection.execute(_TAKE_LIVE_TABLES)
        await connection.execute(migration.up)

    async def _apply_queue(self, connection: Connection, name: str, sql: str) -> None:
        # The library's files name nothing by its schema; the path decides where their relations land.
        await connection.execute("SET LOCAL lock_timeout = '3s'; SET LOCAL search_path = internal")
        await connection.execute(sql)
        await connection.execute(
            "INSERT INTO internal.queue_migrations (name, library_version) VALUES ($1, $2)", name, _queue_version()
        )

    async def _undo(
        self, connection: Connection, undoing: list[tuple[int, str, str]], *, clear: bool, discard: bool
    ) -> None:
        await connection.execute("SELECT set_config('utter.discard', $1, true)", "on" if discard else "off")
        for version, _, down in undoing:
            await connection.execute(down)
            await connection.execute("DELETE FROM internal.schema_migrations WHERE version = $1", version)
        if clear:
            await self._clear(connection)

    async def _clear(self, connection: Connection) -> None:
        """Drop the queue's schema, our book-keeping, and the schema `internal` unless somebody else lives there."""
        await connection.execute("SET LOCAL lock_timeout = '3s'")
        # The library has no file for this. Relations first (they use the types), then functions (they do too).
        for statements in (
            "SELECT format('DROP TABLE internal.%I CASCADE', relname) FROM pg_catalog.pg_class"
            " WHERE relnamespace = 'internal'::regnamespace AND relkind = 'r' AND relname LIKE 'procrastinate\\_%'",
            "SELECT format('DROP FUNCTION %s CASCADE', oid::regprocedure) FROM pg_catalog.pg_proc"
            " WHERE pronamespace = 'internal'::regnamespace AND proname LIKE 'procrastinate\\_%'",
            "SELECT format('DROP TYPE internal.%I', typname) FROM pg_catalog.pg_type"
            " WHERE typnamespace = 'internal'::regnamespace AND typelem = 0 AND typname LIKE 'procrastinate\\_%'",
        ):
            for row in await connection.fetch(statements):
                await connection.execute(row[0])
        await connection.execute("DROP TABLE internal.queue_migrations, internal.schema_migrations")
        with contextlib.suppress(asyncpg.DependentObjectsStillExistError):
            async with connection.transaction():
                await connection.execute("DROP SCHEMA internal")


async def migrate(database_url: str) -> list[str]:
    """Bring the database to the shape this release needs.

    Returns:
        The names of what was applied, in order; empty if there was nothing to do.

    Raises:
        MigrationError: With a sentence for the operator. Whole files were applied before it, or nothing.
    """
    return await Runner(database_url=database_url).migrate()


async def pending(database_url: str) -> list[str]:
    """The names of what `migrate` would apply, in order; changes nothing."""
    return await Runner(database_url=database_url).pending()


async def roll_back(database_url: str, down_to: int, *, discard: bool = False) -> list[str]:
    """Undo every migration above ``down_to``, newest first, in one transaction.

    Args:
        discard: Go on where something that was paid for would be lost.

    Returns:
        The names of what was undone, in order.
    """
    return await Runner(database_url=database_url).roll_back(down_to, discard=discard)


async def run_migrate(
    database_url: str, *, check: bool = False, down_to: int | None = None, discard: bool = False
) -> int:
    """The command ``migrate``: short lines on the terminal, and the exit status."""
    runner = Runner(database_url=database_url, say=partial(print, flush=True))
    try:
        if check:
            missing = await runner.pending()
            for name in missing:
                print(f"not applied: {name}")
            if not missing:
                print("everything is applied")
            return 1 if missing else 0
        if down_to is not None:
            undone = await runner.roll_back(down_to, discard=discard)
            for name in undone:
                print(f"undone: {name}")
            if not undone:
                print("nothing to undo")
            return 0
        applied = await runner.migrate()
        for name in applied:
            print(f"applied: {name}")
        if not applied:
            print("nothing to apply")
    except MigrationError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


# --- Start-up -------------------------------------------------------------------------------------------------------


def too_old(connection: Connection) -> str | None:
    version = connection.get_server_version()
    if version.major >= OLDEST_SERVER:
        return None
    return f"DATABASE_URL points at PostgreSQL {version.major}; version {OLDEST_SERVER} or newer is needed."
