"""Every row of the provider's error table, and every shape that it comes in."""

import logging

import pytest

from server.errors import ProviderError, ProviderRejected, ProviderUnavailable, VoiceGone, VoiceMismatch
from server.providers.qwen.errors import (
    Envelope,
    ModelRetired,
    OperatorAlarm,
    ProviderMisconfigured,
    classify,
    classify_close,
    read_envelope,
    violation,
)

TOO_MANY = "Too many requests. Your requests are being throttled due to system capacity limits."

REFUSALS: list[tuple[int, str, str, type[ProviderError], int]] = [
    (408, "", "", ProviderUnavailable, 503),
    (400, "InvalidParameter", "A parameter is not valid.", ProviderRejected, 400),
    (400, "InvalidParameter.DataInspection", "download failed", ProviderRejected, 400),
    (400, "InvalidParameter", "Invalid voice specified.", VoiceMismatch, 502),
    (400, "DataInspectionFailed", "inappropriate content", ProviderRejected, 400),
    (400, "data_inspection_failed", "inappropriate content", ProviderRejected, 400),
    (400, "Arrearage", "Access denied: in debt", ProviderMisconfigured, 502),
    (400, "Audio.PreprocessError", "No segments meet minimum duration requirement", ProviderRejected, 400),
    (400, "Audio.DecoderError", "", ProviderRejected, 400),
    (400, "Audio.AudioRateError", "", ProviderRejected, 400),
    (400, "Audio.DurationLimitError", "", ProviderRejected, 400),
    (400, "Audio.SomethingNew", "", ProviderRejected, 400),
    (400, "BadRequest.VoiceNotFound", "Voice not found: x", VoiceGone, 502),
    (400, "VoiceNotFound", "Voice not found: x", VoiceGone, 502),
    (400, "CLIENT_ERROR", "[qwen-tts:]Engine return error code: 411", VoiceMismatch, 502),
    (400, "CLIENT_ERROR", "Engine return error code: 418", VoiceMismatch, 502),
    (400, "", "", ProviderRejected, 502),
    (401, "InvalidApiKey", "", ProviderMisconfigured, 502),
    (401, "invalid_api_key", "", ProviderMisconfigured, 502),
    (401, "NOT AUTHORIZED", "", ProviderMisconfigured, 502),
    (403, "AccessDenied", "", ProviderMisconfigured, 502),
    (403, "AccessDenied.Unpurchased", "", ProviderMisconfigured, 502),
    (403, "Model.AccessDenied", "", ModelRetired, 502),
    (403, "Workspace.AccessDenied", "", ProviderMisconfigured, 502),
    (403, "Endpoint.AccessDenied", "", ProviderMisconfigured, 502),
    (403, "AllocationQuota.FreeTierOnly", "", ProviderMisconfigured, 502),
    (404, "ModelNotFound", "", ModelRetired, 502),
    (404, "model_not_found", "", ModelRetired, 502),
    (404, "WorkSpaceNotFound", "", ProviderMisconfigured, 502),
    (404, "NotFound", "", ProviderMisconfigured, 502),
    (413, "", "<html>too large</html>", ProviderRejected, 400),
    (429, "Throttling.AllocationQuota", "Free allocated quota exceeded.", ProviderMisconfigured, 502),
    (429, "Throttling.AllocationQuota", "Maximum voice-clone voice limit exceeded.", ProviderMisconfigured, 502),
    (429, "CommodityNotPurchased", "", ProviderMisconfigured, 502),
    (429, "Prepaid Bill Overdue", "", ProviderMisconfigured, 502),
    (429, "PostpaidBillOverdue", "", ProviderMisconfigured, 502),
    (500, "InternalError", "", ProviderUnavailable, 503),
    (500, "InternalError.Algo", "", ProviderUnavailable, 503),
    (500, "InternalError.Timeout", "", ProviderUnavailable, 503),
    (500, "SystemError", "", ProviderUnavailable, 503),
    (500, "ModelServiceFailed", "", ProviderUnavailable, 503),
    (500, "RequestTimeOut", "Request timed out, please try again later.", ProviderUnavailable, 503),
    (503, "ModelUnavailable", "", ProviderUnavailable, 503),
    (502, "", "", ProviderUnavailable, 503),
    (418, "Teapot", "", ProviderRejected, 502),
    (302, "", "", ProviderMisconfigured, 502),
]

THROTTLES = [
    (429, "Throttling", ""),
    (429, "Throttling.RateQuota", ""),
    (429, "LimitRequests", ""),
    (429, "limit_requests", ""),
    (429, "Throttling.BurstRate", ""),
    (429, "limit_burst_rate", ""),
    (429, "Throttling.Concurrency", ""),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded, please increase your quota limit."),
    (429, "insufficient_quota", "You exceeded your current quota."),
    (429, "", ""),
    (503, "ServiceUnavailable", TOO_MANY),
    (500, "ServiceUnavailable", TOO_MANY.replace("Too", "To")),
]


@pytest.mark.parametrize(("status", "code", "message", "kind", "shown"), REFUSALS)
def test_each_refusal_has_its_class_and_status(
    status: int, code: str, message: str, kind: type[ProviderError], shown: int
) -> None:
    error = classify(code, message, http_status=status)
    assert type(error) is kind
    assert error.status == shown
    assert not error.throttled
    assert error.retryable is (kind is ProviderUnavailable)
    assert error.diagnostics["http_status"] == status
    assert error.diagnostics.get("code", "") == code


@pytest.mark.parametrize(("status", "code", "message"), THROTTLES)
def test_each_throttle_is_known_for_one(status: int, code: str, message: str) -> None:
    for http_status in (status, None) if code else (status,):
        error = classify(code, message, http_status=http_status)
        assert type(error) is ProviderUnavailable
        assert error.throttled
        assert error.status == 503


def test_wrong_voice_is_answered_with_what_to_do() -> None:
    for code in ("411", "418"):
        detail = classify("InternalError.Algo", f"Engine return error code: {code}", http_status=500).detail
        assert "create the voice again" in detail
    assert "create it again" in classify("VoiceNotFound").detail.lower()


def test_nothing_of_the_provider_reaches_the_user() -> None:
    error = classify("InvalidParameter", "field input.text: 'a secret text' sk-abcdef", http_status=400)
    assert "secret" not in error.detail
    assert "sk-abcdef" not in str(error.diagnostics)


@pytest.mark.parametrize(
    ("body", "envelope"),
    [
        (b'{"code":"A","message":"b","request_id":"r"}', Envelope("A", "b", "r")),
        (b'{"error":{"code":"a_b","message":"c","type":"t"},"request_id":"r"}', Envelope("a_b", "c", "r")),
        (b'{"error":{"code":null,"message":"c","type":"server_error"}}', Envelope("server_error", "c")),
        (b'{"error":"only words"}', Envelope("", "only words")),
        (b'{"code":"","message":"","output":{}}', Envelope()),
        (b"{}", Envelope()),
        (b"[]", Envelope()),
        (b"", Envelope()),
        (None, Envelope()),
        (b"<html><body>502 Bad Gateway</body></html>", Envelope()),
        (b"\xff\xfe", Envelope()),
        (b"[" * 100_000, Envelope()),
        (b'{"code":{"x":1},"message":["y"],"request_id":7}', Envelope("", "", "7")),
    ],
)
def test_envelope_is_read_in_every_dialect(body: bytes | None, envelope: Envelope) -> None:
    assert read_envelope(body) == envelope


@pytest.mark.parametrize(
    ("code", "reason", "kind", "throttled"),
    [
        (1000, "", ProviderUnavailable, False),
        (1001, "going away", ProviderUnavailable, False),
        (1006, "", ProviderUnavailable, False),
        (None, "", ProviderUnavailable, False),
        (1011, "internal error", ProviderUnavailable, False),
        (1011, TOO_MANY, ProviderUnavailable, True),
        (1011, "TO MANY requests", ProviderUnavailable, True),
        (1000, "Your requests are being throttled", ProviderUnavailable, True),
        (1007, "Model not found.", ModelRetired, False),
        (1007, "something else", ProviderRejected, False),
        (1008, "policy", ProviderRejected, False),
        (1011, "Engine return error code: 411", VoiceMismatch, False),
        (1011, "Voice not found: x", VoiceGone, False),
    ],
)
def test_close_is_read_by_its_reason_then_by_its_code(
    code: int | None, reason: str, kind: type[ProviderError], throttled: bool
) -> None:
    error = classify_close(code, reason)
    assert type(error) is kind
    assert error.throttled is throttled
    assert error.diagnostics["close_code"] == (code or 1006)


def test_violation_is_the_providers_fault() -> None:
    assert violation("x").category == "provider_unavailable"


def test_operator_hears_once_of_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    alarm = OperatorAlarm(every_seconds=60, clock=lambda: now)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            alarm.hear(classify("InvalidApiKey", "no", http_status=401, diagnostics={"request_id": "r-1"}))
        alarm.hear(classify("Arrearage", "", http_status=400))
        alarm.hear(classify("DataInspectionFailed", "", http_status=400))
        now += 61
        alarm.hear(classify("InvalidApiKey", "", http_status=401))
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
    assert "InvalidApiKey" in caplog.messages[0]
    assert "r-1" in caplog.messages[0]
    assert "Arrearage" in caplog.messages[1]
