"""How fast this process may start speeches: full speed at first, half after a throttle, slowly back."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from server.errors import ProviderUnavailable
from server.providers.speech import PACED_OUT

# A start costs as much CPU as fifteen deltas, about 3 ms: closer together they would make running speeches stutter.
_GAP_SECONDS = 0.005
# So many starts may come at once after a pause, so that a few people who press the button together need not queue.
_BURST = 10.0
_BURST_WORTH_SECONDS = 2.0
_SLOWEST = 1 / 16
_RECOVERY_SECONDS = 300.0
# Throttles this close together answer the same burst, so they halve the rate once.
_SAME_THROTTLE_SECONDS = 5.0


class Pacer:
    """Spaces provider sessions. The provider's limit is account-wide and a process cannot know its share.

    Waiting is first come, first served; a waiter that is cancelled gives its place to the next. Over any minute at
    most ``starts_per_minute`` plus the burst (two seconds' worth, ten at most) are let through.

    Args:
        starts_per_minute: The full rate.
        wait_at_most_seconds: How long one start may wait for its turn.
        clock: Seconds that only grow.
        sleep: Waits so many of those seconds.
    """

    def __init__(
        self,
        starts_per_minute: float,
        *,
        wait_at_most_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._full_rate = starts_per_minute / 60
        self._wait_at_most_seconds = wait_at_most_seconds
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._share = 1.0  # of the full rate
        self._burst = min(_BURST, max(1.0, self._full_rate * _BURST_WORTH_SECONDS))
        self._tokens = self._burst
        self._counted_at = self._started_at = self._throttled_at = clock() - _SAME_THROTTLE_SECONDS

    @property
    def starts_per_minute(self) -> float:
        """The rate of this moment."""
        self._count()
        return self._full_rate * self._share * 60

    async def start(self) -> None:
        """Wait for the turn of one start.

        Raises:
            ProviderUnavailable: If the turn did not come within ``wait_at_most_seconds``. Nothing was started.
        """
        try:
            async with asyncio.timeout(self._wait_at_most_seconds), self._turn:
                while pause := self._pause_seconds():
                    await self._sleep(pause)
                self._tokens -= 1
                self._started_at = self._clock()
        except TimeoutError as exc:
            raise ProviderUnavailable(
                "Too many speeches are waiting for the speech provider. Please try again in a moment.",
                diagnostics={"code": PACED_OUT},
            ) from exc

    def throttled(self) -> None:
        """The provider asked us to slow down: halve the rate, and let nothing through in a burst until it is back."""
        self._count()
        now = self._clock()
        if now - self._throttled_at < _SAME_THROTTLE_SECONDS:
            return
        self._throttled_at = now
        self._share = max(_SLOWEST, self._share / 2)
        self._tokens = min(self._tokens, 0.0)

    def _pause_seconds(self) -> float:
        self._count()
        missing = (1 - self._tokens) / (self._full_rate * self._share)
        pause = max(missing, self._started_at + _GAP_SECONDS - self._clock())
        # What rounding leaves over is no pause: added to a large clock it would not even move it.
        return pause if pause > 1e-6 else 0.0

    def _count(self) -> None:
        """Let the time since the last look earn tokens, and a throttled rate recover."""
        now = self._clock()
        passed, self._counted_at = now - self._counted_at, now
        self._share = min(1.0, self._share + passed / _RECOVERY_SECONDS)
        burst = self._burst if self._share == 1.0 else 1.0
        self._tokens = min(burst, self._tokens + passed * self._full_rate * self._share)
