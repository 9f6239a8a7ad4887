"""A text that is typed, and heard while it is being spoken."""

from typing import Any
from uuid import UUID

import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, insert_voice
from tests.page.browser import Tab
from tests.page.conftest import Opener

SENTENCE = "The lighthouse keeper counted the ships and wished them well."
HOLD = {"do": "hold", "after_deltas": 12}  # after 1.8 seconds of speech

NO_MEDIA_SOURCE = "delete globalThis.MediaSource;"
NO_WEB_AUDIO = "delete globalThis.AudioContext;"
MP3, WAV = {"qwen_default_response_format": "mp3"}, {"qwen_default_response_format": "wav"}


async def newest(client: Client) -> dict[str, Any]:
    """The newest entry of the user's history."""
    generations: list[dict[str, Any]] = (await client.http.get("/api/generations")).json()["generations"]
    return generations[0]


@pytest.mark.parametrize(
    ("differing", "taken_away", "player"),
    [
        pytest.param(MP3, "", "MediaSourcePlayer", id="mp3-by-mediasource"),
        pytest.param(MP3, NO_MEDIA_SOURCE, "WebAudioPlayer", id="mp3-by-webaudio"),
        pytest.param(WAV, "", "WebAudioPlayer", id="wav-by-webaudio"),
    ],
    indirect=["differing"],
)
async def test_a_text_is_heard_while_it_is_being_spoken(
    taken_away: str, player: str, simulator: Simulator, opened: Opener, client: Client, voice_id: UUID
) -> None:
    """Sound comes before the speech is over, then all the rest of it, and then the stored audio takes over."""
    held = simulator.behave("realtime", HOLD)
    async with opened(scripts=[taken_away]) as tab:
        await tab.ready()
        await tab.generate(SENTENCE)
        await tab.heard(0.7)
        assert (await newest(client))["status"] == "processing"
        assert await tab.js("document.querySelector('#stage').dataset.player") == player
        assert (await tab.ear)["loudest"] > 0.02
        await tab.shot("while-spoken")
        held.release()
        await tab.finished()
        ear = await tab.ear
        duration = (await newest(client))["duration_seconds"]
        assert await tab.seconds == pytest.approx(duration, abs=0.1)
        assert ear["audibleSeconds"] > 0.6 * duration
        assert ear["longestSilence"] < 0.6
        assert await tab.offsets == [0]


@pytest.mark.parametrize(
    ("differing", "taken_away", "deltas"),
    [
        # Browsers want this much of an ordinary file before they begin: 32 KiB of MP3, and 200 KiB of WAV.
        pytest.param(MP3, NO_MEDIA_SOURCE + NO_WEB_AUDIO, 26, id="mp3"),
        pytest.param(WAV, NO_WEB_AUDIO, 38, id="wav"),
    ],
    indirect=["differing"],
)
async def test_without_anything_better_the_browser_streams_by_itself(
    taken_away: str, deltas: int, simulator: Simulator, opened: Opener, client: Client, voice_id: UUID
) -> None:
    """The last way: an audio element on the stream's raw form, while the task is polled."""
    held = simulator.behave("realtime", {**HOLD, "after_deltas": deltas})
    async with opened(scripts=[taken_away]) as tab:
        await tab.ready()
        await tab.generate(f"{SENTENCE} {SENTENCE}")
        await tab.heard(0.7)
        assert (await newest(client))["status"] == "processing"
        assert await tab.js("document.querySelector('#stage').dataset.link") == "live"
        assert (await tab.ear)["loudest"] > 0.02
        held.release()
        await tab.state("Saved.")
        await tab.page.click("#play")  # silence is when the stored audio takes over
        await tab.finished()
        assert await tab.seconds == pytest.approx((await newest(client))["duration_seconds"], abs=0.1)
        assert float(await tab.js("document.querySelector('#seek').value")) > 0.7


async def test_the_player_shows_what_is_going_on(tab: Tab, simulator: Simulator) -> None:
    held = simulator.behave("realtime", HOLD)
    await tab.generate(SENTENCE)
    await tab.state("Speaking…")
    await tab.heard(0.2)
    assert "first sound after" in await tab.page.inner_text("#first")
    assert " of about " in await tab.page.inner_text("#time")
    assert int(await tab.page.get_attribute("#progress", "aria-valuenow") or 0) > 5
    held.release()
    await tab.finished()
    assert " of about " not in await tab.page.inner_text("#time")
    assert await tab.page.is_hidden("#progress")
    # Played once more, from the middle, by keyboard: what is heard now is the stored audio.
    await tab.page.focus("#seek")
    await tab.page.keyboard.press("End")
    await tab.page.keyboard.press("Home")
    before = (await tab.ear)["audibleSeconds"]
    await tab.page.click("#play")
    await tab.heard(0.5)
    assert (await tab.ear)["audibleSeconds"] > before
    await tab.page.click("#play")
    assert await tab.page.get_attribute("#play", "aria-label") == "Play"
