"""People keep their voices: made again for another model, bought once, with name, id and history as they were."""

import asyncio
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.jobs.reconcile import reconcile
from server.jobs.renew import candidates
from server.objects import reference_key
from server.settings import VC_REALTIME, Settings
from server.storage import Bucket
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import with_limits
from tests.voices import billed, cloned, creations, listed, recording

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
QWEN_AUDIO = "qwen-audio-3.0-tts-flash"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a server whose operator has changed one variable."""
    return with_limits(settings, qwen_vc_target_model=QWEN_AUDIO, deploying_look_seconds=0.02, deploying_seconds=0.1)


async def older_voice(
    gateway: Gateway, rows: Rows, user_id: UUID, *, kept: bool = True, seconds: float = 6.0, **facts: Any
) -> UUID:
    """A voice of the older models with its recording, as years ago."""
    voice_id = await insert_voice(gateway.parts.settings.database_url, user_id, **facts)
    if kept:
        key, content = reference_key(user_id, voice_id), recording(seconds)
        await gateway.parts.storage.put(Bucket.REFERENCES, key, content, content_type="audio/wav", size=len(content))
        await rows.execute("UPDATE public.voices SET reference_object_key = $2 WHERE id = $1", voice_id, key)
    return voice_id


async def renewed(client: Client, voice_id: UUID) -> dict[str, Any]:
    """The end of the task that POST /api/voices/:id/renew answers."""
    answer = await client.http.post(f"/api/voices/{voice_id}/renew")
    assert answer.status_code == 200, answer.text
    return await client.ended(answer.json()["task_id"])


@pytest.mark.parametrize("source", ["uploaded", "designed"])
async def test_a_voice_is_made_again_and_speaks_with_the_new_model(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator, source: str
) -> None:
    kind, model = ("vc", "qwen3-tts-vc-realtime-2026-01-15") if source == "uploaded" else ("vd", VD)
    known_as = f"qwen-tts-{kind}-ada-voice-20260101000000000-0001"
    voice_id = await older_voice(
        gateway, rows, client.user_id, source=source, kind=kind, model=model, provider_voice_id=known_as
    )
    [before] = await listed(client)
    spoken_before = await client.generate(voice_id)
    await client.ended(spoken_before["task_id"])

    task = await renewed(client, voice_id)

    assert (task["type"], task["status"], task["result"]) == ("clone", "completed", {"voice_id": str(voice_id)})
    [voice] = await listed(client)
    unchanged = {"id", "name", "source", "language", "reference_transcript", "created_at", "description", "default"}
    assert {name: voice[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert (voice["provider_target_model"], voice["provider_voice_kind"]) == (QWEN_AUDIO, "vc")
    assert (voice["compatible"], voice["streamable"]) == (True, True)
    metadata = await rows.fetchval("SELECT provider_metadata FROM public.voices WHERE id = $1", voice_id)
    [earlier] = metadata["previous"]
    assert (earlier["voice"], earlier["model"]) == (before["provider_voice_id"], model)
    spoken = await client.generate(voice_id)
    assert (await client.ended(spoken["task_id"]))["status"] == "completed"
    assert [call["model"] for call in simulator.calls if call["surface"] == "realtime"] == [model, QWEN_AUDIO]
    history = (await client.http.get("/api/generations")).json()["generations"]
    assert [entry["voice_name"] for entry in history] == ["Ada", "Ada"]
    assert await client.audio(spoken_before["generation_id"])
    assert billed(simulator) == 1
    assert "delete" not in {call["action"] for call in simulator.calls}
    assert (await reconcile(gateway.parts)).provider_voices == []


VD = "qwen3-tts-vd-realtime-2026-01-15"


async def test_however_often_it_is_asked_a_voice_is_made_again_once(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id)
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    address = f"/api/voices/{voice_id}/renew"
    answers = await asyncio.gather(*(client.http.post(address) for _ in range(5)))
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    await plan.held()
    assert (await client.task(answers[0].json()["task_id"]))["status"] == "processing"
    plan.release()
    assert (await client.ended(answers[0].json()["task_id"]))["status"] == "completed"
    assert len(creations(simulator)) == 1
    again = await client.http.post(address)
    assert (again.status_code, again.json()["detail"]) == (409, "This voice can speak already.")


async def test_a_renewal_whose_end_was_not_heard_of_is_adopted_by_the_next(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id)
    simulator.behave("customization", {"do": "abort"}, action="create")
    task = await renewed(client, voice_id)
    assert (task["status"], task["error_category"]) == ("failed", "timeout")
    [voice] = await listed(client)
    assert voice["provider_target_model"] == "qwen3-tts-vc-realtime-2026-01-15"
    assert (await renewed(client, voice_id))["status"] == "completed"
    assert billed(simulator) == len(creations(simulator)) == 1


async def test_a_new_voice_that_takes_its_time_is_waited_for(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id)
    simulator.behave("customization", {"deploying": 20}, action="create")
    assert (await renewed(client, voice_id))["status"] == "completed"
    assert billed(simulator) == 1


async def test_what_is_being_spoken_goes_on_with_the_voice_that_it_began_with(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id)
    plan = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    answer = await client.generate(voice_id)
    await plan.held()
    assert (await renewed(client, voice_id))["status"] == "completed"
    plan.release()
    assert (await client.ended(answer["task_id"]))["status"] == "completed"
    [call] = [call for call in simulator.calls if call["surface"] == "realtime"]
    assert call["model"] == "qwen3-tts-vc-realtime-2026-01-15"


async def test_a_voice_of_which_nothing_was_kept_cannot_be_made_again(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id, kept=False)
    answer = await client.http.post(f"/api/voices/{voice_id}/renew")
    assert answer.status_code == 409
    assert "Nothing was kept" in answer.json()["detail"]
    await rows.execute(
        "UPDATE public.voices SET reference_object_key = $2 WHERE id = $1",
        voice_id,
        reference_key(client.user_id, voice_id),
    )
    task = await renewed(client, voice_id)
    assert task["status"] == "failed"
    assert "Nothing was kept" in task["error"]
    assert creations(simulator) == []


DESCRIPTION = "A calm, low voice."


async def described(gateway: Gateway, rows: Rows, user_id: UUID, *, lost: bool = False) -> UUID:
    """A designed voice of which nothing but its description is there."""
    voice_id = await older_voice(gateway, rows, user_id, kept=False, source="designed", kind="vd", model=VD)
    key = reference_key(user_id, voice_id) if lost else None
    await rows.execute(
        "UPDATE public.voices SET description = $2, reference_object_key = $3 WHERE id = $1", voice_id, DESCRIPTION, key
    )
    return voice_id


def told(simulator: Simulator, surface: str, action: str) -> list[Any]:
    return [call for call in simulator.calls if (call["surface"], call["action"]) == (surface, action)]


@pytest.mark.parametrize("lost", [False, True], ids=["never recorded", "recording lost"])
async def test_a_voice_that_is_only_described_is_spoken_by_the_other_provider_and_cloned(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator, lost: bool
) -> None:
    voice_id = await described(gateway, rows, client.user_id, lost=lost)
    [before] = await listed(client)

    task = await renewed(client, voice_id)

    assert task["status"] == "completed", task
    [voice] = await listed(client)
    unchanged = {"id", "name", "source", "language", "created_at", "description"}
    assert {name: voice[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert (voice["provider_target_model"], voice["compatible"]) == (QWEN_AUDIO, True)
    [asked] = told(simulator, "modal", "design")
    assert asked["text"] == voice["reference_transcript"], "what its recording says is what was asked for"
    assert billed(simulator) == 1
    assert (await client.http.get(f"/api/voices/{voice_id}/preview")).status_code == 302
    spoken = await client.generate(voice_id)
    assert (await client.ended(spoken["task_id"]))["status"] == "completed"
    metadata = await rows.fetchval("SELECT provider_metadata FROM public.voices WHERE id = $1", voice_id)
    assert [earlier["model"] for earlier in metadata["previous"]] == [VD]
    assert (await client.http.post(f"/api/voices/{voice_id}/renew")).status_code == 409


async def test_what_was_spoken_for_a_described_voice_is_not_spoken_twice(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await described(gateway, rows, client.user_id)
    simulator.behave("customization", {"do": "error", "code": "InternalError"}, action="create")
    assert (await renewed(client, voice_id))["status"] == "failed"
    simulator.behave("customization", {"do": "abort"}, action="create")
    assert (await renewed(client, voice_id))["status"] == "failed"
    assert (await renewed(client, voice_id))["status"] == "completed"
    assert len(told(simulator, "modal", "design")) == billed(simulator) == 1


async def test_where_the_region_designs_a_described_voice_is_designed_there(
    settings: Settings, rows: Rows, simulator: Simulator
) -> None:
    there = with_limits(settings, dashscope_region="cn")
    async with running_gateway(there) as gateway, gateway.client() as client:
        voice_id = await described(gateway, rows, client.user_id)
        simulator.behave("customization", {"deploying": 3}, action="create")
        assert (await renewed(client, voice_id))["status"] == "completed"
        [voice] = await listed(client)
        assert (voice["provider_target_model"], voice["provider_voice_kind"]) == (QWEN_AUDIO, "vd")
        assert "-vd-" in voice["provider_voice_id"]
        assert (await client.http.get(f"/api/voices/{voice_id}/preview")).status_code == 302
        spoken = await client.generate(voice_id)
        assert (await client.ended(spoken["task_id"]))["status"] == "completed"
        assert (billed(simulator), told(simulator, "modal", "design")) == (1, [])
        assert (await reconcile(gateway.parts)).provider_voices == []


async def test_a_design_whose_end_was_not_heard_of_is_adopted(
    settings: Settings, rows: Rows, simulator: Simulator
) -> None:
    there = with_limits(settings, dashscope_region="cn")
    async with running_gateway(there) as gateway, gateway.client() as client:
        voice_id = await described(gateway, rows, client.user_id)
        simulator.behave("customization", {"do": "abort"}, action="create")
        assert (await renewed(client, voice_id))["status"] == "failed"
        assert (await renewed(client, voice_id))["status"] == "completed"
        assert billed(simulator) == len(creations(simulator)) == 1


async def test_where_nobody_designs_a_described_voice_says_so(settings: Settings, rows: Rows) -> None:
    nobody = with_limits(settings, modal_endpoint_voice_design=None)
    async with running_gateway(nobody) as gateway, gateway.client() as client:
        voice_id = await described(gateway, rows, client.user_id)
        answer = await client.http.post(f"/api/voices/{voice_id}/renew")
        assert answer.status_code == 409
        assert "only its description" in answer.json()["detail"]
        lost = await described(gateway, rows, client.user_id, lost=True)
        assert "only its description" in (await renewed(client, lost))["error"]


async def test_what_somebody_noted_about_a_cloned_voice_is_no_design(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id, kept=False)
    await rows.execute("UPDATE public.voices SET description = 'My grandmother' WHERE id = $1", voice_id)
    answer = await client.http.post(f"/api/voices/{voice_id}/renew")
    assert (answer.status_code, "Nothing was kept" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize("seconds", [1.2, 4.0])
async def test_a_short_preview_is_enough_to_keep_a_voice(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator, seconds: float
) -> None:
    """The family that speaks in tasks wants five seconds; the voice is the same, heard more than once."""
    voice_id = await older_voice(gateway, rows, client.user_id, seconds=seconds, source="designed", kind="vd", model=VD)
    task = await renewed(client, voice_id)
    assert task["status"] == "completed", task
    assert told(simulator, "modal", "design") == []


@pytest.mark.parametrize("still_there", [True, False])
async def test_an_operator_who_goes_back_gets_back_what_the_provider_has_kept(
    settings: Settings, rows: Rows, simulator: Simulator, still_there: bool
) -> None:
    older = with_limits(settings, qwen_vc_target_model=VC_REALTIME)
    async with running_gateway(older) as gateway, gateway.client() as client:
        voice_id = UUID(await cloned(client, recording(6.0)))
        user_id, [first] = client.user_id, await listed(client)
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        assert (await renewed(client, voice_id))["status"] == "completed"
        [second] = await listed(client)
    if not still_there:
        assert simulator.voices.delete(first["provider_voice_id"], "vc")
    async with running_gateway(older) as gateway, gateway.client(user_id) as client:
        assert (await client.ended((await client.generate(voice_id))["task_id"]))["status"] == "completed"
        [candidate] = [one async for one in candidates(gateway.parts, model=None, everything=True)]
        assert (candidate.objection, candidate.remembered) == (None, True)
        assert (await renewed(client, voice_id))["status"] == "completed"
        [back] = await listed(client)
        assert back["provider_target_model"] == VC_REALTIME
        assert (back["provider_voice_id"] == first["provider_voice_id"]) is still_there
        assert [one async for one in candidates(gateway.parts, model=None, everything=True)] == []
    async with running_gateway(settings) as gateway, gateway.client(user_id) as client:
        assert (await renewed(client, voice_id))["status"] == "completed"
        [again] = await listed(client)
        assert again["provider_voice_id"] == second["provider_voice_id"]
    assert billed(simulator) == (2 if still_there else 3)


async def test_designed_voices_stay_while_their_own_model_is_the_one_of_new_designs(
    settings: Settings, rows: Rows
) -> None:
    older = with_limits(settings, qwen_vc_target_model=VC_REALTIME)
    async with running_gateway(older) as gateway, gateway.client() as client:
        voice_id = await older_voice(gateway, rows, client.user_id, source="designed", kind="vd", model=VD)
        assert [one async for one in candidates(gateway.parts, model=None, everything=True)] == []
        assert (await client.http.post(f"/api/voices/{voice_id}/renew")).status_code == 409


async def test_somebody_elses_voice_is_not_found(gateway: Gateway, client: Client, rows: Rows) -> None:
    voice_id = await older_voice(gateway, rows, UUID(int=7))
    assert (await client.http.post(f"/api/voices/{voice_id}/renew")).status_code == 404


async def test_a_refused_recording_fails_the_task_with_words(
    gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id)
    simulator.behave("customization", {"do": "error", "code": "Audio.PreprocessError", "status": 430}, action="create")
    task = await renewed(client, voice_id)
    assert (task["status"], task["error_category"]) == ("failed", "provider_rejected")
    assert "clear speech" in task["error"]


async def test_where_the_recording_is_the_voice_there_is_nothing_to_renew(
    settings: Settings, rows: Rows, simulator: Simulator
) -> None:
    changed = with_limits(settings, tts_provider_mode="modal")
    async with running_gateway(changed) as gateway, gateway.client() as client:
        voice_id = await older_voice(gateway, rows, client.user_id)
        assert (await client.http.post(f"/api/voices/{voice_id}/renew")).status_code == 409


async def test_the_command_finds_everybodys_voices_page_by_page(
    gateway: Gateway, rows: Rows, database_url: str
) -> None:
    made = [await older_voice(gateway, rows, UUID(int=number), kept=number != 2) for number in range(1, 4)]
    await insert_voice(database_url, UUID(int=1), model=QWEN_AUDIO)
    await insert_voice(database_url, UUID(int=1), provider="modal")
    other = await older_voice(gateway, rows, UUID(int=9), model=VD, kind="vd")

    async def found(**how: Any) -> set[UUID]:
        wanted: dict[str, Any] = {"model": None, "everything": False, **how}
        return {candidate.voice.id async for candidate in candidates(gateway.parts, **wanted)}

    assert await found() == set()  # the older models can still speak
    assert await found(everything=True) == {*made, other}
    assert await found(model=VD) == {other}
    await rows.execute(
        "UPDATE public.voices SET provider_metadata = jsonb_build_object('gone_from', $2::text) WHERE id = $1",
        made[0],
        gateway.parts.providers.account,
    )
    assert await found() == {made[0]}
    objections = [one.objection async for one in candidates(gateway.parts, model=None, everything=True)]
    assert sum(objection is not None for objection in objections) == 1
