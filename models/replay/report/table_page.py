"""A page about a table of payments, before anything is trained on it: one HTML file without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from paywarden.features.tables.conversion import ConversionReport
from paywarden.features.tables.labels import FRAUD, GENUINE
from paywarden.features.tables.profile import (
    DAY_MS,
    DELAY_EDGES_DAYS,
    ENTITY_QUANTILES,
    CategoryCounts,
    DayCounts,
    TableProfile,
)
from paywarden.models.replay.report.page import (
    NO_NUMBER,
    Card,
    Figure,
    FigureCards,
    Figures,
    Heading,
    PageBlock,
    PageTable,
    Paragraph,
    count_of,
    notice,
    percent,
    whole,
)
from paywarden.models.replay.report.plots import (
    Bar,
    Plot,
    PlotMark,
    drawing_of,
    edge_axis,
    linear_axis,
    step_axis,
)
from paywarden.models.replay.report.renderer import render_page
from paywarden.schemas.payment_fields import Form

# A wider plot has no room for more bars than this; days are then weeks.
_BARS_MAX = 180
_TOP_VALUES = 12
_REASONS_SHOWN = 30
# Days without a label near the end of the data.
_LABELLED_LOW = 0.5


def table_page(profile: TableProfile, report: ConversionReport, files: Sequence[str]) -> str:
    """Returns the page. It names no value of an id or of a personal field."""
    blocks: list[PageBlock] = [
        Paragraph(_lead(profile, files), "lead"),
        FigureCards(_cards(profile, report)),
        *_warnings(profile, report),
        Heading("Time"),
        Figures([_payments_by_day(profile), _frauds_by_day(profile)]),
        *_gaps(profile),
        Heading("Labels"),
        *_labels(profile),
        Heading("Amounts"),
        _amounts(profile),
        Heading("Cards, merchants and other entities"),
        *_entities(profile),
        Heading("Fields"),
        _fields(profile),
        *_categories(profile),
        *_refused(report),
    ]
    return render_page(title="Payments of a table", heading="Payments of a table", blocks=blocks)


def _lead(profile: TableProfile, files: Sequence[str]) -> str:
    name = files[0] if len(files) == 1 else f"{files[0]} and {count_of(len(files) - 1, 'file')} more"
    days = (profile.last_ms - profile.first_ms) / DAY_MS
    return (
        f"{count_of(profile.payments, 'payment')} of {name}, from {_spoken(profile.first_ms)} to "
        f"{_spoken(profile.last_ms)} UTC: {days:,.1f} days."
    )


def _cards(profile: TableProfile, report: ConversionReport) -> list[Card]:
    cards, labelled = profile.entities["card_id"], report.frauds + report.genuine
    return [
        Card("Payments", whole(profile.payments), f"of {count_of(report.rows, 'row')}"),
        Card("Fraud", percent(_share(report.frauds, labelled), 2), f"{whole(report.frauds)} of those with a label"),
        Card("Not known", percent(_share(report.unknown, profile.payments)), "of the payments have no label"),
        Card(
            "Cards", _about(cards.distinct, cards.is_exact), f"{_per(profile.payments, cards.distinct)} payments each"
        ),
        Card("Refused", whole(report.refused), "rows that are no payments"),
        Card("Repeated", whole(report.repeated), "rows that were there before"),
    ]


def _warnings(profile: TableProfile, report: ConversionReport) -> list[PageBlock]:
    said = []
    if report.frauds == 0:
        said.append("No payment is a known fraud: nothing can be trained on this table.")
    elif report.frauds < 100:
        said.append(f"Only {count_of(report.frauds, 'fraud')}: measures of few frauds say little.")
    cards = profile.entities["card_id"]
    if cards.distinct and profile.payments / cards.distinct < 1.5:
        said.append("Most cards have a single payment: features of a card's past will know nothing. Is the id right?")
    if cards.distinct == 1:
        said.append("All payments are of one card. Which column is the card, the customer or the account?")
    if (start := _first_unlabelled(profile)) and report.genuine:
        said.append(
            f"From {start} on, fewer than half of the payments have a label. Measure on the days before: frauds that "
            "nobody has reported yet look genuine."
        )
    return [notice(text) for text in said]


def _first_unlabelled(profile: TableProfile) -> str:
    """Returns the first day of an end of the data where labels are rare; empty without one."""
    found = ""
    for day in sorted(profile.days, reverse=True):
        counts = profile.days[day]
        if (counts.frauds + counts.genuine) / counts.payments >= _LABELLED_LOW:
            break
        found = _date(day)
    return found


def _by_step(profile: TableProfile) -> tuple[str, list[tuple[str, DayCounts]]]:
    """Returns (day or a longer step, its counts each), with days without a payment."""
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


def _gaps(profile: TableProfile) -> list[PageBlock]:
    rows = [[_spoken(start), _spoken(start + length), _duration(length)] for length, start in profile.gaps]
    empty = max(profile.days) - min(profile.days) + 1 - len(profile.days)
    said = f"{count_of(empty, 'day')} of {max(profile.days) - min(profile.days) + 1} without a payment."
    if not rows:
        return [Paragraph(said)]
    return [Paragraph(said), PageTable(["last payment", "next payment", "time between"], rows, "Longest gaps",
                                       text_columns=2, is_full=False)]  # fmt: skip


def _labels(profile: TableProfile) -> list[PageBlock]:
    fraud, genuine = profile.delays[FRAUD], profile.delays[GENUINE]
    if not int(fraud.sum() + genuine.sum()):
        return [Paragraph("No payment has a label.")]
    figures = []
    for title, style, counts in (("Frauds", "fraud", fraud), ("Genuine payments", "genuine", genuine)):
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
    return [Figures(figures)]


def _median_delay(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    number = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    if number + 1 == len(DELAY_EDGES_DAYS):
        return f"the median delay is {DELAY_EDGES_DAYS[-1]} days or more"
    return f"the median delay is {DELAY_EDGES_DAYS[number]} to {DELAY_EDGES_DAYS[number + 1]} days"


def _amounts(profile: TableProfile) -> PageTable:
    rows = []
    for name, payments in profile.amount_payments.most_common(_TOP_VALUES):
        found = [f"{one:,.0f}" for one in profile.amounts[name].quantiles()]
        rows.append([name, whole(payments), *found])
    heads = ["currency", "payments", "least", "1 %", "25 %", "median", "75 %", "99 %", "largest"]
    return PageTable(heads, rows, "In minor units of each currency: 1,999 is EUR 19.99")


def _entities(profile: TableProfile) -> list[PageBlock]:
    rows = []
    for name, counts in profile.entities.items():
        if not counts.distinct:
            continue
        there = profile.payments - profile.missing[name]
        quantiles = [whole(one) for one in counts.quantiles(ENTITY_QUANTILES)]
        rows.append([name, _about(counts.distinct, counts.is_exact), percent(counts.once),
                     _per(there, counts.distinct), *quantiles])  # fmt: skip
    said = (
        "Payments of one value. Features of a card look at the payments before: a card with one payment has none. "
        "A value with very many payments may be a placeholder."
    )
    heads = ["field", "values", "with one payment", "mean", "median", "90 %", "99 %", "largest"]
    return [Paragraph(said), PageTable(heads, rows)]


def _fields(profile: TableProfile) -> PageTable:
    rows = []
    for name in profile.present:
        field, missing = profile.fields[name], profile.missing[name]
        numbers = profile.numbers.get(name)
        quantiles = numbers.quantiles() if numbers is not None and not field.is_personal else []
        is_time = field.form is Form.INSTANT
        said = [_spoken(int(one)) if is_time else f"{one:,g}" for one in quantiles]
        shown = [said[0], said[3], said[-1]] if said else [NO_NUMBER] * 3
        distinct = profile.entities.get(name)
        values = (
            _about(distinct.distinct, distinct.is_exact) if distinct is not None else _category_count(profile, name)
        )
        rows.append([name, field.form.value, percent(missing / profile.payments), values, *shown])
    heads = ["field", "form", "missing", "values", "least", "median", "largest"]
    return PageTable(heads, rows, text_columns=2)


def _category_count(profile: TableProfile, name: str) -> str:
    counts = profile.categories.get(name)
    if counts is None:
        return NO_NUMBER
    return "many" if counts.values is None else whole(len(counts.values))


def _categories(profile: TableProfile) -> list[PageBlock]:
    blocks: list[PageBlock] = []
    for name, counts in profile.categories.items():
        if counts.values and len(counts.values) > 1:
            blocks.append(_category(name, counts, profile.payments))
    if blocks:
        blocks.insert(0, Heading("Values, and their share of fraud", 3))
    return blocks


def _category(name: str, counts: CategoryCounts, payments: int) -> PageTable:
    assert counts.values is not None
    ordered = sorted(counts.values.items(), key=lambda entry: (-entry[1][0], entry[0]))
    rows = [
        [value, whole(of), percent(of / payments), whole(frauds), percent(_share(frauds, frauds + genuine), 2)]
        for value, (of, frauds, genuine) in ordered[:_TOP_VALUES]
    ]
    rest = len(ordered) - len(rows)
    caption = f"{name}: the {_TOP_VALUES} most frequent of {len(ordered)} values" if rest > 0 else name
    return PageTable([name, "payments", "share", "frauds", "fraud share"], rows, caption)


def _refused(report: ConversionReport) -> list[PageBlock]:
    if not report.refused:
        return []
    rows = [
        [reason, whole(count), "; ".join(report.examples[reason])]
        for reason, count in report.reasons.most_common(_REASONS_SHOWN)
    ]
    text = f"{count_of(report.refused, 'row')} of {whole(report.rows)} are no payments. refused.csv lists them all."
    return [Heading("Refused rows"), Paragraph(text), PageTable(["reason", "rows", "first ones"], rows)]


def _share(part: float, of: float) -> float:
    return part / of if of else float("nan")


def _about(count: int, is_exact: bool) -> str:
    return whole(count) if is_exact else f"about {whole(count)}"


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
