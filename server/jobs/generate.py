"""Taking a text to be spoken: checked, then its rows and its job in one transaction."""

import hashlib
import unicodedata
from uuid import UUID, uuid4

import asyncpg
import msgspec

from server.audio import format_named
from server.contract import GenerateRequest
from server.database import Connection
from server.errors import Conflict, Invalid, NotFound, Overloaded
from server.jobs import modal
from server.objects import audio_key
from server.parts import Parts
from server.records import idempotency, purchases, runs, speech, tasks, voices
from server.records.runs import SYNTHESIZE_JOB, WATCH_MODAL_JOB
from server.records.speech import NewSpeech
from server.records.tasks import SpeechTask

# What browsers trim: everything that Python calls a blank, and the byte order mark.
_BLANKS = "".join(letter for letter in map(chr, range(0x3001)) if letter.isspace()) + "\ufeff"
# Controls, marks without a shape (a joiner, for instance), and separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})

IN_PROGRESS = "A generation is already in progress. Please wait for it to finish, or cancel it."


def is_visible(text: str) -> bool:
    """Whether anything of a text can be seen."""
    return not all(unicodedata.category(letter) in _INVISIBLE for letter in text)


def count_characters(text: str) -> int:
    """Characters as browsers count them: UTF-16 code units, so most emoji are two."""
    return len(text.encode("utf-16-le")) // 2


def minutes_estimated(characters: int) -> float:
    """The contract's estimate for a text of so many characters."""
    return max(0.1, round(characters / 375, 1))


async def submit(parts: Parts, user_id: UUID, request: GenerateRequest, key: str | None) -> SpeechTask:
    """Start a generation, or find the one that the same request has started before.

    Args:
        key: The client's ``Idempotency-Key``.

    Raises:
        Invalid, NotFound, Conflict, Overloaded: As contract §4 says; nothing was created then.
        ProviderError: Where the provider takes jobs, and did not take this one; what was created has failed.
    """
    request_hash = _hash(request)
    if key and (known := await _known(parts, user_id, key, request_hash)):
        return await _decided(parts, known)
    text = request.text.strip(_BLANKS)
    language = checked_language(parts, request.language)
    characters = _checked_length(parts, text)
    async with parts.database.connection() as connection:
        voice = await voices.find(connection, request.voice_id, user_id)
    if voice is None:
        raise NotFound("This voice does not exist.")
    if parts.providers.abilities.takes_jobs and voice.reference_is_foreign:
        raise NotFound("This voice does not exist.")  # such a provider is sent the recording with every text
    lane = parts.providers.check(voice)
    submits = lane.begins == "submitted"
    reference = await modal.fetch_reference(parts, voice) if submits else None
    audio_format = lane.audio_format(format_named(parts.settings.qwen_default_response_format))
    generation_id = uuid4()
    wanted = NewSpeech(
        task_id=uuid4(),
        generation_id=generation_id,
        user_id=user_id,
        voice_id=voice.id,
        text=text,
        text_length=characters,
        language=language,
        provider=voice.tts_provider,
        model=voice.provider_target_model,
        format_name=audio_format.name,
        object_key=audio_key(user_id, generation_id, audio_format.name),
        job_name=WATCH_MODAL_JOB if submits else SYNTHESIZE_JOB,
        in_seconds=parts.settings.deadlines.modal_watch_seconds if submits else 0.0,
    )
    try:
        task = await _create(parts, wanted, key, request_hash)
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


async def _decided(parts: Parts, task: SpeechTask) -> SpeechTask:
    """The task that another request has made, once that one can be answered."""
    return await modal.settled(parts, task) if parts.providers.abilities_of(task.provider).takes_jobs else task


async def _create(parts: Parts, wanted: NewSpeech, key: str | None, request_hash: bytes) -> SpeechTask:
    async with parts.database.transaction() as connection:
        if key and (first := await idempotency.remember(connection, wanted.user_id, key, request_hash, wanted.task_id)):
            return await _first_answer(connection, wanted.user_id, first, request_hash)
        limit = parts.settings.queue_limit
        if await runs.waiting(connection, wanted.job_name, limit) >= limit:
            raise Overloaded
        await speech.create(connection, parts.queue, wanted)
        if wanted.job_name == WATCH_MODAL_JOB:
            await purchases.claim(
                connection,
                wanted.task_id,
                kind="modal",
                user_id=wanted.user_id,
                lease_seconds=parts.settings.deadlines.modal_no_id_seconds,
            )
        return await tasks.get(connection, wanted.task_id)


async def _known(parts: Parts, user_id: UUID, key: str, request_hash: bytes) -> SpeechTask | None:
    async with parts.database.connection() as connection:
        first = await idempotency.recall(connection, user_id, key)
        return await _first_answer(connection, user_id, first, request_hash) if first else None


async def _first_answer(
    connection: Connection, user_id: UUID, first: tuple[bytes, UUID], request_hash: bytes
) -> SpeechTask:
    first_hash, task_id = first
    if first_hash != request_hash:
        raise Conflict("This Idempotency-Key was used for a different request.")
    task = await tasks.find(connection, task_id, user_id)
    if task is None:
        raise Conflict("This Idempotency-Key was used for a generation that no longer exists.")
    return task


def _hash(request: msgspec.Struct) -> bytes:
    return hashlib.sha256(type(request).__name__.encode() + msgspec.json.encode(request)).digest()


def checked_language(parts: Parts, name: str) -> str:
    """The language as ``/api/languages`` spells it.

    Raises:
        Invalid: It is none of them.
    """
    for known in parts.providers.abilities.languages:
        if known.casefold() == name.strip().casefold():
            return known
    raise Invalid(f"This language is not supported. Choose one of: {', '.join(parts.providers.abilities.languages)}.")


def _checked_length(parts: Parts, text: str) -> int:
    characters = count_characters(text)
    cap = parts.settings.qwen_max_text_chars
    if characters > cap:
        raise Invalid(f"Text cannot exceed {cap} characters")
    if not is_visible(text):
        raise Invalid("Please enter text to speak")
    return characters
