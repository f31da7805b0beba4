"""Turn small plots of reports, rollouts and the console into shapes. The template plot.html writes them as SVG.

A plot has two axes and marks, drawn in their order. A mark's CSS class decides its colour and dashes, so the style
sheet controls them for screen and print. A mark with a `hint` shows it under the mouse pointer. The same values give
the same bytes: positions are rounded to a tenth of a pixel, and no shape contains a time or the name of a machine.

Example: on an axis from 0 to 10, the value 5 lies in the middle of the plot. Its x is 70 + 0.5 x (536 - 70 - 36) = 285.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

PLOT_TEMPLATE = Path(__file__).with_name("templates") / "plot.html"
"""The template that writes a drawing as SVG."""

WIDTH, HEIGHT = 536, 290
# The right margin has room for half of the last tick's label.
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 36, 14, 48
_NOTE_HEIGHT = 15
_TICKS_WANTED = 5
_STEP_TICKS_MAX = 6
# An axis with more ticks keeps small labels where other labels grow, as on a telephone.
_DENSE = 8
# Pixels: the largest width of a character of a label, in the largest type and the widest font; the gap between labels.
_TICK_CHARACTER, _TICK_GAP = 8.0, 10

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with labelled ticks. Values outside are drawn at the nearest end."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Returns the position of a value on the axis, from 0 to 1."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class PlotLine:
    """A line through points, interrupted at points with NaN. `with_dots` marks each point."""

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
    """A vertical line at `x` with a label above the plot. Labels have rows of their own, the rightmost line's first."""

    x: float
    text: str


@dataclass(frozen=True)
class Whisker:
    """A vertical interval at `x`, from `low` to `high`."""

    x: float
    low: float
    high: float
    style: str


PlotMark = PlotLine | Bar | Upright | Whisker


@dataclass(frozen=True)
class Plot:
    """A plot. `description` is the text for screen readers. `legend` names the styles."""

    description: str
    x: Axis
    y: Axis
    marks: Sequence[PlotMark]
    legend: Sequence[tuple[str, str]] = field(default=())
    """(style, text) each."""

    @property
    def top(self) -> int:
        """The y of the plot's upper edge, in pixels: below the labels of its uprights."""
        return _TOP + _NOTE_HEIGHT * len(self._uprights())

    def row_of(self, mark: Upright) -> int:
        """Returns the row of an upright's label, from 0."""
        return self._uprights().index(mark)

    def _uprights(self) -> list[Upright]:
        uprights = [mark for mark in self.marks if isinstance(mark, Upright)]
        return sorted(uprights, key=lambda mark: -mark.x)


# Positions and sizes of shapes are texts, formatted as the template writes them.


@dataclass(frozen=True)
class Stroke:
    """A straight line."""

    kind: ClassVar[str] = "stroke"
    style: str
    x1: str
    x2: str
    y1: str
    y2: str


@dataclass(frozen=True)
class Word:
    """A text at a position. `anchor` is start, middle or end. A turned text runs upwards."""

    kind: ClassVar[str] = "word"
    style: str
    x: str
    y: str
    text: str
    anchor: str
    is_turned: bool = False
    is_centred: bool = False


@dataclass(frozen=True)
class Curve:
    """A line through many points."""

    kind: ClassVar[str] = "curve"
    style: str
    path: str


@dataclass(frozen=True)
class Dot:
    """A point of a line."""

    kind: ClassVar[str] = "dot"
    style: str
    x: str
    y: str
    hint: str


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    kind: ClassVar[str] = "box"
    style: str
    x: str
    y: str
    width: str
    height: str
    hint: str


PlotShape = Stroke | Word | Curve | Dot | Box


@dataclass(frozen=True)
class Drawing:
    """A plot as shapes, ready for the template. The legend holds pairs (style, text)."""

    description: str
    width: int
    height: int
    shapes: Sequence[PlotShape]
    legend: Sequence[tuple[str, str]]


def linear_axis(label: str, low: float, high: float, form: Callable[[float], str]) -> Axis:
    """Returns an axis with about five round ticks. `low` moves down and `high` up to the next tick."""
    if not high > low:
        high = low + 1.0
    step = _round_step((high - low) / _TICKS_WANTED)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return Axis(label, ticks[0], ticks[-1], [(tick, form(tick)) for tick in ticks])


def log_axis(label: str, low: float, high: float, form: Callable[[float], str]) -> Axis:
    """Returns a logarithmic axis with a tick at each power of ten. Both ends must be positive."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**power for power in range(first, last + 1)]
    return Axis(label, low, high, [(power, form(power)) for power in powers], is_log=True)


def step_axis(label: str, names: Sequence[str]) -> Axis:
    """Returns an axis of steps, such as days: step i has its middle at i + 0.5.

    At most six steps have labels, and no more than fit without touching.
    """
    room = (WIDTH - _LEFT - _RIGHT) / (max(map(len, names), default=1) * _TICK_CHARACTER + _TICK_GAP)
    # Every n-th step gets a label, so that at most `room` labels share the width.
    every = max(1, math.ceil(len(names) / min(_STEP_TICKS_MAX, room)))
    ticks = [(number + 0.5, names[number]) for number in range(0, len(names), every)]
    return Axis(label, 0, max(1, len(names)), ticks)


def edge_axis(label: str, edges: Sequence[str]) -> Axis:
    """Returns an axis of bins of equal width with labelled edges: bin i lies from i to i + 1."""
    return Axis(label, 0, len(edges) - 1, list(enumerate(edges)))


def drawing_of(plot: Plot) -> Drawing:
    """Returns the plot as shapes, in the order of drawing."""
    shapes = [*_grid(plot), *(shape for mark in plot.marks for shape in _drawn(mark, plot))]
    return Drawing(plot.description, WIDTH, HEIGHT, shapes, plot.legend)


def _grid(plot: Plot) -> list[PlotShape]:
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, plot.top, HEIGHT - _BOTTOM
    shapes: list[PlotShape] = []
    for value, text in plot.y.ticks:
        y = _y(plot, value)
        shapes.append(Stroke("grid", f"{left}", f"{right}", y, y))
        shapes.append(Word("tick", f"{left - 7}", y, text, "end", is_centred=True))
    style = "tick dense" if len(plot.x.ticks) > _DENSE else "tick"
    for value, text in plot.x.ticks:
        x = _x(plot, value)
        shapes.append(Stroke("notch", x, x, f"{bottom}", f"{bottom + 4}"))
        shapes.append(Word(style, x, f"{bottom + 17}", text, "middle"))
    middle_x, middle_y = f"{(left + right) / 2:g}", f"{(top + bottom) / 2:g}"
    return [
        *shapes,
        Stroke("base", f"{left}", f"{right}", f"{bottom}", f"{bottom}"),
        Word("axis", middle_x, f"{HEIGHT - 8}", plot.x.label, "middle"),
        Word("axis", "11", middle_y, plot.y.label, "middle", is_turned=True),
    ]


def _drawn(mark: PlotMark, plot: Plot) -> list[PlotShape]:
    match mark:
        case PlotLine():
            return _line(mark, plot)
        case Bar():
            return [_bar(mark, plot)]
        case Upright():
            return _upright(mark, plot)
        case Whisker():
            x = _x(plot, mark.x)
            return [Stroke(mark.style, x, x, _y(plot, mark.low), _y(plot, mark.high))]


def _line(mark: PlotLine, plot: Plot) -> list[PlotShape]:
    path, pen_is_up = [], True
    for x, y in mark.points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_is_up = True
            continue
        path.append(f"{'M' if pen_is_up else 'L'}{_x(plot, x)} {_y(plot, y)}")
        pen_is_up = False
    curve: list[PlotShape] = [Curve(mark.style, "".join(path))] if path else []
    return curve + (_dots(mark, plot) if mark.with_dots else [])


def _dots(mark: PlotLine, plot: Plot) -> list[PlotShape]:
    hints = mark.hints or [""] * len(mark.points)
    return [
        Dot(mark.style, _x(plot, x), _y(plot, y), hint)
        for (x, y), hint in zip(mark.points, hints, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]


def _bar(mark: Bar, plot: Plot) -> PlotShape:
    x, right = float(_x(plot, mark.left)), float(_x(plot, mark.right))
    top, bottom = float(_y(plot, mark.high)), float(_y(plot, mark.low))
    width, height = f"{max(right - x, 0.6):.1f}", f"{max(bottom - top, 0):.1f}"
    return Box(mark.style, f"{x:.1f}", f"{top:.1f}", width, height, mark.hint)


def _upright(mark: Upright, plot: Plot) -> list[PlotShape]:
    x, word_y = float(_x(plot, mark.x)), _TOP + _NOTE_HEIGHT * plot.row_of(mark)
    # The label stands left of its line, or right of it if the line is near the left edge.
    place, anchor = (x - 5, "end") if x > WIDTH * 0.3 else (x + 5, "start")
    return [
        Stroke("upright", f"{x:.1f}", f"{x:.1f}", f"{word_y - 9}", f"{HEIGHT - _BOTTOM}"),
        Word("note", f"{place:.1f}", f"{word_y}", mark.text, anchor),
    ]


def _x(plot: Plot, value: float) -> str:
    return f"{_LEFT + plot.x.place(value) * (WIDTH - _LEFT - _RIGHT):.1f}"


def _y(plot: Plot, value: float) -> str:
    return f"{HEIGHT - _BOTTOM - plot.y.place(value) * (HEIGHT - plot.top - _BOTTOM):.1f}"


def _round_step(step: float) -> float:
    """Returns the smallest number of 1, 2 or 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= step * (1 - 1e-9))
