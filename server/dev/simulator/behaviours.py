"""How the simulated providers misbehave: told per request by the test (or the person) that drives them.

A behaviour is registered for a surface, may ask for facts of the request (``match``), and is claimed by the next
``times`` requests that have them, first registered first. Over HTTP::

    POST /behaviours  {"surface": "realtime", "match": {"text_contains": "Hello"}, "times": 1,
                       "behaviour": {"do": "close", "code": 1011, "after_deltas": 2}}
    DELETE /behaviours

``match`` knows ``text_contains``, ``voice``, ``model``, ``action``, ``job_id``; ``times`` 0 means always.

Realtime (``RealtimeBehaviour``): knobs that shape a session, and ``faults``, each with the moment it happens ``at``.
A single fault may be written straight into the behaviour, as above. What can be played:

====================================  =====================================================================
line                                  behaviour
====================================  =====================================================================
normal single cycle                   ``{}``
three cycles; usage spread over them  ``{"cycles": 3}``; each its own file: ``{"cycles": 3, "restart_encoder": true}``
a repeated response.done              ``{"repeat_done": 1}``
split mp3 frame, split PCM sample     ``{"delta_sizes": [1, 3, 1001]}`` (dealt out in turn) or ``{"delta_bytes": 4801}``
a 1 MiB delta                         ``{"delta_bytes": 1048576, "minimum_bytes": 1048576}``
zero deltas then session.finished     ``{"audio": false}``; not even a response: ``{"response": false}``
silence on the socket                 ``{"do": "silence", "at": "audio", "seconds": 40}``; for ever without seconds
refusal of the upgrade                ``{"refuse": 401}``, 403, 429, 500
error before, after audio             ``{"do": "error", "at": "text", "code": "InternalError"}``, ``"after_deltas": 2``
close before, after audio             ``{"do": "close", "at": "audio", "code": 1011, "reason": TOO_MANY}``,
                                      ``"after_deltas": 2``; codes 1000, 1007, 1011
1006 before, after audio              ``{"do": "abort", "at": "audio"}``, ``"after_deltas": 2``
opens and closes without a word       ``{"do": "close", "at": "created", "code": 1000}``, ``"times": 0``
close without session.finished        ``{"do": "close", "at": "response_end", "code": 1000}``
session.finished, then no close       ``{"after_finished": "stay_open"}``
unknown event types; extra fields     ``{"unknown_events": true}``; ``{"extra_fields": true}``
binary frame                          ``{"do": "binary", "after_deltas": 1}``
invalid JSON, invalid base64          ``{"do": "invalid_json", ...}``, ``{"do": "invalid_base64", ...}``
wrong voice                           ``{"do": "error", "at": "text", "code": "CLIENT_ERROR", "message": ENGINE_411}``
slow deltas; a burst                  ``{"speed": 0.5}``; ``{"speed": 0}``
response that is not completed        ``{"response_status": "failed"}``
stop at a moment until told           ``{"do": "hold", "after_deltas": 3}``, then ``POST /behaviours/release``
====================================  =====================================================================

REST (``RestBehaviour``; surfaces ``http``, ``customization``, ``modal``, ``download``):

====================================  =====================================================================
line                                  behaviour
====================================  =====================================================================
each refusal of refusals.py           ``{"do": "error", "code": "Throttling.RateQuota"}`` (status and sentence from
                                      ``REFUSALS``, or ``"status"``, ``"message"``; ``"envelope": "openai"``)
empty ``{}`` on 400; HTML on 502      ``{"do": "empty"}``; ``{"do": "html"}``; other ``"status"`` for both
any other answer                      ``{"do": "answer", "status": 418, "json": {...}}`` or ``"text": "..."``
body with ``status_code``             ``{"status_code": true}`` (``http``)
url expired                           ``{"expires_in_seconds": 0}`` (``http``)
url host not allowed                  ``{"url_host": "files.example"}`` (``http``)
timeout after the request was sent    ``{"do": "hang"}``: the work is done, but nothing is answered; not even done:
                                      ``{"do": "hang", "effect": false}``
answered late; broken off             ``{"do": "late", "seconds": 3}``; ``{"do": "abort"}``: both after the work is done
list with, without ``total_count``    ``{"total_count": true}``, ``false`` (``customization``; usually only of designs)
stop until told                       ``{"do": "hold"}``, then ``POST /behaviours/release``
download cut short; slow; too large   ``{"truncate_bytes": 5000}``; ``{"seconds": 3}``; ``{"minimum_bytes": 100000000}``
Modal 303 once, thrice                ``{"redirects": 3, "location": "relative"}`` or ``"absolute"``
Modal 202 then 200                    ``{"reports": "processing"}`` on action ``result``; after a redirect:
                                      ``{"redirects": 1, "pending": 2}``
Modal failed once, then running       ``{"reports": "failed"}`` on action ``status`` (also ``running``, ``completed``)
Modal completed, then 500 on result   ``{"do": "answer", "status": 500, "json": {"detail": ...}}`` on action ``result``
Modal cancel succeeds, 500s           nothing; ``{"do": "answer", "status": 500, ...}`` on action ``cancel``
Modal cancel missing                  leave ``MODAL_JOB_CANCEL`` out of the environment
Modal result arriving after cancel    ``{"ignores_cancel": true}`` on action ``submit``
Modal job that fails                  ``{"fails": "CUDA out of memory"}`` on action ``submit``
Modal 40 s cold start                 ``{"cold_start_seconds": 40}`` on action ``submit`` or ``design``
Modal job id unknown                  nothing: ask for any other id
====================================  =====================================================================
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

TOO_MANY = "Too many requests. Your requests are being throttled due to system capacity limits. Please try again later."
TO_MANY = "To many requests. Your requests are being throttled due to system capacity limits. Please try again later."
ENGINE_411 = "[qwen-tts:]Engine return error code: 411"

BehaviourSurface = Literal["realtime", "http", "customization", "modal", "download"]
Moment = Literal[
    "upgrade", "open", "created", "update", "updated", "text", "audio", "delta", "audio_end", "response_end", "finished"
]
"""Moments of a session, in order: before the upgrade is answered; before ``session.created``; after it; before
``session.updated``; after it; before the first ``response.created``; before the first delta; after ``after_deltas``
deltas; after the last delta of a cycle; after the last ``response.done`` (so before ``session.finished``); after
``session.finished``. A fault for more deltas than a session has happens at its end of audio."""

_BEFORE_VOICE = {"upgrade", "open", "created"}
_BEFORE_TEXT = {"update", "updated"}


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that goes wrong in a session, at one moment.

    Attributes:
        do: ``error`` (an error event with ``code``, ``message``; ends the speech unless ``fatal`` is false), ``close``
            (the socket with ``code``, ``reason``), ``abort`` (the connection, so that the peer sees 1006),
            ``silence`` (for ``seconds``, or for ever), ``hold`` (until released by ``name``), ``event`` (send
            ``event``), ``binary``, ``invalid_json``, ``invalid_base64`` (one frame of that sort).
        at: The moment; ``audio`` unless ``after_deltas`` is given.
        after_deltas: The fault happens once this many deltas of the session were sent.
    """

    do: Literal["error", "close", "abort", "silence", "hold", "event", "binary", "invalid_json", "invalid_base64"]
    at: Moment = "audio"
    after_deltas: int = 0
    code: str | int | None = None
    message: str | None = None
    reason: str = ""
    fatal: bool = True
    seconds: float | None = None
    name: str = "hold"
    event: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.after_deltas < 0 or (self.at == "delta" and self.after_deltas == 0):
            raise ValueError("after_deltas must be 1 or more")
        if self.after_deltas and self.at not in ("audio", "delta"):
            raise ValueError("after_deltas says when; leave 'at' out")
        if self.at == "upgrade" and self.do not in ("silence", "hold", "abort"):
            raise ValueError("an upgrade can be refused, aborted or kept waiting, nothing else")


class RealtimeBehaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one realtime session goes. Without anything set: as it should.

    Attributes:
        refuse: HTTP status that the upgrade is refused with.
        cycles: Response cycles that one text is spoken in.
        restart_encoder: Each cycle is a file of its own.
        repeat_done: Extra copies of each ``response.done``.
        delta_bytes, delta_sizes: Bytes of each delta; sizes are dealt out in turn.
        minimum_bytes: The speech is repeated until there are at least this many bytes.
        audio: False: response cycles without deltas.
        response: False: no response cycle at all.
        response_status: What every ``response.done`` says.
        usage: How ``response.done`` counts: ``characters``, ``tokens`` (legacy), ``none``.
        extra_fields, unknown_events: Members and events that no document lists, among the known ones.
        after_finished: Whether the socket is closed (1000) or left open after ``session.finished``.
        first_delta_seconds, speed: As in ``Pace``, for this session.
        words: On the run-task socket: where word times stand, with each ``sentence``'s end, with the task's end
            (``finished``), or nowhere (``none``).
        word_times: There: counted from the beginning of the ``task`` or of each ``sentence``.
        cancel: There: how a cancel by directive is answered.
        announces: There, False: binary frames come without the event that announces them.
        original_text: There, False: the last sentence comes without its text.
    """

    refuse: int | None = None
    cycles: int = 1
    restart_encoder: bool = False
    repeat_done: int = 0
    delta_bytes: int | None = None
    delta_sizes: tuple[int, ...] = ()
    minimum_bytes: int = 0
    audio: bool = True
    response: bool = True
    response_status: Literal["completed", "failed", "incomplete", "cancelled"] = "completed"
    usage: Literal["characters", "tokens", "none"] = "characters"
    extra_fields: bool = False
    unknown_events: bool = False
    after_finished: Literal["close", "stay_open"] = "close"
    first_delta_seconds: float | None = None
    speed: float | None = None
    words: Literal["sentence", "finished", "none"] = "sentence"
    word_times: Literal["task", "sentence"] = "task"
    cancel: Literal["at_once", "late", "never"] = "at_once"
    announces: bool = True
    original_text: bool = True
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.cycles < 1 or any(size < 1 for size in (*self.delta_sizes, self.delta_bytes or 1)):
            raise ValueError("cycles and sizes of deltas must be 1 or more")
        if self.refuse is not None and not 400 <= self.refuse <= 599:
            raise ValueError("refuse is an HTTP status from 400 to 599")


class RestBehaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one REST request goes. Without anything set: as it should.

    Attributes:
        do: See the table of this module.
        effect: Whether the work is done although the answer says otherwise or never comes. Without a word: yes for
            ``hang`` and ``abort``, no for ``error``, ``empty``, ``html`` and ``answer``.
        seconds: How late ``late`` is; for a download, how long the body takes.
        deploying: How often a voice that is created says ``DEPLOYING`` before it says ``OK``, or ``voice_status``.
        preview_audio: False: a designed voice's answer holds an empty preview.
        pending: How often whoever has followed all redirects is told "not yet" before the answer.
    """

    do: Literal["error", "empty", "html", "answer", "hang", "late", "abort", "hold"] | None = None
    code: str = "InternalError"
    message: str | None = None
    status: int | None = None
    envelope: Literal["native", "openai"] = "native"
    json: Any = None
    text: str | None = None
    headers: dict[str, str] = {}
    effect: bool | None = None
    seconds: float = 0.0
    name: str = "hold"
    # http
    status_code: bool = False
    expires_in_seconds: float | None = None
    url_host: str | None = None
    audio: bool = True
    # customization
    total_count: bool | None = None
    # voice-enrollment
    deploying: int = 0
    voice_status: str | None = None
    preview_audio: bool = True
    # download
    truncate_bytes: int | None = None
    minimum_bytes: int = 0
    # modal
    redirects: int = 0
    pending: int = 0
    location: Literal["absolute", "relative"] = "relative"
    reports: Literal["running", "completed", "failed", "processing"] | None = None
    job_seconds: float | None = None
    cold_start_seconds: float = 0.0
    fails: str | None = None
    ignores_cancel: bool = False


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts that a request must have to claim a behaviour. A fact that is not yet known is not had."""

    text_contains: str | None = None
    voice: str | None = None
    model: str | None = None
    action: str | None = None
    job_id: str | None = None

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether a request with these facts is meant."""
        if self.text_contains is not None and self.text_contains not in (facts.get("text") or ""):
            return False
        wanted = (("voice", self.voice), ("model", self.model), ("action", self.action), ("job_id", self.job_id))
        return all(value is None or facts.get(key) == value for key, value in wanted)


class Pace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast the simulation is. The defaults are those of a real provider on a good day.

    Attributes:
        first_delta_seconds: From the text to the first delta.
        speed: Seconds of speech per second of time; 0 is as fast as possible.
        delta_bytes: Bytes of one delta; without it each delta is 150 ms of speech.
        request_seconds: How long a REST answer takes at least.
        modal_job_seconds: How long a Modal job runs.
    """

    first_delta_seconds: float = 0.35
    speed: float = 1.6
    delta_bytes: int | None = None
    request_seconds: float = 0.3
    modal_job_seconds: float = 2.0

    def __post_init__(self) -> None:
        if min(self.first_delta_seconds, self.speed, self.request_seconds, self.modal_job_seconds) < 0:
            raise ValueError("a pace has no negative numbers")
        if self.delta_bytes is not None and self.delta_bytes < 1:
            raise ValueError("delta_bytes must be 1 or more")


AT_ONCE = Pace(first_delta_seconds=0.0, speed=0.0, request_seconds=0.0, modal_job_seconds=0.0)
"""The pace of tests that do not look at time."""


class Planned:
    """A registered behaviour: how often it may still be claimed, and who is held by it."""

    def __init__(
        self,
        number: int,
        surface: BehaviourSurface,
        behaviour: "RealtimeBehaviour | RestBehaviour",
        match: Match,
        times: int,
    ) -> None:
        self.id, self.surface, self.behaviour, self.match = number, surface, behaviour, match
        self.remaining: int | None = times or None
        self.claimed = 0
        self.holding = 0
        self._released: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Condition()

    def release(self, name: str | None = None) -> None:
        """Let go whoever is held, now and from now on: at the holds of this name, or at all of them."""
        for held in {name} if name is not None else {*self._names(), *self._released}:
            self._gate(held).set()

    async def held(self, count: int = 1, timeout_seconds: float = 10.0) -> None:
        """Wait until ``count`` requests are held by this behaviour.

        Raises:
            TimeoutError: If there were fewer for ``timeout_seconds``.
        """
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: self.holding >= count)

    async def hold(self, name: str) -> None:
        """Wait here until released."""
        await self._count(1)
        try:
            await self._gate(name).wait()
        finally:
            self.holding -= 1

    async def _count(self, by: int) -> None:
        async with self._changed:
            self.holding += by
            self._changed.notify_all()

    def _gate(self, name: str) -> asyncio.Event:
        return self._released.setdefault(name, asyncio.Event())

    def _names(self) -> set[str]:
        if isinstance(self.behaviour, RestBehaviour):
            return {self.behaviour.name}
        return {fault.name for fault in self.behaviour.faults}

    def described(self) -> dict[str, Any]:
        """What ``GET /behaviours`` shows."""
        return {
            "id": self.id,
            "surface": self.surface,
            "match": {key: value for key, value in msgspec.to_builtins(self.match).items() if value is not None},
            "remaining": self.remaining,
            "claimed": self.claimed,
            "holding": self.holding,
            "behaviour": msgspec.to_builtins(self.behaviour),
        }


class Behaviours:
    """All behaviours that were registered, in order."""

    def __init__(self) -> None:
        self._planned: list[Planned] = []
        self._registered = 0

    def plan(
        self, surface: str, behaviour: Mapping[str, Any], match: Mapping[str, Any] | None = None, times: int = 1
    ) -> Planned:
        """Register one behaviour.

        Raises:
            ValueError: With a sentence that says what is wrong with it.
        """
        if surface not in get_args(BehaviourSurface):
            raise ValueError(f"surface must be one of {', '.join(get_args(BehaviourSurface))}")
        if times < 0:
            raise ValueError("times must be 0 (always) or more")
        wanted: RealtimeBehaviour | RestBehaviour
        try:
            asked = msgspec.convert(dict(match or {}), Match)
            if surface == "realtime":
                wanted = msgspec.convert(_with_faults(behaviour), RealtimeBehaviour)
            else:
                wanted = msgspec.convert(dict(behaviour), RestBehaviour)
        except msgspec.ValidationError as exc:
            raise ValueError(str(exc)) from exc
        if isinstance(wanted, RealtimeBehaviour):
            _check_in_time(wanted, asked)
        self._registered += 1
        planned = Planned(self._registered, surface, wanted, asked, times)  # type: ignore[arg-type]
        self._planned.append(planned)
        return planned

    def claim(self, surface: BehaviourSurface, **facts: Any) -> Planned | None:
        """The behaviour meant for a request with these facts, if any; claiming uses it up."""
        for planned in self._planned:
            if planned.surface == surface and planned.remaining != 0 and planned.match.holds(facts):
                planned.claimed += 1
                if planned.remaining is not None:
                    planned.remaining -= 1
                return planned
        return None

    def release(self, number: int | None = None, name: str | None = None) -> int:
        """Let go whoever is held: by one behaviour or by all. Returns how many behaviours were meant."""
        meant = [planned for planned in self._planned if number in (None, planned.id)]
        for planned in meant:
            planned.release(name)
        return len(meant)

    def clear(self) -> None:
        """Forget all behaviours; whoever is held goes on."""
        self.release()
        self._planned.clear()

    def described(self) -> list[dict[str, Any]]:
        """All of them, as ``GET /behaviours`` shows them."""
        return [planned.described() for planned in self._planned]


def _with_faults(behaviour: Mapping[str, Any]) -> dict[str, Any]:
    """A behaviour with its fault in the list, where it was written straight into the behaviour."""
    if "do" not in behaviour:
        return dict(behaviour)
    fault = {key: value for key, value in behaviour.items() if key in Fault.__struct_fields__}
    knobs = {key: value for key, value in behaviour.items() if key not in Fault.__struct_fields__}
    return {**knobs, "faults": [*knobs.get("faults", []), fault]}


def _check_in_time(behaviour: RealtimeBehaviour, match: Match) -> None:
    """Refuse what could never happen: a fault before the facts that it asks for are known."""
    moments = {fault.at for fault in behaviour.faults} | ({"upgrade"} if behaviour.refuse else set())
    if moments & _BEFORE_VOICE and (match.voice is not None or match.text_contains is not None):
        raise ValueError("before session.update neither voice nor text is known: match by model, or not at all")
    if moments & _BEFORE_TEXT and match.text_contains is not None:
        raise ValueError("before the first append no text is known: match by voice or model")
