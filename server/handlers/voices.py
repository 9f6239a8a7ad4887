"""/api/voices: the library."""

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from server.contract import Ok, Pagination, RenewAnswer, VoiceChange, VoicesAnswer
from server.errors import NotFound
from server.handlers.links import answer_with_link
from server.handlers.present import voice_entry
from server.handlers.requests import (
    bearer,
    json_response,
    page_query,
    parts_of,
    path_uuid,
    query_choice,
    query_text,
    read_json,
)
from server.jobs.renew import submit
from server.jobs.requirements import require_name
from server.records import voices
from server.storage import Bucket

_SUFFIXES = {"audio/mpeg": ".mp3", "audio/mp4": ".m4a", "audio/x-m4a": ".m4a"}


async def list_voices(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    asked = page_query(request, default_per_page=100)
    async with parts.long_reads.turn(user_id), parts.database.connection() as connection:
        found, total = await voices.page(
            connection,
            user_id,
            search=query_text(request, "search"),
            words=query_text(request, "q"),
            source=query_choice(request, "source", ("uploaded", "designed")),
            limit=asked.per_page,
            offset=asked.offset,
        )
    return json_response(
        VoicesAnswer(
            [voice_entry(parts, voice) for voice in found],
            Pagination.of(page=asked.page, per_page=asked.per_page, total=total),
        )
    )


async def get_preview(request: Request) -> Response:
    """302 to the recording that the voice was made from."""
    parts = parts_of(request)
    user_id = await bearer(request)
    voice_id = path_uuid(request, "voice_id")
    async with parts.database.connection() as connection:
        voice = await voices.find(connection, voice_id, user_id)
    if voice is None:
        raise NotFound("This voice does not exist.")
    key = voice.reference_object_key
    stored = await parts.storage.head(Bucket.REFERENCES, key) if key else None
    if not key or stored is None:
        raise NotFound("This voice has no recording.")
    # The key always ends in .wav; what was uploaded may be something else.
    name = f"utter-voice-{voice.id}{_SUFFIXES.get(stored.content_type or '', '.wav')}"
    return await answer_with_link(request, Bucket.REFERENCES, key, name)


async def change_voice(request: Request) -> Response:
    """Rename a voice, or mark it as the one that speaks where a program names none."""
    parts = parts_of(request)
    user_id = await bearer(request)
    voice_id = path_uuid(request, "voice_id")
    wanted = await read_json(request, VoiceChange)
    async with parts.database.transaction() as connection:
        voice = await voices.change(
            connection,
            voice_id,
            user_id,
            name=None if wanted.name is UNSET else require_name(wanted.name),
            default=None if wanted.default is UNSET else wanted.default,
        )
    if voice is None:
        raise NotFound("This voice does not exist.")
    return json_response(voice_entry(parts, voice))


async def renew_voice(request: Request) -> Response:
    """Make a voice again that its provider has no model for any more; its task tells when it can speak."""
    parts = parts_of(request)
    user_id = await bearer(request)
    task_id = await submit(parts, user_id, path_uuid(request, "voice_id"))
    return json_response(RenewAnswer(task_id))


async def delete_voice(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    voice_id = path_uuid(request, "voice_id")
    async with parts.database.connection() as connection:
        if not await voices.delete(connection, voice_id, user_id):
            raise NotFound("This voice does not exist.")
    return json_response(Ok())
