"""Several stored objects as one ZIP file that is written while they are read."""

import zipfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import IO, NamedTuple, cast

from server.storage import Bucket, ObjectStore, in_parts


class Member(NamedTuple):
    """One file in the ZIP. ``modified`` is shown in UTC: the format knows no time zones."""

    name: str
    bucket: Bucket
    key: str
    modified: datetime


async def zipped(storage: ObjectStore, members: Sequence[Member]) -> AsyncGenerator[bytes, None]:
    """The ZIP, in chunks. Audio is compressed already, so it is stored as it is; memory holds one part of it.

    Raises:
        NotFound: If an object is not there, before anything of it is handed out.
        StorageUnavailable: Whenever the store fails; what was handed out until then is no whole ZIP.
    """
    sink = _Sink()
    # The sink cannot be sought, so sizes and checksums stand after each file, as in every ZIP that is streamed
    # (APPNOTE.TXT 4.4.4, bit 3), and once more in the directory at the end.
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            async with aclosing(in_parts(storage, member.bucket, member.key)) as chunks:
                info = zipfile.ZipInfo(member.name, member.modified.astimezone(UTC).timetuple()[:6])
                info.external_attr = 0o644 << 16
                with archive.open(info, "w") as file:
                    async for chunk in chunks:
                        file.write(chunk)
                        yield sink.take()
            yield sink.take()
    yield sink.take()


class _Sink:
    """Where the ZIP is written to, and taken from."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Nothing waits anywhere else."""

    def take(self) -> bytes:
        taken, self._held = bytes(self._held), bytearray()
        return taken
