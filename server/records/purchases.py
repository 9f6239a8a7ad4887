"""What costs money and is no stream: who is buying it at the moment, and what became of it.

A purchase is claimed by one statement that commits before the call leaves, and no connection is held while it is under
way. The table is the record that reconciliation reads: whatever was begun and never decided still stands in it.
"""

from datetime import datetime
from hashlib import sha256
from typing import Any, Literal
from uuid import UUID

import msgspec

from server.database.connections import Connection
from server.database.queue import Queue

Kind = Literal["clone", "design", "http", "modal"]
State = Literal["calling", "done", "refused", "unknown", "given_back"]

GIVE_BACK_JOB = "give_back"

LEASE_SECONDS = 180.0


class Purchase(msgspec.Struct, frozen=True, kw_only=True):
    """One purchase.

    Attributes:
        subject: The voice, the preview's task, or the speech's task.
        provider_name: By which a repeated call finds at the provider what an earlier one has made.
        outcome: What it brought (for ``done``), or the refusal's ``detail``, ``status`` and diagnostics.
        age_seconds: Since ``updated_at``, by the database's clock.
        leased: Whether somebody is buying it at the moment.
    """

    subject: UUID
    part: int
    kind: Kind
    user_id: UUID
    state: State
    attempt: int
    provider_name: str | None
    request_id: str | None
    outcome: dict[str, Any] | None
    updated_at: datetime
    age_seconds: float
    leased: bool = False


_PURCHASE = """
SELECT subject, part, kind, user_id, state, attempt, provider_name, request_id, outcome, updated_at,
       extract(epoch FROM now() - updated_at)::float8 AS age_seconds,
       state = 'calling' AND lease_until >= now() AS leased
  FROM internal.purchases
"""


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """A call that may have been carried out, though nobody here has heard so.

    Attributes:
        since: When it ended for us.
        code: How it did: ``refused`` by the provider or by a ``gateway`` before it, ``died`` with its caller, else the
            code of the unknown outcome.
        age_seconds: Since then, by the database's clock.
    """

    since: datetime
    code: str
    age_seconds: float

    def as_outcome(self) -> dict[str, str]:
        """For the outcome of a later attempt, which must not forget it."""
        return {"in_doubt_since": self.since.isoformat(), "in_doubt_code": self.code}


def doubt_of(purchase: Purchase | None) -> Doubt | None:
    """What is doubtful about the last attempt at a purchase, or about an earlier one that it only looked for."""
    if purchase is None or purchase.state == "done":
        return None
    since, code = purchase.updated_at, "died"
    if purchase.state != "calling":
        outcome = purchase.outcome or {}
        diagnostics = outcome.get("diagnostics") or {}
        if "in_doubt_since" in outcome:
            since, code = datetime.fromisoformat(outcome["in_doubt_since"]), outcome["in_doubt_code"]
        elif purchase.state == "unknown":
            code = str(diagnostics.get("code", ""))
        elif outcome.get("throttled"):
            return None  # refused before anything was done
        elif outcome.get("category") == "provider_unavailable" and diagnostics.get("text_sent", True):
            # It may hide a success; without a code of the provider's own somebody in between has answered.
            code = "refused" if diagnostics.get("code") else "gateway"
        else:
            return None
    earlier = (purchase.updated_at - since).total_seconds()
    return Doubt(since=since, code=code, age_seconds=purchase.age_seconds + earlier)


def may_be_bought(purchase: Purchase | None) -> bool:
    """Whether there may be a bill for it: only what certainly came to nothing is none."""
    return purchase is not None and (purchase.state != "refused" or doubt_of(purchase) is not None)


def provider_name(subject: UUID) -> str:
    """The 16 characters under which the provider knows what is bought for ``subject``; always the same."""
    return f"u{sha256(subject.bytes).hexdigest()[:15]}"


async def claim(
    connection: Connection,
    subject: UUID,
    *,
    kind: Kind,
    user_id: UUID,
    part: int = 0,
    lease_seconds: float = LEASE_SECONDS,
) -> int | None:
    """Become the one who buys, for the time of a lease. Let it commit before the call leaves.

    Returns:
        Which attempt this is (from 1 on); None where somebody else is buying, or where it is decided. Of all
        but a clone an unknown outcome is decided, too: what it brought cannot be had again from the provider.
    """
    attempt: int | None = await connection.fetchval(
        """INSERT INTO internal.purchases AS p (subject, part, kind, user_id, state, lease_until, provider_name)
           VALUES ($1, $2, $3, $4, 'calling', now() + make_interval(secs => $5), $6)
           ON CONFLICT (subject, part) DO UPDATE
              SET state = 'calling', attempt = p.attempt + 1, lease_until = excluded.lease_until, updated_at = now()
            WHERE p.user_id = excluded.user_id AND p.kind = excluded.kind
              AND (p.state = 'refused' OR (p.kind = 'clone'
                   AND (p.state = 'unknown' OR (p.state = 'calling' AND p.lease_until < now()))))
        RETURNING attempt""",
        subject,
        part,
        kind,
        user_id,
        lease_seconds,
        provider_name(subject),
    )
    return attempt


async def any_of(connection: Connection, subject: UUID) -> bool:
    """Whether anything was ever about to be bought for this."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM internal.purchases WHERE subject = $1)", subject))


async def decide(
    connection: Connection,
    subject: UUID,
    state: Literal["done", "refused", "unknown"],
    *,
    attempt: int,
    part: int = 0,
    request_id: str | None = None,
    outcome: dict[str, Any] | None = None,
    give_back_in_seconds: float | None = None,
) -> bool:
    """Say what became of a purchase. False when another attempt has taken over meanwhile.

    An answer that comes after its buyer was given up still counts.

    Args:
        give_back_in_seconds: After which the provider may have it back, unless it is kept by then; None for never.
    """
    decided = await connection.fetchval(
        """UPDATE internal.purchases
              SET state = $3, request_id = coalesce($4, request_id), outcome = $5, updated_at = now(),
                  give_back_at = now() + make_interval(secs => $7)
            WHERE subject = $1 AND part = $2 AND attempt = $6
              AND (state = 'calling' OR (state = 'unknown' AND $3 = 'done')) RETURNING true""",
        subject,
        part,
        state,
        request_id,
        outcome,
        attempt,
        give_back_in_seconds,
    )
    return bool(decided)


async def keep(connection: Connection, subject: UUID) -> bool:
    """Let nobody give this back any more, from this transaction on. False where it was given back already."""
    kept = await connection.fetchval(
        """UPDATE internal.purchases SET give_back_at = NULL
            WHERE subject = $1 AND part = 0 AND state = 'done' RETURNING true""",
        subject,
    )
    return bool(kept)


async def give_back_due(connection: Connection, queue: Queue, *, at_most: int = 100) -> list[Purchase]:
    """Give up what nobody has kept in time, and defer the jobs that tell the provider. Commit before it is told.

    Returns:
        What was given up. A preview that is a voice by now (a release before this one saved it) is none of it.
    """
    rows = await connection.fetch(
        """UPDATE internal.purchases p
              SET give_back_at = NULL, updated_at = now(),
                  state = CASE WHEN EXISTS (SELECT FROM public.voices v WHERE v.preview_task_id = p.subject)
                               THEN state ELSE 'given_back' END
            WHERE (p.subject, p.part) IN (
                SELECT subject, part FROM internal.purchases WHERE give_back_at < now()
                 ORDER BY give_back_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED)
        RETURNING p.subject, p.state""",
        at_most,
    )
    given_back = [row["subject"] for row in rows if row["state"] == "given_back"]
    for subject in given_back:
        await defer_give_back(connection, queue, subject)
    return [purchase for subject in given_back if (purchase := await find(connection, subject))]


async def defer_give_back(
    connection: Connection, queue: Queue, subject: UUID, *, tries: int = 0, in_seconds: float = 0.0
) -> None:
    """Have the provider told that a voice is not needed any more."""
    await queue.defer(connection, GIVE_BACK_JOB, in_seconds=in_seconds, preview_id=subject, tries=tries)


async def take_back(connection: Connection, subject: UUID, *, attempt: int, part: int = 0) -> None:
    """Forget a claim whose call was never made."""
    await connection.execute(
        """DELETE FROM internal.purchases
            WHERE subject = $1 AND part = $2 AND attempt = $3 AND state = 'calling'""",
        subject,
        part,
        attempt,
    )


async def find(connection: Connection, subject: UUID, part: int = 0, *, locked: bool = False) -> Purchase | None:
    """A purchase as it stands; ``locked`` for the rest of the transaction."""
    lock = "FOR UPDATE" if locked else ""
    row = await connection.fetchrow(f"{_PURCHASE} WHERE subject = $1 AND part = $2 {lock}", subject, part)
    return Purchase(**dict(row)) if row else None


async def newest_preview(
    connection: Connection, user_id: UUID, *, text: str, language: str, instruct: str
) -> Purchase | None:
    """The user's own newest finished preview of exactly this design."""
    row = await connection.fetchrow(
        f"""{_PURCHASE}
            WHERE user_id = $1 AND kind = 'design' AND state = 'done' AND outcome ->> 'text' = $2
              AND outcome ->> 'language' = $3 AND outcome ->> 'instruct' = $4
              AND md5(outcome ->> 'instruct') = md5($4)
            ORDER BY updated_at DESC LIMIT 1""",
        user_id,
        text,
        language,
        instruct,
    )
    return Purchase(**dict(row)) if row else None


async def undecided(connection: Connection) -> list[Purchase]:
    """Everything that may have been paid for and came to nothing here."""
    rows = await connection.fetch(
        f"{_PURCHASE} WHERE state = 'unknown' OR (state = 'calling' AND lease_until < now()) ORDER BY updated_at"
    )
    return [Purchase(**dict(row)) for row in rows]


async def forget_old(connection: Connection, older_than_seconds: float) -> None:
    """Purchases of speech go after a while; those of voices and previews stay, since they are found by them."""
    await connection.execute(
        """DELETE FROM internal.purchases WHERE kind IN ('http', 'modal')
              AND updated_at < now() - make_interval(secs => $1)""",
        older_than_seconds,
    )
