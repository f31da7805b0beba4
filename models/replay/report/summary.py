"""What a replay says for people when it ends: two contestants side by side, and scores that are far off."""

from __future__ import annotations

import math

from paywarden.models.metrics.curves import MeanCalibration
from paywarden.models.replay.measures import ContestantMeasures, ReplayFacts, ReplayResults
from paywarden.models.replay.report.page import NO_NUMBER, amount, decimal, percent, whole

# With more payments than that share without an outcome, the frauds that are still to come may explain the ratio.
_OPEN_SHARE = 0.01


def side_by_side(results: ReplayResults) -> list[tuple[str, str, str]]:
    """(measure, champion's, challenger's), first a line of headings; empty without a challenger."""
    champion, challenger = results.champion, results.challenger
    if challenger is None:
        return []
    lines = list(zip(_measures(results.facts, champion), _measures(results.facts, challenger), strict=True))
    return [("", "champion", "challenger"), *((name, before, after) for (name, before), (_, after) in lines)]


def _measures(facts: ReplayFacts, one: ContestantMeasures) -> list[tuple[str, str]]:
    of_decisions = [
        ("model", one.model_version),
        ("policy", one.policy),
        ("reviewed", f"{whole(one.whole.reviewed)} ({percent(one.whole.reviewed / one.whole.payments)})"),
        ("declined", f"{whole(one.whole.declined)} ({percent(one.whole.declined / one.whole.payments)})"),
    ]
    if one.whole.money is None:
        return of_decisions
    return [
        *of_decisions,
        ("frauds stopped (recall)", percent(one.whole.recall)),
        ("precision of what is stopped", percent(one.whole.precision)),
        (f"net value {facts.reference_currency}".rstrip(), amount(one.whole.money.net_minor)),
        ("AUC ROC", decimal(one.auc_roc, 4)),
        ("average precision", decimal(one.average_precision, 4)),
        ("card precision at 100", percent(one.card_precision_at_100)),
        ("mean score by share of frauds", NO_NUMBER if one.calibration is None else ratio_text(one.calibration.ratio)),
    ]


def calibration_warning(facts: ReplayFacts, one: ContestantMeasures, *, whose: str = "The scores") -> str:
    """A sentence or two where the scores are far off as probabilities; empty where they are not."""
    calibration = one.calibration
    if calibration is None or not calibration.is_far_off:
        return ""
    said = f"{whose} are far off as probabilities: {calibration_text(calibration)}."
    open_share = facts.without_outcome / facts.payments
    if calibration.ratio > 1 and open_share > _OPEN_SHARE:
        said += f" {percent(open_share)} of the payments have no outcome and count as genuine."
    return said


def calibration_text(calibration: MeanCalibration, *, who: str = "they") -> str:
    """What the scores promised, what came, and how far the two are apart."""
    promised, came = percent(calibration.mean_score, 2), percent(calibration.fraud_share, 2)
    low, high = ratio_text(calibration.ratio_low), ratio_text(calibration.ratio_high)
    ratio = f"a ratio of {ratio_text(calibration.ratio)} (95% interval {low} to {high})"
    return f"{who} promise {promised} fraud and {came} came, {ratio}"


def ratio_text(ratio: float) -> str:
    """1.86, or the sign of what has no end."""
    return decimal(ratio, 2) if math.isfinite(ratio) else "∞"
