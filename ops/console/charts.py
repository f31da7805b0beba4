"""Charts of the pages, drawn with the plots of the reports (models/replay/report/plots.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from paywarden.models.replay.report.plots import (
    Axis,
    Bar,
    Box,
    Drawing,
    Plot,
    PlotLine,
    PlotShape,
    Stroke,
    Word,
    drawing_of,
    linear_axis,
    step_axis,
)
from paywarden.ops.console.rendering import number, percent, time_text

_RATIOS = ((0.25, "a quarter"), (0.5, "half"), (1.0, "the same"), (2.0, "twice"), (4.0, "4 times"))
# Pixels: where the bars of ratios begin and end, the height of a row, and of the scale below.
_RATIO_LEFT, _RATIO_RIGHT, _ROW, _SCALE = 150, 596, 26, 26


@dataclass(frozen=True)
class Histogram:
    """Two histograms side by side. `rows`: the label of each bin, and its shares before and now."""

    rows: tuple[tuple[str, float, float], ...]
    drawing: Drawing


def histogram(
    title: str, labels: Sequence[str], was: Sequence[float], now: Sequence[float], was_name: str = "before"
) -> Histogram | None:
    """Return the bars of shares; bins that are empty in both are left out. None without any."""
    rows = tuple((label, a, b) for label, a, b in zip(labels, was, now, strict=True) if a or b)
    if not rows:
        return None
    marks = []
    for place, (label, before, after) in enumerate(rows):
        marks.append(Bar(place + 0.08, place + 0.48, 0, before, "was", f"{label}: {percent(before)} {was_name}"))
        marks.append(Bar(place + 0.48, place + 0.88, 0, after, "now", f"{label}: {percent(after)} now"))
    top = max(max(before, after) for _, before, after in rows)
    axes = step_axis("", [label for label, _, _ in rows]), linear_axis("share of payments", 0, top, percent)
    return Histogram(rows, drawing_of(Plot(title, *axes, marks, [("was", was_name), ("now", "now")])))


def line(title: str, values: Sequence[tuple[int, float]]) -> Drawing | None:
    """Return values over time; None for fewer than two that are finite."""
    kept = [(time_ms, value) for time_ms, value in values if math.isfinite(value)]
    if len(kept) < 2:
        return None
    first, last = kept[0][0], max(kept[-1][0], kept[0][0] + 1)
    low, high = min(0.0, *(value for _, value in kept)), max(value for _, value in kept)
    hours = Axis("time (UTC)", first, last, [(time_ms, time_text(time_ms, "%m-%d %H:%M")) for time_ms in (first, last)])
    hints = [f"{time_text(time_ms)}: {number(value)}" for time_ms, value in kept]
    mark = PlotLine(kept, "now", with_dots=True, hints=hints)
    return drawing_of(Plot(title, hours, linear_axis("", low, high, number), [mark]))


def intervals(title: str, ratios: Sequence[tuple[str, float, float]]) -> Drawing | None:
    """Return a bar for each label, from the low to the high end of a ratio, on a scale of doublings; None without any.

    ‹ and › beside a bar: it goes on beyond the chart.
    """
    if not ratios:
        return None
    base = len(ratios) * _ROW
    shapes: list[PlotShape] = []
    for ratio, words in _RATIOS:
        x = f"{_ratio_x(ratio):.1f}"
        shapes.append(Stroke("upright" if ratio == 1 else "grid", x, x, "0", f"{base}"))
        shapes.append(Word("tick", x, f"{base + 18}", words, "middle"))
    for place, (label, low, high) in enumerate(ratios):
        left, right, y = _ratio_x(low), _ratio_x(high), place * _ROW
        shapes.append(Word("tick", f"{_RATIO_LEFT - 18}", f"{y + 17}", label, "end"))
        shapes.append(Box("now", f"{left:.1f}", f"{y + 8}", f"{max(2.0, right - left):.1f}", "10", ""))
        if low < _RATIOS[0][0]:
            shapes.append(Word("tick", f"{left - 4:.1f}", f"{y + 17}", "‹", "end"))
        if high > _RATIOS[-1][0]:
            shapes.append(Word("tick", f"{right + 4:.1f}", f"{y + 17}", "›", "start"))
    return Drawing(title, 640, base + _SCALE, shapes, ())


def _ratio_x(ratio: float) -> float:
    low, high = (math.log2(_RATIOS[end][0]) for end in (0, -1))
    place = low if ratio <= 0 else min(max(math.log2(ratio), low), high) if math.isfinite(ratio) else high
    return _RATIO_LEFT + (_RATIO_RIGHT - _RATIO_LEFT) * (place - low) / (high - low)


def bin_labels(edges: Sequence[float | None]) -> list[str]:
    """Return the label of each bin between edges (None: without end), and that of missing values."""
    return [*(_bin(low, high) for low, high in pairwise(edges)), "missing"]


def shares(counts: Sequence[int]) -> list[float]:
    """Return counts as shares of their sum."""
    total = sum(counts) or 1
    return [count / total for count in counts]


def _bin(low: float | None, high: float | None) -> str:
    if low is None:
        return "any" if high is None else f"< {number(high)}"
    if high is None:
        return f"≥ {number(low)}"
    first, last = number(low), number(high)
    # A value that many payments have has a bin of its own.
    return first if first == last else f"{first} to {last}"
