"""Write report.html: the results of a replay, for a fraud analyst to read without help.

How it works:

1. The text is in templates/replay.html, with the parts about a challenger and live decisions in files beside it.
2. The functions here give the rows of its tables, models/replay/report/charts.py its plots.

Example: the report of 1,000 payments with 10 frauds, 8 of them stopped, begins with the paragraph

    Of 1,000 payments worth EUR 52,310, 10 were fraud (1.0%), worth EUR 4,120. The policy stopped 8 of them, …

The report names no card and no merchant. It names payments only by id, and only the largest that champion and
challenger decide differently about. It depends on the results alone, so the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite, isnan
from operator import attrgetter
from typing import Any

from paywarden.features.catalogue.codes.merchant_categories import category_text
from paywarden.models.metrics.intervals import FRAUDS_FEW, Interval
from paywarden.models.metrics.segments import GroupMeasures
from paywarden.models.policy.policy import ACTIONS
from paywarden.models.replay.live_comparison import LiveAgreement, LiveComparison
from paywarden.models.replay.measures import LISTED_MAX, ActionChange, ContestantMeasures, ReplayResults
from paywarden.models.replay.report import charts
from paywarden.models.replay.report.page import (
    NO_NUMBER,
    PAST,
    TableCell,
    amount,
    decimal,
    fixed_percent,
    money,
    percent,
    whole,
)
from paywarden.models.replay.report.renderer import render
from paywarden.models.replay.report.summary import (
    calibration_text,
    calibration_warning,
    interval_text,
    measured_text,
    ratio_text,
    stops_text,
    value_lines,
    weighted_text,
)

GROUPS_SHOWN, DAYS_SHOWN, VERSIONS_SHOWN = 12, 93, 12
_SEGMENT_TITLES = {"channel": "Channel", "country": "Country", "mcc": "Merchant category", "currency": "Currency"}
_CHANGES = {
    "fraud_caught": ("Fraud newly stopped", "approved by the champion, reviewed or declined by the challenger"),
    "fraud_missed": ("Fraud newly missed", "stopped by the champion, approved by the challenger"),
    "genuine_declined": ("Genuine newly declined", "not declined by the champion, declined by the challenger"),
    "genuine_reviewed": ("Genuine newly reviewed", "approved by the champion, reviewed by the challenger"),
    "genuine_released": ("Genuine newly approved", "reviewed or declined by the champion, approved by the challenger"),
}
_MONEY = {
    "Fraud declined": "fraud_declined_minor",
    "Fraud sent to review": "fraud_reviewed_minor",
    "Fraud missed (approved)": "fraud_missed_minor",
    "Genuine payments declined": "genuine_declined_minor",
    "Genuine payments sent to review": "genuine_reviewed_minor",
    "Loss avoided": "loss_avoided_minor",
    "Cost of reviews": "review_cost_minor",
    "Margin lost on declined genuine payments": "margin_lost_minor",
    "Net value compared with approving everything": "net_minor",
}
_Cells = list[str | TableCell]


def report_html(results: ReplayResults, live: LiveComparison | None = None) -> str:
    """Return the whole file as text. `live`: the comparison with the live decisions, if an archive was given."""
    facts, both = results.facts, charts.contestants(results)
    return render(
        "replay.html",
        title=f"Replay {facts.first_day} to {facts.last_day}",
        results=results,
        facts=facts,
        currency=facts.reference_currency,
        champion=results.champion,
        challenger=results.challenger,
        group=results.champion.whole,
        comparison=results.comparison,
        contestants=both,
        scorers=charts.scorers(results),
        live=live,
        live_others=0 if live is None else _others(live),
        charts=charts,
        segment_titles=_SEGMENT_TITLES,
        changes=_CHANGES,
        category_text=category_text,
        frauds_few=FRAUDS_FEW,
        groups_shown=GROUPS_SHOWN,
        days_shown=DAYS_SHOWN,
        versions_shown=VERSIONS_SHOWN,
        listed_max=LISTED_MAX,
        both=lambda path, form: [form(attrgetter(path)(one)) for _, one in both],
        shares_of=lambda name: [percent(getattr(one.whole, name) / one.whole.payments) for _, one in both],
        more_or_less=partial(_more_or_less, facts.reference_currency),
        signed=_signed,
        weighted_text=weighted_text,
        value_lines=value_lines,
        calibration_warning=calibration_warning,
        calibration_text=calibration_text,
        interval_text=interval_text,
        measured_text=measured_text,
        ratio_text=ratio_text,
        stops_text=stops_text,
        strike_rows=_strike_rows,
        detected_rows=_detected_rows,
        stop_rows=_stop_rows,
        reason_rows=_reason_rows,
        money_rows=lambda: [
            [title, *(amount(getattr(one.whole.money, name)) for _, one in both)] for title, name in _MONEY.items()
        ],
        group_rows=_group_rows,
        group_styles=lambda groups, known: ["faint" if known and one.rests_on_few_frauds else "" for one in groups],
        changed_rows=_changed_rows,
        compared_rows=partial(_compared_rows, results),
        agreement_rows=partial(_agreement_rows, results),
        live_share=_live_share,
        live_action_rows=lambda: [] if live is None else _matrix(live.actions, lambda _, __, count: whole(count)),
        live_versions=lambda: [] if live is None else _live_versions(live, results.champion.model_version),
    )


def _reason_rows(measures: ContestantMeasures, known: bool) -> list[list[str]]:
    rows = []
    for one in measures.by_reason:
        row = [one.reason, one.action, whole(one.payments), whole(one.alone), amount(one.amount_minor)]
        rows.append(row + ([whole(one.frauds), fixed_percent(one.precision), amount(one.fraud_minor)] if known else []))
    return rows


def _group_rows(
    groups: Sequence[GroupMeasures],
    theirs: Sequence[GroupMeasures],
    known: bool,
    text: Callable[[str], str],
) -> list[list[str]]:
    """Return a row for each group. `text` formats a group's name."""
    others = {group.name: group for group in theirs}
    return [[text(group.name), *_group_numbers(group, others.get(group.name), known=known)] for group in groups]


def _group_numbers(group: GroupMeasures, other: GroupMeasures | None, *, known: bool) -> list[str]:
    reviewed, declined = (fixed_percent(count / group.payments, 2) for count in (group.reviewed, group.declined))
    if not known or group.money is None:
        row = [whole(group.payments), reviewed, declined, decimal(group.mean_score, 4)]
        if other is not None:
            row += [fixed_percent(count / other.payments, 2) for count in (other.reviewed, other.declined)]
        return row
    row = [
        *(whole(group.payments), whole(group.frauds), fixed_percent(group.fraud_share, 2)),
        _share_cell(group, group.recall, group.recall_interval),
        _share_cell(group, group.precision, group.precision_interval),
        *(reviewed, declined, decimal(group.auc_roc)),
        *(amount(group.money.fraud_missed_minor), amount(group.money.net_minor)),
    ]
    if other is not None and other.money is not None:
        row += [fixed_percent(other.recall), amount(other.money.net_minor)]
    return row


def _share_cell(group: GroupMeasures, share: float, interval: Interval) -> str:
    """Return a share, with its interval in a group of few frauds: "50.0% (9–91)"."""
    if not group.rests_on_few_frauds or isnan(share):
        return fixed_percent(share)
    low, high = (f"{100 * end:.0f}" for end in interval)
    return f"{fixed_percent(share)} ({low}–{high})"


# Missed frauds


def _strike_rows(measures: ContestantMeasures) -> list[list[str]]:
    rows = []
    for name, found in measures.first_strikes.items():
        burst = measures.bursts[name]
        before = _with_interval(burst.approved_before_stop, burst.approved_before_stop_interval, decimal)
        stopped = _with_interval(found.recall, found.recall_interval, fixed_percent)
        rows.append([name, whole(found.frauds), stopped, amount(found.approved_minor), whole(burst.bursts), before])
    return rows


def _detected_rows(measures: ContestantMeasures) -> list[list[str]]:
    rows = []
    for found in measures.detected:
        shares = (
            (found.amount_recall, found.amount_recall_interval),
            (found.recall, found.recall_interval),
            (found.first_recall, found.first_recall_interval),
        )
        cells = [_with_interval(share, interval, fixed_percent) for share, interval in shares]
        numbers = [whole(found.false_positives_per_fraud), decimal(found.threshold, 4), whole(found.flagged)]
        rows.append([*numbers, *cells])
    return rows


def _stop_rows(measures: ContestantMeasures) -> list[list[str]]:
    """Return who stopped what; nothing where that is not known."""
    return [
        [name, whole(of.payments), whole(of.frauds), amount(of.amount_minor), amount(of.fraud_minor)]
        for name, of in (measures.stops.by.items() if measures.stops is not None else ())
    ]


def _with_interval(value: float, interval: Interval, form: Callable[[float, int], str]) -> str:
    """Return a value and its interval, like "61.2% (50.1%–71.0%)"."""
    text = form(value, 1)
    return text if isnan(interval[0]) else f"{text} ({form(interval[0], 1)}–{form(interval[1], 1)})"


# The challenger


def _more_or_less(currency: str, difference_minor: int, of_what: str, same: str) -> str:
    if difference_minor == 0:
        return same
    return f"{money(abs(difference_minor), currency)} {'more' if difference_minor > 0 else 'less'}{of_what}"


def _compared_rows(results: ReplayResults) -> list[_Cells]:
    """Return both side by side: a measure, the champion's, the challenger's, the difference, and the judgement."""
    facts, a, b = results.facts, results.champion, results.challenger
    assert b is not None
    unit = f", {facts.reference_currency}" if facts.reference_currency else ""
    # The form, and 1 where more is better, -1 where less is, 0 where neither.
    measures: list[tuple[str, str, str, int]] = [
        (f"net value{unit}", "whole.money.net_minor", "money", 1),
        (f"fraud stopped{unit}", "whole.money", "stopped", 1),
        (f"fraud missed{unit}", "whole.money.fraud_missed_minor", "money", -1),
        (f"genuine declined{unit}", "whole.money.genuine_declined_minor", "money", -1),
        (f"genuine reviewed{unit}", "whole.money.genuine_reviewed_minor", "money", -1),
        ("frauds stopped (recall)", "whole.recall", "share", 1),
        ("precision of stopped payments", "whole.precision", "share", 1),
        ("payments reviewed", "whole.reviewed", "count", 0),
        ("payments declined", "whole.declined", "count", 0),
    ]
    if not results.is_of_one_model:
        reviews = f"{whole(facts.costs.reviews_a_day)} reviews a day"
        measures += [
            ("average precision", "average_precision", "number", 1),
            ("AUC ROC", "auc_roc", "number", 1),
            ("card precision at 100", "card_precision_at_100", "share", 1),
            (f"recall, {reviews}", "at_review_capacity.recall", "share", 1),
            (f"precision, {reviews}", "at_review_capacity.precision", "share", 1),
            ("Brier score (error)", "reliability", "small", -1),
        ]
    return [
        _compared(name, _number(attrgetter(path)(a), form), _number(attrgetter(path)(b), form), form, direction)
        for name, path, form, direction in measures
    ]


def _number(found: Any, form: str) -> float:
    if form == "stopped":
        return float(found.fraud_declined_minor + found.fraud_reviewed_minor)
    if form == "small":
        return float(found.brier_score) if found else float("nan")
    return float(found)


def _compared(name: str, before: float, after: float, form: str, direction: int) -> _Cells:
    difference = after - before
    texts = {
        "money": (amount(before), amount(after), amount(difference, is_signed=True)),
        "share": (
            fixed_percent(before, 2),
            fixed_percent(after, 2),
            _signed(f"{100 * difference:+.2f}", difference, " pp"),
        ),
        "count": (whole(before), whole(after), _signed(f"{difference:+,.0f}", difference)),
        "number": (decimal(before, 4), decimal(after, 4), _signed(f"{difference:+.4f}", difference)),
        "small": (decimal(before, 5), decimal(after, 5), _signed(f"{difference:+.5f}", difference)),
    }["money" if form == "stopped" else form]
    gain = difference * direction
    word = ("better" if gain > 0 else "worse") if isfinite(gain) and gain else ""
    return [name, *texts, TableCell(word, word) if word else ""]


def _signed(text: str, value: float, unit: str = "") -> str:
    return text.replace("-", "−") + unit if isfinite(value) else NO_NUMBER


def _agreement_rows(results: ReplayResults) -> list[_Cells]:
    assert results.comparison is not None
    agreement, known = results.comparison.agreement, results.facts.has_outcomes

    def text(place: int, other: int, count: int) -> str:
        return f"{whole(count)} ({whole(agreement.frauds[place][other])})" if known else whole(count)

    return _matrix(agreement.payments, text)


def _matrix(counts: Sequence[Sequence[int]], text: Callable[[int, int, int], str]) -> list[_Cells]:
    """Return a row for each action of one side, with the other's actions as columns. Equal actions are marked."""
    return [
        [
            PAST[action],
            *(
                TableCell(text(place, other, count), "same" if other == place else "")
                for other, count in enumerate(row)
            ),
        ]
        for place, (action, row) in enumerate(zip(ACTIONS, counts, strict=True))
    ]


def _changed_rows(change: ActionChange) -> list[list[str]]:
    return [
        [
            *(payment.payment_id, payment.day),
            f"{PAST[payment.champion_action]} → {PAST[payment.challenger_action]}",
            amount(payment.amount_minor, digits=2),
            *(decimal(payment.champion_score, 4), decimal(payment.challenger_score, 4)),
        ]
        for payment in change.largest
    ]


# Live decisions


def _others(live: LiveComparison) -> int:
    """Return how many payments got another action live."""
    return live.whole.payments - sum(live.actions[place][place] for place in range(len(ACTIONS)))


def _live_share(share: float | None) -> str:
    """Return a share as text. Only exactly 1 is written as 100.00%; 0.99999 is "over 99.99%"."""
    if share is None:
        return NO_NUMBER
    text = percent(share, 2)
    return "over 99.99%" if share < 1 and text == "100.00%" else text


def _live_versions(live: LiveComparison, champion: str) -> list[list[str]]:
    """Return a row for each model that decided live, the one of most payments first."""
    ordered = sorted(live.by_model_version.items(), key=lambda item: (-item[1].payments, item[0]))
    return [_version_row(version, agreement, champion) for version, agreement in ordered]


def _version_row(version: str, agreement: LiveAgreement, champion: str) -> list[str]:
    name = "none" if not version else f"{version} (here)" if version == champion else version
    difference = agreement.score_difference_max
    return [
        name,
        whole(agreement.payments),
        _live_share(agreement.equal_actions),
        _live_share(agreement.equal_scores),
        NO_NUMBER if difference is None else f"{difference:.3g}",
    ]
