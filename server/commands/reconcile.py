"""`python -m server reconcile`: the report of ``jobs/reconcile.py`` as a command."""

import asyncio
import sys
from functools import partial

import asyncpg
import msgspec

from server import logs
from server.app import assembled
from server.database.connections import REFUSED, trouble
from server.errors import UtterError
from server.jobs import reconcile
from server.settings import Settings


def run(settings: Settings, *, as_json: bool, store: bool, delete: bool) -> int:
    """Print what was left behind; 1 where something could not be looked at."""
    logs.configure("warning", settings.log_format)
    try:
        found = asyncio.run(_reconcile(settings, store=store, delete=delete))
    except UtterError as exc:
        print(exc.detail, file=sys.stderr)
        return 1
    except asyncpg.UndefinedTableError:
        print("The database is not up to date. Please run `python -m server migrate`.", file=sys.stderr)
        return 1
    except REFUSED as exc:
        print(trouble(exc), file=sys.stderr)
        return 1
    print(msgspec.json.encode(found).decode() if as_json else reconcile.table(found))
    return 1 if found.problems else 0


async def _reconcile(settings: Settings, *, store: bool, delete: bool) -> reconcile.Leftovers:
    say = partial(print, file=sys.stderr, flush=True)
    async with assembled(settings) as parts:
        return await reconcile.reconcile(parts, store_audio=store, delete_objects=delete, say=say)
