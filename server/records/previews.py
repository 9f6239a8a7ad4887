"""Previews of designed voices as rows: a task with a run and no generation; its object is the preview's audio."""

from uuid import UUID

import msgspec

from server.database.connections import Connection
from server.database.queue import Queue
from server.objects import preview_key
from server.records import runs
from server.records.runs import PREVIEW_JOB
from server.records.usage import DESIGN


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
    connection: Connection,
    queue: Queue,
    *,
    task_id: UUID,
    user_id: UUID,
    provider: str,
    text: str,
    language: str,
    instruct: str,
    key_id: UUID | None,
) -> None:
    """Insert task and run and defer the job: none exists without the others.

    Args:
        key_id: The key under which it is counted; None for a sign-in token.
    """
    await connection.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, provider, metadata)
           VALUES ($1, $2, 'design_preview', 'processing', $3, $4)""",
        task_id,
        user_id,
        provider,
        {"text": text, "language": language, "instruct": instruct, "counted": {"lane": DESIGN, "key_id": key_id}},
    )
    await runs.add(connection, queue, task_id=task_id, job_name=PREVIEW_JOB, object_key=preview_key(user_id, task_id))


async def claim(connection: Connection, task_id: UUID, attempt: int, owner: UUID) -> Preview | None:
    """Take a queued preview for ``owner``; None when it is gone, taken, or has moved on to another attempt."""
    row = await connection.fetchrow(
        "SELECT user_id, provider, metadata FROM public.tasks WHERE id = $1 AND status IN ('pending', 'processing')",
        task_id,
    )
    claimed = await runs.claim(connection, task_id, attempt, owner) if row else None
    if row is None or claimed is None:
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
        object_key=claimed.object_key,
    )


async def complete(connection: Connection, preview: Preview, *, request_id: str | None) -> bool:
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
    await runs.forget(connection, preview.task_id)
    return bool(completed)
