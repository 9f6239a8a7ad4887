"""A process that is told to leave while jobs are being submitted: its clients are told which task to ask for."""

import asyncio
import signal

from tests.chaos.world import world
from tests.conftest import AWS_ENVIRONMENT


async def test_a_submission_outlives_its_request_and_ends_with_words_beyond_the_grace(s3_server: str) -> None:
    async with world(s3_server, AWS_ENVIRONMENT) as chaos:
        leaving, successor = await asyncio.gather(
            chaos.start(TTS_PROVIDER_MODE="modal", SHUTDOWN_GRACE_SECONDS="6"), chaos.start()
        )
        in_time, too_late = (
            chaos.simulator.behave("modal", {"do": "hold"}, action="submit", text_contains=when)
            for when in ("in time", "too late")
        )
        async with chaos.client(leaving) as client:
            asking = [
                asyncio.create_task(client.generate(chaos.voices["modal"], f"Taken {when}."))
                for when in ("in time", "too late")
            ]
            await asyncio.gather(in_time.held(), too_late.held())
            leaving.process.send(signal.SIGTERM)
            taken, lost = await asyncio.gather(*asking)  # before the provider has said anything
        in_time.release()
        assert await leaving.process.exited() == 0
        async with chaos.client(successor) as client:
            assert (await client.ended(taken["task_id"]))["status"] == "completed"
            failed = await client.task(lost["task_id"])
        assert failed["status"] == "failed"
        assert "did not confirm" in failed["error"]
        async with chaos.rows() as rows:
            unknown = await rows.fetch("SELECT subject FROM internal.purchases WHERE state = 'unknown'")
        assert [str(row["subject"]) for row in unknown] == [lost["task_id"]]
        assert [call["action"] for call in chaos.simulator.calls].count("submit") == 2
        assert "Exception in ASGI application" not in leaving.process.log
