"""A real browser for tests: Chromium, with an ear that hears what a page really plays."""

import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, CDPSession, ConsoleMessage, Error, Page, async_playwright

from tests.support import wait_for

EAR = Path(__file__).parent / "ear.js"
ARTIFACTS = Path(__file__).parents[2] / "artifacts" / "page"

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # As for people: no sound before a click.
    "--autoplay-policy=document-user-activation-required",
)


def chromium_path() -> str:
    """Where the browser is; the test fails, and says what to install, where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.fail(
        "The tests of the page drive a real browser, and there is none here. On Debian and Ubuntu:"
        " `sudo apt-get install chromium`. To run everything else: make test ARGS='--ignore=tests/page'",
        pytrace=False,
    )


@contextlib.asynccontextmanager
async def running_chromium(*extra_flags: str) -> AsyncIterator[Browser]:
    """Chromium without a window, until the block is left."""
    path = chromium_path()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*FLAGS, *extra_flags])
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Tab:
    """One tab that shows the page, and the words in which the tests speak of it."""

    page: Page
    session: CDPSession
    name: str
    expected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    shots: int = 0

    def __post_init__(self) -> None:
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.text} {message.location.get('url', '')}")

    def expect_problems(self, *patterns: str) -> None:
        """What the browser may write to its console in this test, since the test makes it happen."""
        self.expected.extend(patterns)

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.problems if not any(re.search(pattern, text) for pattern in self.expected)]

    async def js(self, expression: str) -> Any:
        """The expression's value in the page. Unlike Playwright's own way this does not count as a click of the user,
        after which the browser would allow sound."""
        answer = await self.session.send(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, timeout: float = 15.0) -> None:
        """Wait until the expression is true in the page."""
        try:
            await wait_for(lambda: self._js_of_any_page(f"Boolean({expression})"), timeout, every_seconds=0.02)
        except AssertionError:
            await self.shot("stuck")
            stage = await self.page.inner_text("#stage")
            raise AssertionError(f"never true: {expression}\nstage: {stage!r}\nconsole: {self.problems}") from None

    async def eventually(self, expression: str, wanted: Any, timeout: float = 15.0) -> None:
        """Wait until the expression has this value: what a click brings about may take the page a moment."""
        value: Any = None

        async def reached() -> bool:
            nonlocal value
            value = await self._js_of_any_page(expression)
            return bool(value == wanted)

        try:
            await wait_for(reached, timeout, every_seconds=0.02)
        except AssertionError:
            await self.shot("stuck")
            raise AssertionError(f"{expression}\nis   {value!r}\nnot  {wanted!r}\nconsole: {self.problems}") from None

    async def focused(self, identifier: str) -> None:
        """Wait until the focus is at the element with this id."""
        await self.eventually("document.activeElement.id", identifier)

    async def _js_of_any_page(self, expression: str) -> Any:
        try:
            return await self.js(expression)
        except Error:  # between two documents there is none
            return None

    async def shot(self, name: str = "", *, full_page: bool = False) -> Path:
        """Keep a picture among the build's artefacts."""
        self.shots += 1
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        path = ARTIFACTS / f"{self.name}-{self.shots}{'-' if name else ''}{name}.png"
        await self.page.screenshot(path=path, full_page=full_page)
        return path

    async def overlapping(self, *selectors: str) -> list[str]:
        """Which of these elements stand on one another."""
        found: list[str] = await self.page.evaluate(
            """selectors => {
                const boxes = selectors.map((selector) => document.querySelector(selector).getBoundingClientRect());
                const on = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
                return selectors.flatMap((a, i) => selectors.slice(i + 1)
                    .filter((_, j) => on(boxes[i], boxes[i + 1 + j])).map((b) => `${a} ${b}`));
            }""",
            list(selectors),
        )
        return found

    # --- the page's own things ----------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Voices are there, one is chosen."""
        await self.until("Boolean(document.querySelector('.voice input:checked'))")

    async def generate(self, text: str) -> None:
        await self.page.fill("#text", text)
        await self.page.click("#generate")

    async def heard(self, seconds: float, timeout: float = 15.0) -> None:
        """The playhead has passed this second, and that much was audible or nearly so."""
        await self.until(f"Number(document.querySelector('#seek').value) >= {seconds}", timeout)

    async def state(self, text: str, timeout: float = 15.0) -> None:
        await self.until(f"document.querySelector('#state').textContent.includes({text!r})", timeout)

    async def player(self, name: str, timeout: float = 15.0) -> None:
        await self.until(f"document.querySelector('#stage').dataset.player === {name!r}", timeout)

    async def finished(self, timeout: float = 20.0) -> None:
        """Spoken, stored, heard to its end, and the stored audio in its place."""
        await self.until(
            """!document.querySelector('#kept').hidden
               && document.querySelector('#stage').dataset.player === 'ElementPlayer'
               && document.querySelector('#play').getAttribute('aria-label') === 'Play'""",
            timeout,
        )

    @property
    async def ear(self) -> dict[str, Any]:
        """What was heard so far: ``loudest``, ``audibleSeconds``, ``longestSilence``, ``streams`` (addresses)."""
        heard: dict[str, Any] = await self.js("({...ear, elements: [], contexts: []})")
        return heard

    @property
    async def offsets(self) -> list[int]:
        """Where each stream began that the page opened."""
        return [int(parse_qs(urlsplit(url).query)["offset"][0]) for url in (await self.ear)["streams"]]

    @property
    async def seconds(self) -> float:
        """How long the player says the speech is."""
        return float(await self.js("document.querySelector('#seek').max"))


@contextlib.asynccontextmanager
async def open_tab(
    browser: Browser,
    url: str,
    *,
    name: str,
    token: str | None = None,
    scripts: Sequence[str] = (),
    permissions: Sequence[str] = (),
    **context_options: Any,
) -> AsyncIterator[Tab]:
    """Show the page to a signed-in user (with ``token``); at the end nothing may have gone wrong unexpectedly.

    Args:
        scripts: Run before the page's own, e.g. to take something away from the browser.
        context_options: Playwright's, e.g. ``viewport`` or ``color_scheme``.
    """
    context: BrowserContext = await browser.new_context(
        **{"viewport": {"width": 1280, "height": 860}, **context_options}
    )
    try:
        await context.grant_permissions(list(permissions))
        await context.add_init_script(path=EAR)
        if token:
            await context.add_init_script(f"sessionStorage.setItem('utter.token', JSON.stringify({token!r}))")
        for script in scripts:
            await context.add_init_script(script)
        page = await context.new_page()
        tab = Tab(page, await context.new_cdp_session(page), name)
        await tab.page.goto(url)
        try:
            yield tab
        except BaseException:
            with contextlib.suppress(Exception):
                await tab.shot("failed")
            raise
        await tab.shot()
        assert not await tab.js("ear.violations")
        assert not tab.unexpected, tab.unexpected
    finally:
        await context.close()
