"""The page in a real browser, against a real server of each test.

One browser serves all tests of a run, each in a profile of its own. It lives in the loop of the run, so everything
asynchronous here does too: fixtures are made with ``shared``, and modules say ``pytestmark = in_the_shared_loop``.
"""

import math
import re
import struct
import wave
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from server.database.connections import prepare
from server.dev.simulator import Pace, Simulator, running_simulator
from server.settings import Settings
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.page.browser import Tab, open_tab, running_chromium
from tests.support import make_settings

shared = partial(pytest_asyncio.fixture, loop_scope="session")
in_the_shared_loop = pytest.mark.asyncio(loop_scope="session")

#: Faster than speech, so that there is always something to hear, and slow enough to watch.
BRISK = Pace(first_delta_seconds=0.1, speed=4.0, request_seconds=0.0, modal_job_seconds=0.5)
RECORDING_SECONDS = 6.0


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of something like a voice: a buzz in syllables, 48 kHz stereo."""
    path = tmp_path_factory.mktemp("recording") / "my voice.wav"
    rate = 48_000
    frames = bytearray()
    for i in range(int(RECORDING_SECONDS * rate)):
        t = i / rate
        syllable = max(0.0, math.sin(2 * math.pi * 3 * t))
        sample = int(12_000 * syllable * sum(math.sin(2 * math.pi * 140 * k * t) / k for k in (1, 3)))
        frames += struct.pack("<hh", sample, sample)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(frames))
    return path


@shared(scope="session")
async def browser(recording: Path) -> AsyncIterator[Browser]:
    """Chromium, with a microphone into which somebody says the recording."""
    microphone = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={recording}")
    async with running_chromium(*microphone) as running:
        yield running


# --- the fixtures of all tests once more, in the shared loop ----------------------------------------------------------


@shared()
async def simulator() -> AsyncIterator[Simulator]:
    """The simulated providers; their voices speak four times as fast as they are heard."""
    async with running_simulator(pace=BRISK) as running:
        yield running


@pytest.fixture
def differing(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings that a test wants otherwise (parametrized indirectly)."""
    return dict(getattr(request, "param", {}))


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path, differing: dict[str, Any]) -> Settings:
    """A server that serves its page."""
    usual: dict[str, Any] = {"serve_page": True, "shutdown_grace_seconds": 1.0}
    return make_settings(database_url, simulator, tmp_path, **{**usual, **differing})


@shared()
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """The server of this test."""
    async with running_gateway(settings) as running:
        yield running


@shared()
async def client(gateway: Gateway) -> AsyncIterator[Client]:
    """A signed-in user of that server, without any voice or history."""
    async with gateway.client() as signed_in:
        yield signed_in


@shared()
async def voice_id(database_url: str, client: Client) -> UUID:
    """A cloned realtime voice of that user."""
    return await insert_voice(database_url, client.user_id)


@shared()
async def rows(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to the rows behind the server's back."""
    connection = await asyncpg.connect(database_url)
    await prepare(connection)
    try:
        yield connection
    finally:
        await connection.close()


async def copy_voice(rows: "asyncpg.Connection[asyncpg.Record]", voice_id: UUID, name: str, count: int) -> None:
    """That many more voices like this one, called by the name and a number from 0."""
    await rows.execute(
        """INSERT INTO public.voices (id, user_id, name, language, source, tts_provider, provider_voice_id,
                provider_target_model, provider_voice_kind, reference_transcript, created_at)
           SELECT gen_random_uuid(), user_id, $2 || ' ' || n, language, source, tts_provider, provider_voice_id,
                provider_target_model, provider_voice_kind, reference_transcript, now()
             FROM public.voices, generate_series(0, $3 - 1) n WHERE id = $1""",
        voice_id,
        name,
        count,
    )


# --- the page ---------------------------------------------------------------------------------------------------------


class Opener(Protocol):
    """Opens the page for the test's user; see ``open_tab``."""

    def __call__(self, url: str = ..., **options: Any) -> AbstractAsyncContextManager[Tab]: ...


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Browser, gateway: Gateway, client: Client) -> Opener:
    """Opens the page of the test's server, or of another address, signed in as the test's user."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-").removeprefix("test-")

    def open_(url: str = gateway.url, **options: Any) -> AbstractAsyncContextManager[Tab]:
        return open_tab(browser, url, **{"name": name, "token": client.token, **options})

    return open_


@shared()
async def tab(opened: Opener, voice_id: UUID) -> AsyncIterator[Tab]:
    """The page, shown to a user with one voice, which is chosen."""
    async with opened() as page:
        await page.ready()
        yield page
