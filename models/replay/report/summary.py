"""The summary that a replay prints: the two contestants side by side, and a warning for badly calibrated scores."""

from __future__ import annotations

import math
from collections.abc import Callable

from paywarden.models.metrics.curves import MeanCalibration
from paywarden.models.metrics.intervals import FRAUDS_FEW, Interval
from paywarden.models.metrics.policy_value import PER
from paywarden.models.replay.measures import HANDBOOK, ContestantMeasures, ReplayFacts, ReplayResults
from paywarden.models.replay.report.page import NO_NUMBER, amount, count_of, decimal, percent, whole
from paywarden.models.replay.stops import LISTS, MODEL, RULES

# If more than this share of the payments has no outcome, frauds that are not known yet may explain the ratio.
_OPEN_SHARE = 0.01


def side_by_side(results: ReplayResults) -> list[tuple[str, str, str]]:
    """Returns lines (measure, champion's, challenger's). The first line holds headings. Empty without a challenger."""
    champion, challenger = results.champion, results.challenger
    if challenger is None:
        return []
    lines = list(zip(_measures(results.facts, champion), _measures(results.facts, challenger), strict=True))
    return [("", "champion", "challenger"), *((name, before, after) for (name, before), (_, after) in lines)]


def _measures(facts: ReplayFacts, measures: ContestantMeasures) -> list[tuple[str, str]]:
    decided, calibration = measures.whole, measures.calibration
    lines = [
        ("model", measures.model_version),
        ("policy", measures.policy),
        ("reviewed", f"{whole(decided.reviewed)} ({percent(decided.reviewed / decided.payments)})"),
        ("declined", f"{whole(decided.declined)} ({percent(decided.declined / decided.payments)})"),
    ]
    if decided.money is None:
        return lines
    return [
        *lines,
        ("frauds stopped (recall)", percent(decided.recall)),
        ("precision of stopped payments", percent(decided.precision)),
        (f"net value {facts.reference_currency}".rstrip(), amount(decided.money.net_minor)),
        ("AUC ROC", decimal(measures.auc_roc, 4)),
        ("average precision", decimal(measures.average_precision, 4)),
        ("card precision at 100", percent(measures.card_precision_at_100)),
        ("mean score / fraud share", NO_NUMBER if calibration is None else ratio_text(calibration.ratio)),
    ]


def calibration_warning(facts: ReplayFacts, measures: ContestantMeasures, *, whose: str = "The scores") -> str:
    """Returns a warning if the scores are badly calibrated as a whole; else an empty text."""
    calibration = measures.calibration
    if calibration is None or not calibration.is_far_off:
        return ""
    text = f"{whose} are far off as probabilities: {calibration_text(calibration)}."
    open_share = facts.without_outcome / facts.payments
    if calibration.ratio > 1 and open_share > _OPEN_SHARE:
        text += f" {percent(open_share)} of the payments have no outcome and count as genuine."
    return text


def measured_text(facts: ReplayFacts) -> str:
    """Returns which payments are measured, and how many frauds: "all 9,120 payments, 63 frauds among them"."""
    counts = f"{whole(facts.payments)} payments"
    if facts.protocol == HANDBOOK:
        counts += " of cards not yet known to be compromised (the handbook's protocol)"
    elif facts.left_out_unknown:
        counts += " whose label is known"
    else:
        counts = f"all {counts}"
    if facts.has_outcomes:
        counts += f", {count_of(facts.frauds, 'fraud')} among them"
    if facts.profile_lag == "0":
        return counts
    hosts = f", overlay on {count_of(facts.overlay_hosts, 'host')}" if facts.overlay_hosts else ""
    return f"{counts}; profiles lag behind: {facts.profile_lag}{hosts}"


def missed_lines(measures: ContestantMeasures) -> list[str]:
    """Returns lines about first frauds, bursts, the value detected and who stopped what; empty without outcomes."""
    strikes = "; ".join(
        f"{found.stopped:,} of {count_of(found.frauds, 'first fraud')} of a {name} stopped "
        f"({percent(found.recall)}{interval_text(found.recall_interval, percent)})"
        for name, found in measures.first_strikes.items()
        if found.frauds
    )
    bursts = "; ".join(found.in_words(name) for name, found in measures.bursts.items() if found.bursts)
    detected = [found.in_words() for found in measures.detected] if measures.whole.frauds else []
    return [*filter(None, (strikes, bursts)), *detected, *filter(None, [stops_text(measures)])]


def stops_text(measures: ContestantMeasures) -> str:
    """Returns who stopped the frauds; an empty text if only the model stops payments."""
    found = measures.stops
    if found is None or not (found.by[LISTS].payments or found.by[RULES].payments):
        return ""
    lists, model, rules = (whole(found.by[kind].frauds) for kind in (LISTS, MODEL, RULES))
    return (
        f"frauds stopped by lists {lists}, by the model {model}, by rules alone {rules}; of the frauds that no list "
        f"stopped, model and rules stop {percent(found.unlisted_recall)}"
        f"{interval_text(found.unlisted_recall_interval, percent)}"
    )


def weighted_text(measures: ContestantMeasures) -> str:
    """Returns the figures with each payment standing for 1 / propensity; an empty text where all weigh alike."""
    found = measures.weighted
    if found is None or found.effective_payments >= found.payments:
        return ""
    interval = interval_text(found.average_precision_interval, lambda value: decimal(value, 4))
    return (
        f"each payment stands for 1 / propensity payments: {percent(found.fraud_share)} fraud, "
        f"AUC ROC {decimal(found.auc_roc, 4)}, average precision {decimal(found.average_precision, 4)}{interval}; as "
        f"certain as {whole(round(found.effective_payments))} payments with "
        f"{count_of(round(found.effective_frauds), 'fraud')} of one weight"
    )


def value_lines(results: ReplayResults) -> list[str]:
    """Returns lines about the values of policies by propensities; empty where there are too few explored payments."""
    gain = None if results.comparison is None else results.comparison.value_gain
    challenger = None if results.challenger is None else results.challenger.policy_value
    named = (
        ("the policy gains", results.champion.policy_value),
        ("the challenger's policy gains", challenger),
        ("that is a difference of", gain),
    )
    return [
        f"by propensities {what} {amount(value.value_minor)} {results.facts.reference_currency} in {PER:,} payments"
        f"{interval_text(value.value_minor_interval, amount)}"
        for what, value in named
        if value is not None
    ]


def measured_lines(results: ReplayResults) -> list[str]:
    """Returns the lines that a replay prints about the basis of its numbers."""
    facts, group = results.facts, results.champion.whole
    lines = [f"measured: {measured_text(facts)}"]
    if facts.left_out_unknown:
        lines.append(f"left out: {whole(facts.left_out_unknown)} payments without an outcome, whose label is not known")
    if facts.has_outcomes and facts.without_outcome:
        lines.append(f"{whole(facts.without_outcome)} payments without an outcome were taken for genuine")
    for whose, measures in (("", results.champion), ("the challenger's: ", results.challenger)):
        if measures is not None and (weighted := weighted_text(measures)):
            lines.append(f"weighted: {whose}{weighted}")
    lines += [*value_lines(results), *missed_lines(results.champion)]
    if facts.has_outcomes and 0 < facts.frauds < FRAUDS_FEW:
        interval = interval_text(group.average_precision_interval, decimal)
        lines.append(
            f"{count_of(facts.frauds, 'fraud')} are few: average precision {decimal(group.average_precision)}{interval}"
        )
    return lines


def interval_text(interval: Interval, form: Callable[[float], str]) -> str:
    """Returns a clause that names a 95 % interval, or nothing without one."""
    low, high = interval
    return "" if math.isnan(low) else f", 95% interval {form(low)} to {form(high)}"


def calibration_text(calibration: MeanCalibration, *, who: str = "they") -> str:
    """Returns a clause with the promised share of fraud, the true share, and their ratio with its interval."""
    promised, true = percent(calibration.mean_score, 2), percent(calibration.fraud_share, 2)
    low, high = ratio_text(calibration.ratio_low), ratio_text(calibration.ratio_high)
    ratio = f"a ratio of {ratio_text(calibration.ratio)} (95% interval {low} to {high})"
    return f"{who} promise {promised} fraud, and {true} of the payments were fraud, {ratio}"


def ratio_text(ratio: float) -> str:
    """Returns a ratio like 1.86, or ∞."""
    return decimal(ratio, 2) if math.isfinite(ratio) else "∞"
