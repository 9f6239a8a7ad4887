"""What the server says to its database, collected and explained."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import server

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.connection import LoggedQuery

SERVER = Path(server.__file__).resolve().parent
#: Whose statements are no part of a run, or read what no size changes.
NOT_IN_A_RUN = (
    "database/connections.py",  # what a connection is, not what is in tables
    "database/migrations.py",
    "dev/",
    "records/profiles.py",  # one row by its key, of a table that this database has otherwise
    "startup.py",
)


@dataclass
class Collected:
    """What was said to the database, by its text; the values are those of the last time."""

    statements: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    places: set[tuple[str, int]] = field(default_factory=set)

    def add(self, said: "LoggedQuery") -> None:
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", said.query) and said.exception is None:
            self.statements[said.query] = tuple(said.args)

    def note_place(self) -> None:
        """Remember the lines of the server that lead here: a coroutine's callers are on the stack while it runs."""
        frame: FrameType | None = sys._getframe()
        while frame := frame.f_back if frame else None:
            if frame.f_code.co_filename.startswith(str(SERVER)):
                self.places.add((str(Path(frame.f_code.co_filename).relative_to(SERVER)), frame.f_lineno))


@dataclass(frozen=True)
class Place:
    """Where the server's sources say something to the database."""

    module: str
    lines: range
    call: str


def places_in_sources() -> list[Place]:
    """All of them, but for those of modules that have no part in a run."""
    said = {"fetch", "fetchrow", "fetchval", "execute", "executemany"}
    found = []
    for path in sorted(SERVER.rglob("*.py")):
        module = path.relative_to(SERVER).as_posix()
        if module.startswith(NOT_IN_A_RUN):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in said:
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found.append(Place(module, lines, ast.unparse(node)[:100]))
    return found


async def explain(connection: "asyncpg.Connection[asyncpg.Record]", statement: str, values: tuple[Any, ...]) -> Any:
    """The plan of a statement as it is carried out, and undone."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        shown = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *values)
    finally:
        await transaction.rollback()
    return (json.loads(shown) if isinstance(shown, str) else shown)[0]["Plan"]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def rows_read(plan: dict[str, Any]) -> float:
    """How many rows of tables and indexes a statement looked at."""
    read: float = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0))
        * node["Actual Loops"]
        for node in nodes(plan)
        if "Relation Name" in node
    )
    return read
