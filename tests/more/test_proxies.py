"""The server behind Caddy and nginx, with the configuration that docs/deploy gives away."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest

from server.dev.simulator import Planned, Simulator
from server.settings import Settings
from tests.end_to_end.hearing import DELTA_BYTES, hold_after
from tests.gateway import Client, Event, Gateway, read_events
from tests.more.proxies import COMMANDS, NAME, Front, running_front
from tests.support import make_settings

DELTAS = 3
HELD_BYTES = DELTAS * DELTA_BYTES
MIB = 1024 * 1024
# What a browser says; a proxy that compresses would do it for this.
COMPRESSES = {"Accept-Encoding": "gzip, deflate, br, zstd"}


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """A server on disk storage that takes its public name from what the proxy tells."""
    return make_settings(database_url, simulator, tmp_path, serve_page=True)


@pytest.fixture(params=sorted(COMMANDS))
async def front(request: pytest.FixtureRequest, gateway: Gateway, tmp_path: Path) -> AsyncIterator[Front]:
    """Each proxy, before the server of this test."""
    folder = tmp_path / "front"
    folder.mkdir()
    async with running_front(request.param, gateway.url, folder) as running:
        yield running


@pytest.fixture
async def through(front: Front, client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """The test's user, who comes through the proxy."""
    async with front.client(**client.headers) as http:
        yield http


@pytest.fixture
async def held(client: Client, voice_id: UUID, simulator: Simulator) -> AsyncIterator[tuple[dict[str, str], Planned]]:
    """A speech that stands still in the middle of its text, ``HELD_BYTES`` of audio spoken."""
    plan = hold_after(simulator, DELTAS)
    answer = await client.generate(voice_id)
    await plan.held()
    yield answer, plan
    plan.release()


@asynccontextmanager
async def events(http: httpx.AsyncClient, url: str, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of a stream, which came as HTTP/2 and uncompressed."""
    asked = {"Accept": "text/event-stream", **COMPRESSES, **headers}
    async with http.stream("GET", url, headers=asked) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        assert response.http_version == "HTTP/2"
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        yield read_events(response)


async def test_events_arrive_while_the_voice_is_still_speaking(
    through: httpx.AsyncClient, held: tuple[dict[str, str], Planned], client: Client
) -> None:
    """All that was spoken is here although nothing more comes, so nothing waits in the proxy; and then the rest."""
    answer, plan = held
    heard = b""
    async with asyncio.timeout(20), events(through, answer["stream_url"]) as arriving:
        async for event in arriving:
            if event.name == "response.audio.delta":
                heard += base64.b64decode(event.data["delta"])
                if len(heard) == HELD_BYTES:
                    assert (await client.task(answer["task_id"]))["status"] == "processing"
                    plan.release()
            if event.terminal:
                assert event.data["status"] == "completed"
    assert heard == await client.audio(answer["generation_id"])


async def test_raw_audio_arrives_while_the_voice_is_still_speaking(
    through: httpx.AsyncClient, held: tuple[dict[str, str], Planned], client: Client
) -> None:
    """The same for an audio element."""
    answer, plan = held
    heard = b""
    async with (
        asyncio.timeout(20),
        through.stream("GET", f"{answer['stream_url']}&as=audio", headers=COMPRESSES) as response,
    ):
        assert response.http_version == "HTTP/2"
        assert "content-encoding" not in response.headers
        async for part in response.aiter_raw():
            heard += part
            if len(heard) == HELD_BYTES:
                plan.release()
    assert heard == await client.audio(answer["generation_id"])


async def test_forty_streams_share_one_connection_with_a_request(
    through: httpx.AsyncClient, held: tuple[dict[str, str], Planned]
) -> None:
    """With HTTP/1.1 a browser would stand still at its seventh stream."""
    answer, plan = held
    reached = asyncio.Semaphore(0)

    async def follow() -> None:
        async with events(through, answer["stream_url"]) as arriving:
            async for event in arriving:
                if event.id == str(HELD_BYTES):
                    reached.release()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(follow())
        for _ in range(40):
            await reached.acquire()
        assert (await through.get("/api/health")).json() == {"ok": True}
        plan.release()


async def test_a_stream_goes_on_at_the_byte_that_was_reached(
    through: httpx.AsyncClient, held: tuple[dict[str, str], Planned], client: Client
) -> None:
    """The browser's Last-Event-ID passes."""
    answer, plan = held
    plan.release()
    await client.ended(answer["task_id"])
    heard = b""
    async with events(through, answer["stream_url"], **{"Last-Event-ID": str(DELTA_BYTES)}) as arriving:
        async for event in arriving:
            if event.name == "response.audio.delta":
                heard += base64.b64decode(event.data["delta"])
    assert heard == (await client.audio(answer["generation_id"]))[DELTA_BYTES:]


async def test_stored_audio_is_read_by_ranges(through: httpx.AsyncClient, client: Client, voice_id: UUID) -> None:
    """As an audio element does when somebody seeks."""
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    redirect = await through.get(f"/api/generations/{answer['generation_id']}/audio")
    assert redirect.status_code == 302
    link = redirect.headers["location"]
    whole = await client.audio(answer["generation_id"])
    part = await through.get(link, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
    assert part.content == whole[100:200]


async def upload_link(through: httpx.AsyncClient) -> str:
    """Where a recording may be put, as an address of the public name."""
    wanted = {"name": "Ada", "language": "English", "transcript": "What I say."}
    answer = await through.post("/api/clone/upload-url", json=wanted)
    assert answer.status_code == 200, answer.text
    link: str = answer.json()["upload_url"]
    return link


async def test_a_recording_of_fifty_megabytes_is_put_where_the_browser_came_from(through: httpx.AsyncClient) -> None:
    """The link leads to the public name, as the server was told Host and protocol, and the body passes."""
    link = urlsplit(await upload_link(through))
    assert f"{link.scheme}://{link.netloc}" == f"https://{NAME}"
    put = await through.put(f"{link.path}?{link.query}", content=bytes(50 * MIB), headers={"Content-Type": "audio/wav"})
    assert put.status_code == 200


async def test_a_larger_recording_is_refused(front: Front, through: httpx.AsyncClient, tmp_path: Path) -> None:
    """By whoever sees it first; the sender hears so before it has sent everything."""
    recording = tmp_path / "recording.wav"
    recording.write_bytes(bytes(60 * MIB))
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-s", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "--cacert", front.authority),
        *("--resolve", f"{NAME}:{front.port}:127.0.0.1", "-T", recording, "-H", "Content-Type: audio/wav"),
        (await upload_link(through)).replace(NAME, f"{NAME}:{front.port}", 1),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(curl.communicate(), 60.0)
    assert said.decode() == "2 413"


async def test_an_error_passes_in_the_servers_words(through: httpx.AsyncClient) -> None:
    """No page of the proxy's own in its place."""
    answer = await through.get("/api/tasks/00000000-0000-4000-8000-000000000000")
    assert answer.status_code == 404
    assert answer.json()["category"] == "not_found"


async def test_metrics_are_not_for_the_world(through: httpx.AsyncClient, client: Client) -> None:
    """Prometheus asks the server itself."""
    assert (await through.get("/metrics")).status_code == 404
    assert (await client.http.get("/metrics")).status_code == 200


async def test_the_page_and_its_files_arrive(through: httpx.AsyncClient) -> None:
    """Over HTTP/2, with the server's own policy."""
    page = await through.get("/")
    assert page.http_version == "HTTP/2"
    assert "content-security-policy" in page.headers
    assert (await through.get("/static/page.js")).headers["content-type"].startswith("text/javascript")


async def test_a_connection_outlives_the_pause_of_a_proxy(gateway: Gateway) -> None:
    """The library's own five seconds would close it just when a proxy sends the next request into it."""
    from server.serve import KEEP_ALIVE_SECONDS

    assert KEEP_ALIVE_SECONDS > 60
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    for pause in (0.0, 6.0):
        await asyncio.sleep(pause)
        writer.write(b"GET /api/health HTTP/1.1\r\nHost: here\r\n\r\n")
        await writer.drain()
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5.0)
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readuntil(b"}")
    writer.close()
    await writer.wait_closed()
