"""The table of addresses, as a router reads it: from the top, and the first that fits."""

from starlette.routing import Match

from server.app import create_app
from server.handlers.resources import Resource
from server.settings import Settings


def test_no_address_is_hidden_by_one_that_stands_before_it(settings: Settings) -> None:
    table = [route for route in create_app(settings).router.routes if isinstance(route, Resource)]
    assert len(table) > 30
    for place, route in enumerate(table):
        path = route.path.replace("{key:path}", "key").replace("{", "").replace("}", "")
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        assert route.matches(scope)[0] is Match.FULL
        hiding = [earlier.path for earlier in table[:place] if earlier.matches(scope)[0] is not Match.NONE]
        assert not hiding, f"{route.path} is never reached, for {hiding} fits"
