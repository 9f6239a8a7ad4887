"""The command line: ``python -m bench [--streams 50,100,200] [--seconds 5] [--json]``."""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable
from typing import cast

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
    return 1 if report.problems else 0


async def _measure(options: argparse.Namespace, progress: Callable[[str], None]) -> Report:
    # Told to end, by whichever signal: end the processes of the run first.
    task = cast("asyncio.Task[Report]", asyncio.current_task())
    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(
        options.streams, options.seconds, progress, floor=not options.server_only, polls=not options.no_polls
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
    parser.add_argument(
        "--streams", type=_counts, default=[50, 100, 200], metavar="N,N,…", help="streams at a time (50,100,200)"
    )
    parser.add_argument("--seconds", type=_seconds, default=5.0, help="how long each turn is measured (5)")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.add_argument("--server-only", action="store_true", help="without the bare relay, and so without ratios")
    parser.add_argument("--no-polls", action="store_true", help="without the polled endpoint")
    return parser


if __name__ == "__main__":
    sys.exit(main())
