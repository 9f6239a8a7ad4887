"""The keys that people make for their programs (``utr_…``): how one is written, and whose it is.

A key is 32 random letters and digits and a check value of six after its prefix, so ``utr_[0-9A-Za-z]{38}`` finds one
that was published by accident, and a typing error is told apart from a key that was revoked, without a look-up.
"""

import asyncio
import ipaddress
import logging
import re
import secrets
import string
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from hmac import compare_digest
from typing import Final
from uuid import UUID
from zlib import crc32

import msgspec

from server.auth.remembered import Remembered
from server.database.connections import REFUSED, Database
from server.errors import DatabaseUnavailable, TooMany, Unauthorized
from server.records import keys

_log = logging.getLogger(__name__)

MARK: Final = "utr_"
RANDOM_LETTERS: Final = 32  # of 62 kinds: 190 bits, of which the shown prefix gives away 24
CHECK_LETTERS: Final = 6  # enough for 32 bits
SHOWN_LETTERS: Final = 4
# A revoked key goes on for so long in a process that has seen it, and a request that it let in for a moment more.
KNOWN_SECONDS: Final = 4.0
UNKNOWN_SECONDS: Final = 5.0
REMEMBERED_AT_MOST: Final = 10_000
UNKNOWN_A_SECOND: Final = 20
SOURCES_AT_MOST: Final = 10_000
USED_EVERY_SECONDS: Final = 60.0

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_WRITTEN: Final = re.compile(rf"{MARK}([0-9A-Za-z]{{{RANDOM_LETTERS}}})([0-9A-Za-z]{{{CHECK_LETTERS}}})", re.ASCII)

_MISTYPED: Final = "This key is not written correctly. Please copy it again, from its first letter to its last."
_UNKNOWN: Final = "This key does not exist, or it was revoked. Please make a new one."
_EXPIRED: Final = "This key has expired. Please make a new one."


def is_key(token: str) -> bool:
    """Whether a bearer token looks like a key: sign-in tokens never begin like this."""
    return token.startswith(MARK)


def new_key() -> str:
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_LETTERS))
    return MARK + letters + _check(letters)


def shown(key: str) -> str:
    """What of a key may be shown again, so that its owner can tell it from the others."""
    return key[: len(MARK) + SHOWN_LETTERS]


def hash_of(key: str) -> bytes:
    # No salt and no slow function: nobody guesses 190 random bits.
    return sha256(key.encode()).digest()


def _check(letters: str) -> str:
    rest, check = crc32(letters.encode()), ""
    for _ in range(CHECK_LETTERS):
        rest, digit = divmod(rest, len(_ALPHABET))
        check = _ALPHABET[digit] + check
    return check


class Holder(msgspec.Struct, frozen=True):
    """Whose key it is."""

    user_id: UUID
    key_id: UUID


class _Source:
    """Where requests come from: how many unknown keys it has brought within the last second.

    What is being looked up may turn out to be unknown, so it counts until it is known; who would be one too many
    meanwhile waits for that.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changed = asyncio.Condition()
        self._asking = self._looking_up = 0
        self._unknown: deque[float] = deque(maxlen=UNKNOWN_A_SECOND)

    @property
    def idle(self) -> bool:
        return not self._asking and not self._lately()

    def note_unknown(self) -> None:
        self._unknown.append(self._clock())

    @asynccontextmanager
    async def look_up(self) -> AsyncIterator[None]:
        """The turn for one look-up.

        Raises:
            TooMany: There have been too many unknown ones.
        """
        self._asking += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._is_guessing() or self._has_room())
                if self._is_guessing():
                    refusal = TooMany("Too many unknown keys came from your address. Please wait a second.")
                    refusal.counted_as = "keys"
                    raise refusal
                self._looking_up += 1
            try:
                yield
            finally:
                self._looking_up -= 1
                async with self._changed:
                    self._changed.notify_all()
        finally:
            self._asking -= 1

    def _lately(self) -> int:
        earliest = self._clock() - 1.0
        return sum(at > earliest for at in self._unknown)

    def _is_guessing(self) -> bool:
        return self._lately() >= UNKNOWN_A_SECOND

    def _has_room(self) -> bool:
        return self._looking_up + self._lately() < UNKNOWN_A_SECOND


class KeyRing:
    """Tells whose a key is, and asks the database for each at most every few seconds."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._known: Remembered[bytes, Holder] = Remembered(REMEMBERED_AT_MOST)
        self._unknown: Remembered[bytes, str] = Remembered(REMEMBERED_AT_MOST)
        self._sources: dict[str, _Source] = {}
        self._noted: Remembered[UUID, bool] = Remembered(REMEMBERED_AT_MOST)
        self._used: set[UUID] = set()
        self._wake = asyncio.Event()

    async def holder(self, key: str, source: str) -> Holder:
        """Whose key it is.

        Args:
            source: The address that the request comes from.

        Raises:
            Unauthorized: It is mistyped, unknown, revoked or expired.
            TooMany: Too many unknown ones came from there.
            DatabaseUnavailable: Nobody can say.
        """
        written = _WRITTEN.fullmatch(key)
        if not written or not compare_digest(_check(written[1]), written[2]):
            raise Unauthorized(_MISTYPED)
        key_hash = hash_of(key)
        holder = self._recalled(key_hash)
        if holder is None:
            holder = await self._asked(key_hash, _network(source))
        self._note_used(holder.key_id)
        return holder

    def forget(self, key_id: UUID) -> None:
        """A key was revoked here, so here it ends at once."""
        for key_hash, holder in self._known.items():
            if holder.key_id == key_id:
                self._known.forget(key_hash)

    def _recalled(self, key_hash: bytes) -> Holder | None:
        now = self._clock()
        if holder := self._known.get(key_hash, now):
            return holder
        if why := self._unknown.get(key_hash, now):
            raise Unauthorized(why)
        return None

    async def _asked(self, key_hash: bytes, network: str) -> Holder:
        source = self._source(network)
        async with source.look_up():
            # Another request with the same key may have asked meanwhile.
            if holder := self._recalled(key_hash):
                return holder
            asked_at = self._clock()
            found = await self._find(key_hash)
            if found is None or not compare_digest(found.key_hash, key_hash):
                source.note_unknown()
                self._unknown.put(key_hash, _UNKNOWN, asked_at + UNKNOWN_SECONDS)
                raise Unauthorized(_UNKNOWN)
        left = found.seconds_left
        if left is not None and left <= 0:
            self._unknown.put(key_hash, _EXPIRED, asked_at + UNKNOWN_SECONDS)
            raise Unauthorized(_EXPIRED)
        holder = Holder(found.user_id, found.id)
        self._known.put(key_hash, holder, asked_at + min(KNOWN_SECONDS, KNOWN_SECONDS if left is None else left))
        return holder

    async def _find(self, key_hash: bytes) -> keys.FoundKey | None:
        try:
            async with self._database.connection() as connection:
                return await keys.find(connection, key_hash)
        except REFUSED as exc:  # whatever it was, it says nothing about the key
            raise DatabaseUnavailable from exc

    def _source(self, network: str) -> _Source:
        source = self._sources.get(network)
        if source is None:
            if len(self._sources) >= SOURCES_AT_MOST:
                self._sources = {name: known for name, known in self._sources.items() if not known.idle}
            source = self._sources[network] = _Source(self._clock)
        return source

    # --- when a key was last used -------------------------------------------------------------------------------------

    def _note_used(self, key_id: UUID) -> None:
        now = self._clock()
        if self._noted.get(key_id, now) is None:
            self._noted.put(key_id, True, now + USED_EVERY_SECONDS)
            self._used.add(key_id)
            self._wake.set()

    async def run(self) -> None:
        """Write down when keys were used, beside the requests, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            used, self._used = list(self._used), set()
            try:
                async with self._database.connection() as connection:
                    await keys.note_used(connection, used)
            except REFUSED as exc:
                _log.warning("could not write when keys were used", extra={"reason": type(exc).__name__})
            await asyncio.sleep(1.0)


def _network(address: str) -> str:
    """Whom an address stands for: with IPv6 one customer has at least a /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
