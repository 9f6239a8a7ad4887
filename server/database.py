"""PostgreSQL as this process sees it: one pool, and one connection that listens.

Requests fail at once when the database is gone (503); workers wait for it, because what they hold has been paid for.
Both are said where the work is done: ``connection``/``transaction`` for the former, ``patiently`` for the latter.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

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
MISUSES_AT_MOST = 20

# What asyncpg raises when the server is gone, going, or not yet there; everything else is an answer.
LOST: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

# The same, and every refusal that the server put into words.
REFUSED: tuple[type[BaseException], ...] = (*LOST, asyncpg.PostgresError)

# SQLSTATE classes, and one code, that are not about the statement: no connection, no such role or database, read-only
# after a failover, deadlocks, no memory or disk left, not accepting connections, a lock or a time limit, the system.
_TROUBLE = frozenset({"08", "28", "3D", "25006", "40", "53", "55", "57", "58"})


def is_away(exc: BaseException) -> bool:
    """Whether the database is gone, or answered with trouble of its own; the same statement may work later.

    The library has one class for a closed connection and for a mistake of ours; only its words tell them apart.
    """
    if isinstance(exc, asyncpg.PostgresError):
        state: str = exc.sqlstate or ""
        return state in _TROUBLE or state[:2] in _TROUBLE
    if isinstance(exc, asyncpg.InterfaceError):
        return "clos" in str(exc) or "released" in str(exc)
    return isinstance(exc, ConnectionError | TimeoutError)


def _encode_jsonb(value: Any) -> bytes:
    # Format version 1, then the text. Binary, because asyncpg refuses text codecs inside the queue's composite type.
    return b"\x01" + msgspec.json.encode(value)


def _decode_jsonb(value: bytes) -> Any:
    return msgspec.json.decode(value[1:])


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


async def _keep_as_it_is(_connection: Connection) -> None:
    """The pool's reset: nothing to undo, and the default one would undo our search path (and cost a round trip)."""


class Database:
    """The pool with its two manners of waiting."""

    def __init__(self, pool: Pool, *, acquire_seconds: float) -> None:
        self.pool = pool
        self._acquire_seconds = acquire_seconds
        self._leaving = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, *, size: int, acquire_seconds: float = 5.0) -> "AsyncIterator[Database]":
        """Open the pool; close it at the end, by force where a connection does not come back within 5 s."""
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=size,
            init=prepare,
            reset=_keep_as_it_is,
            command_timeout=COMMAND_SECONDS,
            timeout=CONNECT_SECONDS,
        )
        try:
            yield cls(pool, acquire_seconds=acquire_seconds)
        finally:
            try:
                await asyncio.wait_for(pool.close(), timeout=5.0)
            except TimeoutError:
                pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for one statement or a few independent ones.

        Raises:
            ConnectionError, TimeoutError, asyncpg.PostgresError: At once when the database is gone.
        """
        try:
            connection = await self.pool.acquire(timeout=self._acquire_seconds)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as exc:  # no such host, no such socket: here it can mean nothing else
            raise ConnectionError("PostgreSQL cannot be reached") from exc
        try:
            yield connection
        finally:
            await self.pool.release(connection)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside one transaction: all of it, or nothing."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def patiently(
        self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work(connection, …)`` in a transaction, and again from its start for as long as the database is away.

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
        misuses = 0
        while True:
            try:
                async with opened() as connection:
                    return await work(connection)
            except LOST as exc:
                # The library has one class for a closed connection and for a mistake of ours, which would not pass.
                misuses += type(exc) is asyncpg.InterfaceError
                if self._leaving or self.pool.is_closing() or misuses > MISUSES_AT_MOST:
                    raise
                if deadline is not None and asyncio.get_running_loop().time() > deadline:
                    raise
                logger.warning("database away, waiting for it", extra={"reason": type(exc).__name__})
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - spreads reconnects, guards nothing
            pause = min(1.0, pause * 2)

    def wait_no_more(self) -> None:
        """The process is leaving: whoever waits for a lost database gives up. What it held, other processes find."""
        self._leaving = True


Arrived = Callable[[str], None]


class Listener:
    """The process's one LISTEN connection, for every channel anybody here cares about.

    It reconnects by itself, and after each reconnect tells everybody once with an empty payload, because what was
    sent meanwhile is lost. A notification carries no truth here: whoever is told looks at the rows.
    """

    def __init__(self, url: str) -> None:
        self._url = url
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
                connection = await asyncpg.connect(self._url, timeout=CONNECT_SECONDS, command_timeout=COMMAND_SECONDS)
            except REFUSED as exc:
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

    async def _listen(self, connection: Connection) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        channels: set[str] = set()
        while not lost.is_set():
            self._changed.clear()
            for channel in self._arrived.keys() - channels:
                await connection.add_listener(channel, self._dispatch)
                channels.add(channel)
                self._tell(channel, "")
            self.connected.set()
            changed = asyncio.ensure_future(self._changed.wait())
            gone = asyncio.ensure_future(lost.wait())
            try:
                # A silent half-open connection is found by asking; TCP alone would take minutes.
                await asyncio.wait({changed, gone}, timeout=10.0, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                gone.cancel()
            if not lost.is_set():
                await connection.execute("SELECT 1", timeout=5.0)

    def _dispatch(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        self._tell(channel, str(payload))

    def _tell(self, channel: str, payload: str) -> None:
        for arrived in list(self._arrived.get(channel, ())):
            arrived(payload)
