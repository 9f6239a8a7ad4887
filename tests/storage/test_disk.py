"""What the store on disk does beyond every store: crashes, slow disks, types and foreign files."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from server.errors import NotFound, StorageUnavailable, UtterError
from server.settings import StorageSettings
from server.storage import Bucket, ObjectStore
from server.storage.disk import DiskStore, open_disk_store
from server.storage.links import LinkSigner
from server.storage.open import open_store
from tests.support import wait_for

KEY = "user/voice/reference.wav"


@pytest.fixture
def disk(disk_store: ObjectStore) -> DiskStore:
    """The store on disk by its own type."""
    return cast(DiskStore, disk_store)


@pytest.fixture
def folder(disk: DiskStore, tmp_path: Path) -> Path:
    """Where the store keeps its references."""
    return tmp_path / "objects" / "references"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


async def put(disk: DiskStore, body: bytes, content_type: str) -> None:
    await disk.put(Bucket.REFERENCES, KEY, body, content_type=content_type, size=len(body))


async def content_type(disk: DiskStore) -> str | None:
    found = await disk.head(Bucket.REFERENCES, KEY)
    return found.content_type if found else None


async def test_an_object_is_a_plain_file(disk: DiskStore, folder: Path) -> None:
    await put(disk, b"RIFF", "audio/wav")
    assert files(folder) == {KEY}
    assert (folder / KEY).read_bytes() == b"RIFF"


@pytest.mark.parametrize("mime", ["audio/wav", "audio/x-m4a"])
async def test_what_is_answered_for_survives_a_power_cut(
    disk: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch, mime: str
) -> None:
    """A file is synced, then named, then its folder is synced; a note of its type is there before its name is."""
    done: list[tuple[str, str]] = []
    sync, replace = os.fsync, Path.replace

    def name(inode: int) -> str:
        return {path.stat().st_ino: path.name for path in folder.rglob("*")}[inode]

    def synced(handle: int) -> None:
        sync(handle)
        done.append(("sync", name(os.fstat(handle).st_ino)))

    def replaced(self: Path, target: Path) -> Path:
        done.append((self.name, target.name))
        return replace(self, target)

    (folder / KEY).parent.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    await put(disk, b"a recording", mime)
    file, *noted, named, entry = done
    incoming = named[0]
    assert (file, named, entry) == (("sync", incoming), (incoming, "reference.wav"), ("sync", "voice"))
    if mime == "audio/wav":
        assert noted == []
    else:
        (_, synced_first), renamed = noted
        assert renamed == (synced_first, ".reference.wav.type")


async def test_a_type_that_the_suffix_does_not_tell_is_kept(disk: DiskStore, folder: Path) -> None:
    await put(disk, b"an m4a", "audio/x-m4a")
    assert await content_type(disk) == "audio/x-m4a"
    await put(disk, b"a wav", "audio/wav")
    assert await content_type(disk) == "audio/wav"
    assert files(folder) == {KEY}
    await put(disk, b"an mp3", "audio/mpeg")
    await disk.delete(Bucket.REFERENCES, KEY)
    assert files(folder) == set()


async def test_the_note_of_a_put_that_never_came_is_not_believed(disk: DiskStore, folder: Path) -> None:
    """A crash between the note and the file leaves the older file with a note about another one."""
    await put(disk, b"an m4a", "audio/x-m4a")
    note = folder / "user/voice/.reference.wav.type"
    about_another = note.read_bytes()
    await put(disk, b"a wav", "audio/wav")
    note.write_bytes(about_another)
    assert await content_type(disk) == "audio/wav"
    note.write_bytes(b"nonsense")
    assert await content_type(disk) == "audio/wav"


async def test_a_killed_process_leaves_no_part_and_its_remains_are_cleared_away(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from server.settings import StorageSettings
from server.storage import Bucket
from server.storage.open import open_store

async def body():
    yield bytes(600_000)
    print("half", flush=True)
    await asyncio.Event().wait()

async def main():
    async with open_store(StorageSettings(kind="disk", root=sys.argv[1]), b"k") as store:
        await store.put(Bucket.REFERENCES, "user/a.wav", body(), content_type="audio/wav", size=1_200_000)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"half\n"
    incoming = tmp_path / "references" / ".incoming"
    await wait_for(lambda: list(incoming.iterdir()))
    process.kill()
    await process.wait()
    left = list(incoming.iterdir())
    settings = StorageSettings(kind="disk", root=str(tmp_path))
    async with open_store(settings, b"k") as store:
        assert await store.head(Bucket.REFERENCES, "user/a.wav") is None
        assert [stored async for stored in store.list(Bucket.REFERENCES)] == []
    assert list(incoming.iterdir()) == left, "another process may still be writing it"
    yesterday = time.time() - 86_400
    for path in left:
        os.utime(path, (yesterday, yesterday))
    async with open_store(settings, b"k"):
        assert list(incoming.iterdir()) == []


async def test_nothing_is_left_of_a_put_that_failed(disk: DiskStore, folder: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(600_000)
        raise NotFound

    with pytest.raises(NotFound):
        await disk.put(Bucket.REFERENCES, KEY, broken(), content_type="audio/mpeg", size=None)
    assert files(folder) == set()


async def test_a_disk_that_refuses_is_unavailable(disk: DiskStore, folder: Path) -> None:
    (folder / "user").write_bytes(b"a file where a folder should be")
    with pytest.raises(StorageUnavailable) as refusal:
        await put(disk, b"RIFF", "audio/wav")
    assert str(folder) not in refusal.value.detail
    assert isinstance(refusal.value.__cause__, OSError)
    assert files(folder) == {"user"}
    with pytest.raises(StorageUnavailable):
        async with open_disk_store(StorageSettings(kind="disk", root=str(folder / "user")), b"k"):
            pytest.fail("this folder cannot be made")


async def test_a_disk_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    """A FIFO keeps whoever opens it waiting, as a network file system does when its server is gone."""
    store = DiskStore(tmp_path, LinkSigner(b"k"), {Bucket.REFERENCES: "references"}, deadline_seconds=0.2)
    (tmp_path / "references").mkdir()
    os.mkfifo(tmp_path / "references" / "stuck.wav")
    try:
        with pytest.raises(StorageUnavailable):
            await store.read(Bucket.REFERENCES, "stuck.wav", limit=10)
    finally:
        os.close(os.open(tmp_path / "references" / "stuck.wav", os.O_WRONLY | os.O_NONBLOCK))  # lets the thread go
        store.close()


async def test_a_reader_keeps_the_object_that_it_opened(disk: DiskStore) -> None:
    await put(disk, b"1" * 1_000_000, "audio/wav")
    async with disk.open_object(Bucket.REFERENCES, KEY) as found:
        await put(disk, b"2" * 10, "audio/wav")
        await disk.delete(Bucket.REFERENCES, KEY)
        assert found.about.size == 1_000_000
        assert b"".join([piece async for piece in found.slices(0, found.about.size)]) == b"1" * 1_000_000


async def test_the_probe_finds_a_folder_that_was_taken_away(disk: DiskStore, folder: Path) -> None:
    await disk.probe()
    (folder / ".incoming").rmdir()
    (folder / ".incoming").write_bytes(b"")
    with pytest.raises(StorageUnavailable) as refusal:
        await disk.probe()
    assert refusal.value.reason.startswith(f"{folder}: ")


async def test_links_are_relative_without_a_base_and_nobody_far_away_can_follow_them(disk: DiskStore) -> None:
    link = await disk.signed_get(Bucket.REFERENCES, KEY, expires_seconds=60, filename="a.wav")
    assert link.startswith(f"/api/storage/references/{KEY}?")
    absolute = await disk.signed_put(Bucket.REFERENCES, KEY, expires_seconds=60, base_url="https://speech.example/")
    assert absolute.startswith(f"https://speech.example/api/storage/references/{KEY}?")
    assert not disk.public


def test_a_link_is_for_one_method_bucket_key_name_and_time() -> None:
    from urllib.parse import parse_qsl, urlsplit

    signer = LinkSigner(b"a key")
    link = urlsplit(signer.path("GET", Bucket.REFERENCES, "a b/ä.wav", expires_seconds=60, filename="n.wav"))
    query = dict(parse_qsl(link.query))
    assert link.path == "/api/storage/references/a%20b/%C3%A4.wav"
    signer.check("GET", Bucket.REFERENCES, "a b/ä.wav", query)
    wrong = [
        ("PUT", Bucket.REFERENCES, "a b/ä.wav", query),
        ("GET", Bucket.GENERATIONS, "a b/ä.wav", query),
        ("GET", Bucket.REFERENCES, "a b/b.wav", query),
        ("GET", Bucket.REFERENCES, "a b/ä.wav", query | {"expires": str(int(query["expires"]) + 1)}),
        ("GET", Bucket.REFERENCES, "a b/ä.wav", query | {"filename": "other.wav"}),
        ("GET", Bucket.REFERENCES, "a b/ä.wav", query | {"signature": query["signature"][:-1]}),
        ("GET", Bucket.REFERENCES, "a b/ä.wav", query | {"signature": "ä"}),
        ("GET", Bucket.REFERENCES, "a b/ä.wav", {"expires": query["expires"]}),
        ("GET", Bucket.REFERENCES, "a b/ä.wav", {}),
    ]
    for method, bucket, key, altered in wrong:
        with pytest.raises(UtterError) as refusal:
            signer.check(method, bucket, key, altered)
        assert (refusal.value.status, refusal.value.category) == (403, "unauthorized")
    with pytest.raises(UtterError, match="not valid"):
        LinkSigner(b"another key").check("GET", Bucket.REFERENCES, "a b/ä.wav", query)
    late = urlsplit(signer.path("GET", Bucket.REFERENCES, "a.wav", expires_seconds=-1))
    with pytest.raises(UtterError, match="expired"):
        signer.check("GET", Bucket.REFERENCES, "a.wav", dict(parse_qsl(late.query)))
