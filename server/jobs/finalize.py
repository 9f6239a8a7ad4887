"""Storing what was spoken: the spool's bytes after their header, under a key that derives from the id.

Idempotent by the row: the upload is atomic and always of the same bytes, the publishing UPDATE names the state that
it leaves, and a finalizer that matched nothing asks the row whether its object is wanted
(docs/architecture.md, "When an object may be removed").
"""

import logging
from functools import partial
from uuid import UUID

from server.audio import duration_seconds, format_named
from server.database import Connection
from server.errors import StorageUnavailable
from server.parts import Parts
from server.records import removals, runs, speech
from server.records.runs import Storable
from server.relay.spool import read_spool
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
    if published:
        parts.metrics.task_ended(storable.provider, "completed", "")
    else:
        await _not_published(parts, task_id, object_key)
    parts.announcer.changed(task_id)


async def store_speech(parts: Parts, storable: Storable, object_key: str, *, late: bool = False) -> bool:
    """Upload and publish. False when the state has moved on meanwhile; the object may be there all the same.

    Raises:
        StorageUnavailable: Nothing was published.
    """
    audio_format = format_named(storable.format_name)
    payload = b"".join([part async for part in read_spool(parts.database, storable.task_id, storable.attempt)])
    if len(payload) != storable.byte_length:  # cancelled or deleted between the two reads
        return False
    header = audio_format.file_header(len(payload), storable.sample_rate_hz)
    await parts.storage.put(
        Bucket.GENERATIONS,
        object_key,
        header + payload,
        content_type=audio_format.mime,
        size=len(header) + len(payload),
    )
    seconds = duration_seconds(audio_format, payload, storable.sample_rate_hz)
    return await parts.database.patiently(
        speech.publish,
        storable,
        object_key=object_key,
        duration_seconds=seconds,
        bits_per_second=round(len(payload) * 8 / seconds) if seconds else 0,
        late=late,
    )


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
