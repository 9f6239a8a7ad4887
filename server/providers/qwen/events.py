"""One Qwen realtime session as a state machine: frames in, meanings out, no socket and no clock.

The conversation (Model Studio, "Qwen-TTS Realtime", client and server events)::

    we                          they
                                session.created
    session.update
                                session.updated
    input_text_buffer.append
    session.finish
                                response.created … response.audio.delta × n … response.done     once or more often
                                session.finished

Only ``session.finished`` is the end: one session holds as many response cycles as the provider likes, and taking
``response.done`` for the end cuts a text off at its first sentence (observed).
"""

from typing import Any
from uuid import uuid4

import msgspec

from server.errors import NothingToSpeak, ProviderRejected, ProviderUnavailable
from server.providers.qwen.errors import classify, envelope_of, violation
from server.providers.speech import AudioDelta, SpeechEnd, SpeechEvent, SpeechRequest, SpeechStatus
from server.text import has_letters


class _Frame(msgspec.Struct, gc=False):
    """The members of a server event that mean something to us; all others are skipped unread.

    Everything is optional and of any type: an event type that we do not know may use the same names differently.
    """

    type: Any = None
    event_id: Any = None
    delta: Any = None
    session: Any = None
    response: Any = None
    error: Any = None
    request_id: Any = None


_decoder = msgspec.json.Decoder(_Frame)
_NOTHING: tuple[SpeechEvent, ...] = ()


class Dialogue:
    """One text spoken in one session. Feed it frames, send what it wants sent, stop at its ``SpeechEnd``.

    Attributes:
        text_sent: The frames that carry the text were handed out, so the provider may bill them.
        audio_bytes: Bytes of audio received so far.
        finished: ``session.finished`` arrived with audio and without an error.
    """

    def __init__(self, request: SpeechRequest) -> None:
        self.text_sent = False
        self.audio_bytes = 0
        self.finished = False
        self._request = request
        self._outgoing: list[str] = [self._session_update()]
        self._updated = False
        self._session_id: str | None = None
        self._event_id: str | None = None
        self._request_id: str | None = None
        self._responses: dict[str, dict[str, int]] = {}  # usage by response id, so that a repeated one counts once

    def frames_to_send(self) -> list[str]:
        """Text frames to send now, in order. Drained: each is returned once."""
        frames, self._outgoing = self._outgoing, []
        if self._updated:
            self.text_sent = True
        return frames

    def frames_to_leave(self) -> list[str]:
        """Nothing: this protocol knows no other way to stop than to close."""
        return []

    def facts(self) -> dict[str, Any]:
        """What is known so far, for the row: of a success as of a failure. Unknown members are absent."""
        usage: dict[str, int] = {}
        for one in self._responses.values():
            for name, amount in one.items():
                usage[name] = usage.get(name, 0) + amount
        known = {
            # Where no request id is told, the session's is what the provider's support asks for.
            "request_id": self._request_id or self._session_id,
            "session_id": self._session_id,
            "event_id": self._event_id,
            "responses": len(self._responses),
            "usage": usage or None,
            "audio_bytes": self.audio_bytes,
        }
        return {name: value for name, value in known.items() if value is not None}

    def receive(self, frame: bytes | str) -> tuple[SpeechEvent, ...]:
        """Take one frame and return what it means, in order.

        Event types that we have no use for mean nothing: the provider adds new ones without notice.

        Raises:
            ProviderRejected, ProviderUnavailable: On an ``error`` event, by its code; on a ``response.done`` that is
                not completed; on ``session.finished`` without audio; on a frame that is no JSON object or holds no
                valid Base64 (``code`` ``protocol_violation``). The session is over then.
        """
        try:
            event = _decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            raise violation("A frame is not a JSON object.") from exc
        if isinstance(event.event_id, str):
            self._event_id = event.event_id
        match event.type:
            case "response.audio.delta":
                return self._audio(event.delta)
            case "session.created":
                self._note_session(event.session)
            case "session.updated":
                return self._session_updated(event.session)
            case "response.done":
                self._response_done(event.response)
            case "session.finished":
                return self._session_finished()
            case "error":
                self._fail(event)
            case None:
                # Some gateways answer a refused call with the bare native envelope instead of an event.
                if event.error is not None or (frame and envelope_of(_any(frame)).code):
                    self._fail(event, frame)
            case _:
                pass
        return _NOTHING

    def _audio(self, delta: object) -> tuple[SpeechEvent, ...]:
        if not isinstance(delta, str):
            raise violation("A delta carries no text.")
        try:
            # Four times as fast as binascii (4 µs for 4800 bytes) and strict: whitespace, foreign letters and wrong
            # padding are refused, where a lenient decoder would skip them and hand on noise.
            audio = msgspec.convert(delta, bytes)
        except msgspec.ValidationError as exc:
            raise violation("A delta is not valid Base64.") from exc
        if not audio:
            return _NOTHING
        first = not self.audio_bytes
        self.audio_bytes += len(audio)
        event = AudioDelta(audio, delta.encode("ascii"))
        return (SpeechStatus("streaming"), event) if first else (event,)

    def _session_updated(self, session: object) -> tuple[SpeechEvent, ...]:
        self._note_session(session)
        if self._updated:
            return _NOTHING
        answered = session if isinstance(session, dict) else {}
        given = answered.get("response_format")
        if isinstance(given, str) and given and given != self._request.response_format:
            # Known of the legacy model, which speaks PCM whatever it is asked. Nothing was sent, nothing is billed.
            raise ProviderRejected(
                "The speech provider cannot speak with this voice in the wanted audio format.",
                diagnostics={"code": "format_refused", "message": f"asked for {self._request.response_format}"},
            )
        self._updated = True
        # In one piece: the provider cuts the text itself (mode server_commit), and no cap per session or per append
        # is documented for this family. The finish goes out with it, since nothing else will follow.
        self._outgoing += [
            _client_event("input_text_buffer.append", text=self._request.text),
            _client_event("session.finish"),
        ]
        rate = answered.get("sample_rate")
        valid = isinstance(rate, int) and not isinstance(rate, bool) and rate > 0
        return (SpeechStatus("session_updated", rate if valid else self._request.sample_rate_hz),)

    def _response_done(self, response: object) -> None:
        details = response if isinstance(response, dict) else {}
        usage = details.get("usage")
        amounts = usage if isinstance(usage, dict) else {}
        # One without an id gets a name of its own: it cannot be told from a repetition, so it is believed.
        key = str(details.get("id") or f"#{len(self._responses)}")
        self._responses[key] = {name: amount for name, amount in amounts.items() if type(amount) is int}
        status = details.get("status", "completed")
        if status != "completed":
            reason = envelope_of(details.get("status_details"))
            if reason.code:
                raise classify(reason.code, reason.message)
            raise ProviderUnavailable(
                "The speech provider stopped in the middle of the text. Please try again.",
                diagnostics={"code": f"response_{status}", "message": reason.message},
            )

    def _session_finished(self) -> tuple[SpeechEvent, ...]:
        if not self.audio_bytes:
            if not has_letters(self._request.text):
                raise NothingToSpeak(diagnostics={"code": "no_audio"})
            raise ProviderUnavailable(
                "The speech provider ended without any audio. Please try again.", diagnostics={"code": "no_audio"}
            )
        self.finished = True
        return SpeechStatus("finalizing"), SpeechEnd(self.facts())

    def _fail(self, event: _Frame, frame: bytes | str = b"") -> None:
        envelope = envelope_of(_any(frame) if frame else {"error": event.error})
        self.note_request(event.request_id or envelope.request_id)
        raise classify(envelope.code, envelope.message)

    def _note_session(self, session: object) -> None:
        if isinstance(session, dict) and isinstance(session.get("id"), str):
            self._session_id = session["id"]

    def note_request(self, request_id: object) -> None:
        """A request id that was learnt outside the frames, e.g. from the upgrade's headers."""
        if isinstance(request_id, str) and request_id:
            self._request_id = request_id

    def _session_update(self) -> str:
        request = self._request
        session = {
            "voice": request.voice,
            "mode": "server_commit",
            "language_type": request.language,
            "response_format": request.response_format,
            "sample_rate": request.sample_rate_hz,
        }
        # Only what was asked for: the provider's own values are its business.
        varied = {"speech_rate": request.speed, "pitch_rate": request.pitch, "volume": request.volume}
        session |= {name: value for name, value in varied.items() if value is not None}
        return _client_event("session.update", session=session)


def _any(frame: bytes | str) -> object:
    return msgspec.json.decode(frame)


def _client_event(type_: str, **members: Any) -> str:
    """A client event. ``event_id`` is required and must be unique within the connection."""
    return msgspec.json.encode({"event_id": uuid4().hex, "type": type_, **members}).decode()
