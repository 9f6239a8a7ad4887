"""Keys that people make: how they are written, and how seldom the database is asked about them."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from server.auth.keyring import KeyRing, hash_of, new_key, shown
from server.database.connections import Database
from server.errors import DatabaseUnavailable, TooMany, Unauthorized
from server.records import keys
from tests.auth.test_tokens import Clock
from tests.postgres_proxy import PostgresProxy, postgres_proxy

USER = uuid4()
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


@dataclass
class Ring:
    """A key ring with a clock of its own, on a database behind a door: while it is shut, nothing can be looked up."""

    database: Database
    door: PostgresProxy
    clock: Clock
    keyring: KeyRing

    async def made(self, expires_in_days: float | None = None) -> tuple[str, UUID]:
        """A new key, and its id."""
        key = new_key()
        async with self.database.transaction() as connection:
            row = await keys.create(
                connection,
                USER,
                name="A program",
                prefix=shown(key),
                key_hash=hash_of(key),
                expires_in_days=expires_in_days,
                at_most=100,
            )
        assert row
        return key, row.id

    async def delete(self, key_id: UUID) -> None:
        """Revoke a key as another process would: nobody here is told."""
        async with self.database.connection() as connection:
            assert await keys.delete(connection, key_id, USER)


@pytest.fixture
async def ring(database_url: str) -> AsyncIterator[Ring]:
    """A key ring that has been asked nothing yet."""
    async with postgres_proxy(database_url) as door, Database.open(door.url, size=4) as database:
        clock = Clock()
        yield Ring(database, door, clock, KeyRing(database, clock=clock))


def test_a_key_can_be_found_by_scanners_and_holds_enough_randomness() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"utr_[0-9A-Za-z]{38}", key) for key in made)
    assert 62 ** (38 - 6 - 4) > 2**160, "without the check value and what is shown"
    assert {shown(key) for key in made} == {key[:8] for key in made}


async def test_a_key_names_its_user(ring: Ring) -> None:
    key, key_id = await ring.made()
    holder = await ring.keyring.holder(key, HERE)
    assert (holder.user_id, holder.key_id) == (USER, key_id)


async def test_only_the_hash_is_stored(ring: Ring) -> None:
    key, _ = await ring.made()
    async with ring.database.connection() as connection:
        (row,) = await connection.fetch("SELECT k::text FROM internal.api_keys k")
    assert key not in row[0]
    assert key[8:] not in row[0]
    assert hash_of(key).hex() in row[0]


async def test_a_typing_error_is_told_apart_and_costs_no_look_up(ring: Ring) -> None:
    key, _ = await ring.made()
    ring.door.shut()
    for place in (4, 20, 35, 36, 41):
        mistyped = key[:place] + ("a" if key[place] != "a" else "b") + key[place + 1 :]
        with pytest.raises(Unauthorized, match="not written correctly"):
            await ring.keyring.holder(mistyped, HERE)
    for odd in ("utr_", key[:-1], key + "a", key + "\n", key.replace("_", "-"), "utr_" + "é" * 38):
        with pytest.raises(Unauthorized, match="not written correctly"):
            await ring.keyring.holder(odd, HERE)


async def test_what_cannot_be_looked_up_is_503_and_never_401(ring: Ring) -> None:
    key, _ = await ring.made()
    ring.door.shut()
    with pytest.raises(DatabaseUnavailable) as caught:
        await ring.keyring.holder(key, HERE)
    assert caught.value.status == 503
    ring.door.open()
    assert (await ring.keyring.holder(key, HERE)).user_id == USER
    async with ring.database.connection() as connection:
        await connection.execute("ALTER TABLE internal.api_keys RENAME TO mislaid")
    ring.clock.now += 5
    with pytest.raises(DatabaseUnavailable):
        await ring.keyring.holder(key, HERE)


async def test_a_known_key_is_asked_about_so_often_that_a_revoked_one_ends_within_five_seconds(ring: Ring) -> None:
    key, key_id = await ring.made()
    await ring.keyring.holder(key, HERE)
    await ring.delete(key_id)
    ring.clock.now += 3.9
    assert (await ring.keyring.holder(key, HERE)).key_id == key_id
    ring.clock.now += 0.1
    with pytest.raises(Unauthorized, match="revoked"):
        await ring.keyring.holder(key, HERE)


async def test_a_key_that_is_revoked_here_ends_here_at_once(ring: Ring) -> None:
    key, key_id = await ring.made()
    other, _ = await ring.made()
    for used in (key, other):
        await ring.keyring.holder(used, HERE)
    await ring.delete(key_id)
    ring.keyring.forget(key_id)
    with pytest.raises(Unauthorized, match="revoked"):
        await ring.keyring.holder(key, HERE)
    ring.door.shut()
    await ring.keyring.holder(other, HERE)


async def test_an_expired_key_is_told_so_and_none_is_remembered_beyond_its_end(ring: Ring) -> None:
    expired, _ = await ring.made(expires_in_days=0)
    with pytest.raises(Unauthorized, match="expired"):
        await ring.keyring.holder(expired, HERE)
    key, key_id = await ring.made(expires_in_days=2 / 86_400)
    await ring.keyring.holder(key, HERE)
    async with ring.database.connection() as connection:
        await connection.execute("UPDATE internal.api_keys SET expires_at = now() WHERE id = $1", key_id)
    ring.clock.now += 2.1
    with pytest.raises(Unauthorized, match="expired"):
        await ring.keyring.holder(key, HERE)


async def test_an_unknown_key_is_remembered_as_unknown_for_five_seconds(ring: Ring) -> None:
    key = new_key()
    with pytest.raises(Unauthorized, match="does not exist"):
        await ring.keyring.holder(key, HERE)
    ring.door.shut()
    ring.clock.now += 4.9
    with pytest.raises(Unauthorized, match="does not exist"):
        await ring.keyring.holder(key, HERE)
    ring.clock.now += 0.1
    with pytest.raises(DatabaseUnavailable):
        await ring.keyring.holder(key, HERE)


async def test_more_than_twenty_unknown_keys_a_second_from_one_address_are_429(ring: Ring) -> None:
    """Nothing is looked up for the rest, not even a key that exists; whoever is known goes on."""
    known, _ = await ring.made()
    new, _ = await ring.made()
    await ring.keyring.holder(known, HERE)
    outcomes = await asyncio.gather(*(ring.keyring.holder(new_key(), HERE) for _ in range(60)), return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert (kinds.count(Unauthorized), kinds.count(TooMany)) == (20, 40)
    ring.door.shut()
    with pytest.raises(TooMany) as caught:
        await ring.keyring.holder(new, HERE)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    await ring.keyring.holder(known, HERE)
    ring.door.open()
    await ring.database.pool.expire_connections()
    await ring.keyring.holder(new, ELSEWHERE)
    ring.clock.now += 1
    with pytest.raises(Unauthorized):
        await ring.keyring.holder(new_key(), HERE)


async def test_an_ipv6_customer_is_one_source_with_all_addresses(ring: Ring) -> None:
    for number in range(20):
        with pytest.raises(Unauthorized):
            await ring.keyring.holder(new_key(), f"2001:db8:0:1::{number:x}")
    with pytest.raises(TooMany):
        await ring.keyring.holder(new_key(), "2001:db8:0:1:ffff::1")
    with pytest.raises(Unauthorized):
        await ring.keyring.holder(new_key(), "2001:db8:0:2::1")


async def test_addresses_are_not_kept_for_ever(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.auth.keyring.SOURCES_AT_MOST", 5)
    for number in range(12):
        with pytest.raises(Unauthorized):
            await ring.keyring.holder(new_key(), f"192.0.2.{number}")
        ring.clock.now += 2
    assert len(ring.keyring._sources) <= 5
