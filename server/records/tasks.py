"""The task as its user sees it: what polls and streams read, and whether it is shown at all.

How a task ends is decided with its generation and its run: that is ``speech.py``.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec

from server.audio import AudioFormat, format_named
from server.database.connections import Connection
from server.objects import own_key

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
ACTIVE = ("pending", "processing")


class SpeechTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task with what its generation and its run say; the view that polls, streams and jobs share.

    Attributes:
        text_length: In characters; 0 where another system has left no number.
        byte_length: Durable payload bytes: of the run while there is one, of the stored audio afterwards.
        bits_per_second: Of the audio; 0 while unknown.
        object_key, result: Only where the object is the task's user's own, else None.
    """

    id: UUID
    user_id: UUID
    type: Literal["generate", "design_preview", "clone"]
    status: Status
    result: dict[str, Any] | None
    error: str | None
    error_category: str | None
    generation_id: UUID | None
    voice_id: UUID | None
    created_at: datetime
    completed_at: datetime | None
    hidden: bool
    provider: str
    provider_status: str | None
    provider_poll_count: int
    provider_job_id: str | None
    modal_job_id: str | None
    modal_poll_count: int
    text_length: int
    format_name: str | None
    object_key: str | None
    duration_seconds: float | None
    attempt: int | None
    run_state: str | None
    byte_length: int
    sample_rate_hz: int
    bits_per_second: int
    request_id: str | None

    @property
    def terminal(self) -> bool:
        return self.status not in ACTIVE

    @property
    def audio_format(self) -> AudioFormat | None:
        """None where it is not known, or one that only another system writes."""
        try:
            return format_named(self.format_name or "")
        except KeyError:
            return None

    @property
    def job(self) -> str | None:
        """What a job API calls the work; the older system wrote only its own column."""
        return self.provider_job_id or self.modal_job_id


_TASK_COLUMNS = """
    t.id, t.user_id, t.type, t.status, t.result, t.error, t.error_category, t.generation_id, t.voice_id,
    t.created_at, t.completed_at, t.deleted_at IS NOT NULL AS hidden, t.provider, t.provider_status,
    t.provider_poll_count, t.provider_job_id, t.modal_job_id, t.modal_poll_count,
    CASE WHEN t.metadata ->> 'text_length' ~ '^[0-9]{1,9}$' THEN (t.metadata ->> 'text_length')::int ELSE 0 END
        AS text_length,
    g.output_format AS format_name, g.audio_object_key AS object_key, g.duration_seconds::float8 AS duration_seconds,
    coalesce(g.provider_metadata ->> 'request_id', t.metadata ->> 'request_id') AS request_id,
    r.attempt, r.state AS run_state,
    coalesce(r.byte_length, (g.provider_metadata #>> '{audio,bytes}')::bigint, 0) AS byte_length,
    coalesce(r.sample_rate_hz, (g.provider_metadata #>> '{audio,sample_rate}')::int, 24000) AS sample_rate_hz,
    coalesce((g.provider_metadata #>> '{audio,bits_per_second}')::int, 0) AS bits_per_second
"""
_TASK_TABLES = """
    LEFT JOIN public.generations g ON g.id = t.generation_id AND g.user_id = t.user_id
    LEFT JOIN internal.runs r ON r.task_id = t.id
"""


def _task(row: asyncpg.Record) -> SpeechTask:
    fields = {field: row[field] for field in SpeechTask.__struct_fields__}
    owner, result = row["user_id"], row["result"]
    fields["object_key"] = own_key(owner, row["object_key"])
    # Another system may have left anything there, a plain string for instance.
    if isinstance(result, dict) and "object_key" in result and own_key(owner, result["object_key"]) is None:
        fields["result"] = None
    return SpeechTask(**fields)


async def find(connection: Connection, task_id: UUID, user_id: UUID | None = None) -> SpeechTask | None:
    """The task, hidden or not; None where it does not exist or belongs to somebody else."""
    row = await connection.fetchrow(
        f"SELECT {_TASK_COLUMNS} FROM public.tasks t {_TASK_TABLES}"  # noqa: S608 - constants
        " WHERE t.id = $1 AND ($2::uuid IS NULL OR t.user_id = $2)",
        task_id,
        user_id,
    )
    return _task(row) if row else None


async def find_several(
    connection: Connection, wanted: Collection[tuple[UUID, UUID]]
) -> dict[tuple[UUID, UUID], SpeechTask]:
    """The same for several (task id, user id); what does not exist or belongs to somebody else is not in the answer."""
    rows = await connection.fetch(
        f"""SELECT {_TASK_COLUMNS} FROM unnest($1::uuid[], $2::uuid[]) AS f (task_id, user_id)
              JOIN public.tasks t ON t.id = f.task_id AND t.user_id = f.user_id {_TASK_TABLES}""",  # noqa: S608 - constants
        [task_id for task_id, _ in wanted],
        [user_id for _, user_id in wanted],
    )
    return {(row["id"], row["user_id"]): _task(row) for row in rows}


async def get(connection: Connection, task_id: UUID) -> SpeechTask:
    """The task that this transaction has just made."""
    task = await find(connection, task_id)
    if task is None:
        raise LookupError(task_id)
    return task


async def summary(connection: Connection, task_id: UUID) -> dict[str, Any] | None:
    """What the log says of a speech that has ended: ids and numbers, nothing that somebody wrote."""
    row = await connection.fetchrow(
        """SELECT t.id AS task_id, t.generation_id, t.user_id, g.provider_model AS model,
                  t.metadata ->> 'text_length' AS characters, g.duration_seconds::float8 AS seconds, t.status,
                  t.error_category AS category, g.provider_metadata #>> '{error,code}' AS code,
                  coalesce(g.provider_metadata ->> 'request_id', t.metadata ->> 'request_id') AS provider_request_id,
                  g.provider_metadata #>> '{asked,request_id}' AS request_id,
                  round(extract(epoch FROM t.completed_at - t.created_at), 3)::float8 AS took_seconds
             FROM public.tasks t LEFT JOIN public.generations g ON g.id = t.generation_id AND g.user_id = t.user_id
            WHERE t.id = $1 AND t.type = 'generate'""",
        task_id,
    )
    return dict(row) if row else None


class Glimpse(msgspec.Struct, frozen=True):
    """A followed task as it was read: its rows, and the spooled audio that the follower's mirror lacks."""

    task: SpeechTask
    audio: bytes
    audio_offset: int


async def read_glimpses(
    connection: Connection, wanted: list[tuple[UUID, int, int]], *, rows_at_most: int = 16
) -> dict[UUID, Glimpse]:
    """Read many tasks with one statement.

    Args:
        wanted: (task id, attempt and length of the mirror that wants spooled bytes; attempt -1 where none does).
    """
    rows = await connection.fetch(
        f"""SELECT {_TASK_COLUMNS}, s.bytes AS spooled, coalesce(s.start, 0) AS spooled_from
              FROM unnest($1::uuid[], $2::int[], $3::bigint[]) AS f (task_id, attempt, byte_offset)
              JOIN public.tasks t ON t.id = f.task_id {_TASK_TABLES}
              LEFT JOIN LATERAL (
                  SELECT string_agg(x.bytes, ''::bytea ORDER BY x.byte_offset) AS bytes, min(x.byte_offset) AS start
                    FROM (SELECT p.bytes, p.byte_offset FROM internal.spool p
                           WHERE p.task_id = r.task_id AND p.byte_offset < r.byte_length
                             AND p.byte_offset >= CASE WHEN f.attempt = r.attempt OR f.byte_offset <= r.kept_bytes
                                                       THEN f.byte_offset ELSE 0 END
                           ORDER BY p.byte_offset LIMIT $4) x
              ) s ON f.attempt >= 0""",  # noqa: S608 - constants
        [task_id for task_id, _, _ in wanted],
        [attempt for _, attempt, _ in wanted],
        [length for _, _, length in wanted],
        rows_at_most,
    )
    return {row["id"]: Glimpse(_task(row), row["spooled"] or b"", row["spooled_from"]) for row in rows}


async def hide(connection: Connection, task_id: UUID) -> bool:
    """Take a task out of its user's sight; the row itself goes a day later."""
    hidden = await connection.fetchval(
        "UPDATE public.tasks SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL RETURNING true", task_id
    )
    return bool(hidden)


async def forget_hidden(connection: Connection, older_than_seconds: float) -> None:
    """Tasks hidden for so long go, unless they are still at work: those end first."""
    await connection.execute(
        """DELETE FROM public.tasks WHERE deleted_at < now() - make_interval(secs => $1)
              AND status NOT IN ('pending', 'processing')""",
        older_than_seconds,
    )
