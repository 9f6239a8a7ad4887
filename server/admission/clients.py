"""Clients' connections, bounded: how large and slow the head of a request may be, and how many there are at once.

uvicorn reads a head of any size for as long as it takes, and takes connections until the process has no file left for
a provider, the store or the database. Here a head has 64 kB and ten seconds. Over the limit of connections those make
room that ask for nothing: idle ones, and who has not come to the end of a head. Where all are being answered, heads are
still read, so that what an operator and a user in need ask for can be served.
"""

import asyncio
import json
import logging
import resource
from collections.abc import Callable
from http import HTTPStatus
from typing import ClassVar
from uuid import uuid4

from server.relay.stalled import StalledReaderProtocol

logger = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
# Whoever connects to ask has said so by then, over most networks; who has not makes room for others.
SILENT_SECONDS = 1.0
# What is still sent of a head that is too large is thrown away for so long, so that its sender gets to read why.
LEAVING_SECONDS = 2.0
# Whoever comes over the limit is only read for what is served then; even that many are bounded.
SPARE = 100
# What the process itself may need at once: the pools of database, store and providers, logs, the loop.
OWN_FILES = 400
MOST_FILES = 65_536
# A page of ours, and a few programs beside it.
LEAST_SHARE = 20
# The key under which a request's state says that it came over the limit.
CROWDED = "crowded"
TOO_MANY = "Too many are connected right now. Please try again in a moment."


def raise_file_limit() -> int:
    """Let this process have as many files open as it may, up to a sensible number; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return min(soft, MOST_FILES) if soft != resource.RLIM_INFINITY else MOST_FILES


def connections_limit(told: int | None) -> int:
    """How many clients may be connected: as many as the operator says, else as files let us."""
    return told or most_connections(raise_file_limit())


def share_of_one(limit: int) -> int:
    """How many requests of one person may be answered at once where so many clients may be connected."""
    return max(LEAST_SHARE, limit // 4)


def most_connections(files: int) -> int:
    """How many clients may be connected where so many files may be open: each may need one more for its speech."""
    return max(50, (files - OWN_FILES) // 2)


class Door:
    """What all connections of one server share.

    Args:
        limit: How many clients may be connected.
        refused: Counts what was refused, by a word.
    """

    def __init__(self, limit: int, refused: Callable[[str], None]) -> None:
        self.limit = limit
        self.refused = refused
        # Who has had an answer, and who is still to say what it wants and since when: each the longest first.
        self.idle: dict[GuardedProtocol, None] = {}
        self.unsaid: dict[GuardedProtocol, float] = {}

    def close_an_idle_one(self) -> bool:
        """Make room: whoever has said nothing for the longest after an answer comes back with a new connection."""
        for protocol in list(self.idle):
            del self.idle[protocol]
            if not protocol.transport.is_closing():
                protocol.transport.close()
                return True
        return False

    def close_a_silent_one(self, since: float) -> bool:
        """Make room: whoever has not told within a moment what it wants makes place for somebody who may.

        Args:
            since: Who began later is left in peace.
        """
        while self.unsaid:
            protocol, began = next(iter(self.unsaid.items()))
            if began > since:
                return False
            del self.unsaid[protocol]
            if not protocol.transport.is_closing():
                protocol.give_way()
                return True
        return False


class GuardedProtocol(StalledReaderProtocol):
    """One connection of a client."""

    door: ClassVar[Door]
    head_seconds: ClassVar[float] = HEAD_SECONDS
    _late = False
    _reading_head = False
    _too_large = False
    _leaving = False
    _head_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    @classmethod
    def behind(
        cls, door: Door, *, stalled_seconds: float, head_seconds: float = HEAD_SECONDS
    ) -> type["GuardedProtocol"]:
        """The same for one server; it makes its connections without asking for one."""
        members = {"door": door, "stalled_seconds": stalled_seconds, "head_seconds": head_seconds}
        return type(cls.__name__, (cls,), members)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        door, now = self.door, self.loop.time()
        over = len(self.connections) - door.limit
        if over > 0 and not (door.close_an_idle_one() or door.close_a_silent_one(now - SILENT_SECONDS)):
            self._late = True
            if over > SPARE and not door.close_a_silent_one(now):
                door.refused("connections")
                transport.abort()
                return
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.idle.pop(self, None)
        self._be_patient_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._leaving:
            return
        self.door.idle.pop(self, None)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._reading_head:
            self._head_bytes += len(data)
        elif self._patience is None and (self.cycle is None or self.cycle.response_complete):
            self._be_patient()  # blank lines are no request
        if self._too_large or (self._reading_head and self._head_bytes > HEAD_BYTES):
            self._be_patient_no_more()
            self.door.refused("heads")
            self._leaving = True
            self._answer(431, "The head of this request is too large.", "too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading_head, self._head_bytes = True, 0
        if self._late and len(self.connections) > self.door.limit:
            self.scope["state"][CROWDED] = True
        if self._patience is None:
            self._be_patient()

    def on_headers_complete(self) -> None:
        self._reading_head = False
        self._be_patient_no_more()
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if head_bytes > HEAD_BYTES or self._too_large:
            self._too_large = True
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._too_large:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._too_large:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete and not self._reading_head:
            self.door.idle[self] = None

    def send_400_response(self, msg: str) -> None:
        self._answer(400, "The request is not valid HTTP.", "validation")

    def give_way(self) -> None:
        """Leave the place to somebody else."""
        self._be_patient_no_more()
        self.door.refused("connections")
        if self._reading_head:
            self._answer(503, TOO_MANY, "overloaded", "retry-after: 10\r\n")
        else:
            self.transport.close()

    def _be_patient(self) -> None:
        self._be_patient_no_more()
        self._patience = self.loop.call_later(self.head_seconds, self._lose_patience)
        self.door.unsaid[self] = self.loop.time()

    def _be_patient_no_more(self) -> None:
        self.door.unsaid.pop(self, None)
        if self._patience:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._be_patient_no_more()
        self.door.refused("heads")
        if self._reading_head:
            self._answer(408, "The head of this request took too long.", "validation")
        else:
            self.transport.close()

    def _answer(self, status: int, detail: str, category: str, more: str = "") -> None:
        """The last words of a connection whose request nobody can read."""
        request_id = uuid4().hex
        body = json.dumps({"detail": detail, "category": category, "request_id": request_id}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nreferrer-policy: no-referrer\r\ncache-control: no-store\r\n"
            f"{more}connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self._leaving and self.transport.can_write_eof():
            # Closing on somebody who still sends would take the answer back: the system resets such a connection.
            self.transport.write_eof()
            self.loop.call_later(LEAVING_SECONDS, self.transport.abort)
        else:
            self.transport.close()
