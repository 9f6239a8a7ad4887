"""Where and when a speech begins: here and at once in the process that took its text, else by turns.

What waits, waits as a queued row and nowhere else. Its job only says that there is one; whoever has a place and a start
of the account's pace takes the next by turns: the user who has begun the fewest speeches lately, then who came first.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeAlias
from uuid import UUID

import anyio

from server.database.connections import REFUSED
from server.database.queue import SYNTHESIS
from server.jobs.synthesize import Taken, bytes_of, speak, take
from server.parts import Parts
from server.providers.lanes import lane_of
from server.records import runs, tasks
from server.records.runs import SYNTHESIZE_JOB
from server.records.speech import Assignment, NewSpeech
from server.records.tasks import SpeechTask

logger = logging.getLogger(__name__)

# Creates the rows and returns the task: with a run that the given process speaks already, if nobody waits before it.
Create: TypeAlias = Callable[[UUID | None], Awaitable[SpeechTask]]
# So long a start that nobody could use yet is waited for at most before the rows are asked again.
_LOOK_SECONDS = 1.0
# A job for which this process has no memory may be taken by another so soon.
_OTHERS_SECONDS = 2.5


async def begin(parts: Parts, wanted: NewSpeech, create: Create) -> SpeechTask:
    """Create a speech, and begin it in this process where there is room for it.

    What is begun here goes on whatever becomes of the request, from its transaction on.
    """
    async with AsyncExitStack() as room:
        if not await _there_is_room(parts, wanted, room):
            return await create(None)
        created: asyncio.Future[SpeechTask] = asyncio.get_running_loop().create_future()
        created.add_done_callback(lambda done: done.cancelled() or done.exception())  # the request may have gone away
        await parts.speeches.begin(_begin_here(parts, wanted, create, created, room.pop_all()))
    return await asyncio.shield(created)


async def _there_is_room(parts: Parts, wanted: NewSpeech, room: AsyncExitStack) -> bool:
    """Whether there is a place, memory (which ``room`` keeps then), and a start of the model's pace, in our hands."""
    size = bytes_of(len(wanted.text))

    def is_free() -> bool:
        taking = parts.queue.up((SYNTHESIS,)) and not parts.stopping.is_set()
        return taking and parts.speeches.free and parts.memory.has_room(size)

    if not (is_free() and await _pause_before(parts, wanted.provider, wanted.model) <= 0 and is_free()):
        return False
    await room.enter_async_context(parts.memory.room(size, within_seconds=_LOOK_SECONDS))  # at once, there is some
    return True


async def _pause_before(parts: Parts, provider: str | None, model: str | None) -> float:
    """Seconds until the model's pace allows a start; 0 for one that was taken, and for a lane that has no pace."""
    lane = lane_of(provider, model) if provider else None
    if lane is None or lane.begins == "submitted" or model is None:
        return 0.0
    return await parts.pacer.take(model)


async def _begin_here(
    parts: Parts, wanted: NewSpeech, create: Create, created: "asyncio.Future[SpeechTask]", room: AsyncExitStack
) -> None:
    scope = anyio.CancelScope()
    # Held before it is there: a cancel may come with the commit.
    async with room:
        with parts.leases.hold(wanted.task_id, 1, scope.cancel, claimed=False) as hold:
            try:
                task = await _created(parts, wanted.task_id, create)
            except BaseException as exc:
                created.set_exception(exc)
                if isinstance(exc, Exception):
                    return  # the request has it, and answers
                raise
            created.set_result(task)
            if task.id != wanted.task_id or task.run_state != "speaking":
                return  # the same request made another before, or others wait before this one
            hold.claimed = True
            await speak(parts, _assignment(wanted), scope, hold)


async def _created(parts: Parts, task_id: UUID, create: Create) -> SpeechTask:
    try:
        return await create(parts.leases.owner)
    except REFUSED:
        if found := await _committed(parts, task_id):
            return found
        raise


async def _committed(parts: Parts, task_id: UUID) -> SpeechTask | None:
    """Our task, where only the answer to its commit was lost. Where nobody can tell now, the sweep finds it later."""
    try:
        async with parts.database.connection() as connection:
            standing = (await runs.standings(connection, [task_id])).get(task_id)
            ours = standing is not None and standing.owner == parts.leases.owner
            return await tasks.get(connection, task_id) if ours else None
    except REFUSED:
        return None


def _assignment(wanted: NewSpeech) -> Assignment:
    return Assignment(
        task_id=wanted.task_id,
        attempt=1,
        generation_id=wanted.generation_id,
        user_id=wanted.user_id,
        voice_id=wanted.voice_id,
        text=wanted.text,
        language=wanted.language,
        format_name=wanted.format_name,
        object_key=wanted.object_key,
        provider=wanted.provider,
        provider_voice_id=wanted.provider_voice_id,
        provider_target_model=wanted.model,
        asked=wanted.asked,
        job=None,
        waited_seconds=0.0,
        start_within_seconds=wanted.within_seconds,
    )


async def take_turn(parts: Parts, *, task_id: UUID, attempt: int) -> None:
    """Begin the next text that waits, by turns, and speak it (a job; whoever it was made for may come later)."""
    if parts.memory.waited_for:
        await _leave_to_others(parts, in_seconds=_OTHERS_SECONDS)
        return
    async with AsyncExitStack() as held:
        async with parts.speeches.turns:
            try:
                taken = await _take_next(parts, held)
            except _NoRoom:
                await _leave_to_others(parts, in_seconds=_LOOK_SECONDS / 2)
                return
        if taken is not None:
            await speak(parts, *taken)
    if parts.stopping.is_set() and taken is None:
        # Whoever comes after us need not wait until the sweep has missed this job.
        async with parts.database.transaction() as connection:
            await runs.wake(connection, parts.queue, task_id, attempt)


class _NoRoom(Exception):
    """There is no memory in this process for the text whose turn it is."""


async def _leave_to_others(parts: Parts, *, in_seconds: float) -> None:
    """Put the job back, for any process: another one may have memory for what is next in turn."""
    in_seconds *= random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
    async with parts.database.transaction() as connection:
        if following := await runs.next_in_turn(connection, SYNTHESIZE_JOB, []):
            await runs.start_job(
                connection,
                parts.queue,
                SYNTHESIZE_JOB,
                following.task_id,
                following.attempt,
                in_seconds=in_seconds,
            )


async def _take_next(parts: Parts, held: AsyncExitStack) -> Taken | None:
    """Take the next run, as soon as its model's pace allows; None where nothing waits, or this process is leaving.

    Raises:
        _NoRoom: There is no memory for it here, and there was none for a while.
    """
    barred: dict[str, float] = {}  # models without a start at the moment
    while not parts.stopping.is_set():
        following = await parts.database.patiently(runs.next_in_turn, SYNTHESIZE_JOB, list(barred))
        if following is None and not barred:
            return None
        if following is None:
            await asyncio.sleep(min(_LOOK_SECONDS, *barred.values()))
            barred.clear()
            continue
        async with AsyncExitStack() as trying:
            size = bytes_of(following.characters)
            try:
                await trying.enter_async_context(parts.memory.room(size, within_seconds=_LOOK_SECONDS))
            except TimeoutError:
                raise _NoRoom from None
            pause = await _pause_before(parts, following.provider, following.model)
            if pause > 0 and following.model is not None:
                barred[following.model] = pause
            elif taken := await take(parts, following.task_id, following.attempt, trying):
                held.push_async_exit(trying.pop_all())
                return taken
    return None
