"""What each person has had spoken, as rows: by UTC day, lane and key. Nothing ever lowers it but a start taken back."""

from datetime import date, datetime
from uuid import UUID

import msgspec

from server.database.connections import Connection

NO_KEY = UUID(int=0)
#: What is made and not spoken has rows of its own.
DESIGN, CLONE = "design", "clone"


class Account(msgspec.Struct, frozen=True):
    """To whom, and to which row of that day, a speech is counted. ``key_id`` is None for a sign-in token."""

    user_id: UUID
    lane: str
    key_id: UUID | None


class Used(msgspec.Struct, frozen=True):
    """One row."""

    day: date
    lane: str
    key_id: UUID | None
    characters: int
    seconds: float
    starts: int


class Spent(msgspec.Struct, frozen=True):
    """What a user has used up of the limits, with how long it is until there is more.

    Attributes:
        characters: Spoken on this UTC day.
        starts: Of speeches, within this minute.
        designs, clones: Made on this UTC day.
    """

    characters: int
    starts: int
    designs: int
    clones: int
    day_ends_in_seconds: float
    minute_ends_in_seconds: float


async def add_start(connection: Connection, account: Account, characters: int) -> None:
    """Count a speech that this transaction makes."""
    await connection.execute(
        """INSERT INTO internal.usage AS u (user_id, day, lane, key_id, characters, starts, minute_starts)
           VALUES ($1, (now() AT TIME ZONE 'UTC')::date, $2, $3, $4, 1, 1)
           ON CONFLICT (user_id, day, lane, key_id) DO UPDATE
              SET characters = u.characters + excluded.characters, starts = u.starts + 1,
                  minute = excluded.minute,
                  minute_starts = CASE WHEN u.minute = excluded.minute THEN u.minute_starts + 1 ELSE 1 END""",
        account.user_id,
        account.lane,
        account.key_id or NO_KEY,
        characters,
    )


async def take_back_start(connection: Connection, account: Account, characters: int, made_at: datetime) -> None:
    """What was counted then came to nothing before anything was bought for it: it was none."""
    await connection.execute(
        """UPDATE internal.usage
              SET characters = greatest(0, characters - $4), starts = greatest(0, starts - 1)
            WHERE user_id = $1 AND lane = $2 AND key_id = $3 AND day = ($5::timestamptz AT TIME ZONE 'UTC')::date""",
        account.user_id,
        account.lane,
        account.key_id or NO_KEY,
        characters,
        made_at,
    )


async def add_seconds(connection: Connection, account: Account, seconds: float) -> None:
    """Count the audio of a speech that this transaction publishes."""
    await connection.execute(
        """INSERT INTO internal.usage AS u (user_id, day, lane, key_id, seconds)
           VALUES ($1, (now() AT TIME ZONE 'UTC')::date, $2, $3, $4)
           ON CONFLICT (user_id, day, lane, key_id) DO UPDATE SET seconds = u.seconds + excluded.seconds""",
        account.user_id,
        account.lane,
        account.key_id or NO_KEY,
        seconds,
    )


async def lock(connection: Connection, user_id: UUID) -> None:
    """Let no other transaction count for this user until the end of this one: two would both find room."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('usage ' || $1::text, 0))", str(user_id))


async def spent(connection: Connection, user_id: UUID) -> Spent:
    """What the limits are held against."""
    row = await connection.fetchrow(
        """SELECT coalesce(sum(characters), 0)::bigint AS characters,
                  coalesce(sum(minute_starts) FILTER (WHERE minute = date_trunc('minute', now())
                                                        AND lane NOT IN ($2, $3)), 0)::bigint AS starts,
                  coalesce(sum(starts) FILTER (WHERE lane = $2), 0)::bigint AS designs,
                  coalesce(sum(starts) FILTER (WHERE lane = $3), 0)::bigint AS clones,
                  extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day'
                                     - now() AT TIME ZONE 'UTC')::float8 AS day_ends_in_seconds,
                  extract(epoch FROM date_trunc('minute', now()) + interval '1 minute' - now())::float8
                      AS minute_ends_in_seconds
             FROM internal.usage WHERE user_id = $1 AND day = (now() AT TIME ZONE 'UTC')::date""",
        user_id,
        DESIGN,
        CLONE,
    )
    if row is None:
        raise LookupError("an aggregate has one row")
    return Spent(**dict(row))


async def between(connection: Connection, user_id: UUID, first: date, last: date) -> list[Used]:
    """What was used from the first to the last day, both included, newest first."""
    rows = await connection.fetch(
        """SELECT day, lane, nullif(key_id, $4) AS key_id, characters, seconds, starts FROM internal.usage
            WHERE user_id = $1 AND day BETWEEN $2 AND $3 ORDER BY day DESC, lane, key_id""",
        user_id,
        first,
        last,
        NO_KEY,
    )
    return [Used(**dict(row)) for row in rows]
