"""The simulated providers as one application, and the ways to run it."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from .behaviours import Behaviours, BehaviourSurface, Pace, Planned
from .customization import customize
from .ledger import Call, Ledger
from .modal import Modal
from .realtime import Session
from .refusals import Refusal
from .serving import serving
from .speech import Speech
from .synthesis import Downloads, synthesize
from .voices import VoiceBook

API_KEY = "sim-this-is-a-simulation-and-not-a-key"
NOTE = "This is a simulation of speech providers: nothing here is real, nothing is billed."


class Simulator:
    """Everything the simulated providers know and do; ``running_simulator`` puts it behind an address.

    Attributes:
        base_url: Where it listens, without a slash at the end.
        pace: How fast it is; may be replaced at any time and holds for what begins then.
        ledger, behaviours, voices: See their classes.
    """

    def __init__(self, *, pace: Pace | None = None, strict_voices: bool = False, voice_limit: int = 1000) -> None:
        self.base_url = ""
        self._first_pace = pace or Pace()
        self._strict_voices, self._voice_limit = strict_voices, voice_limit
        self._requests = 0
        self.speech = Speech()
        self.ledger = Ledger()
        self.behaviours = Behaviours()
        self.pace = self._first_pace
        self.voices = VoiceBook(limit=voice_limit, strict=strict_voices)
        self.downloads = Downloads()

    # --- for whoever drives it ----------------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Call]:
        """Every provider call so far, as ``GET /calls`` shows them."""
        return self.ledger.calls

    def environment(self, base_url: str | None = None, *, modal_cancel: bool = True) -> dict[str, str]:
        """The environment variables that point a server here."""
        base = base_url or self.base_url
        host = base.partition("://")[2]
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        environment = {
            "DASHSCOPE_BASE_URL": base,
            "DASHSCOPE_API_KEY": API_KEY,
            "DASHSCOPE_WS_URL": f"ws{base.removeprefix('http')}/api-ws/v1/realtime",
            "PROVIDER_DOWNLOAD_HOSTS": name.strip("[]"),
            "MODAL_JOB_SUBMIT": f"{base}/modal/submit",
            "MODAL_JOB_STATUS": f"{base}/modal/status",
            "MODAL_JOB_RESULT": f"{base}/modal/result",
            "MODAL_JOB_CANCEL": f"{base}/modal/cancel",
            "MODAL_ENDPOINT_VOICE_DESIGN": f"{base}/modal/voice-design",
            "SIMULATED_PROVIDERS": NOTE,
        }
        if not modal_cancel:
            del environment["MODAL_JOB_CANCEL"]
        return environment

    def behave(
        self, surface: BehaviourSurface, behaviour: Mapping[str, Any], *, times: int = 1, **match: Any
    ) -> Planned:
        """Register a misbehaviour for the next ``times`` matching requests (0: all); see ``behaviours``.

        Raises:
            ValueError: If there is no such behaviour.
        """
        return self.behaviours.plan(surface, behaviour, match, times)

    async def until(self, fact: Callable[[list[Call]], bool], timeout_seconds: float = 10.0) -> None:
        """Wait until ``fact(calls)`` holds; raises TimeoutError if it does not."""
        await self.ledger.until(fact, timeout_seconds)

    async def deltas_sent(self, count: int, *, text_contains: str = "", timeout_seconds: float = 10.0) -> Call:
        """Wait until a realtime session with such a text has sent ``count`` deltas, and return its call."""

        def reached(calls: list[Call]) -> list[Call]:
            sessions = [call for call in calls if call["surface"] == "realtime" and text_contains in call["text"]]
            return [call for call in sessions if call["deltas"] >= count]

        await self.until(lambda calls: bool(reached(calls)), timeout_seconds)
        return reached(self.calls)[-1]

    def reset(self) -> None:
        """As on the first day: no calls, behaviours and voices, the pace of the start. Sessions that run go on."""
        self.behaviours.clear()
        self.ledger.clear()
        self.pace = self._first_pace
        self.voices = VoiceBook(limit=self._voice_limit, strict=self._strict_voices)

    # --- for its own surfaces -----------------------------------------------------------------------------------------

    def unauthorized(self, connection: HTTPConnection) -> Refusal | None:
        """The refusal that a request without the right key gets."""
        sent = connection.headers.get("authorization", "")
        if hmac.compare_digest(sent.encode(), f"Bearer {API_KEY}".encode()):
            return None
        return Refusal("InvalidApiKey")

    def request_id(self) -> str:
        """The id of the next answer."""
        self._requests += 1
        return f"simulated-{self._requests:08d}"

    def application(self) -> Starlette:
        """All routes: the providers' own paths, and those that drive the simulation."""

        async def realtime(socket: WebSocket) -> None:
            await Session(self, socket).run()

        async def customization(request: Request) -> Response:
            return await customize(self, request)

        async def synthesis(request: Request) -> Response:
            return await synthesize(self, request)

        async def download(request: Request) -> Response:
            return await self.downloads.serve(self, request)

        return Starlette(
            routes=[
                Route("/", self._show_environment),
                Route("/calls", self._calls, methods=["GET", "DELETE"]),
                Route("/behaviours", self._behaviours, methods=["GET", "POST", "DELETE"]),
                Route("/behaviours/release", self._release, methods=["POST"]),
                Route("/pace", self._pace, methods=["GET", "POST"]),
                Route("/reset", self._reset, methods=["POST"]),
                WebSocketRoute("/api-ws/v1/realtime", realtime),
                Route("/api/v1/services/audio/tts/customization", customization, methods=["POST"]),
                Route("/api/v1/services/aigc/multimodal-generation/generation", synthesis, methods=["POST"]),
                Route("/downloads/{name}", download),
                *Modal(self).routes(),
            ]
        )

    async def _show_environment(self, request: Request) -> Response:
        base = f"{request.url.scheme}://{request.headers.get('host') or request.url.netloc}"
        return JSONResponse(self.environment(base))

    async def _calls(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.ledger.clear()
        return JSONResponse(self.calls)

    async def _behaviours(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.behaviours.clear()
        if request.method == "POST":
            try:
                wish = msgspec.json.decode(await request.body(), type=_Wish)
                planned = self.behaviours.plan(wish.surface, wish.behaviour, wish.match, wish.times)
            except ValueError as exc:
                return JSONResponse({"detail": str(exc)}, status_code=400)
            return JSONResponse(planned.described(), status_code=201)
        return JSONResponse(self.behaviours.described())

    async def _release(self, request: Request) -> Response:
        try:
            wish = msgspec.json.decode(await request.body() or b"{}", type=_Release)
        except ValueError as exc:
            return JSONResponse({"detail": str(exc)}, status_code=400)
        return JSONResponse({"released": self.behaviours.release(wish.id, wish.name)})

    async def _pace(self, request: Request) -> Response:
        if request.method == "POST":
            try:
                changes = msgspec.json.decode(await request.body(), type=dict[str, Any])
                self.pace = msgspec.convert({**msgspec.to_builtins(self.pace), **changes}, Pace)
            except ValueError as exc:
                return JSONResponse({"detail": str(exc)}, status_code=400)
        return JSONResponse(msgspec.to_builtins(self.pace))

    async def _reset(self, request: Request) -> Response:
        self.reset()
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
        async with serving(simulator.application(), host, port) as bound:
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
    import signal

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
