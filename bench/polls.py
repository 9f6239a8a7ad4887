"""Clients that poll one address as fast as they are answered, each over a connection that it keeps."""

import argparse
import asyncio
import time
from typing import cast

import httptools

from bench.children import run_child, say
from bench.followers import request_bytes

CONNECTIONS = 8


class Poller(asyncio.Protocol):
    """One connection with one request under way at any time.

    Attributes:
        answered: Answers so far.
        problem: What went wrong, if something did; the connection is closed then.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self.answered = 0
        self.problem = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if (status := self._parser.get_status_code()) != 200:
            self.problem = f"A poll was answered {status}."
            self._transport.close()
            return
        self.answered += 1
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        self.problem = self.problem or "A poll's connection was cut off."


async def main(port: int, path: str, token: str, seconds: float) -> None:
    """Poll for that long, then say how often."""
    request = request_bytes("GET", path, port=port, token=token)
    loop = asyncio.get_running_loop()
    pollers = [
        (await loop.create_connection(lambda: Poller(request), "127.0.0.1", port))[1] for _ in range(CONNECTIONS)
    ]
    started = time.monotonic()
    await asyncio.sleep(seconds)
    say(
        requests_per_second=sum(poller.answered for poller in pollers) / (time.monotonic() - started),
        problems=[poller.problem for poller in pollers if poller.problem],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--token", default="")
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    run_child(main(options.port, options.path, options.token, options.seconds))
