"""Storing what was spoken: the spool's bytes after their header, under a key that derives from the id.

Idempotent by the row: the upload is atomic and always of the same bytes, the publishing UPDATE names the state that
it leaves, and a finalizer that matched nothing asks the row whether its object is wanted
(docs/architecture.md, "When an object may be removed").
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from uuid import UUID

from server.audio import duration_seconds, format_named
from server.database.connections import Connection
from server.errors import StorageUnavailable
from server.parts import Parts
from server.records import removals, runs, speech
from server.records.runs import Storable
from server.relay.live import AudioLog
from server.relay.spool import spooled
from server.storage import Bucket

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 300.0


async def finalize(parts: Parts, *, task_id: UUID, object_key: str) -> None:
    """Store one spoken run and publish it; try again later where storage is away."""
    storable = await parts.database.patiently(runs.take_spoken, task_id, parts.leases.owner)
    if storable is None:
        await _not_published(parts, task_id, object_key)
        return
    with parts.leases.hold(task_id, storable.attempt):
        try:
            published = await store_speech(parts, storable, object_key)
        except StorageUnavailable as exc:
            await _later(parts, storable, object_key, exc)
            return
    await _told(parts, storable, object_key, published)


async def store_spoken(parts: Parts, storable: Storable, object_key: str, log: AudioLog, job: int | None) -> None:
    """Store a speech from the memory of the process that has just spoken it.

    Args:
        job: The one that would store it later; it has nothing left to do afterwards.

    Raises:
        StorageUnavailable, TimeoutError: Not now, for so many others wait to be stored or the store is away; the job
            tries again, in whichever process is free.
    """
    async with asyncio.timeout(parts.settings.deadlines.store_elsewhere_seconds):
        await parts.storing.acquire()
    try:
        uploaded = await _upload(parts, storable, object_key, lambda: log.read(0, log.length))
    finally:
        parts.storing.release()
    published = uploaded is not None and await _publish(parts, storable, object_key, uploaded, job=job)
    if published and uploaded is not None:
        again = partial(_publish_again, parts, storable, object_key, uploaded)
        parts.kept.keep_stored(storable.task_id, storable.attempt, again)
    await _told(parts, storable, object_key, published)


async def store_speech(parts: Parts, storable: Storable, object_key: str, *, late: bool = False) -> bool:
    """Upload what the spool holds, and publish it. False when the state has moved on meanwhile.

    Raises:
        StorageUnavailable: Nothing was published.
    """
    pieces: list[bytes] = []
    start = 0
    while start < storable.byte_length:
        fresh = await parts.database.patiently_say(spooled, storable.task_id, start=start)
        if not fresh:  # cancelled or deleted between the two reads
            return False
        pieces += fresh
        start += sum(map(len, fresh))
    async with parts.storing:
        uploaded = await _upload(parts, storable, object_key, lambda: b"".join(pieces))
    return uploaded is not None and await _publish(parts, storable, object_key, uploaded, late=late)


class _Uploaded(NamedTuple):
    payload_bytes: int
    seconds: float

    @property
    def bits_per_second(self) -> int:
        return round(self.payload_bytes * 8 / self.seconds) if self.seconds else 0


class _File(NamedTuple):
    content: bytes
    uploaded: _Uploaded


def _file(storable: Storable, payload: Callable[[], bytes]) -> _File:
    audio_format, rate = format_named(storable.format_name), storable.sample_rate_hz
    whole = payload()
    seconds = duration_seconds(audio_format, whole, rate)
    return _File(audio_format.file_header(len(whole), rate) + whole, _Uploaded(len(whole), seconds))


async def _upload(parts: Parts, storable: Storable, object_key: str, payload: Callable[[], bytes]) -> _Uploaded | None:
    """Put the file into the store; all that takes long in threads, for the streams beside it must not feel it.

    Returns:
        None where the audio is not as long as its run says: cancelled or deleted meanwhile.
    """
    file = await asyncio.to_thread(_file, storable, payload)
    if file.uploaded.payload_bytes != storable.byte_length:
        return None
    await parts.storage.put(
        Bucket.GENERATIONS,
        object_key,
        file.content,
        content_type=format_named(storable.format_name).mime,
        size=len(file.content),
    )
    return file.uploaded


async def _publish(
    parts: Parts,
    storable: Storable,
    object_key: str,
    uploaded: _Uploaded,
    *,
    late: bool = False,
    job: int | None = None,
) -> bool:
    """False when the state has moved on meanwhile; the object may be there all the same."""
    return await parts.database.patiently(
        speech.publish,
        parts.queue,
        storable,
        object_key=object_key,
        duration_seconds=uploaded.seconds,
        bits_per_second=uploaded.bits_per_second,
        late=late,
        job=job,
    )


async def _publish_again(parts: Parts, storable: Storable, object_key: str, uploaded: _Uploaded) -> bool:
    """The database has forgotten that this was published, and perhaps that its user has removed it since."""
    with contextlib.suppress(StorageUnavailable):  # nobody knows, and it was there a moment ago
        if await parts.storage.head(Bucket.GENERATIONS, object_key) is None:
            return False
    published = await parts.database.patiently(
        speech.publish_again,
        parts.queue,
        storable,
        parts.leases.owner,
        object_key=object_key,
        duration_seconds=uploaded.seconds,
        bits_per_second=uploaded.bits_per_second,
    )
    parts.announcer.changed(storable.task_id)
    return published


async def _told(parts: Parts, storable: Storable, object_key: str, published: bool) -> None:
    if published:
        parts.metrics.task_ended(storable.provider, "completed", "")
        await parts.endings.log(storable.task_id)
    else:
        await _not_published(parts, storable.task_id, object_key)
    parts.announcer.changed(storable.task_id)


async def _not_published(parts: Parts, task_id: UUID, object_key: str) -> None:
    """Nothing was published here: leave the object, remove it, or try again, as the row says."""

    async def decide(connection: Connection) -> str:
        verdict = await speech.verdict(connection, task_id, object_key)
        if verdict == "unwanted":
            await speech.end(connection, task_id, speech.CANCELLED)
            await removals.record(
                connection,
                parts.queue,
                parts.generations_bucket,
                object_key,
                asked_by=None,
                reason="ended while storing",
            )
        return verdict

    verdict = await parts.database.patiently(decide)
    if verdict == "open":
        # Not spoken (any more), yet not ended: another attempt is under way, or the sweep will bring one.
        logger.warning("nothing to store yet", extra={"task_id": str(task_id)})


async def _later(parts: Parts, storable: Storable, object_key: str, exc: StorageUnavailable) -> None:
    """Pauses grow with the time that has passed, so they double; after a day we give up and keep the audio."""
    waited = storable.spoken_for_seconds
    logger.warning(
        "audio not stored, trying again",
        extra={"task_id": str(storable.task_id), "waited_seconds": round(waited), "reason": repr(exc.__cause__)},
    )
    parts.metrics.finalize_retried()
    if waited > parts.settings.deadlines.finalize_seconds:
        give_up = partial(speech.give_up_storing, storable=storable)
        await parts.endings.end_by(storable.task_id, speech.NOT_STORED, give_up)
        return
    pause = min(LONGEST_PAUSE_SECONDS, max(1.0, waited))
    await parts.database.patiently(runs.defer_finalize, parts.queue, storable.task_id, object_key, in_seconds=pause)
    parts.announcer.changed(storable.task_id)
