"""What every purchase of a job has in common: writing down what became of it, whatever happens to the database.

A purchase that is refused or doubtful stays in its row with the reason; one whose answer cannot be written leaves one
error line, and may be tried again once its lease is over (docs/architecture.md, "Purchases").
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar
from uuid import UUID

import anyio

from server.database.connections import REFUSED, Connection
from server.errors import DatabaseUnavailable, ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable
from server.parts import Parts
from server.records import purchases
from server.records.purchases import Doubt, Purchase

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A request that is cut off has so long to say what it knows of its call.
LAST_WORDS_SECONDS = 3.0


async def written(parts: Parts, work: Callable[[Connection], Awaitable[T]], facts: dict[str, Any]) -> T:
    """Write what the provider has answered, for as long as it may take the database to come back.

    Raises:
        DatabaseUnavailable: It did not. What must not be forgotten is in one error line.
    """
    try:
        return await parts.database.patiently_for(parts.settings.deadlines.purchase_database_seconds, work)
    except REFUSED as exc:
        logger.exception("bought, but not stored: the next try adopts it", extra=facts)
        raise DatabaseUnavailable from exc


async def record_failure(
    parts: Parts, subject: UUID, attempt: int, exc: ProviderError, *, part: int = 0, doubt: Doubt | None = None
) -> None:
    """Write down how a purchase was refused, or that nobody knows. A lost database leaves it to the lease.

    Args:
        doubt: About an earlier call, where this attempt has made none that would be the one to ask about.
    """
    state: Literal["unknown", "refused"] = "unknown" if isinstance(exc, ProviderTimeout) else "refused"
    try:
        await parts.database.patiently_for(
            parts.settings.deadlines.purchase_database_seconds,
            purchases.decide,
            subject,
            state,
            attempt=attempt,
            part=part,
            request_id=exc.diagnostics.get("request_id") or None,
            outcome={
                "detail": exc.detail,
                "status": exc.status,
                "category": exc.category,
                "diagnostics": exc.diagnostics,
                "throttled": exc.throttled,
                **(doubt.as_outcome() if doubt else {}),
            },
        )
    except REFUSED:
        logger.exception("a refusal could not be written down", extra={"subject": str(subject)})


async def say_unknown(parts: Parts, subject: UUID, attempt: int, *, part: int = 0, doubt: Doubt | None = None) -> None:
    """Write down, while being cut off in the middle of a call, that nobody will know what became of it."""
    cut_off = ProviderTimeout(diagnostics={"code": "cut_off"})
    await last_words(record_failure(parts, subject, attempt, cut_off, part=part, doubt=doubt))


async def say_not_called(parts: Parts, subject: UUID, attempt: int) -> None:
    """Write down, while being cut off, that the call has not left: whoever comes next may make it."""
    cut_off = ProviderUnavailable(diagnostics={"code": "cut_off", "text_sent": False})
    await last_words(record_failure(parts, subject, attempt, cut_off))


async def last_words(words: Awaitable[None]) -> None:
    """Say something to the end while being cut off, within ``LAST_WORDS_SECONDS``."""
    with anyio.move_on_after(LAST_WORDS_SECONDS, shield=True):
        await words


def refusal_of(purchase: Purchase) -> ProviderError:
    """The error that the buyer met, for somebody who waited for him."""
    outcome = purchase.outcome or {}
    kinds: dict[str, type[ProviderError]] = {
        "provider_rejected": ProviderRejected,
        "provider_unavailable": ProviderUnavailable,
        "timeout": ProviderTimeout,
    }
    kind = kinds.get(str(outcome.get("category")), ProviderTimeout)
    return kind(outcome.get("detail"), status=outcome.get("status"), diagnostics=outcome.get("diagnostics"))
