"""Objects that must go. The record is written with the rows that let go of the object, and leaves with the object."""

from server.database import Connection


async def is_wanted(connection: Connection, object_key: str) -> bool:
    """Whether a row still shows this object."""
    wanted: bool = await connection.fetchval(
        """SELECT EXISTS (SELECT 1 FROM public.generations WHERE audio_object_key = $1)
                  OR EXISTS (SELECT 1 FROM public.voices WHERE reference_object_key = $1)
                  OR EXISTS (SELECT 1 FROM internal.purchases
                              WHERE kind = 'design' AND state = 'done' AND outcome ->> 'object_key' = $1)""",
        object_key,
    )
    return wanted


async def forget(connection: Connection, bucket: str, object_key: str) -> None:
    await connection.execute("DELETE FROM internal.removals WHERE bucket = $1 AND object_key = $2", bucket, object_key)


async def overdue(connection: Connection, older_than_seconds: float) -> list[tuple[str, str]]:
    """Records whose job seems to be lost or has failed."""
    rows = await connection.fetch(
        """SELECT bucket, object_key FROM internal.removals r
            WHERE created_at < now() - make_interval(secs => $1)
              AND NOT EXISTS (SELECT 1 FROM internal.procrastinate_jobs j
                               WHERE j.task_name = 'remove' AND j.status IN ('todo', 'doing')
                                 AND j.args ->> 'object_key' = r.object_key)
            LIMIT 100""",
        older_than_seconds,
    )
    return [(row["bucket"], row["object_key"]) for row in rows]
