"""The five simulated Modal endpoints (docs/providers.md, "Modal"): submit, status, result, cancel, design."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .behaviours import RestBehaviour
from .ledger import Call
from .rest import Work, answer
from .speech import LANGUAGES, billed_characters, wav_file
from .state import Simulator

_CALL_PARAMETER = "__modal_function_call_id"
_RESULT_WAITS_SECONDS = 5.0
_MOST_CHARACTERS = 5000

State = Literal["running", "completed", "failed", "cancelled"]


@dataclass
class _Job:
    """One submitted job. Times are the event loop's."""

    id: str
    text: str
    language: str
    voice: str
    begun: float
    done: float
    behaviour: RestBehaviour
    cancelled: bool = False

    def state(self, now: float) -> State:
        if self.cancelled:
            return "cancelled"
        if now < self.done:
            return "running"
        return "failed" if self.behaviour.fails is not None else "completed"


@dataclass
class _Redirected:
    """An answer that comes after some more redirects."""

    response: Response
    left: int
    pending: int
    location: Literal["absolute", "relative"]


class Modal:
    """The jobs, and the endpoints that speak of them.

    A status request always answers 200 and calls everything that is no result and not running ``failed``: unknown ids
    and cancelled jobs, too. A job that waits for a machine is ``running``.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._jobs: dict[str, _Job] = {}
        self._redirected: dict[str, _Redirected] = {}

    def routes(self) -> list[BaseRoute]:
        """Where the endpoints are. Each also answers the GET that follows a redirect."""
        return [
            Route("/modal/submit", self._submit, methods=["GET", "POST"]),
            Route("/modal/status", self._status, methods=["GET"]),
            Route("/modal/result", self._result, methods=["GET"]),
            Route("/modal/cancel", self._cancel, methods=["GET", "POST"]),
            Route("/modal/voice-design", self._design, methods=["GET", "POST"]),
        ]

    # --- the endpoints ------------------------------------------------------------------------------------------------

    async def _submit(self, request: Request) -> Response:
        async def work(asked: dict[str, Any], call: Call, behaviour: RestBehaviour) -> Response:
            text = asked.get("text")
            reference, transcript = asked.get("ref_audio_base64"), asked.get("ref_text")
            if not _filled(text) or not _filled(reference) or not _filled(transcript):
                return _detail(400, "text, ref_audio_base64 and ref_text are required")
            if asked.get("language", "Auto") not in ("Auto", *LANGUAGES):
                return _detail(400, "Unsupported language")
            seconds = behaviour.job_seconds
            if seconds is None:
                seconds = self._simulator.pace.modal_job_seconds
            now = asyncio.get_running_loop().time()
            job = _Job(
                id=self._call_id(),
                text=str(text),
                language=asked.get("language", "Auto"),
                voice=hashlib.sha256(str(reference).encode()).hexdigest(),
                begun=now,
                done=now + behaviour.cold_start_seconds + seconds,
                behaviour=behaviour,
            )
            self._jobs[job.id] = job
            self._simulator.ledger.note(call, job_id=job.id, billed=1, voice=job.voice, transcript=transcript)
            return JSONResponse({"job_id": job.id, "status": "submitted", "text_length": len(job.text)})

        return await self._posted(request, "submit", work)

    async def _status(self, request: Request) -> Response:
        async def work(job: _Job | None, call: Call, behaviour: RestBehaviour) -> Response:
            now = asyncio.get_running_loop().time()
            state: str = job.state(now) if job is not None else "unknown"
            said = behaviour.reports or (state if state in ("running", "completed") else "failed")
            self._simulator.ledger.note(call, said=said)
            body = {"job_id": call["job_id"], "status": said, "result_ready": said == "completed"}
            if said == "failed":
                reason = job.behaviour.fails if job is not None and state == "failed" else None
                body["error"] = reason or {"unknown": "Function call not found", "cancelled": "Cancelled"}.get(
                    state, "A transient failure of the status function"
                )
            if job is not None:
                body["elapsed_seconds"] = round(now - job.begun, 3)
            return JSONResponse(body)

        return await self._asked(request, "status", work)

    async def _result(self, request: Request) -> Response:
        async def work(job: _Job | None, _call: Call, behaviour: RestBehaviour) -> Response:
            if behaviour.reports in ("processing", "running"):
                return _detail(202, "Job still processing")
            if job is None or behaviour.reports == "failed":
                return _detail(500, "Failed to get result: the function call was not found or has expired")
            loop = asyncio.get_running_loop()
            if job.state(loop.time()) == "running":
                await asyncio.sleep(min(_RESULT_WAITS_SECONDS, job.done - loop.time()))
            match job.state(loop.time()):
                case "running":
                    return _detail(202, "Job still processing")
                case "completed":
                    return await self._wav(job.text, job.voice, job.language)
                case "cancelled":
                    return _detail(500, "Failed to get result: the function call was cancelled")
                case _:
                    return _detail(500, f"Failed to get result: {job.behaviour.fails}")

        return await self._asked(request, "result", work)

    async def _cancel(self, request: Request) -> Response:
        async def work(asked: dict[str, Any], _call: Call, _behaviour: RestBehaviour) -> Response:
            if not _filled(asked.get("job_id")):
                return _detail(400, "job_id is required")
            job = self._jobs.get(asked["job_id"])
            if job is None:
                return _detail(500, "Failed to cancel: the function call was not found")
            if job.state(asyncio.get_running_loop().time()) == "running" and not job.behaviour.ignores_cancel:
                job.cancelled = True
            return JSONResponse({"job_id": job.id, "status": "cancelled"})

        return await self._posted(request, "cancel", work)

    async def _design(self, request: Request) -> Response:
        async def work(asked: dict[str, Any], call: Call, behaviour: RestBehaviour) -> Response:
            text, language, instruct = asked.get("text"), asked.get("language", "Auto"), asked.get("instruct")
            if not _filled(text) or not _filled(instruct):
                return _detail(400, "text and instruct are required")
            if len(str(text)) > _MOST_CHARACTERS or len(str(instruct)) > _MOST_CHARACTERS:
                return _detail(400, "text or instruct is too long")
            if language not in ("Auto", *LANGUAGES):
                return _detail(400, "Unsupported language")
            self._simulator.ledger.note(call, billed=1)
            await asyncio.sleep(behaviour.cold_start_seconds + self._simulator.pace.modal_job_seconds)
            return await self._wav(str(text), f"design {instruct}", language)

        return await self._posted(request, "design", work)

    # --- what they share ----------------------------------------------------------------------------------------------

    async def _posted(
        self,
        request: Request,
        action: str,
        work: Callable[[dict[str, Any], Call, RestBehaviour], Awaitable[Response]],
    ) -> Response:
        if request.method == "GET":
            return await self._followed(request)
        try:
            asked = json.loads(await request.body())
        except ValueError:
            asked = None
        asked = asked if isinstance(asked, dict) else {}
        text = asked.get("text") if isinstance(asked.get("text"), str) else None
        job_id = asked.get("job_id") if isinstance(asked.get("job_id"), str) else None
        call = self._recorded(action, job_id, text, asked.get("language"))
        return await self._answered(request, call, lambda behaviour: work(asked, call, behaviour))

    async def _asked(
        self,
        request: Request,
        action: str,
        work: Callable[[_Job | None, Call, RestBehaviour], Awaitable[Response]],
    ) -> Response:
        if _CALL_PARAMETER in request.query_params:
            return await self._followed(request)
        job_id = request.query_params.get("job_id", "")
        call = self._recorded(action, job_id, None, None)
        if not job_id:
            return _detail(400, "job_id is required")
        return await self._answered(request, call, lambda behaviour: work(self._jobs.get(job_id), call, behaviour))

    def _recorded(self, action: str, job_id: str | None, text: str | None, language: Any) -> Call:
        facts: dict[str, Any] = {"model": "qwen3-tts", "voice": None}
        job = self._jobs.get(job_id or "")
        text = job.text if text is None and job is not None else text
        if job_id is not None:
            facts["job_id"] = job_id
        if text is not None:
            facts |= {"text": text, "characters": billed_characters(text)}
        if language is not None:
            facts["language"] = language
        return self._simulator.ledger.record("modal", action, **facts)

    async def _answered(self, request: Request, call: Call, work: Work) -> Response:
        async def redirected(behaviour: RestBehaviour) -> Response:
            response = await work(behaviour)
            if not behaviour.redirects:
                return response
            # The work is done already; only the way to its answer is longer.
            call_id = self._call_id()
            self._redirected[call_id] = _Redirected(
                response, behaviour.redirects - 1, behaviour.pending, behaviour.location
            )
            return self._redirect(request, call_id, behaviour.location)

        facts = {key: call.get(key) for key in ("action", "model", "voice", "text", "job_id")}
        return await answer(self._simulator, request, "modal", call, facts, redirected)

    async def _followed(self, request: Request) -> Response:
        """The GET that follows a redirect: one more of them, or at last the answer. It never runs anything again."""
        call_id = request.query_params.get(_CALL_PARAMETER, "")
        waiting = self._redirected.get(call_id)
        if waiting is None:
            return _detail(404, "Function call not found")
        await asyncio.sleep(self._simulator.pace.request_seconds)
        if waiting.left > 0:
            waiting.left -= 1
            return self._redirect(request, call_id, waiting.location)
        if waiting.pending > 0:
            waiting.pending -= 1
            return _detail(202, "Job still processing")
        return waiting.response

    @staticmethod
    def _redirect(request: Request, call_id: str, location: Literal["absolute", "relative"]) -> Response:
        target = f"{request.url.path}?{_CALL_PARAMETER}={call_id}"
        if location == "absolute":
            target = f"{request.url.scheme}://{request.headers.get('host') or request.url.netloc}{target}"
        return Response(status_code=303, headers={"Location": target})

    async def _wav(self, text: str, voice: str, language: str) -> Response:
        audio = wav_file(await self._simulator.speech.samples(text, voice, language))
        return Response(audio, media_type="audio/wav")

    def _call_id(self) -> str:
        return f"fc-{self._simulator.request_id()}"


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _detail(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status_code=status)
