"""How soon the first audio is there, asked by a native stream and at the OpenAI-shaped door, in turns.

One text after the other, far apart, so that none feels the one before. Says ``{"stream": [ns, …], "door": [ns, …]}``
from each request to the first byte of its audio; the speeches go on until the source is told to end them.
"""

import argparse
import asyncio
import random
import time
from typing import cast

import httptools

from bench.children import run_child, say, stdin_lines
from bench.followers import request_bytes

_GAP_SECONDS = (0.1, 0.2)
_FIRST_SECONDS = 10.0


class First(asyncio.Protocol):
    """One request, until the first bytes that hold audio.

    Attributes:
        waited_ns: From the request to there.
    """

    def __init__(self, request: bytes, marker: bytes) -> None:
        self._request, self._marker = request, marker
        self._parser = httptools.HttpResponseParser(self)
        self.waited_ns: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._began_ns = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._fail(f"answered {self._parser.get_status_code()}: {body[:300]!r}")
        elif self._marker in body and not self.waited_ns.done():
            self.waited_ns.set_result(time.monotonic_ns() - self._began_ns)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("was cut off")

    def _fail(self, what: str) -> None:
        if not self.waited_ns.done():
            self.waited_ns.set_exception(RuntimeError(f"A text {what}."))


async def measure(port: int, token: str, voice_id: str, times: int) -> None:
    """Ask so many times each way."""
    text = "Good evening."
    ways = {
        "stream": (
            request_bytes(
                "POST", "/api/generate/stream", port=port, token=token, body={"voice_id": voice_id, "text": text}
            ),
            b'"delta":"',
        ),
        "door": (
            request_bytes(
                "POST",
                "/v1/audio/speech",
                port=port,
                token=token,
                body={"model": "tts-1", "voice": voice_id, "input": text, "response_format": "pcm"},
            ),
            b"",
        ),
    }
    loop = asyncio.get_running_loop()
    waited: dict[str, list[int]] = {way: [] for way in ways}
    open_: list[First] = []
    for _ in range(times):
        for way, (request, marker) in ways.items():
            _, first = await loop.create_connection(lambda r=request, m=marker: First(r, m), "127.0.0.1", port)  # type: ignore[misc]
            waited[way].append(await asyncio.wait_for(first.waited_ns, _FIRST_SECONDS))
            open_.append(first)  # so that nobody takes its client for gone
            await asyncio.sleep(random.uniform(*_GAP_SECONDS))  # noqa: S311
    say(**waited)


async def main(port: int, token: str, voice_id: str, times: int) -> None:
    """Measure, and keep the streams until the parent hangs up."""
    async with asyncio.TaskGroup() as group:
        measuring = group.create_task(measure(port, token, voice_id, times))
        async for _ in stdin_lines():
            pass
        measuring.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--voice", required=True)
    parser.add_argument("--times", type=int, required=True)
    options = parser.parse_args()
    run_child(main(options.port, options.token, options.voice, options.times))
