"""What a run found, as ``docs/performance.md`` and its picture: everything between two marks is written anew.

What stands outside of the marks (the method, what is noise, why a goal was missed) is written by hand and stays.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.report import NAMES, Kind, Report, goal_lines, other_lines, turn_rows, warnings

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PICTURE = "performance.svg"
_COLOURS: dict[Kind, str] = {"floor": "#7a7a7a", "plain": "#c05a1a", "server": "#1a6fc0"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 320, 64, 44, 28


def write(report: Report, document: Path) -> None:
    """Put the run's figures into the document, and its picture beside it."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{_figures(report)}\n{END}{after}")
    document.with_name(PICTURE).write_text(picture(report))


def _figures(report: Report) -> str:
    parts = [
        f"Measured on {report.day} ({report.machine}). Where there were several rounds, the middle one stands with the"
        " least and the most in brackets.",
        "",
        *_table(turn_rows(report)),
        "",
        f"![CPU per delta over whole lives, by streams]({PICTURE})",
        "",
        *(f"- {line}" for line in other_lines(report)),
        "",
        *_table(goal_lines(report)),
        *(f"\n{warning}" for warning in warnings(report)),
    ]
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    lines = [f"| {' | '.join(row)} |" for row in (head, *body)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def picture(report: Report) -> str:
    """CPU per delta over whole lives against the number of streams, a line for each of the three."""
    lines: dict[Kind, list[tuple[int, float]]] = {}
    for kind, streams in report.turns:
        if found := report.spread(kind, streams, lambda point: point.whole_life_microseconds):
            lines.setdefault(kind, []).append((streams, found.middle))
    most_streams = max(streams for line in lines.values() for streams, _ in line)
    most = max(value for line in lines.values() for _, value in line) * 1.1

    def at(streams: float, value: float) -> tuple[float, float]:
        x = _LEFT + streams / most_streams * (_WIDTH - _LEFT - 120)
        return round(x, 1), round(_HEIGHT - _BOTTOM - value / most * (_HEIGHT - _BOTTOM - _TOP), 1)

    (left, bottom), (right, top) = at(0, 0), at(most_streams, most)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        ' font-size="12" role="img" aria-label="CPU per delta over whole lives, by streams">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{left}" y="16">µs of CPU per delta, whole lives</text>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#333333"/>',
        f'<text x="{right}" y="{_HEIGHT - 8}" text-anchor="end">streams</text>',
    ]
    for mark in range(0, int(most), max(50, int(most / 6) // 50 * 50)):
        x, y = at(0, mark)
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{mark}</text>')
        parts.append(f'<path d="M{x} {y}H{right}" stroke="#e0e0e0"/>')
    for streams in sorted({streams for _, streams in report.turns}):
        x, y = at(streams, 0)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{streams}</text>')
    for kind, line in lines.items():
        points = [at(streams, value) for streams, value in sorted(line)]
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        parts.append(f'<path d="{path}" fill="none" stroke="{_COLOURS[kind]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{_COLOURS[kind]}"/>' for x, y in points]
        x, y = points[-1]
        parts.append(f'<text x="{x + 8}" y="{y + 4}" fill="{_COLOURS[kind]}">{escape(NAMES[kind])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
