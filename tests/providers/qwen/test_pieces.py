"""The non-streaming lane over the wire: one piece bought once, and fetched as often as it takes."""

import io
import logging
import wave
from typing import Any

import httpx
import msgspec
import pytest

from server.dev.simulator import ENGINE_411, Simulator
from server.errors import ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable, VoiceMismatch
from server.providers.pacing import OwnLedger, Pacer
from server.providers.qwen.errors import OperatorAlarm, ProviderMisconfigured
from server.providers.qwen.pieces import QwenHttp, SpokenPiece
from server.providers.speech import may_start_again
from tests.providers.conftest import VC_HTTP, MakeSettings, pacer_in_memory

TEXT = "Good morning. 早上好。"
REDIRECT = {"do": "answer", "status": 302, "text": "", "headers": {"location": "/calls"}}


@pytest.fixture
def pacer() -> Pacer:
    return Pacer(OwnLedger(6000))


@pytest.fixture
def provider(provider_settings: MakeSettings, http: httpx.AsyncClient, pacer: Pacer) -> QwenHttp:
    return QwenHttp(provider_settings(), http, pacer)


async def synthesize(provider: QwenHttp, **changes: Any) -> SpokenPiece:
    return await provider.synthesize(**{"text": TEXT, "voice": "qwen-tts-vc-a-voice-1", "model": VC_HTTP, **changes})


async def test_piece_is_spoken_and_fetched_with_its_facts(
    provider: QwenHttp, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    piece = await synthesize(provider, language="Chinese")
    fetched = await provider.download(piece)
    [call] = simulator.calls
    with wave.open(io.BytesIO(fetched.wav)) as wav:
        assert wav.getnframes() * 2 == call["audio_bytes"] > 0
        assert wav.getframerate() == 24_000
    assert (call["model"], call["text"], call["language"]) == (VC_HTTP, TEXT, "Chinese")
    assert piece.usage["characters"] == len(TEXT) + 3
    assert set(piece.facts()) == {"request_id", "audio_id", "expires_at", "usage"}
    assert fetched.facts == {"host": "127.0.0.1", "http_status": 200, "tries": 1, "expires_at": piece.expires_at}
    query = piece.url.partition("?")[2]
    assert query
    assert query not in repr(piece)
    ours = [record for record in caplog.records if not record.name.startswith("uvicorn")]  # that is the simulator
    assert not any(query in record.getMessage() for record in ours)


@pytest.mark.parametrize(
    ("behaviour", "kind", "throttled"),
    [
        ({"do": "error", "code": "Throttling.RateQuota"}, ProviderUnavailable, True),
        ({"do": "error", "code": "ServiceUnavailable"}, ProviderUnavailable, True),
        ({"do": "error", "code": "RequestTimeOut"}, ProviderUnavailable, False),
        ({"do": "error", "code": "DataInspectionFailed"}, ProviderRejected, False),
        ({"do": "error", "code": "InvalidParameter", "message": ENGINE_411}, VoiceMismatch, False),
        ({"do": "error", "code": "InvalidApiKey"}, ProviderMisconfigured, False),
        ({"do": "empty"}, ProviderRejected, False),
        ({"do": "html"}, ProviderUnavailable, False),
        ({"do": "abort"}, ProviderTimeout, False),
        ({"do": "answer", "json": {"output": {"audio": {"url": ""}}}}, ProviderTimeout, False),
    ],
)
async def test_failed_synthesis_is_repeated_only_when_throttled(
    provider: QwenHttp,
    pacer: Pacer,
    simulator: Simulator,
    behaviour: dict[str, Any],
    kind: type[ProviderError],
    throttled: bool,
) -> None:
    simulator.behave("http", behaviour)
    with pytest.raises(ProviderError) as caught:
        await synthesize(provider)
    error = caught.value
    assert type(error) is kind
    assert error.throttled is throttled
    assert may_start_again(error, text_sent=error.diagnostics["text_sent"], bytes_heard=0) is throttled
    assert isinstance(pacer.ledger, OwnLedger)
    assert (pacer.ledger.starts_per_minute < 4000) is throttled
    assert len(simulator.calls) == 1


async def test_synthesis_without_an_answer_is_never_repeated(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator
) -> None:
    provider = QwenHttp(provider_settings(http_synthesis_seconds=0.3), http, pacer_in_memory())
    simulator.behave("http", {"do": "hang"})
    with pytest.raises(ProviderTimeout) as caught:
        await synthesize(provider)
    assert not may_start_again(caught.value, text_sent=True, bytes_heard=0)
    assert len(simulator.calls) == 1


async def test_body_with_status_code_and_odd_members_is_read(provider: QwenHttp, simulator: Simulator) -> None:
    simulator.behave("http", {"status_code": True})
    assert (await synthesize(provider)).url
    odd = {"status_code": 200, "output": {"audio": {"url": "https://x.aliyuncs.com/a", "id": 7, "expires_at": "soon"}}}
    simulator.behave("http", {"do": "answer", "json": {**odd, "usage": [1], "request_id": None}})
    assert await synthesize(provider) == SpokenPiece(url="https://x.aliyuncs.com/a", audio_id="7")


@pytest.mark.parametrize(
    "first",
    [
        {"do": "html"},
        {"do": "abort"},
        {"truncate_bytes": 5000},
        {"do": "empty", "status": 429},
        {"do": "empty", "status": 408},
    ],
)
async def test_download_survives_what_passes(provider: QwenHttp, simulator: Simulator, first: dict[str, Any]) -> None:
    piece = await synthesize(provider)
    whole = (await provider.download(piece)).wav
    simulator.behave("download", first, times=2)
    fetched = await provider.download(piece)
    assert fetched.wav == whole
    assert fetched.facts["tries"] == 3
    assert len(simulator.calls) == 1


@pytest.mark.parametrize(
    ("behaviour", "kind", "code", "tries"),
    [
        ({"do": "html"}, ProviderUnavailable, "download_failed", 3),
        ({"do": "abort"}, ProviderUnavailable, "download_failed", 3),
        ({"do": "html", "status": 403}, ProviderRejected, "download_refused", 1),
        ({"do": "html", "status": 404}, ProviderRejected, "download_refused", 1),
        (REDIRECT, ProviderRejected, "download_refused", 1),
        ({"minimum_bytes": 70_000_000}, ProviderRejected, "download_too_large", 1),
        ({"do": "html", "status": 200}, ProviderUnavailable, "unreadable_audio", 1),
    ],
)
async def test_download_that_does_not_pass_has_its_reason(
    provider: QwenHttp,
    simulator: Simulator,
    behaviour: dict[str, Any],
    kind: type[ProviderError],
    code: str,
    tries: int,
) -> None:
    piece = await synthesize(provider)
    simulator.behave("download", behaviour, times=0)
    with pytest.raises(ProviderError) as caught:
        await provider.download(piece)
    error = caught.value
    assert type(error) is kind
    assert (error.diagnostics["code"], error.diagnostics["tries"]) == (code, tries)
    assert error.diagnostics["host"] == "127.0.0.1"
    assert "downloads" not in str(error.diagnostics)


@pytest.mark.parametrize("expires_at", [0, -1, 1_000_000_000, "soon", None])
async def test_audio_that_is_there_is_fetched_whatever_is_said_of_its_expiry(
    provider: QwenHttp, expires_at: Any
) -> None:
    """The provider's clock, its units, or our own clock may be wrong; the store knows."""
    piece = msgspec.structs.replace(await synthesize(provider), expires_at=expires_at)
    assert (await provider.download(piece)).wav[:4] == b"RIFF"


@pytest.mark.parametrize("oddity", [{"code": 0}, {"code": "200"}, {"code": "Success"}])
async def test_a_success_that_has_a_code_is_one(
    provider: QwenHttp, simulator: Simulator, oddity: dict[str, Any]
) -> None:
    answer = {"output": {"audio": {"url": "http://127.0.0.1/a.wav"}}, **oddity}
    for status in (200, 201, 202):
        simulator.behave("http", {"do": "answer", "json": answer, "status": status})
        assert (await synthesize(provider)).url == "http://127.0.0.1/a.wav"


async def test_an_address_that_has_expired_between_two_tries_is_not_asked_again(
    provider: QwenHttp, simulator: Simulator
) -> None:
    piece = msgspec.structs.replace(await synthesize(provider), expires_at=1.0)
    simulator.behave("download", {"do": "html"}, times=0)
    with pytest.raises(ProviderRejected) as caught:
        await provider.download(piece)
    assert (caught.value.diagnostics["code"], caught.value.diagnostics["tries"]) == ("download_expired", 1)


async def test_expired_address_is_said_to_be_expired(provider: QwenHttp, simulator: Simulator) -> None:
    simulator.behave("http", {"expires_in_seconds": 0})
    with pytest.raises(ProviderRejected) as caught:
        await provider.download(await synthesize(provider))
    assert caught.value.diagnostics["code"] == "download_expired"
    assert caught.value.diagnostics["expires_at"]


async def test_slow_download_ends_at_its_deadline(
    provider_settings: MakeSettings, http: httpx.AsyncClient, simulator: Simulator
) -> None:
    provider = QwenHttp(provider_settings(download_seconds=0.3), http, pacer_in_memory())
    simulator.behave("download", {"do": "hold"}, times=0)
    with pytest.raises(ProviderUnavailable) as caught:
        await provider.download(await synthesize(provider))
    assert caught.value.diagnostics["code"] == "download_failed"


@pytest.mark.parametrize(
    "url",
    [
        "https://files.example/a.wav",
        "https://127.0.0.2/a.wav",
        "http://aliyuncs.com.evil.example/a.wav",
        "https://evil.example\\.aliyuncs.com/a.wav",
        "https://evil.example#.aliyuncs.com/a.wav",
        "https://evil.example%00.aliyuncs.com/",
        "https://user:pass@x.aliyuncs.com/a.wav",
        "ftp://x.aliyuncs.com/a.wav",
        "file:///etc/passwd",
        "//x.aliyuncs.com/a.wav",
        "https://",
        "not an address",
        "http://[::1/a",
        "http://x.aliyuncs.com:99999999/a.wav",
    ],
)
async def test_address_that_is_not_on_the_list_is_never_asked(provider_settings: MakeSettings, url: str) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"asked {request.url}")

    async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as http:
        provider = QwenHttp(provider_settings(provider_download_hosts=("*.aliyuncs.com",)), http, pacer_in_memory())
        with pytest.raises(ProviderRejected) as caught:
            await provider.download(SpokenPiece(url=url))
    assert caught.value.diagnostics["code"] in ("download_bad_address", "download_host_not_allowed")


async def test_a_host_that_is_not_on_the_list_is_the_operators_to_mend(
    provider_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Each further try would be billed, and would fetch nothing either."""
    async with httpx.AsyncClient() as http:
        provider = QwenHttp(provider_settings(), http, pacer_in_memory(), OperatorAlarm())
        with pytest.raises(ProviderRejected) as caught:
            await provider.download(SpokenPiece(url="https://files.example/a.wav?Signature=secret"))
    assert "tell its operator" in caught.value.detail
    assert "PROVIDER_DOWNLOAD_HOSTS" in caplog.text
    assert "secret" not in caplog.text


async def test_plain_http_address_is_tried_with_https_first(provider_settings: MakeSettings) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        assert "authorization" not in request.headers
        if request.url.scheme == "https":
            raise httpx.ConnectError("no TLS here")
        return httpx.Response(404)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        provider = QwenHttp(provider_settings(provider_download_hosts=("*.ALIYUNCS.com",)), http, pacer_in_memory())
        with pytest.raises(ProviderRejected):
            await provider.download(SpokenPiece(url="http://Dashscope-Result.oss.aliyuncs.com/a.wav?Signature=x%2By"))
    assert asked == [
        "https://dashscope-result.oss.aliyuncs.com/a.wav?Signature=x%2By",
        "http://dashscope-result.oss.aliyuncs.com/a.wav?Signature=x%2By",
    ]
