"""One run, spoken: from the claim to the moment when every byte of it is in PostgreSQL.

The audio goes from the provider's socket into the log, where followers hear it, and from there into the spool. What
ends the run otherwise (a refusal, a cancel, a lost lease, a shutdown) ends here too, each in its own way.
"""

import asyncio
import logging
import time
from typing import Any
from uuid import UUID

import anyio

from server.audio import format_named
from server.database import REFUSED, Connection
from server.errors import Category, ProviderError, UtterError, VoiceGone
from server.jobs.pieces import InPieces
from server.parts import Parts
from server.providers.speech import (
    AudioDelta,
    SpeechEnd,
    SpeechProvider,
    SpeechRequest,
    SpeechStatus,
    may_start_again,
    pause_before_start,
)
from server.records import speech, voices
from server.records.runs import Fenced
from server.records.speech import RESTARTED, Assignment
from server.relay.live import AudioLog

logger = logging.getLogger(__name__)


async def synthesize(parts: Parts, *, task_id: UUID, attempt: int) -> None:
    """Speak one attempt of a run, if it is still there to be spoken."""
    assignment = await _claim(parts, task_id, attempt)
    if assignment is None:
        return
    scope = anyio.CancelScope()
    with parts.leases.hold(task_id, attempt, scope.cancel), parts.metrics.session(assignment.provider):
        with scope:
            await _Synthesis(parts, assignment, scope).run()
        if scope.cancelled_caught and parts.leases.released:
            await _give_back(parts, assignment)


async def _claim(parts: Parts, task_id: UUID, attempt: int) -> Assignment | None:
    async def claim(connection: Connection) -> Assignment | None:
        return await speech.claim(connection, task_id, attempt, parts.leases.owner)

    async def forget(connection: Connection) -> None:
        await speech.end(connection, task_id, status="cancelled", detail=speech.CANCELLED_BY_USER, category="cancelled")

    try:
        return await parts.database.patiently(claim)
    except speech.SpeechGone:
        await parts.database.patiently(forget)
        return None


async def _give_back(parts: Parts, assignment: Assignment) -> None:
    """This process is leaving: a run that nobody has heard may be spoken by the next one, any other has failed."""

    async def give_back(connection: Connection) -> bool:
        return await speech.requeue(
            connection, parts.queue, assignment.task_id, assignment.attempt, reason="server restarted"
        )

    if not await parts.database.patiently(give_back, for_seconds=3.0):
        facts = {"error": {"code": "server_restarted"}}
        await fail(parts, assignment, detail=RESTARTED, category="internal", facts=facts, for_seconds=3.0)


async def fail(
    parts: Parts,
    assignment: Assignment,
    *,
    detail: str,
    category: Category,
    facts: dict[str, Any],
    for_seconds: float | None = None,
) -> None:
    """End this attempt as failed, unless something else has ended or taken it already.

    Args:
        for_seconds: How long to wait for a lost database; the sweep of another process has what is left.
    """

    async def end(connection: Connection) -> bool:
        ended = await speech.end(
            connection,
            assignment.task_id,
            status="failed",
            detail=detail,
            category=category,
            attempt=assignment.attempt,
            facts=facts,
        )
        return ended.here

    try:
        if await parts.database.patiently(end, for_seconds=for_seconds):
            parts.metrics.task_ended(assignment.provider, "failed", category)
            # The row has the provider's own words; they may quote what somebody wrote, so the log has only its code.
            code = facts.get("error", {}).get("code")
            extra = {"task_id": str(assignment.task_id), "category": category, "code": code}
            logger.info("speech failed", extra=extra)
    except Fenced:
        return
    finally:
        parts.announcer.changed(assignment.task_id)


class _Synthesis:
    """One attempt under way."""

    def __init__(self, parts: Parts, assignment: Assignment, scope: anyio.CancelScope) -> None:
        self._parts = parts
        self._assignment = assignment
        self._scope = scope
        self._log = AudioLog(
            task_id=assignment.task_id,
            attempt=assignment.attempt,
            audio_format=format_named(assignment.format_name),
            sample_rate_hz=24_000,
        )
        self._started_at = time.monotonic()
        self._starts: list[dict[str, Any]] = []
        self._said = "streaming"  # the provider's last word; each lane has its own

    async def run(self) -> None:
        parts, assignment, log = self._parts, self._assignment, self._log
        with parts.live.speaking(log), parts.spool.writing(log, self._scope.cancel):
            parts.announcer.changed(assignment.task_id)
            try:
                facts = await self._speak_until_it_works()
                await parts.spool.flush(log)
            except VoiceGone as exc:
                await self._mark_voice_gone()
                await self._failed(exc)
            except UtterError as exc:
                await self._failed(exc)
            except Exception:  # a mistake of ours ends this speech with words, not with a silent wait for the sweep
                logger.exception("synthesis failed", extra={"task_id": str(assignment.task_id)})
                await self._failed(UtterError())
            else:
                await self._spoken(facts)

    async def _speak_until_it_works(self) -> dict[str, Any]:
        """The provider's facts about a complete speech, after as many starts as the rules of design §7 allow."""
        deadlines = self._parts.settings.deadlines
        assignment = self._assignment
        request = SpeechRequest(
            text=assignment.text,
            voice=assignment.provider_voice_id or "",
            model=assignment.provider_target_model or "",
            language=assignment.language,
            response_format=self._log.audio_format.provider_format,
            job=assignment.job,
        )
        source = self._source()
        first_failed_at: float | None = None  # waiting for our own pace is not the provider's failing
        while True:
            spoken = source.speak(request)
            try:
                async with spoken:
                    return await self._relay(spoken)
            except ProviderError as exc:
                self._starts.append({"category": exc.category, **exc.diagnostics})
                again = may_start_again(exc, text_sent=spoken.text_sent, bytes_heard=self._log.length)
                pause = pause_before_start(len(self._starts), throttled=exc.throttled)
                first_failed_at = first_failed_at or time.monotonic()
                in_time = time.monotonic() - first_failed_at + pause < deadlines.starts_within_seconds
                if not again or len(self._starts) >= deadlines.starts or not in_time:
                    raise
                await asyncio.sleep(pause)

    def _source(self) -> SpeechProvider:
        """Who speaks this: the voice's lane decides."""
        parts, assignment = self._parts, self._assignment
        return parts.providers.source(
            assignment.provider, assignment.provider_target_model, in_pieces=InPieces(parts, assignment)
        )

    async def _relay(self, spoken: Any) -> dict[str, Any]:
        """Pass one session's audio on. The hot path is the first branch: append once, wake, mark for the spool."""
        log, spool = self._log, self._parts.spool
        facts: dict[str, Any] = {}
        async for event in spoken:
            if type(event) is AudioDelta:
                first = not log.length
                log.append(event.audio, event.encoded)
                spool.grew(log)
                if first:
                    await self._first_delta(event.audio, spoken.facts())
            elif type(event) is SpeechStatus:
                self._said = event.provider_status
                if event.sample_rate_hz:
                    log.sample_rate_hz = event.sample_rate_hz
                if event.provider_status != "streaming":  # said together with what the first delta tells
                    await self._show(event.provider_status)
            elif type(event) is SpeechEnd:
                facts = event.facts
        return facts

    async def _first_delta(self, audio: bytes, facts: dict[str, Any]) -> None:
        waited = self._assignment.waited_seconds + time.monotonic() - self._started_at
        self._parts.metrics.first_audio(self._assignment.provider, waited)
        clock = self._log.audio_format.clock(self._log.sample_rate_hz)
        clock.feed(audio)
        rate = round(len(audio) * 8 / clock.seconds) if clock.seconds else 0

        async def note(connection: Connection) -> None:
            await speech.note_audio(
                connection,
                self._assignment,
                provider_status=self._said,
                sample_rate_hz=self._log.sample_rate_hz,
                bits_per_second=rate,
                # Should this process die, nobody else could tell what the provider called this.
                facts={name: facts[name] for name in ("request_id", "session_id") if name in facts},
            )

        await self._try(note)

    async def _show(self, provider_status: str) -> None:
        async def show(connection: Connection) -> None:
            await speech.progress(connection, self._assignment.task_id, self._assignment.attempt, provider_status)

        await self._try(show, one_statement=True)

    async def _try(self, work: Any, *, one_statement: bool = False) -> None:
        """Show progress if the database is there; a speech does not wait for a status that only tells how far it is.

        Args:
            one_statement: ``work`` is a single statement and needs no transaction around it.
        """
        database = self._parts.database
        try:
            async with database.connection() if one_statement else database.transaction() as connection:
                await work(connection)
        except REFUSED as exc:
            logger.warning("progress not shown", extra={"reason": type(exc).__name__})
        else:
            self._parts.announcer.changed(self._assignment.task_id)

    async def _spoken(self, facts: dict[str, Any]) -> None:
        if self._starts:
            facts = {**facts, "attempts": self._starts}

        parts, assignment, log = self._parts, self._assignment, self._log

        async def mark(connection: Connection) -> bool:
            if await speech.mark_spoken(
                connection,
                parts.queue,
                assignment,
                provider_status=self._said,
                byte_length=log.length,
                sample_rate_hz=log.sample_rate_hz,
                facts=facts,
            ):
                return False
            # Its row is gone (a browser may delete it past us) or has ended: as good as cancelled.
            ended = await speech.end(
                connection,
                assignment.task_id,
                status="cancelled",
                detail=speech.CANCELLED_BY_USER,
                category="cancelled",
                attempt=assignment.attempt,
            )
            return ended.here

        try:
            if await parts.database.patiently(mark):
                parts.metrics.task_ended(assignment.provider, "cancelled", "cancelled")
        except Fenced:
            logger.info("speech was taken over or cancelled", extra={"task_id": str(assignment.task_id)})
        parts.announcer.changed(assignment.task_id)

    async def _failed(self, exc: UtterError) -> None:
        facts: dict[str, Any] = {"attempts": self._starts} if len(self._starts) > 1 else {}
        if isinstance(exc, ProviderError):
            facts |= {name: exc.diagnostics[name] for name in ("request_id", "session_id") if name in exc.diagnostics}
            facts["error"] = exc.diagnostics
        await fail(self._parts, self._assignment, detail=exc.detail, category=exc.category, facts=facts)

    async def _mark_voice_gone(self) -> None:
        voice_id = self._assignment.voice_id
        if voice_id is None:
            return

        async def mark(connection: Connection) -> None:
            await voices.mark_gone(connection, voice_id, self._parts.providers.account)

        await self._parts.database.patiently(mark)
