"""/api/clone: a recording becomes a voice."""

from starlette.requests import Request
from starlette.responses import Response

from server.contract import CloneFinalizeAnswer, CloneFinalizeRequest, CloneUploadAnswer, CloneUploadRequest
from server.handlers.requests import absolute_url, bearer, json_response, key_id_of, parts_of, read_json
from server.jobs import clone


async def upload_url(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    wanted = await read_json(request, CloneUploadRequest)
    voice_id, link, key = await clone.upload_address(parts, user_id, wanted, absolute_url(request, ""))
    return json_response(CloneUploadAnswer(voice_id=voice_id, upload_url=link, object_key=key))


async def finalize(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    voice = await clone.create(
        parts, user_id, await read_json(request, CloneFinalizeRequest), key_id=key_id_of(request)
    )
    return json_response(CloneFinalizeAnswer(voice.id, voice.name))
