"""The bench measures what it says it does; whether the figures are good is for a quiet machine to say."""

import asyncio
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from bench.__main__ import main
from bench.document import BEGIN, END

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
    out, err = await asyncio.wait_for(process.communicate(), 300.0)
    return process.returncode, out.decode(), err.decode()


def processes_of_the_bench() -> set[int]:
    """Every process of any bench on this machine, servers included."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(argument.startswith("bench.") for argument in process.info["cmdline"] or ())
    }


async def test_a_short_run_reports_all_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Every stream is checked from its first delta to its completed task, so a clean run is a working server."""
    before = processes_of_the_bench()
    document = tmp_path / "performance.md"
    document.write_text(f"By hand.\n{BEGIN}\nOlder figures.\n{END}\nBy hand as well.\n")
    arguments = ("--streams", "2", "--seconds", "1", "--rounds", "2", "--json", "--write", str(document))
    status, out, progress = await run_bench(*arguments)
    assert status == 0, progress
    report = json.loads(out)
    assert [point["kind"] for point in report["points"]] == ["floor", "plain", "server"] * 2
    for point in report["points"]:
        assert point["problems"] == []
        assert 0 < point["deltas"] <= 40, "two streams for a second bring about twenty; how many is for a quiet machine"
        assert point["pace"] > 0
        assert point["whole_life_microseconds"] > 0
        latency, first = point["latency_milliseconds"], point["first_audio_milliseconds"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["worst"]
        assert point["loop_lag_milliseconds"]["worst"] > 0
        assert 0 < first["p50"] <= first["p95"] <= first["p99"]
    assert report["points"][-1]["database_cores"] is not None
    assert [burst["kind"] for burst in report["bursts"]] == ["floor", "plain", "server"]
    [firsts], [audience] = report["firsts"], report["audiences"]
    assert min(firsts["stream_milliseconds"]["p50"], firsts["door_milliseconds"]["p50"]) > 0
    assert (audience["followers"], audience["problems"]) == (200, [])
    assert [beside["audio_format"] for beside in report["besides"]] == ["wav", "mp3"]
    assert all(beside["spoken_seconds"] > 10 and not beside["problems"] for beside in report["besides"])
    assert all(polls["requests_per_second"] > 0 and not polls["problems"] for polls in report["polls"])
    [crossed] = report["crosseds"]
    assert (crossed["speeches"], crossed["problems"]) == (1, [])
    assert min(crossed["microseconds_here"], crossed["microseconds_there"]) > 0
    assert [goal["goal"] for goal in report["goals"]] == [
        "at most 1.3 times the CPU of two processes that speak, when they are followed crosswise",
        "at most 2 times fewer polls a second than one SELECT",
    ]
    assert processes_of_the_bench() <= before
    assert "2 streams through the server" in progress
    written = document.read_text()
    assert written.startswith("By hand.\n")
    assert written.endswith("By hand as well.\n")
    assert "Older figures" not in written
    assert "| 2 | server |" in written
    ElementTree.fromstring((tmp_path / "performance.svg").read_text())


@pytest.mark.parametrize("arguments", [["--streams", "0"], ["--streams", "many"], ["--seconds", "0"]])
def test_a_run_that_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert "usage" in capsys.readouterr().err
