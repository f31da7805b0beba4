"""The plots of a replay's report, each with its caption: what it shows and how to read it."""

from __future__ import annotations

from paywarden.models.metrics.comparison import DIFFERENCE_EDGES
from paywarden.models.metrics.curves import SCORE_EDGES
from paywarden.models.metrics.segments import GroupMeasures
from paywarden.models.replay.measures import Comparison, ContestantMeasures, ReplayResults
from paywarden.models.replay.report.page import Figure, decimal, money, percent, short_amount, whole
from paywarden.models.replay.report.plots import (
    Axis,
    Bar,
    Drawing,
    Plot,
    PlotLine,
    PlotMark,
    Upright,
    Whisker,
    drawing_of,
    edge_axis,
    linear_axis,
    log_axis,
    step_axis,
)

_SCORE_MIN = 0.001
_STYLES = ("champion", "challenger")


def precision_recall(results: ReplayResults) -> Figure:
    marks: list[PlotMark] = []
    for style, one in scorers(results):
        curve = one.threshold_curve
        marks.append(PlotLine(list(zip(curve.recall, curve.precision, strict=True)), style))
    base = results.facts.frauds / results.facts.payments
    marks.append(PlotLine([(0, base), (1, base)], "ideal"))
    plot = Plot(
        "Precision against recall over all thresholds",
        linear_axis("recall: share of frauds found", 0, 1, _percent_tick),
        linear_axis("precision: share of found that is fraud", 0, 1, _percent_tick),
        marks,
        [*_legend(results), ("ideal", "picking at random")],
    )
    return Figure(
        "Precision and recall",
        drawing_of(plot),
        "Each point is a threshold: going right finds more of the fraud, at the price of more genuine payments among "
        "what is found. Higher is better; the area under the line is the average precision.",
    )


def score_spread(one: ContestantMeasures, *, has_outcomes: bool) -> Figure:
    histogram = one.score_histogram
    series = [("genuine", histogram.genuine), *([("fraud", histogram.fraud)] if has_outcomes else [])]
    highest = max(max(counts) for _, counts in series)
    marks: list[PlotMark] = []
    width = 0.9 / len(series)
    for place, (style, counts) in enumerate(series):
        for number, count in enumerate(counts):
            if count:
                left = number + 0.05 + place * width
                edges = f"{SCORE_EDGES[number]:g} to {SCORE_EDGES[number + 1]:g}"
                hint = f"{count:,} {style} payments with a score from {edges}"
                marks.append(Bar(left, left + width, 0.7, count, style, hint))
    names = [f"{edge:g}".removeprefix("0") or "0" for edge in SCORE_EDGES]
    plot = Plot(
        "Payments by score and label, logarithmic counts",
        edge_axis("score (bins get wider upwards)", names),
        log_axis("payments (logarithmic)", 0.7, max(10.0, highest * 1.3), whole),
        marks,
        [(style, style) for style, _ in series] if has_outcomes else [("genuine", "payments")],
    )
    return Figure(
        "Scores by label" if has_outcomes else "Scores",
        drawing_of(plot),
        "How many payments got which score. The counts are logarithmic: each line up is ten times as many. A good "
        "model has its genuine payments on the left and its frauds on the right.",
    )


def actions_by_day(one: ContestantMeasures) -> Figure:
    marks: list[PlotMark] = []
    for number, day in enumerate(one.by_day):
        hint = f"{day.name}: {day.reviewed:,} reviewed, {day.declined:,} declined of {day.payments:,}"
        marks.append(Bar(number + 0.1, number + 0.9, 0, day.declined, "decline", hint))
        marks.append(Bar(number + 0.1, number + 0.9, day.declined, day.declined + day.reviewed, "review", hint))
    highest = max(day.declined + day.reviewed for day in one.by_day)
    plot = Plot(
        "Reviewed and declined payments of each day",
        _day_axis(one.by_day),
        linear_axis("payments", 0, max(highest, 1), whole),
        marks,
        [("decline", "declined"), ("review", "reviewed")],
    )
    return Figure(
        "Actions by day",
        drawing_of(plot),
        "Payments that were declined or sent to review; all others were approved. The height is the work and the "
        "friction of that day.",
    )


def frauds_by_day(one: ContestantMeasures) -> Figure:
    marks: list[PlotMark] = []
    for number, day in enumerate(one.by_day):
        stopped = day.frauds_stopped
        hint = f"{day.name}: {stopped:,} of {day.frauds:,} frauds stopped"
        marks.append(Bar(number + 0.1, number + 0.9, 0, stopped, "stopped", hint))
        marks.append(Bar(number + 0.1, number + 0.9, stopped, day.frauds, "missed", hint))
    plot = Plot(
        "Frauds stopped and missed on each day",
        _day_axis(one.by_day),
        linear_axis("frauds", 0, max(1, max(day.frauds for day in one.by_day)), whole),
        marks,
        [("stopped", "stopped (reviewed or declined)"), ("missed", "missed (approved)")],
    )
    return Figure(
        "Frauds by day",
        drawing_of(plot),
        "Frauds among the payments made on each day. In the last days few frauds may be known yet: labels take days "
        "to arrive.",
    )


def card_precision_by_day(results: ReplayResults) -> Figure:
    marks: list[PlotMark] = []
    for style, one in scorers(results):
        days = [day.name for day in one.by_day]
        points = [(number + 0.5, value) for number, value in enumerate(one.card_precision_per_day)]
        hints = [f"{day}: {percent(y)}" for day, (_, y) in zip(days, points, strict=True)]
        marks.append(PlotLine(points, style, with_dots=len(points) <= 62, hints=hints))
    highest = max(max(one.card_precision_per_day) for _, one in scorers(results))
    plot = Plot(
        "Card precision at 100 of each day",
        _day_axis(results.champion.by_day),
        linear_axis("card precision at 100", 0, max(highest, 0.01), _percent_tick),
        marks,
        () if results.is_of_one_model else _legend(results),
    )
    return Figure(
        "Card precision by day",
        drawing_of(plot),
        "Of the 100 cards with the highest scores of a day, the share that was truly compromised. A card found on "
        "one day is blocked and does not count again. A day with few compromised cards cannot reach a high value.",
    )


def calibration(results: ReplayResults) -> Figure:
    marks: list[PlotMark] = [PlotLine([(_SCORE_MIN, _SCORE_MIN), (1, 1)], "ideal")]
    for style, one in scorers(results):
        curve = one.reliability
        assert curve is not None
        points = list(zip(curve.mean_score, curve.fraud_share, strict=True))
        hints = [
            f"mean score {score:.4f}, {percent(share)} fraud of {count:,} payments"
            for (score, share), count in zip(points, curve.payments, strict=True)
        ]
        marks += [
            Whisker(x, low, high, style) for x, low, high in zip(curve.mean_score, curve.low, curve.high, strict=True)
        ]
        marks.append(PlotLine(points, style, with_dots=True, hints=hints))
    plot = Plot(
        "Share of frauds against mean score, logarithmic",
        log_axis("mean score of the bin", _SCORE_MIN, 1, _small_tick),
        log_axis("share of frauds in the bin", _SCORE_MIN, 1, _small_tick),
        marks,
        [*_legend(results), ("ideal", "a score that means what it says")],
    )
    return Figure(
        "Calibration",
        drawing_of(plot),
        "Of payments with a score near 10%, are 10% fraud? On the dotted line, yes; above it there is more fraud "
        "than the "
        "score says, below it less. The upright strokes are 95% intervals: long ones rest on few payments. What is "
        "below 0.1% is drawn at the edge.",
    )


def threshold_rates(results: ReplayResults, one: ContestantMeasures) -> Figure:
    curve = one.threshold_curve
    lines = (("first", curve.precision), ("second", curve.recall), ("third", curve.share))
    marks: list[PlotMark] = [PlotLine(_over_thresholds(curve.threshold, values), style) for style, values in lines]
    plot = Plot(
        "Precision, recall and share of payments over the threshold",
        _threshold_axis(),
        linear_axis("share", 0, 1, _percent_tick),
        [*marks, *_thresholds(results, one)],
        [("first", "precision"), ("second", "recall"), ("third", "payments at or above")],
    )
    return Figure(
        "What a threshold finds",
        drawing_of(plot),
        "For every possible threshold: the share of frauds that score at or above it (recall), the share of fraud "
        "among the payments that do (precision), and how many of all payments those are.",
    )


def threshold_money(results: ReplayResults, one: ContestantMeasures) -> Figure:
    curve, currency = one.threshold_curve, results.facts.reference_currency
    nets = (("first", curve.net_if_reviewed_minor), ("second", curve.net_if_declined_minor))
    highest = max(max(net) for _, net in nets)
    # Below every useful threshold nets fall far: show what can be chosen from.
    lowest = max(min(min(net) for _, net in nets), -highest / 2) if highest > 0 else min(min(net) for _, net in nets)
    axis = linear_axis(f"net, {currency}" if currency else "net", min(lowest, 0), max(highest, 0), short_amount)
    marks: list[PlotMark] = []
    for style, net in nets:
        visible = [value if value >= axis.low else float("nan") for value in net]
        marks.append(PlotLine(_over_thresholds(curve.threshold, visible), style))
    best = [
        f"{how} it is best at {decimal(threshold)}, with {money(net, currency)}"
        for how, (threshold, net) in (
            ("If all are reviewed", _best(curve.threshold, curve.net_if_reviewed_minor)),
            ("if all are declined", _best(curve.threshold, curve.net_if_declined_minor)),
        )
    ]
    plot = Plot(
        "Net money over the threshold",
        _threshold_axis(),
        axis,
        [*marks, *_thresholds(results, one)],
        [("first", "if all at or above are reviewed"), ("second", "if all are declined")],
    )
    return Figure(
        "What a threshold is worth",
        drawing_of(plot),
        "Loss avoided less the cost of reviews, or less the margin of declined genuine payments, against approving "
        f"everything, at the costs stated below. {best[0]}; {best[1]}.",
    )


def score_differences(comparison: Comparison) -> Figure:
    return Figure(
        "Shift of scores",
        _differences(comparison.score_shift.counts, "challenger's score minus champion's", "challenger"),
        "Payments in the middle bar get the same score from both, to within 0.005. On the right the challenger is more "
        "suspicious, on the left less.",
    )


def live_differences(counts: list[int]) -> Figure:
    """`counts` by DIFFERENCE_EDGES, of replayed scores less the live ones."""
    return Figure(
        "Scores, replayed and live",
        _differences(counts, "replayed score minus live score", "champion"),
        "Payments in the middle bar have the same score here as live, to within 0.005. On the right the replay is more "
        "suspicious than the live system was, on the left less.",
    )


def _differences(counts: list[int], what: str, style: str) -> Drawing:
    """Payments by the difference of two scores; `what` says of which."""
    marks: list[PlotMark] = [
        Bar(
            number + 0.05,
            number + 0.95,
            0.7,
            count,
            style,
            f"{count:,} payments: {DIFFERENCE_EDGES[number]:+g} to {DIFFERENCE_EDGES[number + 1]:+g}",
        )
        for number, count in enumerate(counts)
        if count
    ]
    edges = [f"{edge:g}".replace("0.", ".").replace("-", "−") for edge in DIFFERENCE_EDGES]
    plot = Plot(
        f"{what[0].upper()}{what[1:]}, logarithmic counts",
        edge_axis(what, edges),
        log_axis("payments (logarithmic)", 0.7, max(10.0, max(counts) * 1.3), whole),
        marks,
    )
    return drawing_of(plot)


def contestants(results: ReplayResults) -> list[tuple[str, ContestantMeasures]]:
    """(style, measures) of those there are."""
    both = (results.champion, results.challenger)
    return [(style, one) for style, one in zip(_STYLES, both, strict=True) if one is not None]


def scorers(results: ReplayResults) -> list[tuple[str, ContestantMeasures]]:
    """The same, but one model once."""
    return contestants(results)[: 1 if results.is_of_one_model else 2]


def _legend(results: ReplayResults) -> list[tuple[str, str]]:
    shown = scorers(results)
    if results.is_of_one_model:
        return [(style, f"model {one.model_version}") for style, one in shown]
    return [(style, f"{style} {one.model_version}") for style, one in shown]


def _day_axis(days: list[GroupMeasures]) -> Axis:
    return step_axis("day (UTC)", [day.name for day in days])


def _threshold_axis() -> Axis:
    return log_axis("threshold: score from which on", _SCORE_MIN, 1, _small_tick)


def _thresholds(results: ReplayResults, one: ContestantMeasures) -> list[Upright]:
    """The thresholds to mark on curves of `one`: of both contestants where both have these scores."""
    if results.challenger is None or not results.is_of_one_model:
        return [Upright(at, f"{name} at {at:.3g}") for name, at in _named_thresholds(one)]
    whose: dict[tuple[str, float], list[str]] = {}
    for style, each in contestants(results):
        for named in _named_thresholds(each):
            whose.setdefault(named, []).append(style)
    return [
        Upright(at, f"{'both' if len(styles) > 1 else styles[0]}: {name} at {at:.3g}")
        for (name, at), styles in whose.items()
    ]


def _named_thresholds(one: ContestantMeasures) -> tuple[tuple[str, float], ...]:
    return ("review", one.review_at), ("decline", one.decline_at)


def _over_thresholds(threshold: list[float], values: list[float] | list[int]) -> list[tuple[float, float]]:
    """Points of thresholds that the axis shows, and the first below it."""
    points = [(x, float(y)) for x, y in zip(threshold, values, strict=True)]
    shown = [point for point in points if point[0] >= _SCORE_MIN]
    return shown + points[len(shown) : len(shown) + 1]


def _best(threshold: list[float], net: list[int]) -> tuple[float, int]:
    best = max(range(len(net)), key=net.__getitem__)
    return threshold[best], net[best]


def _percent_tick(share: float) -> str:
    return f"{100 * share:g}%"


def _small_tick(share: float) -> str:
    return f"{share:g}"
