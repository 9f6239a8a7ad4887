"""Tasks that end without their audio: the rows first, then everybody who counts or follows them."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal
from uuid import UUID

from server.announce import Announcer
from server.database import Connection, Database
from server.metrics import Metrics
from server.records import speech
from server.records.runs import Fenced
from server.records.speech import Ended, Ending

logger = logging.getLogger(__name__)


class Endings:
    """The one way in which this process ends a task that failed, or that nobody wants."""

    def __init__(self, database: Database, announcer: Announcer, metrics: Metrics) -> None:
        self._database = database
        self._announcer = announcer
        self._metrics = metrics

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
            # The row has the provider's own words; they may quote what somebody wrote, so the log has only its code.
            code = ending.facts.get("error", {}).get("code")
            extra = {"task_id": str(task_id), "status": ending.status, "category": ending.category, "code": code}
            logger.info("task ended", extra=extra)
        return ended.here
