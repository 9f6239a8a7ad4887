"""What this process did last for its speeches, should the database come back without knowing of it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple
from uuid import UUID

import anyio

from server.database.connections import Database
from server.records import runs
from server.records.runs import Standing
from server.relay.live import AudioLog
from server.relay.spool import SpoolWriter

logger = logging.getLogger(__name__)

KEPT_SECONDS = 60.0
EVERY_SECONDS = 1.0


class _Kept(NamedTuple):
    """One speech.

    Attributes:
        again: Does once more what the database has forgotten; False where it is no longer this process's to do.
        size: How many bytes of audio are kept for that; of what is stored none is.
    """

    attempt: int
    again: Callable[[], Awaitable[bool]]
    until: float
    size: int = 0


class KeptLogs:
    """Keeps each speech for a minute, and does again for it what a standby that took over has not heard of.

    Of one that is spoken and could not be stored its log is kept: where its run shows as speaking once more it is
    written and marked again. Of one that is stored only the facts are kept: where it has a run once more it is
    published again. Both only as long as task, attempt and owner are still ours.

    Args:
        remembering: Told how many bytes more are kept, or fewer.
    """

    def __init__(
        self,
        database: Database,
        spool: SpoolWriter,
        owner: UUID,
        remembering: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._database = database
        self._spool = spool
        self._owner = owner
        self._remembering = remembering
        self._kept: dict[UUID, _Kept] = {}

    def keep(self, log: AudioLog, mark_again: Callable[[], Awaitable[object]]) -> None:
        """Keep the log of a spoken speech that could not be stored at once; ``mark_again`` says so in the rows."""
        self._keep(log.task_id, log.attempt, partial(self._write_again, log, mark_again), log.length)

    def keep_stored(self, task_id: UUID, attempt: int, publish_again: Callable[[], Awaitable[bool]]) -> None:
        """Remember that a speech was stored; ``publish_again`` says so in the rows."""
        self._keep(task_id, attempt, publish_again)

    def keeps(self, task_id: UUID) -> bool:
        """Whether a run of this process is looked after here, though nobody works on it."""
        return task_id in self._kept

    def _keep(self, task_id: UUID, attempt: int, again: Callable[[], Awaitable[bool]], size: int = 0) -> None:
        self._forget(task_id)
        self._kept[task_id] = _Kept(attempt, again, asyncio.get_running_loop().time() + KEPT_SECONDS, size)
        self._remembering(size)

    def _forget(self, task_id: UUID) -> None:
        if kept := self._kept.pop(task_id, None):
            self._remembering(-kept.size)

    async def run(self) -> None:
        """Read the rows of what is kept once a second, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if self._kept:
                await self._compare()

    async def _compare(self) -> None:
        looked_at = dict(self._kept)
        standings = await self._database.patiently_say(runs.standings, list(looked_at))
        now = asyncio.get_running_loop().time()
        for task_id, kept in looked_at.items():
            standing = standings.get(task_id)
            # Before its time is looked at: an outage may have lasted longer than that.
            if standing and self._is_forgotten(kept, standing):
                extra = {"task_id": str(task_id), "state": standing.state}
                logger.warning("the database forgot how far a speech had come", extra=extra)
                if await self._done_again(kept):
                    continue
                self._forget(task_id)
            # A log is of no use once its speech is stored; that this was forgotten would be seen later.
            elif now > kept.until or (kept.size and (standing is None or standing.attempt != kept.attempt)):
                self._forget(task_id)

    def _is_forgotten(self, kept: _Kept, standing: Standing) -> bool:
        if standing.attempt != kept.attempt:
            return False
        if kept.size:
            return (standing.state, standing.owner) == ("speaking", self._owner)
        return standing.state == "queued" or (standing.state != "unstored" and standing.owner == self._owner)

    @staticmethod
    async def _done_again(kept: _Kept) -> bool:
        try:
            return await kept.again()
        except runs.Fenced:  # since its row was read: it has ended, or somebody else has it
            return False

    async def _write_again(self, log: AudioLog, mark_again: Callable[[], Awaitable[object]]) -> bool:
        with anyio.CancelScope() as ours, self._spool.writing(log, ours.cancel):
            if await self._spool.is_behind_us(log):
                await self._spool.flush(log)
                return await mark_again() is not None
        return False
