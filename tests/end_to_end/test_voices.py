"""A person with a recording: clones a voice, designs another, hears both on both lanes, deletes one, remembers all.

Below that, fact by fact, what the page that is in use today needs from the endpoints of voices.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urljoin
from uuid import UUID

import asyncpg
import httpx
import pytest

from server.audio import parse_wav, wav_header
from server.dev.simulator import Simulator
from server.dev.simulator.speech import Speech
from server.settings import Settings
from tests.audio.samples import mp3
from tests.end_to_end.hearing import Ears
from tests.gateway import Client, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.support import make_settings, wait_for
from tests.voices import (
    DESIGN,
    TRANSCRIPT,
    billed,
    cloned,
    creations,
    finalize,
    listed,
    previewed,
    recording,
    save,
    save_form,
    upload,
)

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture(params=["realtime", "http"])
def lane(request: pytest.FixtureRequest) -> str:
    """The lane that new voices are born for."""
    return str(request.param)


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """Settings of a server whose new voices are born for the lane of the test, if it names one."""
    models = (
        {"qwen_vc_target_model": "qwen3-tts-vc-2026-01-22", "qwen_vd_target_model": "qwen3-tts-vd-2026-01-26"}
        if "lane" in request.fixturenames and request.getfixturevalue("lane") == "http"
        else {}
    )
    return make_settings(database_url, simulator, tmp_path, qwen_starts_per_minute=100_000, **models)


@pytest.fixture
async def spoken_recording() -> bytes:
    """Somebody speaking for a few seconds, as a WAV file of 22 kHz."""
    speech = Speech()
    try:
        samples = await speech.samples("This is my own voice, and I read a few sentences aloud. " * 2, "me", "English")
    finally:
        speech.close()
    return wav_header(len(samples), 24_000) + samples


async def heard(client: Client, ears: Ears, voice_id: str, text: str) -> bytes:
    """A text in a voice: followed live, polled to its end, fetched as a file; all three are the same."""
    answer = await client.generate(UUID(voice_id), text)
    live = await ears.hear(answer["stream_url"])
    assert live.end is not None
    assert live.end["status"] == "completed", live.end
    task = await client.ended(answer["task_id"])
    stored = await client.audio(answer["generation_id"])
    assert stored[task["audio"]["header_bytes"] :] == live.audio
    return stored


async def test_a_person_clones_designs_hears_deletes_and_remembers(
    settings: Settings, simulator: Simulator, spoken_recording: bytes, lane: str
) -> None:
    async with running_gateway(settings) as gateway, gateway.client() as client, Ears(gateway.url) as ears:
        voice_id = await upload(client, spoken_recording)
        assert (await finalize(client, voice_id, name="Me")).status_code == 200
        designed = (await save(client, await previewed(client), name="Max")).json()["id"]
        mine, theirs = reversed(await listed(client))
        assert [mine["id"], theirs["id"]] == [voice_id, designed]
        assert [mine["provider_voice_kind"], theirs["provider_voice_kind"]] == ["vc", "vd"]
        assert mine["streamable"] is theirs["streamable"] is True

        texts = ["Good evening, this is me.", "And I am nobody at all. " * 40]
        files = [
            await heard(client, ears, voice, text) for voice, text in zip((voice_id, designed), texts, strict=True)
        ]
        assert {file[:4] == b"RIFF" for file in files} == {lane == "http"}

        assert (await client.http.delete(f"/api/voices/{voice_id}")).json() == {"ok": True}
        assert [voice["id"] for voice in await listed(client)] == [designed]
        for method, path in (
            ("GET", f"/api/voices/{voice_id}/preview"),
            ("DELETE", f"/api/voices/{voice_id}"),
            ("POST", "/api/generate"),
        ):
            body = {"voice_id": voice_id, "text": "Once more."} if method == "POST" else None
            problem_of(await client.http.request(method, path, json=body), 404, "not_found")

        history = (await client.http.get("/api/generations")).json()["generations"]
        assert [(entry["voice_name"], entry["text"], entry["status"]) for entry in history] == [
            ("Max", texts[1].strip(), "completed"),
            ("Me", texts[0], "completed"),
        ]
        assert await client.audio(history[1]["id"]) == files[0], "what it said can still be heard"
        regenerate = await client.http.post(f"/api/generations/{history[1]['id']}/regenerate")
        problem_of(regenerate, 400, "validation", says="choose another voice")
    surfaces = {call["surface"] for call in simulator.calls if call["action"] == "synthesize"}
    assert surfaces == {lane}
    assert billed(simulator) == 2
    assert not [call for call in simulator.calls if call["action"] == "delete"]


async def test_curl_clones_and_speaks(client: Client, tmp_path: Path) -> None:
    """Five commands, as the README could have them."""
    file = tmp_path / "me.wav"
    file.write_bytes(recording())

    async def curl(*arguments: str) -> Any:
        program = await asyncio.create_subprocess_exec(
            "curl",
            *("--silent", "--show-error", "--fail", "--noproxy", "*", *arguments),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await program.communicate()
        assert program.returncode == 0, out
        return httpx.Response(200, content=out).json()

    def api(path: str, body: str | None = None) -> list[str]:
        data = ["--json", body] if body else []
        return [f"{client.url}{path}", "--header", f"Authorization: Bearer {client.token}", *data]

    about = f'"name": "Me", "language": "English", "transcript": "{TRANSCRIPT}"'
    link = await curl(*api("/api/clone/upload-url", f"{{{about}}}"))
    await curl("--upload-file", str(file), "--header", "Content-Type: audio/wav", link["upload_url"])
    voice = await curl(*api("/api/clone/finalize", f'{{"voice_id": "{link["voice_id"]}", {about}}}'))
    spoken = await curl(*api("/api/generate", f'{{"voice_id": "{voice["id"]}", "text": "Good evening."}}'))
    assert (await client.ended(spoken["task_id"]))["status"] == "completed"
    task = await curl(*api(f"/api/tasks/{spoken['task_id']}"))
    assert task["result"]["audio_url"] == f"/api/generations/{spoken['generation_id']}/audio"


async def test_search_source_and_pages_of_a_library(client: Client, rows: Rows) -> None:
    for name in ("Ada 100%", "Ada_Byron", "Grace"):
        assert (await finalize(client, await upload(client, recording()), name=name)).status_code == 200
    await save(client, await previewed(client), name="ada, designed")
    assert [voice["name"] for voice in await listed(client)] == ["ada, designed", "Grace", "Ada_Byron", "Ada 100%"]
    assert [voice["name"] for voice in await listed(client, search="ADA")] == ["ada, designed", "Ada_Byron", "Ada 100%"]
    assert [voice["name"] for voice in await listed(client, search="%")] == ["Ada 100%"]
    assert [voice["name"] for voice in await listed(client, search="_")] == ["Ada_Byron"]
    assert [voice["name"] for voice in await listed(client, source="designed")] == ["ada, designed"]
    assert [voice["name"] for voice in await listed(client, source="uploaded", search="ada", per_page=1, page=2)] == [
        "Ada 100%"
    ]


async def test_a_deleted_voice_lets_a_running_speech_finish(client: Client, simulator: Simulator) -> None:
    voice_id = await cloned(client)
    plan = simulator.behave("realtime", {"do": "hold", "at": "audio"})
    answer = await client.generate(UUID(voice_id))
    await plan.held()
    assert (await client.http.delete(f"/api/voices/{voice_id}")).status_code == 200
    plan.release()
    assert (await client.ended(answer["task_id"]))["status"] == "completed"


async def test_a_deleted_voice_keeps_its_recording_and_calls_no_provider(
    settings: Settings, client: Client, simulator: Simulator
) -> None:
    voice_id = await cloned(client)
    await client.http.delete(f"/api/voices/{voice_id}")
    assert (Path(settings.storage.root) / "references" / str(client.user_id) / voice_id / "reference.wav").exists()
    assert len(simulator.calls) == 1


async def test_a_voice_that_vanished_at_the_provider_is_marked_and_can_be_made_again(
    client: Client, simulator: Simulator
) -> None:
    """The provider removes voices that nobody used for a year."""
    voice_id = await cloned(client)
    simulator.voices.delete(creations(simulator)[0]["voice"], "vc")
    task = await client.ended((await client.generate(UUID(voice_id)))["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_rejected")
    assert "create it again" in task["error"]
    [voice] = await listed(client)
    assert voice["compatible"] is False
    assert "re-clone" in voice["incompatible_reason"]
    body = {"voice_id": voice_id, "text": "Once more."}
    problem_of(await client.http.post("/api/generate", json=body), 409, "conflict", says="re-clone")
    again = await cloned(client)
    assert (await client.ended((await client.generate(UUID(again)))["task_id"]))["status"] == "completed"


async def test_what_a_wrong_account_says_of_a_voice_does_not_outlive_it(
    settings: Settings, simulator: Simulator
) -> None:
    """Somebody puts the key of another account in, and takes it out again: nobody has to pay for a voice twice."""
    async with running_gateway(settings) as gateway, gateway.client() as client:
        voice_id = await cloned(client)
    body = {"voice_id": voice_id, "text": "Good evening."}
    lost = {"do": "error", "at": "text", "code": "VoiceNotFound", "message": "Voice not found"}
    simulator.behave("realtime", lost, times=2)
    mistaken = replace(settings, dashscope_workspace="another")
    async with running_gateway(mistaken) as gateway, gateway.client(client.user_id) as client:
        assert (await client.ended((await client.generate(UUID(voice_id)))["task_id"]))["status"] == "failed"
        problem_of(await client.http.post("/api/generate", json=body), 409, "conflict", says="re-clone")
    async with running_gateway(settings) as gateway, gateway.client(client.user_id) as client:
        assert (await listed(client))[0]["compatible"] is True
        assert (await client.ended((await client.generate(UUID(voice_id)))["task_id"]))["status"] == "completed"


async def test_each_voice_speaks_on_the_lane_it_was_born_for(
    client: Client, database_url: str, simulator: Simulator
) -> None:
    """One server, both lanes, whatever new voices are made for."""
    lanes = {
        "qwen3-tts-vc-realtime-2026-01-15": "realtime",
        "qwen3-tts-vc-2026-01-22": "http",
        "qwen3-tts-vd-realtime-2026-01-15": "realtime",
        "qwen3-tts-vd-2026-01-26": "http",
    }
    for model, lane in lanes.items():
        shape = f"qwen-tts-{model[10:12]}-x-voice-20260101000000000-0001"
        voice_id = await insert_voice(database_url, client.user_id, model=model, provider_voice_id=shape)
        assert (await client.ended((await client.generate(voice_id))["task_id"]))["status"] == "completed"
        assert (simulator.calls[-1]["surface"], simulator.calls[-1]["model"]) == (lane, model)


# --- facts of the page in use -----------------------------------------------------------------------------------------


class Page:
    """The page, as far as its requests about voices go: JSON or nothing, and no token where storage is."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.http = client.http

    async def json(self, response: httpx.Response, status: int = 200) -> dict[str, Any]:
        assert "application/json" in response.headers["content-type"], "Server returned non-JSON response"
        answer: dict[str, Any] = response.json()
        assert response.status_code == status, answer
        return answer

    async def play(self, path: str) -> bytes:
        """With the token, to learn the final address; that address in full, without it, twice."""
        redirect = await self.http.get(path)
        assert redirect.status_code == 302
        final = urljoin(self.client.url, redirect.headers["location"])
        async with httpx.AsyncClient() as anybody:
            async with anybody.stream("GET", final, headers=self.client.headers):
                pass  # the body is cancelled at once
            first, again = await anybody.get(final), await anybody.get(final)
        assert first.status_code == again.status_code == 200
        assert first.content == again.content
        assert first.headers["content-type"].startswith("audio/")
        return first.content


@pytest.fixture
def page(client: Client) -> Page:
    """That page with its user signed in."""
    return Page(client)


async def test_page_asks_for_an_address_puts_the_file_and_finalizes(page: Page) -> None:
    about = {"name": "Me", "language": "Auto", "transcript": "More than ten characters."}
    link = await page.json(await page.http.post("/api/clone/upload-url", json=about))
    async with httpx.AsyncClient() as browser:
        put = await browser.put(link["upload_url"], content=recording(), headers={"Content-Type": "audio/wav"})
    assert put.is_success
    voice = await page.json(await page.http.post("/api/clone/finalize", json={"voice_id": link["voice_id"], **about}))
    assert voice == {"id": link["voice_id"], "name": "Me"}


async def test_page_sends_the_preflight_of_another_origin_before_it_puts(page: Page) -> None:
    about = {"name": "Me", "language": "Auto", "transcript": "More than ten characters."}
    link = (await page.http.post("/api/clone/upload-url", json=about)).json()["upload_url"]
    asks = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type",
    }
    async with httpx.AsyncClient() as browser:
        preflight = await browser.options(link, headers=asks)
        put = await browser.put(link, content=b"x", headers={"Origin": asks["Origin"], "Content-Type": "audio/wav"})
    assert preflight.is_success
    assert preflight.headers["access-control-allow-origin"] in ("*", asks["Origin"])
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
    assert put.headers["access-control-allow-origin"] in ("*", asks["Origin"])


@pytest.mark.parametrize("mime", ["audio/wav", "audio/mpeg", "audio/x-m4a", "audio/mp4"])
async def test_page_puts_with_a_content_type_that_was_not_known_before(page: Page, mime: str) -> None:
    voice_id = await upload(page.client, recording(), mime=mime)
    assert (await finalize(page.client, voice_id)).status_code == 200


async def test_page_lets_files_up_to_50_mb_through_and_learns_from_finalize_what_is_wrong(page: Page) -> None:
    voice_id = await upload(page.client, bytes(49 * 1024 * 1024))
    answer = await page.json(await finalize(page.client, voice_id), 400)
    assert "10 MB" in answer["detail"]


async def test_page_asks_for_previews_of_voices_by_a_redirect_that_needs_no_token(page: Page) -> None:
    content = recording(4.0, 44_100)
    voice_id = await cloned(page.client, content)
    assert await page.play(f"/api/voices/{voice_id}/preview") == content
    other = await upload(page.client, mp3(4.0), mime="audio/mpeg")
    assert (await finalize(page.client, other)).status_code == 200
    for kind, voice in (("wav", voice_id), ("mp3", other)):
        link = (await page.http.get(f"/api/voices/{voice}/preview")).headers["location"]
        async with httpx.AsyncClient() as anybody:
            saved_as = (await anybody.get(urljoin(page.client.url, link))).headers["content-disposition"]
        assert f"utter-voice-{voice}.{kind}" in saved_as


async def test_page_gets_json_for_every_deletion(page: Page) -> None:
    voice_id = await cloned(page.client)
    assert await page.json(await page.http.delete(f"/api/voices/{voice_id}")) == {"ok": True}


async def test_page_fetches_a_design_preview_without_a_token_from_an_absolute_address(page: Page) -> None:
    answer = await page.json(await page.http.post("/api/voices/design/preview", json=DESIGN))
    task = await page.client.ended(answer["task_id"])
    address = task["result"]["audio_url"]
    assert address.startswith("http")
    assert "signature=" in address
    async with httpx.AsyncClient() as browser:
        audio = await browser.get(address)
        again = await browser.get(address)
    assert audio.headers["content-type"] in ("audio/wav", "audio/x-wav")
    assert parse_wav(audio.content).duration_seconds > 0
    assert audio.content == again.content


async def test_page_deletes_the_task_of_a_preview_and_then_saves_the_voice_by_itself(
    page: Page, simulator: Simulator
) -> None:
    """The order that was measured: preview, DELETE 0.1 s after `completed`, then a form with the same bytes."""
    task_id = (await page.http.post("/api/voices/design/preview", json=DESIGN)).json()["task_id"]
    task = await page.client.ended(task_id)
    async with httpx.AsyncClient() as browser:
        audio, deleted = await asyncio.gather(
            browser.get(task["result"]["audio_url"]), page.http.delete(f"/api/tasks/{task_id}")
        )
        assert deleted.json() == {"ok": True}
        assert (await browser.get(task["result"]["audio_url"])).content == audio.content, "a later download works"
    voice = await page.json(await save_form(page.client, audio=audio.content, name="Max"))
    assert voice.keys() >= {"id", "name"}
    assert await page.play(f"/api/voices/{voice['id']}/preview") == audio.content
    assert billed(simulator) == 1


async def test_page_saves_the_longest_preview_it_can_ask_for(page: Page) -> None:
    """500 characters of text."""
    text = ("The longest text that the page lets through. " * 12)[:500].strip()
    task = await page.client.ended(await _start(page, text))
    async with httpx.AsyncClient() as browser:
        audio = (await browser.get(task["result"]["audio_url"])).content
    assert len(audio) > 1_000_000
    assert (await save_form(page.client, text=text, audio=audio)).status_code == 200


async def _start(page: Page, text: str) -> str:
    response = await page.http.post("/api/voices/design/preview", json={**DESIGN, "text": text})
    task_id: str = response.json()["task_id"]
    return task_id


async def test_page_knows_a_preview_only_as_processing_until_it_has_ended(page: Page, simulator: Simulator) -> None:
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    task_id = await _start(page, DESIGN["text"])
    await plan.held()
    assert {(await page.client.task(task_id))["status"] for _ in range(3)} == {"processing"}
    plan.release()
    task = await page.client.ended(task_id)
    assert task["status"] == "completed"
    assert task["result"]["audio_url"]


async def test_page_shows_the_reason_of_a_failed_preview(page: Page, simulator: Simulator) -> None:
    simulator.behave("customization", {"do": "error", "code": "DataInspectionFailed"})
    task = await page.client.ended(await _start(page, DESIGN["text"]))
    assert task["status"] == "failed"
    assert isinstance(task["error"], str)
    assert task["error"]


async def test_page_cancels_a_preview_and_it_never_completes(page: Page, simulator: Simulator, rows: Rows) -> None:
    plan = simulator.behave("customization", {"do": "hold"}, action="create")
    task_id = await _start(page, DESIGN["text"])
    await plan.held()
    assert (await page.json(await page.http.post(f"/api/tasks/{task_id}/cancel")))["cancelled"] is True
    plan.release()
    await simulator.until(lambda _: billed(simulator) == 1)

    async def settled() -> bool:
        return bool(await rows.fetchval("SELECT state <> 'calling' FROM internal.purchases"))

    await wait_for(settled)
    assert (await page.client.task(task_id))["status"] == "cancelled"


async def test_page_finds_a_new_voice_on_the_first_page_and_what_it_reads_of_it(page: Page) -> None:
    voice_id = await cloned(page.client)
    newest = (await page.json(await page.http.get("/api/voices")))["voices"][0]
    assert newest["id"] == voice_id
    assert newest.keys() >= {
        *("id", "name", "reference_transcript", "language", "source", "description", "created_at"),
    }
    assert newest["reference_transcript"] == TRANSCRIPT


async def test_page_on_another_origin_may_read_previews(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    origin = "https://app.example.com"
    settings = replace(make_settings(database_url, simulator, tmp_path), cors_allow_origins=(origin,))
    async with running_gateway(settings) as gateway, gateway.client() as client:
        task = await client.ended(await _start(Page(client), DESIGN["text"]))
        async with httpx.AsyncClient() as browser:
            audio = await browser.get(task["result"]["audio_url"], headers={"Origin": origin})
        assert audio.headers["access-control-allow-origin"] == origin
