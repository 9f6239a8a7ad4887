"""Making a voice again, from what was kept of it, for the model that new voices are made for.

A provider retires models, and a voice speaks with the one that it was made for alone. Name, id and history of the voice
stay; what the provider knew it by is remembered in its row, and nothing is deleted at the provider. A text that is
being spoken goes on with what it began with.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID, uuid4, uuid5

import anyio
import msgspec

from server.audio import Recording
from server.database.connections import Connection
from server.errors import Conflict, NotFound, ProviderError, UtterError
from server.jobs.clone import LONGEST_RECORDING_BYTES, require_recording
from server.jobs.enrollment import Enrollment
from server.parts import Parts
from server.providers.speech import pause_before_start
from server.records import renewals, speech, voices
from server.records.renewals import Renewing
from server.records.speech import Ending
from server.records.voices import NewVoice, Voice
from server.storage import Bucket

logger = logging.getLogger(__name__)

# The same voice, renewed from the same state to the same model, is one purchase, whoever asks for it and how often.
_RENEWALS = UUID("6b1f6f2e-7a55-4d0c-9d0e-3c3d5b3f1a77")
RESTARTED = "The server was restarted while it made this voice again. Please try again."
NOTHING_KEPT = "Nothing was kept that this voice could be made from again. Please create it again."


def objection(parts: Parts, voice: Voice) -> str | None:
    """Why a voice cannot be made again, or need not be; None where it can."""
    if not parts.providers.abilities.enrolls:
        return "This server speaks with a provider that keeps no voices, so there is nothing to make again."
    if not voice.reference_object_key:
        return NOTHING_KEPT
    current = voice.provider_target_model == parts.settings.qwen_vc_target_model
    if current and parts.providers.objection(voice) is None:
        return "This voice can speak already."
    return None


async def submit(parts: Parts, user_id: UUID, voice_id: UUID) -> UUID:
    """Start a renewal, or find the one that is under way; its task's id.

    Raises:
        NotFound: No such voice, or somebody else's.
        Conflict: It cannot be made again.
    """
    task_id = uuid4()
    async with parts.database.transaction() as connection:
        voice = await voices.find(connection, voice_id, user_id)
        if voice is None:
            raise NotFound("This voice does not exist.")
        if running := await renewals.under_way(connection, voice_id):
            return running
        if refusal := objection(parts, voice):
            raise Conflict(refusal)
        await renewals.create(
            connection,
            parts.queue,
            task_id=task_id,
            user_id=user_id,
            voice_id=voice_id,
            provider=parts.providers.abilities.provider,
        )
    return task_id


async def renew(parts: Parts, *, task_id: UUID, attempt: int) -> None:
    """Make one voice again, if that is still wanted (a job)."""
    renewing = await parts.database.patiently(renewals.claim, task_id, attempt, parts.leases.owner)
    if renewing is None:
        return
    scope = anyio.CancelScope()
    with parts.leases.hold(task_id, attempt, scope.cancel):
        try:
            with scope:
                await _renew(parts, renewing)
        except UtterError as exc:
            await _fail(parts, renewing, exc)
        except Exception:
            logger.exception("renewal failed", extra={"task_id": str(task_id)})
            await _fail(parts, renewing, UtterError())
        if scope.cancelled_caught and parts.leases.released:
            back = partial(
                speech.requeue,
                queue=parts.queue,
                task_id=task_id,
                attempt=attempt,
                reason="server restarted",
            )
            if not await parts.database.patiently_for(3.0, back):
                await _fail(parts, renewing, UtterError(RESTARTED))


async def _renew(parts: Parts, renewing: Renewing) -> None:
    async with parts.database.connection() as connection:
        voice = await voices.find(connection, renewing.voice_id, renewing.user_id)
    if voice is None:
        raise NotFound("This voice was deleted.")
    await remake(parts, voice)
    if await parts.database.patiently(renewals.complete, renewing):
        parts.metrics.task_ended(parts.providers.abilities.provider, "completed", "")
    parts.announcer.changed(renewing.task_id)


async def _fail(parts: Parts, renewing: Renewing, exc: UtterError) -> None:
    facts: dict[str, Any] = {"error": exc.diagnostics} if isinstance(exc, ProviderError) else {}
    ending = Ending(detail=exc.detail, category=exc.category, facts=facts)
    await parts.endings.end(renewing.task_id, ending, attempt=renewing.attempt, for_seconds=30.0)


async def remake(parts: Parts, voice: Voice) -> Voice:
    """A voice, made again: bought once, waited for, and put in the place of what the provider knew it by.

    Raises:
        Conflict: It cannot be made again.
        ProviderError: As for a new voice; what passes was tried again for as long as a voice may take to be ready.
    """
    if refusal := objection(parts, voice):
        raise Conflict(refusal)
    clock, starts = asyncio.get_running_loop().time, 0
    until = clock() + parts.settings.deadlines.design_deploying_seconds
    while True:
        try:
            return await _Renewal(parts, voice).run()
        except ProviderError as exc:
            starts += 1
            passes = exc.throttled or exc.diagnostics.get("code") == "deploying"
            pause = (
                pause_before_start(starts, throttled=True)
                if exc.throttled
                else parts.settings.intervals.deploying_look_seconds
            )
            if not passes or clock() + pause > until:
                raise
            await asyncio.sleep(pause)


class _Renewal(Enrollment):
    """An enrollment whose voice is there already."""

    def __init__(self, parts: Parts, voice: Voice) -> None:
        model = parts.settings.qwen_vc_target_model
        wanted = NewVoice(
            id=voice.id,
            user_id=voice.user_id,
            name=voice.name,
            reference_object_key=voice.reference_object_key or "",
            reference_transcript=voice.reference_transcript or "",
            language=voice.language,
            source="designed" if voice.source == "designed" else "uploaded",
            description=voice.description,
            tts_provider=parts.providers.abilities.provider,
        )
        subject = uuid5(_RENEWALS, f"{voice.id} {voice.provider_voice_id} {model} {voice.gone_from}")
        super().__init__(parts, wanted, self._recording, subject=subject)

    async def _recording(self) -> tuple[bytes, Recording]:
        try:
            data = await self._parts.storage.read(
                Bucket.REFERENCES, self._wanted.reference_object_key, limit=LONGEST_RECORDING_BYTES
            )
        except NotFound as exc:
            raise Conflict(NOTHING_KEPT) from exc
        return data, await asyncio.to_thread(require_recording, data)

    async def _put(self, connection: Connection, voice: NewVoice) -> Voice | None:
        return await voices.put_renewed(connection, voice)


class Candidate(msgspec.Struct, frozen=True):
    """A voice that the command would make again, and why it cannot be where it cannot."""

    voice: Voice
    objection: str | None


async def candidates(parts: Parts, *, model: str | None, everything: bool) -> AsyncIterator[Candidate]:
    """Voices that are to be made again, oldest first.

    Args:
        model: Only those that were made for this one.
        everything: Also those that can speak, but with another model than new voices are made for.
    """
    after: tuple[Any, UUID] | None = None
    while True:
        async with parts.database.connection() as connection:
            page = await voices.after(connection, after, provider="qwen", limit=200)
        if not page:
            return
        after = (page[-1].created_at, page[-1].id)
        for voice in page:
            if model is not None and voice.provider_target_model != model:
                continue
            if voice.provider_target_model == parts.settings.qwen_vc_target_model and not voice.gone_from:
                continue
            if model is None and not everything and parts.providers.objection(voice) is None:
                continue
            yield Candidate(voice, objection(parts, voice))
