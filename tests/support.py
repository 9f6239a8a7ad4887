"""What several tests say in the same words: waiting for a fact, and a free port."""

import asyncio
import inspect
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, overload

from server.dev.simulator import Simulator
from server.settings import Settings

T = TypeVar("T")

LIMITS = ("deadlines", "intervals", "retentions", "tries")
# For a server that leaves without its database: what it holds is not what the test is about.
LEAVES_AT_ONCE: dict[str, Any] = {"drain_seconds": 0.2, "leaving_database_seconds": 0.2}
AUTH_JWT_SECRET = "only the tests sign with this secret"


def with_limits(settings: Settings, **changes: Any) -> Settings:
    """The same settings but for ``changes``: deadlines, intervals, retentions, counts or settings, by their names."""
    for group in LIMITS:
        limits = getattr(settings, group)
        names = {field.name for field in fields(limits)}
        changes[group] = replace(limits, **{name: changes.pop(name) for name in list(changes) if name in names})
    return replace(settings, **changes)


@overload
async def wait_for(
    condition: Callable[[], Awaitable[T | None]], timeout: float = 10.0, *, every_seconds: float = 0.01
) -> T: ...
@overload
async def wait_for(condition: Callable[[], T | None], timeout: float = 10.0, *, every_seconds: float = 0.01) -> T: ...
async def wait_for(condition: Callable[[], Any], timeout: float = 10.0, *, every_seconds: float = 0.01) -> Any:
    """Ask ``condition`` (plain or async) until its answer is true, and return that answer.

    Raises:
        AssertionError: If it is still false after ``timeout`` seconds; names the condition and its last answer.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        result = await answer if inspect.isawaitable(answer) else answer
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"still {result!r} after {timeout} s: {_described(condition)}")
        await asyncio.sleep(every_seconds)


def wait_for_blocking(condition: Callable[[], T], timeout: float = 10.0, *, every_seconds: float = 0.01) -> T:
    """`wait_for` for tests without an event loop."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {result!r} after {timeout} s: {_described(condition)}")
        time.sleep(every_seconds)
    return result


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment.

    For programs that must be told a number; whatever can listen on port 0 should do that instead.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fast_folder() -> str | None:
    """Memory where there is plenty: a database is 300 files, and copying them took 0.3 s on a disk, 0.03 s here."""
    memory = "/dev/shm"
    try:
        return memory if shutil.disk_usage(memory).free > 2**30 and os.access(memory, os.W_OK) else None
    except FileNotFoundError:
        return None


def open_to_all(folder: str) -> Path:
    """Let other users enter a temporary folder: root's PostgreSQL runs as one of them."""
    path = Path(folder)
    path.chmod(0o755)
    return path


def make_settings(database_url: str, simulator: Simulator, folder: Path, **overrides: Any) -> Settings:
    """What the environment of a server would say that uses this database, simulator and folder.

    Args:
        folder: Objects are stored under it.
        overrides: Fields of Settings that are to differ.
    """
    environ = {
        **simulator.environment(),
        "DATABASE_URL": database_url,
        "STORAGE_URL": (folder / "storage").as_uri(),
        "AUTH_JWT_SECRET": AUTH_JWT_SECRET,
        "HOST": "127.0.0.1",
        "PORT": "0",
        "LOG_FORMAT": "text",
    }
    return replace(Settings.from_environ(environ), **overrides)


def _described(condition: Callable[..., object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
