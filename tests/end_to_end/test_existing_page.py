"""What the page that is in use today needs, fact by fact, from the endpoints that speak and remember.

It knows v1 only and cannot be changed: it polls, follows redirects with its token, reads JSON and nothing else, and
puts a task away the moment it has ended.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urljoin, urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from server.dev.simulator import Simulator
from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

STATUSES = {"pending", "processing", "completed", "failed", "cancelled"}


@dataclass
class Play:
    """The three requests of one play."""

    redirect: httpx.Response
    final_address: str
    audio: bytes
    content_type: str


class Page:
    """The page, as far as the network sees it."""

    def __init__(self, client: Client) -> None:
        self.user_id = client.user_id
        self.token = client.headers
        self._origin = client.url
        self.http = httpx.AsyncClient(base_url=client.url, timeout=20.0)
        self.polled: list[dict[str, Any]] = []

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """One call of the API: with the token, and with a content type only where there is a body."""
        response = await self.http.request(method, path, json=body, headers=self.token)
        assert "application/json" in response.headers.get("content-type", ""), (
            "Server returned non-JSON response",
            method,
            path,
        )
        answer = response.json()
        if response.status_code >= 400:
            assert isinstance(answer["detail"], str)
        return response.status_code, answer

    async def ok(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        status, answer = await self.call(method, path, body)
        assert status == 200, answer
        return answer

    async def generate(self, voice_id: UUID, text: str = "Good evening.") -> str:
        answer = await self.ok(
            "POST", "/api/generate", {"voice_id": str(voice_id), "text": text, "language": "Auto", "model": "0.6B"}
        )
        assert isinstance(answer["task_id"], str)
        return str(answer["task_id"])

    async def poll(self, task_id: str) -> dict[str, Any]:
        """Poll to the end, more often than the page, which waits a second between two polls."""

        async def ended() -> dict[str, Any] | None:
            task = await self.ok("GET", f"/api/tasks/{task_id}")
            self.polled.append(task)
            assert task["status"] in STATUSES, "any other word makes the page drop the task"
            return task if task["status"] not in ("pending", "processing") else None

        return await wait_for(ended)

    async def play(self, path: str) -> Play:
        """The API's path with the token, to learn the final address; that address again without it."""
        redirect = await self.http.get(path, headers=self.token)
        assert redirect.status_code == 302, "only a redirect has another final address"
        final = urljoin(urljoin(self._origin, path), redirect.headers["location"])
        # A browser on the same origin follows with every header, and the page aborts as soon as it knows where it is.
        async with self.http.stream("GET", final, headers=self.token) as response:
            assert response.status_code == 200
        whole = await self.http.get(final)
        assert whole.status_code == 200
        return Play(redirect, final, whole.content, whole.headers["content-type"])


@pytest.fixture
async def page(client: Client) -> AsyncIterator[Page]:
    """That page with its user signed in."""
    page = Page(client)
    async with page.http:
        yield page


async def history(page: Page, query: str = "") -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = (await page.ok("GET", f"/api/generations?page=1&per_page=20{query}"))["generations"]
    return entries


# --- requests it makes ------------------------------------------------------------------------------------------------


async def test_a_whole_visit(page: Page, voice_id: UUID) -> None:
    """Signing in, choosing, speaking, hearing, remembering, starting over, and leaving nothing behind."""
    assert (await page.ok("GET", "/api/me"))["signed_in"] is True
    assert "Auto" in (await page.ok("GET", "/api/languages"))["languages"]
    (voice,) = (await page.ok("GET", "/api/voices"))["voices"]
    task_id = await page.generate(UUID(voice["id"]), "A whole visit.")
    task = await page.poll(task_id)
    play, _ = await asyncio.gather(page.play(task["result"]["audio_url"]), page.ok("DELETE", f"/api/tasks/{task_id}"))
    assert play.audio
    (entry,) = await history(page)
    assert (entry["text"], entry["status"], entry["voice_name"]) == ("A whole visit.", "completed", "Ada")
    assert (await page.play(entry["audio_path"])).audio == play.audio
    again = await page.ok("POST", f"/api/generations/{entry['id']}/regenerate")
    assert again["redirect_url"].startswith("/generate?voice=")
    assert await page.ok("DELETE", f"/api/generations/{entry['id']}") == {"ok": True}
    assert await history(page) == []


async def test_every_call_may_carry_a_token_also_where_none_is_needed(page: Page) -> None:
    """It sends one with the languages, too, and that may have expired."""
    for path in ("/api/languages", "/api/me", "/api/health"):
        for token in ("Bearer expired.or.garbage", "Bearer"):
            response = await page.http.get(path, headers={"Authorization": token})
            assert response.status_code == 200, path


async def test_languages_are_strings_with_a_default_and_a_provider(page: Page) -> None:
    answer = await page.ok("GET", "/api/languages")
    assert all(isinstance(name, str) for name in answer["languages"])
    assert isinstance(answer["default"], str)
    assert answer["provider"] == "qwen"
    assert answer["transcription"]["enabled"] is False, "otherwise it would upload recordings to be transcribed"


async def test_voices_are_listed_without_parameters_and_with_the_voices_pages(page: Page, voice_id: UUID) -> None:
    wanted = {"id", "name", "reference_transcript", "language", "source", "description", "created_at"}
    for query in ("", "?page=1&per_page=20", "?page=1&per_page=20&search=ada", "?page=1&per_page=20&source=uploaded"):
        answer = await page.ok("GET", f"/api/voices{query}")
        (voice,) = answer["voices"]
        assert voice.keys() >= wanted
        assert voice["id"] == str(voice_id)
        assert answer["pagination"].keys() == {"page", "per_page", "total", "pages"}
    assert (await page.ok("GET", "/api/voices?page=1&per_page=20&source=designed"))["voices"] == []


async def test_generate_ignores_the_model_that_the_page_names(page: Page, voice_id: UUID) -> None:
    assert (await page.poll(await page.generate(voice_id)))["status"] == "completed"


async def test_cancel_is_sent_without_a_body_or_a_content_type(
    page: Page, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    task_id = await page.generate(voice_id)
    assert (await page.ok("POST", f"/api/tasks/{task_id}/cancel"))["cancelled"] is True


async def test_history_has_what_the_page_reads(page: Page, voice_id: UUID) -> None:
    await page.poll(await page.generate(voice_id))
    answer = await page.ok("GET", "/api/generations?page=1&per_page=20")
    assert answer["pagination"].keys() == {"page", "per_page", "total", "pages"}
    (entry,) = answer["generations"]
    assert entry.keys() >= {
        "id",
        "voice_id",
        "voice_name",
        "text",
        "audio_path",
        "duration_seconds",
        "language",
        "status",
        "generation_time_seconds",
        "error_message",
        "created_at",
    }


async def test_me_has_a_user_and_a_profile_that_may_be_null(page: Page) -> None:
    answer = await page.ok("GET", "/api/me")
    assert answer == {"signed_in": True, "user": {"id": str(page.user_id)}, "profile": None}


async def test_a_profile_that_cannot_be_saved_here_is_refused_in_words(page: Page) -> None:
    """The page knows accounts; this server does not keep any."""
    status, answer = await page.call("PATCH", "/api/profile", {"display_name": "", "handle": "", "avatar_url": ""})
    assert status == 404
    assert answer["detail"]


# --- answers in general -----------------------------------------------------------------------------------------------


async def test_every_success_that_the_page_reads_is_json_with_a_body(page: Page, voice_id: UUID) -> None:
    """A 204 on a delete shows an error, and the card stays."""
    task_id = await page.generate(voice_id)
    await page.poll(task_id)
    (entry,) = await history(page)
    for method, path in (
        ("GET", "/api/me"),
        ("GET", "/api/languages"),
        ("GET", "/api/voices"),
        ("GET", "/api/generations"),
        ("GET", f"/api/tasks/{task_id}"),
        ("POST", f"/api/tasks/{task_id}/cancel"),
        ("POST", f"/api/generations/{entry['id']}/regenerate"),
        ("DELETE", f"/api/tasks/{task_id}"),
        ("DELETE", f"/api/generations/{entry['id']}"),
    ):
        assert await page.ok(method, path), (method, path)


async def test_every_error_is_one_sentence_in_detail(page: Page, voice_id: UUID) -> None:
    """A list or an object there would show as "[object Object]"."""
    for method, path, body, expected in (
        ("POST", "/api/generate", {"voice_id": str(voice_id), "text": ""}, 400),
        ("POST", "/api/generate", {"voice_id": "x", "text": "a"}, 400),
        ("POST", "/api/generate", {}, 400),
        ("POST", "/api/generate", {"voice_id": str(uuid4()), "text": "a"}, 404),
        ("GET", f"/api/tasks/{uuid4()}", None, 404),
        ("DELETE", f"/api/generations/{uuid4()}", None, 404),
        ("GET", "/api/generations?page=0", None, 400),
        ("GET", "/api/unknown", None, 404),
        ("PUT", "/api/generate", {}, 405),
    ):
        status, answer = await page.call(method, path, body)
        assert status == expected
        assert " " in answer["detail"], "a person reads this"


async def test_numbers_are_numbers_or_null_and_text_is_a_string(
    page: Page, voice_id: UUID, simulator: Simulator
) -> None:
    """A duration that is a string crashes the whole history page."""
    simulator.behave("realtime", {"do": "error", "after_deltas": 1}, text_contains="fails")
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1}, text_contains="holds")
    await page.poll(await page.generate(voice_id, "works"))
    await page.poll(await page.generate(voice_id, "fails"))
    await page.generate(voice_id, "holds")
    shown = {entry["text"]: entry for entry in await history(page)}
    held.release()
    for text, entry in shown.items():
        for number in ("duration_seconds", "generation_time_seconds"):
            kind = float if text == "works" else type(None)
            assert isinstance(entry[number], kind), (text, number)
    assert shown.keys() == {"works", "fails", "holds"}


async def test_search_means_the_name_of_a_voice_and_the_text_in_history(
    page: Page, voice_id: UUID, database_url: str
) -> None:
    """Form-encoded: a plus is a space, and every other sign is itself."""
    await insert_voice(database_url, page.user_id, name="100% A_b: C&D")
    for query, found in (
        ("100%25+a_B%3A", 1),
        ("%25", 1),
        ("_", 1),
        ("%3A+c%26d", 1),
        ("ada", 1),
        ("%25%25", 0),
        ("a%25d", 0),
    ):
        answer = await page.ok("GET", f"/api/voices?page=1&per_page=20&search={query}")
        assert answer["pagination"]["total"] == len(answer["voices"]) == found, query
    await page.poll(await page.generate(voice_id, "Save 50% now: A&B_c"))
    for query, found in (
        ("save+50%25", 1),
        ("A%26B_C", 1),
        ("%25", 1),
        ("Ada", 0),
        ("s%25e", 0),
        ("B_", 1),
        ("___", 0),
    ):
        assert len(await history(page, f"&search={query}")) == found, query


# --- tasks ------------------------------------------------------------------------------------------------------------


async def test_a_status_is_one_of_five_words_from_the_first_poll_on(
    page: Page, voice_id: UUID, simulator: Simulator
) -> None:
    """Polled while it waits, connects, speaks and is stored; any other word would lose the task."""
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    task_id = await page.generate(voice_id)
    polling = asyncio.create_task(page.poll(task_id))
    await held.held()
    held.release()
    await polling
    words = [poll["status"] for poll in page.polled]
    assert set(words) == {"processing", "completed"}
    assert words == sorted(words, reverse=True), "it never goes back"


async def test_an_unknown_or_foreign_task_is_404(page: Page, gateway: Gateway, voice_id: UUID) -> None:
    """Anything but 404 keeps the page polling, without a word."""
    task_id = await page.generate(voice_id)
    stranger = Page(gateway.client())
    async with stranger.http:
        assert (await stranger.call("GET", f"/api/tasks/{task_id}"))[0] == 404
    for unknown in (uuid4(), UUID(int=0), UUID(int=2**128 - 1)):
        assert (await page.call("GET", f"/api/tasks/{unknown}"))[0] == 404
    await page.poll(task_id)


async def test_delete_after_the_end_takes_nothing_away_from_who_is_fetching(page: Page, voice_id: UUID) -> None:
    """The DELETE arrives while the audio is being asked for: before it, between the requests, or after them."""
    task_id = await page.generate(voice_id)
    task = await page.poll(task_id)
    address = task["result"]["audio_url"]
    plays = await asyncio.gather(
        page.play(address), page.ok("DELETE", f"/api/tasks/{task_id}"), page.play(address), page.play(address)
    )
    after = await page.play(address)
    assert {play.audio for play in plays if isinstance(play, Play)} == {after.audio}
    (entry,) = await history(page)
    assert entry["status"] == "completed"
    assert (await page.call("GET", f"/api/tasks/{task_id}"))[0] == 404
    assert (await page.call("DELETE", f"/api/tasks/{task_id}"))[0] == 404, "and an error from it is ignored"


async def test_completed_has_the_address_of_its_audio(page: Page, voice_id: UUID) -> None:
    """Without it the page shows nothing at all."""
    task = await page.poll(await page.generate(voice_id))
    assert task["status"] == "completed"
    assert task["result"]["audio_url"] == f"/api/generations/{task['generation_id']}/audio"
    assert all("result" not in poll for poll in page.polled[:-1])
    assert (await page.play(task["result"]["audio_url"])).audio


async def test_failed_shows_its_error(page: Page, voice_id: UUID, simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "close", "at": "audio", "code": 1011})
    task = await page.poll(await page.generate(voice_id))
    assert task["status"] == "failed"
    assert isinstance(task["error"], str)
    assert " " in task["error"]


async def test_a_cancelled_task_never_completes_and_history_says_cancelled(
    page: Page, voice_id: UUID, simulator: Simulator, gateway: Gateway
) -> None:
    """After the 200 the page stops polling and says so itself."""
    held = simulator.behave("realtime", {"do": "hold", "at": "audio_end"})
    task_id = await page.generate(voice_id)
    await held.held()
    assert (await page.ok("POST", f"/api/tasks/{task_id}/cancel"))["cancelled"] is True
    held.release()
    await wait_for(lambda: not gateway.parts.leases.speaking)
    assert (await page.ok("GET", f"/api/tasks/{task_id}"))["status"] == "cancelled"
    (entry,) = await history(page)
    assert entry["status"] == "cancelled"
    assert (await page.http.get(entry["audio_path"], headers=page.token)).status_code == 404


async def test_a_task_is_found_again_after_a_reload(page: Page, voice_id: UUID, client: Client) -> None:
    """Its id is all that the browser kept, for half an hour."""
    task_id = await page.generate(voice_id)
    await page.poll(task_id)
    reloaded = Page(client)
    async with reloaded.http:
        task = await reloaded.poll(task_id)
        assert (await reloaded.play(task["result"]["audio_url"])).audio


async def test_409_on_generate_is_shown_and_the_next_attempt_is_free(
    page: Page, voice_id: UUID, rows: Rows, simulator: Simulator
) -> None:
    await rows.execute(
        """CREATE UNIQUE INDEX one_active_generation_per_user ON public.generations (user_id)
            WHERE status IN ('pending', 'processing')"""
    )
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    first = await page.generate(voice_id)
    status, answer = await page.call("POST", "/api/generate", {"voice_id": str(voice_id), "text": "Me too."})
    assert status == 409
    assert answer["detail"].startswith("A generation is already in progress. ")
    held.release()
    await page.poll(first)
    await page.poll(await page.generate(voice_id, "Me too."))


# --- redirects, signed links and other origins ------------------------------------------------------------------------


async def test_audio_is_a_redirect_to_an_address_that_needs_no_token(page: Page, voice_id: UUID) -> None:
    task = await page.poll(await page.generate(voice_id))
    play = await page.play(task["result"]["audio_url"])
    assert play.redirect.content == b""
    assert "signature" in dict(parse_qsl(urlsplit(play.final_address).query)), "the link itself is what is allowed"
    assert play.content_type == "audio/mpeg"


async def test_a_signed_link_works_for_many_plays_and_a_later_download(page: Page, voice_id: UUID) -> None:
    """Three requests a play, one more for a download, the first of them broken off; links last for an hour."""
    task = await page.poll(await page.generate(voice_id))
    play = await page.play(task["result"]["audio_url"])
    for _ in range(3):
        assert (await page.http.get(play.final_address)).content == play.audio
    expires = datetime.fromtimestamp(int(dict(parse_qsl(urlsplit(play.final_address).query))["expires"]), UTC)
    assert timedelta(minutes=59) < expires - datetime.now(UTC) < timedelta(minutes=61)


async def test_storage_ignores_the_token_that_a_browser_carries_along(page: Page, voice_id: UUID) -> None:
    task = await page.poll(await page.generate(voice_id))
    final = (await page.play(task["result"]["audio_url"])).final_address
    for token in ("Bearer expired.or.garbage", "Basic eDp5", ""):
        assert (await page.http.get(final, headers={"Authorization": token})).status_code == 200


async def test_a_player_may_ask_for_parts(page: Page, voice_id: UUID) -> None:
    task = await page.poll(await page.generate(voice_id))
    play = await page.play(task["result"]["audio_url"])
    response = await page.http.get(play.final_address, headers={"Range": "bytes=0-"})
    assert (response.status_code, response.content) == (206, play.audio)
    assert response.headers["content-range"] == f"bytes 0-{len(play.audio) - 1}/{len(play.audio)}"


async def test_a_download_has_a_name_and_does_not_leave_the_app(page: Page, voice_id: UUID) -> None:
    task = await page.poll(await page.generate(voice_id))
    play = await page.play(task["result"]["audio_url"])
    assert urlsplit(play.final_address).path.endswith(".mp3"), "on the page's own origin this is the file's name"
    response = await page.http.get(play.final_address)
    assert response.headers["content-disposition"].startswith('attachment; filename="')


async def test_audio_on_another_origin_may_be_read_by_the_page(settings: Settings, database_url: str) -> None:
    """Nothing but Origin arrives there: no token and no preflight. An error may be read, too."""
    origin = "https://app.example"
    async with (
        running_gateway(replace(settings, cors_allow_origins=(origin,))) as gateway,
        gateway.client() as client,
        Page(client).http as browser,
    ):
        answer = await client.generate(await insert_voice(database_url, client.user_id))
        await client.ended(answer["task_id"])
        redirect = await client.http.get(
            f"/api/generations/{answer['generation_id']}/audio", headers={"Origin": origin}
        )
        for address, status in ((redirect.headers["location"], 200), (redirect.headers["location"] + "x", 403)):
            response = await browser.get(address, headers={"Origin": origin})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == origin


async def test_samples_in_a_wav_file_are_served_as_audio_wav(settings: Settings, database_url: str) -> None:
    async with running_gateway(replace(settings, qwen_default_response_format="wav")) as gateway:
        page = Page(gateway.client())
        async with page.http:
            task = await page.poll(await page.generate(await insert_voice(database_url, page.user_id)))
            play = await page.play(task["result"]["audio_url"])
    assert play.content_type == "audio/wav"
    assert play.audio[:4] == b"RIFF"
    assert int.from_bytes(play.audio[4:8], "little") == len(play.audio) - 8


# --- details that bite ------------------------------------------------------------------------------------------------


async def test_the_default_language_is_auto_and_served(page: Page) -> None:
    answer = await page.ok("GET", "/api/languages")
    assert answer["default"] == "Auto"
    assert "Auto" in answer["languages"]


async def test_languages_may_be_sent_back_as_they_are_served(page: Page, voice_id: UUID) -> None:
    for language in (await page.ok("GET", "/api/languages"))["languages"]:
        body = {"voice_id": str(voice_id), "text": language, "language": language, "model": "0.6B"}
        await page.ok("POST", "/api/generate", body)
    assert all(entry["language"] == entry["text"] for entry in await history(page))


async def test_a_new_voice_is_on_the_first_page(page: Page, rows: Rows, database_url: str) -> None:
    """The generate page reads no other."""
    for number in range(120):
        await rows.execute(
            """INSERT INTO public.voices (user_id, name, source, created_at)
               VALUES ($1, $2, 'uploaded', now() - interval '1 hour')""",
            page.user_id,
            f"old {number}",
        )
    newest = await insert_voice(database_url, page.user_id, name="new")
    answer = await page.ok("GET", "/api/voices")
    assert answer["voices"][0]["id"] == str(newest)
    assert (answer["pagination"]["total"], answer["pagination"]["pages"]) == (121, 2)


async def test_ids_need_no_escaping(page: Page, voice_id: UUID) -> None:
    task_id = await page.generate(voice_id)
    task = await page.poll(task_id)
    (voice,) = (await page.ok("GET", "/api/voices"))["voices"]
    for given in (task_id, task["generation_id"], voice["id"]):
        assert str(UUID(given)) == given


async def test_starting_over_fills_the_form(page: Page, voice_id: UUID) -> None:
    """An address inside the app, every field of it escaped."""
    text = 'Über 50% & "more"? #1 + 2 = 3\nBye.'
    await page.poll(await page.generate(voice_id, text))
    (entry,) = await history(page)
    address = (await page.ok("POST", f"/api/generations/{entry['id']}/regenerate"))["redirect_url"]
    assert address.startswith(f"/generate?voice={voice_id}&text=")
    assert dict(parse_qsl(urlsplit(address).query)) == {"voice": str(voice_id), "text": text, "language": "Auto"}


async def test_history_says_where_the_audio_is_and_when_it_may_be_played(
    page: Page, voice_id: UUID, simulator: Simulator
) -> None:
    """Play and Download show for `completed` only; the page reloads the list while anything else is under way."""
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 1})
    task_id = await page.generate(voice_id)
    (entry,) = await history(page)
    assert entry["status"] in ("pending", "processing")
    held.release()
    await page.poll(task_id)
    (entry,) = await history(page)
    assert entry["status"] == "completed"
    assert entry["audio_path"] == f"/api/generations/{entry['id']}/audio"
    assert (await page.play(entry["audio_path"])).audio
