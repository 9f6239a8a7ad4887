"""The growing audio of a running synthesis, in memory, with any number of followers at their own offsets.

Nobody has a queue: a follower reads on from its offset when it likes, so a slow one costs nothing and can never hold
up the provider's socket. Offsets count payload bytes; see ``spool.py`` for the durable copy of the same bytes.
"""

import asyncio
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

from server.audio import AudioFormat

# One delta carries at most this much audio (docs/streaming.md, "Events").
DELTA_BYTES = 16 * 1024
# Serialised events are kept for those who follow closely; whoever reads older audio pays for its own encoding. Each is
# memory that is written once and read once: the fewer there are, the more of them the processor still has at hand.
RECENT_EVENTS = 8
# What a follower that has to catch up gets at a time.
BATCH_BYTES = 64 * 1024


def delta_event(audio: bytes | memoryview, stop: int, encoded: bytes | None = None) -> bytes:
    """One ``response.audio.delta`` event; its id is the payload offset at the end of its audio."""
    return b'event: response.audio.delta\nid: %d\ndata: {"delta":"%b"}\n\n' % (stop, encoded or b64encode(audio))


class Note(NamedTuple):
    """What becomes durable together with the audio before ``at``.

    Attributes:
        at: Payload bytes before it.
        marked_bytes, marked_characters: Where the last whole sentence ends, in the payload and in the text.
        position, words: A batch of words that have been heard, and its number; None where there are none.
    """

    at: int
    marked_bytes: int
    marked_characters: int
    position: int | None = None
    words: list[tuple[str, int, int]] | None = None


class AudioLog:
    """The audio of one attempt, append-only, behind that of the attempts whose audio it keeps.

    Attributes:
        length: Payload bytes so far.
        durable: Payload bytes that the spool holds. Until the first of them are committed followers see nothing, so
            that "no durable byte" means that nobody heard anything and the text may be spoken again
            (docs/architecture.md, "The first delta waits for its commit").
        goes_on: Another process may append to it, should this one not finish: so followers see nothing that is not
            durable, and what was heard is what is kept.
        marked: So far it is known where its sentences end; without that nobody can go on with it.
        notes: What becomes durable with the audio, in order; the first ``settled`` of them have.
        heard: Followers may have read it: some of it has been durable.
        ended: No byte will be added. The task may still be open: storing the audio comes after.
        wakes: Called at every change, one for each follower; none of them waits for anything.
    """

    def __init__(
        self, *, task_id: UUID, attempt: int, audio_format: AudioFormat, sample_rate_hz: int, goes_on: bool = False
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.audio_format = audio_format
        self.sample_rate_hz = sample_rate_hz
        self.length = 0
        self.durable = 0
        self.goes_on = goes_on
        self.marked = True
        self.notes: list[Note] = []
        self.settled = 0
        self.heard = False
        self.ended = False
        self._starts: list[int] = []
        self._chunks: list[bytes] = []
        self._events: dict[int, bytes] = {}
        self._encoded: dict[int, bytes] = {}
        self.wakes: set[Callable[[], None]] = set()
        self._commits = asyncio.Event()

    @property
    def visible(self) -> int:
        """How far a follower may read."""
        if self.goes_on:
            return self.durable
        return self.length if self.heard else 0

    @property
    def kept(self) -> bool:
        """Everything is durable, notes as well."""
        return self.durable >= self.length and self.settled == len(self.notes)

    def append(self, audio: bytes, encoded: bytes | None = None) -> None:
        """Add one delta, cut where it is longer than an event may be.

        Args:
            encoded: The same bytes in base64, where the provider sent them so; spares us encoding them again.
        """
        if len(audio) > DELTA_BYTES:
            for start in range(0, len(audio), DELTA_BYTES):
                self._add(audio[start : start + DELTA_BYTES], None)
        elif audio:
            self._add(audio, encoded)
        if self.heard and not self.goes_on:
            self._wake()

    def _add(self, audio: bytes, encoded: bytes | None) -> None:
        index = len(self._chunks)
        self._starts.append(self.length)
        self._chunks.append(audio)
        self.length += len(audio)
        if encoded is not None:
            self._encoded[index] = encoded
        self._events.pop(index - RECENT_EVENTS, None)
        self._encoded.pop(index - RECENT_EVENTS, None)

    def committed(self, offset: int) -> None:
        """The spool holds everything before ``offset``."""
        news = not self.heard or (self.goes_on and offset > self.durable)
        self.durable, self.heard = offset, True
        self._commits.set()
        if news:
            self._wake()

    def rewound(self, offset: int) -> None:
        """The database came back without commits that it had confirmed: only what is before ``offset`` is kept."""
        self.durable = offset
        self.settled = sum(note.at <= offset for note in self.notes[: self.settled])

    async def next_commit(self) -> None:
        """Return at the next ``committed`` after this call."""
        self._commits.clear()
        await self._commits.wait()

    def end(self) -> None:
        """Say that the audio is whole, or that this attempt will add nothing more."""
        self.ended = True
        self._wake()

    def read(self, start: int, stop: int) -> bytes:
        """The payload between two offsets."""
        return b"".join(self.slices(start, stop))

    def slices(self, start: int, stop: int) -> Iterator[bytes]:
        """The payload between two offsets, as it lies."""
        index = bisect_right(self._starts, start) - 1
        while start < stop and index < len(self._chunks):
            at, chunk = self._starts[index], self._chunks[index]
            part = chunk[start - at : stop - at] if start > at or stop < at + len(chunk) else chunk
            yield part
            start, index = start + len(part), index + 1

    def events(self, start: int) -> tuple[bytes, int]:
        """Serialised delta events from ``start`` on, about ``BATCH_BYTES`` of audio, and the offset at their end."""
        visible, last = self.visible, len(self._chunks) - 1
        if last >= 0 and start == self._starts[last] and visible == self.length:
            return self._event(last, self._chunks[last], visible), visible  # of all that follow closely
        index = bisect_right(self._starts, start) - 1
        batch: list[bytes] = []
        offset = start
        while offset < visible and offset - start < BATCH_BYTES:
            at, chunk = self._starts[index], self._chunks[index]
            stop = min(at + len(chunk), visible)
            whole = offset == at and stop == at + len(chunk)
            batch.append(
                self._event(index, chunk, stop) if whole else delta_event(chunk[offset - at : stop - at], stop)
            )
            offset, index = stop, index + 1
        return (batch[0] if len(batch) == 1 else b"".join(batch)), offset

    def _event(self, index: int, chunk: bytes, stop: int) -> bytes:
        if event := self._events.get(index):
            return event
        event = delta_event(chunk, stop, self._encoded.pop(index, None))
        if index >= len(self._chunks) - RECENT_EVENTS:
            self._events[index] = event
        return event

    def _wake(self) -> None:
        for wake in self.wakes:
            wake()


class LiveAudio:
    """The running syntheses of this process, by task."""

    def __init__(self) -> None:
        self._logs: dict[UUID, AudioLog] = {}

    def get(self, task_id: UUID) -> AudioLog | None:
        return self._logs.get(task_id)

    def logs(self) -> list[AudioLog]:
        return list(self._logs.values())

    @contextmanager
    def speaking(self, log: AudioLog) -> Iterator[AudioLog]:
        """Show ``log`` to followers while the context is open; afterwards they find the bytes in the spool."""
        self._logs[log.task_id] = log
        try:
            yield log
        finally:
            if self._logs.get(log.task_id) is log:
                del self._logs[log.task_id]
            log.end()
