"""A process that dies when it is about to begin what has waited for a place."""

from tests.chaos.judge import judge
from tests.chaos.seams import before_the_claim
from tests.chaos.world import world
from tests.conftest import AWS_ENVIRONMENT


async def test_the_next_process_begins_it_once(s3_server: str) -> None:
    async with world(s3_server, AWS_ENVIRONMENT) as chaos:
        doomed = await chaos.start(SYNTHESIS_CONCURRENCY="1")
        async with before_the_claim(chaos, doomed, "This waits for it."):
            await chaos.kill(doomed)
        await chaos.start()
        assert await judge(chaos, within_seconds=60.0) == {"realtime completed": 2}
        assert len([call for call in chaos.simulator.calls if call["surface"] == "realtime"]) == 2
