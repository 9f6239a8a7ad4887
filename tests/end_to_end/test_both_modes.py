"""What a client of v1 relies on, in both modes: it must not have to know who is speaking."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from server.dev.simulator import Simulator
from server.settings import ProviderMode, Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.modal import in_modal_mode, insert_modal_voice
from tests.support import wait_for, with_limits

Rows = Any

STATUSES = {"pending", "processing", "completed", "failed", "cancelled"}
# What tells the providers apart on purpose.
PROVIDER_FIELDS = {
    "stream_url",
    "provider",
    "provider_status",
    "provider_poll_count",
    "provider_request_id",
    "modal_status",
    "modal_elapsed_seconds",
    "modal_poll_count",
    "tts_provider",
    "provider_voice_id",
    "provider_target_model",
    "provider_voice_kind",
    "streamable",
    "varies",
}


def in_mode(settings: Settings, mode: ProviderMode) -> Settings:
    return in_modal_mode(settings, modal_watch_seconds=0.2) if mode == "modal" else settings


async def voice_for(gateway: Gateway, rows: Rows, user_id: UUID) -> UUID:
    """A voice that the server's mode can speak with."""
    if gateway.parts.settings.tts_provider_mode == "modal":
        return await insert_modal_voice(gateway.parts, rows, user_id, name="Ada")
    return await insert_voice(gateway.parts.settings.database_url, user_id)


@pytest.fixture(params=["qwen", "modal"])
def mode(request: pytest.FixtureRequest) -> ProviderMode:
    chosen: ProviderMode = request.param
    return chosen


@pytest.fixture
def settings(settings: Settings, mode: ProviderMode) -> Settings:
    return with_limits(in_mode(settings, mode), store_elsewhere_seconds=1.0)


@pytest.fixture
async def voice_id(gateway: Gateway, client: Client, rows: Rows) -> UUID:
    return await voice_for(gateway, rows, client.user_id)


@pytest.fixture
def endless(simulator: Simulator, gateway: Gateway) -> Iterator[None]:
    """Nothing that is begun ends by itself, whoever speaks it, as long as the test runs."""
    simulator.behave("modal", {"job_seconds": 600}, action="submit", times=0)
    simulator.behave("realtime", {"do": "hold", "at": "audio"}, times=0)
    yield
    simulator.behaviours.clear()


async def post(client: Client, voice_id: UUID, text: str = "Good evening.", **headers: str) -> httpx.Response:
    body = {"voice_id": str(voice_id), "text": text, "model": "0.6B"}
    return await client.http.post("/api/generate", json=body, headers=headers)


# --- one text, from the form to the bin -------------------------------------------------------------------------------


async def test_a_text_goes_all_the_way(client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id, "The first of many.", language="English")
    seen = []

    async def terminal() -> dict[str, Any] | None:
        task = await client.task(answer["task_id"])
        seen.append(task["status"])
        return task if task["status"] not in ("pending", "processing") else None

    task = await wait_for(terminal, 20.0)
    assert set(seen) <= STATUSES
    assert (task["status"], task["error"], task["type"]) == ("completed", None, "generate")
    address = f"/api/generations/{answer['generation_id']}/audio"
    assert task["result"] == {"audio_url": address}

    audio = await client.audio(answer["generation_id"])
    [entry] = (await client.http.get("/api/generations?page=1&per_page=20")).json()["generations"]
    assert (entry["id"], entry["status"], entry["audio_path"]) == (answer["generation_id"], "completed", address)
    assert (entry["voice_id"], entry["voice_name"]) == (str(voice_id), "Ada")
    assert (entry["text"], entry["language"]) == ("The first of many.", "English")
    assert entry["duration_seconds"] == pytest.approx(task["audio"]["seconds"])
    assert entry["duration_seconds"] > 0.3
    assert entry["generation_time_seconds"] >= 0
    assert len(audio) == task["audio"]["header_bytes"] + task["audio"]["bytes"]

    again = (await client.http.post(f"/api/generations/{answer['generation_id']}/regenerate")).json()
    form = parse_qs(urlsplit(again["redirect_url"]).query)
    assert form == {"voice": [str(voice_id)], "text": ["The first of many."], "language": ["English"]}

    assert (await client.http.delete(f"/api/generations/{answer['generation_id']}")).json() == {"ok": True}
    assert (await client.http.get(address)).status_code == 404
    assert (await client.http.get("/api/generations")).json()["pagination"]["total"] == 0


async def test_the_page_puts_the_task_away_while_it_fetches_the_audio(client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    deleted, audio = await asyncio.gather(
        client.http.delete(f"/api/tasks/{answer['task_id']}"), client.audio(answer["generation_id"])
    )
    assert deleted.json() == {"ok": True}
    assert audio
    problem_of(await client.http.get(f"/api/tasks/{answer['task_id']}"), 404, "not_found")
    assert await client.audio(answer["generation_id"]) == audio
    [entry] = (await client.http.get("/api/generations?status=completed")).json()["generations"]
    assert entry["id"] == answer["generation_id"]


async def test_a_signed_link_serves_several_times_without_a_token(client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id)
    task = await client.ended(answer["task_id"])
    redirect = await client.http.get(task["result"]["audio_url"])
    assert redirect.status_code == 302
    async with httpx.AsyncClient(base_url=client.url) as anybody:
        first, second = [await anybody.get(redirect.headers["location"]) for _ in range(2)]
        with_token = await client.http.get(redirect.headers["location"])
        part = await anybody.get(redirect.headers["location"], headers={"Range": "bytes=0-99"})
    assert first.content == second.content == with_token.content
    assert first.headers["content-type"] == task["audio"]["mime"]
    assert first.headers["content-disposition"].startswith("attachment")
    assert (part.status_code, part.content) == (206, first.content[:100])


async def test_storage_that_is_away_for_a_moment_only_delays(
    gateway: Gateway, client: Client, voice_id: UUID, rows: Rows
) -> None:
    """Where the folder of the audio should be there is a file; the speech waits in the database meanwhile."""
    stored = gateway.parts.settings.storage
    folder = Path(stored.root) / stored.bucket_generations
    folder.rename(folder.with_name("elsewhere"))
    folder.touch()
    answer = await client.generate(voice_id)

    async def spoken() -> bool:
        await client.task(answer["task_id"])
        return bool(await rows.fetchval("SELECT true FROM internal.runs WHERE state = 'spoken'"))

    await wait_for(spoken)
    refused = "utter_finalize_retries_total 0.0"
    await wait_for(lambda: refused not in gateway.parts.metrics.exposition().decode())
    assert (await client.task(answer["task_id"]))["status"] == "processing"
    folder.unlink()
    folder.with_name("elsewhere").rename(folder)
    assert (await client.ended(answer["task_id"]))["status"] == "completed"
    assert await client.audio(answer["generation_id"])


# --- cancelling and putting away --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("endless")
async def test_a_cancelled_text_stays_cancelled(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    answer = await client.generate(voice_id)
    await simulator.until(lambda calls: bool(calls))
    cancelled = await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")
    assert cancelled.json() == {"cancelled": True, "task_id": answer["task_id"]}
    task = await client.task(answer["task_id"])
    assert (task["status"], task["error"], task["error_category"]) == ("cancelled", "Cancelled by user", "cancelled")
    assert "result" not in task
    simulator.behaviours.clear()
    again = await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")
    assert again.json() == {"cancelled": True, "task_id": answer["task_id"], "status": "cancelled"}
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    assert (entry["status"], entry["error_message"]) == ("cancelled", "Cancelled by user")
    problem_of(await client.http.get(f"/api/generations/{answer['generation_id']}/audio"), 404, "not_found")


async def test_cancelling_what_is_completed_changes_nothing(client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id)
    done = await client.ended(answer["task_id"])
    late = await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")
    assert late.json() == {"cancelled": False, "task_id": answer["task_id"], "status": "completed"}
    assert (await client.task(answer["task_id"]))["completed_at"] == done["completed_at"]
    assert await client.audio(answer["generation_id"])


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("what", ["tasks", "generations"])
async def test_deleting_what_is_under_way_ends_it(client: Client, voice_id: UUID, rows: Rows, what: str) -> None:
    answer = await client.generate(voice_id)
    ids = {"tasks": answer["task_id"], "generations": answer["generation_id"]}
    assert (await client.http.delete(f"/api/{what}/{ids[what]}")).json() == {"ok": True}
    problem_of(await client.http.delete(f"/api/{what}/{ids[what]}"), 404, "not_found")
    assert await rows.fetchval("SELECT status FROM public.tasks") == "cancelled"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    entries = (await client.http.get("/api/generations")).json()["generations"]
    assert [entry["status"] for entry in entries] == (["cancelled"] if what == "tasks" else [])


# --- what is refused --------------------------------------------------------------------------------------------------


async def test_wrong_texts_and_languages_are_refused_alike(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    assert problem_of(await post(client, voice_id, "  "), 400, "validation") == "Please enter text to speak"
    too_long = await post(client, voice_id, "a" * 2001)
    assert problem_of(too_long, 400, "validation") == "Text cannot exceed 2000 characters"
    body = {"voice_id": str(voice_id), "text": "x", "language": "Klingon"}
    problem_of(await client.http.post("/api/generate", json=body), 400, "validation", says="language")
    problem_of(await post(client, uuid4()), 404, "not_found")
    assert simulator.calls == []


async def test_what_belongs_to_somebody_else_does_not_exist(gateway: Gateway, client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    task, generation = f"/api/tasks/{answer['task_id']}", f"/api/generations/{answer['generation_id']}"
    async with gateway.client() as stranger:
        problem_of(await post(stranger, voice_id), 404, "not_found")
        for ask, address in (
            (stranger.http.get, task),
            (stranger.http.delete, task),
            (stranger.http.delete, generation),
            (stranger.http.get, f"{generation}/audio"),
        ):
            problem_of(await ask(address), 404, "not_found")
        for address in (f"{task}/cancel", f"{generation}/regenerate"):
            problem_of(await stranger.http.post(address), 404, "not_found")
        assert (await stranger.http.get("/api/generations")).json()["generations"] == []
        assert (await stranger.http.get("/api/voices")).json()["voices"] == []
    problem_of(await client.http.get("/api/tasks/not-a-uuid"), 400, "validation")
    async with httpx.AsyncClient(base_url=client.url) as nobody:
        problem_of(await nobody.get(task), 401, "unauthorized")
    assert (await client.task(answer["task_id"]))["status"] == "completed"


async def test_an_older_index_of_one_generation_at_a_time_is_answered_409(
    client: Client, voice_id: UUID, rows: Rows, simulator: Simulator, endless: None
) -> None:
    await rows.execute(
        """CREATE UNIQUE INDEX one_at_a_time ON public.generations (user_id)
            WHERE status IN ('pending', 'processing')"""
    )

    def begun() -> int:
        """Without the polls of a job that runs, which come whenever they come."""
        return sum(call["action"] != "status" for call in simulator.calls)

    await client.generate(voice_id)
    await simulator.until(lambda _: begun() == 1)
    problem_of(await post(client, voice_id), 409, "conflict", says="A generation is already in progress.")
    assert begun() == 1


# --- asking twice, asking too much ------------------------------------------------------------------------------------


async def test_a_repeated_request_gets_the_first_answer(client: Client, voice_id: UUID, rows: Rows) -> None:
    key = {"Idempotency-Key": "the same again"}
    answers = await asyncio.gather(*(post(client, voice_id, **key) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    ids = {(answer.json()["task_id"], answer.json()["generation_id"]) for answer in answers}
    assert len(ids) == 1
    [(task_id, _)] = ids
    await client.ended(task_id)
    assert (await post(client, voice_id, **key)).json()["task_id"] == task_id
    problem_of(await post(client, voice_id, "Another text.", **key), 409, "conflict")
    assert await rows.fetchval("SELECT count(*) FROM public.generations") == 1
    assert (await post(client, voice_id, **{"Idempotency-Key": "another"})).json()["task_id"] != task_id


async def test_too_much_that_waits_is_answered_503(settings: Settings, rows: Rows, simulator: Simulator) -> None:
    async with running_gateway(replace(settings, queue_limit=0)) as gateway, gateway.client() as client:
        refused = await post(client, await voice_for(gateway, rows, client.user_id), **{"Idempotency-Key": "full"})
    problem_of(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    assert simulator.calls == []
    for table in ("public.tasks", "public.generations", "internal.runs", "internal.purchases", "internal.idempotency"):
        assert await rows.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_many_texts_at_once_end_each_on_its_own(client: Client, voice_id: UUID) -> None:
    answers = [await client.generate(voice_id, f"Number {number}.") for number in range(12)]
    tasks = await asyncio.gather(*(client.ended(answer["task_id"]) for answer in answers))
    assert {task["status"] for task in tasks} == {"completed"}
    sounds = {await client.audio(answer["generation_id"]) for answer in answers}
    assert len(sounds) == 12


# --- the page ---------------------------------------------------------------------------------------------------------


async def test_the_page_is_told_who_speaks_and_how(client: Client, mode: ProviderMode) -> None:
    said = (await client.http.get("/api/languages")).json()
    assert said["provider"] == mode
    assert (said["default"], said["default"] in said["languages"]) == ("Auto", True)
    streams = said["capabilities"]["supports_generate_stream"]
    assert said["capabilities"]["default_generate_mode"] == ("stream" if streams else "task")
    assert streams is (mode == "qwen")


@pytest.mark.parametrize("mode", ["qwen"], indirect=True)
async def test_a_client_of_v1_cannot_tell_who_speaks(settings: Settings, rows: Rows) -> None:
    """The same steps in both modes, on the same database: the same statuses, and the same members of the same types."""
    seen = []
    for with_settings in (settings, in_mode(settings, "modal")):
        async with running_gateway(with_settings) as gateway, gateway.client() as client:
            seen.append(await _as_the_page(client, await voice_for(gateway, rows, client.user_id)))
    assert seen[0] == seen[1]


async def _as_the_page(client: Client, voice_id: UUID) -> list[Any]:
    """What the page does with a text, as (status, shape of the answer)."""
    steps: list[Any] = []

    async def step(method: str, address: str, **body: Any) -> Any:
        response = await client.http.request(method, address, **body)
        json = response.json() if "json" in response.headers.get("content-type", "") else None
        steps.append((method, response.status_code, shape(json)))
        return json

    await step("GET", "/api/languages")
    await step("GET", "/api/voices")
    body = {"voice_id": str(voice_id), "text": "Good evening.", "language": "Auto", "model": "0.6B"}
    answer = await step("POST", "/api/generate", json=body)
    task, generation = f"/api/tasks/{answer['task_id']}", f"/api/generations/{answer['generation_id']}"
    await client.ended(answer["task_id"])
    await step("GET", task)
    await step("POST", f"{task}/cancel")
    await step("GET", f"{generation}/audio")
    await step("DELETE", task)
    await step("GET", task)
    await step("GET", "/api/generations?page=1&per_page=20&search=good")
    await step("POST", f"{generation}/regenerate")
    await step("DELETE", generation)
    await step("POST", "/api/generate", json={**body, "text": ""})
    await step("POST", "/api/generate", json={**body, "voice_id": str(uuid4())})
    return steps


def shape(value: Any) -> Any:
    """Names and types, without what tells the providers apart on purpose."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items() if name not in PROVIDER_FIELDS}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
