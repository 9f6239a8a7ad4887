"""Tasks that a job API works on: how they are submitted, polled, judged and collected, as rows.

Their run waits as ``watch_modal`` until somebody (a poll, the watcher) sees that the job is done, and becomes a
``collect_modal`` run then, exactly once; from there on it is a speech like any other. Tasks of the older system have
no run: they get one by ``adopt``.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

from server.database.connections import Connection
from server.database.queue import Queue
from server.records import idempotency, purchases, runs, speech
from server.records.speech import Ended, Ending
from server.records.tasks import ACTIVE

# A job may be called failed for a moment; whoever polls again no sooner than this decides
# (docs/providers.md, "How a Modal job ends").
SECOND_POLL_SECONDS = 1.0
PROVIDER = "modal"
TOO_LATE = Ending(
    detail="The speech provider did not finish in time. Please try again.",
    category="timeout",
    facts={"error": {"code": "timeout"}},
)
NEVER_SUBMITTED = Ending(
    detail="The speech provider did not confirm that it took this text. Please try again.",
    category="timeout",
    facts={"error": {"code": "timeout"}},
)
# A job is bought once: its purchase has one attempt.
SUBMISSION = 1


# --- the submission ---------------------------------------------------------------------------------------------------


async def note_submitted(connection: Connection, queue: Queue, task_id: UUID, job: str) -> bool:
    """The provider has taken the job. False when nobody wants it any more; it is cancelled there then."""
    await purchases.decide(connection, task_id, "done", attempt=SUBMISSION, request_id=job)
    wanted = await connection.fetchval(
        """UPDATE public.tasks SET modal_job_id = $2, provider_job_id = $2, provider_status = 'submitted'
            WHERE id = $1 AND status IN ('pending', 'processing') AND modal_job_id IS NULL RETURNING true""",
        task_id,
        job,
    )
    if not wanted:
        await speech.defer_cancel(connection, queue, job)
    return bool(wanted)


async def note_not_submitted(
    connection: Connection, task_id: UUID, ending: Ending, state: Literal["unknown", "refused"]
) -> Ended:
    """The provider has not taken the job, or nobody knows: the task fails, and its request's key is free again."""
    ended = await speech.end(connection, task_id, ending)
    await purchases.decide(connection, task_id, state, attempt=SUBMISSION, outcome=ending.facts)
    await idempotency.forget(connection, task_id)
    return ended


# --- polling --------------------------------------------------------------------------------------------------------


async def count_poll(connection: Connection, task_id: UUID) -> datetime | None:
    """Count one poll that a client asks for; when it was asked, or None for a task that is not active."""
    asked_at: datetime | None = await connection.fetchval(
        """UPDATE public.tasks
              SET modal_poll_count = modal_poll_count + 1, provider_poll_count = provider_poll_count + 1
            WHERE id = $1 AND status IN ('pending', 'processing') RETURNING now()""",
        task_id,
    )
    return asked_at


# --- judging what was seen --------------------------------------------------------------------------------------------


async def forget_failure(connection: Connection, task_id: UUID, asked_at: datetime) -> None:
    """The job is running after all: what an earlier poll called failed was a passing fault."""
    await connection.execute(
        """UPDATE public.tasks SET metadata = metadata - 'modal_failed_at'
            WHERE id = $1 AND (metadata ->> 'modal_failed_at')::timestamptz < $2::timestamptz""",
        task_id,
        asked_at,
    )


async def confirm_failure(connection: Connection, task_id: UUID, asked_at: datetime) -> bool:
    """Note that the job was called failed; whether an earlier poll, long enough ago, saw the same."""
    confirmed = await connection.fetchval(
        """UPDATE public.tasks
              SET metadata = CASE WHEN metadata ? 'modal_failed_at' THEN metadata
                                  ELSE coalesce(metadata, '{}') || jsonb_build_object('modal_failed_at', now()) END
            WHERE id = $1 AND status IN ('pending', 'processing')
        RETURNING (metadata ->> 'modal_failed_at')::timestamptz <= $2::timestamptz - make_interval(secs => $3)""",
        task_id,
        asked_at,
        SECOND_POLL_SECONDS,
    )
    return bool(confirmed)


async def end_watched(connection: Connection, queue: Queue, task_id: UUID, ending: Ending) -> Ended:
    """End a task that is still only watched; one that is being collected has its audio and goes its own way."""
    await purchases.decide(connection, task_id, "unknown", attempt=SUBMISSION)
    await connection.execute(
        """SELECT 1 FROM public.generations g JOIN public.tasks t ON t.generation_id = g.id
            WHERE t.id = $1 FOR UPDATE OF g""",
        task_id,
    )
    await connection.execute("SELECT 1 FROM public.tasks WHERE id = $1 FOR UPDATE", task_id)
    if await runs.is_being_collected(connection, task_id):
        return Ended(False, PROVIDER)
    ended = await speech.end(connection, task_id, ending)
    if ended.here:
        await speech.cancel_job(connection, queue, task_id)
    return ended


# --- tasks of the older system ----------------------------------------------------------------------------------------


async def unwatched(connection: Connection, *, older_than_seconds: float, at_most: int = 100) -> list[UUID]:
    """Active tasks that the older system submitted, or was about to submit, and that nobody watches."""
    rows = await connection.fetch(
        """SELECT t.id FROM public.tasks t
            WHERE t.status IN ('pending', 'processing') AND t.provider = 'modal' AND t.type = 'generate'
              AND (coalesce(t.provider_job_id, t.modal_job_id) IS NOT NULL
                   OR t.created_at < now() - make_interval(secs => $1))
              AND NOT EXISTS (SELECT 1 FROM internal.runs r WHERE r.task_id = t.id)
            ORDER BY t.created_at LIMIT $2""",
        older_than_seconds,
        at_most,
    )
    return [row["id"] for row in rows]


async def abandoned(connection: Connection, *, older_than_seconds: float) -> list[UUID]:
    """Active tasks of an older system that nobody has touched for so long and that nothing here works on.

    Speech of the job API is none of them: somebody watches it, see `unwatched`.
    """
    rows = await connection.fetch(
        """SELECT t.id FROM public.tasks t
            WHERE t.status IN ('pending', 'processing') AND t.updated_at < now() - make_interval(secs => $1)
              AND NOT (t.provider = 'modal' AND t.type = 'generate')
              AND NOT EXISTS (SELECT 1 FROM internal.runs r WHERE r.task_id = t.id)
            ORDER BY t.updated_at LIMIT 100""",
        older_than_seconds,
    )
    return [row["id"] for row in rows]


async def adopt(connection: Connection, task_id: UUID) -> bool:
    """Give an active task without a run one that is watched; a task whose generation has ended, or is gone, ends too.

    Returns:
        Whether there is a watched run now that was not there before.
    """
    generation = await connection.fetchrow(
        """SELECT g.id, g.status FROM public.generations g JOIN public.tasks t ON t.generation_id = g.id
            WHERE t.id = $1 FOR UPDATE OF g""",
        task_id,
    )
    if generation is None or generation["status"] not in ACTIVE:
        await speech.end(connection, task_id, speech.CANCELLED)
        return False
    await connection.execute(
        "UPDATE public.generations SET output_format = 'wav' WHERE id = $1 AND output_format IS NULL", generation["id"]
    )
    return await runs.add_watched(connection, task_id)
