"""The stream over real sockets: what is heard, where it goes on, and how it ends."""

import asyncio
import base64
import contextlib
import re
import shutil
import socket
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from server.auth.tokens import Tickets
from server.dev.simulator import Planned, Simulator
from server.relay import stalled
from server.settings import Deadlines, Intervals, Settings
from tests.end_to_end.conftest import QWEN_AUDIO, deaf, followers
from tests.end_to_end.hearing import AUDIO, DELTA_BYTES, EVENTS, Ears, Heard, hold_after
from tests.gateway import Client, Gateway, insert_voice, read_events, running_gateway
from tests.postgres_proxy import PostgresProxy
from tests.support import AUTH_JWT_SECRET, make_settings, wait_for

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
DELTAS = 8
HELD_BYTES = DELTAS * DELTA_BYTES
ENDS = {"completed", "failed", "cancelled"}


@pytest.fixture
async def voice_id(database_url: str, client: Client, spoken_model: str) -> UUID:
    """A cloned voice of that user, on one lane after the other."""
    return await insert_voice(database_url, client.user_id, model=spoken_model)


@pytest.fixture
def format_name() -> str:
    return "mp3"


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path, format_name: str) -> Settings:
    """Settings of a server whose patience with followers is short enough for a test."""
    return make_settings(
        database_url,
        simulator,
        tmp_path,
        qwen_default_response_format=format_name,
        shutdown_grace_seconds=2.0,
        qwen_starts_per_minute=100_000,
        deadlines=Deadlines(follower_stalled_seconds=0.5),
        intervals=Intervals(heartbeat_seconds=0.1),
    )


class Speech:
    """A speech that stands still in the middle of its text, ``HELD_BYTES`` of audio spoken."""

    def __init__(self, answer: dict[str, str], plan: Planned) -> None:
        self.task_id = answer["task_id"]
        self.generation_id = answer["generation_id"]
        self.url = answer["stream_url"]
        self.plan = plan

    def finish(self) -> None:
        self.plan.release()


@pytest.fixture
async def held(client: Client, voice_id: UUID, simulator: Simulator) -> AsyncIterator[Speech]:
    plan = hold_after(simulator, DELTAS)
    answer = await client.generate(voice_id)
    await plan.held()
    yield Speech(answer, plan)
    plan.release()


@pytest.fixture
async def failing(client: Client, voice_id: UUID, simulator: Simulator) -> AsyncIterator[Speech]:
    """As ``held``, but it breaks where it stands as soon as it may go on."""
    plan = hold_after(simulator, DELTAS, then={"do": "error", "code": "InternalError"})
    # A lane that tells its sentences takes it up once.
    simulator.behave("realtime", {"do": "error", "at": "text", "code": "InternalError"})
    answer = await client.generate(voice_id)
    await plan.held()
    yield Speech(answer, plan)
    plan.release()


@pytest.fixture
async def completed(client: Client, voice_id: UUID, simulator: Simulator) -> tuple[dict[str, str], bytes]:
    """What POST /api/generate answered for a speech that is stored by now, and its file."""
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    return answer, await client.audio(answer["generation_id"])


def payload_of(file: bytes, format_name: str) -> bytes:
    return file[44:] if format_name == "wav" else file


def resumption(how: str, url: str, offset: int | str) -> tuple[str, dict[str, str]]:
    """Address and headers that resume at ``offset``."""
    if how == "offset":
        return f"{url}&offset={offset}", {}
    if how == "both":  # the header wins: it is the browser's own, later knowledge
        return f"{url}&offset=3&lastEventId=4", {"Last-Event-ID": str(offset)}
    if how == "polyfill":  # which adds to the address that the page gave it, and some do so again and again
        return f"{url}&offset=3&lastEventId=7&lastEventId={offset}", {}
    return url, {"Last-Event-ID": str(offset)}


# --- one listener ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["mp3", "wav"])
async def test_events_tell_every_status_and_every_byte(
    client: Client, voice_id: UUID, anybody: Ears, simulator: Simulator, format_name: str
) -> None:
    plan = hold_after(simulator, DELTAS)
    answer = await client.generate(voice_id)
    heard = Heard(0)
    async with anybody.open(answer["stream_url"]) as response:
        async for event in read_events(response):
            heard.take(event)
            if event.name == "task" and event.data["provider_status"] == "streaming":
                plan.release()
    stored = await client.audio(answer["generation_id"])
    assert heard.audio == payload_of(stored, format_name)
    assert heard.end
    assert heard.end["status"] == "completed"
    assert heard.end["audio"]["bytes"] == len(heard.audio)
    assert heard.end == await client.task(answer["task_id"]) | {"stream_url": heard.end["stream_url"]}
    shown = [(event.data["status"], event.data["provider_status"]) for event in heard.tasks]
    assert shown == list(dict.fromkeys(shown)), "only changes are told"
    assert ("processing", "streaming") in shown
    assert [event.terminal for event in heard.tasks] == [False] * (len(heard.tasks) - 1) + [True]
    assert {event.id for event in heard.tasks[:-1]} == {None}, "a status may not move the place to resume at"


async def test_a_text_is_heard_while_it_is_being_spoken(held: Speech, anybody: Ears, client: Client) -> None:
    heard = await anybody.hear(held.url, until=HELD_BYTES)
    assert len(heard.audio) == HELD_BYTES
    assert heard.tasks[0].data["status"] == "processing"

    async def streaming() -> bool:
        return bool((await client.task(held.task_id))["provider_status"] == "streaming")

    await wait_for(streaming)  # shown with the next tick: no audio waits for it
    assert (await client.task(held.task_id))["status"] == "processing"


async def test_headers_of_a_stream(held: Speech, anybody: Ears) -> None:
    async with anybody.open(held.url, {**EVENTS, "Accept-Encoding": "gzip, br"}) as response:
        headers = response.headers
        assert headers["x-utter-provider"] == "qwen"
        assert headers["x-utter-generation-id"] == held.generation_id
        assert headers["x-utter-task-id"] == held.task_id
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["referrer-policy"] == "no-referrer"
        assert "content-encoding" not in headers
        assert "content-length" not in headers


async def test_a_quiet_stream_says_that_it_lives_and_when_to_come_back(held: Speech, anybody: Ears) -> None:
    retries = set()
    for _ in range(4):
        async with anybody.open(held.url) as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            assert first.startswith("retry: ")
            retries.add(int(first.removeprefix("retry: ")))
            beats = 0
            async for line in lines:
                beats += line.startswith(":")
                if beats == 2:
                    break
    assert len(retries) > 1, "all would come back in the same moment"
    assert all(500 <= milliseconds <= 10_000 for milliseconds in retries)


async def test_two_listeners_hear_the_same(held: Speech, anybody: Ears) -> None:
    listening = [asyncio.create_task(anybody.hear(held.url)) for _ in range(2)]
    held.finish()
    one, other = [await heard for heard in listening]
    assert one.audio == other.audio
    assert len(one.audio) > HELD_BYTES


async def test_head_opens_no_stream(held: Speech, anybody: Ears, gateway: Gateway) -> None:
    for headers, media_type in ((EVENTS, "text/event-stream"), (AUDIO, "audio/mpeg")):
        response = await anybody.http.head(held.url, headers=headers)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(media_type)
        assert response.content == b""
    assert b"utter_active_streams 0.0" in gateway.parts.metrics.exposition()


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["mp3", "wav"])
@pytest.mark.parametrize("how", ["header", "offset", "both", "polyfill"])
async def test_a_stream_resumes_at_any_byte(
    client: Client,
    voice_id: UUID,
    spoken_model: str,
    anybody: Ears,
    simulator: Simulator,
    format_name: str,
    how: str,
) -> None:
    """At every delta boundary and between them; while it is spoken, and when it is long stored."""
    sizes = [1, 3, 1001, 400, 131]  # four MP3 frames
    plan = hold_after(simulator, 2 * len(sizes), delta_sizes=sizes)
    answer = await client.generate(voice_id)
    await plan.held()
    url, so_far = answer["stream_url"], 2 * sum(sizes)
    before = await anybody.hear(url, until=so_far)
    boundaries = [0, *[int(event.id or 0) for event in before.deltas]]
    whole_frames = format_name == "mp3" and spoken_model == QWEN_AUDIO
    assert len(boundaries) == 1 + 2 * len(sizes) or whole_frames
    offsets = sorted({*boundaries, *[boundary + 2 for boundary in boundaries], 500, 777}) if how != "both" else [1005]
    for offset in offsets:
        address, headers = resumption(how, url, offset)
        again = await anybody.hear(address, headers, start=offset, until=so_far)
        assert again.audio == before.audio[offset:]
    plan.release()
    whole = (await anybody.hear(url)).audio
    assert whole == payload_of(await client.audio(answer["generation_id"]), format_name)
    for offset in [*offsets, len(whole) - 1, len(whole)]:
        address, headers = resumption(how, url, offset)
        again = await anybody.hear(address, headers, start=offset)
        assert again.audio == whole[offset:]
        assert again.end
        assert again.end["status"] == "completed"


@pytest.mark.parametrize("name", ["evs_last_event_id", "last-event-id", "Last-Event-ID", "last_event_id"])
async def test_a_polyfill_may_call_it_otherwise(
    completed: tuple[dict[str, str], bytes], anybody: Ears, name: str
) -> None:
    answer, whole = completed
    assert (await anybody.hear(f"{answer['stream_url']}&offset=3&{name}=1000", start=1000)).audio == whole[1000:]
    assert (await anybody.http.get(f"{answer['stream_url']}&{name}=end")).status_code == 204


async def test_a_listener_that_is_cut_off_again_and_again_hears_every_byte_once(
    client: Client, voice_id: UUID, anybody: Ears, visitor: Ears, simulator: Simulator
) -> None:
    """As a browser does it: the last id that came, to whichever process answers, from the first byte to the last."""
    simulator.behave("realtime", {"delta_sizes": [700, 1, 333], "minimum_bytes": 120_000, "speed": 20})
    answer = await client.generate(voice_id)
    audio, last_id, rounds = b"", "", 0
    while last_id != "end":
        ears = (anybody, visitor)[rounds % 2]
        rounds += 1
        headers = {"Last-Event-ID": last_id} if last_id else {}
        heard = Heard(len(audio))
        async with ears.open(answer["stream_url"], {**EVENTS, **headers}) as response:
            async for event in read_events(response):
                heard.take(event)
                last_id = event.id or last_id
                if heard.deltas:
                    break
        audio += heard.audio
    assert rounds > 7, "even what is stored comes in slices"
    assert audio == await client.audio(answer["generation_id"])


async def test_what_is_ahead_of_this_process_is_waited_for(
    held: Speech, anybody: Ears, client: Client, gateway: Gateway
) -> None:
    """A listener may have heard from another process what is not here yet."""
    following = asyncio.create_task(anybody.hear(held.url, {"Last-Event-ID": "8700"}, start=8700))
    await followers(gateway, 1)
    held.finish()
    heard = await following
    assert heard.audio == (await client.audio(held.generation_id))[8700:]
    assert heard.end


async def test_the_end_of_a_completed_speech_is_an_end_and_beyond_it_is_a_mistake(
    completed: tuple[dict[str, str], bytes], anybody: Ears
) -> None:
    answer, audio = completed
    at_the_end = await anybody.hear(f"{answer['stream_url']}&offset={len(audio)}", start=len(audio))
    assert at_the_end.deltas == []
    assert at_the_end.end
    for url, headers in (resumption(how, answer["stream_url"], len(audio) + 1) for how in ("header", "offset")):
        refused = await anybody.http.get(url, headers={"Accept": "text/event-stream", **headers})
        assert refused.status_code == 400
        assert refused.json()["category"] == "validation"


async def test_a_place_that_is_no_offset_is_refused(held: Speech, anybody: Ears) -> None:
    for place in ("-1", "1.5", "abc", "0x10", "1e3", "+1", "1 2", "9" * 30):
        by_header = await anybody.http.get(held.url, headers={"Last-Event-ID": place})
        by_query = await anybody.http.get(held.url, params={**dict_of(held.url), "offset": place})
        for refused in (by_header, by_query):
            assert refused.status_code == 400, place
            assert refused.json()["category"] == "validation"


def dict_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


async def test_after_the_end_a_browser_is_told_to_stop(completed: tuple[dict[str, str], bytes], anybody: Ears) -> None:
    for how in ("header", "offset", "polyfill"):
        url, headers = resumption(how, completed[0]["stream_url"], "end")
        response = await anybody.http.get(url, headers={"Accept": "text/event-stream", **headers})
        assert response.status_code == 204
        assert response.content == b""


# --- another process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["mp3", "wav"])
@pytest.mark.parametrize("notified", [True, False], ids=["notified", "not notified"])
async def test_a_speech_is_followed_in_another_process(
    held: Speech,
    client: Client,
    visitor: Ears,
    door: PostgresProxy,
    notified: bool,
    format_name: str,
) -> None:
    """From the spool, then as it grows, then from the store; without notifications only a little later."""
    door.notifications = notified
    for offset in (0, 1, DELTA_BYTES, DELTA_BYTES + 1, HELD_BYTES - 1):
        heard = await visitor.hear(f"{held.url}&offset={offset}", start=offset, until=HELD_BYTES)
        assert len(heard.audio) == HELD_BYTES - offset
    following = [
        asyncio.create_task(visitor.hear(f"{held.url}&offset={offset}", start=offset))
        for offset in (0, 1501, HELD_BYTES + 11)
    ]
    await asyncio.sleep(0)
    held.finish()
    ends = [await heard for heard in following]
    stored = payload_of(await client.audio(held.generation_id), format_name)
    for heard in ends:
        assert heard.audio == stored[heard.start :]
        assert heard.end
        assert heard.end["status"] == "completed"


async def test_a_stored_speech_is_heard_from_another_process(
    completed: tuple[dict[str, str], bytes], visitor: Ears
) -> None:
    answer, audio = completed
    assert (await visitor.hear(answer["stream_url"])).audio == audio
    assert (await visitor.hear(f"{answer['stream_url']}&offset=77", start=77)).audio == audio[77:]


async def test_a_follower_outlives_an_outage_of_the_database(
    held: Speech, client: Client, visitor: Ears, neighbour: Gateway, door: PostgresProxy
) -> None:
    following = asyncio.create_task(visitor.hear(held.url))
    await followers(neighbour, 1)
    door.shut()
    await wait_for(lambda: door.refused)
    held.finish()
    await client.ended(held.task_id)
    door.open()
    heard = await following
    assert heard.audio == await client.audio(held.generation_id)
    assert heard.end


# --- failed and cancelled --------------------------------------------------------------------------------------------


async def test_a_failure_ends_the_stream_with_its_reason(
    failing: Speech, anybody: Ears, visitor: Ears, gateway: Gateway, neighbour: Gateway
) -> None:
    following = [asyncio.create_task(ears.hear(failing.url)) for ears in (anybody, visitor)]
    for ears, server in ((anybody, gateway), (visitor, neighbour)):
        await ears.hear(failing.url, until=HELD_BYTES)
        await followers(server, 1)
    failing.finish()
    for heard in [await task for task in following]:
        assert len(heard.audio) == HELD_BYTES, "what was spoken was heard"
        assert heard.end
        assert heard.end["status"] == "failed"
        assert heard.end["error_category"] == "provider_unavailable"
        assert heard.end["error"]
        assert "stream_url" not in heard.end


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_a_speech_that_failed_or_was_cancelled_answers_one_event_and_no_audio(
    failing: Speech, anybody: Ears, visitor: Ears, client: Client, ending: str
) -> None:
    if ending == "cancelled":
        assert (await client.http.post(f"/api/tasks/{failing.task_id}/cancel")).json()["cancelled"]
    failing.finish()
    await client.ended(failing.task_id)
    for ears in (anybody, visitor):
        for url in (failing.url, f"{failing.url}&offset=1000", f"{failing.url}&offset=99999999"):
            heard = await ears.hear(url, start=99999999)
            assert [event.name for event in heard.events] == ["task"]
            assert heard.end
            assert heard.end["status"] == ending
        raw = await ears.http.get(failing.url, headers=AUDIO)
        assert raw.status_code == 409
        assert raw.json()["category"] == "conflict"


async def test_a_speech_whose_row_disappears_ends_without_a_word(
    held: Speech, anybody: Ears, gateway: Gateway, rows: Rows
) -> None:
    """Rows may be deleted past us; the browser comes back by itself and learns that there is nothing."""
    following = asyncio.create_task(anybody.hear(held.url))
    await followers(gateway, 1)
    await rows.execute("DELETE FROM public.tasks WHERE id = $1", UUID(held.task_id))
    heard = await following
    assert heard.end is None
    assert (await anybody.http.get(held.url, headers=EVENTS)).status_code == 404


# --- raw audio -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["mp3", "wav"])
async def test_raw_audio_is_the_growing_file(held: Speech, anybody: Ears, client: Client, format_name: str) -> None:
    header = 44 if format_name == "wav" else 0
    async with anybody.open(held.url, {**AUDIO, "Range": "bytes=0-1"}) as response:
        assert response.status_code == 200, "a range of something that grows means nothing"
        assert response.headers["content-type"] == {"mp3": "audio/mpeg", "wav": "audio/wav"}[format_name]
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert response.headers["x-utter-task-id"] == held.task_id
        assert "accept-ranges" not in response.headers
        assert "content-range" not in response.headers
        audio = b""
        async for part in response.aiter_raw():
            audio += part
            if len(audio) == header + HELD_BYTES:
                held.finish()
    stored = await client.audio(held.generation_id)
    assert audio[header:] == stored[header:]
    if format_name == "wav":
        assert audio[:44] != stored[:44], "nobody knows yet how long it will be"
        assert struct.unpack("<4xI32xI", audio[:44]) == (0xFFFFFFFF, 0xFFFFFFFF)
        assert audio[8:40] == stored[8:40]


@pytest.mark.parametrize("format_name", ["wav"])
async def test_raw_audio_tells_its_length_as_soon_as_that_is_known(
    held: Speech,
    anybody: Ears,
    visitor: Ears,
    gateway: Gateway,
    client: Client,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The speech is over and the store is slow: whoever comes now, here or elsewhere, gets a header that is right."""
    storing, kind = asyncio.Event(), type(gateway.parts.storage)
    put = kind.put

    async def slow(*arguments: Any, **named: Any) -> None:
        await storing.wait()
        await put(*arguments, **named)

    monkeypatch.setattr(kind, "put", slow)
    held.finish()

    async def spoken() -> bool:
        return bool(await rows.fetchval("SELECT state = 'spoken' FROM internal.runs"))

    await wait_for(spoken)
    heard = [asyncio.create_task(ears.hear_audio(held.url)) for ears in (anybody, visitor)]
    await followers(gateway, 1)
    await asyncio.gather(*(ears_hear_something(ears, held.url) for ears in (anybody, visitor)))
    storing.set()
    for audio, whole in [await hearing for hearing in heard]:
        assert whole
        assert audio == await client.audio(held.generation_id)
        assert struct.unpack("<4xI32xI", audio[:44]) == (len(audio) - 8, len(audio) - 44)


async def ears_hear_something(ears: Ears, url: str) -> None:
    async with ears.open(url, AUDIO) as response:
        await anext(response.aiter_raw())


@pytest.mark.parametrize("format_name", ["mp3", "wav"])
async def test_raw_audio_resumes_without_another_header(
    held: Speech, anybody: Ears, client: Client, gateway: Gateway, format_name: str
) -> None:
    following = asyncio.create_task(anybody.hear_audio(f"{held.url}&offset=1001"))
    await followers(gateway, 1)
    held.finish()
    audio, whole = await following
    assert whole
    assert audio == payload_of(await client.audio(held.generation_id), format_name)[1001:]


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_raw_audio_that_is_not_whole_is_broken_off(
    failing: Speech, client: Client, anybody: Ears, visitor: Ears, gateway: Gateway, neighbour: Gateway, ending: str
) -> None:
    """Here, and in another process."""
    following = [asyncio.create_task(ears.hear_audio(failing.url)) for ears in (anybody, visitor)]
    for ears, server in ((anybody, gateway), (visitor, neighbour)):
        await ears.hear(failing.url, until=HELD_BYTES)
        await followers(server, 1)
    if ending == "cancelled":
        await client.http.post(f"/api/tasks/{failing.task_id}/cancel")
    else:
        failing.finish()
    for audio, whole in [await heard for heard in following]:
        assert not whole
        assert len(audio) == HELD_BYTES


async def test_raw_audio_of_a_stored_speech_is_a_redirect(
    completed: tuple[dict[str, str], bytes], anybody: Ears
) -> None:
    answer, audio = completed
    redirect = await anybody.http.get(answer["stream_url"], headers={**AUDIO, "Range": "bytes=0-1"})
    assert redirect.status_code == 302
    link = redirect.headers["location"]
    assert (await anybody.http.get(link)).content == audio
    probe = await anybody.http.get(link, headers={"Range": "bytes=0-1"})
    assert (probe.status_code, probe.content) == (206, audio[:2])


# --- events or audio? ------------------------------------------------------------------------------------------------

NAVIGATION = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FIREFOX_AUDIO = "audio/webm,audio/ogg,audio/wav,audio/*;q=0.9,application/ogg;q=0.7,video/*;q=0.6,*/*;q=0.5"
CHROMIUM_AUDIO = {
    "Accept": "*/*",
    "Accept-Encoding": "identity;q=1, *;q=0",
    "Range": "bytes=0-",
    "Sec-Fetch-Dest": "audio",
    "Sec-Fetch-Mode": "no-cors",
    "Sec-Fetch-Site": "same-origin",
}
AS_EVENTS, AS_AUDIO = "text/event-stream", "audio/mpeg"


# Who asks, with which headers and which end of the address, and what the answer is.
ASKING: list[tuple[str, dict[str, str], str, str]] = [
    ("Chromium's <audio>", CHROMIUM_AUDIO, "", AS_AUDIO),
    ("Chromium's <video>", {**CHROMIUM_AUDIO, "Sec-Fetch-Dest": "video"}, "", AS_AUDIO),
    ("Safari's probe", {"Accept": "*/*", "Range": "bytes=0-1"}, "", AS_AUDIO),
    ("Firefox's <audio>", {"Accept": FIREFOX_AUDIO, "Range": "bytes=0-"}, "", AS_AUDIO),
    (
        "EventSource",
        {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Sec-Fetch-Dest": "empty"},
        "",
        AS_EVENTS,
    ),
    ("fetch", {"Accept": "*/*", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors"}, "", AS_EVENTS),
    ("curl", {"Accept": "*/*", "User-Agent": "curl/8.5.0"}, "", AS_EVENTS),
    ("curl -r", {"Accept": "*/*", "User-Agent": "curl/8.5.0", "Range": "bytes=0-"}, "", AS_AUDIO),
    ("nothing said", {}, "", AS_EVENTS),
    ("nothing said by an <audio>", {"Sec-Fetch-Dest": "audio"}, "", AS_AUDIO),
    ("address bar", {"Accept": NAVIGATION, "Sec-Fetch-Dest": "document"}, "", AS_EVENTS),
    ("a program that wants MP3", {"Accept": "audio/mpeg"}, "", AS_AUDIO),
    ("weighed", {"Accept": "text/event-stream;q=0.5, audio/*;q=0.9"}, "", AS_AUDIO),
    ("Accept beats Range", {"Accept": "text/event-stream", "Range": "bytes=0-"}, "", AS_EVENTS),
    ("as=events beats all", CHROMIUM_AUDIO, "&as=events", AS_EVENTS),
    ("as=audio beats all", {"Accept": "text/event-stream"}, "&as=audio", AS_AUDIO),
    ("as=audio beats a foreign Accept", {"Accept": "application/json"}, "&as=audio", AS_AUDIO),
]


async def test_events_or_audio(held: Speech, gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as bare:
        bare.headers.clear()
        for who, headers, query, answered in ASKING:
            async with bare.stream("GET", held.url + query, headers=headers) as response:
                assert response.status_code == 200, who
                assert response.headers["content-type"].partition(";")[0] == answered, who
                first = await anext(response.aiter_raw())
                assert first.startswith(b"retry:") == (answered == AS_EVENTS), who


async def test_what_a_stream_cannot_be_is_406(held: Speech, anybody: Ears) -> None:
    for accept in ("application/json", "image/png", "text/html", "text/event-stream;q=0"):
        refused = await anybody.http.get(held.url, headers={"Accept": accept})
        assert refused.status_code == 406, accept
        assert refused.json()["category"] == "validation"


async def test_as_anything_else_is_400(held: Speech, anybody: Ears) -> None:
    assert (await anybody.http.get(f"{held.url}&as=video")).status_code == 400


# --- POST ------------------------------------------------------------------------------------------------------------


async def test_a_post_may_be_answered_with_events(client: Client, voice_id: UUID) -> None:
    body = {"voice_id": str(voice_id), "text": "Good morning."}
    heard = Heard(0)
    async with client.http.stream("POST", "/api/generate/stream", json=body, headers=EVENTS) as response:
        assert response.status_code == 200
        generation_id = response.headers["x-utter-generation-id"]
        async for event in read_events(response):
            heard.take(event)
    assert heard.end
    assert heard.end["status"] == "completed"
    assert heard.audio == await client.audio(generation_id)


async def test_a_post_may_be_answered_with_audio(client: Client, voice_id: UUID) -> None:
    body = {"voice_id": str(voice_id), "text": "Good morning."}
    response = await client.http.post("/api/generate/stream", json=body, headers=AUDIO)
    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/mpeg"
    assert response.content == await client.audio(response.headers["x-utter-generation-id"])


async def test_a_post_may_be_answered_with_json(client: Client, voice_id: UUID, anybody: Ears) -> None:
    body = {"voice_id": str(voice_id), "text": "Good morning."}
    response = await client.http.post("/api/generate/stream", json=body, headers={"Accept": "application/json"})
    assert response.status_code == 201
    answer = response.json()
    assert response.headers["x-utter-task-id"] == answer["task_id"]
    assert (await anybody.hear(answer["stream_url"])).end


async def test_a_post_with_the_same_key_attaches_to_the_same_speech(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    body = {"voice_id": str(voice_id), "text": "Good morning."}
    headers = {**AUDIO, "Idempotency-Key": "the same"}
    first = await client.http.post("/api/generate/stream", json=body, headers=headers)
    await client.ended(first.headers["x-utter-task-id"])
    again = await client.http.post("/api/generate/stream", json=body, headers=headers)
    assert again.status_code == 302, "it is stored by now"
    assert (await client.http.get(again.headers["location"])).content == first.content
    events = await client.http.post("/api/generate/stream", json=body, headers={**headers, **EVENTS})
    assert events.headers["x-utter-task-id"] == first.headers["x-utter-task-id"]
    assert len(simulator.calls) == 1


# --- who may listen --------------------------------------------------------------------------------------------------


async def test_a_bearer_token_serves_as_well_as_a_ticket(held: Speech, client: Client, anybody: Ears) -> None:
    url = f"/api/generate/stream?task_id={held.task_id}"
    heard = await anybody.hear(url, client.headers, until=HELD_BYTES)
    assert len(heard.audio) == HELD_BYTES
    spoiled = await anybody.hear(f"{url}&ticket=spoiled", client.headers, until=1)
    assert spoiled.audio


async def test_a_ticket_that_is_not_for_this_is_401(held: Speech, anybody: Ears, client: Client) -> None:
    query = dict_of(held.url)
    ids = {"user_id": client.user_id, "task_id": UUID(held.task_id), "generation_id": UUID(held.generation_id)}
    expired = Tickets(AUTH_JWT_SECRET, clock=lambda: time.time() - 3601).mint(**ids)
    forged = Tickets("another secret").mint(**ids)
    foreign = Tickets(AUTH_JWT_SECRET).mint(**{**ids, "task_id": uuid4()})
    tampered = ("A" if query["ticket"][0] != "A" else "B") + query["ticket"][1:]
    for ticket in (expired, forged, foreign, tampered, query["ticket"][:-1], "", "ö"):
        response = await anybody.http.get("/api/generate/stream", params={**query, "ticket": ticket})
        assert response.status_code == 401, ticket
        assert response.json()["category"] == "unauthorized"


async def test_a_ticket_shows_its_users_task_only(held: Speech, anybody: Ears) -> None:
    """One that was signed for another user names a task that this user does not have."""
    ticket = Tickets(AUTH_JWT_SECRET).mint(
        user_id=uuid4(), task_id=UUID(held.task_id), generation_id=UUID(held.generation_id)
    )
    response = await anybody.http.get("/api/generate/stream", params={"task_id": held.task_id, "ticket": ticket})
    assert response.status_code == 404


async def test_nobody_hears_somebody_elses_speech(held: Speech, gateway: Gateway) -> None:
    async with gateway.client() as stranger:
        url = f"/api/generate/stream?task_id={held.task_id}"
        assert (await stranger.http.get(url)).status_code == 404
        assert (await stranger.http.get(f"/api/generate/stream?task_id={uuid4()}")).status_code == 404
        assert (await stranger.http.get("/api/generate/stream?task_id=none")).status_code == 400
        assert (await stranger.http.get("/api/generate/stream")).status_code == 400


async def test_a_task_of_a_provider_that_cannot_stream_is_409(client: Client, rows: Rows) -> None:
    task_id, generation_id = uuid4(), uuid4()
    await rows.execute(
        """INSERT INTO public.generations (id, user_id, text, status, tts_provider)
           VALUES ($1, $2, 'x', 'processing', 'modal')""",
        generation_id,
        client.user_id,
    )
    await rows.execute(
        """INSERT INTO public.tasks (id, user_id, type, status, generation_id, provider)
           VALUES ($1, $2, 'generate', 'processing', $3, 'modal')""",
        task_id,
        client.user_id,
        generation_id,
    )
    response = await client.http.get(f"/api/generate/stream?task_id={task_id}", headers=EVENTS)
    assert response.status_code == 409
    assert "/api/tasks/" in response.json()["detail"]


async def test_a_deleted_task_streams_to_those_who_hold_its_ticket(
    completed: tuple[dict[str, str], bytes], client: Client, anybody: Ears
) -> None:
    """The page deletes a task as soon as it ends, and its listener may just be coming back."""
    answer, audio = completed
    await client.http.delete(f"/api/tasks/{answer['task_id']}")
    assert (await client.http.get(f"/api/tasks/{answer['task_id']}")).status_code == 404
    assert (await anybody.hear(answer["stream_url"])).audio == audio
    by_token = await client.http.get(f"/api/generate/stream?task_id={answer['task_id']}", headers=EVENTS)
    assert by_token.status_code == 404


async def test_deleting_a_task_cuts_nobody_off(held: Speech, client: Client, anybody: Ears) -> None:
    async with anybody.open(held.url) as response:
        events = read_events(response)
        heard = Heard(0)
        heard.take(await anext(events))
        held.finish()
        await client.ended(held.task_id)
        await client.http.delete(f"/api/tasks/{held.task_id}")
        async for event in events:
            heard.take(event)
    assert heard.end
    assert heard.end["status"] == "completed"
    assert heard.audio == await client.audio(held.generation_id)


async def test_a_generation_that_was_deleted_has_no_stream(
    completed: tuple[dict[str, str], bytes], client: Client, anybody: Ears
) -> None:
    answer, _ = completed
    await client.http.delete(f"/api/generations/{answer['generation_id']}")
    for headers in (EVENTS, AUDIO):
        assert (await anybody.http.get(answer["stream_url"], headers=headers)).status_code == 404


# --- slow listeners and those who leave ------------------------------------------------------------------------------


def peers(gateway: Gateway) -> list[object]:
    """The addresses of all open connections."""
    return [getattr(connection, "client", None) for connection in gateway.server.server_state.connections]


async def read_to_the_end(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    whole = b""
    try:
        while part := await asyncio.wait_for(loop.sock_recv(connection, 65536), 5.0):
            whole += part
    except ConnectionError:
        pass
    return whole


@pytest.mark.parametrize("accept", [EVENTS["Accept"], AUDIO["Accept"]])
async def test_a_listener_that_reads_nothing_is_cut_and_slows_nobody(
    client: Client, voice_id: UUID, anybody: Ears, gateway: Gateway, simulator: Simulator, accept: str
) -> None:
    simulator.behave("realtime", {"delta_bytes": 65_536, "minimum_bytes": 8_000_000})
    answer = await client.generate(voice_id)
    async with deaf(gateway.url, answer["stream_url"], accept) as connection:
        audio, whole = await anybody.hear_audio(answer["stream_url"])
        assert whole
        assert len(audio) >= 8_000_000
        # Nothing of it is left: neither its task nor its connection, although it still reads nothing.
        await followers(gateway, 0)
        address = connection.getsockname()
        await wait_for(lambda: address not in peers(gateway), 5.0)
        assert not (await read_to_the_end(connection)).endswith(b"0\r\n\r\n"), "a part must not look like the whole"


async def test_a_listener_that_reads_too_slowly_is_cut_and_resumes_without_a_loss(
    client: Client, voice_id: UUID, anybody: Ears, gateway: Gateway, simulator: Simulator, monkeypatch: Any
) -> None:
    monkeypatch.setattr(stalled, "LEAST_BYTES_PER_SECOND", 20_000_000)
    simulator.behave("realtime", {"delta_bytes": 65_536, "minimum_bytes": 8_000_000})
    answer = await client.generate(voice_id)
    heard = bytearray()
    narrow = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
    async with (
        httpx.AsyncClient(base_url=gateway.url, transport=narrow, timeout=20.0) as slow,
        slow.stream("GET", answer["stream_url"], headers=AUDIO) as response,
    ):
        address = response.extensions["network_stream"].get_extra_info("client_addr")
        with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
            async for part in response.aiter_raw():
                heard += part
                if address not in peers(gateway):
                    break  # cut off; what is still on its way would come as slowly
                await asyncio.sleep(0.1)  # it always reads on, only not fast enough
    await client.ended(answer["task_id"])
    assert 0 < len(heard) < 8_000_000
    monkeypatch.undo()
    rest = await anybody.hear(f"{answer['stream_url']}&offset={len(heard)}", start=len(heard))
    assert bytes(heard) + rest.audio == await client.audio(answer["generation_id"])


async def test_a_listener_that_falls_behind_has_every_byte_once_it_reads_again(
    database_url: str, spoken_model: str, settings: Settings, simulator: Simulator
) -> None:
    """Its connection is full in the middle of an event; what waits for it there is neither lost nor sent twice."""
    simulator.behave("realtime", {"delta_bytes": 65_536, "minimum_bytes": 4_000_000})
    async with running_gateway(replace(settings, deadlines=Deadlines())) as patient, patient.client() as client:
        answer = await client.generate(await insert_voice(database_url, client.user_id, model=spoken_model))
        received = await _read_late(patient, answer["stream_url"], simulator)
        audio = await client.audio(answer["generation_id"])
    deltas = re.findall(rb'id: ([0-9]+)\ndata: {"delta":"([^"]*)"}\n\n', _unchunked(received))
    assert b"".join(base64.b64decode(letters) for _, letters in deltas) == audio
    assert int(deltas[-1][0]) == len(audio)


async def _read_late(gateway: Gateway, url: str, simulator: Simulator) -> bytes:
    """The whole response, of which nothing is read before more was spoken than all buffers on the way hold."""
    received = b""
    async with deaf(gateway.url, url, EVENTS["Accept"]) as connection:
        await simulator.deltas_sent(30)
        while not received.endswith(b"\r\n0\r\n\r\n"):
            part = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 65536), 10.0)
            assert part, "cut off"
            received += part
    return received


def _unchunked(response: bytes) -> bytes:
    """The body of a chunked response."""
    at, body = response.index(b"\r\n\r\n") + 4, b""
    while at < len(response):
        begins = response.index(b"\r\n", at) + 2
        ends = begins + int(response[at : begins - 2], 16)
        body += response[begins:ends]
        at = ends + 2
    return body


@pytest.mark.parametrize("accept", [EVENTS["Accept"], AUDIO["Accept"]])
async def test_a_listener_who_leaves_does_not_stop_the_speech(
    held: Speech, client: Client, anybody: Ears, gateway: Gateway, accept: str
) -> None:
    async with anybody.open(held.url, {"Accept": accept}) as response:
        await anext(response.aiter_raw())
    await followers(gateway, 0)
    held.finish()
    assert (await client.ended(held.task_id))["status"] == "completed"


# --- the real programs -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_hears_events_and_saves_audio(
    held: Speech, gateway: Gateway, client: Client, tmp_path: Path
) -> None:
    saved = tmp_path / "speech.mp3"
    events = await asyncio.create_subprocess_exec("curl", "-sN", gateway.url + held.url, stdout=asyncio.subprocess.PIPE)
    audio = await asyncio.create_subprocess_exec("curl", "-sfN", f"{gateway.url}{held.url}&as=audio", "-o", str(saved))
    await followers(gateway, 2)
    held.finish()
    printed, _ = await events.communicate()
    assert events.returncode == 0
    assert b"event: response.audio.delta" in printed
    assert await audio.wait() == 0
    assert saved.read_bytes() == await client.audio(held.generation_id)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_knows_that_a_part_is_not_the_whole(
    failing: Speech, gateway: Gateway, client: Client, tmp_path: Path
) -> None:
    audio = await asyncio.create_subprocess_exec(
        "curl", "-sfN", f"{gateway.url}{failing.url}&as=audio", "-o", str(tmp_path / "part.mp3")
    )
    await followers(gateway, 1)
    failing.finish()
    assert await audio.wait() == 18, "curl: transfer closed with outstanding read data remaining"
