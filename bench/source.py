"""A provider that only measures: the realtime protocol with stamped deltas, as light as it can be made.

It speaks as long as it is not told to stop; ``stop`` on its standard input ends every session that runs, properly, with
``response.done`` and ``session.finished``. What it says on its standard output is the port. It ends with its parent.
"""

import asyncio
import random
import time
from typing import Any, cast

import msgspec
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from bench.children import run_child, say, stdin_lines
from bench.stamps import AUDIO_REST, INTERVAL_SECONDS, SAMPLE_RATE_HZ, Stamp, encode_stamp

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Session(asyncio.Protocol):
    """One conversation. The handshake and what the client says go through a real protocol implementation; the deltas,
    which are all of one size, are written straight to the socket."""

    def __init__(self, running: set["Session"]) -> None:
        self._running = running
        self._wire = ServerProtocol()
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._events = 0
        self._deltas = 0
        self._next_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._running.discard(self)
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._wire.receive_data(data)
        for event in self._wire.events_received():
            if isinstance(event, Request):
                self._wire.send_response(self._wire.accept(event))
                self._say("session.created", session={"id": f"sess_{id(self):x}"})
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._hear(_decode(event.data))
        self._flush()

    def _hear(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "session.update":
                wanted = event["session"]
                session = {"response_format": wanted["response_format"], "sample_rate": SAMPLE_RATE_HZ}
                self._say("session.updated", session={"id": f"sess_{id(self):x}", **session})
            case "input_text_buffer.append":
                self._running.add(self)
                self._say("response.created", response={"id": "resp_1", "status": "in_progress"})
                self._flush()
                # The first delta at once: what is measured up to here is ours, not a provider's thinking. The others
                # come at a phase of their own, as those of independent speakers do.
                self._speak()
                self._next_at = self._loop.time() + random.uniform(0.0, INTERVAL_SECONDS)  # noqa: S311
                self._timer = self._loop.call_at(self._next_at, self._tick)

    def _tick(self) -> None:
        if self._stopping:
            self._say("response.done", response={"id": "resp_1", "status": "completed", "usage": {"characters": 12}})
            self._say("session.finished")
            self._flush()
            return
        self._speak()
        # Late is not slow: the schedule stands, and what was held up is made good.
        self._next_at += INTERVAL_SECONDS
        self._timer = self._loop.call_at(self._next_at, self._tick)

    def _speak(self) -> None:
        stamp = encode_stamp(Stamp(time.monotonic_ns(), self._deltas))
        self._deltas += 1
        payload = (
            b'{"event_id":"event_delta%08d","type":"response.audio.delta","response_id":"resp_1","item_id":"item_1",'
            b'"output_index":0,"content_index":0,"delta":"%b%b"}' % (self._deltas, stamp, AUDIO_REST)
        )
        # A whole text frame with a 16-bit length, unmasked as servers send them (RFC 6455, section 5.2).
        self._transport.write(b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload)

    def stop(self) -> None:
        """Finish at the next delta's time instead of sending it."""
        self._stopping = True

    def _say(self, type_: str, **members: Any) -> None:
        self._events += 1
        self._wire.send_text(msgspec.json.encode({"event_id": f"event_{self._events}", "type": type_, **members}))

    def _flush(self) -> None:
        for data in self._wire.data_to_send():
            if data:
                self._transport.write(data)
            else:  # the protocol's way to say that nothing will follow
                self._transport.close()


async def main() -> None:
    """Serve until standard input ends."""
    running: set[Session] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Session(running), "127.0.0.1", 0, backlog=1024)
    say(port=server.sockets[0].getsockname()[1])
    async for line in stdin_lines():
        if line == "stop":
            for session in running:
                session.stop()
    server.close()


if __name__ == "__main__":
    run_child(main())
