"""The simulated providers as one application, and the ways to run it."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from .behaviours import Pace
from .customization import customize
from .inference import InferenceSession
from .modal import Modal
from .realtime import Session
from .serving import serving
from .state import NOTE, Simulator
from .synthesis import download, synthesize


def application(simulator: Simulator) -> Starlette:
    """All routes: the providers' own paths, and those that drive the simulation."""

    async def realtime(socket: WebSocket) -> None:
        await Session(simulator, socket).run()

    async def inference(socket: WebSocket) -> None:
        await InferenceSession(simulator, socket).run()

    controls = _Controls(simulator)
    return Starlette(
        routes=[
            Route("/", controls.show_environment),
            Route("/calls", controls.calls, methods=["GET", "DELETE"]),
            Route("/behaviours", controls.behaviours, methods=["GET", "POST", "DELETE"]),
            Route("/behaviours/release", controls.release, methods=["POST"]),
            Route("/pace", controls.pace, methods=["GET", "POST"]),
            Route("/reset", controls.reset, methods=["POST"]),
            WebSocketRoute("/api-ws/v1/realtime", realtime),
            WebSocketRoute("/api-ws/v1/inference", inference),
            WebSocketRoute("/api-ws/v1/inference/", inference),
            Route("/api/v1/services/audio/tts/customization", partial(customize, simulator), methods=["POST"]),
            Route(
                "/api/v1/services/aigc/multimodal-generation/generation",
                partial(synthesize, simulator),
                methods=["POST"],
            ),
            Route("/downloads/{name}", partial(download, simulator)),
            *Modal(simulator).routes(),
        ]
    )


class _Controls:
    """The routes that drive the simulation."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def show_environment(self, request: Request) -> Response:
        base = f"{request.url.scheme}://{request.headers.get('host') or request.url.netloc}"
        return JSONResponse(self._simulator.environment(base))

    async def calls(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._simulator.ledger.clear()
        # Not Starlette's: what a WebSocket was sent may hold half an emoji.
        return Response(json.dumps(self._simulator.calls), media_type="application/json")

    async def behaviours(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._simulator.behaviours.clear()
        if request.method == "POST":
            try:
                wish = msgspec.json.decode(await request.body(), type=_Wish)
                planned = self._simulator.behaviours.plan(wish.surface, wish.behaviour, wish.match, wish.times)
            except ValueError as exc:
                return JSONResponse({"detail": str(exc)}, status_code=400)
            return JSONResponse(planned.described(), status_code=201)
        return JSONResponse(self._simulator.behaviours.described())

    async def release(self, request: Request) -> Response:
        try:
            wish = msgspec.json.decode(await request.body() or b"{}", type=_Release)
        except ValueError as exc:
            return JSONResponse({"detail": str(exc)}, status_code=400)
        return JSONResponse({"released": self._simulator.behaviours.release(wish.id, wish.name)})

    async def pace(self, request: Request) -> Response:
        if request.method == "POST":
            try:
                changes = msgspec.json.decode(await request.body(), type=dict[str, Any])
                self._simulator.pace = msgspec.convert({**msgspec.to_builtins(self._simulator.pace), **changes}, Pace)
            except ValueError as exc:
                return JSONResponse({"detail": str(exc)}, status_code=400)
        return JSONResponse(msgspec.to_builtins(self._simulator.pace))

    async def reset(self, request: Request) -> Response:
        self._simulator.reset()
        return JSONResponse({"ok": True})


class _Wish(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    surface: str
    behaviour: dict[str, Any]
    match: dict[str, Any] = {}
    times: int = 1


class _Release(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    id: int | None = None
    name: str | None = None


@asynccontextmanager
async def running_simulator(
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    pace: Pace | None = None,
    strict_voices: bool = False,
    voice_limit: int = 1000,
) -> AsyncIterator[Simulator]:
    """The simulated providers on a socket of their own, in this event loop, while the context lasts.

    Args:
        port: 0 takes a free one.
        pace: ``AT_ONCE`` for tests that do not look at time.
        strict_voices: Refuse custom voices that were not created here.
        voice_limit: Voices of each kind that the account may have.

    Raises:
        OSError: If the address cannot be had.
    """
    simulator = Simulator(pace=pace, strict_voices=strict_voices, voice_limit=voice_limit)
    try:
        async with serving(application(simulator), host, port) as bound:
            shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
            simulator.base_url = f"http://{shown}:{bound}"
            yield simulator
    finally:
        simulator.speech.close()


def run_simulator(host: str = "127.0.0.1", port: int = 8100) -> None:
    """Run the simulated providers until interrupted. This is ``python -m server simulate``."""
    try:
        import uvloop
    except ImportError:
        new_loop = None
    else:
        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(_run(host, port))
        except KeyboardInterrupt:
            print("The simulation has ended.")


async def _run(host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            continue
    async with running_simulator(port, host=host) as simulator:
        print(f"Simulated speech providers at {simulator.base_url}", flush=True)
        print(NOTE, flush=True)
        print(f"The environment that points a server here: {simulator.base_url}/", flush=True)
        await stop.wait()
