"""Who may know whom, read from the imports. Type-only imports count: a name is knowledge too."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVER = ROOT / "server"

HTTP_IN = {"starlette", "uvicorn", "sse_starlette", "python_multipart", "multipart"}
HTTP_OUT = {"httpx", "websockets"}
DATABASE = {"asyncpg", "procrastinate", "psycopg"}


@dataclass(frozen=True)
class Rule:
    """What the modules of a room must not import, and in one sentence why."""

    room: str
    must_not_know: set[str]
    because: str


RULES = [
    Rule(
        "server.handlers",
        {"server.providers", "server.dev", "server.app", "server.database.queue", *DATABASE, *HTTP_OUT},
        "handlers speak HTTP with clients; SQL is the records' and providers are the jobs'",
    ),
    Rule(
        "server.jobs",
        {"server.handlers", "server.dev", "server.app", *HTTP_IN},
        "a job must run the same whoever asked for it",
    ),
    Rule(
        "server.records",
        {
            *("server.handlers", "server.jobs", "server.providers", "server.relay.live", "server.storage"),
            *("server.dev", "server.app", *HTTP_IN, *HTTP_OUT),
        },
        "rows know jobs by name alone",
    ),
    Rule(
        "server.providers",
        {
            *("server.handlers", "server.jobs", "server.records", "server.storage", "server.relay", "server.database"),
            *("server.auth", "server.account", "server.admission"),
            *("server.dev", "server.app", *HTTP_IN, *DATABASE),
        },
        "a provider knows its own protocol and nothing of HTTP requests, rows or jobs",
    ),
    Rule(
        "server.storage",
        {
            *(
                "server.handlers",
                "server.jobs",
                "server.records",
                "server.providers",
                "server.relay",
                "server.database",
            ),
            *("server.dev", "server.app", *HTTP_IN, *DATABASE),
        },
        "an object store holds bytes under keys",
    ),
    Rule(
        "server.providers.modal",
        {"server.providers.qwen"},
        "one provider can go without the other noticing",
    ),
    Rule("server.providers.qwen", {"server.providers.modal"}, "one provider can go without the other noticing"),
    Rule(
        "server.relay.live",
        {"server.handlers", "server.jobs", "server.records", "server.providers", "server.dev", "server.app", *HTTP_IN},
        "the growing audio does not know who makes it or who listens",
    ),
    Rule(
        "server.relay.spool",
        {"server.handlers", "server.jobs", "server.providers", "server.storage", "server.dev", "server.app", *HTTP_IN},
        "the durable copy does not know who makes it or who listens",
    ),
    Rule(
        "server.audio",
        {"server", "asyncio", *HTTP_IN, *HTTP_OUT, *DATABASE},
        "audio arithmetic is pure functions on bytes and integers",
    ),
    Rule("server.errors", {"server", *HTTP_IN, *HTTP_OUT, *DATABASE}, "everybody knows the errors"),
    Rule("server.settings", {"server", "asyncio", *HTTP_IN, *DATABASE}, "everybody knows the settings"),
    Rule(
        "server.providers.qwen.inference_events",
        {"asyncio", "socket", "time", "threading", *HTTP_OUT},
        "the conversation is a state machine without a socket or a clock",
    ),
    Rule(
        "server.providers.qwen.events",
        {"asyncio", "socket", "time", "threading", *HTTP_OUT},
        "the conversation is a state machine without a socket or a clock",
    ),
]

# Rooms that only these may know.
KNOWN_ONLY_BY = {
    "server.providers": {
        "server.providers",
        "server.jobs",
        "server.parts",
        "server.account",
        "server.app",
        "server.__main__",
    },
    "server.dev": {"server.dev", "server.__main__"},
    "server.app": {
        "server.serve",
        "server.commands",
        "server.dev",
        "server.__main__",
    },
    "server.lifecycle": {"server.app", "server.serve"},
}


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Every module that the file names in an import, wherever in the file; ``from a import b`` names ``a.b``."""
    package = [*path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*here, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """For every module of the server, what it imports."""
    return {module_name(path): set(imports_of(path)) for path in sorted(SERVER.rglob("*.py"))}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.room)
def test_a_room_does_not_know_what_it_must_not(imports: dict[str, set[str]], rule: Rule) -> None:
    found = [
        f"{module} imports {name}"
        for module, names in imports.items()
        if is_within(module, rule.room)
        for name in sorted(names)
        if not is_within(name, rule.room) and any(is_within(name, forbidden) for forbidden in rule.must_not_know)
    ]
    assert not found, f"{rule.because}: {found}"


@pytest.mark.parametrize("room", KNOWN_ONLY_BY)
def test_a_room_is_known_only_to_those_who_may(imports: dict[str, set[str]], room: str) -> None:
    found = [
        f"{module} imports {name}"
        for module, names in imports.items()
        if not any(is_within(module, friend) for friend in KNOWN_ONLY_BY[room])
        for name in sorted(names)
        if is_within(name, room)
    ]
    assert not found


def test_only_the_commands_read_the_environment() -> None:
    """Everything else is told through Settings, so that two servers in one process can differ."""
    found = [
        f"{module_name(path)}:{node.lineno}"
        for path in sorted(SERVER.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
        if isinstance(node.value, ast.Name) and node.value.id == "os"
        if module_name(path) != "server.__main__"
    ]
    assert not found


def test_importing_a_module_starts_nothing() -> None:
    """No call that opens a connection, a thread or a loop stands at the top of a module."""
    starters = {"connect", "create_pool", "create_engine", "run", "start", "Thread", "ThreadPoolExecutor", "Popen"}
    found = [
        f"{module_name(path)}:{node.lineno}"
        for path in sorted(SERVER.rglob("*.py"))
        if module_name(path) != "server.__main__"
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in starters
    ]
    assert not found


def test_every_module_says_what_it_is(imports: dict[str, set[str]]) -> None:
    silent = [
        module
        for module in imports
        if (path := SERVER.parent.joinpath(*module.split(".")).with_suffix(".py")).exists()
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_what_the_server_imports_is_declared(imports: dict[str, set[str]]) -> None:
    """A module that is there only because another package happens to bring it can vanish with that package's next
    release. ``server.dev`` may also use what the extra ``dev`` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    import_names = {"pyjwt": "jwt", "prometheus_client": "prometheus_client"}

    def importable(requirements: list[str]) -> set[str]:
        bare = (re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("-", "_") for requirement in requirements)
        return {import_names.get(name, name) for name in bare}

    always = importable(project["dependencies"]) | set(sys.stdlib_module_names) | {"server"}
    for_dev = importable(project["optional-dependencies"]["dev"])
    undeclared = [
        f"{module} imports {name}"
        for module, names in imports.items()
        for name in sorted({name.partition(".")[0] for name in names})
        if name not in always and not (is_within(module, "server.dev") and name in for_dev)
    ]
    assert not undeclared
