"""Renewals as rows: a task of type ``clone`` with a run, which makes a voice again at the provider."""

from uuid import UUID

import msgspec

from server.database.connections import Connection
from server.database.queue import Queue
from server.records import runs
from server.records.runs import RENEW_JOB


class Renewing(msgspec.Struct, frozen=True, kw_only=True):
    """A claimed renewal."""

    task_id: UUID
    attempt: int
    user_id: UUID
    voice_id: UUID


async def under_way(connection: Connection, voice_id: UUID) -> UUID | None:
    """The task that is renewing a voice at the moment. Locks the voice's row, so that two cannot begin at once."""
    await connection.fetchval("SELECT id FROM public.voices WHERE id = $1 FOR UPDATE", voice_id)
    task_id: UUID | None = await connection.fetchval(
        """SELECT t.id FROM public.tasks t JOIN internal.runs r ON r.task_id = t.id AND r.job_name = $2
            WHERE t.voice_id = $1 AND t.type = 'clone' AND t.status IN ('pending', 'processing') LIMIT 1""",
        voice_id,
        RENEW_JOB,
    )
    return task_id


async def create(
    connection: Connection, queue: Queue, *, task_id: UUID, user_id: UUID, voice_id: UUID, provider: str
) -> None:
    """Insert task and run and defer the job: none exists without the others."""
    await connection.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, voice_id, provider)
           VALUES ($1, $2, 'clone', 'processing', $3, $4)""",
        task_id,
        user_id,
        voice_id,
        provider,
    )
    # Nothing is stored under this name; a run has one.
    await runs.add(connection, queue, task_id=task_id, job_name=RENEW_JOB, object_key=f"{user_id}/renewal_{task_id}")


async def claim(connection: Connection, task_id: UUID, attempt: int, owner: UUID) -> Renewing | None:
    """Take a queued renewal for ``owner``; None when it is gone, taken, or has moved on to another attempt."""
    row = await connection.fetchrow(
        "SELECT user_id, voice_id FROM public.tasks WHERE id = $1 AND status IN ('pending', 'processing')", task_id
    )
    claimed = await runs.claim(connection, task_id, attempt, owner) if row else None
    if row is None or claimed is None or row["voice_id"] is None:
        return None
    return Renewing(task_id=task_id, attempt=attempt, user_id=row["user_id"], voice_id=row["voice_id"])


async def complete(connection: Connection, renewing: Renewing) -> bool:
    """The voice has been made again: complete its task. False when it has ended otherwise meanwhile."""
    completed = await connection.fetchval(
        """UPDATE public.tasks
              SET status = 'completed', provider_status = 'completed', completed_at = now(), result = $2
            WHERE id = $1 AND status IN ('pending', 'processing') RETURNING true""",
        renewing.task_id,
        {"voice_id": str(renewing.voice_id)},
    )
    await runs.forget(connection, renewing.task_id)
    return bool(completed)
