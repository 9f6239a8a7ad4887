"""Cloning a voice: the recording is checked, enrolled at the provider exactly once, and stored as a voice.

However often and however concurrently it is asked for under one voice id, one call buys the voice; everybody else
waits for its end and answers the same. A crash or a lost database after the enrollment costs nothing: the next call
finds the voice at the provider by its name and adopts it (design §6).
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID, uuid4

import anyio
import msgspec

from server.audio import (
    REFERENCE_MIME_TYPES,
    AudioError,
    ReferenceKind,
    identify,
    reference_duration_seconds,
    to_reference_wav,
)
from server.contract import CloneFinalizeRequest, CloneUploadRequest
from server.database import REFUSED
from server.errors import (
    DatabaseUnavailable,
    Invalid,
    NotFound,
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    StorageUnavailable,
)
from server.jobs.generate import checked_language, is_visible
from server.parts import Parts
from server.providers.qwen_customization import CreatedVoice
from server.records import purchases, voices
from server.records.purchases import Purchase
from server.records.voices import NewVoice, Voice
from server.storage import Bucket

if TYPE_CHECKING:
    from server.database import Connection

logger = logging.getLogger(__name__)
T = TypeVar("T")

UPLOAD_SECONDS = 300
LONGEST_RECORDING_BYTES = 10 * 1024 * 1024
SHORTEST_SECONDS, LONGEST_SECONDS = 3.0, 60.0
# Encoders add silence at both ends of what they are given, and round it up to whole frames.
PADDING_SECONDS = 0.2
PROVIDER_LINK_SECONDS = 600
# Losers of the claim look at the row; the winner's call takes 90 s at most.
LOOK_EVERY_SECONDS = 0.25
LOOK_FOR_SECONDS = 100.0
# Together with the call this stays within the lease.
FIND_SECONDS = 25.0
# After these the provider is done with the call; after any other unknown end it may still be at it.
_OVER = frozenset({"broken_off", "unreadable_answer"})
_UNANSWERED = (
    "The speech provider did not say whether it has created this voice. "
    "Please try again in a few minutes: you will not pay twice."
)
# The provider has answered and the database is gone: so long the answer is held.
WRITE_SECONDS = 30.0
# A request that is cut off has so long to say that it does not know what became of its call.
LAST_WORDS_SECONDS = 3.0


def reference_key(user_id: UUID, voice_id: UUID) -> str:
    """Where a voice's recording lies, whatever its format: the first folder is its user's."""
    return f"{user_id}/{voice_id}/reference.wav"


async def upload_address(
    parts: Parts, user_id: UUID, request: CloneUploadRequest, base_url: str
) -> tuple[UUID, str, str]:
    """A new voice's id, the address that its recording is to be PUT to within five minutes, and the object's key."""
    checked_name(request.name)
    checked_language(parts, request.language)
    voice_id = uuid4()
    key = reference_key(user_id, voice_id)
    link = await parts.storage.signed_put(Bucket.REFERENCES, key, expires_seconds=UPLOAD_SECONDS, base_url=base_url)
    return voice_id, link, key


def checked_name(name: str) -> str:
    """The name without blanks around it.

    Raises:
        Invalid: Nothing is left, or too much.
    """
    trimmed = name.strip()
    if not 1 <= len(trimmed) <= 100 or not is_visible(trimmed):
        raise Invalid("Please give the voice a name of 1 to 100 characters.")
    return trimmed


async def finalize(parts: Parts, user_id: UUID, request: CloneFinalizeRequest) -> Voice:
    """The voice of this id: stored already, or made now from the recording that was uploaded.

    Raises:
        Invalid: The recording is missing or cannot be used.
        NotFound: The id belongs to somebody else.
        ProviderError: Refused (400 or 502), not reached (503), or with an unknown end (504).
    """
    name, language = checked_name(request.name), checked_language(parts, request.language)
    async with parts.database.connection() as connection:
        known = await voices.find_any(connection, request.voice_id)
    if known is not None:
        if known.user_id != user_id:
            raise NotFound("This voice does not exist.")
        return present(known)
    recording = await _recording(parts, user_id, request.voice_id)
    kind = await asyncio.to_thread(checked_recording, recording)
    abilities = parts.providers.abilities
    wanted = NewVoice(
        id=request.voice_id,
        user_id=user_id,
        name=name,
        reference_object_key=reference_key(user_id, request.voice_id),
        reference_transcript=request.transcript.strip(),
        language=language,
        source="uploaded",
        description=request.description,
        tts_provider=abilities.provider,
    )
    if not abilities.enrolls:
        return await _store(parts, wanted)
    return await _Enrollment(parts, wanted, recording, kind).run()


def present(voice: Voice | None) -> Voice:
    """A voice that was stored, now or before.

    Raises:
        NotFound: It belongs to somebody else, or its user has deleted it.
    """
    if voice is None:
        raise NotFound("This voice does not exist.")
    if voice.deleted:
        raise NotFound("This voice was deleted. Please create a new one.")
    return voice


async def _recording(parts: Parts, user_id: UUID, voice_id: UUID) -> bytes:
    key = reference_key(user_id, voice_id)
    uploaded = await parts.storage.head(Bucket.REFERENCES, key)
    if uploaded is None or not uploaded.size:
        raise Invalid("Audio file not uploaded.")
    if uploaded.size > LONGEST_RECORDING_BYTES:
        raise Invalid("The recording is larger than 10 MB. Please upload a shorter one.")
    return await parts.storage.read(Bucket.REFERENCES, key, limit=LONGEST_RECORDING_BYTES)


def checked_recording(recording: bytes) -> ReferenceKind:
    """What the recording is. Up to half a second of work: call it in a thread.

    Raises:
        Invalid: It is not what can be cloned from, with a sentence that says why.
    """
    kind = identify(recording)
    if kind is None:
        raise Invalid("The recording must be a WAV, MP3 or M4A file.")
    try:
        seconds = reference_duration_seconds(recording, kind)
    except AudioError as exc:
        raise Invalid(str(exc)) from exc
    if seconds < SHORTEST_SECONDS:
        shown = math.floor(seconds * 10) / 10  # never the limit itself
        raise Invalid(f"The recording is only {shown} seconds long. Please record at least 3 seconds of speech.")
    if seconds > LONGEST_SECONDS + (0.0 if kind == "wav" else PADDING_SECONDS):
        shown = math.ceil(seconds * 10) / 10
        raise Invalid(f"The recording is {shown} seconds long. Please use at most 60 seconds.")
    return kind


async def _store(parts: Parts, wanted: NewVoice) -> Voice:
    async with parts.database.transaction() as connection:
        return present(await voices.insert(connection, wanted))


class _Enrollment:
    """One caller's part in buying one voice."""

    def __init__(self, parts: Parts, wanted: NewVoice, recording: bytes, kind: ReferenceKind) -> None:
        self._parts = parts
        self._wanted = wanted
        self._recording = recording
        self._kind = kind

    async def run(self) -> Voice:
        """Buy the voice, or wait for whoever is buying it.

        Raises:
            ProviderError: As the buyer was refused.
        """
        deadline = asyncio.get_running_loop().time() + LOOK_FOR_SECONDS
        turned_away = False
        while True:
            purchase = await self._look()
            if purchase is not None and purchase.user_id != self._wanted.user_id:
                raise NotFound("This voice does not exist.")
            if purchase is not None and purchase.state == "done":
                # Its row is there, unless somebody deleted it past us: then it comes back with what was paid for.
                return await _store(self._parts, self._bought(purchase.outcome or {}))
            if turned_away and purchase is not None and purchase.state in ("refused", "unknown"):
                raise refusal_of(purchase)
            async with self._parts.database.transaction() as connection:
                before = await purchases.find(connection, self._wanted.id, locked=True)
                attempt = await purchases.claim(connection, self._wanted.id, kind="clone", user_id=self._wanted.user_id)
            if attempt is not None:
                return await self._buy(attempt, before)
            turned_away = True
            if asyncio.get_running_loop().time() > deadline:
                raise ProviderUnavailable("This voice is still being created. Please try again in a moment.")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _look(self) -> Purchase | None:
        async with self._parts.database.connection() as connection:
            return await purchases.find(connection, self._wanted.id)

    def _bought(self, facts: dict[str, Any]) -> NewVoice:
        """The voice with what the provider said of it, as ``outcome`` keeps it."""
        return msgspec.structs.replace(self._wanted, provider_voice_kind="vc", **facts)

    async def _buy(self, attempt: int, before: Purchase | None) -> Voice:
        parts, voice_id = self._parts, self._wanted.id
        called_at = _called_at(before)
        try:
            created = await self._created_before(before)
            if created is None:
                called_at = None
                created = await self._create()
        except ProviderError as exc:
            await settle(parts, voice_id, attempt, exc, called_at=called_at)
            raise
        except AudioError as exc:
            refused = ProviderRejected(str(exc), status=400)
            await settle(parts, voice_id, attempt, refused)
            raise refused from exc
        except StorageUnavailable as exc:
            await settle(parts, voice_id, attempt, ProviderUnavailable(exc.detail, diagnostics={"text_sent": False}))
            raise
        except asyncio.CancelledError:
            await say_unknown(parts, voice_id, attempt, called_at=called_at)
            raise
        return await self._keep(attempt, created)

    async def _created_before(self, before: Purchase | None) -> CreatedVoice | None:
        """The voice that an earlier attempt has created; None where certainly none has.

        Raises:
            ProviderTimeout: Nobody can say yet: the provider does not list its voices, or is perhaps still at it.
            ProviderError: The provider does not list its voices, and the earlier attempt was refused anyway.
        """
        if before is None or _was_refused_for_good(before):
            return None
        settings = self._parts.settings
        try:
            async with asyncio.timeout(FIND_SECONDS):
                found = await self._parts.providers.customization.find("vc", purchases.provider_name(self._wanted.id))
        except (ProviderError, TimeoutError) as exc:
            if before.state == "refused" and isinstance(exc, ProviderError):
                raise
            facts = exc.diagnostics if isinstance(exc, ProviderError) else {}
            raise ProviderTimeout(_UNANSWERED, diagnostics={**facts, "code": "not_listed"}) from exc
        if found is not None:
            model = found.target_model or settings.qwen_vc_target_model
            return CreatedVoice(voice_id=found.voice_id, target_model=model)
        if _may_still_come(before, settings.deadlines.customization_settles_seconds):
            raise ProviderTimeout(_UNANSWERED, diagnostics={"code": "not_decided"})
        return None

    async def _create(self) -> CreatedVoice:
        wanted = self._wanted
        recording = await self._for_the_provider()
        try:
            return await self._parts.providers.customization.clone(
                preferred_name=purchases.provider_name(wanted.id),
                recording=recording,
                mime=REFERENCE_MIME_TYPES[self._kind],
                target_model=self._parts.settings.qwen_vc_target_model,
                transcript=wanted.reference_transcript,
                language=wanted.language,
            )
        except ProviderTimeout as exc:
            raise ProviderTimeout(_UNANSWERED, diagnostics=exc.diagnostics) from exc

    async def _for_the_provider(self) -> bytes | str:
        """The recording as the provider takes it: a WAV as 24 kHz mono, and a link where the store can be reached."""
        recording = self._recording
        if self._kind == "wav":
            recording = await asyncio.to_thread(to_reference_wav, self._recording)
        if not self._parts.storage.public or recording != self._recording:
            return recording
        return await self._parts.storage.signed_get(
            Bucket.REFERENCES,
            self._wanted.reference_object_key,
            expires_seconds=PROVIDER_LINK_SECONDS,
            filename=f"reference.{self._kind}",
        )

    async def _keep(self, attempt: int, created: CreatedVoice) -> Voice:
        """Voice row and ``done`` in one transaction; what was paid for is not given up while the database is away."""
        facts = {
            "provider_voice_id": created.voice_id,
            "provider_target_model": created.target_model,
            "provider_region": self._parts.settings.dashscope_region,
            "provider_request_id": created.request_id or None,
        }
        voice = self._bought(facts)

        async def keep(connection: "Connection") -> Voice | None:
            stored = await voices.insert(connection, voice)
            await purchases.decide(
                connection, voice.id, "done", attempt=attempt, request_id=created.request_id or None, outcome=facts
            )
            return stored

        return present(await written(self._parts, keep, {"voice_id": str(voice.id), **facts}))


def _was_refused_for_good(before: Purchase) -> bool:
    """Whether an attempt was refused in a way that leaves no doubt. A gateway's 502 may hide a success."""
    outcome = before.outcome or {}
    sent = outcome.get("diagnostics", {}).get("text_sent", True)
    return before.state == "refused" and not (outcome.get("category") == "provider_unavailable" and sent)


def _called_at(before: Purchase | None) -> datetime | None:
    """When the call left whose end nobody knows; at the latest, where that was not written down."""
    if before is None or before.state == "refused":
        return None
    told = (before.outcome or {}).get("called_at") if before.state == "unknown" else None
    return datetime.fromisoformat(told) if told else before.updated_at


def _may_still_come(before: Purchase, settles_seconds: float) -> bool:
    """Whether the provider may still be at a call that we have heard no end of: its own calls last up to 300 s."""
    called_at = _called_at(before)
    if called_at is None:
        return False
    if before.state == "unknown" and (before.outcome or {}).get("diagnostics", {}).get("code") in _OVER:
        return False
    now = before.updated_at + timedelta(seconds=before.age_seconds)
    return now - called_at < timedelta(seconds=settles_seconds)


async def written(parts: Parts, work: "Callable[[Connection], Awaitable[T]]", facts: dict[str, Any]) -> T:
    """Write what the provider has answered, for as long as it may take the database to come back.

    Raises:
        DatabaseUnavailable: It did not. What must not be forgotten is in one error line; the lease has the rest.
    """
    try:
        return await parts.database.patiently(work, for_seconds=WRITE_SECONDS)
    except REFUSED as exc:
        logger.exception("bought, but not stored: the next try adopts it", extra=facts)
        raise DatabaseUnavailable from exc


async def settle(
    parts: Parts,
    subject: UUID,
    attempt: int,
    exc: ProviderError,
    *,
    part: int = 0,
    called_at: datetime | None = None,
) -> None:
    """Write down how a purchase was refused, or that nobody knows. A lost database leaves it to the lease.

    Args:
        called_at: When the call left that nobody knows the end of, if it was not this attempt's.
    """
    state: Literal["unknown", "refused"] = "unknown" if isinstance(exc, ProviderTimeout) else "refused"
    request_id = exc.diagnostics.get("request_id") or None

    async def decide(connection: "Connection") -> bool:
        return await purchases.decide(
            connection,
            subject,
            state,
            attempt=attempt,
            part=part,
            request_id=request_id,
            outcome={
                "detail": exc.detail,
                "status": exc.status,
                "category": exc.category,
                "diagnostics": exc.diagnostics,
                **({"called_at": called_at.isoformat()} if called_at else {}),
            },
        )

    try:
        await parts.database.patiently(decide, for_seconds=WRITE_SECONDS)
    except REFUSED:
        logger.exception("a refusal could not be written down", extra={"subject": str(subject)})


async def say_unknown(
    parts: Parts, subject: UUID, attempt: int, *, part: int = 0, called_at: datetime | None = None
) -> None:
    """Write down, while being cut off in the middle of a call, that nobody will know what became of it."""
    cut_off = ProviderTimeout(diagnostics={"code": "cut_off"})
    with anyio.move_on_after(LAST_WORDS_SECONDS, shield=True):
        await settle(parts, subject, attempt, cut_off, part=part, called_at=called_at)


def refusal_of(purchase: Purchase) -> ProviderError:
    """The error that the buyer met, for somebody who waited for him."""
    outcome = purchase.outcome or {}
    kinds: dict[str, type[ProviderError]] = {
        "provider_rejected": ProviderRejected,
        "provider_unavailable": ProviderUnavailable,
        "timeout": ProviderTimeout,
    }
    kind = kinds.get(str(outcome.get("category")), ProviderTimeout)
    return kind(outcome.get("detail"), status=outcome.get("status"), diagnostics=outcome.get("diagnostics"))
