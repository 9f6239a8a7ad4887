"""A plain client of the realtime protocol, for tests of the simulator: it sends as told and keeps all it hears."""

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import mutagen.mp3
import websockets
from websockets.asyncio.client import ClientConnection

from server.dev.simulator import API_KEY, Simulator

VC_REALTIME = "qwen3-tts-vc-realtime-2026-01-15"
VD_REALTIME = "qwen3-tts-vd-realtime-2026-01-15"
VOICE = "qwen-tts-vc-narrator-voice-20260101000000000-abcd"
TEXT = "Hello there, this is a simulation. It says a second sentence, too. And a third one."


def mp3_info(audio: bytes) -> Any:
    """What an independent reader of MP3 finds in these bytes."""
    file: Any = mutagen.mp3.MP3(io.BytesIO(audio))  # type: ignore[no-untyped-call]
    return file.info


def mp3_seconds(audio: bytes) -> float:
    """How long these bytes play."""
    return float(mp3_info(audio).length)


@dataclass
class Heard:
    """A session as its client saw it: frames in order, and how the socket ended."""

    frames: list[str | bytes] = field(default_factory=list)
    close_code: int | None = None
    close_reason: str | None = None

    @property
    def events(self) -> list[dict[str, Any]]:
        """The frames that are JSON objects."""
        parsed = []
        for frame in self.frames:
            try:
                parsed.append(json.loads(frame))
            except ValueError:
                continue
        return parsed

    @property
    def types(self) -> list[str]:
        """The types of events, without the repetition of deltas."""
        types: list[str] = []
        for event in self.events:
            if event["type"] != "response.audio.delta" or types[-1:] != [event["type"]]:
                types.append(event["type"])
        return types

    @property
    def deltas(self) -> list[bytes]:
        """The audio of each delta."""
        return [base64.b64decode(event["delta"]) for event in self.of("response.audio.delta")]

    @property
    def audio(self) -> bytes:
        """All audio, joined."""
        return b"".join(self.deltas)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type."""
        return [event for event in self.events if event["type"] == kind]


class Conversation:
    """An open session. Event ids are counted."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.heard = Heard()
        self._sent = 0

    async def send(self, kind: str, **members: Any) -> None:
        """Send one event."""
        self._sent += 1
        await self.socket.send(json.dumps({"event_id": f"e{self._sent}", "type": kind, **members}))

    async def until(self, kind: str) -> dict[str, Any]:
        """Listen until an event of this type arrives."""
        async for frame in self.socket:
            self.heard.frames.append(frame)
            if (event := self.heard.events[-1])["type"] == kind:
                return event
        raise AssertionError(f"the socket ended without {kind}")

    async def until_the_end(self) -> Heard:
        """Listen until the socket is closed, by whomever."""
        try:
            async for frame in self.socket:
                self.heard.frames.append(frame)
        except websockets.ConnectionClosed:
            pass
        self.heard.close_code, self.heard.close_reason = self.socket.close_code, self.socket.close_reason
        return self.heard


@asynccontextmanager
async def conversation(
    simulator: Simulator, *, model: str = VC_REALTIME, key: str = API_KEY
) -> AsyncIterator[Conversation]:
    """An open session; closed at the end."""
    address = f"{simulator.environment()['DASHSCOPE_WS_URL']}?model={model}"
    headers = {"Authorization": f"Bearer {key}"}
    async with websockets.connect(
        address, additional_headers=headers, compression=None, proxy=None, max_size=None
    ) as socket:
        yield Conversation(socket)


async def spoken(
    simulator: Simulator,
    text: str = TEXT,
    *,
    model: str = VC_REALTIME,
    voice: str = VOICE,
    leave_on_error: bool = True,
    **session: Any,
) -> Heard:
    """Speak one text as our server would: update, append, finish, and listen to the end (or to the first error)."""
    async with conversation(simulator, model=model) as talk:
        try:
            await talk.send("session.update", session={"voice": voice, "response_format": "mp3", **session})
            await talk.send("input_text_buffer.append", text=text)
            await talk.send("session.finish")
            async for frame in talk.socket:
                talk.heard.frames.append(frame)
                if leave_on_error and b'"error"' in (frame if isinstance(frame, bytes) else frame.encode()):
                    break
        except websockets.ConnectionClosed:
            pass
    talk.heard.close_code, talk.heard.close_reason = talk.socket.close_code, talk.socket.close_reason
    return talk.heard
