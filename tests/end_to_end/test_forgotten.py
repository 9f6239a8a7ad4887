"""A database that comes back without its last commits: what this process did meanwhile is said to it again."""

import asyncio
from collections.abc import Iterator
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.end_to_end.conftest import storing_by_job
from tests.end_to_end.hearing import DELTA_BYTES, Ears, hold_after
from tests.gateway import Client, Gateway, insert_voice
from tests.postgres_proxy import PostgresProxy
from tests.support import wait_for, with_limits

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
DELTAS = 5


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Of a server that looks often for what nobody works on."""
    return with_limits(settings, sweep_every_seconds=0.05, store_elsewhere_seconds=0.3)


@pytest.fixture
async def voice_id(database_url: str, client: Client, spoken_model: str) -> UUID:
    return await insert_voice(database_url, client.user_id, model=spoken_model)


TABLES = ("public.generations", "public.tasks", "internal.runs")


class Standby:
    """What a standby has heard of one speech; ``take_over`` makes that what the database knows."""

    def __init__(self, rows: Rows, task: dict[str, Any]) -> None:
        self._rows = rows
        self._ids = [UUID(task["generation_id"]), UUID(task["task_id"]), UUID(task["task_id"])]
        self._heard: list[Any] = []
        self._spool: list[Any] = []

    def _each(self) -> Iterator[tuple[str, str, UUID]]:
        for table, row_id in zip(TABLES, self._ids, strict=True):
            yield table, "task_id" if table == "internal.runs" else "id", row_id

    async def catch_up(self) -> None:
        for table, column, row_id in self._each():
            query = f"SELECT to_jsonb(r) FROM {table} r WHERE {column} = $1"
            self._heard.append(await self._rows.fetchval(query, row_id))
        self._spool = await self._rows.fetch("SELECT * FROM internal.spool")

    def forget_the_claim(self) -> None:
        """Not even that somebody had begun it was heard of."""
        self._heard[-1] |= {"state": "queued", "owner": None, "byte_length": 0}
        self._spool = []

    async def take_over(self) -> None:
        async with self._rows.transaction():
            for table, column, row_id in self._each():
                await self._rows.execute(f"DELETE FROM {table} WHERE {column} = $1", row_id)
            for table, row in zip(TABLES, self._heard, strict=True):
                said = f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, $1)"
                await self._rows.execute(said, row)
            await self._rows.execute("DELETE FROM internal.spool")
            await self._rows.executemany(
                "INSERT INTO internal.spool (task_id, attempt, byte_offset, bytes) VALUES ($1, $2, $3, $4)",
                [(row["task_id"], row["attempt"], row["byte_offset"], row["bytes"]) for row in self._spool],
            )


async def until_durable(rows: Rows) -> None:
    """Wait until everything that the provider has said before it is held stands in the spool."""

    async def durable() -> bool:
        return bool(await rows.fetchval("SELECT byte_length FROM internal.runs") == DELTAS * DELTA_BYTES)

    await wait_for(durable)


@pytest.mark.parametrize("forgot", ["that it was spoken", "that it was begun"])
async def test_a_speech_whose_storing_was_forgotten_is_completed_again_and_not_spoken_again(
    client: Client, anybody: Ears, voice_id: UUID, simulator: Simulator, rows: Rows, forgot: str
) -> None:
    plan = hold_after(simulator, DELTAS)
    task = await client.generate(voice_id, "Whoever heard this to its end must not hear it twice.")
    await plan.held()
    await until_durable(rows)
    standby = Standby(rows, task)
    await standby.catch_up()
    if forgot == "that it was begun":
        standby.forget_the_claim()
    plan.release()
    heard = await anybody.hear(task["stream_url"])
    assert heard.end
    assert heard.end["status"] == "completed"
    stored = await client.audio(task["generation_id"])

    await standby.take_over()
    assert (await client.task(task["task_id"]))["status"] == "processing"
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    assert await client.audio(task["generation_id"]) == stored
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0
    assert await rows.fetchval("SELECT count(*) FROM internal.spool") == 0
    assert len([call for call in simulator.calls if call["surface"] == "realtime"]) == 1
    again = await anybody.hear(task["stream_url"])
    assert again.end
    assert again.end["status"] == "completed"


async def test_a_speech_of_which_much_is_forgotten_just_before_its_end_is_written_down_is_whole(
    speaker: Gateway, door: PostgresProxy, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    """Everything was durable a moment ago; whoever writes the end finds that it no longer is."""
    plan = hold_after(simulator, DELTAS)
    async with speaker.client(client.user_id) as asking:
        task = await asking.generate(voice_id, "Its last seconds were confirmed, and nobody knows of them.")
    await plan.held()
    await until_durable(rows)
    standby = Standby(rows, task)
    await standby.catch_up()
    with door.holding_back(b"AND owner = $3 AND state = 'spoken'") as held:
        plan.release()
        async with asyncio.timeout(10.0):
            await held.wait()
        await standby.take_over()
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    [call] = [call for call in simulator.calls if call["surface"] == "realtime"]
    assert len(await client.audio(task["generation_id"])) in (call["audio_bytes"], call["audio_bytes"] + 44)


async def test_what_its_user_has_removed_since_is_not_shown_again_without_its_audio(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    plan = hold_after(simulator, DELTAS)
    task = await client.generate(voice_id, "This is deleted as soon as it is there.")
    await plan.held()
    standby = Standby(rows, task)
    await standby.catch_up()
    plan.release()
    assert (await client.ended(task["task_id"]))["status"] == "completed"
    assert (await client.http.delete(f"/api/generations/{task['generation_id']}")).status_code == 200

    async def removed() -> bool:
        return not await rows.fetchval("SELECT count(*) FROM internal.removals")

    await wait_for(removed)
    await standby.take_over()
    ended = await client.ended(task["task_id"])
    if ended["status"] == "completed":  # on a lane that goes on it is spoken once more
        assert len(await client.audio(task["generation_id"])) > DELTAS * DELTA_BYTES
    assert len([call for call in simulator.calls if call["surface"] == "realtime"]) <= 2


async def test_a_log_that_is_kept_counts_as_memory(
    gateway: Gateway, client: Client, voice_id: UUID, rows: Rows
) -> None:
    """What waits here for a store that is away is no less in memory than what is being spoken."""

    def bytes_in_memory() -> float:
        [line] = [
            line
            for line in gateway.parts.metrics.exposition().decode().splitlines()
            if line.startswith("utter_audio_memory_bytes ")
        ]
        return float(line.split()[1])

    async with storing_by_job(gateway):
        await client.generate(voice_id, "Nobody stores this for a while.")

        async def spoken() -> int:
            length: int = await rows.fetchval("SELECT byte_length FROM internal.runs WHERE state = 'spoken'") or 0
            return length

        length = await wait_for(spoken)
        await wait_for(lambda: bytes_in_memory() == length)
    await wait_for(lambda: bytes_in_memory() == 0)
