"""GET /api/openapi.json: the contract as a document, generated from the types that validate and answer."""

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import contract
from server.handlers.examples import Examples
from server.handlers.operations import OPERATIONS, REDIRECT, STREAM, Media, Operation
from server.handlers.problems import is_openai_shaped
from server.handlers.requests import json_response, parts_of
from server.jobs.door import FORMATS, OPENAI_TEXT_CHARS

REFERENCE = "#/components/schemas/{name}"


class Limits(NamedTuple):
    """What the settings of a server decide of what it takes.

    Attributes:
        languages: Their names; with none of them the document leaves open which there are.
        address: Where this server is, as PUBLIC_BASE_URL says; "/" where it does not.
    """

    max_text_chars: int = 2000
    languages: tuple[str, ...] = ()
    address: str = "/"


async def describe(request: Request) -> Response:
    parts = parts_of(request)
    return json_response(
        document(
            Limits(
                max_text_chars=parts.settings.qwen_max_text_chars,
                languages=tuple(parts.providers.abilities.languages),
                address=parts.settings.public_base_url or "/",
            )
        )
    )


_TAGS = {
    "generate": ("Speaking", "Have a text spoken, and hear it while it is being spoken"),
    "tasks": ("Tasks", "How something stands that takes a while"),
    "generations": ("History", "What was spoken"),
    "voices": ("Voices", "Cloned from a recording, or designed from a description"),
    "keys": ("Keys", "For programs that speak for somebody"),
    "v1": ("OpenAI-shaped", "What programs know that speak to OpenAI's speech endpoint"),
    "": ("Service", "What this server is, and how it is"),
}
#: A task by its type: the name of its schema, and of its result's.
_TASKS = {
    "generate": ("SpeechTask", "SpeechResult"),
    "design_preview": ("PreviewTask", "PreviewResult"),
    "clone": ("RenewalTask", "RenewalResult"),
}
_EVENTS = (contract.DeltaEvent, contract.WordsEvent, contract.OpenAIDeltaEvent, contract.OpenAIDoneEvent)
_RESULTS = (contract.SpeechResult, contract.PreviewResult, contract.RenewalResult)


def _tag(path: str) -> str:
    first, _, rest = path.strip("/").partition("/")
    word = rest.partition("/")[0] if first == "api" else first
    return _TAGS["voices" if word == "clone" else word if word in _TAGS else ""][0]


@cache
def document(limits: Limits = Limits()) -> dict[str, Any]:  # noqa: B008 - it cannot be changed
    """The whole OpenAPI 3.1 document of a server with these limits."""
    schemas = _schemas(limits)
    examples = Examples(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, examples)
    return {
        "openapi": "3.1.0",
        "info": {"title": "utter", "version": "1", "description": "Text-to-speech that is heard while it is spoken."},
        "servers": [{"url": limits.address, "description": "This server"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.values()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": _HEADERS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT, or a key"}},
        },
    }


# --- shapes -----------------------------------------------------------------------------------------------------------


def _schemas(limits: Limits) -> dict[str, Any]:
    types = [contract.Problem, contract.OpenAIProblem, *_EVENTS, *_RESULTS, *_types()]
    _, schemas = msgspec.json.schema_components(types, ref_template=REFERENCE)
    _help_generators(schemas)
    schemas["GenerateRequest"]["properties"]["text"].update(
        minLength=1,
        maxLength=limits.max_text_chars,
        description="Counted in UTF-16 units, as browsers do, without the blanks around it.",
    )
    speech = schemas["SpeechWanted"]["properties"]
    speech["input"].update(minLength=1, maxLength=max(OPENAI_TEXT_CHARS, limits.max_text_chars))
    speech["response_format"]["anyOf"][0] = {"type": "string", "enum": list(FORMATS)}
    if limits.languages:
        for name, schema in schemas.items():
            if name.endswith("Request") and "language" in schema["properties"]:
                schema["properties"]["language"]["enum"] = list(limits.languages)
    schemas.update(_tasks(schemas.pop("TaskAnswer")))
    return schemas


def _tasks(task: dict[str, Any]) -> dict[str, Any]:
    """A task as one schema for each type: each has a result of its own."""
    tasks: dict[str, Any] = {}
    for type_, (name, result) in _TASKS.items():
        tasks[name] = {**copy.deepcopy(task), "title": name}
        tasks[name]["properties"]["type"] = {"type": "string", "enum": [type_]}
        tasks[name]["properties"]["result"] = {"$ref": REFERENCE.format(name=result)}
    mapping = {type_: REFERENCE.format(name=name) for type_, (name, _) in _TASKS.items()}
    tasks["TaskAnswer"] = {
        "title": "TaskAnswer",
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }
    return tasks


def _help_generators(schema: Any) -> None:
    """Say that every enum holds strings, of which they make better types, and not that null is a default: to some of
    them a member with a default is one that has to be there."""
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _help_generators(inner)
    if isinstance(schema, dict) and isinstance(schema.get("enum"), list):
        schema.setdefault("type", "string")
    if isinstance(schema, dict) and "default" in schema and schema["default"] is None:
        del schema["default"]


def _types() -> Iterator[Any]:
    for operation in OPERATIONS:
        for type_ in (*operation.answers.values(), operation.body):
            if isinstance(type_, type):
                yield type_


# --- operations -------------------------------------------------------------------------------------------------------

_HEADERS = {
    "X-Request-Id": {
        "description": "Under which the log has this request.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 0}},
    "Location": {
        "description": "Where it is.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "X-Utter-Provider": {"description": "Who speaks.", "schema": {"type": "string"}},
    "X-Utter-Generation-Id": {"schema": {"type": "string", "format": "uuid"}},
    "X-Utter-Task-Id": {"schema": {"type": "string", "format": "uuid"}},
}
_SENT = {
    "Idempotency-Key": {"type": "string", "minLength": 1, "maxLength": 255},
    "Last-Event-ID": {"type": "string", "pattern": "^([0-9]{1,18}|end)$"},
}
_BUSY = (429, 503)


def _described(operation: Operation, examples: Examples) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "description": operation.description,
        "tags": [_tag(operation.path)],
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_').replace('.', '_')}".replace(
            "{", ""
        ).replace("}", ""),
        "parameters": list(_parameters(operation)),
        "responses": {
            **{str(status): _success(answer, examples) for status, answer in operation.answers.items()},
            **{str(status): _problem(operation, status, examples) for status in _problems(operation)},
            "default": _problem(operation, None, examples),
        },
    }
    if operation.body is not None:
        content: dict[str, Any] = {"application/json": _media(operation.body, examples)}
        if operation.file:
            # What the JSON says, as fields of a form, and the file.
            form = copy.deepcopy(examples.schemas[operation.body.__name__])
            form["properties"][operation.file] = {"type": "string", "format": "binary"}
            content["multipart/form-data"] = {
                "schema": {**form, "title": f"{operation.body.__name__}Form"},
                "example": content["application/json"]["example"],
            }
        described["requestBody"] = {"required": True, "content": content}
    if operation.signed_in:
        described["security"] = [{"bearer": []}]
    return described


def _problems(operation: Operation) -> list[int]:
    """Whoever signs in may be told to wait: they ask too much, or what knows them is away."""
    return sorted({*operation.problems, *(_BUSY if operation.signed_in else ())})


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for part in operation.path.split("/"):
        if part.startswith("{"):
            schema = {"type": "string"} if part == "{model}" else {"type": "string", "format": "uuid"}
            yield {"name": part.strip("{}"), "in": "path", "required": True, "schema": schema}
    for name, schema in operation.query.items():
        required = name in operation.required
        yield {"name": name, "in": "query", "required": required, "schema": schema}
    for name in operation.headers:
        yield {"name": name, "in": "header", "required": False, "schema": _SENT[name]}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _success(answer: Any, examples: Examples) -> dict[str, Any]:
    if not isinstance(answer, Media):
        this = {"schema": {"type": "object"}, "example": {"openapi": "3.1.0"}}
        media = _media(answer, examples) if isinstance(answer, type) else this
        return {"description": "OK", "headers": _headers(), "content": {"application/json": media}}
    described: dict[str, Any] = {"description": answer.description, "headers": _headers()}
    if answer is REDIRECT:
        described["headers"] = _headers("Location")
    if answer is STREAM:
        described["headers"] = _headers("X-Utter-Provider", "X-Utter-Generation-Id", "X-Utter-Task-Id")
    if answer.types:
        described["content"] = {media_type: {"schema": _content(media_type)} for media_type in answer.types}
    if answer.example:
        text = next(media_type for media_type in answer.types if media_type.startswith("text/"))
        described["content"][text]["example"] = answer.example
    return described


def _content(media_type: str) -> dict[str, Any]:
    """Text as text, anything else as the bytes that it is."""
    return {"type": "string"} if media_type.startswith("text/") else {"type": "string", "format": "binary"}


def _problem(operation: Operation, status: int | None, examples: Examples) -> dict[str, Any]:
    shape = contract.OpenAIProblem if is_openai_shaped(operation.path) else contract.Problem
    return {
        "description": f"A problem ({status})" if status else "Any other problem",
        "headers": _headers("Retry-After") if status in _BUSY else _headers(),
        "content": {"application/json": {"schema": _ref(shape), "example": examples.problem(shape.__name__, status)}},
    }


def _media(type_: Any, examples: Examples) -> dict[str, Any]:
    return {"schema": _ref(type_), "example": examples.of(type_.__name__)}


def _ref(type_: Any) -> dict[str, str]:
    return {"$ref": REFERENCE.format(name=type_.__name__)}
