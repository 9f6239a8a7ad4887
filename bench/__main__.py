"""The command line: ``python -m bench [--short] [--streams 100,200,400] [--seconds 20] [--write FILE] [--json]``."""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from bench import document
from bench.children import ChildFailed
from bench.measure import measure
from bench.report import Report, as_json, as_table
from server.dev.postgres import PostgresError


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; 1 when a stream missed something or a process failed."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()

    def progress(sentence: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {sentence}", file=sys.stderr, flush=True)

    try:
        report = asyncio.run(_measure(options, progress))
    except (ChildFailed, PostgresError) as exc:
        print(exc, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    progress("Done.")
    print(as_json(report) if options.json else as_table(report))
    if options.write:
        document.write(report, options.write)
    return 1 if report.problems else 0


async def _measure(options: argparse.Namespace, progress: Callable[[str], None]) -> Report:
    # Told to end, by whichever signal: end the processes of the run first.
    task = cast("asyncio.Task[Report]", asyncio.current_task())
    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    short: bool = options.short
    return await measure(
        options.streams or ([50] if short else [100, 200, 400]),
        options.seconds or (3.0 if short else 20.0),
        progress,
        rounds=options.rounds,
        floor=not options.server_only,
        extras=not options.streams_only,
    )


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if not all(1 <= count <= 2000 for count in counts):
        raise ValueError
    return counts


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.5 <= seconds <= 3600:
        raise ValueError
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="How fast the server is, beside the least that could be done in its place."
    )
    parser.add_argument("--short", action="store_true", help="50 streams for 3 s: about two minutes in all")
    parser.add_argument("--streams", type=_counts, metavar="N,N,…", help="streams at a time (100,200,400)")
    parser.add_argument("--seconds", type=_seconds, help="how long each turn is measured (20)")
    parser.add_argument("--rounds", type=int, default=1, choices=range(1, 11), metavar="N", help="how often all of it")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the figures into this document, as well")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.add_argument("--server-only", action="store_true", help="without relay and plain handler")
    parser.add_argument("--streams-only", action="store_true", help="without bursts, first audio, audience and polls")
    return parser


if __name__ == "__main__":
    sys.exit(main())
