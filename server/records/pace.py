"""The pace of the provider's account: one row for each model, from which every process takes its starts.

Each statement stands alone, outside of any transaction, and goes by the database's clock.
"""

from server.database.connections import Connection


async def take(
    connection: Connection, account: str, model: str, *, per_minute: float, burst: float, recovery_seconds: float
) -> float:
    """Take one start: 0 where it was granted, else the seconds until there may be one.

    The row earns tokens for the time since it was last read (of which a minute at most counts, and what has not been
    used within the burst is void), and a throttled share recovers meanwhile.

    Args:
        per_minute: The full rate, as this process is configured; a changed setting holds from its first start on.
        burst: How many tokens there may be at once.
        recovery_seconds: How long a share of nothing takes to become whole.
    """
    wait_seconds: float = await connection.fetchval(
        """WITH earned AS (
               SELECT account, model,
                      least(1.0, share + passed / $5) AS share,
                      least(CASE WHEN share + passed / $5 >= 1.0 THEN $4 ELSE 1.0 END,
                            tokens + passed * $3 / 60 * least(1.0, share + passed / $5)) AS tokens
                 FROM (SELECT account, model, share, tokens,
                              greatest(0, least(60, extract(epoch FROM clock_timestamp() - counted_at)))::float8
                                  AS passed
                         FROM internal.pace WHERE account = $1 AND model = $2 FOR UPDATE) p
           ), taken AS (
               UPDATE internal.pace p
                  SET share = e.share, counted_at = clock_timestamp(), rate = $3,
                      tokens = e.tokens - CASE WHEN e.tokens >= 1 THEN 1 ELSE 0 END
                 FROM earned e WHERE p.account = e.account AND p.model = e.model
               RETURNING CASE WHEN e.tokens >= 1 THEN 0.0 ELSE (1 - e.tokens) / ($3 / 60 * e.share) END AS wait_seconds
           ), first AS (
               INSERT INTO internal.pace (account, model, rate, tokens)
               SELECT $1, $2, $3, $4 - 1 WHERE NOT EXISTS (SELECT 1 FROM taken)
               ON CONFLICT (account, model) DO NOTHING RETURNING 0.0::float8 AS wait_seconds
           )
           -- Nothing at all: another process has just made the row.
           SELECT coalesce((SELECT wait_seconds FROM taken), (SELECT wait_seconds FROM first), 0.01)""",
        account,
        model,
        per_minute,
        burst,
        recovery_seconds,
    )
    return wait_seconds


async def slow_down(
    connection: Connection, account: str, model: str, *, slowest: float, same_throttle_seconds: float
) -> None:
    """Halve a model's share, once for all throttles that answer the same burst, whichever process heard them."""
    await connection.execute(
        """UPDATE internal.pace
              SET share = greatest($3, share / 2), tokens = least(tokens, 0), throttled_at = clock_timestamp()
            WHERE account = $1 AND model = $2
              AND (throttled_at IS NULL OR throttled_at < clock_timestamp() - make_interval(secs => $4))""",
        account,
        model,
        slowest,
        same_throttle_seconds,
    )
