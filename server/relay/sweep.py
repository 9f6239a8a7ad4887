"""What other processes left behind: dead ones' runs move on, lost jobs are deferred again, old rows go.

Every process sweeps; nothing is taken twice, because each step is a guarded statement of its own. Only the database's
clock counts.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import asyncpg

from server.announce import Announcer
from server.database import REFUSED, Database
from server.errors import Category
from server.jobs.synthesize import RESTARTED
from server.metrics import Metrics
from server.queue import Queue
from server.records import modal, removals, speech
from server.settings import Deadlines

if TYPE_CHECKING:
    from server.database import Connection

logger = logging.getLogger(__name__)

# A worker that died before the first byte is replaced once (design §7); after that the text itself is suspect.
ATTEMPTS = 2
# A job's result is fetched as often as one likes, so only a result that kills whoever fetches it is given up.
COLLECT_ATTEMPTS = 5
NOBODY_FREE = "Nobody was free to speak this in time. Please try again."
# How many renewals after an outage of the database a process that lives has certainly got through.
BEATS_MISSED = 5
HOUSEKEEPING_EVERY = 12
REMOVAL_OVERDUE_SECONDS = 60.0


@contextmanager
def _somebody_holds_it(task_id: UUID) -> Iterator[None]:
    """Leave a run whose row is locked to the next look."""
    try:
        yield
    except asyncpg.LockNotAvailableError:
        logger.warning("run not swept, somebody holds its row", extra={"task_id": str(task_id)})


class Sweeper:
    """Looks every few seconds until cancelled."""

    def __init__(
        self, database: Database, queue: Queue, announcer: Announcer, metrics: Metrics, deadlines: Deadlines
    ) -> None:
        self._database = database
        self._queue = queue
        self._announcer = announcer
        self._metrics = metrics
        self._deadlines = deadlines
        self._trusts_beats_at = 0.0

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
                self._trusts_beats_at = time.monotonic() + BEATS_MISSED * self._deadlines.renew_every_seconds
            await asyncio.sleep(self._deadlines.sweep_every_seconds * random.uniform(0.8, 1.2))  # noqa: S311

    async def sweep(self) -> None:
        """One look at every run that should have moved."""
        # An outage ages everybody's beat; first let those who live say so.
        if time.monotonic() >= self._trusts_beats_at:
            for task_id, attempt, may_be_repeated in await self._lost():
                with _somebody_holds_it(task_id):
                    await self._take_from_the_dead(task_id, attempt, may_be_repeated)
        for task_id, attempt in await self._waited_too_long():
            with _somebody_holds_it(task_id):
                await self._end(task_id, attempt, NOBODY_FREE, "provider_unavailable", state="queued")
        await self._restart_jobs()
        async with self._database.transaction() as connection:
            self._metrics.queue_depth(await self._queue.depth(connection))
            for bucket, object_key in await removals.overdue(connection, REMOVAL_OVERDUE_SECONDS):
                await self._queue.defer(connection, speech.REMOVE_JOB, bucket=bucket, object_key=object_key)

    async def _lost(self) -> list[tuple[UUID, int, bool]]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT task_id, attempt, CASE WHEN job_name = $2 THEN attempt < $3
                                                 ELSE byte_length = 0 AND attempt < $4 END AS may_be_repeated
                     FROM internal.runs
                    WHERE state = 'speaking' AND beat_at < now() - make_interval(secs => $1)""",
                self._deadlines.lost_after_seconds,
                speech.COLLECT_MODAL_JOB,
                COLLECT_ATTEMPTS,
                ATTEMPTS,
            )
        return [(row["task_id"], row["attempt"], row["may_be_repeated"]) for row in rows]

    async def _take_from_the_dead(self, task_id: UUID, attempt: int, may_be_repeated: bool) -> None:
        if may_be_repeated:
            async with self._impatient_transaction() as connection:
                back = await speech.put_back(
                    connection,
                    self._queue,
                    task_id,
                    attempt,
                    reason="its process died",
                    silent_for_seconds=self._deadlines.lost_after_seconds,
                )
            if back:
                logger.warning("run taken from a dead process", extra={"task_id": str(task_id)})
                self._announcer.changed(task_id)
        else:
            await self._end(
                task_id,
                attempt,
                RESTARTED,
                "internal",
                silent_for_seconds=self._deadlines.lost_after_seconds,
                facts={"error": {"code": "process_died", "attempt": attempt}},
            )

    async def _waited_too_long(self) -> list[tuple[UUID, int]]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT task_id, attempt FROM internal.runs
                    WHERE state = 'queued' AND job_name = ANY($2) AND created_at < now() - make_interval(secs => $1)""",
                self._deadlines.queue_seconds,
                [speech.SYNTHESIZE_JOB, speech.PREVIEW_JOB],
            )
        return [(row["task_id"], row["attempt"]) for row in rows]

    @asynccontextmanager
    async def _impatient_transaction(self) -> "AsyncIterator[Connection]":
        """For one run. A process that is paused inside a transaction must not keep us from all the others."""
        async with self._database.transaction() as connection:
            await connection.execute("SET LOCAL lock_timeout = '1s'")
            yield connection

    async def _end(
        self,
        task_id: UUID,
        attempt: int | None,
        detail: str,
        category: Category,
        *,
        state: Literal["queued", "speaking"] = "speaking",
        silent_for_seconds: float | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """End a run, unless it has moved on since it was looked at: its owner may have been paused, not dead.

        Args:
            attempt: None for a task that never had a run.
        """
        try:
            async with self._impatient_transaction() as connection:
                ended = await speech.end(
                    connection,
                    task_id,
                    status="failed",
                    detail=detail,
                    category=category,
                    attempt=attempt,
                    state=state,
                    silent_for_seconds=silent_for_seconds,
                    facts=facts,
                )
        except speech.Fenced:
            return
        if ended.here:
            logger.warning("run ended by the sweep", extra={"task_id": str(task_id), "category": category})
            self._metrics.task_ended(ended.provider, "failed", category)
        self._announcer.changed(task_id)

    async def _restart_jobs(self) -> None:
        """Runs that wait for a job which is not in the queue (any more). Twice is harmless by the job's own guards."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                """UPDATE internal.runs SET beat_at = now()
                    WHERE task_id IN (
                        SELECT r.task_id FROM internal.runs r
                         WHERE r.state IN ('queued', 'spoken') AND r.beat_at < now() - make_interval(secs => $1)
                           AND NOT EXISTS (SELECT 1 FROM internal.procrastinate_jobs j
                                            WHERE j.status = 'todo' AND j.args ->> 'task_id' = r.task_id::text)
                           FOR NO KEY UPDATE OF r SKIP LOCKED)
                RETURNING task_id, attempt, state, job_name, object_key""",
                self._deadlines.idle_run_seconds,
            )
            for row in rows:
                logger.warning("job lost, deferred again", extra={"task_id": str(row["task_id"])})
                if row["state"] == "spoken":
                    await speech.defer_finalize(connection, self._queue, row["task_id"], row["object_key"])
                else:
                    await speech.start_job(connection, self._queue, row["job_name"], row["task_id"], row["attempt"])

    async def clean(self) -> None:
        """What has served its time goes."""
        async with self._database.connection() as connection:
            for statement, arguments in self._housekeeping():
                await connection.execute(statement, *arguments)
        await self._adopt()

    async def _adopt(self) -> None:
        """Tasks of the older system, which nobody watches, get a watcher: they end without being polled, too."""
        async with self._database.connection() as connection:
            task_ids = await modal.unwatched(connection, older_than_seconds=self._deadlines.modal_no_id_seconds)
            abandoned = await modal.abandoned(connection, older_than_seconds=self._deadlines.modal_job_seconds)
        for task_id in task_ids:
            async with self._database.transaction() as connection:
                if await modal.adopt(connection, task_id):
                    logger.info("task of the older system is watched now", extra={"task_id": str(task_id)})
                    await speech.start_job(connection, self._queue, speech.WATCH_MODAL_JOB, task_id, 1)
        for task_id in abandoned:
            await self._end(task_id, None, "The speech provider did not finish in time. Please try again.", "timeout")

    def _housekeeping(self) -> list[tuple[str, tuple[float, ...]]]:
        deadlines = self._deadlines
        return [
            (
                """DELETE FROM public.tasks WHERE deleted_at < now() - make_interval(secs => $1)
                      AND status NOT IN ('pending', 'processing')""",
                (deadlines.keep_hidden_seconds,),
            ),
            ("DELETE FROM internal.idempotency WHERE created_at < now() - interval '24 hours'", ()),
            # Voices and previews are known by theirs for ever; what is left of a speech is only money, long looked at.
            (
                """DELETE FROM internal.purchases WHERE kind IN ('http', 'modal')
                      AND updated_at < now() - make_interval(secs => $1)""",
                (deadlines.keep_purchases_seconds,),
            ),
            (
                """WITH expired AS (
                       DELETE FROM internal.runs
                        WHERE state = 'unstored' AND spoken_at < now() - make_interval(secs => $1) RETURNING task_id)
                   DELETE FROM internal.spool WHERE task_id IN (SELECT task_id FROM expired)""",
                (deadlines.finalize_seconds + deadlines.keep_unstored_seconds,),
            ),
            # Jobs of processes that died hard; their runs have long moved on.
            (
                """SELECT internal.procrastinate_finish_job_v1(j.id, 'aborted', true)
                     FROM internal.procrastinate_jobs j
                     LEFT JOIN internal.procrastinate_workers w ON w.id = j.worker_id
                    WHERE j.status = 'doing' AND (w.id IS NULL OR w.last_heartbeat < now() - interval '1 hour')""",
                (),
            ),
        ]
