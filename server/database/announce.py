"""Telling every process that something about some tasks has changed.

A notification carries names, never truth: whoever gets one looks at the rows, and whoever misses one looks a little
later anyway. It is sent on its own after the commit, because NOTIFY inside a transaction serialises all commits.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from uuid import UUID, uuid4

from server.database.connections import REFUSED, Database

logger = logging.getLogger(__name__)

LIVE_CHANNEL = "utter_live"
CANCEL_CHANNEL = "utter_cancel"
# PostgreSQL refuses a payload of 8000 bytes; 242 names and a sender would pass it. No name means: look at everything.
NAMES_AT_MOST = 200
GATHER_SECONDS = 0.02


def names(payload: str) -> set[UUID] | None:
    """The tasks that a payload names; None for "anything may have changed"."""
    listed = payload.rpartition(":")[2]
    try:
        return {UUID(hex=name) for name in listed.split(",")} if listed else None
    except ValueError:
        return None


class Announcer:
    """Gathers names for a moment, then tells this process directly and the others through PostgreSQL.

    A payload says who sent it, then what changed: ``<process>:<task>,<task>…``, all in hex.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sender = uuid4().hex
        self._due: set[UUID] = set()
        self._wake = asyncio.Event()
        self._heard_here: Callable[[set[UUID]], None] = lambda _task_ids: None

    def tell_here(self, heard: Callable[[set[UUID]], None]) -> None:
        """Call ``heard`` at once for every change made in this process."""
        self._heard_here = heard

    def changed(self, *task_ids: UUID) -> None:
        """Say that these tasks' rows or audio are not what they were. Call it after the commit."""
        self._heard_here(set(task_ids))
        self.spread(task_ids)

    def is_ours(self, payload: str) -> bool:
        """Whether this process sent it: PostgreSQL tells its senders as well."""
        return payload.startswith(self._sender)

    def spread(self, task_ids: Iterable[UUID]) -> None:
        """As ``changed``, but for the other processes alone."""
        self._due.update(task_ids)
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. What cannot be sent is dropped: every process reads the rows itself soon."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            due, self._due = self._due, set()
            listed = ",".join(task_id.hex for task_id in due) if len(due) <= NAMES_AT_MOST else ""
            payload = f"{self._sender}:{listed}"
            try:
                async with self._database.connection() as connection:
                    await connection.execute("SELECT pg_notify($1, $2)", LIVE_CHANNEL, payload)
            except REFUSED as exc:
                logger.warning("could not notify other processes", extra={"reason": type(exc).__name__})
