"""The page around the sound: signing in, the counter, keyboards, phones, colours, and a server that is not there."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Browser

from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.page.browser import Tab, open_tab
from tests.page.conftest import Opener, in_the_shared_loop, shared
from tests.page.proxy import running_proxy
from tests.support import free_port, wait_for

pytestmark = in_the_shared_loop


async def test_characters_are_counted_as_browsers_count_them(tab: Tab) -> None:
    await tab.page.fill("#text", "  naïve 👩‍🚀  ")
    await tab.eventually("document.querySelector('#counter').textContent", "11 / 2,000")
    await tab.page.fill("#text", "😀" * 1000)
    await tab.eventually("document.querySelector('#counter').textContent", "2,000 / 2,000")
    await tab.eventually("document.querySelector('#generate').disabled", False)
    await tab.page.fill("#text", "😀" * 1000 + "x")
    await tab.page.locator("#compose-problem", has_text="This is 1 character too long.").wait_for()
    await tab.eventually("document.querySelector('#generate').disabled", True)
    await tab.page.fill("#text", "   ")
    await tab.page.click("#generate")
    await tab.eventually("document.querySelector('#compose-problem').textContent", "Write something first.")


async def test_signing_in_with_a_token(opened: Opener, client: Client, voice_id: UUID) -> None:
    async with opened(token=None) as tab:
        tab.expect_problems("status of 401")
        field = tab.page.get_by_label("Access token")
        await field.fill("not a token")
        await field.press("Enter")
        await tab.page.get_by_text("This token is not valid, or no longer.").wait_for()
        await tab.shot()
        await field.fill(client.token)
        await field.press("Enter")
        await tab.ready()
        await tab.generate("Let me in.")
        await tab.finished()
        await tab.page.reload()
        await tab.ready()
        await tab.page.get_by_role("button", name="Sign out").click()
        await field.wait_for()


async def test_everything_can_be_done_without_a_mouse(
    opened: Opener, client: Client, database_url: str, voice_id: UUID
) -> None:
    await insert_voice(database_url, client.user_id, name="Bea")
    async with opened() as tab:
        await tab.ready()
        keyboard = tab.page.keyboard

        async def tab_to(name: str) -> None:
            async def there() -> bool:
                await keyboard.press("Tab")
                return bool(await tab.js(f"{FOCUSED}.includes({name!r})"))

            await wait_for(there)

        await tab.page.focus(".skip")
        await tab_to("Bea")
        await keyboard.press("ArrowDown")
        await tab.eventually("document.querySelector('.voice:has(input:checked) strong').textContent", "Ada")
        await tab_to("Text to speak")
        await keyboard.type("Typed and heard.")
        await keyboard.press("Control+Enter")
        await tab.heard(0.2)
        await tab_to("Pause")
        await keyboard.press("Enter")
        await tab.until("document.querySelector('#play').getAttribute('aria-label') === 'Play'")
        await tab_to("Download")
        await tab.page.get_by_role("button", name="Clone a voice").focus()
        await keyboard.press("Enter")
        await tab.until("document.querySelector('dialog[open]').contains(document.activeElement)")
        await keyboard.press("Escape")
        await tab.until("!document.querySelector('dialog[open]')")
        await tab.focused("open-clone")


FOCUSED = """((e) => e === document.body ? "" : [
    e.getAttribute("aria-label"), e.textContent, ...Array.from(e.labels ?? [], (label) => label.textContent),
].join(" "))(document.activeElement)"""


async def test_every_control_has_a_name(tab: Tab, client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    await tab.page.reload()
    await tab.ready()
    await tab.page.locator("#entries li").wait_for()
    nameless = await tab.js(
        """Array.from(document.querySelectorAll("button, input, select, textarea, canvas"))
           .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length
                            || e.getAttribute("aria-hidden") || e.closest("[aria-hidden]")))
           .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    tree = await tab.page.locator("body").aria_snapshot()
    for name in ("Voice", "Text to speak", "Generate", "History", "Player"):
        assert name in tree


@pytest.mark.parametrize("width", [320, 390])
async def test_it_fits_a_phone(width: int, opened: Opener, client: Client, voice_id: UUID) -> None:
    async with opened(
        viewport={"width": width, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True
    ) as tab:
        await tab.ready()
        await tab.page.fill("#text", "Small, but all of it.")
        await tab.page.tap("#generate")
        await tab.heard(0.3)
        await tab.shot("speaking")
        # `innerWidth` would grow with what does not fit.
        assert await tab.js("document.documentElement.scrollWidth") == width
        assert await tab.overlapping("#time", "#cancel", "#sound", "#stage-more", "#state", "#fold") == []
        height = "document.querySelector('#stage').offsetHeight"
        assert await tab.js(height) < 200
        await tab.page.tap("#fold")
        await tab.until(f"{height} < 70")  # one line, with Play in it
        assert await tab.page.is_visible("#play")
        await tab.shot("folded")
        await tab.page.tap("#fold")
        await tab.finished()
        for dialog in ("clone", "design", "connect"):
            await tab.page.tap(f"#open-{dialog}")
            await tab.shot(dialog)
            await tab.until(f"document.getElementById('{dialog}').getBoundingClientRect().right <= innerWidth")
            await tab.page.keyboard.press("Escape")
        await tab.page.tap("#close-stage")
        await tab.page.locator("#stage").wait_for(state="hidden")


async def test_light_and_dark(opened: Opener, client: Client, voice_id: UUID) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    async with opened(color_scheme="dark") as tab:
        await tab.ready()
        dark = await tab.js(ground)
        await tab.page.click("#theme")
        await tab.until(f"{ground} !== {dark!r}")
        light = await tab.js(ground)
        await tab.page.reload()
        await tab.eventually(ground, light)
        await tab.page.click("#theme")
        await tab.eventually(ground, dark)


async def test_a_server_that_is_not_there_yet_is_waited_for(opened: Opener, gateway: Gateway, voice_id: UUID) -> None:
    async with running_proxy(gateway.url) as proxy, opened(proxy.url) as tab:
        tab.expect_problems(r"ERR_\w+", "status of 503")
        await tab.ready()
        proxy.refuse_next("/api/", 3)
        await tab.page.reload()
        await tab.ready()
        assert proxy.refused == 3
        await tab.eventually("document.querySelector('#service').textContent", "")


async def test_it_stands_below_a_path(settings: Settings, browser: Browser, database_url: str) -> None:
    """A proxy takes the path away; whatever the page fetches has it, and so does what it shows to be copied."""
    async with running_proxy("") as proxy:
        proxy.prefix = "/speech"
        changed = replace(settings, public_base_url=f"{proxy.url}/speech")
        async with running_gateway(changed) as gateway, gateway.client() as client:
            proxy.target = gateway.url
            await insert_voice(database_url, client.user_id)
            async with open_tab(browser, f"{proxy.url}/speech/", name="below-a-path", token=client.token) as tab:
                await tab.ready()
                await tab.generate("From below a path.")
                await tab.finished()
                assert len(await tab.offsets) == 1
                await tab.page.get_by_role("button", name="Connect an app").click()
                assert await tab.page.input_value("#connect-address") == f"{proxy.url}/speech/v1"


@shared()
async def dev(tmp_path: Path, data_dir: Path) -> AsyncIterator[dict[str, Any]]:
    """`python -m server dev` with nothing prepared, ready: what it wrote to ``dev.json``."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "server", "dev", "--port", str(free_port()), "--data-dir", str(data_dir)]
    with log.open("wb") as output:
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=output, stderr=output)
    try:
        note = data_dir / "dev.json"
        await wait_for(lambda: (note.exists() and note.stat().st_size) or process.returncode is not None, 60.0)
        assert process.returncode is None, log.read_text()
        yield json.loads(note.read_text())
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 40.0)


async def test_a_newcomer_hears_a_sentence_within_ten_seconds(dev: dict[str, Any], browser: Browser) -> None:
    """`make dev`, the page, a sentence, Generate: nothing else to do, and nothing to sign in to."""
    async with open_tab(browser, dev["url"], name="newcomer") as tab:
        await tab.ready()
        await tab.focused("text")
        await tab.page.keyboard.type("Good evening, and welcome.")
        await tab.page.get_by_role("button", name="Generate").click()
        await tab.until("ear.audibleSeconds > 0.3", 10.0)
        assert await tab.page.is_hidden("#sign-out")
        first = re.search(r"[\d.]+", await tab.page.inner_text("#first"))
        assert first
        assert float(first[0]) < 5
        await tab.finished()
