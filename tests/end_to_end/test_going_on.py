"""A speech outlives its process where its lane tells the sentences: the next process speaks the rest of it."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import miniaudio
import numpy as np
import pytest

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.end_to_end.conftest import QWEN_AUDIO
from tests.end_to_end.hearing import Ears
from tests.end_to_end.test_crash import IMPATIENT
from tests.gateway import Gateway, Process, insert_voice, process, running_gateway
from tests.support import make_settings, wait_for, with_limits

Samples: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SENTENCES = ["Good morning to you all. ", "This is the second of three. ", "And here it ends at last."]
TEXT = "".join(SENTENCES)
RATE_HZ = 24_000


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """Settings of a server that soon takes another one for dead."""
    usual = make_settings(database_url, simulator, tmp_path, qwen_starts_per_minute=100_000, shutdown_grace_seconds=2.0)
    return with_limits(usual, **IMPATIENT)


@pytest.fixture
def user_id() -> UUID:
    return uuid4()


@pytest.fixture
async def voice_id(database_url: str, user_id: UUID) -> UUID:
    return await insert_voice(database_url, user_id, model=QWEN_AUDIO)


@pytest.fixture
async def victim(settings: Settings, simulator: Simulator, tmp_path: Path) -> AsyncIterator[Process]:
    """A server process that something will happen to, soon where it is told to leave. No other is there yet."""
    async with process(settings, simulator, tmp_path / "victim.log", SHUTDOWN_GRACE_SECONDS="0.2") as started:
        yield started


def samples(audio: bytes, form: str) -> Samples:
    """What is heard of a stored file, from -1 to 1."""
    if form == "mp3":
        decoded = miniaudio.decode(audio, nchannels=1, sample_rate=RATE_HZ)
        return np.array(decoded.samples, dtype=float) / 32768
    return np.frombuffer(audio[44:], dtype="<i2") / 32768


def longest_silence_seconds(heard: Samples) -> float:
    """Counted in hundredths of a second."""
    step = RATE_HZ // 100
    longest = lasts = 0
    for loud in np.sqrt((heard[: len(heard) // step * step].reshape(-1, step) ** 2).mean(axis=1)):
        lasts = lasts + 1 if loud < 0.003 else 0
        longest = max(longest, lasts)
    return longest / 100


def likeness(part: Samples, whole: Samples, at: int) -> float:
    """How much a part is like the best place within a tenth of a second around ``at``; 1 is the same."""
    best = -1.0
    for start in range(max(0, at - RATE_HZ // 10), min(len(whole) - len(part), at + RATE_HZ // 10), 6):
        other = whole[start : start + len(part)]
        power = float(np.sqrt((part**2).sum() * (other**2).sum()))
        best = max(best, float((part * other).sum()) / power if power > 1e-6 else 1.0)
    return best


def assert_same_speech(heard: bytes, whole: bytes, form: str, *, joints: int = 1) -> None:
    """As long as the undisturbed one, and everything at its time: nothing twice and nothing missing."""
    one, other = samples(heard, form), samples(whole, form)
    assert abs(len(one) - len(other)) / RATE_HZ < 0.12 * joints
    assert longest_silence_seconds(one) < longest_silence_seconds(other) + 0.3
    if form == "wav":
        assert heard == whole
        return
    window = RATE_HZ // 5
    strange = 0
    for at in range(0, len(one) - window, window):
        part = one[at : at + window]
        if float(np.sqrt((part**2).mean())) > 0.01 and likeness(part, other, at) < 0.9:
            strange += 1
    assert strange <= joints, "only where two tasks are joined may anything sound otherwise"


async def whole_speech(gateway: Gateway, user_id: UUID, voice_id: UUID, form: str) -> bytes:
    """The same text, spoken by one process without any break."""
    async with gateway.client(user_id) as client:
        task = await client.generate(voice_id, TEXT, format=form)
        assert (await client.ended(task["task_id"]))["status"] == "completed"
        return await client.audio(task["generation_id"])


async def row_of(rows: Rows, task: dict[str, Any]) -> dict[str, Any]:
    found = await rows.fetchrow(
        """SELECT g.status, g.provider_metadata, r.state, r.attempt, r.byte_length, r.marked_characters
             FROM public.generations g LEFT JOIN internal.runs r ON r.generation_id = g.id WHERE g.id = $1""",
        UUID(task["generation_id"]),
    )
    assert found
    return dict(found)


@pytest.mark.parametrize("form", ["mp3", "wav"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to leave"])
async def test_the_next_process_speaks_the_rest(
    victim: Process,
    settings: Settings,
    simulator: Simulator,
    user_id: UUID,
    voice_id: UUID,
    rows: Rows,
    form: str,
    how: signal.Signals,
) -> None:
    """In the middle of the second sentence; somebody listens all along."""
    delta_bytes = 1152 if form == "mp3" else 4800
    deltas = round((2.3 * 16_000 if form == "mp3" else 2.3 * 48_000) / delta_bytes)
    plan = simulator.behave("realtime", {"delta_bytes": delta_bytes, "do": "hold", "after_deltas": deltas})
    async with victim.client(user_id) as client:
        task = await client.generate(voice_id, TEXT, format=form)
    await plan.held()
    await wait_for(lambda: _enough(rows, task, (deltas - 2) * delta_bytes))
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client, Ears(survivor.url) as ears:
        following = asyncio.create_task(ears.hear(task["stream_url"]))
        victim.send(how)
        await victim.exited()
        assert (await client.ended(task["task_id"]))["status"] == "completed"
        heard = (await following).audio
        stored = await client.audio(task["generation_id"])
        assert heard == (stored if form == "mp3" else stored[44:])
        assert_same_speech(stored, await whole_speech(survivor, user_id, voice_id, form), form)
    [again] = (await row_of(rows, task))["provider_metadata"]["attempts"]
    assert again["goes_on_at_character"] == len(SENTENCES[0])
    assert again["sentence_paid_again"]
    first, second = simulator.calls[:2]
    assert second["text"] == "".join(SENTENCES[1:])
    assert (first["seed"], first["voice"]) == (second["seed"], second["voice"])
    plan.release()


async def _enough(rows: Rows, task: dict[str, Any], byte_length: int) -> bool:
    return bool((await row_of(rows, task))["byte_length"] >= byte_length)
