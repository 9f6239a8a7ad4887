"""Speech as rows: what happens to a generation, its task and its run at once, from the request to the end.

They are one invariant, so each of these moves is a guarded function here and nowhere else. A terminal state is never
overwritten; where there is a generation its row decides; locks are taken generation → task → run → spool, each in a
statement of its own, because the other order deadlocks (docs/architecture.md, "Lock order").
"""

from typing import Any, Literal
from uuid import UUID

import msgspec

from server.database.connections import Connection
from server.database.queue import WATCHING, Queue
from server.errors import Category
from server.records import purchases, removals, runs, usage
from server.records.runs import CANCEL_MODAL_JOB, SYNTHESIZE_JOB, Fenced, Kept, Storable
from server.records.tasks import ACTIVE
from server.records.usage import Account

RESTARTED = "The server was restarted while speaking. Please try again."

# Facts join what is known already; the list of extra attempts grows instead of being replaced. {0} is the parameter.
_WITH_FACTS = """coalesce(provider_metadata, '{{}}') || {0}::jsonb || jsonb_build_object('attempts',
    coalesce(provider_metadata -> 'attempts', '[]') || coalesce({0}::jsonb -> 'attempts', '[]'))"""


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a speech was asked to be, beyond its text; what nobody asked for is not kept.

    Attributes:
        format: The format that was asked for, where one was.
        instruction: How to say it, in free words.
        client: Which program asked, in its own words.
        request_id: Of the request, as the log has it: whoever works on it, in whichever process, logs the same.
    """

    format: str | None = None
    speed: float | None = None
    pitch: float | None = None
    volume: int | None = None
    instruction: str | None = None
    client: str | None = None
    request_id: str | None = None


def asked_of(kept: Any) -> Asked:
    """What a generation's ``provider_metadata -> 'asked'`` says; whatever else stands there says nothing."""
    try:
        return msgspec.convert(kept or {}, Asked)
    except msgspec.ValidationError:
        return Asked()


class NewSpeech(msgspec.Struct, frozen=True, kw_only=True):
    """A generation to be made, with everything that its rows need.

    Attributes:
        lane, key_id: To which row of its user's usage it is counted; no key for a sign-in token.
        provider_voice_id: The provider's name of the voice as it is now.
        job_name: The job that the run begins with, ``in_seconds`` from now.
        within_seconds: How long it may wait to be begun.
    """

    task_id: UUID
    generation_id: UUID
    user_id: UUID
    voice_id: UUID
    text: str
    text_length: int
    language: str
    provider: str
    provider_voice_id: str | None = None
    model: str | None
    format_name: str
    object_key: str
    asked: Asked = Asked()
    lane: str
    key_id: UUID | None = None
    job_name: str = SYNTHESIZE_JOB
    in_seconds: float = 0.0
    within_seconds: float | None = None


async def create(connection: Connection, queue: Queue, speech: NewSpeech, *, owner: UUID | None = None) -> None:
    """Insert generation, task and run and defer the job: none exists without the others.

    Args:
        owner: The process that speaks it from now on, without a job.
    """
    await connection.execute(
        """WITH generation AS (
               INSERT INTO public.generations
                      (id, user_id, voice_id, text, language, status, tts_provider, provider_model, output_format,
                       provider_metadata)
               VALUES ($1, $2, $3, $4, $5, 'processing', $6, $7, $8,
                       jsonb_build_object('counted', $10::jsonb)
                       || CASE WHEN $9::jsonb = '{}' THEN '{}' ELSE jsonb_build_object('asked', $9::jsonb) END)
               RETURNING id, user_id, voice_id, status, tts_provider)
           INSERT INTO public.tasks (id, user_id, type, status, generation_id, voice_id, provider, metadata)
           SELECT $11, user_id, 'generate', status, id, voice_id, tts_provider, $12::jsonb FROM generation""",
        speech.generation_id,
        speech.user_id,
        speech.voice_id,
        speech.text,
        speech.language,
        speech.provider,
        speech.model,
        speech.format_name,
        speech.asked,
        {"lane": speech.lane, "key_id": speech.key_id},
        speech.task_id,
        {"text_length": speech.text_length, "language": speech.language},
    )
    await runs.add(
        connection,
        queue,
        task_id=speech.task_id,
        job_name=speech.job_name,
        object_key=speech.object_key,
        generation_id=speech.generation_id,
        begins=runs.Begins(
            user_id=speech.user_id,
            provider_voice_id=speech.provider_voice_id,
            model=speech.model,
            within_seconds=speech.within_seconds,
        ),
        owner=owner,
        in_seconds=speech.in_seconds,
    )


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
    asked: Asked = Asked()
    job: str | None
    waited_seconds: float
    start_within_seconds: float | None = None
    kept: Kept = Kept()


async def claim(connection: Connection, task_id: UUID, attempt: int, owner: UUID) -> Assignment | None:
    """Take a queued run for ``owner``; None when it is gone, taken, or has moved on to another attempt.

    Raises:
        SpeechGone: The run is there, but its generation is not (or has ended): as good as cancelled.
    """
    claimed = await runs.claim(connection, task_id, attempt, owner)
    if claimed is None:
        return None
    speech = await connection.fetchrow(
        """SELECT g.user_id, g.voice_id, g.text, g.language, g.output_format, g.tts_provider, g.provider_model,
                  g.provider_metadata -> 'asked' AS asked,
                  v.provider_voice_id, v.provider_target_model, coalesce(t.provider_job_id, t.modal_job_id) AS job
             FROM public.generations g LEFT JOIN public.voices v ON v.id = g.voice_id AND v.user_id = g.user_id
             LEFT JOIN public.tasks t ON t.id = $2 AND t.user_id = g.user_id
            WHERE g.id = $1 AND g.status IN ('pending', 'processing')""",
        claimed.generation_id,
        task_id,
    )
    if claimed.generation_id is None or speech is None:
        raise SpeechGone
    return Assignment(
        task_id=task_id,
        attempt=attempt,
        generation_id=claimed.generation_id,
        user_id=speech["user_id"],
        voice_id=speech["voice_id"],
        text=speech["text"],
        language=speech["language"],
        format_name=speech["output_format"],
        object_key=claimed.object_key,
        provider=speech["tts_provider"],
        provider_voice_id=claimed.provider_voice_id or speech["provider_voice_id"],
        provider_target_model=claimed.model or speech["provider_target_model"] or speech["provider_model"],
        asked=asked_of(speech["asked"]),
        job=speech["job"],
        waited_seconds=claimed.waited_seconds,
        start_within_seconds=claimed.start_within_seconds,
        kept=claimed.kept,
    )


async def progress(connection: Connection, task_id: UUID, attempt: int, provider_status: str) -> bool:
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


class Progress(msgspec.Struct, frozen=True):
    """What the provider is at, of one attempt."""

    task_id: UUID
    attempt: int
    provider_status: str


async def show_progress(connection: Connection, said: list[Progress]) -> set[UUID]:
    """Show where the provider's work stands for many tasks at once, without waiting for one that somebody has locked.

    Returns:
        The tasks that were shown; the others are locked, have ended, or belong to another attempt.
    """
    rows = await connection.fetch(
        """WITH held AS (
               SELECT t.id, s.provider_status
                 FROM unnest($1::uuid[], $2::int[], $3::text[]) AS s (task_id, attempt, provider_status)
                 JOIN public.tasks t ON t.id = s.task_id AND t.status IN ('pending', 'processing')
                 JOIN internal.runs r ON r.task_id = s.task_id AND r.attempt = s.attempt AND r.state = 'speaking'
                ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED)
           UPDATE public.tasks t SET provider_status = h.provider_status FROM held h WHERE t.id = h.id
           RETURNING t.id""",
        [one.task_id for one in said],
        [one.attempt for one in said],
        [one.provider_status for one in said],
    )
    return {row["id"] for row in rows}


async def note_audio(
    connection: Connection,
    assignment: Assignment,
    *,
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
    if sample_rate_hz != assignment.kept.sample_rate_hz:
        await runs.note_sample_rate(connection, assignment.task_id, assignment.attempt, sample_rate_hz)


class Marked(msgspec.Struct, frozen=True):
    """A speech is spoken. ``job``: what stores it later, should its owner not; None where that is not known."""

    job: int | None


async def mark_spoken(
    connection: Connection,
    queue: Queue,
    assignment: Assignment,
    owner: UUID,
    *,
    provider_status: str,
    byte_length: int,
    sample_rate_hz: int,
    store_in_seconds: float,
    facts: dict[str, Any],
) -> Marked | None:
    """The provider has finished and every byte is in the spool: from here on only storing is left.

    Returns:
        None when the speech has ended otherwise; nothing is changed then.

    Raises:
        Fenced: The run is no longer ours.
    """
    if await runs.is_spoken(connection, assignment.task_id, assignment.attempt, owner):
        return Marked(None)
    active = await connection.fetchval(
        f"""UPDATE public.generations SET provider_metadata = {_WITH_FACTS.format("$2")}
             WHERE id = $1 AND status IN ('pending', 'processing') RETURNING true""",  # noqa: S608 - constants
        assignment.generation_id,
        facts,
    )
    if not active:
        return None
    await progress(connection, assignment.task_id, assignment.attempt, provider_status)
    job = await runs.mark_spoken(
        connection,
        queue,
        assignment.task_id,
        assignment.attempt,
        owner,
        byte_length=byte_length,
        sample_rate_hz=sample_rate_hz,
        store_in_seconds=store_in_seconds,
    )
    return Marked(job)


async def requeue(
    connection: Connection,
    queue: Queue,
    task_id: UUID,
    attempt: int,
    *,
    reason: str,
    silent_for_seconds: float | None = None,
    begun: bool = True,
    facts: dict[str, Any] | None = None,
) -> bool:
    """Let somebody else speak a run of which nobody has heard a byte, or which goes on; note what became of this
    attempt.

    Args:
        silent_for_seconds: Only if its owner still has not said for so long that it lives.
        begun: False where its text is known not to have been sent: the sentence under way was not paid for.
        facts: What its provider told of it.
    """
    generation_id = await connection.fetchval(
        """SELECT g.id FROM public.generations g JOIN internal.runs r ON r.generation_id = g.id
            WHERE r.task_id = $1 FOR UPDATE OF g""",
        task_id,
    )
    requeued = await runs.requeue(
        connection, queue, task_id, attempt, silent_for_seconds=silent_for_seconds, begun=begun
    )
    if requeued is None:
        return False
    noted: dict[str, Any] = {"attempt": attempt, "reason": reason}
    if requeued.kept_bytes:
        noted |= {
            **(facts or {}),
            "bytes": requeued.kept_bytes,
            "goes_on_at_character": requeued.marked_characters,
            "sentence_paid_again": begun,
        }
    await connection.execute(
        f"""UPDATE public.generations SET provider_metadata = {_WITH_FACTS.format("$2")}
             WHERE id = $1 AND status IN ('pending', 'processing')""",  # noqa: S608 - constants
        generation_id,
        {"attempts": [noted]},
    )
    return True


async def publish(
    connection: Connection,
    queue: Queue,
    storable: Storable,
    *,
    object_key: str,
    duration_seconds: float,
    bits_per_second: int,
    late: bool = False,
    job: int | None = None,
) -> bool:
    """The object exists: complete the generation, and the task with it. False when the state has moved on.

    Args:
        job: What would have stored it later.
        late: Complete one that failed only because storing it took too long (``reconcile --store``).
    """
    published = await connection.fetchrow(
        """UPDATE public.generations
              SET status = 'completed', audio_object_key = $2, duration_seconds = $3, completed_at = now(),
                  generation_time_seconds = extract(epoch FROM now() - created_at), error_message = NULL,
                  provider_metadata = coalesce(provider_metadata, '{}') || jsonb_build_object('audio',
                      jsonb_build_object('sample_rate', $4::int, 'bits_per_second', $5::int, 'bytes', $6::bigint))
            WHERE id = $1 AND audio_object_key IS NULL
              AND (status IN ('pending', 'processing') OR ($7 AND status = 'failed'))
        RETURNING user_id, provider_metadata -> 'counted' AS counted""",
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
    await runs.forget(connection, storable.task_id)
    if job is not None:
        await queue.withdraw(connection, job)
    if account := _account(published["user_id"], published["counted"]):
        await usage.add_seconds(connection, account, duration_seconds)
    return True


async def publish_again(
    connection: Connection,
    queue: Queue,
    storable: Storable,
    owner: UUID,
    *,
    object_key: str,
    duration_seconds: float,
    bits_per_second: int,
) -> bool:
    """Complete once more what ``owner`` had completed, where a standby that took over has not heard of it.

    False where the run is gone, or is somebody else's: they speak it, or store it, themselves.
    """
    await connection.execute("SELECT 1 FROM public.generations WHERE id = $1 FOR UPDATE", storable.generation_id)
    await connection.execute("SELECT 1 FROM public.tasks WHERE id = $1 FOR UPDATE", storable.task_id)
    if not await runs.holds(connection, storable.task_id, storable.attempt, owner, or_queued=True):
        return False
    return await publish(
        connection,
        queue,
        storable,
        object_key=object_key,
        duration_seconds=duration_seconds,
        bits_per_second=bits_per_second,
    )


def _account(user_id: UUID, counted: Any) -> Account | None:
    """To which row a generation is counted; None for one that was made before anything was."""
    try:
        return msgspec.convert({"user_id": user_id, **(counted or {})}, Account)
    except (msgspec.ValidationError, TypeError):
        return None


async def account_of(connection: Connection, generation_id: UUID) -> Account | None:
    """To which row of its user's usage a generation is counted."""
    row = await connection.fetchrow(
        "SELECT user_id, provider_metadata -> 'counted' AS counted FROM public.generations WHERE id = $1", generation_id
    )
    return _account(row["user_id"], row["counted"]) if row else None


async def verdict(connection: Connection, task_id: UUID, object_key: str) -> Literal["stored", "unwanted", "open"]:
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


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a task ends without its audio.

    Attributes:
        detail: The sentence that its user reads.
        facts: Diagnostics for the operator, kept with the generation; with the task where it has none.
    """

    detail: str
    category: Category
    status: Literal["failed", "cancelled"] = "failed"
    facts: dict[str, Any] = {}


CANCELLED = Ending(status="cancelled", detail="Cancelled by user", category="cancelled")


class Ended(msgspec.Struct, frozen=True):
    """What an end found: whether it was this call that ended the task, and how far the run had come."""

    here: bool
    provider: str
    run_state: str | None = None
    object_key: str | None = None


NOT_STORED = Ending(
    detail="The audio was spoken but could not be stored. The operator can still recover it.", category="storage"
)


async def give_up_storing(connection: Connection, storable: Storable) -> Ended:
    """Storing failed for a whole day: say so, and keep the audio for ``reconcile --store``."""
    ended = await _end_rows(connection, storable.task_id, storable.generation_id, NOT_STORED)
    await runs.keep_unstored(connection, storable.task_id)
    return Ended(ended, storable.provider)


async def end(
    connection: Connection,
    task_id: UUID,
    ending: Ending,
    *,
    attempt: int | None = None,
    state: Literal["queued", "speaking"] = "speaking",
    silent_for_seconds: float | None = None,
) -> Ended:
    """End a task that will not be completed, in one transaction: its rows, its run and its spool.

    Args:
        attempt: Only if this attempt is still in ``state``; None for whoever may always end it (the user).
        silent_for_seconds: Only if its owner still has not said for so long that it lives.

    Raises:
        Fenced: The run has moved on: to another attempt, to being stored, or away.
    """
    [named] = await connection.fetch(
        """SELECT coalesce(g.id, r.generation_id) AS generation_id, coalesce(t.provider, 'unknown') AS provider, t.type
             FROM (SELECT $1::uuid AS id) x
             LEFT JOIN public.tasks t ON t.id = x.id LEFT JOIN internal.runs r ON r.task_id = x.id
             LEFT JOIN public.generations g ON g.id = t.generation_id AND g.user_id = t.user_id""",
        task_id,
    )
    generation_id, provider = named["generation_id"], named["provider"]
    here = await _end_rows(connection, task_id, generation_id, ending)
    run = await runs.stop(connection, task_id, attempt=attempt, state=state, silent_for_seconds=silent_for_seconds)
    if run is None:
        if here and attempt is not None:
            raise Fenced
        return Ended(here, provider)
    if here and named["type"] == "design_preview":
        await _count_no_more(connection, task_id, ending, provider, run.state)
    return Ended(here, provider, run.state, run.object_key)


# So ends what a provider that keeps no record of purchases has certainly not made.
_NOT_MADE: tuple[Category, ...] = ("provider_rejected", "provider_unavailable", "validation", "overloaded")


async def _count_no_more(
    connection: Connection, task_id: UUID, ending: Ending, provider: str, run_state: runs.State
) -> None:
    """A preview that ends without its audio is held against nobody, unless it may have been bought all the same."""
    made = provider == "modal" and run_state != "queued" and ending.category not in _NOT_MADE
    if made or purchases.may_be_bought(await purchases.find(connection, task_id)):
        return
    row = await connection.fetchrow(
        "SELECT user_id, metadata -> 'counted' AS counted, created_at FROM public.tasks WHERE id = $1", task_id
    )
    if row and row["counted"] and (account := _account(row["user_id"], row["counted"])):
        await usage.take_back_start(connection, account, 0, row["created_at"])


async def _end_rows(connection: Connection, task_id: UUID, generation_id: UUID | None, ending: Ending) -> bool:
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
            ending.status,
            ending.detail,
            ending.facts,
        )
    status = ending.status if decided is None or decided in ACTIVE else decided
    task_ended = await connection.fetchval(
        """UPDATE public.tasks
              SET status = $2, provider_status = $2, error = $3, error_category = $4, completed_at = now(),
                  cancellation_requested = cancellation_requested OR $2 = 'cancelled',
                  metadata = coalesce(metadata, '{}') || $5
            WHERE id = $1 AND status IN ('pending', 'processing') RETURNING true""",
        task_id,
        status,
        ending.detail if status != "completed" else None,
        ending.category if status != "completed" else None,
        {} if decided or not ending.facts else {"diagnostics": ending.facts},
    )
    return decided in ACTIVE or (decided is None and bool(task_ended))


async def cancel(connection: Connection, queue: Queue, bucket: str, task_id: UUID) -> bool:
    """End an active task as its user wishes; what a finalizer may have stored already is removed."""
    ended = await end(connection, task_id, CANCELLED)
    if ended.here and ended.run_state == "spoken" and ended.object_key:
        await removals.record(
            connection, queue, bucket, ended.object_key, asked_by=None, reason="cancelled while storing"
        )
    if ended.here:
        await cancel_job(connection, queue, task_id)
    return ended.here


async def cancel_job(connection: Connection, queue: Queue, task_id: UUID) -> None:
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
    connection: Connection, queue: Queue, job: str, *, tries: int = 0, in_seconds: float = 0.0
) -> None:
    """Have a job API asked to stop a job that nobody wants."""
    await queue.defer(connection, CANCEL_MODAL_JOB, queue=WATCHING, in_seconds=in_seconds, job=job, tries=tries)
