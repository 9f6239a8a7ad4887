"""Which request made which task, so that a repeated one gets the first one's answer (24 h, per user and key)."""

from datetime import datetime
from uuid import UUID

from server.database.connections import Connection

KEPT_FOR = "24 hours"


async def remember(
    connection: Connection, user_id: UUID, key: str, request_hash: bytes, task_id: UUID
) -> tuple[bytes, UUID] | None:
    """Claim a key for a task that this transaction is about to make.

    A twin in another transaction waits here on the unique index, and then finds the winner.

    Returns:
        None where the key is ours now; else the (request hash, task id) of whoever was first.
    """
    ours = await connection.fetchval(
        f"""INSERT INTO internal.idempotency AS i (user_id, key, request_hash, task_id) VALUES ($1, $2, $3, $4)
            ON CONFLICT (user_id, key) DO UPDATE
               SET request_hash = excluded.request_hash, task_id = excluded.task_id, created_at = now()
             WHERE i.created_at < now() - interval '{KEPT_FOR}'
            RETURNING true""",  # noqa: S608 - a constant
        user_id,
        key,
        request_hash,
        task_id,
    )
    return None if ours else await recall(connection, user_id, key)


async def recall(connection: Connection, user_id: UUID, key: str) -> tuple[bytes, UUID] | None:
    """The (request hash, task id) of the first request with this key, if there was one lately."""
    row = await connection.fetchrow(
        f"""SELECT request_hash, task_id FROM internal.idempotency
             WHERE user_id = $1 AND key = $2 AND created_at >= now() - interval '{KEPT_FOR}'""",  # noqa: S608
        user_id,
        key,
    )
    return (row["request_hash"], row["task_id"]) if row else None


async def take(connection: Connection, user_id: UUID, key: str) -> tuple[bytes, datetime] | None:
    """Free a key, for one caller only: its (request hash, time); None where it is free already."""
    row = await connection.fetchrow(
        "DELETE FROM internal.idempotency WHERE user_id = $1 AND key = $2 RETURNING request_hash, created_at",
        user_id,
        key,
    )
    return (row["request_hash"], row["created_at"]) if row else None


async def forget(connection: Connection, task_id: UUID) -> None:
    """Free the key of a submission that came to nothing, so that it may be tried again."""
    await connection.execute("DELETE FROM internal.idempotency WHERE task_id = $1", task_id)


async def forget_old(connection: Connection) -> None:
    """Keys whose time is over are free again."""
    await connection.execute(
        f"DELETE FROM internal.idempotency WHERE created_at < now() - interval '{KEPT_FOR}'"  # noqa: S608 - a constant
    )
