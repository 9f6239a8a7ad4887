"""Voices on the page: chosen, cloned from a file or a microphone, designed, listened to, deleted."""

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, Gateway, insert_voice
from tests.jobs.test_renew import Rows, older_voice
from tests.page.browser import Tab
from tests.page.conftest import Opener, copy_voice, in_the_shared_loop, shared
from tests.voices import creations

pytestmark = [in_the_shared_loop, pytest.mark.slow]


@shared()
async def newcomer(opened: Opener) -> AsyncIterator[Tab]:
    """The page of a user without any voice."""
    async with opened() as tab:
        await tab.until("!document.querySelector('#voices-note').hidden")
        yield tab


async def chosen(tab: Tab, name: str) -> None:
    """Wait until the dialogs are gone, and the voice of this name is chosen."""
    shown = "document.querySelector('.voice:has(input:checked) strong')?.textContent"
    await tab.eventually(f"!document.querySelector('dialog[open]') && {shown}", name)


async def test_without_a_voice_the_page_says_what_to_do(newcomer: Tab) -> None:
    await newcomer.page.locator("#voices-note", has_text="Clone your own, or design one").wait_for()
    await newcomer.page.get_by_text("Clone your voice or design one, write something").wait_for()
    await newcomer.page.get_by_role("button", name="Try a sentence").wait_for(state="hidden")
    await newcomer.eventually("document.querySelector('#generate').disabled", True)


async def test_a_voice_is_cloned_from_a_file_and_speaks(
    newcomer: Tab, recording: Path, client: Client, simulator: Simulator
) -> None:
    page = newcomer.page
    await page.click("#open-clone")
    await page.get_by_text("File", exact=True).click()
    await page.set_input_files("#file", recording)
    await page.get_by_text("my voice.wav: 0:06.").wait_for()
    await page.click("#clone-save")
    await page.get_by_text("Give the voice a name.").wait_for()
    await page.fill("#clone-name", "My own voice")
    await page.fill("#clone-transcript", "Something that was said in the recording.")
    await page.click("#clone-save")
    await page.get_by_text("Please say that you may use this voice.").wait_for()
    await page.check("#consent")
    await newcomer.shot("filled", full_page=True)
    await page.click("#clone-save")
    await chosen(newcomer, "My own voice")
    assert [call["action"] for call in simulator.calls] == ["create"]
    assert (await client.http.get("/api/voices")).json()["voices"][0]["consent"].startswith("This is my own voice")
    await page.get_by_role("button", name="Listen to My own voice").click()
    await newcomer.until("ear.loudest > 0.02")
    await newcomer.generate("This is my own voice.")
    await newcomer.finished()


async def test_a_voice_is_cloned_with_the_microphone(opened: Opener, client: Client) -> None:
    """What was said into the microphone arrives as WAV, with its level shown while it was recorded."""
    async with opened(permissions=["microphone"]) as tab:
        page = tab.page
        await tab.until("!document.querySelector('#voices-note').hidden")
        await page.click("#open-clone")
        passage = await page.inner_text("#passage")
        await page.click("#record")
        await tab.until("Number(document.querySelector('#meter').getAttribute('aria-valuenow')) > 20")
        await tab.until("document.querySelector('#record-time').textContent >= '0:03'")
        await page.get_by_text("Enough to begin with").wait_for()
        await tab.shot("recording")
        await page.click("#record")
        await page.get_by_text("Good; 10 to 20 seconds would be better.").wait_for()
        shown = await page.inner_text("#record-time")
        assert await page.input_value("#clone-transcript") == passage
        await page.click("#clone-mini button")
        await tab.until("ear.loudest > 0.02")
        await page.fill("#clone-name", "Spoken just now")
        await page.check("#consent")
        await page.click("#clone-save")
        await chosen(tab, "Spoken just now")
        voice = (await client.http.get("/api/voices")).json()["voices"][0]
        link = (await client.http.get(f"/api/voices/{voice['id']}/preview")).headers["location"]
        stored = (await client.http.get(link)).content
        assert stored[:4] == b"RIFF"
        assert int((len(stored) - 44) / 48_000 + 0.05) == int(shown.removeprefix("0:"))  # 24 kHz, mono, 16 bit


RATES_DIFFER = """{
    const connect = AudioContext.prototype.createMediaStreamSource;
    AudioContext.prototype.createMediaStreamSource = function (stream) {
        const { sampleRate } = stream.getAudioTracks()[0].getSettings();
        if (!globalThis.askedFor) {
            globalThis.askedFor = sampleRate;
            throw new DOMException("rates", "NotSupportedError");
        }
        return connect.call(this, stream);
    };
}"""
NEVER_CONNECTS = (
    """AudioContext.prototype.createMediaStreamSource = () => { throw new DOMException("No.", "DataError"); };"""
)


async def test_a_microphone_that_is_muted_lost_or_of_another_rate_is_handled(opened: Opener, client: Client) -> None:
    """A context at the microphone's rate, words when nothing is heard, and what was said until it went is kept."""
    script = RATES_DIFFER + (
        "const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = async (...asked) => globalThis.microphone = await get(...asked);"
    )
    async with opened(permissions=["microphone"], scripts=[script]) as tab:
        page = tab.page
        await page.click("#open-clone")
        await page.click("#record")
        await tab.until("document.querySelector('#record-time').textContent >= '0:01'")
        assert await tab.js("askedFor") > 0
        await tab.js("microphone.getAudioTracks()[0].dispatchEvent(new Event('mute'))")
        await page.get_by_text("The microphone is muted").wait_for()
        await tab.js("microphone.getAudioTracks()[0].dispatchEvent(new Event('unmute'))")
        await tab.until("document.querySelector('#clone-problem').textContent === ''")
        await tab.js("microphone.getAudioTracks()[0].dispatchEvent(new Event('ended'))")
        await page.get_by_text("The microphone is gone. What was said until then is kept.").wait_for()
        await page.click("#clone-mini button")
        await tab.until("ear.loudest > 0.02")
    async with opened(permissions=["microphone"], scripts=[NEVER_CONNECTS]) as tab:
        await tab.page.click("#open-clone")
        await tab.page.click("#record")
        await tab.page.get_by_text("This browser cannot record from that microphone.").wait_for()


async def test_a_microphone_that_is_not_allowed_is_explained(newcomer: Tab) -> None:
    await newcomer.page.click("#open-clone")
    await newcomer.page.click("#record")
    await newcomer.page.get_by_text("choose a file instead").wait_for()
    await newcomer.eventually("document.querySelector('#record').disabled", False)


async def test_a_recording_that_will_not_do_is_refused_before_it_is_sent(
    newcomer: Tab, recording: Path, simulator: Simulator
) -> None:
    page = newcomer.page
    await page.click("#open-clone")
    await page.get_by_text("File", exact=True).click()
    await page.fill("#clone-name", "Never")
    await page.click("#clone-save")
    await page.locator("#clone-problem", has_text="Record something first, or choose a file.").wait_for()
    await page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    await page.locator("#clone-problem", has_text="This is not a WAV, MP3 or M4A file.").wait_for()
    memo = {"name": "memo.qta", "mimeType": "", "buffer": b"\0\0\0\x14ftypqt  " + bytes(64)}
    await page.set_input_files("#file", memo)  # type: ignore[arg-type]
    await page.get_by_text("memo.qta: ready.").wait_for()  # not by its name, and more of it the server will see
    large = {"name": "large.wav", "mimeType": "audio/wav", "buffer": bytes(10 * 1024 * 1024 + 1)}
    await page.set_input_files("#file", large)  # type: ignore[arg-type]
    await page.locator("#clone-problem", has_text="larger than 10 MB").wait_for()
    whole = recording.read_bytes()
    short = whole[:40] + struct.pack("<I", 2 * 192_000) + whole[44 : 44 + 2 * 192_000]
    await page.set_input_files("#file", {"name": "short.wav", "mimeType": "audio/wav", "buffer": short})
    await page.locator("#file-hint", has_text="short.wav: 0:02. At least 3 seconds are needed.").wait_for()
    await page.click("#clone-save")
    await page.locator("#clone-problem", has_text="At least 3 seconds are needed.").wait_for()
    assert simulator.calls == []


async def test_a_refusal_of_the_provider_is_a_sentence_and_nothing_is_lost(
    newcomer: Tab, recording: Path, simulator: Simulator
) -> None:
    """What was filled in stays, and the second attempt neither uploads nor pays twice."""
    newcomer.expect_problems(r"status of \d\d\d")
    simulator.behave("customization", {"do": "error", "code": "Throttling.RateQuota"}, times=3)
    page = newcomer.page
    await page.click("#open-clone")
    await page.get_by_text("File", exact=True).click()
    await page.set_input_files("#file", recording)
    await page.fill("#clone-name", "Second time lucky")
    await page.check("#consent")
    await page.click("#clone-save")
    await newcomer.until("document.querySelector('#clone-problem').textContent.length > 10", 30)
    await newcomer.eventually("document.querySelector('#clone-save').disabled", False)
    simulator.behaviours.clear()
    await page.click("#clone-save")
    await chosen(newcomer, "Second time lucky")


async def test_a_voice_is_designed_heard_and_saved(newcomer: Tab, client: Client, simulator: Simulator) -> None:
    page = newcomer.page
    await page.click("#open-design")
    await page.get_by_role("button", name="Calm and warm").click()
    await page.click("#design-preview")
    await newcomer.until("ear.loudest > 0.02")
    await newcomer.shot("heard")
    await page.click("#design-save")
    await page.get_by_text("Give the voice a name.").wait_for()
    await page.fill("#design-name", "Margaret")
    await page.keyboard.press("Enter")
    await chosen(newcomer, "Margaret")
    assert [call["action"] for call in simulator.calls] == ["create"]
    voice = (await client.http.get("/api/voices")).json()["voices"][0]
    assert voice["source"] == "designed"
    await newcomer.generate("This is what I sound like.")
    await newcomer.finished()


async def test_a_preview_that_takes_too_long_can_be_cancelled(newcomer: Tab, simulator: Simulator) -> None:
    held = simulator.behave("customization", {"do": "hold"})
    page = newcomer.page
    await page.click("#open-design")
    await page.get_by_role("button", name="News desk").click()
    await page.click("#design-preview")
    await held.held()
    await page.click("#design-cancel")
    await newcomer.until("!document.querySelector('#design-preview').disabled")
    held.release()


async def test_voices_of_the_other_provider_are_shown_but_not_selectable(
    opened: Opener, client: Client, database_url: str, voice_id: UUID
) -> None:
    await insert_voice(database_url, client.user_id, name="Old friend", provider="modal", model=None)
    async with opened() as tab:
        await tab.ready()
        await chosen(tab, "Ada")
        radio = tab.page.get_by_role("radio", name="Old friend")
        await radio.wait_for(state="hidden")
        await tab.page.get_by_text("1 voice cannot speak at the moment").click()
        assert await radio.is_disabled()
        reason = await tab.js(
            "document.getElementById(document.querySelector('.voice[data-compatible=false] input')"
            ".getAttribute('aria-describedby')).textContent"
        )
        assert len(reason) > 20


async def test_a_voice_whose_model_is_gone_is_made_again(
    opened: Opener, gateway: Gateway, client: Client, rows: Rows, simulator: Simulator
) -> None:
    voice_id = await older_voice(gateway, rows, client.user_id)
    await rows.execute(
        "UPDATE public.voices SET provider_metadata = jsonb_build_object('gone_from', $2::text) WHERE id = $1",
        voice_id,
        gateway.parts.providers.account,
    )
    async with opened() as tab:
        await tab.page.get_by_text("1 voice cannot speak at the moment").click()
        await tab.page.get_by_role("button", name="More about Ada").click()
        await tab.page.get_by_role("menuitem", name="Make it again").click()
        await tab.page.get_by_text("Ada can speak again.").wait_for()
        await chosen(tab, "Ada")
    assert len(creations(simulator)) == 1


async def test_a_deleted_voice_is_gone_here_and_named_in_the_history(tab: Tab, client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id, "Before it was deleted.")
    await client.ended(answer["task_id"])
    await tab.page.reload()
    await tab.ready()
    tab.expect_problems("status of 404")  # it asks once more for what the request on the way out has done
    for undo in (True, False):
        await tab.page.get_by_role("button", name="More about Ada").click()
        await tab.page.get_by_role("menuitem", name="Delete").click()
        await tab.until("!document.querySelector('#voices-note').hidden")
        if undo:
            await tab.page.get_by_role("button", name="Undo").click()
            await chosen(tab, "Ada")
    await tab.page.reload()
    await tab.until("!document.querySelector('#voices-note').hidden")
    await tab.page.locator("#entries li", has_text="Ada").wait_for()


async def test_sixty_voices_are_searched_folded_and_passed_in_few_steps(
    opened: Opener, client: Client, database_url: str, rows: Any
) -> None:
    """By name, language, kind and description; what cannot speak is one group; and Tab stops once at a card at most."""
    for provider, name, count in (("qwen", "Voice", 39), ("modal", "Other", 19)):
        first = await insert_voice(database_url, client.user_id, name=f"{name} {count}", provider=provider)
        await copy_voice(rows, first, name, count)
    await rows.execute(
        "UPDATE public.voices SET description = 'As deep as a well', language = 'German' WHERE name = 'Voice 7'"
    )
    async with opened() as tab:
        page = tab.page
        await tab.ready()
        for words, found in (("voice 39", 1), ("german cloned", 1), ("deep well", 1), ("other 11", 1), ("", 60)):
            await page.fill("#voice-search", words)
            await tab.until(f"document.querySelectorAll('.voice:not([hidden])').length === {found}")
        await page.fill("#voice-search", "nobody")
        await page.get_by_text("No voice matches").wait_for()
        await page.fill("#voice-search", "")
        summaries = "Array.from(document.querySelectorAll('#unable summary'), (e) => e.textContent.trim())"
        await tab.eventually(summaries, ["20 voices cannot speak at the moment"])
        await tab.eventually("document.querySelectorAll('#unable .reason').length", 1)
        await tab.eventually("document.querySelector('#unable details').open", False)
        await page.locator("#unable summary").click()
        top = "document.querySelector('#unable .voice').getBoundingClientRect().top"
        await tab.until(f"{top} < document.querySelector('.casting').getBoundingClientRect().bottom - 40")
        await page.locator("#unable summary").click()
        await page.focus("#voice-search")
        stops = 0
        while not await tab.js("document.activeElement.id === 'text'"):
            await page.keyboard.press("Tab")
            stops += 1
        assert stops <= 6  # clone, design, the voices, the menu of the chosen one, the group of the others, the text


async def test_a_voice_is_renamed_where_its_details_stand(tab: Tab, client: Client, voice_id: UUID) -> None:
    page = tab.page
    await page.get_by_role("button", name="More about Ada").click()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await page.get_by_role("dialog").get_by_text(str(voice_id)).wait_for()
    await page.locator("#voice-details", has_text="What the recording says.").wait_for()
    await page.fill("#voice-name", "   ")
    await page.keyboard.press("Enter")
    await page.get_by_text("Give the voice a name.").wait_for()
    await page.fill("#voice-name", "Ada, Countess of Lovelace")
    await page.check("#voice-default")
    await page.click("#voice-save")
    await chosen(tab, "Ada, Countess of Lovelace")
    (voice,) = (await client.http.get("/api/voices")).json()["voices"]
    assert (voice["name"], voice["default"]) == ("Ada, Countess of Lovelace", True)
    await tab.until("document.activeElement.getAttribute('aria-label')?.includes('Countess')")
