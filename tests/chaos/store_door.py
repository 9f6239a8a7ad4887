"""A door between a server and its object store that can be away, slow, refuse, stop a PUT or lose its answer."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:\s*100-continue", re.IGNORECASE)
_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)
_REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_LONGEST_HEAD = 64 * 1024


class StoreDoor:
    """Passes every request on over a connection of its own, until told otherwise.

    Attributes:
        url: The store, as its users reach it through the door.
        away: Connections are broken off at once.
        refusing: Every request is answered 503.
        slow_seconds: How long each request waits before it is passed on.
        losing: How many of the next PUTs are carried out and never answered.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self.url = ""
        self.away = False
        self.refusing = False
        self.slow_seconds = 0.0
        self.losing = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._hold: Literal["before", "after"] | None = None
        self._held = asyncio.Event()
        self._released = asyncio.Event()

    @contextlib.contextmanager
    def holding_a_put(self, moment: Literal["before", "after"]) -> Iterator[asyncio.Event]:
        """Stop the next PUT of audio before the store has it, or before its answer leaves; set once it stopped."""
        self._hold, self._held, self._released = moment, asyncio.Event(), asyncio.Event()
        try:
            yield self._held
        finally:
            self._hold = None
            self._released.set()

    def heal(self) -> None:
        """All is well again."""
        self.away = self.refusing = False
        self.slow_seconds, self.losing = 0.0, 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["StoreDoor"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_LONGEST_HEAD)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            if not self.away:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side has gone, or the door closes
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if self.away else writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if _EXPECTS.search(head):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = _EXPECTS.sub(b"", head)
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        if self.away:
            return
        if self.refusing:
            writer.write(_REFUSAL)
            await writer.drain()
            return
        audio = head.startswith(b"PUT ") and len(body) > 1000
        await self._stop(audio, "before")
        upstream_reader, upstream = await asyncio.open_connection(*self._upstream)
        try:
            upstream.write(_CONNECTION.sub(b"", head)[:-2] + b"Connection: close\r\n\r\n" + body)
            answer = await upstream_reader.read(-1)
        finally:
            upstream.transport.abort()
        if audio and self.losing:
            self.losing -= 1
            return
        await self._stop(audio, "after")
        writer.write(answer)
        await writer.drain()

    async def _stop(self, audio: bool, moment: Literal["before", "after"]) -> None:
        if audio and self._hold == moment:
            self._hold = None
            self._held.set()
            await self._released.wait()
