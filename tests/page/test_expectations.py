"""What people expect who come from other programs that speak: keys, speed, several texts, a way to their apps."""

from uuid import UUID

import httpx
import pytest
from playwright.async_api import Page

from server.dev.simulator import Simulator
from tests.gateway import Client, Gateway
from tests.page.browser import Tab
from tests.page.conftest import Opener, in_the_shared_loop

pytestmark = [in_the_shared_loop, pytest.mark.slow]

SENTENCE = "The lighthouse keeper counted the ships and wished them well."
HOLD = {"do": "hold", "after_deltas": 12}
WAV = {"qwen_default_response_format": "wav"}
PLAYS = "document.querySelector('#play').getAttribute('aria-label') === 'Pause'"


async def texts(client: Client) -> list[str]:
    return [entry["text"] for entry in (await client.http.get("/api/generations")).json()["generations"]]


async def test_texts_wait_for_their_turn_and_one_after_another_is_heard(
    tab: Tab, simulator: Simulator, client: Client
) -> None:
    held = simulator.behave("realtime", HOLD, text_contains="lighthouse")
    page = tab.page
    await page.locator("#enqueue").wait_for(state="hidden")
    await tab.generate(SENTENCE)
    await tab.heard(0.2)
    for text in ("The second.", "Never this one.", "The third."):
        await page.fill("#text", text)
        await page.keyboard.press("Control+Shift+Enter")
        await tab.eventually("document.querySelector('#text').value", "")
    queued = "Array.from(document.querySelectorAll('#queued .said'), (e) => e.textContent)"
    await tab.eventually(queued, ["The second.", "Never this one.", "The third."])
    await page.locator("#queued li", has_text="Never").get_by_role("button", name="Take it out").click()
    held.release()
    for text in ("The second.", "The third."):
        await tab.until(f"document.querySelector('#stage-title').textContent === {text!r}", 20.0)
    await tab.finished()
    assert await texts(client) == ["The third.", "The second.", SENTENCE]
    await page.locator("#queue").wait_for(state="hidden")


async def test_a_text_that_is_too_long_is_spoken_in_parts(tab: Tab, client: Client) -> None:
    await tab.js("localStorage.setItem('utter.sound', JSON.stringify({ rate: 2, volume: 0.5 }))")
    long = "A short sentence. " * 112  # 2016 characters, the last of which is a blank
    await tab.page.fill("#text", long)
    await tab.page.get_by_role("button", name="Speak it in 2 parts").click()
    await tab.until("document.querySelector('#queued .said') !== null")
    await tab.page.click("#cancel")
    await tab.until("document.querySelector('#stage-title').textContent === 'A short sentence.'")
    await tab.finished()
    second, first = await texts(client)
    assert f"{first} {second}" == long.strip()
    assert len(first) <= 2000


async def test_only_one_tab_is_heard_at_a_time(opened: Opener, simulator: Simulator, voice_id: UUID) -> None:
    held = simulator.behave("realtime", HOLD, text_contains="lighthouse")
    async with opened() as tab:
        await tab.ready()
        await tab.generate(SENTENCE)
        await tab.heard(0.2)
        other: Page = await tab.page.context.new_page()
        await other.goto(tab.page.url)
        await other.fill("#text", "Now it is my turn.")
        await other.click("#generate")
        await tab.until("document.querySelector('#play').getAttribute('aria-label') === 'Play'")
        await other.wait_for_selector("#kept:not([hidden])", state="attached")
        held.release()
        await tab.page.click("#play")
        await tab.finished()


async def test_keys_play_pause_skip_cancel_and_are_named(tab: Tab, simulator: Simulator, client: Client) -> None:
    held = simulator.behave("realtime", HOLD, text_contains="lighthouse")
    page = tab.page
    assert "Ctrl" in await page.inner_text("#generate")
    await page.fill("#text", "Short and stored.")
    await page.keyboard.press("Control+Enter")
    await tab.finished()
    await tab.js("document.activeElement.blur()")
    await page.keyboard.press("k")
    await tab.until(PLAYS)
    await page.keyboard.press("Space")
    await tab.until(f"!({PLAYS})")
    await page.keyboard.press("j")
    await tab.until("Number(document.querySelector('#seek').value) === 0")
    await page.focus("#text")
    await page.keyboard.type(" k j")  # where something is written keys write
    assert await page.input_value("#text") == "Short and stored. k j"
    assert not await tab.js(PLAYS)
    await tab.generate(SENTENCE)
    await tab.heard(0.2)
    await page.keyboard.press("Control+.")
    await tab.state("Cancelled.")
    held.release()
    await tab.js("document.activeElement.blur()")
    await page.keyboard.press("?")
    names = await page.get_by_role("dialog").inner_text()
    for says in ("Generate", "Play or pause", "Cancel what is being spoken", "Undo a deletion"):
        assert says in names
    await page.uncheck("#single-keys")  # for those who dictate, and whose words are keys
    await page.keyboard.press("Escape")
    await tab.js("document.activeElement.blur()")
    await page.keyboard.press("?")
    assert not await tab.js("document.querySelector('#keys').open")


@pytest.mark.parametrize("differing", [{}, WAV], indirect=True, ids=["mp3", "wav"])
async def test_speed_and_volume_are_kept_and_hold_for_what_comes(tab: Tab, client: Client) -> None:
    """Live samples are played as they were spoken; where that is all there is, the stored audio takes over at once."""
    page = tab.page
    await tab.generate(SENTENCE)
    await tab.heard(0.2)
    await page.click("#sound")
    await page.select_option("#rate", "2")
    await page.locator("#volume").fill("40")
    await page.keyboard.press("Escape")
    await tab.focused("sound")
    await tab.finished()
    elements = "Array.from(ear.elements, ({ playbackRate, volume }) => [playbackRate, volume])"
    await tab.until(f"JSON.stringify({elements}).includes('[2,0.4]')")
    await page.reload()
    await tab.ready()
    await page.locator("#entries .round").first.click()
    await tab.until(f"JSON.stringify({elements}).includes('[2,0.4]')")


@pytest.mark.parametrize("differing", [WAV], indirect=True, ids=["wav"])
async def test_a_context_that_somebody_else_suspends_is_a_pause(tab: Tab, simulator: Simulator) -> None:
    """The button turns to Play, whatever else arrives meanwhile, and Play goes on where it stopped."""
    held = simulator.behave("realtime", HOLD)
    await tab.generate(SENTENCE)
    await tab.heard(0.5)
    await tab.js("ear.contexts.forEach((context) => context.suspend())")
    await tab.until("document.querySelector('#play').getAttribute('aria-label') === 'Play'")
    at = float(await tab.js("document.querySelector('#seek').value"))
    assert 0.4 < at < 1.6
    held.release()
    await tab.player("ElementPlayer")  # what is stored has taken its place
    assert float(await tab.js("document.querySelector('#seek').value")) == pytest.approx(at, abs=0.3)
    before = (await tab.ear)["audibleSeconds"]
    await tab.page.click("#play")
    await tab.finished()
    await tab.until(f"ear.audibleSeconds > {before + 0.3}")


async def test_what_a_voice_can_vary_is_offered_and_asked_for(tab: Tab, client: Client, rows: object) -> None:
    page = tab.page
    await page.click("#options")
    await page.select_option("#option-format", "wav")
    await page.locator("#option-speed").fill("1.25")
    await page.keyboard.press("Escape")
    await tab.generate("Faster, and as WAV.")
    await tab.finished()
    (entry,) = (await client.http.get("/api/generations")).json()["generations"]
    assert entry["output_format"] == "wav"
    again = (await client.http.post(f"/api/generations/{entry['id']}/regenerate")).json()
    assert (again["format"], again["speed"]) == ("wav", 1.25)
    assert "pitch" not in again
    await page.click("#options")
    await page.click("#options-reset")
    await page.keyboard.press("Escape")
    await page.locator("#entries li").get_by_role("button", name="Use again").click()
    await tab.until("document.querySelector('#option-speed').value === '1.25'")


async def test_a_first_visit_says_what_this_is_and_offers_a_sentence(tab: Tab) -> None:
    await tab.page.get_by_role("heading", name="Your words, heard while they are being spoken").wait_for()
    await tab.page.get_by_role("button", name="Try a sentence").click()
    await tab.page.click("#generate")
    await tab.finished()
    await tab.focused("generate")
    await tab.until("document.querySelector('#hello').className.includes('unseen')")
    await tab.eventually("document.querySelector('#samples').getClientRects().length", 0)


async def test_an_app_is_connected(opened: Opener, gateway: Gateway, client: Client, voice_id: UUID) -> None:
    """A key is made, shown once, stands in the lines that are to be copied, works, is listed and revoked."""
    async with opened(permissions=["clipboard-read", "clipboard-write"]) as tab:
        page = tab.page
        await tab.ready()
        await page.get_by_role("button", name="Connect an app").click()
        assert await page.input_value("#connect-address") == f"{gateway.url}/v1"
        await page.click("#make-key")
        await page.get_by_text("Say what the key is for").wait_for()
        await page.fill("#key-name", "My laptop")
        await page.keyboard.press("Enter")
        await tab.until("document.querySelector('#key').value")
        key = await page.input_value("#key")
        await page.click("#copy-key")
        await tab.eventually("navigator.clipboard.readText()", key)
        for client_name in ("curl", "Python (openai)", "Open WebUI", "LiveKit Agents"):
            await page.select_option("#client", label=client_name)
            await page.click("#copy-lines")
            lines = await page.inner_text("#client-lines")
            await tab.eventually("navigator.clipboard.readText()", lines)
            assert key in lines
            assert f"{gateway.url}/v1" in lines
        await tab.shot("made")
        async with httpx.AsyncClient(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}) as app:
            assert (await app.get("/api/voices")).status_code == 200
        await page.keyboard.press("Escape")
        await tab.until("document.querySelector('#key').value === ''")
        await page.get_by_role("button", name="Connect an app").click()
        await page.locator("#key-entries", has_text="My laptop").wait_for()
        assert key not in await page.inner_text("#connect")
        await page.get_by_role("button", name="Revoke My laptop").click()
        await page.get_by_role("button", name="press again").click()
        await tab.until("document.querySelector('#made').hidden")
        assert (await client.http.get("/api/keys")).json()["keys"] == []
