"""The refusals of the simulated DashScope: codes, HTTP statuses, sentences (docs/providers.md, "Errors of Qwen")."""

from typing import Any, Literal

from starlette.responses import JSONResponse

Envelope = Literal["native", "openai"]

REFUSALS: dict[str, tuple[int, str]] = {
    "InvalidParameter": (400, "A parameter is not valid."),
    "DataInspectionFailed": (400, "Input or output data may contain inappropriate content."),
    "Arrearage": (400, "Access denied: the account is in debt."),
    "Audio.PreprocessError": (400, "No segments meet minimum duration requirement."),
    "Audio.DecoderError": (400, "The audio could not be decoded."),
    "Audio.AudioRateError": (400, "The sample rate of the audio is below 24000 Hz."),
    "Audio.DurationLimitError": (400, "The audio is longer than 60 seconds."),
    "BadRequest.VoiceNotFound": (400, "Voice not found."),
    "VoiceNotFound": (400, "Voice not found."),
    "ClientDisconnect": (400, "The client disconnected before the answer."),
    "InvalidApiKey": (401, "Invalid API key provided."),
    "invalid_api_key": (401, "Incorrect API key provided."),
    "NOT AUTHORIZED": (401, "The workspace does not exist or is not yours."),
    "AccessDenied": (403, "Access denied."),
    "AccessDenied.Unpurchased": (403, "Access denied: the service has not been purchased."),
    "Model.AccessDenied": (403, "Model access denied."),
    "Workspace.AccessDenied": (403, "Workspace access denied."),
    "Endpoint.AccessDenied": (403, "Endpoint access denied."),
    "AllocationQuota.FreeTierOnly": (403, "The free tier is used up and paying is switched off."),
    "ModelNotFound": (404, "Model not found."),
    "model_not_found": (404, "The model does not exist."),
    "WorkSpaceNotFound": (404, "Workspace not found."),
    "NotFound": (404, "Not found."),
    "Throttling": (429, "Requests are being throttled."),
    "Throttling.RateQuota": (429, "Requests rate limit exceeded, please try again later."),
    "LimitRequests": (429, "You exceeded your current requests limit."),
    "limit_requests": (429, "You exceeded your current requests limit."),
    "Throttling.BurstRate": (429, "Request rate increased too quickly."),
    "limit_burst_rate": (429, "Request rate increased too quickly."),
    "Throttling.Concurrency": (429, "Too many requests run at the same time."),
    "Throttling.AllocationQuota": (429, "Allocated quota exceeded, please increase your quota limit."),
    "insufficient_quota": (429, "You exceeded your current quota."),
    "CommodityNotPurchased": (429, "The commodity has not been purchased yet."),
    "Commodity Not Purchased": (429, "The commodity has not been purchased yet."),
    "PrepaidBillOverdue": (429, "The prepaid bill is overdue."),
    "Prepaid Bill Overdue": (429, "The prepaid bill is overdue."),
    "PostpaidBillOverdue": (429, "The postpaid bill is overdue."),
    "Postpaid Bill Overdue": (429, "The postpaid bill is overdue."),
    "InternalError": (500, "An internal error has occurred."),
    "InternalError.Algo": (500, "The algorithm failed."),
    "InternalError.Timeout": (500, "An internal timeout has occurred."),
    "SystemError": (500, "A system error has occurred."),
    "ModelServiceFailed": (500, "The model service failed."),
    "RequestTimeOut": (500, "Request timed out, please try again later."),
    "ServiceUnavailable": (
        503,
        "Too many requests. Your requests are being throttled due to system capacity limits. Please try again later.",
    ),
    "ModelUnavailable": (503, "The model is not available, please try again later."),
}
"""Code → (HTTP status, sentence). A behaviour may override status and message, e.g. for the three meanings of
``Throttling.AllocationQuota`` (see ``FREE_QUOTA_EXCEEDED``, ``VOICE_LIMIT_EXCEEDED``)."""

FREE_QUOTA_EXCEEDED = "Free allocated quota exceeded."
VOICE_LIMIT_EXCEEDED = "Maximum voice-clone voice limit exceeded."


class Refusal(Exception):
    """The provider says no, in its own way."""

    def __init__(self, code: str, message: str | None = None, status: int | None = None) -> None:
        known_status, known_message = REFUSALS.get(code, (400, code))
        self.code = code
        self.status = status or known_status
        self.message = message or known_message
        super().__init__(f"{code}: {self.message}")

    def response(self, request_id: str, envelope: Envelope = "native") -> JSONResponse:
        """The refusal as a REST answer, natively or in the envelope of the OpenAI-compatible surface."""
        body: dict[str, Any]
        if envelope == "openai":
            body = {
                "error": {"message": self.message, "type": "invalid_request_error", "code": self.code},
                "request_id": request_id,
            }
        else:
            body = {"code": self.code, "message": self.message, "request_id": request_id}
        return JSONResponse(body, status_code=self.status)
