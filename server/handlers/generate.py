"""POST /api/generate: a text to be spoken, followed by polling or by the stream."""

from starlette.requests import Request
from starlette.responses import Response

from server.contract import GenerateRequest
from server.handlers.present import generate_answer
from server.handlers.requests import bearer, idempotency_key, json_response, key_id_of, parts_of, read_json
from server.jobs.generate import Origin, submit


async def generate(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    key = idempotency_key(request)
    wanted = await read_json(request, GenerateRequest)
    task = await submit(parts, user_id, wanted, key, Origin(key_id=key_id_of(request)))
    request.state.task_id = task.id
    return json_response(generate_answer(parts, task))
