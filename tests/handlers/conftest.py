"""Servers for tests of single requests."""

import pytest

from server.database.queue import SYNTHESIS
from tests.gateway import Gateway
from tests.support import wait_for


@pytest.fixture
async def unspoken(gateway: Gateway) -> None:
    """That server takes texts and speaks none of them, so everything stays as the request left it."""
    gateway.parts.queue.stop(SYNTHESIS)
    await wait_for(lambda: not gateway.parts.queue.up([SYNTHESIS]))
