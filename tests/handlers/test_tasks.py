"""/api/tasks/:id: what clients poll, cancel and put away."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from server.dev.simulator import Planned, Simulator
from server.storage import Bucket
from tests.gateway import Client, Gateway
from tests.handlers.wire import exchange, problem_of
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MEMBERS = {
    "id",
    "type",
    "status",
    "error",
    "error_category",
    "generation_id",
    "created_at",
    "completed_at",
    "provider",
    "provider_status",
    "provider_poll_count",
    "provider_request_id",
    "modal_status",
    "modal_elapsed_seconds",
    "modal_poll_count",
    "stream_url",
    "audio",
}


@pytest.fixture
def held(simulator: Simulator, client: Client) -> Iterator[Planned]:
    """The next speech stops after its first delta until it is released, or cancelled, or the test is over."""
    planned = simulator.behave("realtime", {"do": "hold", "after_deltas": 1, "delta_bytes": 1000})
    yield planned
    planned.release()


async def streaming(client: Client, task_id: str) -> dict[str, Any]:
    """The task's answer once its first audio is durable."""

    async def heard() -> dict[str, Any] | None:
        task = await client.task(task_id)
        return task if task["provider_status"] == "streaming" and task["audio"]["bytes"] else None

    return await wait_for(heard)


def is_utc(text: str) -> bool:
    return text.endswith("Z") and datetime.fromisoformat(text).tzinfo is not None


# --- polling ----------------------------------------------------------------------------------------------------------


async def test_a_running_task_has_the_members_of_the_contract_and_no_result(
    client: Client, voice_id: UUID, held: Planned
) -> None:
    answer = await client.generate(voice_id)
    task = await streaming(client, answer["task_id"])
    held.release()
    assert task.keys() == MEMBERS
    assert (task["id"], task["generation_id"]) == (answer["task_id"], answer["generation_id"])
    assert (task["type"], task["status"], task["provider"]) == ("generate", "processing", "qwen")
    assert (task["error"], task["error_category"], task["completed_at"]) == (None, None, None)
    assert (task["modal_status"], task["modal_elapsed_seconds"], task["modal_poll_count"]) == (None, None, 0)
    assert is_utc(task["created_at"])
    audio = task["audio"]
    assert audio.keys() == {"format", "mime", "sample_rate", "header_bytes", "bytes", "seconds"}
    assert (audio["format"], audio["mime"], audio["sample_rate"]) == ("mp3", "audio/mpeg", 24000)
    assert (audio["header_bytes"], audio["bytes"]) == (0, 1000)
    assert isinstance(audio["seconds"], float)


async def test_a_completed_task_has_a_result_that_can_be_fetched_at_once(
    client: Client, voice_id: UUID, gateway: Gateway
) -> None:
    """`completed` is never shown before the durable object exists."""
    answer = await client.generate(voice_id)
    task = await client.ended(answer["task_id"])
    key = f"{client.user_id}/{answer['generation_id']}.mp3"
    stored = await gateway.parts.storage.head(Bucket.GENERATIONS, key)
    assert stored
    assert task.keys() == MEMBERS | {"result"}
    assert (task["status"], task["provider_status"], task["error"]) == ("completed", "completed", None)
    assert task["result"] == {"audio_url": f"/api/generations/{answer['generation_id']}/audio"}
    assert is_utc(task["completed_at"])
    assert task["audio"]["bytes"] == stored.size
    assert task["audio"]["seconds"] > 0


async def test_a_failed_task_says_why_and_has_nothing_to_hear(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"do": "error", "after_deltas": 1, "code": "InternalError", "message": "raw payload"})
    answer = await client.generate(voice_id)
    task = await client.ended(answer["task_id"])
    assert task.keys() == MEMBERS - {"stream_url"}
    assert (task["status"], task["provider_status"]) == ("failed", "failed")
    assert task["error_category"] == "provider_unavailable"
    assert task["error"]
    assert "raw payload" not in task["error"]
    assert is_utc(task["completed_at"])


async def test_a_refused_task_names_the_providers_request(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    """For whoever has to ask the provider about it."""
    simulator.behave("realtime", {"refuse": 403})
    task = await client.ended((await client.generate(voice_id))["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_rejected")
    assert task["provider_request_id"].startswith("simulated-")


async def test_polling_calls_no_provider_and_counts_nothing(
    client: Client, voice_id: UUID, simulator: Simulator, held: Planned
) -> None:
    answer = await client.generate(voice_id)
    await streaming(client, answer["task_id"])
    before = len(simulator.calls)
    polls = [await client.task(answer["task_id"]) for _ in range(5)]
    held.release()
    assert len(simulator.calls) == before
    assert {(poll["provider_poll_count"], poll["modal_poll_count"]) for poll in polls} == {(0, 0)}


async def test_each_poll_brings_a_ticket_that_works(client: Client, voice_id: UUID) -> None:
    """Also after the end, for a page that was reloaded and wants to hear it again."""
    answer = await client.generate(voice_id)
    task = await client.ended(answer["task_id"])
    async with client.events(task["stream_url"]) as events:
        last = [event async for event in events][-1]
    assert last.terminal
    assert last.data["status"] == "completed"


async def test_a_task_of_another_system_is_shown(client: Client, rows: Rows) -> None:
    """Rows that the older system wrote: no generation any more, no metadata of ours, a result of its own."""
    task_id = await rows.fetchval(
        """INSERT INTO public.tasks (user_id, type, status, provider, result, completed_at)
           VALUES ($1, 'generate', 'completed', 'modal', '{"audio_url": "/somewhere"}', now()) RETURNING id""",
        client.user_id,
    )
    task = await client.task(str(task_id))
    assert (task["status"], task["generation_id"], task["provider"]) == ("completed", None, "modal")
    assert "stream_url" not in task
    assert "audio" not in task


async def test_a_speech_of_another_system_is_shown_whatever_its_format(client: Client, rows: Rows) -> None:
    """What we would never store has no audio that we could describe; it is still there to be downloaded."""
    for name in ("opus", "pcm", "MP3", ""):
        generation_id = await rows.fetchval(
            """INSERT INTO public.generations
                    (user_id, text, status, tts_provider, output_format, audio_object_key, completed_at)
               VALUES ($1, 'Good evening.', 'completed', 'qwen', $2, $1::uuid || '/b.opus', now())
               RETURNING id""",
            client.user_id,
            name,
        )
        task_id = await rows.fetchval(
            """INSERT INTO public.tasks (user_id, type, status, provider, generation_id, result, metadata)
               VALUES ($1, 'generate', 'completed', 'qwen', $2, '"a string"', '[]') RETURNING id""",
            client.user_id,
            generation_id,
        )
        task = await client.task(str(task_id))
        assert task["status"] == "completed"
        assert task["result"] == {"audio_url": f"/api/generations/{generation_id}/audio"}
        assert "audio" not in task
        assert (await client.http.get(task["result"]["audio_url"])).status_code == 302


# --- whose it is ------------------------------------------------------------------------------------------------------


async def test_an_unknown_a_foreign_and_a_hidden_task_are_the_same_404(
    gateway: Gateway, client: Client, voice_id: UUID, held: Planned, rows: Rows
) -> None:
    mine = (await client.generate(voice_id))["task_id"]
    await streaming(client, mine)
    hidden = await rows.fetchval(
        "INSERT INTO public.tasks (user_id, type, deleted_at) VALUES ($1, 'generate', now()) RETURNING id",
        client.user_id,
    )
    async with gateway.client() as stranger:
        for asking, task_id in ((client, uuid4()), (client, hidden), (stranger, mine)):
            for method, address in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
                response = await asking.http.request(method, f"/api/tasks/{task_id}{address}")
                assert problem_of(response, 404, "not_found") == "This task does not exist."
    assert (await client.task(mine))["status"] == "processing", "nobody else could touch it"
    held.release()


async def test_an_id_that_is_no_uuid_is_400(client: Client) -> None:
    for task_id in ("1", "abc", "00000000-0000-0000-0000-00000000000", f"{{{uuid4()}}}", f"urn:uuid:{uuid4()}", "null"):
        for method, address in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            response = await client.http.request(method, f"/api/tasks/{task_id}{address}")
            problem_of(response, 400, "validation", says="task id")


@pytest.mark.usefixtures("unspoken")
async def test_every_spelling_of_a_uuid_finds_the_task(client: Client, voice_id: UUID) -> None:
    task_id = UUID((await client.generate(voice_id))["task_id"])
    for spelled in (str(task_id), str(task_id).upper(), task_id.hex):
        assert (await client.task(spelled))["id"] == str(task_id)


# --- cancelling -------------------------------------------------------------------------------------------------------


async def test_cancel_is_committed_before_it_answers(
    client: Client, voice_id: UUID, held: Planned, rows: Rows, gateway: Gateway
) -> None:
    """Both rows say so, the run and its audio are gone, and nothing completes afterwards."""
    answer = await client.generate(voice_id)
    task_id = answer["task_id"]
    await streaming(client, task_id)
    response = await client.http.post(f"/api/tasks/{task_id}/cancel")
    assert (response.status_code, response.json()) == (200, {"cancelled": True, "task_id": task_id})
    for table, error in (("tasks", "error"), ("generations", "error_message")):
        row = await rows.fetchrow(f"SELECT status, {error} AS error, completed_at FROM public.{table}")
        assert row
        assert (row["status"], row["error"]) == ("cancelled", "Cancelled by user")
        assert row["completed_at"]
    assert not await rows.fetchval("SELECT count(*) FROM internal.runs")
    assert not await rows.fetchval("SELECT count(*) FROM internal.spool")
    task = await client.task(task_id)
    assert (task["status"], task["error"], task["error_category"]) == ("cancelled", "Cancelled by user", "cancelled")
    assert "stream_url" not in task
    held.release()
    await wait_for(lambda: not gateway.parts.leases.speaking)
    assert await client.task(task_id) | {"stream_url": None} == task | {"stream_url": None}
    assert (
        await gateway.parts.storage.head(Bucket.GENERATIONS, f"{client.user_id}/{answer['generation_id']}.mp3") is None
    )


async def test_cancelling_what_has_ended_answers_its_status_and_changes_nothing(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"do": "error", "after_deltas": 1}, text_contains="fails")
    simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="cancelled")
    for text, status in (("completed", "completed"), ("fails", "failed"), ("cancelled", "cancelled")):
        task_id = (await client.generate(voice_id, text))["task_id"]
        if status == "cancelled":
            await client.http.post(f"/api/tasks/{task_id}/cancel")
        before = await client.ended(task_id)
        for _ in range(2):
            response = await client.http.post(f"/api/tasks/{task_id}/cancel")
            assert (response.status_code, response.json()) == (
                200,
                {"cancelled": status == "cancelled", "task_id": task_id, "status": status},
            )
        assert await client.task(task_id) | {"stream_url": None} == before | {"stream_url": None}


async def test_cancel_needs_no_body_and_minds_none(client: Client, voice_id: UUID, gateway: Gateway) -> None:
    """The page sends none, and no content type either."""
    task_id = (await client.generate(voice_id))["task_id"]
    await client.ended(task_id)
    for headers, body in (("", b""), ("Content-Length: 0\n", b""), ("Content-Length: 3\n", b"{{{")):
        head = f"POST /api/tasks/{task_id}/cancel HTTP/1.1\nHost: x\nAuthorization: Bearer {client.token}\n{headers}"
        assert (await exchange(gateway.url, head, body)).status == 200


# --- putting away -----------------------------------------------------------------------------------------------------


async def test_delete_hides_the_task_and_keeps_generation_and_audio(client: Client, voice_id: UUID, rows: Rows) -> None:
    answer = await client.generate(voice_id)
    task_id = answer["task_id"]
    await client.ended(task_id)
    response = await client.http.delete(f"/api/tasks/{task_id}")
    assert (response.status_code, response.json()) == (200, {"ok": True})
    for method, address in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
        problem_of(await client.http.request(method, f"/api/tasks/{task_id}{address}"), 404, "not_found")
    assert len(await client.audio(answer["generation_id"])) > 0
    history = (await client.http.get("/api/generations")).json()["generations"]
    assert [(entry["id"], entry["status"]) for entry in history] == [(answer["generation_id"], "completed")]
    assert await rows.fetchval("SELECT deleted_at FROM public.tasks WHERE id = $1", UUID(task_id))


async def test_delete_cancels_what_still_runs(client: Client, voice_id: UUID, held: Planned, rows: Rows) -> None:
    answer = await client.generate(voice_id)
    await streaming(client, answer["task_id"])
    assert (await client.http.delete(f"/api/tasks/{answer['task_id']}")).json() == {"ok": True}
    assert await rows.fetchval("SELECT status FROM public.tasks") == "cancelled"
    history = (await client.http.get("/api/generations")).json()["generations"]
    assert [(entry["status"], entry["error_message"]) for entry in history] == [("cancelled", "Cancelled by user")]
    problem_of(await client.http.get(f"/api/generations/{answer['generation_id']}/audio"), 404, "not_found")
    held.release()


async def test_audio_that_is_being_fetched_survives_the_delete(
    client: Client, voice_id: UUID, gateway: Gateway
) -> None:
    """The page sends DELETE about 0.1 s after the end, while it fetches the audio."""
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    redirect = await client.http.get(f"/api/generations/{answer['generation_id']}/audio")
    async with (
        httpx.AsyncClient(base_url=gateway.url) as anybody,
        anybody.stream("GET", redirect.headers["location"]) as response,
    ):
        assert (await client.http.delete(f"/api/tasks/{answer['task_id']}")).status_code == 200
        heard = await response.aread()
    assert heard == await client.audio(answer["generation_id"])
