"""What may pile up in one process is counted before it is taken: requests, streams, uploads, long reads, and bytes in
memory or on their way to the store."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from uuid import UUID

from server.errors import Overloaded, TooMany
from server.metrics import Metrics

STREAMS_PER_USER = 500
STREAMS_AT_MOST = 5_000
# The key under which a request's state has what is to be called when it has been answered.
ANSWERED = "answered"
# Whoever makes a voice uploads once, and again after a mistake.
UPLOADS_PER_USER = 60
UPLOADS_SECONDS = 3600.0
# Nobody's memory of uploads has to outlive so many other people's.
UPLOADERS_REMEMBERED = 10_000


class Requests:
    """Requests that are being answered, streams too: however many connections one person opens, others find room.

    Args:
        per_user: How many of one person there may be at once.
    """

    def __init__(self, metrics: Metrics, *, per_user: int) -> None:
        self._metrics = metrics
        self._per_user = per_user
        self._open: Counter[UUID] = Counter()

    def begin(self, user_id: UUID) -> Callable[[], None]:
        """Count one; what is to be called once it has been answered.

        Raises:
            TooMany: This user has as many as one may have.
        """
        if self._open[user_id] >= self._per_user:
            self._metrics.refused("requests_of_one")
            raise TooMany("You have too many requests open at once. Please wait for some of them.")
        self._open[user_id] += 1
        return partial(self._end, user_id)

    def _end(self, user_id: UUID) -> None:
        self._open[user_id] -= 1
        if not self._open[user_id]:
            del self._open[user_id]


class Streams:
    """The streams that are open here. What one person has too many of is theirs to close; what all have is ours."""

    def __init__(self, metrics: Metrics, *, per_user: int = STREAMS_PER_USER, at_most: int = STREAMS_AT_MOST) -> None:
        self._metrics = metrics
        self._per_user = per_user
        self._at_most = at_most
        self._open: Counter[UUID] = Counter()

    def require_room(self, user_id: UUID) -> None:
        """Before anything is done for a stream that could not be opened.

        Raises:
            TooMany: This user has as many as one may have.
            Overloaded: All together have as many as this process can serve.
        """
        if self._open[user_id] >= self._per_user:
            self._metrics.refused("streams_of_one")
            raise TooMany("You have too many streams open. Please close some of them.")
        if self._open.total() >= self._at_most:
            self._metrics.refused("streams")
            raise Overloaded("Too many people are listening right now. Please try again in a moment.")

    @contextmanager
    def open(self, user_id: UUID) -> Iterator[None]:
        """Count one stream while the context is open.

        Raises:
            TooMany, Overloaded: As `require_room` says.
        """
        self.require_room(user_id)
        self._open[user_id] += 1
        try:
            with self._metrics.stream():
                yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]


class Uploads:
    """Addresses for uploads that were handed out lately: each lets somebody fill 50 MB of the store."""

    def __init__(self, metrics: Metrics, *, per_user: int = UPLOADS_PER_USER) -> None:
        self._metrics = metrics
        self._per_user = per_user
        self._begun: dict[UUID, deque[float]] = {}

    def begin(self, user_id: UUID) -> None:
        """Count one.

        Raises:
            TooMany: This user has had as many within the hour as one may have.
        """
        now = time.monotonic()
        begun = self._begun.pop(user_id, None) or deque()
        self._begun[user_id] = begun  # last, so that the first is who has been silent for the longest
        while begun and begun[0] < now - UPLOADS_SECONDS:
            begun.popleft()
        if len(begun) >= self._per_user:
            self._metrics.refused("uploads_of_one")
            wait = round(begun[0] + UPLOADS_SECONDS - now) + 1
            raise TooMany(
                "You have uploaded many recordings within the hour. Please try again later.", retry_after_seconds=wait
            )
        begun.append(now)
        if len(self._begun) > UPLOADERS_REMEMBERED:
            del self._begun[next(iter(self._begun))]


class LongReads:
    """Lists and searches, which take the longer the more somebody has: few at a time for one person, and for all
    together fewer than there are connections, so that nobody else waits for them.

    Args:
        at_once: How many there may be of all.
    """

    PER_USER = 2
    WAIT_SECONDS = 5.0

    def __init__(self, metrics: Metrics, *, at_once: int) -> None:
        self._metrics = metrics
        self._all = asyncio.Semaphore(at_once)
        self._turns: dict[UUID, asyncio.Semaphore] = {}
        self._waiting: Counter[UUID] = Counter()

    @asynccontextmanager
    async def turn(self, user_id: UUID) -> AsyncIterator[None]:
        """Wait for a turn, and keep it while the context is open.

        Raises:
            TooMany: This user has kept both turns for too long.
            Overloaded: All turns were taken.
        """
        own = self._turns.setdefault(user_id, asyncio.Semaphore(self.PER_USER))
        self._waiting[user_id] += 1
        try:
            await self._taken(own, "reads_of_one", TooMany("You have several searches running. Please wait for them."))
            try:
                await self._taken(self._all, "reads", Overloaded("Many are searching right now. Please try again."))
                try:
                    yield
                finally:
                    self._all.release()
            finally:
                own.release()
        finally:
            self._waiting[user_id] -= 1
            if not self._waiting[user_id]:
                del self._waiting[user_id], self._turns[user_id]

    async def _taken(self, turns: asyncio.Semaphore, what: str, refusal: Overloaded) -> None:
        try:
            async with asyncio.timeout(self.WAIT_SECONDS):
                await turns.acquire()
        except TimeoutError:
            self._metrics.refused(what)
            raise refusal from None


class AudioMemory:
    """Bytes that live speeches may come to hold here. Each reserves what its text can become before it is taken: a text
    for which there is no room waits in its row, where any process may take it, and not in this one.

    Args:
        limit: Of all together. One that is larger alone is let in when nobody else is.
    """

    def __init__(self, metrics: Metrics, limit: int) -> None:
        self._metrics = metrics
        self._limit = limit
        self._reserved = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    def has_room(self, size: int) -> bool:
        """Whether so much could be reserved at this moment, with nobody before it."""
        return not self._queue and (self._reserved + size <= self._limit or not self._reserved)

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for room already."""
        return bool(self._queue)

    async def require_room(self, size: int, waiting: Callable[[], Awaitable[int]]) -> None:
        """Before a text is left waiting: not where as much waits as one process may hold, and there is no room here.

        Args:
            waiting: Counts what the texts that wait can become, in bytes; asked only where there is no room.

        Raises:
            Overloaded: Nobody could take it soon.
        """
        if self.has_room(size) or not (before := await waiting()) or before + size <= self._limit:
            return
        self._metrics.refused("memory")
        raise Overloaded("Too much is being spoken right now. Please try again in a moment.")

    @asynccontextmanager
    async def room(self, size: int, *, within_seconds: float) -> AsyncIterator[None]:
        """Wait for room, first come first served, and keep it while the context is open.

        Raises:
            TimeoutError: There was none in time.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        self._let_in()
        try:
            async with asyncio.timeout(within_seconds):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave(size)
            else:
                self._queue = deque(entry for entry in self._queue if entry[1] is not turn)
                self._let_in()
            raise
        try:
            yield
        finally:
            self._leave(size)

    def remember(self, size: int) -> None:
        """So many bytes more stay in memory, or fewer, whether or not there is room: they are there already."""
        self._leave(-size)

    def _let_in(self) -> None:
        while self._queue:
            size, turn = self._queue[0]
            if turn.cancelled():
                self._queue.popleft()
            elif self._reserved + size <= self._limit or not self._reserved:
                self._queue.popleft()
                self._reserved += size
                self._metrics.memory_reserved(self._reserved)
                turn.set_result(None)
            else:
                return

    def _leave(self, size: int) -> None:
        self._reserved -= size
        self._metrics.memory_reserved(self._reserved)
        self._let_in()


class Unstored:
    """Speech that waits for the store, in bytes, as the rows say; asked for no more often than it changes by much."""

    FRESH_SECONDS = 5.0

    def __init__(self, metrics: Metrics, limit: int) -> None:
        self._metrics = metrics
        self._limit = limit
        self._bytes = 0
        self._fresh_until = 0.0

    @property
    def full(self) -> bool:
        """Whether as much waited as may, when that was last looked at."""
        return self._bytes >= self._limit

    async def require_room(self, count: Callable[[], Awaitable[int]]) -> None:
        """Before a text is taken whose audio could not be kept.

        Raises:
            Overloaded: As much waits already as may.
        """
        if time.monotonic() >= self._fresh_until:
            self._bytes = await count()
            self._fresh_until = time.monotonic() + self.FRESH_SECONDS
            self._metrics.unstored(self._bytes)
        if self.full:
            self._metrics.refused("unstored")
            raise Overloaded(
                "The audio storage has been away for long. Please try again later.", retry_after_seconds=60
            )
