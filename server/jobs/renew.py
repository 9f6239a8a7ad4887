"""Making a voice again, from what was kept of it, for the model that new voices are made for.

A provider retires models, and a voice speaks with the one that it was made for alone. Name, id and history of the voice
stay; what the provider knew it by is remembered in its row, and nothing is deleted at the provider. A text that is
being spoken goes on with what it began with. Where the model of new voices is one that a voice had before (an operator
went back), what was remembered is put back, and nothing is bought.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Literal
from uuid import UUID, uuid4, uuid5

import anyio
import msgspec

from server.audio import Recording, ReferenceKind, lengthened, read_recording
from server.database.connections import Connection
from server.errors import Conflict, NotFound, ProviderError, StorageUnavailable, UtterError
from server.jobs.clone import LONGEST_RECORDING_BYTES, SHORTEST_SECONDS, require_recording
from server.jobs.enrollment import Enrollment, in_memory
from server.jobs.own import require_voice
from server.objects import reference_key
from server.parts import Parts
from server.providers.languages import passage
from server.providers.qwen.customization import CreatedVoice
from server.providers.speech import pause_before_start
from server.records import purchases, renewals, speech, voices
from server.records.renewals import Renewing
from server.records.speech import Ending
from server.records.voices import Earlier, NewVoice, Voice
from server.settings import Settings, speaks_by_tasks, suits_kind
from server.storage import Bucket

logger = logging.getLogger(__name__)

# The same voice, renewed from the same state to the same model, is one purchase, whoever asks for it and how often.
_RENEWALS = UUID("6b1f6f2e-7a55-4d0c-9d0e-3c3d5b3f1a77")
RESTARTED = "The server was restarted while it made this voice again. Please try again."
NOTHING_KEPT = "Nothing was kept that this voice could be made from again. Please create it again."
ONLY_DESCRIBED = (
    "Of this voice only its description was kept, and this service designs no voices at the moment. Please tell its"
    " operator, or create the voice again."
)
# What is asked of a recording; a shorter one is heard again and again until it is as long.
_LEAST_SECONDS = 6.0  # five of clear speech, for the family that speaks in tasks

# How a voice is made again: from its recording, from a description by the provider itself, or from a recording that the
# other provider speaks by the description.
How = Literal["cloned", "designed", "spoken"]


def objection(parts: Parts, voice: Voice) -> str | None:
    """Why a voice cannot be made again, or need not be; None where it can, as far as its row tells."""
    if not parts.providers.abilities.enrolls:
        return "This server speaks with a provider that keeps no voices, so there is nothing to make again."
    if _current(parts.settings, voice.provider_target_model) and parts.providers.objection(voice) is None:
        return "This voice can speak already."
    if not voice.reference_object_key and not _described(voice):
        return NOTHING_KEPT
    if not voice.reference_object_key and parts.providers.describes is None:
        return ONLY_DESCRIBED
    return None


def _current(settings: Settings, model: str | None) -> bool:
    """Whether new voices are made for this model; a designed one moves on with the clones to another family."""
    cloned, designed = settings.qwen_vc_target_model, settings.qwen_vd_target_model
    return model == cloned or (model == designed and speaks_by_tasks(cloned) == speaks_by_tasks(designed))


def _described(voice: Voice) -> bool:
    return voice.source == "designed" and bool((voice.description or "").strip())


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
        known = (await voices.earlier(connection, [voice_id])).get(voice_id, [])
        if remembered(parts, voice, known) is None and (refusal := objection(parts, voice)):
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


async def remake(parts: Parts, voice: Voice, kept: "Kept | None" = None) -> Voice:
    """A voice, made again: bought once, waited for, and put in the place of what the provider knew it by.

    Args:
        kept: What the provider keeps, where many voices are made again and it need not be asked for each.

    Raises:
        Conflict: It cannot be made again.
        ProviderError: As for a new voice; what passes was tried again for as long as a voice may take to be ready.
    """
    async with parts.database.connection() as connection:
        known = (await voices.earlier(connection, [voice.id])).get(voice.id, [])
    if (before := remembered(parts, voice, known)) and await (kept or Kept(parts)).has(before):
        return await _put_back(parts, voice, before)
    if refusal := objection(parts, voice):
        raise Conflict(refusal)
    clock, starts = asyncio.get_running_loop().time, 0
    until = clock() + parts.settings.deadlines.design_deploying_seconds
    while True:
        try:
            how = await _how(parts, voice)
            if how == "spoken":
                # Before anything is claimed: a purchase would not wait for as long as this may take.
                voice, how = await _recorded(parts, voice), "cloned"
            return await _Renewal(parts, voice, designs=how == "designed").run()
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


async def _how(parts: Parts, voice: Voice) -> How:
    """How it can be made again, by what is really there.

    Raises:
        Conflict: It cannot.
        StorageUnavailable: Nobody can say.
    """
    key = voice.reference_object_key
    if key and await parts.storage.head(Bucket.REFERENCES, key):
        return "cloned"
    if not _described(voice):
        raise Conflict(NOTHING_KEPT)
    if (how := parts.providers.describes) is None:
        raise Conflict(ONLY_DESCRIBED)
    return how


async def _recorded(parts: Parts, voice: Voice) -> Voice:
    """The voice with a recording that the other provider speaks by its description; from now on it is its own."""
    language, words = passage(voice.language, voice.reference_transcript or "")
    async with in_memory(parts):
        data = await parts.providers.modal.design(text=words, language=language, instruct=voice.description or "")
        await asyncio.to_thread(require_recording, data)
        key = reference_key(voice.user_id, voice.id)
        # In this order: a row without its recording comes here again, and no recording has another's words.
        await parts.database.patiently(voices.note_recording, voice.id, key, words)
        await parts.storage.put(Bucket.REFERENCES, key, data, content_type="audio/wav", size=len(data))
    return msgspec.structs.replace(voice, reference_object_key=key, reference_transcript=words)


class _Renewal(Enrollment):
    """An enrollment whose voice is there already."""

    def __init__(self, parts: Parts, voice: Voice, *, designs: bool) -> None:
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
        self._designs = designs
        if designs:
            self._model, self._kind = parts.providers.described_model, "vd"
            if not speaks_by_tasks(self._model):
                self._service = parts.providers.design_service

    async def _recording(self) -> tuple[bytes, Recording]:
        try:
            data = await self._parts.storage.read(
                Bucket.REFERENCES, self._wanted.reference_object_key, limit=LONGEST_RECORDING_BYTES
            )
        except NotFound as exc:
            raise Conflict(NOTHING_KEPT) from exc
        about = await asyncio.to_thread(read_recording, data)
        if about.kind != "wav" or about.seconds >= SHORTEST_SECONDS:
            about = await asyncio.to_thread(require_recording, data)
        return data, about

    async def _sendable(self, stored: bytes, about: Recording) -> tuple[bytes | str, ReferenceKind]:
        """A preview of a few words was enough to design a voice, and the older family asked for less of a recording."""
        least = _LEAST_SECONDS if speaks_by_tasks(self._model) else SHORTEST_SECONDS
        if about.kind == "wav" and about.seconds < least:
            return await asyncio.to_thread(lengthened, memoryview(stored)[about.start :], least), "wav"
        return await super()._sendable(stored, about)

    async def _make(self) -> CreatedVoice:
        return await (self._design() if self._designs else super()._make())

    async def _design(self) -> CreatedVoice:
        wanted, parts = self._wanted, self._parts
        # The family that speaks in tasks is shown its preview text in these two languages alone.
        only = {"only": ("zh", "en")} if speaks_by_tasks(self._model) else {}
        language, words = passage(wanted.language, wanted.reference_transcript, **only)
        self._called = True
        designed = await parts.providers.designed(
            self._model,
            name=purchases.provider_name(self._subject),
            text=words,
            language=language,
            instruct=wanted.description or "",
        )
        key = reference_key(wanted.user_id, wanted.id)
        try:
            await parts.storage.put(
                Bucket.REFERENCES, key, designed.audio, content_type="audio/wav", size=len(designed.audio)
            )
        except StorageUnavailable as exc:  # the voice is paid for, and speaks without it
            logger.warning("preview not stored", extra={"voice_id": str(wanted.id), "reason": exc.reason})
        else:
            self._wanted = msgspec.structs.replace(wanted, reference_object_key=key, reference_transcript=words)
        return CreatedVoice(
            voice_id=designed.voice_id or "",
            target_model=designed.target_model or self._model,
            request_id=designed.request_id,
        )

    async def _put(self, connection: Connection, voice: NewVoice) -> Voice | None:
        return await voices.put_renewed(connection, voice)


# --- going back -------------------------------------------------------------------------------------------------------


class Kept:
    """Which voices the provider still has, asked as seldom as possible. Nothing of this is billed."""

    def __init__(self, parts: Parts) -> None:
        self._providers = parts.providers
        self._listed: dict[str, frozenset[str]] = {}

    async def has(self, before: Earlier) -> bool:
        """Whether the provider has a voice that it was known to have; also where it cannot be asked.

        Whoever does not say which voices there are makes none, either; that it is gone would tell the first text.
        """
        voice_id, model, kind = before.voice or "", before.model or "", before.kind or "vc"
        try:
            if speaks_by_tasks(model):
                return await self._providers.standing(model, voice_id) in ("OK", "")
            if kind not in self._listed:
                asked = self._providers.customization.voices("vd" if kind == "vd" else "vc")
                self._listed[kind] = frozenset([voice.voice_id async for voice in asked])
            return voice_id in self._listed[kind]
        except ProviderError as exc:
            logger.warning("voices of the provider not read", extra={"code": exc.diagnostics.get("code")})
            return True


def remembered(parts: Parts, voice: Voice, known: list[Earlier]) -> Earlier | None:
    """What the provider knew a voice by before, where that speaks with the model of new voices; the latest of it."""
    settings, providers = parts.settings, parts.providers
    if not providers.abilities.enrolls or _current(settings, voice.provider_target_model):
        return None
    for before in known:
        usable = before.voice and before.model and before.provider == providers.abilities.provider
        if (
            usable
            and _current(settings, before.model)
            and suits_kind(before.model or "", before.kind)
            and before.model not in providers.retired
            and before.region in (None, settings.dashscope_region)
            and before.gone_from != providers.account
        ):
            return before
    return None


async def _put_back(parts: Parts, voice: Voice, before: Earlier) -> Voice:
    back = NewVoice(
        id=voice.id,
        user_id=voice.user_id,
        name=voice.name,
        reference_object_key="",
        reference_transcript="",
        language=voice.language,
        source="designed" if voice.source == "designed" else "uploaded",
        description=voice.description,
        tts_provider=parts.providers.abilities.provider,
        provider_voice_id=before.voice,
        provider_target_model=before.model,
        provider_voice_kind=before.kind,
        provider_region=before.region,
    )
    return require_voice(await parts.database.patiently(voices.put_renewed, back))


# --- the command ------------------------------------------------------------------------------------------------------


class Candidate(msgspec.Struct, frozen=True):
    """A voice that the command would make again.

    Attributes:
        objection: Why it cannot be, where it cannot.
        remembered: The provider knew it by another name, which it may have kept and bills nothing for.
    """

    voice: Voice
    objection: str | None
    remembered: bool = False


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
            known = await voices.earlier(connection, [voice.id for voice in page])
        if not page:
            return
        after = (page[-1].created_at, page[-1].id)
        for voice in page:
            if model is not None and voice.provider_target_model != model:
                continue
            if _current(parts.settings, voice.provider_target_model) and not voice.gone_from:
                continue
            if model is None and not everything and parts.providers.objection(voice) is None:
                continue
            if remembered(parts, voice, known.get(voice.id, [])):
                yield Candidate(voice, None, remembered=True)
            else:
                yield Candidate(voice, objection(parts, voice))
