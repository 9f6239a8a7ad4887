"""GET /api/usage: what one has had spoken, by day, and what one may."""

from datetime import UTC, date, datetime, timedelta

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from server.contract import UsageAnswer, UsageDay, UsageLimits
from server.errors import Invalid
from server.handlers.requests import bearer, json_response, parts_of, query_text
from server.records import usage

DEFAULT_DAYS = 30
DAYS_AT_MOST = 366


async def get_usage(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    last = _day(request, "to") or datetime.now(UTC).date()
    first = _day(request, "from") or last - timedelta(days=DEFAULT_DAYS - 1)
    if not 0 <= (last - first).days < DAYS_AT_MOST:
        raise Invalid(f"`from` must be at most {DAYS_AT_MOST - 1} days before `to`.")
    async with parts.database.connection() as connection:
        used = await usage.between(connection, user_id, first, last)
    settings = parts.settings
    limits = UsageLimits(
        characters_per_day=settings.characters_per_user_per_day,
        starts_per_minute=settings.starts_per_user_per_minute,
        designs_per_day=settings.designs_per_user_per_day,
        clones_per_day=settings.clones_per_user_per_day,
    )
    return json_response(UsageAnswer([UsageDay(**structs.asdict(row)) for row in used], limits))


def _day(request: Request, name: str) -> date | None:
    text = query_text(request, name)
    if text is None:
        return None
    try:
        day = date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        day = None
    if day is None or day.year < 2000:
        raise Invalid(f"`{name}` must be a day such as 2026-03-31.")
    return day
