"""What Qwen's refusals mean: every row of the vendor's error table as one of our errors, with a sentence for a person.

The provider answers in three dialects (its native envelope, an OpenAI-shaped one, ``error`` events) and sometimes with
an empty object or an HTML page; all of them end here. Nothing of the provider's own message reaches ``detail``: it
stays in ``diagnostics`` for the operator.

Source: Model Studio, "Error codes"; docs/providers.md, "Errors of Qwen".
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from server.errors import ProviderError, ProviderRejected, ProviderUnavailable, VoiceGone, VoiceMismatch

log = logging.getLogger(__name__)

# A provider's message may quote what it was sent; this much is enough to tell rows apart.
_MESSAGE_LIMIT = 300


class ProviderMisconfigured(ProviderRejected):
    """The provider refuses this service, not this request: its key, workspace, bill, quota or model."""

    default_detail = "The speech service is not set up correctly, so it cannot speak. Please tell its operator."


class ModelRetired(ProviderMisconfigured):
    """A model or a service of the provider is gone, or was never this account's: nobody's next try will do better."""

    default_detail = (
        "The speech provider no longer offers the model that this needs. Please tell the operator of this service, who "
        "has to choose another one."
    )


OPENED_AND_CLOSED = "opened_and_closed"
"""The code of a session that was opened, and closed without a reason before it took the text."""


def silently_retired(diagnostics: dict[str, Any]) -> ModelRetired:
    """What such sessions mean when there is no other kind: most likely the model is gone, and nothing has said so.

    Documented for a model that is unknown is close 1007 with words; this was observed instead.
    """
    return ModelRetired(
        "The speech provider opens every session with this voice's model and closes it again without a word, as it does"
        " with a model that it no longer offers. Please tell the operator of this service.",
        diagnostics={**diagnostics, "code": OPENED_AND_CLOSED},
    )


class Envelope(msgspec.Struct, frozen=True):
    """What an error said about itself, as far as it said anything; absent parts are empty."""

    code: str = ""
    message: str = ""
    request_id: str = ""


class _Head(msgspec.Struct):
    """What an envelope may hold, of any type; a megabyte of audio beside it is skipped unread."""

    code: Any = None
    message: Any = None
    request_id: Any = None
    error: Any = None


def read_envelope(body: bytes | bytearray | str | None) -> Envelope:
    """Read a native or OpenAI-shaped body; an empty object, HTML or nothing at all is an empty envelope."""
    try:
        head = msgspec.json.decode(body or b"", type=_Head)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return Envelope()
    return envelope_of(msgspec.structs.asdict(head))


def envelope_of(data: object) -> Envelope:
    """The envelope in already parsed JSON: ``{"code", "message"}`` or ``{"error": {"code", "message"}}``."""
    if not isinstance(data, Mapping):
        return Envelope()
    inner = data.get("error")
    source = inner if isinstance(inner, Mapping) else data
    code = _text(source.get("code")) or _text(source.get("type") if source is inner else None)
    message = _text(source.get("message")) or _text(inner)
    return Envelope(code, message, _text(data.get("request_id")) or _text(source.get("request_id")))


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return storable(value)


def storable(value: object) -> str:
    """What a provider said, as PostgreSQL takes it; empty for nothing."""
    return str(value or "").replace("\0", "")


def _printable(message: str) -> str:
    """The message as a log may hold it: short, and without a key that it may quote."""
    return _KEY.sub("sk-…", message)[:_MESSAGE_LIMIT]


_KEY = re.compile(r"\bsk-\S+")

_ANOTHER = "The speech provider could not use this text or recording. Please try another one."
_CONTENT = "The speech provider's content filter refused this text or recording. Please change it and try again."
_TOO_MANY_VOICES = (
    "The speech provider keeps no more voices for this service. Please tell its operator, who has to remove some."
)
_BUSY = "The speech provider is very busy right now. Please try again in a moment."
_UNSPOKEN = "The speech provider failed on its side. Please try again in a moment."

_Make = Callable[[dict[str, Any]], ProviderError]


def _rejected(detail: str, status: int | None = None) -> _Make:
    return lambda diagnostics: ProviderRejected(detail, status=status, diagnostics=diagnostics)


def _misconfigured(detail: str | None = None) -> _Make:
    return lambda diagnostics: ProviderMisconfigured(detail, diagnostics=diagnostics)


def _retired(diagnostics: dict[str, Any]) -> ProviderError:
    return ModelRetired(diagnostics=diagnostics)


def _throttled(diagnostics: dict[str, Any]) -> ProviderError:
    return ProviderUnavailable(_BUSY, throttled=True, diagnostics=diagnostics)


def _unavailable(diagnostics: dict[str, Any]) -> ProviderError:
    return ProviderUnavailable(_UNSPOKEN, diagnostics=diagnostics)


def _mismatch(diagnostics: dict[str, Any]) -> ProviderError:
    return VoiceMismatch(diagnostics=diagnostics)


def _gone(diagnostics: dict[str, Any]) -> ProviderError:
    return VoiceGone(diagnostics=diagnostics)


# Codes are compared in lower case without spaces, dashes and underscores: the vendor spells some of them both ways.
# Status 400 stands where another recording or text would help; every other refusal is a 502.
_BY_CODE: tuple[tuple[str, _Make], ...] = (
    (r"datainspectionfailed", _rejected(_CONTENT, 400)),
    (r"arrearage|commoditynotpurchased|(prepaid|postpaid)billoverdue", _misconfigured()),
    (
        r"audio\.preprocesserror",
        _rejected(
            "The recording does not hold enough clear speech, or its transcript says something else. "
            "Please record 10 to 20 seconds of clear speech and check the transcript.",
            400,
        ),
    ),
    (
        r"audio\.decodererror",
        _rejected(
            "The speech provider could not read this recording. Please save it as a WAV file and try again.", 400
        ),
    ),
    (
        r"audio\.audiorateerror",
        _rejected("The recording's sample rate is too low. Please use 24 kHz or more.", 400),
    ),
    (r"audio\.durationlimiterror", _rejected("The recording is too long. Please use at most 60 seconds.", 400)),
    (r"audio\..+", _rejected("The speech provider could not use this recording. Please try another one.", 400)),
    (r"(badrequest\.)?voicenotfound", _gone),
    (r"clientdisconnect", _unavailable),
    (r"invalidapikey|notauthorized|unauthorized|authenticationerror", _misconfigured()),
    (r"model\.accessdenied", _retired),
    (r"((workspace|endpoint)\.)?accessdenied(\..+)?|permissiondenied", _misconfigured()),
    (r"allocationquota\.freetieronly", _misconfigured()),
    (r"modelnotfound|modelnotsupported", _retired),
    (r"workspacenotfound", _misconfigured()),
    (r"throttling(\.(ratequota|burstrate|concurrency))?|limitrequests|limitburstrate|toomanyrequests", _throttled),
    (r"internalerror(\..+)?|systemerror|modelservicefailed|requesttimeout|servererror", _unavailable),
    (r"serviceunavailable|modelunavailable|modelserviceunavailable", _unavailable),
)
_QUOTA = re.compile(r"throttling\.allocationquota|insufficientquota|allocationquota")
_INVALID = re.compile(r"(invalidparameter|invalidvalue|invalidrequest|badrequest|invalid|missing)\w*(\..+)?")
_ENGINE_MISMATCH = re.compile(r"engine return error code:\s*(411|418)\b", re.I)
_TOO_MANY = re.compile(r"\btoo? many\b|\bthrottl", re.I)  # "To many requests" was seen, too
_VOICE_UNKNOWN = re.compile(r"voice (not found|does not exist|not exist)|no such voice", re.I)
_VOICE_INVALID = re.compile(r"invalid voice|voice .{0,40}(invalid|mismatch|not (match|support))", re.I)
_MODEL_UNKNOWN = re.compile(r"model (not found|not exist|does not exist)", re.I)
_NO_SEGMENTS = re.compile(r"no segments meet minimum duration", re.I)
_THEIR_INPUT = re.compile(
    r"\b(audio|recording|speech|text|transcript|prompt|duration|sample[ _]?rate|voice_prompt|preview_text)\b", re.I
)
_VOICE_LIMIT = re.compile(r"voice.{0,20}limit|maximum.{0,20}voice", re.I)
_FREE_QUOTA = re.compile(r"free .{0,20}quota|free.?tier", re.I)


def classify(
    code: str = "",
    message: str = "",
    *,
    http_status: int | None = None,
    diagnostics: Mapping[str, Any] | None = None,
) -> ProviderError:
    """The error that a refusal means: by its code, else by its message, else by its HTTP status.

    Args:
        http_status: None where there was none (an ``error`` event, a WebSocket close).
        diagnostics: Further facts for the operator; ``code``, ``message`` and ``http_status`` are added.
    """
    facts: dict[str, Any] = {**(diagnostics or {}), "code": code, "message": _printable(message)}
    if http_status is not None:
        facts["http_status"] = http_status
    facts = {key: value for key, value in facts.items() if value not in ("", None)}
    return _make(re.sub(r"[\s_-]", "", code).lower(), message, http_status)(facts)


def _make(code: str, message: str, http_status: int | None) -> _Make:
    if _ENGINE_MISMATCH.search(message) or _ENGINE_MISMATCH.search(code):
        return _mismatch
    if _QUOTA.fullmatch(code):
        # One code, three meanings: only the message tells a passing token rate from a limit that stays.
        if _VOICE_LIMIT.search(message):
            return _misconfigured(_TOO_MANY_VOICES)
        return _misconfigured() if _FREE_QUOTA.search(message) else _throttled
    for pattern, make in _BY_CODE:
        if re.fullmatch(pattern, code):
            # `ServiceUnavailable` and friends carry throttling in their message.
            return _throttled if make is _unavailable and _TOO_MANY.search(message) else make
    return _make_by_message(code, message) or _make_by_status(code, message, http_status)


def _make_by_message(code: str, message: str) -> _Make | None:
    if _VOICE_UNKNOWN.search(message):
        return _gone
    if _VOICE_INVALID.search(message):
        return _mismatch
    if _MODEL_UNKNOWN.search(message):
        return _retired
    if _NO_SEGMENTS.search(message):
        return dict(_BY_CODE)[r"audio\.preprocesserror"]
    if _TOO_MANY.search(message) and not _INVALID.fullmatch(code):
        return _throttled
    return None


def _make_by_status(code: str, message: str, http_status: int | None) -> _Make:
    invalid = bool(_INVALID.fullmatch(code))
    if http_status is None:
        return _refused(code, message) if invalid else _unavailable
    if http_status in (401, 403):
        return _misconfigured()
    if http_status == 429:
        return _throttled
    if http_status == 413:
        return _rejected("The recording is too large for the speech provider. Please use a shorter one.", 400)
    if http_status == 408 or http_status >= 500:
        return _unavailable
    if 300 <= http_status < 400 or http_status in (404, 405):
        return _misconfigured()  # the address is wrong, and addresses are configuration
    return _refused(code, message)


def _refused(code: str, message: str) -> _Make:
    if code.startswith("invalidparameter") or _THEIR_INPUT.search(message):
        return _rejected(_ANOTHER, 400)
    return _rejected("The speech provider refused this request.")


def classify_close(code: int | None, reason: str, *, diagnostics: Mapping[str, Any] | None = None) -> ProviderError:
    """The error that a WebSocket close before ``session.finished`` means.

    1007 "Model not found" is documented; "Too many requests" and "To many requests" with 1011 were observed. Any other
    close, a polite 1000 included, ends the conversation too early.
    """
    facts: dict[str, Any] = {**(diagnostics or {}), "close_code": code or 1006}
    if reason:
        facts["message"] = _printable(reason)
    if _ENGINE_MISMATCH.search(reason):
        return _mismatch(facts)
    make = _make_by_message("", reason)
    if make is not None:
        return make(facts)
    if code in (1007, 1008):  # invalid payload, policy: saying the same again changes nothing
        return _rejected("The speech provider refused this request.")(facts)
    return ProviderUnavailable("The speech provider ended the conversation early.", diagnostics=facts)


def violation(what: str, *, diagnostics: Mapping[str, Any] | None = None) -> ProviderUnavailable:
    """The provider sent something that the protocol does not know. May be tried again before the text is sent."""
    return ProviderUnavailable(
        "The speech provider sent something that we could not read.",
        diagnostics={**(diagnostics or {}), "code": "protocol_violation", "message": what},
    )


class OperatorAlarm:
    """One ERROR line per kind of misconfiguration and quarter of an hour, however many speeches run into it."""

    def __init__(self, *, every_seconds: float = 900.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_seconds = every_seconds
        self._clock = clock
        self._sounded: dict[str, float] = {}

    def hear(self, error: ProviderError) -> None:
        """Log the error if it is the operator's to mend and was not logged lately; all others pass silently."""
        if not isinstance(error, ProviderMisconfigured):
            return
        facts = error.diagnostics
        kind = str(facts.get("code") or facts.get("close_code") or facts.get("http_status"))
        now = self._clock()
        if now - self._sounded.get(kind, -self._every_seconds) < self._every_seconds:
            return
        self._sounded[kind] = now
        log.error(
            "The speech provider refuses this service: code %s, HTTP %s, request %s, it says: %s",
            facts.get("code", "-"),
            facts.get("http_status", "-"),
            facts.get("request_id", "-"),
            facts.get("message", "-"),
        )


operator_alarm = OperatorAlarm()
