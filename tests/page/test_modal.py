"""The page where the second provider speaks: nothing can be streamed, everything still works."""

from pathlib import Path

import pytest

from server.audio import mp3_duration_seconds
from server.dev.simulator import Simulator
from tests.gateway import Client, insert_voice
from tests.page.conftest import Opener, in_the_shared_loop

pytestmark = [
    pytest.mark.slow,
    in_the_shared_loop,
    pytest.mark.parametrize("differing", [{"tts_provider_mode": "modal"}], indirect=True, ids=["modal"]),
]


async def test_a_voice_is_designed_and_a_text_is_heard_in_one_piece(
    opened: Opener, client: Client, simulator: Simulator, database_url: str
) -> None:
    await insert_voice(database_url, client.user_id, name="Of the other provider")
    async with opened() as tab:
        page = tab.page
        await tab.until("!document.querySelector('#voices-note').hidden")
        assert "None of your voices can speak" in await page.inner_text("#voices-note")
        await page.get_by_role("heading", name="Your words, in your own voices").wait_for()
        await page.click("#open-design")
        await page.get_by_role("button", name="Old storyteller").click()
        await page.click("#design-preview")
        await tab.until("ear.loudest > 0.02")
        await page.fill("#design-name", "Old Tom")
        await page.click("#design-save")
        await tab.ready()
        await tab.generate("In one piece, please.")
        await tab.state("The voice is working on it…")
        await tab.shot("working")
        await tab.finished()
        entry = (await client.http.get("/api/generations")).json()["generations"][0]
        assert entry["tts_provider"] == "modal"
        assert await tab.seconds == pytest.approx(entry["duration_seconds"], abs=0.1)
        assert (await tab.ear)["audibleSeconds"] > 0.5 * entry["duration_seconds"]
        assert await tab.offsets == []
        for place in ("#stage-more", "#entries li .tools button:last-child"):
            await page.click(place)
            async with page.expect_download() as downloading:
                await page.get_by_role("menuitem", name="Download as MP3").click()
            download = await downloading.value
            assert download.suggested_filename == "utter-In-one-piece-please.mp3"
            mp3 = (await download.path()).read_bytes()
            assert mp3_duration_seconds(mp3) == pytest.approx(entry["duration_seconds"], abs=0.15)
        assert [call["action"] for call in simulator.calls if call["action"] in ("design", "submit")] == [
            "design",
            "submit",
        ]


async def test_a_voice_is_cloned_and_a_speech_is_cancelled(
    opened: Opener, client: Client, simulator: Simulator, recording: Path
) -> None:
    simulator.behave("modal", {"job_seconds": 60.0}, action="submit")
    async with opened() as tab:
        page = tab.page
        await page.click("#open-clone")
        await page.get_by_text("File", exact=True).click()
        await page.set_input_files("#file", recording)
        await page.fill("#clone-name", "Mine")
        await page.fill("#clone-transcript", "Something that was said in the recording.")
        await page.check("#consent")
        await page.click("#clone-save")
        await tab.ready()
        await tab.generate("Never to be heard.")
        await tab.state("The voice is working on it…")
        await page.click("#cancel")
        await tab.state("Cancelled.")
        entry = (await client.http.get("/api/generations")).json()["generations"][0]
        assert entry["status"] == "cancelled"
