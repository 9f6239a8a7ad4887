"""Every outgoing call believes the same certificates and takes the same way out of the house."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import insert_voice, running_gateway
from tests.more.proxies import Certificate
from tests.storage.conftest import s3_settings
from tests.voices import cloned


@dataclass
class Door:
    """A listener that hands bytes on, and what was asked of it."""

    port: int = 0
    asked: list[str] = field(default_factory=list)


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while some := await reader.read(65_536):
            writer.write(some)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


@contextlib.asynccontextmanager
async def door(to_port: int | None = None, certificate: Certificate | None = None) -> AsyncIterator[Door]:
    """A TLS end in front of a port of this machine; or, without a port, an HTTP proxy to wherever one asks for."""
    opened = Door()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = b""
            port = to_port
            if port is None:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b" ", 2)
                url = urlsplit(target.decode() if method != b"CONNECT" else f"//{target.decode()}")
                port = url.port
                opened.asked.append(f"{method.decode()} {url.hostname}:{port}")
                if method == b"CONNECT":
                    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    head = b""
                else:  # one request a connection: the next one may go elsewhere
                    path = target.split(url.netloc.encode(), 1)[1]
                    head = head.replace(target, path, 1).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            there, onwards = await asyncio.open_connection("127.0.0.1", port)
            onwards.write(head)
            await asyncio.gather(_hand_on(reader, onwards), _hand_on(there, writer))

    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    opened.port = server.sockets[0].getsockname()[1]
    try:
        yield opened
    finally:
        server.close()


async def use(settings: Settings, database_url: str) -> None:
    """Clone a voice (an upload, a call, a download from the store), and speak over a socket."""
    async with running_gateway(settings) as gateway, gateway.client() as client:
        await cloned(client)
        voice_id = await insert_voice(database_url, client.user_id)
        ended = await client.ended((await client.generate(voice_id))["task_id"])
        assert ended["status"] == "completed", ended
        assert (await client.http.get("/api/ready")).json()["storage"] is True


def provider_at(settings: Settings, base: str) -> Settings:
    """The simulator by another address."""
    return replace(
        settings, dashscope_base_url=base, dashscope_ws_url=f"ws{base.removeprefix('http')}/api-ws/v1/realtime"
    )


async def test_everybody_believes_the_certificates_of_ssl_cert_file(
    settings: Settings,
    simulator: Simulator,
    s3_server: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Certificate.make(tmp_path, "localhost")
    provider_port, store_port = urlsplit(simulator.base_url).port, urlsplit(s3_server).port
    buckets = await s3_settings(s3_server)
    async with door(provider_port, made) as provider, door(store_port, made) as store:
        storage = replace(buckets, endpoint=f"https://localhost:{store.port}")
        inside = replace(provider_at(settings, f"https://localhost:{provider.port}"), storage=storage)
        monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
        await use(inside, database_url)
    assert {call["surface"] for call in simulator.calls} == {"customization", "realtime"}


async def test_everybody_takes_the_proxy_except_where_no_proxy_names_the_host(
    settings: Settings, simulator: Simulator, s3_server: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test's own client goes straight to 127.0.0.1; the providers and the store are called localhost."""
    provider_port, store_port = urlsplit(simulator.base_url).port, urlsplit(s3_server).port
    buckets = await s3_settings(s3_server)
    storage = replace(buckets, endpoint=f"http://localhost:{store_port}")
    outside = replace(provider_at(settings, f"http://localhost:{provider_port}"), storage=storage)
    async with door() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        await use(outside, database_url)
        assert f"CONNECT localhost:{provider_port}" in proxy.asked, "the socket"
        assert f"POST localhost:{provider_port}" in proxy.asked, "the calls"
        assert any(asked.endswith(f"localhost:{store_port}") for asked in proxy.asked), "the store"
