"""What piles up, read every few seconds: for the metrics, and for what `degraded` of `/api/ready` says."""

import asyncio
import logging
import time

from server.database.connections import REFUSED, Database, wait_for_locks
from server.metrics import Metrics
from server.providers.pacing import RECOVERY_SECONDS
from server.records import piled

logger = logging.getLogger(__name__)

# The loop's lateness is measured this often: often enough to meet a stall of a second, too seldom to cost anything.
LAG_EVERY_SECONDS = 0.25
READ_SECONDS = 5.0
LOCK_SECONDS = 0.5
# Voices are bought one by one, and counting them reads a row of each.
VOICES_EVERY_SECONDS = 60.0


class Watch:
    """The numbers of all processes, as one of them sees them.

    Attributes:
        throttled: The provider had us slow down, and the full pace has not come back.
        voices_full: The provider keeps as many voices of a kind for this account as it ever does.

    Args:
        account: Names the provider's account without telling its key.
        models: Those whose pace is shown from the beginning.
    """

    def __init__(
        self, database: Database, metrics: Metrics, account: str, models: tuple[str, ...], *, every_seconds: float
    ) -> None:
        self.throttled = False
        self.voices_full = False
        self._database = database
        self._metrics = metrics
        self._account = account
        self._every_seconds = every_seconds
        self._voices_due = 0.0
        for model in models:
            metrics.pace(model, 1.0)

    async def run(self) -> None:
        """Read until cancelled. What cannot be read keeps its last value, and is said once in the log each time."""
        while True:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    await self.read()
            except REFUSED as exc:
                logger.warning("what piles up was not read", extra={"reason": type(exc).__name__})
            await asyncio.sleep(self._every_seconds)

    async def read(self) -> None:
        """One look."""
        async with self._database.transaction() as connection:
            # Requests have the same connections, and need them more than these numbers are needed.
            await wait_for_locks(connection, at_most_seconds=LOCK_SECONDS)
            found = await piled.piled(connection)
            self._metrics.waiting(found.waiting, found.waited_seconds)
            self._metrics.unstored(found.unstored_bytes)
            self._metrics.oldest_beat(found.oldest_beat_seconds)
            paces = await piled.paces(connection, self._account, RECOVERY_SECONDS)
            if time.monotonic() >= self._voices_due:
                kept = await piled.voices_kept(connection)
                for kind, count in kept.items():
                    self._metrics.voices(kind, count)
                self.voices_full = any(count >= piled.VOICES_KEPT for count in kept.values())
                self._voices_due = time.monotonic() + VOICES_EVERY_SECONDS
        for pace in paces:
            self._metrics.pace(pace.model, pace.share)
        self.throttled = any(pace.share < 1.0 for pace in paces)

    def look_at_voices_again(self) -> None:
        """Count them with the next look, however lately they were counted."""
        self._voices_due = 0.0

    async def listen_to_the_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_EVERY_SECONDS)
            self._metrics.loop_lag(max(0.0, time.monotonic() - before - LAG_EVERY_SECONDS))
