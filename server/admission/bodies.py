"""Bodies of requests, bounded in time: one that stops coming, or comes drop by drop, holds its connection no longer."""

import asyncio
from contextlib import AbstractAsyncContextManager

from server.relay.stalled import LEAST_BYTES_PER_SECOND


class Pace:
    """How long the next piece of one body may take, and all of it together.

    Args:
        seconds: For the next piece; and for all of it what it takes at the least speed, and so long beside.

    Attributes:
        received: Bytes that have come so far; whoever reads the body counts them.
    """

    def __init__(self, seconds: float) -> None:
        self.received = 0
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()

    def in_time(self) -> "AbstractAsyncContextManager[object]":
        """Around waiting for the next piece.

        Raises:
            TimeoutError: It took too long.
        """
        all_of_it = self._began + self.received / LEAST_BYTES_PER_SECOND
        return asyncio.timeout_at(min(self._clock(), all_of_it) + self._seconds)
