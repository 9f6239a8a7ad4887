"""Both stores, so that one set of tests says what either must do."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from server.settings import StorageSettings
from server.storage import ObjectStore
from server.storage.open import open_store


async def s3_settings(endpoint: str) -> StorageSettings:
    """Two new buckets on an S3-compatible server."""
    names = [f"{word}-{uuid4().hex[:12]}" for word in ("references", "generations")]
    async with httpx.AsyncClient(base_url=endpoint) as client:
        for name in names:
            (await client.put(f"/{name}")).raise_for_status()
    return StorageSettings(kind="s3", endpoint=endpoint, bucket_references=names[0], bucket_generations=names[1])


@pytest.fixture
async def s3_store(s3_server: str) -> AsyncIterator[ObjectStore]:
    """An open store on the S3-compatible server, with two empty buckets of its own."""
    async with open_store(await s3_settings(s3_server), b"unused") as store:
        yield store


@pytest.fixture
async def disk_store(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """An open, empty store below ``tmp_path / "objects"``."""
    settings = StorageSettings(kind="disk", root=str(tmp_path / "objects"))
    async with open_store(settings, b"a key for links") as store:
        yield store


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """An open, empty store of either kind."""
    store: ObjectStore = request.getfixturevalue(f"{request.param}_store")
    return store
