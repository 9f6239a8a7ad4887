"""The signed links of a store on disk, over a real socket, as browsers use them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.errors import UtterError
from server.handlers.objects import LARGEST_UPLOAD_BYTES, object_routes
from server.settings import StorageSettings
from server.storage import Bucket, ObjectStore
from server.storage.disk import DiskStore, open_disk_store
from server.storage.s3 import open_s3_store
from tests.support import wait_for

PAGE = "https://page.example"
KEY = "user/voice/reference.wav"
SPEECH = bytes(range(256)) * 3000  # 768,000 bytes: several slices


async def as_json(request: Request, exc: Exception) -> Response:
    """What the edge of the product does with a failure that has a name."""
    assert isinstance(exc, UtterError)
    return JSONResponse({"detail": exc.detail, "category": exc.category}, status_code=exc.status, headers=exc.headers)


@contextlib.asynccontextmanager
async def serving(store: ObjectStore) -> AsyncIterator[str]:
    """The address of a server that has the routes of this module and nothing else."""
    routes = object_routes(lambda request: store, cors_allow_origins=(PAGE,), stalled_after_seconds=0.5)
    app = Starlette(routes=routes, exception_handlers={UtterError: as_json})
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    running = asyncio.create_task(server.serve())
    try:
        await wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


@dataclass
class Site:
    """A running server, its store, the folder behind it, and a client that talks to it."""

    url: str
    store: DiskStore
    folder: Path
    client: httpx.AsyncClient

    async def download_link(self, *, filename: str = "speech.wav", expires_seconds: int = 3600) -> str:
        return await self.store.signed_get(
            Bucket.REFERENCES, KEY, expires_seconds=expires_seconds, filename=filename, base_url=self.url
        )

    async def upload_link(self, *, expires_seconds: int = 300) -> str:
        return await self.store.signed_put(Bucket.REFERENCES, KEY, expires_seconds=expires_seconds, base_url=self.url)

    async def store_speech(self, content_type: str = "audio/wav") -> str:
        """Put `SPEECH` into the store and return a link to it."""
        await self.store.put(Bucket.REFERENCES, KEY, SPEECH, content_type=content_type, size=len(SPEECH))
        return await self.download_link()

    def incoming(self) -> list[Path]:
        return list((self.folder / ".incoming").iterdir())


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A server with an empty store on disk, which allows the origin of `PAGE`."""
    async with (
        open_disk_store(StorageSettings(kind="disk", root=str(tmp_path)), b"a key for links") as store,
        serving(store) as url,
        httpx.AsyncClient() as client,
    ):
        yield Site(url, store, tmp_path / "references", client)


async def raw(site: Site, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request sent byte by byte; the caller reads the answer, or hangs up."""
    address = httpx.URL(site.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(head.replace("\n", "\r\n").encode() + body)
    await writer.drain()
    return reader, writer


# --- downloads --------------------------------------------------------------------------------------------------------


async def test_signed_urls_work_several_times(site: Site) -> None:
    link = await site.store_speech()
    for _ in range(3):
        answer = await site.client.get(link)
        assert (answer.status_code, answer.content) == (200, SPEECH)
        assert answer.headers["content-type"] == "audio/wav"
        assert answer.headers["content-length"] == str(len(SPEECH))
        assert answer.headers["accept-ranges"] == "bytes"


async def test_storage_ignores_an_authorization_header(site: Site) -> None:
    link = await site.store_speech()
    for token in ("Bearer nonsense", "Basic eDp5", ""):
        assert (await site.client.get(link, headers={"Authorization": token})).status_code == 200


async def test_a_download_is_an_attachment_with_its_name(site: Site) -> None:
    await site.store_speech()
    plain = await site.client.get(await site.download_link(filename="9a1d.wav"))
    assert plain.headers["content-disposition"] == 'attachment; filename="9a1d.wav"'
    named = await site.client.get(await site.download_link(filename="Grüße.wav"))
    assert named.headers["content-disposition"] == (
        "attachment; filename=\"Gr__e.wav\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe.wav"
    )


async def test_a_client_that_goes_away_in_the_middle_is_normal(site: Site) -> None:
    """The page cancels the first of its two requests as soon as it knows the address."""
    link = httpx.URL(await site.store_speech())
    for _ in range(5):
        reader, writer = await raw(site, f"GET {link.raw_path.decode()} HTTP/1.1\nHost: x\n\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.transport.abort()
    assert (await site.client.get(link)).content == SPEECH


async def test_a_range_is_answered_in_part(site: Site) -> None:
    link = await site.store_speech()
    for asked, start, stop in (
        ("bytes=0-", 0, len(SPEECH)),
        ("bytes=0-1", 0, 2),
        ("bytes=300000-600000", 300_000, 600_001),
        ("bytes=767999-", 767_999, 768_000),
        ("bytes=500000-99999999", 500_000, 768_000),
        ("bytes=-44", 767_956, 768_000),
        ("bytes=-99999999", 0, 768_000),
        ("Bytes = 5 - 9", 5, 10),
    ):
        answer = await site.client.get(link, headers={"Range": asked})
        assert answer.status_code == 206, asked
        assert answer.content == SPEECH[start:stop]
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(SPEECH)}"
        assert answer.headers["content-length"] == str(stop - start)


async def test_a_range_behind_the_end_is_416_and_says_where_the_end_is(site: Site) -> None:
    link = await site.store_speech()
    for asked in ("bytes=768000-", "bytes=99999999-99999999", "bytes=-0"):
        answer = await site.client.get(link, headers={"Range": asked})
        assert answer.status_code == 416, asked
        assert answer.headers["content-range"] == f"bytes */{len(SPEECH)}"
        assert answer.json() == {"detail": "This range lies after the end.", "category": "validation"}


async def test_a_range_that_is_no_single_range_gets_the_whole(site: Site) -> None:
    link = await site.store_speech()
    for asked in (
        "bytes=0-1,5-9",
        "bytes=",
        "bytes=-",
        "bytes=9-5",
        "lines=0-1",
        "bytes",
        "bytes=a-b",
        "bytes=1-2-3",
        "bytes=" + "9" * 5000 + "-",
    ):
        answer = await site.client.get(link, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (200, SPEECH), asked


async def test_a_range_of_a_file_that_changed_gets_the_whole_new_one(site: Site) -> None:
    link = await site.store_speech()
    before = await site.client.get(link)
    for condition in ("etag", "last-modified"):
        headers = {"Range": "bytes=0-1", "If-Range": before.headers[condition]}
        assert (await site.client.get(link, headers=headers)).status_code == 206
    await site.store.put(Bucket.REFERENCES, KEY, b"another", content_type="audio/wav", size=7)
    headers = {"Range": "bytes=0-1", "If-Range": before.headers["etag"]}
    answer = await site.client.get(link, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"another")


async def test_head_answers_the_headers_alone(site: Site) -> None:
    link = await site.store_speech()
    answer = await site.client.head(link)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(SPEECH))
    part = await site.client.head(link, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["content-length"]) == (206, "10")


async def test_a_link_to_nothing_is_404(site: Site) -> None:
    link = await site.download_link()
    answer = await site.client.get(link)
    assert (answer.status_code, answer.json()["category"]) == (404, "not_found")
    other = link.replace("/api/storage/references/", "/api/storage/elsewhere/")
    assert (await site.client.get(other)).status_code == 404


async def test_an_altered_link_is_refused(site: Site) -> None:
    link = await site.store_speech()
    await site.store.put(Bucket.REFERENCES, "other/x.wav", b"x", content_type="audio/wav", size=1)
    for altered in (
        link.replace(KEY, "other/x.wav"),
        link.replace("expires=1", "expires=9"),
        link.replace("filename=speech.wav", "filename=evil.exe"),
        link.replace("references", "generations"),
        link.split("?", maxsplit=1)[0],
        link.split("&signature", maxsplit=1)[0],
        link.replace(KEY, "user/%2E%2E/user/voice/reference.wav"),
        link.replace(KEY, "..%2F..%2Fetc%2Fpasswd"),
    ):
        answer = await site.client.get(altered)
        assert (answer.status_code, answer.json()["category"]) == (403, "unauthorized"), altered
    assert (await site.client.put(link, content=b"x")).status_code == 403
    assert (await site.client.get(await site.upload_link())).status_code == 403


async def test_an_expired_link_is_refused(site: Site) -> None:
    await site.store_speech()
    for link, method in (
        (await site.download_link(expires_seconds=-1), "GET"),
        (await site.upload_link(expires_seconds=-1), "PUT"),
    ):
        answer = await site.client.request(method, link)
        assert answer.status_code == 403
        assert answer.json()["detail"] == "This link has expired."


async def test_what_strangers_uploaded_is_never_shown_as_a_page(site: Site) -> None:
    await site.client.put(
        await site.upload_link(), content=b"<script>alert(1)</script>", headers={"Content-Type": "text/html"}
    )
    answer = await site.client.get(await site.download_link())
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")


# --- uploads ----------------------------------------------------------------------------------------------------------


async def test_put_takes_whatever_content_type_comes_and_keeps_it(site: Site) -> None:
    for content_type in ("audio/wav", "audio/mpeg", "audio/mp4", "audio/x-m4a"):
        headers = {"Content-Type": content_type, "Origin": "https://any.example"}
        answer = await site.client.put(await site.upload_link(), content=SPEECH, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        assert "application/json" in answer.headers["content-type"]
        found = await site.client.get(await site.download_link())
        assert (found.content, found.headers["content-type"]) == (SPEECH, content_type)


async def test_a_later_put_replaces_an_earlier_one(site: Site) -> None:
    link = await site.upload_link()
    await site.client.put(link, content=SPEECH)
    await site.client.put(link, content=b"again", headers={"Content-Type": "audio/wav; codecs=1"})
    found = await site.client.get(await site.download_link())
    assert (found.content, found.headers["content-type"]) == (b"again", "audio/wav")


async def test_an_upload_over_the_limit_is_413_before_it_is_read(site: Site) -> None:
    path = httpx.URL(await site.upload_link()).raw_path.decode()
    head = f"PUT {path} HTTP/1.1\nHost: x\nConnection: close\nContent-Length: {LARGEST_UPLOAD_BYTES + 1}\n\n"
    reader, writer = await raw(site, head)
    assert await reader.readline() == b"HTTP/1.1 413 Request Entity Too Large\r\n"
    answer = (await reader.readuntil(b"}")).rpartition(b"\r\n")[2]
    assert json.loads(answer) == {"detail": "The file is larger than 50 MB.", "category": "too_large"}
    writer.close()
    assert site.incoming() == []


async def test_an_upload_that_does_not_say_its_size_is_cut_at_the_limit(site: Site) -> None:
    async def body(megabytes: int) -> AsyncIterator[bytes]:
        for _ in range(megabytes):
            yield bytes(1024 * 1024)

    answer = await site.client.put(await site.upload_link(), content=body(51), headers={"Origin": PAGE})
    assert (answer.status_code, answer.json()["category"]) == (413, "too_large")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert (await site.client.get(await site.download_link())).status_code == 404
    assert site.incoming() == []
    answer = await site.client.put(await site.upload_link(), content=body(50))
    assert answer.status_code == 200
    assert (await site.client.head(await site.download_link())).headers["content-length"] == str(LARGEST_UPLOAD_BYTES)


async def test_half_an_upload_leaves_nothing(site: Site) -> None:
    path = httpx.URL(await site.upload_link()).raw_path.decode()
    _, writer = await raw(site, f"PUT {path} HTTP/1.1\nHost: x\nContent-Length: 2000000\n\n", bytes(1_000_000))
    await wait_for(site.incoming)
    writer.transport.abort()
    await wait_for(lambda: not site.incoming())
    assert await site.store.head(Bucket.REFERENCES, KEY) is None


async def test_an_upload_that_stalls_is_given_up(site: Site) -> None:
    path = httpx.URL(await site.upload_link()).raw_path.decode()
    reader, writer = await raw(site, f"PUT {path} HTTP/1.1\nHost: x\nContent-Length: 2000000\n\n", bytes(1_000_000))
    assert await reader.readline() == b"HTTP/1.1 400 Bad Request\r\n"
    writer.close()
    assert site.incoming() == []


async def test_a_disk_that_refuses_is_a_503_that_a_page_can_read(site: Site) -> None:
    (site.folder / "user").write_bytes(b"a file where a folder should be")
    answer = await site.client.put(await site.upload_link(), content=SPEECH, headers={"Origin": PAGE})
    assert (answer.status_code, answer.json()["category"]) == (503, "storage")
    assert answer.headers["access-control-allow-origin"] == "*"


# --- other origins ----------------------------------------------------------------------------------------------------


async def test_gets_of_an_allowed_origin_are_answered_for_it_on_errors_too(site: Site) -> None:
    link = await site.store_speech()
    for address, status in ((link, 200), (link + "0", 403), (await site.download_link(expires_seconds=-1), 403)):
        answer = await site.client.get(address, headers={"Origin": PAGE})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "Origin"
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


async def test_gets_of_other_origins_are_not_opened_to_them(site: Site) -> None:
    link = await site.store_speech()
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
        answer = await site.client.get(link, headers=headers)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


async def test_the_preflight_of_a_put_is_answered_without_any_token_or_signature_check(site: Site) -> None:
    for link in (await site.upload_link(), f"{site.url}/api/storage/references/anything?expires=1&signature=x"):
        answer = await site.client.options(
            link,
            headers={
                "Origin": "https://any.example",
                "Access-Control-Request-Method": "PUT",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert answer.is_success
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "PUT" in answer.headers["access-control-allow-methods"]
        assert "content-type" in answer.headers["access-control-allow-headers"]


async def test_the_preflight_of_a_get_that_kept_its_token_names_authorization(site: Site) -> None:
    headers = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    allowed = await site.client.options(await site.download_link(), headers={"Origin": PAGE, **headers})
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    other = await site.client.options(await site.download_link(), headers={"Origin": "https://evil.example", **headers})
    assert "access-control-allow-origin" not in other.headers


async def test_a_put_and_its_refusal_carry_allow_origin(site: Site) -> None:
    link = await site.upload_link()
    for address, status in ((link, 200), (link + "0", 403)):
        answer = await site.client.put(address, content=b"x", headers={"Origin": "https://any.example"})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_objects_kept_elsewhere_are_not_here(s3_server: str) -> None:
    async with (
        open_s3_store(StorageSettings(kind="s3", endpoint=s3_server)) as store,
        serving(cast(ObjectStore, store)) as url,
        httpx.AsyncClient() as client,
    ):
        assert (await client.get(f"{url}/api/storage/references/a.wav")).status_code == 404
