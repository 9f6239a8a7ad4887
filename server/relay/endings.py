"""Tasks that end without their audio: the rows first, then everybody who counts or follows them."""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal
from uuid import UUID

import anyio

from server.database.announce import Announcer
from server.database.connections import REFUSED, Connection, Database
from server.metrics import Metrics
from server.records import speech, tasks
from server.records.runs import Fenced
from server.records.speech import Ended, Ending

logger = logging.getLogger(__name__)

_SPEECHES_REMEMBERED = 10_000
_READ_SECONDS = 3.0


class Endings:
    """The one way in which this process ends a task that failed, or that nobody wants."""

    def __init__(self, database: Database, announcer: Announcer, metrics: Metrics) -> None:
        self._database = database
        self._announcer = announcer
        self._metrics = metrics
        self._first_audio: dict[UUID, float] = {}

    def heard(self, task_id: UUID, seconds: float) -> None:
        """The first audio of a speech of this process came so long after its request; for its line in the log."""
        while len(self._first_audio) >= _SPEECHES_REMEMBERED:
            del self._first_audio[next(iter(self._first_audio))]
        self._first_audio[task_id] = round(seconds, 3)

    async def log(self, task_id: UUID) -> bool:
        """One line about a speech that has ended, by whose ids a complaint leads to everything else in the log.
        False where it is no speech, or cannot be read now.

        The row has the provider's own words, too; they may quote what somebody wrote, so the log has only its code.
        """
        first = self._first_audio.pop(task_id, None)
        facts = None
        # Whoever ended it has been told so by now, and is often cancelled for it.
        with anyio.move_on_after(_READ_SECONDS, shield=True), contextlib.suppress(*REFUSED):
            async with self._database.connection() as connection:
                facts = await tasks.summary(connection, task_id)
        if facts:
            shown = {name: str(value) if isinstance(value, UUID) else value for name, value in facts.items()}
            # Of the request that asked; whoever ended it may be another process, or have been asked by another request.
            if shown["request_id"] is None:
                del shown["request_id"]
            logger.info("speech ended", extra={**shown, "first_audio_seconds": first})
        return facts is not None

    async def end(
        self,
        task_id: UUID,
        ending: Ending,
        *,
        attempt: int,
        state: Literal["queued", "speaking"] = "speaking",
        for_seconds: float | None = None,
    ) -> bool:
        """End this attempt, unless something else has ended or taken it already; whether it was done here.

        Args:
            for_seconds: How long to wait for a lost database; what is left then, the sweep of another process finds.
        """
        move = partial(speech.end, task_id=task_id, ending=ending, attempt=attempt, state=state)
        return await self.end_by(task_id, ending, move, for_seconds=for_seconds)

    async def end_by(
        self,
        task_id: UUID,
        ending: Ending,
        move: Callable[[Connection], Awaitable[Ended]],
        *,
        for_seconds: float | None = None,
    ) -> bool:
        """The same, where the rows move in a way of their own.

        Args:
            move: What is done in the transaction, and done again where the database was away.
        """
        try:
            ended = await self._database.patiently_for(for_seconds, move)
        except Fenced:
            return False
        finally:
            self._announcer.changed(task_id)
        if ended.here:
            self._metrics.task_ended(ended.provider, ending.status, ending.category)
            if not await self.log(task_id):
                code = ending.facts.get("error", {}).get("code")
                extra = {"task_id": str(task_id), "status": ending.status, "category": ending.category, "code": code}
                logger.info("task ended", extra=extra)
        return ended.here
