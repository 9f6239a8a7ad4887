"""Keys that people make for their programs, as rows. A key itself is stored nowhere, only its hash."""

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

if TYPE_CHECKING:
    from server.database.connections import Connection


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key as its owner sees it. ``prefix`` is what the key begins with."""

    id: UUID
    name: str
    prefix: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


class FoundKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a hash belongs to.

    Attributes:
        seconds_left: Until it expires, by the database's clock; None for a key that does not.
    """

    id: UUID
    user_id: UUID
    key_hash: bytes
    seconds_left: float | None


_KEY = "id, name, prefix, created_at, last_used_at, expires_at"


async def create(
    connection: "Connection",
    user_id: UUID,
    *,
    name: str,
    prefix: str,
    key_hash: bytes,
    expires_in_days: float | None,
    at_most: int,
) -> Key | None:
    """Keep a new key; None where the user has ``at_most`` already. Call it in a transaction."""
    # Two requests at once would both find room for one more.
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('api_keys ' || $1::text, 0))", str(user_id))
    row = await connection.fetchrow(
        f"""INSERT INTO internal.api_keys (user_id, name, prefix, key_hash, expires_at)
            SELECT $1, $2, $3, $4, now() + make_interval(secs => $5::float8 * 86400)
             WHERE (SELECT count(*) FROM internal.api_keys WHERE user_id = $1) < $6
            RETURNING {_KEY}""",  # noqa: S608 - constants
        user_id,
        name,
        prefix,
        key_hash,
        expires_in_days,
        at_most,
    )
    return Key(**dict(row)) if row else None


async def listed(connection: "Connection", user_id: UUID) -> list[Key]:
    """The user's keys, newest first."""
    rows = await connection.fetch(
        f"SELECT {_KEY} FROM internal.api_keys WHERE user_id = $1 ORDER BY created_at DESC, id",  # noqa: S608
        user_id,
    )
    return [Key(**dict(row)) for row in rows]


async def delete(connection: "Connection", key_id: UUID, user_id: UUID) -> bool:
    """Revoke a key; False where it does not exist or belongs to somebody else."""
    deleted = await connection.fetchval(
        "DELETE FROM internal.api_keys WHERE id = $1 AND user_id = $2 RETURNING true", key_id, user_id
    )
    return bool(deleted)


async def find(connection: "Connection", key_hash: bytes) -> FoundKey | None:
    """Whose key has this hash, expired or not."""
    row = await connection.fetchrow(
        """SELECT id, user_id, key_hash, extract(epoch FROM expires_at - clock_timestamp())::float8 AS seconds_left
             FROM internal.api_keys WHERE key_hash = $1""",
        key_hash,
    )
    return FoundKey(**dict(row)) if row else None


async def note_used(connection: "Connection", key_ids: list[UUID]) -> None:
    """Write down that these keys were used, unless somebody did so within the last minute."""
    await connection.execute(
        """UPDATE internal.api_keys SET last_used_at = now()
            WHERE id = ANY($1) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')""",
        key_ids,
    )
