"""Who used the processors, as the operating system counts it."""

import contextlib
import time
from collections.abc import Iterable
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """Seconds of CPU up to a moment, or, as the difference of two, between them.

    Attributes:
        at_ns: The moment, by ``time.monotonic_ns``.
        process: Of the process that is measured; ``database`` of PostgreSQL with its backends.
        others: Of everything on this machine that is no part of the run.
    """

    at_ns: int
    process: float
    database: float
    others: float

    def since(self, before: "Usage") -> "Usage":
        return Usage(*(now - then for now, then in zip(self, before, strict=True)))  # type: ignore[arg-type]

    @property
    def seconds(self) -> float:
        return self.at_ns / 1e9


def usage(pid: int, database_pid: int | None) -> Usage:
    """What was used up to now."""
    us = psutil.Process()
    machine = psutil.cpu_times()
    busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - getattr(machine, "guest", 0.0)
    return Usage(
        time.monotonic_ns(),
        _seconds([psutil.Process(pid)]),
        _seconds(_family(database_pid)) if database_pid else 0.0,
        busy - _seconds(_family(us.pid)),
    )


def memory(pid: int) -> int:
    """What a process holds in memory at this moment, in bytes."""
    held: int = psutil.Process(pid).memory_info().rss
    return held


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _seconds(processes: Iterable[psutil.Process]) -> float:
    used = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used += times.user + times.system
    return used
