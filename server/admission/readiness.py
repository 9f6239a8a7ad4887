"""Whether this process can take and speak a text, found out once for all who ask.

A balancer takes out whoever answers 503, so only what keeps this process from its work is one. A store that is away is
none: speech is heard and kept all the same, and every other process would say the same.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from server.contract import ReadyAnswer
from server.database.connections import REFUSED, Database
from server.database.migrations import unapplied
from server.database.queue import Queue
from server.errors import StorageUnavailable
from server.storage import ObjectStore

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Askers may be many and nearer to each other than this; none of them costs more than the first.
FRESH_SECONDS = 4.0
# A balancer gives up after a few seconds, and what has not been proved by then is not known to work.
PROBE_SECONDS = 2.0


class Readiness:
    """What was last found out, and how old that is.

    Attributes:
        leaving: The process was told to stop: no balancer should send anybody any more.
        troubles: What is wrong and not fatal, by the name that `degraded` has for it; others add theirs.
    """

    def __init__(self, database: Database, storage: ObjectStore, queue: Queue) -> None:
        self.leaving = False
        self.troubles: dict[str, Callable[[], bool]] = {}
        self._database = database
        self._storage = storage
        self._queue = queue
        self._probe: asyncio.Task[tuple[bool | None, bool]] | None = None
        self._fresh_until = 0.0
        self._store_trouble = ""

    async def check(self) -> tuple[ReadyAnswer, bool]:
        """How it stands, at most 5 s ago; and whether texts may be sent here."""
        migrations, storage = await self._found_out()
        database = self._database.pulse.writable and migrations is not None
        answer = ReadyAnswer(
            database=database,
            migrations=migrations if database else None,
            workers=self._queue.up() and not self.leaving,
            storage=storage,
            degraded=[*([] if storage else ["storage"]), *(name for name, is_so in self.troubles.items() if is_so())],
        )
        return answer, bool(answer.database and answer.migrations and answer.workers)

    async def _found_out(self) -> tuple[bool | None, bool]:
        if self._probe is None or (self._probe.done() and time.monotonic() > self._fresh_until):
            self._probe = asyncio.create_task(self._find_out())
        return await asyncio.shield(self._probe)  # an asker that goes away takes nobody's answer with it

    async def _find_out(self) -> tuple[bool | None, bool]:
        migrations, storage = await asyncio.gather(_in_time(self._migrations(), None), _in_time(self._stores(), False))
        self._fresh_until = time.monotonic() + FRESH_SECONDS
        return migrations, storage

    async def _migrations(self) -> bool | None:
        try:
            async with self._database.connection() as connection:
                return not await unapplied(connection)
        except REFUSED:
            return None

    async def _stores(self) -> bool:
        try:
            await self._storage.probe()
        except StorageUnavailable as exc:
            if exc.reason != self._store_trouble:  # said once, not with every probe
                logger.warning("storage cannot be used", extra={"reason": exc.reason})
            self._store_trouble = exc.reason
            return False
        if self._store_trouble:
            logger.info("storage can be used again")
        self._store_trouble = ""
        return True


async def _in_time(probing: Awaitable[T], otherwise: T) -> T:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await probing
    except TimeoutError:
        return otherwise
