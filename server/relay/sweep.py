"""What other processes left behind: runs of dead processes move on, lost jobs are deferred again, old rows go.

Every process sweeps; nothing is taken twice, because each step is a guarded statement of its own. Only the database's
clock counts.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal
from uuid import UUID

import asyncpg

from server.database.announce import Announcer
from server.database.connections import REFUSED, Connection, Database, wait_for_locks
from server.database.queue import Queue
from server.metrics import Metrics
from server.records import idempotency, modal, processes, purchases, removals, runs, speech, tasks
from server.records.runs import WATCH_MODAL_JOB, Lost
from server.records.speech import RESTARTED, Ended, Ending
from server.relay.endings import Endings
from server.relay.leases import Leases
from server.settings import Settings

logger = logging.getLogger(__name__)

NOBODY_FREE = Ending(
    detail="This text waited too long for its turn. Please try again.", category="provider_unavailable"
)
# How long after its start a process looks for runs of an older release; once a minute it does so for ever.
DEPLOY_SECONDS = 600.0
HOUSEKEEPING_EVERY = 12
# For one run. A process that is paused inside a transaction must not keep us from all the others.
LOCK_SECONDS = 1.0


@contextmanager
def _somebody_holds_it(task_id: UUID) -> Iterator[None]:
    """Leave a run whose row is locked to the next look."""
    try:
        yield
    except asyncpg.LockNotAvailableError:
        logger.warning("run not swept, somebody holds its row", extra={"task_id": str(task_id)})


class Sweeper:
    """Looks every few seconds until cancelled.

    Args:
        keeps: Whether a run is looked after in this process, though nobody works on it.
    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        announcer: Announcer,
        endings: Endings,
        leases: Leases,
        metrics: Metrics,
        settings: Settings,
        keeps: Callable[[UUID], bool] = lambda _task_id: False,
    ) -> None:
        self._database = database
        self._queue = queue
        self._announcer = announcer
        self._endings = endings
        self._leases = leases
        self._keeps = keeps
        self._metrics = metrics
        self._settings = settings
        self._deadlines = settings.deadlines
        self._started_at = time.monotonic()

    async def run(self) -> None:
        rounds = 0
        while True:
            try:
                await self.sweep()
                if rounds % HOUSEKEEPING_EVERY == 0:
                    await self.clean()
                rounds += 1
            except REFUSED as exc:
                logger.warning("sweep failed", extra={"reason": repr(exc)})
            await asyncio.sleep(self._settings.intervals.sweep_every_seconds * random.uniform(0.8, 1.2))  # noqa: S311

    async def sweep(self) -> None:
        """One look at every run that should have moved."""
        for run in await self._lost():
            with _somebody_holds_it(run.task_id):
                await self._take_from_the_dead(run, silent_for_seconds=self._deadlines.lost_after_seconds)
        for run in await self._strays():
            with _somebody_holds_it(run.task_id):
                await self._take_from_the_dead(run, silent_for_seconds=None)
        async with self._database.connection() as connection:
            overdue = await runs.overdue(connection, self._deadlines.queue_seconds)
        for task_id, attempt in overdue:
            with _somebody_holds_it(task_id):
                await self._end(task_id, NOBODY_FREE, attempt=attempt, state="queued")
        async with self._database.transaction() as connection:
            for task_id in await runs.restart_idle(connection, self._queue, self._deadlines.idle_run_seconds):
                logger.warning("job lost, deferred again", extra={"task_id": str(task_id)})
        async with self._database.transaction() as connection:
            self._metrics.queue_depth(await self._queue.depth(connection))
            await removals.try_again(connection, self._queue)
            self._metrics.removals_failing(await removals.failing(connection))

    async def _lost(self) -> list[Lost]:
        patience = self._deadlines.lost_after_seconds
        async with self._database.connection() as connection:
            lost = await runs.lost(connection, patience, self._leases.owner)
            # Processes of an older release are there only for a while after a deploy.
            if time.monotonic() - self._started_at < DEPLOY_SECONDS:
                lost += await runs.lost_unregistered(connection, patience)
        return lost

    async def _strays(self) -> list[Lost]:
        """What is this process's own by the rows, though nobody here works on it."""
        async with self._database.connection() as connection:
            strays = await runs.strays(connection, self._leases.owner, self._leases.held)
        # A hold is taken before the rows say so; one that has come since is no stray. Nor is one that the database
        # forgot to have ended: what was done for it is done again.
        return [run for run in strays if not (self._leases.holds(run.task_id, run.attempt) or self._keeps(run.task_id))]

    async def _take_from_the_dead(self, run: Lost, *, silent_for_seconds: float | None) -> None:
        if run.repeatable:
            async with self._database.transaction() as connection:
                await wait_for_locks(connection, at_most_seconds=LOCK_SECONDS)
                back = await speech.requeue(
                    connection,
                    self._queue,
                    run.task_id,
                    run.attempt,
                    reason="its process died",
                    silent_for_seconds=silent_for_seconds,
                )
            if back:
                logger.warning("run taken from a dead process", extra={"task_id": str(run.task_id)})
                self._announcer.changed(run.task_id)
        else:
            facts = {"error": {"code": "process_died", "attempt": run.attempt}}
            died = Ending(detail=RESTARTED, category="internal", facts=facts)
            await self._end(run.task_id, died, attempt=run.attempt, silent_for_seconds=silent_for_seconds)

    async def _end(
        self,
        task_id: UUID,
        ending: Ending,
        *,
        attempt: int | None = None,
        state: Literal["queued", "speaking"] = "speaking",
        silent_for_seconds: float | None = None,
    ) -> None:
        """End a run, unless it has moved on since its row was read: its owner may have been paused, not dead.

        Args:
            attempt: None for a task that never had a run.
        """

        async def move(connection: Connection) -> Ended:
            await wait_for_locks(connection, at_most_seconds=LOCK_SECONDS)
            return await speech.end(
                connection, task_id, ending, attempt=attempt, state=state, silent_for_seconds=silent_for_seconds
            )

        await self._endings.end_by(task_id, ending, move, for_seconds=0.0)

    async def clean(self) -> None:
        """Remove rows that are no longer needed."""
        retentions = self._settings.retentions
        async with self._database.connection() as connection:
            await tasks.forget_hidden(connection, retentions.keep_hidden_seconds)
            await idempotency.forget_old(connection)
            await purchases.forget_old(connection, retentions.keep_purchases_seconds)
            kept_since_spoken = self._deadlines.finalize_seconds + retentions.keep_unstored_seconds
            await runs.forget_unstored(connection, kept_since_spoken)
            await self._queue.abort_orphans(connection)
            await processes.forget_old(connection)
            await runs.forget_turns(connection)
            orphans = await runs.lost_unregistered(connection, self._deadlines.lost_after_seconds)
        async with self._database.transaction() as connection:
            for preview in await purchases.give_back_due(connection, self._queue):
                if object_key := (preview.outcome or {}).get("object_key"):
                    bucket = self._settings.storage.bucket_generations
                    reason = "preview given back"
                    await removals.record(connection, self._queue, bucket, object_key, asked_by=None, reason=reason)
        for run in orphans:
            with _somebody_holds_it(run.task_id):
                await self._take_from_the_dead(run, silent_for_seconds=self._deadlines.lost_after_seconds)
        await self._adopt()

    async def _adopt(self) -> None:
        """Tasks of the older system, which nobody watches, get a watcher: they end without being polled, too."""
        async with self._database.connection() as connection:
            task_ids = await modal.unwatched(connection, older_than_seconds=self._deadlines.modal_no_id_seconds)
            abandoned = await modal.abandoned(connection, older_than_seconds=self._settings.older_tasks_minutes * 60.0)
        for task_id in task_ids:
            async with self._database.transaction() as connection:
                if await modal.adopt(connection, task_id):
                    logger.info("task of the older system is watched now", extra={"task_id": str(task_id)})
                    await runs.start_job(connection, self._queue, WATCH_MODAL_JOB, task_id, 1)
        for task_id in abandoned:
            await self._end(task_id, modal.TOO_LATE)
