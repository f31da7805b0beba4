"""The plots of a replay's report. Each has a caption that says what the plot shows and how to read it."""

from __future__ import annotations

from paywarden.models.metrics.comparison import DIFFERENCE_EDGES
from paywarden.models.metrics.curves import SCORE_EDGES
from paywarden.models.metrics.segments import GroupMeasures
from paywarden.models.replay.measures import ContestantMeasures, ReplayComparison, ReplayResults
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
    for style, measures in scorers(results):
        curve = measures.threshold_curve
        marks.append(PlotLine(list(zip(curve.recall, curve.precision, strict=True)), style))
    base = results.facts.frauds / results.facts.payments
    marks.append(PlotLine([(0, base), (1, base)], "ideal"))
    plot = Plot(
        "Precision against recall over all thresholds",
        linear_axis("recall: share of the frauds that score at or above", 0, 1, _percent_tick),
        linear_axis("precision: share of fraud among them", 0, 1, _percent_tick),
        marks,
        [*_legend(results), ("ideal", "picking at random")],
    )
    return Figure(
        "Precision and recall",
        drawing_of(plot),
        "Each point is a threshold. A lower threshold lies further right: it finds more of the fraud, but also flags "
        "more genuine payments. A higher line is better. The area under the line is the average precision.",
    )


def score_spread(measures: ContestantMeasures, *, has_outcomes: bool) -> Figure:
    histogram = measures.score_histogram
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
        edge_axis("score (higher bins are wider)", names),
        log_axis("payments (logarithmic)", 0.7, max(10.0, highest * 1.3), whole),
        marks,
        [(style, style) for style, _ in series] if has_outcomes else [("genuine", "payments")],
    )
    return Figure(
        "Scores by label" if has_outcomes else "Scores",
        drawing_of(plot),
        "The number of payments in each range of scores. The scale is logarithmic: each line up means ten times as "
        "many. A good model has the genuine payments on the left and the frauds on the right.",
    )


def actions_by_day(measures: ContestantMeasures) -> Figure:
    marks: list[PlotMark] = []
    for number, day in enumerate(measures.by_day):
        hint = f"{day.name}: {day.reviewed:,} reviewed and {day.declined:,} declined of {day.payments:,} payments"
        marks.append(Bar(number + 0.1, number + 0.9, 0, day.declined, "decline", hint))
        marks.append(Bar(number + 0.1, number + 0.9, day.declined, day.declined + day.reviewed, "review", hint))
    highest = max(day.declined + day.reviewed for day in measures.by_day)
    plot = Plot(
        "Reviewed and declined payments of each day",
        _day_axis(measures.by_day),
        linear_axis("payments", 0, max(highest, 1), whole),
        marks,
        [("decline", "declined"), ("review", "reviewed")],
    )
    return Figure(
        "Actions by day",
        drawing_of(plot),
        "Payments that were declined or sent to review; all others were approved. Reviews are work for analysts, and "
        "both are friction for customers.",
    )


def frauds_by_day(measures: ContestantMeasures) -> Figure:
    marks: list[PlotMark] = []
    for number, day in enumerate(measures.by_day):
        stopped = day.frauds_stopped
        hint = f"{day.name}: {stopped:,} of {day.frauds:,} frauds stopped"
        marks.append(Bar(number + 0.1, number + 0.9, 0, stopped, "stopped", hint))
        marks.append(Bar(number + 0.1, number + 0.9, stopped, day.frauds, "missed", hint))
    plot = Plot(
        "Frauds stopped and missed on each day",
        _day_axis(measures.by_day),
        linear_axis("frauds", 0, max(1, max(day.frauds for day in measures.by_day)), whole),
        marks,
        [("stopped", "stopped (reviewed or declined)"), ("missed", "missed (approved)")],
    )
    return Figure(
        "Frauds by day",
        drawing_of(plot),
        "Frauds among the payments made on each day. Labels take days to arrive, so some frauds of the last days may "
        "not be known yet.",
    )


def card_precision_by_day(results: ReplayResults) -> Figure:
    marks: list[PlotMark] = []
    for style, measures in scorers(results):
        days = [day.name for day in measures.by_day]
        points = [(number + 0.5, value) for number, value in enumerate(measures.card_precision_per_day)]
        hints = [f"{day}: {percent(y)}" for day, (_, y) in zip(days, points, strict=True)]
        marks.append(PlotLine(points, style, with_dots=len(points) <= 62, hints=hints))
    highest = max(max(measures.card_precision_per_day) for _, measures in scorers(results))
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
        "The share of compromised cards among the 100 cards with the highest scores of each day. A card that was found "
        "on one day is blocked and does not count again. A day with 20 compromised cards can reach at most 20%.",
    )


def calibration(results: ReplayResults) -> Figure:
    marks: list[PlotMark] = [PlotLine([(_SCORE_MIN, _SCORE_MIN), (1, 1)], "ideal")]
    for style, measures in scorers(results):
        curve = measures.reliability
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
        [*_legend(results), ("ideal", "perfect calibration")],
    )
    return Figure(
        "Calibration",
        drawing_of(plot),
        "Are 10% of the payments with a score near 10% fraud? On the dotted line they are. Above it there is more "
        "fraud than the score says, below it less. Vertical strokes are 95% intervals: a long one rests on few "
        "payments. Values below 0.1% are drawn at the edge.",
    )


def threshold_rates(results: ReplayResults, measures: ContestantMeasures) -> Figure:
    curve = measures.threshold_curve
    lines = (("first", curve.precision), ("second", curve.recall), ("third", curve.share))
    marks: list[PlotMark] = [PlotLine(_over_thresholds(curve.threshold, values), style) for style, values in lines]
    plot = Plot(
        "Precision, recall and share of payments against the threshold",
        _threshold_axis(),
        linear_axis("share", 0, 1, _percent_tick),
        [*marks, *_thresholds(results, measures)],
        [("first", "precision"), ("second", "recall"), ("third", "payments at or above")],
    )
    return Figure(
        "Precision and recall by threshold",
        drawing_of(plot),
        "For every possible threshold, three shares. Recall: the frauds that score at or above it, among all frauds. "
        "Precision: the frauds among the payments at or above it. Payments: those at or above it, among all payments.",
    )


def threshold_money(results: ReplayResults, measures: ContestantMeasures) -> Figure:
    curve, currency = measures.threshold_curve, results.facts.reference_currency
    nets = (("first", curve.net_if_reviewed_minor), ("second", curve.net_if_declined_minor))
    highest = max(max(net) for _, net in nets)
    # Very low thresholds have large losses. The axis leaves them out, so that useful thresholds stay readable.
    lowest = max(min(min(net) for _, net in nets), -highest / 2) if highest > 0 else min(min(net) for _, net in nets)
    axis = linear_axis(f"net, {currency}" if currency else "net", min(lowest, 0), max(highest, 0), short_amount)
    marks: list[PlotMark] = []
    for style, net in nets:
        visible = [value if value >= axis.low else float("nan") for value in net]
        marks.append(PlotLine(_over_thresholds(curve.threshold, visible), style))
    best = [
        f"{threshold_use} the best threshold is {decimal(threshold)}, with a net value of {money(net, currency)}."
        for threshold_use, (threshold, net) in (
            ("For reviews", _best(curve.threshold, curve.net_if_reviewed_minor)),
            ("For declines", _best(curve.threshold, curve.net_if_declined_minor)),
        )
    ]
    plot = Plot(
        "Net value against the threshold",
        _threshold_axis(),
        axis,
        [*marks, *_thresholds(results, measures)],
        [("first", "if all payments at or above are reviewed"), ("second", "if all are declined")],
    )
    return Figure(
        "Net value by threshold",
        drawing_of(plot),
        "Net value compared with approving everything, at the costs stated below: the loss avoided, minus the cost of "
        f"reviews or the margin of declined genuine payments. {best[0]} {best[1]}",
    )


def score_differences(comparison: ReplayComparison) -> Figure:
    return Figure(
        "Shift of scores",
        _differences(comparison.score_shift.counts, "challenger's score minus champion's", "challenger"),
        "Payments in the middle bar get the same score from both, to within 0.005. Payments on the right look more "
        "suspicious to the challenger, payments on the left less.",
    )


def live_differences(counts: list[int]) -> Figure:
    """`counts`: payments by replayed score minus live score, in the bins of DIFFERENCE_EDGES."""
    return Figure(
        "Scores, replayed and live",
        _differences(counts, "replayed score minus live score", "champion"),
        "Payments in the middle bar have the same score here as live, to within 0.005. Payments on the right look more "
        "suspicious in the replay than they did live, payments on the left less.",
    )


def _differences(counts: list[int], what: str, style: str) -> Drawing:
    """A histogram of score differences; `what` names the difference, for the axis."""
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
    """Returns (style, measures) of the champion and, if there is one, of the challenger."""
    both = (results.champion, results.challenger)
    return [(style, measures) for style, measures in zip(_STYLES, both, strict=True) if measures is not None]


def scorers(results: ReplayResults) -> list[tuple[str, ContestantMeasures]]:
    """Returns (style, measures) of each model: only the champion's if both contestants have the same model."""
    return contestants(results)[: 1 if results.is_of_one_model else 2]


def _legend(results: ReplayResults) -> list[tuple[str, str]]:
    shown = scorers(results)
    if results.is_of_one_model:
        return [(style, f"model {measures.model_version}") for style, measures in shown]
    return [(style, f"{style} {measures.model_version}") for style, measures in shown]


def _day_axis(days: list[GroupMeasures]) -> Axis:
    return step_axis("day (UTC)", [day.name for day in days])


def _threshold_axis() -> Axis:
    return log_axis("threshold: the lowest score it flags", _SCORE_MIN, 1, _small_tick)


def _thresholds(results: ReplayResults, measures: ContestantMeasures) -> list[Upright]:
    """The policies' thresholds to mark on curves of `measures`: those of both contestants if they share a model."""
    if results.challenger is None or not results.is_of_one_model:
        return [Upright(at, f"{name} at {at:.3g}") for name, at in _named_thresholds(measures)]
    whose: dict[tuple[str, float], list[str]] = {}
    for style, each in contestants(results):
        for named in _named_thresholds(each):
            whose.setdefault(named, []).append(style)
    return [
        Upright(at, f"{'both' if len(styles) > 1 else styles[0]}: {name} at {at:.3g}")
        for (name, at), styles in whose.items()
    ]


def _named_thresholds(measures: ContestantMeasures) -> tuple[tuple[str, float], ...]:
    return ("review", measures.review_at), ("decline", measures.decline_at)


def _over_thresholds(threshold: list[float], values: list[float] | list[int]) -> list[tuple[float, float]]:
    """The points that the axis shows, and the next one below its end, so that the line reaches the end."""
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
