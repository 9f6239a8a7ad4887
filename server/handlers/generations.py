"""/api/generations: the history, its audio, and starting over from an entry."""

from typing import get_args
from urllib.parse import quote
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from server.contract import GenerationsAnswer, Ok, Pagination, RegenerateAnswer, TaskStatus
from server.errors import Invalid, NotFound
from server.handlers.links import redirect_to_audio
from server.handlers.present import generation_entry
from server.handlers.requests import (
    bearer,
    json_response,
    page_query,
    parts_of,
    path_uuid,
    query_choice,
    query_text,
)
from server.jobs import cancel
from server.parts import Parts
from server.records import history
from server.records.history import Entry

_WHY_SILENT = {
    "pending": "This generation is not finished yet.",
    "processing": "This generation is not finished yet.",
    "failed": "This generation failed, so there is no audio.",
    "cancelled": "This generation was cancelled, so there is no audio.",
}


async def list_generations(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    asked = page_query(request, default_per_page=20)
    async with parts.database.connection() as connection:
        entries, total = await history.page(
            connection,
            user_id,
            search=query_text(request, "search"),
            status=query_choice(request, "status", get_args(TaskStatus)),
            limit=asked.per_page,
            offset=asked.offset,
        )
    return json_response(
        GenerationsAnswer(
            [generation_entry(entry) for entry in entries],
            Pagination.of(page=asked.page, per_page=asked.per_page, total=total),
        )
    )


async def get_audio(request: Request) -> Response:
    """Always a redirect, never the bytes: players follow it once with their token and then use the final address."""
    parts = parts_of(request)
    user_id = await bearer(request)
    entry = await _own_entry(parts, user_id, path_uuid(request, "generation_id"))
    if entry.status != "completed" or not entry.audio_object_key:
        raise NotFound(_WHY_SILENT.get(entry.status, "This generation has no audio."))
    return await redirect_to_audio(parts, entry.audio_object_key, entry.id)


async def delete_generation(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    await cancel.delete_generation(parts, user_id, path_uuid(request, "generation_id"))
    return json_response(Ok())


async def regenerate(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    entry = await _own_entry(parts, user_id, path_uuid(request, "generation_id"))
    if entry.voice_id is None or entry.voice_deleted:
        raise Invalid("The voice of this generation no longer exists. Please choose another voice.")
    repeated = {
        name: value
        for name in ("format", "speed", "pitch", "volume")
        if (value := getattr(entry.asked, name)) is not None
    }
    fields = {"voice": entry.voice_id, "text": entry.text, "language": entry.language, **repeated}
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in fields.items())
    return json_response(
        RegenerateAnswer(
            voice_id=entry.voice_id,
            text=entry.text,
            language=entry.language,
            redirect_url=f"/generate?{query}",
            **repeated,
        )
    )


async def _own_entry(parts: Parts, user_id: UUID, generation_id: UUID) -> Entry:
    async with parts.database.connection() as connection:
        entry = await history.find(connection, generation_id, user_id)
    if entry is None:
        raise NotFound("This generation does not exist.")
    return entry
