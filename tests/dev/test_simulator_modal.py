"""The five simulated Modal endpoints and their traps."""

import asyncio
import base64
import io
import wave
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from server.dev.simulator import Simulator

REFERENCE = base64.b64encode(b"any recording will do").decode()
JOB = {
    "text": "A job of the simulation.",
    "language": "English",
    "ref_audio_base64": REFERENCE,
    "ref_text": "any recording",
    "max_new_tokens": 4096,
}


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    """A client that follows no redirect by itself."""
    async with httpx.AsyncClient(base_url=simulator.base_url, trust_env=False, timeout=10.0) as one:
        yield one


async def submitted(client: httpx.AsyncClient) -> str:
    answer = await client.post("/modal/submit", json=JOB)
    assert (answer.json()["status"], answer.json()["text_length"]) == ("submitted", len(str(JOB["text"])))
    return str(answer.json()["job_id"])


async def status(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await client.get("/modal/status", params={"job_id": job_id})
    assert answer.status_code == 200
    return dict(answer.json())


def seconds(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as file:
        return float(file.getnframes() / file.getframerate())


async def test_a_job_is_submitted_completed_and_fetched(simulator: Simulator, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    assert job_id.startswith("fc-")
    said = await status(client, job_id)
    assert (said["status"], said["result_ready"]) == ("completed", True)
    result = await client.get("/modal/result", params={"job_id": job_id})

    assert result.headers["content-type"] == "audio/wav"
    assert seconds(result.content) > 1
    assert [(call["surface"], call["action"], call["job_id"]) for call in simulator.calls] == [
        ("modal", "submit", job_id),
        ("modal", "status", job_id),
        ("modal", "result", job_id),
    ]


async def test_a_job_runs_for_as_long_as_it_was_told(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.behave("modal", {"job_seconds": 0.1, "cold_start_seconds": 0.3}, action="submit")
    job_id = await submitted(client)
    assert (await status(client, job_id))["status"] == "running"

    result = await client.get("/modal/result", params={"job_id": job_id})  # waits for up to 5 s
    assert result.status_code == 200


async def test_missing_fields_are_refused_with_400(client: httpx.AsyncClient) -> None:
    for field in ("text", "ref_audio_base64", "ref_text"):
        assert (await client.post("/modal/submit", json={**JOB, field: ""})).status_code == 400
    assert (await client.post("/modal/voice-design", json={"text": "x"})).status_code == 400
    assert (
        await client.post("/modal/voice-design", json={"text": "x", "instruct": "y", "language": "Klingon"})
    ).status_code == 400
    assert (await client.get("/modal/status")).status_code == 400
    assert (await client.post("/modal/cancel", json={})).status_code == 400


async def test_unknown_and_cancelled_jobs_are_called_failed(simulator: Simulator, client: httpx.AsyncClient) -> None:
    assert (await status(client, "fc-nobody-knows"))["status"] == "failed"
    assert (await client.get("/modal/result", params={"job_id": "fc-nobody-knows"})).status_code == 500
    assert (await client.post("/modal/cancel", json={"job_id": "fc-nobody-knows"})).status_code == 500

    simulator.behave("modal", {"job_seconds": 60}, action="submit")
    job_id = await submitted(client)
    cancelled = await client.post("/modal/cancel", json={"job_id": job_id})
    assert cancelled.json() == {"job_id": job_id, "status": "cancelled"}
    assert (await status(client, job_id))["status"] == "failed"
    assert (await client.get("/modal/result", params={"job_id": job_id})).status_code == 500


async def test_a_job_can_complete_although_it_was_cancelled(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.behave("modal", {"job_seconds": 0.2, "ignores_cancel": True}, action="submit")
    job_id = await submitted(client)

    assert (await client.post("/modal/cancel", json={"job_id": job_id})).json()["status"] == "cancelled"
    assert (await client.get("/modal/result", params={"job_id": job_id})).status_code == 200


async def test_failed_can_be_said_once_and_taken_back(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.behave("modal", {"job_seconds": 60}, action="submit")
    job_id = await submitted(client)
    simulator.behave("modal", {"reports": "failed"}, action="status", job_id=job_id)

    assert [(await status(client, job_id))["status"] for _ in range(2)] == ["failed", "running"]


async def test_a_job_that_fails_says_why(simulator: Simulator, client: httpx.AsyncClient) -> None:
    simulator.behave("modal", {"fails": "CUDA out of memory"}, action="submit")
    job_id = await submitted(client)

    assert (await status(client, job_id))["error"] == "CUDA out of memory"
    result = await client.get("/modal/result", params={"job_id": job_id})
    assert (result.status_code, result.json()) == (500, {"detail": "Failed to get result: CUDA out of memory"})


async def test_a_result_can_be_late_or_fail_after_completed(simulator: Simulator, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    simulator.behave("modal", {"reports": "processing"}, action="result")
    simulator.behave("modal", {"do": "answer", "status": 500, "json": {"detail": "no"}}, action="result")

    answers = [(await client.get("/modal/result", params={"job_id": job_id})).status_code for _ in range(3)]
    assert answers == [202, 500, 200]


async def test_cancel_can_fail_and_be_absent(simulator: Simulator, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    simulator.behave("modal", {"do": "answer", "status": 500, "json": {"detail": "no"}}, action="cancel")

    assert (await client.post("/modal/cancel", json={"job_id": job_id})).status_code == 500
    assert "MODAL_JOB_CANCEL" not in simulator.environment(modal_cancel=False)


@pytest.mark.parametrize("location", ["relative", "absolute"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_long_request_is_answered_behind_redirects_and_run_once(
    simulator: Simulator, client: httpx.AsyncClient, location: str, times: int
) -> None:
    simulator.behave("modal", {"redirects": times, "location": location}, action="design")
    address = simulator.environment()["MODAL_ENDPOINT_VOICE_DESIGN"]
    answer = await client.post(address, json={"text": "Designed.", "language": "Auto", "instruct": "A bright voice."})
    hops = 0
    while answer.status_code == 303:
        assert answer.headers["location"].startswith("http://" if location == "absolute" else "/modal/")
        address = urljoin(address, answer.headers["location"])
        answer = await client.get(address)
        hops += 1

    assert hops == times
    assert answer.headers["content-type"] == "audio/wav"
    assert seconds(answer.content) > 0.3
    assert [(call["action"], call["billed"]) for call in simulator.calls] == [("design", 1)]


async def test_a_submission_whose_answer_is_lost_is_a_job_all_the_same(
    simulator: Simulator, client: httpx.AsyncClient
) -> None:
    simulator.behave("modal", {"do": "hang"}, action="submit", text_contains="simulation")
    asking = asyncio.create_task(client.post("/modal/submit", json=JOB, timeout=30))
    await simulator.until(lambda calls: bool(calls) and bool(calls[0].get("unanswered")))
    asking.cancel()

    assert (await status(client, simulator.calls[0]["job_id"]))["status"] == "completed"
