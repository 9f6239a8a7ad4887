"""POST /api/generate: what is accepted, what is answered, what is created, and every reason to refuse."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.handlers.present import minutes_estimated
from server.settings import VC_REALTIME, VD_REALTIME, Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import counted, problem_of
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

FACE = "\U0001f600"  # one character to a person, two to a browser


async def nothing_was_created(rows: Rows) -> bool:
    """No generation, task, run, job or remembered key."""
    counts = [
        await rows.fetchval(f"SELECT count(*) FROM {table}")
        for table in (
            "public.generations",
            "public.tasks",
            "internal.runs",
            "internal.idempotency",
            "internal.procrastinate_jobs",
        )
    ]
    return not any(counts)


# --- what is answered -------------------------------------------------------------------------------------------------


async def test_the_answer_has_the_members_of_the_contract(client: Client, voice_id: UUID) -> None:
    response = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Good evening."})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    task_id, generation_id = answer.pop("task_id"), answer.pop("generation_id")
    assert str(UUID(task_id)) == task_id
    assert str(UUID(generation_id)) == generation_id
    assert re.fullmatch(rf"/api/generate/stream\?task_id={task_id}&ticket=[A-Za-z0-9_-]+", answer.pop("stream_url"))
    assert answer == {"status": "processing", "is_long_running": True, "estimated_duration_minutes": 0.1}


@pytest.mark.parametrize(
    ("characters", "minutes"), [(1, 0.1), (56, 0.1), (57, 0.2), (375, 1.0), (900, 2.4), (2000, 5.3)]
)
def test_the_estimate_follows_the_text(characters: int, minutes: float) -> None:
    assert minutes_estimated(characters) == minutes


async def test_rows_say_what_was_asked(client: Client, voice_id: UUID, rows: Rows) -> None:
    """Text and language as they are used, metadata for the page, and the key under which audio will be stored."""
    answer = await client.generate(voice_id, f"\n  Guten Abend. {FACE} \t", language="gErMaN")
    await client.ended(answer["task_id"])
    generation = await rows.fetchrow("SELECT * FROM public.generations WHERE id = $1", UUID(answer["generation_id"]))
    task = await rows.fetchrow("SELECT * FROM public.tasks WHERE id = $1", UUID(answer["task_id"]))
    assert generation
    assert task
    assert (generation["text"], generation["language"]) == (f"Guten Abend. {FACE}", "German")
    assert (generation["user_id"], generation["voice_id"]) == (client.user_id, voice_id)
    assert (generation["tts_provider"], generation["output_format"]) == ("qwen", "mp3")
    assert generation["audio_object_key"] == f"{client.user_id}/{answer['generation_id']}.mp3"
    assert task["metadata"].items() >= {"text_length": 15, "language": "German"}.items()
    assert (task["type"], task["provider"], task["user_id"]) == ("generate", "qwen", client.user_id)


async def test_a_server_for_wav_stores_wav(settings: Settings, database_url: str, rows: Rows) -> None:
    async with (
        running_gateway(replace(settings, qwen_default_response_format="wav")) as gateway,
        gateway.client() as client,
    ):
        answer = await client.generate(await insert_voice(database_url, client.user_id))
        task = await client.ended(answer["task_id"])
        stored = await client.audio(answer["generation_id"])
    assert (task["audio"]["format"], task["audio"]["mime"], task["audio"]["header_bytes"]) == ("wav", "audio/wav", 44)
    assert stored[:4] == b"RIFF"
    assert len(stored) == 44 + task["audio"]["bytes"]
    key = await rows.fetchval("SELECT audio_object_key FROM public.generations")
    assert key == f"{client.user_id}/{answer['generation_id']}.wav"


async def test_unknown_members_are_ignored(client: Client, voice_id: UUID) -> None:
    """The page in use sends the name of a model that is long gone."""
    await client.generate(voice_id, model="0.6B", style=[1, {"a": None}], task_id="mine", user_id=str(uuid4()))


async def test_any_content_type_will_do(client: Client, voice_id: UUID) -> None:
    body = f'{{"voice_id": "{voice_id.hex.upper()}", "text": "Good evening."}}'
    for content_type in (
        "application/json; charset=utf-8",
        "text/plain",
        "application/x-www-form-urlencoded",
        "nonsense",
    ):
        response = await client.http.post("/api/generate", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 200, content_type


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unspoken")
async def test_characters_are_counted_as_browsers_count_them(client: Client, voice_id: UUID) -> None:
    """2000 UTF-16 code units are the limit, blanks around the text apart; what browsers trim is not counted."""
    for text in ("a" * 2000, "ü" * 2000, FACE * 999 + "ok", " \ufeff" + "a" * 2000 + "\u3000\n"):
        await client.generate(voice_id, text)
    for text in ("a" * 2001, FACE * 1000 + "a", "a" + FACE * 1000, "a " * 1000 + "b"):
        response = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": text})
        assert problem_of(response, 400, "validation") == "Text cannot exceed 2000 characters"


async def test_the_limit_is_the_configured_one(settings: Settings, database_url: str) -> None:
    async with running_gateway(replace(settings, qwen_max_text_chars=10)) as gateway, gateway.client() as client:
        voice_id = await insert_voice(database_url, client.user_id)
        await client.generate(voice_id, "a" * 10)
        response = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "a" * 11})
        assert problem_of(response, 400, "validation") == "Text cannot exceed 10 characters"
        assert (await client.http.get("/api/languages")).json()["capabilities"]["max_text_chars"] == 10


async def test_a_text_in_which_nothing_can_be_seen_is_empty(client: Client, voice_id: UUID, rows: Rows) -> None:
    for text in ("", " ", "\n\t\r ", "\u00a0\u3000\u2028", "\ufeff", "\u200b\u200d", " \u2060 "):
        response = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": text})
        assert problem_of(response, 400, "validation") == "Please enter text to speak", ascii(text)
    assert await nothing_was_created(rows)


@pytest.mark.parametrize("model", [VC_REALTIME, "qwen3-tts-vc-2026-01-22"], ids=["realtime", "piece by piece"])
async def test_a_text_with_nothing_to_say_is_refused_before_anything_is_bought(
    client: Client, simulator: Simulator, rows: Rows, database_url: str, model: str
) -> None:
    voice_id = await insert_voice(database_url, client.user_id, model=model)
    for text in (Path(__file__).parent.parent / "cases" / "texts.txt").read_text().split("\n")[:-1]:
        response = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": text})
        assert problem_of(response, 400, "validation") == "There is nothing to speak in this text", ascii(text)
        response = await client.http.post("/api/generate/stream", json={"voice_id": str(voice_id), "text": text})
        assert problem_of(response, 400, "validation") == "There is nothing to speak in this text", ascii(text)
    assert await nothing_was_created(rows)
    assert simulator.calls == []


# --- the language -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unspoken")
async def test_every_language_that_is_served_is_taken_in_any_case(client: Client, voice_id: UUID, rows: Rows) -> None:
    served = (await client.http.get("/api/languages")).json()["languages"]
    for language in served:
        for spelled in (language, language.upper(), f" {language.lower()} "):
            answer = await client.generate(voice_id, language=spelled)
            stored = await rows.fetchval(
                "SELECT language FROM public.generations WHERE id = $1", UUID(answer["generation_id"])
            )
            assert stored == language


async def test_another_language_is_400_and_names_those_there_are(client: Client, voice_id: UUID) -> None:
    for language in ("Klingon", "", "en", "English,German", "Englisch", "auto-detect"):
        body = {"voice_id": str(voice_id), "text": "Good evening.", "language": language}
        problem_of(await client.http.post("/api/generate", json=body), 400, "validation", says="Auto, Chinese, English")


# --- the voice --------------------------------------------------------------------------------------------------------


async def test_an_unknown_a_foreign_and_a_deleted_voice_are_the_same_404(
    client: Client, voice_id: UUID, database_url: str, rows: Rows
) -> None:
    foreign = await insert_voice(database_url, uuid4())
    await rows.execute("UPDATE public.voices SET deleted_at = now() WHERE id = $1", voice_id)
    for address in ("/api/generate", "/api/generate/stream"):
        for voice in (uuid4(), foreign, voice_id):
            response = await client.http.post(address, json={"voice_id": str(voice), "text": "Good evening."})
            assert problem_of(response, 404, "not_found") == "This voice does not exist."
    assert await nothing_was_created(rows)


async def test_a_voice_that_cannot_speak_is_409_with_guidance(
    client: Client, database_url: str, rows: Rows, simulator: Simulator
) -> None:
    """Nothing is created and the provider is not asked."""
    table: list[tuple[dict[str, str | None], str]] = [
        ({"provider": "modal"}, "another speech provider"),
        ({"provider_voice_id": None}, "incomplete"),
        ({"provider_voice_id": ""}, "incomplete"),
        ({"model": None, "kind": "vc"}, "incomplete"),
        ({"model": "", "kind": "vc"}, "incomplete"),
        ({"model": "qwen3-tts-vc-realtime-2025-11-27", "kind": "vc"}, "speech model"),
        ({"model": "qwen3-tts-flash-realtime", "kind": "vc"}, "speech model"),
        ({"model": VC_REALTIME, "kind": "vd"}, "do not belong together"),
        ({"model": VD_REALTIME, "kind": "vc"}, "do not belong together"),
        ({"model": "qwen3-tts-vc-2026-01-22", "kind": "vd"}, "do not belong together"),
        ({"model": "qwen3-tts-vd-2026-01-26", "kind": "vc"}, "do not belong together"),
    ]
    for source, guidance in (("uploaded", "re-clone"), ("designed", "re-design")):
        for facts, says in table:
            voice_id = await insert_voice(database_url, client.user_id, source=source, **facts)  # type: ignore[arg-type]
            for address in ("/api/generate", "/api/generate/stream"):
                response = await client.http.post(address, json={"voice_id": str(voice_id), "text": "Good evening."})
                assert guidance in problem_of(response, 409, "conflict", says=says), facts
    assert await nothing_was_created(rows)
    assert simulator.calls == []


async def test_a_voice_without_a_kind_is_409(client: Client, voice_id: UUID, rows: Rows) -> None:
    await rows.execute("UPDATE public.voices SET provider_voice_kind = NULL")
    response = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Good evening."})
    problem_of(response, 409, "conflict", says="re-clone")


async def test_every_known_model_and_the_configured_ones_can_speak(settings: Settings, database_url: str) -> None:
    mine = "qwen3-tts-vc-realtime-2027-01-01"
    async with (
        running_gateway(replace(settings, qwen_vc_target_model=mine)) as gateway,
        gateway.client() as client,
    ):
        for model in (VC_REALTIME, VD_REALTIME, "qwen3-tts-vc-2026-01-22", "qwen3-tts-vd-2026-01-26", mine):
            await client.generate(await insert_voice(database_url, client.user_id, model=model))


async def test_an_answer_that_cannot_be_given_is_406_before_anything_is_made(
    client: Client, voice_id: UUID, rows: Rows
) -> None:
    body = {"voice_id": str(voice_id), "text": "Good evening."}
    for accept in ("image/png", "text/html", "text/event-stream;q=0", "nonsense"):
        response = await client.http.post("/api/generate/stream", json=body, headers={"Accept": accept})
        problem_of(response, 406, "validation", says="text/event-stream")
    problem_of(await client.http.post("/api/generate/stream?as=video", json=body), 400, "validation", says="`as`")
    assert await nothing_was_created(rows)


# --- one at a time, and not too many ----------------------------------------------------------------------------------


@pytest.fixture
async def one_active_generation_per_user(rows: Rows) -> None:
    """The older system's rule, as a database that it has used still has it."""
    await rows.execute(
        """CREATE UNIQUE INDEX one_active_generation_per_user ON public.generations (user_id)
            WHERE status IN ('pending', 'processing')"""
    )


@pytest.mark.usefixtures("one_active_generation_per_user")
async def test_an_older_index_answers_409_until_the_first_generation_has_ended(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, times=1)
    first = await client.generate(voice_id)
    for address in ("/api/generate", "/api/generate/stream"):
        response = await client.http.post(
            address, json={"voice_id": str(voice_id), "text": "Me too."}, headers={"Idempotency-Key": "again"}
        )
        detail = problem_of(response, 409, "conflict")
        assert detail.startswith("A generation is already in progress. ")
    assert await rows.fetchval("SELECT count(*) FROM public.generations") == 1
    assert (await client.http.post(f"/api/tasks/{first['task_id']}/cancel")).json()["cancelled"]
    response = await client.http.post(
        "/api/generate", json={"voice_id": str(voice_id), "text": "Me too."}, headers={"Idempotency-Key": "again"}
    )
    assert response.status_code == 200, "the refusal was not kept under its key"


@pytest.mark.usefixtures("one_active_generation_per_user")
async def test_an_older_index_does_not_stop_somebody_else(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, database_url: str
) -> None:
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, times=2)
    await client.generate(voice_id)
    async with gateway.client() as other:
        await other.generate(await insert_voice(database_url, other.user_id))
    held.release()


async def test_too_much_that_waits_is_503_and_says_when_to_come_back(
    settings: Settings, database_url: str, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, times=1)
    async with (
        running_gateway(replace(settings, synthesis_concurrency=1, queue_limit=2)) as gateway,
        gateway.client() as client,
    ):
        body = {"voice_id": str(await insert_voice(database_url, client.user_id)), "text": "Good evening."}
        speaking = (await client.http.post("/api/generate", json=body)).json()

        async def is_speaking() -> bool:
            task = await client.task(speaking["task_id"])
            return bool(task["provider_status"] == "streaming")

        await wait_for(is_speaking)
        for _ in range(2):
            assert (await client.http.post("/api/generate", json=body)).status_code == 200
        for address in ("/api/generate", "/api/generate/stream"):
            refused = await client.http.post(address, json=body, headers={"Idempotency-Key": "me"})
            problem_of(refused, 503, "overloaded", says="try again")
            assert int(refused.headers["retry-after"]) > 0
        assert await counted(client.http, "queue") == 2
        assert await rows.fetchval("SELECT count(*) FROM public.generations") == 3
        assert await rows.fetchval("SELECT count(*) FROM internal.idempotency") == 0
        await client.http.post(f"/api/tasks/{speaking['task_id']}/cancel")

        async def is_taken() -> bool:
            again = await client.http.post("/api/generate", json=body, headers={"Idempotency-Key": "me"})
            return again.status_code == 200

        await wait_for(is_taken)
