"""What a user has had spoken: the list, one entry, and its deletion."""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from server.database.connections import Connection
from server.database.queue import Queue
from server.objects import own_key
from server.records import removals, runs, search, speech
from server.records.search import Filters, Found
from server.records.speech import Asked, asked_of
from server.records.tasks import Status


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One generation as the history shows it. A deleted voice keeps its name here.

    Attributes:
        audio_object_key: Of an object that is its user's own, else None.
    """

    id: UUID
    voice_id: UUID | None
    voice_name: str | None
    voice_deleted: bool
    text: str
    language: str
    status: Status
    duration_seconds: float | None
    generation_time_seconds: float | None
    error_message: str | None
    created_at: datetime
    tts_provider: str
    output_format: str | None
    audio_object_key: str | None
    asked: Asked


_ENTRY = """
SELECT g.id, g.user_id, v.id AS voice_id, v.name AS voice_name,
       v.id IS NULL OR v.deleted_at IS NOT NULL AS voice_deleted, g.text,
       coalesce(g.language, 'Auto') AS language, g.status, g.duration_seconds::float8 AS duration_seconds,
       g.generation_time_seconds::float8 AS generation_time_seconds, g.error_message, g.created_at, g.tts_provider,
       g.output_format, g.audio_object_key, g.provider_metadata -> 'asked' AS asked
  FROM public.generations g LEFT JOIN public.voices v ON v.id = g.voice_id AND v.user_id = g.user_id
"""


def _entry(row: asyncpg.Record) -> Entry:
    fields = dict(row)
    fields["asked"] = asked_of(fields["asked"])
    return Entry(audio_object_key=own_key(fields.pop("user_id"), fields.pop("audio_object_key")), **fields)


async def page(
    connection: Connection, to: Filters, *, limit: int, offset: int = 0, count: bool = True
) -> tuple[list[Entry], Found]:
    """Entries, newest first, and what is known of how many there are.

    Args:
        count: False where it is of no use how many there are in all.
    """
    found = await search.find(connection, to, limit=limit, offset=offset, count=count)
    rows = await connection.fetch(
        f"{_ENTRY} WHERE g.id = ANY($1::uuid[]) AND g.user_id = $2 ORDER BY g.created_at DESC, g.id DESC",
        found.ids,
        to.user_id,
    )
    return [_entry(row) for row in rows], found


async def find(connection: Connection, generation_id: UUID, user_id: UUID) -> Entry | None:
    """One entry; None where it does not exist or belongs to somebody else."""
    row = await connection.fetchrow(f"{_ENTRY} WHERE g.id = $1 AND g.user_id = $2", generation_id, user_id)
    return _entry(row) if row else None


class Deleted(msgspec.Struct, frozen=True):
    """What a deletion ended, so that whoever works on it can be told."""

    task_ids: list[UUID]


async def delete(
    connection: Connection, queue: Queue, bucket: str, generation_id: UUID, user_id: UUID
) -> Deleted | None:
    """Delete a generation: an active one is cancelled, then the row goes, then (by a job) its object.

    Returns:
        None where there is nothing to delete.
    """
    row: Any = await connection.fetchrow(
        "SELECT status, audio_object_key FROM public.generations WHERE id = $1 AND user_id = $2 FOR UPDATE",
        generation_id,
        user_id,
    )
    if row is None:
        return None
    tasks = await connection.fetch(
        "SELECT id FROM public.tasks WHERE generation_id = $1 AND user_id = $2", generation_id, user_id
    )
    task_ids = [task["id"] for task in tasks]
    keys = {row["audio_object_key"]}
    for task_id in task_ids:
        ended = await speech.end(connection, task_id, speech.CANCELLED)
        if ended.run_state == "spoken":
            keys.add(ended.object_key)
        if ended.here:
            await speech.cancel_job(connection, queue, task_id)
    # Also a run whose task a browser has deleted, and audio that was kept because it could not be stored.
    left = await runs.forget_generation(connection, generation_id)
    await connection.execute("DELETE FROM public.generations WHERE id = $1", generation_id)
    for key in keys - {None}:
        await removals.record(connection, queue, bucket, key, asked_by=user_id, reason="generation deleted")
    return Deleted([*task_ids, *left])
