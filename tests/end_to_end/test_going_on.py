"""A speech outlives its process where its lane tells the sentences: the next process speaks the rest of it."""

import asyncio
import signal
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from server.dev.simulator import Simulator
from server.records import runs
from server.records.runs import SYNTHESIZE_JOB
from server.records.speech import RESTARTED
from tests.end_to_end.conftest import take_no_jobs
from tests.end_to_end.hearing import Ears
from tests.end_to_end.joints import DELTA_BYTES, SENTENCES, TEXT, Rows, Stage, row_of
from tests.gateway import insert_voice, running_gateway


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


# --- beside the release before ----------------------------------------------------------------------------------------

# As the release before this one appends: it knows nothing of speeches that go on, nor of marks.
OLDER_APPEND = """
WITH batch AS (
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bytea[]) AS b (task_id, attempt, byte_offset, bytes)
), span AS (
    SELECT task_id, attempt, min(byte_offset) AS start, max(byte_offset + length(bytes)) AS stop
      FROM batch GROUP BY task_id, attempt
), held AS (
    SELECT r.task_id, s.stop
      FROM internal.runs r
      JOIN span s ON s.task_id = r.task_id AND s.attempt = r.attempt AND s.start = r.byte_length
     WHERE r.state = 'speaking' AND r.owner = $5
     ORDER BY r.task_id
       FOR NO KEY UPDATE OF r SKIP LOCKED
), moved AS (
    UPDATE internal.runs r SET byte_length = h.stop, beat_at = now()
      FROM held h WHERE r.task_id = h.task_id
    RETURNING r.task_id, r.attempt, r.byte_length
), inserted AS (
    INSERT INTO internal.spool (task_id, attempt, byte_offset, bytes)
    SELECT b.task_id, b.attempt, b.byte_offset, b.bytes FROM batch b JOIN moved m USING (task_id, attempt)
)
SELECT task_id, byte_length FROM moved
"""


@pytest.mark.parametrize("ends", ["spoken", "dead"])
async def test_a_process_of_the_release_before_loses_nothing_beside_this_one(stage: Stage, ends: str) -> None:
    """What it has spoken whole is stored; what it leaves in the middle fails as it always did, and is not added to."""
    rows, older = stage.rows, uuid4()
    async with (
        running_gateway(stage.settings) as gateway,
        gateway.client(stage.user_id) as client,
        Ears(gateway.url) as ears,
    ):
        whole = await client.generate(stage.voice_id, TEXT)
        await client.ended(whole["task_id"])
        audio = await client.audio(whole["generation_id"])
        await take_no_jobs(gateway)
        task = await client.generate(stage.voice_id, TEXT)
        task_id = UUID(task["task_id"])
        await rows.execute("INSERT INTO internal.processes (owner, beat_at) VALUES ($1, now())", older)
        await rows.execute(
            "UPDATE internal.runs SET state = 'speaking', owner = $2, beat_at = now() WHERE task_id = $1",
            task_id,
            older,
        )
        heard = asyncio.create_task(ears.hear(task["stream_url"]))
        half = len(audio) // 2
        parts = {0: audio[:half], half: audio[half:]} if ends == "spoken" else {0: audio[:half]}
        for offset, part in parts.items():
            assert await rows.fetch(OLDER_APPEND, [task_id], [1], [offset], [part], older)
        if ends == "spoken":
            async with gateway.parts.database.transaction() as connection:
                key = await connection.fetchval(
                    """UPDATE internal.runs SET state = 'spoken', spoken_at = now() WHERE task_id = $1
                       RETURNING object_key""",
                    task_id,
                )
                await runs.defer_finalize(connection, gateway.parts.queue, task_id, key)
        else:
            await rows.execute(
                "UPDATE internal.processes SET beat_at = now() - interval '1 minute' WHERE owner = $1", older
            )
        ended = await client.ended(task["task_id"])
        if ends == "spoken":
            assert ended["status"] == "completed", ended
            assert (await heard).audio == audio == await client.audio(task["generation_id"])
        else:
            assert (ended["status"], ended["error"]) == ("failed", RESTARTED)
            assert audio.startswith((await heard).audio)
    assert len(stage.simulator.calls) == 1


async def test_what_goes_on_comes_before_every_text_that_waits(stage: Stage, database_url: str) -> None:
    """Somebody is listening to it; the texts of others, and older ones of people whose turn it is, have not begun."""
    rows = stage.rows
    async with running_gateway(stage.settings) as gateway:
        await take_no_jobs(gateway)
        async with gateway.client(stage.user_id) as client:
            own = [await client.generate(stage.voice_id, TEXT) for _ in range(3)]
        async with gateway.client() as client:
            other = await insert_voice(database_url, client.user_id)
            others = [await client.generate(other, TEXT) for _ in range(3)]
        order = [UUID(task["task_id"]) for task in [*own, *others]]
        broken = order[2]  # neither the oldest text nor that of whoever began the fewest
        await rows.execute(
            "UPDATE internal.runs SET byte_length = 1152, kept_bytes = 1152, goes_on = true WHERE task_id = $1", broken
        )
        await rows.execute(
            """INSERT INTO internal.turns (user_id, starts) VALUES ($1, 5)
               ON CONFLICT (user_id) DO UPDATE SET starts = 5""",
            stage.user_id,
        )
        async with gateway.parts.database.connection() as connection:
            following = await runs.next_in_turn(connection, SYNTHESIZE_JOB, [])
            assert following
            assert following.task_id == broken
            await rows.execute("UPDATE internal.runs SET goes_on = false, byte_length = 0, kept_bytes = 0")
            following = await runs.next_in_turn(connection, SYNTHESIZE_JOB, [])
            assert following
            assert following.task_id in order[3:]
