"""What networks, proxies, restarts and reloads do to a speech that is being heard: nothing that one would notice."""

import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from playwright.async_api import Route

from server.auth.tokens import Tickets
from server.dev.simulator import Simulator
from server.settings import Deadlines, Settings
from tests.gateway import Client, insert_voice, process
from tests.page.browser import Tab
from tests.page.conftest import Opener, in_the_shared_loop, shared
from tests.page.proxy import Proxy, running_proxy
from tests.support import AUTH_JWT_SECRET, wait_for

pytestmark = [in_the_shared_loop, pytest.mark.slow]

SENTENCE = "The lighthouse keeper counted the ships and wished them well."
HOLD = {"do": "hold", "after_deltas": 12}
NETWORK = (r"ERR_\w+", r"status of 50[0-9]")  # what Chromium writes about a network that fails


@shared()
async def proxy(gateway: object) -> AsyncIterator[Proxy]:
    """A proxy in front of the test's server that does nothing bad yet."""
    async with running_proxy(gateway.url) as running:  # type: ignore[attr-defined]
        yield running


async def duration_of_newest(client: Client) -> float:
    entry = (await client.http.get("/api/generations")).json()["generations"][0]
    assert entry["status"] == "completed", entry
    return float(entry["duration_seconds"])


async def test_a_broken_connection_is_taken_up_where_it_broke(
    proxy: Proxy, simulator: Simulator, opened: Opener, client: Client, voice_id: UUID
) -> None:
    held = simulator.behave("realtime", HOLD)
    async with opened(proxy.url) as tab:
        tab.expect_problems(*NETWORK)
        await tab.ready()
        await tab.generate(SENTENCE)
        await tab.heard(0.3)
        proxy.down = True
        proxy.cut()
        await tab.state("Connection lost")
        held.release()
        await client.ended(await tab.js("JSON.parse(sessionStorage['utter.speech']).task_id"))
        proxy.down = False
        await tab.finished()
        assert await tab.seconds == pytest.approx(await duration_of_newest(client), abs=0.1)
        await tab.eventually("document.querySelector('#stage-problem').textContent", "")


async def test_a_proxy_that_answers_503_does_not_end_the_speech(
    proxy: Proxy, simulator: Simulator, opened: Opener, client: Client, voice_id: UUID
) -> None:
    """An EventSource gives up for good on a 503: a new one goes on at the byte that the old one had reached."""
    held = simulator.behave("realtime", HOLD)
    async with opened(proxy.url) as tab:
        tab.expect_problems(*NETWORK)
        await tab.ready()
        await tab.generate(SENTENCE)
        await tab.heard(0.3)
        proxy.refuse_next("/api/generate/stream", 2)
        proxy.cut()
        await wait_for(lambda: proxy.refused == 2)
        held.release()
        await tab.finished()
        first, *later = await tab.offsets
        assert first == 0
        assert later
        assert later[-1] > 0
        assert await tab.seconds == pytest.approx(await duration_of_newest(client), abs=0.1)


async def test_a_stream_that_falls_silent_is_left_for_another(
    proxy: Proxy, simulator: Simulator, opened: Opener, client: Client, voice_id: UUID
) -> None:
    """A proxy keeps everything after the third delta, and the connection: after five seconds the page finds out that
    the voice went on, and takes the rest from where it was."""
    proxy.keep_after = 3
    async with opened(proxy.url) as tab:
        tab.expect_problems(*NETWORK)
        await tab.ready()
        await tab.generate(SENTENCE)
        await tab.finished(30.0)
        assert proxy.meddled == 1
        first, second = await tab.offsets
        assert first == 0
        assert second > 0
        await tab.eventually("document.querySelector('#stage').dataset.link", "none")
        await assert_every_byte_came_once(tab, client)


async def test_an_event_that_is_lost_is_fetched_and_not_played_over(
    proxy: Proxy, opened: Opener, client: Client, voice_id: UUID
) -> None:
    """The offset behind the next delta gives the gap away."""
    proxy.drop = 2
    async with opened(proxy.url) as tab:
        tab.expect_problems(*NETWORK)
        await tab.ready()
        await tab.generate(SENTENCE)
        await tab.finished(30.0)
        assert proxy.meddled == 1
        assert len(await tab.offsets) == 2
        await assert_every_byte_came_once(tab, client)


async def assert_every_byte_came_once(tab: Tab, client: Client) -> None:
    """The frames that came are as long as what is stored: a delta is longer than the difference that is allowed."""
    duration = await duration_of_newest(client)
    assert await tab.seconds == pytest.approx(duration, abs=0.1)
    assert (await tab.ear)["audibleSeconds"] > 0.5 * duration


async def test_where_nothing_can_be_streamed_the_stored_audio_is_played(
    proxy: Proxy, opened: Opener, client: Client, voice_id: UUID
) -> None:
    """Some proxies let no stream through: after a few tries the page polls, and plays what was stored."""
    proxy.refuse_next("/api/generate/stream", 1000)
    async with opened(proxy.url) as tab:
        tab.expect_problems(*NETWORK)
        await tab.ready()
        await tab.generate("Good evening to you all.")
        await tab.finished()
        assert 1 <= proxy.refused <= 3
        duration = await duration_of_newest(client)
        assert await tab.seconds == pytest.approx(duration, abs=0.1)
        assert (await tab.ear)["audibleSeconds"] > 0.5 * duration


async def test_an_expired_ticket_is_replaced(tab: Tab, simulator: Simulator, client: Client) -> None:
    async def expire(route: Route) -> None:
        response = await route.fetch()
        answer = await response.json()
        old = Tickets(AUTH_JWT_SECRET, clock=lambda: time.time() - 2 * Tickets.LIFETIME_SECONDS)
        ticket = old.mint(
            user_id=client.user_id, task_id=UUID(answer["task_id"]), generation_id=UUID(answer["generation_id"])
        )
        answer["stream_url"] = f"/api/generate/stream?task_id={answer['task_id']}&ticket={ticket}"
        await route.fulfill(response=response, body=json.dumps(answer))

    tab.expect_problems("status of 401")
    await tab.page.route("**/api/generate", expire)
    held = simulator.behave("realtime", HOLD)
    await tab.generate(SENTENCE)
    await tab.heard(0.3)
    assert len(await tab.offsets) == 2
    held.release()
    await tab.finished()


async def test_a_reload_goes_on_where_one_was(tab: Tab, simulator: Simulator, client: Client) -> None:
    held = simulator.behave("realtime", HOLD)
    await tab.generate(SENTENCE)
    await tab.heard(0.8)
    await tab.page.reload()
    await tab.state("Press play to listen.")  # no click yet in this document, so the browser lets nothing sound
    await tab.page.click("#play")
    await tab.until("ear.audibleSeconds > 0.1")
    assert float(await tab.js("document.querySelector('#seek').value")) >= 0.7
    assert await tab.page.inner_text("#stage-title") == SENTENCE
    assert await tab.page.input_value("#text") == SENTENCE
    held.release()
    await tab.finished()
    assert await tab.seconds == pytest.approx(await duration_of_newest(client), abs=0.1)
    await tab.page.reload()
    await tab.ready()
    await tab.eventually("document.querySelector('#stage').dataset.state", "empty")


# On a machine with much else to do, a process takes its time to start; the voice is silent for as long.
PATIENT = {"deadlines": Deadlines(silence_seconds=120.0)}


@pytest.mark.parametrize("differing", [PATIENT], indirect=True, ids=["patient"])
async def test_a_killed_server_is_not_missed(
    settings: Settings, simulator: Simulator, opened: Opener, client: Client, voice_id: UUID, tmp_path: Path
) -> None:
    """The process that serves the page is killed and started again while another one speaks."""
    held = simulator.behave("realtime", HOLD)
    task = await client.generate(voice_id, SENTENCE)
    await held.held()
    remembered = json.dumps({"task_id": task["task_id"], "heard": 0})
    script = f"sessionStorage.setItem('utter.speech', {remembered!r})"
    async with (
        process(settings, simulator, tmp_path / "log", SERVE_PAGE="true") as serving,
        opened(serving.url, scripts=[script]) as tab,
    ):
        tab.expect_problems(*NETWORK)
        await tab.state("Press play to listen.")
        await tab.page.click("#play")
        await tab.heard(0.5)
        await serving.kill()
        await tab.state("Connection lost")
        await serving.start()
        held.release()
        await tab.finished(30.0)
        assert await tab.seconds == pytest.approx(await duration_of_newest(client), abs=0.1)
        assert (await tab.ear)["audibleSeconds"] > 1.5


async def test_a_restart_lets_the_speech_finish(
    settings: Settings, simulator: Simulator, opened: Opener, client: Client, database_url: str, tmp_path: Path
) -> None:
    """A deployment: the old process speaks to the end without listeners, the new one has the rest."""
    await insert_voice(database_url, client.user_id)
    held = simulator.behave("realtime", HOLD)
    async with process(settings, simulator, tmp_path / "log", SERVE_PAGE="true") as serving, opened(serving.url) as tab:
        tab.expect_problems(*NETWORK)
        await tab.ready()
        await tab.generate(SENTENCE)
        await tab.heard(0.3)
        serving.send(signal.SIGTERM)
        held.release()
        await serving.exited()
        await serving.start()
        await tab.finished(30.0)
        assert await tab.seconds == pytest.approx(await duration_of_newest(client), abs=0.1)
