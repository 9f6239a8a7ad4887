"""A voice is bought exactly once: fifty at once, cut off, killed, or with the database gone when the answer comes."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.contract import CloneFinalizeRequest
from server.database.queue import DEFAULT, SYNTHESIS, WATCHING
from server.dev.simulator import Simulator
from server.jobs import buying, clone, enrollment
from server.records import purchases
from server.settings import Settings
from server.storage import s3
from tests.audio.samples import mp3
from tests.end_to_end.conftest import take_no_jobs
from tests.gateway import Client, Gateway, process, running_gateway
from tests.handlers.wire import problem_of
from tests.postgres_proxy import PostgresProxy, postgres_proxy
from tests.storage.conftest import s3_settings
from tests.support import make_settings, wait_for, with_limits
from tests.voices import (
    TRANSCRIPT,
    billed,
    creations,
    finalize,
    lapse,
    listed,
    listings,
    purchase_in,
    recording,
    upload,
)

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def door(database_url: str) -> AsyncIterator[PostgresProxy]:
    """What stands between the server and PostgreSQL."""
    async with postgres_proxy(database_url) as proxy:
        yield proxy


async def voices_in(rows: Rows) -> int:
    count: int = await rows.fetchval("SELECT count(*) FROM public.voices")
    return count


# --- at once ----------------------------------------------------------------------------------------------------------


async def test_of_fifty_finalizes_at_once_one_pays_and_all_get_the_voice(
    client: Client, gateway: Gateway, simulator: Simulator, rows: Rows
) -> None:
    """Most of them arrive while the call is under way, and meanwhile nobody holds a connection."""
    voice_id = await upload(client, recording())
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(finalize(client, voice_id, name=f"Ada {n}")) for n in range(50)]
        await plan.held()

        async def nobody_holds_a_connection() -> bool:
            pool = gateway.parts.database.pool
            return pool.get_size() == pool.get_idle_size()

        await wait_for(nobody_holds_a_connection)
        plan.release()
    answers = [caller.result() for caller in callers]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(creations(simulator)) == billed(simulator) == await voices_in(rows) == 1


async def test_fifty_finalizes_in_two_processes_pay_once(
    settings: Settings, client: Client, simulator: Simulator, rows: Rows
) -> None:
    voice_id = await upload(client, recording())
    async with running_gateway(settings) as other, other.client(client.user_id) as elsewhere:
        answers = await asyncio.gather(*(finalize((client, elsewhere)[n % 2], voice_id) for n in range(50)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, answers[0].text)}
    assert len(creations(simulator)) == billed(simulator) == await voices_in(rows) == 1


async def test_fifty_finalizes_after_an_unknown_end_adopt_one_voice(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    voice_id = await upload(client, recording())
    simulator.behave("customization", {"do": "abort"}, action="create")
    problem_of(await finalize(client, voice_id), 504, "timeout")
    answers = await asyncio.gather(*(finalize(client, voice_id) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(creations(simulator)) == billed(simulator) == await voices_in(rows) == 1
    assert listings(simulator) == 1


async def test_those_who_wait_hear_the_same_refusal(
    client: Client, simulator: Simulator, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = 0
    find = purchases.find

    async def counted(*arguments: Any, **named: Any) -> purchases.Purchase | None:
        nonlocal waiting
        found = await find(*arguments, **named)
        waiting += found is not None and found.leased
        return found

    monkeypatch.setattr(purchases, "find", counted)
    voice_id = await upload(client, recording())
    plan = simulator.behave("customization", {"do": "hold", "effect": False}, action="create")
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(finalize(client, voice_id)) for _ in range(10)]
        await plan.held()
        await wait_for(lambda: waiting >= 20)
        assert not any(caller.done() for caller in callers)
        plan.release()
    answers = [caller.result() for caller in callers]
    assert {answer.status_code for answer in answers} == {503}
    assert len({answer.json()["detail"] for answer in answers}) == 1
    assert (await purchase_in(rows, voice_id, "refused"))["attempt"] == len(creations(simulator)) == 1


async def test_who_waits_too_long_for_another_caller_is_told_to_come_back(
    settings: Settings, simulator: Simulator
) -> None:
    brief = with_limits(settings, enrollment_seconds=0.3)
    async with running_gateway(brief) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        plan = simulator.behave("customization", {"do": "hold"}, action="create")
        buyer = asyncio.create_task(finalize(client, voice_id))
        await plan.held()
        problem_of(await finalize(client, voice_id), 503, "provider_unavailable", says="still being created")
        plan.release()
        assert (await buyer).status_code == 200
        assert billed(simulator) == 1


async def test_different_voices_do_not_wait_for_each_other(client: Client, simulator: Simulator) -> None:
    first, second = await upload(client, recording()), await upload(client, recording())
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    held = asyncio.create_task(finalize(client, first))
    await plan.held()
    assert (await finalize(client, second)).status_code == 200
    plan.release()
    assert (await held).status_code == 200
    assert billed(simulator) == 2


def asked(voice_id: str) -> CloneFinalizeRequest:
    """What ``finalize`` sends, for a test that is the handler itself."""
    return CloneFinalizeRequest(
        voice_id=UUID(voice_id), name="Ada", language="English", transcript=TRANSCRIPT, description=None
    )


# --- what happens in the middle ---------------------------------------------------------------------------------------


async def test_a_process_that_is_killed_during_the_call_costs_nothing(
    settings: Settings, simulator: Simulator, rows: Rows, tmp_path: Path
) -> None:
    """The provider has made the voice, and nobody was there to hear it."""
    user_id = uuid4()
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    async with process(settings, simulator, tmp_path / "victim.log") as victim, victim.client(user_id) as client:
        voice_id = await upload(client, recording())
        lost = asyncio.create_task(finalize(client, voice_id))
        await plan.held()
        await victim.kill()
        await asyncio.wait({lost})
        assert lost.exception() is not None
    plan.release()
    await simulator.until(lambda _: billed(simulator) == 1)
    await lapse(rows, voice_id)
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        assert (await finalize(client, voice_id)).status_code == 200
        [voice] = await listed(client)
    assert voice["provider_voice_id"] == creations(simulator)[0]["voice"]
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_while_the_lease_of_a_dead_process_holds_nobody_calls(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    """A provider may still be working for a caller who is dead; after five minutes it certainly is not."""
    voice_id = await upload(client, recording())
    await rows.execute(
        """INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until)
           VALUES ($1, 'clone', $2, 'calling', now() + interval '1 hour')""",
        UUID(voice_id),
        client.user_id,
    )
    waiting = asyncio.create_task(finalize(client, voice_id))
    await asyncio.wait({waiting}, timeout=0.6)
    assert not waiting.done()
    assert simulator.calls == []
    await rows.execute("UPDATE internal.purchases SET updated_at = now() - interval '7 minutes'")
    await lapse(rows, voice_id)
    assert (await waiting).status_code == 200
    assert (listings(simulator), billed(simulator)) == (1, 1)


async def test_a_shutdown_during_the_call_says_that_nobody_knows(
    settings: Settings, simulator: Simulator, rows: Rows, tmp_path: Path
) -> None:
    """So that the next process can look at once, and need not wait for the lease."""
    user_id = uuid4()
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    async with process(settings, simulator, tmp_path / "victim.log") as victim, victim.client(user_id) as client:
        voice_id = await upload(client, recording())
        lost = asyncio.create_task(finalize(client, voice_id))
        await plan.held()
        victim.send(signal.SIGTERM)
        await victim.exited()
        await asyncio.wait({lost})
    assert (await purchase_in(rows, voice_id, "unknown"))["outcome"]["diagnostics"]["code"] == "cut_off"
    plan.release()
    await simulator.until(lambda _: billed(simulator) == 1)
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        assert (await finalize(client, voice_id)).status_code == 200
    assert billed(simulator) == 1


async def test_a_database_that_is_gone_when_the_answer_comes_is_waited_for(
    settings: Settings, door: PostgresProxy, simulator: Simulator, rows: Rows
) -> None:
    async with running_gateway(replace(settings, database_url=door.url)) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        plan = simulator.behave("customization", {"do": "hold"}, action="create")
        caller = asyncio.create_task(finalize(client, voice_id))
        await plan.held()
        door.shut()
        plan.release()
        await wait_for(lambda: door.refused > 2)
        door.open()
        assert (await caller).status_code == 200
    assert len(creations(simulator)) == billed(simulator) == await voices_in(rows) == 1
    await purchase_in(rows, voice_id, "done")


async def test_a_database_that_stays_away_leaves_one_line_and_the_next_finalize_adopts(
    settings: Settings,
    door: PostgresProxy,
    simulator: Simulator,
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
) -> None:
    brief = with_limits(settings, database_url=door.url, purchase_database_seconds=0.3)
    async with running_gateway(brief) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        plan = simulator.behave("customization", {"do": "hold"}, action="create")
        caller = asyncio.create_task(finalize(client, voice_id))
        await plan.held()
        door.shut()
        plan.release()
        problem_of(await caller, 503, "internal")
        door.open()
        lines = [record for record in caplog.records if record.levelname == "ERROR" and record.name == buying.__name__]
        assert len(lines) == 1
        said = vars(lines[0])
        assert said["voice_id"] == voice_id
        assert said["provider_voice_id"] == creations(simulator)[0]["voice"]
        assert said["provider_request_id"].startswith("simulated-")
        assert await voices_in(rows) == 0
        await lapse(rows, voice_id)
        assert (await finalize(client, voice_id)).status_code == 200
        assert [voice["id"] for voice in await listed(client)] == [voice_id]
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_a_commit_whose_answer_is_lost_stores_one_voice(
    settings: Settings, door: PostgresProxy, simulator: Simulator, rows: Rows
) -> None:
    quiet = with_limits(settings, database_url=door.url, sweep_every_seconds=60.0)
    async with running_gateway(quiet) as gateway, gateway.client() as client:
        for queue in (SYNTHESIS, DEFAULT, WATCHING):  # nothing but the voice may commit
            await take_no_jobs(gateway, queue)
        voice_id = await upload(client, recording())
        plan = simulator.behave("customization", {"do": "hold"}, action="create")
        caller = asyncio.create_task(finalize(client, voice_id))
        await plan.held()
        door.lose_the_answer_to(b"COMMIT")
        plan.release()
        await door.lost_the_answer()
        assert (await caller).status_code == 200
    assert billed(simulator) == await voices_in(rows) == 1
    await purchase_in(rows, voice_id, "done")


async def test_a_voice_that_somebody_deleted_past_us_comes_back_with_what_was_paid_for(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    """Browsers may delete rows through the database's own HTTP API."""
    voice_id = await upload(client, recording())
    await finalize(client, voice_id)
    before = await rows.fetchrow("DELETE FROM public.voices RETURNING *")
    assert before
    assert (await finalize(client, voice_id)).status_code == 200
    after = await rows.fetchrow("SELECT * FROM public.voices")
    assert after
    assert dict(before) == {**dict(after), "created_at": before["created_at"]}
    assert billed(simulator) == 1


async def test_who_is_cut_off_while_looking_does_not_forget_what_is_looked_for(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows
) -> None:
    voice_id = await upload(client, recording())
    simulator.behave("customization", {"do": "html", "status": 504, "effect": True}, action="create")
    problem_of(await finalize(client, voice_id), 504, "timeout")
    plan = simulator.behave("customization", {"do": "hold"}, action="list")
    looking = asyncio.create_task(clone.create(gateway.parts, client.user_id, asked(voice_id)))
    await plan.held()
    looking.cancel()
    await asyncio.wait({looking})
    outcome = (await purchase_in(rows, voice_id, "unknown"))["outcome"]
    assert (outcome["diagnostics"]["code"], outcome["in_doubt_code"]) == ("cut_off", "gateway_timeout")
    plan.release()
    assert (await finalize(client, voice_id)).status_code == 200
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_who_is_cut_off_before_the_call_leaves_no_doubt(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody needs to wait five minutes for a call that never left."""
    begun, go_on = threading.Event(), threading.Event()

    def slowly(content: bytes) -> bytes:
        begun.set()
        go_on.wait(10.0)
        return content

    monkeypatch.setattr(enrollment, "to_reference_wav", slowly)
    voice_id = await upload(client, recording())
    making = asyncio.create_task(clone.create(gateway.parts, client.user_id, asked(voice_id)))
    await wait_for(begun.is_set)
    making.cancel()
    await asyncio.wait({making})
    go_on.set()
    await purchase_in(rows, voice_id, "refused")
    assert (await finalize(client, voice_id)).status_code == 200
    assert (len(creations(simulator)), listings(simulator)) == (1, 0)


async def test_a_call_that_was_made_between_look_and_claim_is_known(
    gateway: Gateway, client: Client, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caller sees no purchase, and before it makes its own another has bought and does not know the end."""
    find = purchases.find

    async def find_and_be_overtaken(*arguments: Any, locked: bool = False, **named: Any) -> Any:
        found = await find(*arguments, locked=locked, **named)
        if locked and found is None:
            monkeypatch.setattr(purchases, "find", find)
            problem_of(await finalize(client, voice_id), 504, "timeout")
        return found

    simulator.behave("customization", {"do": "abort"}, action="create")
    voice_id = await upload(client, recording())
    monkeypatch.setattr(purchases, "find", find_and_be_overtaken)
    assert (await clone.create(gateway.parts, client.user_id, asked(voice_id))).name == "Ada"
    assert len(creations(simulator)) == billed(simulator) == 1


# --- how the recording gets there -------------------------------------------------------------------------------------


async def test_a_store_that_the_provider_can_reach_hands_it_a_link(
    database_url: str,
    simulator: Simulator,
    tmp_path: Path,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What had to be made fit travels with the call all the same: what is stored stays as it came."""

    async def leads_out(_endpoint: str | None) -> bool:
        return False

    monkeypatch.setattr(s3, "_is_public", lambda _endpoint: True)
    monkeypatch.setattr(s3, "_resolves_privately", leads_out)
    settings = make_settings(database_url, simulator, tmp_path, storage=await s3_settings(s3_server))
    async with running_gateway(settings) as gateway, gateway.client() as client:
        for content, mime in ((recording(), "audio/wav"), (mp3(4.0), "audio/mpeg"), (recording(4.0, 48_000), "")):
            voice_id = await upload(client, content, mime=mime or "audio/wav")
            assert (await finalize(client, voice_id)).status_code == 200
    as_link = [call["audio_characters"] < 2_000 for call in creations(simulator)]
    assert as_link == [True, True, False]
    assert billed(simulator) == 3


async def test_the_next_voice_is_made_for_the_model_of_the_settings(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    model = "qwen3-tts-vc-2026-01-22"
    async with running_gateway(replace(settings, qwen_vc_target_model=model)) as gateway, gateway.client() as client:
        assert (await finalize(client, await upload(client, recording()))).status_code == 200
        [voice] = await listed(client)
    assert (voice["provider_target_model"], voice["compatible"], voice["streamable"]) == (model, True, True)
