"""The Modal job API: submit, look, fetch, cancel, and the design of a voice in one long request.

Each endpoint is an address of its own. Web requests there end after 150 s with a 303 to the same call's answer, which
is then fetched by GET and never runs anything again; so redirects are followed here, by hand.

Source: the deployed API and Modal's guide on request timeouts; docs/providers.md, "Modal".
"""

import asyncio
from base64 import b64encode
from itertools import chain, repeat
from typing import Any, Literal

import httpx
import msgspec

from server.audio import AudioError, parse_wav
from server.errors import ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable
from server.providers.bodies import TooMuchError, read_at_most
from server.settings import Settings

JobStatus = Literal["running", "completed", "failed"]

#: Codes in an error's ``diagnostics``: this server does not know the endpoint; nothing was sent.
NOT_CONFIGURED, NOT_CONNECTED = "not_configured", "connect_failed"

# A text of 2000 characters is two to three minutes of speech; at 48 kHz that is 17 MB.
_MOST_AUDIO_BYTES = 64 * 1024 * 1024
_MOST_JSON_BYTES = 1024 * 1024
_MOST_NEW_TOKENS = 4096  # what the deployed caller asks for
# Each redirect stands for 150 s of work; a browser would follow as many.
_MOST_REDIRECTS = 20
# Fetching an answer runs nothing, so a connection that breaks meanwhile costs a pause and no more.
_MOST_STUMBLES = 3


class PolledJob(msgspec.Struct, frozen=True):
    """What one poll of a job saw.

    Attributes:
        elapsed_seconds: As the API counts it; None where it does not say.
    """

    status: JobStatus
    error: str | None = None
    elapsed_seconds: float | None = None


class _Submitted(msgspec.Struct):
    job_id: str


class _Status(msgspec.Struct):
    status: str
    error: Any = None
    elapsed_seconds: Any = None


class Modal:
    """The job API. An endpoint that is not configured answers ``ProviderUnavailable``.

    Args:
        http: Opened and closed by whoever builds this; without default credentials.
        downloads: The same for results, which were paid for: they never wait for a connection that others hold.
    """

    def __init__(
        self, settings: Settings, http: httpx.AsyncClient, *, downloads: httpx.AsyncClient | None = None
    ) -> None:
        self._settings = settings
        self._deadlines = settings.deadlines
        self._tries = settings.tries.downloads
        self._pauses_seconds = settings.intervals.modal_result_pauses_seconds
        self._http = http
        self._downloads = downloads or http

    @property
    def can_cancel(self) -> bool:
        """Not every deployment has a cancel endpoint."""
        return bool(self._settings.modal_job_cancel)

    async def submit(self, *, text: str, language: str, reference: bytes, transcript: str) -> str:
        """Submit a job; its id.

        Raises:
            ProviderTimeout: Sent, but not answered: a job may be running that nobody knows by name.
            ProviderRejected, ProviderUnavailable: No job was made.
        """

        def body() -> bytes:
            return msgspec.json.encode(
                {
                    "text": text,
                    "language": language,
                    "ref_audio_base64": b64encode(reference).decode(),
                    "ref_text": transcript,
                    "max_new_tokens": _MOST_NEW_TOKENS,
                }
            )

        answer = await self._json(
            "POST",
            self._settings.modal_job_submit,
            within_seconds=self._deadlines.modal_submit_seconds,
            content=await asyncio.to_thread(body),  # ten megabytes take longer than others may wait
        )
        try:
            job_id = msgspec.convert(answer, _Submitted).job_id.strip()
        except msgspec.ValidationError:
            job_id = ""
        if not job_id:
            raise ProviderTimeout(diagnostics={"code": "no_job_id"})
        return job_id

    async def poll(self, job_id: str, *, within_seconds: float) -> PolledJob:
        """Look at a job once. ``failed`` also covers unknown ids, cancelled jobs and passing faults: look again.

        Raises:
            ProviderError: The poll itself failed, which says nothing about the job.
        """
        answer = await self._json(
            "GET", self._settings.modal_job_status, within_seconds=within_seconds, query={"job_id": job_id}
        )
        try:
            said = msgspec.convert(answer, _Status)
        except msgspec.ValidationError as exc:
            raise _unavailable("unreadable_answer") from exc
        elapsed = said.elapsed_seconds if type(said.elapsed_seconds) in (int, float) else None
        if said.status in ("completed", "failed"):
            error = said.error if isinstance(said.error, str) and said.error else None
            return PolledJob(said.status, error, elapsed)  # type: ignore[arg-type]
        return PolledJob("running", None, elapsed)

    async def result(self, job_id: str) -> bytes:
        """The WAV file of a completed job. Fetching runs nothing, so whatever may pass is tried again in time.

        Raises:
            ProviderUnavailable: Still failing after the last try, or not a WAV file that we can read.
            ProviderRejected: Refused or too large.
        """
        pauses = chain(self._pauses_seconds, repeat(self._pauses_seconds[-1]))
        tries = 0
        try:
            async with asyncio.timeout(self._deadlines.download_seconds):
                while True:
                    failure: ProviderError
                    try:
                        status, content = await self._exchange(
                            "GET",
                            self._settings.modal_job_result,
                            query={"job_id": job_id},
                            most_bytes=_MOST_AUDIO_BYTES,
                            http=self._downloads,
                        )
                        if status == 200:
                            return _checked(content)
                        failure = _refused(status, content)
                    except (ProviderUnavailable, ProviderTimeout) as exc:
                        if exc.diagnostics.get("code") == NOT_CONFIGURED:
                            raise
                        status, failure = 0, exc
                    if status != 202:
                        tries += 1
                        if isinstance(failure, ProviderRejected):
                            raise failure
                        if tries >= self._tries:
                            facts = {**failure.diagnostics, "code": "result_failed", "tries": tries}
                            raise ProviderUnavailable(diagnostics=facts) from failure
                    await asyncio.sleep(next(pauses))
        except TimeoutError as exc:
            raise _unavailable("result_timeout", tries=tries) from exc

    async def cancel(self, job_id: str) -> None:
        """Ask for a job's end. It may complete all the same; what arrives then is for nobody.

        Raises:
            ProviderError: It could not be asked.
        """
        await self._json(
            "POST",
            self._settings.modal_job_cancel,
            within_seconds=self._deadlines.connect_seconds,
            content=msgspec.json.encode({"job_id": job_id}),
        )

    async def design(self, *, text: str, language: str, instruct: str) -> bytes:
        """Have a designed voice say ``text``; the WAV file. May take minutes while a machine starts.

        Raises:
            ProviderTimeout: Nothing came within the deadline of a job.
            ProviderRejected, ProviderUnavailable: Refused, or failed on their side.
        """
        content = msgspec.json.encode({"text": text, "language": language, "instruct": instruct})
        try:
            async with asyncio.timeout(self._deadlines.modal_job_seconds):
                status, answer = await self._exchange(
                    "POST", self._settings.modal_endpoint_voice_design, content=content, most_bytes=_MOST_AUDIO_BYTES
                )
        except TimeoutError as exc:
            raise ProviderTimeout(diagnostics={"code": "timeout"}) from exc
        if status == 200:
            return _checked(answer)
        raise _refused(status, answer)

    async def _json(
        self,
        method: Literal["GET", "POST"],
        address: str | None,
        *,
        within_seconds: float,
        content: bytes | None = None,
        query: dict[str, str] | None = None,
    ) -> Any:
        try:
            async with asyncio.timeout(within_seconds):
                status, answer = await self._exchange(
                    method, address, content=content, query=query, most_bytes=_MOST_JSON_BYTES
                )
        except TimeoutError as exc:
            raise ProviderTimeout(diagnostics={"code": "timeout"}) from exc
        if status != 200:
            raise _refused(status, answer)
        try:
            return msgspec.json.decode(answer)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            raise _unavailable("unreadable_answer") from exc

    async def _exchange(
        self,
        method: Literal["GET", "POST"],
        address: str | None,
        *,
        most_bytes: int,
        content: bytes | None = None,
        query: dict[str, str] | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> tuple[int, bytes]:
        """One request and whatever redirects and "not yet" stand before its answer; status and body.

        The caller's deadline is the only one for the whole of it.

        Raises:
            ProviderUnavailable: Not configured, not connected, or redirected in circles.
            ProviderTimeout: Sent, and nobody knows what became of it.
        """
        if not address:
            raise _unavailable(NOT_CONFIGURED)
        timeout = httpx.Timeout(self._deadlines.modal_request_seconds, connect=self._deadlines.connect_seconds)
        target = httpx.URL(address).copy_merge_params(query) if query else httpx.URL(address)
        pauses = chain(self._pauses_seconds, repeat(self._pauses_seconds[-1]))
        redirects = stumbles = 0
        while redirects <= _MOST_REDIRECTS:
            headers = {"Content-Type": "application/json"} if content is not None else {}
            try:
                async with (http or self._http).stream(
                    method, target, content=content, headers=headers, timeout=timeout, follow_redirects=False
                ) as response:
                    location = _location(response)
                    if location is None and not (redirects and response.status_code == 202):
                        return response.status_code, await read_at_most(response, most_bytes)
            except TooMuchError as exc:
                raise ProviderRejected(diagnostics={"code": "too_large"}) from exc
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                if not redirects and isinstance(exc, _NEVER_SENT):
                    raise _unavailable(NOT_CONNECTED, message=type(exc).__name__) from exc
                stumbles += 1
                if not redirects or stumbles >= _MOST_STUMBLES:
                    raise ProviderTimeout(diagnostics={"code": "broken_off", "message": type(exc).__name__}) from exc
                location = None
            if location is None:
                await asyncio.sleep(next(pauses))
                continue
            redirects += 1
            following = target.join(location)
            if (following.scheme, following.host) != (target.scheme, target.host):
                raise ProviderRejected(diagnostics={"code": "redirected_elsewhere"})
            # From here on it is only fetched, wherever the first redirect leads (Modal, "Request timeouts").
            method, target, content = "GET", following, None
        raise _unavailable("redirected_too_often")


_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL)


def _location(response: httpx.Response) -> str | None:
    """Where the answer will be, if this is not it yet."""
    location: str | None = response.headers.get("location")
    return location if location and (response.is_redirect or response.status_code == 202) else None


def _checked(wav: bytes) -> bytes:
    try:
        parse_wav(wav)
    except AudioError as exc:
        raise _unavailable("unreadable_audio") from exc
    return wav


def _refused(status: int, content: bytes) -> ProviderError:
    diagnostics: dict[str, Any] = {"http_status": status}
    try:
        detail = msgspec.json.decode(content).get("detail")
        if isinstance(detail, str):
            diagnostics["message"] = detail[:300]
    except (msgspec.MsgspecError, UnicodeError, AttributeError, RecursionError):
        pass
    if status == 504:  # somebody on the way gave up waiting; what it waited for may go on
        return ProviderTimeout(diagnostics=diagnostics)
    if status >= 500 or status in (202, 408, 429):
        return ProviderUnavailable(diagnostics=diagnostics)
    return ProviderRejected(diagnostics=diagnostics)


def _unavailable(code: str, **facts: Any) -> ProviderUnavailable:
    return ProviderUnavailable(diagnostics={"code": code, **facts})
