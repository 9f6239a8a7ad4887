"""Logs of speeches that are spoken and not stored yet, should the database come back without knowing of it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import UUID

from server.database.connections import Database
from server.records import runs
from server.relay.live import AudioLog
from server.relay.spool import SpoolWriter

logger = logging.getLogger(__name__)

KEPT_SECONDS = 60.0
EVERY_SECONDS = 1.0


class _Kept(NamedTuple):
    log: AudioLog
    mark_again: Callable[[], Awaitable[object]]
    until: float


class KeptLogs:
    """Keeps each for a minute, and has it written and marked again where its run shows as speaking once more.

    A standby that took over may lack the last commits. As long as task, attempt and owner are still ours, what it
    lacks is in memory here.
    """

    def __init__(self, database: Database, spool: SpoolWriter, owner: UUID) -> None:
        self._database = database
        self._spool = spool
        self._owner = owner
        self._kept: dict[UUID, _Kept] = {}

    def keep(self, log: AudioLog, mark_again: Callable[[], Awaitable[object]]) -> None:
        """Keep the log of a spoken speech that could not be stored at once; ``mark_again`` says so in the rows."""
        until = asyncio.get_running_loop().time() + KEPT_SECONDS
        self._kept[log.task_id] = _Kept(log, mark_again, until)

    async def run(self) -> None:
        """Read the rows of what is kept once a second, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if self._kept:
                await self._compare()

    async def _compare(self) -> None:
        standings = await self._database.patiently_say(runs.standings, list(self._kept))
        now = asyncio.get_running_loop().time()
        for task_id, kept in list(self._kept.items()):
            standing = standings.get(task_id)
            if standing is None or standing.attempt != kept.log.attempt or now > kept.until:
                del self._kept[task_id]
            elif (standing.state, standing.owner) == ("speaking", self._owner):
                logger.warning("the database forgot that a speech was spoken", extra={"task_id": str(task_id)})
                try:
                    await self._write_again(kept)
                except runs.Fenced:  # since its row was read: it has ended, or somebody else has it
                    del self._kept[task_id]

    async def _write_again(self, kept: _Kept) -> None:
        with self._spool.writing(kept.log, lambda: None):
            if await self._spool.is_behind_us(kept.log):
                await self._spool.flush(kept.log)
                await kept.mark_again()
