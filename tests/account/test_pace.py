"""The account's pace: however many processes there are, together they start no more than the provider allows."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.account.pace import AccountLedger
from server.database.connections import Database
from server.metrics import Metrics
from server.providers.pacing import BURST_WORTH_SECONDS
from tests.postgres_proxy import postgres_proxy

Rows = Any
MODEL, OTHER_MODEL = "a-model", "another-model"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database.open(database_url, size=4) as opened:
        yield opened


async def minutes_pass(rows: Rows, seconds: float) -> None:
    """As if the last start had been counted so many seconds earlier."""
    await rows.execute("UPDATE internal.pace SET counted_at = counted_at - make_interval(secs => $1)", seconds)


async def granted(ledgers: list[AccountLedger], model: str = MODEL) -> int:
    """How many starts each of these processes in turn gets until all of them have to wait."""
    count = 0
    waiting = set(ledgers)
    while waiting:
        for ledger in list(waiting):
            if await ledger.take(model):
                waiting.discard(ledger)
            else:
                count += 1
    return count


async def test_processes_share_one_pace(database: Database, rows: Rows) -> None:
    """Ten processes, each configured for 170 a minute, are one account of 170 a minute."""
    processes = [AccountLedger(database, "account", 170, Metrics()) for _ in range(10)]
    began = time.monotonic()
    burst = await granted(processes)
    most = 170 / 60 * (BURST_WORTH_SECONDS + time.monotonic() - began)
    assert 5 <= burst <= most
    began = time.monotonic()
    started = 0
    for _ in range(60):
        await minutes_pass(rows, 1.0)
        started += await granted(processes)
    passed = 60.0 + time.monotonic() - began
    assert 165 <= started <= 170 / 60 * passed + 1


async def test_what_is_not_used_is_void(database: Database, rows: Rows) -> None:
    ledger = AccountLedger(database, "account", 150, Metrics())
    assert 5 <= await granted([ledger]) <= 7
    await minutes_pass(rows, 3600)
    assert 5 <= await granted([ledger]) <= 7, "a burst, and what the test itself took"


async def test_a_clock_that_jumps_back_takes_nothing_away(database: Database, rows: Rows) -> None:
    ledger = AccountLedger(database, "account", 150, Metrics())
    await granted([ledger])
    await minutes_pass(rows, -3600)
    assert 0 < await ledger.take(MODEL) < 1
    await minutes_pass(rows, 2)
    assert await ledger.take(MODEL) == 0


async def test_models_and_accounts_are_counted_by_themselves(database: Database) -> None:
    ledger = AccountLedger(database, "account", 60, Metrics())
    assert 2 <= await granted([ledger]) <= 3
    assert await ledger.take(OTHER_MODEL) == 0
    assert await AccountLedger(database, "another account", 60, Metrics()).take(MODEL) == 0


async def test_a_throttle_that_one_process_hears_slows_all_once(database: Database, rows: Rows) -> None:
    first, second = [AccountLedger(database, "account", 120, Metrics()) for _ in range(2)]
    await granted([first, second])
    for ledger in (first, second, first):
        await ledger.slow_down(MODEL)
    assert await rows.fetchval("SELECT share FROM internal.pace") == pytest.approx(0.5, abs=0.02)
    await minutes_pass(rows, 1.0)
    assert 1 <= await granted([first, second]) <= 2
    await rows.execute("UPDATE internal.pace SET share = 0.9")
    await minutes_pass(rows, 60.0)
    await second.take(MODEL)
    assert await rows.fetchval("SELECT share FROM internal.pace") == 1.0


async def test_many_at_once_get_no_start_twice(database: Database) -> None:
    ledgers = [AccountLedger(database, "account", 150, Metrics()) for _ in range(40)]
    waits = await asyncio.gather(*[ledger.take(MODEL) for ledger in ledgers])
    assert 5 <= waits.count(0.0) <= 9, "a burst, and what the test itself took"


async def test_nothing_starts_while_nobody_counts(database_url: str) -> None:
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=4) as database:
        ledger = AccountLedger(database, "account", 150, Metrics())
        door.shut()
        taking = asyncio.create_task(ledger.take(MODEL))
        done, _ = await asyncio.wait({taking}, timeout=0.5)
        assert not done
        door.open()
        assert await asyncio.wait_for(taking, 10.0) == 0.0
