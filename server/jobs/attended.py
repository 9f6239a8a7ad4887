"""Ending what nobody follows any more: a client of the OpenAI-shaped door that hangs up wants no speech.

Every process says what is followed in it, and every process looks for what is followed in none. Only one that has said
so without a gap looks: after an outage the others may not have been able to say anything yet.
"""

import asyncio
import logging
import random
import time

from server.database.connections import REFUSED
from server.parts import Parts
from server.records import attended, speech

logger = logging.getLogger(__name__)

FORGET_EVERY = 30


async def attend(parts: Parts) -> None:
    """Say what is followed here and end what nobody follows, until cancelled."""
    unfollowed_seconds = parts.settings.deadlines.unfollowed_seconds
    every_seconds = min(2.0, unfollowed_seconds / 5)
    unbroken_since = time.monotonic()
    rounds = 0
    while True:
        await asyncio.sleep(every_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing
        rounds += 1
        try:
            if followed := parts.following.followed():
                async with parts.database.connection() as connection:
                    await attended.note_followed(connection, followed)
            if time.monotonic() - unbroken_since >= unfollowed_seconds:
                await _end_abandoned(parts, unfollowed_seconds)
            if rounds % FORGET_EVERY == 0:
                async with parts.database.connection() as connection:
                    await attended.forget_old(connection)
        except REFUSED as exc:
            logger.warning("cannot say what is followed here", extra={"reason": type(exc).__name__})
            unbroken_since = time.monotonic()


async def _end_abandoned(parts: Parts, unfollowed_seconds: float) -> None:
    while True:
        async with parts.database.transaction() as connection:
            task_id = await attended.take_abandoned(connection, unfollowed_seconds)
            if task_id is None:
                return
            await speech.cancel(connection, parts.queue, parts.generations_bucket, task_id)
        logger.info("speech ended, nobody follows it any more", extra={"task_id": str(task_id)})
        await parts.leases.tell_owner(task_id)
        parts.announcer.changed(task_id)
