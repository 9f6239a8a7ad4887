"""POST /api/voices/design/preview and /api/voices/design: what they take, what they refuse, and in which words."""

import asyncio
from base64 import b64encode
from dataclasses import replace
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from server.audio import parse_wav
from server.dev.simulator import Simulator
from server.settings import VD_REALTIME, Settings
from server.storage import Bucket
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import counted, problem_of
from tests.support import wait_for
from tests.voices import DESIGN, billed, creations, listed, previewed, recording, save, save_form, start_preview

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def voices_in(rows: Rows) -> int:
    count: int = await rows.fetchval("SELECT count(*) FROM public.voices")
    return count


async def fetched(address: str) -> httpx.Response:
    """What somebody without a token gets."""
    async with httpx.AsyncClient() as anybody:
        return await anybody.get(address)


async def test_a_preview_that_nobody_would_soon_make_is_refused(settings: Settings, simulator: Simulator) -> None:
    async with running_gateway(replace(settings, queue_limit=0)) as gateway, gateway.client() as client:
        response = await client.http.post("/api/voices/design/preview", json=DESIGN)
        problem_of(response, 503, "overloaded", says="try again")
        assert int(response.headers["retry-after"]) > 0
        assert await counted(client.http, "queue") == 1
        assert not simulator.calls


# --- the preview ------------------------------------------------------------------------------------------------------


async def test_a_preview_is_a_task_with_a_link_to_its_audio(client: Client, simulator: Simulator, rows: Rows) -> None:
    answer = await client.http.post("/api/voices/design/preview", json=DESIGN)
    assert answer.status_code == 200
    task_id = answer.json()["task_id"]
    assert answer.json() == {"task_id": task_id, "status": "pending"}
    task = await client.ended(task_id)
    assert (task["type"], task["status"], task["provider"], task["generation_id"]) == (
        "design_preview",
        "completed",
        "qwen",
        None,
    )
    assert task["provider_request_id"].startswith("simulated-")
    assert "stream_url" not in task
    assert task["result"].keys() == {"audio_url", "object_key"}
    assert task["result"]["object_key"] == f"{client.user_id}/preview_{task_id}.wav"
    [call] = creations(simulator)
    asked = {"text": DESIGN["text"], "voice_prompt": DESIGN["instruct"], "language": "en", "model": VD_REALTIME}
    assert {name: call[name] for name in asked} == asked
    assert parse_wav((await fetched(task["result"]["audio_url"])).content).duration_seconds > 0.5
    stored = await rows.fetchval("SELECT result FROM public.tasks")
    assert stored.keys() == {"object_key"}, "links expire, so none is kept"


async def test_a_preview_reads_processing_from_its_first_poll_on_and_ends_without_being_polled(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    plan = simulator.behave("customization", {"do": "hold"})
    task_id = await start_preview(client)
    task = await client.task(task_id)
    assert (task["status"], "result" in task) == ("processing", False)
    await plan.held()
    assert (await client.task(task_id))["provider_status"] == "provider_synthesizing"
    plan.release()
    await simulator.until(lambda calls: "status" in calls[0])

    async def ended() -> bool:
        return bool(await rows.fetchval("SELECT status = 'completed' FROM public.tasks"))

    await wait_for(ended)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"text": ""}, "`text` must have at least 1 character"),
        ({"text": " \n "}, "Please enter a text"),
        ({"text": "x" * 501}, "`text` must have at most 500"),
        ({"instruct": ""}, "`instruct`"),
        ({"instruct": "x" * 501}, "`instruct` must have at most 500"),
        ({"text": "\u200b"}, "Please enter a text"),
        ({"instruct": " \u2060 "}, "Please enter a text"),
        ({"instruct": "\u3164"}, "Please enter a text"),
        ({"text": "\u3164"}, "There is nothing to speak in this text"),
        ({"text": "…"}, "There is nothing to speak in this text"),
        ({"text": "👍"}, "There is nothing to speak in this text"),
        ({"language": "Klingon"}, "language is not supported"),
        ({"text": "a\0b"}, "cannot be stored"),
        ({"text": 5}, "`text` must be a string"),
    ],
)
async def test_a_preview_of_nothing_is_refused(
    client: Client, simulator: Simulator, rows: Rows, fields: dict[str, Any], says: str
) -> None:
    answer = await client.http.post("/api/voices/design/preview", json={**DESIGN, **fields})
    problem_of(answer, 400, "validation", says=says)
    assert simulator.calls == []
    assert await rows.fetchval("SELECT count(*) FROM public.tasks") == 0


@pytest.mark.parametrize(
    ("text", "language", "iso"),
    [
        ("Good evening.", "Auto", "en"),
        ("晚上好，欢迎光临。", "Auto", "zh"),
        ("こんばんは、ようこそ。", "Auto", "ja"),
        ("안녕하세요, 반갑습니다.", "Auto", "ko"),
        ("Добрый вечер.", "Auto", "ru"),
        ("Guten Abend.", "german", "de"),
    ],
)
async def test_the_provider_is_told_a_language(
    client: Client, simulator: Simulator, text: str, language: str, iso: str
) -> None:
    await previewed(client, text=text, language=language)
    assert creations(simulator)[0]["language"] == iso


@pytest.mark.parametrize("oddity", ["request_id", "target_model", "data url"])
async def test_an_oddity_beside_a_preview_does_not_lose_it(
    client: Client, simulator: Simulator, rows: Rows, oddity: str
) -> None:
    """It is paid for, and cannot be had again."""
    audio = b64encode(recording()).decode()
    output: dict[str, Any] = {"voice": "qwen-tts-vd-x-voice-1", "preview_audio": {"data": audio}}
    if oddity == "data url":
        output["preview_audio"]["data"] = f"data:audio/wav;base64,{audio}"
    if oddity == "target_model":
        output["target_model"] = 5
    answer = {"output": output, "request_id": 77 if oddity == "request_id" else "a"}
    simulator.behave("customization", {"do": "answer", "json": answer}, action="create")
    saved = await save(client, await previewed(client))
    assert saved.status_code == 200, saved.text
    assert (await listed(client))[0]["compatible"] is True


@pytest.mark.parametrize(
    ("behaviour", "category", "says"),
    [
        ({"do": "error", "code": "DataInspectionFailed"}, "provider_rejected", "content filter"),
        ({"do": "error", "code": "InvalidApiKey"}, "provider_rejected", "operator"),
        ({"do": "error", "code": "Throttling.RateQuota"}, "provider_unavailable", "busy"),
        ({"do": "error", "code": "InternalError"}, "provider_unavailable", "try again"),
        ({"do": "abort"}, "timeout", "in time"),
        ({"do": "answer", "json": {"output": {"voice": "qwen-tts-vd-x-voice-1"}}}, "timeout", "make the preview again"),
        (
            {"do": "answer", "json": {"output": {"voice": "qwen-tts-vd-x", "preview_audio": {"data": "anVuaw=="}}}},
            "timeout",
            "make the preview again",
        ),
    ],
    ids=["content", "key", "throttled", "broken", "no answer", "no preview", "a preview that is no audio"],
)
async def test_a_preview_that_fails_says_why_and_is_not_tried_again(
    client: Client, simulator: Simulator, behaviour: dict[str, Any], category: str, says: str
) -> None:
    simulator.behave("customization", behaviour)
    task = await client.ended(await start_preview(client))
    assert (task["status"], task["error_category"], "result" in task) == ("failed", category, False)
    assert says in task["error"]
    assert len(creations(simulator)) == 1


async def test_a_repeated_request_with_its_key_is_one_preview(client: Client, simulator: Simulator) -> None:
    tasks = await asyncio.gather(*(start_preview(client, key="once") for _ in range(10)))
    assert len(set(tasks)) == 1
    await client.ended(tasks[0])
    assert await start_preview(client, key="once") == tasks[0]
    headers = {"Idempotency-Key": "once"}
    other = await client.http.post("/api/voices/design/preview", json={**DESIGN, "text": "Other."}, headers=headers)
    problem_of(other, 409, "conflict", says="Idempotency-Key")
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_two_previews_without_a_key_are_two(client: Client, simulator: Simulator) -> None:
    await asyncio.gather(previewed(client), previewed(client))
    assert billed(simulator) == 2


# --- saving -----------------------------------------------------------------------------------------------------------


async def test_a_preview_is_saved_with_everything_the_provider_said(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    task_id = await previewed(client)
    answer = await save(client, task_id)
    assert answer.status_code == 200, answer.text
    [call] = creations(simulator)
    voice_id = answer.json()["id"]
    assert answer.json() == {
        "id": voice_id,
        "name": "Grace",
        "description": DESIGN["instruct"],
        "language": "English",
        "source": "designed",
        "preview_url": f"/api/voices/{voice_id}/preview",
    }
    stored = await rows.fetchrow("SELECT * FROM public.voices")
    assert stored
    assert dict(stored) == {
        "created_at": stored["created_at"],
        "id": UUID(voice_id),
        "user_id": client.user_id,
        "name": "Grace",
        "reference_object_key": f"{client.user_id}/{voice_id}/reference.wav",
        "reference_transcript": DESIGN["text"],
        "language": "English",
        "source": "designed",
        "description": DESIGN["instruct"],
        "tts_provider": "qwen",
        "provider_voice_id": call["voice"],
        "provider_target_model": VD_REALTIME,
        "provider_voice_kind": "vd",
        "provider_region": "intl",
        "provider_request_id": (await client.task(task_id))["provider_request_id"],
        "provider_metadata": {},
        "deleted_at": None,
        "preview_task_id": UUID(task_id),
    }
    preview = await client.http.get(f"/api/voices/{voice_id}/preview")
    assert preview.status_code == 302
    heard = await fetched(client.url + preview.headers["location"])
    assert heard.content == (await fetched((await client.task(task_id))["result"]["audio_url"])).content


@pytest.mark.parametrize("form", ["json with the task", "form with the task", "form without the task"])
@pytest.mark.parametrize("deleted", [False, True], ids=["task there", "task deleted"])
async def test_every_way_of_saving_finds_the_preview_also_after_its_task_was_deleted(
    client: Client, simulator: Simulator, form: str, deleted: bool
) -> None:
    task_id = await previewed(client)
    if deleted:
        assert (await client.http.delete(f"/api/tasks/{task_id}")).json() == {"ok": True}
        problem_of(await client.http.get(f"/api/tasks/{task_id}"), 404, "not_found")
    if form == "json with the task":
        answer = await save(client, task_id)
    else:
        answer = await save_form(client, task_id if form == "form with the task" else None)
    assert answer.status_code == 200, answer.text
    [voice] = await listed(client)
    assert (voice["id"], voice["provider_voice_id"]) == (answer.json()["id"], creations(simulator)[0]["voice"])
    assert len(simulator.calls) == 1, "saving never calls the provider"


async def test_a_task_whose_row_has_gone_for_good_can_still_be_saved(client: Client, rows: Rows) -> None:
    """A day after its deletion the row goes; what was bought stays."""
    task_id = await previewed(client)
    await rows.execute("DELETE FROM public.tasks")
    assert (await save(client, task_id)).status_code == 200
    assert (await save_form(client)).status_code == 200
    assert await voices_in(rows) == 1


async def test_a_voice_that_was_deleted_is_not_saved_back_into_a_library_where_nobody_sees_it(
    client: Client, simulator: Simulator
) -> None:
    task_id = await previewed(client)
    voice = (await save(client, task_id)).json()
    await client.http.delete(f"/api/voices/{voice['id']}")
    for answer in (await save(client, task_id), await save_form(client), await save_form(client, task_id)):
        problem_of(answer, 404, "not_found", says="was deleted")
    assert await listed(client) == []
    assert (await save(client, await previewed(client))).status_code == 200, "a new preview is a new voice"
    assert billed(simulator) == 2


async def test_a_preview_of_the_other_provider_is_refused_with_the_reason(
    settings: Settings, client: Client, rows: Rows
) -> None:
    """It did succeed, before the switch."""
    task_id = await previewed(client)
    await rows.execute("DELETE FROM internal.purchases")
    problem_of(await save(client, task_id), 409, "conflict", says="another speech provider")


async def test_fifty_saves_at_once_are_one_voice(client: Client, simulator: Simulator, rows: Rows) -> None:
    task_id = await previewed(client)
    ways = (save(client, task_id), save_form(client, task_id), save_form(client))
    answers = await asyncio.gather(
        *ways, *(save(client, task_id, name=f"Grace {n}") for n in range(24)), *(save_form(client) for _ in range(23))
    )
    assert len(answers) == 50
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == await voices_in(rows) == 1
    assert len(simulator.calls) == billed(simulator) == 1


async def test_the_form_is_matched_to_the_newest_preview_of_the_same_design(
    client: Client, simulator: Simulator
) -> None:
    await previewed(client)
    newest = await previewed(client)
    for fields in ({"text": "Another text."}, {"instruct": "A shrill voice."}, {"language": "French"}):
        await previewed(client, **fields)
    assert (await save_form(client)).status_code == 200
    [voice] = await listed(client)
    in_order = sorted(creations(simulator), key=lambda call: call["id"])
    assert voice["provider_voice_id"] == in_order[1]["voice"]
    assert (await save(client, newest)).json()["id"] == voice["id"]


async def test_line_breaks_are_the_same_however_a_browser_writes_them(client: Client) -> None:
    """JSON has what was typed; a form has CR LF for every line break, which may make a text longer than allowed."""
    text, instruct = "Good evening.\nWelcome.\n" + "x" * 476, "Calm.\n\nLow.\n" + "y" * 488
    task_id = await previewed(client, text=text, instruct=instruct)
    in_a_form: dict[str, Any] = {"text": text.replace("\n", "\r\n"), "instruct": instruct.replace("\n", "\r\n")}
    assert len(in_a_form["text"]) > 500
    without_task = await save_form(client, **in_a_form)
    assert without_task.status_code == 200, without_task.text
    assert (await save_form(client, task_id, **in_a_form)).json()["id"] == without_task.json()["id"]


async def test_what_the_form_brings_along_is_thrown_away(client: Client) -> None:
    await previewed(client)
    first = await save_form(client, audio=b"no audio at all")
    assert first.status_code == 200
    assert (await save_form(client, audio=bytes(9 * 1024 * 1024))).json() == first.json()
    assert (await save_form(client, audio=None)).json() == first.json()
    problem_of(await save_form(client, audio=bytes(10 * 1024 * 1024 + 1)), 413, "too_large")


async def test_a_designed_voice_can_be_spoken_with_at_once(client: Client, simulator: Simulator) -> None:
    voice_id = (await save(client, await previewed(client))).json()["id"]
    answer = await client.generate(UUID(voice_id))
    assert (await client.ended(answer["task_id"]))["status"] == "completed"
    assert simulator.calls[-1]["voice"] == creations(simulator)[0]["voice"]


# --- what cannot be saved ---------------------------------------------------------------------------------------------


async def test_a_preview_that_is_not_finished_is_refused_with_words_and_no_row(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    plan = simulator.behave("customization", {"do": "hold"})
    task_id = await start_preview(client)
    await plan.held()
    problem_of(await save(client, task_id), 409, "conflict", says="not finished yet")
    problem_of(await save_form(client), 400, "validation", says="no finished preview")
    assert await voices_in(rows) == 0
    plan.release()
    await client.ended(task_id)
    assert (await save(client, task_id)).status_code == 200


async def test_a_failed_or_cancelled_preview_is_refused_with_words_and_no_row(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("customization", {"do": "error", "code": "InternalError"})
    failed = await start_preview(client)
    await client.ended(failed)
    plan = simulator.behave("customization", {"do": "hold"})
    cancelled = await start_preview(client)
    await plan.held()
    await client.http.post(f"/api/tasks/{cancelled}/cancel")
    plan.release()
    for task_id in (failed, cancelled):
        problem_of(await save(client, task_id), 409, "conflict", says="did not succeed")
    problem_of(await save_form(client), 400, "validation", says="no finished preview")
    assert await voices_in(rows) == 0


async def test_a_missing_or_foreign_preview_is_refused_with_words_and_no_row(
    gateway: Gateway, client: Client, rows: Rows
) -> None:
    theirs = await previewed(client)
    async with gateway.client() as stranger:
        for task_id in (theirs, str(uuid4())):
            problem_of(await save(stranger, task_id), 404, "not_found", says="does not exist")
            problem_of(await save_form(stranger, task_id), 404, "not_found", says="does not exist")
        problem_of(await save_form(stranger), 400, "validation", says="no finished preview")
    assert await voices_in(rows) == 0


async def test_a_task_that_is_no_preview_is_refused(client: Client, database_url: str, rows: Rows) -> None:
    voice_id = await insert_voice(database_url, client.user_id)
    spoken = (await client.generate(voice_id))["task_id"]
    await client.ended(spoken)
    problem_of(await save(client, spoken), 404, "not_found")
    assert await voices_in(rows) == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "`name` must have at most 100"),
        ({"text": "x" * 501}, "`text` must have at most 500"),
        ({"language": "Klingon"}, "language is not supported"),
        ({"task_id": "no uuid"}, "`task_id` must be a UUID"),
    ],
)
async def test_bad_input_is_refused_in_json_and_in_a_form(client: Client, fields: dict[str, str], says: str) -> None:
    task_id = await previewed(client)
    asked: dict[str, Any] = {"task_id": task_id, **fields}
    problem_of(await save(client, **asked), 400, "validation", says=says)
    problem_of(await save_form(client, **asked), 400, "validation", says=says)
    assert await listed(client) == []


async def test_a_preview_whose_audio_has_gone_cannot_be_saved(
    gateway: Gateway, client: Client, simulator: Simulator
) -> None:
    task_id = await previewed(client)
    await gateway.parts.storage.delete(Bucket.GENERATIONS, f"{client.user_id}/preview_{task_id}.wav")
    problem_of(await save(client, task_id), 409, "conflict", says="make it again")
    assert await listed(client) == []


async def test_the_next_design_is_made_for_the_model_of_the_settings(settings: Settings, simulator: Simulator) -> None:
    model = "qwen3-tts-vd-2026-01-26"
    async with running_gateway(replace(settings, qwen_vd_target_model=model)) as gateway, gateway.client() as client:
        assert (await save(client, await previewed(client))).status_code == 200
        [voice] = await listed(client)
    assert (voice["provider_target_model"], voice["provider_voice_kind"], voice["streamable"]) == (model, "vd", True)
