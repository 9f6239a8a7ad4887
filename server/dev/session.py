"""Signing the page in by itself: `/static/session.json` with the demo user's token, before the page's own empty one."""

import ipaddress
from urllib.parse import urlsplit
from uuid import UUID

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.auth.tokens import mint_bearer
from server.settings import Settings

TOKEN_DAYS = 30


def demo_token(settings: Settings, user_id: UUID) -> str:
    """A bearer token of the demo user; empty where tokens are signed by somebody else."""
    secret = settings.auth_jwt_secret
    return mint_bearer(user_id, days=TOKEN_DAYS, secret=secret, audience=settings.auth_jwt_audience) if secret else ""


def session_route(settings: Settings, user_id: UUID) -> Route:
    """The route that hands the token to the page."""

    async def session(request: Request) -> Response:
        known = _is_this_machine(request.headers.get("host", ""))
        token = demo_token(settings, user_id) if known else ""
        return JSONResponse({"token": token or None}, headers={"Cache-Control": "no-store"})

    return Route("/static/session.json", session, methods=["GET"])


def _is_this_machine(host: str) -> bool:
    """Whether the page was asked for by address: a foreign site whose name was pointed here gets nothing."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
