"""The run: the row that says who is working on a task, and how far that work has come.

A run is ``queued`` until a job claims it, ``speaking`` while its owner says every second that it lives, ``spoken`` once
every byte is in the spool, and gone when its audio is stored or the task has ended; ``unstored`` keeps audio that was
paid for and could not be stored. Nobody else changes these rows, but for the two statements of ``relay/`` that run
all the time: the spool's append and the renewal of leases.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from server.database.connections import Connection
from server.database.queue import DEFAULT, SYNTHESIS, WATCHING, Queue
from server.records import processes
from server.records.processes import OWNER_IS_DEAD

State = Literal["queued", "speaking", "spoken", "unstored"]

SYNTHESIZE_JOB, FINALIZE_JOB, REMOVE_JOB = "synthesize", "finalize", "remove"
PREVIEW_JOB, RENEW_JOB = "preview", "renew"
# A speech that a job API makes is watched until it is there, and then collected like any other is spoken.
WATCH_MODAL_JOB, COLLECT_MODAL_JOB, CANCEL_MODAL_JOB = "watch_modal", "collect_modal", "cancel_modal"
# What waits on a provider has queues of its own, so that storing never waits for it.
_QUEUES = {
    SYNTHESIZE_JOB: SYNTHESIS,
    COLLECT_MODAL_JOB: SYNTHESIS,
    PREVIEW_JOB: SYNTHESIS,
    RENEW_JOB: SYNTHESIS,
    WATCH_MODAL_JOB: WATCHING,
}

# A worker that died before the first byte is replaced once; after that the text itself is suspect.
ATTEMPTS = 2
# Its time to begin may be over by then; nobody is to be refused for that.
AGAIN_WITHIN_SECONDS = 60.0
# Somebody has heard its beginning: a process will be there, however long a deploy takes.
GO_ON_WITHIN_SECONDS = 300.0
# A job's result is fetched as often as one likes, so only a result that kills whoever fetches it is given up.
COLLECT_ATTEMPTS = 5


class Fenced(Exception):
    """This attempt was taken over, or cancelled, between two statements. Rolls the transaction back."""


class Begins(msgspec.Struct, frozen=True, kw_only=True):
    """What begins a speech.

    Attributes:
        user_id: Whose turn it is.
        provider_voice_id, model: Who speaks it, as it was when the text came.
        within_seconds: How long it may wait to be begun; None for as long as anything may.
    """

    user_id: UUID | None = None
    provider_voice_id: str | None = None
    model: str | None = None
    within_seconds: float | None = None


# What a user has begun fades within a minute, as it would leave a window of one.
_TURNS = "coalesce(t.starts * greatest(0, 1 - extract(epoch FROM now() - t.counted_at) / 60), 0)"
_COUNT_TURN = (
    "INSERT INTO internal.turns AS t (user_id, starts) {0}"
    f" ON CONFLICT (user_id) DO UPDATE SET starts = {_TURNS} + 1, counted_at = now()"
)


# --- queued -----------------------------------------------------------------------------------------------------------


async def add(
    connection: Connection,
    queue: Queue,
    *,
    task_id: UUID,
    job_name: str,
    object_key: str,
    generation_id: UUID | None = None,
    begins: Begins | None = None,
    owner: UUID | None = None,
    in_seconds: float = 0.0,
) -> None:
    """Insert the first attempt and defer its job, to start ``in_seconds`` from now.

    Args:
        begins: What whoever begins it has to know, for a speech.
        owner: The process that speaks it already; no job is needed then.
    """
    known = begins or Begins()
    await connection.execute(
        f"""WITH run AS (
                INSERT INTO internal.runs (task_id, generation_id, job_name, object_key, user_id, provider_voice_id,
                                           model, start_by, owner, state)
                VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8), $9,
                        CASE WHEN $9::uuid IS NULL THEN 'queued' ELSE 'speaking' END)
                RETURNING user_id, owner)
            {_COUNT_TURN.format("SELECT user_id, 1 FROM run WHERE owner IS NOT NULL AND user_id IS NOT NULL")}""",  # noqa: S608
        task_id,
        generation_id,
        job_name,
        object_key,
        known.user_id,
        known.provider_voice_id,
        known.model,
        known.within_seconds,
        owner,
    )
    if owner is None:
        await start_job(connection, queue, job_name, task_id, 1, in_seconds=in_seconds)


async def add_watched(connection: Connection, task_id: UUID) -> bool:
    """Give an active task of the older system a run that is watched; False where it has one, or has ended."""
    added = await connection.fetchval(
        """INSERT INTO internal.runs (task_id, generation_id, job_name, object_key, created_at)
           SELECT t.id, t.generation_id, $2, t.user_id || '/' || t.generation_id || '.wav', t.created_at
             FROM public.tasks t WHERE t.id = $1 AND t.status IN ('pending', 'processing')
           ON CONFLICT (task_id) DO NOTHING RETURNING true""",
        task_id,
        WATCH_MODAL_JOB,
    )
    return bool(added)


async def start_job(
    connection: Connection, queue: Queue, job_name: str, task_id: UUID, attempt: int, *, in_seconds: float = 0.0
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


async def unstored_bytes(connection: Connection) -> int:
    """How much speech waits for the store, in bytes; what was given up for now is part of it."""
    size: int = await connection.fetchval(
        "SELECT coalesce(sum(byte_length), 0)::bigint FROM internal.runs WHERE state IN ('spoken', 'unstored')"
    )
    return size


class Waiting(msgspec.Struct, frozen=True):
    """How many runs are not being worked on yet: everybody's, and one user's among them."""

    all: int
    of_user: int


async def waiting(connection: Connection, job_name: str, at_most: int, user_id: UUID | None = None) -> Waiting:
    """How many runs wait that begin with this job; counting stops at ``at_most``."""
    row = await connection.fetchrow(
        """SELECT count(*) AS all, count(*) FILTER (WHERE user_id = $3) AS of_user
             FROM (SELECT user_id FROM internal.runs WHERE state = 'queued' AND job_name = $2 LIMIT $1) AS w""",
        at_most,
        job_name,
        user_id,
    )
    return Waiting(**dict(row)) if row else Waiting(0, 0)


async def waiting_characters(connection: Connection, job_name: str, at_most: int) -> int:
    """How long the texts are together that nobody has begun; of ``at_most`` of them."""
    characters: int = await connection.fetchval(
        """SELECT coalesce(sum(char_length(g.text)), 0)::bigint
             FROM (SELECT generation_id FROM internal.runs WHERE state = 'queued' AND job_name = $2 LIMIT $1) AS w
             JOIN public.generations g ON g.id = w.generation_id""",
        at_most,
        job_name,
    )
    return characters


async def characters_of(connection: Connection, task_id: UUID) -> int:
    """How long the text of a run is; 0 where it has none (any more)."""
    characters: int | None = await connection.fetchval(
        """SELECT char_length(g.text) FROM internal.runs r JOIN public.generations g ON g.id = r.generation_id
            WHERE r.task_id = $1""",
        task_id,
    )
    return characters or 0


async def wake(connection: Connection, queue: Queue, task_id: UUID, attempt: int) -> None:
    """Defer the job of a run again that still waits, for whoever can take it."""
    job_name: str | None = await connection.fetchval(
        "SELECT job_name FROM internal.runs WHERE task_id = $1 AND attempt = $2 AND state = 'queued'", task_id, attempt
    )
    if job_name is not None:
        await start_job(connection, queue, job_name, task_id, attempt)


class Next(msgspec.Struct, frozen=True):
    """The run whose turn it is.

    Attributes:
        model: Whose pace it needs; None where that is not known.
        provider: None where its generation is gone.
        characters: Of its text.
    """

    task_id: UUID
    attempt: int
    model: str | None
    provider: str | None
    characters: int


async def next_in_turn(connection: Connection, job_name: str, without_models: list[str]) -> Next | None:
    """Whose turn it is: a speech that goes on, for it has been heard; of the users with a text that waits the one who
    began the fewest lately; then the oldest text.

    Reads every run that waits, of which there are no more than ``QUEUE_LIMIT`` lets in.

    Args:
        without_models: Models that cannot start anything at the moment.
    """
    row = await connection.fetchrow(
        f"""SELECT n.task_id, n.attempt, n.model, g.tts_provider AS provider,
                  coalesce(char_length(g.text), 0) AS characters
             FROM (SELECT r.task_id, r.attempt, r.model, r.generation_id
                     FROM internal.runs r LEFT JOIN internal.turns t ON t.user_id = r.user_id
                    WHERE r.state = 'queued' AND r.job_name = $1 AND coalesce(r.start_by > now(), true)
                      AND coalesce(r.model <> ALL($2::text[]), true)
                    ORDER BY r.byte_length > 0 DESC, {_TURNS}, r.created_at LIMIT 1) n
             LEFT JOIN public.generations g ON g.id = n.generation_id""",  # noqa: S608 - constants
        job_name,
        without_models,
    )
    return Next(**dict(row)) if row else None


async def _count_turn(connection: Connection, user_id: UUID) -> None:
    await connection.execute(_COUNT_TURN.format("VALUES ($1, 1)"), user_id)


async def forget_turns(connection: Connection) -> None:
    """What has faded goes."""
    await connection.execute("DELETE FROM internal.turns WHERE counted_at < now() - interval '1 hour'")


# --- speaking ---------------------------------------------------------------------------------------------------------


class Kept(msgspec.Struct, frozen=True):
    """What former attempts have left to one that goes on.

    Attributes:
        kept_bytes: Of audio.
        marked_bytes, marked_characters: Where the last whole sentence of it ends, in the audio and in the text.
        paid_twice_from: Where in the text the sentence begins that was begun twice; -1 where none was.
    """

    kept_bytes: int = 0
    marked_bytes: int = 0
    marked_characters: int = 0
    paid_twice_from: int = -1
    sample_rate_hz: int = 24_000


class Claimed(msgspec.Struct, frozen=True):
    """A run that has just become somebody's.

    Attributes:
        provider_voice_id, model: As they were when it was made.
        waited_seconds: Since it was made.
        start_within_seconds: How long it may still wait to be begun; None for as long as it takes.
    """

    generation_id: UUID | None
    object_key: str
    provider_voice_id: str | None
    model: str | None
    waited_seconds: float
    start_within_seconds: float | None
    kept: Kept


async def claim(connection: Connection, task_id: UUID, attempt: int, owner: UUID) -> Claimed | None:
    """Take a queued run for ``owner``; None when it is gone, taken, or has moved on to another attempt.

    A claim whose answer was lost may be said again: the run is the owner's already, and silent.
    """
    row = await connection.fetchrow(
        """UPDATE internal.runs SET owner = $3, state = 'speaking', beat_at = now()
            WHERE task_id = $1 AND attempt = $2
              AND ((state = 'queued' AND coalesce(start_by > now(), true))
                   OR (state = 'speaking' AND owner = $3 AND byte_length = kept_bytes))
        RETURNING generation_id, object_key, provider_voice_id, model, user_id,
                  extract(epoch FROM now() - created_at)::float8 AS waited_seconds,
                  extract(epoch FROM start_by - now())::float8 AS start_within_seconds,
                  kept_bytes, marked_bytes, marked_characters, paid_twice_from, sample_rate_hz""",
        task_id,
        attempt,
        owner,
    )
    if row is None:
        return None
    if row["user_id"] is not None:
        await _count_turn(connection, row["user_id"])
    kept = Kept(**{name: row[name] for name in Kept.__struct_fields__})
    return Claimed(**{name: row[name] for name in Claimed.__struct_fields__ if name != "kept"}, kept=kept)


async def holds(connection: Connection, task_id: UUID, attempt: int, owner: UUID, *, or_queued: bool = False) -> bool:
    """Whether a run is still ``owner``'s to work on, and stays so for this transaction.

    Args:
        or_queued: Also where nobody has begun this attempt, as far as the rows know.
    """
    held = await connection.fetchval(
        """SELECT true FROM internal.runs
            WHERE task_id = $1 AND attempt = $2 AND (owner = $3 OR ($4 AND state = 'queued')) FOR UPDATE""",
        task_id,
        attempt,
        owner,
        or_queued,
    )
    return bool(held)


async def still_held(connection: Connection, attempts: dict[UUID, int], owner: UUID) -> set[UUID]:
    """Which of these tasks' runs are still ``owner``'s, at the attempt named for each."""
    rows = await connection.fetch(
        """SELECT r.task_id FROM internal.runs r
             JOIN unnest($1::uuid[], $2::int[]) AS mine (task_id, attempt) USING (task_id, attempt)
            WHERE r.owner = $3""",
        list(attempts),
        list(attempts.values()),
        owner,
    )
    return {row["task_id"] for row in rows}


class Standing(msgspec.Struct, frozen=True):
    """How far a run has come. ``byte_length``: of its audio that is in the spool."""

    attempt: int
    state: State
    owner: UUID | None
    byte_length: int


async def standings(connection: Connection, task_ids: list[UUID]) -> dict[UUID, Standing]:
    """How far these tasks' runs have come; a run that is gone is not in the answer."""
    rows = await connection.fetch(
        "SELECT task_id, attempt, state, owner, byte_length FROM internal.runs WHERE task_id = ANY($1::uuid[])",
        task_ids,
    )
    return {row["task_id"]: Standing(**{name: row[name] for name in Standing.__struct_fields__}) for row in rows}


async def note_sample_rate(connection: Connection, task_id: UUID, attempt: int, sample_rate_hz: int) -> None:
    """Keep the rate of what is being spoken, for whoever reads the spool meanwhile."""
    await connection.execute(
        "UPDATE internal.runs SET sample_rate_hz = $3 WHERE task_id = $1 AND attempt = $2",
        task_id,
        attempt,
        sample_rate_hz,
    )


async def note_begun_again(connection: Connection, task_id: UUID, attempt: int, characters: int) -> None:
    """The sentence that begins there is begun for the second time, by the process that began it first."""
    await connection.execute(
        "UPDATE internal.runs SET paid_twice_from = $3 WHERE task_id = $1 AND attempt = $2",
        task_id,
        attempt,
        characters,
    )


class Requeued(msgspec.Struct, frozen=True):
    """A run that waits for another process, with the audio that it keeps and how much of the text that is."""

    job_name: str
    kept_bytes: int
    marked_characters: int


async def requeue(
    connection: Connection,
    queue: Queue,
    task_id: UUID,
    attempt: int,
    *,
    silent_for_seconds: float | None = None,
    begun: bool = True,
) -> Requeued | None:
    """Let somebody else work on a run of which nobody has heard a byte, or which goes on: a new attempt, and a job.

    What goes on is begun again with the sentence after its mark, which is paid for twice then, and never thrice. What
    is collected from a job API is heard only when it is stored, and fetched again as often as one likes.

    Args:
        silent_for_seconds: Only if its owner is still silent for so long, as far as anybody can tell.
        begun: False where this attempt is known not to have sent its text: it was none.
    """
    row = await connection.fetchrow(
        f"""UPDATE internal.runs r
              SET attempt = attempt + 1, state = 'queued', owner = NULL, beat_at = now(),
                  start_by = greatest(
                      start_by, now() + make_interval(secs => CASE WHEN goes_on THEN $7::float8 ELSE $6::float8 END)),
                  byte_length = CASE WHEN goes_on THEN byte_length ELSE 0 END,
                  kept_bytes = CASE WHEN goes_on THEN byte_length ELSE 0 END,
                  paid_twice_from = CASE WHEN $5 THEN marked_characters ELSE paid_twice_from END,
                  not_begun = not_begun + CASE WHEN $5 THEN 0 ELSE 1 END
            WHERE task_id = $1 AND attempt = $2 AND state = 'speaking'
              AND (byte_length = 0 OR job_name = $3 OR (goes_on AND (marked_characters > paid_twice_from OR NOT $5)))
              AND ($4::float8 IS NULL OR {OWNER_IS_DEAD.format("$4")})
        RETURNING job_name, kept_bytes, marked_characters""",  # noqa: S608 - constants
        task_id,
        attempt,
        COLLECT_MODAL_JOB,
        silent_for_seconds,
        begun,
        AGAIN_WITHIN_SECONDS,
        GO_ON_WITHIN_SECONDS,
    )
    if row is None:
        return None
    requeued = Requeued(**dict(row))
    await connection.execute(
        "DELETE FROM internal.spool WHERE task_id = $1 AND byte_offset >= $2", task_id, requeued.kept_bytes
    )
    await start_job(connection, queue, requeued.job_name, task_id, attempt + 1)
    return requeued


# --- watched ----------------------------------------------------------------------------------------------------------


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """A run that waits for a job API.

    Attributes:
        asked_at: When this poll begins, by the database's clock.
        age_seconds: Since the submission.
        active: The task is there and has not ended.
    """

    asked_at: datetime
    age_seconds: float
    active: bool
    job: str | None


async def watch(connection: Connection, task_id: UUID, attempt: int) -> Watched | None:
    """Say that the watcher lives. None when there is nothing to watch (any more)."""
    row = await connection.fetchrow(
        """WITH watched AS (
               UPDATE internal.runs SET beat_at = now()
                WHERE task_id = $1 AND attempt = $2 AND job_name = $3 AND state = 'queued'
               RETURNING task_id, created_at)
           SELECT now() AS asked_at, extract(epoch FROM now() - w.created_at)::float8 AS age_seconds,
                  coalesce(t.status IN ('pending', 'processing') AND g.status IN ('pending', 'processing'), false)
                      AS active,
                  coalesce(t.provider_job_id, t.modal_job_id) AS job
             FROM watched w
             LEFT JOIN public.tasks t ON t.id = w.task_id
             LEFT JOIN public.generations g ON g.id = t.generation_id""",
        task_id,
        attempt,
        WATCH_MODAL_JOB,
    )
    return Watched(**dict(row)) if row else None


async def watch_again(connection: Connection, queue: Queue, task_id: UUID, attempt: int, *, in_seconds: float) -> None:
    """Defer the next poll, unless there is nothing to watch or another watcher's poll is deferred already."""
    watched = await connection.fetchval(
        """SELECT true FROM internal.runs
            WHERE task_id = $1 AND attempt = $2 AND job_name = $3 AND state = 'queued' FOR NO KEY UPDATE""",
        task_id,
        attempt,
        WATCH_MODAL_JOB,
    )
    # A statement of its own: it has to see what the one before us committed while we waited for the row.
    if watched and not await connection.fetchval(
        """SELECT EXISTS (SELECT 1 FROM internal.procrastinate_jobs
                           WHERE status = 'todo' AND task_name = $2 AND args ->> 'task_id' = $1)""",
        str(task_id),
        WATCH_MODAL_JOB,
    ):
        await start_job(connection, queue, WATCH_MODAL_JOB, task_id, attempt, in_seconds=in_seconds)


async def is_being_collected(connection: Connection, task_id: UUID) -> bool:
    """Whether the run is watched no more, but collected or stored. It stays as it is for this transaction."""
    run = await connection.fetchrow(
        "SELECT job_name, state FROM internal.runs WHERE task_id = $1 FOR NO KEY UPDATE", task_id
    )
    return run is not None and (run["job_name"], run["state"]) != (WATCH_MODAL_JOB, "queued")


async def collect(connection: Connection, queue: Queue, task_id: UUID) -> bool:
    """The job is done: turn the watched run into one that is collected. True for one caller only, whoever asks."""
    attempt: int | None = await connection.fetchval(
        """UPDATE internal.runs SET job_name = $2, beat_at = now()
            WHERE task_id = $1 AND job_name = $3 AND state = 'queued' RETURNING attempt""",
        task_id,
        COLLECT_MODAL_JOB,
        WATCH_MODAL_JOB,
    )
    if attempt is None:
        return False
    await start_job(connection, queue, COLLECT_MODAL_JOB, task_id, attempt)
    return True


# --- spoken -----------------------------------------------------------------------------------------------------------


async def mark_spoken(
    connection: Connection,
    queue: Queue,
    task_id: UUID,
    attempt: int,
    owner: UUID,
    *,
    byte_length: int,
    sample_rate_hz: int,
    store_in_seconds: float,
) -> int:
    """Every byte is in the spool: defer the job that stores it, should its owner not have done so by then.

    Returns:
        The number of that job.

    Raises:
        Fenced: The run is no longer this attempt's, or the spool holds another length.
    """
    object_key: str | None = await connection.fetchval(
        """UPDATE internal.runs SET state = 'spoken', spoken_at = now(), beat_at = now(), sample_rate_hz = $5
            WHERE task_id = $1 AND attempt = $2 AND owner = $3 AND state = 'speaking' AND byte_length = $4
        RETURNING object_key""",
        task_id,
        attempt,
        owner,
        byte_length,
        sample_rate_hz,
    )
    if object_key is None:
        raise Fenced
    return await defer_finalize(connection, queue, task_id, object_key, in_seconds=store_in_seconds)


async def is_spoken(connection: Connection, task_id: UUID, attempt: int, owner: UUID) -> bool:
    """Whether this attempt has been marked as spoken already: the answer to that may have been lost."""
    spoken = await connection.fetchval(
        "SELECT true FROM internal.runs WHERE task_id = $1 AND attempt = $2 AND owner = $3 AND state = 'spoken'",
        task_id,
        attempt,
        owner,
    )
    return bool(spoken)


async def defer_finalize(
    connection: Connection, queue: Queue, task_id: UUID, object_key: str, *, in_seconds: float = 0.0
) -> int:
    """The key travels with the job, since the row may be gone when it runs. The job's number."""
    return await queue.defer(connection, FINALIZE_JOB, task_id=task_id, object_key=object_key, in_seconds=in_seconds)


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
    connection: Connection, task_id: UUID, owner: UUID, state: Literal["spoken", "unstored"] = "spoken"
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


async def keep_unstored(connection: Connection, task_id: UUID) -> None:
    """Storing was given up; the audio stays for whoever stores it by hand."""
    await connection.execute(
        "UPDATE internal.runs SET state = 'unstored', owner = NULL WHERE task_id = $1 AND state = 'spoken'", task_id
    )


# --- gone -------------------------------------------------------------------------------------------------------------


async def forget(connection: Connection, task_id: UUID) -> None:
    """The task has its audio: run and spool go."""
    await connection.execute("DELETE FROM internal.runs WHERE task_id = $1", task_id)
    await connection.execute("DELETE FROM internal.spool WHERE task_id = $1", task_id)


async def forget_generation(connection: Connection, generation_id: UUID) -> list[UUID]:
    """Every run of a generation goes with its spool, in whatever state; the tasks that they belonged to."""
    rows = await connection.fetch("DELETE FROM internal.runs WHERE generation_id = $1 RETURNING task_id", generation_id)
    for row in rows:
        await connection.execute("DELETE FROM internal.spool WHERE task_id = $1", row["task_id"])
    return [row["task_id"] for row in rows]


class Stopped(msgspec.Struct, frozen=True):
    """How far a run had come when it was stopped."""

    state: State
    object_key: str


async def stop(
    connection: Connection,
    task_id: UUID,
    *,
    attempt: int | None = None,
    state: Literal["queued", "speaking"] = "speaking",
    silent_for_seconds: float | None = None,
) -> Stopped | None:
    """The task ends without its audio: run and spool go. None where there was no such run; unstored audio stays.

    Args:
        attempt: Only if this attempt is still in ``state``; None for whoever may always end it (the user).
        silent_for_seconds: Only if its owner is still silent for so long, as far as anybody can tell.
    """
    run = await connection.fetchrow(
        f"""DELETE FROM internal.runs r WHERE task_id = $1 AND state <> 'unstored'
              AND ($2::int IS NULL OR (attempt = $2 AND state = $3))
              AND ($4::float8 IS NULL OR {OWNER_IS_DEAD.format("$4")})
           RETURNING state, object_key""",  # noqa: S608 - constants
        task_id,
        attempt,
        state,
        silent_for_seconds,
    )
    if run is None:
        return None
    await connection.execute("DELETE FROM internal.spool WHERE task_id = $1", task_id)
    return Stopped(run["state"], run["object_key"])


async def forget_unstored(connection: Connection, older_than_seconds: float) -> None:
    """Audio that nobody has stored by hand goes, so long after it was spoken."""
    await connection.execute(
        """WITH expired AS (
               DELETE FROM internal.runs
                WHERE state = 'unstored' AND spoken_at < now() - make_interval(secs => $1) RETURNING task_id)
           DELETE FROM internal.spool WHERE task_id IN (SELECT task_id FROM expired)""",
        older_than_seconds,
    )


# --- what the sweep looks for -----------------------------------------------------------------------------------------


class Lost(msgspec.Struct, frozen=True):
    """A run whose owner has been silent for long. ``repeatable``: another process may work on it."""

    task_id: UUID
    attempt: int
    repeatable: bool


# The parameters are the same wherever this stands: $2 to $4.
_REPEATABLE = """CASE WHEN r.job_name = $2 THEN r.attempt < $3
    WHEN r.goes_on AND r.byte_length > 0 THEN r.marked_characters > r.paid_twice_from
    ELSE r.byte_length = 0 AND r.attempt - r.not_begun < $4 END"""


async def lost(connection: Connection, silent_for_seconds: float, judge: UUID) -> list[Lost]:
    """Runs whose owner is dead, found by its name: however long they were spoken, and however many others live.

    Args:
        judge: The process that asks. It knows of its own runs without being told.
    """
    dead = await processes.dead(connection, silent_for_seconds)
    if not dead - {judge}:
        return []
    rows = await connection.fetch(
        f"""SELECT r.task_id, r.attempt, {_REPEATABLE} AS repeatable
             FROM internal.runs r WHERE r.owner = ANY($1::uuid[]) AND r.state = 'speaking'""",  # noqa: S608 - constants
        list(dead - {judge}),
        COLLECT_MODAL_JOB,
        COLLECT_ATTEMPTS,
        ATTEMPTS,
    )
    return [Lost(**dict(row)) for row in rows]


async def lost_unregistered(connection: Connection, silent_for_seconds: float) -> list[Lost]:
    """Runs of processes that say that they live by their runs alone, as those of release 0.2 do. Reads every run."""
    rows = await connection.fetch(
        f"""SELECT r.task_id, r.attempt, {_REPEATABLE} AS repeatable
             FROM internal.runs r
            WHERE r.state = 'speaking' AND NOT EXISTS (SELECT 1 FROM internal.processes p WHERE p.owner = r.owner)
              AND {OWNER_IS_DEAD.format("$1")}""",  # noqa: S608 - constants
        silent_for_seconds,
        COLLECT_MODAL_JOB,
        COLLECT_ATTEMPTS,
        ATTEMPTS,
    )
    return [Lost(**dict(row)) for row in rows]


async def strays(connection: Connection, owner: UUID, held: list[UUID]) -> list[Lost]:
    """Runs that are this process's by their rows, and that it knows nothing of: an answer to a claim was lost."""
    rows = await connection.fetch(
        f"""SELECT r.task_id, r.attempt, {_REPEATABLE} AS repeatable
             FROM internal.runs r
            WHERE r.owner = $1 AND r.state = 'speaking' AND r.task_id <> ALL($5::uuid[])""",  # noqa: S608 - constants
        owner,
        COLLECT_MODAL_JOB,
        COLLECT_ATTEMPTS,
        ATTEMPTS,
        held,
    )
    return [Lost(**dict(row)) for row in rows]


async def overdue(connection: Connection, older_than_seconds: float) -> list[tuple[UUID, int]]:
    """Tasks (with the attempt) that nobody has begun in their time: their own, or so long after they were asked for."""
    rows = await connection.fetch(
        """SELECT task_id, attempt FROM internal.runs
            WHERE state = 'queued' AND job_name = ANY($2)
              AND coalesce(start_by, created_at + make_interval(secs => $1)) < now()""",
        older_than_seconds,
        [SYNTHESIZE_JOB, PREVIEW_JOB, RENEW_JOB],
    )
    return [(row["task_id"], row["attempt"]) for row in rows]


async def restart_idle(connection: Connection, queue: Queue, idle_for_seconds: float) -> list[UUID]:
    """Defer again the jobs of runs that wait for one which is not in the queue (any more); the tasks they belong to.

    A job too many is harmless: each asks the run first.
    """
    rows = await connection.fetch(
        """UPDATE internal.runs SET beat_at = now()
            WHERE task_id IN (
                SELECT r.task_id FROM internal.runs r
                 WHERE r.state IN ('queued', 'spoken') AND r.beat_at < now() - make_interval(secs => $1)
                   -- Looked up in a table made once, whatever the planner believes of how many jobs there are.
                   AND r.task_id::text NOT IN (SELECT j.args ->> 'task_id' FROM internal.procrastinate_jobs j
                                                WHERE j.status = 'todo' AND j.args ->> 'task_id' IS NOT NULL)
                   FOR NO KEY UPDATE OF r SKIP LOCKED)
        RETURNING task_id, attempt, state, job_name, object_key""",
        idle_for_seconds,
    )
    for row in rows:
        if row["state"] == "spoken":
            await defer_finalize(connection, queue, row["task_id"], row["object_key"])
        else:
            await start_job(connection, queue, row["job_name"], row["task_id"], row["attempt"])
    return [row["task_id"] for row in rows]
