"""Objects that must go, and which ones are wanted. A removal is recorded with the rows that let go of the object."""

from typing import Any
from uuid import UUID

from server.database.connections import Connection
from server.database.queue import Queue
from server.objects import named_by, own_key
from server.records.runs import REMOVE_JOB

# As ``purchases.doubt_of`` has it, and those that were throttled as well: keeping too much harms nobody.
DOUBTFUL_CLONE = """kind = 'clone' AND (state IN ('calling', 'unknown') OR (state = 'refused'
    AND (outcome ? 'in_doubt_since' OR (outcome ->> 'category' = 'provider_unavailable'
         AND coalesce(outcome #>> '{diagnostics,text_sent}', 'true') = 'true'))))"""


async def record(
    connection: Connection, queue: Queue, bucket: str, object_key: str, *, asked_by: UUID | None, reason: str
) -> None:
    """Record that an object must go, and defer the job that removes it. The record leaves when the object has.

    Args:
        asked_by: Whose row of ``public`` named the object: only an object of that user goes. None where the key comes
            from a row that nobody but this server writes.
    """
    if asked_by is not None and own_key(asked_by, object_key) is None:
        return
    await connection.execute(
        """INSERT INTO internal.removals (bucket, object_key, reason) VALUES ($1, $2, $3)
           ON CONFLICT (bucket, object_key) DO NOTHING""",
        bucket,
        object_key,
        reason,
    )
    await queue.defer(connection, REMOVE_JOB, bucket=bucket, object_key=object_key)


async def expect(connection: Connection, bucket: str, object_key: str) -> None:
    """Record that an object may come, and must go a day from now unless a row has come to want it."""
    await connection.execute(
        """INSERT INTO internal.removals (bucket, object_key, reason, next_at)
           VALUES ($1, $2, 'never finalized', now() + interval '1 day')
           ON CONFLICT (bucket, object_key) DO UPDATE SET next_at = EXCLUDED.next_at""",
        bucket,
        object_key,
    )


async def forget(connection: Connection, bucket: str, object_key: str) -> None:
    """The object is gone, or wanted after all."""
    await connection.execute("DELETE FROM internal.removals WHERE bucket = $1 AND object_key = $2", bucket, object_key)


async def recorded(connection: Connection) -> list[dict[str, Any]]:
    """Objects that are to be removed and are still there; not those that may yet be wanted."""
    rows = await connection.fetch(
        """SELECT bucket, object_key, reason, created_at FROM internal.removals
            WHERE tries > 0 OR reason <> 'never finalized' ORDER BY created_at"""
    )
    return [dict(row) for row in rows]


async def try_again(connection: Connection, queue: Queue, *, at_most: int = 100) -> None:
    """Defer the jobs of removals whose time has come: one was lost, or failed. Pauses double, up to a day."""
    rows = await connection.fetch(
        """UPDATE internal.removals r
              SET tries = r.tries + 1,
                  next_at = now() + least(interval '1 day', interval '1 minute' * power(2, least(r.tries + 1, 20)))
            WHERE (r.bucket, r.object_key) IN (
                SELECT bucket, object_key FROM internal.removals WHERE next_at < now()
                 ORDER BY next_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED)
        RETURNING r.bucket, r.object_key""",
        at_most,
    )
    for row in rows:
        await queue.defer(connection, REMOVE_JOB, bucket=row["bucket"], object_key=row["object_key"])


async def tries(connection: Connection, bucket: str, object_key: str) -> int:
    """How often the removal was tried again."""
    count: int | None = await connection.fetchval(
        "SELECT tries FROM internal.removals WHERE bucket = $1 AND object_key = $2", bucket, object_key
    )
    return count or 0


async def failing(connection: Connection) -> int:
    """How many removals were tried again more than once and have not succeeded; counted up to a thousand."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM (SELECT 1 FROM internal.removals WHERE tries > 1 LIMIT 1000) AS found"
    )
    return count


async def wanted(connection: Connection, keys: list[str]) -> set[str]:
    """Which of these keys a row shows, or will show. The one answer for removing and for reconciling.

    A recording whose cloning has an unknown end belongs to no row, but is needed to adopt what was paid for. A row
    that names another user's object does not hold it; keys that do not say whose they are (an older system may have
    made such) are held by any row.
    """
    names = [name for name in map(named_by, keys) if name]
    rows = await connection.fetch(
        f"""WITH asked AS (
               SELECT key, substring(key FROM '^([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})/')::uuid
                           AS user_id
                 FROM unnest($1::text[]) AS k (key))
           SELECT a.key FROM asked a JOIN public.generations g ON g.audio_object_key = a.key
                   AND g.user_id = coalesce(a.user_id, g.user_id)
           UNION SELECT a.key FROM asked a JOIN public.voices v ON v.reference_object_key = a.key
                   AND v.user_id = coalesce(a.user_id, v.user_id)
           UNION SELECT object_key FROM internal.runs WHERE generation_id = ANY($2) AND object_key = ANY($1)
           UNION SELECT object_key FROM internal.runs WHERE task_id = ANY($3) AND object_key = ANY($1)
           UNION SELECT result ->> 'object_key' FROM public.tasks WHERE id = ANY($3) AND type = 'design_preview'
           UNION SELECT outcome ->> 'object_key' FROM internal.purchases
                  WHERE subject = ANY($3) AND kind = 'design' AND state = 'done'
           UNION SELECT user_id || '/' || subject || '/reference.wav' FROM internal.purchases
                  WHERE subject = ANY($4) AND {DOUBTFUL_CLONE}""",  # noqa: S608 - constants
        keys,
        [name.generation_id for name in names if name.generation_id],
        [name.preview_task_id for name in names if name.preview_task_id],
        [name.voice_id for name in names if name.voice_id],
    )
    return {row["key"] for row in rows} & set(keys)
