"""The speeches of this process: how many there may be at once, and where those live that a request has begun.

There is one counter of places. A request takes one for the speech that it begins here; the worker of the queue takes
one before it fetches a job. So a process that is full fetches nothing, and a free one need not wait for a job.

A submission to a job API lives here, too, though it takes no place: what it buys has to be written down, whatever
becomes of the request that waits for it.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Speeches:
    """Places for speeches, and the group in which those run that were begun by a request.

    Attributes:
        places: One for each speech that there may be; shared with the queue's worker.
        turns: Held by whoever looks for the next text that waits: one at a time in a process is enough.
    """

    def __init__(self, at_most: int) -> None:
        self.places = asyncio.Semaphore(at_most)
        self.turns = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._submissions: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take speeches while the context is open; leaving it waits for those that were begun."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None

    @property
    def free(self) -> bool:
        """Whether a speech could be begun here at this moment, with nobody before it."""
        return self._group is not None and not self.places.locked()

    @property
    def under_way(self) -> bool:
        """Whether any speech is being spoken or stored here, whoever has begun it."""
        return bool(self._tasks)

    async def begin(self, speech: Coroutine[None, None, None]) -> None:
        """Run a speech in a free place until it ends by itself, whatever becomes of whoever began it."""
        if self._group is None:
            raise RuntimeError("no speeches are taken")
        await self.places.acquire()  # free, so nobody comes in between
        task = self._group.create_task(speech)
        task.add_done_callback(lambda _: self.places.release())

    @property
    def submitting(self) -> bool:
        """Whether a job API is being asked to take a job."""
        return bool(self._submissions)

    def submit(self, submission: Coroutine[None, None, T]) -> asyncio.Task[T]:
        """Run a submission to its end, whatever becomes of the request that waits for it; ``cut_submissions`` ends it.

        Args:
            submission: Returns what went wrong instead of raising it: one that raises would end all the others.
        """
        if self._group is None:
            submission.close()
            raise RuntimeError("no submissions are taken")
        task = self._group.create_task(submission)
        self._submissions.add(task)
        task.add_done_callback(self._submissions.discard)
        return task

    def cut_submissions(self) -> None:
        """Wait for no answer of a job API any more; whoever waits for one writes down that nobody knows."""
        for task in list(self._submissions):
            task.cancel()

    @contextmanager
    def cuttable(self) -> Iterator[None]:
        """Let ``cut`` end the task that runs this, whoever has begun it, while the context is open."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a speech is spoken in a task")
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def cut(self) -> None:
        """End whatever is left of all speeches: the process has no more time for them."""
        for task in list(self._tasks):
            task.cancel()
