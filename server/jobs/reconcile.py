"""What was left behind: bought and not kept, stored and not shown, spoken and not stored.

A report for the operator; nothing is changed without ``--store`` (complete what could not be stored) or ``--delete``
(remove objects that no row shows). Provider voices are only listed: deleting one cannot be undone.
"""

import logging
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from server.errors import ProviderError, StorageUnavailable
from server.jobs.finalize import store_speech
from server.parts import Parts
from server.providers.qwen.voice_enrollment import prefix_of
from server.records import leftovers, purchases, removals, runs
from server.records.purchases import Purchase
from server.storage import Bucket

logger = logging.getLogger(__name__)

T = TypeVar("T")
Say = Callable[[str], None]
BATCH = 1000
#: So many objects are named in a report; the rest is counted, however much was left behind.
MOST_LISTED = 10_000

# Names that ``purchases.provider_name`` gives, inside the provider's voice ids.
_OURS = re.compile(r"(?:^|-)(u[0-9a-f]{15}|u[0-9a-f]{9})(?=-|$)")


class Place(NamedTuple):
    """How far the objects have been looked at: those of the buckets in their order, each by its keys."""

    bucket: Bucket
    key: str

    def __str__(self) -> str:
        return f"{self.bucket.value}/{self.key}"

    @classmethod
    def of(cls, text: str) -> "Place":
        """The place that a report has named.

        Raises:
            ValueError: If it is none.
        """
        bucket, _, key = text.partition("/")
        return cls(Bucket(bucket), key)


class Leftovers(msgspec.Struct, kw_only=True):
    """Everything that was found, and what was done about it.

    Attributes:
        purchases: Calls whose end nobody knows.
        provider_voices: Voices that the provider keeps under our names and no row knows; with ``awaited_by`` those
            that a clone's next try may adopt.
        objects: Stored objects that no row shows, as ``bucket``, ``key`` and ``size``; the first ``MOST_LISTED``.
        further_objects: How many more of them there are.
        removals: Objects that are to be removed and are still there.
        unstored: Speeches that were paid for and could not be stored.
        problems: What could not be looked at.
    """

    purchases: list[dict[str, Any]] = []
    provider_voices: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    further_objects: int = 0
    removals: list[dict[str, Any]] = []
    unstored: list[dict[str, Any]] = []
    problems: list[str] = []


async def reconcile(
    parts: Parts,
    *,
    store_audio: bool = False,
    delete_objects: bool = False,
    after: Place | None = None,
    say: Say = logger.debug,
) -> Leftovers:
    """Look everywhere, and mend what was asked for; what was mended stays so where the rest is broken off.

    Args:
        after: Where a former look at the objects was broken off; the rest of the report is whole.
        say: Told how far it is, in short lines.
    """
    found = Leftovers()
    async with parts.database.connection() as connection:
        found.purchases = [_shown(purchase) for purchase in await purchases.undecided(connection)]
        found.removals = await removals.recorded(connection)
        unstored = await leftovers.unstored(connection)
    for run in unstored:
        stored = store_audio and await _store_late(parts, run, found)
        found.unstored.append({**run, "stored": stored})
    await _provider_voices(parts, found, say)
    buckets = list(Bucket)
    start = after or Place(buckets[0], "")
    for bucket in buckets[buckets.index(start.bucket) :]:
        place = start if bucket is start.bucket else Place(bucket, "")
        await _objects(parts, place, found, delete_objects, say)
    return found


def _shown(purchase: Purchase) -> dict[str, Any]:
    return {
        "kind": purchase.kind,
        "subject": purchase.subject,
        "user_id": purchase.user_id,
        "state": purchase.state,
        "provider_name": purchase.provider_name,
        "request_id": purchase.request_id,
        "since": purchase.updated_at,
    }


async def _store_late(parts: Parts, run: dict[str, Any], found: Leftovers) -> bool:
    task_id: UUID = run["task_id"]
    storable = await parts.database.patiently_for(10.0, runs.take_spoken, task_id, parts.leases.owner, "unstored")
    if storable is None:
        return False
    try:
        return await store_speech(parts, storable, run["object_key"], late=True)
    except StorageUnavailable as exc:
        found.problems.append(f"The audio of task {task_id} could not be stored: {exc.detail}")
        return False


async def _provider_voices(parts: Parts, found: Leftovers, say: Say) -> None:
    if not parts.settings.dashscope_api_key:
        return
    async with parts.database.connection() as connection:
        awaited = await leftovers.awaited_voices(connection)
    # The family that speaks in tasks keeps only the beginning of a name.
    awaited |= {prefix_of(name): subject for name, subject in awaited.items()}
    for kind, kept in parts.providers.voices_kept().items():
        try:
            async for batch in _batches(kept):
                ours = {voice.voice_id: match for voice in batch if (match := _OURS.search(voice.voice_id))}
                async with parts.database.connection() as connection:
                    known = await leftovers.known_voices(connection, list(ours))
                for voice in batch:
                    if voice.voice_id in ours.keys() - known:
                        name = ours[voice.voice_id][1]
                        entry = {"kind": kind, "voice": voice.voice_id, "target_model": voice.target_model}
                        awaited_by = {"awaited_by": awaited[name]} if name in awaited else {}
                        found.provider_voices.append({**entry, "created_at": voice.created_at, **awaited_by})
        except ProviderError as exc:
            found.problems.append(f"The provider's {kind} voices could not be listed: {exc.detail}")


async def _batches(things: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    """A thousand at a time: nothing else is kept of them."""
    batch: list[T] = []
    async for thing in things:
        batch.append(thing)
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _objects(parts: Parts, place: Place, found: Leftovers, delete: bool, say: Say) -> None:
    """Look at the objects of one bucket behind a place. Whoever is broken off has said where it was."""
    bucket = place.bucket
    old_enough = timedelta(seconds=parts.settings.retentions.keep_objects_seconds)
    looked_at = 0
    try:
        async for batch in _batches(parts.storage.list(bucket, after=place.key)):
            now = datetime.now(UTC)
            old = {stored.key: stored.size for stored in batch if now - stored.modified > old_enough}
            await _judge(parts, bucket, old, found, delete)
            looked_at, place = looked_at + len(batch), Place(bucket, batch[-1].key)
            if len(batch) >= BATCH:
                say(f"objects of {bucket.value}: {looked_at} looked at; to go on from here: --after '{place}'")
    except StorageUnavailable as exc:
        found.problems.append(
            f"The bucket of {bucket.value} could not be read: {exc.detail}"
            + (f" Go on with --after '{place}'." if place.key else "")
        )


async def _judge(parts: Parts, bucket: Bucket, batch: dict[str, int], found: Leftovers, delete: bool) -> None:
    async with parts.database.connection() as connection:
        wanted = await removals.wanted(connection, list(batch))
    for key, size in batch.items():
        if key in wanted:
            continue
        deleted = delete and await _delete(parts, bucket, key, found)
        if len(found.objects) < MOST_LISTED:
            found.objects.append({"bucket": bucket.value, "key": key, "size": size, "deleted": deleted})
        else:
            found.further_objects += 1


async def _delete(parts: Parts, bucket: Bucket, key: str, found: Leftovers) -> bool:
    """Delete an object unless it has got its row meanwhile."""
    async with parts.database.connection() as connection:
        if await removals.wanted(connection, [key]):
            return False
    try:
        await parts.storage.delete(bucket, key)
    except StorageUnavailable as exc:
        found.problems.append(f"{key} in the bucket of {bucket.value} could not be removed: {exc.detail}")
        return False
    return True


def table(found: Leftovers) -> str:
    """The report as a person reads it."""
    sections = [
        ("bought, with an unknown end", found.purchases),
        ("provider voices without a row", found.provider_voices),
        ("objects without a row", found.objects),
        ("objects still to be removed", found.removals),
        ("spoken, but not stored", found.unstored),
    ]
    lines: list[str] = []
    for title, entries in sections:
        further = found.further_objects if entries is found.objects else 0
        lines.append(f"{title}: {len(entries) + further or 'none'}")
        lines += [
            "  " + "  ".join(f"{name}={value}" for name, value in entry.items() if value is not None)
            for entry in entries
        ]
        if further:
            lines.append(f"  … and {further} more")
    return "\n".join([*lines, *(f"! {problem}" for problem in found.problems)])
