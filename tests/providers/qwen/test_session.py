"""Both lanes that are spoken over a socket, against a provider that misbehaves in every way we know of."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.server import ServerConnection, serve

from server.dev.simulator import ENGINE_411, TO_MANY, TOO_MANY, Simulator
from server.errors import ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable, VoiceMismatch
from server.providers.pacing import OwnLedger, Pacer
from server.providers.qwen.errors import ModelRetired, OperatorAlarm, ProviderMisconfigured
from server.providers.qwen.inference import QwenInference
from server.providers.qwen.realtime import QwenRealtime
from server.providers.speech import (
    AudioDelta,
    Speech,
    SpeechEnd,
    SpeechEvent,
    SpeechProvider,
    SpeechRequest,
    SpeechStatus,
    may_start_again,
)
from tests.providers.conftest import QWEN_AUDIO, VC_REALTIME, MakeSettings, pacer_in_memory
from tests.support import wait_for

TEXT = "Good morning. This is a test."


@dataclass(frozen=True)
class Lane:
    """One lane: who speaks on it, the setting that says where, and a text for it."""

    provider: type[QwenRealtime] | type[QwenInference]
    address: str
    path: str
    request: SpeechRequest

    @property
    def pcm(self) -> SpeechRequest:
        return msgspec.structs.replace(self.request, response_format="pcm")

    @property
    def realtime(self) -> bool:
        return self.provider is QwenRealtime


REALTIME = Lane(
    QwenRealtime,
    "dashscope_ws_url",
    f"/api-ws/v1/realtime?model={VC_REALTIME}",
    SpeechRequest(text=TEXT, voice="qwen-tts-vc-narrator-voice-1", model=VC_REALTIME, language="English"),
)
INFERENCE = Lane(
    QwenInference,
    "dashscope_inference_ws_url",
    "/api-ws/v1/inference",
    SpeechRequest(text=TEXT, voice=f"{QWEN_AUDIO}-narrator-1", model=QWEN_AUDIO, language="English"),
)


@pytest.fixture(params=[REALTIME, INFERENCE], ids=["realtime", "inference"])
def lane(request: pytest.FixtureRequest) -> Lane:
    return cast(Lane, request.param)


@pytest.fixture
def provider(provider_settings: MakeSettings, lane: Lane) -> SpeechProvider:
    return lane.provider(provider_settings(), pacer_in_memory())


async def heard(provider: SpeechProvider, request: SpeechRequest) -> list[SpeechEvent]:
    """Everything one speech says, in its order: what it yields and what it hands on without being asked."""
    events: list[SpeechEvent] = []
    async with provider.speak(request, events.append) as speech:
        await _collect(speech, events)
    return events


def audio_of(events: list[SpeechEvent]) -> bytes:
    return b"".join(event.audio for event in events if isinstance(event, AudioDelta))


async def failed(provider: SpeechProvider, request: SpeechRequest) -> tuple[ProviderError, Speech, list[SpeechEvent]]:
    """The error that a speech ends in, the speech, and what was heard before."""
    events: list[SpeechEvent] = []
    async with provider.speak(request, events.append) as speech:
        with pytest.raises(ProviderError) as caught:
            await _collect(speech, events)
        with pytest.raises(StopAsyncIteration):
            await anext(speech)
    assert not any(isinstance(event, SpeechEnd) for event in events)
    return caught.value, speech, events


async def _collect(speech: Speech, events: list[SpeechEvent]) -> None:
    async for event in speech:
        events.append(event)


def closed(calls: list[dict[str, Any]]) -> bool:
    return bool(calls) and all("closed_at" in call for call in calls)


async def test_whole_speech_arrives_with_its_facts(lane: Lane, provider: SpeechProvider, simulator: Simulator) -> None:
    events = await heard(provider, lane.request)
    statuses = [event.provider_status for event in events if isinstance(event, SpeechStatus)]
    assert statuses == ["ws_connecting", "session_updated", "streaming", "finalizing"]
    assert events[1] == SpeechStatus("session_updated", 24000)
    end = events[-1]
    assert isinstance(end, SpeechEnd)
    [call] = simulator.calls
    assert len(audio_of(events)) == call["audio_bytes"] == end.facts["audio_bytes"] > 0
    assert end.facts["usage"] == {"characters": len(TEXT)}
    assert end.facts["session_id"]
    assert (call["model"], call["voice"], call["text"]) == (lane.request.model, lane.request.voice, TEXT)
    assert (call["language"], call["format"], call["sample_rate"]) == ("English", "mp3", 24000)
    await simulator.until(closed)


@pytest.mark.parametrize(
    "behaviour",
    [{"cycles": 3}, {"delta_sizes": [1, 3, 1001]}, {"repeat_done": 2}, {"extra_fields": True}, {"speed": 0}],
)
async def test_every_byte_arrives_however_it_is_cut(
    lane: Lane, provider: SpeechProvider, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    simulator.behave("realtime", {**behaviour, "unknown_events": True})
    events = await heard(provider, lane.pcm)
    end = events[-1]
    assert isinstance(end, SpeechEnd)
    assert len(audio_of(events)) == simulator.calls[0]["audio_bytes"]
    assert end.facts["usage"] == {"characters": len(TEXT)}
    assert lane.realtime or "sentences" in end.facts
    assert end.facts["responses" if lane.realtime else "sentences"] == behaviour.get(
        "cycles", 1 if lane.realtime else 2
    )


async def test_deltas_of_a_megabyte_are_taken(lane: Lane, provider: SpeechProvider, simulator: Simulator) -> None:
    simulator.behave("realtime", {"delta_bytes": 3 << 20, "minimum_bytes": 7 << 20})
    events = await heard(provider, lane.pcm)
    assert max(len(event.audio) for event in events if isinstance(event, AudioDelta)) == 3 << 20
    assert len(audio_of(events)) >= 7 << 20


async def test_session_left_open_after_its_end_is_closed_by_us(
    lane: Lane, provider: SpeechProvider, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"after_finished": "stay_open"})
    await heard(provider, lane.request)
    await simulator.until(closed)
    assert simulator.calls[0]["ended"] == "finished"


async def test_workspace_and_key_travel_in_the_headers(lane: Lane, provider_settings: MakeSettings) -> None:
    """A server of our own, because the simulator does not show headers."""
    request_line, headers = "", {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal request_line
        request_line = (await reader.readline()).decode()
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        body = b'{"code":"NOT AUTHORIZED","message":"no"}'
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nX-Request-Id: r-7\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with local_server(answer) as port:
        settings = provider_settings(
            dashscope_workspace="ws-1",
            dashscope_api_key="sk-secret",
            **{lane.address: f"ws://127.0.0.1:{port}{lane.path.partition('?')[0]}"},
        )
        error, _, _ = await failed(lane.provider(settings, pacer_in_memory()), lane.request)
    assert type(error) is ProviderMisconfigured
    assert error.diagnostics["request_id"] == "r-7"
    assert request_line.split()[1] == lane.path
    assert headers["authorization"] == "Bearer sk-secret"
    assert headers["x-dashscope-workspace"] == "ws-1"
    assert "sec-websocket-extensions" not in headers


@asynccontextmanager
async def local_server(answer: Any) -> AsyncIterator[int]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("status", "kind", "throttled"),
    [
        (401, ProviderMisconfigured, False),
        (403, ProviderMisconfigured, False),
        (429, ProviderUnavailable, True),
        (500, ProviderUnavailable, False),
        (503, ProviderUnavailable, False),
    ],
)
async def test_refused_upgrade_has_its_class_and_may_be_tried_again_if_it_passes(
    lane: Lane, provider: SpeechProvider, simulator: Simulator, status: int, kind: type[ProviderError], throttled: bool
) -> None:
    simulator.behave("realtime", {"refuse": status})
    error, speech, events = await failed(provider, lane.request)
    assert type(error) is kind
    assert error.throttled is throttled
    assert error.diagnostics["http_status"] == status
    assert events == [SpeechStatus("ws_connecting")]
    assert not speech.text_sent
    assert may_start_again(error, text_sent=speech.text_sent, bytes_heard=speech.audio_bytes) is error.retryable


async def test_operator_is_told_of_a_wrong_key(
    lane: Lane, provider_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    provider = lane.provider(provider_settings(dashscope_api_key="sk-wrong"), pacer_in_memory(), OperatorAlarm())
    with caplog.at_level(logging.DEBUG):
        error, _, _ = await failed(provider, lane.request)
    assert type(error) is ProviderMisconfigured
    assert "operator" in error.detail
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "refuses this service" in record.getMessage()
    ours = [record for record in caplog.records if not record.name.startswith("uvicorn")]  # that is the simulator
    assert not any("sk-wrong" in record.getMessage() for record in ours)


FAULTS: list[tuple[dict[str, Any], type[ProviderError], bool]] = [
    ({"do": "error", "code": "InternalError"}, ProviderUnavailable, False),
    ({"do": "error", "code": "Throttling.RateQuota"}, ProviderUnavailable, True),
    ({"do": "error", "code": "DataInspectionFailed"}, ProviderRejected, False),
    ({"do": "error", "code": "CLIENT_ERROR", "message": ENGINE_411}, VoiceMismatch, False),
    ({"do": "close", "code": 1000}, ProviderUnavailable, False),
    ({"do": "close", "code": 1007, "reason": "Model not found."}, ModelRetired, False),
    ({"do": "close", "code": 1011, "reason": TOO_MANY}, ProviderUnavailable, True),
    ({"do": "close", "code": 1011, "reason": TO_MANY}, ProviderUnavailable, True),
    ({"do": "abort"}, ProviderUnavailable, False),
    ({"do": "invalid_json"}, ProviderUnavailable, False),
]
WHEN = pytest.mark.parametrize("when", [{"at": "audio"}, {"after_deltas": 2}], ids=["before_audio", "after_audio"])
# Three whole MP3 frames, so that the same bytes are heard on a lane that hands on whole ones alone.
DELTA_BYTES = 1152


@pytest.mark.parametrize(("fault", "kind", "throttled"), FAULTS)
@WHEN
async def test_fault_ends_the_speech_with_its_reason(
    lane: Lane,
    provider: SpeechProvider,
    simulator: Simulator,
    fault: dict[str, Any],
    kind: type[ProviderError],
    throttled: bool,
    when: dict[str, Any],
) -> None:
    simulator.behave("realtime", {**fault, **when, "delta_bytes": DELTA_BYTES})
    error, speech, events = await failed(provider, lane.request)
    assert type(error) is kind
    assert error.throttled is throttled
    heard_bytes = len(audio_of(events))
    assert heard_bytes == speech.audio_bytes == (2 * DELTA_BYTES if "after_deltas" in when else 0)
    assert error.diagnostics["session_id"]
    assert ("event_id" in error.diagnostics) is lane.realtime
    assert error.diagnostics["text_sent"] is True
    # The text was sent, so only a throttle without a byte may start again.
    again = may_start_again(error, text_sent=speech.text_sent, bytes_heard=heard_bytes)
    assert again is (throttled and not heard_bytes)
    await simulator.until(closed)


@WHEN
@pytest.mark.parametrize("what", ["binary", "invalid_base64"])
async def test_audio_that_cannot_be_read_ends_a_realtime_speech(
    provider_settings: MakeSettings, simulator: Simulator, what: str, when: dict[str, Any]
) -> None:
    simulator.behave("realtime", {"do": what, **when})
    error, _, _ = await failed(QwenRealtime(provider_settings(), pacer_in_memory()), REALTIME.request)
    assert error.diagnostics["code"] == "protocol_violation"


@WHEN
@pytest.mark.parametrize("what", ["binary", "invalid_base64"], ids=["frame_of_another_task", "frame_that_never_comes"])
async def test_an_inference_speech_is_its_own_tasks_frames(
    provider_settings: MakeSettings, simulator: Simulator, what: str, when: dict[str, Any]
) -> None:
    """A late frame of a cancelled task is nobody's, and an event without its frame is no audio."""
    simulator.behave("realtime", {"do": what, **when})
    events = await heard(QwenInference(provider_settings(), pacer_in_memory()), INFERENCE.pcm)
    assert len(audio_of(events)) == simulator.calls[0]["audio_bytes"] > 0


@pytest.mark.parametrize("at", ["open", "created", "update"])
@pytest.mark.parametrize(
    "fault", [{"do": "close", "code": 1011}, {"do": "abort"}, {"do": "invalid_json"}, {"do": "error", "code": "X"}]
)
async def test_fault_before_the_text_was_sent_may_start_again(
    lane: Lane, provider: SpeechProvider, simulator: Simulator, at: str, fault: dict[str, Any]
) -> None:
    simulator.behave("realtime", {**fault, "at": at})
    error, speech, _ = await failed(provider, lane.request)
    assert not speech.text_sent
    assert may_start_again(error, text_sent=speech.text_sent, bytes_heard=0)
    assert simulator.calls[0]["text"] == ""


@pytest.mark.parametrize(
    "behaviour",
    [
        {"audio": False},
        {"response": False},
        {"response_status": "failed"},
        {"response_status": "incomplete"},
        {"do": "close", "at": "response_end", "code": 1000},
        {"do": "abort", "at": "response_end"},
    ],
)
async def test_end_that_lacks_one_of_the_three_facts_is_a_failure(
    lane: Lane, provider: SpeechProvider, simulator: Simulator, behaviour: dict[str, Any]
) -> None:
    simulator.behave("realtime", behaviour)
    error, _, _ = await failed(provider, lane.request)
    assert type(error) is ProviderUnavailable


@pytest.mark.parametrize(
    ("fault", "deadline", "code", "kind"),
    [
        ({"at": "created"}, {"silence_seconds": 0.2}, "silence", ProviderUnavailable),
        ({"at": "audio"}, {"first_delta_seconds": 0.2}, "no_first_delta", ProviderTimeout),
        ({"after_deltas": 2}, {"silence_seconds": 0.2}, "silence", ProviderTimeout),
        (
            {"after_deltas": 2},
            {"session_seconds": 0.3, "session_seconds_per_char": 0.0},
            "session_too_long",
            ProviderTimeout,
        ),
    ],
)
async def test_silence_ends_at_the_nearest_deadline(
    lane: Lane,
    provider_settings: MakeSettings,
    simulator: Simulator,
    fault: dict[str, Any],
    deadline: dict[str, float],
    code: str,
    kind: type[ProviderError],
) -> None:
    simulator.behave("realtime", {"do": "silence", **fault, "delta_bytes": 1000})
    error, speech, _ = await failed(lane.provider(provider_settings(**deadline), pacer_in_memory()), lane.request)
    assert type(error) is kind
    assert error.diagnostics["code"] == code
    assert may_start_again(error, text_sent=speech.text_sent, bytes_heard=speech.audio_bytes) is not speech.text_sent
    if speech.text_sent:  # before that, the simulator does not look whether anybody is there
        await simulator.until(closed, timeout_seconds=2)


async def test_audio_that_drips_past_the_session_deadline_is_cut(
    lane: Lane, provider_settings: MakeSettings, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"speed": 0.5, "delta_bytes": 500})
    settings = provider_settings(session_seconds=0.5, session_seconds_per_char=0)
    error, speech, _ = await failed(lane.provider(settings, pacer_in_memory()), lane.request)
    assert type(error) is ProviderTimeout
    assert error.diagnostics["code"] == "session_too_long"
    assert speech.audio_bytes > 0


async def test_other_events_do_not_count_as_the_first_delta(
    lane: Lane, provider_settings: MakeSettings, simulator: Simulator
) -> None:
    events = [{"do": "event", "at": "audio", "event": {"type": "keep.alive"}}, {"do": "silence", "at": "audio"}]
    simulator.behave("realtime", {"faults": events})
    settings = provider_settings(first_delta_seconds=0.2)
    error, _, _ = await failed(lane.provider(settings, pacer_in_memory()), lane.request)
    assert error.diagnostics["code"] == "no_first_delta"


async def test_refused_connection_may_be_tried_again(lane: Lane, provider_settings: MakeSettings) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"ws://127.0.0.1:{unused.getsockname()[1]}/api-ws/v1/realtime"
        error, speech, _ = await failed(
            lane.provider(provider_settings(**{lane.address: address}), pacer_in_memory()), lane.request
        )
    assert type(error) is ProviderUnavailable
    assert may_start_again(error, text_sent=speech.text_sent, bytes_heard=0)


async def test_server_that_never_answers_the_upgrade_is_given_up(lane: Lane, provider_settings: MakeSettings) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with local_server(say_nothing) as port:
        settings = provider_settings(**{lane.address: f"ws://127.0.0.1:{port}/x"}, connect_seconds=0.2)
        error, speech, _ = await failed(lane.provider(settings, pacer_in_memory()), lane.request)
    assert type(error) is ProviderUnavailable
    assert error.diagnostics["code"] == "connect_timeout"
    assert may_start_again(error, text_sent=speech.text_sent, bytes_heard=0)


async def test_redirected_upgrade_is_not_followed(
    lane: Lane, provider_settings: MakeSettings, simulator: Simulator
) -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % simulator.base_url.encode())
        await writer.drain()
        writer.close()

    async with local_server(redirect) as port:
        settings = provider_settings(**{lane.address: f"ws://127.0.0.1:{port}/x"})
        error, _, _ = await failed(lane.provider(settings, pacer_in_memory()), lane.request)
    assert type(error) is ProviderMisconfigured
    assert simulator.calls == []


async def test_reason_that_comes_just_before_the_close_is_heard(lane: Lane, provider_settings: MakeSettings) -> None:
    """We are sending the text in the moment when the provider explains itself and hangs up."""

    async def refuse(ws: ServerConnection) -> None:
        await ws.recv()
        await ws.send('{"type": "session.updated"}')
        await ws.send('{"type": "error", "error": {"code": "Throttling.RateQuota"}}')

    async with serve(refuse, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        settings = provider_settings(**{lane.address: f"ws://127.0.0.1:{port}/x"})
        error, _, _ = await failed(lane.provider(settings, pacer_in_memory()), lane.request)
    assert error.diagnostics["code"] == "Throttling.RateQuota"
    assert error.throttled


async def test_certificate_that_nobody_vouches_for_gets_no_key(
    lane: Lane, provider_settings: MakeSettings, tmp_path: Path
) -> None:
    requests: list[object] = []

    async def answer(ws: ServerConnection) -> None:
        requests.append(ws.request)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed_certificate(tmp_path))
    async with serve(answer, "127.0.0.1", 0, ssl=context) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        settings = provider_settings(**{lane.address: f"wss://127.0.0.1:{port}/x"})
        error, _, _ = await failed(lane.provider(settings, pacer_in_memory()), lane.request)
    assert type(error) is ProviderUnavailable
    assert error.diagnostics["message"] == "SSLCertVerificationError"
    assert requests == []


def self_signed_certificate(folder: Path) -> Path:
    """A file with a fresh key and certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    plain = serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


async def test_audio_that_follows_audio_is_handed_on_where_it_arrives(
    lane: Lane, provider: SpeechProvider, simulator: Simulator
) -> None:
    """And is the same, and in its place, for whoever takes nothing and is woken for each delta."""
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 2, "delta_bytes": 1000})
    request = msgspec.structs.replace(lane.request, text="One sentence, and nothing besides.")
    handed_on: list[AudioDelta] = []
    yielded: list[SpeechEvent] = []
    async with provider.speak(request, handed_on.append) as speech, asyncio.TaskGroup() as group:
        group.create_task(_collect(speech, yielded))
        await simulator.deltas_sent(2)
        await wait_for(lambda: len(audio_of([*yielded, *handed_on])) == speech.audio_bytes > 1000)
        before = len(yielded)
        held.release()
    assert audio_of(yielded[before:]) == b""
    assert len(handed_on) > 3
    in_order = await heard(provider, lane.request)
    async with provider.speak(lane.request) as speech:
        by_turns = [event async for event in speech]
    assert [type(event) for event in in_order] == [type(event) for event in by_turns]
    assert audio_of(in_order) == audio_of(by_turns)


async def test_leaving_closes_the_session_at_once(lane: Lane, provider: SpeechProvider, simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "hold", "after_deltas": 2, "delta_bytes": 1000})
    loop = asyncio.get_running_loop()
    async with provider.speak(lane.request) as speech:
        async for event in speech:
            if isinstance(event, AudioDelta):
                break
        left = loop.time()
    assert loop.time() - left < 0.5
    await simulator.until(closed, timeout_seconds=1)


async def test_cancelling_closes_the_session_at_once(
    lane: Lane, provider: SpeechProvider, simulator: Simulator
) -> None:
    simulator.behave("realtime", {"do": "hold", "after_deltas": 2, "delta_bytes": 1000})
    speaking = asyncio.create_task(heard(provider, lane.request))
    await simulator.deltas_sent(2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    speaking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await speaking
    await simulator.until(closed, timeout_seconds=1)
    assert loop.time() - began < 0.5


async def test_cancelling_while_connecting_leaves_nothing_open(lane: Lane, provider_settings: MakeSettings) -> None:
    connected, gone = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        connected.set()
        await reader.read()
        gone.set()
        writer.close()

    async with local_server(say_nothing) as port:
        provider = lane.provider(provider_settings(**{lane.address: f"ws://127.0.0.1:{port}/x"}), pacer_in_memory())
        speaking = asyncio.create_task(heard(provider, lane.request))
        await asyncio.wait_for(connected.wait(), 5)
        speaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await speaking
        await asyncio.wait_for(gone.wait(), 1)


async def test_throttle_slows_the_next_starts(
    lane: Lane, provider_settings: MakeSettings, simulator: Simulator
) -> None:
    ledger = OwnLedger(6000)
    provider = lane.provider(provider_settings(), Pacer(ledger))
    simulator.behave("realtime", {"refuse": 429})
    await failed(provider, lane.request)
    assert ledger.starts_per_minute == pytest.approx(3000, rel=0.05)


async def test_frame_over_the_cap_is_refused(lane: Lane, provider: SpeechProvider, simulator: Simulator) -> None:
    simulator.behave("realtime", {"delta_bytes": 17 << 20, "minimum_bytes": 17 << 20})
    one_sentence = msgspec.structs.replace(lane.pcm, text="Good morning.")
    error, _, events = await failed(provider, one_sentence)
    assert error.diagnostics["code"] == "protocol_violation"
    assert audio_of(events) == b""


async def test_many_sessions_speak_at_once(lane: Lane, provider: SpeechProvider) -> None:
    async with asyncio.TaskGroup() as group:
        speeches = [group.create_task(heard(provider, lane.request)) for _ in range(20)]
    [audio] = {audio_of(speech.result()) for speech in speeches}
    assert audio
