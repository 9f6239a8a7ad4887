"""The world of the tests: a real PostgreSQL, an S3-compatible server, the simulated providers, and no way outside."""

import asyncio
import ipaddress
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest
from psycopg import sql
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor

from server.database.connections import prepare
from server.dev.postgres import PORT, USER, running_postgres, socket_url
from server.dev.simulator import AT_ONCE, Simulator, running_simulator
from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import fast_folder, make_settings, open_to_all

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController


Session = psycopg.Connection[tuple[Any, ...]]

_postgres_of_this_run = ExitStack()
_WORKER_KEY = "postgres_socket_dir"

AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Neither a developer's own profile nor the address where machines in a cloud find theirs.
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


# Each httpx client reads the certificate authorities of the world, which took a quarter of the time that tests of a
# server need; they talk to this machine alone, mostly in plain HTTP. In this folder there are none.
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent / "fixtures")


# --- only this machine is reachable -----------------------------------------------------------------------------------


class OutsideWorldError(AssertionError):
    """A test tried to leave this machine."""


def _is_this_machine(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _stay_on_this_machine(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        address = args[1]
        if not isinstance(address, tuple):  # a Unix socket
            return
        host = address[0]
    else:
        return
    if not _is_this_machine(host):
        raise OutsideWorldError(f"tests stay on this machine, and something asked for {host!r}")


sys.addaudithook(_stay_on_this_machine)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@contextmanager
def _postgres_for_tests() -> Iterator[Path]:
    """A fresh cluster that may lose everything in a power failure; yields the folder of its socket."""
    with (
        tempfile.TemporaryDirectory(prefix="utter-tests-", dir=fast_folder()) as folder,
        running_postgres(open_to_all(folder), durable=False) as server,
    ):
        yield server.socket_dir


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two workers a core: half of the time a test waits for somebody else's answer."""
    return min(8, 2 * (os.cpu_count() or 1))


def pytest_configure_node(node: "WorkerController") -> None:
    """Start one server for all workers, in the process that outlives them."""
    if _WORKER_KEY not in node.config.stash.get(_stash, {}):
        socket_dir = _postgres_of_this_run.enter_context(_postgres_for_tests())
        node.config.stash[_stash] = {_WORKER_KEY: str(socket_dir)}
    node.workerinput.update(node.config.stash[_stash])


def pytest_unconfigure() -> None:
    _postgres_of_this_run.close()


_stash = pytest.StashKey[dict[str, str]]()


@dataclass(frozen=True)
class PostgresServer:
    """What pytest-postgresql wants to know of a server that it did not start."""

    host: str
    port: int = PORT
    user: str = USER
    password: str | None = None
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: str | None = None


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The one PostgreSQL server of this test run."""
    shared: str | None = getattr(request.config, "workerinput", {}).get(_WORKER_KEY)
    if shared is not None:
        yield PostgresServer(host=shared)
        return
    with _postgres_for_tests() as socket_dir:
        yield PostgresServer(host=str(socket_dir))


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """The server's own database, for a test that makes and drops databases itself."""
    return socket_url(postgres_server.host)


def _migrate_template(*, host: str, dbname: str, **_: object) -> None:
    """Bring the template to the current schema, in a thread because a loop may be running in this one."""
    from server.database.migrations import migrate

    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(migrate(socket_url(host, dbname)))
        except BaseException as exc:  # noqa: BLE001 - raised again below
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


migrated_template = factories.postgresql_noproc(depends_on="postgres_server", dbname="utter", load=[_migrate_template])


@pytest.fixture(scope="session")
def maintenance(postgres_server: PostgresServer) -> Iterator[Session]:
    """A session in the server's own database that creates and drops those of the tests."""
    with psycopg.connect(socket_url(postgres_server.host), autocommit=True) as connection:
        yield connection


@contextmanager
def fresh_database(server: PostgresServer, maintenance: Session, template: str) -> Iterator[str]:
    """A copy of the database ``template`` while the block lasts."""
    name = f"test_{uuid4().hex[:12]}"
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    # The only way before 15, and the faster one for databases as small as these.
    strategy = " STRATEGY file_copy" if maintenance.info.server_version >= 150_000 else ""
    maintenance.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}" + strategy).format(**names))
    try:
        yield socket_url(server.host, name)
    finally:
        maintenance.execute(sql.SQL("DROP DATABASE {name} WITH (FORCE)").format(**names))


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer, maintenance: Session) -> Iterator[str]:
    """A database of this test alone without any table. Afterwards it is gone, sessions included."""
    with fresh_database(postgres_server, maintenance, "template1") as url:
        yield url


@pytest.fixture
def database_url(
    postgres_server: PostgresServer,
    maintenance: Session,
    migrated_template: NoopExecutor,
) -> Iterator[str]:
    """A database of this test alone with the current schema and no rows. Afterwards it is gone, sessions included."""
    with fresh_database(postgres_server, maintenance, migrated_template.template_dbname) as url:
        yield url


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder that the embedded PostgreSQL can use whoever runs the tests, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory(prefix="utter-tests-", dir=fast_folder()) as folder:
        yield open_to_all(folder)


# --- object storage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3-compatible server that is empty at the start of the run. Tests use buckets of their own.

    The usual AWS variables hold credentials that it takes.
    """
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as environment:
        for name, value in AWS_ENVIRONMENT.items():
            environment.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()


# --- the providers, and a server's settings ---------------------------------------------------------------------------


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """The simulated providers, as fast as they can be, with no call received yet. They run in the test's own loop."""
    async with running_simulator(pace=AT_ONCE) as running:
        yield running


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """Settings of a server on this test's own database, simulator and folder; `make_settings` makes others."""
    return make_settings(database_url, simulator, tmp_path)


# --- a running server -------------------------------------------------------------------------------------------------


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """A server in this process, over a real socket, that nobody has talked to yet."""
    async with running_gateway(settings) as running:
        yield running


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """A signed-in user of that server, without any voice or history."""
    async with gateway.client() as signed_in:
        yield signed_in


@pytest.fixture
async def voice_id(database_url: str, client: Client) -> UUID:
    """A cloned realtime voice of that user."""
    return await insert_voice(database_url, client.user_id)


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to look at (and meddle with) the rows behind the server's back."""
    connection = await asyncpg.connect(database_url)
    await prepare(connection)
    try:
        yield connection
    finally:
        await connection.close()
