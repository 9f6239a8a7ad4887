"""Spacing the starts, on a clock that only the test moves."""

import asyncio
import time
from itertools import pairwise

import pytest

from server.errors import ProviderUnavailable
from server.providers.pacing import OwnLedger, Pacer

MODEL = "a-model"


class Clock:
    """A clock that jumps forward when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def starts(pacer: Pacer, clock: Clock, count: int) -> list[float]:
    """The times of so many starts, asked for as fast as they are let through."""
    times = []
    for _ in range(count):
        await pacer.start(MODEL)
        times.append(clock.now)
    return times


def rate_of(pacer: Pacer) -> float:
    assert isinstance(pacer.ledger, OwnLedger)
    return pacer.ledger.starts_per_minute


def pacer_on(clock: Clock, per_minute: float = 150) -> Pacer:
    return Pacer(OwnLedger(per_minute, clock), clock=clock, sleep=clock.sleep)


async def test_any_minute_holds_the_rate_and_a_small_burst(clock: Clock) -> None:
    times = await starts(pacer_on(clock), clock, 400)
    most = max(sum(1 for other in times if time <= other < time + 60) for time in times)
    assert 150 <= most <= 156
    assert times[-1] - times[0] == pytest.approx(395 * 0.4, abs=1)


async def test_first_starts_do_not_queue_but_keep_a_gap(clock: Clock) -> None:
    times = await starts(pacer_on(clock), clock, 5)
    assert times[-1] - times[0] < 0.05
    assert all(after - before > 0.0049 for before, after in pairwise(times))


async def test_throttle_halves_the_rate_once_per_burst(clock: Clock) -> None:
    pacer = pacer_on(clock)
    await starts(pacer, clock, 20)
    for _ in range(7):
        await pacer.throttled(MODEL)
    assert rate_of(pacer) == pytest.approx(75, rel=0.01)
    times = await starts(pacer, clock, 10)
    assert all(after - before > 0.7 for before, after in pairwise(times))
    clock.now += 10
    await pacer.throttled(MODEL)
    assert rate_of(pacer) == pytest.approx(40, rel=0.2)


async def test_rate_recovers_slowly_to_the_full(clock: Clock) -> None:
    pacer = pacer_on(clock)
    await pacer.throttled(MODEL)
    clock.now += 75
    assert rate_of(pacer) == pytest.approx(112.5, rel=0.01)
    clock.now += 600
    assert rate_of(pacer) == 150


async def test_many_throttles_never_stop_the_starts(clock: Clock) -> None:
    pacer = pacer_on(clock)
    for _ in range(50):
        await pacer.throttled(MODEL)
        clock.now += 5
    before = clock.now
    await pacer.start(MODEL)
    await pacer.start(MODEL)
    assert clock.now - before < 15


async def test_cancelled_waiter_gives_its_turn_to_the_next() -> None:
    pacer = Pacer(OwnLedger(60))  # two at once, then one a second
    await starts(pacer, Clock(), 2)
    waiters = [asyncio.create_task(pacer.start(MODEL)) for _ in range(3)]
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for waiter in waiters[:2]:
        waiter.cancel()
    await waiters[2]
    assert loop.time() - began < 1.5
    assert all(waiter.cancelled() for waiter in waiters[:2])


async def test_nobody_waits_beyond_the_time_by_which_a_speech_is_to_begin() -> None:
    pacer = Pacer(OwnLedger(1))
    await pacer.start(MODEL, by=time.monotonic() + 60.0)
    with pytest.raises(ProviderUnavailable) as caught:
        await pacer.start(MODEL, by=time.monotonic() + 0.02)
    assert not caught.value.throttled
    assert caught.value.diagnostics == {"code": "paced_out"}
