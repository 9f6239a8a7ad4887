"""Every address that is handed out leads back here, whatever stands in front of the server."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.handlers.requests import _warn_of_internal_host
from server.settings import Settings, StorageSettings
from server.storage import Bucket
from server.storage.open import open_store
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.support import AUTH_JWT_SECRET
from tests.voices import cloned, previewed, recording, save

BASE = "https://voice.example/speech"


@pytest.fixture
async def behind(settings: Settings) -> AsyncIterator[Gateway]:
    """A server that browsers reach at `BASE`: a proxy takes the prefix away."""
    async with running_gateway(replace(settings, public_base_url=BASE)) as running:
        yield running


async def test_a_base_with_a_path_stands_in_front_of_every_address(behind: Gateway, database_url: str) -> None:
    async with behind.client() as client, httpx.AsyncClient(base_url=client.url) as anybody:

        def inside(address: str) -> str:
            """The address as the proxy passes it on."""
            path = address.removeprefix("https://voice.example")
            assert path.startswith("/speech/"), address
            return path.removeprefix("/speech")

        asked = {"name": "Ada", "language": "English", "transcript": ""}
        link = (await client.http.post("/api/clone/upload-url", json=asked)).json()
        assert link["upload_url"].startswith(f"{BASE}/api/")
        assert (await anybody.put(inside(link["upload_url"]), content=recording())).status_code == 200
        asked["voice_id"] = link["voice_id"]
        assert (await client.http.post("/api/clone/finalize", json=asked)).status_code == 200

        task = (await client.http.post("/api/generate", json={"voice_id": link["voice_id"], "text": "Hello."})).json()
        assert (await anybody.get(inside(task["stream_url"]))).status_code == 200
        ended = await client.ended(task["task_id"])
        [entry] = (await client.http.get("/api/generations")).json()["generations"]
        again = (await client.http.post(f"/api/generations/{entry['id']}/regenerate")).json()
        assert inside(again["redirect_url"]).startswith("/generate?")
        for address in (ended["result"]["audio_url"], entry["audio_path"], f"{task['stream_url']}&as=audio"):
            moved = await client.http.get(inside(address))
            assert moved.status_code == 302
            assert (await anybody.get(inside(moved.headers["location"]))).status_code == 200
        preview = await client.task(await previewed(client))
        assert (await anybody.get(inside(preview["result"]["audio_url"]))).status_code == 200
        kept = (await save(client, preview["id"])).json()
        moved = await client.http.get(inside(kept["preview_url"]))
        assert (await anybody.get(inside(moved.headers["location"]))).status_code == 200


async def test_everything_that_is_fetched_lies_below_api(client: Client, database_url: str) -> None:
    """So that a proxy which passes only that passes everything."""
    voice_id = await cloned(client)
    answer = await client.generate(await insert_voice(database_url, client.user_id))
    await client.ended(answer["task_id"])
    audio = (await client.http.get(f"/api/generations/{answer['generation_id']}/audio")).headers["location"]
    recorded = (await client.http.get(f"/api/voices/{voice_id}/preview")).headers["location"]
    for address in (answer["stream_url"], audio, recorded):
        assert address.startswith("/api/")


async def upload_url(gateway: Gateway, **headers: str) -> str:
    async with gateway.client() as client:
        asked = {"name": "Ada", "language": "English", "transcript": ""}
        answer = await client.http.post("/api/clone/upload-url", json=asked, headers=headers)
        url: str = answer.json()["upload_url"]
        return url.partition("/api/")[0]


async def test_the_host_that_a_trusted_proxy_names_is_believed_like_its_scheme(
    gateway: Gateway, settings: Settings
) -> None:
    told = {"Host": "inner:8000", "X-Forwarded-Host": "voice.example", "X-Forwarded-Proto": "https"}
    assert await upload_url(gateway, **told) == "https://voice.example"
    assert await upload_url(gateway, **{**told, "X-Forwarded-Host": "a.example, b.example"}) == "https://a.example"
    assert (await upload_url(gateway, **{**told, "X-Forwarded-Host": "<script>"})).startswith("https://127.0.0.1")
    async with running_gateway(replace(settings, forwarded_allow_ips="192.0.2.1")) as distrustful:
        assert await upload_url(distrustful, **told) == "http://inner:8000"


@pytest.mark.parametrize(
    ("host", "internal"),
    [
        ("utter_upstream:8000", True),
        ("utter", True),
        ("app.internal", True),
        ("utter.default.svc:8000", True),
        ("voice.example", False),
        ("localhost:8000", False),
        ("127.0.0.1:8000", False),
        ("[::1]:8000", False),
    ],
)
async def test_a_link_to_an_inner_host_is_warned_of_once(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, host: str, internal: bool
) -> None:
    _warn_of_internal_host.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await upload_url(gateway, Host=host)
    warned = [record.getMessage() for record in caplog.records if "PUBLIC_BASE_URL" in record.getMessage()]
    assert len(warned) == (1 if internal else 0)
    assert all(host in message for message in warned)


@pytest.mark.parametrize("region", ["eu-south-1", "us-east-1", "ap-southeast-1"])
async def test_links_to_amazon_name_the_region_as_our_own_calls_do(
    monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    async with open_store(StorageSettings(kind="s3", region=region), AUTH_JWT_SECRET.encode()) as store:
        links: list[Any] = [
            await store.signed_put(Bucket.REFERENCES, "a/b.wav", expires_seconds=60, base_url=""),
            await store.signed_get(Bucket.REFERENCES, "a/b.wav", expires_seconds=60, filename="b.wav"),
            await store.signed_get(Bucket.REFERENCES, "a/b.wav", expires_seconds=60, filename="b.wav", head=True),
        ]
    assert {httpx.URL(link).host for link in links} == {f"references.s3.{region}.amazonaws.com"}
