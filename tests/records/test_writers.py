"""Who may change which table, read from the SQL in the server's modules.

A row of a table is guarded by whoever writes it, so a new writer is a decision: it belongs on this list or elsewhere.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

SERVER = Path(__file__).parent.parent.parent / "server"

Writers: TypeAlias = dict[tuple[str, str], set[str]]

# "UPDATE status" is who may say that something is completed, failed or cancelled.
MAY_WRITE: Writers = {
    ("public.generations", "INSERT"): {"records.speech"},
    ("public.generations", "UPDATE"): {"records.speech", "records.modal"},
    ("public.generations", "UPDATE status"): {"records.speech"},
    ("public.generations", "DELETE"): {"records.history"},
    ("public.tasks", "INSERT"): {"records.speech", "records.previews", "records.renewals"},
    ("public.tasks", "UPDATE"): {
        "records.speech",
        "records.previews",
        "records.renewals",
        "records.modal",
        "records.tasks",
    },
    ("public.tasks", "UPDATE status"): {"records.speech", "records.previews", "records.renewals"},
    ("public.tasks", "DELETE"): {"records.tasks"},
    ("public.voices", "INSERT"): {"records.voices", "dev.demo"},
    ("public.voices", "UPDATE"): {"records.voices", "dev.demo"},
    # The two statements of relay/ are said all the time: the spool's append, and the renewal of leases.
    ("internal.runs", "INSERT"): {"records.runs"},
    ("internal.runs", "UPDATE"): {"records.runs", "relay.spool", "relay.leases"},
    ("internal.runs", "UPDATE state"): {"records.runs"},
    ("internal.runs", "DELETE"): {"records.runs"},
    ("internal.spool", "INSERT"): {"relay.spool"},
    ("internal.procrastinate_jobs", "DELETE"): {"database.queue"},
    ("internal.pace", "INSERT"): {"records.pace"},
    ("internal.pace", "UPDATE"): {"records.pace"},
    ("internal.processes", "INSERT"): {"records.processes"},
    ("internal.processes", "UPDATE"): {"records.processes"},
    ("internal.processes", "DELETE"): {"records.processes"},
    ("internal.spool", "DELETE"): {"records.runs"},
    ("public.profiles", "INSERT"): {"records.profiles"},
    ("public.profiles", "UPDATE"): {"records.profiles"},
    ("internal.purchases", "INSERT"): {"records.purchases"},
    ("internal.purchases", "UPDATE"): {"records.purchases"},
    ("internal.purchases", "UPDATE state"): {"records.purchases"},
    ("internal.purchases", "DELETE"): {"records.purchases"},
    ("internal.retired_models", "INSERT"): {"records.retired"},
    ("internal.retired_models", "UPDATE"): {"records.retired"},
    ("internal.retired_models", "DELETE"): {"records.retired"},
    ("internal.words", "INSERT"): {"relay.spool"},
    ("internal.words", "UPDATE"): {"relay.spool"},
    ("internal.removals", "INSERT"): {"records.removals"},
    ("internal.removals", "UPDATE"): {"records.removals"},
    ("internal.removals", "DELETE"): {"records.removals"},
    ("internal.api_keys", "INSERT"): {"records.keys"},
    ("internal.api_keys", "UPDATE"): {"records.keys"},
    ("internal.api_keys", "DELETE"): {"records.keys"},
    ("internal.default_voices", "INSERT"): {"records.voices"},
    ("internal.default_voices", "UPDATE"): {"records.voices"},
    ("internal.default_voices", "DELETE"): {"records.voices"},
    ("internal.turns", "INSERT"): {"records.runs"},
    ("internal.turns", "UPDATE"): {"records.runs"},
    ("internal.turns", "DELETE"): {"records.runs"},
    ("internal.usage", "INSERT"): {"records.usage"},
    ("internal.usage", "UPDATE"): {"records.usage"},
    ("internal.attended", "INSERT"): {"records.attended"},
    ("internal.attended", "UPDATE"): {"records.attended"},
    ("internal.attended", "DELETE"): {"records.attended"},
    ("internal.idempotency", "INSERT"): {"records.idempotency"},
    ("internal.idempotency", "UPDATE"): {"records.idempotency"},
    ("internal.idempotency", "DELETE"): {"records.idempotency"},
    ("internal.schema_migrations", "INSERT"): {"database.migrations"},
    ("internal.schema_migrations", "DELETE"): {"database.migrations"},
    ("internal.queue_migrations", "INSERT"): {"database.migrations"},
}

_INSERT = re.compile(r"\bINSERT\s+INTO\s+([\w.{}]+)(.*)", re.DOTALL)
_ON_CONFLICT = re.compile(r"\bDO\s+UPDATE\s+SET\b(.*)", re.DOTALL)
_UPDATE = re.compile(r"\bUPDATE\s+(?:ONLY\s+)?([\w.{}]+)(?:\s+(?:AS\s+)?\w+)?\s+SET\b(.*)", re.DOTALL)
_DELETE = re.compile(r"\bDELETE\s+FROM\s+([\w.{}]+)")
_OTHERWISE = re.compile(r"\b(TRUNCATE|MERGE)\s+(?:INTO\s+|TABLE\s+)?([\w.{}]+)")
_STATE = re.compile(r"\b(status|state)\s*=")
_SET_ENDS = re.compile(r"\b(?:WHERE|FROM|RETURNING)\b")


def writes(sql: str) -> Iterator[tuple[str, str]]:
    """(table, verb) for everything that a text of SQL changes; a state or status that it sets is a verb of its own."""

    def updated(table: str, assignments: str) -> Iterator[tuple[str, str]]:
        yield table, "UPDATE"
        # Sub-selects have a FROM of their own, so what comes after one is not looked at: no assignment of ours does.
        for column in _STATE.findall(_SET_ENDS.split(assignments)[0]):
            yield table, f"UPDATE {column}"

    for statement in re.split(r"(?=\b(?:INSERT\s+INTO|(?<!DO\s)UPDATE|DELETE\s+FROM)\b)", sql):
        if insert := _INSERT.match(statement):
            yield insert[1], "INSERT"
        if update := _UPDATE.match(statement):
            yield from updated(update[1], update[2])
        if insert and (conflict := _ON_CONFLICT.search(insert[2])):
            yield from updated(insert[1], conflict[1])
        if delete := _DELETE.match(statement):
            yield delete[1], "DELETE"
        for verb, table in _OTHERWISE.findall(statement):
            yield table, verb


def texts(path: Path) -> Iterator[str]:
    """Every string of a module that is not documentation; what an f-string fills in stands as ``{}``."""
    tree = ast.parse(path.read_text())
    silent: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            silent.add(node.value)
        if isinstance(node, ast.JoinedStr):
            silent.update(node.values)
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
            yield node.value


def test_each_table_is_changed_only_by_those_who_may() -> None:
    found: Writers = defaultdict(set)
    for path in sorted(SERVER.rglob("*.py")):
        module = ".".join(path.relative_to(SERVER).with_suffix("").parts)
        for text in texts(path):
            for write in writes(text):
                found[write].add(module)
    assert dict(found) == MAY_WRITE


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("INSERT INTO a.b (c) VALUES ($1)", {("a.b", "INSERT")}),
        ("DELETE FROM a.b WHERE c = $1", {("a.b", "DELETE")}),
        ("UPDATE a.b AS x SET c = 1 WHERE status = 'old'", {("a.b", "UPDATE")}),
        ("UPDATE a.b x SET c = 1,\n status = 'new' WHERE d", {("a.b", "UPDATE"), ("a.b", "UPDATE status")}),
        ("SELECT 1 FROM a.b WHERE status = 'x' FOR UPDATE", set()),
        ("SELECT 1 FROM a.b FOR NO KEY UPDATE OF b SKIP LOCKED", set()),
        ("WITH x AS (DELETE FROM a.b RETURNING c) DELETE FROM a.d", {("a.b", "DELETE"), ("a.d", "DELETE")}),
        (
            "INSERT INTO a.b VALUES (1) ON CONFLICT (c) DO UPDATE\n SET state = 'x'",
            {("a.b", "INSERT"), ("a.b", "UPDATE"), ("a.b", "UPDATE state")},
        ),
        ("INSERT INTO a.b SELECT 1 ON CONFLICT DO NOTHING", {("a.b", "INSERT")}),
        ("UPDATE {} SET c = 1", {("{}", "UPDATE")}),
        ("TRUNCATE a.b", {("a.b", "TRUNCATE")}),
    ],
)
def test_what_a_text_of_sql_changes(sql: str, found: set[tuple[str, str]]) -> None:
    assert set(writes(sql)) == found
