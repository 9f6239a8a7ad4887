"""`python -m server reconcile`: the report of ``jobs/reconcile.py`` as a command."""

import sys
from functools import partial

import msgspec

from server import logs
from server.app import assembled
from server.commands.ending import ended
from server.jobs import reconcile
from server.settings import Settings


def run(settings: Settings, *, as_json: bool, store: bool, delete: bool) -> int:
    """Print what was left behind; 1 where something could not be looked at."""
    logs.configure("warning", settings.log_format)
    return ended(_reconcile(settings, as_json=as_json, store=store, delete=delete))


async def _reconcile(settings: Settings, *, as_json: bool, store: bool, delete: bool) -> int:
    say = partial(print, file=sys.stderr, flush=True)
    async with assembled(settings) as parts:
        found = await reconcile.reconcile(parts, store_audio=store, delete_objects=delete, say=say)
    print(msgspec.json.encode(found).decode() if as_json else reconcile.table(found))
    return 1 if found.problems else 0
