"""How this process logs: one line a record, with the request it belongs to, and without anybody's secrets."""

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Final, Literal

#: The id of the request that the running code works for; records carry it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@contextmanager
def working_for(asked_by: str | None) -> Iterator[None]:
    """Let records carry the id of the request that asked for this work, in whichever process that was.

    Where nobody knows it, they carry what they would have carried.
    """
    token = request_id.set(asked_by or request_id.get())
    try:
        yield
    finally:
        request_id.reset(token)


# They log whole URLs (signed ones too), arguments of jobs, or every frame; what matters of it we log ourselves.
_QUIET: Final = (
    "httpx",
    "httpcore",
    "procrastinate",
    "websockets",
    "sse_starlette",
    "botocore",
    "boto3",
    "aiobotocore",
    "asyncio",
)

# What a record is born with (logging.LogRecord); anything else came with ``extra``.
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

_LONGEST: Final = 16_384
# From the first quotation mark to the last, since what is quoted may hold some; a single one was cut off.
_QUOTED: Final = re.compile(r"['\"](.*['\"]|.*)", re.DOTALL)
# What each of the patterns below needs. Nearly every text of ours has none of it, and one look costs a fifth of seven.
_MAY_BE_SECRET: Final = re.compile(r"://|=|eyJ|sk-|utr_|(?i:bearer|basic) ")
_SECRETS: Final = (
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,30}://)[^\s/@'\"]+@"), r"\1…@"),  # a password in a URL
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{1,30}://[^\s?'\"<>]+)\?[^\s'\"<>]+"), r"\1?…"),  # a URL's query
    (re.compile(r"(?i)\b(ticket|signature|token|x-amz-[a-z-]+)=[^\s&'\"]+"), r"\1=…"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), "…"),  # a JWT
    (re.compile(r"(?i)\b(bearer|basic) [\w.~+/=-]{8,}"), r"\1 …"),
    (re.compile(r"\bsk-[\w-]{8,}"), "…"),  # a provider's key
    (re.compile(r"\butr_[0-9A-Za-z]{8,}"), "…"),  # a key of ours
)


def configure(level: str, log_format: Literal["text", "json"], stream: IO[str] | None = None) -> None:
    """Send every logger's records to ``stream`` (standard error), and to nowhere else.

    uvicorn is started with ``log_config=None`` and ``access_log=False``, so that its records come here and its access
    log, which holds query strings, does not come at all.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    broken_off = logging.getLogger("uvicorn.error")
    if not any(isinstance(known, _AlreadyTold) for known in broken_off.filters):
        broken_off.addFilter(_AlreadyTold())


def note_no_places() -> None:
    """Let no record look for the line of code that it comes from, nor for threads and tasks: no line shows them, and
    that was a third of what a line costs. For a whole process, as the library's documentation has it.
    """
    for look in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, look, None)


class _AlreadyTold(logging.Filter):
    """Drops the server's complaint about a response that we broke off on purpose and have logged with its reason."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "ASGI callable returned without completing response."


_as_json: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode  # `dumps` would make one for each line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, what came with ``extra``, and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **_extra(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            entry["traceback"] = describe(record.exc_info[1])
        return _as_json(entry)


class TextFormatter(logging.Formatter):
    """The same for people: message and extras on one line, a traceback indented below."""

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {redacted(record.getMessage())}{extra}"
        line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "\n".join("    " + part for part in describe(record.exc_info[1]).splitlines())
        return line


def describe(exc: BaseException) -> str:
    """An exception with its causes and their tracebacks, without what their messages may quote of a row or a URL.

    A database error names its SQLSTATE and its first line only: its DETAIL quotes rows, and so users' text.
    """
    parts: list[str] = []
    seen: set[int] = set()
    present: BaseException | None = exc
    while present is not None and id(present) not in seen:
        seen.add(id(present))
        frames = "".join(traceback.format_tb(present.__traceback__))
        parts.append(frames + reason(present))
        if isinstance(present, BaseExceptionGroup):
            parts.extend(f"within the group: {describe(member)}" for member in present.exceptions[:5])
        present = present.__cause__ or (None if present.__suppress_context__ else present.__context__)
    return "\ncaused by:\n".join(parts)


def reason(exc: BaseException) -> str:
    """An exception's class and the first line of its message, without what that may quote."""
    return f"{type(exc).__module__}.{type(exc).__qualname__}: {_message(exc)}"


def redacted(text: str) -> str:
    """A text without the secrets that can be told by their shape: tokens, keys, and the queries of URLs."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"  # the patterns below are not linear
    if _MAY_BE_SECRET.search(text):
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    return text


def _message(exc: BaseException) -> str:
    text, state = str(exc), getattr(exc, "sqlstate", None)
    if isinstance(exc, ValueError) or (state or "").startswith("22"):  # bad values, which they quote
        text = _QUOTED.sub("'…'", text)
    lines = text.splitlines() or [""]
    first = redacted(lines[0])[:300]
    return f"[{state}] {first}" if state else first


def _extra(record: logging.LogRecord) -> dict[str, object]:
    extra = {name: value for name, value in vars(record).items() if name not in _OWN}
    present = request_id.get()
    if present is not None:
        extra.setdefault("request_id", present)
    return {name: redacted(value) if isinstance(value, str) else value for name, value in extra.items()}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
