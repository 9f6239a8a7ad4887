"""A proxy in front of a lenient S3 that insists on what Amazon's insists on.

Signed links are good for the method that they were signed for, and alone: not beside an ``Authorization`` header. Other
origins are answered by the bucket's CORS rule. Whoever may not list is told 403 where nothing is.
"""

import hashlib
import hmac
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

from aiohttp import ClientSession, web

from tests.conftest import AWS_ENVIRONMENT

_HOP_BY_HOP = {"host", "connection", "content-length", "transfer-encoding", "content-encoding", "server", "date"}


@dataclass
class StrictStore:
    """The proxy's address, its rules, and what it was asked: method, path, origin, status."""

    upstream: str
    url: str = ""
    cors_origins: list[str] = field(default_factory=list)
    hides_absent: bool = False
    refuses_everything: bool = False
    asked: list[tuple[str, str, str | None, int]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        response = self._preflight(origin) if request.method == "OPTIONS" else await self._judged(request)
        if origin is not None and origin in self.cors_origins:
            response.headers["Access-Control-Allow-Origin"] = origin
        self.asked.append((request.method, request.path, origin, response.status))
        return response

    def _preflight(self, origin: str | None) -> web.Response:
        if origin not in self.cors_origins:
            return web.Response(status=403)
        methods, names = "GET, PUT", "content-type, authorization"
        return web.Response(headers={"Access-Control-Allow-Methods": methods, "Access-Control-Allow-Headers": names})

    async def _judged(self, request: web.Request) -> web.Response:
        signed = "X-Amz-Signature" in request.query
        if self.refuses_everything:
            return _refusal(403, "AccessDenied")
        if signed and "Authorization" in request.headers:
            return _refusal(400, "InvalidArgument")
        if signed and not hmac.compare_digest(_signature(request), request.query["X-Amz-Signature"]):
            return _refusal(403, "SignatureDoesNotMatch")
        if not signed and "Authorization" not in request.headers:
            return _refusal(403, "AccessDenied")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers.pop("Origin", None)
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                self.upstream + request.raw_path,
                headers=headers,
                data=io.BytesIO(await request.read()),
                allow_redirects=False,
            ) as passed,
        ):
            body = await passed.read()
            if passed.status == 404 and self.hides_absent and request.method in ("GET", "HEAD"):
                return _refusal(403, "AccessDenied")
            answered = {name: value for name, value in passed.headers.items() if name.lower() not in _HOP_BY_HOP}
            if request.method == "HEAD":
                answered["Content-Length"] = passed.headers.get("Content-Length", "0")
                return web.Response(status=passed.status, headers=answered)
            return web.Response(status=passed.status, headers=answered, body=body)


def _refusal(status: int, code: str) -> web.Response:
    return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>", content_type="application/xml")


def _signature(request: web.Request) -> str:
    """What AWS Signature Version 4 makes of this very request. Source: Amazon S3, "Authenticating Requests"."""
    query = {name: value for name, value in request.query.items() if name != "X-Amz-Signature"}
    pairs = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
    names = query["X-Amz-SignedHeaders"]
    headers = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in names.split(";"))
    path = request.raw_path.partition("?")[0]
    canonical = "\n".join([request.method, path, pairs, headers, names, "UNSIGNED-PAYLOAD"])
    _, *scope = query["X-Amz-Credential"].split("/")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], "/".join(scope), digest])
    key = b"AWS4" + AWS_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode()
    for part in (*scope, to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return bytes(key).hex()


@asynccontextmanager
async def strict_store(upstream: str) -> AsyncIterator[StrictStore]:
    """The proxy on a port of its own, in front of ``upstream``."""
    store = StrictStore(upstream)
    app = web.Application(client_max_size=100 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", store.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        store.url = f"http://{host}:{port}"
        yield store
    finally:
        await runner.cleanup()
