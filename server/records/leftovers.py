"""What reconciliation asks the rows."""

from typing import Any
from uuid import UUID

from server.database.connections import Connection
from server.records.removals import DOUBTFUL_CLONE


async def unstored(connection: Connection) -> list[dict[str, Any]]:
    """Runs whose audio was paid for and could not be stored."""
    rows = await connection.fetch(
        """SELECT task_id, generation_id, object_key, byte_length, spoken_at FROM internal.runs
            WHERE state = 'unstored' ORDER BY spoken_at"""
    )
    return [dict(row) for row in rows]


async def known_voices(connection: Connection, provider_voice_ids: list[str]) -> set[str]:
    """Which of these a row or a finished purchase knows; those of deleted and renewed voices, too."""
    rows = await connection.fetch(
        """SELECT provider_voice_id AS voice FROM public.voices WHERE provider_voice_id = ANY($1::text[])
           UNION SELECT k.voice FROM unnest($1::text[]) AS k (voice) JOIN public.voices v
                     ON v.provider_metadata ? 'previous'
                    AND v.provider_metadata -> 'previous' @> jsonb_build_array(jsonb_build_object('voice', k.voice))
           UNION SELECT outcome ->> 'voice' FROM internal.purchases
                  WHERE state = 'done' AND outcome ? 'voice' AND outcome ->> 'voice' = ANY($1::text[])""",
        provider_voice_ids,
    )
    return {row["voice"] for row in rows}


async def awaited_voices(connection: Connection) -> dict[str, UUID]:
    """Clones that may have been made and are adopted by the next try: by their name at the provider, their ids."""
    rows = await connection.fetch(
        f"SELECT provider_name, subject FROM internal.purchases WHERE {DOUBTFUL_CLONE}"  # noqa: S608 - constants
    )
    return {row["provider_name"]: row["subject"] for row in rows}
