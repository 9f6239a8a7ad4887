"""One run, spoken: from the claim to the moment when every byte of it is in PostgreSQL.

The audio goes from the provider's socket into the log, where followers hear it, and from there into the spool. What
ends the run otherwise (a refusal, a cancel, a lost lease, a shutdown) ends here too, each in its own way.
"""

import asyncio
import logging
import time
from contextlib import AsyncExitStack, ExitStack
from typing import NamedTuple
from uuid import UUID

import anyio
import msgspec

from server import logs
from server.audio import format_named
from server.errors import (
    ProviderError,
    ProviderUnavailable,
    StorageUnavailable,
    UtterError,
    VoiceGone,
    VoiceMismatch,
)
from server.jobs.encoding import AsMp3
from server.jobs.finalize import store_spoken
from server.jobs.pieces import InPieces
from server.jobs.progress import unless_away
from server.parts import Parts
from server.providers.lanes import lane_of
from server.providers.qwen.errors import OPENED_AND_CLOSED, silently_retired
from server.providers.speech import (
    AudioDelta,
    GoingOn,
    Speech,
    SpeechEnd,
    SpeechMark,
    SpeechProvider,
    SpeechRequest,
    SpeechStatus,
    SpeechWords,
    may_start_again,
    pause_before_start,
)
from server.records import runs, speech, voices, words
from server.records.runs import Fenced, Storable
from server.records.speech import RESTARTED, Assignment, Ending, Marked, Progress
from server.relay.leases import Hold
from server.relay.live import AudioLog, Note
from server.relay.spool import spooled

logger = logging.getLogger(__name__)

# Slow speech has a tenth of a second a character, and samples are the most that a second of it can be.
SECONDS_PER_CHARACTER, BYTES_PER_SECOND = 0.1, 48_000
# How long what is collected waits here for room in memory, before another process may try.
ROOM_SECONDS = 10.0

NOT_READY = "The speech provider is still preparing this voice. Please try again in a minute."


class Taken(NamedTuple):
    """A run that this process has just taken, and what cancels its speech; ``speak`` wants all three."""

    assignment: Assignment
    scope: anyio.CancelScope
    hold: Hold


async def synthesize(parts: Parts, *, task_id: UUID, attempt: int) -> None:
    """Speak this attempt of a run, if it is still there to be spoken (a job)."""
    if parts.leases.holds(task_id, attempt):
        return  # a job too many for what is being spoken here already
    size = bytes_of(await parts.database.patiently_say(runs.characters_of, task_id))
    async with AsyncExitStack() as held:
        try:
            await held.enter_async_context(parts.memory.room(size, within_seconds=ROOM_SECONDS))
        except TimeoutError:
            return  # it waits as before; the sweep finds it without a job, and whoever has room takes it
        if taken := await take(parts, task_id, attempt, held):
            await speak(parts, *taken)


async def take(parts: Parts, task_id: UUID, attempt: int, held: AsyncExitStack) -> Taken | None:
    """Take a run that waits, and hold it until ``held`` is left; None where somebody else has it, or it has ended."""
    scope = anyio.CancelScope()
    with ExitStack() as trying:
        # Held before it is claimed: whoever claims again because an answer was lost must not find it a stranger's.
        hold = trying.enter_context(parts.leases.hold(task_id, attempt, scope.cancel, claimed=False))
        assignment = await _claim(parts, task_id, attempt)
        if assignment is None:
            return None
        hold.claimed = True
        held.push(trying.pop_all().__exit__)
        return Taken(assignment, scope, hold)


async def _claim(parts: Parts, task_id: UUID, attempt: int) -> Assignment | None:
    try:
        return await parts.database.patiently(speech.claim, task_id, attempt, parts.leases.owner)
    except speech.SpeechGone:
        await parts.database.patiently(speech.end, task_id, speech.CANCELLED)
        return None


async def speak(parts: Parts, assignment: Assignment, scope: anyio.CancelScope, hold: Hold) -> None:
    """Speak a run that this process holds, to whatever end. Raises nothing for the speech's own failures.

    Args:
        scope: What whoever ends the speech cancels; not entered yet.
    """
    synthesis = _Synthesis(parts, assignment, scope, hold)
    with (
        logs.working_for(assignment.asked.request_id),
        parts.speeches.cuttable(),
        parts.metrics.session(assignment.provider),
    ):
        with scope:
            await synthesis.run()
        if scope.cancelled_caught and parts.leases.released:
            await _give_back(parts, assignment, synthesis)


def bytes_of(characters: int) -> int:
    """The most that a text of so many characters can become, in bytes of audio."""
    return round(characters * SECONDS_PER_CHARACTER * BYTES_PER_SECOND)


async def _give_back(parts: Parts, assignment: Assignment, synthesis: "_Synthesis") -> None:
    """This process is leaving: the next one speaks a run that nobody has heard, or goes on; any other has failed."""
    task_id, attempt = assignment.task_id, assignment.attempt
    for_seconds = parts.settings.deadlines.leaving_database_seconds
    if not await parts.database.patiently_for(
        for_seconds,
        speech.requeue,
        parts.queue,
        task_id,
        attempt,
        reason="server restarted",
        begun=synthesis.begun,
        facts=synthesis.facts,
    ):
        cut = Ending(detail=RESTARTED, category="internal", facts={"error": {"code": "server_restarted"}})
        await parts.endings.end(task_id, cut, attempt=attempt, for_seconds=for_seconds)


def seed_of(generation_id: UUID) -> int:
    """The seed of a generation, where its lane knows seeds: drawn with its id, the same at every attempt.

    From 1 to 65535: 0 is the provider's own, with which everybody's speech would be drawn alike.
    """
    return generation_id.int % 65_535 + 1


class _Synthesis:
    """One attempt under way."""

    def __init__(self, parts: Parts, assignment: Assignment, scope: anyio.CancelScope, hold: Hold) -> None:
        self._parts = parts
        self._hold = hold
        self._assignment = assignment
        self._scope = scope
        lane = self._lane = lane_of(assignment.provider, assignment.provider_target_model)
        self._log = AudioLog(
            task_id=assignment.task_id,
            attempt=assignment.attempt,
            audio_format=format_named(assignment.format_name),
            sample_rate_hz=assignment.kept.sample_rate_hz,
            goes_on=lane is not None and lane.goes_on,
        )
        self._spoken_to: Speech | None = None
        self._paid_twice_from = assignment.kept.paid_twice_from
        self._mended = False
        self._told = False  # what the first delta tells
        self._started_at = time.monotonic()
        within = assignment.start_within_seconds
        self._start_by = None if within is None else self._started_at + within
        self._starts: list[dict[str, object]] = []
        self._batches = 0  # of words with their times
        self._doubted = False  # whether a voice that is said to be gone, or not to fit, was asked for once more
        self._said = "streaming"  # the provider's last word; each lane has its own
        self._noting: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """The text may have been sent, and what is spoken of it may have to be paid for."""
        return self._spoken_to is not None and self._spoken_to.text_sent

    @property
    def facts(self) -> dict[str, object]:
        """What the provider told of the session under way."""
        return self._spoken_to.facts() if self._spoken_to else {}

    async def run(self) -> None:
        parts, assignment, log = self._parts, self._assignment, self._log
        async with asyncio.TaskGroup() as self._beside:
            with (
                parts.live.speaking(log),
                parts.spool.writing(log, self._scope.cancel),
                parts.progress.showing(assignment.task_id),
            ):
                parts.announcer.changed(assignment.task_id)
                await self._to_its_end()

    async def _to_its_end(self) -> None:
        try:
            facts = await self._speak_until_it_works()
        except VoiceGone as exc:
            await self._mark_voice_gone()
            await self._failed(exc)
        except UtterError as exc:
            await self._failed(exc)
        except Exception:  # a mistake of ours ends this speech with words, not with a silent wait for the sweep
            logger.exception("synthesis failed", extra={"task_id": str(self._assignment.task_id)})
            await self._failed(UtterError())
        except asyncio.CancelledError:
            if self._log.goes_on and self._parts.leases.released:
                # The provider is left by now; what came from it is durable before the run is given away.
                with anyio.move_on_after(self._parts.settings.deadlines.leaving_database_seconds, shield=True):
                    await self._parts.spool.flush(self._log)
            raise
        else:
            await self._spoken(facts)

    async def _fill(self) -> None:
        """What former attempts have left comes before anything new.

        Raises:
            UtterError: It is not all there.
        """
        kept, log = self._assignment.kept, self._log
        while log.length < kept.kept_bytes:
            parts = await self._parts.database.patiently_say(spooled, log.task_id, start=log.length)
            if not parts:
                raise UtterError  # most likely it has ended meanwhile
            for part in parts:
                log.append(part)
        if log.length:
            log.committed(log.length)
            log.notes.append(Note(kept.marked_bytes, kept.marked_bytes, kept.marked_characters))
            log.settled = 1
            self._batches = await self._parts.database.patiently_say(
                words.next_position, self._assignment.generation_id
            )

    async def _speak_until_it_works(self) -> dict[str, object]:
        """The provider's facts about a complete speech, after as many starts as ``may_start_again`` allows."""
        deadlines, tries = self._parts.settings.deadlines, self._parts.settings.tries
        assignment = self._assignment
        request = SpeechRequest(
            text=assignment.text,
            voice=assignment.provider_voice_id or "",
            model=assignment.provider_target_model or "",
            language=assignment.language,
            # What is to be encoded here is asked for as samples.
            response_format="pcm" if self._encodes else self._log.audio_format.provider_format,
            speed=assignment.asked.speed,
            pitch=assignment.asked.pitch,
            volume=assignment.asked.volume,
            instruction=assignment.asked.instruction,
            seed=seed_of(assignment.generation_id),
            job=assignment.job,
        )
        source, log = self._source(), self._log
        await self._fill()
        first_failed_at: float | None = None  # waiting for our own pace is not the provider's failing
        while True:
            going_on = await asyncio.to_thread(self._going_on) if log.length else None
            if going_on and not any(map(str.isalnum, request.text[going_on.characters :])):
                return self.facts  # every sentence is whole; only that this is the end was not told any more
            began_at = log.length
            start_by = first_failed_at + deadlines.starts_within_seconds if first_failed_at else self._start_by
            asked = msgspec.structs.replace(request, going_on=going_on, start_by=start_by)
            self._spoken_to = spoken = source.speak(asked, self._take)
            try:
                async with spoken:
                    return await self._relay(spoken)
            except ProviderError as exc:
                self._starts.append({"category": exc.category, **exc.diagnostics})
                if isinstance(code := exc.diagnostics.get("close_code"), int):
                    self._parts.metrics.provider_closed(code)
                heard = spoken.audio_bytes if going_on else log.length
                again = may_start_again(exc, text_sent=spoken.text_sent, bytes_heard=heard)
                if not again and exc.retryable and log.length > began_at:
                    again = await self._mends()
                if isinstance(exc, VoiceGone) and not self._doubted:
                    # Believing it takes the voice from its owner for good, and one node that lags behind says it, too.
                    self._doubted = again = True
                if isinstance(exc, VoiceMismatch) and not heard:
                    again = await self._contradicted(exc)
                pause, most = pause_before_start(len(self._starts), throttled=exc.throttled), tries.starts
                if again and len(self._starts) >= most and self._only_opened_and_closed:
                    if len(self._starts) > most:
                        raise silently_retired(exc.diagnostics) from exc
                    # Before that is believed of a model it is asked again, after a while.
                    pause, most = self._parts.settings.intervals.doubted_model_seconds, most + 1
                first_failed_at = first_failed_at or time.monotonic()
                in_time = time.monotonic() - first_failed_at + pause < deadlines.starts_within_seconds
                if not again or len(self._starts) >= most or not in_time:
                    raise
                await asyncio.sleep(pause)

    @property
    def _only_opened_and_closed(self) -> bool:
        return all(start.get("code") == OPENED_AND_CLOSED for start in self._starts)

    async def _contradicted(self, exc: VoiceMismatch) -> bool:
        """Whether to speak once more with a voice that the provider's engine does not take: its list decides.

        What the engine says is ambiguous: it was seen to pass, and is also said of a voice that is gone or not ready.

        Raises:
            VoiceGone: The list does not have it either, and the engine has said so twice.
            ProviderUnavailable: It is not ready yet.
        """
        standing = await self._parts.providers.standing(
            self._assignment.provider_target_model or "", self._assignment.provider_voice_id or ""
        )
        if standing == "DEPLOYING":
            raise ProviderUnavailable(NOT_READY, diagnostics={**exc.diagnostics, "code": "deploying"}) from exc
        if self._doubted:
            if standing == "GONE":
                raise VoiceGone(diagnostics=exc.diagnostics) from exc
            return False
        self._doubted = standing in ("OK", "GONE")
        return self._doubted

    def _going_on(self) -> GoingOn:
        """Where to take up what is in the log; as long as its audio sounds."""
        log, mark = self._log, self._last_mark
        spoken, given = (log.audio_format.clock(log.sample_rate_hz) for _ in range(2))
        spoken.feed(log.read(0, mark.marked_bytes))
        given.feed(log.read(mark.marked_bytes, log.length))
        return GoingOn(characters=mark.marked_characters, spoken_seconds=spoken.seconds, given_seconds=given.seconds)

    @property
    def _last_mark(self) -> Note:
        return self._log.notes[-1] if self._log.notes else Note(0, 0, 0)

    async def _mends(self) -> bool:
        """The provider broke off, and the sentence under way may be begun again: once, and none of them thrice."""
        log, mark = self._log, self._last_mark
        if self._mended or not (log.goes_on and log.marked) or mark.marked_characters <= self._paid_twice_from:
            return False
        self._mended, self._paid_twice_from = True, mark.marked_characters
        more = any(map(str.isalnum, self._assignment.text[mark.marked_characters :]))
        self._starts[-1] |= {"goes_on_at_character": mark.marked_characters, "sentence_paid_again": more}
        await self._parts.spool.flush(log)
        await self._parts.database.patiently(runs.note_begun_again, log.task_id, log.attempt, mark.marked_characters)
        return True

    @property
    def _encodes(self) -> bool:
        """Whether the voice's lane does not yield what this speech is to be heard and stored as."""
        return self._lane is not None and self._lane.needs_encoding(self._log.audio_format)

    def _source(self) -> SpeechProvider:
        """Who speaks this: the voice's lane decides."""
        parts, assignment = self._parts, self._assignment
        source = parts.providers.source(
            assignment.provider, assignment.provider_target_model, in_pieces=InPieces(parts, assignment)
        )
        return AsMp3(source) if self._encodes else source

    async def _relay(self, spoken: Speech) -> dict[str, object]:
        """Pass one session's audio on, as far as it does not go straight to ``_take``."""
        log = self._log
        facts: dict[str, object] = {}
        async for event in spoken:
            if type(event) is AudioDelta:
                first, self._told = not self._told, True
                if first:
                    self._show(self._said)  # not before: "streaming" means that there is audio
                self._take(event)
                if first:
                    self._first_delta(event.audio, spoken.facts())
            elif type(event) is SpeechStatus:
                self._said = event.provider_status
                if event.sample_rate_hz:
                    log.sample_rate_hz = event.sample_rate_hz
                if event.provider_status != "streaming":  # said together with what the first delta tells
                    self._show(event.provider_status)
            elif type(event) is SpeechWords:
                self._words(event)
            elif type(event) is SpeechMark:
                self._note_mark(event)
            elif type(event) is SpeechEnd:
                facts = event.facts
        return facts

    def _take(self, delta: AudioDelta) -> None:
        """The hot path: append once, wake, mark for the spool."""
        self._log.append(delta.audio, delta.encoded)
        self._parts.spool.grew(self._log)

    def _first_delta(self, audio: bytes, facts: dict[str, object]) -> None:
        if not self._assignment.kept.kept_bytes:
            waited = self._assignment.waited_seconds + time.monotonic() - self._started_at
            self._parts.metrics.first_audio(self._assignment.provider, waited)
            self._parts.endings.heard(self._assignment.task_id, waited)
        clock = self._log.audio_format.clock(self._log.sample_rate_hz)
        clock.feed(audio)
        rate = round(len(audio) * 8 / clock.seconds) if clock.seconds else 0
        self._noting = self._beside.create_task(self._note_audio(rate, facts))

    async def _note_audio(self, bits_per_second: int, facts: dict[str, object]) -> None:
        """Keep what the first delta told, beside the speech: the second one must not wait for it."""
        known: dict[str, object] = {name: facts[name] for name in ("request_id", "session_id") if name in facts}
        with unless_away(self._parts, self._assignment.task_id):
            async with self._parts.database.connection() as connection:
                await speech.note_audio(
                    connection,
                    self._assignment,
                    sample_rate_hz=self._log.sample_rate_hz,
                    bits_per_second=bits_per_second,
                    # Should this process die, nobody else could tell what the provider called this.
                    facts=known,
                )

    def _words(self, event: SpeechWords) -> None:
        """Keep when words are heard, together with what is heard."""
        said = [(word.text, word.start_ms, word.end_ms) for word in event.words]
        log, mark = self._log, self._last_mark
        log.notes.append(Note(log.length, mark.marked_bytes, mark.marked_characters, self._batches, said))
        self._batches += 1
        self._parts.spool.grew(log)

    def _note_mark(self, event: SpeechMark) -> None:
        log = self._log
        if event.characters is None:
            log.marked = False
        else:
            log.notes.append(Note(log.length, log.length, event.characters))
        self._parts.spool.grew(log)

    def _show(self, provider_status: str) -> None:
        progress = Progress(self._assignment.task_id, self._assignment.attempt, provider_status)
        self._parts.progress.say(progress)

    async def _spoken(self, facts: dict[str, object]) -> None:
        parts, assignment = self._parts, self._assignment
        if self._starts:
            facts = {**facts, "attempts": self._starts}
        try:
            if self._noting:
                await self._noting
            marked = await self._mark(facts)
            if marked is None:
                # Its row is gone (a browser may delete it in the database) or has ended: as good as cancelled.
                await parts.endings.end(assignment.task_id, speech.CANCELLED, attempt=assignment.attempt)
        except Fenced:
            marked = None
            logger.info("speech was taken over or cancelled", extra={"task_id": str(assignment.task_id)})
        parts.announcer.changed(assignment.task_id)
        if marked:
            self._hold.lost = None  # a cancel, or the end of the grace, finds its guards in the rows from now on
            await self._store(marked, facts)

    async def _mark(self, facts: dict[str, object]) -> Marked | None:
        """Say in the rows that it is spoken, with every byte in the spool, whatever a failover lost meanwhile.

        Raises:
            Fenced: The run is no longer ours.
        """
        parts, log = self._parts, self._log
        while True:
            await parts.spool.flush(log)
            try:
                return await parts.database.patiently(
                    speech.mark_spoken,
                    parts.queue,
                    self._assignment,
                    parts.leases.owner,
                    provider_status=self._said,
                    byte_length=log.length,
                    sample_rate_hz=log.sample_rate_hz,
                    store_in_seconds=parts.settings.deadlines.store_elsewhere_seconds,
                    facts=facts,
                )
            except Fenced:
                if not await parts.spool.is_behind_us(log):
                    raise

    async def _store(self, marked: Marked, facts: dict[str, object]) -> None:
        """Store it from memory, now; the job that was deferred does it where that fails."""
        parts, assignment, log = self._parts, self._assignment, self._log
        storable = Storable(
            task_id=assignment.task_id,
            generation_id=assignment.generation_id,
            attempt=assignment.attempt,
            byte_length=log.length,
            sample_rate_hz=log.sample_rate_hz,
            format_name=assignment.format_name,
            provider=assignment.provider,
            spoken_for_seconds=0.0,
        )
        try:
            await store_spoken(parts, storable, assignment.object_key, log, marked.job)
        except (StorageUnavailable, TimeoutError) as exc:
            extra = {"task_id": str(assignment.task_id), "reason": repr(exc.__cause__ or exc)}
            logger.warning("audio not stored at once, trying again later", extra=extra)
            parts.metrics.finalize_retried()
            parts.kept.keep(log, lambda: self._mark(facts))

    async def _failed(self, exc: UtterError) -> None:
        await self._parts.retirements.note(exc, self._assignment.provider_target_model)
        facts: dict[str, object] = {"attempts": self._starts} if len(self._starts) > 1 else {}
        if isinstance(exc, ProviderError):
            facts |= {name: exc.diagnostics[name] for name in ("request_id", "session_id") if name in exc.diagnostics}
            facts["error"] = exc.diagnostics
        ending = Ending(detail=exc.detail, category=exc.category, facts=facts)
        await self._parts.endings.end(self._assignment.task_id, ending, attempt=self._assignment.attempt)

    async def _mark_voice_gone(self) -> None:
        if voice_id := self._assignment.voice_id:
            await self._parts.database.patiently(voices.mark_gone, voice_id, self._parts.providers.account)
