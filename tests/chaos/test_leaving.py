"""A process that is told to leave while a job is being submitted: its client gets words, and the job is bought once."""

import asyncio
import signal

from tests.chaos.world import world
from tests.conftest import AWS_ENVIRONMENT


async def test_who_waits_for_a_submission_is_answered_in_json_when_the_process_leaves(s3_server: str) -> None:
    async with world(s3_server, AWS_ENVIRONMENT) as chaos:
        leaving = await chaos.start(TTS_PROVIDER_MODE="modal")
        plan = chaos.simulator.behave("modal", {"do": "hold"}, action="submit")
        async with chaos.client(leaving) as client:
            body = {"voice_id": str(chaos.voices["modal"]), "text": "Submitted while leaving."}
            asking = asyncio.create_task(client.http.post("/api/generate", json=body))
            await plan.held()
            leaving.process.send(signal.SIGTERM)
            answer = await asking
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/json"
        assert "try again" in answer.json()["detail"]
        assert await leaving.process.exited() == 0
        assert "Exception in ASGI application" not in leaving.process.log
        assert [call["action"] for call in chaos.simulator.calls].count("submit") == 1
