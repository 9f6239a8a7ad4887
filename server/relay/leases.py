"""Which runs this process holds, and how it learns that one is no longer its own.

A run is lost when its row is gone (cancelled, deleted) or carries another attempt (this process was presumed dead).
Three ways lead to the same end: at once through ``drop`` where the cancel happened here, by NOTIFY from another
process, and within a second by the renewal if both fail. The same second says that this process lives at all.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from server.database.announce import CANCEL_CHANNEL, names
from server.database.connections import REFUSED, Connection, Database, Listener
from server.records import processes, runs

logger = logging.getLogger(__name__)

# How long a connection and a beat may take; a process that is slower than this was not able to write.
ANSWER_SECONDS = 3.0

# Says "alive" for all runs of this process and asks who was lost, without waiting for a row that somebody has locked.
_BEAT = """
WITH held AS (
    SELECT r.task_id
      FROM internal.runs r
      JOIN unnest($1::uuid[], $2::int[]) AS mine (task_id, attempt) USING (task_id, attempt)
     WHERE r.owner = $3
     ORDER BY r.task_id
       FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE internal.runs r SET beat_at = now() FROM held WHERE r.task_id = held.task_id RETURNING r.task_id
"""


class Hold:
    """One run of this process: being claimed, then ours.

    Attributes:
        claimed: The rows say so, too. Before, a renewal would not find the run, and that would mean nothing.
    """

    def __init__(self, attempt: int, lost: Callable[[], None] | None, *, claimed: bool) -> None:
        self.attempt = attempt
        self.lost = lost
        self.claimed = claimed


class Leases:
    """This process's runs.

    Attributes:
        released: This process is leaving and has let go of everything that still ran.
    """

    def __init__(
        self, database: Database, listener: Listener, *, renew_every_seconds: float, lost_after_seconds: float
    ) -> None:
        self.owner = uuid4()
        self.released = False
        self._database = database
        self._listener = listener
        self._every_seconds = renew_every_seconds
        self._lost_after_seconds = lost_after_seconds
        self._held: dict[UUID, Hold] = {}
        self._left = False

    @contextmanager
    def hold(
        self, task_id: UUID, attempt: int, lost: Callable[[], None] | None = None, *, claimed: bool = True
    ) -> Iterator[Hold]:
        """Keep saying that a run is alive while the context is open.

        Args:
            lost: Called when it is no longer ours. None for work that ends well by its own guards (storing).
            claimed: False for a hold that is taken before the rows say so; whoever claims sets it.
        """
        held = Hold(attempt, lost, claimed=claimed)
        self._held[task_id] = held
        try:
            yield held
        finally:
            if self._held.get(task_id) is held:
                del self._held[task_id]

    def holds(self, task_id: UUID, attempt: int) -> bool:
        """Whether somebody in this process works on this attempt."""
        held = self._held.get(task_id)
        return held is not None and held.attempt == attempt

    def works_on(self, task_id: UUID) -> bool:
        """Whether this process works on this task, at whichever attempt."""
        return task_id in self._held

    @property
    def held(self) -> list[UUID]:
        """The tasks that this process works on."""
        return list(self._held)

    def drop(self, task_id: UUID) -> None:
        """A run was ended by this very process: stop working on it."""
        held = self._held.get(task_id)
        if held and held.lost:
            held.lost()

    def release(self) -> None:
        """Let go of every run that still speaks; whoever holds one puts it back or ends it."""
        self.released = True
        if count := self.speaking:
            logger.warning("speeches are cut by the shutdown", extra={"count": count})
        for held in list(self._held.values()):
            if held.lost:
                held.lost()

    @property
    def speaking(self) -> int:
        """How many runs of this process can be lost, that is: still speak."""
        return sum(held.lost is not None for held in self._held.values())

    async def tell_owner(self, task_id: UUID) -> None:
        """A run was ended: stop it here, or let its owner in another process know. Call it after the commit."""
        self.drop(task_id)
        try:
            async with self._database.connection() as connection:
                await connection.execute("SELECT pg_notify($1, $2)", CANCEL_CHANNEL, task_id.hex)
        except REFUSED as exc:
            logger.warning("cancel not notified; its owner finds out by itself", extra={"reason": type(exc).__name__})

    async def run(self) -> None:
        """Beat, renew and listen until cancelled; while draining too, for the others know us by our beat."""
        with self._listener.on(CANCEL_CHANNEL, self._cancelled):
            while True:
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await self._beat()
                except REFUSED as exc:
                    logger.warning("leases not renewed", extra={"reason": type(exc).__name__})
                await asyncio.sleep(self._every_seconds)

    async def leave(self) -> None:
        """This process is gone in a moment: what it still holds may be judged at once. It says nothing more."""
        self._left = True
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._database.for_leases.connection() as connection:
                await processes.leave(connection, self.owner)
        except REFUSED as exc:
            logger.info("left without a word, others notice by themselves", extra={"reason": type(exc).__name__})

    async def _beat(self) -> None:
        if self._left:
            return
        patience = self._lost_after_seconds
        async with self._database.for_leases.connection() as connection:
            await processes.beat(
                connection, self.owner, quiet_after_seconds=patience / 3, quiet_seconds=patience * 2 / 3
            )
            if any(held.claimed for held in self._held.values()):
                await self._renew(connection)

    def _cancelled(self, payload: str) -> None:
        for task_id in names(payload) or ():
            self.drop(task_id)

    async def _renew(self, connection: Connection) -> None:
        mine = {task_id: held.attempt for task_id, held in self._held.items() if held.claimed}
        rows = await connection.fetch(_BEAT, list(mine), list(mine.values()), self.owner)
        missing = mine.keys() - {row["task_id"] for row in rows}
        if not missing:
            return
        still_mine = await runs.still_held(connection, {task_id: mine[task_id] for task_id in missing}, self.owner)
        for task_id in missing - still_mine:
            held = self._held.get(task_id)
            if held and held.attempt == mine[task_id] and held.lost:
                logger.info("run lost", extra={"task_id": str(task_id)})
                held.lost()
