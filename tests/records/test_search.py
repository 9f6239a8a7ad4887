"""A search of the history finds every entry with the words and no other, newest first, whichever way it takes."""

from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.records import search
from server.records.search import Cursor, Filters, Found

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

ME, SOMEBODY = uuid4(), uuid4()
NOW = datetime(2026, 11, 1, tzinfo=UTC)
TEXTS = (
    *("Good morning, Ada.", "GOOD NIGHT", "100% of it", "1000 of it", "a_b", "aXb", "back\\slash", "It's 'quoted'"),
    *(
        "Crème brûlée à la carte",
        "ÜBER ALLES Straße",
        "Привет, мир",
        "مرحبا بالعالم",
        "你好，世界",
        "😀 emoji 🎉",
        "👩‍👩‍👧 family",
    ),
    *("two\nlines", "ab", "a", "  ", "ΟΔΟΣ", "number 42", "number 4242", "x" * 3000 + " needle"),
)
WORDS = (
    *("good", "Good Morning", "%", "_", "a_b", "\\", "'", "0%", "000", "x", "b", "zz", " ", "ni", "ABC"),
    *(
        "CRÈME",
        "über",
        "straße",
        "привет",
        "МИР",
        "مرحبا",
        "مر",
        "世界",
        "你",
        "🎉",
        "👩‍👧",
        "s\nl",
        "οδο",
        "4242",
        "needle",
    ),
    *("xxx n", "good morning, ada. and so on", "voice", "ada"),
)

# (entries that are read first, matches that are sorted at once): all at once; the index; the entries bit by bit.
WAYS = {"at once": (500, 1000), "by the index": (3, 1000), "bit by bit": (3, 0)}


@pytest.fixture
async def texts(rows: Rows) -> dict[UUID, str]:
    """What I have had spoken, newest first, with the name of its voice; somebody else had the same."""
    await rows.execute("ALTER TABLE public.generations DROP CONSTRAINT IF EXISTS generations_user_id_fkey")
    await rows.execute("ALTER TABLE public.voices DROP CONSTRAINT IF EXISTS voices_user_id_fkey")
    voices = {}
    for owner in (ME, SOMEBODY):
        voices[owner] = await rows.fetchval(
            "INSERT INTO public.voices (user_id, name, source) VALUES ($1, 'Voice of Ada', 'designed') RETURNING id",
            owner,
        )
    mine: dict[UUID, str] = {}
    for number, text in enumerate(TEXTS):
        for owner in (ME, SOMEBODY):
            status = ("completed", "processing", "failed", "cancelled", "pending")[number % 5]
            voice_id = voices[owner] if number % 4 == 0 else None
            # Three of each moment, so that the id has to decide.
            at = NOW - timedelta(minutes=number // 3)
            generation_id = await rows.fetchval(
                "INSERT INTO public.generations (user_id, voice_id, text, status, created_at)"
                " VALUES ($1, $2, $3, $4, $5) RETURNING id",
                *(owner, voice_id, text, status, at),
            )
            if owner == ME:
                mine[generation_id] = f"{text}\0{'Voice of Ada' if voice_id else ''}"
    order = await rows.fetch(
        "SELECT id FROM public.generations WHERE user_id = $1 ORDER BY created_at DESC, id DESC", ME
    )
    return {row["id"]: mine[row["id"]] for row in order}


@pytest.mark.parametrize("way", WAYS)
async def test_every_match_is_found_newest_first(
    rows: Rows, texts: dict[UUID, str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_look, most_found = WAYS[way]
    monkeypatch.setattr(search, "_FIRST_LOOK", first_look)
    monkeypatch.setattr(search, "MOST_FOUND", most_found)
    monkeypatch.setattr(search, "_COMMON", 1)
    for words in WORDS:
        low = words.lower()
        in_text = [key for key, text in texts.items() if low in text.partition("\0")[0].lower()]
        anywhere = [key for key, text in texts.items() if low in text.lower()]
        for expected, to in (
            (in_text, Filters(user_id=ME, search=words)),
            (anywhere, Filters(user_id=ME, words=words)),
            ([], Filters(user_id=uuid4(), words=words)),
        ):
            found = await search.find(rows, to, limit=100)
            assert found.ids == expected, words
            assert found.total >= len(expected)
            assert not found.more
            by_pages: list[UUID] = []
            while (part := await search.find(rows, to, limit=2, offset=len(by_pages))).ids:
                by_pages += part.ids
                assert part.more == (len(by_pages) < len(expected))
                assert part.total >= len(by_pages) + part.more
            assert by_pages == expected, words


async def test_what_a_search_is_narrowed_to_holds_for_words_as_well(
    rows: Rows, texts: dict[UUID, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {row["id"]: row for row in await rows.fetch("SELECT * FROM public.generations WHERE user_id = $1", ME)}
    all_of_them = [key for key, text in texts.items() if "a" in text.partition("\0")[0].lower()]
    middle = known[all_of_them[4]]
    at = Cursor(middle["created_at"], middle["id"])
    voice_id = next(row["voice_id"] for row in known.values() if row["voice_id"])
    for way, (first_look, most_found) in WAYS.items():
        monkeypatch.setattr(search, "_FIRST_LOOK", first_look)
        monkeypatch.setattr(search, "MOST_FOUND", most_found)
        monkeypatch.setattr(search, "_COMMON", 1)

        async def found(**narrowed: object) -> Found:
            to = Filters(user_id=ME, search="a", **narrowed)  # type: ignore[arg-type]
            return await search.find(rows, to, limit=100, count=False)

        assert (await found(before=at)).ids == all_of_them[5:], way
        assert (await found(since=at)).ids == all_of_them[:4], way
        assert (await found(status="failed")).ids == [key for key in all_of_them if known[key]["status"] == "failed"], (
            way
        )
        assert (await found(voice_id=voice_id)).ids == [key for key in all_of_them if known[key]["voice_id"]], way
        assert (await found(ids=tuple(all_of_them[2:6]))).ids == all_of_them[2:6], way
        assert (await found(words="morning")).ids == [key for key in all_of_them if "morning" in texts[key]], way


async def test_a_list_is_counted_as_far_as_somebody_reads(
    rows: Rows, texts: dict[UUID, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes from page to page gets to the end, also beyond what is counted."""
    everything = list(texts)
    assert await search.find(rows, Filters(user_id=ME), limit=5) == Found(everything[:5], len(everything), more=True)
    monkeypatch.setattr(search, "MOST_COUNTED", 7)
    seen: list[UUID] = []
    while True:
        part = await search.find(rows, Filters(user_id=ME), limit=5, offset=len(seen))
        seen += part.ids
        if not part.more:
            break
        assert part.total > len(seen)
    assert seen == everything
    assert part.total == len(everything)


async def test_a_search_is_planned_for_whoever_asks(rows: Rows, texts: dict[UUID, str]) -> None:
    """A plan that is kept for everybody would be one for somebody who has little."""
    for _ in range(12):
        await search.find(rows, Filters(user_id=ME, words="a"), limit=5)
    [(custom, generic)] = await rows.fetch(
        "SELECT sum(custom_plans), sum(generic_plans) FROM pg_prepared_statements WHERE statement LIKE '%AS has_words%'"
        " AND NOT from_sql AND statement LIKE '%row_number%' AND statement NOT LIKE '%pg_prepared%'"
    )
    assert (custom >= 12, generic) == (True, 0)


async def test_another_role_writes_texts_without_knowing_of_the_index(rows: Rows, texts: dict[UUID, str]) -> None:
    """The older system has a role of its own, which is not let into our schema."""
    role = f"older_{uuid4().hex[:8]}"
    await rows.execute(
        f"CREATE ROLE {role} BYPASSRLS; GRANT USAGE ON SCHEMA public TO {role};"
        f" GRANT ALL ON public.generations TO {role}"
    )
    try:
        await rows.execute(f"SET ROLE {role}")
        await rows.execute(
            "INSERT INTO public.generations (user_id, text, status) VALUES ($1, 'Written there', 'completed')", ME
        )
        await rows.execute("RESET ROLE")
        assert (await search.find(rows, Filters(user_id=ME, search="written there"), limit=5)).total == 1
    finally:
        await rows.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
