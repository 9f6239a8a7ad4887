"""The starts of all processes on this database, counted together, as the provider counts those of its account."""

from server.database.connections import REFUSED, Database
from server.metrics import Metrics
from server.providers import pacing
from server.records import pace


class AccountLedger:
    """Counts in the database. While that is away nothing is started: nobody could tell what others start.

    Args:
        account: Names the provider's account without telling its key.
        starts_per_minute: The full rate of each model.
    """

    def __init__(self, database: Database, account: str, starts_per_minute: float, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._account = account
        self._per_minute = float(starts_per_minute)

    async def take(self, model: str) -> float:
        return await self._database.patiently_say(
            pace.take,
            self._account,
            model,
            per_minute=self._per_minute,
            burst=pacing.burst(self._per_minute),
            recovery_seconds=pacing.RECOVERY_SECONDS,
        )

    async def slow_down(self, model: str) -> None:
        self._metrics.provider_throttled()
        try:
            async with self._database.connection() as connection:
                await pace.slow_down(
                    connection,
                    self._account,
                    model,
                    slowest=pacing.SLOWEST,
                    same_throttle_seconds=pacing.SAME_THROTTLE_SECONDS,
                )
        except REFUSED:
            pass  # the next throttle says it again
