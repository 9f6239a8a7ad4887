"""Where and when a speech begins: here and at once, or by turns."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.contract import GenerateRequest
from server.database.queue import SYNTHESIS
from server.dev.simulator import Simulator
from server.jobs.generate import SMALL_QUEUE, most_of_one, submit
from server.jobs.starts import take_turn
from server.jobs.synthesize import synthesize
from server.records.runs import SYNTHESIZE_JOB
from server.settings import VC_REALTIME, Settings
from tests.end_to_end.conftest import take_no_jobs
from tests.end_to_end.hearing import hold_after
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import counted, problem_of
from tests.postgres_proxy import postgres_proxy
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def texts(simulator: Simulator) -> list[str]:
    """What the provider was asked to speak, in order."""
    return [call["text"] for call in simulator.calls if call.get("text")]


async def test_the_process_that_took_the_text_speaks_it_without_a_job(
    client: Client, gateway: Gateway, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    held = hold_after(simulator, 1)
    answer = await client.generate(voice_id)
    run = await rows.fetchrow("SELECT state, owner, attempt, user_id FROM internal.runs")
    assert tuple(run) == ("speaking", gateway.parts.leases.owner, 1, client.user_id)  # type: ignore[arg-type]
    jobs = "SELECT count(*) FROM internal.procrastinate_jobs WHERE task_name = $1"
    assert await rows.fetchval(jobs, SYNTHESIZE_JOB) == 0
    held.release()
    assert (await client.ended(answer["task_id"]))["status"] == "completed"


async def test_a_request_that_goes_away_does_not_take_its_speech_along(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """In the middle of the transaction that creates it: what was begun is committed, and spoken."""
    request = GenerateRequest(voice_id=voice_id, text="Good evening.")
    async with rows.transaction():
        await rows.execute("INSERT INTO internal.turns (user_id, starts) VALUES ($1, 1)", client.user_id)
        asking = asyncio.create_task(submit(gateway.parts, client.user_id, request, None))

        async def waits_for_us() -> bool:
            return bool(await rows.fetchval("SELECT count(*) FROM pg_catalog.pg_locks WHERE NOT granted"))

        await wait_for(waits_for_us)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await wait_for(lambda: rows.fetchval("SELECT true FROM public.generations WHERE status = 'completed'"))
    assert texts(simulator) == ["Good evening."]


async def test_a_commit_whose_answer_was_lost_is_found_and_spoken_once(
    settings: Settings, database_url: str, simulator: Simulator, rows: Rows
) -> None:
    async with postgres_proxy(database_url) as door:
        behind = replace(settings, database_url=door.url)
        async with running_gateway(behind) as gateway, gateway.client() as client:
            voice_id = await insert_voice(database_url, client.user_id)
            await wait_for(lambda: gateway.parts.queue.up([SYNTHESIS]))
            door.lose_the_answer_to(b"COMMIT")
            answer = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": "Good evening."})
            await door.lost_the_answer()
            assert answer.status_code == 200, answer.text
            assert (await client.ended(answer.json()["task_id"]))["status"] == "completed"
    assert texts(simulator) == ["Good evening."]
    assert await rows.fetchval("SELECT count(*) FROM public.generations") == 1


async def test_a_voice_that_changes_while_its_text_waits_speaks_it_as_it_was(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    await take_no_jobs(gateway)
    answer = await client.generate(voice_id)
    was = await rows.fetchval("SELECT provider_voice_id FROM public.voices")
    await rows.execute("UPDATE public.voices SET provider_voice_id = provider_voice_id || '-renewed'")
    await take_turn(gateway.parts, task_id=UUID(answer["task_id"]), attempt=1)
    assert [call["voice"] for call in simulator.calls if call.get("text")] == [was]


# --- by turns ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def narrow(settings: Settings) -> AsyncIterator[Gateway]:
    """A process with a place for one speech at a time."""
    async with running_gateway(replace(settings, synthesis_concurrency=1)) as gateway:
        yield gateway


async def test_one_user_s_pile_delays_another_s_text_by_one_turn(
    narrow: Gateway, database_url: str, simulator: Simulator
) -> None:
    async with narrow.client() as many, narrow.client() as one:
        voice_of_many = await insert_voice(database_url, many.user_id)
        voice_of_one = await insert_voice(database_url, one.user_id)
        held = hold_after(simulator, 1, text_contains="First")
        answers = [await many.generate(voice_of_many, text) for text in ("First.", "Second.", "Third.", "Fourth.")]
        single = await one.generate(voice_of_one, "A single one.")
        held.release()
        await one.ended(single["task_id"])
        for answer in answers:
            await many.ended(answer["task_id"])
    assert texts(simulator) == ["First.", "A single one.", "Second.", "Third.", "Fourth."]


async def test_a_text_that_comes_while_others_wait_does_not_overtake_them(
    gateway: Gateway, client: Client, voice_id: UUID, rows: Rows
) -> None:
    """Though there is a place for it: whoever has it takes turns as well."""
    first = await client.generate(voice_id)
    await client.ended(first["task_id"])
    await rows.execute(
        "INSERT INTO internal.runs (task_id, job_name, object_key) VALUES ($1, $2, 'a/b.mp3')", uuid4(), SYNTHESIZE_JOB
    )
    await take_no_jobs(gateway)
    await client.generate(voice_id)
    assert await rows.fetchval("SELECT count(*) FROM internal.runs WHERE state = 'queued'") == 2


async def test_what_has_waited_too_long_is_not_begun_any_more(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """Whoever refuses it, and whoever could begin it at the same moment, go by the same time in its row."""
    await take_no_jobs(gateway)
    answer = await client.generate(voice_id)
    await rows.execute("UPDATE internal.runs SET start_by = now() - interval '1 millisecond'")
    await take_turn(gateway.parts, task_id=UUID(answer["task_id"]), attempt=1)
    assert texts(simulator) == []
    assert (await client.ended(answer["task_id"]))["error"].startswith("This text waited too long")


async def test_a_text_that_is_cancelled_while_it_is_taken_does_not_take_the_next_one_along(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    await take_no_jobs(gateway)
    cancelled = UUID((await client.generate(voice_id, "The cancelled one."))["task_id"])
    following = await client.generate(voice_id, "The next one.")
    async with rows.transaction():
        await rows.execute("SELECT FROM internal.runs WHERE task_id = $1 FOR UPDATE", cancelled)
        taking = asyncio.create_task(take_turn(gateway.parts, task_id=cancelled, attempt=1))

        async def waits_for_us() -> bool:
            return bool(await rows.fetchval("SELECT count(*) FROM pg_catalog.pg_locks WHERE NOT granted"))

        await wait_for(waits_for_us)
        gateway.parts.leases.drop(cancelled)
        await rows.execute("DELETE FROM internal.runs WHERE task_id = $1", cancelled)
    await taking
    assert texts(simulator) == ["The next one."]
    assert (await client.ended(following["task_id"]))["status"] == "completed"


async def test_a_model_without_a_start_keeps_no_other_from_beginning(
    gateway: Gateway, client: Client, database_url: str, simulator: Simulator, rows: Rows
) -> None:
    """The text that is first in line waits for its own model's pace; the next has a model of another."""
    await take_no_jobs(gateway)
    slow = await client.generate(await insert_voice(database_url, client.user_id), "The slow one.")
    quick_voice = await insert_voice(database_url, client.user_id, model="qwen-audio-3.0-tts-flash", kind="vc")
    await client.generate(quick_voice, "The quick one.")
    account = gateway.parts.providers.account
    await rows.execute(
        "INSERT INTO internal.pace (account, model, rate, tokens) VALUES ($1, $2, 1, -1000)", account, VC_REALTIME
    )
    await take_turn(gateway.parts, task_id=UUID(slow["task_id"]), attempt=1)
    assert texts(simulator) == ["The quick one."]
    assert await rows.fetchval("SELECT model FROM internal.runs WHERE state = 'queued'") == VC_REALTIME


async def test_one_user_may_fill_half_of_the_queue(settings: Settings, database_url: str, rows: Rows) -> None:
    limit = SMALL_QUEUE * 2 + 2
    async with (
        running_gateway(replace(settings, queue_limit=limit)) as gateway,
        gateway.client() as many,
        gateway.client() as one,
    ):
        await take_no_jobs(gateway)
        await rows.execute(
            """INSERT INTO internal.runs (task_id, job_name, object_key, user_id, start_by)
               SELECT gen_random_uuid(), $1, 'a/b.mp3', $2, now() + interval '1 hour'
                 FROM generate_series(1, $3::int)""",
            SYNTHESIZE_JOB,
            many.user_id,
            limit // 2,
        )
        body: dict[str, Any] = {"text": "Good evening."}
        voice_id = await insert_voice(database_url, many.user_id)
        refused = await many.http.post("/api/generate", json={**body, "voice_id": str(voice_id)})
        problem_of(refused, 429, "overloaded", says="waiting already")
        assert await counted(many.http, "queue_of_one") == 1
        assert int(refused.headers["retry-after"]) > 0
        await one.generate(await insert_voice(database_url, one.user_id))


@pytest.mark.parametrize(("limit", "of_one"), [(0, 0), (1, 1), (10, 10), (15, 10), (20, 10), (1000, 500)])
def test_a_queue_of_a_few_places_is_not_divided(limit: int, of_one: int) -> None:
    assert most_of_one(limit) == of_one


@pytest.mark.parametrize("model", [VC_REALTIME, "qwen3-tts-vc-2026-01-22"])
async def test_the_wait_for_the_pace_is_the_wait_in_the_queue(
    gateway: Gateway, client: Client, database_url: str, simulator: Simulator, rows: Rows, model: str
) -> None:
    """On every lane, and with one end: nobody holds a text that cannot begin yet."""
    await rows.execute(
        "INSERT INTO internal.pace (account, model, rate, tokens) VALUES ($1, $2, 1, -1000)",
        gateway.parts.providers.account,
        model,
    )
    answer = await client.generate(await insert_voice(database_url, client.user_id, model=model))
    assert await rows.fetchval("SELECT state FROM internal.runs") == "queued"
    await rows.execute("UPDATE internal.runs SET start_by = now() - interval '1 millisecond'")
    assert (await client.ended(answer["task_id"]))["error"].startswith("This text waited too long")
    assert texts(simulator) == []


async def test_a_start_that_comes_too_late_for_its_speech_is_not_made(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """The start that was in hand when it was taken is void, and there is none before its time is over."""
    await take_no_jobs(gateway)
    answer = await client.generate(voice_id)
    await rows.execute("UPDATE internal.runs SET start_by = now() + interval '2 seconds'")
    await rows.execute(
        "INSERT INTO internal.pace (account, model, rate, tokens) VALUES ($1, $2, 1, -1000)",
        gateway.parts.providers.account,
        VC_REALTIME,
    )
    await synthesize(gateway.parts, task_id=UUID(answer["task_id"]), attempt=1)
    task = await client.ended(answer["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_unavailable")
    assert texts(simulator) == []
