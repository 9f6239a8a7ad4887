"""What people meet who do not see the page, see it in other colours, or have no pointer."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import axe_playwright_python  # type: ignore[import-untyped]
import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, insert_voice
from tests.page.browser import Tab
from tests.page.conftest import Opener, copy_voice, in_the_shared_loop, shared

pytestmark = in_the_shared_loop

AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
HOLD = {"do": "hold", "after_deltas": 12}
REFUSAL = {"detail": "The provider refused this text.", "category": "provider_rejected", "request_id": "r-4711"}
ARABIC = "مرحبا بك في المتحف الوطني، نتمنى لك زيارة ممتعة. (٢٠٢٦) — English word!"


@shared()
async def much(client: Client, voice_id: UUID, database_url: str, rows: Any) -> None:
    """Sixty voices, twenty of which cannot speak, and five hundred entries in every state, Arabic ones too."""
    await copy_voice(rows, voice_id, "Voice", 39)
    other = await insert_voice(database_url, client.user_id, name="Other", provider="modal")
    await copy_voice(rows, other, "Other", 19)
    states = ["completed", "failed", "cancelled", "completed"]
    await rows.executemany(
        """INSERT INTO public.generations
               (user_id, voice_id, text, status, tts_provider, duration_seconds, error_message, created_at)
           VALUES ($1, $2, $3, $4, 'qwen', 2.5, 'The provider ended the conversation early.', $5)""",
        [
            (
                client.user_id,
                voice_id,
                ARABIC if i % 3 == 0 else f"Number {i} of five hundred.",
                states[i % 4],
                datetime.now(UTC) - timedelta(hours=3 * i + 1),
            )
            for i in range(500)
        ],
    )


@shared()
async def full(much: None, opened: Opener) -> AsyncIterator[Tab]:
    """The page of somebody who has used it for long, on a common laptop."""
    async with opened(viewport={"width": 1280, "height": 720}) as tab:
        await tab.ready()
        await tab.until("document.querySelectorAll('#entries li').length === 30")
        yield tab


async def violations(tab: Tab, within: str = "html") -> list[str]:
    """What axe finds, in its own words; ``within`` is what has changed since it looked at the whole page. Of the many
    voices and entries it looks at some of each kind."""
    found: list[str] = await tab.page.evaluate(
        """async (within) => {
            const exclude = ["#cast .voice:nth-child(n+6)", "#unable .voice:nth-child(n+4)",
                "#entries li:nth-child(n+6)"];
            const context = { include: within.split(", "), exclude };
            const { violations } = await axe.run(context, { resultTypes: ["violations"] });
            return violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) =>
                `${id}: ${target} ${failureSummary}`));
        }""",
        within,
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_to_object_to(scheme: Any, much: None, opened: Opener, simulator: Simulator) -> None:
    """Everything that the page shows at times: a speech, a queue, a failure, menus, panels and each dialog."""
    held = simulator.behave("realtime", HOLD)
    async with opened(viewport={"width": 1280, "height": 720}, color_scheme=scheme, reduced_motion="reduce") as tab:
        page = tab.page
        tab.expect_problems("status of 502")
        await tab.ready()
        await tab.until("document.querySelectorAll('#entries li').length === 30")
        await page.evaluate(AXE.read_text())
        await tab.generate("This is spoken.")
        await tab.heard(0.1)
        await page.keyboard.press("Control+Shift+Enter")  # with another one waiting
        await page.locator("#queued li").wait_for()
        assert await violations(tab) == []
        await page.click("#sound")
        assert await violations(tab, "#stage, #sound-panel") == []
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Take it out").click()
        held.release()
        await tab.finished()
        assert await violations(tab, "#stage") == []
        # A failure, the queue, what is selected, what is narrowed, the group of those who cannot speak.
        await page.route("**/api/generate", lambda route: route.fulfill(status=502, json=REFUSAL))
        await tab.generate("This is refused.")
        await page.get_by_role("button", name="Copy reference").wait_for()
        await page.click("#select")
        await page.locator("#unable summary").click()
        await page.fill("#text", "x" * 2001)
        assert await violations(tab) == []
        await page.click("#selected-done")
        for opens, shows in (
            ("#entries li .tools button:last-child", ".menu"),
            ("#open-clone", "#clone"),
            ("#open-design", "#design"),
            ("#open-keys", "#keys"),
            ("#open-connect", "#connect"),
            ("#options", "#options-panel"),
            ("#cast .voice .tools button:last-child", ".menu"),
        ):
            await page.locator(opens).first.click()
            await page.locator(shows).wait_for()
            assert await violations(tab, shows) == [], opens
            if opens.startswith("#cast"):
                await page.get_by_role("menuitem", name="Details").click()
                assert await violations(tab, "#voice") == []
            await page.keyboard.press("Escape")
        await page.set_viewport_size({"width": 390, "height": 844})
        assert await violations(tab) == []


async def outside(tab: Tab, *selectors: str) -> list[str]:
    """Which of these are not wholly in the window, or lie under something else."""
    found: list[str] = await tab.page.evaluate(
        """selectors => selectors.filter((selector) => {
            const element = document.querySelector(selector);
            const { top, left, bottom, right } = element.getBoundingClientRect();
            if (!(top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth && right > left)) return true;
            return ![top + 2, bottom - 2].every((y) => {
                const seen = document.elementFromPoint((left + right) / 2, y);
                return element.contains(seen) || seen.contains(element);
            });
        })""",
        list(selectors),
    )
    return found


@pytest.mark.parametrize("differing", [{"allow_generate_mode_toggle": True}], indirect=True, ids=["toggle"])
async def test_all_of_it_is_in_the_window_of_a_common_laptop(full: Tab, simulator: Simulator) -> None:
    """Sixty voices and two thousand characters, while they are spoken and when that failed."""
    held = simulator.behave("realtime", HOLD, text_contains="lighthouse")
    await full.generate("The lighthouse keeper counted the ships. " * 48)
    await full.heard(0.2)
    controls = ("#voices", "#text", "#generate", "#stage", "#play", "#cancel", "#sound", "#seek")
    assert await outside(full, *controls) == []
    await full.shot("speaking")
    player = ("#play", "#stage-title", "#state", "#time", "#seek", "#cancel", "#sound", "#stage-more", "#close-stage")
    for width, height in ((1280, 900), (1024, 768), (844, 390), (640, 360)):
        await full.page.set_viewport_size({"width": width, "height": height})
        assert await outside(full, *(controls if height > 700 else player)) == []
        assert await full.overlapping(*player) == []
    await full.page.set_viewport_size({"width": 1280, "height": 720})
    await full.page.click("#cancel")
    await full.state("Cancelled.")
    held.release()
    await full.page.route("**/api/generate", lambda route: route.fulfill(status=502, json=REFUSAL))
    full.expect_problems("status of 502")
    await full.page.click("#generate")
    await full.page.get_by_role("button", name="Copy reference").wait_for()
    assert await outside(full, "#stage", "#retry", "#copy-reference", "#close-stage") == []
    await full.shot("failed")
    await full.page.click("#close-stage")
    await full.eventually("document.querySelector('#stage').dataset.state", "empty")
    await full.focused("text")


async def test_a_failure_offers_another_try_and_a_reference(opened: Opener, voice_id: UUID) -> None:
    """Nothing pretends to play; the second attempt is one click away, and so is what an operator wants to know."""
    async with opened(permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.expect_problems("status of 502")
        await tab.ready()
        await tab.page.route("**/api/generate", lambda route: route.fulfill(status=502, json=REFUSAL))
        await tab.generate("First refused, then spoken.")
        await tab.state("It did not work.")
        await tab.eventually("document.querySelector('#play').disabled", True)
        await tab.eventually("document.querySelector('#play').getAttribute('aria-label')", "Play")
        await tab.page.click("#copy-reference")
        await tab.eventually("navigator.clipboard.readText()", "r-4711")
        await tab.page.unroute("**/api/generate")
        await tab.page.click("#retry")
        await tab.finished()
        await tab.page.locator("#retry").wait_for(state="hidden")


async def test_arabic_runs_from_right_to_left_wherever_it_stands(full: Tab) -> None:
    await full.generate(ARABIC)
    await full.heard(0.1)
    for selector in ("#text", "#stage-title", "#entries .said"):
        await full.eventually(f"getComputedStyle(document.querySelector({selector!r})).direction", "rtl")
    assert await full.js("getComputedStyle(document.querySelector('#counter')).direction") == "ltr"
    await full.page.fill("#text", "English again")
    await full.eventually("getComputedStyle(document.querySelector('#text')).direction", "ltr")


async def test_buttons_can_be_told_in_forced_colours(opened: Opener, voice_id: UUID) -> None:
    async with opened(forced_colors="active") as tab:
        await tab.ready()
        await tab.generate("Only a few colours.")
        await tab.heard(0.1)
        flat = await tab.js(
            """Array.from(document.querySelectorAll("button")).filter((e) => e.getClientRects().length)
               .filter((e) => ["none", "rgba(0, 0, 0, 0)"].includes(getComputedStyle(e).borderTopStyle)
                              || parseFloat(getComputedStyle(e).borderTopWidth) < 1).map((e) => e.outerHTML)"""
        )
        assert flat == []
        await tab.shot("forced-colours")


async def test_five_hundred_entries_are_scrolled_through_and_only_what_is_new_is_fetched(
    full: Tab, client: Client, voice_id: UUID
) -> None:
    asked: list[str] = []
    full.page.on("request", lambda request: asked.append(request.url) if "/api/generations?" in request.url else None)
    days = await full.page.locator("#entries h3").all_inner_texts()
    assert days[:2] == ["Today", "Yesterday"] or days[0] == "Yesterday"
    for pages in (2, 3):
        await full.page.locator("#more").scroll_into_view_if_needed()
        await full.until(f"document.querySelectorAll('#entries li').length >= {30 * pages}")
    assert all("before=" in url for url in asked)
    asked.clear()
    await full.js("scrollTo(0, 0)")
    await full.generate("Something new.")
    await full.finished()
    await full.eventually("document.querySelector('#entries .said').textContent", "Something new.")
    assert asked
    assert all("since=" in url or "ids=" in url for url in asked)
    await full.page.select_option("#history-status", "failed")
    await full.until("document.querySelector('#entries li:not([data-status=failed])') === null")
    await full.page.fill("#history-search", "ada")  # the voice of all of them
    await full.until("document.querySelectorAll('#entries li').length >= 30")
    await full.page.fill("#history-search", "number 1 of")
    await full.until("document.querySelectorAll('#entries li').length === 1")
