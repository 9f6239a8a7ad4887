"""How fast speeches may be started: full speed at first, half after a throttle, slowly back.

The provider's limit is the account's, so whoever counts the starts (the `Ledger`) may count those of other processes,
too. Here is what one process adds: an order among its own starts, and a small gap between them. How long a start may
be waited for is its speech's to say: there is one deadline for the queue and the pace together.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from server.errors import ProviderUnavailable
from server.providers.speech import PACED_OUT

# A start costs as much CPU as fifteen deltas, about 3 ms: closer together they would make running speeches stutter.
_GAP_SECONDS = 0.005
# Of what was missing a little is waited for too little, so that nobody sleeps past a start that has become free.
_LONGEST_SLEEP_SECONDS = 1.0

# A start that was taken and not used for so long is nobody's any more.
IN_HAND_SECONDS = 2.0

# So many starts may come at once after a pause, so that a few people who press the button together need not queue.
BURST = 10.0
BURST_WORTH_SECONDS = 2.0
SLOWEST = 1 / 16
RECOVERY_SECONDS = 300.0
# Throttles this close together answer the same burst, so they halve the rate once.
SAME_THROTTLE_SECONDS = 5.0


def burst(starts_per_minute: float) -> float:
    """How many starts a full rate lets through at once."""
    return min(BURST, max(1.0, starts_per_minute / 60 * BURST_WORTH_SECONDS))


class Ledger(Protocol):
    """Whoever counts starts."""

    async def take(self, model: str) -> float:
        """Take one start of a model: 0 where it was granted, else the seconds until there may be one."""

    async def slow_down(self, model: str) -> None:
        """The provider asked us to: halve the model's rate, and let nothing through in a burst until it is back."""


class OwnLedger:
    """The starts of this process alone, all models together.

    Args:
        starts_per_minute: The full rate.
        clock: Seconds that only grow.
    """

    def __init__(self, starts_per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._full_rate = starts_per_minute / 60
        self._clock = clock
        self._share = 1.0  # of the full rate
        self._burst = burst(starts_per_minute)
        self._tokens = self._burst
        self._counted_at = self._throttled_at = clock() - SAME_THROTTLE_SECONDS

    @property
    def starts_per_minute(self) -> float:
        """The rate of this moment."""
        self._count()
        return self._full_rate * self._share * 60

    async def take(self, model: str) -> float:
        self._count()
        missing = (1 - self._tokens) / (self._full_rate * self._share)
        # What rounding leaves over is no pause: added to a large clock it would not even move it.
        if missing > 1e-6:
            return missing
        self._tokens -= 1
        return 0.0

    async def slow_down(self, model: str) -> None:
        self._count()
        now = self._clock()
        if now - self._throttled_at < SAME_THROTTLE_SECONDS:
            return
        self._throttled_at = now
        self._share = max(SLOWEST, self._share / 2)
        self._tokens = min(self._tokens, 0.0)

    def _count(self) -> None:
        """Let the time since the last look earn tokens, and a throttled rate recover."""
        now = self._clock()
        passed, self._counted_at = now - self._counted_at, now
        self._share = min(1.0, self._share + passed / RECOVERY_SECONDS)
        most = self._burst if self._share == 1.0 else 1.0
        self._tokens = min(most, self._tokens + passed * self._full_rate * self._share)


class Pacer:
    """Spaces the starts of one process.

    Waiting is first come, first served; a waiter that is cancelled gives its place to the next. Over any minute the
    ledger lets through at most its rate plus the burst (two seconds' worth, ten at most).

    Args:
        ledger: Who counts.
        clock: Seconds that only grow.
        sleep: Waits so many of those seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.ledger = ledger
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._in_hand: dict[str, deque[float]] = {}
        self._started_at = clock() - _GAP_SECONDS

    async def take(self, model: str) -> float:
        """Take one start for whoever calls ``start`` next, within two seconds: later it is void.

        Returns:
            0 where it was taken, else the seconds until there may be one.
        """
        pause = await self.ledger.take(model)
        if not pause:
            self._in_hand.setdefault(model, deque()).append(self._clock())
        return pause

    def _has_in_hand(self, model: str) -> bool:
        taken = self._in_hand.get(model, ())
        while taken:
            if self._clock() - taken.popleft() < IN_HAND_SECONDS:
                return True
        return False

    async def start(self, model: str, *, by: float | None = None) -> None:
        """Wait for the turn of one start, unless one was taken for it a moment ago.

        Args:
            by: When it must have come at the latest, by the clock; None for whoever waits as long as it takes.

        Raises:
            ProviderUnavailable: The turn did not come in time. Nothing was started.
        """
        if self._has_in_hand(model):
            return
        try:
            async with asyncio.timeout(None if by is None else max(0.0, by - self._clock())), self._turn:
                while (gap := self._started_at + _GAP_SECONDS - self._clock()) > 1e-6:
                    await self._sleep(gap)
                while pause := await self.ledger.take(model):
                    await self._sleep(min(pause, _LONGEST_SLEEP_SECONDS))
                self._started_at = self._clock()
        except TimeoutError as exc:
            raise ProviderUnavailable(
                "Too many speeches are waiting for the speech provider. Please try again in a moment.",
                diagnostics={"code": PACED_OUT},
            ) from exc

    async def throttled(self, model: str) -> None:
        """The provider asked us to slow down."""
        await self.ledger.slow_down(model)
