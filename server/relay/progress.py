"""How far speeches are, for those who poll: the words of a whole process go into their tasks with one statement a tick.

A speech never waits until its progress is shown, and the statement waits for nobody: a task that somebody has locked is
shown with the next tick.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from server.database.announce import Announcer
from server.database.connections import REFUSED, Database
from server.records import speech
from server.records.speech import Progress

logger = logging.getLogger(__name__)


class ProgressWriter:
    """Shows the last word of each speech that is under way here."""

    def __init__(self, database: Database, announcer: Announcer, *, every_seconds: float) -> None:
        self._database = database
        self._announcer = announcer
        self._every_seconds = every_seconds
        self._under_way: set[UUID] = set()
        self._said: dict[UUID, Progress] = {}
        self._wake = asyncio.Event()

    @contextmanager
    def showing(self, task_id: UUID) -> Iterator[None]:
        """Show what is said of a task while the context is open; afterwards its rows say how it ended."""
        self._under_way.add(task_id)
        try:
            yield
        finally:
            self._under_way.discard(task_id)
            self._said.pop(task_id, None)

    def say(self, progress: Progress) -> None:
        """What the provider is at now; a word that was not shown yet is skipped."""
        self._said[progress.task_id] = progress
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            said, self._said = self._said, {}
            if said:
                await self._show(said)
            await asyncio.sleep(self._every_seconds)  # what is said meanwhile goes together

    async def _show(self, said: dict[UUID, Progress]) -> None:
        try:
            async with self._database.connection() as connection:
                shown = await speech.show_progress(connection, list(said.values()))
        except REFUSED as exc:
            logger.warning("progress not shown", extra={"reason": type(exc).__name__})
            return  # the next word is shown when the database is back
        self._announcer.changed(*shown)
        for task_id in said.keys() & self._under_way - shown - self._said.keys():
            self.say(said[task_id])
