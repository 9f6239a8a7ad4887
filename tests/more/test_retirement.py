"""Told that the old models are gone, an operator sets one variable, and everybody keeps their voice; and goes back."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.settings import VC_REALTIME, VD_REALTIME, Settings
from tests.end_to_end.conftest import QWEN_AUDIO
from tests.gateway import Client, process
from tests.support import AUTH_JWT_SECRET, wait_for
from tests.voices import billed, cloned, creations, listed, previewed, recording, save

pytestmark = pytest.mark.slow

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
GONE = {"do": "close", "at": "open", "code": 1007, "reason": "Model not found."}
# The one variable.
NEWER = {"QWEN_VC_TARGET_MODEL": QWEN_AUDIO}


@dataclass
class Person:
    """Somebody with a voice, and what they have said so far: generation by stored audio."""

    name: str
    user_id: UUID = field(default_factory=uuid4)
    voice: dict[str, Any] = field(default_factory=dict)
    said: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Operator:
    """Who runs servers and commands, with the environment of the moment."""

    settings: Settings
    simulator: Simulator
    folder: Path

    @asynccontextmanager
    async def serving(self, name: str, **environ: str) -> AsyncIterator[str]:
        async with process(self.settings, self.simulator, self.folder / f"{name}.log", **environ) as started:
            yield started.url

    async def begin(self, *command: str, **environ: str) -> asyncio.subprocess.Process:
        variables = {
            **self.simulator.environment(),
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self.settings.database_url,
            "STORAGE_URL": Path(self.settings.storage.root).as_uri(),
            "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
            **environ,
        }
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server", *command, env=variables, stdout=pipe, stderr=pipe
        )

    async def run(self, *command: str, **environ: str) -> tuple[int | None, str]:
        running = await self.begin(*command, **environ)
        said, complaint = await asyncio.wait_for(running.communicate(), 60.0)
        return running.returncode, said.decode() + complaint.decode()


async def speaks(client: Client, person: Person, text: str) -> dict[str, Any]:
    """One text of theirs, all the way."""
    task = await client.generate(UUID(person.voice["id"]), text)
    ended = await client.ended(task["task_id"])
    assert ended["status"] == "completed", (person.name, ended)
    person.said[task["generation_id"]] = await client.audio(task["generation_id"])
    return ended


async def history_is_whole(client: Client, person: Person) -> None:
    """Everything that they ever said is there and sounds as it did."""
    shown = (await client.http.get("/api/generations")).json()["generations"]
    assert {entry["id"] for entry in shown} == person.said.keys()
    assert {entry["status"] for entry in shown} == {"completed"}
    assert {entry["voice_name"] for entry in shown} == {person.name}
    for generation_id, audio in person.said.items():
        assert await client.audio(generation_id) == audio


async def people_of_the_older_models(url: str, rows: Rows, folder: Path) -> list[Person]:
    """A cloned voice, a cloned one of four seconds, a designed one, and one of which only its description is left."""
    people = [Person("Ada"), Person("Bea"), Person("Grace"), Person("Lin")]
    for person in people:
        async with Client(url, person.user_id) as client:
            if person.name in ("Ada", "Bea"):
                await cloned(client, recording(12.0 if person.name == "Ada" else 4.0), name=person.name)
            else:
                answer = await save(client, await previewed(client, key=person.name), name=person.name)
                assert answer.status_code == 200, answer.text
            [person.voice] = await listed(client)
            await speaks(client, person, f"{person.name} says something.")
    lin = people[-1]
    key = await rows.fetchval(
        """UPDATE public.voices v SET reference_object_key = NULL FROM public.voices o
            WHERE v.id = o.id AND v.id = $1 RETURNING o.reference_object_key""",
        UUID(lin.voice["id"]),
    )
    (folder / "storage" / "references" / key).unlink()
    assert [person.voice["provider_target_model"] for person in people] == [VC_REALTIME] * 2 + [VD_REALTIME] * 2
    return people


async def test_everybody_keeps_their_voice_and_nothing_is_lost_on_the_way_back(
    settings: Settings, simulator: Simulator, rows: Rows, tmp_path: Path
) -> None:
    operator = Operator(settings, simulator, tmp_path)
    async with operator.serving("before") as url:
        people = await people_of_the_older_models(url, rows, tmp_path)
        bought = billed(simulator)

        for model in (VC_REALTIME, VD_REALTIME):
            simulator.behave("realtime", GONE, model=model, times=0)
        status, said = await operator.run("doctor")
        assert status == 1
        assert f"GONE    {VC_REALTIME}" in said
        assert f"GONE    {VD_REALTIME}" in said
        assert "Set QWEN_VC_TARGET_MODEL" in said
        async with Client(url, people[0].user_id) as client:

            async def known() -> bool:
                return not (await listed(client))[0]["compatible"]

            await wait_for(known, 30.0)
            refused = await client.http.post(
                "/api/generate", json={"voice_id": people[0].voice["id"], "text": "Is anybody there?"}
            )
            assert (refused.status_code, "no longer offers" in refused.json()["detail"]) == (409, True)

    async with operator.serving("after", **NEWER) as url:
        status, said = await operator.run("renew", "--all", "--dry-run", **NEWER)
        assert (status, billed(simulator)) == (0, bought)
        assert f"4 voices are to be made again for {QWEN_AUDIO}" in said
        assert "0.04 USD" in said

        # The second voice is under way when somebody presses Ctrl-C.
        simulator.behave("customization", {}, action="create")
        plan = simulator.behave("customization", {"do": "hold"}, action="create")
        running = await operator.begin("renew", "--all", **NEWER)
        await plan.held()
        running.send_signal(signal.SIGINT)
        said_bytes, _ = await asyncio.wait_for(running.communicate(), 30.0)
        assert b"1/4" in said_bytes
        assert running.returncode != 0
        plan.release()
        await wait_for(lambda: billed(simulator) == bought + 2)

        status, said = await operator.run("renew", "--all", **NEWER)
        assert status == 0, said
        assert "3 voices are to be made again" in said
        assert "3/3" in said
        assert billed(simulator) == len(creations(simulator)) == bought + 4, "what was broken off was found, not bought"

        known_as = set()
        for person in people:
            async with Client(url, person.user_id) as client:
                [voice] = await listed(client)
                for same in ("id", "name", "source", "language", "description", "created_at"):
                    assert voice[same] == person.voice[same]
                assert (voice["provider_target_model"], voice["compatible"]) == (QWEN_AUDIO, True)
                await speaks(client, person, f"{person.name} still has this voice.")
                assert simulator.calls[-1]["voice"] == voice["provider_voice_id"]
                known_as.add(voice["provider_voice_id"])
                await history_is_whole(client, person)
        assert len(known_as) == len(people), "each has their own"
        status, said = await operator.run("renew", "--all", **NEWER)
        assert (status, "0 voices" in said) == (0, True)

    simulator.behaviours.clear()
    bought = billed(simulator)
    status, said = await operator.run("doctor")
    assert status == 0, said
    async with operator.serving("back") as url:
        async with Client(url, people[0].user_id) as client:
            await speaks(client, people[0], "The newer voice goes on meanwhile.")
        status, said = await operator.run("renew", "--all")
        assert status == 0, said
        assert "4 of them it knew before" in said
        assert "0.00 USD" in said
        for person in people:
            async with Client(url, person.user_id) as client:
                [voice] = await listed(client)
                assert voice["provider_voice_id"] == person.voice["provider_voice_id"]
                await speaks(client, person, f"{person.name} is back.")
                await history_is_whole(client, person)
        assert billed(simulator) == bought
        status, said = await operator.run("reconcile")
        assert (status, said.count("none")) == (0, 5), said
