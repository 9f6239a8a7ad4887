"""Who a user is to others: the profile that the app's own database keeps, where it does."""

from typing import Any
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.contract import MeAnswer, Profile, ProfileAnswer, ProfileChange, SignedInUser
from server.database.connections import REFUSED
from server.errors import Invalid, NotFound
from server.handlers.requests import bearer, bearer_or_nobody, json_response, parts_of, read_json
from server.parts import Parts
from server.records import profiles


async def me(request: Request) -> Response:
    """Never an error: no token, a bad one and an expired one all mean "not signed in"."""
    user_id = await bearer_or_nobody(request)
    if user_id is None:
        return json_response(MeAnswer(signed_in=False))
    profile = await _profile_of(parts_of(request), user_id)
    return json_response(MeAnswer(signed_in=True, user=SignedInUser(user_id), profile=profile))


async def _profile_of(parts: Parts, user_id: UUID) -> Profile | None:
    """None also while the database is away: who is signed in can be said without it."""
    try:
        async with parts.database.connection() as connection:
            row = await profiles.find_or_make(connection, user_id)
    except REFUSED:
        return None
    return _shown(dict(row)) if row else None


def _shown(row: dict[str, Any]) -> Profile:
    credits = row.pop("credits_remaining")
    return Profile(**row, credits_remaining=None if credits is None else float(credits))


async def change(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    asked = await read_json(request, ProfileChange)
    given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not msgspec.UNSET}
    changes = {name: (value or "").strip() or None for name, value in given.items()}
    if not changes:
        raise Invalid("Please say what to change: `display_name`, `handle` or `avatar_url`.")
    async with parts.database.transaction() as connection:
        row = await profiles.change(connection, user_id, changes)
    if row is None:
        raise NotFound("There are no profiles here.")
    return json_response(ProfileAnswer(_shown(dict(row))))
