"""/api/voices: the library."""

from starlette.requests import Request
from starlette.responses import Response

from server.contract import Pagination, VoicesAnswer
from server.handlers.present import voice_entry
from server.handlers.requests import bearer, json_response, page_query, parts_of, query_choice, query_text
from server.records import voices


async def list_voices(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    asked = page_query(request, default_per_page=100)
    async with parts.database.connection() as connection:
        found, total = await voices.page(
            connection,
            user_id,
            search=query_text(request, "search"),
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
