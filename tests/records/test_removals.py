"""Which objects are wanted: what a row of their user shows, or will show, and nothing for a stranger's sake."""

from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.objects import audio_key, preview_key, reference_key
from server.records import removals

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
USER, STRANGER = uuid4(), uuid4()


async def generation(rows: Rows, key: str, user_id: UUID = USER) -> None:
    await rows.execute(
        """INSERT INTO public.generations (id, user_id, text, status, audio_object_key)
           VALUES (gen_random_uuid(), $1, 'Hello.', 'completed', $2)""",
        user_id,
        key,
    )


async def voice(rows: Rows, key: str, user_id: UUID = USER) -> None:
    await rows.execute(
        """INSERT INTO public.voices (id, user_id, name, language, source, reference_object_key)
           VALUES (gen_random_uuid(), $1, 'Ada', 'Auto', 'uploaded', $2)""",
        user_id,
        key,
    )


async def run(rows: Rows, key: str, *, task_id: UUID | None = None, generation_id: UUID | None = None) -> None:
    await rows.execute(
        "INSERT INTO internal.runs (task_id, generation_id, job_name, object_key) VALUES ($1, $2, 'synthesize', $3)",
        task_id or uuid4(),
        generation_id,
        key,
    )


async def purchase(rows: Rows, subject: UUID, kind: str, state: str, outcome: dict[str, Any] | None) -> None:
    await rows.execute(
        """INSERT INTO internal.purchases (subject, kind, user_id, state, lease_until, outcome)
           VALUES ($1, $2, $3, $4, now(), $5)""",
        subject,
        kind,
        USER,
        state,
        outcome,
    )


async def test_what_a_row_of_its_user_shows_is_wanted(rows: Rows) -> None:
    shown, of_a_stranger, absent = (audio_key(USER, uuid4(), "mp3") for _ in range(3))
    await generation(rows, shown)
    await generation(rows, of_a_stranger, STRANGER)
    recording, taken = reference_key(USER, uuid4()), reference_key(USER, uuid4())
    await voice(rows, recording)
    await voice(rows, taken, STRANGER)
    older = "made/by/an-older-system.wav"
    await generation(rows, older, STRANGER)
    asked = [shown, of_a_stranger, absent, recording, taken, older, "no-key"]
    assert await removals.wanted(rows, asked) == {shown, recording, older}
    assert await removals.wanted(rows, []) == set()


async def test_what_will_be_stored_is_wanted(rows: Rows) -> None:
    """The key of a run counts where it is the run's own; another format of the same speech was left behind."""
    generation_id, task_id = uuid4(), uuid4()
    speech, left = audio_key(USER, generation_id, "mp3"), audio_key(USER, generation_id, "wav")
    await run(rows, speech, generation_id=generation_id)
    preview = preview_key(USER, task_id)
    await run(rows, preview, task_id=task_id)
    other_task = uuid4()
    await run(rows, "another/key.wav", task_id=other_task)
    assert await removals.wanted(rows, [speech, left, preview, preview_key(USER, other_task)]) == {speech, preview}


async def test_a_preview_is_wanted_while_it_is_a_preview(rows: Rows) -> None:
    shown, of_a_speech, bought, refused, given_back = (uuid4() for _ in range(5))
    for task_id, kind in ((shown, "design_preview"), (of_a_speech, "generate")):
        await rows.execute(
            "INSERT INTO public.tasks (id, user_id, type, status, result) VALUES ($1, $2, $3, 'completed', $4)",
            task_id,
            USER,
            kind,
            {"object_key": preview_key(USER, task_id)},
        )
    for subject, state in ((bought, "done"), (refused, "refused"), (given_back, "given_back")):
        await purchase(rows, subject, "design", state, {"object_key": preview_key(USER, subject)})
    asked = [preview_key(USER, task_id) for task_id in (shown, of_a_speech, bought, refused, given_back)]
    assert await removals.wanted(rows, asked) == {asked[0], asked[2]}


@pytest.mark.parametrize(
    ("kind", "state", "outcome", "is_wanted"),
    [
        ("clone", "calling", None, True),
        ("clone", "unknown", None, True),
        ("clone", "refused", {"category": "provider_rejected"}, False),
        ("clone", "refused", {"category": "provider_unavailable"}, True),
        ("clone", "refused", {"category": "provider_unavailable", "diagnostics": {"text_sent": True}}, True),
        ("clone", "refused", {"category": "provider_unavailable", "diagnostics": {"text_sent": False}}, False),
        ("clone", "refused", {"category": "provider_rejected", "in_doubt_since": "2026-01-01"}, True),
        ("clone", "done", {"category": "provider_unavailable"}, False),
        ("design", "unknown", None, False),
    ],
)
async def test_a_recording_is_needed_as_long_as_nobody_knows_whether_its_voice_was_made(
    rows: Rows, kind: str, state: str, outcome: dict[str, Any] | None, is_wanted: bool
) -> None:
    subject = uuid4()
    await purchase(rows, subject, kind, state, outcome)
    asked = [reference_key(USER, subject), reference_key(STRANGER, subject), reference_key(USER, uuid4())]
    assert await removals.wanted(rows, asked) == ({asked[0]} if is_wanted else set())


async def test_a_removal_is_tried_again_in_its_time_and_forgotten_alone(database_url: str, rows: Rows) -> None:
    due, later, other = (("generations", "a/due"), ("generations", "a/later"), ("references", "a/due"))
    await rows.executemany(
        """INSERT INTO internal.removals (bucket, object_key, reason, tries, next_at)
           VALUES ($1, $2, 'on purpose', $3, now() + make_interval(hours => $4))""",
        [(*due, 4, -1), (*later, 1, 1), (*other, 2, 1)],
    )
    async with Database.open(database_url, size=1) as database:
        await removals.try_again(rows, Queue(database, Listener(database_url)))
    jobs = await rows.fetch("SELECT args ->> 'bucket', args ->> 'object_key' FROM internal.procrastinate_jobs")
    assert [tuple(row) for row in jobs] == [due]
    assert [await removals.tries(rows, *one) for one in (due, later, other)] == [5, 1, 2]
    assert await removals.failing(rows) == 2
    await removals.forget(rows, *due)
    assert [(row["bucket"], row["object_key"]) for row in await removals.recorded(rows)] == [later, other]
