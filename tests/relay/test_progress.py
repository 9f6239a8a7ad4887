"""What the tasks of a process say of their progress: the last word of each, in order, waiting for nobody."""

import asyncio
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from server.dev.simulator import Simulator
from server.records.speech import Progress
from tests.end_to_end.hearing import hold_after
from tests.gateway import Client, Gateway
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def word_of(rows: Rows, task: dict[str, Any]) -> str | None:
    word: str | None = await rows.fetchval(
        "SELECT provider_status FROM public.tasks WHERE id = $1", UUID(task["task_id"])
    )
    return word


async def test_a_locked_task_keeps_nobody_waiting_and_shows_its_last_word_afterwards(
    client: Client, gateway: Gateway, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    plans = [hold_after(simulator, 1, text_contains=name) for name in ("First", "Second")]
    first, second = [await client.generate(voice_id, f"{name}.") for name in ("First", "Second")]
    for task in (first, second):
        await wait_for(partial(said, rows, task, "streaming"))
    progress = gateway.parts.progress
    async with rows.transaction():
        await rows.execute("SELECT FROM public.tasks WHERE id = $1 FOR UPDATE", UUID(first["task_id"]))
        for word in ("one", "two"):
            for task in (first, second):
                progress.say(Progress(UUID(task["task_id"]), 1, word))
            await wait_for(partial(said, rows, second, word))
    await wait_for(partial(said, rows, first, "two"))
    for plan in plans:
        plan.release()
    for task in (first, second):
        assert (await client.ended(task["task_id"]))["provider_status"] == "completed"
        progress.say(Progress(UUID(task["task_id"]), 1, "late"))
    await asyncio.gather(*(client.ended(task["task_id"]) for task in (first, second)))
    assert {await word_of(rows, task) for task in (first, second)} == {"completed"}


async def said(rows: Rows, task: dict[str, Any], word: str) -> bool:
    return await word_of(rows, task) == word
