"""Qwen's non-streaming lane: one piece of text in, the temporary address of a WAV file out, and fetching it.

A piece is a purchase: the job claims it before it calls ``synthesize``, and an unknown end is final.

Source: Model Studio, "Qwen-TTS API"; docs/providers.md, "Qwen in pieces, over HTTP".
"""

import asyncio
import re
import time
from fnmatch import fnmatchcase
from typing import Any

import httpx
import msgspec

from server.audio import AudioError, parse_wav
from server.errors import ProviderError, ProviderRejected, ProviderUnavailable
from server.providers.bodies import TooMuchError, read_at_most
from server.providers.pacing import Pacer
from server.providers.qwen.errors import OperatorAlarm, ProviderMisconfigured, operator_alarm, storable
from server.providers.qwen.rest import QwenRest, unknown_outcome
from server.settings import Settings

_PATH = "/api/v1/services/aigc/multimodal-generation/generation"
# 600 characters are a minute or two; as 48 kHz stereo that would be 23 MB.
_MOST_AUDIO_BYTES = 64 * 1024 * 1024
_READ_SECONDS = 30.0


class SpokenPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece that the provider has spoken, and billed.

    Attributes:
        expires_at: When the address stops working, UNIX seconds; None if the provider did not say.
        usage: Its count, e.g. ``{"characters": 195}``.
    """

    url: str
    request_id: str = ""
    audio_id: str = ""
    expires_at: float | None = None
    usage: dict[str, int] = {}

    def facts(self) -> dict[str, Any]:
        """What the row keeps. The address is not among it: whoever has it has the audio."""
        known = {
            "request_id": self.request_id,
            "audio_id": self.audio_id,
            "expires_at": self.expires_at,
            "usage": self.usage,
        }
        return {name: value for name, value in known.items() if value}

    def __repr__(self) -> str:
        return f"SpokenPiece({self.facts()})"


class FetchedAudio(msgspec.Struct, frozen=True):
    """A downloaded WAV file, whole and readable, and what the row keeps of the download (``host``, ``tries``…)."""

    wav: bytes
    facts: dict[str, Any]


class _Audio(msgspec.Struct):
    """All but the address is of any type: an oddity there must not lose a file that is paid for."""

    url: str | None = None
    id: Any = None
    expires_at: Any = None


class _Output(msgspec.Struct):
    audio: _Audio


class _Answer(msgspec.Struct):
    output: _Output
    request_id: Any = None
    usage: Any = None


class QwenHttp:
    """Speaks with voices whose target model is not a realtime one.

    Args:
        http: Opened and closed by whoever builds this; it must not carry default credentials.
        downloads: The same for what was paid for already: it never waits for a connection that unpaid work holds.
        pacer: Spaces the calls, each model's by itself, and hears of every throttle.
    """

    def __init__(
        self,
        settings: Settings,
        http: httpx.AsyncClient,
        pacer: Pacer,
        alarm: OperatorAlarm = operator_alarm,
        *,
        downloads: httpx.AsyncClient | None = None,
    ) -> None:
        self._rest = QwenRest(settings, http, alarm)
        self._alarm = alarm
        self._downloads = downloads or http
        self._pacer = pacer
        self._hosts = tuple(pattern.lower() for pattern in settings.provider_download_hosts)
        self._deadlines = settings.deadlines
        self._tries = settings.tries.downloads
        self._pauses_seconds = settings.intervals.download_pauses_seconds

    async def turn(self, model: str, *, by: float | None) -> None:
        """Wait for the turn of one piece, as ``Pacer.start`` does; ``synthesize`` is called right afterwards.

        Raises:
            ProviderUnavailable: The turn did not come in time. Nothing has left us.
        """
        try:
            await self._pacer.start(model, by=by)
        except ProviderError as error:
            error.diagnostics["text_sent"] = False
            raise

    async def synthesize(self, *, text: str, voice: str, model: str, language: str = "Auto") -> SpokenPiece:
        """Have one piece of text spoken, of at most 600 characters (``text.split_text`` cuts longer ones).

        Errors are those of ``QwenRest.post``; each says in ``diagnostics["text_sent"]`` whether the text has left us.
        """
        body = {"model": model, "input": {"text": text, "voice": voice, "language_type": language}}
        try:
            # No X-DashScope-Async: on models that are never asynchronous it makes the call fail.
            answer = await self._rest.post(
                _PATH,
                msgspec.json.encode(body),
                _Answer,
                within_seconds=self._deadlines.http_synthesis_seconds,
            )
        except ProviderError as error:
            error.diagnostics.setdefault("text_sent", False)
            if error.throttled:
                await self._pacer.throttled(model)
            raise
        audio, request_id = answer.output.audio, storable(answer.request_id)
        if not audio.url:
            raise unknown_outcome("no_address", request_id=request_id)
        usage = answer.usage if isinstance(answer.usage, dict) else {}
        return SpokenPiece(
            url=audio.url,
            request_id=request_id,
            audio_id=storable(audio.id),
            expires_at=float(audio.expires_at) if type(audio.expires_at) in (int, float) else None,
            usage={name: count for name, count in usage.items() if type(count) is int},
        )

    async def download(self, piece: SpokenPiece) -> FetchedAudio:
        """Fetch the audio of a spoken piece. It is paid for, so transport failures and 5xx are tried again.

        Raises:
            ProviderRejected: Expired, gone, refused, too large, redirected, or on a host that is not on the list.
            ProviderUnavailable: Still failing after the last try, or not a WAV file that we can read.
            Both keep ``host``, ``http_status``, ``tries`` and ``expires_at`` in ``diagnostics``, never path or query.
        """
        facts: dict[str, Any] = {"tries": 0, "expires_at": piece.expires_at}
        try:
            async with asyncio.timeout(self._deadlines.download_seconds):
                wav = await self._fetch(piece, facts)
            parse_wav(wav)
        except TimeoutError as exc:
            raise _download_failed(facts) from exc
        except AudioError as exc:
            raise ProviderUnavailable(
                "The speech provider handed out audio that could not be read.",
                diagnostics={**_known(facts), "code": "unreadable_audio"},
            ) from exc
        return FetchedAudio(wav, _known(facts))

    async def _fetch(self, piece: SpokenPiece, facts: dict[str, Any]) -> bytes:
        addresses = self._addresses(piece.url, facts)
        for number in range(self._tries):
            # Only the store knows whether it has expired: we have the provider's word and a clock of our own.
            if number and _seems_expired(piece):
                raise _download_refused("expired", facts)
            facts["tries"] = number + 1
            try:
                audio = await self._get(addresses[min(number, len(addresses) - 1)], facts)
            except _Refused as exc:
                code = "expired" if exc.status == 403 and _seems_expired(piece) else "refused"
                raise _download_refused(code, facts) from exc
            except httpx.HTTPError as exc:
                facts["message"] = type(exc).__name__
                audio = None
            if audio is not None:
                facts.pop("message", None)
                return audio
            if number + 1 < self._tries:
                await asyncio.sleep(self._pauses_seconds[min(number, len(self._pauses_seconds) - 1)])
        raise _download_failed(facts)

    async def _get(self, address: httpx.URL, facts: dict[str, Any]) -> bytes | None:
        """The body of a 200; None for a status that may pass."""
        facts.pop("http_status", None)
        timeout = httpx.Timeout(_READ_SECONDS, connect=self._deadlines.connect_seconds)
        async with self._downloads.stream("GET", address, timeout=timeout, follow_redirects=False) as response:
            status = facts["http_status"] = response.status_code
            if status == 200:
                try:
                    return await read_at_most(response, _MOST_AUDIO_BYTES)
                except TooMuchError as exc:
                    raise _download_refused("too_large", facts) from exc
            if status >= 500 or status in (408, 429):
                return None
            raise _Refused(status)

    def _addresses(self, url: str, facts: dict[str, Any]) -> list[httpx.URL]:
        """What to try, in order: https first where the provider said http without a port, then as it said.

        The parsed address that was checked is the one that is fetched, so nothing can read it in two ways.
        """
        try:
            address = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as exc:
            raise _download_refused("bad_address", facts) from exc
        host = address.host.lower()
        facts["host"] = host[:253]
        plain = re.fullmatch(r"[a-z0-9._:-]+", host) is not None
        port = address.port or 443
        if address.scheme not in ("https", "http") or address.userinfo or not plain or port > 65535:
            raise _download_refused("bad_address", facts)
        if not any(fnmatchcase(host, pattern) for pattern in self._hosts):
            # Trying again would be billed again and fetch nothing: the list of hosts is the operator's to mend.
            refused = ProviderMisconfigured(
                diagnostics={**_known(facts), "code": "download_host_not_allowed", "message": "PROVIDER_DOWNLOAD_HOSTS"}
            )
            self._alarm.hear(refused)
            raise refused
        if address.scheme == "http" and address.port is None:
            return [address.copy_with(scheme="https"), address]
        return [address]


class _Refused(Exception):
    """The store does not hand the file out."""

    def __init__(self, status: int) -> None:
        self.status = status


def _seems_expired(piece: SpokenPiece) -> bool:
    return piece.expires_at is not None and piece.expires_at <= time.time()


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _download_refused(code: str, facts: dict[str, Any]) -> ProviderRejected:
    return ProviderRejected(
        "The speech provider's audio could not be fetched. Please generate it again.",
        diagnostics={**_known(facts), "code": f"download_{code}"},
    )


def _download_failed(facts: dict[str, Any]) -> ProviderUnavailable:
    return ProviderUnavailable(
        "The speech provider's audio could not be fetched. Please try again in a moment.",
        diagnostics={**_known(facts), "code": "download_failed"},
    )
