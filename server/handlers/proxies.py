"""What a proxy in front says about a request is believed where the proxy is one of ours."""

from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


class TrustedProxies(ProxyHeadersMiddleware):
    """As uvicorn's own, which believes ``X-Forwarded-Proto`` and ``-For``, and ``X-Forwarded-Host`` in the same way.

    The host becomes the request's own, so that links, redirects and logs speak of one host.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        client = scope.get("client")
        if scope["type"] == "http" and client and client[0] in self.trusted_hosts:
            told = [value for name, value in scope["headers"] if name == b"x-forwarded-host"]
            # Each proxy adds to the end; the browser asked the first.
            if host := b",".join(told).partition(b",")[0].strip():
                others = [(name, value) for name, value in scope["headers"] if name != b"host"]
                scope = {**scope, "headers": [*others, (b"host", host)]}
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]
