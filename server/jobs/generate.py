"""Taking a text to be spoken: checked, then its rows and its job in one transaction."""

from functools import partial
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import UNSET

from server import logs
from server.audio import format_named
from server.contract import GenerateRequest
from server.database.connections import Connection
from server.errors import Conflict, Invalid, NotFound, Overloaded, TooMany
from server.jobs import modal
from server.jobs.limits import count_speech
from server.jobs.repeats import Repeatable
from server.jobs.requirements import count_characters, require_language, require_text
from server.jobs.starts import begin
from server.jobs.synthesize import bytes_of
from server.objects import audio_key
from server.parts import Parts
from server.records import attended, purchases, runs, speech, tasks, voices
from server.records.runs import SYNTHESIZE_JOB, WATCH_MODAL_JOB
from server.records.speech import Asked, NewSpeech
from server.records.tasks import SpeechTask
from server.records.usage import Account

SMALL_QUEUE = 10
IN_PROGRESS = "A generation is already in progress. Please wait for it to finish, or cancel it."


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request comes from, and what follows from that.

    Attributes:
        key_id: The key that it was signed in with; None for a sign-in token.
        client: Which program it is, for the history.
        instruction: How to say it, in free words, for a lane that can be told.
        max_text_chars: How long its text may be, where that is not what the settings say.
        body: What tells it from other requests with the same ``Idempotency-Key``; None for the request itself.
        attended_hash: The speech lasts only as long as somebody follows it; this names the request that it answers.
        asks_again: The client has sent the same request a moment ago.
        begun_within_seconds: How long it may wait to be begun, where that is less than for others.
    """

    key_id: UUID | None = None
    client: str | None = None
    instruction: str | None = None
    max_text_chars: int | None = None
    body: msgspec.Struct | None = None
    attended_hash: bytes | None = None
    asks_again: bool = False
    begun_within_seconds: float | None = None


ON_THE_PAGE = Origin()


def most_of_one(queue_limit: int) -> int:
    """How many of the texts that wait may be one user's: half, where there are places enough to be divided."""
    return max(queue_limit // 2, min(queue_limit, SMALL_QUEUE))


async def submit(
    parts: Parts, user_id: UUID, request: GenerateRequest, key: str | None, origin: Origin = ON_THE_PAGE
) -> SpeechTask:
    """Start a generation, or find the one that the same request has started before.

    Args:
        key: The client's ``Idempotency-Key``.

    Raises:
        Invalid, NotFound, Conflict, Overloaded: Refused (docs/api.md, "Speaking a text"); nothing was created then.
        ProviderError: Where the provider takes jobs, and did not take this one; what was created has failed.
    """
    repeatable = Repeatable(user_id, key, origin.body or request)
    async with parts.database.connection() as connection:
        first = await repeatable.first_task(connection)
    if first:
        return await _decided(parts, first)
    language = require_language(parts, request.language)
    text = require_text(parts, request.text, cap=origin.max_text_chars)
    async with parts.database.connection() as connection:
        voice = await voices.find(connection, request.voice_id, user_id)
    if voice is None:
        raise NotFound("This voice does not exist.")
    if parts.providers.abilities.takes_jobs and voice.reference_is_foreign:
        raise NotFound("This voice does not exist.")  # such a provider is sent the recording with every text
    lane = parts.providers.require_lane(voice)
    asked = asked_for(request, origin)
    for name in ("speed", "pitch", "volume"):
        if getattr(asked, name) is not None and name not in lane.varies:
            raise Invalid(f"This voice cannot vary its {name}. Please leave `{name}` out.")
    submits = lane.begins == "submitted"
    reference = await modal.fetch_reference(parts, voice) if submits else None
    preferred = format_named(parts.settings.qwen_default_response_format)
    audio_format = format_named(asked.format) if asked.format else lane.audio_format(preferred)
    generation_id = uuid4()
    wanted = NewSpeech(
        task_id=uuid4(),
        generation_id=generation_id,
        user_id=user_id,
        voice_id=voice.id,
        text=text,
        text_length=count_characters(text),
        language=language,
        provider=voice.tts_provider,
        provider_voice_id=voice.provider_voice_id,
        model=voice.provider_target_model,
        format_name=audio_format.name,
        object_key=audio_key(user_id, generation_id, audio_format.name),
        asked=asked,
        lane=lane.name,
        key_id=origin.key_id,
        job_name=WATCH_MODAL_JOB if submits else SYNTHESIZE_JOB,
        in_seconds=parts.settings.intervals.modal_watch_seconds if submits else 0.0,
        within_seconds=None if submits else origin.begun_within_seconds or parts.settings.deadlines.queue_seconds,
    )
    create = partial(_create, parts, wanted, repeatable, origin)
    try:
        task = await (create(None) if submits else begin(parts, wanted, create))
    except asyncpg.UniqueViolationError as exc:
        # The older system allowed one active generation per user, by an index that may still be there.
        raise Conflict(IN_PROGRESS) from exc
    except asyncpg.ForeignKeyViolationError as exc:
        raise NotFound("This voice does not exist.") from exc
    if task.id != wanted.task_id:
        return await _decided(parts, task)
    if reference:
        return await modal.submit(parts, task, text=text, language=language, reference=reference)
    return task


def asked_for(request: GenerateRequest, origin: Origin) -> Asked:
    """What the request says beyond its text, to be kept with it."""
    return Asked(
        format=request.format or None,
        speed=None if request.speed is UNSET else request.speed,
        pitch=None if request.pitch is UNSET else request.pitch,
        volume=None if request.volume is UNSET else request.volume,
        instruction=origin.instruction,
        client=origin.client,
        request_id=logs.request_id.get(),
    )


async def _decided(parts: Parts, task: SpeechTask) -> SpeechTask:
    """The task that another request has made, once that one can be answered."""
    return await modal.submitted(parts, task) if parts.providers.abilities_of(task.provider).takes_jobs else task


async def _create(
    parts: Parts, wanted: NewSpeech, repeatable: Repeatable, origin: Origin, owner: UUID | None
) -> SpeechTask:
    """Insert the rows, or find those of the first such request.

    Args:
        owner: The process that speaks it, unless somebody waits already: then this waits as well.
    """
    async with parts.database.transaction() as connection:
        if first := await repeatable.claim(connection, wanted.task_id):
            return first
        if origin.attended_hash and origin.asks_again:
            joined = await attended.join(connection, wanted.user_id, origin.attended_hash)
            if joined and (first := await tasks.find(connection, joined, wanted.user_id)):
                return first
        await parts.unstored.require_room(partial(runs.unstored_bytes, connection))
        limit = parts.settings.queue_limit
        waiting = await runs.waiting(connection, wanted.job_name, limit, wanted.user_id)
        if waiting.all >= limit:
            parts.metrics.refused("queue")
            raise Overloaded
        if waiting.of_user >= most_of_one(limit):
            parts.metrics.refused("queue_of_one")
            raise TooMany("Many of your texts are waiting already. Please wait for some of them.")
        if owner is None and wanted.job_name == SYNTHESIZE_JOB:
            size = bytes_of(len(wanted.text))
            await parts.memory.require_room(size, partial(_waiting_bytes, connection, limit))
        await speech.create(connection, parts.queue, wanted, owner=None if waiting.all else owner)
        if origin.attended_hash:
            await attended.add(connection, wanted.task_id, wanted.user_id, origin.attended_hash)
        if wanted.job_name == WATCH_MODAL_JOB:
            await purchases.claim(
                connection,
                wanted.task_id,
                kind="modal",
                user_id=wanted.user_id,
                lease_seconds=parts.settings.deadlines.modal_no_id_seconds,
            )
        made = await tasks.get(connection, wanted.task_id)
        # Last, for until the commit nobody else of this user's texts gets past this row.
        account = Account(wanted.user_id, wanted.lane, wanted.key_id)
        await count_speech(parts, connection, account, wanted.text_length)
        return made


async def _waiting_bytes(connection: Connection, at_most: int) -> int:
    """What the texts that nobody has begun can become."""
    return bytes_of(await runs.waiting_characters(connection, SYNTHESIZE_JOB, at_most))
