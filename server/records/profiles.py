"""The row of ``public.profiles`` that belongs to a user, in databases that have this table: another system's."""

from typing import Any
from uuid import UUID

import asyncpg

from server.database.connections import Connection
from server.errors import Conflict, Invalid

_COLUMNS = "id, handle, display_name, avatar_url, subscription_tier, credits_remaining, created_at, updated_at"


async def find_or_make(connection: Connection, user_id: UUID) -> asyncpg.Record | None:
    """The user's row, made where there is none; None where there is no such table, or no row can be made."""
    if await connection.fetchval("SELECT to_regclass('public.profiles')") is None:
        return None
    try:
        found = await connection.fetchrow(f"SELECT {_COLUMNS} FROM public.profiles WHERE id = $1", user_id)  # noqa: S608
        if found is not None:
            return found
        async with connection.transaction():
            await connection.execute("INSERT INTO public.profiles (id) VALUES ($1) ON CONFLICT DO NOTHING", user_id)
    except (asyncpg.UndefinedColumnError, asyncpg.InsufficientPrivilegeError):
        return None
    except asyncpg.IntegrityConstraintViolationError:
        return None  # a user whom the sign-in service does not know here, or a column that only it can fill
    return await connection.fetchrow(f"SELECT {_COLUMNS} FROM public.profiles WHERE id = $1", user_id)  # noqa: S608


async def change(connection: Connection, user_id: UUID, changes: dict[str, Any]) -> asyncpg.Record | None:
    """The row with these columns changed; None where there is no such table or row.

    Raises:
        Conflict: The handle is somebody else's.
        Invalid: The database wants something else of such a row.
    """
    if await find_or_make(connection, user_id) is None:
        return None
    assignments = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, 2))
    sql = f"UPDATE public.profiles SET {assignments}, updated_at = now() WHERE id = $1 RETURNING {_COLUMNS}"  # noqa: S608
    try:
        return await connection.fetchrow(sql, user_id, *changes.values())
    except asyncpg.UniqueViolationError as exc:
        raise Conflict("This handle is taken. Please choose another one.") from exc
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as exc:
        raise Invalid("This profile cannot be saved like that.") from exc
