"""`python -m server reconcile`: the report of ``jobs/reconcile.py`` as a command."""

import sys
from functools import partial

import msgspec

from server import logs
from server.app import assembled
from server.commands.ending import ended
from server.jobs import reconcile
from server.jobs.reconcile import Place
from server.settings import Settings


def run(settings: Settings, *, as_json: bool, store: bool, delete: bool, after: str | None) -> int:
    """Print what was left behind; 1 where something could not be looked at, 2 where ``after`` is no place."""
    logs.configure("warning", settings.log_format)
    try:
        place = Place.of(after) if after else None
    except ValueError:
        print("--after takes the place that reconcile has named, BUCKET/KEY.", file=sys.stderr)
        return 2
    return ended(_reconcile(settings, as_json=as_json, store=store, delete=delete, after=place))


async def _reconcile(settings: Settings, *, as_json: bool, store: bool, delete: bool, after: Place | None) -> int:
    say = partial(print, file=sys.stderr, flush=True)
    async with assembled(settings) as parts:
        found = await reconcile.reconcile(parts, store_audio=store, delete_objects=delete, after=after, say=say)
    print(msgspec.json.encode(found).decode() if as_json else reconcile.table(found))
    return 1 if found.problems else 0
