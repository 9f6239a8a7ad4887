"""Speech as rows: the generation, the task that clients poll, and the run that says who is speaking.

They are one invariant, so every change of state is a guarded function here and nowhere else. A terminal state is never
overwritten; where there is a generation its row decides; locks are taken generation → task → run → spool, each in a
statement of its own, because the other order deadlocks (design-evidence E23).
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import msgspec

from server.audio import AudioFormat, format_named
from server.errors import Category
from server.queue import DEFAULT, SYNTHESIS, WATCHING, Queue

if TYPE_CHECKING:
    import asyncpg

    from server.database import Connection

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
ACTIVE = ("pending", "processing")

SYNTHESIZE_JOB, FINALIZE_JOB, REMOVE_JOB, PREVIEW_JOB = "synthesize", "finalize", "remove", "preview"
# A speech that a job API makes is watched until it is there, and then collected like any other is spoken.
WATCH_MODAL_JOB, COLLECT_MODAL_JOB, CANCEL_MODAL_JOB = "watch_modal", "collect_modal", "cancel_modal"
# What waits on a provider has queues of its own, so that storing never waits behind it.
_QUEUES = {
    SYNTHESIZE_JOB: SYNTHESIS,
    COLLECT_MODAL_JOB: SYNTHESIS,
    PREVIEW_JOB: SYNTHESIS,
    WATCH_MODAL_JOB: WATCHING,
}

CANCELLED_BY_USER = "Cancelled by user"

# Facts join what is known already; the list of extra attempts grows instead of being replaced. {0} is the parameter.
_WITH_FACTS = """coalesce(provider_metadata, '{{}}') || {0}::jsonb || jsonb_build_object('attempts',
    coalesce(provider_metadata -> 'attempts', '[]') || coalesce({0}::jsonb -> 'attempts', '[]'))"""


class SpeechTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task with what its generation and its run say; the view that polls, streams and jobs share.

    Attributes:
        byte_length: Durable payload bytes: of the run while there is one, of the stored audio afterwards.
        bits_per_second: Of the audio; 0 while unknown.
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
    metadata: dict[str, Any]
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
    coalesce(t.metadata, '{}') AS metadata,
    g.output_format AS format_name, g.audio_object_key AS object_key, g.duration_seconds::float8 AS duration_seconds,
    coalesce(g.provider_metadata ->> 'request_id', t.metadata ->> 'request_id') AS request_id,
    r.attempt, r.state AS run_state,
    coalesce(r.byte_length, (g.provider_metadata #>> '{audio,bytes}')::bigint, 0) AS byte_length,
    coalesce(r.sample_rate_hz, (g.provider_metadata #>> '{audio,sample_rate}')::int, 24000) AS sample_rate_hz,
    coalesce((g.provider_metadata #>> '{audio,bits_per_second}')::int, 0) AS bits_per_second
"""
_TASK_TABLES = """
    LEFT JOIN public.generations g ON g.id = t.generation_id
    LEFT JOIN internal.runs r ON r.task_id = t.id
"""


def _task(row: "asyncpg.Record") -> SpeechTask:
    return SpeechTask(**{field: row[field] for field in SpeechTask.__struct_fields__})


async def find_task(connection: "Connection", task_id: UUID, user_id: UUID | None = None) -> SpeechTask | None:
    """The task, hidden or not; None where it does not exist or belongs to somebody else."""
    row = await connection.fetchrow(
        f"SELECT {_TASK_COLUMNS} FROM public.tasks t {_TASK_TABLES}"  # noqa: S608 - constants
        " WHERE t.id = $1 AND ($2::uuid IS NULL OR t.user_id = $2)",
        task_id,
        user_id,
    )
    return _task(row) if row else None


async def get_task(connection: "Connection", task_id: UUID) -> SpeechTask:
    """The task that this transaction has just made."""
    task = await find_task(connection, task_id)
    if task is None:
        raise LookupError(task_id)
    return task


class Glimpse(msgspec.Struct, frozen=True):
    """What one look at a followed task found: its rows, and the spooled audio behind what the follower's mirror has."""

    task: SpeechTask
    audio: bytes
    audio_offset: int


async def look(
    connection: "Connection", wanted: list[tuple[UUID, int, int]], *, rows_at_most: int = 16
) -> dict[UUID, Glimpse]:
    """Look at many tasks with one statement.

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
                           WHERE p.task_id = r.task_id AND p.attempt = r.attempt
                             AND p.byte_offset >= CASE WHEN f.attempt = r.attempt THEN f.byte_offset ELSE 0 END
                           ORDER BY p.byte_offset LIMIT $4) x
              ) s ON f.attempt >= 0""",  # noqa: S608 - constants
        [task_id for task_id, _, _ in wanted],
        [attempt for _, attempt, _ in wanted],
        [length for _, _, length in wanted],
        rows_at_most,
    )
    return {row["id"]: Glimpse(_task(row), row["spooled"] or b"", row["spooled_from"]) for row in rows}


class NewSpeech(msgspec.Struct, frozen=True, kw_only=True):
    """A generation to be made, with everything that its rows need.

    Attributes:
        job_name: The job that the run begins with, ``in_seconds`` from now.
    """

    task_id: UUID
    generation_id: UUID
    user_id: UUID
    voice_id: UUID
    text: str
    text_length: int
    language: str
    provider: str
    model: str | None
    format_name: str
    object_key: str
    job_name: str = SYNTHESIZE_JOB
    in_seconds: float = 0.0


async def waiting(connection: "Connection", job_name: str, at_most: int) -> int:
    """How many speeches that begin with this job are not being spoken yet; counting stops at ``at_most``."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM (SELECT 1 FROM internal.runs WHERE state = 'queued' AND job_name = $2 LIMIT $1) AS w",
        at_most,
        job_name,
    )
    return count


async def create(connection: "Connection", queue: Queue, speech: NewSpeech) -> None:
    """Insert generation, task and run and defer the job: none exists without the others."""
    await connection.execute(
        """INSERT INTO public.generations
                (id, user_id, voice_id, text, language, status, tts_provider, provider_model, output_format)
           VALUES ($1, $2, $3, $4, $5, 'processing', $6, $7, $8)""",
        speech.generation_id,
        speech.user_id,
        speech.voice_id,
        speech.text,
        speech.language,
        speech.provider,
        speech.model,
        speech.format_name,
    )
    await connection.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, generation_id, voice_id, provider, metadata)
           VALUES ($1, $2, 'generate', 'processing', $3, $4, $5, $6)""",
        speech.task_id,
        speech.user_id,
        speech.generation_id,
        speech.voice_id,
        speech.provider,
        {"text_length": speech.text_length, "language": speech.language},
    )
    await connection.execute(
        "INSERT INTO internal.runs (task_id, generation_id, job_name, object_key) VALUES ($1, $2, $3, $4)",
        speech.task_id,
        speech.generation_id,
        speech.job_name,
        speech.object_key,
    )
    await start_job(connection, queue, speech.job_name, speech.task_id, 1, in_seconds=speech.in_seconds)


async def start_job(
    connection: "Connection", queue: Queue, job_name: str, task_id: UUID, attempt: int, *, in_seconds: float = 0.0
) -> None:
    """Defer the job that takes a queued run on."""
    await queue.defer(
        connection,
        job_name,
        queue=_QUEUES.get(job_name, DEFAULT),
        in_seconds=in_seconds,
        task_id=task_id,
        attempt=attempt,
    )


class Fenced(Exception):
    """This attempt was taken over, or cancelled, between two statements. Rolls the transaction back."""


class SpeechGone(Exception):
    """A browser deleted the generation through the database's own REST layer. Rolls the transaction back."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A claimed run with what has to be spoken."""

    task_id: UUID
    attempt: int
    generation_id: UUID
    user_id: UUID
    voice_id: UUID | None
    text: str
    language: str
    format_name: str
    object_key: str
    provider: str
    provider_voice_id: str | None
    provider_target_model: str | None
    job: str | None
    waited_seconds: float


async def claim(connection: "Connection", task_id: UUID, attempt: int, owner: UUID) -> Assignment | None:
    """Take a queued run for ``owner``; None when it is gone, taken, or has moved on to another attempt.

    Raises:
        SpeechGone: The run is there, but its generation is not (or has ended): as good as cancelled.
    """
    row = await connection.fetchrow(
        """UPDATE internal.runs SET owner = $3, state = 'speaking', beat_at = now()
            WHERE task_id = $1 AND attempt = $2 AND state = 'queued'
        RETURNING generation_id, object_key, extract(epoch FROM now() - created_at)::float8 AS waited_seconds""",
        task_id,
        attempt,
        owner,
    )
    if row is None:
        return None
    speech = await connection.fetchrow(
        """SELECT g.user_id, g.voice_id, g.text, g.language, g.output_format, g.tts_provider, g.provider_model,
                  v.provider_voice_id, v.provider_target_model, coalesce(t.provider_job_id, t.modal_job_id) AS job
             FROM public.generations g LEFT JOIN public.voices v ON v.id = g.voice_id
             LEFT JOIN public.tasks t ON t.id = $2
            WHERE g.id = $1 AND g.status IN ('pending', 'processing')""",
        row["generation_id"],
        task_id,
    )
    if speech is None:
        raise SpeechGone
    return Assignment(
        task_id=task_id,
        attempt=attempt,
        generation_id=row["generation_id"],
        user_id=speech["user_id"],
        voice_id=speech["voice_id"],
        text=speech["text"],
        language=speech["language"],
        format_name=speech["output_format"],
        object_key=row["object_key"],
        provider=speech["tts_provider"],
        provider_voice_id=speech["provider_voice_id"],
        provider_target_model=speech["provider_target_model"] or speech["provider_model"],
        job=speech["job"],
        waited_seconds=row["waited_seconds"],
    )


async def holds(connection: "Connection", task_id: UUID, attempt: int, owner: UUID) -> bool:
    """Whether a run is still ``owner``'s to work on, and stays so for this transaction."""
    held = await connection.fetchval(
        "SELECT true FROM internal.runs WHERE task_id = $1 AND attempt = $2 AND owner = $3 FOR UPDATE",
        task_id,
        attempt,
        owner,
    )
    return bool(held)


async def progress(connection: "Connection", task_id: UUID, attempt: int, provider_status: str) -> bool:
    """Show where the provider's work stands; False when this attempt has nothing to say any more."""
    moved = await connection.fetchval(
        """UPDATE public.tasks SET provider_status = $3
            WHERE id = $1 AND status IN ('pending', 'processing')
              AND EXISTS (SELECT 1 FROM internal.runs WHERE task_id = $1 AND attempt = $2)
        RETURNING true""",
        task_id,
        attempt,
        provider_status,
    )
    return bool(moved)


async def note_audio(
    connection: "Connection",
    assignment: Assignment,
    *,
    provider_status: str,
    sample_rate_hz: int,
    bits_per_second: int,
    facts: dict[str, Any],
) -> None:
    """Keep what the first delta told about the audio, for progress and for other processes.

    Args:
        facts: What is known of the provider's session by then.
    """
    await connection.execute(
        """UPDATE public.generations
              SET provider_metadata = coalesce(provider_metadata, '{}') || $6::jsonb
                  || jsonb_build_object('audio', jsonb_build_object('sample_rate', $2::int, 'bits_per_second', $3::int))
            WHERE id = $1 AND status IN ('pending', 'processing')
              AND EXISTS (SELECT 1 FROM internal.runs WHERE task_id = $4 AND attempt = $5)""",
        assignment.generation_id,
        sample_rate_hz,
        bits_per_second,
        assignment.task_id,
        assignment.attempt,
        facts,
    )
    await progress(connection, assignment.task_id, assignment.attempt, provider_status)
    await connection.execute(
        "UPDATE internal.runs SET sample_rate_hz = $3 WHERE task_id = $1 AND attempt = $2",
        assignment.task_id,
        assignment.attempt,
        sample_rate_hz,
    )


async def mark_spoken(
    connection: "Connection",
    queue: Queue,
    assignment: Assignment,
    *,
    provider_status: str,
    byte_length: int,
    sample_rate_hz: int,
    facts: dict[str, Any],
) -> bool:
    """The provider has finished and every byte is in the spool: from here on only storing is left.

    Returns:
        False when the run is no longer ours or the speech has ended otherwise; nothing is changed then.
    """
    active = await connection.fetchval(
        f"""UPDATE public.generations SET provider_metadata = {_WITH_FACTS.format("$2")}
             WHERE id = $1 AND status IN ('pending', 'processing') RETURNING true""",  # noqa: S608 - constants
        assignment.generation_id,
        facts,
    )
    if not active:
        return False
    await progress(connection, assignment.task_id, assignment.attempt, provider_status)
    spoken = await connection.fetchval(
        """UPDATE internal.runs SET state = 'spoken', spoken_at = now(), beat_at = now(), sample_rate_hz = $4
            WHERE task_id = $1 AND attempt = $2 AND state = 'speaking' AND byte_length = $3 RETURNING true""",
        assignment.task_id,
        assignment.attempt,
        byte_length,
        sample_rate_hz,
    )
    if not spoken:
        raise Fenced
    await defer_finalize(connection, queue, assignment.task_id, assignment.object_key)
    return True


async def defer_finalize(
    connection: "Connection", queue: Queue, task_id: UUID, object_key: str, *, in_seconds: float = 0.0
) -> None:
    """The key travels with the job, since the row may be gone when it runs."""
    await queue.defer(connection, FINALIZE_JOB, task_id=task_id, object_key=object_key, in_seconds=in_seconds)


async def put_back(
    connection: "Connection",
    queue: Queue,
    task_id: UUID,
    attempt: int,
    *,
    reason: str,
    silent_for_seconds: float | None = None,
) -> bool:
    """Let somebody else speak a run of which nobody has heard a byte: a new attempt, and a new job for it.

    What is collected from a job API is heard only when it is stored, and fetched again as often as one likes.

    Args:
        silent_for_seconds: Only if its owner still has not said for so long that it lives.
    """
    generation_id = await connection.fetchval(
        """SELECT g.id FROM public.generations g JOIN internal.runs r ON r.generation_id = g.id
            WHERE r.task_id = $1 FOR UPDATE OF g""",
        task_id,
    )
    job_name: str | None = await connection.fetchval(
        """UPDATE internal.runs
              SET attempt = attempt + 1, state = 'queued', owner = NULL, beat_at = now(), byte_length = 0
            WHERE task_id = $1 AND attempt = $2 AND state = 'speaking' AND (byte_length = 0 OR job_name = $3)
              AND ($4::float8 IS NULL OR beat_at < now() - make_interval(secs => $4))
        RETURNING job_name""",
        task_id,
        attempt,
        COLLECT_MODAL_JOB,
        silent_for_seconds,
    )
    if job_name is None:
        return False
    await connection.execute("DELETE FROM internal.spool WHERE task_id = $1 AND attempt <= $2", task_id, attempt)
    await connection.execute(
        f"""UPDATE public.generations SET provider_metadata = {_WITH_FACTS.format("$2")}
             WHERE id = $1 AND status IN ('pending', 'processing')""",  # noqa: S608 - constants
        generation_id,
        {"attempts": [{"attempt": attempt, "reason": reason}]},
    )
    await start_job(connection, queue, job_name, task_id, attempt + 1)
    return True


class Storable(msgspec.Struct, frozen=True, kw_only=True):
    """A spoken run that has to become an object."""

    task_id: UUID
    generation_id: UUID
    attempt: int
    byte_length: int
    sample_rate_hz: int
    format_name: str
    provider: str
    spoken_for_seconds: float


async def take_spoken(
    connection: "Connection", task_id: UUID, owner: UUID, state: Literal["spoken", "unstored"] = "spoken"
) -> Storable | None:
    """Say that ``owner`` is storing this run. Two that do so at once harm nobody; the beat only spares the second."""
    row = await connection.fetchrow(
        """UPDATE internal.runs r SET owner = $2, beat_at = now()
             FROM public.generations g
            WHERE r.task_id = $1 AND r.state = $3 AND g.id = r.generation_id
        RETURNING r.generation_id, r.attempt, r.byte_length, r.sample_rate_hz, g.output_format AS format_name,
                  g.tts_provider AS provider, extract(epoch FROM now() - r.spoken_at)::float8 AS spoken_for_seconds""",
        task_id,
        owner,
        state,
    )
    return Storable(task_id=task_id, **dict(row)) if row else None


async def publish(
    connection: "Connection",
    storable: Storable,
    *,
    object_key: str,
    duration_seconds: float,
    bits_per_second: int,
    late: bool = False,
) -> bool:
    """The object exists: complete the generation, and the task with it. False when the state has moved on.

    Args:
        late: Complete one that failed only because storing it took too long (``reconcile --store``).
    """
    published = await connection.fetchval(
        """UPDATE public.generations
              SET status = 'completed', audio_object_key = $2, duration_seconds = $3, completed_at = now(),
                  generation_time_seconds = extract(epoch FROM now() - created_at), error_message = NULL,
                  provider_metadata = coalesce(provider_metadata, '{}') || jsonb_build_object('audio',
                      jsonb_build_object('sample_rate', $4::int, 'bits_per_second', $5::int, 'bytes', $6::bigint))
            WHERE id = $1 AND audio_object_key IS NULL
              AND (status IN ('pending', 'processing') OR ($7 AND status = 'failed'))
        RETURNING true""",
        storable.generation_id,
        object_key,
        duration_seconds,
        storable.sample_rate_hz,
        bits_per_second,
        storable.byte_length,
        late,
    )
    if not published:
        return False
    await connection.execute(
        """UPDATE public.tasks SET status = 'completed', provider_status = 'completed', completed_at = now(),
                  result = $2, error = NULL, error_category = NULL
            WHERE id = $1 AND (status IN ('pending', 'processing') OR ($3 AND status = 'failed'))""",
        storable.task_id,
        {"audio_url": f"/api/generations/{storable.generation_id}/audio"},
        late,
    )
    await _forget_run(connection, storable.task_id)
    return True


async def verdict(connection: "Connection", task_id: UUID, object_key: str) -> Literal["stored", "unwanted", "open"]:
    """What a finalizer whose guard matched nothing should do with the object under ``object_key``.

    ``stored``: leave it; ``unwanted``: remove it (terminal is for ever and ids are never reused, so a removal may be
    late or repeated); ``open``: try again.
    """
    # The row may be gone, and its task with it; the key alone then says whose the object was.
    row = await connection.fetchrow(
        """SELECT g.status, g.audio_object_key FROM public.generations g
            WHERE g.audio_object_key = $2
               OR g.id = (SELECT coalesce(r.generation_id, t.generation_id)
                            FROM (SELECT $1::uuid AS id) x
                            LEFT JOIN internal.runs r ON r.task_id = x.id LEFT JOIN public.tasks t ON t.id = x.id)
            ORDER BY g.audio_object_key = $2 DESC NULLS LAST LIMIT 1""",
        task_id,
        object_key,
    )
    if row is None:
        return "unwanted"
    if row["status"] == "completed":
        return "stored" if row["audio_object_key"] == object_key else "unwanted"
    return "open" if row["status"] in ACTIVE else "unwanted"


async def give_up_storing(connection: "Connection", storable: Storable) -> bool:
    """Storing failed for a whole day: say so, and keep the audio for ``reconcile --store``."""
    ended = await _end_rows(
        connection,
        storable.task_id,
        storable.generation_id,
        status="failed",
        detail="The audio was spoken but could not be stored. The operator can still recover it.",
        category="storage",
        facts={},
    )
    await connection.execute(
        "UPDATE internal.runs SET state = 'unstored', owner = NULL WHERE task_id = $1 AND state = 'spoken'",
        storable.task_id,
    )
    return ended


class Ended(msgspec.Struct, frozen=True):
    """What an end found: whether it was this call that ended the speech, and how far the run had come."""

    here: bool
    provider: str
    run_state: str | None = None
    object_key: str | None = None


async def end(
    connection: "Connection",
    task_id: UUID,
    *,
    status: Literal["failed", "cancelled"],
    detail: str,
    category: Category,
    attempt: int | None = None,
    state: Literal["queued", "speaking"] = "speaking",
    silent_for_seconds: float | None = None,
    facts: dict[str, Any] | None = None,
) -> Ended:
    """End a speech that will not be completed, in one transaction: both rows, its run and its spool.

    Args:
        attempt: Only if this attempt is still in ``state``; None for whoever may always end it (the user).
        silent_for_seconds: Only if its owner still has not said for so long that it lives.
        facts: Diagnostics for ``generations.provider_metadata``.

    Raises:
        Fenced: The run has moved on: to another attempt, to being stored, or away.
    """
    [named] = await connection.fetch(
        """SELECT coalesce(t.generation_id, r.generation_id) AS generation_id,
                  coalesce(t.provider, 'unknown') AS provider
             FROM (SELECT $1::uuid AS id) x
             LEFT JOIN public.tasks t ON t.id = x.id LEFT JOIN internal.runs r ON r.task_id = x.id""",
        task_id,
    )
    generation_id, provider = named["generation_id"], named["provider"]
    here = await _end_rows(
        connection, task_id, generation_id, status=status, detail=detail, category=category, facts=facts or {}
    )
    run = await connection.fetchrow(
        """DELETE FROM internal.runs WHERE task_id = $1 AND state <> 'unstored'
              AND ($2::int IS NULL OR (attempt = $2 AND state = $3))
              AND ($4::float8 IS NULL OR beat_at < now() - make_interval(secs => $4))
           RETURNING state, object_key""",
        task_id,
        attempt,
        state,
        silent_for_seconds,
    )
    if run is None:
        if here and attempt is not None:
            raise Fenced
        return Ended(here, provider)
    await connection.execute("DELETE FROM internal.spool WHERE task_id = $1", task_id)
    return Ended(here, provider, run["state"], run["object_key"])


async def _end_rows(
    connection: "Connection",
    task_id: UUID,
    generation_id: UUID | None,
    *,
    status: str,
    detail: str,
    category: str,
    facts: dict[str, Any],
) -> bool:
    """Both rows to a terminal status, if they are not there yet. A generation that has ended takes its task along."""
    decided = None
    if generation_id is not None:
        decided = await connection.fetchval(
            "SELECT status FROM public.generations WHERE id = $1 FOR UPDATE", generation_id
        )
    if decided in ACTIVE:
        await connection.execute(
            f"""UPDATE public.generations SET status = $2, error_message = $3, completed_at = now(),
                       provider_metadata = {_WITH_FACTS.format("$4")} WHERE id = $1""",  # noqa: S608 - constants
            generation_id,
            status,
            detail,
            facts,
        )
    elif decided is not None:
        status = decided
    task_ended = await connection.fetchval(
        """UPDATE public.tasks
              SET status = $2, provider_status = $2, error = $3, error_category = $4, completed_at = now(),
                  cancellation_requested = cancellation_requested OR $2 = 'cancelled',
                  metadata = coalesce(metadata, '{}') || $5
            WHERE id = $1 AND status IN ('pending', 'processing') RETURNING true""",
        task_id,
        status,
        detail if status != "completed" else None,
        category if status != "completed" else None,
        {} if decided or not facts else {"diagnostics": facts},
    )
    return decided in ACTIVE or (decided is None and bool(task_ended))


async def _forget_run(connection: "Connection", task_id: UUID) -> None:
    await connection.execute("DELETE FROM internal.runs WHERE task_id = $1", task_id)
    await connection.execute("DELETE FROM internal.spool WHERE task_id = $1", task_id)


async def cancel(connection: "Connection", queue: Queue, bucket: str, task_id: UUID) -> bool:
    """End an active task as its user wishes; what a finalizer may have stored already is removed."""
    ended = await end(connection, task_id, status="cancelled", detail=CANCELLED_BY_USER, category="cancelled")
    if ended.here and ended.run_state == "spoken" and ended.object_key:
        await remove_object(connection, queue, bucket, ended.object_key, reason="cancelled while storing")
    if ended.here:
        await cancel_job(connection, queue, task_id)
    return ended.here


async def cancel_job(connection: "Connection", queue: Queue, task_id: UUID) -> None:
    """Where a job API works on a task that this transaction has ended, defer the job that asks it to stop.

    Reads the job's id after the end has taken its locks: a submission may have brought it a moment ago.
    """
    job: str | None = await connection.fetchval(
        "SELECT coalesce(provider_job_id, modal_job_id) FROM public.tasks WHERE id = $1 AND provider = 'modal'",
        task_id,
    )
    if job:
        await defer_cancel(connection, queue, job)


async def defer_cancel(
    connection: "Connection", queue: Queue, job: str, *, tries: int = 0, in_seconds: float = 0.0
) -> None:
    """Have a job API asked to stop a job that nobody wants."""
    await queue.defer(connection, CANCEL_MODAL_JOB, queue=WATCHING, in_seconds=in_seconds, job=job, tries=tries)


async def remove_object(connection: "Connection", queue: Queue, bucket: str, object_key: str, *, reason: str) -> None:
    """Record that an object must go, and defer the job that removes it. The record leaves when the object has."""
    await connection.execute(
        """INSERT INTO internal.removals (bucket, object_key, reason) VALUES ($1, $2, $3)
           ON CONFLICT (bucket, object_key) DO NOTHING""",
        bucket,
        object_key,
        reason,
    )
    await queue.defer(connection, REMOVE_JOB, bucket=bucket, object_key=object_key)


async def hide(connection: "Connection", task_id: UUID) -> bool:
    """Take a task out of its user's sight; the row itself goes a day later."""
    hidden = await connection.fetchval(
        "UPDATE public.tasks SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL RETURNING true", task_id
    )
    return bool(hidden)
