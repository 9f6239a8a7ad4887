"""/api/tasks/:id: what clients poll, cancel and put away."""

from typing import Any

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from server.contract import CancelAnswer, Ok
from server.handlers.links import LINK_SECONDS
from server.handlers.present import task_answer
from server.handlers.requests import absolute_url, bearer, json_response, parts_of, path_uuid
from server.jobs import cancel, modal
from server.storage import Bucket


async def get_task(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    task, seen = await modal.poll(parts, user_id, path_uuid(request, "task_id"))
    answer = task_answer(parts, task, seen)
    if task.type == "design_preview" and task.status == "completed" and task.result:
        answer = structs.replace(answer, result=await _preview_result(request, task.result))
    return json_response(answer)


async def _preview_result(request: Request, stored: dict[str, Any]) -> dict[str, Any]:
    """A link that needs no token, made anew each time: the page fetches a preview without one."""
    key = stored.get("object_key")
    if not isinstance(key, str):
        return stored
    link = await parts_of(request).storage.signed_get(
        Bucket.GENERATIONS,
        key,
        expires_seconds=LINK_SECONDS,
        filename="utter-preview.wav",
        base_url=absolute_url(request, ""),
    )
    return {**stored, "audio_url": link}


async def cancel_task(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    task_id = path_uuid(request, "task_id")
    here, task = await cancel.cancel(parts, user_id, task_id)
    if here:
        return json_response(CancelAnswer(True, task_id))
    return json_response(CancelAnswer(task.status == "cancelled", task_id, task.status))


async def delete_task(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    await cancel.hide_task(parts, user_id, path_uuid(request, "task_id"))
    return json_response(Ok())
