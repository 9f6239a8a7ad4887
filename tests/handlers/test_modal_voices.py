"""Voices in modal mode: a recording is all there is to a voice, and a preview is a long request."""

import asyncio
import hashlib
from base64 import b64encode
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from server.audio import parse_wav
from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import Client, Gateway, running_gateway
from tests.handlers.wire import problem_of
from tests.modal import in_modal_mode, recording
from tests.support import wait_for

Rows = Any
DESIGN = {"text": "Good evening, everybody.", "language": "English", "instruct": "A warm, low voice."}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return in_modal_mode(settings, modal_result_pauses_seconds=(0.01,))


async def uploaded(client: Client, content: bytes, transcript: str = "What I say.") -> dict[str, Any]:
    """What finalize is to be asked for, after the recording was put where it belongs."""
    body = {"name": "Grace", "language": "English", "transcript": transcript}
    link = (await client.http.post("/api/clone/upload-url", json=body)).json()
    async with httpx.AsyncClient() as anybody:
        put = await anybody.put(link["upload_url"], content=content, headers={"Content-Type": "audio/wav"})
    assert put.status_code == 200
    return {**body, "voice_id": link["voice_id"]}


async def previewed(client: Client, **changes: str) -> dict[str, Any]:
    """The task of a finished preview."""
    answer = await client.http.post("/api/voices/design/preview", json={**DESIGN, **changes})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "pending"
    return await client.ended(answer.json()["task_id"])


async def audio_of(task: dict[str, Any]) -> bytes:
    async with httpx.AsyncClient() as anybody:
        response = await anybody.get(task["result"]["audio_url"])
    assert response.status_code == 200
    return response.content


async def save(client: Client, audio: bytes | None, **changes: str) -> httpx.Response:
    fields = {"name": "Alan", **DESIGN, **changes}
    if audio is None:
        return await client.http.post("/api/voices/design", json=fields)
    files = {"audio": ("preview.wav", audio, "audio/wav")}
    return await client.http.post("/api/voices/design", data=fields, files=files)


# --- cloning ----------------------------------------------------------------------------------------------------------


async def test_a_recording_becomes_a_voice_without_any_call(client: Client, simulator: Simulator, rows: Rows) -> None:
    audio = recording()
    wanted = await uploaded(client, audio)
    answers = await asyncio.gather(*(client.http.post("/api/clone/finalize", json=wanted) for _ in range(5)))
    assert {answer.text for answer in answers} == {answers[0].text}
    assert answers[0].json() == {"id": wanted["voice_id"], "name": "Grace"}
    assert simulator.calls == []
    [voice] = (await client.http.get("/api/voices")).json()["voices"]
    assert (voice["tts_provider"], voice["compatible"], voice["streamable"]) == ("modal", True, False)
    assert (voice["source"], voice["reference_transcript"]) == ("uploaded", "What I say.")
    assert [voice[f"provider_{name}"] for name in ("voice_id", "target_model", "voice_kind")] == [None] * 3

    answer = await client.generate(UUID(voice["id"]), "The voice speaks.")
    [submitted] = simulator.calls
    assert submitted["voice"] == hashlib.sha256(b64encode(audio)).hexdigest()
    assert submitted["transcript"] == "What I say."
    assert (await client.ended(answer["task_id"]))["status"] == "completed"


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"MZ this is no recording" * 100, "WAV, MP3 or M4A"), (recording(2.0), "at least 3 seconds")],
)
async def test_recordings_are_judged_as_in_the_other_mode(
    client: Client, rows: Rows, content: bytes, says: str
) -> None:
    refused = await client.http.post("/api/clone/finalize", json=await uploaded(client, content))
    problem_of(refused, 400, "validation", says=says)
    assert await rows.fetchval("SELECT count(*) FROM public.voices") == 0


async def test_a_voice_without_transcript_is_stored_and_cannot_speak(client: Client) -> None:
    """The page lets an empty transcript through in this mode; the sentence comes when it matters."""
    wanted = await uploaded(client, recording(), transcript="")
    assert (await client.http.post("/api/clone/finalize", json=wanted)).status_code == 200
    body = {"voice_id": wanted["voice_id"], "text": "Hello."}
    problem_of(await client.http.post("/api/generate", json=body), 400, "validation", says="transcript")


async def test_a_clone_whose_recording_is_missing_is_refused(client: Client) -> None:
    wanted = {"voice_id": str(uuid4()), "name": "Grace", "language": "Auto", "transcript": "What I say."}
    refused = await client.http.post("/api/clone/finalize", json=wanted)
    assert problem_of(refused, 400, "validation") == "Audio file not uploaded."


# --- designing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        {},
        {"redirects": 3, "location": "relative"},
        {"redirects": 1, "location": "absolute", "pending": 2},
        {"cold_start_seconds": 0.2},
    ],
)
async def test_a_preview_is_made_and_saved_as_a_voice(
    client: Client, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    simulator.behave("modal", behaviour, action="design")
    task = await previewed(client)
    assert (task["status"], task["provider"], task["modal_status"]) == ("completed", "modal", None)
    [call] = simulator.calls
    assert (call["action"], call["text"], call["language"]) == ("design", DESIGN["text"], "English")
    audio = await audio_of(task)
    assert parse_wav(audio).frames > 0

    await client.http.delete(f"/api/tasks/{task['id']}")  # the page does so before it saves
    saved = await save(client, audio)
    assert saved.status_code == 200, saved.text
    voice = saved.json()
    assert (voice["name"], voice["source"], voice["description"]) == ("Alan", "designed", DESIGN["instruct"])
    [listed] = (await client.http.get("/api/voices?source=designed")).json()["voices"]
    assert (listed["tts_provider"], listed["compatible"], listed["reference_transcript"]) == (
        "modal",
        True,
        DESIGN["text"],
    )
    redirect = await client.http.get(f"/api/voices/{voice['id']}/preview")
    assert redirect.status_code == 302
    answer = await client.generate(UUID(voice["id"]))
    assert simulator.calls[-1]["voice"] == hashlib.sha256(b64encode(audio)).hexdigest()
    assert (await client.ended(answer["task_id"]))["status"] == "completed"


async def test_a_preview_can_be_saved_by_its_task_alone_and_is_one_voice(client: Client) -> None:
    task = await previewed(client)
    voices = await asyncio.gather(*(save(client, None, task_id=task["id"]) for _ in range(5)))
    assert {voice.status_code for voice in voices} == {200}
    assert len({voice.json()["id"] for voice in voices}) == 1
    [listed] = (await client.http.get("/api/voices")).json()["voices"]
    assert listed["compatible"] is True


async def test_what_is_no_preview_is_not_saved(gateway: Gateway, client: Client, rows: Rows) -> None:
    problem_of(await save(client, None), 400, "validation", says="WAV")
    problem_of(await save(client, b"ID3 an MP3, perhaps"), 400, "validation", says="WAV")
    problem_of(await save(client, b""), 400, "validation", says="WAV")
    problem_of(await save(client, b"RIFF\0\0\0\0WAVE"), 400, "validation", says="WAV")
    problem_of(await save(client, None, task_id=str(uuid4())), 404, "not_found")
    task = await previewed(client)
    async with gateway.client() as stranger:
        problem_of(await save(stranger, None, task_id=task["id"]), 404, "not_found")
    assert await rows.fetchval("SELECT count(*) FROM public.voices") == 0


async def test_a_preview_that_is_too_large_is_refused(client: Client) -> None:
    problem_of(await save(client, recording(1.0) + bytes(10 * 1024 * 1024)), 413, "too_large")


@pytest.mark.parametrize(
    ("behaviour", "category"),
    [
        ({"do": "answer", "status": 400, "json": {"detail": "Unsupported language"}}, "provider_rejected"),
        ({"do": "answer", "status": 500, "json": {"detail": "boom"}}, "provider_unavailable"),
        ({"do": "abort"}, "timeout"),
    ],
)
async def test_a_preview_that_fails_says_so(
    client: Client, simulator: Simulator, behaviour: dict[str, Any], category: str
) -> None:
    simulator.behave("modal", behaviour, action="design", times=0)
    task = await previewed(client)
    assert (task["status"], task["error_category"]) == ("failed", category)
    assert "boom" not in task["error"]


async def test_a_preview_reads_processing_until_it_ends_and_can_be_cancelled(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows
) -> None:
    held = simulator.behave("modal", {"do": "hold"}, action="design")
    task_id = (await client.http.post("/api/voices/design/preview", json=DESIGN)).json()["task_id"]
    assert (await client.task(task_id))["status"] == "processing"
    await held.held()
    assert (await client.http.post(f"/api/tasks/{task_id}/cancel")).json()["cancelled"] is True
    held.release()
    await wait_for(lambda: not gateway.parts.leases.speaking)
    assert (await client.task(task_id))["status"] == "cancelled"
    assert await rows.fetchval("SELECT count(*) FROM internal.runs") == 0


async def test_a_shutdown_in_the_middle_of_a_preview_leaves_it_to_the_next_process(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    held = simulator.behave("modal", {"do": "hold"}, action="design")
    hasty = in_modal_mode(settings, shutdown_grace_seconds=0.1)
    async with running_gateway(hasty) as gateway, gateway.client() as client:
        task_id = (await client.http.post("/api/voices/design/preview", json=DESIGN)).json()["task_id"]
        await held.held()
    async with running_gateway(settings) as gateway, gateway.client(client.user_id) as client:
        assert (await client.ended(task_id))["status"] == "completed"
