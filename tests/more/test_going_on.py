"""A speech is taken from its process at every sentence, and in the middle of each: what is heard is one speech."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from server.dev.simulator import Simulator
from server.records.speech import RESTARTED
from tests.end_to_end.joints import (
    DELTA_BYTES,
    SENTENCES,
    TEXT,
    Rows,
    Stage,
    assert_same_speech,
    hear_until_broken,
    whole_speech,
)
from tests.gateway import running_gateway

pytestmark = pytest.mark.slow

PLACES = [
    *((f"the middle of sentence {number}", number, -0.5, 0) for number in (1, 2, 3)),
    *((f"the last of sentence {number}", number, 0.0, 0) for number in (1, 2, 3)),
    *((f"just after sentence {number}", number, 0.0, 1) for number in (1, 2)),
]


@pytest.fixture
async def stage(database_url: str, simulator: Simulator, rows: Rows, tmp_path: Path) -> Stage:
    return await Stage.set(database_url, simulator, rows, tmp_path)


@pytest.mark.parametrize("form", ["mp3", "wav"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told_to_leave"])
@pytest.mark.parametrize("place", PLACES, ids=[name.replace(" ", "_") for name, *_ in PLACES])
async def test_the_next_process_speaks_the_rest(
    stage: Stage, form: str, how: signal.Signals, place: tuple[str, int, float, int]
) -> None:
    _, number, share, more = place
    ends = [0, *await stage.deltas(form)]
    deltas = round(ends[number] + share * (ends[number] - ends[number - 1])) + more
    row = await stage.across(form, how, after_deltas=deltas)
    [again] = row["provider_metadata"]["attempts"]
    spoken = number if more else number - 1
    assert again["goes_on_at_character"] == len("".join(SENTENCES[:spoken]))
    assert stage.simulator.calls[1]["text"] == "".join(SENTENCES[spoken:])


@pytest.mark.parametrize("form", ["mp3", "wav"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told_to_leave"])
async def test_what_was_told_whole_is_not_spoken_again(stage: Stage, form: str, how: signal.Signals) -> None:
    """Only the word that this was the end did not come."""
    row: dict[str, Any] = await stage.across(form, how, at="response_end")
    assert row["status"] == "completed"
    assert [call["text"] for call in stage.simulator.calls] == ["".join(SENTENCES)] * 2, "the other one is undisturbed"


async def test_a_sentence_is_never_paid_for_thrice(stage: Stage) -> None:
    """Two processes die in the same sentence: the third does not begin it again."""
    first, *_ = await stage.deltas("wav")
    shape = {"delta_bytes": DELTA_BYTES["wav"], "do": "hold"}
    plans = [
        stage.simulator.behave("realtime", {**shape, "after_deltas": first + 3}),
        stage.simulator.behave("realtime", {**shape, "after_deltas": 5}),
    ]
    async with stage.process("first") as one:
        async with one.client(stage.user_id) as client:
            task = await client.generate(stage.voice_id, TEXT, format="wav")
        await plans[0].held()
        await stage.kept(task, 0)
        one.send(signal.SIGTERM)
        await one.exited()
    async with stage.process("second") as two:
        await plans[1].held()
        two.send(signal.SIGTERM)
        await two.exited()
    async with running_gateway(stage.settings) as survivor, survivor.client(stage.user_id) as client:
        ended = await client.ended(task["task_id"])
        assert (ended["status"], ended["error"]) == ("failed", RESTARTED)
    assert len(stage.simulator.calls) == 2
    assert await stage.rows.fetchval("SELECT count(*) FROM internal.spool") == 0


@pytest.mark.parametrize("form", ["mp3", "wav"])
async def test_a_process_that_was_taken_for_dead_and_comes_back_adds_nothing(stage: Stage, form: str) -> None:
    """Another one has gone on meanwhile; what the first hears of its provider afterwards belongs to nobody."""
    ends = await stage.deltas(form)
    fault = {"delta_bytes": DELTA_BYTES[form], "do": "hold", "after_deltas": (ends[0] + ends[1]) // 2}
    plan = stage.simulator.behave("realtime", fault)
    async with stage.process("first") as paused:
        async with paused.client(stage.user_id) as client:
            task = await client.generate(stage.voice_id, TEXT, format=form)
        near = asyncio.create_task(hear_until_broken(paused.url, task["stream_url"]))
        await plan.held()
        await stage.kept(task, 0)
        paused.send(signal.SIGSTOP)
        async with running_gateway(stage.settings) as survivor, survivor.client(stage.user_id) as client:
            assert (await client.ended(task["task_id"]))["status"] == "completed"
            stored = await client.audio(task["generation_id"])
            plan.release()
            paused.send(signal.SIGCONT)
            await stage.simulator.until(lambda calls: "closed_at" in calls[0])
            # Its own listener is told the same speech to its end.
            assert await near == (stored if form == "mp3" else stored[44:])
            assert await client.audio(task["generation_id"]) == stored
            assert_same_speech(stored, await whole_speech(survivor, stage.user_id, stage.voice_id, form), form)
    for table in ("runs", "spool"):
        assert await stage.rows.fetchval(f"SELECT count(*) FROM internal.{table}") == 0
