"""Outages of the database that are long: what living processes speak meanwhile is theirs, and all of it is kept."""

import asyncio
from contextlib import ExitStack

import pytest

from tests.chaos.judge import judge
from tests.chaos.world import world
from tests.conftest import AWS_ENVIRONMENT
from tests.support import wait_for

_DELTA_BYTES = 1152
_TEXTS = 10


@pytest.mark.parametrize(("kind", "seconds"), [("refuses", 90.0), ("vanishes", 30.0)])
async def test_no_speech_of_two_healthy_processes_is_lost_while_the_database(
    s3_server: str, kind: str, seconds: float
) -> None:
    async with world(s3_server, AWS_ENVIRONMENT) as chaos:
        nodes = await asyncio.gather(chaos.start(), chaos.start())
        shape = {"minimum_bytes": 8 * _DELTA_BYTES, "delta_bytes": _DELTA_BYTES}
        plan = chaos.simulator.behave(
            "realtime", {**shape, "faults": [{"do": "hold", "after_deltas": 4}]}, times=_TEXTS, text_contains="outage"
        )
        for number in range(_TEXTS):
            said = await chaos.say(nodes[number % 2], "realtime", f"Text {number} of the outage.")
            assert said
        await plan.held(_TEXTS)
        # What nobody has heard yet may be spoken again; each of these was heard, so by then it is durable.
        await wait_for(lambda: all(said.heard for said in chaos.said))
        with ExitStack() as outage:
            for node in nodes:
                if kind == "vanishes":
                    outage.enter_context(node.door.held())
                else:
                    node.door.shut()
                    outage.callback(node.door.open)
            plan.release()  # all of them are spoken to their ends meanwhile
            await asyncio.sleep(seconds)
        assert await judge(chaos, within_seconds=90.0) == {"realtime completed": _TEXTS}
        spoken = [call["text"] for call in chaos.simulator.calls if "outage" in call["text"]]
        assert sorted(spoken) == sorted(said.text for said in chaos.said), "each was bought once"
