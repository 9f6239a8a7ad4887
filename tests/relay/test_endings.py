"""What the log says of a speech that has ended."""

import logging

import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, insert_voice
from tests.support import wait_for


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_one_line_leads_from_a_complaint_to_its_reason(
    client: Client, simulator: Simulator, database_url: str, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    voice_id = await insert_voice(database_url, client.user_id)
    plan = None
    if status == "failed":
        simulator.behave("realtime", {"do": "error", "at": "text", "code": "DataInspectionFailed"})
    if status == "cancelled":
        plan = simulator.behave("realtime", {"do": "hold", "at": "audio"})

    def ended() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.message == "speech ended"]

    with caplog.at_level(logging.INFO):
        answer = await client.generate(voice_id, "Good evening.")
        if plan:
            await plan.held()
            await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")
            plan.release()
        assert (await client.ended(answer["task_id"]))["status"] == status
        await wait_for(ended)
    [line] = [vars(record) for record in ended()]
    assert line["task_id"] == answer["task_id"]
    assert line["generation_id"] == answer["generation_id"]
    assert (line["user_id"], line["status"], line["characters"]) == (str(client.user_id), status, "13")
    if status == "completed":
        assert line["seconds"] > 0
        assert 0 < line["first_audio_seconds"] < line["took_seconds"] + 1
    if status == "failed":
        assert (line["category"], line["code"]) == ("provider_rejected", "DataInspectionFailed")
    access = [record for record in caplog.records if record.name == "server.access" and hasattr(record, "task_id")]
    assert {vars(record)["task_id"] for record in access} == {answer["task_id"]}
    assert "POST /api/generate" in {record.message for record in access}
