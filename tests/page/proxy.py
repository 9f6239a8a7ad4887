"""A reverse proxy on a bad day: it breaks connections, and answers in the server's place."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

_SORRY = b"<html><body><h1>503 Service Unavailable</h1></body></html>"


class Proxy:
    """One TCP port in front of a server; one request per connection, so that each can be judged.

    Attributes:
        refuse: Requests whose address contains this are answered 503 with HTML, ``times`` of them.
        refused: How many were.
        down: While true, nobody is answered at all.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.refuse = ""
        self.times = 0
        self.refused = 0
        self.down = False
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
        lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
        target = urlsplit(self.target)
        upstream_reader, upstream = await asyncio.open_connection(target.hostname, target.port)
        self._open.add(upstream)
        try:
            upstream.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
            sending = asyncio.create_task(_pipe(reader, upstream))
            try:
                await _pipe(upstream_reader, writer)
            finally:
                sending.cancel()
                await asyncio.wait({sending})
        finally:
            self._open.discard(upstream)
            upstream.close()


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
