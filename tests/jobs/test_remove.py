"""Objects that must go, also when they cannot yet."""

from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from server.records import removals
from server.relay.sweep import Sweeper
from tests.gateway import Client, Gateway
from tests.support import wait_for

Rows = asyncpg.Connection


async def due(rows: "Rows[asyncpg.Record]") -> None:
    """Let the time of every removal have come."""
    await rows.execute("UPDATE internal.removals SET next_at = now() - interval '1 second'")


LINES = {
    "elsewhere": "bucket of another configuration",  # such a bucket is never there
    "away": "object not removed yet",
}


@pytest.mark.parametrize("bucket", LINES)
async def test_what_cannot_be_removed_is_tried_after_growing_pauses_and_said_once(
    gateway: Gateway, client: Client, rows: "Rows[asyncpg.Record]", caplog: pytest.LogCaptureFixture, bucket: str
) -> None:
    """13 errors a minute told nobody more than one; a number says that it goes on."""
    parts = gateway.parts
    key = f"{client.user_id}/lost.mp3"
    if bucket == "away":
        bucket = parts.generations_bucket
        # A folder in place of the file is what even root cannot unlink.
        Path(parts.settings.storage.root, bucket, key).mkdir(parents=True)
    async with parts.database.transaction() as connection:
        await removals.record(
            connection, parts.queue, bucket, key, asked_by=client.user_id, reason="generation deleted"
        )

    async def queue_is_empty() -> bool:
        return not await rows.fetchval("SELECT count(*) FROM internal.procrastinate_jobs WHERE task_name = 'remove'")

    def said() -> int:
        return sum(any(line in record.getMessage() for line in LINES.values()) for record in caplog.records)

    await wait_for(queue_is_empty)
    pauses = []
    for _ in range(4):
        await due(rows)
        async with parts.database.transaction() as connection:
            await removals.try_again(connection, parts.queue)
        await wait_for(queue_is_empty)
        pauses.append(await rows.fetchval("SELECT extract(epoch FROM next_at - now())::float8 FROM internal.removals"))
    assert [round(pause / 60) for pause in pauses] == [2, 4, 8, 16]
    assert said() == 2, "at first, and when it was tried again"
    sweeper = Sweeper(
        parts.database, parts.queue, parts.announcer, parts.endings, parts.leases, parts.metrics, parts.settings
    )
    await sweeper.sweep()
    assert await queue_is_empty(), "its time has not come"
    assert "utter_removals_failing 1.0" in parts.metrics.exposition().decode()


async def test_what_a_row_shows_is_not_removed_though_somebody_asked_for_it(
    gateway: Gateway, client: Client, rows: "Rows[asyncpg.Record]", voice_id: UUID
) -> None:
    """A removal that was noted before the speech was published, and carried out after it."""
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    key = await rows.fetchval(
        "SELECT audio_object_key FROM public.generations WHERE id = $1", UUID(answer["generation_id"])
    )
    bucket = gateway.parts.settings.storage.bucket_generations
    async with gateway.parts.database.transaction() as connection:
        await removals.record(
            connection, gateway.parts.queue, bucket, key, asked_by=client.user_id, reason="cancelled while storing"
        )

    async def settled() -> bool:
        return not await rows.fetchval("SELECT count(*) FROM internal.removals WHERE object_key = $1", key)

    await wait_for(settled)
    assert await client.audio(answer["generation_id"])
