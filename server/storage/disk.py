"""Objects as files below one folder: ``<root>/<bucket>/<key>``.

A PUT writes a temporary file, syncs it, renames it and syncs the folder, so a reader finds the old object or the new
one and a power cut loses neither. File work runs in threads of the store's own, so that a slow disk holds up nobody
else. Signed links lead back to this server (`server.handlers.objects`).
"""

import asyncio
import contextlib
import functools
import mimetypes
import os
import stat
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, TypeVarTuple

from server.errors import NotFound, StorageUnavailable
from server.objects import key_segments
from server.settings import StorageSettings
from server.storage import PROBE_KEY, Bucket, StoredObject, bucket_names, collect, prove
from server.storage.links import LinkSigner

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SLICE_BYTES = 256 * 1024
# So many objects are asked for their size and age in one go; of the others a list keeps the names alone.
LOOKED_AT_ONCE = 1000
_THREADS = 8
_INCOMING = ".incoming"  # temporary files; no key can begin with a dot
_ABANDONED_AFTER_SECONDS = 3600.0
_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class OpenObject:
    """An object opened once: what ``about`` says is true of the bytes that ``slices`` yields, whatever is PUT since."""

    about: StoredObject
    etag: str
    slices: Callable[[int, int], AsyncGenerator[bytes, None]]


class DiskStore:
    """The store on a local disk. Several processes may share one folder.

    The content type of an object is told by its key's suffix. Where that would be wrong (a reference's key always ends
    in ``.wav``, whatever was uploaded), a note lies beside the file; it names the size and the time of the file it is
    about, so one left behind by a crash is never believed about another file.
    """

    public = False

    def __init__(
        self, root: Path, links: LinkSigner, names: dict[Bucket, str], *, deadline_seconds: float = 30.0
    ) -> None:
        self.links = links
        self._folders = {bucket: root / name for bucket, name in names.items()}
        self._deadline_seconds = deadline_seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk-store")

    async def put(
        self, bucket: Bucket, key: str, body: bytes | AsyncIterator[bytes], *, content_type: str, size: int | None
    ) -> None:
        """As in `ObjectStore`; a ``size`` of None takes what comes."""
        upload = _Upload(self._folders[bucket], key_segments(key), content_type)
        try:
            async for piece in _pieces(body):
                await self._in_thread(upload.write, piece)
                if size is not None and upload.written > size:
                    break
            if size is not None and upload.written != size:
                raise ValueError(f"The body of {key} does not have the {size} bytes that were announced.")
            await self._in_thread(upload.publish)
        finally:
            await self._in_thread(upload.discard)

    @asynccontextmanager
    async def open_object(self, bucket: Bucket, key: str) -> AsyncIterator[OpenObject]:
        """An object and what is known about it, from one opening of its file.

        Raises:
            NotFound: If there is no such object.
        """
        opened = await self._in_thread(_open, self._path(bucket, key), undo=_close)
        if opened is None:
            raise NotFound("This file does not exist.")
        file, facts, content_type = opened
        try:
            yield OpenObject(
                about=_stored(key, facts, content_type),
                etag=f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"',
                slices=functools.partial(self._slices, file),
            )
        finally:
            file.close()

    @asynccontextmanager
    async def open(
        self, bucket: Bucket, key: str, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self.open_object(bucket, key) as found:
            size = found.about.size
            until = size if stop is None else min(stop, size)
            async with contextlib.aclosing(found.slices(start, until)) as slices:
                yield slices

    async def read(self, bucket: Bucket, key: str, *, limit: int) -> bytes:
        async with self.open(bucket, key) as slices:
            return await collect(slices, limit=limit)

    async def head(self, bucket: Bucket, key: str) -> StoredObject | None:
        found = await self._in_thread(_stat, self._path(bucket, key))
        return None if found is None else _stored(key, *found)

    async def delete(self, bucket: Bucket, key: str) -> None:
        await self._in_thread(_delete, self._path(bucket, key))

    async def list(self, bucket: Bucket, *, after: str = "") -> AsyncIterator[StoredObject]:
        root = self._folders[bucket]
        # What is still to be read, the next of it last: of each folder on the way only the names. A folder's key ends
        # in a slash; that of the bucket itself is empty.
        waiting = [""]
        while waiting:
            if _is_folder(key := waiting.pop()):
                # One that ends before the place has nothing behind it.
                if os.fsencode(key) > os.fsencode(after) or after.startswith(key):
                    waiting += await self._in_thread(_keys_from_the_last, root, key)
                continue
            keys = [key]
            while waiting and len(keys) < LOOKED_AT_ONCE and not _is_folder(waiting[-1]):
                keys.append(waiting.pop())
            behind = [key for key in keys if key != PROBE_KEY and os.fsencode(key) > os.fsencode(after)]
            for stored in await self._in_thread(_all_stored, root, behind):
                yield stored

    async def signed_get(
        self, bucket: Bucket, key: str, *, expires_seconds: int, filename: str, base_url: str = "", head: bool = False
    ) -> str:
        """As in `ObjectStore`; a link for GET answers HEAD, too."""
        key_segments(key)
        path = self.links.path("GET", bucket, key, expires_seconds=expires_seconds, filename=filename)
        return base_url.rstrip("/") + path

    async def signed_put(
        self, bucket: Bucket, key: str, *, expires_seconds: int, base_url: str, size: int | None = None
    ) -> str:
        key_segments(key)
        return base_url.rstrip("/") + self.links.path("PUT", bucket, key, expires_seconds=expires_seconds, size=size)

    async def probe(self) -> None:
        await prove(self, {bucket: str(folder) for bucket, folder in self._folders.items()})

    async def prepare(self) -> None:
        """Make the folders, and clear away what uploads that died with their process left."""
        for folder in self._folders.values():
            await self._in_thread(_prepare, folder)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _path(self, bucket: Bucket, key: str) -> Path:
        return self._folders[bucket].joinpath(*key_segments(key))

    async def _slices(self, file: BinaryIO, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        at = start
        while at < stop:
            piece = await self._in_thread(_read_at, file, at, min(SLICE_BYTES, stop - at))
            if not piece:
                raise StorageUnavailable  # somebody cut the file while it was open
            at += len(piece)
            yield piece

    async def _in_thread(self, function: Callable[[*Ts], T], *args: *Ts, undo: Callable[[T], None] | None = None) -> T:
        """Run file work in a thread, within the deadline.

        A cancelled caller waits a moment for the thread first: what it does next is to close the file under it.

        Args:
            undo: What becomes of a result that comes after its caller has gone.
        """
        call = self._threads.submit(function, *args)
        waiting = asyncio.wrap_future(call)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            call.add_done_callback(functools.partial(_abandon, undo))
            waiting.add_done_callback(_heard)
            await asyncio.wait({waiting}, timeout=1.0)
            raise
        except OSError as exc:  # a TimeoutError is one, too
            call.add_done_callback(functools.partial(_abandon, undo))
            raise StorageUnavailable from exc


@asynccontextmanager
async def open_disk_store(settings: StorageSettings, link_key: bytes) -> AsyncIterator[DiskStore]:
    """The store below ``settings.root``, its folders made."""
    store = DiskStore(Path(settings.root), LinkSigner(link_key), bucket_names(settings))
    try:
        await store.prepare()
        yield store
    finally:
        store.close()


class _Upload:
    """One file on its way in. Its methods run in threads, one at a time even after a caller gave up waiting."""

    def __init__(self, folder: Path, segments: list[str], content_type: str) -> None:
        self.written = 0
        self._target = folder.joinpath(*segments)
        self._folder = folder
        self._content_type = content_type
        self._temporary = folder / _INCOMING / uuid.uuid4().hex
        self._file: BinaryIO | None = None
        self._ended = False
        self._lock = threading.Lock()

    def write(self, piece: bytes) -> None:
        with self._lock:
            self._opened().write(piece)
            self.written += len(piece)

    def publish(self) -> None:
        with self._lock:
            file = self._opened()
            file.flush()
            os.fsync(file.fileno())
            facts = os.fstat(file.fileno())
            file.close()
            _make_folders(self._target.parent, self._folder)
            note = _note_path(self._target)
            noted = _type_by_suffix(self._target) != self._content_type
            if noted:
                # First the note, then the file: a note about a file that never comes is believed by nobody.
                self._write_note(note, f"{facts.st_size} {facts.st_mtime_ns} {self._content_type}")
            self._temporary.replace(self._target)
            self._ended = True
            _sync_folder(self._target.parent)
            if not noted:
                note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing behind; harmless after `publish`."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            if not self._ended:
                self._ended = True
                self._temporary.unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._ended:
            raise OSError("this upload was given up")
        if self._file is None:
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("xb")
        return self._file

    def _write_note(self, note: Path, text: str) -> None:
        temporary = self._temporary.with_suffix(".type")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(note)
        finally:
            temporary.unlink(missing_ok=True)


async def _pieces(body: bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in slices of at least `SLICE_BYTES` (but the last): a thread's errand costs more than a small write."""
    if isinstance(body, bytes):
        yield body
        return
    gathered = bytearray()
    async for chunk in body:
        gathered += chunk
        if len(gathered) >= SLICE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def _stored(key: str, facts: os.stat_result, content_type: str | None) -> StoredObject:
    return StoredObject(key, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC), content_type)


def _open(path: Path) -> tuple[BinaryIO, os.stat_result, str] | None:
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    try:
        facts = os.fstat(file.fileno())
        return file, facts, _content_type(path, facts)
    except BaseException:
        file.close()
        raise


def _close(opened: tuple[BinaryIO, os.stat_result, str] | None) -> None:
    if opened is not None:
        opened[0].close()


def _stat(path: Path) -> tuple[os.stat_result, str] | None:
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (facts, _content_type(path, facts)) if stat.S_ISREG(facts.st_mode) else None


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _delete(path: Path) -> None:
    # Folders stay: removing an empty one could pull it from under a PUT that is about to rename into it.
    try:
        path.unlink(missing_ok=True)
        _note_path(path).unlink(missing_ok=True)
        _sync_folder(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return


def _is_folder(key: str) -> bool:
    return not key or key.endswith("/")


def _keys_from_the_last(root: Path, folder: str) -> list[str]:
    """What is in a folder, the last key first; what vanishes meanwhile is left out."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(root / folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    found.append(f"{folder}{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}")
    found.sort(key=os.fsencode, reverse=True)
    return found


def _all_stored(root: Path, keys: list[str]) -> list[StoredObject]:
    """These objects, but for those that vanished meanwhile."""
    stored = []
    for key in keys:
        with contextlib.suppress(FileNotFoundError):
            stored.append(_stored(key, (root / key).stat(), None))
    return stored


def _prepare(folder: Path) -> None:
    incoming = folder / _INCOMING
    incoming.mkdir(parents=True, exist_ok=True)
    before = time.time() - _ABANDONED_AFTER_SECONDS
    for abandoned in incoming.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if abandoned.stat().st_mtime < before:
                abandoned.unlink()


def _note_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.type")


def _type_by_suffix(path: Path) -> str:
    known = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".m4a": "audio/mp4"}
    return known.get(path.suffix) or mimetypes.guess_type(path.name)[0] or _UNKNOWN_TYPE


def _content_type(path: Path, facts: os.stat_result) -> str:
    try:
        size, modified, content_type = _note_path(path).read_text("utf-8").split(" ", 2)
    except (FileNotFoundError, ValueError):
        return _type_by_suffix(path)
    if (size, modified) != (str(facts.st_size), str(facts.st_mtime_ns)):
        return _type_by_suffix(path)
    return content_type


def _make_folders(folder: Path, root: Path) -> None:
    """Make ``folder`` below ``root``, every new entry synced into its parent."""
    missing: list[Path] = []
    while folder != root and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync_folder(new.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _heard(waiting: "asyncio.Future[Any]") -> None:
    """Take note of a failure that came after its caller had gone, e.g. since the file was closed under it."""
    if not waiting.cancelled():
        waiting.exception()


def _abandon(undo: Callable[[T], None] | None, call: "Future[T]") -> None:
    """Undo a call that nobody waits for any more; runs in its thread, however late that returns."""
    if undo is not None and not call.cancelled() and call.exception() is None:
        undo(call.result())
