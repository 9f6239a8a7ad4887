"""Ending a speech because its user says so: committed first, then told to whoever is speaking."""

from uuid import UUID

from server.errors import NotFound
from server.jobs.own import require_task
from server.parts import Parts
from server.records import history, speech, tasks
from server.records.tasks import SpeechTask


async def cancel(parts: Parts, user_id: UUID, task_id: UUID) -> tuple[bool, SpeechTask]:
    """End the task, if it has not ended by itself.

    Returns:
        Whether this call ended it, and the task as it stood before, or as whoever ended it left it.
    """
    task = await require_task(parts, user_id, task_id)
    if task.terminal:
        return False, task
    async with parts.database.transaction() as connection:
        here = await speech.cancel(connection, parts.queue, parts.generations_bucket, task_id)
    await _told(parts, task, here)
    # What was committed is answered, whatever becomes of the row by then.
    return here, task if here else await require_task(parts, user_id, task_id)


async def hide_task(parts: Parts, user_id: UUID, task_id: UUID) -> None:
    """Take a task out of sight, and end it before if it has not ended."""
    task = await require_task(parts, user_id, task_id)
    if not task.terminal:
        async with parts.database.transaction() as connection:
            here = await speech.cancel(connection, parts.queue, parts.generations_bucket, task_id)
        await _told(parts, task, here)
    async with parts.database.connection() as connection:
        await tasks.hide(connection, task_id)


async def delete_generation(parts: Parts, user_id: UUID, generation_id: UUID) -> None:
    """Delete one entry of the history, whatever state it is in.

    Raises:
        NotFound: No such generation, or somebody else's.
    """
    async with parts.database.transaction() as connection:
        deleted = await history.delete(connection, parts.queue, parts.generations_bucket, generation_id, user_id)
    if deleted is None:
        raise NotFound("This generation does not exist.")
    for task_id in deleted.task_ids:
        await _tell(parts, task_id)


async def _told(parts: Parts, task: SpeechTask, here: bool) -> None:
    if here:
        parts.metrics.task_ended(task.provider, "cancelled", "cancelled")
        await parts.endings.log(task.id)
    await _tell(parts, task.id)


async def _tell(parts: Parts, task_id: UUID) -> None:
    await parts.leases.tell_owner(task_id)
    parts.announcer.changed(task_id)
