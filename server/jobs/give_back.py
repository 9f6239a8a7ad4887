"""Giving back the voice of a preview that nobody saved: the provider keeps a number of them for an account, and counts.

What is given back was given up in the rows before: nobody can save it any more, so it may be asked for as often as it
takes. Only voices that have a purchase here are ever deleted.
"""

import logging
from uuid import UUID

from server.errors import ProviderError, VoiceGone
from server.parts import Parts
from server.records import purchases

logger = logging.getLogger(__name__)

# Minutes, then hours: who is away for a day comes back, and whoever does not is named in the log and by `reconcile`.
PAUSES_SECONDS = (60.0, 600.0, 3600.0, 3600.0 * 4, 3600.0 * 12, 3600.0 * 24)


async def give_back(parts: Parts, *, preview_id: UUID, tries: int = 0) -> None:
    """Ask the provider to delete the voice of a preview that was given up (a job)."""
    purchase = await parts.database.patiently(purchases.find, preview_id)
    if purchase is None or purchase.state != "given_back":
        return
    outcome = purchase.outcome or {}
    voice_id = outcome.get("voice")
    if not isinstance(voice_id, str):
        return
    try:
        await parts.providers.maker(str(outcome.get("target_model"))).delete("vd", voice_id)
    except VoiceGone:
        return  # deleted by an earlier try whose answer was lost, or by the account's owner
    except ProviderError as exc:
        extra = {"task_id": str(preview_id), "voice": voice_id, "reason": exc.diagnostics.get("code")}
        if tries >= len(PAUSES_SECONDS):
            logger.error("voice not given back", extra=extra)
            return
        if not tries:
            logger.warning("voice not given back yet", extra=extra)
        async with parts.database.transaction() as connection:
            await purchases.defer_give_back(
                connection, parts.queue, preview_id, tries=tries + 1, in_seconds=PAUSES_SECONDS[tries]
            )
