"""The object store: where references and finished audio live for good.

An object appears under its key whole or not at all, and storing the same bytes twice is storing them once. What a
library raises becomes `StorageUnavailable` here; an object that is not there is `NotFound`, or None from ``head``.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol
from urllib.parse import quote

from server.errors import NotFound, StorageUnavailable, TooLarge
from server.settings import StorageSettings

#: Written and read by ``probe``; never listed.
PROBE_KEY = "probe/ready"
PROBE_BYTES = b"ready"
# Of a stored speech this much is fetched at a time and held for a slow reader: half a minute of MP3.
PART_BYTES = 512 * 1024


class Bucket(Enum):
    """The two buckets by their fixed names; the operator's own names for them stand in the settings."""

    REFERENCES = "references"
    GENERATIONS = "generations"


@dataclass(frozen=True)
class StoredObject:
    """One object. ``content_type`` is None in a listing, which does not know it; ``modified`` is in UTC."""

    key: str
    size: int
    modified: datetime
    content_type: str | None = None


class ObjectStore(Protocol):
    """Objects in two buckets.

    Every call ends within a deadline and raises `StorageUnavailable` where the store refused or did not answer.
    """

    @property
    def public(self) -> bool:
        """Whether somebody far away (a provider) can fetch a signed link."""

    async def put(
        self, bucket: Bucket, key: str, body: bytes | AsyncIterator[bytes], *, content_type: str, size: int
    ) -> None:
        """Store ``size`` bytes under ``key``, replacing what is there. Durable when it returns.

        Nothing is stored if ``body`` raises. A caller cancelled in the last moment may still leave the whole object.

        Raises:
            ValueError: If ``body`` holds more or fewer bytes than ``size``, or the key is none.
        """

    def open(
        self, bucket: Bucket, key: str, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes from ``start`` up to ``stop`` (or the end), in slices; none where the object is shorter.

        Raises:
            NotFound: On entering, if there is no such object.
        """

    async def read(self, bucket: Bucket, key: str, *, limit: int) -> bytes:
        """A whole object of at most ``limit`` bytes.

        Raises:
            NotFound: If there is no such object.
            TooLarge: If it is larger.
        """

    async def head(self, bucket: Bucket, key: str) -> StoredObject | None:
        """What is stored under a key, None for nothing."""

    async def delete(self, bucket: Bucket, key: str) -> None:
        """Remove an object; one that is not there is removed already."""

    def list(self, bucket: Bucket, *, after: str = "") -> AsyncIterator[StoredObject]:
        """Every object of a bucket whose key comes after ``after``, in the order of their keys' bytes."""

    async def signed_get(
        self, bucket: Bucket, key: str, *, expires_seconds: int, filename: str, base_url: str = "", head: bool = False
    ) -> str:
        """A link that downloads the object as ``filename``, as often as one likes until it expires.

        Args:
            base_url: Where browsers reach this server, for a store whose links lead to it; "" makes those relative.
            head: For a HEAD, which some stores want signed as such.
        """

    async def signed_put(
        self, bucket: Bucket, key: str, *, expires_seconds: int, base_url: str, size: int | None = None
    ) -> str:
        """A link to which anybody may PUT the object, with whatever Content-Type. Absolute.

        Args:
            size: The only size in bytes that is taken; None for any.
        """

    async def probe(self) -> None:
        """Prove both buckets by writing and reading a small object; `StorageUnavailable.reason` says which."""


async def prove(store: ObjectStore, names: Mapping[Bucket, str]) -> None:
    """What every store's ``probe`` does, given what the operator calls its buckets."""
    for bucket, name in names.items():
        try:
            await store.put(
                bucket, PROBE_KEY, PROBE_BYTES, content_type="application/octet-stream", size=len(PROBE_BYTES)
            )
            found = await store.read(bucket, PROBE_KEY, limit=len(PROBE_BYTES))
        except (NotFound, StorageUnavailable) as exc:
            said = str(exc.__cause__ or "") or type(exc.__cause__ or exc).__name__
            raise StorageUnavailable(reason=f"{name}: {said}") from exc
        if found != PROBE_BYTES:
            raise StorageUnavailable(reason=f"{name}: it gives back other bytes than it was given")


def bucket_names(settings: StorageSettings) -> dict[Bucket, str]:
    """The operator's name for each bucket."""
    return {Bucket.REFERENCES: settings.bucket_references, Bucket.GENERATIONS: settings.bucket_generations}


async def collect(chunks: AsyncIterator[bytes], *, limit: int) -> bytes:
    """All chunks as one.

    Raises:
        TooLarge: As soon as there are more than ``limit`` bytes.
    """
    whole = bytearray()
    async for chunk in chunks:
        whole += chunk
        if len(whole) > limit:
            raise TooLarge("The file is too large.")
    return bytes(whole)


async def in_parts(store: ObjectStore, bucket: Bucket, key: str, *, start: int = 0) -> AsyncGenerator[bytes, None]:
    """An object from ``start`` on for somebody who may be slow, in parts of at most ``PART_BYTES``.

    Each is fetched whole before it is handed on. So a reader may take as long over it as it likes: no connection to
    the store waits with it, and storing never waits for readers.

    Raises:
        NotFound: If there is no such object, before anything is handed on.
    """
    while True:
        async with store.open(bucket, key, start=start, stop=start + PART_BYTES) as slices:
            part = await collect(slices, limit=PART_BYTES)
        if part:
            yield part
        if len(part) < PART_BYTES:
            return
        start += len(part)


def content_disposition(filename: str) -> str:
    """``attachment`` with a name that every browser understands (RFC 6266, RFC 8187). Pure ASCII, whatever comes in."""
    name = re.sub(r"[\x00-\x1f\x7f/\\]", "_", filename) or "audio"
    plain = re.sub(r'["%]', "_", name.encode("ascii", "replace").decode("ascii").replace("?", "_"))
    header = f'attachment; filename="{plain}"'
    if plain == name:
        return header
    return f"{header}; filename*=UTF-8''{quote(name.encode('utf-8', 'replace'), safe='')}"
