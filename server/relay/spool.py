"""The durable copy of speech while it is being spoken.

One writer per process gathers what every running synthesis has added and commits it with one statement per tick. The
statement waits for nobody, and a stream that was cancelled or taken over drops out alone
(docs/architecture.md, "The spool in PostgreSQL").
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

from server.database.announce import Announcer
from server.database.connections import REFUSED, Connection, Database
from server.metrics import Metrics
from server.records import runs
from server.records.runs import Standing
from server.relay.live import AudioLog

logger = logging.getLogger(__name__)

ROW_BYTES = 256 * 1024
STATEMENT_BYTES = 4 * 1024 * 1024

# ``start = byte_length`` makes a gap, a repeat and a double commit impossible; SKIP LOCKED makes it wait for nobody;
# the locked run row makes sure that no spool row appears after a cancel has deleted them.
_APPEND = """
WITH batch AS (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bytea[]) AS b (task_id, attempt, byte_offset, bytes)
), span AS (
    SELECT task_id, attempt, min(byte_offset) AS start, max(byte_offset + length(bytes)) AS stop
      FROM batch GROUP BY task_id, attempt
), held AS (
    SELECT r.task_id, s.stop
      FROM internal.runs r
      JOIN span s ON s.task_id = r.task_id AND s.attempt = r.attempt AND s.start = r.byte_length
     WHERE r.state = 'speaking' AND r.owner = $5
     ORDER BY r.task_id
       FOR NO KEY UPDATE OF r SKIP LOCKED
), moved AS (
    UPDATE internal.runs r SET byte_length = h.stop, beat_at = now()
      FROM held h WHERE r.task_id = h.task_id
    RETURNING r.task_id, r.attempt, r.byte_length
), inserted AS (
    INSERT INTO internal.spool (task_id, attempt, byte_offset, bytes)
    SELECT b.task_id, b.attempt, b.byte_offset, b.bytes FROM batch b JOIN moved m USING (task_id, attempt)
)
SELECT task_id, byte_length FROM moved
"""


class _Row(NamedTuple):
    log: AudioLog
    byte_offset: int
    audio: bytes


class SpoolWriter:
    """Makes the audio of this process's syntheses durable, all of them together.

    Args:
        owner: This process, as its runs name it. Nobody else's run is written or judged.
    """

    def __init__(
        self, database: Database, owner: UUID, announcer: Announcer, metrics: Metrics, *, every_seconds: float
    ) -> None:
        self._database = database
        self._owner = owner
        self._announcer = announcer
        self._metrics = metrics
        self._every_seconds = every_seconds
        self._writing: dict[AudioLog, Callable[[], None]] = {}
        self._grown: dict[AudioLog, None] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()

    @contextmanager
    def writing(self, log: AudioLog, lost: Callable[[], None]) -> Iterator[None]:
        """Keep ``log`` durable while the context is open; ``lost()`` when its run is no longer ours."""
        self._writing[log] = lost
        try:
            yield
        finally:
            del self._writing[log]
            self._grown.pop(log, None)

    def grew(self, log: AudioLog) -> None:
        """``log`` has new bytes. The first ones are written without waiting for the tick: nobody hears them before."""
        self._grown[log] = None
        self._wake.set()
        if not log.durable:
            self._urgent.set()

    async def flush(self, log: AudioLog) -> None:
        """Return when every byte of ``log`` is committed, however long the database is away.

        What was paid for and is in memory is not thrown away; whoever waits here is cancelled where the run is lost
        or the process leaves.
        """
        while log.durable < log.length:
            self.grew(log)
            self._urgent.set()
            await log.next_commit()

    async def is_behind_us(self, log: AudioLog) -> bool:
        """Whether the run of a flushed log is still ours and speaking: then what the database lost is written again.

        For whoever found that the spool does not hold what was flushed. ``flush`` does the writing.
        """
        standings = await self._database.patiently_say(runs.standings, [log.task_id])
        standing = standings.get(log.task_id)
        if standing is None or not self._is_ours(log, standing):
            return False
        self._take_as_it_stands(log, standing)
        return True

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            await self._tick_or_urgent()
            self._wake.clear()
            self._urgent.clear()
            batch = self._gather()
            if batch:
                await self._commit(batch)

    async def _tick_or_urgent(self) -> None:
        try:
            async with asyncio.timeout(self._every_seconds):
                await self._urgent.wait()
        except TimeoutError:
            pass

    def _gather(self) -> list[_Row]:
        """Everything not yet durable, cut into rows, up to one statement's worth; the rest waits for the next."""
        batch: list[_Row] = []
        size = 0
        grown, self._grown = self._grown, {}
        for log in grown:
            start, stop = log.durable, log.length
            while start < stop and size < STATEMENT_BYTES:
                audio = log.read(start, min(stop, start + ROW_BYTES))
                batch.append(_Row(log, start, audio))
                start += len(audio)
                size += len(audio)
            if start < stop:
                self._grown[log] = None
                self._wake.set()
                self._urgent.set()
        return batch

    async def _commit(self, batch: list[_Row]) -> None:
        """Bring one frozen batch to a known end, however long the database is away.

        Frozen, because a commit whose answer was lost must be repeated as it was: the comparison then refuses it
        and the run's length says what was kept.
        """
        columns = (
            [row.log.task_id for row in batch],
            [row.log.attempt for row in batch],
            [row.byte_offset for row in batch],
            [row.audio for row in batch],
            self._owner,
        )
        ends = {row.log: row.byte_offset + len(row.audio) for row in batch}
        pause = 0.05
        while True:
            try:
                async with self._database.connection() as connection:
                    kept = {row["task_id"]: row["byte_length"] for row in await connection.fetch(_APPEND, *columns)}
                    missing = [log for log in ends if log.task_id not in kept]
                    standing = await runs.standings(connection, [log.task_id for log in missing]) if missing else {}
                break
            except REFUSED as exc:
                logger.warning("spool write failed, trying again", extra={"reason": type(exc).__name__})
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)
        for log, stop in ends.items():
            if log.task_id in kept:
                log.committed(stop)
            else:
                self._recover(log, stop, standing.get(log.task_id))
        self._announcer.spread(kept)

    def _recover(self, log: AudioLog, stop: int, standing: Standing | None) -> None:
        if standing is None or not self._is_ours(log, standing):
            if lost := self._writing.get(log):
                lost()
            return
        self._take_as_it_stands(log, standing)
        if log.durable < stop and log in self._writing:
            # Somebody holds the row for a moment, or there is more than was kept; the next tick takes the rest.
            self._grown[log] = None
            self._wake.set()

    def _is_ours(self, log: AudioLog, standing: Standing) -> bool:
        return (standing.attempt, standing.state, standing.owner) == (log.attempt, "speaking", self._owner)

    @staticmethod
    def _take_as_it_stands(log: AudioLog, standing: Standing) -> None:
        if standing.byte_length > log.durable:
            # A commit whose answer was lost had arrived. What it kept is ours: an attempt has one writer.
            log.committed(standing.byte_length)
        elif standing.byte_length < log.durable:
            # A standby took over that had not heard of our last commits: they are said again from memory.
            extra = {"task_id": str(log.task_id), "bytes": log.durable - standing.byte_length}
            logger.warning("the database lost audio, writing it again", extra=extra)
            log.rewound(standing.byte_length)


async def spooled(connection: Connection, task_id: UUID, attempt: int, *, start: int = 0) -> list[bytes]:
    """The durable payload of one attempt from byte ``start`` on, in order: a few rows of it, none where it ends."""
    rows = await connection.fetch(
        """SELECT byte_offset, bytes FROM internal.spool
            WHERE task_id = $1 AND attempt = $2
              AND byte_offset >= coalesce((SELECT max(byte_offset) FROM internal.spool
                    WHERE task_id = $1 AND attempt = $2 AND byte_offset <= $3), 0)
            ORDER BY byte_offset LIMIT 16""",
        task_id,
        attempt,
        start,
    )
    parts = [row["bytes"][max(0, start - row["byte_offset"]) :] for row in rows]
    return [part for part in parts if part]
