"""The embedded PostgreSQL: it keeps data, belongs to one process at a time, and never outlives its owner."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from server.dev.postgres import EmbeddedPostgres, PostgresError, embedded_postgres, running_postgres
from tests.support import fast_folder, open_to_all, wait_for, wait_for_blocking

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as somebody else")


@pytest.fixture(scope="module")
def cluster_dir() -> Iterator[Path]:
    """A data folder with a cluster that was started and stopped once."""
    with tempfile.TemporaryDirectory(prefix="utter-tests-", dir=fast_folder()) as name:
        folder = open_to_all(name)
        with running_postgres(folder, durable=False):
            pass
        yield folder


async def fetchval(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def is_running(pid: int) -> bool:
    """False also for a process that has ended and that nobody has waited for."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class OtherProcess:
    """Another Python process that runs the server of ``data_dir`` until it is killed."""

    SCRIPT = """
import sys, time
from pathlib import Path
from server.dev.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)
server.start()
if "unwatched" in sys.argv:
    server._watcher.kill()
print(server.pid, server.socket_dir, flush=True)
time.sleep(600)
"""

    def __init__(self, data_dir: Path, *words: str) -> None:
        command = [sys.executable, "-c", self.SCRIPT, str(data_dir), *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        pid, socket_dir = self.process.stdout.readline().split()
        self.server_pid = int(pid)
        self.socket_dir = Path(socket_dir)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


async def test_a_new_folder_gets_a_database_and_a_second_start_keeps_what_was_written(data_dir: Path) -> None:
    async with embedded_postgres(data_dir / "data") as url:
        await fetchval(url, "CREATE TABLE kept AS SELECT 1 AS one")
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await fetchval(url, "SELECT 1")
    async with embedded_postgres(data_dir / "data") as url:
        assert await fetchval(url, "SELECT count(*) FROM kept") == 1


async def test_stopping_ends_open_sessions_and_leaves_no_socket_behind(cluster_dir: Path) -> None:
    async with embedded_postgres(cluster_dir, durable=False) as url:
        connection = await asyncpg.connect(url)
        socket_dir = Path(url.partition("host=")[2].partition("&")[0])
        assert socket_dir.is_dir()
        if os.geteuid() != 0:
            assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    await wait_for(connection.is_closed)
    assert not socket_dir.exists()


async def test_letters_of_every_language_fold_whatever_the_locale_of_the_machine(postgres_url: str) -> None:
    assert await fetchval(postgres_url, "SELECT 'ÄÉЖ' ILIKE 'äéж'") is True
    assert await fetchval(postgres_url, "SHOW timezone") == "UTC"


def test_a_second_owner_is_refused_with_a_sentence_and_the_first_goes_on(cluster_dir: Path) -> None:
    with running_postgres(cluster_dir, durable=False) as first:
        with pytest.raises(PostgresError, match=rf"is in use by process {os.getpid()}\. Stop that one"):
            EmbeddedPostgres(cluster_dir).start()
        assert is_running(first.pid)


def test_the_server_ends_when_its_owner_is_killed(cluster_dir: Path) -> None:
    other = OtherProcess(cluster_dir)
    assert is_running(other.server_pid)
    assert other.socket_dir.exists()
    other.kill()
    wait_for_blocking(lambda: not is_running(other.server_pid))
    wait_for_blocking(lambda: not other.socket_dir.exists())
    with running_postgres(cluster_dir, durable=False) as server:
        assert is_running(server.pid)


def test_a_server_that_was_left_behind_makes_way(cluster_dir: Path) -> None:
    other = OtherProcess(cluster_dir, "unwatched")
    other.kill()
    assert is_running(other.server_pid)
    with running_postgres(cluster_dir, durable=False) as server:
        assert server.pid != other.server_pid
        assert not is_running(other.server_pid)
    assert not other.socket_dir.exists()


def test_a_stale_process_number_that_now_belongs_to_somebody_else_stops_nothing(cluster_dir: Path) -> None:
    """After a restart of the machine the number in postmaster.pid can be anybody's, and is not to be signalled."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        with running_postgres(cluster_dir, durable=False) as server:
            lines = (cluster_dir / "postgres" / "postmaster.pid").read_text().splitlines()
            assert lines[0] == str(server.pid)
        stale = "\n".join([str(bystander.pid), *lines[1:]]) + "\n"
        (cluster_dir / "postgres" / "postmaster.pid").write_text(stale)
        with running_postgres(cluster_dir, durable=False):
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_control_c_in_the_terminal_reaches_only_its_owner(cluster_dir: Path) -> None:
    """The owner still has statements to run when it is interrupted."""
    with running_postgres(cluster_dir, durable=False) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_variables_of_the_shell_change_nothing(cluster_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "/nowhere", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    with running_postgres(cluster_dir, durable=False) as server:
        assert asyncio.run(fetchval(server.url(), "SELECT 1")) == 1


def test_a_database_of_another_major_version_is_named_and_left_alone(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "PG_VERSION").write_text("14\n")
    with pytest.raises(PostgresError, match=r"was made by PostgreSQL 14, and PostgreSQL \d+ is installed"):
        EmbeddedPostgres(data_dir).start()
    assert (data_dir / "postgres" / "PG_VERSION").read_text() == "14\n"


def test_a_database_whose_making_was_cut_short_is_made_again(data_dir: Path) -> None:
    (data_dir / "postgres.partial").mkdir()
    (data_dir / "postgres.partial" / "PG_VERSION").write_text("18\n")
    with running_postgres(data_dir, durable=False) as server:
        assert asyncio.run(fetchval(server.url(), "SELECT 1")) == 1
    assert not (data_dir / "postgres.partial").exists()


def test_a_folder_whose_path_is_too_long_for_a_socket_works_all_the_same(data_dir: Path) -> None:
    with running_postgres(data_dir / ("long" * 40), durable=False) as server:
        assert asyncio.run(fetchval(server.url(), "SELECT 1")) == 1


async def test_a_start_that_is_cancelled_leaves_nothing_running(cluster_dir: Path) -> None:
    async def start_and_stay() -> None:
        async with embedded_postgres(cluster_dir, durable=False):
            await asyncio.Event().wait()

    starting = asyncio.create_task(start_and_stay())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not (cluster_dir / "postgres" / "postmaster.pid").exists()
    async with embedded_postgres(cluster_dir, durable=False) as url:
        assert await fetchval(url, "SELECT 1") == 1


def test_a_folder_that_cannot_be_written_is_named_in_one_sentence(data_dir: Path) -> None:
    (data_dir / "file").write_text("")
    with pytest.raises(PostgresError, match=r"cannot start: .*file"):
        EmbeddedPostgres(data_dir / "file").start()


@as_root
def test_a_folder_that_others_cannot_enter_gets_a_stand_in_and_stays_closed(data_dir: Path) -> None:
    """As with a project under /root: opening somebody's home folder to everybody is not ours to do."""
    said: list[str] = []
    home = data_dir / "home"
    home.mkdir(mode=0o700)
    project = home / "project" / ".dev"
    stand_in: Path | None = None
    try:
        for expected in (None, 1):
            with running_postgres(project, durable=False, say=said.append) as server:
                stand_in = server.home
                assert asyncio.run(fetchval(server.url(), "SELECT to_regclass('kept') IS NULL")) is (expected is None)
                asyncio.run(fetchval(server.url(), "CREATE TABLE IF NOT EXISTS kept (one int)"))
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert any(str(stand_in) in sentence and str(project) in sentence for sentence in said)
        assert stand_in is not None
        assert stand_in.is_dir()

        # A temporary folder takes its stand-in with it, at the latest when the next one is made.
        shutil.rmtree(home)
        (data_dir / "other").mkdir(mode=0o700)
        with running_postgres(data_dir / "other" / ".dev", durable=False) as server:
            assert not stand_in.exists()
            stand_in = server.home
    finally:
        if stand_in is not None and stand_in.name.startswith("utter-"):
            shutil.rmtree(stand_in)


@as_root
def test_a_cluster_that_belongs_to_an_ordinary_user_is_run_as_that_user(data_dir: Path) -> None:
    with running_postgres(data_dir, durable=False):
        pass
    for path in ((data_dir / "postgres"), *(data_dir / "postgres").rglob("*")):
        os.lchown(path, 54321, 54321)
    with running_postgres(data_dir, durable=False) as server:
        assert asyncio.run(fetchval(server.url(), "SELECT 1")) == 1
        assert (data_dir / "postgres" / "postmaster.pid").stat().st_uid == 54321


def test_a_server_that_ignores_a_polite_signal_is_still_gone_after_stop(
    cluster_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.dev.postgres._STOP_SECONDS", 0.2)
    with running_postgres(cluster_dir, durable=False) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
    assert not is_running(pid)
    with running_postgres(cluster_dir, durable=False) as server:  # which also frees the memory of the killed one
        assert is_running(server.pid)
