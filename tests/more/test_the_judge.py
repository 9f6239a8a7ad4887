"""The judge of the bad week sees what is wrong: one thing of each kind is put wrong behind everybody's back."""

import json

import pytest

from tests.chaos.judge import judge
from tests.chaos.world import World, world
from tests.conftest import AWS_ENVIRONMENT


async def _put_wrong(chaos: World) -> None:
    calls = chaos.simulator.ledger.calls
    chaos.said[0].heard[5:6] = b"?"
    calls.append({**next(call for call in calls if call["surface"] == "http")})
    calls.append({**next(call for call in calls if "Text 1" in call.get("text", ""))})
    chaos.simulator.ledger.record("modal", "submit", text="Bought behind the back.")
    async with chaos.rows() as rows:
        await rows.execute(
            "UPDATE public.tasks SET status = 'failed', error = NULL WHERE id = $1::text::uuid", chaos.said[2].task_id
        )
    with (chaos.folder / "p1.log").open("a") as log:
        log.write(json.dumps({"level": "error", "message": "something that nobody has heard of"}) + "\n")
        log.write("no log line at all\n")


async def test_the_judge_finds_one_of_each(s3_server: str) -> None:
    async with world(s3_server, AWS_ENVIRONMENT) as chaos:
        node = await chaos.start()
        for number in range(3):
            await chaos.say(node, "realtime", f"Text {number} is here. Text {number} goes on.")
        await chaos.say(node, "http", "Text 9 is here. Text 9 goes on.")
        await chaos.followed()
        await _put_wrong(chaos)
        with pytest.raises(AssertionError) as found:
            await judge(chaos, within_seconds=60.0)
    for words in (
        "others",
        "sent 2 times, with 0 interruptions",
        "its row tells of 0 more attempts",
        "its generation is completed",
        "failed without words",
        "heard completed, and the row says failed",
        "http: 'Text 9 is here. Text 9 goes on.' was bought at",
        "'Bought behind the back.' was bought at",
        "something that nobody has heard of",
        "printed 'no log line at all'",
    ):
        assert words in str(found.value), words
