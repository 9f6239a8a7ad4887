"""A speech that is taken from its process in the middle, the one that goes on with it, and what is heard of both."""

import asyncio
import base64
import math
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import miniaudio
import numpy as np

from server.dev.simulator import Simulator
from server.dev.simulator.speech import Coding, Manner, pieces_of, sound_of
from server.settings import Settings
from tests.end_to_end.conftest import QWEN_AUDIO
from tests.end_to_end.hearing import EVENTS, Ears
from tests.gateway import Gateway, Process, insert_voice, process, read_events, running_gateway
from tests.support import make_settings, wait_for, with_limits

Samples: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SENTENCES = ["Good morning to you all. ", "This is the second of three. ", "And here it ends at last."]
TEXT = "".join(SENTENCES)
RATE_HZ = 24_000
# Three MP3 frames, and a tenth of a second of samples.
DELTA_BYTES = {"mp3": 1152, "wav": 4800}
# A server that soon takes another one for dead.
IMPATIENT = {
    "renew_every_seconds": 0.3,
    "lost_after_seconds": 2.0,
    "sweep_every_seconds": 0.1,
    "idle_run_seconds": 0.5,
    "store_elsewhere_seconds": 0.5,
}


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
        """SELECT g.id::text AS id, g.status, g.error_message, g.provider_metadata, r.state, r.attempt,
                  coalesce(r.byte_length, 0) AS byte_length
             FROM public.generations g LEFT JOIN internal.runs r ON r.generation_id = g.id WHERE g.id = $1""",
        UUID(task["generation_id"]),
    )
    assert found
    return dict(found)


async def hear_until_broken(server_url: str, url: str) -> bytes:
    """What a listener hears of a process until that is gone."""
    heard = b""
    try:
        async with (
            httpx.AsyncClient(base_url=server_url, timeout=20.0) as anybody,
            anybody.stream("GET", url, headers=EVENTS) as response,
        ):
            async for event in read_events(response):
                if event.name == "response.audio.delta":
                    heard += base64.b64decode(event.data["delta"])
    except httpx.HTTPError:
        pass
    return heard


@dataclass
class Stage:
    """A voice of the lane that goes on, and what servers need to speak with it."""

    settings: Settings
    simulator: Simulator
    rows: Rows
    folder: Path
    user_id: UUID
    voice_id: UUID

    @classmethod
    async def set(cls, database_url: str, simulator: Simulator, rows: Rows, folder: Path) -> "Stage":
        usual = make_settings(database_url, simulator, folder, qwen_starts_per_minute=100_000)
        user_id = uuid4()
        voice_id = await insert_voice(database_url, user_id, model=QWEN_AUDIO)
        settings = with_limits(usual, shutdown_grace_seconds=2.0, **IMPATIENT)
        return cls(settings, simulator, rows, folder, user_id, voice_id)

    @asynccontextmanager
    async def process(self, name: str) -> AsyncIterator[Process]:
        """A process of its own, which leaves its speeches soon when it is told to leave."""
        log = self.folder / f"{name}.log"
        async with process(self.settings, self.simulator, log, SHUTDOWN_GRACE_SECONDS="0.2") as started:
            yield started

    async def deltas(self, form: str) -> list[int]:
        """After how many deltas each sentence ends."""
        manner = Manner(sound_of(f"{QWEN_AUDIO}-ada-{1:032x}"), "English")
        coding = Coding("mp3" if form == "mp3" else "pcm", RATE_HZ, 128)
        utterance = self.simulator.speech.utterance(pieces_of(TEXT), manner, coding)
        sizes = [len(await utterance.chunk(index)) for index in range(len(SENTENCES))]
        counts = [math.ceil(size / DELTA_BYTES[form]) for size in sizes]
        return [sum(counts[: index + 1]) for index in range(len(counts))]

    async def kept(self, task: dict[str, Any], call: int) -> None:
        """Wait until what the provider has sent in its last session is in the spool, but for what is no whole frame."""

        async def enough() -> bool:
            row = await row_of(self.rows, task)
            return bool(row["byte_length"] >= self.simulator.calls[call]["audio_bytes"] - 500)

        await wait_for(enough)

    async def across(self, form: str, how: signal.Signals, **fault: Any) -> dict[str, Any]:
        """Have the text spoken by two processes, the first of which is gone at the given moment.

        Somebody listens to the first, and goes on with the second; somebody else listens to the second alone.

        Returns:
            What the row says in the end.
        """
        plan = self.simulator.behave("realtime", {"delta_bytes": DELTA_BYTES[form], "do": "hold", **fault})
        async with self.process("first") as first:
            async with first.client(self.user_id) as client:
                task = await client.generate(self.voice_id, TEXT, format=form)
            near = asyncio.create_task(hear_until_broken(first.url, task["stream_url"]))
            await plan.held()
            await self.kept(task, 0)
            async with (
                running_gateway(self.settings) as second,
                second.client(self.user_id) as client,
                Ears(second.url) as ears,
            ):
                far = asyncio.create_task(ears.hear(task["stream_url"]))
                first.send(how)
                await first.exited()
                plan.release()
                before = await near
                rest = asyncio.create_task(
                    ears.hear(task["stream_url"], {"Last-Event-ID": str(len(before))}, start=len(before))
                )
                ended = await client.ended(task["task_id"])
                assert ended["status"] == "completed", ended
                stored = await client.audio(task["generation_id"])
                payload = stored if form == "mp3" else stored[44:]
                assert (await far).audio == payload
                assert before, "somebody has heard the beginning"
                assert before + (await rest).audio == payload
                assert_same_speech(stored, await whole_speech(second, self.user_id, self.voice_id, form), form)
        return await row_of(self.rows, task)
