"""What the provider has retired, known to every process: met once, it is a state and not a thousand failures."""

import asyncio
import logging

from server.database.connections import REFUSED, Database
from server.errors import UtterError
from server.metrics import Metrics
from server.providers.qwen.errors import OPENED_AND_CLOSED, ModelRetired
from server.providers.resolver import Providers
from server.records import retired

logger = logging.getLogger(__name__)


class Retirements:
    """Keeps ``Providers.retired`` as the rows have it, and writes the rows."""

    def __init__(self, database: Database, providers: Providers, metrics: Metrics, *, every_seconds: float) -> None:
        self._database = database
        self._providers = providers
        self._metrics = metrics
        self._every_seconds = every_seconds
        self._turn = asyncio.Lock()  # what was read before a note was written must not be taken after it

    async def run(self) -> None:
        while True:
            try:
                await self.refresh()
            except REFUSED as exc:
                logger.warning("retired models not read", extra={"reason": type(exc).__name__})
            await asyncio.sleep(self._every_seconds)

    async def refresh(self) -> None:
        """Read what all processes have met."""
        async with self._turn, self._database.connection() as connection:
            self._take(await retired.names(connection, self._providers.account, doubtful=OPENED_AND_CLOSED))

    async def note(self, error: UtterError, name: str | None) -> None:
        """If an error says that a model or service is gone: from now on everybody here knows, and soon everybody."""
        if not isinstance(error, ModelRetired) or not name:
            return
        async with self._turn:
            await self._note(error, name)

    async def _note(self, error: ModelRetired, name: str) -> None:
        self._take(self._providers.retired | {name})
        reason = str(error.diagnostics.get("code") or error.diagnostics.get("close_code") or "")
        try:
            async with self._database.transaction() as connection:
                await retired.note(connection, self._providers.account, name, reason)
        except REFUSED as exc:
            logger.warning("a retired model was not written down", extra={"model": name, "reason": type(exc).__name__})
        else:
            logger.error("the speech provider has retired %s: run `python -m server doctor`", name)

    def _take(self, names: frozenset[str]) -> None:
        self._providers.retired = names
        self._metrics.models_retired(names)
