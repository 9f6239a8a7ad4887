"""A bucket that insists on everything: the links that we hand out, and what the server makes of refusals."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from server.settings import Settings
from server.storage import Bucket
from tests.end_to_end.hearing import Ears
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.storage.conftest import s3_settings
from tests.storage.strict import StrictStore, strict_store
from tests.voices import cloned, finalize, recording, upload

PAGE = "https://app.example"


@pytest.fixture
async def store(s3_server: str) -> AsyncIterator[StrictStore]:
    async with strict_store(s3_server) as running:
        yield running


@pytest.fixture
async def gateway(settings: Settings, store: StrictStore) -> AsyncIterator[Gateway]:
    """A server whose objects lie in that store."""
    storage = replace(await s3_settings(store.upstream), endpoint=store.url)
    async with running_gateway(replace(settings, storage=storage, cors_allow_origins=(PAGE,))) as running:
        yield running


@pytest.fixture
async def spoken(client: Client, database_url: str) -> dict[str, Any]:
    """What POST /api/generate answered, for a speech that is stored by now."""
    answer = await client.generate(await insert_voice(database_url, client.user_id))
    assert (await client.ended(answer["task_id"]))["status"] == "completed"
    return answer


async def addresses(client: Client, spoken: dict[str, Any]) -> list[str]:
    """Every address that leads to a link: audio, the raw stream of a completed speech, a voice's recording."""
    voice_id = await cloned(client)
    audio = f"/api/generations/{spoken['generation_id']}/audio"
    return [audio, f"{spoken['stream_url']}&as=audio", f"/api/voices/{voice_id}/preview"]


async def test_head_leads_to_a_link_for_head(client: Client, spoken: dict[str, Any]) -> None:
    for address in await addresses(client, spoken):
        asked = await client.http.head(address)
        assert asked.status_code == 302
        async with httpx.AsyncClient() as anybody:
            found = await anybody.head(asked.headers["location"])
            assert found.status_code == 200, address
            whole = await anybody.get((await client.http.get(address)).headers["location"])
        assert found.headers["content-length"] == str(len(whole.content))


async def test_a_link_can_be_had_without_a_redirect(client: Client, spoken: dict[str, Any], store: StrictStore) -> None:
    """For a program that takes its token along, and a page of one origin at a server of another."""
    store.cors_origins = [PAGE]
    for address in await addresses(client, spoken):
        answer = await client.http.get(address, headers={"Accept": "application/json"})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        link = answer.json()
        assert link.keys() == {"url", "expires_in"}
        async with httpx.AsyncClient() as page:
            played = await page.get(link["url"], headers={"Origin": PAGE})
        assert played.status_code == 200
        assert played.headers["access-control-allow-origin"] == PAGE


async def test_an_authorization_beside_a_link_is_what_the_store_refuses(client: Client, spoken: dict[str, Any]) -> None:
    """So it is not promised; the link in a body is the way."""
    link = (await client.http.get(f"/api/generations/{spoken['generation_id']}/audio")).headers["location"]
    async with httpx.AsyncClient() as program:
        assert (await program.get(link, headers={"Authorization": "Bearer x"})).status_code == 400
        assert (await program.get(link)).status_code == 200


async def test_what_a_key_without_the_right_to_list_is_refused_is_not_there(client: Client, store: StrictStore) -> None:
    store.hides_absent = True
    assert problem_of(await finalize(client, uuid4()), 400, "validation") == "Audio file not uploaded."
    voice_id = await upload(client, recording())
    assert (await finalize(client, voice_id)).status_code == 200


async def test_a_key_that_may_nothing_is_our_trouble_and_nobody_elses(client: Client, store: StrictStore) -> None:
    store.refuses_everything = True
    problem_of(await finalize(client, uuid4()), 503, "storage", says="storage is not available")


@pytest.mark.parametrize("hides_absent", [False, True])
async def test_a_stream_that_can_never_succeed_says_so_and_ends(
    client: Client, gateway: Gateway, store: StrictStore, spoken: dict[str, Any], rows: Any, hides_absent: bool
) -> None:
    store.hides_absent = hides_absent
    key = await rows.fetchval(
        "SELECT audio_object_key FROM public.generations WHERE id = $1", UUID(spoken["generation_id"])
    )
    await gateway.parts.storage.delete(Bucket.GENERATIONS, key)
    async with Ears(gateway.url) as ears:
        heard = await ears.hear(spoken["stream_url"])
        assert heard.end is not None
        assert (heard.end["status"], heard.end["error"]) == ("failed", "The audio of this speech is no longer there.")
        assert heard.deltas == []
        again = await ears.http.get(spoken["stream_url"], headers={"Last-Event-ID": "end"})
        assert again.status_code == 204


async def test_a_slow_reader_holds_no_connection_to_the_store(
    client: Client, gateway: Gateway, spoken: dict[str, Any], rows: Any
) -> None:
    """More readers than there are connections have read one event each, and the store is asked as fast as ever."""
    key = await rows.fetchval(
        "SELECT audio_object_key FROM public.generations WHERE id = $1", UUID(spoken["generation_id"])
    )
    audio = bytes(4_000_000)
    await gateway.parts.storage.put(Bucket.GENERATIONS, key, audio, content_type="audio/mpeg", size=len(audio))
    await rows.execute(
        """UPDATE public.generations SET provider_metadata = jsonb_set(provider_metadata, '{audio,bytes}', $2)
            WHERE id = $1""",
        UUID(spoken["generation_id"]),
        len(audio),
    )
    address = httpx.URL(gateway.url)
    request = f"GET {spoken['stream_url']}&as=events HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    writers = []
    for _ in range(70):
        little = socket.socket()
        little.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # so that nobody sends much ahead
        little.setblocking(False)
        await asyncio.get_running_loop().sock_connect(little, (address.host, address.port))
        reader, writer = await asyncio.open_connection(sock=little)
        writer.write(request)
        await reader.readuntil(b"response.audio.delta")
        writers.append(writer)
    async with asyncio.timeout(10):
        await gateway.parts.storage.probe()
    for writer in writers:
        writer.close()
