"""A request that is sent twice under one Idempotency-Key, by a person, a program or a proxy: it makes one task."""

import hashlib
from uuid import UUID

import msgspec

from server.database.connections import Connection
from server.errors import Conflict
from server.records import idempotency, tasks
from server.records.tasks import SpeechTask


class Repeatable:
    """One request, which may be a repetition of an earlier one.

    Args:
        key: The client's ``Idempotency-Key``; without one every request is the first.
    """

    def __init__(self, user_id: UUID, key: str | None, request: msgspec.Struct) -> None:
        self._user_id = user_id
        self._key = key
        self._hash = hashlib.sha256(type(request).__name__.encode() + msgspec.json.encode(request)).digest()

    async def first_task(self, connection: Connection) -> SpeechTask | None:
        """The task that the same request has made before; None where it is the first.

        Raises:
            Conflict: The key was used for another request, or what it made is gone.
        """
        if self._key is None:
            return None
        first = await idempotency.recall(connection, self._user_id, self._key)
        return await self._task_of(connection, first) if first else None

    async def claim(self, connection: Connection, task_id: UUID) -> SpeechTask | None:
        """Claim the key for a task that this transaction is about to make; None where it may go on.

        A twin in another transaction waits here, and then gets the winner's task.

        Raises:
            Conflict: As above.
        """
        if self._key is None:
            return None
        first = await idempotency.remember(connection, self._user_id, self._key, self._hash, task_id)
        return await self._task_of(connection, first) if first else None

    async def _task_of(self, connection: Connection, first: tuple[bytes, UUID]) -> SpeechTask:
        first_hash, task_id = first
        if first_hash != self._hash:
            raise Conflict("This Idempotency-Key was used for a different request.")
        task = await tasks.find(connection, task_id, self._user_id)
        if task is None:
            raise Conflict("This Idempotency-Key was used for a task that no longer exists.")
        return task
