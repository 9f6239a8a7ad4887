"""Tasks that are polled: read together, and each answered by itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.connections import Database
from server.relay import polled
from server.relay.polled import PolledTasks
from tests.support import wait_for

if TYPE_CHECKING:
    from server.database.connections import Connection

Rows = Any


class GatedDatabase(Database):
    """A database that lets nobody in while ``gate`` is not set, knows how often it was asked, and may refuse."""

    asked = 0
    refusal: Exception | None = None

    @contextlib.asynccontextmanager
    async def connection(self) -> "AsyncIterator[Connection]":
        self.asked += 1
        await self.gate.wait()
        if self.refusal:
            raise self.refusal
        async with super().connection() as connection:
            yield connection

    @property
    def gate(self) -> asyncio.Event:
        self._gate: asyncio.Event = getattr(self, "_gate", None) or asyncio.Event()
        return self._gate


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[GatedDatabase]:
    async with GatedDatabase.open(database_url, size=2) as opened:
        assert isinstance(opened, GatedDatabase)
        opened.gate.set()
        yield opened


@pytest.fixture
async def tasks_(database: GatedDatabase) -> AsyncIterator[PolledTasks]:
    reader = PolledTasks(database)
    reading = asyncio.create_task(reader.run())
    yield reader
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def new_task(rows: Rows, user_id: UUID) -> UUID:
    task_id: UUID = await rows.fetchval(
        "INSERT INTO public.tasks (user_id, type, status) VALUES ($1, 'generate', 'processing') RETURNING id", user_id
    )
    return task_id


async def asked_while_one_is_read(
    tasks_: PolledTasks, database: GatedDatabase, questions: list[tuple[UUID, UUID]]
) -> "list[asyncio.Task[Any]]":
    """Ask all of them while the first statement, of another question, waits at the gate."""
    database.gate.clear()
    first = asyncio.create_task(tasks_.find(uuid4(), uuid4()))
    await wait_for(lambda: database.asked)
    asking = [first, *(asyncio.create_task(tasks_.find(*question)) for question in questions)]
    await wait_for(lambda: len(tasks_._asked) == len(questions))
    return asking


async def test_all_that_are_asked_for_at_once_are_read_with_one_statement(
    tasks_: PolledTasks, database: GatedDatabase, rows: Rows
) -> None:
    ada, bob = uuid4(), uuid4()
    questions = [(await new_task(rows, user), user) for user in (ada, bob) for _ in range(20)]
    asking = await asked_while_one_is_read(tasks_, database, [*questions, *questions])
    database.gate.set()
    nobodys, *found = await asyncio.gather(*asking)
    assert nobodys is None
    assert [(task.id, task.user_id) for task in found] == questions * 2
    assert database.asked == 2


async def test_nobody_is_answered_with_the_task_of_somebody_who_asks_at_the_same_time(
    tasks_: PolledTasks, database: GatedDatabase, rows: Rows
) -> None:
    ada, bob = uuid4(), uuid4()
    of_ada = await new_task(rows, ada)
    asking = await asked_while_one_is_read(tasks_, database, [(of_ada, ada), (of_ada, bob)])
    database.gate.set()
    _, hers, his = await asyncio.gather(*asking)
    assert hers.id == of_ada
    assert his is None


async def test_the_answer_is_what_the_rows_say_after_the_question(
    tasks_: PolledTasks, database: GatedDatabase, rows: Rows
) -> None:
    user_id = uuid4()
    task_id = await new_task(rows, user_id)
    asking = await asked_while_one_is_read(tasks_, database, [(task_id, user_id)])
    await rows.execute("UPDATE public.tasks SET status = 'cancelled' WHERE id = $1", task_id)
    database.gate.set()
    assert (await asking[1]).status == "cancelled"


async def test_who_leaves_disturbs_nobody(tasks_: PolledTasks, database: GatedDatabase, rows: Rows) -> None:
    user_id = uuid4()
    question = (await new_task(rows, user_id), user_id)
    first, leaves, stays = await asked_while_one_is_read(tasks_, database, [question, question])
    first.cancel()
    leaves.cancel()
    database.gate.set()
    assert (await stays).id == question[0]
    assert (await tasks_.find(*question)) is not None


async def test_a_database_that_is_away_is_told_to_all_who_asked_and_to_nobody_later(
    tasks_: PolledTasks, database: GatedDatabase, rows: Rows
) -> None:
    user_id = uuid4()
    question = (await new_task(rows, user_id), user_id)
    asking = await asked_while_one_is_read(tasks_, database, [question, question])
    database.refusal = asyncpg.CannotConnectNowError("starting up")
    database.gate.set()
    told = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in told] == [asyncpg.CannotConnectNowError] * 3
    database.refusal = None
    assert (await tasks_.find(*question)) is not None


async def test_more_than_one_statement_may_read_come_with_the_next(
    tasks_: PolledTasks, database: GatedDatabase, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polled, "AT_ONCE", 4)
    user_id = uuid4()
    questions = [(await new_task(rows, user_id), user_id) for _ in range(10)]
    asking = await asked_while_one_is_read(tasks_, database, questions)
    database.gate.set()
    assert [task.id for task in (await asyncio.gather(*asking))[1:]] == [task_id for task_id, _ in questions]
    assert database.asked == 1 + 3


async def test_who_asks_while_the_process_leaves_is_told(database: GatedDatabase) -> None:
    tasks_ = PolledTasks(database)
    reading = asyncio.create_task(tasks_.run())
    asking = await asked_while_one_is_read(tasks_, database, [])
    reading.cancel()
    with pytest.raises(ConnectionError):
        await asking[0]
