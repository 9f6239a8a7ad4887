"""The processes of a run: how they are started, spoken to and ended, and how they speak back.

A child of ours writes JSON lines on its standard output, and ends when its standard input does: a parent that dies,
however it dies, leaves none behind.
"""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec
import uvloop

ROOT = Path(__file__).parent.parent
_LONGEST_LINE = 64 * 1024 * 1024


class ChildFailed(Exception):
    """A process of the run ended, or did not answer in time. The message shows the end of what it wrote."""


# --- in the child -----------------------------------------------------------------------------------------------------


def say(**members: Any) -> None:
    """One line for the parent."""
    sys.stdout.write(msgspec.json.encode(members).decode() + "\n")
    sys.stdout.flush()


async def stdin_lines() -> AsyncIterator[str]:
    """What the parent writes, until it closes or dies."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().strip()


def run_child(body: Coroutine[Any, Any, None]) -> None:
    """Run a child's main coroutine. Its own garbage collector stays out of what it measures."""
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children in order
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body)


# --- in the parent ----------------------------------------------------------------------------------------------------


class Child:
    """A process of ours. Leaving its context ends it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        if not (process.stdin and process.stdout):
            raise ValueError("without pipes a child can neither be told nor heard")
        self._stdin, self._stdout = process.stdin, process.stdout
        self._process = process
        self._log = log

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, name: str, *arguments: str, folder: Path, environ: Mapping[str, str] | None = None
    ) -> AsyncIterator["Child"]:
        """Run ``python`` with ``arguments``, its standard error in ``folder``.

        Args:
            environ: Instead of this process's own environment; PATH and HOME are added.
        """
        log = folder / f"{name}.log"
        variables = {name_: os.environ[name_] for name_ in ("PATH", "HOME", "TMPDIR") if name_ in os.environ}
        with log.open("ab") as written:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                cwd=ROOT,
                env={**variables, **(environ or {})},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=written,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        child = cls(name, process, log)
        try:
            yield child
        finally:
            await child._end()

    async def _end(self) -> None:
        """Ask, then insist."""
        self._stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._process.wait()), 10.0)

    def tell(self, line: str) -> None:
        """One line to its standard input."""
        self._stdin.write(f"{line}\n".encode())

    async def hear(self, within_seconds: float) -> dict[str, Any]:
        """Its next line.

        Raises:
            ChildFailed: If it ends instead, or takes longer.
        """
        try:
            line = await asyncio.wait_for(self._stdout.readline(), within_seconds)
        except TimeoutError:
            raise self.failed(f"said nothing for {within_seconds:.0f} s") from None
        if not line:
            raise self.failed("ended")
        heard: dict[str, Any] = msgspec.json.decode(line)
        return heard

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    def failed(self, what: str) -> ChildFailed:
        """An error that says what happened to this process, with the last lines that it wrote."""
        last = [line[:400] for line in self._log.read_text(errors="replace").strip().splitlines()[-12:]]
        return ChildFailed("\n".join([f"The {self.name} {what}.", *last]))
