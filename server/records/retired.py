"""Which of the provider's models and services are gone, as rows that all processes read."""

from server.database.connections import Connection

# So long a retirement is believed; then somebody's next request asks the provider again. What nobody has said in words
# is asked again sooner.
BELIEVED_SECONDS, DOUBTED_SECONDS = 3600.0, 300.0


async def note(connection: Connection, account: str, name: str, reason: str) -> None:
    """A model or service was refused as gone, just now."""
    await connection.execute(
        """INSERT INTO internal.retired_models AS r (account, name, reason) VALUES ($1, $2, $3)
           ON CONFLICT (account, name) DO UPDATE SET seen_at = now(), reason = excluded.reason,
                since = CASE WHEN r.seen_at < now() - interval '1 day' THEN now() ELSE r.since END""",
        account,
        name,
        reason,
    )


async def names(connection: Connection, account: str, *, doubtful: str = "") -> frozenset[str]:
    """What is believed to be gone for an account of the provider's.

    Args:
        doubtful: The reason of those of which that is not certain.
    """
    rows = await connection.fetch(
        """SELECT name FROM internal.retired_models
            WHERE account = $1
              AND seen_at > now() - make_interval(secs => CASE WHEN reason = $4 THEN $3::float8 ELSE $2::float8 END)""",
        account,
        BELIEVED_SECONDS,
        DOUBTED_SECONDS,
        doubtful,
    )
    return frozenset(row["name"] for row in rows)


async def forget(connection: Connection, account: str, name: str) -> None:
    """A model or service has answered again."""
    await connection.execute("DELETE FROM internal.retired_models WHERE account = $1 AND name = $2", account, name)
