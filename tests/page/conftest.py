"""The page in a real browser, against a real server of each test."""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import pytest
from playwright.async_api import Browser

from server.dev.simulator import Pace, Simulator
from server.settings import Settings
from tests.gateway import Client, Gateway
from tests.page.browser import Tab, open_tab, running_chromium
from tests.support import make_settings

#: Faster than speech, so that there is always something to hear, and slow enough to watch.
BRISK = Pace(first_delta_seconds=0.1, speed=4.0, request_seconds=0.0, modal_job_seconds=0.5)


@pytest.fixture
def differing(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings that a test wants otherwise (parametrized indirectly)."""
    return dict(getattr(request, "param", {}))


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path, differing: dict[str, Any]) -> Settings:
    """A server that serves its page; the simulated voice speaks four times as fast as it is heard."""
    simulator.pace = BRISK
    return make_settings(
        database_url, simulator, tmp_path, serve_page=True, shutdown_grace_seconds=1.0, **differing
    )


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Chromium, without any page."""
    async with running_chromium() as running:
        yield running


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


@pytest.fixture
async def tab(opened: Opener, voice_id: UUID) -> AsyncIterator[Tab]:
    """The page, shown to a user with one voice, which is chosen."""
    async with opened() as shown:
        await shown.ready()
        yield shown
