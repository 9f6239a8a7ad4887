"""How late an event loop is: a timer every 10 ms in the process that is measured, and how long after its time it
runs.

What is late for a timer is late for every socket. uvloop keeps its timers to a millisecond, so less than that is no
lag.
"""

import asyncio

from bench.children import say

_EVERY_SECONDS = 0.01


class LoopLag:
    """The lags of the running loop since it was last asked, in milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._late: list[float] = []
        self._due = loop.time()
        self._look()

    def tell(self) -> None:
        """Say them as one line for the parent, and begin anew."""
        late, self._late = self._late, []
        say(lag_milliseconds=late)

    def _look(self) -> None:
        now = self._loop.time()
        self._late.append((now - self._due) * 1e3)
        self._due = now + _EVERY_SECONDS
        self._loop.call_at(self._due, self._look)
