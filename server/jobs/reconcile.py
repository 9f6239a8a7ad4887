"""What was left behind: bought and not kept, stored and not shown, spoken and not stored.

A report for the operator; nothing is changed without ``--store`` (complete what could not be stored) or ``--delete``
(remove objects that no row shows). Provider voices are only listed: deleting one cannot be undone.
"""

import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any
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

# Names that ``purchases.provider_name`` gives, inside the provider's voice ids.
_OURS = re.compile(r"(?:^|-)(u[0-9a-f]{15}|u[0-9a-f]{9})(?=-|$)")


class Leftovers(msgspec.Struct, kw_only=True):
    """Everything that was found, and what was done about it.

    Attributes:
        purchases: Calls whose end nobody knows.
        provider_voices: Voices that the provider keeps under our names and no row knows; with ``awaited_by`` those
            that a clone's next try may adopt.
        objects: Stored objects that no row shows, as ``bucket``, ``key`` and ``size``.
        removals: Objects that are to be removed and are still there.
        unstored: Speeches that were paid for and could not be stored.
        problems: What could not be looked at.
    """

    purchases: list[dict[str, Any]] = []
    provider_voices: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    removals: list[dict[str, Any]] = []
    unstored: list[dict[str, Any]] = []
    problems: list[str] = []


async def reconcile(parts: Parts, *, store_audio: bool = False, delete_objects: bool = False) -> Leftovers:
    """Look everywhere, and mend what was asked for."""
    found = Leftovers()
    async with parts.database.connection() as connection:
        found.purchases = [_shown(purchase) for purchase in await purchases.undecided(connection)]
        found.removals = await removals.recorded(connection)
        unstored = await leftovers.unstored(connection)
    for run in unstored:
        stored = store_audio and await _store_late(parts, run, found)
        found.unstored.append({**run, "stored": stored})
    await _provider_voices(parts, found)
    for bucket in Bucket:
        await _objects(parts, bucket, found, delete_objects)
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


async def _provider_voices(parts: Parts, found: Leftovers) -> None:
    if not parts.settings.dashscope_api_key:
        return
    async with parts.database.connection() as connection:
        known = await leftovers.provider_voice_ids(connection)
        awaited = await leftovers.awaited_voices(connection)
    # The family that speaks in tasks keeps only the beginning of a name.
    awaited |= {prefix_of(name): subject for name, subject in awaited.items()}
    for kind, kept in parts.providers.voices_kept().items():
        try:
            async for voice in kept:
                ours = _OURS.search(voice.voice_id)
                if ours and voice.voice_id not in known:
                    entry = {"kind": kind, "voice": voice.voice_id, "target_model": voice.target_model}
                    awaited_by = {"awaited_by": awaited[ours[1]]} if ours[1] in awaited else {}
                    found.provider_voices.append({**entry, "created_at": voice.created_at, **awaited_by})
        except ProviderError as exc:
            found.problems.append(f"The provider's {kind} voices could not be listed: {exc.detail}")


async def _objects(parts: Parts, bucket: Bucket, found: Leftovers, delete: bool) -> None:
    old_enough = timedelta(seconds=parts.settings.retentions.keep_objects_seconds)
    try:
        batch: dict[str, int] = {}
        async for stored in parts.storage.list(bucket):
            if datetime.now(UTC) - stored.modified > old_enough:
                batch[stored.key] = stored.size
            if len(batch) >= 1000:
                await _judge(parts, bucket, batch, found, delete)
                batch = {}
        await _judge(parts, bucket, batch, found, delete)
    except StorageUnavailable as exc:
        found.problems.append(f"The bucket of {bucket.value} could not be read: {exc.detail}")


async def _judge(parts: Parts, bucket: Bucket, batch: dict[str, int], found: Leftovers, delete: bool) -> None:
    async with parts.database.connection() as connection:
        wanted = await removals.wanted(connection, list(batch))
    for key, size in batch.items():
        if key in wanted:
            continue
        deleted = delete and await _delete(parts, bucket, key, found)
        found.objects.append({"bucket": bucket.value, "key": key, "size": size, "deleted": deleted})


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
        lines.append(f"{title}: {len(entries) or 'none'}")
        lines += [
            "  " + "  ".join(f"{name}={value}" for name, value in entry.items() if value is not None)
            for entry in entries
        ]
    return "\n".join([*lines, *(f"! {problem}" for problem in found.problems)])
