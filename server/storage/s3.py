"""Objects in an S3-compatible service: Amazon's own, MinIO, R2 and their like.

One client for the process, opened in the lifespan. Credentials come from the usual AWS variables.
"""

import asyncio
import base64
import contextlib
import hashlib
import io
import ssl
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import IO, Any
from urllib.parse import urlsplit

import aioboto3
import aiohttp
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError

from server.errors import NotFound, StorageUnavailable
from server.objects import key_segments
from server.settings import StorageSettings
from server.storage import (
    PROBE_BYTES,
    PROBE_KEY,
    Bucket,
    StoredObject,
    bucket_names,
    collect,
    content_disposition,
    prove,
)

SLICE_BYTES = 64 * 1024
_IN_MEMORY_BYTES = 1024 * 1024
_CONNECT_SECONDS, _SILENCE_SECONDS = 5, 30


class S3Store:
    """The store behind an open S3 client.

    Args:
        call_seconds: Deadline of one small call, its repetitions included; also of the next slice of a download.
        put_seconds: Deadline of one upload, its repetitions included.
        page_keys: How many objects of a listing one call asks for; the protocol allows 1000.
    """

    def __init__(
        self,
        client: Any,
        names: dict[Bucket, str],
        *,
        public: bool,
        call_seconds: float,
        put_seconds: float,
        page_keys: int,
    ) -> None:
        self._client = client
        self._names = names
        self._public = public
        self._call_seconds = call_seconds
        self._put_seconds = put_seconds
        self._page_keys = page_keys

    @property
    def public(self) -> bool:
        return self._public

    async def put(
        self, bucket: Bucket, key: str, body: bytes | AsyncIterator[bytes], *, content_type: str, size: int
    ) -> None:
        key_segments(key)
        with contextlib.closing(await _gathered(body, size)) as whole:
            md5 = await asyncio.to_thread(_md5_base64, whole)
            with _translated():
                async with asyncio.timeout(self._put_seconds):
                    await self._client.put_object(
                        Bucket=self._names[bucket],
                        Key=key,
                        Body=whole,
                        ContentLength=size,
                        ContentType=content_type,
                        ContentMD5=md5,
                    )

    @asynccontextmanager
    async def open(
        self, bucket: Bucket, key: str, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        body = await self._fetch(bucket, key, start, stop)
        try:
            async with contextlib.aclosing(self._slices(body)) as slices:
                yield slices
        finally:
            if body is not None:
                body.close()  # what was not read to the end cannot be used again: the connection goes

    async def read(self, bucket: Bucket, key: str, *, limit: int) -> bytes:
        async with self.open(bucket, key) as slices:
            return await collect(slices, limit=limit)

    async def head(self, bucket: Bucket, key: str) -> StoredObject | None:
        with _translated():
            try:
                answer = await self._call("head_object", Bucket=self._names[bucket], Key=key)
            except ClientError as exc:
                if _code(exc) in ("404", "NoSuchKey", "NotFound") or await self._hides(exc, bucket):
                    return None
                raise
        return StoredObject(key, answer["ContentLength"], answer["LastModified"], answer.get("ContentType"))

    async def delete(self, bucket: Bucket, key: str) -> None:
        with _translated():
            try:
                await self._call("delete_object", Bucket=self._names[bucket], Key=key)
            except ClientError as exc:
                if _code(exc) != "NoSuchKey":  # Amazon answers 204 for an absent key, some others do not
                    raise

    async def list(self, bucket: Bucket, *, after: str = "") -> AsyncIterator[StoredObject]:
        further = {"StartAfter": after} if after else {}
        while True:
            with _translated():
                page = await self._call(
                    "list_objects_v2", Bucket=self._names[bucket], MaxKeys=self._page_keys, **further
                )
            for entry in page.get("Contents", ()):
                if entry["Key"] != PROBE_KEY:
                    yield StoredObject(entry["Key"], entry["Size"], entry["LastModified"])
            if not page.get("IsTruncated"):
                return
            further = {"ContinuationToken": page["NextContinuationToken"]}

    async def signed_get(
        self, bucket: Bucket, key: str, *, expires_seconds: int, filename: str, base_url: str = "", head: bool = False
    ) -> str:
        """As in `ObjectStore`; the link leads to the service, so ``base_url`` does not matter."""
        operation, shown = "head_object" if head else "get_object", content_disposition(filename)
        return await self._signed(operation, bucket, key, expires_seconds, ResponseContentDisposition=shown)

    async def signed_put(
        self, bucket: Bucket, key: str, *, expires_seconds: int, base_url: str = "", size: int | None = None
    ) -> str:
        # No ContentType among the parameters: a signed one would have to be the very one that the browser sends.
        key_segments(key)
        told = {} if size is None else {"ContentLength": size}
        return await self._signed("put_object", bucket, key, expires_seconds, **told)

    async def probe(self) -> None:
        await prove(self, self._names)

    async def _call(self, operation: str, **parameters: Any) -> Any:
        async with asyncio.timeout(self._call_seconds):
            return await getattr(self._client, operation)(**parameters)

    async def _signed(self, operation: str, bucket: Bucket, key: str, expires_seconds: int, **extra: str | int) -> str:
        with _translated():
            async with asyncio.timeout(self._call_seconds):
                link = await self._client.generate_presigned_url(
                    operation,
                    Params={"Bucket": self._names[bucket], "Key": key, **extra},
                    ExpiresIn=expires_seconds,
                )
        return str(link)

    async def _fetch(self, bucket: Bucket, key: str, start: int, stop: int | None) -> Any:
        """The open body of a range; None for a range that holds nothing."""
        if stop is not None and stop <= start:
            if await self.head(bucket, key) is None:
                raise NotFound("This file does not exist.")
            return None
        wanted: dict[str, str] = {}
        if start or stop is not None:
            wanted["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
        with _translated():
            try:
                answer = await self._call("get_object", Bucket=self._names[bucket], Key=key, **wanted)
            except ClientError as exc:
                if _code(exc) == "NoSuchKey" or await self._hides(exc, bucket):
                    raise NotFound("This file does not exist.") from exc
                if _code(exc) in ("InvalidRange", "416"):
                    return None
                raise
        return answer["Body"]

    async def _hides(self, exc: ClientError, bucket: Bucket) -> bool:
        """Whether a refusal means that the object is not there.

        Amazon answers 403 for an absent object to whoever may read objects and not list them. The same key may read
        the probe's object then, once that is there; where it may not, the refusal is what it says.
        """
        if _code(exc) not in ("403", "AccessDenied", "Forbidden"):
            return False
        if await self._may_read_probe(bucket):
            return True
        try:
            await self._put_probe(bucket)
        except StorageUnavailable:
            return False
        return await self._may_read_probe(bucket)

    async def _may_read_probe(self, bucket: Bucket) -> bool:
        try:
            await self._call("head_object", Bucket=self._names[bucket], Key=PROBE_KEY)
        except ClientError:
            return False
        return True

    async def _put_probe(self, bucket: Bucket) -> None:
        size = len(PROBE_BYTES)
        await self.put(bucket, PROBE_KEY, PROBE_BYTES, content_type="application/octet-stream", size=size)

    async def _slices(self, body: Any) -> AsyncGenerator[bytes, None]:
        while body is not None:
            with _translated():
                async with asyncio.timeout(self._call_seconds):
                    piece = await body.read(SLICE_BYTES)
            if not piece:
                return
            yield piece


# Names that no provider on the internet can resolve (RFC 6762, RFC 8375, RFC 9476, and common usage in clusters).
_PRIVATE_NAMES = (
    *(".local", ".internal", ".localhost", ".localdomain", ".lan", ".home.arpa", ".svc", ".corp", ".intranet"),
    *(".private", ".home", ".test", ".alt"),
)


def _authorities() -> str | None:
    """The file of ``SSL_CERT_FILE``, which this client would not read by itself; None leaves it to its own ways."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile if paths.cafile != paths.openssl_cafile else None


@asynccontextmanager
async def open_s3_store(
    settings: StorageSettings, *, call_seconds: float = 30.0, put_seconds: float = 300.0, page_keys: int = 1000
) -> AsyncIterator[S3Store]:
    """The store at ``settings.endpoint`` (None: Amazon's own), its client open. The rest as in `S3Store`."""
    session = aioboto3.Session()
    config = Config(
        signature_version="s3v4",
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_SILENCE_SECONDS,
        max_pool_connections=64,
        retries={"mode": "standard", "max_attempts": 3},
        # Newer SDKs send checksum trailers by default, which several compatible services refuse and which would
        # become part of every presigned PUT. Content-MD5 guards our own uploads instead.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            # A service of one's own rarely has a DNS name for each bucket. Amazon's own hosts name the region, in links
            # as in calls: "auto" signs links for a host that redirects, which no browser follows with a PUT.
            "addressing_style": "path" if settings.endpoint else "virtual",
            "us_east_1_regional_endpoint": "regional",
            # Hashing every body for the signature would stop the loop for tens of milliseconds.
            "payload_signing_enabled": False,
        },
    )
    region = settings.region or ("us-east-1" if settings.endpoint else None)
    async with contextlib.AsyncExitStack() as stack:
        with _translated():
            client = await stack.enter_async_context(
                session.client(
                    "s3", endpoint_url=settings.endpoint, region_name=region, config=config, verify=_authorities()
                )
            )
        # With "Expect: 100-continue" the HTTP client waits without end for a service, or a proxy in front of it, that
        # does not know the word; and every PUT would cost a round trip more.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        yield S3Store(
            client,
            bucket_names(settings),
            public=_is_public(settings.endpoint) and not await _resolves_privately(settings.endpoint),
            call_seconds=call_seconds,
            put_seconds=put_seconds,
            page_keys=page_keys,
        )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The library's exceptions become ours; the cause stays attached for the log."""
    try:
        yield
    except (BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, OSError) as exc:
        raise StorageUnavailable from exc


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _is_public(endpoint: str | None) -> bool:
    """Whether a service at this address can be reached from anywhere, as far as its name tells."""
    if endpoint is None:
        return True
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_PRIVATE_NAMES)


async def _resolves_privately(endpoint: str | None) -> bool:
    """Whether a name that looks public leads into our own network; one that cannot be resolved now may be either."""
    host = urlsplit(endpoint or "").hostname
    if host is None:
        return False
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, TimeoutError, UnicodeError):
        return False
    return not all(ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)


def _md5_base64(file: IO[bytes]) -> str:
    """The Content-MD5 of a file, which then stands at its start again. About 2 ms per megabyte."""
    digest = hashlib.md5(usedforsecurity=False)
    while piece := file.read(1024 * 1024):
        digest.update(piece)
    file.seek(0)
    return base64.b64encode(digest.digest()).decode()


async def _gathered(body: bytes | AsyncIterator[bytes], size: int) -> IO[bytes]:
    """The whole body as a file from its start, in memory only where it is small, so that a repetition can rewind it.

    Raises:
        ValueError: If it does not have ``size`` bytes.
    """
    if isinstance(body, bytes):
        file: IO[bytes] = io.BytesIO(body)
        written = len(body)
    else:
        with _translated():
            file = io.BytesIO() if size <= _IN_MEMORY_BYTES else await asyncio.to_thread(tempfile.TemporaryFile)
        written = 0
        try:
            async for chunk in body:
                written += len(chunk)
                if written > size:
                    break
                with _translated():
                    await asyncio.to_thread(file.write, chunk)
            file.seek(0)
        except BaseException:
            file.close()
            raise
    if written != size:
        file.close()
        raise ValueError(f"The body does not have the {size} bytes that were announced.")
    return file
