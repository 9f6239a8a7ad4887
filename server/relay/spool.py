"""The durable copy of speech while it is being spoken.

One writer per process gathers what every running synthesis has added and commits it with one statement per tick. The
statement waits for nobody, and a stream that was cancelled or taken over drops out alone
(docs/architecture.md, "The spool in PostgreSQL").
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

import msgspec

from server.database.announce import Announcer
from server.database.connections import REFUSED, Connection, Database
from server.metrics import Metrics
from server.records import runs
from server.records.runs import Standing
from server.relay.live import AudioLog, Note

logger = logging.getLogger(__name__)

ROW_BYTES = 256 * 1024
STATEMENT_BYTES = 4 * 1024 * 1024

# Marks and words are durable exactly when the audio before them is. A word's row locks its generation's, which the
# locks' order puts first: it is taken only where nobody holds it, and else they come with the next tick.
#
# ``start = byte_length`` makes a gap, a repeat and a double commit impossible; SKIP LOCKED makes it wait for nobody;
# the locked run row makes sure that no spool row appears after a cancel has deleted them.
_APPEND = """
WITH batch AS (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bytea[]) AS b (task_id, attempt, byte_offset, bytes)
), marks AS (
    SELECT * FROM unnest($6::uuid[], $7::boolean[], $8::bigint[], $9::int[])
        AS m (task_id, goes_on, marked_bytes, marked_characters)
), said AS (
    SELECT * FROM unnest($10::uuid[], $11::int[], $12::text[]) AS w (task_id, position, words)
), span AS (
    SELECT task_id, attempt, min(byte_offset) AS start, max(byte_offset + length(bytes)) AS stop
      FROM batch GROUP BY task_id, attempt
), held AS (
    SELECT r.task_id, r.generation_id, s.stop
      FROM internal.runs r
      JOIN span s ON s.task_id = r.task_id AND s.attempt = r.attempt AND s.start = r.byte_length
     WHERE r.state = 'speaking' AND r.owner = $5
     ORDER BY r.task_id
       FOR NO KEY UPDATE OF r SKIP LOCKED
), locked AS (
    SELECT h.task_id, g.id FROM held h JOIN public.generations g ON g.id = h.generation_id
     WHERE h.task_id IN (SELECT task_id FROM said)
       FOR KEY SHARE OF g SKIP LOCKED
), ready AS (
    SELECT h.task_id, h.stop, coalesce(m.goes_on, false) AS goes_on, m.marked_bytes, m.marked_characters,
           h.task_id NOT IN (SELECT task_id FROM said) OR h.task_id IN (SELECT task_id FROM locked)
           OR NOT EXISTS (SELECT 1 FROM public.generations g WHERE g.id = h.generation_id) AS settled
      FROM held h LEFT JOIN marks m USING (task_id)
), moved AS (
    UPDATE internal.runs r
       SET byte_length = h.stop, beat_at = now(), goes_on = h.goes_on,
           marked_bytes = CASE WHEN h.goes_on AND h.settled THEN h.marked_bytes ELSE r.marked_bytes END,
           marked_characters = CASE WHEN h.goes_on AND h.settled THEN h.marked_characters ELSE r.marked_characters END
      FROM ready h WHERE r.task_id = h.task_id
    RETURNING r.task_id, r.attempt, r.byte_length, h.settled
), inserted AS (
    INSERT INTO internal.spool (task_id, attempt, byte_offset, bytes)
    SELECT b.task_id, b.attempt, b.byte_offset, b.bytes FROM batch b JOIN moved m USING (task_id, attempt)
     WHERE length(b.bytes) > 0
), timed AS (
    INSERT INTO internal.words (generation_id, position, words)
    SELECT l.id, w.position, w.words::jsonb FROM said w JOIN moved m USING (task_id) JOIN locked l USING (task_id)
    ON CONFLICT (generation_id, position) DO UPDATE SET words = excluded.words
)
SELECT task_id, byte_length, settled FROM moved
"""


class _Row(NamedTuple):
    log: AudioLog
    byte_offset: int
    audio: bytes


class _Noted(NamedTuple):
    """What a statement says of a log that goes on: its last mark, and the notes up to ``settles`` with their words."""

    mark: Note
    settles: int
    words: list[Note]


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
        self._committing_since: float | None = None
        metrics.spool_lag(self._lag_seconds, lambda: sum(max(0, log.length - log.durable) for log in self._writing))

    def _lag_seconds(self) -> float:
        return 0.0 if self._committing_since is None else time.monotonic() - self._committing_since

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
        """Return when ``log`` is committed, every byte and note of it, however long the database is away.

        What was paid for and is in memory is not thrown away; whoever waits here is cancelled where the run is lost
        or the process leaves.
        """
        while not log.kept:
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
                self._committing_since = time.monotonic()
                try:
                    await self._commit(batch)
                finally:
                    self._committing_since = None

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
            if start == log.durable and start == stop and not log.kept:
                batch.append(_Row(log, start, b""))  # notes alone
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
        ends = {row.log: row.byte_offset + len(row.audio) for row in batch}
        noted = {log: _noted(log, stop) for log, stop in ends.items() if log.goes_on}
        said = [(log, note) for log, notes in noted.items() for note in notes.words]
        columns = (
            [row.log.task_id for row in batch],
            [row.log.attempt for row in batch],
            [row.byte_offset for row in batch],
            [row.audio for row in batch],
            self._owner,
            [log.task_id for log in noted],
            [log.marked for log in noted],
            [notes.mark.marked_bytes for notes in noted.values()],
            [notes.mark.marked_characters for notes in noted.values()],
            [log.task_id for log, _ in said],
            [note.position for _, note in said],
            [msgspec.json.encode(note.words).decode() for _, note in said],
        )
        pause = 0.05
        while True:
            try:
                async with self._database.connection() as connection:
                    kept = {row["task_id"]: row["settled"] for row in await connection.fetch(_APPEND, *columns)}
                    missing = [log for log in ends if log.task_id not in kept]
                    standing = await runs.standings(connection, [log.task_id for log in missing]) if missing else {}
                break
            except REFUSED as exc:
                logger.warning("spool write failed, trying again", extra={"reason": type(exc).__name__})
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)
        for log, stop in ends.items():
            if log.task_id in kept:
                if log in noted and kept[log.task_id]:
                    log.settled = max(log.settled, noted[log].settles)
                log.committed(stop)
            else:
                self._recover(log, stop, standing.get(log.task_id))
            if log.durable >= log.length and not log.kept and log in self._writing:
                self._grown[log] = None
                self._wake.set()
        self._announcer.grew(kept)

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


def _noted(log: AudioLog, stop: int) -> _Noted:
    notes = [note for note in log.notes if note.at <= stop]
    mark = notes[-1] if notes else Note(0, 0, 0)
    words = [note for note in notes[log.settled :] if note.position is not None]
    return _Noted(mark, len(notes), words)


async def spooled(connection: Connection, task_id: UUID, *, start: int = 0) -> list[bytes]:
    """The durable payload of a task from byte ``start`` on, in order, whoever wrote it: a few rows of it, none where it
    ends."""
    rows = await connection.fetch(
        """SELECT byte_offset, bytes FROM internal.spool
            WHERE task_id = $1
              AND byte_offset >= coalesce((SELECT max(byte_offset) FROM internal.spool
                    WHERE task_id = $1 AND byte_offset <= $2), 0)
            ORDER BY byte_offset LIMIT 16""",
        task_id,
        start,
    )
    parts = [row["bytes"][max(0, start - row["byte_offset"]) :] for row in rows]
    return [part for part in parts if part]
