"""What costs money is bought by one caller at a time, and remembered."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.database.connections import prepare
from server.records import purchases
from server.records.purchases import Kind, provider_name

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SOMEBODY = uuid4()


async def claim(rows: Rows, subject: UUID, kind: Kind = "clone", user_id: UUID = SOMEBODY, part: int = 0) -> int | None:
    return await purchases.claim(rows, subject, kind=kind, user_id=user_id, part=part)


async def lapse(rows: Rows, subject: UUID) -> None:
    await rows.execute(
        "UPDATE internal.purchases SET lease_until = now() - interval '1 second' WHERE subject = $1", subject
    )


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
    async with asyncpg.create_pool(database_url, min_size=10, max_size=10, init=prepare) as opened:
        yield opened


async def test_of_fifty_at_once_one_buys(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    subject = uuid4()

    async def try_once() -> int | None:
        async with pool.acquire() as connection, connection.transaction():
            return await purchases.claim(connection, subject, kind="clone", user_id=SOMEBODY)

    attempts = await asyncio.gather(*(try_once() for _ in range(50)))
    assert sorted(attempts, key=lambda attempt: attempt or 0) == [None] * 49 + [1]


async def test_of_fifty_at_once_one_takes_over_what_has_lapsed(
    pool: "asyncpg.Pool[asyncpg.Record]", rows: Rows
) -> None:
    subject = uuid4()
    await claim(rows, subject)
    await lapse(rows, subject)

    async def try_once() -> int | None:
        async with pool.acquire() as connection, connection.transaction():
            return await purchases.claim(connection, subject, kind="clone", user_id=SOMEBODY)

    attempts = await asyncio.gather(*(try_once() for _ in range(50)))
    assert sorted(attempts, key=lambda attempt: attempt or 0) == [None] * 49 + [2]


async def test_a_lapsed_or_unknown_clone_may_be_tried_again(rows: Rows) -> None:
    subject = uuid4()
    assert await claim(rows, subject, "clone") == 1
    assert await claim(rows, subject, "clone") is None, "its lease holds"
    await lapse(rows, subject)
    assert await claim(rows, subject, "clone") == 2
    assert await purchases.decide(rows, subject, "unknown", attempt=2)
    assert await claim(rows, subject, "clone") == 3


@pytest.mark.parametrize("kind", ["design", "http", "modal"])
async def test_a_lapsed_or_unknown_preview_piece_or_job_is_never_sent_again(rows: Rows, kind: Kind) -> None:
    lapsed, unknown = uuid4(), uuid4()
    assert await claim(rows, lapsed, kind) == await claim(rows, unknown, kind) == 1
    await lapse(rows, lapsed)
    await purchases.decide(rows, unknown, "unknown", attempt=1)
    assert await claim(rows, lapsed, kind) is None
    assert await claim(rows, unknown, kind) is None


@pytest.mark.parametrize("kind", ["clone", "design", "http", "modal"])
async def test_what_was_refused_may_be_tried_again_and_what_is_done_never(rows: Rows, kind: Kind) -> None:
    subject = uuid4()
    assert await claim(rows, subject, kind) == 1
    assert await purchases.decide(rows, subject, "refused", attempt=1)
    assert await claim(rows, subject, kind) == 2
    assert await purchases.decide(rows, subject, "done", attempt=2)
    await lapse(rows, subject)
    assert await claim(rows, subject, kind) is None


@pytest.mark.parametrize("state", ["refused", "unknown"])
async def test_nobody_else_and_no_other_kind_may_take_a_purchase_over(rows: Rows, state: str) -> None:
    subject = uuid4()
    await claim(rows, subject)
    await rows.execute("UPDATE internal.purchases SET state = $2 WHERE subject = $1", subject, state)
    assert await claim(rows, subject, user_id=uuid4()) is None
    assert await claim(rows, subject, "design") is None
    assert await claim(rows, subject) == 2


async def test_pieces_of_one_speech_are_bought_one_by_one(rows: Rows) -> None:
    subject = uuid4()
    assert await claim(rows, subject, "http", part=0) == await claim(rows, subject, "http", part=1) == 1
    assert await purchases.decide(rows, subject, "done", attempt=1, part=1, outcome={"usage": {"characters": 3}})
    first, second = await purchases.find(rows, subject, 0), await purchases.find(rows, subject, 1)
    assert first is not None
    assert second is not None
    assert (first.state, second.state, second.outcome) == ("calling", "done", {"usage": {"characters": 3}})


async def test_an_attempt_that_was_taken_over_has_nothing_to_say(rows: Rows) -> None:
    subject = uuid4()
    await claim(rows, subject)
    await lapse(rows, subject)
    await claim(rows, subject)
    assert not await purchases.decide(rows, subject, "done", attempt=1, outcome={"voice": "lost"})
    assert await purchases.decide(rows, subject, "done", attempt=2, request_id="second", outcome={"voice": "kept"})
    assert not await purchases.decide(rows, subject, "unknown", attempt=2), "done is for ever"
    found = await purchases.find(rows, subject)
    assert found is not None
    assert (found.state, found.request_id, found.outcome) == ("done", "second", {"voice": "kept"})


async def test_an_answer_that_comes_after_its_buyer_was_given_up_still_counts(rows: Rows) -> None:
    subject = uuid4()
    await claim(rows, subject)
    await purchases.decide(rows, subject, "unknown", attempt=1)
    assert not await purchases.decide(rows, subject, "refused", attempt=1)
    assert await purchases.decide(rows, subject, "done", attempt=1)


async def test_the_name_at_the_provider_is_always_the_same_and_fits_it() -> None:
    subject = UUID("6f9b6f2e-3f0c-4f0e-9f0e-5d1c1d6a7c11")
    assert provider_name(subject) == "u296b6729a3b87aa"
    assert len(provider_name(subject)) == 16
    assert provider_name(subject).isalnum()
    assert len({provider_name(uuid4()) for _ in range(1000)}) == 1000


async def test_only_what_may_have_been_paid_for_in_vain_is_left_open(rows: Rows) -> None:
    calling, lapsed, unknown, refused, done = subjects = [uuid4() for _ in range(5)]
    for subject in subjects:
        await claim(rows, subject)
    await lapse(rows, lapsed)
    await purchases.decide(rows, unknown, "unknown", attempt=1)
    await purchases.decide(rows, refused, "refused", attempt=1)
    await purchases.decide(rows, done, "done", attempt=1)
    assert {purchase.subject for purchase in await purchases.undecided(rows)} == {lapsed, unknown}
    assert calling not in {purchase.subject for purchase in await purchases.undecided(rows)}


async def test_who_buys_at_the_moment_is_told_from_who_did(rows: Rows) -> None:
    buying, lapsed, done = subjects = [uuid4() for _ in range(3)]
    for subject in subjects:
        await claim(rows, subject)
    await lapse(rows, lapsed)
    await purchases.decide(rows, done, "done", attempt=1)
    found = [await purchases.find(rows, subject) for subject in (buying, lapsed, done)]
    assert [purchase and purchase.leased for purchase in found] == [True, False, False]


async def test_a_claim_is_taken_back_by_its_own_attempt_before_it_is_decided(rows: Rows) -> None:
    subject, decided = uuid4(), uuid4()
    for part in (0, 1):
        await claim(rows, subject, "http", part=part)
    await purchases.take_back(rows, subject, attempt=2, part=0)
    await purchases.take_back(rows, subject, attempt=1, part=1)
    assert await purchases.find(rows, subject, 0)
    assert await purchases.find(rows, subject, 1) is None
    await claim(rows, decided)
    await purchases.decide(rows, decided, "unknown", attempt=1)
    await purchases.take_back(rows, decided, attempt=1)
    assert await purchases.find(rows, decided)


async def test_only_what_was_made_can_be_kept(rows: Rows) -> None:
    subject = uuid4()
    await claim(rows, subject, "design")
    assert not await purchases.keep(rows, subject)
    await claim(rows, subject, "design", part=1)
    await purchases.decide(rows, subject, "done", attempt=1, part=1)
    assert not await purchases.keep(rows, subject)
    await purchases.decide(rows, subject, "done", attempt=1)
    assert await purchases.keep(rows, subject)


async def test_a_preview_is_found_by_exactly_its_design(rows: Rows) -> None:
    design = {"text": "Hello.", "language": "English", "instruct": "calm"}

    async def made(
        other: dict[str, str] | None = None, *, kind: Kind = "design", user_id: UUID = SOMEBODY, state: str = "done"
    ) -> UUID:
        subject = uuid4()
        await claim(rows, subject, kind, user_id)
        await purchases.decide(rows, subject, "done", attempt=1, outcome={**design, **(other or {})})
        await rows.execute("UPDATE internal.purchases SET state = $2 WHERE subject = $1", subject, state)
        return subject

    older, newest = await made(), await made()
    await rows.execute("UPDATE internal.purchases SET updated_at = now() - interval '1 hour' WHERE subject = $1", older)
    await made(kind="clone")
    await made(user_id=uuid4())
    await made(state="given_back")
    for name in design:
        await made({name: "another"})
    found = await purchases.newest_preview(rows, SOMEBODY, **design)
    assert found
    assert found.subject == newest


async def test_what_speech_has_cost_is_forgotten_after_a_while_and_voices_never(rows: Rows) -> None:
    kinds: list[Kind] = ["http", "modal", "clone", "design"]
    old, new = [{kind: uuid4() for kind in kinds} for _ in range(2)]
    for kind in kinds:
        await claim(rows, old[kind], kind)
        await claim(rows, new[kind], kind)
    await rows.execute(
        "UPDATE internal.purchases SET updated_at = now() - interval '1 hour' WHERE subject = ANY($1)", [*old.values()]
    )
    await purchases.forget_old(rows, 60.0)
    left = {row["subject"] for row in await rows.fetch("SELECT subject FROM internal.purchases")}
    assert left == {*new.values(), old["clone"], old["design"]}
