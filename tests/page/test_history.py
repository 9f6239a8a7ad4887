"""Everything that was ever spoken: found, played, kept, used again, deleted."""

import wave
import zipfile
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client
from tests.page.browser import Tab
from tests.page.conftest import Opener, in_the_shared_loop, shared
from tests.support import wait_for

pytestmark = [in_the_shared_loop, pytest.mark.slow]

TEXTS = ["The first thing that was said.", "A second sentence, about 100% of nothing.", "Third and last."]


@shared()
async def spoken(client: Client, voice_id: UUID) -> list[str]:
    """Ids of three stored generations, in the order of TEXTS."""
    answers = [await client.generate(voice_id, text) for text in TEXTS]
    for answer in answers:
        await client.ended(answer["task_id"])
    return [answer["generation_id"] for answer in answers]


@shared()
async def history(spoken: list[str], opened: Opener) -> AsyncIterator[Tab]:
    """The page of a user who has spoken three texts."""
    async with opened() as tab:
        await tab.ready()
        await tab.until("document.querySelectorAll('#entries li').length === 3")
        yield tab


def entry(tab: Tab, text: str):  # type: ignore[no-untyped-def]
    return tab.page.locator("#entries li", has_text=text)


async def shows(tab: Tab, texts: list[str]) -> None:
    """Wait until these are the texts in the history, from the top. Not ``innerText``: a row that has not been drawn yet
    (the page leaves out those beyond the window) has none."""
    await tab.eventually("Array.from(document.querySelectorAll('#entries .said'), (e) => e.textContent)", texts)


async def test_history_is_newest_first_and_can_be_searched(history: Tab) -> None:
    await shows(history, TEXTS[::-1])
    await history.page.fill("#history-search", "100%")
    await history.until("document.querySelectorAll('#entries li').length === 1")
    await shows(history, [TEXTS[1]])
    await history.page.fill("#history-search", "nobody said this")
    await history.until("document.querySelector('#history-note').textContent === 'Nothing found.'")


async def test_an_entry_is_played_paused_and_sought(history: Tab, client: Client) -> None:
    row = entry(history, TEXTS[1])
    await row.get_by_role("button", name="Play").click()
    await history.heard(0.4)
    assert (await history.ear)["loudest"] > 0.02
    await history.eventually("document.querySelector('#stage-title').textContent", TEXTS[1])
    await row.get_by_role("button", name="Pause").click()
    await row.get_by_role("button", name="Play").wait_for()
    stored = (await client.http.get("/api/generations?search=100%25")).json()["generations"][0]
    await history.until(f"Math.abs(document.querySelector('#seek').max - {stored['duration_seconds']}) < 0.1")
    peaks = await history.js("document.querySelector('#seek').max")
    assert float(peaks) > 1
    await history.page.evaluate(
        "s => { const e = document.querySelector('#seek'); e.value = s; e.dispatchEvent(new Event('input'));"
        " e.dispatchEvent(new Event('change')) }",
        stored["duration_seconds"] - 0.6,
    )
    await row.get_by_role("button", name="Play").click()
    await history.until("document.querySelector('#play').getAttribute('aria-label') === 'Play'")
    assert (await history.ear)["audibleSeconds"] < stored["duration_seconds"]


async def test_an_entry_is_downloaded(history: Tab, client: Client, spoken: list[str]) -> None:
    async with history.page.expect_download() as downloading:
        await entry(history, TEXTS[0]).get_by_role("button", name="Download").click()
    download = await downloading.value
    assert download.suggested_filename == "utter-The-first-thing-that-was-said.mp3"
    assert (await download.path()).read_bytes() == await client.audio(spoken[0])


async def test_an_entry_is_taken_as_wav_and_as_a_link(opened: Opener, client: Client, spoken: list[str]) -> None:
    async with opened(permissions=["clipboard-read", "clipboard-write"]) as tab:
        row = entry(tab, TEXTS[0])
        await row.get_by_role("button", name="More").click()
        async with tab.page.expect_download() as downloading:
            await tab.page.get_by_role("menuitem", name="Download as WAV").click()
        download = await downloading.value
        assert download.suggested_filename == "utter-The-first-thing-that-was-said.wav"
        stored = (await client.http.get("/api/generations?search=first")).json()["generations"][0]
        with wave.open(str(await download.path())) as file:
            assert file.getnframes() / file.getframerate() == pytest.approx(stored["duration_seconds"], abs=0.1)
        await row.get_by_role("button", name="More").click()
        await tab.page.get_by_role("menuitem", name="Copy a link").click()
        await tab.page.get_by_text("Link copied. It works for an hour.").wait_for()
        link = await tab.page.evaluate("navigator.clipboard.readText()")
        async with httpx.AsyncClient() as anybody:
            assert (await anybody.get(link)).content == await client.audio(spoken[0])


async def test_several_entries_are_taken_as_one_zip_and_deleted_at_once(history: Tab, client: Client) -> None:
    page = history.page
    await page.click("#select")
    for text in TEXTS[:2]:
        await page.get_by_role("checkbox", name=f"Select {text}").check()
    await page.get_by_text("2 selected", exact=True).wait_for()
    async with page.expect_download() as downloading:
        await page.click("#selected-zip")
    with zipfile.ZipFile(await (await downloading.value).path()) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["01-A-second-sentence-about-100-of.mp3", "02-The-first-thing-that-was-said.mp3"]
    await history.focused("selected-zip")
    await page.click("#selected-delete")
    await shows(history, [TEXTS[2]])
    await page.get_by_role("button", name="Undo").click()
    await shows(history, TEXTS[::-1])
    await page.click("#selected-done")
    assert await page.is_hidden("#selected")
    await history.focused("select")


async def test_an_entry_is_used_again(history: Tab) -> None:
    await entry(history, TEXTS[0]).get_by_role("button", name="Use again").click()
    await history.until(f"document.querySelector('#text').value === {TEXTS[0]!r}")
    await history.page.keyboard.press("Control+Enter")
    await history.finished()
    await history.until("document.querySelectorAll('#entries li').length === 4")


async def test_the_address_of_a_regeneration_fills_the_form(opened: Opener, client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id, "Fish & chips, 50% off?", language="English")
    await client.ended(answer["task_id"])
    url = (await client.http.post(f"/api/generations/{answer['generation_id']}/regenerate")).json()["redirect_url"]
    async with opened(client.url + url) as tab:
        await tab.ready()
        await tab.until("document.querySelector('#text').value === 'Fish & chips, 50% off?'")
        assert await tab.page.input_value("#language") == "English"


async def test_what_was_deleted_can_be_had_back_for_a_while(history: Tab, client: Client) -> None:
    """It is out of sight at once, the focus goes to its neighbour, and the server hears of it a little later, at the
    latest when the page is left."""
    page = history.page
    history.expect_problems("status of 404")  # it asks once more for what the request on the way out has done

    async def are_left(wanted: int) -> bool:
        return bool((await client.http.get("/api/generations")).json()["pagination"]["total"] == wanted)

    async def delete(text: str) -> None:
        await entry(history, text).get_by_role("button", name="More").click()
        await page.get_by_role("menuitem", name="Delete").click()

    await entry(history, TEXTS[1]).get_by_role("button", name="Play").click()
    await history.heard(0.1)
    await delete(TEXTS[1])
    await shows(history, [TEXTS[2], TEXTS[0]])
    await history.eventually("document.querySelector('#stage').dataset.state", "empty")
    await history.eventually("document.activeElement.closest('li')?.getAttribute('aria-label')", TEXTS[0])
    await page.get_by_role("button", name="Undo").click()
    await shows(history, TEXTS[::-1])
    await delete(TEXTS[1])
    await delete(TEXTS[2])
    await page.keyboard.press("Control+z")  # the last one
    await shows(history, [TEXTS[2], TEXTS[0]])
    assert await are_left(3)
    await page.reload()
    await wait_for(lambda: are_left(2))
    await history.until("document.querySelectorAll('#entries li').length === 2")


async def test_what_is_being_spoken_elsewhere_arrives_by_itself(
    history: Tab, simulator: Simulator, client: Client, voice_id: UUID
) -> None:
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    await client.generate(voice_id, "Spoken by another window.")
    await history.page.fill("#history-search", "another window")
    row = entry(history, "Spoken by another window.")
    await row.get_by_text("being spoken").wait_for()
    assert await row.get_by_role("button", name="Play").is_disabled()
    held.release()
    await row.get_by_role("button", name="Download").wait_for()
