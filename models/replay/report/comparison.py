"""The parts of a replay's report that compare the challenger with the champion."""

from __future__ import annotations

import math

from paywarden.models.metrics.comparison import Agreement
from paywarden.models.metrics.costs import Money
from paywarden.models.policy.policy import ACTIONS
from paywarden.models.replay.measures import (
    LISTED_MAX,
    ActionChange,
    ContestantMeasures,
    ReplayComparison,
    ReplayResults,
)
from paywarden.models.replay.report import charts
from paywarden.models.replay.report.page import (
    NO_NUMBER,
    PAST,
    Beside,
    Definitions,
    Figures,
    Heading,
    PageBlock,
    PageGroup,
    PageTable,
    Paragraph,
    TableCell,
    amount,
    count_of,
    decimal,
    fixed_percent,
    money,
    percent,
    whole,
)

_CHANGES = {
    "fraud_caught": ("Fraud newly stopped", "approved by the champion, reviewed or declined by the challenger"),
    "fraud_missed": ("Fraud newly missed", "stopped by the champion, approved by the challenger"),
    "genuine_declined": ("Genuine newly declined", "not declined by the champion, declined by the challenger"),
    "genuine_reviewed": ("Genuine newly reviewed", "approved by the champion, reviewed by the challenger"),
    "genuine_released": ("Genuine newly approved", "reviewed or declined by the champion, approved by the challenger"),
}


def verdict(results: ReplayResults) -> str:
    """Returns a sentence that says whether the challenger is better; empty without a challenger or outcomes."""
    champion, challenger, comparison = results.champion, results.challenger, results.comparison
    if challenger is None or comparison is None or champion.whole.money is None or challenger.whole.money is None:
        return ""
    before, after, currency = champion.whole.money, challenger.whole.money, results.facts.reference_currency
    net = after.net_minor - before.net_minor
    missed = after.fraud_missed_minor - before.fraud_missed_minor
    declined = after.genuine_declined_minor - before.genuine_declined_minor
    return (
        f"The challenger takes the same action as the champion for {percent(comparison.agreement.share, 2)} of the "
        f"payments. At the stated costs it is worth {_more_or_less(net, currency, '', 'as much')}. It misses "
        f"{_more_or_less(missed, currency, ' fraud', 'as much fraud')}, and declines genuine payments worth "
        f"{_more_or_less(declined, currency, '', 'as much')}."
    )


def _more_or_less(difference_minor: int, currency: str, of_what: str, same: str) -> str:
    if difference_minor == 0:
        return same
    return f"{money(abs(difference_minor), currency)} {'more' if difference_minor > 0 else 'less'}{of_what}"


def comparison_section(results: ReplayResults) -> list[PageBlock]:
    """Both side by side, their agreement, the payments with different actions, the shift of scores.

    Empty without a challenger.
    """
    champion, challenger, comparison = results.champion, results.challenger, results.comparison
    if challenger is None or comparison is None:
        return []
    facts = results.facts
    both = "Both decided about the same payments, from the same features."
    if results.is_of_one_model:
        both += " They have the same model and differ in policy alone, so their scores are the same."
    agree = (
        f"{percent(comparison.agreement.share, 2)} of the payments get the same action from both. A row is the "
        "champion's action, a column the challenger's. In the shaded cells they agree."
        + (" The number of frauds is in brackets." if facts.has_outcomes else "")
    )
    blocks: list[PageBlock] = [Heading("Champion against challenger"), Paragraph(both)]
    pairs: list[PageBlock] = [
        Heading("Where they agree", 3),
        Paragraph(agree),
        _agreement(results, comparison.agreement),
    ]
    if facts.has_outcomes:
        changes = _changes(comparison, facts.reference_currency)
        blocks.append(
            Beside([Heading("Side by side", 3), _side_by_side(results, champion, challenger)], [*pairs, *changes])
        )
    else:
        blocks += pairs
    if not results.is_of_one_model:
        blocks.append(Figures([charts.score_differences(comparison), _shift(comparison)]))
    return blocks


def _side_by_side(results: ReplayResults, champion: ContestantMeasures, challenger: ContestantMeasures) -> PageTable:
    rows = [
        _compared(name, before, after, form, direction)
        for name, before, after, form, direction in _compared_measures(results, champion, challenger)
    ]
    return PageTable(["", "champion", "challenger", "difference", ""], rows)


def _compared_measures(
    results: ReplayResults, a: ContestantMeasures, b: ContestantMeasures
) -> list[tuple[str, float, float, str, int]]:
    """(name, champion's, challenger's, form, 1 where more is better, -1 where less is, 0 where neither)."""
    facts, before, after = results.facts, a.whole.money, b.whole.money
    assert before is not None
    assert after is not None
    suffix = f", {facts.reference_currency}" if facts.reference_currency else ""
    of_decisions = [
        (f"net value{suffix}", before.net_minor, after.net_minor, "money", 1),
        (f"fraud stopped{suffix}", _stopped(before), _stopped(after), "money", 1),
        (f"fraud missed{suffix}", before.fraud_missed_minor, after.fraud_missed_minor, "money", -1),
        (f"genuine declined{suffix}", before.genuine_declined_minor, after.genuine_declined_minor, "money", -1),
        (f"genuine reviewed{suffix}", before.genuine_reviewed_minor, after.genuine_reviewed_minor, "money", -1),
        ("frauds stopped (recall)", a.whole.recall, b.whole.recall, "share", 1),
        ("precision of stopped payments", a.whole.precision, b.whole.precision, "share", 1),
        ("payments reviewed", a.whole.reviewed, b.whole.reviewed, "count", 0),
        ("payments declined", a.whole.declined, b.whole.declined, "count", 0),
    ]
    if results.is_of_one_model:
        return of_decisions
    reviews = f"{whole(facts.costs.reviews_a_day)} reviews a day"
    return [
        *of_decisions,
        ("average precision", a.average_precision, b.average_precision, "number", 1),
        ("AUC ROC", a.auc_roc, b.auc_roc, "number", 1),
        ("card precision at 100", a.card_precision_at_100, b.card_precision_at_100, "share", 1),
        (f"recall, {reviews}", a.at_review_capacity.recall, b.at_review_capacity.recall, "share", 1),
        (f"precision, {reviews}", a.at_review_capacity.precision, b.at_review_capacity.precision, "share", 1),
        ("Brier score (error)", _brier(a), _brier(b), "small", -1),
    ]


def _compared(name: str, before: float, after: float, form: str, direction: int) -> list[str | TableCell]:
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
    }[form]
    gain = difference * direction
    is_judged = math.isfinite(gain) and gain != 0
    word = TableCell("better" if gain > 0 else "worse", "better" if gain > 0 else "worse") if is_judged else ""
    return [name, *texts, word]


def _signed(text: str, value: float, unit: str = "") -> str:
    return text.replace("-", "−") + unit if math.isfinite(value) else NO_NUMBER


def _brier(measures: ContestantMeasures) -> float:
    return measures.reliability.brier_score if measures.reliability else float("nan")


def _stopped(of_money: Money) -> int:
    return of_money.fraud_declined_minor + of_money.fraud_reviewed_minor


def _agreement(results: ReplayResults, agreement: Agreement) -> PageTable:
    rows: list[list[str | TableCell]] = []
    for place, action in enumerate(ACTIONS):
        row: list[str | TableCell] = [PAST[action]]
        for other, count in enumerate(agreement.payments[place]):
            frauds = agreement.frauds[place][other]
            text = f"{whole(count)} ({whole(frauds)})" if results.facts.has_outcomes else whole(count)
            row.append(TableCell(text, "same" if place == other else ""))
        rows.append(row)
    heads = ["champion ↓ challenger →", *(PAST[action] for action in ACTIONS)]
    return PageTable(heads, rows)


def _changes(comparison: ReplayComparison, currency: str) -> list[PageBlock]:
    rows = [
        [_CHANGES[kind][0], whole(change.payments), amount(change.amount_minor)]
        for kind, change in comparison.changes.items()
    ]
    title = Heading("Payments with different actions", 3)
    return [title, PageTable(["by the challenger", "payments", currency or "amount"], rows)]


def _shift(comparison: ReplayComparison) -> PageGroup:
    shift = comparison.score_shift
    psi = shift.population_stability_index
    size = "little (below 0.1)" if psi < 0.1 else "much (above 0.25)" if psi > 0.25 else "somewhat (0.1 to 0.25)"
    rank = decimal(shift.rank_correlation)
    words = Definitions(
        [
            ("Population stability index (PSI)", f"{psi:.3f}: the distribution of scores has moved {size}."),
            ("Rank correlation", f"{rank} (Spearman). 1 means that both sort the payments in the same order."),
            ("Mean difference", _signed(f"{shift.mean:+.5f}", shift.mean)),
            *((f"{name[1:]}% lie below", _signed(f"{value:+.4f}", value)) for name, value in shift.quantiles.items()),
            ("Largest fall and rise", f"{_signed(f'{shift.largest_fall:+.3f}', 0)} and {shift.largest_rise:+.3f}"),
        ]
    )
    return PageGroup([words])


def changed_payments_section(results: ReplayResults) -> list[PageBlock]:
    """The payments of each kind of change with the highest amounts. Empty without a change."""
    comparison = results.comparison
    if comparison is None or not any(change.payments for change in comparison.changes.values()):
        return []
    intro = (
        f"For each kind of change, the payments with the highest amounts, at most {LISTED_MAX}. differences.parquet "
        "holds every payment that gets different actions."
    )
    lists = [
        _changed_list(kind, change, results.facts.reference_currency)
        for kind, change in comparison.changes.items()
        if change.payments
    ]
    return [Heading("The largest payments with different actions"), Paragraph(intro), *lists]


def _changed_list(kind: str, change: ActionChange, currency: str) -> PageTable:
    title, meaning = _CHANGES[kind]
    rows = [
        [
            *(payment.payment_id, payment.day),
            f"{PAST[payment.champion_action]} → {PAST[payment.challenger_action]}",
            amount(payment.amount_minor, digits=2),
            *(decimal(payment.champion_score, 4), decimal(payment.challenger_score, 4)),
        ]
        for payment in change.largest
    ]
    heads = ["payment", "day", "action", f"amount {currency}".rstrip(), "champion's score", "challenger's score"]
    caption = f"{title}: {count_of(change.payments, 'payment')}, {money(change.amount_minor, currency)} ({meaning})"
    return PageTable(heads, rows, caption=caption, text_columns=3)
