"""A preview that nobody saved is given back: first in the rows, then at the provider."""

import asyncio
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from server.dev.simulator import Simulator
from server.jobs.give_back import give_back
from server.records import purchases
from server.relay.sweep import Sweeper
from tests.gateway import Client, Gateway
from tests.handlers.wire import problem_of
from tests.support import wait_for
from tests.voices import previewed, purchase, save, save_form

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
OLDER = "This preview is older than a day. Please make it again."


def sweeper(gateway: Gateway) -> Sweeper:
    parts = gateway.parts
    return Sweeper(
        parts.database, parts.queue, parts.announcer, parts.endings, parts.leases, parts.metrics, parts.settings
    )


async def a_day_later(rows: Rows, task_id: str) -> None:
    await rows.execute(
        """UPDATE internal.purchases SET updated_at = updated_at - interval '24 hours 1 minute',
                  give_back_at = give_back_at - interval '24 hours 1 minute' WHERE subject = $1""",
        UUID(task_id),
    )


def deletions(simulator: Simulator) -> list[Any]:
    return [call for call in simulator.calls if call["action"] == "delete"]


async def test_what_nobody_saved_in_a_day_is_given_back_and_cannot_be_saved_any_more(
    client: Client, gateway: Gateway, simulator: Simulator, rows: Rows
) -> None:
    old, fresh = await previewed(client), await previewed(client)
    await a_day_later(rows, old)
    problem_of(await save(client, old), 409, "conflict", says=OLDER)
    await sweeper(gateway).clean()
    await wait_for(lambda: deletions(simulator))
    given_back = await purchase(rows, old)
    assert given_back is not None
    assert given_back["state"] == "given_back"
    assert [call["voice"] for call in deletions(simulator)] == [given_back["outcome"]["voice"]]
    problem_of(await save(client, old), 409, "conflict", says=OLDER)
    assert (await save(client, fresh)).status_code == 200


async def test_what_was_saved_is_kept_for_good(
    client: Client, gateway: Gateway, simulator: Simulator, rows: Rows
) -> None:
    task_id = await previewed(client)
    voice = (await save(client, task_id)).json()
    await a_day_later(rows, task_id)
    # As a release before this one left it, which knew of no time to give it back.
    await rows.execute("UPDATE internal.purchases SET give_back_at = now() - interval '1 hour'")
    await sweeper(gateway).clean()
    assert (await purchase(rows, task_id) or {})["state"] == "done"
    assert (await save(client, task_id)).json()["id"] == voice["id"]
    assert deletions(simulator) == []


async def test_the_page_in_use_is_told_as_well(client: Client, rows: Rows) -> None:
    """It names no task; the preview is found by what was asked for."""
    task_id = await previewed(client)
    await a_day_later(rows, task_id)
    problem_of(await save_form(client), 409, "conflict", says=OLDER)


async def test_of_a_save_and_a_giving_back_at_the_same_time_one_wins(
    client: Client, gateway: Gateway, simulator: Simulator, rows: Rows
) -> None:
    """Whoever has the purchase's row first; the other sees what became of it."""
    task_id = await previewed(client)
    await rows.execute("UPDATE internal.purchases SET give_back_at = now() - interval '1 hour'")
    async with rows.transaction():
        assert await purchases.keep(rows, UUID(task_id))
        await sweeper(gateway).clean()  # leaves the row that somebody holds to the next look
    async with rows.transaction():
        await rows.execute("UPDATE internal.purchases SET state = 'given_back', give_back_at = NULL")
        saving = asyncio.create_task(save(client, task_id))
        await wait_for(lambda: waits_for_a_row(gateway))
    problem_of(await saving, 409, "conflict", says=OLDER)
    assert await rows.fetchval("SELECT count(*) FROM public.voices") == 0
    assert deletions(simulator) == []


async def waits_for_a_row(gateway: Gateway) -> bool:
    async with gateway.parts.database.connection() as connection:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_catalog.pg_locks WHERE NOT granted"))


async def test_a_provider_that_fails_is_asked_again_and_one_that_has_deleted_it_already_is_believed(
    client: Client, gateway: Gateway, simulator: Simulator, rows: Rows
) -> None:
    """It was given up before the provider was asked, so asking again harms nobody."""
    task_id = await previewed(client)
    await a_day_later(rows, task_id)
    simulator.behave("customization", {"do": "error", "code": "InternalError"}, action="delete")
    await sweeper(gateway).clean()
    await wait_for(
        lambda: rows.fetchval(
            """SELECT args ->> 'tries' = '1' FROM internal.procrastinate_jobs
                WHERE task_name = 'give_back' AND status = 'todo' AND scheduled_at > now() + interval '50 seconds'"""
        )
    )
    for _ in range(2):  # the second finds it gone
        await give_back(gateway.parts, preview_id=UUID(task_id), tries=1)
    assert (await purchase(rows, task_id) or {})["state"] == "given_back"
    assert len(deletions(simulator)) == 3
