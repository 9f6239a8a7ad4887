"""What a log line holds of a failure: where it happened and what it was, never what somebody wrote."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from server import logs

TEXT = "Dear diary, today's secret is marmalade"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged as JSON while a test runs; logging is as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def record(log: io.StringIO) -> dict[str, Any]:
    (line,) = log.getvalue().splitlines()
    entry: dict[str, Any] = json.loads(line)
    return entry


async def test_a_failed_statement_is_logged_without_the_values_it_was_given(
    log: io.StringIO, postgres_url: str
) -> None:
    """The driver quotes an argument that does not fit, and the server a row that breaks a rule."""
    connection = await asyncpg.connect(postgres_url)
    failures: list[BaseException] = []
    try:
        await connection.execute("CREATE TEMP TABLE diary (page int CHECK (page < 3), words text)")
        for statement, arguments in (
            ("INSERT INTO diary (page) VALUES ($1)", (TEXT,)),
            ("INSERT INTO diary VALUES (7, $1)", (TEXT,)),
            ("SELECT CAST($1::text AS int)", (TEXT,)),
        ):
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as caught:
                await connection.execute(statement, *arguments)
            failures.append(caught.value)
    finally:
        await connection.close()
    for failure in failures:
        assert "marmalade" in str(failure)
        log.seek(0)
        log.truncate()
        logging.getLogger("server").error("failed", exc_info=failure)
        assert "marmalade" not in log.getvalue()
        assert "test_logs.py" in record(log)["traceback"]
    assert "[22P02] invalid input syntax for type integer" in record(log)["traceback"]


def test_a_failure_is_one_line_with_its_causes(log: io.StringIO) -> None:
    try:
        try:
            raise KeyError("voice")
        except KeyError as exc:
            raise ValueError(f"bad text {TEXT!r}") from exc
    except ValueError as exc:
        logging.getLogger("server").error("failed", exc_info=exc)
    told = record(log)["traceback"]
    assert "ValueError: bad text '…'" in told
    assert "KeyError: 'voice'" in told
    assert "marmalade" not in told


def test_a_record_carries_the_request_it_belongs_to(log: io.StringIO) -> None:
    token = logs.request_id.set("first")
    try:
        logging.getLogger("server").info("noted", extra={"bytes": 3})
    finally:
        logs.request_id.reset(token)
    assert record(log) | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "server",
        "message": "noted",
        "bytes": 3,
        "request_id": "first",
    }


def test_text_lines_cannot_be_forged(log: io.StringIO) -> None:
    made = logging.makeLogRecord({"name": "server", "msg": "asked for %s", "args": ("x\n2026 ERROR forged",)})
    assert len(logs.TextFormatter().format(made).splitlines()) == 1


def test_libraries_that_log_addresses_are_quiet(log: io.StringIO) -> None:
    for name in ("httpx", "httpcore", "procrastinate.worker", "websockets.client", "botocore.auth"):
        logging.getLogger(name).info("GET https://objects.example/audio?signature=abc")
    assert log.getvalue() == ""
