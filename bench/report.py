"""What a run found, as a table for people and as JSON for programs."""

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Literal

import msgspec

Kind = Literal["floor", "plain", "server"]

NAMES: dict[Kind, str] = {"floor": "bare relay", "plain": "plain handler", "server": "server"}


class Percentiles(msgspec.Struct, frozen=True):
    """Of some durations; all 0 where there was none."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    worst: float = 0.0


def percentiles(values: Sequence[float]) -> Percentiles:
    """Nearest-rank percentiles."""
    if not values:
        return Percentiles()
    ordered = sorted(values)
    last = len(ordered) - 1
    p50, p95, p99 = (ordered[min(last, len(ordered) * percent // 100)] for percent in (50, 95, 99))
    return Percentiles(p50, p95, p99, ordered[-1])


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """So many streams at once through one of the three.

    Attributes:
        deltas: Delivered in the measured window, in which nothing starts and nothing ends.
        whole_life_microseconds: CPU of the process for each delta, over the whole life of all streams: from the first
            request until the last of them was stored.
        cpu_per_start_milliseconds: Of the process, for all that comes before a stream's first audio.
        ends_per_second: Streams that were ended at once, and how many of them a second had their end; the server has
            stored them by then.
        memory_per_stream_kilobytes: What the process has come to hold for each, at the end of the window.
        cores: Of CPU, used by the process; ``database_cores`` by PostgreSQL, where it has a part in it.
        other_cores: Used by what is no part of the run; where it is much, the figures mean little.
        loop_lag_milliseconds: How late a timer of the process's loop ran within the window, 100 times a second.
        pace: Deltas delivered, of those that speech in real time would have brought.
        problems: One sentence for each stream that missed something.
    """

    kind: Kind
    streams: int
    deltas: int
    cpu_per_delta_microseconds: float
    whole_life_microseconds: float
    cpu_per_start_milliseconds: float
    ends_per_second: float
    memory_per_stream_kilobytes: float
    cores: float
    database_cores: float | None
    other_cores: float
    latency_milliseconds: Percentiles
    first_audio_milliseconds: Percentiles
    loop_lag_milliseconds: Percentiles
    pace: float
    problems: list[str]


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Many starts within two seconds."""

    kind: Kind
    starts: int
    first_audio_milliseconds: Percentiles
    problems: list[str]


class Firsts(msgspec.Struct, frozen=True, kw_only=True):
    """The same text by the native stream and at the OpenAI-shaped door, one after the other."""

    texts: int
    stream_milliseconds: Percentiles
    door_milliseconds: Percentiles


class Audience(msgspec.Struct, frozen=True, kw_only=True):
    """Many that follow one speech."""

    followers: int
    cpu_per_event_microseconds: float
    latency_milliseconds: Percentiles
    problems: list[str]


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """Streams beside which other texts were spoken whole and stored: as they came, or as MP3 that the server makes.

    Attributes:
        spoken_seconds: How much speech the other texts were.
    """

    audio_format: str
    streams: int
    spoken_seconds: float
    latency_milliseconds: Percentiles
    problems: list[str]


class Crossed(msgspec.Struct, frozen=True, kw_only=True):
    """Two processes with so many speeches each, followed in the process that speaks them, and in the other one.

    Attributes:
        microseconds_here, microseconds_there: CPU of both processes for each delta that was delivered.
    """

    speeches: int
    microseconds_here: float
    microseconds_there: float
    latency_milliseconds_here: Percentiles
    latency_milliseconds_there: Percentiles
    problems: list[str]


class Polls(msgspec.Struct, frozen=True, kw_only=True):
    """The polled endpoint of one of the two."""

    kind: Kind
    requests_per_second: float
    problems: list[str]


class Spread(msgspec.Struct, frozen=True):
    """One figure over all rounds."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        middle = format(self.middle, spec)
        least, most = format(self.least, spec), format(self.most, spec)
        return middle if least == most else f"{middle} ({least}–{most})"


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A promise about the server on two cores, with spool and durability on.

    Attributes:
        streams: For which number of streams it is meant.
    """

    what: str
    at_most: float
    streams: int
    value: "Callable[[Report, int], float | None]"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run found."""

    points: list[Point]
    bursts: list[Burst] = []
    firsts: list[Firsts] = []
    audiences: list[Audience] = []
    besides: list[Beside] = []
    crosseds: list[Crossed] = []
    polls: list[Polls] = []
    cold_start_seconds: float = 0.0
    machine: str = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    day: str = msgspec.field(default_factory=lambda: date.today().isoformat())  # noqa: DTZ011 - as the reader's calendar has it

    @property
    def problems(self) -> list[str]:
        """Everything that was not as it should be, whatever its speed."""
        parts: list[Point | Burst | Audience | Beside | Crossed | Polls]
        parts = [*self.points, *self.bursts, *self.audiences, *self.besides, *self.crosseds, *self.polls]
        return [problem for part in parts for problem in part.problems]

    @property
    def turns(self) -> list[tuple[Kind, int]]:
        """What was measured, each once, however many rounds there were."""
        return list(dict.fromkeys((point.kind, point.streams) for point in self.points))

    def spread(self, kind: Kind, streams: int, figure: Callable[[Point], float | None]) -> Spread | None:
        """One figure of one turn over all rounds; None where it was not measured."""
        points = [point for point in self.points if (point.kind, point.streams) == (kind, streams)]
        values = [value for point in points if (value := figure(point)) is not None]
        return Spread.of(values) if values else None

    def verdicts(self) -> Iterator[tuple[Goal, float]]:
        """Each goal that this run can speak of, and what was measured."""
        for goal in GOALS:
            if (value := goal.value(self, goal.streams)) is not None:
                yield goal, value


# --- the goals --------------------------------------------------------------------------------------------------------


def _server(figure: Callable[[Point], float]) -> Callable[[Report, int], float | None]:
    def value(report: Report, streams: int) -> float | None:
        found = report.spread("server", streams, figure)
        return found.middle if found else None

    return value


def _times(figure: Callable[[Point], float]) -> Callable[[Report, int], float | None]:
    """Of the bare relay's."""

    def value(report: Report, streams: int) -> float | None:
        server, floor = report.spread("server", streams, figure), report.spread("floor", streams, figure)
        return server.middle / floor.middle if server and floor and floor.middle else None

    return value


def _later(figure: Callable[[Point], float]) -> Callable[[Report, int], float | None]:
    """Than the bare relay."""

    def value(report: Report, streams: int) -> float | None:
        server, floor = report.spread("server", streams, figure), report.spread("floor", streams, figure)
        return server.middle - floor.middle if server and floor else None

    return value


def _burst(report: Report, starts: int) -> float | None:
    found = next((burst for burst in report.bursts if (burst.kind, burst.starts) == ("server", starts)), None)
    return found.first_audio_milliseconds.p50 if found else None


def _crossed(report: Report, _streams: int) -> float | None:
    return next((one.microseconds_there / one.microseconds_here for one in report.crosseds), None)


def _polls(report: Report, _streams: int) -> float | None:
    by_kind = {polls.kind: polls.requests_per_second for polls in report.polls}
    return by_kind["floor"] / by_kind["server"] if by_kind.get("server") and "floor" in by_kind else None


GOALS = (
    *(
        goal
        for streams in (200, 400)
        for goal in (
            Goal(
                what="times the bare relay's CPU per delta",
                at_most=1.5,
                streams=streams,
                value=_times(lambda point: point.cpu_per_delta_microseconds),
            ),
            Goal(
                what="times the same, over whole lives",
                at_most=2.0,
                streams=streams,
                value=_times(lambda point: point.whole_life_microseconds),
            ),
            Goal(
                what="ms relay latency p99",
                at_most=10.0 if streams == 200 else 40.0,
                streams=streams,
                value=_server(lambda point: point.latency_milliseconds.p99),
            ),
            Goal(
                what="ms relay latency, worst",
                at_most=150.0,
                streams=streams,
                value=_server(lambda point: point.latency_milliseconds.worst),
            ),
            Goal(
                what="ms CPU per start",
                at_most=4.0,
                streams=streams,
                value=_server(lambda point: point.cpu_per_start_milliseconds),
            ),
        )
    ),
    Goal(
        what="ms first audio after the relay's own, p50",
        at_most=10.0,
        streams=100,
        value=_later(lambda point: point.first_audio_milliseconds.p50),
    ),
    Goal(
        what="ms first audio after the relay's own, p95",
        at_most=30.0,
        streams=100,
        value=_later(lambda point: point.first_audio_milliseconds.p95),
    ),
    Goal(what="ms first audio of starts within two seconds, p50", at_most=300.0, streams=200, value=_burst),
    Goal(
        what="times the CPU of two processes that speak, when they are followed crosswise",
        at_most=1.3,
        streams=0,
        value=_crossed,
    ),
    Goal(what="times fewer polls a second than one SELECT", at_most=2.0, streams=0, value=_polls),
)


# --- for people and programs ------------------------------------------------------------------------------------------


def as_json(report: Report) -> str:
    """The report with the goals that it was held against."""
    goals = [
        {"goal": f"at most {goal.at_most:g} {goal.what}", "streams": goal.streams, "value": value,
         "met": value <= goal.at_most}
        for goal, value in report.verdicts()
    ]  # fmt: skip
    return msgspec.json.format(msgspec.json.encode({**msgspec.structs.asdict(report), "goals": goals})).decode()


class Column(msgspec.Struct, frozen=True):
    """One figure of a turn as a table shows it."""

    head: str
    figure: Callable[[Point], float | None]
    spec: str


COLUMNS = (
    Column("CPU µs/delta", lambda point: point.cpu_per_delta_microseconds, ".0f"),
    Column("whole life", lambda point: point.whole_life_microseconds, ".0f"),
    Column("CPU ms/start", lambda point: point.cpu_per_start_milliseconds, ".1f"),
    Column("database cores", lambda point: point.database_cores, ".2f"),
    Column("latency p50 ms", lambda point: point.latency_milliseconds.p50, ".1f"),
    Column("p99", lambda point: point.latency_milliseconds.p99, ".1f"),
    Column("worst", lambda point: point.latency_milliseconds.worst, ".0f"),
    Column("first audio p50 ms", lambda point: point.first_audio_milliseconds.p50, ".0f"),
    Column("p95", lambda point: point.first_audio_milliseconds.p95, ".0f"),
    Column("ends/s", lambda point: point.ends_per_second, ".0f"),
    Column("kB/stream", lambda point: point.memory_per_stream_kilobytes, ".0f"),
    Column("loop lag p99 ms", lambda point: point.loop_lag_milliseconds.p99, ".1f"),
    Column("worst", lambda point: point.loop_lag_milliseconds.worst, ".0f"),
    Column("pace", lambda point: point.pace, ".1%"),
)
_BUSY_CORES = 0.15


def turn_rows(report: Report) -> list[list[str]]:
    """The table of all turns: its head, then a row for each."""
    rows = [["streams", "through", *(column.head for column in COLUMNS)]]
    for kind, streams in report.turns:
        spreads = [(report.spread(kind, streams, column.figure), column.spec) for column in COLUMNS]
        rows.append(
            [str(streams), NAMES[kind], *(format(found, spec) if found else "" for found, spec in spreads)],
        )
    return rows


def other_lines(report: Report) -> list[str]:
    """What was measured beside the turns, a sentence each."""
    lines = []
    for burst in report.bursts:
        first = burst.first_audio_milliseconds
        lines.append(
            f"{burst.starts} starts within two seconds, {NAMES[burst.kind]}: first audio p50 {first.p50:.0f} ms,"
            f" p95 {first.p95:.0f} ms, worst {first.worst:.0f} ms"
        )
    for firsts in report.firsts:
        stream, door = firsts.stream_milliseconds, firsts.door_milliseconds
        lines.append(
            f"first audio of {firsts.texts} texts one by one: native stream p50 {stream.p50:.1f} ms,"
            f" p95 {stream.p95:.1f} ms; OpenAI-shaped door p50 {door.p50:.1f} ms, p95 {door.p95:.1f} ms"
        )
    for audience in report.audiences:
        latency = audience.latency_milliseconds
        lines.append(
            f"{audience.followers} followers of one speech: {audience.cpu_per_event_microseconds:.0f} µs CPU per event,"
            f" latency p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms"
        )
    for beside in report.besides:
        latency, work = beside.latency_milliseconds, "as it came" if beside.audio_format == "wav" else "encoded as MP3"
        lines.append(
            f"{beside.streams} streams beside {beside.spoken_seconds:.0f} s of speech in pieces, {work}: latency p50"
            f" {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms, worst {latency.worst:.0f} ms"
        )
    for crossed in report.crosseds:
        here, there = crossed.latency_milliseconds_here, crossed.latency_milliseconds_there
        lines.append(
            f"two processes with {crossed.speeches} speeches each: {crossed.microseconds_here:.0f} µs CPU per delta and"
            f" latency p50 {here.p50:.1f} ms, p99 {here.p99:.1f} ms where they are spoken;"
            f" {crossed.microseconds_there:.0f} µs, p50 {there.p50:.1f} ms, p99 {there.p99:.1f} ms crossed"
        )
    for polls in report.polls:
        name = "one SELECT" if polls.kind == "floor" else "the server"
        lines.append(f"polls answered per second, {name}: {polls.requests_per_second:.0f}")
    lines.append(f"cold start, from the command to readiness: {report.cold_start_seconds:.1f} s")
    return lines


def goal_lines(report: Report) -> list[list[str]]:
    """Each goal with what was measured and whether it was met."""
    rows = [["goal", "streams", "measured", ""]]
    for goal, value in report.verdicts():
        verdict = "met" if value <= goal.at_most else "missed"
        rows.append([f"at most {goal.at_most:g} {goal.what}", str(goal.streams or ""), f"{value:.3g}", verdict])
    return rows


def warnings(report: Report) -> list[str]:
    """What spoils the figures."""
    busiest = max((point.other_cores for point in report.points), default=0.0)
    lines = []
    if busiest > _BUSY_CORES:
        lines.append(f"NOTE: other programs used up to {busiest:.1f} cores meanwhile, which spoils latencies.")
    lines += [f"PROBLEM: {problem}" for problem in report.problems[:10]]
    if len(report.problems) > 10:
        lines.append(f"PROBLEM: and {len(report.problems) - 10} more.")
    return lines


def as_table(report: Report) -> str:
    """The report for a person at a terminal."""
    parts = [f"{report.day}, {report.machine}", "", *_aligned(turn_rows(report)), "", *other_lines(report), ""]
    return "\n".join([*parts, *_aligned(goal_lines(report)), *warnings(report)])


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
