"""A standby takes over that has not heard the last seconds: what living processes did in them is done."""

import asyncio

from tests.chaos.judge import judge
from tests.chaos.world import World, world
from tests.conftest import AWS_ENVIRONMENT
from tests.support import wait_for

_DELTA_BYTES = 1152
_LOST_SECONDS = 4.0


async def _standbys(chaos: World) -> int:
    async with chaos.rows() as rows:
        count: int = await rows.fetchval("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
        return count


async def test_what_was_stored_in_a_moment_that_is_lost_is_neither_spoken_again_nor_ended(s3_server: str) -> None:
    async with world(s3_server, AWS_ENVIRONMENT) as chaos:
        nodes = await asyncio.gather(chaos.start(), chaos.start())
        shape = {"minimum_bytes": 8 * _DELTA_BYTES, "delta_bytes": _DELTA_BYTES}
        plan = chaos.simulator.behave("realtime", {**shape, "faults": [{"do": "hold", "after_deltas": 4}]}, times=4)
        for node in nodes:
            assert await chaos.say(node, "realtime", f"Heard, stored and forgotten by {node.name}.")
            assert await chaos.say(node, "inference", f"Told in sentences. Stored and forgotten by {node.name}.")
        await plan.held(4)
        await wait_for(lambda: all(said.heard for said in chaos.said))
        failing_over = asyncio.create_task(chaos.fail_over(lose_seconds=_LOST_SECONDS))
        await wait_for(lambda: _standbys(chaos), 60.0)

        async def cut_off() -> bool:
            return not await _standbys(chaos)

        await wait_for(cut_off, 60.0, every_seconds=0.02)
        plan.release()
        await wait_for(lambda: all(said.end for said in chaos.said), _LOST_SECONDS / 2)
        assert not failing_over.done()
        assert await failing_over > 0, "something was lost"
        assert await judge(chaos, within_seconds=60.0) == {"realtime completed": 2, "inference completed": 2}
        assert len([call for call in chaos.simulator.calls if call["surface"] == "realtime"]) == 4
        assert "commits were lost" not in str(chaos.counted)
