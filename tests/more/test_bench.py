"""The bench measures what it says it does; whether the figures are good is for a quiet machine to say."""

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest

from bench.__main__ import main

ROOT = Path(__file__).parent.parent.parent


async def run_bench(*arguments: str) -> tuple[int | None, str, str]:
    """The exit status of ``python -m bench``, and what it wrote: report and progress."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 90.0)
    return process.returncode, out.decode(), err.decode()


def processes_of_the_bench() -> set[int]:
    """Every process of any bench on this machine, servers included."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(argument.startswith("bench.") for argument in process.info["cmdline"] or ())
    }


async def test_a_short_run_reports_both_and_leaves_nothing_behind() -> None:
    """Every stream is checked from its first delta to its completed task, so a clean run is a working server."""
    before = processes_of_the_bench()
    status, out, progress = await run_bench("--streams", "2", "--seconds", "1", "--json")
    assert status == 0, progress
    report = json.loads(out)
    floor, server = report["points"]
    assert (floor["kind"], server["kind"]) == ("floor", "server")
    for point in (floor, server):
        assert point["problems"] == []
        assert 0 < point["deltas"] <= 40, "two streams for a second bring about twenty; how many is for a quiet machine"
        assert point["pace"] > 0
        latency, first = point["latency_milliseconds"], point["first_audio_milliseconds"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["worst"]
        assert 0 < first["p50"] <= first["p99"]
    assert server["database_cores"] is not None
    assert all(polls["requests_per_second"] > 0 and not polls["problems"] for polls in report["polls"])
    assert {goal["goal"] for goal in report["goals"]} == {"at most 25 ms relay latency p99"}
    assert processes_of_the_bench() <= before
    assert "2 streams through the server" in progress


@pytest.mark.parametrize("arguments", [["--streams", "0"], ["--streams", "many"], ["--seconds", "0"]])
def test_a_run_that_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert "usage" in capsys.readouterr().err
