"""How a command ends: with its own status, or with one sentence of why it could not do its work."""

import asyncio
import sys
from collections.abc import Coroutine

import asyncpg

from server.database.connections import REFUSED, trouble
from server.errors import UtterError


def ended(work: Coroutine[object, object, int]) -> int:
    """Run the command's work; its exit status, or 1 after a sentence on standard error."""
    try:
        return asyncio.run(work)
    except UtterError as exc:
        sentence = exc.detail
    except asyncpg.UndefinedTableError:
        sentence = "The database is not up to date. Please run `python -m server migrate`."
    except REFUSED as exc:
        sentence = trouble(exc)
    print(sentence, file=sys.stderr)
    return 1
