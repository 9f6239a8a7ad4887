"""What a page, a poller and a listener see of a text is the same on both lanes that stream, but for the model's name.

The same text is spoken on each, and every answer is held against the other's: its members, and the values of those
that say something. What is as large or as late as it happens to be is compared by its type.
"""

import asyncio
import re
from typing import Any
from uuid import UUID

import httpx
import pytest

from server.dev.simulator import TO_MANY, Simulator
from server.settings import VC_REALTIME, Settings
from tests.end_to_end.conftest import QWEN_AUDIO
from tests.gateway import Client, insert_voice, read_events
from tests.support import wait_for, with_limits
from tests.voices import listed

TEXT = "Good morning to you. This is the second sentence."
LANES = (VC_REALTIME, QWEN_AUDIO)
# What these members say is compared; of all others, what kind of thing they are.
SAYING = {
    *(
        "type",
        "status",
        "provider_status",
        "provider",
        "error",
        "error_category",
        "error_message",
        "detail",
        "category",
    ),
    *(
        "format",
        "mime",
        "sample_rate",
        "header_bytes",
        "output_format",
        "tts_provider",
        "voice_name",
        "text",
        "language",
    ),
    *("streamable", "compatible", "varies", "provider_voice_kind", "source", "name", "is_long_running"),
}


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """Settings of a server that waits for its provider as usual, but for a provider that says nothing."""
    brief = {"first_delta_seconds": 0.5} if "silent" in request.node.name else {}
    return with_limits(settings, qwen_starts_per_minute=100_000, **brief)


@pytest.fixture
async def voices(database_url: str, client: Client) -> dict[str, UUID]:
    """A voice on each lane, by its model, alike in all but that."""
    return {model: await insert_voice(database_url, client.user_id, model=model) for model in LANES}


def seen(value: Any, name: str = "") -> Any:
    """An answer without what may differ from one speech to the next."""
    if isinstance(value, dict):
        return {key: seen(member, key) for key, member in value.items()}
    if isinstance(value, list):
        return [seen(member, name) for member in value]
    if name in SAYING or value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "<id>", value) if value.startswith("/api/g") else "str"
    return "number"


def headers_of(answer: httpx.Response) -> dict[str, str]:
    told_apart = {"date", "x-utter-generation-id", "x-utter-task-id", "x-request-id", "location", "content-length"}
    return {name: value for name, value in answer.headers.items() if name not in told_apart}


def without_ticket(entry: dict[str, Any]) -> dict[str, Any]:
    """A task as a listener or a poller reads it, whose stream's address is new each time."""
    return {key: (seen(value, key) if key != "stream_url" else "str") for key, value in entry.items()}


# In this order, though a listener is not told of each: what changes within a tick is told together.
STEPS = [None, "ws_connecting", "session_updated", "streaming", "finalizing", "completed", "failed"]


async def followed(client: Client, address: str, **headers: str) -> dict[str, Any]:
    """What a stream tells: its head, what each kind of event looks like, and its end."""
    told: dict[str, Any] = {"deltas": set(), "tasks": set(), "words": 0}
    steps: list[int] = []
    async with (
        httpx.AsyncClient(base_url=client.url, timeout=20.0) as anybody,
        anybody.stream("GET", address, headers={"Accept": "text/event-stream", **headers}) as response,
    ):
        told["head"] = (response.status_code, headers_of(response))
        async for event in read_events(response):
            if event.name == "response.audio.delta":
                told["deltas"].add((tuple(event.data), (event.id or "").isdigit()))
            elif event.name == "task":
                told["tasks"].add(tuple(key for key in event.data if key not in ("result", "stream_url")))
                told["end"] = (event.id, without_ticket(event.data))
                steps.append(STEPS.index(event.data["provider_status"]))
            else:
                told["words"] += 1
    assert steps == sorted(steps)
    return told


async def everything_of(client: Client, voice_id: UUID, simulator: Simulator) -> dict[str, Any]:
    """What there is to be seen of one text, from the request to long after."""
    plan = simulator.behave(
        "realtime", {"faults": [{"do": "hold", "at": "update"}, {"do": "hold", "name": "second", "after_deltas": 2}]}
    )
    posted = await client.http.post("/api/generate", json={"voice_id": str(voice_id), "text": TEXT, "speed": 1.2})
    answer = posted.json()
    await plan.held()

    async def connecting() -> dict[str, Any] | None:
        task = await client.task(answer["task_id"])
        return task if task["provider_status"] == "ws_connecting" else None

    first_poll = await wait_for(connecting)
    following = asyncio.create_task(followed(client, answer["stream_url"]))
    plan.release()
    ended = await client.ended(answer["task_id"])
    audio = await client.http.get(f"/api/generations/{answer['generation_id']}/audio")
    [entry] = (await client.http.get("/api/generations", params={"voice_id": str(voice_id)})).json()["generations"]
    captions = {
        form: (await client.http.get(f"/api/generations/{answer['generation_id']}/captions.{form}")).status_code
        for form in ("vtt", "srt")
    }
    return {
        "post": (posted.status_code, headers_of(posted), without_ticket(answer)),
        "first poll": without_ticket(first_poll),
        "stream": await following,
        "stream again": await followed(client, answer["stream_url"]),
        "end of the stream": await followed(client, answer["stream_url"], **{"Last-Event-ID": "1152"}),
        "last poll": without_ticket(ended),
        "audio": (audio.status_code, headers_of(audio)),
        "history": seen(entry),
        "form again": seen((await client.http.post(f"/api/generations/{answer['generation_id']}/regenerate")).json()),
        "captions": captions,
    }


async def test_a_speech_is_the_same_to_whoever_looks(
    client: Client, voices: dict[str, UUID], simulator: Simulator
) -> None:
    one, other = [await everything_of(client, voices[model], simulator) for model in LANES]
    # Where a lane gives no times there are no captions: that rule is the same, and this is what it comes to.
    assert one.pop("captions") == {"vtt": 404, "srt": 404}
    assert other.pop("captions") == {"vtt": 200, "srt": 200}
    for what, told in one.items():
        assert other[what] == told, what
    shown = {voice["provider_target_model"]: seen(voice) for voice in await listed(client)}
    assert shown[VC_REALTIME] == shown[QWEN_AUDIO]
    models = [call["model"] for call in simulator.calls if call["surface"] == "realtime"]
    assert models == list(LANES)


FAULTS: dict[str, dict[str, Any]] = {
    "refused by the content filter": {"do": "error", "at": "text", "code": "DataInspectionFailed"},
    "failed on their side": {"do": "error", "at": "text", "code": "InternalError"},
    "not paid": {"do": "error", "at": "text", "code": "Arrearage"},
    "key refused": {"refuse": 401},
    "not opened": {"refuse": 500},
    "throttled": {"do": "close", "at": "text", "code": 1011, "reason": TO_MANY},
    "no audio": {"audio": False},
    "silent": {"do": "silence", "at": "audio"},
    "closed before audio": {"do": "close", "at": "audio", "code": 1000},
    "gone": {"do": "error", "at": "text", "code": "VoiceNotFound", "message": "Voice not found"},
}


# These are tried again after pauses that are as long as they are.
PATIENT = {"not opened", "throttled"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in PATIENT else name for name in FAULTS]
)
async def test_a_fault_reads_the_same_on_both(
    client: Client, voices: dict[str, UUID], simulator: Simulator, name: str
) -> None:
    told = []
    for model in LANES:
        simulator.reset()
        simulator.behave("realtime", FAULTS[name], times=0)
        answer = await client.generate(voices[model], TEXT)
        ended = await client.ended(answer["task_id"])
        assert ended["status"] == "failed"
        sessions = sum(call["surface"] == "realtime" for call in simulator.calls)
        [entry] = (await client.http.get("/api/generations", params={"voice_id": str(voices[model])})).json()[
            "generations"
        ]
        again = await client.http.post("/api/generate", json={"voice_id": str(voices[model]), "text": TEXT})
        if again.status_code == 200:
            await client.ended(again.json()["task_id"])
        told.append(
            (
                without_ticket(ended),
                await followed(client, answer["stream_url"]),
                seen(entry),
                (again.status_code, seen(again.json()).get("detail")),
                sessions,
            )
        )
    assert told[0] == told[1]


@pytest.mark.parametrize("text", ["℃", "€ %"])
async def test_a_text_without_words_reads_the_same_on_both(
    client: Client, voices: dict[str, UUID], simulator: Simulator, text: str
) -> None:
    told = []
    for model in LANES:
        simulator.behave("realtime", {"audio": False})
        posted = await client.http.post("/api/generate", json={"voice_id": str(voices[model]), "text": text})
        ended = await client.ended(posted.json()["task_id"]) if posted.status_code == 200 else {}
        told.append((posted.status_code, without_ticket(ended)))
    assert told[0] == told[1]
