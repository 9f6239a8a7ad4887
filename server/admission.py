"""What may pile up in one process is counted before it is taken: streams that are open, by whom, and uploads begun."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from server.errors import Overloaded, TooMany
from server.metrics import Metrics

STREAMS_PER_USER = 500
STREAMS_AT_MOST = 5_000
# Whoever makes a voice uploads once, and again after a mistake.
UPLOADS_PER_USER = 60
UPLOADS_SECONDS = 3600.0
# Nobody's memory of uploads has to outlive so many other people's.
UPLOADERS_REMEMBERED = 10_000


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
