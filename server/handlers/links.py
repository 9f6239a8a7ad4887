"""Links to stored audio that need no token."""

from uuid import UUID

from starlette.responses import Response

from server.handlers.requests import redirect
from server.parts import Parts
from server.storage import Bucket

LINK_SECONDS = 3600


async def redirect_to_audio(parts: Parts, object_key: str, generation_id: UUID) -> Response:
    """302 to a link that needs no token and works for an hour, as often as one likes."""
    suffix = object_key.rpartition(".")[2]
    link = await parts.storage.signed_get(
        Bucket.GENERATIONS, object_key, expires_seconds=LINK_SECONDS, filename=f"utter-{generation_id}.{suffix}"
    )
    return redirect(link)
