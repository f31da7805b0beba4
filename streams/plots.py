"""Small plots as SVG text, for one HTML file without scripts.

A plot is two axes and marks. Marks are drawn in their order; what a mark looks like (colour, dashes) is its CSS class,
so the page's style sheet decides, for screen and print. The same values give the same bytes: places are rounded to a
tenth of a pixel, and nothing speaks of time or machine. Marks with a `hint` show it under the mouse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 520, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 14, 48
_NOTE_HEIGHT = 15
_TICKS_WANTED = 5
_STEP_TICKS_MAX = 6

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with labelled ticks. A logarithmic axis draws what is below `low` at `low`."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Line:
    """A line through points; where one has no value (NaN) it is interrupted. With dots for few points."""

    points: Sequence[Point]
    style: str
    with_dots: bool = False
    hints: Sequence[str] = ()


@dataclass(frozen=True)
class Bar:
    """A rectangle between two values of each axis."""

    left: float
    right: float
    low: float
    high: float
    style: str
    hint: str = ""


@dataclass(frozen=True)
class Upright:
    """A vertical line at `x` with a word above the plot, in a row of its own: first the line farthest to the right."""

    x: float
    text: str


@dataclass(frozen=True)
class Whisker:
    """An interval at `x`."""

    x: float
    low: float
    high: float
    style: str


Mark = Line | Bar | Upright | Whisker


@dataclass(frozen=True)
class Plot:
    """`description` is what a screen reader says; the legend names styles."""

    description: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    legend: Sequence[tuple[str, str]] = field(default=())
    """(style, text) each."""

    @property
    def top(self) -> int:
        """Where the plot begins: below the words of its uprights."""
        return _TOP + _NOTE_HEIGHT * len(self._uprights())

    def row_of(self, mark: Upright) -> int:
        """The row of an upright's word, from 0."""
        return self._uprights().index(mark)

    def _uprights(self) -> list[Upright]:
        uprights = [mark for mark in self.marks if isinstance(mark, Upright)]
        return sorted(uprights, key=lambda mark: -mark.x)


def linear_axis(label: str, low: float, high: float, form: Callable[[float], str]) -> Axis:
    """An axis with some five round ticks; `high` is moved up to one, and `low` down."""
    if not high > low:
        high = low + 1.0
    step = _round_step((high - low) / _TICKS_WANTED)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return Axis(label, ticks[0], ticks[-1], [(tick, form(tick)) for tick in ticks])


def log_axis(label: str, low: float, high: float, form: Callable[[float], str]) -> Axis:
    """A logarithmic axis with a tick at each power of ten; both ends are positive."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**power for power in range(first, last + 1)]
    return Axis(label, low, high, [(power, form(power)) for power in powers], is_log=True)


def step_axis(label: str, names: Sequence[str]) -> Axis:
    """An axis of steps, such as days: step i lies around i + 0.5, and at most six are named."""
    every = max(1, math.ceil(len(names) / _STEP_TICKS_MAX))
    ticks = [(number + 0.5, names[number]) for number in range(0, len(names), every)]
    return Axis(label, 0, max(1, len(names)), ticks)


def edge_axis(label: str, edges: Sequence[str]) -> Axis:
    """An axis of bins of equal width whose edges are named: bin i lies from i to i + 1."""
    return Axis(label, 0, len(edges) - 1, list(enumerate(edges)))


def svg(plot: Plot) -> str:
    """The plot as an SVG element, with its legend below."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.description)}">',
        *_grid(plot),
        *(_drawn(mark, plot) for mark in plot.marks),
        "</svg>",
    ]
    return "".join(parts) + _legend(plot.legend)


def _grid(plot: Plot) -> list[str]:
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, plot.top, HEIGHT - _BOTTOM
    middle_x, middle_y = f"{(left + right) / 2:g}", f"{(top + bottom) / 2:g}"
    parts = []
    for value, text in plot.y.ticks:
        y = _y(plot, value)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{y}" dy="0.32em" text-anchor="end">{escape(text)}</text>')
    for value, text in plot.x.ticks:
        x = _x(plot, value)
        parts.append(f'<line class="notch" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>')
    return [
        *parts,
        f'<line class="base" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
        f'<text class="axis" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(plot.x.label)}</text>',
        f'<text class="axis" x="11" y="{middle_y}" text-anchor="middle" transform="rotate(-90 11 {middle_y})">'
        f"{escape(plot.y.label)}</text>",
    ]


def _drawn(mark: Mark, plot: Plot) -> str:
    match mark:
        case Line():
            return _line(mark, plot)
        case Bar():
            return _bar(mark, plot)
        case Upright():
            return _upright(mark, plot)
        case Whisker():
            x = _x(plot, mark.x)
            return (
                f'<line class="{mark.style}" x1="{x}" x2="{x}" y1="{_y(plot, mark.low)}" y2="{_y(plot, mark.high)}"/>'
            )


def _line(mark: Line, plot: Plot) -> str:
    path, pen_is_up = [], True
    for x, y in mark.points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_is_up = True
            continue
        path.append(f"{'M' if pen_is_up else 'L'}{_x(plot, x)} {_y(plot, y)}")
        pen_is_up = False
    drawn = f'<path class="line {mark.style}" d="{"".join(path)}"/>' if path else ""
    return drawn + ("".join(_dots(mark, plot)) if mark.with_dots else "")


def _dots(mark: Line, plot: Plot) -> list[str]:
    hints = mark.hints or [""] * len(mark.points)
    return [
        f'<circle class="dot {mark.style}" cx="{_x(plot, x)}" cy="{_y(plot, y)}" r="3">{_hint(hint)}</circle>'
        for (x, y), hint in zip(mark.points, hints, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]


def _bar(mark: Bar, plot: Plot) -> str:
    x, right = float(_x(plot, mark.left)), float(_x(plot, mark.right))
    top, bottom = float(_y(plot, mark.high)), float(_y(plot, mark.low))
    return (
        f'<rect class="bar {mark.style}" x="{x:.1f}" y="{top:.1f}" width="{max(right - x, 0.6):.1f}" '
        f'height="{max(bottom - top, 0):.1f}">{_hint(mark.hint)}</rect>'
    )


def _upright(mark: Upright, plot: Plot) -> str:
    x, word_y = float(_x(plot, mark.x)), _TOP + _NOTE_HEIGHT * plot.row_of(mark)
    # The word stands on the left of its line, where there is room for it.
    place, anchor = (x - 5, "end") if x > WIDTH * 0.3 else (x + 5, "start")
    return (
        f'<line class="upright" x1="{x:.1f}" x2="{x:.1f}" y1="{word_y - 9}" y2="{HEIGHT - _BOTTOM}"/>'
        f'<text class="note" x="{place:.1f}" y="{word_y}" text-anchor="{anchor}">{escape(mark.text)}</text>'
    )


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    if not entries:
        return ""
    items = "".join(f'<span><i class="key {style}"></i>{escape(text)}</span>' for style, text in entries)
    return f'<p class="legend">{items}</p>'


def _x(plot: Plot, value: float) -> str:
    return f"{_LEFT + plot.x.place(value) * (WIDTH - _LEFT - _RIGHT):.1f}"


def _y(plot: Plot, value: float) -> str:
    return f"{HEIGHT - _BOTTOM - plot.y.place(value) * (HEIGHT - plot.top - _BOTTOM):.1f}"


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= step * (1 - 1e-9))
