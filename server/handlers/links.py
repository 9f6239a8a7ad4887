"""Links to stored audio that need no token: as a redirect, or in a body for a page that cannot follow one."""

from starlette.requests import Request
from starlette.responses import Response

from server.contract import LinkAnswer
from server.handlers.requests import json_response, outward, parts_of, redirect
from server.storage import Bucket

LINK_SECONDS = 3600


async def answer_with_link(request: Request, bucket: Bucket, key: str, filename: str) -> Response:
    """302 to a link that works for an hour, as often as one likes; the link itself for ``Accept: application/json``.

    A browser that follows a redirect from one origin to another calls itself ``Origin: null`` there, and a program may
    take its ``Authorization`` along: some stores refuse either.
    """
    link = await signed_link(request, bucket, key, filename)
    if request.headers.get("accept", "").partition(";")[0].strip().lower() == "application/json":
        return json_response(LinkAnswer(url=link, expires_in=LINK_SECONDS))
    return redirect(link)


async def signed_link(request: Request, bucket: Bucket, key: str, filename: str) -> str:
    """A link that works for an hour, for whoever asks like this request."""
    return await parts_of(request).storage.signed_get(
        bucket,
        key,
        expires_seconds=LINK_SECONDS,
        filename=filename,
        base_url=outward(request, ""),
        head=request.method == "HEAD",
    )


def audio_filename(generation_id: object, object_key: str) -> str:
    return f"utter-{generation_id}.{object_key.rpartition('.')[2]}"
