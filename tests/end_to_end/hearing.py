"""Ears for tests: following a stream's address as a browser or a program would, and noting all of it."""

import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.dev.simulator import Planned, Simulator
from tests.gateway import Event, read_events

# Three whole MP3 frames, so that no lane holds any of it back.
DELTA_BYTES = 1152
EVENTS = {"Accept": "text/event-stream"}
AUDIO = {"Accept": "audio/*"}


@dataclass
class Heard:
    """What one connection brought, from ``start`` on."""

    start: int
    audio: bytes = b""
    events: list[Event] = field(default_factory=list)

    @property
    def tasks(self) -> list[Event]:
        return [event for event in self.events if event.name == "task"]

    @property
    def deltas(self) -> list[Event]:
        return [event for event in self.events if event.name == "response.audio.delta"]

    @property
    def end(self) -> dict[str, Any] | None:
        """The task in the terminal event, if that came."""
        last = self.events[-1] if self.events else None
        return last.data if last and last.terminal else None

    def take(self, event: Event) -> None:
        """Note one event; a delta's id must be the offset at its end."""
        self.events.append(event)
        if event.name == "response.audio.delta":
            audio = base64.b64decode(event.data["delta"])
            assert 0 < len(audio) <= 16 * 1024
            self.audio += audio
            assert event.id == str(self.start + len(self.audio)), "an id is the payload offset at the end of its delta"


class Ears:
    """Someone without a token, who knows addresses with tickets."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=20.0)

    async def __aenter__(self) -> "Ears":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    @contextlib.asynccontextmanager
    async def open(self, url: str, headers: Mapping[str, str] = EVENTS) -> AsyncIterator[httpx.Response]:
        """The response as soon as its headers are here; broken off at the end of the block."""
        async with self.http.stream("GET", url, headers=headers) as response:
            yield response

    async def hear(
        self, url: str, headers: Mapping[str, str] = EVENTS, *, start: int = 0, until: int | None = None
    ) -> Heard:
        """Follow as an EventSource.

        Args:
            start: The payload offset at which the answer has to begin.
            until: Leave once the audio up to this payload offset was heard; without it, stay until the server ends.
        """
        heard = Heard(start)
        if until is not None and until <= start:
            return heard
        async with self.open(url, {**EVENTS, **headers}) as response:
            assert response.status_code == 200, (await response.aread()).decode()
            assert response.headers["content-type"].startswith("text/event-stream")
            async for event in read_events(response):
                heard.take(event)
                if until is not None and start + len(heard.audio) >= until:
                    break
        return heard

    async def hear_audio(self, url: str) -> tuple[bytes, bool]:
        """Follow as an audio element: the bytes, and whether the body ended properly."""
        audio = bytearray()
        try:
            async with self.open(url, AUDIO) as response:
                assert response.status_code == 200, (await response.aread()).decode()
                async for part in response.aiter_raw():
                    audio += part
        except httpx.RemoteProtocolError as exc:
            if "incomplete chunked read" not in str(exc):
                raise
            return bytes(audio), False
        return bytes(audio), True


def hold_after(simulator: Simulator, deltas: int, *, then: dict[str, Any] | None = None, **behaviour: Any) -> Planned:
    """The next session stops after so many deltas until it is released.

    Args:
        then: A fault that follows at once.
        behaviour: Further knobs of the session, e.g. ``minimum_bytes``.
    """
    faults: list[dict[str, Any]] = [{"do": "hold", "after_deltas": deltas}]
    if then:
        faults.append({"after_deltas": deltas, **then})
    match = {name: behaviour.pop(name) for name in ("text_contains",) if name in behaviour}
    shape = {"minimum_bytes": (deltas + 3) * DELTA_BYTES, **behaviour}
    if "delta_sizes" not in shape:
        shape.setdefault("delta_bytes", DELTA_BYTES)
    return simulator.behave("realtime", {**shape, "faults": faults}, **match)
