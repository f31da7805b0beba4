"""Shapes of charts: numbers of an SVG in a box of 640 × 220, which templates draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from paywarden.ops.console.rendering.templates import number as number_text

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 46
# More labels than this below the bars would touch each other.
_LABELS_MAX = 9


@dataclass(frozen=True)
class Pair:
    """Two bars of one bin: shares and shapes, before and now."""

    label: str
    was: float
    now: float
    x: float
    width: float
    was_height: float
    now_height: float
    is_labelled: bool


@dataclass(frozen=True)
class Histogram:
    """Two histograms side by side. `top` is the largest share."""

    pairs: tuple[Pair, ...]
    top: float
    base: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Line:
    """Values over time: the points of a polyline, and the ends of both axes."""

    points: str
    dots: tuple[tuple[float, float, int, float], ...]
    first_ms: int
    last_ms: int
    low: float
    high: float
    base: int = HEIGHT - _BOTTOM


def histogram(labels: Sequence[str], was: Sequence[float], now: Sequence[float]) -> Histogram | None:
    """Returns the bars of shares; bins that are empty in both are left out. None without any."""
    kept = [(label, a, b) for label, a, b in zip(labels, was, now, strict=True) if a or b]
    if not kept:
        return None
    top = max(max(a, b) for _, a, b in kept)
    room, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    step = room / len(kept)
    every = max(1, math.ceil(len(kept) / _LABELS_MAX))
    pairs = [
        Pair(
            label,
            a,
            b,
            round(_LEFT + number * step + step * 0.08, 1),
            round(step * 0.4, 1),
            round(tall * a / top, 1),
            round(tall * b / top, 1),
            number % every == 0,
        )
        for number, (label, a, b) in enumerate(kept)
    ]
    return Histogram(tuple(pairs), top)


def line(values: Sequence[tuple[int, float]]) -> Line | None:
    """Returns values over time; None for fewer than two that are finite."""
    kept = [(time_ms, value) for time_ms, value in values if math.isfinite(value)]
    if len(kept) < 2:
        return None
    first, last = kept[0][0], max(kept[-1][0], kept[0][0] + 1)
    low, high = min(0.0, *(value for _, value in kept)), max(value for _, value in kept)
    span = high - low or 1.0
    dots = tuple(
        (
            round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (time_ms - first) / (last - first), 1),
            round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / span), 1),
            time_ms,
            value,
        )
        for time_ms, value in kept
    )
    return Line(" ".join(f"{x},{y}" for x, y, _, _ in dots), dots, first, last, low, high)


@dataclass(frozen=True)
class Interval:
    """The interval of a ratio: a bar from `x` on. `is_cut_low`, `is_cut_high`: it goes on beyond the chart."""

    label: str
    y: float
    x: float
    width: float
    is_cut_low: bool
    is_cut_high: bool


@dataclass(frozen=True)
class Intervals:
    """Intervals of ratios, below each other, on a scale of doublings. `same_x`: where both are the same."""

    rows: tuple[Interval, ...]
    ticks: tuple[tuple[float, str], ...]
    same_x: float
    height: int
    base: int


_RATIOS = ((0.25, "a quarter"), (0.5, "half"), (1.0, "the same"), (2.0, "twice"), (4.0, "4 times"))
_RATIO_LEFT, _ROW_HEIGHT = 150, 26


def intervals(ratios: Sequence[tuple[str, float, float]]) -> Intervals | None:
    """Returns a bar for each label with the low and the high end of a ratio; None without any."""
    if not ratios:
        return None
    rows = []
    for number, (label, low, high) in enumerate(ratios):
        left, right = _ratio_x(low), _ratio_x(high)
        is_cut_low, is_cut_high = low < _RATIOS[0][0], high > _RATIOS[-1][0]
        width = max(2.0, round(right - left, 1))
        rows.append(Interval(label, _TOP + number * _ROW_HEIGHT, left, width, is_cut_low, is_cut_high))
    base = _TOP + len(rows) * _ROW_HEIGHT
    ticks = tuple((_ratio_x(ratio), words) for ratio, words in _RATIOS)
    return Intervals(tuple(rows), ticks, _ratio_x(1.0), base + 26, base)


def _ratio_x(ratio: float) -> float:
    low, high = (math.log2(_RATIOS[end][0]) for end in (0, -1))
    place = low if ratio <= 0 else min(max(math.log2(ratio), low), high) if math.isfinite(ratio) else high
    return round(_RATIO_LEFT + (WIDTH - _RATIO_LEFT - _LEFT) * (place - low) / (high - low), 1)


def bin_labels(edges: Sequence[float | None]) -> list[str]:
    """Returns the label of each bin between edges (None: without end), and that of missing values."""
    return [*(_bin(low, high) for low, high in pairwise(edges)), "missing"]


def shares(counts: Sequence[int]) -> list[float]:
    """Returns counts as shares of their sum."""
    total = sum(counts) or 1
    return [count / total for count in counts]


def _bin(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "any"
    if low is None:
        return f"< {number_text(high)}"
    if high is None:
        return f"≥ {number_text(low)}"
    first, last = number_text(low), number_text(high)
    # A value that many payments have has a bin of its own.
    return first if first == last else f"{first} to {last}"
