"""A door between a server and PostgreSQL that tests can shut, hold, or open only for some messages."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

_NOTIFICATION, _READY, _QUERY, _PARSE, _BIND = b"A", b"Z", b"Q", b"P", b"B"
_DEMOTION = b"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY\0"


class _Statements:
    """What one client has prepared: a statement is known by its words at its hundredth use, too."""

    def __init__(self) -> None:
        self._words: dict[bytes, bytes] = {}
        self._rest = b""
        self._head = 4  # the first message of a connection has no type before its length

    def used_in(self, data: bytes) -> bytes:
        """The words of the prepared statements that these bytes make use of."""
        self._rest += data
        used = b""
        while len(self._rest) >= self._head:
            size = self._head - 4 + int.from_bytes(self._rest[self._head - 4 : self._head])
            if len(self._rest) < size:
                break
            kind, body = self._rest[: self._head - 4], self._rest[self._head : size]
            self._rest, self._head = self._rest[size:], 5
            if kind == _PARSE:
                name, _, words = body.partition(b"\0")
                self._words[name] = words.partition(b"\0")[0]
            elif kind == _BIND:
                used += self._words.get(body.split(b"\0", 2)[1], b"")
        return used


class _Line:
    """One connection through the door, and whether its server is at work."""

    def __init__(self, upstream: asyncio.StreamWriter) -> None:
        self.upstream = upstream
        self.statements = _Statements()
        self.idle = False
        self.losing = False
        self.demoting: asyncio.Future[None] | None = None

    def demote(self) -> asyncio.Future[None]:
        """Say the words in the client's place; the answer never reaches it."""
        self.demoting = asyncio.get_running_loop().create_future()
        length = (len(_DEMOTION) + 4).to_bytes(4)
        self.upstream.write(_QUERY + length + _DEMOTION)
        return self.demoting


class PostgresProxy:
    """Passes everything on, until told otherwise.

    Attributes:
        url: The database behind it, as its users reach it through the door.
        notifications: False keeps every notification back; nobody is told that one is missing.
        refused: How many connections were turned away.
    """

    def __init__(self, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        self._upstream = _socket_of(url)
        self._socket = folder / self._upstream.name
        self.url = parts._replace(query=urlencode({**query, "host": str(folder)}, safe="/")).geturl()
        self.notifications = True
        self.refused = 0
        self._shut = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._lost_marker: bytes | None = None
        self._held_marker: bytes | None = None
        self._held_back = asyncio.Event()
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: set[_Line] = set()
        self._lost = asyncio.Event()

    # --- what a test does -----------------------------------------------------------------------------------------

    def shut(self) -> None:
        """An outage: every connection breaks, and new ones are refused."""
        self._shut = True
        for task in self._tasks:
            task.cancel()

    def open(self) -> None:
        """The outage is over."""
        self._shut = False

    def lead_to(self, url: str) -> None:
        """From now on new connections reach this server, the successor of the one that was behind the door."""
        self._upstream = _socket_of(url)

    def remove(self) -> None:
        """Take the door itself away: its socket is no longer there."""
        self._socket.unlink()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing through in either direction while the block lasts, and break nothing."""
        self._flowing.clear()
        try:
            yield
        finally:
            self.go_on()

    @contextlib.contextmanager
    def holding_back(self, marker: bytes) -> Iterator[asyncio.Event]:
        """Keep the next message that holds ``marker`` from PostgreSQL while the block lasts; set once it came.

        A prepared statement is recognised by its words each time it is used.
        """
        self._held_marker, self._held_back, self._released = marker, asyncio.Event(), asyncio.Event()
        try:
            yield self._held_back
        finally:
            self._held_marker = None
            self._released.set()

    def go_on(self) -> None:
        """Let everything through again, before the block ends."""
        self._flowing.set()

    async def demote(self, timeout_seconds: float = 10.0) -> int:
        """Let every connection of now lead to a server that only reads, and new ones to its successor; how many."""
        lines = set(self._lines)
        async with asyncio.timeout(timeout_seconds):
            for line in lines:
                while line in self._lines and not line.idle:  # noqa: ASYNC110 - what is waited for is the server's word
                    await asyncio.sleep(0.001)
                if line in self._lines:
                    await line.demote()
        return len(lines)

    def lose_the_answer_to(self, marker: bytes) -> None:
        """Break the connection after PostgreSQL has carried out the next message that holds ``marker``, unanswered."""
        self._lost_marker = marker
        self._lost.clear()

    async def lost_the_answer(self, timeout_seconds: float = 10.0) -> None:
        """Wait until that has happened."""
        async with asyncio.timeout(timeout_seconds):
            await self._lost.wait()

    # --- what it does with connections ----------------------------------------------------------------------------

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["PostgresProxy"]:
        server = await asyncio.start_unix_server(self._connected, self._socket)
        try:
            yield self
        finally:
            server.close()
            self.shut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._shut:
            self.refused += 1
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side has gone, or a test broke it off
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._upstream)
        line = _Line(upstream_writer)
        self._lines.add(line)
        try:
            pumps = {
                asyncio.create_task(self._ask(reader, line)),
                asyncio.create_task(self._answer(upstream_reader, writer, line)),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._lines.discard(line)
            if line.demoting and not line.demoting.done():
                line.demoting.set_result(None)
            upstream_writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, line: _Line) -> None:
        while data := await reader.read(256 * 1024):
            line.idle = False
            await self._flowing.wait()
            if line.demoting:
                await line.demoting
            used = line.statements.used_in(data)
            if self._held_marker and (self._held_marker in data or self._held_marker in used):
                self._held_marker = None
                self._held_back.set()
                await self._released.wait()
            if self._lost_marker and self._lost_marker in data:
                self._lost_marker = None
                line.losing = True
            line.upstream.write(data)
            await line.upstream.drain()

    async def _answer(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, line: _Line) -> None:
        while True:
            head = await upstream.readexactly(5)  # type, and the length of what follows with itself
            message = head + await upstream.readexactly(int.from_bytes(head[1:]) - 4)
            await self._flowing.wait()
            ready = head[:1] == _READY
            if line.demoting and not line.demoting.done():
                if ready:
                    line.demoting.set_result(None)
                continue
            if line.losing:
                if ready:
                    self._lost.set()
                    return
            elif self.notifications or head[:1] != _NOTIFICATION:
                writer.write(message)
                await writer.drain()
            line.idle = line.idle or (ready and message[5:6] == b"I")


def _socket_of(url: str) -> Path:
    query = dict(parse_qsl(urlsplit(url).query))
    return Path(query["host"]) / f".s.PGSQL.{query['port']}"


@asynccontextmanager
async def postgres_proxy(url: str) -> AsyncIterator[PostgresProxy]:
    """A door to this database, open at first."""
    with contextlib.ExitStack() as stack:
        # Not pytest's own folder: the path of a Unix socket has at most 107 letters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="utter-")))
        async with PostgresProxy(url, folder).listening() as proxy:
            yield proxy
