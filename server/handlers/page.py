"""The page, and its helper for other pages: files read once and served as they are, under a strict policy."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.settings import Settings

FOLDER = Path(__file__).parent.parent / "page"

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
}

#: What `utter.js` needs, and its types: for pages of other origins, and for the npm package of the same files.
HELPER = ("utter.js", "utter.d.ts", "speech.js", "playback.js", "requests.js", "keep.js")
#: Where the helper keeps what its first version promised; `/static/` has the newest.
VERSION_1 = "/static/v1"


def page_routes(settings: Settings) -> list[Route]:
    """`/` and all under `/static/` where SERVE_PAGE is on; else the helper, where CORS_ALLOW_ORIGINS names a page.

    `/generate` shows the page too: that is where the ``redirect_url`` of a regeneration leads.
    """
    policy = content_security_policy(settings)
    helps = settings.serve_page or bool(settings.cors_allow_origins)
    routes: list[Route] = []
    for path in sorted(FOLDER.iterdir()):
        addresses = list(_addresses(path.name, page=settings.serve_page, helper=helps))
        if path.suffix in CONTENT_TYPES and addresses:
            file = _File(path.read_bytes(), CONTENT_TYPES[path.suffix], policy, foreign=path.name in HELPER)
            routes += [Route(address, file, methods=["GET"]) for address in addresses]
    return routes


def _addresses(name: str, *, page: bool, helper: bool) -> Iterator[str]:
    if name in HELPER and helper:
        yield f"/static/{name}"
        yield f"{VERSION_1}/{name}"
    elif page:
        yield from ["/", "/generate"] if name == "index.html" else [f"/static/{name}"]


class _File:
    """One file, as an ASGI application: browsers keep it and ask each time whether it is still the same."""

    def __init__(self, content: bytes, content_type: str, policy: str, *, foreign: bool) -> None:
        self._content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self._headers = {
            "Content-Type": content_type,
            "Content-Security-Policy": policy,
            "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
            "Cross-Origin-Opener-Policy": "same-origin",
            # Pages that isolate themselves load nothing from elsewhere that does not say so.
            "Cross-Origin-Resource-Policy": "cross-origin" if foreign else "same-origin",
            "Cache-Control": "no-cache",
            "ETag": self._etag,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        unchanged = self._etag in known or "*" in known
        response = Response(
            b"" if unchanged else self._content, status_code=304 if unchanged else 200, headers=self._headers
        )
        await response(scope, receive, send)


def content_security_policy(settings: Settings) -> str:
    """What the page may load: its own files, audio that it made itself, and the store that signed links point at."""
    elsewhere = " ".join(_origins(settings))
    return "; ".join(
        directive.strip()
        for directive in (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            f"connect-src 'self' {elsewhere}",
            f"media-src 'self' blob: {elsewhere}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _origins(settings: Settings) -> list[str]:
    """Where signed links lead: to ourselves under our public name, or to an object store.

    A store may have its buckets in the path or in front of the host name.
    """
    if settings.storage.kind != "s3":
        public = urlsplit(settings.public_base_url or "")
        return [f"{public.scheme}://{public.netloc}"] if public.netloc else []
    if not settings.storage.endpoint:
        return ["https://*.amazonaws.com"]
    endpoint = urlsplit(settings.storage.endpoint)
    host = endpoint.netloc.rpartition("@")[2]
    has_name = endpoint.hostname is not None and re.search(r"[g-z]", endpoint.hostname)  # and no bare address
    return [f"{endpoint.scheme}://{host}", *([f"{endpoint.scheme}://*.{host}"] if has_name else [])]
