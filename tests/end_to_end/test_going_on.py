"""A speech outlives its process where its lane tells the sentences: the next process speaks the rest of it."""

import asyncio
import signal
from pathlib import Path
from uuid import UUID

import pytest

from server.dev.simulator import Simulator
from tests.end_to_end.hearing import Ears
from tests.end_to_end.joints import DELTA_BYTES, SENTENCES, TEXT, Rows, Stage, row_of
from tests.gateway import running_gateway


@pytest.fixture
async def stage(database_url: str, simulator: Simulator, rows: Rows, tmp_path: Path) -> Stage:
    return await Stage.set(database_url, simulator, rows, tmp_path)


@pytest.mark.parametrize(
    ("how", "form"), [(signal.SIGKILL, "mp3"), (signal.SIGTERM, "wav")], ids=["killed", "told_to_leave"]
)
async def test_the_next_process_speaks_the_rest(stage: Stage, form: str, how: signal.Signals) -> None:
    """In the middle of the second sentence; `tests/more` has every other place."""
    first, second, _ = await stage.deltas(form)
    row = await stage.across(form, how, after_deltas=(first + second) // 2)
    [again] = row["provider_metadata"]["attempts"]
    assert again["reason"] == ("its process died" if how == signal.SIGKILL else "server restarted")
    assert again["goes_on_at_character"] == len(SENTENCES[0])
    assert again["sentence_paid_again"]
    one, other = stage.simulator.calls[:2]
    assert (one["text"], other["text"]) == (TEXT, "".join(SENTENCES[1:]))
    assert (one["seed"], one["voice"], one["format"]) == (other["seed"], other["voice"], other["format"])
    # Words are told once, and at their time.
    found = await stage.rows.fetch("SELECT generation_id, words FROM internal.words ORDER BY position")
    broken, whole = (
        [word for batch in found if (batch["generation_id"] == UUID(row["id"])) is which for word in batch["words"]]
        for which in (True, False)
    )
    assert [text for text, *_ in broken] == [text for text, *_ in whole]
    for (_, *times), (_, *usual) in zip(broken, whole, strict=True):
        assert times == pytest.approx(usual, abs=2 if form == "wav" else 100)


async def test_a_break_by_the_provider_is_mended_once_by_the_same_process(stage: Stage) -> None:
    first, second, _ = await stage.deltas("wav")
    async with (
        running_gateway(stage.settings) as gateway,
        gateway.client(stage.user_id) as client,
        Ears(gateway.url) as ears,
    ):
        whole = await client.generate(stage.voice_id, TEXT, format="wav")
        await client.ended(whole["task_id"])
        shape = {"delta_bytes": DELTA_BYTES["wav"], "do": "abort"}
        stage.simulator.behave("realtime", {**shape, "after_deltas": (first + second) // 2})
        task = await client.generate(stage.voice_id, TEXT, format="wav")
        heard = await asyncio.wait_for(ears.hear(task["stream_url"]), 20)
        assert heard.end
        assert heard.end["status"] == "completed"
        stored = await client.audio(task["generation_id"])
        assert heard.audio == stored[44:]
        assert stored == await client.audio(whole["generation_id"])
    [attempt] = (await row_of(stage.rows, task))["provider_metadata"]["attempts"]
    assert (attempt["goes_on_at_character"], attempt["sentence_paid_again"]) == (len(SENTENCES[0]), True)
