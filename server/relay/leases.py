"""Which runs this process holds, and how it learns that one is no longer its own.

A run is lost when its row is gone (cancelled, deleted) or carries another attempt (this process was presumed dead).
Three ways lead to the same end: at once through ``drop`` where the cancel happened here, by NOTIFY from another
process, and within a second by ``renew`` if both fail.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from server.announce import CANCEL_CHANNEL, names
from server.database import REFUSED, Database, Listener
from server.records import runs

logger = logging.getLogger(__name__)

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


class _Held:
    def __init__(self, attempt: int, lost: Callable[[], None] | None) -> None:
        self.attempt = attempt
        self.lost = lost


class Leases:
    """This process's runs.

    Attributes:
        released: This process is leaving and has let go of everything that still ran.
    """

    def __init__(self, database: Database, listener: Listener, *, renew_every_seconds: float) -> None:
        self.owner = uuid4()
        self.released = False
        self._database = database
        self._listener = listener
        self._every_seconds = renew_every_seconds
        self._held: dict[UUID, _Held] = {}

    @contextmanager
    def hold(self, task_id: UUID, attempt: int, lost: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep saying that a run is alive while the context is open.

        Args:
            lost: Called when it is no longer ours. None for work that ends well by its own guards (storing).
        """
        held = _Held(attempt, lost)
        self._held[task_id] = held
        try:
            yield
        finally:
            if self._held.get(task_id) is held:
                del self._held[task_id]

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
        """Renew and listen until cancelled; while draining too, for the sweep of others knows us by our beat."""
        with self._listener.on(CANCEL_CHANNEL, self._cancelled):
            while True:
                await asyncio.sleep(self._every_seconds)
                if self._held:
                    try:
                        await self._renew()
                    except REFUSED as exc:
                        logger.warning("leases not renewed", extra={"reason": type(exc).__name__})

    def _cancelled(self, payload: str) -> None:
        for task_id in names(payload) or ():
            self.drop(task_id)

    async def _renew(self) -> None:
        mine = {task_id: held.attempt for task_id, held in self._held.items()}
        async with self._database.for_leases.connection() as connection:
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
