"""PostgreSQL as this process sees it: its connections, and one that listens.

Requests fail at once when the database is gone (503); workers wait for it, because what they hold has been paid for.
Both are said where the work is done: ``connection``/``transaction`` for the former, ``patiently`` for the latter.
What a refusal means stands in ``refusals.py``.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import anyio
import asyncpg
import msgspec
from asyncpg.connect_utils import SessionAttribute
from asyncpg.pool import PoolConnectionProxy

from server.database.refusals import REFUSED as REFUSED
from server.database.refusals import Meaning, meaning_of, spoils_connection

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:  # only the library's stubs are generic
    Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy
    Pool: TypeAlias = asyncpg.Pool

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

SEARCH_PATH = "internal, public"
COMMAND_SECONDS = 10.0  # the longest statement of ours moves 4 MB
CONNECT_SECONDS = 5.0
LEAST_SIZE = 4
REFUSALS_AT_MOST = 60
LONGEST_PAUSE_SECONDS = 5.0
# How long a COMMIT or ROLLBACK may go on after whoever began it was cancelled, and a connection may take to come back.
END_SECONDS = 3.0
# With both, whoever asks a server that has vanished hears so within 3 s.
PULSE_EVERY_SECONDS, PULSE_SECONDS, PULSE_STEPS = 0.5, 1.8, 18

# The server gives up 2 s before we do, so that a slow statement and a lost server look different from here, and lets go
# of what a vanished host holds. Plain SETs, because a pooler refuses these as start-up parameters. And no plan is
# compiled: that takes a tenth of a second where the planner expects much, and a page of a long history says LIMIT. A
# statement of the spool has 4 MB of audio, and would be put into a file where the usual 4 MB are its room.
_LIMITS = f"""
SET jit = off; SET work_mem = '16MB';
SET statement_timeout = '{COMMAND_SECONDS - 2:g}s';
SET idle_in_transaction_session_timeout = '10s';
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = '25s';
"""
_LIMIT_SINCE_17 = "SET transaction_timeout = '30s'"
_IS_WRITABLE = "SELECT NOT (pg_catalog.pg_is_in_recovery() OR current_setting('transaction_read_only')::bool)"


def _encode_jsonb(value: Any) -> bytes:
    # Format version 1, then the text. Binary, because asyncpg refuses text codecs inside the queue's composite type.
    return b"\x01" + msgspec.json.encode(value)


def _decode_jsonb(value: bytes) -> Any:
    return msgspec.json.decode(value[1:])


def trouble(exc: BaseException) -> str:
    """Why the database of DATABASE_URL cannot be worked with: one sentence for whoever set it, in every command."""
    if isinstance(exc, asyncpg.TargetServerAttributeNotMatched):
        return "PostgreSQL at DATABASE_URL takes no writes: it is a standby, or read-only by default."
    if isinstance(exc, asyncpg.PostgresError) and getattr(exc, "severity", None):
        words = (str(exc).splitlines() or [""])[0].strip().rstrip(".")
        return f"PostgreSQL at DATABASE_URL answers and refuses: {words}."
    if isinstance(exc, asyncpg.PostgresError):  # made by our driver, which has heard nothing
        return (
            "PostgreSQL at DATABASE_URL ends the connection in the middle of the conversation, as a pooler does that"
            " lends it for one statement: use a session-mode or direct connection."
        )
    if isinstance(exc, TimeoutError):
        return "PostgreSQL at DATABASE_URL cannot be reached: it did not answer in time."
    if isinstance(exc, OSError):
        return f"PostgreSQL at DATABASE_URL cannot be reached: {exc.strerror or exc or 'no connection'}."
    # Its words may quote the address, and that holds a password.
    return "DATABASE_URL is not the address of a PostgreSQL database."


async def connect(url: str, *, timeout: float = CONNECT_SECONDS) -> "asyncpg.Connection[asyncpg.Record]":
    """A connection of one's own to a server that takes writes, as it comes.

    Args:
        timeout: Seconds until it has to be there.
    """
    return await asyncpg.connect(
        url, timeout=timeout, command_timeout=COMMAND_SECONDS, target_session_attrs=SessionAttribute.read_write
    )


async def prepare(connection: Connection) -> None:
    """Give a new connection our codecs and search path.

    A plain SET, because a pooler refuses search_path as a start-up parameter.
    """
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_encode_jsonb, decoder=_decode_jsonb, format="binary"
    )
    await connection.execute(f"SET search_path TO {SEARCH_PATH}")


async def wait_for_locks(connection: Connection, *, at_most_seconds: float) -> None:
    """From here to the end of this transaction, a statement that waits longer for a lock fails."""
    await connection.execute("SELECT set_config('lock_timeout', $1, true)", f"{round(at_most_seconds * 1000)}ms")


async def _prepare_bounded(connection: Connection) -> None:
    await prepare(connection)
    since_17 = connection.get_server_version() >= (17,)
    await connection.execute(_LIMITS + (_LIMIT_SINCE_17 if since_17 else ""))


async def _keep_as_it_is(_connection: Connection) -> None:
    """The pool's reset: nothing to undo, and the default one would undo our search path (and cost a round trip)."""


def _drop(connection: Connection) -> None:
    """Break it off, unless that has happened."""
    with contextlib.suppress(asyncpg.InterfaceError):  # what the pool lends is no connection any more once it is gone
        connection.terminate()


def _is_in_transaction(connection: Connection) -> bool:
    with contextlib.suppress(asyncpg.InterfaceError):
        return not connection.is_closed() and connection.is_in_transaction()
    return False


def _pool(url: str, size: int) -> Pool:
    return asyncpg.create_pool(
        url,
        min_size=0,  # a pool that keeps a least number by itself complains of every outage as of a fault
        max_size=size,
        init=_prepare_bounded,
        reset=_keep_as_it_is,
        command_timeout=COMMAND_SECONDS,
        timeout=CONNECT_SECONDS,
        target_session_attrs=SessionAttribute.read_write,
    )


class Pulse:
    """What was last seen of the server, shared by everybody here who has a connection to it.

    A server that refuses is found out by everybody at once, each at their own connection. One that vanished answers
    nobody, and one that no longer takes writes still reads; the listening connection, which nobody else uses, asks for
    all of them.

    Attributes:
        writable: A server that takes writes answered when it was last asked, half a second ago.
        silent: Nobody answered in time, and no refusal came either.
    """

    def __init__(self) -> None:
        self.writable = True
        self.silent = False
        self._pools: list[Pool] = []
        self._waiting: set[asyncio.Timeout] = set()

    def add(self, pool: Pool) -> None:
        """Keep the connections of ``pool`` where writes are taken."""
        self._pools.append(pool)

    @contextlib.asynccontextmanager
    async def limit(self) -> AsyncIterator[asyncio.Timeout]:
        """A time limit on the block that passes in the moment in which the server is found silent.

        Raises:
            ConnectionError: It is silent already.
        """
        if self.silent:
            raise ConnectionError("PostgreSQL does not answer")
        async with asyncio.timeout(None) as limit:
            self._waiting.add(limit)
            try:
                yield limit
            finally:
                self._waiting.discard(limit)

    async def ask(self, connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
        """Whether the server at the other end takes writes.

        Raises:
            TimeoutError: It did not answer within PULSE_SECONDS; whoever waits for it has been told.
            OSError, asyncpg.PostgresError: It is gone.
        """
        asking = asyncio.create_task(connection.fetchval(_IS_WRITABLE))
        try:
            # In many short steps: a loop of our own that stood still is no silence of the server.
            for _ in range(PULSE_STEPS):
                await asyncio.wait({asking}, timeout=PULSE_SECONDS / PULSE_STEPS)
                if asking.done():
                    break
            else:
                raise TimeoutError("PostgreSQL does not answer")
            writable: bool = asking.result()
        except REFUSED as exc:
            self.missed(exc)
            raise
        finally:
            asking.cancel()
        self.writable, self.silent = writable, False
        if not writable:
            logger.warning("the database takes no writes, connecting anew")
            await self.connect_anew()
        return writable

    def missed(self, exc: BaseException) -> None:
        """Nobody answered, or not as hoped."""
        self.writable, self.silent = False, isinstance(exc, TimeoutError)
        if self.silent:
            now = asyncio.get_running_loop().time()
            for limit in self._waiting:
                if not limit.expired():
                    limit.reschedule(now)

    async def connect_anew(self) -> None:
        """Whoever takes a connection from now on gets a new one, to a server that takes writes."""
        for pool in self._pools:
            await pool.expire_connections()


class Database:
    """Connections with two manners of waiting.

    Attributes:
        for_spool: The spool's own connection, so that no slow request keeps audio from becoming durable.
        for_leases: The leases' own, for the same reason.
        pulse: What was last seen of the server.
    """

    def __init__(
        self,
        pool: Pool,
        pulse: Pulse,
        *,
        acquire_seconds: float,
        waited: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.pool = pool
        self._waited = waited
        self.pulse = pulse
        self.for_spool = self
        self.for_leases = self
        self._acquire_seconds = acquire_seconds
        self._leaving = False
        pulse.add(pool)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        size: int,
        acquire_seconds: float = 5.0,
        waited: Callable[[str, float], None] = lambda _pool, _seconds: None,
    ) -> "AsyncIterator[Database]":
        """Open the connections; close them at the end, by force where one does not come back within 5 s.

        Args:
            size: How many there may be in all. Of four or more, one is the spool's and one the leases'.
            waited: Hears, of each connection that is taken, from which pool (requests, spool, leases) and after how
                many seconds.
        """
        apart = size >= LEAST_SIZE
        pools = [_pool(url, part) for part in ((size - 2, 1, 1) if apart else (size,))]
        for pool in pools:
            await pool
        pulse = Pulse()
        names = ("requests", "spool", "leases")
        database, *others = (
            cls(pool, pulse, acquire_seconds=acquire_seconds, waited=partial(waited, name))
            for name, pool in zip(names, pools, strict=False)
        )
        if others:
            database.for_spool, database.for_leases = others
        try:
            yield database
        finally:
            try:
                async with asyncio.timeout(5.0):
                    await asyncio.gather(*(pool.close() for pool in pools))
            except TimeoutError:
                for pool in pools:
                    pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for one statement or a few independent ones.

        Raises:
            ConnectionError, TimeoutError, asyncpg.PostgresError: At once when the database is gone; within 3 s of its
                vanishing without a word, while a `Listener` listens for it.
        """
        async with self.pulse.limit() as limit:
            connection = await self._acquired()
            try:
                yield connection
            except BaseException as exc:
                if limit.expired() or spoils_connection(exc):
                    _drop(connection)
                if meaning_of(exc) is Meaning.DEMOTED:
                    await self.pulse.connect_anew()
                raise
            finally:
                await self._released(connection)

    async def _acquired(self) -> "PoolConnectionProxy[asyncpg.Record]":
        began = time.monotonic()
        try:
            return await self.pool.acquire(timeout=self._acquire_seconds)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as exc:  # no such host, no such socket: here it can mean nothing else
            raise ConnectionError("PostgreSQL cannot be reached") from exc
        finally:
            self._waited(time.monotonic() - began)

    async def _released(self, connection: "PoolConnectionProxy[asyncpg.Record]") -> None:
        """Give it back, or break it off where its last statement was cancelled and does not come to an end."""
        try:
            await self.pool.release(connection, timeout=END_SECONDS)
        except REFUSED as exc:
            logger.info("connection to the database dropped", extra={"reason": type(exc).__name__})

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside one transaction: all of it, or nothing.

        Its first and last words are never cut by a cancellation: a connection that comes back inside a transaction
        would be the next one's trouble.
        """
        async with self.connection() as connection:
            transaction = connection.transaction()
            try:
                await self._whole(connection, transaction.start())
                yield connection
            except BaseException:
                if self.pulse.silent:
                    _drop(connection)
                elif _is_in_transaction(connection):
                    try:
                        await self._whole(connection, transaction.rollback())
                    except REFUSED:
                        _drop(connection)
                raise
            else:
                await self._whole(connection, transaction.commit())

    async def _whole(self, connection: Connection, words: Coroutine[Any, Any, None]) -> None:
        """Say ``words`` to their end; whoever is cancelled meanwhile hears of it afterwards, or after END_SECONDS."""
        loop = asyncio.get_running_loop()
        saying = loop.create_task(words)
        cancelled: asyncio.CancelledError | None = None
        until: float | None = None
        with anyio.CancelScope(shield=True):
            while not saying.done():
                try:
                    await asyncio.wait({saying}, timeout=None if until is None else max(0.0, until - loop.time()))
                except asyncio.CancelledError as exc:
                    cancelled = exc
                    until = until or loop.time() + END_SECONDS
                if until is not None and (self.pulse.silent or loop.time() >= until):
                    _drop(connection)
                    saying.cancel()
                    until = None
        if cancelled is not None:
            if not saying.cancelled():
                saying.exception()  # looked at, so that nobody complains of one that nobody looked at
            raise cancelled
        await saying

    async def patiently(
        self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work(connection, …)`` in a transaction, and again from its start: for as long as the database is away,
        and a bounded number of times where it is busy.

        Only for work that is safe to run twice: a commit whose answer was lost is repeated.
        """
        return await self._again(lambda connection: work(connection, *args, **kwargs))

    async def patiently_for(
        self,
        for_seconds: float | None,
        work: Callable[Concatenate[Connection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The same, but give up after so many seconds, with the last error; None waits for ever."""
        return await self._again(lambda connection: work(connection, *args, **kwargs), for_seconds=for_seconds)

    async def patiently_say(
        self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same for a single statement, which is a transaction by itself: two round trips less."""
        return await self._again(lambda connection: work(connection, *args, **kwargs), one_statement=True)

    async def _again(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        for_seconds: float | None = None,
        one_statement: bool = False,
    ) -> T:
        opened = self.connection if one_statement else self.transaction
        deadline = None if for_seconds is None else asyncio.get_running_loop().time() + for_seconds
        pause = 0.05
        refusals = 0
        while True:
            try:
                async with opened() as connection:
                    return await work(connection)
            except REFUSED as exc:
                meaning = meaning_of(exc)
                # The driver's own errors are counted, too: they may be a mistake of ours that looks like a loss.
                refusals += meaning is Meaning.BUSY or type(exc) in (
                    asyncpg.InterfaceError,
                    asyncpg.InternalClientError,
                )
                if meaning is Meaning.OURS or self._leaving or self.pool.is_closing() or refusals > REFUSALS_AT_MOST:
                    raise
                if deadline is not None and asyncio.get_running_loop().time() > deadline:
                    raise
                line = "database away, waiting for it" if meaning is Meaning.AWAY else "database busy, trying again"
                logger.warning(line, extra={"reason": type(exc).__name__})
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - spreads reconnects, guards nothing
            pause = min(1.0 if meaning is Meaning.AWAY else LONGEST_PAUSE_SECONDS, pause * 2)

    def wait_no_more(self) -> None:
        """The process is leaving: whoever waits for a lost database gives up. What it held, other processes find."""
        self._leaving = True


Arrived = Callable[[str], None]


class Listener:
    """The process's one LISTEN connection, for every channel anybody here cares about.

    It reconnects by itself, and after each reconnect tells everybody once with an empty payload, because what was
    sent meanwhile is lost. A notification carries no truth here: whoever is told looks at the rows.

    Args:
        pulse: Who wants to know how the server is; being idle, this connection asks it.
    """

    def __init__(self, url: str, pulse: Pulse | None = None) -> None:
        self._url = url
        self._pulse = pulse or Pulse()
        self._arrived: dict[str, list[Arrived]] = {}
        self._changed = asyncio.Event()
        self.connected = asyncio.Event()

    @contextlib.contextmanager
    def on(self, channel: str, arrived: Arrived) -> Iterator[None]:
        """Call ``arrived(payload)`` for each notification on ``channel`` while the context is open."""
        self._arrived.setdefault(channel, []).append(arrived)
        self._changed.set()
        try:
            yield
        finally:
            self._arrived[channel].remove(arrived)

    async def run(self) -> None:
        """Listen until cancelled."""
        pause = 0.05
        while True:
            try:
                connection = await connect(self._url)
            except REFUSED as exc:
                self._pulse.missed(exc)
                logger.warning("cannot listen to the database, trying again", extra={"reason": type(exc).__name__})
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)
                continue
            pause = 0.05
            try:
                await self._listen(connection)
            except REFUSED as exc:
                logger.warning("listening connection lost", extra={"reason": type(exc).__name__})
            finally:
                self.connected.clear()
                connection.terminate()

    async def _listen(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        channels: set[str] = set()
        while not lost.is_set() and await self._pulse.ask(connection):
            self._changed.clear()
            for channel in self._arrived.keys() - channels:
                await connection.add_listener(channel, self._dispatch)
                channels.add(channel)
                self._tell(channel, "")
            self.connected.set()
            changed = asyncio.ensure_future(self._changed.wait())
            gone = asyncio.ensure_future(lost.wait())
            try:
                await asyncio.wait({changed, gone}, timeout=PULSE_EVERY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                gone.cancel()

    def _dispatch(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        self._tell(channel, str(payload))

    def _tell(self, channel: str, payload: str) -> None:
        for arrived in list(self._arrived.get(channel, ())):
            arrived(payload)
