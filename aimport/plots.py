"""Small SVG plots as text: bars, a rate over time, curves. Pure: no file, no clock, no library.

    numbers ──▶ <svg class="plot"> with classes, no colours: the page that holds it has the style (`page.STYLE`)

Each is well-formed XML by itself, has a <title> for who does not see it, and needs neither a script nor anything from
outside. Every text goes through `text`: names of users and words of servers may be hostile.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aimport.progress import duration
from aimport.report import printable

Tone = Literal["main", "good", "warn", "bad", "dim"]

WIDTH: Final = 760
"""Units of the drawing; the page scales it."""
LABEL: Final = 230
"""Room for labels on the left of bars."""
ROW: Final = 26
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 14, 42
"""Room around the area of a plot with axes."""
HEIGHT: Final = 240
LETTER: Final = 7.0
"""Units that a letter takes, about: fonts differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: `shown` stands beside it. `low` and `high` are drawn as a whisker where they are apart."""

    label: str
    value: float
    shown: str
    tone: Tone = "main"
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line through points, ascending by x."""

    name: str
    points: Sequence[Point]
    tone: Tone = "main"


def text(words: str) -> str:
    """`words` as the text of an element or the value of an attribute: on one line, nothing that acts."""
    return html.escape(printable(words), quote=True)


def bars(items: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars from one zero, in the order given."""
    if not items:
        return ""
    most = max(max(item.value, item.high) for item in items) or 1.0
    room = WIDTH - LABEL - 16 - max(len(printable(item.shown)) for item in items) * LETTER
    letters = int((LABEL - 12) / LETTER)
    parts = []
    for number, item in enumerate(items):
        y = number * ROW
        middle = y + ROW / 2
        long = room * item.value / most
        label = printable(item.label)
        cut = label if len(label) <= letters else f"{label[: letters - 9]}…{label[-8:]}"
        parts.append(
            f"<g><title>{text(f'{item.label}: {item.shown}')}</title>"
            f'<text class="label" x="{LABEL - 10}" y="{_n(middle + 4)}" text-anchor="end">{text(cut)}</text>'
            f'<rect class="{item.tone}" x="{LABEL}" y="{_n(y + 5)}" width="{_n(max(long, 1.0))}" height="{ROW - 10}"'
            ' rx="2" />'
        )
        end = long
        if item.high > item.low:
            low, high = LABEL + room * item.low / most, LABEL + room * item.high / most
            parts.append(_whisker(low, middle, high, middle))
            end = max(long, high - LABEL)
        parts.append(
            f'<text class="value" x="{_n(LABEL + end + 8)}" y="{_n(middle + 4)}">{text(item.shown)}</text></g>'
        )
    return _svg(len(items) * ROW, title, parts)


def rate(values: Sequence[float], *, span_s: float, breaks: Sequence[tuple[float, str]], title: str, unit: str) -> str:
    """A rate over time: `values` are means of parts of `span_s` seconds that are equally long.

    `breaks`: where time was left out (seconds from the left), and what is said of it.
    """
    if not values:
        return ""
    ticks = nice(max(values))
    top = ticks[-1]
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [*_rows(ticks, top, unit), *_time_axis(span_s)]
    steps = [f"M{LEFT} {TOP + high}"]
    for number, value in enumerate(values):
        y = _n(TOP + high * (1 - value / top))
        left, right = (_n(LEFT + wide * at / len(values)) for at in (number, number + 1))
        steps.append(f"L{left} {y}L{right} {y}")
    steps.append(f"L{LEFT + wide} {TOP + high}Z")
    parts.append(f'<path class="area" d="{"".join(steps)}" />')
    for at_s, said in breaks:
        x = _n(LEFT + wide * at_s / span_s)
        parts.append(
            f'<g><title>{text(said)}</title><line class="break" x1="{x}" y1="{TOP}" x2="{x}" y2="{TOP + high}" />'
            f'<text class="tick" x="{x}" y="{TOP - 3}" text-anchor="middle">{text(said)}</text></g>'
        )
    return _svg(HEIGHT, title, parts)


def curves(lines: Sequence[Curve], *, title: str, across: str, unit: str) -> str:
    """Curves over a few values of x, which are equally far apart: 1, 2, 4, 8 connections."""
    places = sorted({point.x for line in lines for point in line.points})
    if not places:
        return ""
    ticks = nice(max(max(point.y, point.high) for line in lines for point in line.points))
    top = ticks[-1]
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    at = {x: LEFT + wide * (number + 0.5) / len(places) for number, x in enumerate(places)}

    def up(y: float) -> float:
        return TOP + high * (1 - y / top)

    parts = _rows(ticks, top, unit)
    parts += [
        f'<text class="tick" x="{_n(where)}" y="{TOP + high + 16}" text-anchor="middle">{_short(x)}</text>'
        for x, where in at.items()
    ]
    parts.append(
        f'<text class="tick" x="{_n(LEFT + wide / 2)}" y="{TOP + high + 34}" text-anchor="middle">{text(across)}</text>'
    )
    for line in lines:
        path = "L".join(f"{_n(at[point.x])} {_n(up(point.y))}" for point in line.points)
        parts.append(f'<g><title>{text(line.name)}</title><path class="curve {line.tone}" d="M{path}" />')
        for point in line.points:
            x = at[point.x]
            if point.high > point.low:
                parts.append(_whisker(x, up(point.high), x, up(point.low)))
            parts.append(
                f'<circle class="{line.tone}" cx="{_n(x)}" cy="{_n(up(point.y))}" r="4">'
                f"<title>{text(f'{line.name}, {_short(point.x)}: {_short(point.y)} {unit}')}</title></circle>"
            )
        parts.append("</g>")
    return _svg(HEIGHT, title, parts) + legend([(line.name, line.tone) for line in lines])


def legend(names: Sequence[tuple[str, Tone]]) -> str:
    """What the colours of a plot mean."""
    if len(names) < 2:
        return ""
    items = "".join(f'<li><span class="swatch {tone}"></span>{text(name)}</li>' for name, tone in names)
    return f'<ul class="legend">{items}</ul>'


def nice(high: float) -> list[float]:
    """Round values from 0 to one at or above `high`, some four of them."""
    if not 1e-9 < high < math.inf:
        high = 1.0
    raw = high / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= raw * 0.999)
    return [step * number for number in range(math.ceil(high / step - 1e-9) + 1)]


def clock(seconds: float) -> str:
    """A length of time at an axis: 40 s, 12:30, 3:00:00."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _rows(ticks: Sequence[float], top: float, unit: str) -> list[str]:
    """Lines across, with their values on the left."""
    high = HEIGHT - TOP - BOTTOM
    parts = []
    for tick in ticks:
        y = TOP + high * (1 - tick / top)
        parts.append(
            f'<line class="grid" x1="{LEFT}" y1="{_n(y)}" x2="{WIDTH - RIGHT}" y2="{_n(y)}" />'
            f'<text class="tick" x="{LEFT - 8}" y="{_n(y + 4)}" text-anchor="end">{_short(tick)}</text>'
        )
    middle = _n(TOP + high / 2)
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text class="tick" x="14" y="{middle}" text-anchor="middle" {turned}>{text(unit)}</text>')
    return parts


TIMES: Final = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30),
    *(60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400),
)
"""Seconds between two marks of a time axis."""


def _time_axis(span_s: float) -> list[str]:
    wide, y = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    step = next((each for each in TIMES if span_s / each <= 8), math.ceil(span_s / 8 / 86400) * 86400)
    parts = []
    for number in range(int(span_s / step + 1e-9) + 1):
        x = LEFT + wide * number * step / span_s if span_s else LEFT
        parts.append(
            f'<line class="grid" x1="{_n(x)}" y1="{y}" x2="{_n(x)}" y2="{y + 4}" />'
            f'<text class="tick" x="{_n(x)}" y="{y + 17}" text-anchor="middle">{text(clock(number * step))}</text>'
        )
    return parts


def _whisker(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="whisker" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" />'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {_n(height)}" role="img">'
        f"<title>{text(title)}</title>{''.join(parts)}</svg>"
    )


def _n(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def _short(value: float) -> str:
    """A value at an axis."""
    if value >= 1_000_000:
        return f"{value / 1_000_000:.3g}M"
    if value >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"
