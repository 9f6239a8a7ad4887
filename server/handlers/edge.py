"""The edge that every request and every answer passes: ids, security headers, CORS, errors as JSON, the access log.

A plain ASGI callable: a middleware that wraps responses would stand between a stream and its socket.
"""

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from typing import Final
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs
from server.admission.clients import CROWDED, TOO_MANY
from server.admission.limits import ANSWERED
from server.database.refusals import will_pass
from server.errors import DatabaseUnavailable, Invalid, MethodNotAllowed, NotFound, Overloaded, UtterError
from server.handlers.problems import is_openai_shaped, openai_problem, own_problem
from server.settings import Settings
from server.storage.links import PREFIX

_log = logging.getLogger(__name__)
_access = logging.getLogger("server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ALLOWED_HEADERS: Final = "authorization, content-type, idempotency-key, last-event-id"
_EXPOSED_HEADERS: Final = "X-Utter-Provider, X-Utter-Generation-Id, X-Utter-Task-Id, X-Request-Id"
_ALLOWED_METHODS: Final = "GET, POST, PATCH, DELETE, PUT, HEAD, OPTIONS"
# What a browser asks for is allowed: libraries add headers of their own (tracing, caching), none of them does anything
# here, and it is the bearer token that protects.
_ASKED_HEADERS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{1,2000}")
# What an operator, a balancer, and somebody whose speech costs money while it goes on, need also then.
SERVED_IN_A_CROWD: Final = re.compile(r"/api/health|/api/ready|/metrics|/api/tasks/[^/]+/cancel")
_PREFLIGHT_SECONDS: Final = "600"
_LOGGED_PATH: Final = 200
_LEAVING: Final = "The service is being restarted. Please look into your history, then try again."

Headers = list[tuple[bytes, bytes]]


def allowed_headers(asked: str) -> str:
    """What a preflight answers: the headers that we know, and whatever else the browser asks for."""
    known = _ALLOWED_HEADERS.split(", ")
    more = asked.lower().split(",") if _ASKED_HEADERS.fullmatch(asked) else []
    return ", ".join(dict.fromkeys([*known, *(name.strip() for name in more if name.strip())]))


class Edge:
    """Wraps the application. What it raises becomes the contract's JSON, whoever raised it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._origins = frozenset(settings.cors_allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._app, self._origins, scope, send).run(receive)


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, origins: frozenset[str], scope: Scope, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._send = send
        self._started_at = time.perf_counter()
        self._status = 0
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = self._headers.get("x-request-id", "")
        self._request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        # Signed links to storage answer other origins themselves: everybody may PUT who has one.
        origin = self._headers.get("origin")
        allowed = origin if origin in origins else "*" if origin and "*" in origins else None
        self._cors = None if scope["path"].startswith(PREFIX) else allowed
        self._varies = bool(origins)

    async def run(self, receive: Receive) -> None:
        token = logs.request_id.set(self._request_id)
        try:
            if self._is_preflight():
                await self._answer(204, self._preflight_headers(), b"")
            elif self._scope.get("state", {}).get(CROWDED) and not SERVED_IN_A_CROWD.fullmatch(self._scope["path"]):
                await self._turn_away()
            else:
                await self._app(self._scope, receive, self._pass_on)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except asyncio.CancelledError:
            # Only a process that leaves cancels a request, and waits for it no more; its client still gets words.
            if not self._status:
                await self._refuse(Overloaded(_LEAVING, retry_after_seconds=2))
        except Exception as exc:  # noqa: BLE001 - whatever it is, the client gets words
            await self._refuse(exc)
        finally:
            if answered := self._scope.get("state", {}).get(ANSWERED):
                answered()
            self._write_log()
            logs.request_id.reset(token)

    async def _turn_away(self) -> None:
        """Whoever comes over the limit of connections is told so, and to hang up."""
        refusal = Overloaded(TOO_MANY)
        refusal.headers["Connection"] = "close"
        refusal.counted_as = "crowded"
        await self._refuse(refusal)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._own_headers()]}
        await self._send(message)

    def _own_headers(self) -> Headers:
        headers = [
            (b"x-request-id", self._request_id.encode()),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if self._cors:
            headers.append((b"access-control-allow-origin", self._cors.encode()))
            headers.append((b"access-control-expose-headers", _EXPOSED_HEADERS.encode()))
        if self._varies:
            headers.append((b"vary", b"Origin"))
        return headers

    def _is_preflight(self) -> bool:
        return (
            self._scope["method"] == "OPTIONS"
            and self._cors is not None
            and "access-control-request-method" in self._headers
        )

    def _preflight_headers(self) -> Headers:
        return [
            (b"access-control-allow-methods", _ALLOWED_METHODS.encode()),
            (
                b"access-control-allow-headers",
                allowed_headers(self._headers.get("access-control-request-headers", "")).encode(),
            ),
            (b"access-control-max-age", _PREFLIGHT_SECONDS.encode()),
            (b"vary", b"Access-Control-Request-Headers"),
        ]

    async def _refuse(self, exc: Exception) -> None:
        """Answer a failure. Once the response has begun only breaking it off is left: the server does that."""
        if self._status:
            if not isinstance(exc, UtterError | OSError | TimeoutError):
                _log.error("response broken off", exc_info=exc)
            return
        problem = _named(exc)
        if problem.counted_as and (parts := getattr(self._scope["app"].state, "parts", None)):
            parts.metrics.refused(problem.counted_as)
        if isinstance(problem, DatabaseUnavailable):
            _log.warning("database not available", extra={"reason": logs.reason(exc)})
        elif problem.status >= 500 and not isinstance(exc, UtterError):
            _log.error("request failed", exc_info=exc)
        if is_openai_shaped(self._scope["path"]):
            body, more = openai_problem(problem)
        else:
            body, more = own_problem(problem, self._request_id), {}
        headers = [
            (name.lower().encode(), value.encode("latin-1", "replace"))
            for name, value in {**more, **problem.headers}.items()
        ]
        headers += [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        if problem.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))  # RFC 9110 §11.6.1; no browser asks anybody for this one
        await self._answer(problem.status, headers, body)

    async def _answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        if status != 204:
            headers = [*headers, (b"content-length", str(len(body)).encode())]
        if self._scope["method"] == "HEAD":
            body = b""
        await self._pass_on({"type": "http.response.start", "status": status, "headers": list(headers)})
        await self._send({"type": "http.response.body", "body": body})

    def _write_log(self) -> None:
        # The path alone: a query may hold a ticket, a signature, or what somebody wrote. None of ours is long, and
        # looking for secrets in 60 kB that somebody chose well took seconds.
        known = self._scope.get("state", {})
        of_whom = {name: str(known[name]) for name in ("user_id", "task_id") if known.get(name)}
        _access.info(
            "%s %s",
            self._scope["method"],
            self._scope["path"][:_LOGGED_PATH],
            extra={
                "status": self._status,
                "milliseconds": round((time.perf_counter() - self._started_at) * 1000, 1),
                **of_whom,
            },
        )


def _named(exc: Exception) -> UtterError:
    """The failure as one of ours."""
    while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, UtterError):
        return exc
    if isinstance(exc, HTTPException):
        return _of_the_router(exc)
    if will_pass(exc):
        return DatabaseUnavailable()
    return UtterError()


def _of_the_router(exc: HTTPException) -> UtterError:
    if exc.status_code == 404:
        return NotFound("There is nothing at this address.")
    if exc.status_code == 405:
        refusal = MethodNotAllowed()
        refusal.headers = dict(exc.headers or {})
        return refusal
    return Invalid(status=exc.status_code) if exc.status_code < 500 else UtterError()


async def _raise(_request: object, exc: Exception) -> None:
    """Starlette would answer by itself; every answer to a failure is made here instead."""
    raise exc


#: For the application, so that its own error pages never show.
exception_handlers = {HTTPException: _raise}
