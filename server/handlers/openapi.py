"""GET /api/openapi.json: the contract as a document, generated from the types that validate and answer."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import contract
from server.handlers.requests import json_response

REFERENCE = "#/components/schemas/{name}"


class Operation(NamedTuple):
    """One method of one path.

    Attributes:
        answer: The type of the JSON that a success answers, or a media type for what is no JSON, or None for a
            redirect.
        query: Parameters as ``name: schema``.
        problems: The statuses that end in a ``Problem``.
    """

    method: str
    path: str
    summary: str
    answer: Any
    body: Any = None
    query: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - a NamedTuple's defaults are never changed
    problems: tuple[int, ...] = ()
    signed_in: bool = True
    status: int = 200
    headers: tuple[str, ...] = ()


_PAGE = {"page": {"type": "integer", "minimum": 1}, "per_page": {"type": "integer", "minimum": 1, "maximum": 100}}
_SEARCH = {"search": {"type": "string"}}
_STREAM = "text/event-stream"

OPERATIONS = (
    Operation(
        "post",
        "/api/generate",
        "Speak a text; poll the task, or follow stream_url",
        contract.GenerateAnswer,
        body=contract.GenerateRequest,
        problems=(400, 401, 404, 409, 413, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "post",
        "/api/generate/stream",
        "Speak a text and hear it at once: events, raw audio (Accept: audio/*), or JSON with status 201",
        _STREAM,
        body=contract.GenerateRequest,
        query={"as": {"enum": ["events", "audio"]}},
        problems=(400, 401, 404, 406, 409, 413, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "get",
        "/api/generate/stream",
        "Follow a speech while it is spoken, or replay it; creates nothing",
        _STREAM,
        query={
            "task_id": {"type": "string", "format": "uuid"},
            "ticket": {"type": "string"},
            "as": {"enum": ["events", "audio"]},
            "offset": {"type": "integer", "minimum": 0},
        },
        problems=(400, 401, 404, 406, 409),
        headers=("Last-Event-ID",),
    ),
    Operation("get", "/api/tasks/{task_id}", "How a task stands", contract.TaskAnswer, problems=(400, 401, 404)),
    Operation(
        "delete", "/api/tasks/{task_id}", "Put a task away; its audio stays", contract.Ok, problems=(400, 401, 404)
    ),
    Operation("post", "/api/tasks/{task_id}/cancel", "Cancel", contract.CancelAnswer, problems=(400, 401, 404)),
    Operation(
        "get",
        "/api/generations",
        "The history, newest first",
        contract.GenerationsAnswer,
        query={**_PAGE, **_SEARCH, "status": {"type": "string"}},
        problems=(400, 401),
    ),
    Operation(
        "delete", "/api/generations/{generation_id}", "Delete with its audio", contract.Ok, problems=(400, 401, 404)
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/audio",
        "302 to a link that needs no token and works for an hour",
        None,
        problems=(400, 401, 404),
        status=302,
    ),
    Operation(
        "post",
        "/api/generations/{generation_id}/regenerate",
        "What a form needs to speak this again",
        contract.RegenerateAnswer,
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/voices",
        "The voices that are not deleted, newest first",
        contract.VoicesAnswer,
        query={**_PAGE, **_SEARCH, "source": {"enum": ["uploaded", "designed", "all"]}},
        problems=(400, 401),
    ),
    Operation("get", "/api/health", "Whether this process answers", contract.Ok, signed_in=False),
    Operation("get", "/api/ready", "Whether it can do its work", contract.ReadyAnswer, signed_in=False),
    Operation("get", "/api/languages", "What can be spoken, and how", contract.LanguagesAnswer, signed_in=False),
    Operation("get", "/api/me", "Who is signed in", contract.MeAnswer, signed_in=False),
    Operation("get", "/metrics", "Prometheus", "text/plain", signed_in=False, problems=(401, 403)),
)


async def describe(_request: Request) -> Response:
    return json_response(document())


@cache
def document() -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    types = [contract.Problem, contract.DeltaEvent, *_types()]
    _, schemas = msgspec.json.schema_components(types, ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "utter", "version": "1", "description": "Text-to-speech that is heard while it is spoken."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _types() -> Iterator[Any]:
    for operation in OPERATIONS:
        for type_ in (operation.answer, operation.body):
            if type_ is not None and not isinstance(type_, str):
                yield type_


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_').replace('.', '_')}".replace(
            "{", ""
        ).replace("}", ""),
        "parameters": list(_parameters(operation)),
        "responses": {
            str(operation.status): _success(operation),
            **{str(status): _problem(status) for status in operation.problems},
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body)}}}
    if operation.signed_in:
        described["security"] = [{"bearer": []}]
    return described


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for part in operation.path.split("/"):
        if part.startswith("{"):
            schema = {"type": "string", "format": "uuid"}
            yield {"name": part.strip("{}"), "in": "path", "required": True, "schema": schema}
    for name, schema in operation.query.items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}
    for name in operation.headers:
        yield {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}


def _success(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "A redirect", "headers": {"Location": {"schema": {"type": "string"}}}}
    if isinstance(operation.answer, str):
        return {"description": "OK", "content": {operation.answer: {"schema": {"type": "string"}}}}
    return {"description": "OK", "content": {"application/json": {"schema": _ref(operation.answer)}}}


def _problem(status: int) -> dict[str, Any]:
    schema = _ref(contract.Problem)
    return {"description": f"A problem ({status})", "content": {"application/json": {"schema": schema}}}


def _ref(type_: Any) -> dict[str, str]:
    return {"$ref": REFERENCE.format(name=type_.__name__)}
