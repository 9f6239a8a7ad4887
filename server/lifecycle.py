"""A process from its first job to its last: what runs beside the requests, and how it drains and stops."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from server.database.connections import REFUSED
from server.database.queue import (
    DEFAULT,
    DEFAULT_CONCURRENCY,
    SYNTHESIS,
    WATCHING,
    WATCHING_CONCURRENCY,
)
from server.jobs.attended import attend
from server.jobs.design import make_preview
from server.jobs.finalize import finalize
from server.jobs.give_back import give_back
from server.jobs.modal import cancel_modal, watch_modal
from server.jobs.remove import remove
from server.jobs.renew import renew
from server.jobs.starts import take_turn
from server.jobs.synthesize import synthesize
from server.parts import Parts
from server.records.purchases import GIVE_BACK_JOB
from server.records.runs import (
    CANCEL_MODAL_JOB,
    COLLECT_MODAL_JOB,
    FINALIZE_JOB,
    PREVIEW_JOB,
    REMOVE_JOB,
    RENEW_JOB,
    SYNTHESIZE_JOB,
    WATCH_MODAL_JOB,
)
from server.relay.sweep import Sweeper

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def working(parts: Parts) -> AsyncIterator[None]:
    """Run jobs and keep everything current; at the end, speeches that run are given their grace."""
    queue, settings = parts.queue, parts.settings
    sweeper = Sweeper(
        parts.database,
        queue,
        parts.announcer,
        parts.endings,
        parts.leases,
        parts.metrics,
        settings,
        parts.kept.keeps,
    )
    queue.register(SYNTHESIZE_JOB, partial(take_turn, parts))
    queue.register(FINALIZE_JOB, partial(finalize, parts))
    queue.register(REMOVE_JOB, partial(remove, parts))
    queue.register(PREVIEW_JOB, partial(make_preview, parts))
    queue.register(RENEW_JOB, partial(renew, parts))
    queue.register(WATCH_MODAL_JOB, partial(watch_modal, parts))
    queue.register(COLLECT_MODAL_JOB, partial(synthesize, parts))
    queue.register(GIVE_BACK_JOB, partial(give_back, parts))
    queue.register(CANCEL_MODAL_JOB, partial(cancel_modal, parts))
    async with (
        background(parts.listener.run, parts.announcer.run, parts.spool.run, parts.following.run, parts.leases.run),
        background(
            parts.progress.run,
            sweeper.run,
            parts.kept.run,
            parts.polled.run,
            parts.keyring.run,
            parts.retirements.run,
            parts.watch.run,
            parts.watch.listen_to_the_loop,
            partial(attend, parts),
        ),
        asyncio.TaskGroup() as group,
        parts.speeches.running(),
    ):
        places, at_most = parts.speeches.places, settings.synthesis_concurrency
        synthesis = group.create_task(queue.work(SYNTHESIS, concurrency=at_most, places=places))
        # Speeches end by our own deadline; what the other queues run may be cut and done again.
        cut = settings.deadlines.drain_seconds
        default = group.create_task(queue.work(DEFAULT, concurrency=DEFAULT_CONCURRENCY, cut_after_seconds=cut))
        watching = group.create_task(queue.work(WATCHING, concurrency=WATCHING_CONCURRENCY, cut_after_seconds=cut))
        try:
            yield
        finally:
            await _drain(parts, synthesis, default)
            watching.cancel()


async def _drain(parts: Parts, synthesis: asyncio.Task[None], default: asyncio.Task[None]) -> None:
    """Let what speaks finish within its grace, then store what is there to be stored."""
    stop(parts)
    started, drain_seconds = time.monotonic(), parts.settings.deadlines.drain_seconds
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(parts.settings.shutdown_grace_seconds + drain_seconds):
            await _until_spoken(parts, synthesis)
    synthesis.cancel()
    parts.speeches.cut()
    with contextlib.suppress(TimeoutError, *REFUSED):
        async with asyncio.timeout(drain_seconds):
            while await _waiting(parts):  # noqa: ASYNC110 - what is waited for happens in the database
                await asyncio.sleep(0.05)
    parts.queue.stop(DEFAULT)
    await asyncio.wait({default}, timeout=drain_seconds + 1.0)
    await parts.leases.leave()
    parts.database.wait_no_more()
    default.cancel()
    logger.info("drained", extra={"seconds": round(time.monotonic() - started, 1)})


async def _until_spoken(parts: Parts, synthesis: asyncio.Task[None]) -> None:
    """Until the worker has ended, every speech is stored and every submission answered. What does not end though no
    provider is at work any more waits for a database or a store that is gone."""
    silent_seconds, step_seconds = 0.0, 0.1
    drain_seconds = parts.settings.deadlines.drain_seconds

    def provider_is_at_work() -> bool:
        return parts.leases.speaking > 0 or parts.speeches.submitting

    def is_busy() -> bool:
        return provider_is_at_work() or parts.speeches.under_way or not synthesis.done()

    while is_busy() and silent_seconds < drain_seconds:
        await asyncio.sleep(step_seconds)
        silent_seconds = 0.0 if provider_is_at_work() else silent_seconds + step_seconds


async def _waiting(parts: Parts) -> int:
    async with parts.database.connection() as connection:
        return await parts.queue.depth(connection, DEFAULT)


def stop(parts: Parts) -> None:
    """Take nothing new, and end the open streams; their browsers come back to the next process.

    What speaks has its grace from now on: readers that read nothing may hold up the rest of the shutdown meanwhile.
    """
    if parts.stopping.is_set():
        return
    parts.readiness.leaving = True
    parts.stopping.set()
    parts.queue.stop(SYNTHESIS)
    parts.queue.stop(WATCHING)
    parts.following.wake_all()
    loop, grace_seconds = asyncio.get_running_loop(), parts.settings.shutdown_grace_seconds
    loop.call_later(grace_seconds, parts.leases.release)
    loop.call_later(grace_seconds, parts.speeches.cut_submissions)


@contextlib.asynccontextmanager
async def background(*loops: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run endless loops beside the block. One that fails is logged and started again: nothing here may die quietly."""
    async with asyncio.TaskGroup() as group:
        tasks_ = [group.create_task(_again_and_again(loop)) for loop in loops]
        try:
            yield
        finally:
            for task in tasks_:
                task.cancel()


async def _again_and_again(loop: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await loop()
        except Exception:
            logger.exception("background loop failed, starting it again")
        await asyncio.sleep(0.5)
