"""Enrolling a cloned voice at the provider exactly once, whoever asks for it, how often, and whatever breaks.

The provider bills each creation and knows no idempotency key. So one caller at a time holds the purchase, and after a
call with a doubtful end the voice is looked for under its own name, for as long as the provider may still be at it,
before another call is made (docs/architecture.md, "Purchases").
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec

from server.audio import REFERENCE_MIME_TYPES, AudioError, Recording, ReferenceKind, for_other_readers, to_reference_wav
from server.database.connections import REFUSED, Connection
from server.errors import (
    Conflict,
    Invalid,
    NotFound,
    Overloaded,
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    StorageUnavailable,
)
from server.jobs.buying import record_failure, refusal_of, say_not_called, say_unknown, written
from server.jobs.own import require_voice
from server.parts import Parts
from server.providers.qwen.customization import CreatedVoice, Kind, speaking_model
from server.providers.qwen.voice_enrollment import UNDEPLOYED
from server.records import purchases, voices
from server.records.purchases import Doubt, Purchase
from server.records.voices import NewVoice, Voice
from server.storage import Bucket

logger = logging.getLogger(__name__)

PROVIDER_LINK_SECONDS = 600
# Losers of the claim read the row.
READ_EVERY_SECONDS = 0.25
# One look at the provider's list, how long a caller waits for a voice to turn up there, and how often it looks.
# Together with the call this stays within the lease.
FIND_SECONDS = 25.0
WAIT_SECONDS = 20.0
POLL_EVERY_SECONDS = 2.0
# How long a caller waits until few enough recordings are in memory.
MEMORY_SECONDS = 60.0
_UNANSWERED = (
    "The speech provider did not say whether it has created this voice. "
    "Please try again in a few minutes: you will not pay twice."
)


class _Overtaken(Exception):
    """A row has come to be between looking for it and claiming it; what it says must be known first."""


@asynccontextmanager
async def in_memory(parts: Parts) -> AsyncIterator[None]:
    """Room for one recording, so that many at once take turns and not all the memory.

    Raises:
        Overloaded: There was none for a minute.
    """
    try:
        async with asyncio.timeout(MEMORY_SECONDS):
            await parts.recordings.acquire()
    except TimeoutError as exc:
        parts.metrics.refused("recordings")
        raise Overloaded("Many voices are being created right now. Please try again in a moment.") from exc
    try:
        yield
    finally:
        parts.recordings.release()


class Enrollment:
    """One caller's part in buying one voice.

    Args:
        fetch: Reads the recording and checks it; raises Invalid for one that cannot be used. Only the buyer calls it.
        subject: What the purchase is for, where it is not the first making of the voice.
    """

    _kind: Kind

    def __init__(
        self,
        parts: Parts,
        wanted: NewVoice,
        fetch: Callable[[], Awaitable[tuple[bytes, Recording]]],
        *,
        subject: UUID | None = None,
    ) -> None:
        self._parts = parts
        self._subject = subject or wanted.id
        self._wanted = wanted
        self._fetch = fetch
        self._model, self._kind = parts.settings.qwen_vc_target_model, "vc"
        self._service = parts.providers.clone_service
        self._called = False  # a call that may be billed has left, or is about to

    async def run(self) -> Voice:
        """Buy the voice, or wait for whoever is buying it.

        Raises:
            ProviderError: As the buyer was refused.
        """
        deadline = asyncio.get_running_loop().time() + self._parts.settings.deadlines.enrollment_seconds
        turned_away = False
        while True:
            purchase = await self._read()
            if purchase is not None and purchase.user_id != self._wanted.user_id:
                raise NotFound("This voice does not exist.")
            if purchase is not None and purchase.state == "done":
                # Its row is there, unless it was deleted in the database: then it comes back with what was paid for.
                return await self._again(self._bought(purchase.outcome or {}))
            if turned_away and purchase is not None and purchase.state in ("refused", "unknown"):
                raise refusal_of(purchase)
            if purchase is None or not purchase.leased:
                async with in_memory(self._parts):
                    claimed = await self._claim()
                    if claimed is not None:
                        return await self._buy(*claimed)
            turned_away = True
            if asyncio.get_running_loop().time() > deadline:
                raise ProviderUnavailable("This voice is still being created. Please try again in a moment.")
            await asyncio.sleep(READ_EVERY_SECONDS)

    async def _put(self, connection: Connection, voice: NewVoice) -> Voice | None:
        """Write the voice that was bought."""
        return await voices.insert(connection, voice)

    async def _again(self, voice: NewVoice) -> Voice:
        async with self._parts.database.transaction() as connection:
            return require_voice(await self._put(connection, voice))

    async def _read(self) -> Purchase | None:
        async with self._parts.database.connection() as connection:
            return await purchases.find(connection, self._subject)

    def _bought(self, facts: dict[str, Any]) -> NewVoice:
        """The voice with what the provider said of it, as ``outcome`` keeps it."""
        return msgspec.structs.replace(self._wanted, **{"provider_voice_kind": self._kind, **facts})

    async def _claim(self) -> tuple[int, Purchase | None] | None:
        """The attempt that is ours to make, and what became of the one before; None where somebody else is buying."""
        subject, user_id = self._subject, self._wanted.user_id
        while True:
            try:
                async with self._parts.database.transaction() as connection:
                    before = await purchases.find(connection, subject, locked=True)
                    attempt = await purchases.claim(connection, subject, kind="clone", user_id=user_id)
                    if attempt is None:
                        return None
                    if before is None and attempt > 1:
                        raise _Overtaken
                    return attempt, before
            except _Overtaken:
                continue

    async def _buy(self, attempt: int, before: Purchase | None) -> Voice:
        parts, subject = self._parts, self._subject
        doubt, self._called = purchases.doubt_of(before), False
        try:
            created = await self._created_before(doubt) if doubt else None
            if created is None:
                doubt = None
                created = await self._make()
        except ProviderError as exc:
            await parts.retirements.note(exc, self._service)
            await record_failure(parts, subject, attempt, exc, doubt=doubt)
            raise
        except Conflict:
            await say_not_called(parts, subject, attempt)
            raise
        except (AudioError, Invalid) as exc:
            await self._unusable(attempt, exc)
            raise Invalid(str(exc)) from exc
        except StorageUnavailable as exc:
            await record_failure(
                parts, subject, attempt, ProviderUnavailable(exc.detail, diagnostics={"text_sent": False})
            )
            raise
        except asyncio.CancelledError:
            if self._called or doubt:
                await say_unknown(parts, subject, attempt, doubt=doubt)
            else:
                await say_not_called(parts, subject, attempt)
            raise
        return await self._keep(attempt, created)

    async def _unusable(self, attempt: int, exc: Exception) -> None:
        """Nothing can be bought with this recording: nothing is kept of a first attempt, and of a later one why."""
        if attempt > 1:
            refused = ProviderRejected(str(exc), status=400, diagnostics={"text_sent": False})
            await record_failure(self._parts, self._subject, attempt, refused)
            return
        try:
            async with self._parts.database.transaction() as connection:
                await purchases.take_back(connection, self._subject, attempt=attempt)
        except REFUSED:
            logger.warning("a claim could not be taken back; it lapses", extra={"subject": str(self._subject)})

    async def _created_before(self, doubt: Doubt) -> CreatedVoice | None:
        """The voice that a doubtful call has created; None where certainly none will come of it any more.

        Raises:
            ProviderTimeout: Nobody can say yet: the provider does not list its voices, or is perhaps still at it.
            ProviderError: The provider does not list its voices, and most likely it has refused the call, too.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            if found := await self._find(doubt):
                return found
            left = self._in_flight_seconds(doubt) - doubt.age_seconds - (clock() - began)
            if left <= 0:
                return None
            if left > WAIT_SECONDS:
                raise ProviderTimeout(_UNANSWERED, diagnostics={"code": "not_decided"})
            await asyncio.sleep(min(left, POLL_EVERY_SECONDS))

    def _in_flight_seconds(self, doubt: Doubt) -> float:
        """How long after a call ended for us the provider may still be carrying it out."""
        deadlines = self._parts.settings.deadlines
        match doubt.code:
            case "refused" | "unreadable_answer":
                return 0.0  # it has answered
            case "broken_off" | "gateway":
                return deadlines.customization_broken_seconds
            case "died":  # counted from the claim, and the call may have left only after a long look
                return deadlines.customization_in_flight_seconds + WAIT_SECONDS + 2 * FIND_SECONDS
        return deadlines.customization_in_flight_seconds

    async def _find(self, doubt: Doubt) -> CreatedVoice | None:
        name, model = purchases.provider_name(self._subject), self._model
        try:
            async with asyncio.timeout(FIND_SECONDS):
                found = await self._parts.providers.maker(model).find(self._kind, name)
        except (ProviderError, TimeoutError) as exc:
            if doubt.code in ("refused", "gateway") and isinstance(exc, ProviderError):
                raise
            if isinstance(exc, ProviderRejected) and exc.diagnostics.get("code") == UNDEPLOYED:
                raise
            if isinstance(exc, ProviderTimeout) and exc.diagnostics.get("code") == "deploying":
                raise
            facts = exc.diagnostics if isinstance(exc, ProviderError) else {}
            raise ProviderTimeout(_UNANSWERED, diagnostics={**facts, "code": "not_listed"}) from exc
        if found is None:
            return None
        return CreatedVoice(voice_id=found.voice_id, target_model=speaking_model(found.target_model, model))

    async def _make(self) -> CreatedVoice:
        """Have the voice made: the call that may be billed."""
        recording, kind = await self._for_the_provider()
        return await self._create(recording, REFERENCE_MIME_TYPES[kind])

    async def _create(self, recording: bytes | str, mime: str) -> CreatedVoice:
        wanted, model = self._wanted, self._model
        self._called = True
        try:
            return await self._parts.providers.maker(model).clone(
                preferred_name=purchases.provider_name(self._subject),
                recording=recording,
                mime=mime,
                target_model=model,
                transcript=wanted.reference_transcript,
                language=wanted.language,
            )
        except ProviderTimeout as exc:
            detail = exc.detail if exc.diagnostics.get("code") == "deploying" else _UNANSWERED
            raise ProviderTimeout(detail, diagnostics=exc.diagnostics) from exc

    async def _for_the_provider(self) -> tuple[bytes | str, ReferenceKind]:
        """The recording as the provider takes it: a WAV as 24 kHz mono, and a link where the store can be reached."""
        stored, about = await self._fetch()
        return await self._sendable(stored, about)

    async def _sendable(self, stored: bytes, about: Recording) -> tuple[bytes | str, ReferenceKind]:
        if about.kind == "wav":
            wanted = await asyncio.to_thread(to_reference_wav, memoryview(stored)[about.start :])
        else:
            wanted = for_other_readers(stored, about)
        if not self._parts.storage.public or wanted != stored:
            return wanted, about.kind
        link = await self._parts.storage.signed_get(
            Bucket.REFERENCES,
            self._wanted.reference_object_key,
            expires_seconds=PROVIDER_LINK_SECONDS,
            filename=f"reference.{about.kind}",
        )
        return link, about.kind

    def _facts(self, created: CreatedVoice) -> dict[str, Any]:
        """What the provider said of the voice, as the purchase keeps it and the row has it."""
        return {
            "provider_voice_id": created.voice_id,
            "provider_target_model": created.target_model,
            "provider_voice_kind": self._kind,
            "provider_region": self._parts.settings.dashscope_region,
            "provider_request_id": created.request_id or None,
        }

    async def _keep(self, attempt: int, created: CreatedVoice) -> Voice:
        """Voice row and ``done`` in one transaction; what was paid for is not given up while the database is away."""
        facts = self._facts(created)
        voice = self._bought(facts)

        async def keep(connection: Connection) -> Voice | None:
            stored = await self._put(connection, voice)
            await purchases.decide(
                connection, self._subject, "done", attempt=attempt, request_id=created.request_id or None, outcome=facts
            )
            return stored

        return require_voice(await written(self._parts, keep, {"voice_id": str(voice.id), **facts}))
