"""What all simulated REST surfaces share: bodies, refusals, and the misbehaviours of ``RestBehaviour``."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from .behaviours import BehaviourSurface, Planned, RestBehaviour
from .ledger import Call, now_iso
from .refusals import Refusal
from .serving import transport_of
from .state import Simulator

logger = logging.getLogger(__name__)

Work = Callable[[RestBehaviour], Awaitable[Response]]
"""Does what the request asks for and answers it; raises ``Refusal`` where the real provider would refuse."""


def asked_for(
    simulator: Simulator, request: Request, body: bytes
) -> tuple[dict[str, Any], dict[str, Any], Refusal | None]:
    """The JSON object of a DashScope request, its ``input``, and the refusal of a wrong key or of what is no object."""
    try:
        asked = json.loads(body, parse_constant=_no_json)
        json.dumps(asked, ensure_ascii=False).encode()  # not half an emoji, which no answer could repeat
    except (ValueError, RecursionError):
        asked = None
    refusal = simulator.unauthorized(request)
    if not isinstance(asked, dict):
        asked = {}
        refusal = refusal or Refusal("InvalidParameter", "The request body is not a JSON object.")
    given = asked.get("input")
    return asked, given if isinstance(given, dict) else {}, refusal


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


async def answer(
    simulator: Simulator, request: Request, surface: BehaviourSurface, call: Call | None, facts: Any, work: Work
) -> Response:
    """Answer one request as planned, and note in its call what was answered.

    Args:
        call: The record of the call; None for what is no call to a provider (a download).
        facts: What a behaviour may ask for.
    """
    planned = simulator.behaviours.claim(surface, **facts)
    response = await _play(simulator, request, planned, call, work)
    if call is not None and not call.get("unanswered"):
        simulator.ledger.note(call, status=response.status_code, answered_at=now_iso())
    return response


async def _play(
    simulator: Simulator, request: Request, planned: Planned | None, call: Call | None, work: Work
) -> Response:
    behaviour = planned.behaviour if planned is not None and isinstance(planned.behaviour, RestBehaviour) else None
    if planned is None or behaviour is None:
        await asyncio.sleep(simulator.pace.request_seconds)
        return await _done(simulator, call, RestBehaviour(), work)
    if call is not None:
        simulator.ledger.note(call, behaviour=planned.id)
    if behaviour.do == "hold":
        if call is not None:
            simulator.ledger.note(call, holding=True)
        try:
            await planned.hold(behaviour.name)
        finally:
            if call is not None:
                simulator.ledger.note(call, holding=False)
    else:
        await asyncio.sleep(simulator.pace.request_seconds)

    effect = behaviour.do in (None, "hang", "late", "abort", "hold") if behaviour.effect is None else behaviour.effect
    done = await _done(simulator, call, behaviour, work) if effect else Response(status_code=500)
    match behaviour.do:
        case "error":
            refusal = Refusal(behaviour.code, behaviour.message, behaviour.status)
            if call is not None:
                simulator.ledger.note(call, code=refusal.code)
            return refusal.response(simulator.request_id(), behaviour.envelope)
        case "empty":
            return JSONResponse({}, status_code=behaviour.status or 400)
        case "html":
            page = "<html><head><title>502 Bad Gateway</title></head><body>A simulated gateway failed.</body></html>"
            return HTMLResponse(page, status_code=behaviour.status or 502)
        case "answer" if behaviour.text is not None:
            return Response(behaviour.text, status_code=behaviour.status or 200, headers=behaviour.headers)
        case "answer":
            return JSONResponse(behaviour.json, status_code=behaviour.status or 200, headers=behaviour.headers)
        case "hang":
            _unanswered(simulator, call)
            while (await request.receive())["type"] != "http.disconnect":
                pass
            return done
        case "abort":
            _unanswered(simulator, call)
            transport_of(request.scope).abort()
            await asyncio.sleep(0.01)  # until the server has noticed that its connection is lost
            return done
        case "late":
            await asyncio.sleep(behaviour.seconds)
    return done


def _unanswered(simulator: Simulator, call: Call | None) -> None:
    if call is not None:
        simulator.ledger.note(call, unanswered=True)


async def _done(simulator: Simulator, call: Call | None, behaviour: RestBehaviour, work: Work) -> Response:
    try:
        return await work(behaviour)
    except Refusal as exc:
        refusal = exc
    except Exception:
        logger.exception("the simulation failed")
        refusal = Refusal("InternalError")
    if call is not None:
        simulator.ledger.note(call, code=refusal.code)
    return refusal.response(simulator.request_id(), behaviour.envelope)
