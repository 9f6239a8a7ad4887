"""What the simulated providers know, and what whoever drives them can ask of them."""

import hmac
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import HTTPConnection

from .behaviours import Behaviours, BehaviourSurface, Pace, Planned
from .downloads import Downloads
from .ledger import Call, Ledger
from .refusals import Refusal
from .speech import Speech
from .voices import VoiceBook

API_KEY = "sim-this-is-a-simulation-and-not-a-key"
NOTE = "This is a simulation of speech providers: nothing here is real, nothing is billed."


class Simulator:
    """Everything the simulated providers know and do; ``running_simulator`` puts it behind an address.

    Attributes:
        base_url: Where it listens, without a slash at the end.
        pace: How fast it is; may be replaced at any time and holds for what begins then.
        ledger, behaviours, voices: See their classes.
        silent_seconds: A task whose client says nothing for so long fails.
        idle_seconds: A socket without a task is closed after so long.
    """

    def __init__(self, *, pace: Pace | None = None, strict_voices: bool = False, voice_limit: int = 1000) -> None:
        self.base_url = ""
        self.silent_seconds, self.idle_seconds = 23.0, 60.0
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
            "DASHSCOPE_INFERENCE_WS_URL": f"ws{base.removeprefix('http')}/api-ws/v1/inference",
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
