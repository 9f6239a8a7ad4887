"""What a run found, as a table for people and as JSON for programs."""

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Literal

import msgspec

Kind = Literal["floor", "server"]

_NAMES: dict[Kind, str] = {"floor": "bare relay", "server": "server"}


class Percentiles(msgspec.Struct, frozen=True):
    """Of some durations; all 0 where there was none."""

    p50: float = 0.0
    p99: float = 0.0
    worst: float = 0.0


def percentiles(values: Sequence[float]) -> Percentiles:
    """Nearest-rank percentiles."""
    if not values:
        return Percentiles()
    ordered = sorted(values)
    return Percentiles(
        ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], ordered[-1]
    )


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """So many streams at once through one of the two.

    Attributes:
        deltas: Delivered in the measured window.
        cpu_per_start_milliseconds: Of the process, for all that comes before a stream's first audio.
        cores: Of CPU, used by the process; ``database_cores`` by PostgreSQL, where it has a part in it.
        other_cores: Used by what is no part of the run; where it is much, the figures mean little.
        pace: Deltas delivered, of those that speech in real time would have brought.
        problems: One sentence for each stream that missed something.
    """

    kind: Kind
    streams: int
    deltas: int
    cpu_per_delta_microseconds: float
    cpu_per_start_milliseconds: float
    cores: float
    database_cores: float | None
    other_cores: float
    latency_milliseconds: Percentiles
    first_audio_milliseconds: Percentiles
    pace: float
    problems: list[str]


class Polls(msgspec.Struct, frozen=True, kw_only=True):
    """The polled endpoint of one of the two."""

    kind: Kind
    requests_per_second: float
    problems: list[str]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A promise about the server on two cores, with spool and durability on.

    Attributes:
        streams: For how many streams it is meant, from and to.
    """

    what: str
    at_most: float
    streams: tuple[int, int]


# Below a hundred streams the fixed costs of a process that only waits weigh more than what a delta costs.
CPU_MICROSECONDS = Goal(what="µs CPU per delta", at_most=250.0, streams=(100, 2000))
CPU_RATIO = Goal(what="times the bare relay's CPU per delta", at_most=1.5, streams=(100, 2000))
P99_TO_200 = Goal(what="ms relay latency p99", at_most=25.0, streams=(1, 200))
P99_TO_400 = Goal(what="ms relay latency p99", at_most=100.0, streams=(201, 400))
GOALS = (CPU_MICROSECONDS, CPU_RATIO, P99_TO_200, P99_TO_400)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run found."""

    points: list[Point]
    polls: list[Polls]
    machine: str = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    day: str = msgspec.field(default_factory=lambda: date.today().isoformat())  # noqa: DTZ011 - as the reader's calendar has it

    @property
    def problems(self) -> list[str]:
        """Everything that was not as it should be, whatever its speed."""
        parts: list[Point | Polls] = [*self.points, *self.polls]
        return [problem for part in parts for problem in part.problems]

    def floor_of(self, point: Point) -> Point | None:
        """The bare relay at the same number of streams."""
        return next((p for p in self.points if p.kind == "floor" and p.streams == point.streams), None)

    def verdicts(self) -> Iterator[tuple[Goal, Point, float]]:
        """Each goal with each point that it speaks of, and what was measured there."""
        for point in self.points:
            if point.kind == "floor":
                continue
            for goal in GOALS:
                lowest, highest = goal.streams
                if lowest <= point.streams <= highest and (value := self._value(goal, point)) is not None:
                    yield goal, point, value

    def _value(self, goal: Goal, point: Point) -> float | None:
        if goal is CPU_MICROSECONDS:
            return point.cpu_per_delta_microseconds
        if goal is CPU_RATIO:
            floor = self.floor_of(point)
            return _ratio(point.cpu_per_delta_microseconds, floor.cpu_per_delta_microseconds) if floor else None
        return point.latency_milliseconds.p99


def as_json(report: Report) -> str:
    """The report with the goals that it was held against."""
    goals = [
        {"goal": f"at most {goal.at_most:g} {goal.what}", "streams": point.streams, "value": value,
         "met": value <= goal.at_most}
        for goal, point, value in report.verdicts()
    ]  # fmt: skip
    return msgspec.json.format(msgspec.json.encode({**msgspec.structs.asdict(report), "goals": goals})).decode()


_COLUMNS = ("{:>7}  {:<10}  {:>8}  {:>6}  {:>6}  {:>6}  {:>6} {:>6} {:>7}  {:>6} {:>6}  {:>6}").format
_HEAD = [
    _COLUMNS("", "", "CPU", "CPU ms", "", "data-", "relay", "latency", "", "first", "audio", ""),
    _COLUMNS("streams", "", "µs/delta", "/start", "cores", "base", "p50 ms", "p99", "worst", "p50 ms", "p99", "pace"),
]
_BUSY_CORES = 0.15


def as_table(report: Report) -> str:
    """The report for a person."""
    lines = [f"{report.day}, {report.machine}", "", *_HEAD]
    for point in report.points:
        lines.append(_row(point))
        floor = report.floor_of(point)
        if floor and floor is not point:
            lines.append(_ratios(point, floor))
    lines.append("")
    for polls in report.polls:
        name = "one SELECT" if polls.kind == "floor" else "server"
        lines.append(f"polls answered per second, {name:<10} {polls.requests_per_second:>8.0f}")
    for goal, point, value in report.verdicts():
        verdict = "met" if value <= goal.at_most else "missed"
        lines.append(f"goal at {point.streams} streams: at most {goal.at_most:g} {goal.what}: {value:.3g}, {verdict}")
    busiest = max((point.other_cores for point in report.points), default=0.0)
    if busiest > _BUSY_CORES:
        lines.append(f"NOTE: other programs used up to {busiest:.1f} cores meanwhile, which spoils latencies.")
    lines += [f"PROBLEM: {problem}" for problem in report.problems[:10]]
    if len(report.problems) > 10:
        lines.append(f"PROBLEM: and {len(report.problems) - 10} more.")
    return "\n".join(line.rstrip() for line in lines)


def _row(point: Point) -> str:
    latency, first = point.latency_milliseconds, point.first_audio_milliseconds
    return _COLUMNS(
        point.streams,
        _NAMES[point.kind],
        f"{point.cpu_per_delta_microseconds:.0f}",
        f"{point.cpu_per_start_milliseconds:.1f}",
        f"{point.cores:.2f}",
        "" if point.database_cores is None else f"{point.database_cores:.2f}",
        *(f"{value:.1f}" for value in (latency.p50, latency.p99, latency.worst)),
        *(f"{value:.0f}" for value in (first.p50, first.p99)),
        f"{point.pace:.1%}",
    )


def _ratios(point: Point, floor: Point) -> str:
    latency, least = point.latency_milliseconds, floor.latency_milliseconds
    first, least_first = point.first_audio_milliseconds, floor.first_audio_milliseconds
    return _COLUMNS(
        "",
        "ratio",
        _times(point.cpu_per_delta_microseconds, floor.cpu_per_delta_microseconds),
        _times(point.cpu_per_start_milliseconds, floor.cpu_per_start_milliseconds),
        "",
        "",
        _times(latency.p50, least.p50),
        _times(latency.p99, least.p99),
        _times(latency.worst, least.worst),
        _times(first.p50, least_first.p50),
        _times(first.p99, least_first.p99),
        "",
    )


def _ratio(value: float, floor: float) -> float:
    return value / floor if floor else 0.0


def _times(value: float, floor: float) -> str:
    return f"{_ratio(value, floor):.1f}×" if floor else "–"
