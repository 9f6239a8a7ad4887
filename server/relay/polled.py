"""Tasks that are polled: all that are asked for while one statement is under way are read together with the next.

A client that polls asks every second for minutes. However many do so, they take one connection, and leave the others to
those who speak.
"""

import asyncio
from typing import NamedTuple
from uuid import UUID

from server.database.connections import Database
from server.records import tasks
from server.records.tasks import SpeechTask

# So many are read with one statement; further ones come with the next.
AT_ONCE = 500


class _Asked(NamedTuple):
    task_id: UUID
    user_id: UUID
    answer: "asyncio.Future[SpeechTask | None]"


class PolledTasks:
    """Answers with the rows as they are after the question."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: list[_Asked] = []
        self._wake = asyncio.Event()

    async def find(self, task_id: UUID, user_id: UUID) -> SpeechTask | None:
        """The user's own task, hidden or not; None where it does not exist or belongs to somebody else.

        Raises:
            ConnectionError, TimeoutError, asyncpg.PostgresError: As `Database.connection`.
        """
        answer: asyncio.Future[SpeechTask | None] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(task_id, user_id, answer))
        self._wake.set()
        return await answer

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked[:AT_ONCE], self._asked[AT_ONCE:]
            if self._asked:
                self._wake.set()
            try:
                await self._answer(asked)
            except BaseException as exc:
                # Whatever it is, those who asked are told.
                told = exc if isinstance(exc, Exception) else ConnectionError("the process is leaving")
                for one in asked:
                    if not one.answer.done():
                        one.answer.set_exception(told)
                if told is not exc:
                    raise

    async def _answer(self, asked: list[_Asked]) -> None:
        async with self._database.connection() as connection:
            found = await tasks.find_several(connection, {(one.task_id, one.user_id) for one in asked})
        for one in asked:
            if not one.answer.done():  # whoever asked may have left
                one.answer.set_result(found.get((one.task_id, one.user_id)))
