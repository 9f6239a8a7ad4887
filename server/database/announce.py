"""Telling every process that something about some tasks has changed.

A notification carries names, never truth: whoever gets one looks at the rows, and whoever misses one looks a little
later anyway. It is sent on its own after the commit, because NOTIFY inside a transaction serialises all commits.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from uuid import UUID, uuid4

from server.database.connections import REFUSED, Database

logger = logging.getLogger(__name__)

LIVE_CHANNEL = "utter_live"
CANCEL_CHANNEL = "utter_cancel"
# Here a process says whose growth it wants to hear of.
INTEREST_CHANNEL = "utter_interest"
# PostgreSQL refuses a payload of 8000 bytes; 242 names and a sender would pass it. No name means: look at everything.
NAMES_AT_MOST = 200
GATHER_SECONDS = 0.02
# Whoever still listens has said so again three times by then.
INTEREST_SECONDS = 10.0


def names(payload: str) -> set[UUID] | None:
    """The tasks that a payload names; None for "anything may have changed"."""
    listed = payload.rpartition(":")[2]
    try:
        return {UUID(hex=name) for name in listed.split(",")} if listed else None
    except ValueError:
        return None


class Announcer:
    """Gathers names for a moment, then tells this process directly and the others through PostgreSQL.

    A payload says who sent it, then what changed: ``<process>:<task>,<task>…``, all in hex. What changes is told to
    all; that some audio has grown is told only where another process has asked for it lately, for a speech grows
    thirty times a second and most are heard where they are spoken.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._sender = uuid4().hex
        self._due: dict[str, set[UUID]] = {LIVE_CHANNEL: set(), INTEREST_CHANNEL: set()}
        self._asked_until: dict[UUID, float] = {}
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
        self._send(LIVE_CHANNEL, task_ids)

    def grew(self, task_ids: Iterable[UUID]) -> None:
        """The audio of these has grown here: those processes are told that have asked for it lately."""
        now = self._clock()
        self.spread([task_id for task_id in task_ids if self._asked_until.get(task_id, 0.0) > now])

    def ask(self, task_ids: Iterable[UUID]) -> None:
        """Ask whoever speaks these to tell of their growth for the next ten seconds."""
        self._send(INTEREST_CHANNEL, task_ids)

    def asked(self, task_ids: set[UUID]) -> set[UUID]:
        """Another process listens to these. It is remembered whoever speaks them: their owner may change.

        Returns:
            Those that nobody had asked for lately.
        """
        now = self._clock()
        self._asked_until = {task_id: until for task_id, until in self._asked_until.items() if until > now}
        new = task_ids - self._asked_until.keys()
        self._asked_until.update(dict.fromkeys(task_ids, now + INTEREST_SECONDS))
        return new

    def _send(self, channel: str, task_ids: Iterable[UUID]) -> None:
        self._due[channel].update(task_ids)
        if self._due[channel]:
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. What cannot be sent is dropped: every process reads the rows itself soon."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            due, self._due = self._due, {channel: set() for channel in self._due}
            said = [(channel, payload) for channel, task_ids in due.items() for payload in self._payloads(task_ids)]
            try:
                async with self._database.connection() as connection:
                    await connection.execute(
                        "SELECT pg_notify(channel, said) FROM unnest($1::text[], $2::text[]) AS s (channel, said)",
                        [channel for channel, _ in said],
                        [payload for _, payload in said],
                    )
            except REFUSED as exc:
                logger.warning("could not notify other processes", extra={"reason": type(exc).__name__})

    def _payloads(self, task_ids: set[UUID]) -> list[str]:
        listed = [task_id.hex for task_id in task_ids]
        return [
            f"{self._sender}:{','.join(listed[start : start + NAMES_AT_MOST])}"
            for start in range(0, len(listed), NAMES_AT_MOST)
        ]
