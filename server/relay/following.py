"""Following speech from any process: one shared view per followed task, whoever speaks it and wherever.

The audio of a run of this process comes straight from its log. For a run of another process a mirror is filled from
the spool, once for all followers here. One statement reads every followed task that may have changed; it is woken
by notifications and, should they all be lost, by a clock. That audio grows is told only to those who ask for it, so
this process says again and again what it follows of others.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from uuid import UUID

from server.database.announce import INTEREST_CHANNEL, LIVE_CHANNEL, Announcer, names
from server.database.connections import REFUSED, Database, Listener
from server.records import tasks
from server.records.tasks import Glimpse, SpeechTask
from server.relay.live import AudioLog, LiveAudio

logger = logging.getLogger(__name__)

# How late a change is seen when every notification about it was lost.
READ_EVERY_SECONDS = 1.0
# What changes so soon after a look is seen together by the next; after a longer rest the first change is seen at once.
LOOK_AGAIN_SECONDS = 0.02
# An interest lapses after ten seconds.
ASK_EVERY_SECONDS = 3.0
NO_MIRROR = -1


class Feed:
    """What this process knows about one followed task.

    Attributes:
        task: The rows as they were last read.
        log: The growing audio, once there is an attempt that has any; it is replaced by another attempt's only while
            nobody has heard a byte, or where that begins with what was heard.
        gone: The task's row disappeared altogether.
    """

    def __init__(self, task: SpeechTask) -> None:
        self.task = task
        self.log: AudioLog | None = None
        self.gone = False
        self.followers = 0
        self._wakes: dict[Callable[[], None], Callable[[], None]] = {}

    @contextmanager
    def followed_by(self, changed: Callable[[], None], grew: Callable[[], None] | None = None) -> Iterator[None]:
        """Call ``changed`` whenever the rows or the audio change; of audio alone ``grew``, where it is given."""
        grew = grew or changed
        self._wakes[changed] = grew
        if self.log:
            self.log.wakes.add(grew)
        try:
            yield
        finally:
            del self._wakes[changed]
            if self.log:
                self.log.wakes.discard(grew)

    def show(self, log: AudioLog) -> None:
        """Let the followers read ``log`` from now on."""
        if log is self.log:
            return
        if self.log:
            self.log.wakes.difference_update(self._wakes.values())
        self.log = log
        log.wakes.update(self._wakes.values())
        self.wake()

    def wake(self) -> None:
        for changed in self._wakes:
            changed()


class Following:
    """All followed tasks of this process.

    Args:
        speaks: Whether this process works on a task, and will have its log, if not yet.
    """

    def __init__(
        self,
        database: Database,
        listener: Listener,
        live: LiveAudio,
        announcer: Announcer,
        speaks: Callable[[UUID], bool] = lambda _task_id: False,
    ) -> None:
        self._database = database
        self._listener = listener
        self._live = live
        self._announcer = announcer
        self._speaks = speaks
        self._feeds: dict[UUID, Feed] = {}
        self._dirty: set[UUID] = set()
        self._wake = asyncio.Event()
        announcer.tell_here(self._changed)

    @asynccontextmanager
    async def follow(self, task: SpeechTask) -> AsyncIterator[Feed]:
        """The shared view of a task, kept current while the context is open."""
        feed = self._feeds.setdefault(task.id, Feed(task))
        feed.followers += 1
        if log := self._live.get(task.id):
            feed.show(log)
        if feed.followers == 1:
            self._ask([feed])
        self._changed({task.id})
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                self._feeds.pop(task.id, None)

    def _changed(self, task_ids: set[UUID] | None) -> None:
        affected = self._feeds.keys() if task_ids is None else task_ids & self._feeds.keys()
        if not affected:
            return
        for task_id in affected:
            feed = self._feeds[task_id]
            if feed.log is None and (log := self._live.get(task_id)):
                feed.show(log)  # the first sound waits for no look at the rows
        self._dirty |= affected
        self._wake.set()

    def _ask(self, feeds: Iterable[Feed]) -> None:
        """Ask the other processes for the growth of what is not spoken here."""
        self._announcer.ask(
            feed.task.id
            for feed in feeds
            if not (feed.task.terminal or feed.gone or self._speaks(feed.task.id) or self._live.get(feed.task.id))
        )

    def _asked(self, payload: str) -> None:
        task_ids = names(payload)
        if task_ids and not self._announcer.is_ours(payload):
            # Whoever comes now has what is there already at once, however long the next tick is away.
            self._announcer.spread(task_id for task_id in self._announcer.asked(task_ids) if self._live.get(task_id))

    def followed(self) -> list[UUID]:
        """The tasks that somebody follows here."""
        return list(self._feeds)

    def wake_all(self) -> None:
        """Let every follower look around, e.g. because the server stops."""
        for feed in self._feeds.values():
            feed.wake()

    def _notified(self, payload: str) -> None:
        # What this process says it has told itself at once, and its own speech grows in its own logs: a look at every
        # tick of its own spool would find nothing new, at a tenth of all that streaming costs.
        if not self._announcer.is_ours(payload):
            self._changed(names(payload))

    async def run(self) -> None:
        """Read until cancelled."""
        clock = asyncio.get_running_loop().time
        everything_at = clock() + READ_EVERY_SECONDS
        ask_at = clock() + ASK_EVERY_SECONDS
        looked_at = 0.0
        with (
            self._listener.on(LIVE_CHANNEL, self._notified),
            self._listener.on(INTEREST_CHANNEL, self._asked),
        ):
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(everything_at):
                        await self._wake.wait()
                await asyncio.sleep(looked_at + LOOK_AGAIN_SECONDS - clock())
                # By the clock, however much is being told about some: of another the one notification may be lost.
                if clock() >= everything_at:
                    everything_at = clock() + READ_EVERY_SECONDS
                    self._dirty |= self._feeds.keys()
                if clock() >= ask_at:
                    ask_at = clock() + ASK_EVERY_SECONDS
                    self._ask(self._feeds.values())
                self._wake.clear()
                dirty, self._dirty = self._dirty, set()
                feeds = [f for t in dirty if (f := self._feeds.get(t)) and not f.task.terminal and not f.gone]
                if not feeds:
                    continue
                looked_at = clock()
                try:
                    await self._read(feeds)
                except REFUSED as exc:
                    logger.warning("followed tasks not read", extra={"reason": type(exc).__name__})
                    self._dirty |= dirty
                    await asyncio.sleep(0.2)
                    self._wake.set()

    async def _read(self, feeds: list[Feed]) -> None:
        async with self._database.connection() as connection:
            found = await tasks.read_glimpses(connection, [self._wanted(feed) for feed in feeds])
        for feed in feeds:
            glimpse = found.get(feed.task.id)
            if glimpse is None:
                feed.gone = True
            else:
                self._take(feed, glimpse)
            feed.wake()

    def _wanted(self, feed: Feed) -> tuple[UUID, int, int]:
        if self._live.get(feed.task.id):
            return feed.task.id, NO_MIRROR, 0
        if feed.log is None:
            return feed.task.id, 0, 0
        return feed.task.id, feed.log.attempt, feed.log.visible if feed.log.goes_on else feed.log.length

    def _take(self, feed: Feed, glimpse: Glimpse) -> None:
        task = glimpse.task
        has_moved = task.attempt != feed.task.attempt
        feed.task = task
        if has_moved:
            self._ask([feed])  # its new owner may not have heard of us
        if log := self._live.get(task.id):
            feed.show(log)
            return
        if not glimpse.audio or task.attempt is None or task.audio_format is None:
            return
        log = feed.log
        if log is None or log.attempt != task.attempt:
            # A later attempt may have kept what is here; then it was read from the end of that on.
            kept = log.read(0, glimpse.audio_offset) if log and glimpse.audio_offset == self._wanted(feed)[2] else b""
            log = AudioLog(
                task_id=task.id,
                attempt=task.attempt,
                audio_format=task.audio_format,
                sample_rate_hz=task.sample_rate_hz,
            )
            log.append(kept)
        if glimpse.audio_offset <= log.length:
            # Rows merge what one tick brought, so the first may begin before the end of what is here.
            log.append(glimpse.audio[log.length - glimpse.audio_offset :])
            log.committed(log.length)
            feed.show(log)
        if log.length < task.byte_length:
            self._changed({task.id})
