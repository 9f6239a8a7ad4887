"""Showing how far a task is, if the database is there: no speech waits until its progress is shown."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from server.database.connections import REFUSED
from server.parts import Parts
from server.records import speech

logger = logging.getLogger(__name__)


async def show(
    parts: Parts, task_id: UUID, attempt: int, provider_status: str, *, within_seconds: float | None = None
) -> None:
    """Show where the provider's work stands.

    Args:
        within_seconds: Leave it where the database takes longer, or somebody holds the row.
    """
    with unless_away(parts, task_id):
        async with asyncio.timeout(within_seconds), parts.database.connection() as connection:
            await speech.progress(connection, task_id, attempt, provider_status)


@contextmanager
def unless_away(parts: Parts, task_id: UUID) -> Iterator[None]:
    """For what is worth writing only while the database is there; whoever follows the task is told afterwards."""
    try:
        yield
    except REFUSED as exc:
        logger.warning("progress not shown", extra={"reason": type(exc).__name__})
    else:
        parts.announcer.changed(task_id)
