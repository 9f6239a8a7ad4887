"""What was left behind is listed; it is mended where the operator says so, and nothing else is touched."""

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from server.dev.simulator import Simulator
from server.jobs import reconcile as reconciling
from server.jobs.reconcile import Leftovers, Place, reconcile, table
from server.parts import Parts
from server.records import purchases, removals
from server.settings import Settings
from server.storage import Bucket
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import AUTH_JWT_SECRET, with_limits
from tests.voices import billed, cloned, finalize, lapse, previewed, purchase_in, recording, save, start_preview, upload

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def with_everything_old(gateway: Gateway) -> Parts:
    """The same parts, for whom objects of this very moment are old, too."""
    return replace(gateway.parts, settings=with_limits(gateway.parts.settings, keep_objects_seconds=0.0))


async def put(gateway: Gateway, bucket: Bucket, key: str) -> None:
    await gateway.parts.storage.put(bucket, key, b"audio", content_type="audio/wav", size=5)


async def keys(gateway: Gateway, bucket: Bucket) -> set[str]:
    return {stored.key async for stored in gateway.parts.storage.list(bucket)}


async def command(settings: Settings, simulator: Simulator, *arguments: str) -> tuple[int, str, str]:
    """`python -m server reconcile`: its exit status and what it printed."""
    environ = {
        **simulator.environment(),
        "PATH": os.environ["PATH"],
        "DATABASE_URL": settings.database_url,
        "STORAGE_URL": Path(settings.storage.root).as_uri(),
        "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
    }
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "reconcile", *arguments),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(program.communicate(), timeout=30.0)
    return program.returncode or 0, out.decode(), err.decode()


async def test_where_everything_is_in_order_nothing_is_listed(
    gateway: Gateway, client: Client, rows: Rows, database_url: str
) -> None:
    """Voices cloned and designed, a saved preview and one that nobody saved, a deleted voice, speech on both lanes."""
    voice_id = await cloned(client)
    await save(client, await previewed(client))
    await previewed(client)
    await rows.execute("UPDATE public.voices SET deleted_at = now() WHERE source = 'designed'")
    other = await insert_voice(database_url, client.user_id, model="qwen3-tts-vc-2026-01-22")
    for speaker in (UUID(voice_id), other):
        await client.ended((await client.generate(speaker))["task_id"])
    found = await reconcile(with_everything_old(gateway), store_audio=True, delete_objects=True)
    assert found == Leftovers()
    assert table(found).splitlines() == [
        "bought, with an unknown end: none",
        "provider voices without a row: none",
        "objects without a row: none",
        "objects still to be removed: none",
        "spoken, but not stored: none",
    ]
    assert len(await keys(gateway, Bucket.GENERATIONS)) == 4


async def test_what_was_bought_and_not_kept_is_listed_until_it_is_adopted(
    gateway: Gateway, client: Client, simulator: Simulator
) -> None:
    voice_id = await upload(client, recording())
    simulator.behave("customization", {"do": "abort"}, action="create")
    assert (await finalize(client, voice_id)).status_code == 504
    found = await reconcile(gateway.parts)
    [bought], [voice] = found.purchases, found.provider_voices
    assert (bought["kind"], bought["subject"], bought["state"]) == ("clone", UUID(voice_id), "unknown")
    assert bought["user_id"] == client.user_id
    assert bought["provider_name"] == purchases.provider_name(UUID(voice_id))
    assert bought["provider_name"] in voice["voice"]
    assert (voice["kind"], voice["target_model"]) == ("vc", gateway.parts.settings.qwen_vc_target_model)
    assert (await finalize(client, voice_id)).status_code == 200
    after = await reconcile(gateway.parts)
    assert (after.purchases, after.provider_voices) == ([], [])


async def test_a_call_that_is_under_way_is_no_leftover_and_a_lapsed_one_is(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows
) -> None:
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    task_id = await start_preview(client)
    await plan.held()
    assert (await reconcile(gateway.parts)).purchases == []
    await lapse(rows, task_id)
    assert [entry["state"] for entry in (await reconcile(gateway.parts)).purchases] == ["calling"]
    plan.release()
    await purchase_in(rows, task_id, "done")
    assert (await reconcile(gateway.parts)).purchases == []


async def test_voices_of_other_programs_at_the_provider_are_none_of_our_business(
    gateway: Gateway, simulator: Simulator
) -> None:
    for name in ("narrator_1", "u0123", "x0123456789abcde", "U0123456789ABCDE", "u0123456789abcdX"):
        simulator.voices.create("vc", name, "qwen3-tts-vc-realtime-2026-01-15", "en")
    ours = simulator.voices.create("vd", "u0123456789abcde", "qwen3-tts-vd-realtime-2026-01-15", "en")
    found = await reconcile(gateway.parts)
    assert [voice["voice"] for voice in found.provider_voices] == [ours.id]
    assert {call["action"] for call in simulator.calls} == {"list"}, "nothing is deleted at the provider"


async def test_objects_without_a_row_are_listed_and_removed_only_when_told(gateway: Gateway, client: Client) -> None:
    voice_id = await cloned(client)
    await upload(client, recording())
    orphan = f"{client.user_id}/{uuid4()}.mp3"
    await put(gateway, Bucket.GENERATIONS, orphan)
    for delete in (False, True):
        found = await reconcile(with_everything_old(gateway), delete_objects=delete)
        assert {(entry["bucket"], entry["deleted"]) for entry in found.objects} == {
            ("references", delete),
            ("generations", delete),
        }
        assert next(entry for entry in found.objects if entry["key"] == orphan)["size"] == 5
    assert await keys(gateway, Bucket.GENERATIONS) == set()
    assert await keys(gateway, Bucket.REFERENCES) == {f"{client.user_id}/{voice_id}/reference.wav"}
    assert (await reconcile(with_everything_old(gateway))).objects == []


@pytest.mark.parametrize("state", ["unknown", "calling", "refused"])
async def test_the_recording_of_a_clone_with_an_unknown_end_stays_until_it_is_adopted(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows, state: str
) -> None:
    """Without it nobody could finalize again, and the voice that is paid for would be lost."""
    voice_id = await upload(client, recording())
    hidden = {"do": "html", "status": 502, "effect": True} if state == "refused" else {"do": "abort"}
    simulator.behave("customization", hidden, action="create")
    assert (await finalize(client, voice_id)).status_code in (503, 504)
    if state == "calling":
        await rows.execute("UPDATE internal.purchases SET state = 'calling'")
        await lapse(rows, voice_id)
    found = await reconcile(with_everything_old(gateway), delete_objects=True)
    assert found.objects == []
    assert [voice["awaited_by"] for voice in found.provider_voices] == [UUID(voice_id)], "nobody should delete it"
    assert (await finalize(client, voice_id)).json() == {"id": voice_id, "name": "Ada"}
    assert billed(simulator) == 1


async def test_an_object_that_gets_its_row_while_it_is_judged_stays(
    gateway: Gateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice_id = await upload(client, recording())
    wanted_keys = removals.wanted

    async def judge_and_be_overtaken(*arguments: Any) -> set[str]:
        wanted = await wanted_keys(*arguments)
        monkeypatch.setattr(removals, "wanted", wanted_keys)
        assert (await finalize(client, voice_id)).status_code == 200
        return wanted

    monkeypatch.setattr(removals, "wanted", judge_and_be_overtaken)
    [judged] = (await reconcile(with_everything_old(gateway), delete_objects=True)).objects
    assert judged["deleted"] is False
    assert len(await keys(gateway, Bucket.REFERENCES)) == 1


async def test_young_objects_may_still_get_their_row(gateway: Gateway, client: Client) -> None:
    await upload(client, recording())
    found = await reconcile(gateway.parts, delete_objects=True)
    assert found.objects == []
    assert len(await keys(gateway, Bucket.REFERENCES)) == 1


async def test_objects_that_are_still_to_be_removed_are_listed(gateway: Gateway, rows: Rows) -> None:
    await rows.execute("INSERT INTO internal.removals VALUES ('generations', 'a/b.mp3', 'generation deleted')")
    [entry] = (await reconcile(gateway.parts)).removals
    assert (entry["bucket"], entry["object_key"], entry["reason"]) == ("generations", "a/b.mp3", "generation deleted")


async def test_speech_that_could_not_be_stored_is_completed_when_told(
    settings: Settings, database_url: str, rows: Rows
) -> None:
    """A bucket that is away for longer than the server waits; the audio stays in the database."""
    impatient = with_limits(settings, finalize_seconds=0.0)
    bucket = Path(settings.storage.root) / "generations"
    async with running_gateway(impatient) as gateway, gateway.client() as client:
        bucket.rename(bucket.with_name("away"))
        bucket.write_text("no folder")
        answer = await client.generate(await insert_voice(database_url, client.user_id))
        task = await client.ended(answer["task_id"])
        assert (task["status"], task["error_category"]) == ("failed", "storage")
        [listed] = (await reconcile(gateway.parts)).unstored
        assert (listed["task_id"], listed["stored"]) == (UUID(answer["task_id"]), False)

        still_away = await reconcile(gateway.parts, store_audio=True)
        assert still_away.unstored[0]["stored"] is False
        assert any("could not be stored" in problem for problem in still_away.problems)

        bucket.unlink()
        bucket.with_name("away").rename(bucket)
        [stored] = (await reconcile(gateway.parts, store_audio=True)).unstored
        assert stored["stored"] is True
        assert (await client.task(answer["task_id"]))["status"] == "completed"
        assert len(await client.audio(answer["generation_id"])) == listed["byte_length"]
        assert (await reconcile(gateway.parts, store_audio=True)).unstored == []
    assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0


async def test_what_cannot_be_looked_at_is_said_and_the_rest_is_looked_at(
    gateway: Gateway, rows: Rows, simulator: Simulator
) -> None:
    await rows.execute("INSERT INTO internal.removals VALUES ('generations', 'a/b.mp3', 'generation deleted')")
    simulator.behave("customization", {"do": "error", "code": "InvalidApiKey"}, times=0)
    found = await reconcile(gateway.parts)
    assert len(found.problems) == 2
    assert len(found.removals) == 1
    assert "vc voices could not be listed" in table(found)


async def test_a_look_that_was_broken_off_goes_on_where_it_was(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says its place after each batch; what lies before is not looked at again, and only so much is named."""
    monkeypatch.setattr(reconciling, "BATCH", 2)
    everything = [f"somebody/{number}.wav" for number in range(5)]
    for bucket in Bucket:
        for key in everything:
            await put(gateway, bucket, key)
    parts, said = with_everything_old(gateway), list[str]()

    class BrokenOff(Exception):
        """Whoever runs the command has had enough."""

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("objects of generations: 2 "):
            raise BrokenOff

    with pytest.raises(BrokenOff):
        await reconcile(parts, delete_objects=True, say=say)
    place = said[-1].partition("--after ")[2].strip("'")
    assert await keys(gateway, Bucket.REFERENCES) == set()
    assert await keys(gateway, Bucket.GENERATIONS) == set(everything[2:])

    # What was stored meanwhile before that place is another look's.
    await put(gateway, Bucket.GENERATIONS, everything[0])
    await put(gateway, Bucket.REFERENCES, everything[0])
    monkeypatch.setattr(reconciling, "MOST_LISTED", 1)
    found = await reconcile(parts, delete_objects=True, after=Place.of(place))
    assert [entry["key"] for entry in found.objects] == [everything[2]]
    assert found.further_objects == 2
    assert "objects without a row: 3" in table(found)
    assert "and 2 more" in table(found)
    assert await keys(gateway, Bucket.GENERATIONS) == {everything[0]} == await keys(gateway, Bucket.REFERENCES)


# --- the command ------------------------------------------------------------------------------------------------------


async def test_the_command_prints_a_table_or_json(
    settings: Settings, client: Client, simulator: Simulator, rows: Rows
) -> None:
    voice_id = await upload(client, recording())
    simulator.behave("customization", {"do": "abort"}, action="create")
    await finalize(client, voice_id)
    status, said, complaints = await command(settings, simulator)
    assert (status, complaints) == (0, "")
    assert said.startswith("bought, with an unknown end: 1\n")
    assert f"subject={voice_id}" in said
    status, said, complaints = await command(settings, simulator, "--json")
    assert (status, complaints) == (0, "")
    found: dict[str, list[Any]] = json.loads(said)
    assert found.keys() == {field.name for field in msgspec.structs.fields(Leftovers)}
    assert found["purchases"][0]["subject"] == voice_id
    assert len(found["provider_voices"]) == 1
    status, said, complaints = await command(settings, simulator, "--after", "generations/zzz")
    assert (status, complaints) == (0, "")
    assert said.startswith("bought, with an unknown end: 1\n")
    status, said, complaints = await command(settings, simulator, "--after", "zzz")
    assert (status, said) == (2, "")
    assert "BUCKET/KEY" in complaints


async def test_the_command_says_what_it_could_not_look_at_by_its_exit_status(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("customization", {"do": "error", "code": "InvalidApiKey"}, times=0)
    status, said, _ = await command(settings, simulator)
    assert status == 1
    assert "! The provider's vc voices could not be listed" in said
    await rows.execute("DROP TABLE internal.removals")
    status, said, complaints = await command(settings, simulator)
    assert (status, said) == (1, "")
    assert "python -m server migrate" in complaints
    nowhere = replace(settings, database_url="postgresql://127.0.0.1:1/nowhere")
    status, said, complaints = await command(nowhere, simulator)
    assert (status, said) == (1, "")
    assert "PostgreSQL at DATABASE_URL cannot be reached" in complaints
