"""The processes that serve this database, and when each last said that it lives.

Who is dead is judged from these rows alone, by the database's clock: whoever was silent while others were heard. After
a time in which nobody was able to write (the database was away) nobody is judged for a moment: those who live come back
to say so first.
"""

from uuid import UUID

from server.database.connections import Connection

# Silence counts up to the last word of anybody and no further: until the first one is back from an outage, whose beat
# notes the quiet time, nobody is known to have been able to write. A clock that was set back makes nobody silent.
_HEARD = "least(clock_timestamp(), (SELECT max(beat_at) FROM internal.processes))"

# Whether the owner of the run ``r`` is dead, as far as anybody can tell; {0} is how many seconds of silence that takes.
# A process of an older release writes no row here, but every second its runs' own beats.
OWNER_IS_DEAD = f"""(CASE WHEN EXISTS (SELECT 1 FROM internal.processes p WHERE p.owner = r.owner)
        THEN EXISTS (SELECT 1 FROM internal.processes p
                      WHERE p.owner = r.owner AND p.beat_at < {_HEARD} - make_interval(secs => {{0}}))
        ELSE r.beat_at < {_HEARD} - make_interval(secs => {{0}}) END
    AND NOT EXISTS (SELECT 1 FROM internal.processes q WHERE q.quiet_until > clock_timestamp()))"""  # noqa: S608 - a constant


async def beat(connection: Connection, owner: UUID, *, quiet_after_seconds: float, quiet_seconds: float) -> None:
    """Say that a process lives.

    Args:
        quiet_after_seconds: If nobody at all has said so for this long, nobody was able to: then, for
            ``quiet_seconds``, silence proves nothing.
    """
    await connection.execute(
        """INSERT INTO internal.processes AS mine (owner, beat_at, quiet_until)
           SELECT $1, clock_timestamp(),
                  CASE WHEN max(beat_at) < clock_timestamp() - make_interval(secs => $2)
                       THEN clock_timestamp() + make_interval(secs => $3) END
             FROM internal.processes WHERE beat_at <> '-infinity'
           ON CONFLICT (owner) DO UPDATE
              SET beat_at = excluded.beat_at, quiet_until = coalesce(excluded.quiet_until, mine.quiet_until)""",
        owner,
        quiet_after_seconds,
        quiet_seconds,
    )


async def dead(connection: Connection, silent_for_seconds: float) -> set[UUID]:
    """Processes that are silent for so long while others are not, and those that left by themselves."""
    rows = await connection.fetch(
        f"""SELECT owner FROM internal.processes
            WHERE beat_at < {_HEARD} - make_interval(secs => $1)
              AND NOT EXISTS (SELECT 1 FROM internal.processes q WHERE q.quiet_until > clock_timestamp())""",  # noqa: S608 - a constant
        silent_for_seconds,
    )
    return {row["owner"] for row in rows}


async def leave(connection: Connection, owner: UUID) -> None:
    """A process ends by itself: what it still holds need not wait for its silence to be noticed."""
    await connection.execute("UPDATE internal.processes SET beat_at = '-infinity' WHERE owner = $1", owner)


async def forget_old(connection: Connection) -> None:
    """Rows of processes that ended a day ago and hold nothing."""
    await connection.execute(
        """DELETE FROM internal.processes p WHERE beat_at < now() - interval '1 day'
              AND NOT EXISTS (SELECT 1 FROM internal.runs r WHERE r.owner = p.owner)"""
    )
