"""The server as it is installed: a wheel, built here, in an environment of its own and an empty folder."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from uuid import uuid4
from zipfile import ZipFile

import httpx
import pytest

from server.dev.simulator import Simulator
from tests.gateway import Process, insert_voice
from tests.support import AUTH_JWT_SECRET, free_port

ROOT = Path(__file__).parents[2]
SOURCES = ("server", "sql", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, status: int = 0, environ: Mapping[str, str] | None = None) -> str:
    """What a command prints, both ways; it has to end with this status."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**variables, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: what an earlier build left in the checkout must not get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source", cwd=folder)
    (built,) = folder.glob("utter_server-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it requires, and nothing of a test."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    pins = ROOT / "constraints.txt"
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", "-c", pins, wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture
async def environment(empty_database_url: str, simulator: Simulator, tmp_path: Path) -> dict[str, str]:
    """What the environment of a server says that speaks with the simulated provider."""
    return {
        **simulator.environment(),
        "DATABASE_URL": empty_database_url,
        "STORAGE_URL": (tmp_path / "storage").as_uri(),
        "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "SERVE_PAGE": "true",
    }


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "nowhere"
    folder.mkdir()
    return folder


def test_the_wheel_carries_what_is_not_python(wheel: Path) -> None:
    """Every file of sql/ and of the page, once, and nothing of the tests."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    carried = sorted(name for name in names if not name.endswith(".py") and ".dist-info/" not in name)
    wanted = [f"server/sql/{path.name}" for path in (ROOT / "sql").glob("*.sql")]
    wanted += [str(path.relative_to(ROOT)) for path in (ROOT / "server" / "page").rglob("*") if path.is_file()]
    assert carried == sorted(wanted)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"server"}


def test_both_commands_say_the_version_of_the_changelog(installed: Path, nowhere: Path) -> None:
    """`utter` is `python -m server`, from site-packages."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(installed / "utter", "--version", cwd=nowhere) == f"utter {version}\n"
    assert run(installed / "python", "-m", "server", "--version", cwd=nowhere) == f"utter {version}\n"
    assert run(installed / "utter", "--help", cwd=nowhere).startswith("usage: utter ")
    where = run(installed / "python", "-c", "import server; print(server.__file__)", cwd=nowhere)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_a_command_for_developers_says_what_it_needs(installed: Path, nowhere: Path) -> None:
    """A server does not install eSpeak NG and a PostgreSQL that it never starts."""
    said = run(installed / "utter", "simulate", cwd=nowhere, status=2)
    assert said == "This command needs what `pip install 'utter-server[dev]'` installs.\n"


async def test_an_installed_server_migrates_serves_and_speaks(
    installed: Path, nowhere: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """From an empty database to the page and a spoken text, outside of any checkout."""
    utter = installed / "utter"
    said = run(utter, "migrate", "--check", cwd=nowhere, status=1, environ=environment)
    assert "0001_core_tables" in said
    run(utter, "migrate", cwd=nowhere, environ=environment)
    assert "everything is applied" in run(utter, "migrate", "--check", cwd=nowhere, environ=environment)

    async with serving(utter, nowhere, environment, tmp_path / "log") as server:
        user = server.client(uuid4())
        async with user, httpx.AsyncClient(base_url=server.url) as anybody:
            assert (await anybody.get("/api/health")).json() == {"ok": True}
            page = await anybody.get("/")
            assert page.headers["content-type"].startswith("text/html")
            assert '<script type="module" src="static/page.js">' in page.text
            for name in ("page.js", "page.css", "utter.js"):
                assert (await anybody.get(f"/static/{name}")).text == (ROOT / "server/page" / name).read_text()
            voice_id = await insert_voice(environment["DATABASE_URL"], user.user_id)
            answer = await user.generate(voice_id, "From an empty folder.")
            assert (await user.ended(answer["task_id"]))["status"] == "completed"
    assert list(nowhere.iterdir()) == []


@contextlib.asynccontextmanager
async def serving(utter: Path, folder: Path, environment: dict[str, str], log: Path) -> AsyncIterator[Process]:
    """`utter serve`, ended as a platform ends it."""
    server = Process(environment, log, command=(str(utter), "serve"), folder=folder)
    await server.start()
    try:
        yield server
        server.send(signal.SIGTERM)
        assert await server.exited() == 0, server.log
    finally:
        await server.kill()
