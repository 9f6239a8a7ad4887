"""Running the application as a process: uvicorn, told to stop in the order that open streams need.

uvicorn waits for open connections before it runs the lifespan's shutdown, and tells no handler; a stream that waits
for more audio would hold it up for ever. So the parts hear of the stop first (docs/architecture.md, "Stopping").
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette

from server import logs
from server.admission.clients import Door, GuardedProtocol, connections_limit
from server.app import create_app
from server.lifecycle import stop
from server.settings import Settings
from server.startup import introduction, startup_problems

logger = logging.getLogger(__name__)

# Proxies keep idle connections for a minute and send the next request into them; one that we had just closed would be
# lost, or be answered 502 by the proxy. So ours last longer.
KEEP_ALIVE_SECONDS = 75
# On shutdown readers that read nothing are cut after this long, so that the lifespan gets to run.
CLOSE_CONNECTIONS_SECONDS = 5


class Server(uvicorn.Server):
    """uvicorn that ends streams first, and returns from ``serve`` on a signal instead of dying of it."""

    def __init__(self, app: Starlette, settings: Settings, *, started: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=GuardedProtocol.behind(
                    Door(connections_limit(settings.connections_limit), self._refused),
                    stalled_seconds=settings.deadlines.follower_stalled_seconds,
                    head_seconds=settings.deadlines.head_seconds,
                ),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # the application asks them itself: more is to be believed than uvicorn knows
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_CONNECTIONS_SECONDS,
            )
        )
        self._app = app
        self._started = started
        self._notice_seconds = settings.shutdown_notice_seconds
        # The library would cut event streams in the middle of a body; ours end themselves when the parts stop.
        AppStatus.enable_automatic_graceful_drain = False

    def _refused(self, what: str) -> None:
        if parts := getattr(self._app.state, "parts", None):
            parts.metrics.refused(what)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._started:
            self._started()

    async def _give_notice(self) -> None:
        """Go on as before while balancers find out that nobody should be sent here; a second signal ends that."""
        until = time.monotonic() + self._notice_seconds
        while time.monotonic() < until and not self.force_exit:  # noqa: ASYNC110 - uvicorn has a flag, no event
            await asyncio.sleep(0.05)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if parts := getattr(self._app.state, "parts", None):
            parts.readiness.leaving = True
            await self._give_notice()
            stop(parts)
        await super().shutdown(sockets)


def calm_the_collector() -> None:
    """Take what start-up made, and what lives as long as the process, out of the garbage collector's rounds.

    Measured at 200 live streams: as Python comes, each full round walks everything that was ever imported and stops
    every stream for 30 to 120 ms, and the rounds cost a fifth of all CPU time. Speech itself leaves few cycles (about
    a hundred small objects each), so rounds may be rarer: a full one after some 2500 speeches.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 5)


async def serve(settings: Settings) -> int:
    """Serve until told to stop; the exit status."""
    problems = await startup_problems(settings)
    if problems:
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1
    logs.note_no_places()
    logger.info(introduction(settings))
    server = Server(create_app(settings), settings, started=calm_the_collector)
    await server.serve()
    return 0 if server.started else 1


def run(settings: Settings) -> int:
    """`python -m server serve`."""
    logs.configure(settings.log_level, settings.log_format)
    for weakness in settings.weaknesses:
        logger.warning(weakness)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(serve(settings))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: it matters from about 200 streams on."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
