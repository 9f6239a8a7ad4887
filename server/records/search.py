"""Which entries of a user's history a page shows, newest first, and how many there are of them.

However much somebody has, no page reads more than a share of it. Counting ends where nobody reads on. Words are looked
for in the newest entries first; where they are rare there, an index of pieces of texts has the rest
(sql/0024), and where they are common, the next few thousand entries have them.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from server.database.connections import Connection

#: As far as entries are counted, and those in which words are found.
MOST_COUNTED: Final = 10_000
MOST_FOUND: Final = 1000
#: So many of the newest entries show whether words are rare; the longer there are none, the more are read at once.
_FIRST_LOOK: Final = 500
_LONGEST_LOOK: Final = 16_000
_COMMON: Final = 10  # found in every tenth


def like(words: str) -> str:
    """A LIKE pattern that finds ``words`` anywhere, each of them a plain character."""
    escaped = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


class Cursor(NamedTuple):
    """Where an entry stands among the others: newest first, and the id decides between those of one moment."""

    created_at: datetime
    id: UUID


class Found(NamedTuple):
    """Entries of a page.

    Attributes:
        total: How many there are in all, as far as they are counted; beyond that, how many there are at least.
        more: Whether there are further ones.
    """

    ids: list[UUID]
    total: int
    more: bool


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a user's history is narrowed to. The words stand apart: no index of ours has them in order.

    Attributes:
        search: Found in the text.
        words: Found in the text or in the voice's name.
    """

    user_id: UUID
    ids: tuple[UUID, ...] | None = None
    before: Cursor | None = None
    since: Cursor | None = None
    voice_id: UUID | None = None
    status: str | None = None
    search: str | None = None
    words: str | None = None


@dataclass
class _Statement:
    """A statement's values, in the order in which they are named in it."""

    values: list[Any] = field(default_factory=list)

    def value(self, value: Any) -> str:
        """The place of a value; the same place for the same value."""
        if value not in self.values:
            self.values.append(value)
        return f"${self.values.index(value) + 1}"

    def narrowed(self, to: Filters, *, before: Cursor | None = None) -> str:
        """All conditions but the words, which may be looked for behind an entry."""
        conditions = [f"g.user_id = {self.value(to.user_id)}"]
        if to.ids is not None:
            conditions.append(f"g.id = ANY({self.value(to.ids)}::uuid[])")
        for cursor in filter(None, (to.before, before)):
            conditions.append(f"(g.created_at, g.id) < ({self.value(cursor.created_at)}, {self.value(cursor.id)})")
        if to.since:
            at = to.since
            conditions.append(f"(g.created_at, g.id) > ({self.value(at.created_at)}, {self.value(at.id)})")
        if to.voice_id:
            conditions.append(f"g.voice_id = {self.value(to.voice_id)}")
        if to.status:
            conditions.append(f"g.status = {self.value(to.status)}")
        return " AND ".join(conditions)

    def holding(self, to: Filters) -> str:
        """That an entry ``g`` has the words. Not by ILIKE, so that it is the same on every release as in the index."""
        conditions = []
        if to.search:
            conditions.append(f"lower(g.text) LIKE lower({self.value(like(to.search))}::text)")
        if to.words:
            pattern = f"lower({self.value(like(to.words))}::text)"
            # Not EXISTS, for which all of somebody's voices may be read beforehand.
            of_voice = (
                f"SELECT lower(v.name) LIKE {pattern} FROM public.voices v"  # noqa: S608 - constants
                f" WHERE v.id = g.voice_id AND v.user_id = {self.value(to.user_id)}"
            )
            conditions.append(f"(lower(g.text) LIKE {pattern} OR coalesce(({of_voice}), false))")
        return " AND ".join(conditions)


async def find(connection: Connection, to: Filters, *, limit: int, offset: int = 0, count: bool = True) -> Found:
    """One page.

    Args:
        count: False where ``total`` is of no use.
    """
    if to.search or to.words:
        async with connection.transaction():
            # A plan for anybody is one for somebody with few entries: it would sort all that this person has.
            await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            return await _with_words(connection, to, offset, limit, count)
    said = _Statement()
    rows = await connection.fetch(
        f"SELECT g.id FROM public.generations g WHERE {said.narrowed(to)}"  # noqa: S608 - constants
        f" ORDER BY g.created_at DESC, g.id DESC LIMIT {limit + 1:d} OFFSET {offset:d}",
        *said.values,
    )
    ids, more = [row["id"] for row in rows[:limit]], len(rows) > limit
    there = offset + len(rows)  # at least, if there are any
    if not count or (rows and not more):
        return Found(ids, there, more)
    said = _Statement()
    counted: int = await connection.fetchval(
        f"SELECT count(*) FROM (SELECT FROM public.generations g WHERE {said.narrowed(to)}"  # noqa: S608 - constants
        f" LIMIT {MOST_COUNTED:d}) counted",
        *said.values,
    )
    return Found(ids, max(counted, there) if rows else counted, more)


async def _with_words(connection: Connection, to: Filters, offset: int, limit: int, count: bool) -> Found:
    wanted = offset + limit + 1
    first = await _look(connection, to, None, _FIRST_LOOK)
    if first.ended:
        return _page(first.found, offset, limit)
    if len(first.found) * _COMMON < _FIRST_LOOK:
        found = await _indexed(connection, to)
        if found is not None:
            return _page(found, offset, limit)
    elif count:
        wanted = max(wanted, MOST_FOUND)
    # Common, or rare only among the newest.
    found, look, size = first.found, first, _FIRST_LOOK
    while len(found) < wanted and not look.ended:
        size = min(4 * size, _LONGEST_LOOK)
        look = await _look(connection, to, look.last, size)
        found += look.found
    page = _page(found, offset, limit)
    return page._replace(total=max(page.total, MOST_FOUND)) if not look.ended else page


def _page(found: list[Cursor], offset: int, limit: int) -> Found:
    """A page of these, newest first; there may be more of them than are known."""
    return Found([at.id for at in found[offset : offset + limit]], len(found), len(found) > offset + limit)


class _Look(NamedTuple):
    """What was read of the history at once.

    Attributes:
        found: Those with the words, newest first.
        last: The last that was read.
        ended: There is nothing behind it.
    """

    found: list[Cursor]
    last: Cursor | None
    ended: bool


async def _look(connection: Connection, to: Filters, behind: Cursor | None, entries: int) -> _Look:
    """Look for the words in the next ``entries``."""
    said = _Statement()
    rows = await connection.fetch(
        f"""SELECT id, created_at, number, has_words FROM (
                SELECT g.id, g.created_at, row_number() OVER () AS number, count(*) OVER () AS entries,
                       {said.holding(to)} AS has_words
                  FROM (SELECT g.id, g.created_at, g.text, g.voice_id FROM public.generations g
                         WHERE {said.narrowed(to, before=behind)}
                         ORDER BY g.created_at DESC, g.id DESC LIMIT {entries:d}) g) looked
             WHERE has_words OR number = entries ORDER BY number""",  # noqa: S608 - constants
        *said.values,
    )
    found = [Cursor(row["created_at"], row["id"]) for row in rows if row["has_words"]]
    last = Cursor(rows[-1]["created_at"], rows[-1]["id"]) if rows else behind
    return _Look(found, last, not rows or rows[-1]["number"] < entries)


async def _indexed(connection: Connection, to: Filters) -> list[Cursor] | None:
    """All entries with the words, newest first, as the indexes know them; None where there are very many."""
    said = _Statement()
    user, words = said.value(to.user_id), cast("str", to.search or to.words)
    pieces = f"internal.pieces_of_search({user}, {said.value(words)})"
    holding = said.holding(to)
    ways = [
        # In these words, since the index has only texts that have ended.
        f"g.status IN ('completed', 'failed', 'cancelled') AND (internal.pieces(g.user_id, g.text) COLLATE \"C\")"
        f" @> {pieces} AND {holding}",
        f"g.status IN ('pending', 'processing') AND {holding}",
    ]
    if not to.search:
        voices = await _voices_named(connection, to.user_id, words)
        if len(voices) > MOST_FOUND:
            return None
        ways.append(f"g.voice_id = ANY({said.value(voices)}::uuid[])")
    narrowed = said.narrowed(to)
    each = [
        f"(SELECT g.created_at, g.id FROM public.generations g WHERE {narrowed} AND {way}"  # noqa: S608 - constants
        f" LIMIT {MOST_FOUND + 1:d})"
        for way in ways
    ]
    rows = await connection.fetch(f"{' UNION '.join(each)} LIMIT {MOST_FOUND + 1:d}", *said.values)
    if len(rows) > MOST_FOUND:
        return None
    return sorted((Cursor(row["created_at"], row["id"]) for row in rows), reverse=True)


async def _voices_named(connection: Connection, user_id: UUID, words: str) -> list[UUID]:
    """The user's voices with the words in their names, deleted ones as well; one more than are of use."""
    rows = await connection.fetch(
        f"""SELECT v.id FROM public.voices v
             WHERE v.user_id = $1 AND (internal.pieces(v.user_id, v.name) COLLATE "C")
                   @> internal.pieces_of_search($1, $2) AND lower(v.name) LIKE lower($3::text)
             LIMIT {MOST_FOUND + 1:d}""",  # noqa: S608 - constants
        user_id,
        words,
        like(words),
    )
    return [row["id"] for row in rows]
