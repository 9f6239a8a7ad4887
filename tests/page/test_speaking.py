"""A text that is typed, and heard while it is being spoken."""

from base64 import b64encode
from typing import Any
from uuid import UUID

import pytest

from server.dev.simulator import Simulator
from tests.gateway import Client, insert_voice
from tests.page.browser import Tab
from tests.page.conftest import Opener, in_the_shared_loop

pytestmark = [in_the_shared_loop, pytest.mark.slow]

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
        await tab.until("!document.querySelector('#kept').hidden")
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
    await tab.until("Number(document.querySelector('#progress').getAttribute('aria-valuenow')) > 5")
    held.release()
    await tab.finished()
    await tab.until("!document.querySelector('#time').textContent.includes(' of about ')")
    await tab.page.locator("#progress").wait_for(state="hidden")
    # Played once more, from the middle, by keyboard: what is heard now is the stored audio.
    await tab.page.focus("#seek")
    await tab.page.keyboard.press("ArrowRight")
    await tab.heard(1.0)
    await tab.page.keyboard.press("ArrowLeft")
    await tab.until("Number(document.querySelector('#seek').value) < 0.1")
    before = (await tab.ear)["audibleSeconds"]
    await tab.page.click("#play")
    await tab.heard(0.5)
    await tab.until(f"ear.audibleSeconds > {before}")
    await tab.page.click("#play")
    await tab.eventually("document.querySelector('#play').getAttribute('aria-label')", "Play")


MARKED = "Array.from(CSS.highlights.get('heard') ?? [], (range) => range.toString())"


async def test_the_word_that_is_heard_is_marked(
    opened: Opener, simulator: Simulator, client: Client, database_url: str
) -> None:
    """In the player and in the history, while it is spoken, again from the store, and where one seeks to."""
    await insert_voice(database_url, client.user_id, model="qwen-audio-3.0-tts-flash")
    text = "Good morning to you all. This is a test of words, and of nothing but words. Good night."
    async with opened() as tab:
        await tab.ready()
        await tab.generate(text)
        for word in ("morning", "test", "night"):
            await tab.until(f"{MARKED}.includes({word!r})")
        await tab.eventually(f"{MARKED}.length", 2)
        await tab.finished()
        await tab.page.focus("#seek")
        for _ in range(8):
            await tab.page.keyboard.press("ArrowLeft")
        await tab.eventually(MARKED, [])
        await tab.page.click("#play")
        await tab.eventually(f"{MARKED}[0]", "Good")
        first = "CSS.highlights.get('heard')?.values().next().value.startOffset"
        assert await tab.js(first) == 0
        await tab.until(f"{MARKED}[0] === 'night'")
        await tab.page.click("#close-stage")
        await tab.eventually(MARKED, [])
        await tab.page.reload()  # from the history, where nothing was streamed
        await tab.page.locator("#entries li").get_by_role("button", name="Play").click()
        await tab.until(f"{MARKED}[0] === 'night'")


async def test_cancel_is_silence_at_once_and_for_good(tab: Tab, simulator: Simulator, client: Client) -> None:
    simulator.behave("realtime", HOLD)
    await tab.generate(SENTENCE)
    await tab.heard(0.2)
    await tab.page.click("#cancel")
    await tab.state("Cancelled.")
    await tab.page.locator("#cancel").wait_for(state="hidden")
    assert (await newest(client))["status"] == "cancelled"
    await tab.page.locator("#entries .status", has_text="cancelled").wait_for()
    await tab.until("ear.playing === false")
    await tab.eventually("document.querySelector('#generate').disabled", False)


async def test_a_speech_that_fails_ends_in_a_sentence(tab: Tab, simulator: Simulator, client: Client) -> None:
    """What has arrived is heard to its end, the reason is said, and the next attempt works."""
    faults = [HOLD, {"do": "close", "code": 1011, "after_deltas": 13}]
    held = simulator.behave("realtime", {"faults": faults})
    await tab.generate(SENTENCE)
    await tab.heard(0.2)
    held.release()
    await tab.state("It did not work.")
    await tab.until("document.querySelector('#stage-problem').textContent.length > 20")
    await tab.page.locator("#entries .status", has_text="did not work").wait_for()
    await tab.until("ear.audibleSeconds > 0.9")
    await tab.page.click("#generate")
    await tab.finished()
    assert await tab.page.inner_text("#stage-problem") == ""


async def test_a_refused_request_is_a_sentence_too(tab: Tab, rows: Any, voice_id: UUID) -> None:
    tab.expect_problems("status of 404")
    await rows.execute("UPDATE public.voices SET deleted_at = now() WHERE id = $1", voice_id)
    await tab.generate(SENTENCE)
    await tab.until("document.querySelector('#stage-problem').textContent.length > 10")
    await tab.eventually("document.querySelector('#generate').disabled", False)
    assert await tab.page.input_value("#text") == SENTENCE


async def test_a_second_text_does_not_wait_for_the_first(tab: Tab, simulator: Simulator, client: Client) -> None:
    """The new one is heard at once; the first is spoken to its end, and lands in the history."""
    held = simulator.behave("realtime", HOLD, text_contains="lighthouse")
    await tab.generate(SENTENCE)
    await tab.heard(0.2)
    await tab.generate("Something else.")
    await tab.until("document.querySelector('#stage-title').textContent === 'Something else.'")
    await tab.finished()
    held.release()
    await tab.page.locator("#entries li", has_text="lighthouse").get_by_role("button", name="Download").wait_for()


@pytest.mark.parametrize("differing", [{"allow_generate_mode_toggle": True}], indirect=True)
async def test_standard_is_offered_where_the_server_allows_it(tab: Tab, client: Client) -> None:
    """In one piece: the task is polled, and the stored audio is played when it is there."""
    assert await tab.page.get_by_role("radio", name="Realtime").is_checked()
    await tab.page.get_by_text("Standard").click()
    await tab.generate("In one piece, please.")
    await tab.finished()
    duration = (await newest(client))["duration_seconds"]
    assert await tab.offsets == []
    assert await tab.seconds == pytest.approx(duration, abs=0.1)
    assert (await tab.ear)["audibleSeconds"] > 0.5 * duration


async def test_without_the_permission_there_is_no_choice_of_modes(tab: Tab) -> None:
    assert await tab.page.is_hidden("#modes")


async def test_mp3_cut_anywhere_decodes_like_the_whole_file(tab: Tab, client: Client, voice_id: UUID) -> None:
    """Groups of frames, each decoded with the frames before it, give the very samples of the file, without a seam."""
    answer = await client.generate(voice_id, SENTENCE)
    await client.ended(answer["task_id"])
    audio = await client.audio(answer["generation_id"])
    worst = await tab.js(
        f"""(async () => {{
            const {{ Decoder }} = await import("/static/playback.js");
            const file = Uint8Array.from(atob("{b64encode(audio).decode()}"), (c) => c.charCodeAt(0));
            const parts = [];
            const decoder = new Decoder({{ format: "mp3", sample_rate: 24000 }}, (samples) => parts.push(...samples));
            for (let at = 0, size = 1; at < file.length; at += size, size = (size * 7 + 311) % 5000 + 1) {{
                decoder.push(file.subarray(at, at + size));
            }}
            await decoder.flush();
            const whole = (await new OfflineAudioContext(1, 1, 24000).decodeAudioData(file.buffer)).getChannelData(0);
            const worst = whole.reduce((most, sample, i) => Math.max(most, Math.abs(sample - parts[i])), 0);
            return [parts.length, whole.length, decoder.seconds, worst];
        }})()"""
    )
    count, expected, seconds, difference = worst
    assert count == pytest.approx(expected, abs=1)
    assert seconds == pytest.approx(expected / 24000, abs=0.001)
    assert difference < 0.001


async def test_samples_cut_in_two_are_joined(tab: Tab) -> None:
    samples = await tab.js(
        """(async () => {
            const { Decoder } = await import("/static/playback.js");
            const samples = [];
            const decoder = new Decoder({ format: "wav", sample_rate: 24000 }, (some) => samples.push(...some));
            for (const bytes of [[0x00], [0x40, 0x00], [], [0xc0, 0xff], [0x7f, 0x01]]) {
                decoder.push(new Uint8Array(bytes));
            }
            return samples;
        })()"""
    )
    assert samples == pytest.approx([0.5, -0.5, 1.0], abs=0.0001)
