"""The signed links of a store on disk: download by GET, upload by PUT, for whoever holds the link.

No route here asks for a token, and one that is sent along is not looked at: a browser that follows a redirect may
carry it here. Browsers of other origins are answered as they need it: downloads for the allowed origins, uploads and
their preflight for all, since a PUT link is a capability of its own.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from email.utils import format_datetime

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.admission.bodies import Pace
from server.errors import Invalid, NotFound, TooLarge, TooSlow, UtterError
from server.handlers.edge import allowed_headers
from server.storage import Bucket, ObjectStore, content_disposition
from server.storage.disk import DiskStore, OpenObject
from server.storage.links import PREFIX

_log = logging.getLogger(__name__)

LARGEST_UPLOAD_BYTES = 50 * 1024 * 1024
_STALLED_AFTER_SECONDS = 30.0
_METHODS = ["GET", "HEAD", "PUT", "OPTIONS"]
_EXPOSED = "Accept-Ranges, Content-Length, Content-Range, X-Request-Id"


def object_routes(
    store_of: Callable[[Request], ObjectStore],
    *,
    cors_allow_origins: Sequence[str] = (),
    stalled_after_seconds: float = _STALLED_AFTER_SECONDS,
) -> list[Route]:
    """The routes below ``/storage``; they answer 404 where the objects are kept elsewhere.

    They do their own CORS: a middleware that answers preflights must leave this path alone.
    """
    door = _Objects(store_of, frozenset(cors_allow_origins), stalled_after_seconds)
    return [Route(f"{PREFIX}/{{bucket}}/{{key:path}}", door, methods=_METHODS, name="object")]


class _Objects:
    """An ASGI app, so that a file is closed the moment its response ends, however it ends."""

    def __init__(
        self, store_of: Callable[[Request], ObjectStore], allow_origins: frozenset[str], stalled_after_seconds: float
    ) -> None:
        self._store_of = store_of
        self._allow_origins = allow_origins
        self._stalled_after_seconds = stalled_after_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        cors = self._cors_headers(request)
        try:
            if request.method == "OPTIONS":
                await Response(status_code=204, headers=cors)(scope, receive, send)
            elif request.method == "PUT":
                await self._receive(request)
                await JSONResponse({"ok": True}, headers=cors)(scope, receive, send)
            else:
                await self._serve(request, cors, send)
        except UtterError as exc:
            exc.headers = {**exc.headers, **cors}  # without them a page of another origin cannot read why
            raise

    async def _serve(self, request: Request, cors: dict[str, str], send: Send) -> None:
        store, bucket, key = self._resolve(request, "GET")
        async with store.open_object(bucket, key) as found:
            headers = {**_file_headers(found, request.query_params.get("filename") or key.rsplit("/", 1)[-1]), **cors}
            size = found.about.size
            span = _range(request, found)
            start, stop = span or (0, size)
            if span:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            headers["Content-Length"] = str(stop - start)
            status = 206 if span else 200
            if request.method == "HEAD":
                await Response(status_code=status, headers=headers)(request.scope, request.receive, send)
                return
            slices = found.slices(start, stop)
            if not await _sent(request, Response(status_code=status, headers=headers), slices, send):
                # Normal: the page asks first only to learn the final address, and players stop where they like.
                _log.debug("download broken off")

    async def _receive(self, request: Request) -> None:
        store, bucket, key = self._resolve(request, "PUT")
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:15]) > LARGEST_UPLOAD_BYTES:
            raise TooLarge("The file is larger than 50 MB.")
        told = request.query_params.get("size")
        if told is not None and announced.lstrip("0") != told:
            refusal = Invalid("The file does not have the size that was announced for this address.")
            refusal.counted_as = "bodies"
            raise refusal
        content_type = _media_type(request.headers.get("content-type", ""))
        try:
            await store.put(bucket, key, self._limited(request), content_type=content_type, size=None)
        except ClientDisconnect as exc:
            raise Invalid("The upload was interrupted.") from exc

    async def _limited(self, request: Request) -> AsyncIterator[bytes]:
        pace = Pace(self._stalled_after_seconds)
        chunks = aiter(request.stream())
        while True:
            try:
                async with pace.in_time():
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError as exc:
                raise TooSlow("The upload took too long.", status=400) from exc
            pace.received += len(chunk)
            if pace.received > LARGEST_UPLOAD_BYTES:
                raise TooLarge("The file is larger than 50 MB.")
            yield chunk

    def _resolve(self, request: Request, method: str) -> tuple[DiskStore, Bucket, str]:
        """The store, bucket and key that a link names, once its signature is checked."""
        store = self._store_of(request)
        try:
            bucket = Bucket(request.path_params["bucket"])
        except ValueError as exc:
            raise NotFound from exc
        if not isinstance(store, DiskStore):
            raise NotFound
        key: str = request.path_params["key"]
        store.links.check(method, bucket, key, request.query_params)
        return store, bucket, key

    def _cors_headers(self, request: Request) -> dict[str, str]:
        origin = request.headers.get("origin")
        if request.method == "OPTIONS":
            asked = request.headers.get("access-control-request-method", "PUT").upper()
        else:
            asked = request.method
        headers: dict[str, str] = {}
        if asked == "PUT" or "*" in self._allow_origins:
            headers["Access-Control-Allow-Origin"] = "*"
        elif self._allow_origins:
            headers["Vary"] = "Origin"
            if origin in self._allow_origins:
                headers["Access-Control-Allow-Origin"] = origin
        if request.method == "OPTIONS":
            headers["Access-Control-Allow-Methods"] = "GET, HEAD, PUT"
            headers["Access-Control-Allow-Headers"] = allowed_headers(
                "range, " + request.headers.get("access-control-request-headers", "")
            )
            headers["Access-Control-Max-Age"] = "600"
        elif "Access-Control-Allow-Origin" in headers:
            headers["Access-Control-Expose-Headers"] = _EXPOSED
        return headers


async def _sent(request: Request, head: Response, slices: AsyncGenerator[bytes, None], send: Send) -> bool:
    """Send a body slice by slice; False where the client has gone before its end."""
    gone = asyncio.Event()
    watcher = asyncio.create_task(_until_gone(request, gone))
    try:
        await send({"type": "http.response.start", "status": head.status_code, "headers": head.raw_headers})
        async with aclosing(slices):
            async for piece in slices:
                if gone.is_set():
                    return False
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except OSError:
        return False
    finally:
        watcher.cancel()
        await asyncio.wait({watcher})
    return not gone.is_set()


async def _until_gone(request: Request, gone: asyncio.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _file_headers(found: OpenObject, filename: str) -> dict[str, str]:
    content_type = found.about.content_type or ""
    return {
        # What strangers uploaded is served on our own origin: audio or nothing a browser would show.
        "Content-Type": content_type if content_type.startswith("audio/") else "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": content_disposition(filename),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private",
        "Last-Modified": format_datetime(found.about.modified, usegmt=True),
        "ETag": found.etag,
    }


def _range(request: Request, found: OpenObject) -> tuple[int, int] | None:
    """The one range that is asked for, as ``(start, stop)``; None means the whole object.

    Several ranges at once, other units and malformed headers are answered with the whole object, as RFC 9110 §14.2
    allows: no player asks for several, and joining them would serve nobody but an attacker.

    Raises:
        Invalid: With status 416, if the range lies after the end.
    """
    header = request.headers.get("range")
    if_range = request.headers.get("if-range")
    if header is None or if_range not in (None, found.etag, format_datetime(found.about.modified, usegmt=True)):
        return None
    match = re.fullmatch(r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", header, re.IGNORECASE)
    if match is None or match[1] == match[2] == "":
        return None
    size = found.about.size
    if match[1]:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    else:
        start = max(size - int(match[2]), 0)
        stop = size
    if start >= size:
        raise Invalid("This range lies after the end.", status=416, headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _media_type(header: str) -> str:
    """The bare type of a Content-Type header, without parameters; unknown where it is none."""
    bare = header.split(";", 1)[0].strip().lower()
    return bare if re.fullmatch(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}", bare) else "application/octet-stream"
