"""Speeches that last only as long as somebody follows them, as rows: what clients of the OpenAI-shaped door ask for.

A row says when a speech was last followed, by whomever and through whichever process, and which request it answers, so
that a client's retry takes it over instead of paying for another one.
"""

from uuid import UUID

from server.database.connections import Connection
from server.records.tasks import ACTIVE

JOINED_WITHIN = "1 minute"


async def add(connection: Connection, task_id: UUID, user_id: UUID, request_hash: bytes) -> None:
    """A new speech, followed from now on."""
    await connection.execute(
        "INSERT INTO internal.attended (task_id, user_id, request_hash) VALUES ($1, $2, $3)",
        task_id,
        user_id,
        request_hash,
    )


async def join(connection: Connection, user_id: UUID, request_hash: bytes) -> UUID | None:
    """The speech that the same request has lately made, followed again; None where there is none to take over.

    Of a generation that was deleted nothing is left to be heard.
    """
    task_id: UUID | None = await connection.fetchval(
        f"""UPDATE internal.attended SET followed_at = now()
             WHERE task_id = (
                SELECT a.task_id FROM internal.attended a
                  JOIN public.tasks t ON t.id = a.task_id AND t.user_id = a.user_id
                 WHERE a.user_id = $1 AND a.request_hash = $2 AND a.followed_at > now() - interval '{JOINED_WITHIN}'
                   AND t.status IN ('pending', 'processing', 'completed') AND t.generation_id IS NOT NULL
                 ORDER BY a.created_at DESC LIMIT 1)
            RETURNING task_id""",  # noqa: S608 - a constant
        user_id,
        request_hash,
    )
    return task_id


async def note_followed(connection: Connection, task_ids: list[UUID]) -> None:
    """Somebody follows these at this moment. Those that nobody has to follow have no row, and none is made."""
    await connection.execute("UPDATE internal.attended SET followed_at = now() WHERE task_id = ANY($1)", task_ids)


async def take_abandoned(connection: Connection, unfollowed_seconds: float) -> UUID | None:
    """A speech under way that nobody has followed for so long, given to one caller, who has to end it.

    What is spoken to its end and waits for the store is paid for, and stays.
    """
    task_id: UUID | None = await connection.fetchval(
        """DELETE FROM internal.attended WHERE task_id = (
               SELECT a.task_id FROM internal.attended a JOIN internal.runs r ON r.task_id = a.task_id
                WHERE a.followed_at < now() - make_interval(secs => $1) AND r.state IN ('queued', 'speaking')
                ORDER BY a.followed_at LIMIT 1 FOR UPDATE OF a SKIP LOCKED)
            RETURNING task_id""",
        unfollowed_seconds,
    )
    return task_id


async def forget_old(connection: Connection) -> None:
    """What no retry can join any more goes, unless it is still under way."""
    await connection.execute(
        f"""DELETE FROM internal.attended a WHERE a.followed_at < now() - interval '{JOINED_WITHIN}'
              AND NOT EXISTS (SELECT FROM public.tasks t WHERE t.id = a.task_id AND t.status = ANY($1))""",  # noqa: S608
        list(ACTIVE),
    )
