"""What one person may have spoken and made, held against what they have used."""

from math import ceil

from server.database.connections import Connection
from server.errors import TooMany
from server.parts import Parts
from server.records import usage
from server.records.usage import Account


async def count_speech(parts: Parts, connection: Connection, account: Account, characters: int) -> None:
    """Count a speech that this transaction makes.

    Raises:
        TooMany: It is more than its user may have spoken.
    """
    settings = parts.settings
    a_day, a_minute = settings.characters_per_user_per_day, settings.starts_per_user_per_minute
    if a_day is not None or a_minute is not None:
        await usage.lock(connection, account.user_id)
        spent = await usage.spent(connection, account.user_id)
        if a_day is not None and spent.characters + characters > a_day:
            left = max(0, a_day - spent.characters)
            raise _more(
                parts,
                "characters",
                f"You may have {a_day} characters spoken a day, and {left} are left today (UTC).",
                spent.day_ends_in_seconds,
            )
        if a_minute is not None and spent.starts >= a_minute:
            raise _more(
                parts,
                "starts",
                f"You may start {a_minute} speeches a minute. Please wait a moment.",
                spent.minute_ends_in_seconds,
            )
    await usage.add_start(connection, account, characters)


async def count_made(parts: Parts, connection: Connection, account: Account) -> None:
    """Count a voice that is about to be made: designed or cloned, as the account's lane says.

    Raises:
        TooMany: It is more than its user may have made.
    """
    await usage.lock(connection, account.user_id)
    spent = await usage.spent(connection, account.user_id)
    if account.lane == usage.DESIGN:
        done, limit, made = spent.designs, parts.settings.designs_per_user_per_day, "designed"
    else:
        done, limit, made = spent.clones, parts.settings.clones_per_user_per_day, "cloned"
    if done >= limit:
        words = f"You may have {limit} voices {made} a day. Please come back tomorrow (UTC)."
        raise _more(parts, f"{account.lane}s", words, spent.day_ends_in_seconds)
    await usage.add_start(connection, account, 0)


def _more(parts: Parts, what: str, words: str, seconds: float) -> TooMany:
    parts.metrics.refused(f"{what}_of_one")
    return TooMany(words, retry_after_seconds=max(1, ceil(seconds)))
