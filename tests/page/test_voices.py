"""Voices on the page: chosen, cloned from a file or a microphone, designed, listened to, deleted."""

import math
import struct
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, Gateway, insert_voice
from tests.page.browser import Tab, open_tab, running_chromium
from tests.page.conftest import Opener

SECONDS = 6.0


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of something like a voice: a buzz in syllables, 48 kHz stereo."""
    path = tmp_path_factory.mktemp("recording") / "my voice.wav"
    rate = 48_000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        frames = bytearray()
        for i in range(int(SECONDS * rate)):
            t = i / rate
            syllable = max(0.0, math.sin(2 * math.pi * 3 * t))
            sample = syllable * sum(math.sin(2 * math.pi * 140 * k * t) / k for k in (1, 2, 3, 5)) / 3
            frames += struct.pack("<hh", *[int(16_000 * sample)] * 2)
        file.writeframes(bytes(frames))
    return path


@pytest.fixture
async def newcomer(opened: Opener) -> AsyncIterator[Tab]:
    """The page of a user without any voice."""
    async with opened() as tab:
        await tab.until("!document.querySelector('#voices-note').hidden")
        yield tab


async def chosen(tab: Tab) -> str:
    """The name of the voice that is chosen, once the dialogs are gone."""
    await tab.until("!document.querySelector('dialog[open]') && document.querySelector('.voice input:checked')")
    return str(await tab.js("document.querySelector('.voice:has(input:checked) strong').textContent"))


async def test_without_a_voice_the_page_says_what_to_do(newcomer: Tab) -> None:
    assert "Clone your own, or design one" in await newcomer.page.inner_text("#voices-note")
    assert await newcomer.page.is_disabled("#generate")


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
    await newcomer.shot("filled", full_page=True)
    await page.click("#clone-save")
    assert await chosen(newcomer) == "My own voice"
    assert [call["action"] for call in simulator.calls] == ["create"]
    await page.get_by_role("button", name="Listen to My own voice").click()
    await newcomer.until("ear.loudest > 0.02")
    await newcomer.generate("This is my own voice.")
    await newcomer.finished()


async def test_a_voice_is_cloned_with_the_microphone(
    recording: Path, gateway: Gateway, client: Client, simulator: Simulator
) -> None:
    """What was said into the microphone arrives as WAV, with its level shown while it was recorded."""
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    async with (
        running_chromium(*flags, f"--use-file-for-fake-audio-capture={recording}") as browser,
        open_tab(
            browser, gateway.url, name="microphone", token=client.token, permissions=["microphone"]
        ) as tab,
    ):
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
        assert await page.input_value("#clone-transcript") == passage
        await page.click("#clone-mini button")
        await tab.until("ear.loudest > 0.02")
        await page.fill("#clone-name", "Spoken just now")
        await page.click("#clone-save")
        assert await chosen(tab) == "Spoken just now"
        voice = (await client.http.get("/api/voices")).json()["voices"][0]
        link = (await client.http.get(f"/api/voices/{voice['id']}/preview")).headers["location"]
        stored = (await client.http.get(link)).content
        assert stored[:4] == b"RIFF"
        assert len(stored) == pytest.approx(44 + 3.3 * 48_000, rel=0.2)


async def test_a_microphone_that_is_not_allowed_is_explained(newcomer: Tab) -> None:
    await newcomer.page.click("#open-clone")
    await newcomer.page.click("#record")
    await newcomer.page.get_by_text("choose a file instead").wait_for()
    assert await newcomer.page.get_by_role("button", name="Record", exact=True).is_enabled()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("notes.txt", b"hello", "This is not a WAV, MP3 or M4A file."),
        ("huge.wav", b"RIFF" + bytes(10 * 1024 * 1024), "larger than 10 MB"),
        ("short.wav", None, "At least 3 seconds are needed."),
    ],
    ids=["text", "huge", "short"],
)
async def test_a_recording_that_will_not_do_is_refused_before_it_is_sent(
    name: str, content: bytes | None, sentence: str, newcomer: Tab, recording: Path, simulator: Simulator
) -> None:
    if content is None:
        content = recording.read_bytes()[: 44 + 2 * 48_000 * 4]
        content = content[:40] + struct.pack("<I", len(content) - 44) + content[44:]
    await newcomer.page.click("#open-clone")
    await newcomer.page.get_by_text("File", exact=True).click()
    await newcomer.page.set_input_files("#file", {"name": name, "mimeType": "audio/wav", "buffer": content})
    await newcomer.page.fill("#clone-name", "Never")
    await newcomer.page.click("#clone-save") if content[:4] == b"RIFF" and len(content) < 1_000_000 else None
    await newcomer.page.locator("#clone-problem", has_text=sentence).wait_for()
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
    await page.click("#clone-save")
    await newcomer.until("document.querySelector('#clone-problem').textContent.length > 10", 30)
    assert await page.is_enabled("#clone-save")
    simulator.behaviours.clear()
    await page.click("#clone-save")
    assert await chosen(newcomer) == "Second time lucky"


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
    assert await chosen(newcomer) == "Margaret"
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
        assert await chosen(tab) == "Ada"
        radio = tab.page.get_by_role("radio", name="Old friend")
        assert await radio.is_disabled()
        reason = await tab.js(
            "document.getElementById(document.querySelector('.voice[data-compatible=false] input')"
            ".getAttribute('aria-describedby')).textContent"
        )
        assert len(reason) > 20


async def test_a_deleted_voice_is_gone_here_and_named_in_the_history(tab: Tab, client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id, "Before it was deleted.")
    await client.ended(answer["task_id"])
    await tab.page.reload()
    await tab.ready()
    await tab.page.get_by_role("button", name="Delete Ada").click()
    await tab.page.get_by_role("button", name="press again").click()
    await tab.until("!document.querySelector('#voices-note').hidden")
    assert "Ada" in await tab.page.locator("#entries li").inner_text()


async def test_many_voices_can_be_searched(opened: Opener, client: Client, database_url: str) -> None:
    for i in range(8):
        await insert_voice(database_url, client.user_id, name=f"Voice {i}")
    async with opened() as tab:
        await tab.ready()
        await tab.page.fill("#voice-search", "voice 5")
        await tab.until("document.querySelectorAll('.voice:not([hidden])').length === 1")


