"""What piles up for all processes together, as numbers that an operator is shown and alarmed by."""

import msgspec

from server.database.connections import Connection
from server.records.runs import SYNTHESIZE_JOB

# Beyond this many the exact number changes nothing for whoever reads it, and counting them would be work.
COUNTED_AT_MOST = 10_000
# Source: Model Studio, voice customization: an account keeps 1000 voices of a kind (docs/providers.md).
VOICES_KEPT = 1000


class Piled(msgspec.Struct, frozen=True):
    """How things stand.

    Attributes:
        waiting: Speeches that nobody has begun.
        waited_seconds: How long the first of them has waited.
        unstored_bytes: Speech that waits for the store.
        oldest_beat_seconds: How long ago the most silent process that holds speeches said that it lives.
    """

    waiting: int
    waited_seconds: float
    unstored_bytes: int
    oldest_beat_seconds: float


class Pace(msgspec.Struct, frozen=True):
    """How much of its full rate a model may be started at now, throttles and recovery counted."""

    model: str
    share: float


async def piled(connection: Connection) -> Piled:
    """Read it, at the database's clock."""
    row = await connection.fetchrow(
        """SELECT w.waiting, coalesce(w.waited, 0)::float8 AS waited_seconds, u.size AS unstored_bytes,
                  coalesce(b.oldest, 0)::float8 AS oldest_beat_seconds
             FROM (SELECT count(*) AS waiting, greatest(0, extract(epoch FROM clock_timestamp() - min(created_at)))
                              AS waited
                     FROM (SELECT created_at FROM internal.runs WHERE state = 'queued' AND job_name = $1 LIMIT $2) q
                  ) w,
                  (SELECT coalesce(sum(byte_length), 0)::bigint AS size
                     FROM internal.runs WHERE state IN ('spoken', 'unstored')) u,
                  (SELECT greatest(0, max(extract(epoch FROM clock_timestamp() - p.beat_at))) AS oldest
                     FROM internal.processes p
                    WHERE p.beat_at <> '-infinity'
                      AND EXISTS (SELECT FROM internal.runs r WHERE r.owner = p.owner)) b""",
        SYNTHESIZE_JOB,
        COUNTED_AT_MOST,
    )
    return msgspec.convert(dict(row or {}), Piled)


async def paces(connection: Connection, account: str, recovery_seconds: float) -> list[Pace]:
    """The pace of each model that has ever been started, recovered up to this moment."""
    rows = await connection.fetch(
        """SELECT model, least(1.0, share + passed / $2) AS share
             FROM (SELECT model, share,
                          greatest(0, extract(epoch FROM clock_timestamp() - counted_at))::float8 AS passed
                     FROM internal.pace WHERE account = $1) p""",
        account,
        recovery_seconds,
    )
    return [Pace(row["model"], row["share"]) for row in rows]


async def voices_kept(connection: Connection) -> dict[str, int]:
    """What the provider keeps for this service: cloned (``vc``) and designed (``vd``) voices. Deleting a voice here
    deletes none there, and a preview that nobody has saved yet is one, too."""
    row = await connection.fetchrow(
        """SELECT count(*) FILTER (WHERE kind = 'vc') AS vc,
                  count(*) FILTER (WHERE kind = 'vd')
                      + (SELECT count(*) FROM internal.purchases WHERE give_back_at IS NOT NULL) AS vd
             FROM (SELECT provider_voice_kind AS kind FROM public.voices
                    WHERE provider_voice_id IS NOT NULL LIMIT $1) v""",
        COUNTED_AT_MOST,
    )
    return dict(row or {})
