"""Downloads that are broken off, from a store on disk: departures, nothing to raise an alarm about."""

import asyncio
import logging
import socket
import struct
from uuid import uuid4

import httpx
import pytest

from server.storage import Bucket
from tests.gateway import Client, Gateway
from tests.support import wait_for


async def test_a_download_that_is_broken_off_is_a_departure(
    gateway: Gateway, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    audio = bytes(8_000_000)
    key = f"{client.user_id}/{uuid4()}.mp3"
    await gateway.parts.storage.put(Bucket.GENERATIONS, key, audio, content_type="audio/mpeg", size=len(audio))
    link = await gateway.parts.storage.signed_get(
        Bucket.GENERATIONS, key, expires_seconds=600, filename="a.mp3", base_url=gateway.url
    )
    address = httpx.URL(link)
    request = f"GET {address.raw_path.decode()} HTTP/1.1\r\nHost: x\r\n\r\n".encode()

    async def leave(how_much: int) -> None:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(request)
        await reader.readexactly(how_much)
        # A reset, as a browser sends it that stops a player.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    def all_left() -> bool:
        return sum(record.name == "server.access" for record in caplog.records) == 100

    with caplog.at_level(logging.DEBUG):
        await asyncio.gather(*(leave(1 + 997 * number) for number in range(100)))
        await wait_for(all_left)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    departures = [record for record in caplog.records if "broken off" in record.message]
    assert len(departures) == 100
    assert {record.levelno for record in departures} == {logging.DEBUG}
