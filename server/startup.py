"""What a process finds out before it serves: what it is, and what stands in its way in the database."""

import contextlib

import asyncpg

from server.database.connections import REFUSED, Connection, connect, prepare, trouble
from server.database.migrations import MigrationError, read_migrations, too_old, unapplied
from server.settings import Settings
from server.version import version


def introduction(settings: Settings) -> str:
    """What serves here, in one line: release, mode, storage and schema."""
    kept = settings.storage
    buckets = f"{kept.bucket_references} and {kept.bucket_generations}"
    where = f"files below {kept.root}" if kept.kind == "disk" else f"buckets {buckets} at {kept.endpoint or 'Amazon'}"
    return (
        f"utter {version()} speaks by {settings.tts_provider_mode}, keeps audio as {where},"
        f" schema {read_migrations()[-1].name}"
    )


async def startup_problems(settings: Settings) -> list[str]:
    """Why this process cannot serve from its database, one sentence each."""
    connections: list[asyncpg.Connection[asyncpg.Record]] = []
    try:
        for _ in range(2):
            connections.append(await connect(settings.database_url, timeout=10.0))
            await prepare(connections[-1])
        return await check_startup(*connections)
    except REFUSED as exc:
        return [trouble(exc)]
    finally:
        for connection in connections:
            connection.terminate()


async def check_startup(connection: Connection, other: Connection | None = None) -> list[str]:
    """What stands in the way of serving from this database, one sentence each; empty means nothing.

    Args:
        connection: One that was prepared like all of this server's (search path set).
        other: A second one. A pooler that lends a database connection per transaction often lends an idle server's
            only client the same one again; keeping it busy through ``other`` brings the truth to light.
    """
    old = too_old(connection)
    if old is not None:
        return [old]
    problems = await _pooling_problems(connection, other)
    if problems:
        return problems
    for table in ("voices", "generations", "tasks"):
        hidden = await connection.fetchval(
            "SELECT row_security_active(c.oid) FROM pg_catalog.pg_class c WHERE c.oid = to_regclass($1)",
            f"public.{table}",
        )
        if hidden:
            problems.append(
                f"Row-level security hides public.{table} from the user of DATABASE_URL, so that every query would"
                " find nothing: connect as the owner of the table, or as a user with BYPASSRLS."
            )
    try:
        missing = await unapplied(connection)
    except MigrationError as exc:
        return [*problems, str(exc)]
    except asyncpg.InsufficientPrivilegeError:
        return [
            *problems,
            "The user of DATABASE_URL may not use the schema internal: connect as the user who ran the migrations.",
        ]
    if missing:
        problems.append(f"The database lacks {', '.join(missing)}: run `python -m server migrate`.")
    return problems


async def _pooling_problems(connection: Connection, other: Connection | None) -> list[str]:
    """Whether what a session remembers is still there in its next transaction: its LISTENs, its search path.

    Only plain statements, whose answers are read off the command tag: prepared ones fail behind such a pooler.
    """
    refusal = (
        "DATABASE_URL points at a transaction pooler, where LISTEN and SET are forgotten: use a session-mode or direct"
        " connection."
    )
    channel = "utter_startup_check"
    try:
        await connection.execute(f"LISTEN {channel}")
        try:
            async with contextlib.AsyncExitStack() as stack:
                if other is not None:
                    await stack.enter_async_context(other.transaction())
                listening = await connection.execute(f"SELECT FROM pg_listening_channels() AS c WHERE c = '{channel}'")
                path = await connection.execute(
                    "SELECT WHERE current_setting('search_path') ~ '^\"?internal\"?, *\"?public\"?$'"
                )
        finally:
            await connection.execute(f"UNLISTEN {channel}")
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        return [refusal]
    if listening != "SELECT 1":
        return [refusal]
    if path != "SELECT 1":
        return [
            "The search path set on a database connection was not kept: DATABASE_URL needs a session-mode or"
            " direct connection, without a reset query between transactions."
        ]
    return []
