"""When each word of a speech is heard, as rows: a batch for each time that the provider said so, in order."""

from uuid import UUID

from server.database.connections import Connection

Word = tuple[str, int, int]
"""A word, and when it begins and ends, in milliseconds from the beginning of the speech."""


async def add(connection: Connection, generation_id: UUID, batches: dict[int, list[Word]]) -> None:
    """Keep batches of words by their position; one that is there is replaced. A generation that is gone keeps none."""
    for position, words in batches.items():
        await connection.execute(
            """INSERT INTO internal.words (generation_id, position, words)
               SELECT id, $2, $3 FROM public.generations WHERE id = $1
               ON CONFLICT (generation_id, position) DO UPDATE SET words = excluded.words""",
            generation_id,
            position,
            words,
        )


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
