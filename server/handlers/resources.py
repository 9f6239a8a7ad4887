"""One address, and what can be done there: whoever asks for anything else learns what."""

from collections.abc import Awaitable, Callable, Iterable
from inspect import isroutine
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Resource(Route):
    """All methods of one path. Another method is 405 with all of these in ``Allow``, before any handler is asked.

    A router would look on for a path that fits as well, and find that ``design`` is no id of a voice.
    """

    def __init__(self, path: str, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

        async def dispatch(request: Request) -> Response:
            return await handlers.get(request.method, handlers.get("GET", _never))(request)  # HEAD is a GET

        super().__init__(path, dispatch, methods=list(handlers))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL else match), child_scope


async def _never(_request: Request) -> Response:
    raise NotImplementedError


def resources(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """The routes with those of one path put together, in their order: a router asks one after the other.

    What is an application of its own stays as it is, at the end.
    """
    by_path: dict[str, dict[str, Handler]] = {}
    others: list[BaseRoute] = []
    for route in routes:
        if not isinstance(route, Route) or not isroutine(route.endpoint):
            others.append(route)
            continue
        for method in (route.methods or set()) - {"HEAD"}:
            by_path.setdefault(route.path, {})[method] = route.endpoint
    return [*(Resource(path, handlers) for path, handlers in by_path.items()), *others]
