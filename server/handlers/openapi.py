"""GET /api/openapi.json: the contract as a document, generated from the types that validate and answer."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import contract
from server.handlers.problems import is_openai_shaped
from server.handlers.requests import json_response

REFERENCE = "#/components/schemas/{name}"


class Media(NamedTuple):
    """A success that is no JSON."""

    types: tuple[str, ...]
    description: str = "OK"


REDIRECT = Media((), "A redirect")
NOTHING = Media((), "Nothing more will come")
_STREAM = Media(
    ("text/event-stream", "audio/mpeg", "audio/wav"),
    "Events: `task` (data: a TaskAnswer) and `response.audio.delta` (data: a DeltaEvent, "
    "id: how many bytes of audio there are up to and including it). "
    "Or the audio itself.",
)


class Operation(NamedTuple):
    """One method of one path.

    Attributes:
        answers: What a success answers, by status: the type of its JSON, or what else it is.
        query: Parameters as ``name: schema``.
        problems: The statuses of a ``Problem`` that a client should know; any other failure is one, too.
    """

    method: str
    path: str
    summary: str
    answers: dict[int, Any]
    body: Any = None
    query: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - a NamedTuple's defaults are never changed
    problems: tuple[int, ...] = ()
    signed_in: bool = True
    headers: tuple[str, ...] = ()


_PAGE = {"page": {"type": "integer", "minimum": 1}, "per_page": {"type": "integer", "minimum": 1, "maximum": 100}}
_SEARCH = {"search": {"type": "string"}}
_CURSOR = "its `created_at`, a comma, its `id`"
_AS = {"as": {"enum": ["events", "audio"]}}

OPERATIONS = (
    Operation(
        "post",
        "/api/generate",
        "Speak a text; poll the task, or follow stream_url",
        {200: contract.GenerateAnswer},
        body=contract.GenerateRequest,
        problems=(400, 401, 404, 409, 413, 502, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "post",
        "/api/generate/stream",
        "Speak a text and hear it at once: events, raw audio (Accept: audio/*), or JSON with status 201",
        {200: _STREAM, 201: contract.GenerateAnswer},
        body=contract.GenerateRequest,
        query=_AS,
        problems=(400, 401, 404, 406, 409, 413, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "get",
        "/api/generate/stream",
        "Follow a speech while it is spoken, or replay it; creates nothing",
        {200: _STREAM, 204: NOTHING, 302: REDIRECT},
        query={
            "task_id": {"type": "string", "format": "uuid"},
            "ticket": {"type": "string"},
            **_AS,
            "offset": {"type": "integer", "minimum": 0},
            "lastEventId": {"type": "string"},
        },
        problems=(400, 401, 404, 406, 409),
        headers=("Last-Event-ID",),
    ),
    Operation("get", "/api/tasks/{task_id}", "How a task stands", {200: contract.TaskAnswer}, problems=(400, 401, 404)),
    Operation(
        "delete",
        "/api/tasks/{task_id}",
        "Put a task away; its audio stays",
        {200: contract.Ok},
        problems=(400, 401, 404),
    ),
    Operation("post", "/api/tasks/{task_id}/cancel", "Cancel", {200: contract.CancelAnswer}, problems=(400, 401, 404)),
    Operation(
        "get",
        "/api/generations",
        "The history, newest first",
        {200: contract.GenerationsAnswer},
        query={
            **_PAGE,
            **_SEARCH,
            "status": {"enum": ["all", *get_args(contract.TaskStatus)]},
            "q": {"type": "string", "description": "Words in the text or in the name of the voice"},
            "voice_id": {"type": "string", "format": "uuid"},
            "before": {"type": "string", "description": f"Older than this entry: {_CURSOR}"},
            "since": {"type": "string", "description": f"Newer than this entry: {_CURSOR}"},
            "ids": {"type": "string", "description": "These alone: up to 100 ids with commas between them"},
        },
        problems=(400, 401),
    ),
    Operation(
        "post",
        "/api/generations/zip",
        "The audio of up to 50 generations as one ZIP",
        {200: Media(("application/zip",), "The ZIP, while it is made")},
        body=contract.ZipRequest,
        problems=(400, 401, 404, 413, 503),
    ),
    Operation(
        "delete",
        "/api/generations/{generation_id}",
        "Delete with its audio",
        {200: contract.Ok},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/audio",
        "302 to a link that needs no token and works for an hour",
        {200: contract.LinkAnswer, 302: REDIRECT},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/captions.vtt",
        "What was spoken as WebVTT captions, where the voice's lane says when words are heard",
        {200: Media(("text/vtt",))},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/generations/{generation_id}/captions.srt",
        "The same as SubRip captions",
        {200: Media(("application/x-subrip",))},
        problems=(400, 401, 404),
    ),
    Operation(
        "post",
        "/api/generations/{generation_id}/regenerate",
        "What a form needs to speak this again",
        {200: contract.RegenerateAnswer},
        problems=(400, 401, 404),
    ),
    Operation(
        "get",
        "/api/voices",
        "The voices that are not deleted, newest first",
        {200: contract.VoicesAnswer},
        query={
            **_PAGE,
            **_SEARCH,
            "source": {"enum": ["all", "uploaded", "designed"]},
            "q": {"type": "string", "description": "Words in the name, language, kind or description"},
        },
        problems=(400, 401),
    ),
    Operation(
        "get",
        "/api/voices/{voice_id}/preview",
        "302 to the recording that a voice was made from",
        {200: contract.LinkAnswer, 302: REDIRECT},
        problems=(400, 401, 404),
    ),
    Operation(
        "patch",
        "/api/voices/{voice_id}",
        "Rename a voice, or make it the default: the one that speaks where a program names none",
        {200: contract.VoiceEntry},
        body=contract.VoiceChange,
        problems=(400, 401, 404, 413),
    ),
    Operation(
        "post",
        "/api/voices/{voice_id}/renew",
        "Make a voice again whose model is gone; a task of type `clone` tells when it can speak",
        {200: contract.RenewAnswer},
        problems=(400, 401, 404, 409),
    ),
    Operation(
        "delete",
        "/api/voices/{voice_id}",
        "Hide a voice; its history stays",
        {200: contract.Ok},
        problems=(400, 401, 404),
    ),
    Operation(
        "post",
        "/api/clone/upload-url",
        "Get the address to which a recording is uploaded by PUT",
        {200: contract.CloneUploadAnswer},
        body=contract.CloneUploadRequest,
        problems=(400, 401, 413, 503),
    ),
    Operation(
        "post",
        "/api/clone/finalize",
        "Make a voice from the uploaded recording",
        {200: contract.CloneFinalizeAnswer},
        body=contract.CloneFinalizeRequest,
        problems=(400, 401, 404, 413, 502, 503, 504),
    ),
    Operation(
        "post",
        "/api/voices/design/preview",
        "Have a voice designed from a description, to be heard first",
        {200: contract.DesignPreviewAnswer},
        body=contract.DesignPreviewRequest,
        problems=(400, 401, 409, 413, 503),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "post",
        "/api/voices/design",
        "Keep the voice of a finished preview (JSON, or a form that may carry the preview as `audio`)",
        {200: contract.DesignSaveAnswer},
        body=contract.DesignSaveRequest,
        problems=(400, 401, 404, 409, 413, 503),
    ),
    Operation(
        "post",
        "/api/keys",
        "Make a key for a program; it is shown this once. Takes a sign-in token",
        {201: contract.KeyCreated},
        body=contract.KeyRequest,
        problems=(400, 401, 403, 409, 413),
    ),
    Operation(
        "get",
        "/api/keys",
        "The user's keys, newest first",
        {200: contract.KeysAnswer},
        problems=(401,),
    ),
    Operation(
        "delete",
        "/api/keys/{key_id}",
        "Revoke a key, in force within 5 s. Takes a sign-in token",
        {200: contract.Ok},
        problems=(400, 401, 403, 404),
    ),
    Operation(
        "get",
        "/api/usage",
        "What one has had spoken and made, by UTC day, and what one may; of the last 30 days if nothing else is said",
        {200: contract.UsageAnswer},
        query={"from": {"type": "string", "format": "date"}, "to": {"type": "string", "format": "date"}},
        problems=(400, 401),
    ),
    Operation(
        "post",
        "/v1/audio/speech",
        "Speak as OpenAI's speech endpoint does: audio while it is spoken, or (stream_format: sse) events with it",
        {200: Media(("audio/mpeg", "audio/wav", "audio/pcm", "text/event-stream"), "The audio")},
        body=contract.SpeechWanted,
        problems=(400, 401, 409, 413, 429, 502, 503, 504),
        headers=("Idempotency-Key",),
    ),
    Operation(
        "get", "/v1/audio/voices", "The voices that can speak", {200: contract.SpeakingVoices}, problems=(401, 429)
    ),
    Operation(
        "get", "/v1/models", "Names that clients know; any will do", {200: contract.ModelList}, problems=(401, 429)
    ),
    Operation("get", "/v1/models/{model}", "One of them", {200: contract.Model}, problems=(401, 404, 429)),
    Operation("get", "/api/health", "Whether this process answers", {200: contract.Ok}, signed_in=False),
    Operation(
        "get",
        "/api/ready",
        "Whether it can do its work",
        {200: contract.ReadyAnswer, 503: contract.ReadyAnswer},
        signed_in=False,
    ),
    Operation(
        "get",
        "/api/languages",
        "The languages, and what this server offers",
        {200: contract.LanguagesAnswer},
        signed_in=False,
    ),
    Operation("get", "/api/me", "Who is signed in", {200: contract.MeAnswer}, signed_in=False),
    Operation(
        "patch",
        "/api/profile",
        "Change how others see one; where the database keeps profiles",
        {200: contract.ProfileAnswer},
        body=contract.ProfileChange,
        problems=(400, 401, 404, 409, 413),
    ),
    Operation("get", "/api/openapi.json", "This document", {200: dict[str, Any]}, signed_in=False),
    Operation("get", "/metrics", "Prometheus", {200: Media(("text/plain",))}, signed_in=False, problems=(401, 403)),
)


async def describe(_request: Request) -> Response:
    return json_response(document())


_RESULTS = (contract.SpeechResult, contract.PreviewResult)
_TAGS = {
    "generate": "Speaking",
    "tasks": "Tasks",
    "generations": "History",
    "voices": "Voices",
    "clone": "Voices",
    "keys": "Keys",
    "v1": "OpenAI-shaped",
}


def _tag(path: str) -> str:
    first, _, rest = path.strip("/").partition("/")
    return _TAGS.get(rest.partition("/")[0] if first == "api" else first, "Service")


@cache
def document() -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    types = [contract.Problem, contract.OpenAIProblem, contract.DeltaEvent, *_RESULTS, *_types()]
    _, schemas = msgspec.json.schema_components(types, ref_template=REFERENCE)
    # The column takes what other systems write; what this one writes is these two.
    schemas["TaskAnswer"]["properties"]["result"] = {
        "anyOf": [_ref(contract.PreviewResult), _ref(contract.SpeechResult), {"type": "object"}],
        "description": "Of a completed task: where the audio is. A preview's link needs no token.",
    }
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "utter", "version": "1", "description": "Text-to-speech that is heard while it is spoken."},
        "servers": [{"url": "/", "description": "Where this document was fetched"}],
        "tags": [{"name": name} for name in dict.fromkeys([*_TAGS.values(), "Service"])],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT, or a key"}},
        },
    }


def _types() -> Iterator[Any]:
    for operation in OPERATIONS:
        for type_ in (*operation.answers.values(), operation.body):
            if isinstance(type_, type):
                yield type_


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [_tag(operation.path)],
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_').replace('.', '_')}".replace(
            "{", ""
        ).replace("}", ""),
        "parameters": list(_parameters(operation)),
        "responses": {
            **{str(status): _success(answer) for status, answer in operation.answers.items()},
            **{str(status): _problem(operation, f"A problem ({status})") for status in operation.problems},
            "default": _problem(operation, "Any other problem"),
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
            schema = {"type": "string"} if part == "{model}" else {"type": "string", "format": "uuid"}
            yield {"name": part.strip("{}"), "in": "path", "required": True, "schema": schema}
    for name, schema in operation.query.items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}
    for name in operation.headers:
        yield {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}


def _success(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, Media):
        schema = _ref(answer) if isinstance(answer, type) else {"type": "object"}
        return {"description": "OK", "content": {"application/json": {"schema": schema}}}
    described: dict[str, Any] = {"description": answer.description}
    if answer is REDIRECT:
        described["headers"] = {"Location": {"required": True, "schema": {"type": "string"}}}
    if answer.types:
        described["content"] = {media_type: {"schema": _content(media_type)} for media_type in answer.types}
    if answer is _STREAM:
        names = ("X-Utter-Provider", "X-Utter-Generation-Id", "X-Utter-Task-Id")
        described["headers"] = {name: {"schema": {"type": "string"}} for name in names}
    return described


def _content(media_type: str) -> dict[str, Any]:
    """Text as text, anything else as the bytes that it is."""
    return {"type": "string"} if media_type.startswith("text/") else {"type": "string", "format": "binary"}


def _problem(operation: Operation, description: str) -> dict[str, Any]:
    shape = contract.OpenAIProblem if is_openai_shaped(operation.path) else contract.Problem
    return {"description": description, "content": {"application/json": {"schema": _ref(shape)}}}


def _ref(type_: Any) -> dict[str, str]:
    return {"$ref": REFERENCE.format(name=type_.__name__)}
