"""What reconciliation asks the rows."""

from typing import Any
from uuid import UUID

from server.database import Connection

# As ``purchases.doubt_of`` has it, and those that were throttled as well: keeping too much harms nobody.
_DOUBTFUL_CLONE = """kind = 'clone' AND (state IN ('calling', 'unknown') OR (state = 'refused'
    AND (outcome ? 'in_doubt_since' OR (outcome ->> 'category' = 'provider_unavailable'
         AND coalesce(outcome #>> '{diagnostics,text_sent}', 'true') = 'true'))))"""


async def removals(connection: Connection) -> list[dict[str, Any]]:
    """Objects that are to be removed and are still there."""
    rows = await connection.fetch(
        "SELECT bucket, object_key, reason, created_at FROM internal.removals ORDER BY created_at"
    )
    return [dict(row) for row in rows]


async def unstored(connection: Connection) -> list[dict[str, Any]]:
    """Runs whose audio was paid for and could not be stored."""
    rows = await connection.fetch(
        """SELECT task_id, generation_id, object_key, byte_length, spoken_at FROM internal.runs
            WHERE state = 'unstored' ORDER BY spoken_at"""
    )
    return [dict(row) for row in rows]


async def provider_voice_ids(connection: Connection) -> set[str]:
    """Every provider voice that a row or a finished purchase knows; those of deleted voices, too."""
    rows = await connection.fetch(
        """SELECT provider_voice_id AS voice FROM public.voices WHERE provider_voice_id IS NOT NULL
           UNION SELECT outcome ->> 'voice' FROM internal.purchases WHERE state = 'done' AND outcome ? 'voice'"""
    )
    return {row["voice"] for row in rows}


async def awaited_voices(connection: Connection) -> dict[str, UUID]:
    """Clones that may have been made and are adopted by the next try: by their name at the provider, their ids."""
    rows = await connection.fetch(
        f"SELECT provider_name, subject FROM internal.purchases WHERE {_DOUBTFUL_CLONE}"  # noqa: S608 - constants
    )
    return {row["provider_name"]: row["subject"] for row in rows}


async def wanted_keys(connection: Connection, keys: list[str]) -> set[str]:
    """Which of these keys a row shows, or will show.

    A recording whose cloning has an unknown end belongs to no row, but is needed to adopt what was paid for.
    """
    rows = await connection.fetch(
        f"""SELECT audio_object_key AS key FROM public.generations WHERE audio_object_key = ANY($1::text[])
           UNION SELECT reference_object_key FROM public.voices WHERE reference_object_key = ANY($1::text[])
           UNION SELECT object_key FROM internal.runs WHERE object_key = ANY($1::text[])
           UNION SELECT user_id || '/' || subject || '/reference.wav' FROM internal.purchases WHERE {_DOUBTFUL_CLONE}
           UNION SELECT outcome ->> 'object_key' FROM internal.purchases
                  WHERE kind = 'design' AND outcome ->> 'object_key' = ANY($1::text[])
           UNION SELECT result ->> 'object_key' FROM public.tasks
                  WHERE type = 'design_preview' AND result ->> 'object_key' = ANY($1::text[])""",  # noqa: S608 - constants
        keys,
    )
    return {row["key"] for row in rows}
