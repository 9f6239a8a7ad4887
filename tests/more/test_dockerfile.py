"""The Dockerfile's steps, one by one, in a clean root: its words are few enough to be played without Docker."""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import httpx
import pytest

from server.dev.simulator import Simulator
from tests.gateway import Process, insert_voice
from tests.support import AUTH_JWT_SECRET, free_port

ROOT = Path(__file__).parents[2]
# What reaches the registries from this machine, and is no part of the image.
MACHINE = ("PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy")

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"  # where Debian keeps them

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make and enter a root of its own")


@dataclass
class Image:
    """A root that a Dockerfile has made, and what it says about running it."""

    root: Path
    environ: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    user: str = "root"
    folder: str = "/"
    command: list[str] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)

    def build(self) -> None:
        """Follow the Dockerfile.

        Raises:
            AssertionError: If a step fails, or has a word that is not known here.
        """
        text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            if not line or word in ("#", "EXPOSE"):
                continue
            if word == "FROM":
                self._begin(rest)
            elif word == "RUN":
                _run([*self.enter(), "sh", "-ec", rest], environ=self.environ | self.machine)
            elif word == "COPY":
                *sources, target = rest.split()
                self._copy([ROOT / source for source in sources], target)
            elif word == "ENV":
                self.environ |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            elif word == "USER":
                self.user = rest
            elif word == "WORKDIR":
                self.folder = rest
            elif word == "CMD":
                self.command = json.loads(rest)
            else:
                raise AssertionError(f"nobody has said here what {word} does")

    def enter(self) -> list[str]:
        """The words in front of a command that is to run inside."""
        return ["/usr/sbin/chroot", f"--userspec={self.user}", str(self.root), "env", f"--chdir={self.folder}"]

    def _begin(self, base: str) -> None:
        name, _, release = base.removesuffix("-slim").partition(":")
        assert name == "debian"
        _run(["mmdebstrap", "--quiet", "--variant=minbase", release, str(self.root)])
        # As Docker does: names are looked up as on this machine.
        shutil.copy("/etc/resolv.conf", self.root / "etc" / "resolv.conf")
        self.machine = {name: os.environ[name] for name in MACHINE if name in os.environ}
        # Whom this machine trusts on the way to the registries, the image has to trust here, too.
        authorities = Path(os.environ.get("PIP_CERT") or AUTHORITIES)
        if authorities.exists():
            shutil.copy(authorities, self.root / "etc" / "machine.pem")
            self.machine["PIP_CERT"] = "/etc/machine.pem"

    def _copy(self, sources: list[Path], target: str) -> None:
        inside = self.root / target.lstrip("/")
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, inside, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                inside.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, inside / source.name)


def _run(command: list[str], *, environ: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built."""
    if shutil.which("mmdebstrap") is None:
        pytest.fail("mmdebstrap is not installed. On Debian: `apt-get install mmdebstrap`.", pytrace=False)
    with tempfile.TemporaryDirectory(prefix="utter-image-", dir="/var/tmp") as folder:
        image = Image(Path(folder) / "root")
        image.build()
        yield image


@contextlib.asynccontextmanager
async def over_tcp(url: str) -> AsyncIterator[str]:
    """The database behind a Unix socket, which nobody sees from inside, as one on a port of 127.0.0.1."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    socket = f"{query['host']}/.s.PGSQL.{query['port']}"

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, upstream = await asyncio.open_unix_connection(socket)
        await asyncio.gather(carry(reader, upstream), carry(answers, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}", query="").geturl()
    finally:
        server.close()


async def test_a_container_migrates_serves_and_speaks(
    image: Image, empty_database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    """As a user without rights, with what is in the image and nothing else, stopped by a signal as Docker stops it."""
    async with over_tcp(empty_database_url) as url:
        environ = {
            **image.environ,
            **simulator.environment(),
            "DATABASE_URL": url,
            "STORAGE_URL": "file:///var/lib/utter/audio",
            "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
            "SERVE_PAGE": "true",
            "HOST": "127.0.0.1",
            "PORT": str(free_port()),
        }
        migrate = await asyncio.create_subprocess_exec(*image.enter(), "utter", "migrate", env=environ)
        assert await asyncio.wait_for(migrate.wait(), 120.0) == 0
        server = Process(environ, tmp_path / "log", command=[*image.enter(), *image.command])
        await server.start()
        try:
            user = server.client(uuid4())
            async with user, httpx.AsyncClient(base_url=server.url) as anybody:
                assert "static/page.js" in (await anybody.get("/")).text
                voice_id = await insert_voice(empty_database_url, user.user_id)
                answer = await user.generate(voice_id, "From a clean root.")
                assert (await user.ended(answer["task_id"]))["status"] == "completed"
                assert await user.audio(answer["generation_id"])
            server.send(signal.SIGTERM)
            assert await server.exited() == 0, server.log
        finally:
            await server.kill()
    stored = list((image.root / "var/lib/utter/audio").rglob("*.mp3"))
    assert stored
    assert all(path.owner() != "root" for path in stored), "it serves without the rights of root"
