"""A page about a table of payments, before anything is trained on it: one HTML file without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from paywarden.features.tables.conversion import ConversionReport
from paywarden.features.tables.labels import FRAUD, GENUINE
from paywarden.features.tables.profile import (
    DAY_MS,
    DELAY_EDGES_DAYS,
    ENTITY_QUANTILES,
    DayCounts,
    TableProfile,
)
from paywarden.models.replay.report.page import NO_NUMBER, Figure, count_of, percent, whole
from paywarden.models.replay.report.plots import (
    Bar,
    Plot,
    PlotMark,
    drawing_of,
    edge_axis,
    linear_axis,
    step_axis,
)
from paywarden.models.replay.report.renderer import render
from paywarden.schemas.payment_fields import Form

# A wider plot has no room for more bars than this; days are then weeks.
_BARS_MAX = 180
_TOP_VALUES = 12
_REASONS_SHOWN = 30
# Days without a label near the end of the data.
_LABELLED_LOW = 0.5


def table_page(profile: TableProfile, report: ConversionReport, files: Sequence[str]) -> str:
    """Return the page. It names no value of an id or of a personal field."""
    cards, labelled = profile.entities["card_id"], report.frauds + report.genuine
    span = max(profile.days) - min(profile.days) + 1
    return render(
        "table.html",
        title="Payments of a table",
        profile=profile,
        report=report,
        files=files,
        days=(profile.last_ms - profile.first_ms) / DAY_MS,
        span=span,
        empty_days=span - len(profile.days),
        cards=cards,
        labelled=labelled,
        per_card=_per(profile.payments, cards.distinct),
        start=_first_unlabelled(profile),
        share=_share,
        spoken=_spoken,
        time_figures=[_payments_by_day(profile), _frauds_by_day(profile)],
        gaps=[[_spoken(start), _spoken(start + length), _duration(length)] for length, start in profile.gaps],
        label_figures=_label_figures(profile),
        amounts=_amount_rows(profile),
        entities=_entity_rows(profile),
        fields=_field_rows(profile),
        categories=[
            _category(name, counts, profile.payments)
            for name, counts in profile.categories.items()
            if counts is not None and len(counts) > 1
        ],
        reasons=[
            [reason, whole(count), "; ".join(report.examples[reason])]
            for reason, count in report.reasons.most_common(_REASONS_SHOWN)
        ],
    )


def _first_unlabelled(profile: TableProfile) -> str:
    """Return the first day of an end of the data where labels are rare; empty without one."""
    found = ""
    for day in sorted(profile.days, reverse=True):
        counts = profile.days[day]
        if (counts.frauds + counts.genuine) / counts.payments >= _LABELLED_LOW:
            break
        found = _date(day)
    return found


def _by_step(profile: TableProfile) -> tuple[str, list[tuple[str, DayCounts]]]:
    """Return (day or a longer step, its counts each), with days without a payment."""
    first, last = min(profile.days), max(profile.days)
    size = next(size for size in (1, 7, 28, 364, 3640) if (last - first) // size < _BARS_MAX)
    steps = []
    for start in range(first, last + 1, size):
        within = [profile.days[day] for day in range(start, start + size) if day in profile.days]
        total = DayCounts(
            *(sum(values) for values in zip(*((d.payments, d.frauds, d.genuine) for d in within), strict=True))
        )
        steps.append((_date(start), total))
    return {1: "day", 7: "week", 28: "four weeks"}.get(size, f"{size} days"), steps


def _payments_by_day(profile: TableProfile) -> Figure:
    step, steps = _by_step(profile)
    marks: list[PlotMark] = []
    for number, (name, counts) in enumerate(steps):
        labelled = counts.frauds + counts.genuine
        hint = f"{name}: {count_of(counts.payments, 'payment')}, {whole(labelled)} with a label"
        marks.append(Bar(number + 0.05, number + 0.95, 0, labelled, "genuine", hint))
        marks.append(Bar(number + 0.05, number + 0.95, labelled, counts.payments, "review", hint))
    plot = Plot(
        f"Payments by {step}",
        step_axis(f"{step} (UTC)", [name for name, _ in steps]),
        linear_axis("payments", 0, max(counts.payments for _, counts in steps), whole),
        marks,
        [("genuine", "with a label"), ("review", "label not known")],
    )
    caption = (
        f"Payments of each {step}. A hole is a time without data; a slope at an end is a day that is not whole. Labels "
        "that are missing at the end are still to come."
    )
    return Figure(f"Payments by {step}", drawing_of(plot), caption)


def _frauds_by_day(profile: TableProfile) -> Figure:
    step, steps = _by_step(profile)
    marks: list[PlotMark] = []
    for number, (name, counts) in enumerate(steps):
        share = percent(_share(counts.frauds, counts.frauds + counts.genuine), 2)
        hint = f"{name}: {count_of(counts.frauds, 'fraud')}, {share} of the payments with a label"
        marks.append(Bar(number + 0.05, number + 0.95, 0, counts.frauds, "fraud", hint))
    plot = Plot(
        f"Frauds by {step}",
        step_axis(f"{step} (UTC)", [name for name, _ in steps]),
        linear_axis("frauds", 0, max(1, max(counts.frauds for _, counts in steps)), whole),
        marks,
        [("fraud", "fraud")],
    )
    return Figure(
        f"Frauds by {step}", drawing_of(plot), "Known frauds, on the day of the payment and not of the report."
    )


def _label_figures(profile: TableProfile) -> list[Figure]:
    figures = []
    for title, style, label in (("Frauds", "fraud", FRAUD), ("Genuine payments", "genuine", GENUINE)):
        counts = profile.delays[label]
        total = int(counts.sum())
        if not total:
            continue
        edges = [str(edge) for edge in DELAY_EDGES_DAYS]
        marks: list[PlotMark] = []
        for number, count in enumerate(counts.tolist()):
            until = f"to {edges[number + 1]}" if number + 1 < len(edges) else "or more"
            hint = f"{edges[number]} {until} days: {whole(count)}, {percent(count / total)}"
            marks.append(Bar(number + 0.05, number + 0.95, 0, count / total, style, hint))
        plot = Plot(
            f"{title} by the delay of their label",
            edge_axis("days from the payment to its label (wider to the right)", [*edges, "…"]),
            linear_axis("share", 0, max(0.01, float(counts.max()) / total), lambda share: f"{100 * share:g}%"),
            marks,
            [(style, title.lower())],
        )
        caption = f"{whole(total)} labels; {_median_delay(counts)}. A feature may use a label only when it was known."
        figures.append(Figure(f"{title}: how late the label is", drawing_of(plot), caption))
    return figures


def _median_delay(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    number = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    if number + 1 == len(DELAY_EDGES_DAYS):
        return f"the median delay is {DELAY_EDGES_DAYS[-1]} days or more"
    return f"the median delay is {DELAY_EDGES_DAYS[number]} to {DELAY_EDGES_DAYS[number + 1]} days"


def _amount_rows(profile: TableProfile) -> list[list[str]]:
    return [
        [name, whole(payments), *(f"{one:,.0f}" for one in quantiles)]
        for name, (payments, quantiles) in list(profile.amounts.items())[:_TOP_VALUES]
    ]


def _entity_rows(profile: TableProfile) -> list[list[str]]:
    rows = []
    for name, counts in profile.entities.items():
        if counts.distinct:
            mean = _per(profile.payments - profile.missing[name], counts.distinct)
            quantiles = [whole(one) for one in counts.quantiles(ENTITY_QUANTILES)]
            rows.append([name, whole(counts.distinct), percent(counts.once), mean, *quantiles])
    return rows


def _field_rows(profile: TableProfile) -> list[list[str]]:
    rows = []
    for name in profile.present:
        field, missing = profile.fields[name], profile.missing[name]
        quantiles = [] if field.is_personal else profile.numbers.get(name, [])
        is_time = field.form is Form.INSTANT
        said = [_spoken(int(one)) if is_time else f"{one:,g}" for one in quantiles]
        shown = [said[0], said[3], said[-1]] if said else [NO_NUMBER] * 3
        distinct = profile.entities.get(name)
        values = whole(distinct.distinct) if distinct is not None else _category_count(profile, name)
        rows.append([name, field.form.value, percent(missing / profile.payments), values, *shown])
    return rows


def _category_count(profile: TableProfile, name: str) -> str:
    if name not in profile.categories:
        return NO_NUMBER
    counts = profile.categories[name]
    return "many" if counts is None else whole(len(counts))


def _category(name: str, counts: Mapping[str, DayCounts], payments: int) -> tuple[str, str, list[list[str]]]:
    """Return a field's name, the caption of its table, and the rows of its most frequent values."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1].payments, entry[0]))
    rows = [
        [value, whole(of), percent(of / payments), whole(frauds), percent(_share(frauds, frauds + genuine), 2)]
        for value, (of, frauds, genuine) in ordered[:_TOP_VALUES]
    ]
    is_cut = len(ordered) > len(rows)
    return name, f"{name}: the {_TOP_VALUES} most frequent of {len(ordered)} values" if is_cut else name, rows


def _share(part: float, of: float) -> float:
    return part / of if of else float("nan")


def _per(payments: int, count: int) -> str:
    return f"{payments / count:,.1f}" if count else NO_NUMBER


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_MS / 1000, UTC).strftime("%Y-%m-%d")


def _spoken(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _duration(length_ms: int) -> str:
    for size, name in ((DAY_MS, "days"), (3_600_000, "h"), (60_000, "min")):
        if length_ms >= size:
            return f"{length_ms / size:,.1f} {name}"
    return f"{length_ms / 1000:,.1f} s"
