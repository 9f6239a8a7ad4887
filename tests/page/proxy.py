"""A reverse proxy on a bad day: it breaks connections, and answers in the server's place."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

_SORRY = b"<html><body><h1>503 Service Unavailable</h1></body></html>"


class Proxy:
    """One TCP port in front of a server; one request per connection, so that each can be judged.

    Attributes:
        refuse: Requests whose address contains this are answered 503 with HTML, ``times`` of them.
        refused: How many were.
        down: While true, nobody is answered at all.
        keep_after: Of the next stream only so many deltas are passed on; whatever follows is kept, and so is the
            connection.
        drop: Of the next stream the delta of this number (from 0) is left out.
        meddled: How many streams were treated so.
        prefix: A path below which the server stands; it is taken away, and what lies elsewhere is answered 404.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.refuse = ""
        self.times = 0
        self.refused = 0
        self.down = False
        self.keep_after: int | None = None
        self.drop: int | None = None
        self.meddled = 0
        self.prefix = ""
        self._open: set[asyncio.StreamWriter] = set()

    def refuse_next(self, containing: str, times: int) -> None:
        self.refuse, self.times = containing, times

    def cut(self) -> None:
        """Break everything that is open, as a cable that is pulled."""
        for writer in list(self._open):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if not self.down:
                    await self._exchange(reader, writer)
        finally:
            self._open.discard(writer)
            writer.transport.abort() if self.down else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        address = head.split(b" ", 2)[1].decode()
        if self.refuse and self.refuse in address and self.refused < self.times:
            self.refused += 1
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(_SORRY), _SORRY))
            await writer.drain()
            return
        method, _, rest = head.partition(b" ")
        if not address.startswith(f"{self.prefix}/"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        head = method + b" " + rest.removeprefix(self.prefix.encode())
        lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
        target = urlsplit(self.target)
        upstream_reader, upstream = await asyncio.open_connection(target.hostname, target.port)
        self._open.add(upstream)
        try:
            upstream.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
            sending = asyncio.create_task(_pipe(reader, upstream))
            try:
                if "/generate/stream" in address and (self.keep_after is not None or self.drop is not None):
                    await self._meddle(upstream_reader, writer)
                    await asyncio.wait({sending})  # until the client hangs up
                else:
                    await _pipe(upstream_reader, writer)
            finally:
                sending.cancel()
                await asyncio.wait({sending})
        finally:
            self._open.discard(upstream)
            upstream.close()

    async def _meddle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keep_after, drop = self.keep_after, self.drop
        self.keep_after = self.drop = None
        self.meddled += 1
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"transfer-")))
        rest, deltas = b"", 0
        while size := int(await reader.readuntil(b"\r\n"), 16):  # RFC 9112 §7.1
            rest += (await reader.readexactly(size + 2))[:-2]
            *events, rest = re.split(rb"(?<=\n\r\n)|(?<=\n\n)", rest)
            for event in events:
                is_delta = b"event: response.audio.delta" in event
                deltas += is_delta
                swallowed = keep_after is not None and deltas > keep_after
                if not swallowed and not (is_delta and deltas - 1 == drop):
                    writer.write(event)
            await writer.drain()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def running_proxy(target: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the server at ``target``."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await server.wait_closed()
