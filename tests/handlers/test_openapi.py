"""GET /api/openapi.json: a document that is valid, complete, and true of what the server answers."""

import copy
import re
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import validate

from server import contract
from server.dev.simulator import Simulator
from server.handlers.openapi import document
from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import wait_for

# Links are opaque: a client follows what it was given, and what stands in them is nobody's business but ours.
NOT_DESCRIBED = ("/api/storage/",)


# Whoever makes voices is watched elsewhere.
MAKING_VOICES = ("/api/clone/", "/api/voices/")


def filled(path: str, value: object) -> str:
    """A path of the document with this value for its parameter."""
    return re.sub(r"\{\w+\}", str(value), path)


@pytest.fixture
async def served(client: Client) -> dict[str, Any]:
    """The document as the server serves it."""
    response = await client.http.get("/api/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    described: dict[str, Any] = response.json()
    return described


async def test_the_document_is_valid_and_needs_no_token(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as anybody:
        response = await anybody.get("/api/openapi.json")
    assert response.status_code == 200
    validate(response.json())
    assert response.json()["openapi"].startswith("3.1")


async def test_every_route_is_described_and_nothing_else(gateway: Gateway) -> None:
    app = gateway.server.config.app
    routes = {
        (method.lower(), route.path)
        for route in app.routes  # type: ignore[union-attr]
        for method in set(route.methods or ()) - {"HEAD", "OPTIONS"}
        if route.path.startswith(("/api/", "/v1/", "/metrics")) and not route.path.startswith(NOT_DESCRIBED)
    }
    described = {(method, path) for path, methods in document()["paths"].items() for method in methods}
    assert routes == described
    apart = {route.path for route in app.routes if route.path.startswith(NOT_DESCRIBED)}  # type: ignore[union-attr]
    assert apart == {"/api/storage/{bucket}/{key:path}"}


def test_names_of_operations_are_unique_and_every_one_has_a_summary() -> None:
    operations = [operation for methods in document()["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


def test_generators_find_what_they_need() -> None:
    described = document()
    schemas = described["components"]["schemas"]
    for type_, result in (
        ("generate", "SpeechResult"),
        ("design_preview", "PreviewResult"),
        ("clone", "RenewalResult"),
    ):
        task = schemas[schemas["TaskAnswer"]["discriminator"]["mapping"][type_].rpartition("/")[2]]
        assert task["properties"]["type"]["enum"] == [type_]
        assert task["properties"]["result"]["$ref"].endswith(f"/{result}")
    assert schemas["GenerationEntry"]["properties"]["created_at"] == {"type": "string", "format": "date-time"}
    for schema, member, values in (
        ("VoiceEntry", "source", ["designed", "uploaded"]),
        ("VoiceEntry", "tts_provider", ["modal", "qwen"]),
        ("SpeechTask", "provider", ["modal", "qwen"]),
        ("TaskAudio", "format", ["mp3", "wav"]),
    ):
        assert schemas[schema]["properties"][member]["enum"] == values
    assert schemas["LinkAnswer"]["properties"]["url"]["format"] == "uri-reference"
    assert schemas["DeltaEvent"]["properties"]["delta"]["contentEncoding"] == "base64"
    generate = described["paths"]["/api/generate"]["post"]["responses"]
    assert "Retry-After" in generate["429"]["headers"]
    assert described["servers"][0]["url"] == "/"
    tags = {tag["name"] for tag in described["tags"] if tag["description"]}
    for operation in operations():
        assert set(operation["tags"]) <= tags
        assert operation["tags"]
    stream = described["paths"]["/api/generate/stream"]["get"]["responses"]["200"]
    assert stream["content"]["audio/mpeg"]["schema"] == {"type": "string", "format": "binary"}
    assert stream["content"]["text/event-stream"]["schema"] == {"type": "string"}
    assert "X-Utter-Task-Id" in stream["headers"]
    for event in ("DeltaEvent", "WordsEvent"):
        assert event in stream["description"]
        assert schemas[event]["properties"]
    form = described["paths"]["/api/voices/design"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["audio"] == {"type": "string", "format": "binary"}


def test_everybody_is_told_what_an_operation_does_with_an_example_that_is_true() -> None:
    """Every JSON that an operation takes or answers, in the form of its schema; a request is taken by its type."""
    described = document()
    for operation in operations():
        assert len(operation["description"]) > 20
        body = operation.get("requestBody", {"content": {}})
        jsons = [
            answer["content"]["application/json"]
            for answer in operation["responses"].values()
            if "content" in answer and "application/json" in answer["content"]
        ]
        for media in (*jsons, *(media for name, media in body["content"].items() if name == "application/json")):
            if "$ref" in media["schema"]:
                assert media["example"]
                valid(described, media["schema"], media["example"])
        for answer in (*operation["responses"].values(), body):
            for name, media in answer.get("content", {}).items():
                assert "example" in media or not name.startswith(("text/", "application/json", "multipart/")), operation
        if "application/json" in body["content"]:
            media = body["content"]["application/json"]
            type_ = getattr(contract, media["schema"]["$ref"].rpartition("/")[2])
            msgspec.convert(media["example"], type_, strict=False)


def operations() -> list[dict[str, Any]]:
    return [operation for methods in document()["paths"].values() for operation in methods.values()]


def valid(described: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    whole = {**schema, "components": described["components"]}
    Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


async def test_its_limits_are_those_of_the_settings(settings: Settings, database_url: str) -> None:
    """What it forbids is refused, what it allows is taken."""
    changed = replace(settings, qwen_max_text_chars=60, public_base_url="https://voice.example/speech")
    async with running_gateway(changed) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        served = (await client.http.get("/api/openapi.json")).json()
        assert served["servers"][0]["url"] == "https://voice.example/speech"
        schemas = served["components"]["schemas"]
        asked = schemas["GenerateRequest"]["properties"]
        assert (asked["text"]["minLength"], asked["text"]["maxLength"]) == (1, 60)
        assert schemas["SpeechWanted"]["properties"]["input"]["maxLength"] == 4096
        languages = (await client.http.get("/api/languages")).json()["languages"]
        assert asked["language"]["enum"] == languages
        for text, status in (("x" * 60, 200), ("x" * 61, 400), ("", 400)):
            answer = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": text})
            assert answer.status_code == status
        [page] = [p for p in served["paths"]["/api/voices"]["get"]["parameters"] if p["name"] == "page"]
        for number, status in ((page["schema"]["maximum"], 200), (page["schema"]["maximum"] + 1, 400)):
            assert (await client.http.get("/api/voices", params={"page": number})).status_code == status


async def test_what_needs_a_token_says_so(gateway: Gateway) -> None:
    """Asked without one, each operation answers 401 exactly where the document says that it needs one."""
    async with httpx.AsyncClient(base_url=gateway.url) as anybody:
        for path, methods in document()["paths"].items():
            for method, operation in methods.items():
                address = filled(path, uuid4())
                if (method, path) == ("get", "/api/generate/stream"):
                    address += f"?task_id={uuid4()}"
                response = await anybody.request(method, address)
                assert (response.status_code == 401) == ("security" in operation), (method, path)
                if response.status_code == 401:
                    assert "401" in operation["responses"]


class Witness:
    """Sends requests and checks every answer against the document, which may not keep a member to itself."""

    def __init__(self, described: dict[str, Any], http: httpx.AsyncClient) -> None:
        self._described = copy.deepcopy(described)
        self._http = http
        self.seen: set[tuple[str, str, str]] = set()
        for schema in self._described["components"]["schemas"].values():
            if "properties" in schema:
                schema["additionalProperties"] = False

    async def ask(self, method: str, path: str, *, given: str = "", **request: Any) -> httpx.Response:
        """``given`` is what stands for the path's parameter."""
        operation = self._described["paths"][path][method.lower()]
        response = await self._http.request(method, filled(path, given), **request)
        status = str(response.status_code)
        answer = operation["responses"].get(status) or operation["responses"]["default"]
        self.seen.add((method, path, status if status in operation["responses"] else "default"))
        content_type = response.headers.get("content-type", "").partition(";")[0]
        if "content" in answer:
            assert content_type in answer["content"], (method, path, status, content_type)
            if content_type == "application/json":
                valid(self._described, answer["content"][content_type]["schema"], response.json())
        else:
            assert not response.content, (method, path, status)
        for header in answer.get("headers", {}):
            described = self._described["components"]["headers"][header]
            assert header in response.headers or not described.get("required")
        return response


async def test_live_answers_are_what_the_document_says(
    client: Client, served: dict[str, Any], database_url: str, simulator: Simulator
) -> None:
    """Successes and problems of every operation, in every state that a task can be in."""
    simulator.behave("realtime", {"do": "error", "after_deltas": 1}, text_contains="fails")
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="holds")
    voice_id = await insert_voice(database_url, client.user_id)
    await insert_voice(database_url, client.user_id, provider="modal")
    witness = Witness(served, client.http)
    tasks: dict[str, dict[str, Any]] = {}
    with_times = await insert_voice(database_url, client.user_id, model="qwen-audio-3.0-tts-flash")
    for text in ("completes", "fails", "holds"):
        # The one that completes says when its words are heard.
        body = {"voice_id": str(with_times if text == "completes" else voice_id), "text": text}
        tasks[text] = (await witness.ask("POST", "/api/generate", json=body)).json()
    await client.ended(tasks["completes"]["task_id"])
    await client.ended(tasks["fails"]["task_id"])
    await held.held()
    await follow(witness, tasks, {"voice_id": str(voice_id), "text": "another"})
    for change in ({"default": True}, {"name": ""}):
        await witness.ask("PATCH", "/api/voices/{voice_id}", given=str(voice_id), json=change)
    for query in ({}, {"from": "yesterday"}):
        await witness.ask("GET", "/api/usage", params=query)
    for heard in ({"input": "Good evening."}, {"input": ""}, {"input": "fails"}):
        await witness.ask("POST", "/v1/audio/speech", json=heard)
    for path in ("/v1/audio/voices", "/v1/models"):
        await witness.ask("GET", path)
    for model in ("tts-1", "none"):
        await witness.ask("GET", "/v1/models/{model}", given=model)
    key = await witness.ask("POST", "/api/keys", json={"name": "A program"})
    await witness.ask("POST", "/api/keys", json={"name": ""})
    await witness.ask("PATCH", "/api/profile", json={"display_name": "Ada"})
    for path in ("/api/keys", "/api/me"):
        await witness.ask("GET", path, headers={"Authorization": f"Bearer {key.json()['key']}"})
    for _ in range(2):
        await witness.ask("DELETE", "/api/keys/{key_id}", given=key.json()["id"])
    for asked in ("/api/health", "/api/languages", "/api/me", "/api/openapi.json", "/metrics"):
        await witness.ask("GET", asked)

    async def ready() -> bool:
        return (await witness.ask("GET", "/api/ready")).status_code == 200

    await wait_for(ready)
    for path in ("/api/voices", "/api/generations"):
        assert (await witness.ask("GET", path)).status_code == 200
        assert (await witness.ask("GET", path, params={"page": "0"})).status_code == 400
    for task in tasks.values():
        for what in ("audio", "audio.mp3", "words"):
            await witness.ask("GET", f"/api/generations/{{generation_id}}/{what}", given=task["generation_id"])
        await witness.ask("POST", "/api/generations/{generation_id}/regenerate", given=task["generation_id"])
        for form in ("vtt", "srt"):
            await witness.ask("GET", f"/api/generations/{{generation_id}}/captions.{form}", given=task["generation_id"])
    for task in tasks.values():
        await witness.ask("POST", "/api/generations/zip", json={"ids": [task["generation_id"]]})
    for task in tasks.values():
        for _ in range(2):
            await witness.ask("POST", "/api/tasks/{task_id}/cancel", given=task["task_id"])
            await witness.ask("GET", "/api/tasks/{task_id}", given=task["task_id"])
        for _ in range(2):
            await witness.ask("DELETE", "/api/tasks/{task_id}", given=task["task_id"])
            await witness.ask("DELETE", "/api/generations/{generation_id}", given=task["generation_id"])
    held.release()
    everything = {(method.upper(), path) for path, methods in served["paths"].items() for method in methods}
    seen = {(method, path) for method, path, _ in witness.seen}
    assert {operation for operation in everything - seen if not operation[1].startswith(MAKING_VOICES)} == set()


async def follow(witness: Witness, tasks: dict[str, dict[str, Any]], body: dict[str, str]) -> None:
    """The stream's addresses, in all the ways in which they may be answered."""
    for task in tasks.values():
        path, _, query = task["stream_url"].partition("?")
        address = httpx.QueryParams(query)
        await witness.ask("GET", path, params=address, headers={"Last-Event-ID": "end"})
        await witness.ask("GET", path, params=address, headers={"Last-Event-ID": "x"})
        await witness.ask("GET", path, params=address, headers={"Accept": "image/png"})
        await witness.ask("GET", path, params={**address, "ticket": "x"}, headers={"Authorization": ""})
    for text, kind in (("completes", "events"), ("completes", "audio"), ("fails", "events"), ("fails", "audio")):
        path, _, query = tasks[text]["stream_url"].partition("?")
        await witness.ask("GET", path, params={**httpx.QueryParams(query), "as": kind})
    for accept in ("application/json", "text/event-stream", "audio/*", "image/png"):
        await witness.ask("POST", "/api/generate/stream", json=body, headers={"Accept": accept})
    for wrong in ({}, {**body, "voice_id": str(uuid4())}):
        await witness.ask("POST", "/api/generate/stream", json=wrong)
        await witness.ask("POST", "/api/generate", json=wrong)


def test_requests_are_described_by_the_type_that_reads_them() -> None:
    schema = document()["components"]["schemas"]["GenerateRequest"]
    assert set(schema["properties"]) == {"voice_id", "text", "language", "format", "speed", "pitch", "volume"}
    assert schema["required"] == ["voice_id", "text"]
    assert schema["properties"]["language"]["default"] == "Auto"
