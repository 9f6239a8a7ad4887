"""What a refusal of PostgreSQL means: the one table by SQLSTATE, read by requests and workers alike.

Four things look alike from far away. The server is *away*: wait for it. It is there but takes no writes any more
(*demoted*): this connection is useless, another may lead to its successor. It is *busy* with trouble of the moment:
the same again after a pause, a bounded number of times. Or the statement is wrong, and the mistake is *ours*.

The codes are those of appendix A of PostgreSQL's manual, "PostgreSQL Error Codes".
"""

from enum import Enum
from typing import Final

import asyncpg


class Meaning(Enum):
    """What to do about a refusal."""

    AWAY = "away"
    DEMOTED = "demoted"
    BUSY = "busy"
    OURS = "ours"


#: By code, else by class (its first two letters); what stands here under neither is a mistake of ours.
_TABLE: Final = {
    "08": Meaning.AWAY,  # connection exceptions
    "28": Meaning.AWAY,  # no such role, wrong password: passwords rotate, and a proxy says so during a fail-over
    "3D": Meaning.AWAY,  # no such database, where one is being restored
    "57P01": Meaning.AWAY,  # admin_shutdown, and pg_terminate_backend
    "57P02": Meaning.AWAY,  # crash_shutdown
    "57P03": Meaning.AWAY,  # cannot_connect_now: starting up
    "57P04": Meaning.AWAY,  # database_dropped
    "57P05": Meaning.AWAY,  # idle_session_timeout
    "25P03": Meaning.AWAY,  # idle_in_transaction_session_timeout: the session is gone, its transaction with it
    "25P04": Meaning.AWAY,  # transaction_timeout: the same
    "25006": Meaning.DEMOTED,  # read_only_sql_transaction
    "40": Meaning.BUSY,  # deadlock, serialization failure, statement completion unknown
    "53": Meaning.BUSY,  # disk full, out of memory, out of slots
    "55": Meaning.BUSY,  # lock_not_available, object_in_use
    "57": Meaning.BUSY,  # query_canceled: a statement's own time-out, or an operator
    "58": Meaning.BUSY,  # system errors, e.g. of a disk
    "XX000": Meaning.BUSY,  # what connection poolers call whatever went wrong between them and the server
}

# Everything that PostgreSQL, its driver or the way to it can raise; for loops that must outlive all of it.
REFUSED: Final[tuple[type[BaseException], ...]] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresError,
)


def meaning_of(exc: BaseException) -> Meaning:
    """What an exception raised by work on the database means.

    The driver has one class for a closed connection and for a mistake of ours; only its words tell them apart. A limit
    of our own that passed (``TimeoutError``) means that nobody answered. A driver that lost count of the protocol's
    messages (a server that crashed in the middle of one) needs a new connection, as after any other loss.
    """
    if isinstance(exc, asyncpg.TargetServerAttributeNotMatched):
        return Meaning.AWAY  # there is a server, but none that takes writes
    if isinstance(exc, asyncpg.PostgresError):
        state: str = exc.sqlstate or ""
        return _TABLE.get(state) or _TABLE.get(state[:2]) or Meaning.OURS
    if isinstance(exc, asyncpg.InterfaceError):
        return Meaning.AWAY if "clos" in str(exc) or "released" in str(exc) else Meaning.OURS
    if isinstance(exc, ConnectionError | TimeoutError | asyncpg.InternalClientError):
        return Meaning.AWAY
    return Meaning.OURS


def will_pass(exc: BaseException) -> bool:
    """Whether the same work may well succeed a little later: to a request that is a 503, to a worker a pause."""
    return meaning_of(exc) is not Meaning.OURS


def spoils_connection(exc: BaseException) -> bool:
    """Whether the connection that raised this is of no use to anybody after it."""
    return meaning_of(exc) in (Meaning.AWAY, Meaning.DEMOTED) or (
        isinstance(exc, asyncpg.PostgresError) and exc.sqlstate == "XX000"
    )
