"""Removing an object that nobody may hear any more. Its record stays until the object is gone."""

import logging

from server.errors import StorageUnavailable
from server.parts import Parts
from server.records import removals
from server.storage import Bucket

logger = logging.getLogger(__name__)


async def remove(parts: Parts, *, bucket: str, object_key: str) -> None:
    """Remove one object, unless a row still shows it. If it fails, the sweep brings it again, after growing pauses."""
    if not await parts.database.patiently(removals.wanted, [object_key]):
        names = {
            parts.settings.storage.bucket_generations: Bucket.GENERATIONS,
            parts.settings.storage.bucket_references: Bucket.REFERENCES,
        }
        if bucket not in names:
            if await parts.database.patiently(removals.tries, bucket, object_key) <= 1:  # once is enough to be told
                logger.error(
                    "an object is to be removed from a bucket of another configuration", extra={"bucket": bucket}
                )
            return
        try:
            await parts.storage.delete(names[bucket], object_key)
        except StorageUnavailable as exc:
            if await parts.database.patiently(removals.tries, bucket, object_key) <= 1:
                extra = {"object_key": object_key, "reason": repr(exc.__cause__)}
                logger.warning("object not removed yet", extra=extra)
            return
    await parts.database.patiently(removals.forget, bucket, object_key)
