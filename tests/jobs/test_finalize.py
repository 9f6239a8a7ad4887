"""Storing what was spoken: once, whole, for as long as it takes, and nothing that nobody wants."""

import shutil
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from server.database.queue import DEFAULT
from server.jobs.finalize import LONGEST_PAUSE_SECONDS, finalize
from server.records.runs import FINALIZE_JOB, REMOVE_JOB
from server.settings import Settings
from server.storage import Bucket
from tests.end_to_end.conftest import storing_by_job, take_no_jobs
from tests.gateway import Client, Gateway, insert_voice
from tests.support import wait_for, with_limits

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Whoever speaks does not wait for its turn to store."""
    return with_limits(settings, store_elsewhere_seconds=0.01)


@pytest.fixture
async def gateway(gateway: Gateway) -> Gateway:
    """A server that speaks and leaves what it has spoken to the test."""
    await take_no_jobs(gateway, DEFAULT)
    return gateway


@pytest.fixture
async def task(gateway: Gateway, client: Client, voice_id: UUID, rows: Rows) -> dict[str, Any]:
    """A speech that is spoken, and whose job to store it nobody will run."""
    return await spoken(gateway, client, voice_id, rows)


async def spoken(gateway: Gateway, client: Client, voice_id: UUID, rows: Rows) -> dict[str, Any]:
    """A speech of which nothing is left but storing; the job that would store it is taken away."""
    async with storing_by_job(gateway):
        task = await client.generate(voice_id)

        async def state() -> bool:
            found = await rows.fetchval("SELECT state FROM internal.runs WHERE task_id = $1", UUID(task["task_id"]))
            return bool(found == "spoken" and not gateway.parts.leases.held)

        await wait_for(state, 30.0)
    await rows.execute("DELETE FROM internal.procrastinate_jobs WHERE task_name = $1", FINALIZE_JOB)
    return task


def key_of(client: Client, task: dict[str, Any], suffix: str = "mp3") -> str:
    return f"{client.user_id}/{task['generation_id']}.{suffix}"


async def store(gateway: Gateway, client: Client, task: dict[str, Any], suffix: str = "mp3") -> None:
    await finalize(gateway.parts, task_id=UUID(task["task_id"]), object_key=key_of(client, task, suffix))


async def jobs(rows: Rows) -> list[tuple[str, float]]:
    """Name of each deferred job, and in how many seconds it is due."""
    found = await rows.fetch(
        """SELECT task_name, coalesce(extract(epoch FROM scheduled_at - now()), 0)::float8 AS due
             FROM internal.procrastinate_jobs ORDER BY id"""
    )
    return [(row["task_name"], row["due"]) for row in found]


def counted(gateway: Gateway, status: str, category: str = "") -> int:
    """How many tasks of that end this process has counted."""
    line = f'utter_tasks_total{{category="{category}",provider="qwen",status="{status}"}} '.encode()
    found = [text for text in gateway.parts.metrics.exposition().splitlines() if text.startswith(line)]
    return int(float(found[0].rpartition(b" ")[2])) if found else 0


async def test_a_speech_is_stored_once_and_completed_once(
    gateway: Gateway, client: Client, task: dict[str, Any], rows: Rows
) -> None:
    payload = await rows.fetchval("SELECT string_agg(bytes, ''::bytea ORDER BY byte_offset) FROM internal.spool")
    for _ in range(2):
        await store(gateway, client, task)
    assert await client.audio(task["generation_id"]) == payload
    ended = await client.task(task["task_id"])
    assert (ended["status"], ended["provider_status"]) == ("completed", "completed")
    assert counted(gateway, "completed") == 1
    for table in ("runs", "spool", "removals", "procrastinate_jobs"):
        assert await rows.fetchval(f"SELECT count(*) FROM internal.{table}") == 0


async def test_raw_samples_get_their_header(gateway: Gateway, client: Client, rows: Rows, database_url: str) -> None:
    voice_id = await insert_voice(database_url, client.user_id, model="qwen3-tts-vc-2026-01-22")
    task = await spoken(gateway, client, voice_id, rows)
    payload = await rows.fetchval("SELECT string_agg(bytes, ''::bytea ORDER BY byte_offset) FROM internal.spool")
    await store(gateway, client, task, "wav")
    audio = await client.audio(task["generation_id"])
    assert audio[:4] == b"RIFF"
    assert audio[44:] == payload


@pytest.mark.parametrize(
    ("spoken_seconds_ago", "pause"),
    [(0, 1.0), (100, 100.0), (3600, LONGEST_PAUSE_SECONDS), (86_000, LONGEST_PAUSE_SECONDS)],
)
async def test_while_the_storage_is_away_it_is_tried_again_ever_more_rarely(
    gateway: Gateway, client: Client, task: dict[str, Any], rows: Rows, spoken_seconds_ago: int, pause: float
) -> None:
    _take_storage_away(gateway)
    await rows.execute(
        "UPDATE internal.runs SET spoken_at = now() - make_interval(secs => $1)", float(spoken_seconds_ago)
    )
    await store(gateway, client, task)
    [(name, due)] = await jobs(rows)
    assert name == FINALIZE_JOB
    assert pause - 15 < due < pause + 15
    assert (await client.task(task["task_id"]))["status"] == "processing"


async def test_after_a_day_it_is_given_up_with_words_and_the_audio_is_kept(
    gateway: Gateway, client: Client, task: dict[str, Any], rows: Rows
) -> None:
    _take_storage_away(gateway)
    await rows.execute("UPDATE internal.runs SET spoken_at = now() - interval '25 hours'")
    await store(gateway, client, task)
    ended = await client.task(task["task_id"])
    assert (ended["status"], ended["error_category"]) == ("failed", "storage")
    assert "could not be stored" in ended["error"]
    assert counted(gateway, "failed", "storage") == 1
    assert await rows.fetchval("SELECT state FROM internal.runs") == "unstored"
    assert await rows.fetchval("SELECT sum(length(bytes)) FROM internal.spool") > 0
    assert await jobs(rows) == []


async def test_what_was_cancelled_while_it_was_stored_is_removed(
    gateway: Gateway, client: Client, task: dict[str, Any], rows: Rows
) -> None:
    await rows.execute("UPDATE public.generations SET status = 'cancelled'")
    await store(gateway, client, task)
    assert await rows.fetchval("SELECT object_key FROM internal.removals") == key_of(client, task)
    assert [name for name, _ in await jobs(rows)] == [REMOVE_JOB]
    assert (await client.task(task["task_id"]))["status"] == "cancelled"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0


async def test_an_object_that_a_completed_row_shows_stays_and_another_goes(
    gateway: Gateway, client: Client, task: dict[str, Any], rows: Rows
) -> None:
    """The job may run again, long after, and under a key that an earlier attempt was given."""
    await store(gateway, client, task)
    await store(gateway, client, task)
    assert await rows.fetchval("SELECT count(*) FROM internal.removals") == 0
    await store(gateway, client, task, "wav")
    assert await rows.fetchval("SELECT object_key FROM internal.removals") == key_of(client, task, "wav")
    assert await gateway.parts.storage.head(Bucket.GENERATIONS, key_of(client, task))


async def test_half_a_speech_is_never_stored(
    gateway: Gateway, client: Client, task: dict[str, Any], rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever deletes the spool between the two reads has ended the speech, or is about to."""
    await rows.execute("DELETE FROM internal.spool")
    await store(gateway, client, task)
    assert await gateway.parts.storage.head(Bucket.GENERATIONS, key_of(client, task)) is None
    assert (await client.task(task["task_id"]))["status"] == "processing"
    assert "nothing to store yet" in caplog.text


def _take_storage_away(gateway: Gateway) -> None:
    bucket = Path(gateway.parts.settings.storage.root) / "generations"
    shutil.rmtree(bucket)
    bucket.write_text("no folder")
