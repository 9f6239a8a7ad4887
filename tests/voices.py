"""What tests of voices share: recordings, cloning them, and previews of designs."""

from typing import Any
from uuid import UUID

import httpx

from server.dev.simulator import Call, Simulator
from tests.audio.samples import tone, wav
from tests.gateway import Client
from tests.support import wait_for

TRANSCRIPT = "What the recording says, word for word."
DESIGN = {"text": "Good evening, and welcome.", "language": "English", "instruct": "A calm, low voice."}


def recording(seconds: float = 4.0, sample_rate_hz: int = 24_000, *, channels: int = 1) -> bytes:
    """A WAV file that can be cloned from."""
    samples = tone(seconds, sample_rate_hz, channels=channels).tobytes()
    return wav(samples, sample_rate_hz=sample_rate_hz, channels=channels)


def creations(simulator: Simulator, feature: str | None = None) -> list[Call]:
    """The calls that made, or were to make, a voice."""
    calls = [call for call in simulator.calls if call["surface"] == "customization" and call["action"] == "create"]
    return [call for call in calls if feature in (None, call.get("feature"))]


def billed(simulator: Simulator) -> int:
    """How many voices the provider has made and would send a bill for."""
    return sum(call.get("billed", 0) for call in creations(simulator))


def listings(simulator: Simulator) -> int:
    """How often the provider was asked which voices it has."""
    return sum(call["surface"] == "customization" and call["action"] == "list" for call in simulator.calls)


async def upload(client: Client, content: bytes, *, mime: str = "audio/wav", **fields: Any) -> str:
    """Ask for an address and PUT a recording to it, without a token; the new voice's id."""
    asked = {"name": "Ada", "language": "English", "transcript": TRANSCRIPT, **fields}
    answer = await client.http.post("/api/clone/upload-url", json=asked)
    assert answer.status_code == 200, answer.text
    async with httpx.AsyncClient(timeout=30.0) as anybody:
        put = await anybody.put(answer.json()["upload_url"], content=content, headers={"Content-Type": mime})
    assert put.status_code == 200, put.text
    voice_id: str = answer.json()["voice_id"]
    return voice_id


async def finalize(client: Client, voice_id: str | UUID, **fields: Any) -> httpx.Response:
    """POST /api/clone/finalize."""
    asked = {"voice_id": str(voice_id), "name": "Ada", "language": "English", "transcript": TRANSCRIPT, **fields}
    return await client.http.post("/api/clone/finalize", json=asked)


async def cloned(client: Client, content: bytes | None = None, **fields: Any) -> str:
    """A voice, cloned as a browser does it; its id."""
    voice_id = await upload(client, content or recording())
    answer = await finalize(client, voice_id, **fields)
    assert answer.status_code == 200, answer.text
    return voice_id


async def listed(client: Client, **query: Any) -> list[dict[str, Any]]:
    """GET /api/voices."""
    answer = await client.http.get("/api/voices", params=query)
    assert answer.status_code == 200, answer.text
    voices: list[dict[str, Any]] = answer.json()["voices"]
    return voices


async def start_preview(client: Client, **fields: Any) -> str:
    """POST /api/voices/design/preview; the task's id."""
    headers = {"Idempotency-Key": fields.pop("key")} if "key" in fields else {}
    answer = await client.http.post("/api/voices/design/preview", json={**DESIGN, **fields}, headers=headers)
    assert answer.status_code == 200, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


async def previewed(client: Client, **fields: Any) -> str:
    """A completed preview; its task's id."""
    task_id = await start_preview(client, **fields)
    task = await client.ended(task_id)
    assert task["status"] == "completed", task
    return task_id


async def save(client: Client, task_id: str | None = None, *, name: str = "Grace", **fields: Any) -> httpx.Response:
    """POST /api/voices/design as JSON."""
    asked = {"name": name, **DESIGN, **fields}
    if task_id is not None:
        asked["task_id"] = task_id
    return await client.http.post("/api/voices/design", json=asked)


async def save_form(
    client: Client, task_id: str | None = None, *, audio: bytes | None = b"RIFF....", name: str = "Grace", **fields: Any
) -> httpx.Response:
    """POST /api/voices/design as a form, as the page in use sends it."""
    asked = {"name": name, **DESIGN, **fields}
    if task_id is not None:
        asked["task_id"] = task_id
    files = {key: (None, value) for key, value in asked.items()}
    form: dict[str, Any] = {**files}
    if audio is not None:
        form["audio"] = ("preview.wav", audio, "audio/wav")
    return await client.http.post("/api/voices/design", files=form)


async def purchase(rows: Any, subject: str | UUID, part: int = 0) -> dict[str, Any] | None:
    """One row of the record of what was bought."""
    row = await rows.fetchrow(
        "SELECT * FROM internal.purchases WHERE subject = $1 AND part = $2", UUID(str(subject)), part
    )
    return dict(row) if row else None


async def purchase_in(rows: Any, subject: str | UUID, state: str, part: int = 0) -> dict[str, Any]:
    """The purchase once it has come to this state."""

    async def there() -> dict[str, Any] | None:
        row = await purchase(rows, subject, part)
        return row if row and row["state"] == state else None

    return await wait_for(there)


async def lapse(rows: Any, subject: str | UUID) -> None:
    """Whoever is buying this has been silent for too long."""
    await rows.execute(
        "UPDATE internal.purchases SET lease_until = now() - interval '1 second' WHERE subject = $1", UUID(str(subject))
    )
