"""The page of charts: fraud and loss, declines, false positives, and reviews by day or week, also as CSV.

Shares have their 95 % interval (Wilson). Outcomes come days after their payments: a period that ended less than
[training] label_delay_days ago is drawn apart where a chart counts outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.replay.report.plots import (
    Drawing,
    Plot,
    PlotLine,
    PlotMark,
    Upright,
    Whisker,
    drawing_of,
    linear_axis,
    step_axis,
)
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.exports import export_of
from paywarden.ops.console.page_rows import Field, Page, Section, Shown, Visit, address
from paywarden.ops.console.rendering import number, time_text
from paywarden.streams.decision_index.outcome_counts import (
    PERIODS,
    PeriodCounts,
    period_begin,
)
from paywarden.streams.decision_index.tallies import DAY_MS, SEGMENTS

PATH = "/charts"
_COUNTS = {"day": 60, "week": 26}
_FIELDS = (
    Field("by", "The period; a day without it", choices=tuple(PERIODS)),
    *(Field(name, "Only decisions with this value") for name in SEGMENTS),
)


@dataclass(frozen=True)
class Measure:
    """A measure of a period: a part of a whole, `times` as much, or a count itself where `whole` is empty.

    `is_share`: it is a share of payments or verdicts, which has an interval. `waits`: it counts outcomes.
    """

    name: str
    title: str
    unit: str
    part: str
    whole: str = ""
    times: int = 1
    is_share: bool = True
    waits: bool = False

    def of(self, counts: PeriodCounts) -> dict[str, float | None]:
        """Return the value, and the ends of its interval if it is a share; None without any payment of the whole."""
        part = getattr(counts, self.part)
        whole = getattr(counts, self.whole) if self.whole else 1
        value = None if part is None or not whole else self.times * part / whole
        found = {self.name: _rounded(value)}
        if self.is_share:
            low, high = (None, None) if value is None else wilson_interval(part / whole, whole)
            for end, share in (("low", low), ("high", high)):
                found[f"{self.name}_{end}"] = None if share is None else _rounded(self.times * share)
        return found


MEASURES = (
    Measure("fraud_bp", "Fraud", "basis points of payments", "frauds", "payments", 10_000, waits=True),
    Measure(
        *("loss_bp", "Loss", "basis points of the money that was not declined", "lost_minor", "taken_minor", 10_000),
        is_share=False,
        waits=True,
    ),
    Measure("declined_percent", "Declines", "% of payments", "declined", "payments", 100),
    Measure(
        *("false_positive_percent", "False positives", "% genuine of declines with an outcome"),
        *("declined_genuine", "declined_known", 100),
        waits=True,
    ),
    Measure("yield_percent", "Review yield", "% of verdicts that say fraud", "fraud_verdicts", "verdicts", 100),
    Measure("review_s", "Review time", "seconds from claim to verdict, the median", "review_s", is_share=False),
)


class OutcomeCharts:
    """The section `Charts`."""

    def __init__(self, opened: OpenedIndex, label_delay_days: int) -> None:
        self._opened, self._delay_days = opened, label_delay_days

    def section(self) -> Section:
        """Return the section."""
        page = Page(PATH, self.show, "Fraud, loss, declines and reviews by day or week", fields=_FIELDS)
        return Section("charts", "Charts", PATH, (page, export_of(page, "periods")))

    def show(self, visit: Visit) -> Shown:
        """Show the charts of the last weeks or months."""
        asked, by = visit.texts(), visit.text("by", "day")
        length = PERIODS[by][0]
        first_ms = period_begin(visit.now_ms, by) - (_COUNTS[by] - 1) * length
        segment = {name: asked[name] for name in SEGMENTS if name in asked}
        with self._opened.used() as (index, _):
            counted = index.period_counts(by, first_ms, visit.now_ms + 1, segment)
        # A period whose last payments are older than the delay has the outcomes that it will have.
        mature_ms = visit.now_ms - self._delay_days * DAY_MS
        rows = [
            {"begin_ms": one.begin_ms, "is_young": one.begin_ms + length > mature_ms}
            | {name: value for name, value in asdict(one).items() if name not in ("begin_ms", "review_s")}
            | {name: value for measure in MEASURES for name, value in measure.of(one).items()}
            for one in counted
        ]
        view = {
            "asked": asked,
            "by": by,
            "segments": SEGMENTS,
            "label_delay_days": self._delay_days,
            "periods": rows,
            "charts": [
                {"measure": asdict(measure), "drawing": _drawing(measure, rows, by, segment)} for measure in MEASURES
            ],
            "path": address(PATH, asked),
            "csv_path": visit.csv_address(PATH, asked),
            "state": self._opened.state_line,
        }
        return Shown("outcome_charts.html", view, "Charts")


def _drawing(
    measure: Measure, rows: Sequence[Mapping[str, Any]], by: str, segment: Mapping[str, str]
) -> Drawing | None:
    """Return a measure over time with its intervals; None without a value."""
    known = [row for row in rows if row[measure.name] is not None]
    if not known:
        return None
    length, first_ms = PERIODS[by][0], known[0]["begin_ms"]
    names = [time_text(at, "%m-%d") for at in range(first_ms, known[-1]["begin_ms"] + 1, length)]
    marks: list[PlotMark] = []
    top = 0.0
    for style, is_young in (("now", False), ("was", True)):
        points = [(place + 0.5, math.nan) for place in range(len(names))]
        hints = [""] * len(names)
        for row in known:
            if (measure.waits and row["is_young"]) != is_young:
                continue
            place, value = (row["begin_ms"] - first_ms) // length, row[measure.name]
            low, high = row.get(f"{measure.name}_low", value), row.get(f"{measure.name}_high", value)
            points[place] = (place + 0.5, value)
            hints[place] = f"{names[place]}: {number(value)}"
            if measure.is_share:
                hints[place] += f" ({number(low)} to {number(high)})"
                marks.append(Whisker(place + 0.5, low, high, style))
            top = max(top, high)
        marks.append(PlotLine(points, style, with_dots=True, hints=hints))
    young = [row["begin_ms"] for row in known if measure.waits and row["is_young"]]
    legend = [("now", "outcomes are in"), ("was", "young: outcomes still come in")] if young else []
    if young:
        marks.append(Upright((young[0] - first_ms) // length, "young"))
    where = "".join(f", {name} {value}" for name, value in segment.items())
    text = f"{measure.title} by {by}{where}: {measure.unit}"
    axes = step_axis(f"{by} (UTC)", names), linear_axis("", 0.0, top, number)
    return drawing_of(Plot(text, *axes, marks, legend))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
