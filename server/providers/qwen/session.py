"""The loop that owns one WebSocket per speech: connecting, deadlines, pacing and the end.

What the frames mean is decided by a dialogue without I/O (``events``, ``inference_events``); here is only when they
come, or that they do not. Every lane that is spoken over a socket is this loop with a dialogue of its own.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, cast

import anyio
import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from server.errors import ProviderError, ProviderTimeout, ProviderUnavailable
from server.providers.pacing import Pacer
from server.providers.qwen.errors import (
    OPENED_AND_CLOSED,
    OperatorAlarm,
    classify,
    classify_close,
    operator_alarm,
    read_envelope,
    violation,
)
from server.providers.speech import AudioDelta, SpeechEvent, SpeechRequest, SpeechStatus, Take
from server.settings import Deadlines, Settings

# The size of a delta is not documented; a whole text of 2000 characters as PCM in Base64 is about 13 MB.
MAX_FRAME_BYTES = 16 * 1024 * 1024
# How long a polite close may take before the socket is cut. Nothing waits for a provider that we have left.
CLOSE_SECONDS = 0.2
# How soon a deadline that passed while the listener was busy elsewhere is looked at again.
_CHECK_AGAIN_SECONDS = 0.01

# At DEBUG the library prints headers, and so the key; this logger never reaches that level.
_wire_log = logging.getLogger(f"{__name__}.wire")
_wire_log.setLevel(logging.INFO)


class Dialogue(Protocol):
    """One text spoken in one session, as a state machine: fed with frames, asked for frames, done at ``finished``."""

    @property
    def text_sent(self) -> bool:
        """The frames that carry the text were handed out, so the provider may bill them."""

    @property
    def audio_bytes(self) -> int:
        """Bytes of audio handed on so far."""

    @property
    def finished(self) -> bool:
        """The provider said that it is done, with audio and without an error."""

    def frames_to_send(self) -> list[str]:
        """Text frames to send now, in order. Drained: each is returned once."""

    def frames_to_leave(self) -> list[str]:
        """What is said before a session is left early; nothing where closing says it all."""

    def receive(self, frame: bytes | str) -> tuple[SpeechEvent, ...]:
        """What one frame means, in order; raises ``ProviderError`` where the session is over."""

    def facts(self) -> dict[str, Any]:
        """What is known so far, for the row."""

    def note_request(self, request_id: object) -> None:
        """A request id that was learnt outside the frames."""


class Unheard:
    """A dialogue that says nothing and hears nothing."""

    text_sent = False
    audio_bytes = 0
    finished = False

    def frames_to_send(self) -> list[str]:
        return []

    def frames_to_leave(self) -> list[str]:
        return []

    def receive(self, frame: bytes | str) -> tuple[SpeechEvent, ...]:
        return ()

    def facts(self) -> dict[str, Any]:
        return {}

    def note_request(self, request_id: object) -> None:
        pass


class Sockets:
    """What the sessions of one lane share: the address, the key, the pace, the trusted certificates.

    Args:
        address: The endpoint, with its query where it has one.
        tells_frames_apart: Binary frames mean something else than text frames; otherwise both are read as bytes, which
            saves decoding every delta.
        pacer: Spaces the starts, each model's by itself, and hears of every throttle.
        alarm: Hears of every error that only the operator can mend.
    """

    def __init__(
        self,
        settings: Settings,
        address: str,
        pacer: Pacer,
        alarm: OperatorAlarm = operator_alarm,
        *,
        tells_frames_apart: bool = False,
    ) -> None:
        self.deadlines: Deadlines = settings.deadlines
        self.address = address
        self.pacer = pacer
        self.alarm = alarm
        self.decode = None if tells_frames_apart else False
        # Built once: loading the trusted certificates costs as much as a hundred deltas.
        self.ssl = httpx.create_ssl_context() if address.startswith("wss://") else None
        self.headers = {"Authorization": f"Bearer {settings.dashscope_api_key}"}
        if settings.dashscope_workspace:
            self.headers["X-DashScope-WorkSpace"] = settings.dashscope_workspace

    async def knock(self, *, query: str = "", answers: bool) -> None:
        """Open a session and leave it: nothing is said, and nothing is billed.

        Args:
            answers: Wait for the first thing that the provider says, which tells whether it knows the model.

        Raises:
            ProviderError: It does not open one, or closes it.
        """
        nobody = SpeechRequest(text="", voice="", model="")
        await self.speak(nobody, Unheard(), query=query).knock(answers=answers)

    def speak(
        self, request: SpeechRequest, dialogue: Dialogue, *, query: str = "", take: Take | None = None
    ) -> "SocketSpeech":
        """Prepare one session; it is connected when it is iterated."""
        joint = ("&" if "?" in self.address else "?") if query else ""
        return SocketSpeech(self, f"{self.address}{joint}{query}", request, dialogue, take)


class SocketSpeech:
    """One session, iterated once inside its ``async with``. The socket is gone when that block is left.

    Iterating raises:
        ProviderUnavailable: Not reached, throttled, closed early, failed on the provider's side, or unreadable.
        ProviderRejected, VoiceGone: The provider refuses the key, the voice, the model or the text.
        ProviderTimeout: A deadline passed after the text was sent; it may have been billed.
    Each carries the session's facts in ``diagnostics``.
    """

    def __init__(
        self, sockets: Sockets, address: str, request: SpeechRequest, dialogue: Dialogue, take: Take | None = None
    ) -> None:
        self._sockets = sockets
        self._take = take
        self._address = address
        self._deadlines = sockets.deadlines
        self._characters = len(request.text)
        self._model = request.model
        self._start_by = request.start_by
        self._dialogue = dialogue
        self._socket: _Socket | None = None
        self._ready: deque[SpeechEvent] = deque()
        self._heard: tuple[SpeechEvent, ...] | Exception | None = None
        self._begun = False
        self._over = False
        self._session_ends_at = 0.0
        self._first_delta_by: float | None = None
        self._waiting_since: float | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._overdue: ProviderError | None = None

    @property
    def text_sent(self) -> bool:
        """Whether the text has left us, so that the provider may have billed it."""
        return self._dialogue.text_sent

    @property
    def audio_bytes(self) -> int:
        """Bytes of audio handed on so far."""
        return self._dialogue.audio_bytes

    def facts(self) -> dict[str, Any]:
        """What is known so far, as in ``SpeechEnd``; also for a speech that was cancelled."""
        return self._dialogue.facts()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left_early, self._over = not self._over, True
        if self._clock:
            self._clock.cancel()
        socket, self._socket = self._socket, None
        if socket is None:
            return
        try:
            # What leaves is on its way before anything is awaited that a cancelled task could not finish, so that the
            # provider can stop speaking (and billing) at once; whether it answers is its own affair.
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                for frame in self._dialogue.frames_to_leave() if left_early else ():
                    await socket.send(frame)
                await socket.close()
        except ConnectionClosed:
            pass  # it was gone before we could say so
        finally:
            socket.transport.abort()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        ready = self._ready
        try:
            while not ready:
                if self._over:
                    raise StopAsyncIteration
                if self._socket is None:
                    await self._begin()
                else:
                    ready.extend(self._receive(await self._frame(self._socket)))
                    if self._dialogue.finished:
                        self._over = True
                    elif frames := self._dialogue.frames_to_send():
                        await self._send(self._socket, frames)
        except ProviderError as error:
            self._over = True
            if not self.text_sent:
                _note_silence(error)
            error.diagnostics = {**self.facts(), **error.diagnostics, "text_sent": self.text_sent}
            if error.throttled:
                await self._sockets.pacer.throttled(self._model)
            self._sockets.alarm.hear(error)
            raise
        return ready.popleft()

    def _receive(self, frame: bytes | str) -> tuple[SpeechEvent, ...]:
        """What a frame means, unless that was found out where it arrived."""
        heard, self._heard = self._heard, None
        if isinstance(heard, Exception):
            raise heard
        return self._dialogue.receive(frame) if heard is None else heard

    async def knock(self, *, answers: bool) -> None:
        """See ``Sockets.knock``."""
        async with self:
            socket = self._socket = await self._connect()
            try:
                async with asyncio.timeout(self._deadlines.connect_seconds if answers else 0.0):
                    await socket.recv()
            except TimeoutError as exc:
                if answers:
                    raise ProviderUnavailable(diagnostics={"code": "silence"}) from exc
                return
            except ConnectionClosed as exc:
                raise _note_silence(_closed(socket)) from exc
            with contextlib.suppress(TimeoutError):  # it stays, as it should
                async with asyncio.timeout(self._deadlines.stays_open_seconds):
                    await socket.wait_closed()
                raise _note_silence(_closed(socket))

    async def _begin(self) -> None:
        """First tell that we are connecting, then, when asked again, connect."""
        if not self._begun:
            self._begun = True
            self._ready.append(SpeechStatus("ws_connecting"))
            return
        await self._sockets.pacer.start(self._model, by=self._start_by)
        loop = asyncio.get_running_loop()
        self._socket = await self._connect()
        self._socket.offer = self._hear
        per_char = self._deadlines.session_seconds_per_char * self._characters
        self._session_ends_at = loop.time() + self._deadlines.session_seconds + per_char
        self._check_deadlines(self._socket)
        await self._send(self._socket, self._dialogue.frames_to_send())

    async def _connect(self) -> "_Socket":
        try:
            connected = await _Connect(
                self._address,
                create_connection=_Socket,
                additional_headers=self._sockets.headers,
                user_agent_header="utter-server",
                compression=None,
                open_timeout=self._deadlines.connect_seconds,
                # No pings: the silence deadline finds a dead socket sooner than they would.
                ping_interval=None,
                close_timeout=CLOSE_SECONDS,
                max_size=MAX_FRAME_BYTES,
                logger=_wire_log,
                ssl=self._sockets.ssl,
            )
        except InvalidStatus as exc:
            response = exc.response
            envelope = read_envelope(response.body)
            request_id = envelope.request_id or _request_id(response.headers)
            raise classify(
                envelope.code,
                envelope.message,
                http_status=response.status_code,
                diagnostics={"request_id": request_id} if request_id else None,
            ) from exc
        except TimeoutError as exc:
            raise ProviderUnavailable(
                "The speech provider could not be reached in time. Please try again in a moment.",
                diagnostics={"code": "connect_timeout"},
            ) from exc
        except (OSError, EOFError, WebSocketException) as exc:
            raise ProviderUnavailable(
                "The speech provider could not be reached. Please try again in a moment.",
                diagnostics={"code": "connect_failed", "message": type(exc).__name__},
            ) from exc
        socket = cast("_Socket", connected)
        if socket.response is not None:
            self._dialogue.note_request(_request_id(socket.response.headers))
        return socket

    async def _send(self, socket: ClientConnection, frames: list[str]) -> None:
        if self.text_sent and self._first_delta_by is None:
            self._first_delta_by = asyncio.get_running_loop().time() + self._deadlines.first_delta_seconds
            self._check_deadlines(socket)
        try:
            async with asyncio.timeout(self._deadlines.silence_seconds):
                for frame in frames:
                    await socket.send(frame)
        except TimeoutError as exc:
            raise self._too_late("send_timeout") from exc
        except ConnectionClosed:
            pass  # what they said last is still to be read, and may be the reason; reading ends with the close

    async def _frame(self, socket: ClientConnection) -> bytes | str:
        """The next frame, within the nearest of the three deadlines."""
        self._waiting_since = (
            time.monotonic()
        )  # the loop's clock; to ask for the loop at every frame costs a system call
        try:
            return await socket.recv(decode=self._sockets.decode)
        except ConnectionClosed as exc:
            raise (self._overdue or _closed(socket)) from exc
        finally:
            self._waiting_since = None

    def _hear(self, message: Frame) -> bool:
        """Take a message where it arrives, if it brings nothing but more audio; False has it wake whoever iterates.

        Waking a task, to have it yield what is handed on next, costs as much as taking a delta apart.
        """
        waits = self._waiting_since is not None and not self._over
        self._waiting_since = None  # what comes behind it waits for its turn
        if not waits or self._take is None or not self._dialogue.audio_bytes:
            return False
        data = bytes(message.data)
        try:
            frame = data.decode() if message.opcode is Opcode.TEXT and self._sockets.decode is None else data
        except UnicodeDecodeError:
            return False
        try:
            events = self._dialogue.receive(frame)
        except Exception as exc:  # noqa: BLE001 - raised where it is iterated
            self._heard = exc
            return False
        deltas = [event for event in events if type(event) is AudioDelta]
        if len(deltas) < len(events):
            self._heard = events
            return False
        for delta in deltas:
            self._take(delta)
        self._waiting_since = time.monotonic()
        return True

    def _check_deadlines(self, socket: ClientConnection) -> None:
        """Break the connection off if a deadline has passed while we waited; else look again when the next one does.

        One timer for the whole session: one for every frame, set and cleared, costs as much as taking the frame apart.
        """
        if self._clock:
            self._clock.cancel()
        loop = asyncio.get_running_loop()
        now, since = loop.time(), self._waiting_since
        until, what = self._nearest_deadline(now if since is None else since)
        if since is None or now < until:
            # Nobody is kept waiting who is not waiting: what has come meanwhile is read first.
            self._clock = loop.call_at(max(until, now + _CHECK_AGAIN_SECONDS), self._check_deadlines, socket)
            return
        # A provider that said goodbye and keeps the line open has closed, for our purposes.
        self._overdue = _closed(socket) if socket.close_code is not None else self._too_late(what)
        socket.transport.abort()

    def _nearest_deadline(self, waiting_since: float) -> tuple[float, str]:
        until, what = waiting_since + self._deadlines.silence_seconds, "silence"
        if self._session_ends_at <= until:
            until, what = self._session_ends_at, "session_too_long"
        if self._first_delta_by is not None and not self._dialogue.audio_bytes and self._first_delta_by < until:
            until, what = self._first_delta_by, "no_first_delta"
        return until, what

    def _too_late(self, what: str) -> ProviderError:
        """Before the text has left us, nothing happened; after that, nobody knows what did."""
        if not self.text_sent:
            return ProviderUnavailable(diagnostics={"code": what})
        return ProviderTimeout(
            "The speech provider fell silent in the middle of the speech."
            if self.audio_bytes
            else "The speech provider did not answer in time.",
            diagnostics={"code": what},
        )


class _Socket(ClientConnection):
    """A connection whose whole messages can be taken as they come, past the queue from which they are read.

    Attributes:
        offer: Given a message of one frame; True if it has taken it.
    """

    offer: Callable[[Frame], bool] | None = None

    def process_event(self, event: Event) -> None:
        """One frame, or the answer to the handshake."""
        taken = (
            self.offer is not None
            and isinstance(event, Frame)
            and event.fin
            and event.opcode in (Opcode.TEXT, Opcode.BINARY)
            and self.offer(event)
        )
        if not taken:
            super().process_event(event)


class _Connect(connect):
    """A connect that follows no redirect: the address is configuration, and our headers are for nobody else."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


def _closed(socket: ClientConnection) -> ProviderError:
    """What the end of the connection means; without a close frame the code is 1006."""
    ours = socket.protocol.close_sent
    if socket.protocol.close_rcvd is None and ours is not None and ours.code in (1002, 1007, 1009):
        what = "A frame broke the WebSocket protocol or was too large."
        return violation(what, diagnostics={"close_code": ours.code})
    return classify_close(socket.close_code, socket.close_reason or "")


def _note_silence(error: ProviderError) -> ProviderError:
    """Name an end that had neither a reason nor words, of a session that had been opened."""
    facts = error.diagnostics
    if facts.get("close_code") in (1000, 1005, 1006) and not facts.keys() & {"code", "message"}:
        facts["code"] = OPENED_AND_CLOSED
    return error


def _request_id(headers: Any) -> str | None:
    """A request id among the upgrade's headers. Undocumented, so any of the usual names will do."""
    for name in ("x-dashscope-request-id", "x-request-id", "req-id"):
        if value := headers.get(name):
            return str(value)[:100]
    return None
