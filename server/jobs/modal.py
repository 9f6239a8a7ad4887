"""Speech that a job API makes: submitted while the request waits, polled for clients and by a watcher, and collected.

Where the audio is collected, it takes the way of all speech (``synthesize.py``): this module ends where that begins.
"""

import asyncio
import logging
from datetime import datetime
from functools import partial
from typing import Any, Literal
from uuid import UUID

import msgspec

from server.audio import AudioError, for_other_readers, read_recording
from server.database.connections import REFUSED, Connection
from server.errors import (
    DatabaseUnavailable,
    Invalid,
    NotFound,
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from server.jobs.buying import last_words
from server.jobs.own import require_task, shown
from server.parts import Parts
from server.providers.modal.api import NOT_CONFIGURED, NOT_CONNECTED, PolledJob
from server.providers.speech import may_start_again, pause_before_start
from server.records import modal, runs, speech, tasks
from server.records.speech import Ending
from server.records.tasks import SpeechTask
from server.records.voices import Voice
from server.storage import Bucket

logger = logging.getLogger(__name__)

MOST_REFERENCE_BYTES = 10 * 1024 * 1024
# After a poll that saw a failure the next one follows soon, since it decides.
SECOND_POLL_SECONDS = modal.SECOND_POLL_SECONDS * 1.5
CANCEL_TRIES = 3
# A process that leaves breaks off its requests after five seconds (``serve.py``); this one is answered before that.
ANSWERED_LEAVING_SECONDS = 2.0
_CUT: tuple[type[BaseException], ...] = (*REFUSED, asyncio.CancelledError)

FAILED = "The speech provider could not speak this. Please try again."

Verdict = Literal["open", "doubtful", "decided"]


def _why(exc: ProviderError) -> dict[str, Any]:
    """What the log may hold of a failure: not the provider's words, which may quote somebody's text."""
    return {name: exc.diagnostics[name] for name in ("code", "http_status") if name in exc.diagnostics}


# --- submitting -------------------------------------------------------------------------------------------------------


class Reference(msgspec.Struct, frozen=True):
    """What a job API needs of a voice: its recording, and what is said in it."""

    audio: bytes
    transcript: str

    def __repr__(self) -> str:
        return f"Reference({len(self.audio)} bytes)"


async def fetch_reference(parts: Parts, voice: Voice) -> Reference:
    """The recording of a voice that passed ``Providers.require_lane``; it is looked at before it is fetched.

    Raises:
        Invalid: It is not there, or too large.
        StorageUnavailable: It could not be fetched.
    """
    key, transcript = voice.reference_object_key or "", (voice.reference_transcript or "").strip()
    missing = Invalid("The reference recording of this voice is missing. Please create the voice again.")
    stored = await parts.storage.head(Bucket.REFERENCES, key)
    if stored is None:
        raise missing
    if stored.size > MOST_REFERENCE_BYTES:
        raise Invalid("This voice's reference recording is larger than 10 MB. Please re-clone it with a shorter one.")
    try:
        stored_audio = await parts.storage.read(Bucket.REFERENCES, key, limit=MOST_REFERENCE_BYTES)
    except NotFound as exc:
        raise missing from exc
    return Reference(await asyncio.to_thread(_readable, stored_audio), transcript)


def _readable(audio: bytes) -> bytes:
    """The recording without what another reader may stumble over; what we cannot read ourselves goes as it is."""
    try:
        return for_other_readers(audio, read_recording(audio))
    except AudioError:
        return audio


async def submit(parts: Parts, task: SpeechTask, *, text: str, language: str, reference: Reference) -> SpeechTask:
    """Submit a task whose rows are there, and its purchase claimed; the task as it stands then.

    The submission outlives the request. A process that has been told to leave goes on waiting for the job's id, but
    lets its client go: the task is answered while it is still being submitted, and the next process tells its end.

    Raises:
        ProviderError: It was not taken (502); both rows have failed and the request's key is free again.
        DatabaseUnavailable: It was taken, but that could not be written down; the watcher ends it.
    """
    submission = parts.speeches.submit(_outcome(parts, task, text=text, language=language, reference=reference))
    leaving = asyncio.create_task(parts.stopping.wait())
    try:
        await asyncio.wait({submission, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not submission.done():
            await asyncio.wait({submission}, timeout=ANSWERED_LEAVING_SECONDS)
    finally:
        leaving.cancel()
    if submission.done() and (problem := submission.result()):
        raise problem
    async with parts.database.connection() as connection:
        return await tasks.find(connection, task.id) or task


async def _outcome(
    parts: Parts, task: SpeechTask, *, text: str, language: str, reference: Reference
) -> Exception | None:
    """Submit, and write down what came of it; why it failed, or None."""
    try:
        await _submit_and_note(parts, task, text=text, language=language, reference=reference)
    except Exception as exc:  # noqa: BLE001 - whatever it is, whoever waits raises it
        return exc
    return None


async def _submit_and_note(parts: Parts, task: SpeechTask, *, text: str, language: str, reference: Reference) -> None:
    try:
        job = await _submit_until_it_works(parts, text=text, language=language, reference=reference)
    except ProviderError as exc:
        await _not_submitted(parts, task, exc)
        exc.status = 503 if exc.diagnostics.get("code") == NOT_CONFIGURED else 502
        raise
    except asyncio.CancelledError:  # the process has no more time to wait for the answer
        cut_off = ProviderTimeout(modal.NEVER_SUBMITTED.detail, diagnostics={"code": "cut_off"})
        await last_words(_not_submitted(parts, task, cut_off))
        raise
    try:
        await parts.database.patiently_for(
            parts.settings.deadlines.purchase_database_seconds, modal.note_submitted, parts.queue, task.id, job
        )
    except _CUT as exc:
        logger.error("a job was bought and could not be written down", extra={"task_id": str(task.id), "job": job})
        if isinstance(exc, asyncio.CancelledError):
            raise
        raise DatabaseUnavailable from exc


async def _submit_until_it_works(parts: Parts, *, text: str, language: str, reference: Reference) -> str:
    """The job's id. Only what has certainly not left us is sent again."""
    starts = 0
    while True:
        try:
            return await parts.providers.modal.submit(
                text=text, language=language, reference=reference.audio, transcript=reference.transcript
            )
        except ProviderError as exc:
            starts += 1
            sent = exc.diagnostics.get("code") != NOT_CONNECTED
            if starts >= parts.settings.tries.starts or not may_start_again(exc, text_sent=sent, bytes_heard=0):
                raise
        await asyncio.sleep(pause_before_start(starts, throttled=False))


async def _not_submitted(parts: Parts, task: SpeechTask, exc: ProviderError) -> None:
    """Both rows failed, the key free, the purchase settled: one transaction."""
    ending = Ending(detail=exc.detail, category=exc.category, facts={"error": exc.diagnostics})
    state: Literal["unknown", "refused"] = "unknown" if isinstance(exc, ProviderTimeout) else "refused"
    logger.warning(
        "submission failed", extra={"task_id": str(task.id), "category": exc.category, "error": exc.diagnostics}
    )
    note = partial(modal.note_not_submitted, task_id=task.id, ending=ending, state=state)
    try:
        await parts.endings.end_by(
            task.id, ending, note, for_seconds=parts.settings.deadlines.purchase_database_seconds
        )
    except REFUSED:
        logger.error("a failed submission could not be written down", extra={"task_id": str(task.id)})


async def submitted(parts: Parts, task: SpeechTask) -> SpeechTask:
    """A twin's task, once the request that made it knows whether the provider took it.

    Raises:
        ProviderError: It did not.
    """
    deadline = asyncio.get_running_loop().time() + parts.settings.deadlines.modal_submit_seconds
    while not task.job and not task.terminal and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.1)
        async with parts.database.connection() as connection:
            task = await tasks.find(connection, task.id) or task
    if task.status == "failed" and not task.job:
        kinds = (ProviderRejected, ProviderUnavailable, ProviderTimeout)
        kind = next((kind for kind in kinds if kind.category == task.error_category), ProviderUnavailable)
        raise kind(task.error, status=502)
    return task


# --- polling --------------------------------------------------------------------------------------------------------


class Seen(msgspec.Struct, frozen=True):
    """What a client's poll saw. ``status_error``: the provider was not reached, which says nothing about the job."""

    modal_status: Literal["running", "completed", "failed", "status_error"]
    elapsed_seconds: float


async def poll(parts: Parts, user_id: UUID, task_id: UUID) -> tuple[SpeechTask, Seen | None]:
    """The user's task, after one poll of its job if it has one that is under way.

    Raises:
        NotFound: No such task, or somebody else's.
    """
    task = shown(await parts.polled.find(task_id, user_id))
    job = task.job
    if task.terminal or not job or not parts.providers.abilities_of(task.provider).takes_jobs:
        return task, None
    async with parts.database.connection() as connection:
        asked_at = await modal.count_poll(connection, task_id)
    seen = None
    if asked_at is not None:
        try:
            polled = await parts.providers.modal.poll(job, within_seconds=parts.settings.deadlines.modal_status_seconds)
        except ProviderError as exc:
            parts.metrics.modal_polled("poll", "status_error")
            logger.debug("status check failed", extra={"task_id": str(task_id), **_why(exc)})
            seen = Seen("status_error", _elapsed(task, asked_at))
        else:
            parts.metrics.modal_polled("poll", polled.status)
            elapsed = polled.elapsed_seconds
            seen = Seen(polled.status, _elapsed(task, asked_at) if elapsed is None else elapsed)
            await _judge(parts, task_id, polled, asked_at)
    return await require_task(parts, user_id, task_id), seen


def _elapsed(task: SpeechTask, asked_at: datetime) -> float:
    """Our own count, where the API keeps none: since the task was made."""
    return round(max(0.0, (asked_at - task.created_at).total_seconds()), 3)


async def watch_modal(parts: Parts, *, task_id: UUID, attempt: int) -> None:
    """Poll a job that perhaps no client asks for, and come back later: never a loop inside a job."""
    watched = await parts.database.patiently(runs.watch, task_id, attempt)
    if watched is None:
        return
    if not watched.active:  # a browser deleted the rows in the database
        await _end(parts, task_id, speech.CANCELLED)
        return
    deadlines = parts.settings.deadlines
    verdict: Verdict = "open"
    if watched.job:
        verdict = await _poll_watched(parts, task_id, watched.job, watched.asked_at)
        left = deadlines.modal_job_seconds - watched.age_seconds
    else:
        left = deadlines.modal_no_id_seconds - watched.age_seconds
    if verdict == "open" and left <= 0:
        await _end(parts, task_id, modal.TOO_LATE if watched.job else modal.NEVER_SUBMITTED)
    elif verdict != "decided":
        pause = (
            SECOND_POLL_SECONDS if verdict == "doubtful" else min(parts.settings.intervals.modal_watch_seconds, left)
        )
        await parts.database.patiently(runs.watch_again, parts.queue, task_id, attempt, in_seconds=pause)


async def _poll_watched(parts: Parts, task_id: UUID, job: str, asked_at: datetime) -> Verdict:
    try:
        polled = await parts.providers.modal.poll(job, within_seconds=parts.settings.deadlines.connect_seconds)
    except ProviderError as exc:
        parts.metrics.modal_polled("watcher", "status_error")
        logger.warning("status check failed", extra={"task_id": str(task_id), **_why(exc)})
        return "open"
    parts.metrics.modal_polled("watcher", polled.status)
    return await _judge(parts, task_id, polled, asked_at)


async def _judge(parts: Parts, task_id: UUID, polled: PolledJob, asked_at: datetime) -> Verdict:
    """Act on what was seen, whoever looked."""

    async def judge(connection: Connection) -> Verdict:
        if polled.status == "running":
            await modal.forget_failure(connection, task_id, asked_at)
            return "open"
        if polled.status == "failed":
            return "decided" if await modal.confirm_failure(connection, task_id, asked_at) else "doubtful"
        if not await runs.collect(connection, parts.queue, task_id) and await modal.adopt(connection, task_id):
            await runs.collect(connection, parts.queue, task_id)
        return "decided"

    verdict = await parts.database.patiently_for(parts.settings.deadlines.request_database_seconds, judge)
    if polled.status == "failed" and verdict == "decided":
        message = {"message": polled.error[:300]} if polled.error else {}
        facts = {"error": {"code": "job_failed", **message}}
        await _end(parts, task_id, Ending(detail=FAILED, category="provider_unavailable", facts=facts))
    elif verdict == "decided":
        parts.announcer.changed(task_id)
    return verdict


async def _end(parts: Parts, task_id: UUID, ending: Ending) -> None:
    """End a task that is only watched."""
    move = partial(modal.end_watched, queue=parts.queue, task_id=task_id, ending=ending)
    if await parts.endings.end_by(task_id, ending, move):
        logger.warning("watched task ended", extra={"task_id": str(task_id), "category": ending.category})


# --- cancelling -------------------------------------------------------------------------------------------------------


async def cancel_modal(parts: Parts, *, job: str, tries: int) -> None:
    """Ask the provider to stop a job that nobody wants. Best effort: here it has ended already."""
    if not parts.providers.modal.can_cancel:
        return
    try:
        await parts.providers.modal.cancel(job)
    except ProviderError as exc:
        logger.warning(
            "job not cancelled at the provider", extra={"job": job, "tries": tries + 1, "error": exc.diagnostics}
        )
        if tries + 1 < CANCEL_TRIES:
            await parts.database.patiently(
                speech.defer_cancel, parts.queue, job, tries=tries + 1, in_seconds=2.0 * (tries + 1)
            )
