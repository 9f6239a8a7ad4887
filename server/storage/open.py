"""Opens the store that the settings name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.settings import StorageSettings
from server.storage import ObjectStore
from server.storage.disk import open_disk_store


@asynccontextmanager
async def open_store(settings: StorageSettings, link_key: bytes) -> AsyncIterator[ObjectStore]:
    """The store for the lifetime of a process.

    Args:
        link_key: Signs the links of a store on disk; the same in every process that serves them, and used for
            nothing else. A service elsewhere signs its own.

    Raises:
        StorageUnavailable: If it cannot be opened at all.
    """
    if settings.kind == "disk":
        async with open_disk_store(settings, link_key) as disk:
            yield disk
        return
    # Importing the S3 library takes half a second and 40 MB; who stores on disk need not pay that.
    from server.storage.s3 import open_s3_store

    async with open_s3_store(settings) as s3:
        yield s3
