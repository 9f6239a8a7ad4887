"""What the service says about itself: health, readiness, languages, and who is signed in."""

import hmac
import ipaddress
import re

from starlette.requests import Request
from starlette.responses import Response

from server.contract import Capabilities, LanguagesAnswer, Ok
from server.errors import Unauthorized, UtterError
from server.handlers.requests import bearer_token, json_response, parts_of
from server.metrics import CONTENT_TYPE

# RFC 7239 §4: an address, in brackets and with a port perhaps, or a word that hides one.
_FORWARDED_FOR = re.compile(r'(?i)\bfor="?(\[[^\]"]*\]|[^\s;,":]*)')


async def health(_request: Request) -> Response:
    return json_response(Ok())


async def ready(request: Request) -> Response:
    """Whether texts may be sent to this process, and what is wrong otherwise."""
    answer, may_be_sent = await parts_of(request).readiness.check()
    return json_response(answer, status=200 if may_be_sent else 503)


async def languages(request: Request) -> Response:
    parts = parts_of(request)
    abilities = parts.providers.abilities
    return json_response(
        LanguagesAnswer(
            languages=list(abilities.languages),
            provider=abilities.provider,
            capabilities=Capabilities(
                supports_generate_stream=parts.providers.speaks_live,
                supports_design=parts.providers.designs,
                default_generate_mode="stream" if parts.providers.speaks_live else "task",
                allow_generate_mode_toggle=parts.settings.allow_generate_mode_toggle,
                max_text_chars=parts.settings.qwen_max_text_chars,
            ),
        )
    )


class _NotForStrangers(UtterError):
    """Without a token, numbers about the service are for its own network alone."""

    category, default_status = "unauthorized", 403
    default_detail = "Metrics are answered to private addresses only, unless METRICS_TOKEN is set."


async def metrics(request: Request) -> Response:
    """Prometheus' text format, for whoever has the token, or is near where there is none."""
    parts = parts_of(request)
    wanted = parts.settings.metrics_token
    if wanted:
        if not hmac.compare_digest(bearer_token(request).encode(), wanted.encode()):
            raise Unauthorized("The metrics need their own token.")
    elif not all(map(_is_near, _senders(request))):
        raise _NotForStrangers
    return Response(parts.metrics.exposition(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})


def _senders(request: Request) -> list[str]:
    """Who sent this: the peer, and everybody for whom it says it speaks.

    A platform's router has a private address itself and names the stranger in a header. Whether we trust the router
    does not matter: a lie could only add somebody who is far away.
    """
    peer = request.client.host if request.client else ""
    named = [host.strip() for line in request.headers.getlist("x-forwarded-for") for host in line.split(",")]
    named += request.headers.getlist("x-real-ip")
    for line in request.headers.getlist("forwarded"):
        named += [host.strip("[]") for host in _FORWARDED_FOR.findall(line)]
    return [peer, *named]


def _is_near(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private
