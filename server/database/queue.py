"""What starts work: procrastinate over asyncpg, jobs deferred by name, and supervised in-process workers.

The queue only starts things. Who is alive, what is cancelled and what must be done again is ours (``leases.py``),
because the library's own abort, retry and stalled-job search lose wake-ups and jobs
(docs/architecture.md, "A queue that starts work, and leases of our own").
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import asyncpg
import procrastinate
from procrastinate import exceptions
from procrastinate.connector import BaseAsyncConnector, Notify
from procrastinate.worker import Worker

from server.database.connections import REFUSED, Connection, Database, Listener

logger = logging.getLogger(__name__)

SYNTHESIS, DEFAULT, WATCHING = "synthesis", "default", "watching"
DEFAULT_CONCURRENCY = 20
# Looks at a provider that does not answer take seconds each; storing must not wait for them, nor speaking.
WATCHING_CONCURRENCY = 50

# A worker that is merely paused must not be pruned by another process (its next fetch would die on a foreign key),
# so only rows that a dead process left behind a day ago go.
_PRUNE_AFTER_SECONDS = 86_400.0
# The worker clears its wake-up flag after a fetch, so a notification that lands during one is lost. Saying it again
# after 10 and 100 ms brings the worst dispatch from the polling interval down to about 20 ms.
_REPEAT_AFTER_SECONDS = (0.0, 0.010, 0.100)
# Workers look for what has become due this often. Of a job that is due later still nobody here needs to be told.
_LOOK_EVERY_SECONDS = 1.0
_LATER_AT_MOST = 1000
_JOB_OF_NOTIFICATION = re.compile(r'"job_id" ?: ?(\d{1,19})\b')  # {"type" : "job_inserted", "job_id" : 7}

# The second group tells that the library's SQL joins the value to text, where asyncpg insists on a str.
_NAMED = re.compile(r"%\((\w+)\)s(?=(\s*\|\|)?)|%%")


class _Statement(NamedTuple):
    sql: str
    names: tuple[str, ...]
    as_text: frozenset[str]

    def values(self, arguments: dict[str, Any]) -> list[Any]:
        return [str(arguments[name]) if name in self.as_text else arguments[name] for name in self.names]


@lru_cache(maxsize=256)
def _translate(query: str) -> _Statement:
    """psycopg's ``%(name)s`` to PostgreSQL's ``$n``."""
    names: list[str] = []
    as_text: set[str] = set()

    def place(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[2]:
            as_text.add(match[1])
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return _Statement(_NAMED.sub(place, query), tuple(names), frozenset(as_text))


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    try:
        yield
    except asyncpg.UniqueViolationError as exc:
        raise exceptions.UniqueViolation(constraint_name=exc.constraint_name or "", queueing_lock=None) from exc
    except REFUSED as exc:
        raise exceptions.ConnectorException from exc


class AsyncpgConnector(BaseAsyncConnector):
    """procrastinate's public connector interface over our pool and our listening connection.

    Queries of a worker wait for a lost database; those that ride in a caller's transaction fail with it.
    """

    def __init__(self, database: Database, listener: Listener) -> None:
        self._database = database
        self._listener = listener
        self._for_later: dict[int, None] = {}

    def is_for_later(self, job: int) -> None:
        """A job was put in the queue that is not due yet: three looks for it would be a fifth of what an end costs."""
        self._for_later[job] = None
        while len(self._for_later) > _LATER_AT_MOST:
            del self._for_later[next(iter(self._for_later))]

    async def open_async(self, pool: Any | None = None) -> None:
        """Nothing to open: the pool belongs to the composition root."""

    async def close_async(self) -> None:
        """Nothing to close either."""

    async def _rows(self, connection: Connection, query: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        statement = _translate(query)
        rows = await connection.fetch(statement.sql, *statement.values(arguments))
        return [dict(row) for row in rows]

    async def _patient_rows(self, query: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        with _library_errors():
            return await self._database.patiently_say(self._rows, query, arguments)

    async def execute_query_async(self, query: str, **arguments: Any) -> None:
        await self._patient_rows(query, arguments)

    async def execute_query_one_async(self, query: str, **arguments: Any) -> dict[str, Any]:
        rows = await self._patient_rows(query, arguments)
        if not rows:
            raise exceptions.NoResult
        return rows[0]

    async def execute_query_all_async(self, query: str, **arguments: Any) -> list[dict[str, Any]]:
        return await self._patient_rows(query, arguments)

    async def execute_query_one_async_with_connection(
        self, connection: Any, query: str, **arguments: Any
    ) -> dict[str, Any]:
        rows = await self._rows(connection, query, arguments)
        if not rows:
            raise exceptions.NoResult
        return rows[0]

    async def execute_query_all_async_with_connection(
        self, connection: Any, query: str, **arguments: Any
    ) -> list[dict[str, Any]]:
        return await self._rows(connection, query, arguments)

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Pass notifications on until cancelled, each one three times (see ``_REPEAT_AFTER_SECONDS``)."""
        loop = asyncio.get_running_loop()
        # Only the fact of a new job matters, so any number of notifications folds into one flag per channel.
        due: set[str] = set()
        wake = asyncio.Event()

        def say(channel: str) -> None:
            due.add(channel)
            wake.set()

        def arrived(channel: str) -> Callable[[str], None]:
            def tell(payload: str) -> None:
                if self._is_of_later(payload):
                    return
                for delay in _REPEAT_AFTER_SECONDS:
                    loop.call_later(delay, say, channel)

            return tell

        with contextlib.ExitStack() as stack:
            for channel in channels:
                stack.enter_context(self._listener.on(channel, arrived(channel)))
            while True:
                await wake.wait()
                wake.clear()
                while due:
                    await on_notification(channel=due.pop(), payload='{"type": "job_inserted", "job_id": 0}')

    def _is_of_later(self, payload: str) -> bool:
        """Whether a notification tells of such a job. After a reconnect one comes that names none: then anything may
        be there."""
        named = _JOB_OF_NOTIFICATION.search(payload)
        return named is not None and int(named[1]) in self._for_later


class JobFunction(Protocol):
    """A job's body. Its arguments are ids, attempt numbers and object keys; never text, never a secret."""

    def __call__(self, **arguments: Any) -> Awaitable[None]: ...


class _Worker(Worker):
    """The library's worker, not ended by a failed fetch or heartbeat: replacing it would wait for its longest speech.

    Attributes:
        places: Where its jobs share their number with others; one is taken before a job is fetched.
    """

    places: asyncio.Semaphore | None = None

    async def _fetch_and_process_jobs(self) -> None:
        if self.places is not None:
            self._job_semaphore = self.places
        try:
            await super()._fetch_and_process_jobs()  # type: ignore[no-untyped-call]
        except exceptions.ConnectorException as exc:
            if isinstance(exc.__cause__, asyncpg.ForeignKeyViolationError):
                # Another process took us for dead long ago and removed our row, or a fail-over has lost it.
                logger.warning("the queue has forgotten its worker, registering it again", extra=self._named())
                self.worker_id = await self.app.job_manager.register_worker()
            else:
                logger.exception("jobs not fetched, trying again", extra=self._named())

    def _named(self) -> dict[str, str | None]:
        return {"queue": self.worker_name}

    async def _persist_job_status(self, **about: Any) -> None:  # type: ignore[override]
        """Its job may have left the queue by then: an answer was lost, or commits were, with a fail-over."""
        try:
            await super()._persist_job_status(**about)
        except exceptions.ConnectorException as exc:
            if not isinstance(exc.__cause__, asyncpg.RaiseError):
                raise
            logger.info("a job had left the queue before it was done", extra=self._named())

    async def _update_heartbeat(self) -> None:
        while True:
            try:
                await super()._update_heartbeat()  # type: ignore[no-untyped-call]
            except exceptions.ConnectorException as exc:
                reason = type(exc.__cause__ or exc).__name__
                logger.warning(
                    "heartbeat of the queue not written", extra={"queue": self.worker_name, "reason": reason}
                )


class Queue:
    """Deferring by name, and the workers that run what is due."""

    def __init__(self, database: Database, listener: Listener) -> None:
        self._connector = AsyncpgConnector(database, listener)
        self._app = procrastinate.App(connector=self._connector)
        self._workers: dict[str, Worker] = {}
        self._stopping: set[str] = set()

    def register(self, name: str, body: JobFunction) -> None:
        """Say which function runs jobs called ``name``. Ids travel as text; the body gets them as UUIDs."""

        async def run(**arguments: str | int) -> None:
            await body(**{key: UUID(value) if key.endswith("_id") else value for key, value in arguments.items()})  # type: ignore[arg-type]

        self._app.task(name=name)(run)

    async def defer(
        self,
        connection: Connection,
        name: str,
        *,
        queue: str = DEFAULT,
        in_seconds: float = 0.0,
        **arguments: UUID | str | int,
    ) -> int:
        """Put a job in the queue, inside the caller's transaction: it exists exactly when the rows do. Its number."""
        job = await self._app.configure_task(
            name,
            allow_unknown=True,
            queue=queue,
            connection=connection,
            schedule_in={"seconds": in_seconds} if in_seconds > 0 else None,
        ).defer_async(**{key: str(value) if isinstance(value, UUID) else value for key, value in arguments.items()})
        if in_seconds > _LOOK_EVERY_SECONDS:
            self._connector.is_for_later(job)
        return job

    def up(self, queues: Iterable[str] = (SYNTHESIS, DEFAULT, WATCHING)) -> bool:
        """Whether every worker of ``queues`` is there and fetching."""
        workers = [self._workers.get(name) for name in queues]
        return all(worker is not None and worker.worker_id is not None for worker in workers)

    async def work(
        self,
        queue: str,
        *,
        concurrency: int,
        places: asyncio.Semaphore | None = None,
        cut_after_seconds: float | None = None,
    ) -> None:
        """Run jobs of one queue until ``stop``; a worker that dies is logged and replaced.

        Args:
            places: Taken one for each job, where others take them too.
            cut_after_seconds: How long jobs may go on after ``stop``; None for those that end by themselves.
        """
        while queue not in self._stopping:
            worker = _Worker(
                self._app,
                queues=[queue],
                name=queue,
                concurrency=concurrency,
                fetch_job_polling_interval=_LOOK_EVERY_SECONDS,
                delete_jobs="always",
                install_signal_handlers=False,
                stalled_worker_timeout=_PRUNE_AFTER_SECONDS,
                shutdown_graceful_timeout=cut_after_seconds,
            )
            worker.places = places
            self._workers[queue] = worker
            try:
                await worker.run()  # type: ignore[no-untyped-call]
            except Exception:  # whatever ended it, the queue must go on
                logger.exception("worker died, starting another", extra={"queue": queue})
            finally:
                self._workers.pop(queue, None)
            if queue not in self._stopping:
                await asyncio.sleep(0.5)

    def stop(self, queue: str) -> None:
        """Fetch nothing more from ``queue``; jobs that run go on to their end."""
        self._stopping.add(queue)
        if worker := self._workers.get(queue):
            worker.stop()  # type: ignore[no-untyped-call]

    async def depth(self, connection: Connection, queue: str | None = None) -> int:
        """How many jobs (of one queue, or of all) wait that could start now."""
        count: int = await connection.fetchval(
            """SELECT count(*) FROM internal.procrastinate_jobs
                WHERE status = 'todo' AND (scheduled_at IS NULL OR scheduled_at <= now())
                  AND ($1::text IS NULL OR queue_name = $1)""",
            queue,
        )
        return count

    async def withdraw(self, connection: Connection, job: int) -> None:
        """Take a job back that nobody has begun, inside the caller's transaction."""
        await connection.execute("DELETE FROM internal.procrastinate_jobs WHERE id = $1 AND status = 'todo'", job)

    async def abort_orphans(self, connection: Connection) -> None:
        """Jobs of processes that died hard an hour ago go; what they worked on has long moved on."""
        await connection.execute(
            """SELECT internal.procrastinate_finish_job_v1(j.id, 'aborted', true)
                 FROM internal.procrastinate_jobs j
                 LEFT JOIN internal.procrastinate_workers w ON w.id = j.worker_id
                WHERE j.status = 'doing' AND (w.id IS NULL OR w.last_heartbeat < now() - interval '1 hour')"""
        )
