"""The bad week in a minute: a death at many seams at once, a store that is away, and a deploy."""

import asyncio
from contextlib import AsyncExitStack

from tests.chaos.judge import judge
from tests.chaos.seams import SEAMS
from tests.chaos.world import world
from tests.conftest import AWS_ENVIRONMENT

# One process can stop at so many places at once; the long form (`make chaos`) dies at all of them one by one.
AT_ONCE = [
    "realtime: before the first audio",
    "inference: before the first audio",
    "realtime: in the middle of the audio",
    "inference: in the middle of the audio",
    "realtime: before the provider's end",
    "http: while a piece is bought",
    "clone: while a voice is bought",
    "realtime: before the upload",
    "realtime: between the two updates",
]


async def test_a_death_at_many_seams_an_outage_of_the_store_and_a_deploy(s3_server: str) -> None:
    async with world(s3_server, AWS_ENVIRONMENT) as chaos:
        doomed, other = await asyncio.gather(chaos.start(), chaos.start())
        async with AsyncExitStack() as stack:
            for number, seam in enumerate(AT_ONCE):
                await stack.enter_async_context(SEAMS[seam](chaos, doomed, f"Seam number {number}."))
            await chaos.kill(doomed)
            other.store.away = True
            for number in range(4):
                assert await chaos.say(other, "realtime", f"While the store is away, {number}.", listen_at=other)
            other.store.heal()
        successor = await chaos.start()
        for number in range(4):
            assert await chaos.say(other, "inference", f"Just before the deploy, {number}.")
        assert await chaos.leave(other) == 0
        assert await chaos.say(successor, "http", "After the deploy.")
        outcomes = await judge(chaos, within_seconds=60.0)
        print(outcomes)
        assert sum(number for outcome, number in outcomes.items() if outcome.endswith(" completed")) >= 13
