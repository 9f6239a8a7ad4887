"""When each word of a speech is heard, as rows: a batch for each time that the provider said so, in order.

They are written with the audio in which they are heard (``relay/spool.py``).
"""

from uuid import UUID

from server.database.connections import Connection

Word = tuple[str, int, int]
"""A word, and when it begins and ends, in milliseconds from the beginning of the speech."""


async def next_position(connection: Connection, generation_id: UUID) -> int:
    """The position of the next batch."""
    position: int = await connection.fetchval(
        "SELECT coalesce(max(position) + 1, 0) FROM internal.words WHERE generation_id = $1", generation_id
    )
    return position


async def since(connection: Connection, generation_id: UUID, position: int, user_id: UUID) -> list[list[Word]]:
    """The batches of the user's own generation from ``position`` on."""
    rows = await connection.fetch(
        """SELECT w.words FROM internal.words w
             JOIN public.generations g ON g.id = w.generation_id AND g.user_id = $3
            WHERE w.generation_id = $1 AND w.position >= $2 ORDER BY w.position""",
        generation_id,
        position,
        user_id,
    )
    return [[(str(text), int(start), int(end)) for text, start, end in row["words"]] for row in rows]
