"""The pace and the turns together: several processes, many users, and minutes that pass at once.

The statements and PostgreSQL are the real ones. Time jumps: what the rows say about the past is moved back by a second
at each step. So the time that the test itself takes counts as well, and no more than that is allowed for.
"""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest

from server.account.pace import AccountLedger
from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.metrics import Metrics
from server.providers.pacing import BURST_WORTH_SECONDS
from server.records import runs
from server.records.runs import SYNTHESIZE_JOB, Begins

Rows = Any
MODEL = "a-model"
RATE = 170
SECONDS = 90
WITHIN_SECONDS = 300.0


@dataclass
class World:
    """Processes that begin what waits, by one pace and by turns."""

    rows: Rows
    queue: Queue
    processes: list[tuple[AccountLedger, UUID]]
    users: dict[UUID, UUID] = field(default_factory=dict)
    begun: list[UUID] = field(default_factory=list)
    waits: dict[UUID, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def text(self, user_id: UUID) -> UUID:
        task_id = uuid4()
        self.users[task_id] = user_id
        begins = Begins(user_id=user_id, model=MODEL, within_seconds=WITHIN_SECONDS)
        await runs.add(
            self.rows, self.queue, task_id=task_id, job_name=SYNTHESIZE_JOB, object_key="a/b.mp3", begins=begins
        )
        return task_id

    async def second_passes(self) -> None:
        for statement in (
            "UPDATE internal.pace SET counted_at = counted_at - interval '1 second'",
            "UPDATE internal.turns SET counted_at = counted_at - interval '1 second'",
            """UPDATE internal.runs SET created_at = created_at - interval '1 second',
                      start_by = start_by - interval '1 second' WHERE state = 'queued'""",
        ):
            await self.rows.execute(statement)

    async def begin_what_may(self) -> None:
        """Each process in turn begins one, until nothing waits or the pace allows no more."""
        while True:
            for ledger, owner in self.processes:
                following = await runs.next_in_turn(self.rows, SYNTHESIZE_JOB, [])
                if following is None or await ledger.take(MODEL) > 0:
                    return
                claimed = await runs.claim(self.rows, following.task_id, following.attempt, owner)
                assert claimed, "nobody else was there"
                self.begun.append(following.task_id)
                self.waits[self.users[following.task_id]].append(claimed.waited_seconds)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [5, 10])
@pytest.mark.parametrize("per_minute", [170, 220])
async def test_waits_are_short_where_the_pace_allows_and_fair_where_it_does_not(
    database_url: str, rows: Rows, processes: int, per_minute: int
) -> None:
    """In between somebody leaves a pile of texts, and somebody else a single one behind it."""
    async with Database.open(database_url, size=4) as database:
        ledgers = [(AccountLedger(database, "account", RATE, Metrics()), uuid4()) for _ in range(processes)]
        world = World(rows, Queue(database, Listener(database_url)), ledgers)
        people, piler, single = [uuid4() for _ in range(10)], uuid4(), uuid4()
        began, due, asked = time.monotonic(), 0.0, 0
        for second in range(SECONDS):
            due += per_minute / 60
            while asked < int(due):
                await world.text(people[asked % len(people)])
                asked += 1
            if second == SECONDS // 2:
                for _ in range(60):
                    await world.text(piler)
            if second == SECONDS // 2 + 2:
                before = len(world.begun)
                alone = await world.text(single)
            await world.begin_what_may()
            await world.second_passes()
        passed = SECONDS + time.monotonic() - began
    assert len(world.begun) <= RATE / 60 * (passed + BURST_WORTH_SECONDS)
    assert world.begun.index(alone) - before <= 1, "a pile delays a single text by a turn at most"
    overdue = "SELECT count(*) FROM internal.runs WHERE state = 'queued' AND start_by < now()"
    assert await rows.fetchval(overdue) == 0, "nobody fails"
    counts = Counter(world.users[task_id] for task_id in world.begun)
    of_each = [counts[user_id] for user_id in people]
    assert max(of_each) - min(of_each) <= 3, "the same for all who ask for the same"
    longest = [max(world.waits[user_id]) for user_id in people]
    assert max(longest) <= 2 * min(longest) + 5.0
    if per_minute <= RATE:
        assert max(longest) < 30.0
