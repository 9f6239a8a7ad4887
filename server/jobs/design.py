"""Designing a voice: a preview that is bought once, and the voice that is saved from it.

The provider creates the voice together with its preview, so the preview is the purchase; saving only gives it a name.
What a saved voice needs stands in the purchase, which outlives the preview's task: the page deletes that before it
saves (docs/architecture.md, "Hiding tasks").
"""

import asyncio
import logging
from functools import partial
from typing import Any, Literal
from uuid import UUID, uuid4, uuid5

import anyio

from server.audio import has_sound
from server.contract import DesignPreviewRequest, DesignSaveRequest
from server.database.connections import Connection
from server.errors import (
    Conflict,
    Invalid,
    NotFound,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    StorageUnavailable,
    UtterError,
)
from server.jobs.buying import record_failure, refusal_of, say_unknown, written
from server.jobs.limits import count_made
from server.jobs.own import keep_voice, require_voice
from server.jobs.progress import show
from server.jobs.repeats import Repeatable
from server.jobs.requirements import plain, require_language, require_name, require_speakable
from server.objects import own_key, reference_key
from server.parts import Parts
from server.providers.resolver import DesignedPreview
from server.records import previews, purchases, removals, runs, speech, tasks, voices
from server.records.previews import Preview
from server.records.purchases import Purchase
from server.records.runs import PREVIEW_JOB
from server.records.speech import RESTARTED, Ending
from server.records.tasks import SpeechTask
from server.records.usage import DESIGN, Account
from server.records.voices import NewVoice, Voice
from server.storage import Bucket
from server.text import is_visible

logger = logging.getLogger(__name__)

LARGEST_PREVIEW_BYTES = 10 * 1024 * 1024
SHOW_SECONDS = 1.0
_UNANSWERED = "The speech provider did not answer in time. Please make the preview again."
NOT_DESIGNED = (
    "The speech provider no longer designs voices for this service. Please clone one from a recording, or tell its"
    " operator."
)
_LOST = "The server was restarted while it made this preview. Please make it again."
_VOICES = UUID("6f9b6f2e-3f0c-4f0e-9f0e-5d1c1d6a7c11")  # names the ids of voices after their previews


# --- the preview ------------------------------------------------------------------------------------------------------


async def submit_preview(
    parts: Parts, user_id: UUID, request: DesignPreviewRequest, key: str | None, *, key_id: UUID | None = None
) -> UUID:
    """Start a preview, or find the one that the same request has started before; its task's id.

    Args:
        key: The client's ``Idempotency-Key``.
        key_id: The key that it signed in with, if it was one.

    Raises:
        Invalid, Conflict, Overloaded: Nothing was created then.
    """
    repeatable = Repeatable(user_id, key, request)
    async with parts.database.connection() as connection:
        if first := await repeatable.first_task(connection):
            return first.id
    if not parts.providers.designs:
        raise Conflict(NOT_DESIGNED)
    text, instruct = plain(request.text), plain(request.instruct)
    empty = "Please enter a text to preview and a description of the voice."
    if not is_visible(instruct):
        raise Invalid(empty)
    require_speakable(text, if_empty=empty)
    language = require_language(parts, request.language)
    task_id = uuid4()
    async with parts.database.transaction() as connection:
        if first := await repeatable.claim(connection, task_id):
            return first.id
        await parts.unstored.require_room(partial(runs.unstored_bytes, connection))
        limit = parts.settings.queue_limit
        if (await runs.waiting(connection, PREVIEW_JOB, limit)).all >= limit:
            parts.metrics.refused("queue")
            raise Overloaded
        await count_made(parts, connection, Account(user_id, DESIGN, key_id))
        await previews.create(
            connection,
            parts.queue,
            task_id=task_id,
            user_id=user_id,
            provider=parts.providers.abilities.provider,
            text=text,
            language=language,
            instruct=instruct,
            key_id=key_id,
        )
    return task_id


async def make_preview(parts: Parts, *, task_id: UUID, attempt: int) -> None:
    """Make one preview, if it is still wanted (a job)."""
    preview = await parts.database.patiently(previews.claim, task_id, attempt, parts.leases.owner)
    if preview is None:
        return
    scope = anyio.CancelScope()
    with parts.leases.hold(task_id, attempt, scope.cancel), parts.metrics.session(preview.provider):
        try:
            with scope:
                await _make(parts, preview)
        except UtterError as exc:
            await _fail(parts, preview, exc)
        except Exception:
            logger.exception("preview failed", extra={"task_id": str(task_id)})
            await _fail(parts, preview, UtterError())
        if scope.cancelled_caught and parts.leases.released:
            await _leave(parts, preview)


async def _make(parts: Parts, preview: Preview) -> None:
    await _show(parts, preview, "provider_synthesizing")
    buys = parts.providers.abilities_of(preview.provider).enrolls
    bought = await _bought(parts, preview) if buys else 0
    if bought is None:
        return
    try:
        designed = await parts.providers.design(
            preview.provider,
            name=purchases.provider_name(preview.task_id),
            text=preview.text,
            language=preview.language,
            instruct=preview.instruct,
        )
    except ProviderError as exc:
        await parts.retirements.note(exc, parts.providers.design_service)
        if buys:
            await record_failure(parts, preview.task_id, bought, exc)
        if isinstance(exc, ProviderTimeout):
            raise ProviderTimeout(_UNANSWERED, diagnostics=exc.diagnostics) from exc
        raise
    except asyncio.CancelledError:
        # The call has left; whether it was carried out nobody will know. Reconciliation lists it.
        if buys:
            await say_unknown(parts, preview.task_id, bought)
        raise
    # What has been paid for is kept, whatever happens to the task from here on.
    with anyio.CancelScope(shield=True):
        await _keep(parts, preview, designed, bought)


async def _bought(parts: Parts, preview: Preview) -> int | None:
    """The purchase's attempt, once it is ours; None where there is nothing (more) to buy.

    Raises:
        ProviderTimeout: An earlier attempt may have bought a voice. Its preview cannot be had again, and a second call
            would be a second bill: the task fails, and the purchase stays for reconciliation.
    """

    async def claim(connection: Connection) -> tuple[int | None, Purchase | None]:
        # While the database was away the run may have been taken over, or cancelled.
        if not await runs.holds(connection, preview.task_id, preview.attempt, parts.leases.owner):
            return None, None
        known = await purchases.find(connection, preview.task_id, locked=True)
        if known is not None:
            return None, known
        return await purchases.claim(connection, preview.task_id, kind="design", user_id=preview.user_id), None

    attempt, known = await parts.database.patiently(claim)
    if known is None:
        return attempt
    if known.state == "done":
        await _complete(parts, preview, known.outcome or {}, attempt=None)
        return None
    if known.state == "refused":
        raise refusal_of(known)
    if known.state == "calling" and preview.attempt == 1:
        return known.attempt  # nobody was here before us, nor since: our own claim, whose commit was not heard of
    lost = ProviderTimeout(_LOST, diagnostics={"code": "preview_lost"})
    if known.state == "calling":
        await record_failure(parts, preview.task_id, known.attempt, lost)
    raise lost


async def _keep(parts: Parts, preview: Preview, designed: DesignedPreview, attempt: int) -> None:
    await _show(parts, preview, "provider_persisting")
    outcome = {
        "voice": designed.voice_id,
        "target_model": designed.target_model,
        "region": parts.settings.dashscope_region,
        "request_id": designed.request_id,
        "object_key": preview.object_key,
        "text": preview.text,
        "language": preview.language,
        "instruct": preview.instruct,
    }
    try:
        await _store_preview(parts, preview.object_key, designed.audio)
    except StorageUnavailable:
        await _decide(parts, preview, "unknown", outcome, attempt=attempt or None)
        raise
    await _complete(parts, preview, outcome, attempt=attempt or None)


async def _store_preview(parts: Parts, object_key: str, audio: bytes) -> None:
    """Store a preview, and again for as long as what was paid for may wait for the storage to come back.

    Raises:
        StorageUnavailable: It did not.
    """
    pause, deadline = 0.5, asyncio.get_running_loop().time() + parts.settings.deadlines.preview_storage_seconds
    while True:
        try:
            await parts.storage.put(Bucket.GENERATIONS, object_key, audio, content_type="audio/wav", size=len(audio))
        except StorageUnavailable as exc:
            if asyncio.get_running_loop().time() + pause > deadline:
                raise
            logger.warning("preview not stored, trying again", extra={"reason": repr(exc.__cause__)})
        else:
            return
        await asyncio.sleep(pause)
        pause = min(10.0, pause * 2)


async def _complete(parts: Parts, preview: Preview, outcome: dict[str, Any], *, attempt: int | None) -> None:
    if await _decide(parts, preview, "done", outcome, attempt=attempt):
        parts.metrics.task_ended(preview.provider, "completed", "")
    parts.announcer.changed(preview.task_id)


async def _decide(
    parts: Parts,
    preview: Preview,
    state: Literal["done", "unknown"],
    outcome: dict[str, Any],
    *,
    attempt: int | None,
) -> bool:
    """Write down what was bought, and complete the task where there is a preview to be heard.

    Args:
        attempt: The purchase's; None where nothing was bought (now).
    """
    request_id = outcome["request_id"] or None

    async def decide(connection: Connection) -> bool:
        shown = state == "done" and await previews.complete(connection, preview, request_id=request_id)
        if attempt is not None:
            # A voice whose preview nobody may hear was bought in vain: reconciliation lists it.
            await purchases.decide(
                connection,
                preview.task_id,
                "done" if shown else "unknown",
                attempt=attempt,
                request_id=request_id,
                outcome=outcome,
                give_back_in_seconds=parts.settings.preview_kept_hours * 3600 if shown else None,
            )
        if not shown and state == "done":
            await removals.record(
                connection,
                parts.queue,
                parts.generations_bucket,
                preview.object_key,
                asked_by=None,
                reason="preview cancelled",
            )
        return shown

    facts = {"task_id": str(preview.task_id), "voice": outcome["voice"], "request_id": outcome["request_id"]}
    return await written(parts, decide, facts)


async def _show(parts: Parts, preview: Preview, provider_status: str) -> None:
    """What is paid for must not wait until progress is shown: neither for the database nor for a locked row."""
    await show(parts, preview.task_id, preview.attempt, provider_status, within_seconds=SHOW_SECONDS)


async def _fail(parts: Parts, preview: Preview, exc: UtterError) -> None:
    facts = {"error": exc.diagnostics} if isinstance(exc, ProviderError) else {}
    await _end(parts, preview, Ending(detail=exc.detail, category=exc.category, facts=facts))


async def _leave(parts: Parts, preview: Preview) -> None:
    """This process is leaving in the middle of a call. One that bought a voice cannot be made without paying again."""
    buys = parts.providers.abilities_of(preview.provider).enrolls
    if buys or not await parts.database.patiently_for(
        parts.settings.deadlines.leaving_database_seconds,
        speech.requeue,
        parts.queue,
        preview.task_id,
        preview.attempt,
        reason="server restarted",
    ):
        await _end(parts, preview, Ending(detail=RESTARTED, category="internal"))


async def _end(parts: Parts, preview: Preview, ending: Ending) -> None:
    await parts.endings.end(
        preview.task_id, ending, attempt=preview.attempt, for_seconds=parts.settings.deadlines.purchase_database_seconds
    )


# --- saving -----------------------------------------------------------------------------------------------------------


async def save(parts: Parts, user_id: UUID, request: DesignSaveRequest, audio: bytes | None) -> Voice:
    """The voice of a finished preview, under the name that its user gives it. Never calls a provider.

    Args:
        audio: The preview as the client sent it back. Only a provider that keeps no voices needs it.

    Raises:
        Invalid, NotFound, Conflict: There is no such preview, or it is not (or will not be) finished.
    """
    name, language = require_name(request.name), require_language(parts, request.language)
    if not parts.providers.abilities.enrolls:
        return await _save_recording(parts, user_id, request, name, language, audio)
    async with parts.database.connection() as connection:
        if request.task_id is None:
            purchase = await purchases.newest_preview(
                connection,
                user_id,
                text=plain(request.text),
                language=language,
                instruct=plain(request.instruct),
            )
            if purchase is None:
                raise Invalid("There is no finished preview of this design. Please make the preview again.")
        else:
            purchase = await purchases.find(connection, request.task_id)
            task = await tasks.find(connection, request.task_id, user_id)
            if purchase is None or (purchase.user_id, purchase.kind) != (user_id, "design"):
                raise _unfinished(task)
            if purchase.state == "given_back":
                raise _too_old(parts)
            if purchase.state != "done":
                raise _unfinished(task)
        known = await voices.saved_from(connection, purchase.subject, user_id)
    if known is not None:
        return require_voice(known)
    if purchase.age_seconds > parts.settings.preview_kept_hours * 3600:
        raise _too_old(parts)
    outcome = purchase.outcome or {}
    voice_id = uuid5(_VOICES, str(purchase.subject))
    preview = await _preview_audio(parts, user_id, outcome.get("object_key"))
    # A recording of its own, so that the voice survives its preview, and a provider that clones can be fed with it.
    key = reference_key(user_id, voice_id)
    await parts.storage.put(Bucket.REFERENCES, key, preview, content_type="audio/wav", size=len(preview))
    return await _keep_designed(
        parts,
        purchase.subject,
        NewVoice(
            id=voice_id,
            user_id=user_id,
            name=name,
            reference_object_key=key,
            reference_transcript=str(outcome.get("text", "")),
            language=str(outcome.get("language", language)),
            source="designed",
            description=str(outcome.get("instruct", "")),
            tts_provider=parts.providers.abilities.provider,
            provider_voice_id=outcome.get("voice"),
            provider_target_model=outcome.get("target_model"),
            provider_voice_kind="vd",
            provider_region=outcome.get("region"),
            provider_request_id=outcome.get("request_id") or None,
            preview_task_id=purchase.subject,
        ),
    )


async def _keep_designed(parts: Parts, subject: UUID, wanted: NewVoice) -> Voice:
    """The voice, unless its preview is being given back in this moment: one of the two waits for the other's row."""
    async with parts.database.transaction() as connection:
        if not await purchases.keep(connection, subject):
            raise _too_old(parts)
        return require_voice(await voices.insert(connection, wanted))


async def _save_recording(
    parts: Parts, user_id: UUID, request: DesignSaveRequest, name: str, language: str, audio: bytes | None
) -> Voice:
    """Where the provider keeps no voices, the preview itself is the voice: its recording and what it says."""
    previewed = audio is None and request.task_id is not None
    if request.task_id is not None and previewed:
        async with parts.database.connection() as connection:
            task = await tasks.find(connection, request.task_id, user_id)
            known = await voices.saved_from(connection, request.task_id, user_id)
        if known is not None:
            return require_voice(known)
        if task is None or task.type != "design_preview" or task.status != "completed":
            raise _unfinished(task)
        audio = await _preview_audio(parts, user_id, (task.result or {}).get("object_key"))
    if not audio or not await asyncio.to_thread(has_sound, audio):
        raise Invalid("Please send the preview's audio along, as a WAV file.")
    # The same preview is the same voice, however often it is saved; a bare file is a new one each time.
    voice_id = uuid5(_VOICES, str(request.task_id)) if previewed else uuid4()
    key = reference_key(user_id, voice_id)
    await parts.storage.put(Bucket.REFERENCES, key, audio, content_type="audio/wav", size=len(audio))
    return await keep_voice(
        parts,
        NewVoice(
            id=voice_id,
            user_id=user_id,
            name=name,
            reference_object_key=key,
            reference_transcript=plain(request.text),
            language=language,
            source="designed",
            description=plain(request.instruct),
            tts_provider=parts.providers.abilities.provider,
            preview_task_id=request.task_id if previewed else None,
        ),
    )


async def _preview_audio(parts: Parts, user_id: UUID, object_key: object) -> bytes:
    key = own_key(user_id, object_key)
    if key is None:
        raise Conflict("This preview has no audio. Please make it again.")
    try:
        return await parts.storage.read(Bucket.GENERATIONS, key, limit=LARGEST_PREVIEW_BYTES)
    except NotFound as exc:
        raise Conflict("This preview's audio no longer exists. Please make it again.") from exc


def _too_old(parts: Parts) -> Conflict:
    hours = parts.settings.preview_kept_hours
    age = "a day" if hours == 24 else f"{hours:g} hours"
    return Conflict(f"This preview is older than {age}. Please make it again.")


def _unfinished(task: SpeechTask | None) -> UtterError:
    """Why there is nothing to save."""
    if task is None or task.type != "design_preview":
        return NotFound("This preview does not exist.")
    if not task.terminal:
        return Conflict("This preview is not finished yet. Please wait until you can hear it.")
    if task.status == "completed":
        return Conflict("This preview was made with another speech provider. Please make it again.")
    return Conflict("This preview did not succeed, so it cannot be saved. Please make it again.")
