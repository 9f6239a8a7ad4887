"""Somebody else's page, on an origin of its own, that has its texts spoken here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Browser

from server.dev.simulator import Simulator
from tests.gateway import Client, Gateway
from tests.page.browser import EAR
from tests.page.conftest import in_the_shared_loop, shared
from tests.support import free_port, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "your-page.html"
PORT = free_port()
ORIGIN = f"http://127.0.0.1:{PORT}"

pytestmark = [
    in_the_shared_loop,
    pytest.mark.parametrize(
        "differing", [{"serve_page": False, "cors_allow_origins": (ORIGIN,)}], indirect=True, ids=["other-origin"]
    ),
]


@contextlib.asynccontextmanager
async def serving(files: dict[str, tuple[str, str]]) -> AsyncIterator[None]:
    """A web server of its own with these files: (content type, content) by path."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            kind, content = files.get(head.split(b" ", 2)[1].decode(), ("text/plain", ""))
            body = content.encode()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %b\r\n" % kind.encode())
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", PORT)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


@shared()
async def foreign(gateway: Gateway, client: Client, voice_id: UUID) -> AsyncIterator[None]:
    """The page of the documentation, with this server's address and this user's voice and token in it."""
    page = PAGE.read_text().replace("https://voice.example", gateway.url).replace("the voice's id", str(voice_id))
    assert page.count(gateway.url) == 2
    html, plain = "text/html; charset=utf-8", "text/plain"
    async with serving({"/": (html, page), "/voice-token": (plain, client.token), "/favicon.ico": (plain, "")}):
        yield


async def test_twenty_lines_speak_from_another_origin(
    foreign: None, browser: Browser, client: Client, simulator: Simulator
) -> None:
    """Heard while it is spoken, and again from the store, with nothing but what the documentation shows."""
    assert len(PAGE.read_text().splitlines()) <= 20
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 12})
    context = await browser.new_context()
    try:
        await context.add_init_script(path=EAR)
        page = await context.new_page()
        problems: list[Any] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(ORIGIN)
        await page.fill("#text", "The lighthouse keeper counted the ships and wished them well.")
        await page.click("#speak")
        await page.wait_for_function("ear.audibleSeconds > 0.3")
        assert await page.inner_text("#state") == "processing"
        held.release()
        await page.get_by_text("completed").wait_for()
        (entry,) = (await client.http.get("/api/generations")).json()["generations"]
        await page.wait_for_function(f"ear.audibleSeconds > 0.6 * {entry['duration_seconds']}")
        # What is stored, cross-origin too.
        stored = await page.evaluate(
            """async ([base, id]) => {
                const { Utter, VERSION } = await import(`${base}/static/v1/utter.js`);
                const token = () => fetch("/voice-token").then((response) => response.text());
                const speech = new Utter({ base, token }).replay(id);
                await new Promise((resolve, reject) => {
                    speech.addEventListener("stored", resolve);
                    speech.addEventListener("state", () => speech.error && reject(speech.error));
                });
                return [speech.stored.size, VERSION];
            }""",
            [client.url, entry["id"]],
        )
        assert stored[0] == len(await client.audio(entry["id"]))
        simulator.behave("realtime", {"do": "hold", "after_deltas": 12})
        await page.click("#speak")
        await page.get_by_text("processing").wait_for()
        await page.click("#stop")
        await page.get_by_text("cancelled").wait_for()

        async def cancelled() -> bool:
            newest = (await client.http.get("/api/generations")).json()["generations"][0]
            return bool(newest["status"] == "cancelled")

        await wait_for(cancelled)
        assert problems == []
    finally:
        await context.close()
