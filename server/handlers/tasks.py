"""/api/tasks/:id: what clients poll, cancel and put away."""

from starlette.requests import Request
from starlette.responses import Response

from server.contract import CancelAnswer, Ok
from server.handlers.present import task_answer
from server.handlers.requests import bearer, json_response, parts_of, path_uuid
from server.jobs import cancel, modal


async def get_task(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    task, seen = await modal.poll(parts, user_id, path_uuid(request, "task_id"))
    return json_response(task_answer(parts, task, seen))


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
