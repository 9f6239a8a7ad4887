"""An HTTP and WebSocket server inside the running event loop, one that can also break connections off.

It installs no signal handlers and logs nothing of its own: it lives beside other servers, in tests and in ``dev``.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_quiet = logging.getLogger("server.simulator.connections")
_quiet.setLevel(logging.WARNING)
# What the server says of every refused upgrade, although the refusal was sent in full.
_quiet.addFilter(lambda record: "without completing handshake" not in record.getMessage())

_STOP_SECONDS = 5.0


def transport_of(scope: MutableMapping[str, Any]) -> asyncio.Transport:
    """The connection under a request, for those who want to break it off."""
    return cast(asyncio.Transport, scope["state"]["transport"])


async def drain(scope: MutableMapping[str, Any], timeout_seconds: float = 5.0) -> None:
    """Wait until what was written has left this process, so that breaking off loses none of it."""
    transport = transport_of(scope)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


class _Http(HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _quiet

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class _WebSockets(WebSocketsSansIOProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _quiet

    async def run_asgi(self) -> None:
        self.scope["state"]["transport"] = self.transport
        await super().run_asgi()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are for whoever owns the process

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        ticks = 0
        while not self.stop.is_set() and not await self.on_tick(ticks):
            ticks += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and wait for what is open; nobody is waited for politely, so it takes milliseconds."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        for server in self.servers:
            await server.wait_closed()


class _Interruptible:
    """An application whose requests can all be broken off at once, however long they mean to wait."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running: dict[asyncio.Task[None], Scope] = {}
        self._interrupted = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._running[task] = scope
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
        finally:
            del self._running[task]

    def interrupt(self) -> None:
        self._interrupted = True
        for task, scope in self._running.items():
            transport_of(scope).abort()
            task.cancel()


@asynccontextmanager
async def serving(app: ASGIApp, host: str, port: int) -> AsyncIterator[int]:
    """Serve ``app`` while the context lasts; yields the port. At the end open connections are broken off.

    Raises:
        OSError: If the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
        interruptible = _Interruptible(app)
        config = uvicorn.Config(
            interruptible,
            loop="none",
            http=_Http,
            ws=_WebSockets,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            ws_max_size=16 * 1024 * 1024,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            backlog=2048,
            headers=[("Server", "simulated-providers (a simulation: nothing here is real or billed)")],
        )
        server = _Server(config)
        port = int(listener.getsockname()[1])
        serve = asyncio.create_task(server.serve(sockets=[listener]), name="simulated-providers")
        serve.add_done_callback(lambda _: server.ready.set())
        try:
            await server.ready.wait()
            yield port
        finally:
            interruptible.interrupt()
            server.stop.set()
            await serve
    finally:
        listener.close()
