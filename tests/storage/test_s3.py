"""What the store on an S3-compatible service does beyond every store: its links, and its failures."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from server.errors import StorageUnavailable
from server.settings import StorageSettings
from server.storage import Bucket, ObjectStore, s3
from server.storage.open import open_store
from server.storage.s3 import _is_public, open_s3_store
from tests.storage.conftest import s3_settings
from tests.support import free_port

KEY = "user/voice/reference.wav"
SPEECH = random.Random(1).randbytes(3_000_000)


async def test_a_download_link_works_several_times_in_parts_and_as_an_attachment(s3_store: ObjectStore) -> None:
    await s3_store.put(Bucket.GENERATIONS, KEY, SPEECH, content_type="audio/mpeg", size=len(SPEECH))
    link = await s3_store.signed_get(Bucket.GENERATIONS, KEY, expires_seconds=3600, filename="Grüße.mp3")
    async with httpx.AsyncClient() as client:
        for _ in range(2):
            whole = await client.get(link)
            assert whole.content == SPEECH
            assert whole.headers["content-type"] == "audio/mpeg"
            assert whole.headers["content-disposition"].startswith("attachment; filename=")
        part = await client.get(link, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, SPEECH[10:20])


async def test_an_upload_link_takes_a_content_type_that_nobody_signed(s3_store: ObjectStore) -> None:
    link = await s3_store.signed_put(Bucket.REFERENCES, KEY, expires_seconds=300, base_url="http://127.0.0.1:1")
    async with httpx.AsyncClient() as client:
        answer = await client.put(link, content=SPEECH, headers={"Content-Type": "audio/x-m4a"})
    assert answer.status_code == 200
    found = await s3_store.head(Bucket.REFERENCES, KEY)
    assert found is not None
    assert (found.size, found.content_type) == (len(SPEECH), "audio/x-m4a")


async def test_a_size_that_was_told_is_signed(s3_store: ObjectStore) -> None:
    link = await s3_store.signed_put(Bucket.REFERENCES, KEY, expires_seconds=300, base_url="", size=len(SPEECH))
    assert httpx.URL(link).params["X-Amz-SignedHeaders"] == "content-length;host"
    async with httpx.AsyncClient() as client:
        assert (await client.put(link, content=SPEECH)).status_code == 200


async def test_no_link_asks_for_checksums_that_compatible_services_refuse(s3_store: ObjectStore) -> None:
    link = await s3_store.signed_put(Bucket.REFERENCES, KEY, expires_seconds=300, base_url="")
    names = set(httpx.URL(link).params)
    assert names == {
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
    }
    assert httpx.URL(link).params["X-Amz-SignedHeaders"] == "host"


async def test_a_list_longer_than_a_page_is_complete(s3_server: str) -> None:
    async with open_s3_store(await s3_settings(s3_server), page_keys=3) as store:
        names = {f"user/{index}.mp3" for index in range(10)}
        for name in names:
            await store.put(Bucket.GENERATIONS, name, b"x", content_type="audio/mpeg", size=1)
        assert {stored.key async for stored in store.list(Bucket.GENERATIONS)} == names


async def test_a_service_that_is_not_there_is_unavailable(s3_server: str) -> None:
    settings = StorageSettings(kind="s3", endpoint=f"http://127.0.0.1:{free_port()}")
    async with open_store(settings, b"unused") as store:
        with pytest.raises(StorageUnavailable) as refusal:
            await store.probe()
        assert refusal.value.__cause__ is not None
        assert "127.0.0.1" not in refusal.value.detail


async def test_a_bucket_that_is_not_there_is_unavailable_not_empty(s3_server: str) -> None:
    settings = replace(await s3_settings(s3_server), bucket_generations="nobody-made-this")
    async with open_store(settings, b"unused") as store:
        with pytest.raises(StorageUnavailable) as refusal:
            await store.probe()
        assert refusal.value.reason.startswith("nobody-made-this: ")
        assert "NoSuchBucket" in refusal.value.reason
        with pytest.raises(StorageUnavailable):
            await store.put(Bucket.GENERATIONS, KEY, b"x", content_type="audio/mpeg", size=1)
        with pytest.raises(StorageUnavailable):
            await store.read(Bucket.GENERATIONS, KEY, limit=10)
        with pytest.raises(StorageUnavailable):
            assert [stored async for stored in store.list(Bucket.GENERATIONS)]


@asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[StorageSettings]:
    """Settings of a service on a socket that does ``answer`` and hangs up; afterwards every connection is closed."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.ensure_future(serve(reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield StorageSettings(kind="s3", endpoint=f"http://{host}:{port}")
        await asyncio.gather(*connections)


async def test_a_service_that_never_answers_is_unavailable_in_time(s3_server: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        answering(silent) as settings,
        open_s3_store(settings, call_seconds=0.2, put_seconds=0.2) as store,
        asyncio.timeout(10),
    ):
        for call in (
            store.head(Bucket.GENERATIONS, KEY),
            store.delete(Bucket.GENERATIONS, KEY),
            store.read(Bucket.GENERATIONS, KEY, limit=10),
            store.put(Bucket.GENERATIONS, KEY, b"x", content_type="audio/mpeg", size=1),
        ):
            with pytest.raises(StorageUnavailable):
                await call


async def test_a_download_that_is_cut_raises_instead_of_ending(s3_server: str) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: audio/mpeg\r\n\r\n" + bytes(500))
        await writer.drain()

    async with answering(cut) as settings, open_s3_store(settings) as store:
        with pytest.raises(StorageUnavailable):
            await store.read(Bucket.GENERATIONS, KEY, limit=1000)


async def test_a_put_that_the_service_answers_with_an_error_page_is_tried_again(s3_server: str) -> None:
    """What sits in front of a service answers in HTML while it restarts. The body is sent anew from its start."""
    bodies: list[bytes] = []

    async def restarting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nContent-Length: 3000000\r\n" in head
        assert b"\r\nContent-MD5: " in head
        assert not any(
            word in head.lower() for word in (b"x-amz-trailer", b"x-amz-checksum", b"aws-chunked", b"expect:")
        )
        bodies.append(await reader.readexactly(3_000_000))
        failure = b"503 Service Unavailable\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
        success = b"200 OK\r\nContent-Length: 0\r\n\r\n"
        writer.write(b"HTTP/1.1 " + (failure if len(bodies) == 1 else success))
        await writer.drain()

    async def in_slices() -> AsyncIterator[bytes]:
        for at in range(0, len(SPEECH), 70_000):
            yield SPEECH[at : at + 70_000]

    async with answering(restarting) as settings, open_s3_store(settings) as store:
        await store.put(Bucket.GENERATIONS, KEY, in_slices(), content_type="audio/mpeg", size=len(SPEECH))
    assert bodies == [SPEECH, SPEECH]


@pytest.mark.parametrize(
    ("endpoint", "public"),
    [
        (None, True),
        ("https://account.r2.example.com", True),
        ("https://8.8.8.8", True),
        ("http://127.0.0.1:9000", False),
        ("http://localhost:9000", False),
        ("http://minio:9000", False),
        ("http://10.0.0.5:9000", False),
        ("http://store.internal", False),
        ("http://minio.storage.svc:9000", False),
        ("http://objects.corp", False),
    ],
)
def test_a_store_is_public_where_its_address_can_be_reached_from_anywhere(endpoint: str | None, public: bool) -> None:
    assert _is_public(endpoint) is public


async def test_a_name_that_leads_into_our_own_network_is_not_public() -> None:
    assert await s3._resolves_privately("http://localhost:9000")
    assert not await s3._resolves_privately(None)
