"""The two examples of the README for people who build a page, run as they stand there."""

import base64
import json
import re
from pathlib import Path
from uuid import UUID

from tests.gateway import Client
from tests.page.conftest import Opener, in_the_shared_loop
from tests.page.test_speaking import SENTENCE

pytestmark = in_the_shared_loop

README = (Path(__file__).parents[2] / "README.md").read_text()
BY_EVENTSOURCE, BY_UTTER = re.findall(r"```js\n(.*?)```", README, re.DOTALL)


async def test_an_event_source_hears_every_byte(opened: Opener, client: Client, voice_id: UUID) -> None:
    given = {"token": client.token, "voice_id": str(voice_id), "text": SENTENCE}
    async with opened() as tab:
        await tab.ready()
        await tab.js(
            f"""(async () => {{
                const {{ token, voice_id, text }} = {json.dumps(given)};
                globalThis.shown = [], globalThis.played = "";
                const play = (bytes) => {{ played += bytes; }}, show = (task) => {{ shown.push(task); }};
                {BY_EVENTSOURCE}
                globalThis.source = source;
            }})()"""
        )
        await tab.until("source.readyState === EventSource.CLOSED")
        task = await tab.js("shown.at(-1)")
        played = base64.b64decode(await tab.js("btoa(played)"))
    assert task["status"] == "completed"
    assert played == await client.audio(task["generation_id"])


async def test_the_helper_plays_a_text_after_a_click(opened: Opener, client: Client, voice_id: UUID) -> None:
    given = {"token": client.token, "voice_id": str(voice_id), "text": SENTENCE}
    imported = 'import { Utter } from "/static/utter.js";'
    assert BY_UTTER.startswith(imported)
    async with opened() as tab:
        await tab.ready()
        await tab.js(
            f"""(async () => {{
                const {{ token, voice_id, text }} = {json.dumps(given)};
                const button = document.body.appendChild(document.createElement("button"));
                button.id = button.textContent = "speak";
                const show = (words) => {{ globalThis.shown = words; }};
                const {{ Utter }} = await import("/static/utter.js");
                {BY_UTTER.removeprefix(imported)}
            }})()"""
        )
        await tab.js("document.querySelector('#speak').style.cssText = 'position: fixed; top: 0; left: 0; z-index: 9'")
        await tab.page.click("#speak")
        await tab.until("globalThis.shown === 'completed'")
        assert (await tab.ear)["loudest"] > 0.02
