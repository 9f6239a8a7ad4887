"""The reverse proxies of docs/deploy, run as they stand there but for ports and certificate."""

import asyncio
import contextlib
import datetime
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support import free_port, wait_for

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
NAME = "voice.example.com"

# What Debian's own nginx.conf says around a site, as far as it matters here. As root, nginx would give its work to an
# account that cannot enter the test's folder.
_NGINX = """
user root;
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 768; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    gzip on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
_CADDY = """
{{
	admin off
	auto_https off
	storage file_system {folder}/caddy
}}
"""


@dataclass(frozen=True)
class Certificate:
    """A certificate for ``NAME`` that nobody else believes."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, name: str = NAME) -> "Certificate":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        made = cls(folder / "certificate.pem", folder / "key.pem")
        made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        made.key.write_bytes(key.private_bytes(pem, form, plain))
        return made


@dataclass(frozen=True)
class Front:
    """A proxy that is running.

    Attributes:
        port: Where it speaks TLS on 127.0.0.1.
        authority: The certificate by which it is known.
    """

    port: int
    authority: Path

    def client(self, **headers: str) -> httpx.AsyncClient:
        """Somebody who came to ``https://voice.example.com`` and speaks HTTP/2."""

        async def as_if_it_were_there(request: httpx.Request) -> None:
            request.extensions["sni_hostname"] = NAME

        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}",
            http1=False,
            http2=True,
            verify=ssl.create_default_context(cafile=str(self.authority)),
            timeout=30.0,
            headers={"Host": NAME, **headers},
            event_hooks={"request": [as_if_it_were_there]},
        )


def only(text: str, **pairs: tuple[str, str]) -> str:
    """The text with each old part in its new form; an old part that is not there, or twice, is a mistake."""
    for old, new in pairs.values():
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def nginx(folder: Path, target: str, port: int, certificate: Certificate) -> list[str]:
    """The command of nginx with docs/deploy/nginx.conf."""
    live = f"/etc/letsencrypt/live/{NAME}"
    site = only(
        (DEPLOY / "nginx.conf").read_text(),
        upstream=("server 127.0.0.1:8000;", f"server {target};"),
        plain=("listen 80;", f"listen 127.0.0.1:{free_port()};"),
        plain6=("    listen [::]:80;\n", ""),
        port=("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        port6=("    listen [::]:443 ssl http2;\n", ""),
        certificate=(f"{live}/fullchain.pem", str(certificate.certificate)),
        key=(f"{live}/privkey.pem", str(certificate.key)),
    )
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder))
    return ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, target: str, port: int, certificate: Certificate) -> list[str]:
    """The command of Caddy with docs/deploy/Caddyfile."""
    site = only(
        (DEPLOY / "Caddyfile").read_text(),
        address=(
            f"\n{NAME} {{\n",
            f"\nhttps://{NAME}:{port} {{\n\ttls {certificate.certificate} {certificate.key}\n\tbind 127.0.0.1\n",
        ),
        upstream=("reverse_proxy 127.0.0.1:8000 {", f"reverse_proxy {target} {{"),
    )
    (folder / "Caddyfile").write_text(_CADDY.format(folder=folder) + site)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


COMMANDS: Mapping[str, Callable[[Path, str, int, Certificate], list[str]]] = {"caddy": caddy, "nginx": nginx}


@contextlib.asynccontextmanager
async def running_front(name: str, url: str, folder: Path) -> AsyncIterator[Front]:
    """The proxy ``caddy`` or ``nginx`` before the server at ``url``, until the block is left."""
    if shutil.which(name) is None and not Path("/usr/sbin", name).exists():
        pytest.fail(f"{name} is not installed. On Debian and Ubuntu: `sudo apt-get install {name}`.", pytrace=False)
    certificate = Certificate.make(folder)
    port = free_port()
    command = COMMANDS[name](folder, urlsplit(url).netloc, port, certificate)
    log = folder / f"{name}.log"
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin", "HOME": str(folder)}
    options: dict[str, Any] = {"cwd": folder, "env": environ}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, **options)
    try:

        async def answers() -> bool:
            assert process.returncode is None, log.read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await wait_for(answers, 20.0)
        yield Front(port, certificate.certificate)
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 20.0)
