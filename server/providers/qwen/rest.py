"""One JSON call to DashScope's REST API: what came back, or which of our errors it means.

Whatever is called here costs money on success, so the one thing that every failure must tell is whether the request
may have been carried out: ``ProviderTimeout`` says that nobody knows, everything else that it was not.
"""

import asyncio
import logging
from typing import Any, TypeVar

import httpx
import msgspec

from server.errors import ProviderError, ProviderTimeout, ProviderUnavailable
from server.providers.bodies import TooMuchError, read_at_most
from server.providers.qwen.errors import OperatorAlarm, classify, operator_alarm, read_envelope
from server.settings import Settings

# At INFO the library logs whole addresses, and those of audio carry signatures.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)

# A minute of speech as 48 kHz samples in Base64 is 8 MB; no answer that we ask for comes near this.
_MOST_BYTES = 32 * 1024 * 1024

# What some gateways say where there is no error.
_NO_CODES = frozenset({"", "0", "200", "success", "ok"})

_T = TypeVar("_T")


class QwenRest:
    """Speaks JSON with DashScope.

    Args:
        http: Opened and closed by whoever builds this. Redirects are never followed.
        alarm: Hears of every error that only the operator can mend.
    """

    def __init__(self, settings: Settings, http: httpx.AsyncClient, alarm: OperatorAlarm = operator_alarm) -> None:
        self._base_url = settings.dashscope_base_url.rstrip("/")
        self._connect_seconds = settings.deadlines.connect_seconds
        self._http = http
        self._alarm = alarm
        self._headers = {
            "Authorization": f"Bearer {settings.dashscope_api_key}",
            "Content-Type": "application/json",
            "User-Agent": "utter-server",
            # A kept connection may be closed by the other side in the moment we use it again, and then nobody knows
            # whether the request was carried out. A handshake is cheaper than that doubt.
            "Connection": "close",
        }
        if settings.dashscope_workspace:
            self._headers["X-DashScope-WorkSpace"] = settings.dashscope_workspace

    async def post(self, path: str, body: bytes, answer_type: type[_T], *, within_seconds: float) -> _T:
        """POST a JSON body and return its answer.

        Raises:
            ProviderUnavailable: Not connected (``text_sent`` False), throttled, or failed on their side.
            ProviderRejected: Refused; status 400 where another recording or text would help, else 502.
            ProviderTimeout: No readable answer to a request that was sent. It may have been carried out and billed.
        """
        try:
            async with asyncio.timeout(within_seconds):
                status, content, request_id = await self._exchange(path, body, within_seconds)
            return self._read(status, content, request_id, answer_type)
        except TimeoutError as exc:
            raise unknown_outcome("timeout") from exc
        except ProviderError as error:
            error.diagnostics.setdefault("text_sent", True)
            self._alarm.hear(error)
            raise

    async def _exchange(self, path: str, body: bytes, within_seconds: float) -> tuple[int, bytes, str]:
        timeout = httpx.Timeout(within_seconds, connect=self._connect_seconds)
        try:
            async with self._http.stream(
                "POST",
                self._base_url + path,
                content=body,
                headers=self._headers,
                timeout=timeout,
                follow_redirects=False,
            ) as response:
                content = await read_at_most(response, _MOST_BYTES)
                return response.status_code, content, response.headers.get("x-request-id", "")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as exc:
            raise ProviderUnavailable(
                "The speech provider could not be reached. Please try again in a moment.",
                diagnostics={"code": "connect_failed", "message": type(exc).__name__, "text_sent": False},
            ) from exc
        except httpx.TimeoutException as exc:
            raise unknown_outcome("timeout") from exc
        except (httpx.HTTPError, TooMuchError) as exc:
            raise unknown_outcome("broken_off", message=type(exc).__name__) from exc

    def _read(self, status: int, content: bytes, request_id: str, answer_type: type[_T]) -> _T:
        envelope = read_envelope(content)
        facts = {"request_id": envelope.request_id or request_id}
        # Some bodies carry a ``status_code`` and some do not: the HTTP status decides, then a code that is not empty.
        if status == 504 and not envelope.code:
            raise unknown_outcome("gateway_timeout", **facts)
        done = 200 <= status < 300
        if not done or envelope.code.lower() not in _NO_CODES:
            raise classify(envelope.code, envelope.message, http_status=status, diagnostics=facts)
        try:
            return msgspec.json.decode(content, type=answer_type)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            raise unknown_outcome("unreadable_answer", **facts) from exc


def unknown_outcome(code: str, **facts: Any) -> ProviderTimeout:
    """The request left us, and what became of it is unknown: it may have been carried out and billed."""
    known = {name: value for name, value in facts.items() if value}
    return ProviderTimeout(diagnostics={"code": code, "text_sent": True, **known})
