"""Many clients in one process, each reading one event stream as an ``EventSource`` would, and timing every delta.

It starts its streams one after the other and says ``{"running": n, "problems": […]}`` when all of them have audio. Told
to ``probe`` it starts a few more, whose first audio is timed, and says ``{"probed": n}``. When all have ended it says
everything it saw, as ``Seen``. Given paths it follows
those speeches, in turns. It ends with its parent.
"""

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from typing import Any, cast

import httptools
import msgspec

from bench.children import run_child, say, stdin_lines
from bench.stamps import STAMP_LETTERS, decode_stamp

# A random time between two starts. Of the streams that are only there to run: 50 a second, or filling up would take
# longer than measuring. Of those whose start is timed: far apart, as people's are, and still far denser than any
# provider allows.
_START_GAP_SECONDS = (0.01, 0.03)
_PROBE_GAP_SECONDS = (0.05, 0.15)
_MARKER = b'"delta":"'


class Seen(msgspec.Struct):
    """What the followers saw; times are ``time.monotonic_ns``.

    Attributes:
        first_audio_ns: For each probe from its request to its first audio.
        sent_ns, received_ns: When each delta left the source, and when its event was here as a whole.
        ended_ns: When each stream had ended, and what it was of was stored.
        problems: One sentence for each stream that was not as it should be.
    """

    first_audio_ns: list[int] = []
    sent_ns: list[int] = []
    received_ns: list[int] = []
    ended_ns: list[int] = []
    problems: list[str] = []


class Stream(asyncio.Protocol):
    """One request and its event stream."""

    def __init__(self, request: bytes, seen: Seen, *, ends_with_task: bool, timed: bool, joins: bool = False) -> None:
        self._request = request
        self._joins = joins  # in the middle of a speech
        self._timed = timed
        self._seen = seen
        self._ends_with_task = ends_with_task
        self._parser = httptools.HttpResponseParser(self)
        self._held = bytearray()
        self._searched = 0
        self._next_index = 0
        self._last_task = b""
        self._offset: int | None = None
        self.has_audio = asyncio.Event()
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        self._started_ns = time.monotonic_ns()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._held += body
        while (end := self._held.find(b"\n\n", self._searched)) >= 0:
            self._event(end)
            del self._held[: end + 2]
            self._searched = 0
        self._searched = max(0, len(self._held) - 1)

    def _event(self, end: int) -> None:
        at = self._held.find(_MARKER, 0, end)
        if at < 0:
            if self._held.startswith(b"event: task"):
                self._last_task = bytes(self._held[:end])
            return
        now = time.monotonic_ns()
        at += len(_MARKER)
        stamp = decode_stamp(bytes(self._held[at : at + STAMP_LETTERS]))
        # Who follows from elsewhere gets what a tick brought in one, cut where an event may be no longer: such a cut
        # may lie behind a stamp.
        if stamp.sent_ns:
            self._seen.sent_ns.append(stamp.sent_ns)
            self._seen.received_ns.append(now)
        if self._joins:
            self._require_offset(at, end)
        elif stamp.delta != self._next_index:
            self._problem(f"expected delta {self._next_index}, got {stamp.delta}")
        self._next_index = stamp.delta + 1
        if not self.has_audio.is_set():
            if self._timed:
                self._seen.first_audio_ns.append(now - self._started_ns)
            self.has_audio.set()

    def _require_offset(self, at: int, end: int) -> None:
        """An event begins where the one before it ended."""
        stop = int(self._held[self._held.index(b"id: ") + 4 : self._held.index(b"\ndata")])
        letters = self._held[at : self._held.index(b'"', at, end)]
        start = stop - (len(letters) * 3 // 4 - letters.count(b"="))
        if self._offset is not None and start != self._offset:
            self._problem(f"expected byte {self._offset}, got {start}")
        self._offset = stop

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._problem(f"answered {status}: {bytes(self._held[:300])!r}")
        elif not self._next_index:
            self._problem("ended without audio")
        elif self._ends_with_task and b'"status":"completed"' not in self._last_task:
            self._problem(f"did not end completed: {self._last_task[-300:]!r}")
        self._seen.ended_ns.append(time.monotonic_ns())
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.is_set():
            self._problem("was cut off")
            self._end()

    def _end(self) -> None:
        self.has_audio.set()
        self.ended.set()
        self._transport.close()

    def _problem(self, what: str) -> None:
        self._seen.problems.append(f"A stream {what}.")


def request_bytes(method: str, path: str, *, port: int, token: str = "", body: dict[str, Any] | None = None) -> bytes:
    """One HTTP/1.1 request."""
    content = msgspec.json.encode(body) if body else b""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"] if body else []
    return "\r\n".join([*lines, "Accept: text/event-stream", "", ""]).encode() + content


class Followers:
    """All streams of this process: of the server, or of a relay where there is no token.

    Args:
        paths: Of speeches that they follow in turns, where each has none of its own.
        probe_gap_seconds: The shortest and the longest time between two starts that are timed.
    """

    def __init__(
        self, port: int, token: str, voice_id: str, paths: list[str], probe_gap_seconds: tuple[float, float]
    ) -> None:
        self._port = port
        self._token = token
        self._joins = bool(paths)
        self._requests: Iterator[bytes]
        self._probe_gap_seconds = probe_gap_seconds
        self._seen = Seen()
        self._streams: list[Stream] = []
        if paths:
            self._requests = itertools.cycle([request_bytes("GET", path, port=port) for path in paths])
        elif token:
            body = {"voice_id": voice_id, "text": "Good evening.", "language": "English"}
            request = request_bytes("POST", "/api/generate/stream", port=port, token=token, body=body)
            self._requests = itertools.repeat(request)
        else:
            self._requests = itertools.repeat(request_bytes("GET", "/stream", port=port))

    async def run(self, count: int, probes: int, probe: asyncio.Event) -> None:
        """Follow ``count`` streams, and so many more once ``probe`` is set, to the end of all of them."""
        await self._start(count, _START_GAP_SECONDS, timed=False)
        say(running=count, problems=self._seen.problems)
        await probe.wait()
        await self._start(probes, self._probe_gap_seconds, timed=True)
        say(probed=probes)
        for stream in self._streams:
            await stream.ended.wait()
        say(**msgspec.structs.asdict(self._seen))

    async def _start(self, count: int, gap_seconds: tuple[float, float], *, timed: bool) -> None:
        """Start streams, and return when every one has audio or has failed."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, stream = await loop.create_connection(lambda: self._new_stream(timed=timed), "127.0.0.1", self._port)
            self._streams.append(stream)
            await asyncio.sleep(random.uniform(*gap_seconds))  # noqa: S311
        for stream in self._streams:
            await stream.has_audio.wait()

    def _new_stream(self, *, timed: bool) -> Stream:
        task = bool(self._token or self._joins)
        return Stream(next(self._requests), self._seen, ends_with_task=task, timed=timed, joins=self._joins)


async def main(followers: Followers, count: int, probes: int) -> None:
    """Follow, and give up when the parent hangs up."""
    probe = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        following = group.create_task(followers.run(count, probes, probe))
        async for line in stdin_lines():
            if line == "probe":
                probe.set()
        following.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--probes", type=int, required=True)
    parser.add_argument("--token", default="")
    parser.add_argument("--voice", default="")
    parser.add_argument("--path", nargs="*", default=[])
    parser.add_argument("--probe-gap", type=float, nargs=2, default=_PROBE_GAP_SECONDS)
    options = parser.parse_args()
    gap = (options.probe_gap[0], options.probe_gap[1])
    followers = Followers(options.port, options.token, options.voice, options.path, gap)
    run_child(main(followers, options.streams, options.probes))
