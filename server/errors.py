"""Every failure that has a name, and the category clients may rely on (docs/api.md, "Errors").

The tree is named for what the caller can do about it. Each library's exceptions become one of these at the edge that
calls the library; the cause stays attached for the log, and ``detail`` is the only part that a client ever reads.
"""

from typing import Any, ClassVar, Literal

Category = Literal[
    "validation",
    "unauthorized",
    "not_found",
    "conflict",
    "too_large",
    "overloaded",
    "provider_rejected",
    "provider_unavailable",
    "timeout",
    "cancelled",
    "storage",
    "internal",
]

NOTHING_TO_SPEAK = "There is nothing to speak in this text"


class UtterError(Exception):
    """A failure with a category, an HTTP status and a sentence for a person.

    Attributes:
        detail: What a person reads. Never a provider's payload, a path or a stack trace.
        status: The HTTP status where the failure ends a request.
        headers: Extra response headers, e.g. ``Retry-After``.
        param: The member of the request that it is about, where that is one.
        code: A word that says more than the category, where there is one.
        counted_as: What there was too much of, in the words of `server.metrics`, where it is counted with the answer.
    """

    category: ClassVar[Category] = "internal"
    default_status: ClassVar[int] = 500
    default_detail: ClassVar[str] = "Something went wrong on our side. Please try again."
    default_counted_as: ClassVar[str | None] = None

    def __init__(
        self,
        detail: str | None = None,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        self.detail = detail or self.default_detail
        self.status = status or self.default_status
        self.headers = headers or {}
        self.param = param
        self.code: str | None = None
        self.counted_as: str | None = self.default_counted_as
        super().__init__(self.detail)


class Invalid(UtterError):
    """The request itself is wrong; sending it again changes nothing."""

    category, default_status = "validation", 400
    default_detail = "The request is not valid."


class MethodNotAllowed(Invalid):
    default_status = 405
    default_detail = "This address does not answer that method."


class NotAcceptable(Invalid):
    default_status = 406
    default_detail = "This address can answer text/event-stream or audio/*."


class Unauthorized(UtterError):
    category, default_status = "unauthorized", 401
    default_detail = "Please sign in."


class Forbidden(UtterError):
    """Who asks is known, and may not do this."""

    category, default_status = "unauthorized", 403
    default_detail = "You may not do this."


class NotFound(UtterError):
    """It does not exist, or it belongs to somebody else; the answer is the same on purpose."""

    category, default_status = "not_found", 404
    default_detail = "Not found."


class Conflict(UtterError):
    """The request is well formed, but not possible in the current state."""

    category, default_status = "conflict", 409
    default_detail = "This is not possible right now."


class TooLarge(UtterError):
    category, default_status = "too_large", 413
    default_detail = "The request is too large."
    default_counted_as = "bodies"


class TooSlow(Invalid):
    """Its body came too slowly, or stopped coming."""

    default_status = 408
    default_detail = "The body of this request took too long."
    default_counted_as = "bodies"

    def __init__(self, detail: str | None = None, *, status: int | None = None) -> None:
        super().__init__(detail, status=status, headers={"Connection": "close"})


class Overloaded(UtterError):
    """Too much waits already. ``retry_after_seconds`` becomes the ``Retry-After`` header."""

    category, default_status = "overloaded", 503
    default_detail = "Too many people are speaking right now. Please try again in a moment."

    def __init__(self, detail: str | None = None, *, retry_after_seconds: int = 10) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_seconds)})


class TooMany(Overloaded):
    """More than one person may have; others are not held up by it."""

    default_status = 429
    default_detail = "That is more than you may do at a time. Please try again in a moment."

    def __init__(self, detail: str | None = None, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)


class StorageUnavailable(UtterError):
    """Object storage refused or did not answer.

    Attributes:
        reason: What the store said, for the operator's log.
    """

    category, default_status = "storage", 503
    default_detail = "The audio storage is not available right now. Please try again in a moment."

    def __init__(self, detail: str | None = None, *, reason: str = "") -> None:
        self.reason = reason
        super().__init__(detail)


class DatabaseUnavailable(UtterError):
    """PostgreSQL did not answer within the time that a request may wait for it."""

    category, default_status = "internal", 503
    default_detail = "The service is not available right now. Please try again in a moment."

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "2"})


class ProviderError(UtterError):
    """What a provider's failure means to us.

    Attributes:
        diagnostics: What the row keeps for the operator: ``request_id``, ``session_id``, ``event_id`` (the last one
            seen), ``code`` and ``message`` of the provider, as far as known. Never shown to a client.
        retryable: Whether the same call may be made again as long as nothing was published.
        throttled: The provider asked us to slow down; whoever paces the starts wants to know.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str | None = None,
        *,
        status: int | None = None,
        throttled: bool = False,
        diagnostics: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, status=status)
        self.throttled = throttled
        self.diagnostics: dict[str, Any] = diagnostics or {}


class ProviderRejected(ProviderError):
    """The provider refused, and would refuse again. Never retried."""

    category, default_status = "provider_rejected", 502
    default_detail = "The speech provider refused this request."


class VoiceGone(ProviderRejected):
    """The provider no longer knows this voice (it removes voices that nobody used for a year)."""

    default_detail = "The speech provider no longer has this voice. Please create it again."


class VoiceMismatch(ProviderRejected):
    """The provider's engine does not speak with this voice: it is unknown there, or of another model or account."""

    default_detail = "This voice does not fit the model that it is stored for. Please create the voice again."


class NothingToSpeak(ProviderError):
    """The provider made no audio of a text that has no letters. This is no outage: another text is needed."""

    category, default_status = "validation", 400
    default_detail = NOTHING_TO_SPEAK


class ProviderUnavailable(ProviderError):
    """The provider could not be reached, failed on its side, or throttled us."""

    category, default_status, retryable = "provider_unavailable", 503, True
    default_detail = "The speech provider is not available right now. Please try again in a moment."


class ProviderTimeout(ProviderError):
    """A deadline of ours passed, so the outcome is unknown: it may have been billed. Never repeated blindly."""

    category, default_status = "timeout", 504
    default_detail = "The speech provider did not answer in time."
