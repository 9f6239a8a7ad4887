"""What a client of the OpenAI-shaped door wants, in our own words: which voice, how, and whether it asks again."""

import hashlib
from uuid import UUID

import msgspec

from server.contract import GenerateRequest, SpeechWanted
from server.errors import Invalid, Overloaded
from server.jobs import cancel
from server.jobs.generate import Origin, submit
from server.jobs.requirements import require_text
from server.parts import Parts
from server.records import purchases, speech, tasks, usage, voices
from server.records.tasks import SpeechTask
from server.records.voices import Voice

#: OpenAI's own voices: some clients refuse to send any other name.
OPENAI_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
#: What OpenAI's own interface takes.
OPENAI_TEXT_CHARS = 4096
FORMATS = ("mp3", "wav", "pcm")
SLOWEST, FASTEST = 0.5, 2.0
NAMES_AT_MOST = 30
# Nobody begins it in the moment in which its client is told that nobody has.
_BEFORE_SECONDS = 0.25

FULL = "Too many people are speaking right now, so this was not begun. Please try again in a moment."


async def speak(
    parts: Parts,
    user_id: UUID,
    wanted: SpeechWanted,
    *,
    key: str | None,
    key_id: UUID | None,
    client: str | None,
    asks_again: bool,
) -> SpeechTask:
    """Start the speech, or find the one that the same request has started before.

    Args:
        key: The client's ``Idempotency-Key``.
        key_id: The key that it signed in with, if it was one.
        client: Which program it is.
        asks_again: The client says that it has sent the same request a moment ago.

    Raises:
        Invalid, NotFound, Conflict, Overloaded, TooMany: Nothing was created then.
        ProviderError: Where the provider takes jobs, and did not take this one; what was created has failed.
    """
    cap = max(OPENAI_TEXT_CHARS, parts.settings.qwen_max_text_chars)
    try:
        text = require_text(parts, wanted.input, cap=cap)
    except Invalid as exc:
        exc.param = "input"
        raise
    audio_format = wanted.response_format or "mp3"
    if audio_format not in FORMATS:
        raise Invalid(f"`response_format` must be one of: {', '.join(FORMATS)}.")
    voice = await choose_voice(parts, user_id, wanted.voice_name)
    lane = parts.providers.require_lane(voice)
    speed = min(FASTEST, max(SLOWEST, wanted.speed or 1.0))
    request = GenerateRequest(
        voice_id=voice.id,
        text=text,
        format="mp3" if audio_format == "mp3" else "wav",
        speed=speed if speed != 1.0 and "speed" in lane.varies else None,
    )
    origin = Origin(
        key_id=key_id,
        client=client,
        max_text_chars=cap,
        body=wanted,
        attended_hash=hashlib.sha256(msgspec.json.encode(wanted)).digest(),
        asks_again=asks_again,
        begun_within_seconds=max(0.0, parts.settings.deadlines.door_wait_seconds - _BEFORE_SECONDS),
        instruction=wanted.instructions if lane.instructs else None,
    )
    return await submit(parts, user_id, request, key, origin)


async def choose_voice(parts: Parts, user_id: UUID, named: str) -> Voice:
    """The voice that a client means: by its id, else by its name, else its user's default.

    Raises:
        Invalid: There is none, or the name means several.
    """
    async with parts.database.connection() as connection:
        if named:
            voice_id = _uuid(named)
            if voice_id and (voice := await voices.find(connection, voice_id, user_id)):
                return voice
            found = await voices.named(connection, user_id, named)
            if len(found) > 1:
                ids = ", ".join(str(voice.id) for voice in found)
                raise Invalid(f"You have several voices of that name. Name one by its id: {ids}.", param="voice")
            if found:
                return found[0]
        mine = await voices.newest(connection, user_id)
    if named and named.casefold() not in OPENAI_VOICES:
        raise Invalid(_unknown(mine), param="voice")
    default = next((voice for voice in mine if voice.is_default), None)
    voice = default or next((voice for voice in mine if parts.providers.objection(voice) is None), None)
    if voice is None:
        raise Invalid("You have no voice that can speak yet. Clone or design one first.", param="voice")
    return voice


def _unknown(mine: list[Voice]) -> str:
    if not mine:
        return "There is no such voice, and you have none yet. Clone or design one first."
    names = ", ".join(voice.name for voice in mine[:NAMES_AT_MOST])
    more = f", and {len(mine) - NAMES_AT_MOST} more" if len(mine) > NAMES_AT_MOST else ""
    return f"There is no such voice. Yours are: {names}{more}."


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if len(text) == 36 else None
    except ValueError:
        return None


async def give_up_waiting(parts: Parts, user_id: UUID, task_id: UUID) -> None:
    """Take a speech back that has waited for so long that its client will not, if nothing was bought for it yet.

    Raises:
        Overloaded: It was taken back, and the history shows nothing of it.
    """
    async with parts.database.connection() as connection:
        task = await tasks.find(connection, task_id, user_id)
        if task is None or task.terminal or task.generation_id is None:
            return
        # Of what is being spoken, only what is bought piece by piece has a record of whether anything was.
        in_pieces = task.run_state == "speaking" and task.provider_status == "provider_synthesizing"
        if task.run_state != "queued" and not in_pieces:
            return
        if await purchases.any_of(connection, task_id):
            return
        account = await speech.account_of(connection, task.generation_id)
    await cancel.delete_generation(parts, user_id, task.generation_id)
    async with parts.database.transaction() as connection:
        await tasks.hide(connection, task_id)
        if account:
            characters = task.text_length
            await usage.take_back_start(connection, account, characters, task.created_at)
    parts.metrics.refused("queue")
    raise Overloaded(FULL, retry_after_seconds=5)
