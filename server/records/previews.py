"""Previews of designed voices as rows: a task with a run and no generation; its object is the preview's audio."""

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from server.queue import Queue
from server.records import speech
from server.records.speech import PREVIEW_JOB

if TYPE_CHECKING:
    from server.database import Connection


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A claimed preview with what has to be designed."""

    task_id: UUID
    attempt: int
    user_id: UUID
    provider: str
    text: str
    language: str
    instruct: str
    object_key: str


async def create(
    connection: "Connection",
    queue: Queue,
    *,
    task_id: UUID,
    user_id: UUID,
    provider: str,
    text: str,
    language: str,
    instruct: str,
) -> None:
    """Insert task and run and defer the job: none exists without the others."""
    await connection.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, provider, metadata)
           VALUES ($1, $2, 'design_preview', 'processing', $3, $4)""",
        task_id,
        user_id,
        provider,
        {"text": text, "language": language, "instruct": instruct},
    )
    await connection.execute(
        "INSERT INTO internal.runs (task_id, job_name, object_key) VALUES ($1, $2, $3)",
        task_id,
        PREVIEW_JOB,
        f"{user_id}/preview_{task_id}.wav",
    )
    await speech.start_job(connection, queue, PREVIEW_JOB, task_id, 1)


async def claim(connection: "Connection", task_id: UUID, attempt: int, owner: UUID) -> Preview | None:
    """Take a queued preview for ``owner``; None when it is gone, taken, or has moved on to another attempt."""
    row = await connection.fetchrow(
        """UPDATE internal.runs r SET owner = $3, state = 'speaking', beat_at = now()
             FROM public.tasks t
            WHERE r.task_id = $1 AND r.attempt = $2 AND r.state = 'queued'
              AND t.id = r.task_id AND t.status IN ('pending', 'processing')
        RETURNING r.object_key, t.user_id, t.provider, t.metadata""",
        task_id,
        attempt,
        owner,
    )
    if row is None:
        return None
    asked = row["metadata"]
    return Preview(
        task_id=task_id,
        attempt=attempt,
        user_id=row["user_id"],
        provider=row["provider"],
        text=asked["text"],
        language=asked["language"],
        instruct=asked["instruct"],
        object_key=row["object_key"],
    )


async def complete(connection: "Connection", preview: Preview, *, request_id: str | None) -> bool:
    """The preview's audio is stored: complete its task. False when it has ended otherwise meanwhile.

    May be repeated: a task that is completed already was completed with this very object.
    """
    completed = await connection.fetchval(
        """UPDATE public.tasks
              SET status = 'completed', provider_status = 'completed', completed_at = now(), result = $2,
                  metadata = coalesce(metadata, '{}') || jsonb_strip_nulls(jsonb_build_object('request_id', $3::text))
            WHERE id = $1 AND status IN ('pending', 'processing') RETURNING true""",
        preview.task_id,
        {"object_key": preview.object_key},
        request_id,
    )
    if not completed:
        completed = await connection.fetchval(
            "SELECT status = 'completed' FROM public.tasks WHERE id = $1", preview.task_id
        )
    await connection.execute("DELETE FROM internal.runs WHERE task_id = $1", preview.task_id)
    return bool(completed)
