"""report.html: what a replay found, for a fraud analyst to read without help.

It holds no card and no merchant, and of payments only the ids of the largest that champion and challenger decide
differently about. It speaks of nothing but the results, so the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from paywarden.features.catalogue.merchant_categories import category_text
from paywarden.models.metrics.costs import Money
from paywarden.models.metrics.curves import MeanCalibration
from paywarden.models.metrics.segments import GroupMeasures
from paywarden.models.replay.live_comparison import LiveComparison
from paywarden.models.replay.measures import ContestantMeasures, ReplayResults
from paywarden.models.replay.report import charts
from paywarden.models.replay.report.comparison import changed_payments_section, comparison_section, verdict
from paywarden.models.replay.report.live import live_section
from paywarden.models.replay.report.page import (
    Beside,
    Card,
    Definitions,
    FigureCards,
    Figures,
    Heading,
    PageBlock,
    PageTable,
    Paragraph,
    amount,
    count_of,
    decimal,
    fixed_percent,
    money,
    notice,
    percent,
    whole,
)
from paywarden.models.replay.report.renderer import render_page
from paywarden.models.replay.report.summary import calibration_text, calibration_warning, ratio_text

GROUPS_SHOWN = 12
DAYS_SHOWN = 93
# With fewer frauds a group's recall says little.
_FEW_FRAUDS = 10
# A number's title, how to write it of a contestant, and what the champion's means.
_Headline = tuple[str, Callable[[ContestantMeasures], str], str]
_SEGMENT_TITLES = {"channel": "Channel", "country": "Country", "mcc": "Merchant category", "currency": "Currency"}


def report_html(results: ReplayResults, live: LiveComparison | None = None) -> str:
    """The whole file as text; `live` is what was decided about the same payments at the time, where that is known."""
    facts = results.facts
    return render_page(
        title=f"Replay {facts.first_day} to {facts.last_day}",
        heading="Replay: champion against challenger" if results.challenger else "Replay",
        blocks=[
            *_head(results),
            *_notices(results),
            *_headline(results),
            *comparison_section(results),
            *(live_section(live, results.champion.model_version) if live is not None else []),
            *_ranking(results),
            *_decisions(results),
            *_thresholds(results),
            *_money(results),
            *_segments(results),
            *_days(results),
            *changed_payments_section(results),
            *_method(results),
        ],
    )


def _head(results: ReplayResults) -> list[PageBlock]:
    facts, is_compared = results.facts, results.challenger is not None
    days = f"{facts.first_day} to {facts.last_day} (UTC)"
    what = f"Payments of {days}, run through the features, model and policy that serve."
    sides = Definitions(
        [
            (style.capitalize() if is_compared else "Decided by", _contestant(one))
            for style, one in charts.contestants(results)
        ]
    )
    lead = " ".join(filter(None, (_lead(results), verdict(results)))) if facts.has_outcomes else ""
    return [Paragraph(what, "soft"), sides, *([Paragraph(lead, "lead")] if lead else [])]


def _contestant(one: ContestantMeasures) -> str:
    counts = ((one.rules, "rule"), (one.policy_segments, "segment"))
    conditions = " and ".join(count_of(count, name) for count, name in counts if count)
    return (
        f"model {one.model_version}, trained on {one.train_from} to {one.train_to}; policy {one.policy}: "
        f"review at {one.review_at:.4g}, decline at {one.decline_at:.4g}" + (f", {conditions}" if conditions else "")
    )


def _lead(results: ReplayResults) -> str:
    facts, whole_ = results.facts, results.champion.whole
    assert whole_.money is not None
    currency, who = facts.reference_currency, "The champion" if results.challenger else "The policy"
    stopped = whole_.money.fraud_declined_minor + whole_.money.fraud_reviewed_minor
    return (
        f"Of {whole(facts.payments)} payments worth {money(facts.amount_minor, currency)}, {whole(facts.frauds)} "
        f"were fraud ({percent(whole_.fraud_share)}), worth {money(facts.fraud_minor, currency)}. {who} stopped "
        f"{whole(whole_.frauds_stopped)} of them, worth {money(stopped, currency)}; it sent "
        f"{percent(whole_.reviewed / whole_.payments)} of all payments to review and declined "
        f"{percent(whole_.declined / whole_.payments)}."
    )


def _notices(results: ReplayResults) -> list[PageBlock]:
    facts = results.facts
    said = []
    if not facts.has_outcomes:
        said.append(
            "No outcome is known for any of these payments. Whatever needs to know which payments were fraud is left "
            "out: there are only scores and actions."
        )
    elif facts.without_outcome:
        said.append(
            f"{whole(facts.without_outcome)} of {whole(facts.payments)} payments "
            f"({percent(facts.without_outcome / facts.payments)}) "
            "have no outcome and count as genuine. If their labels are still to come, the true numbers are worse."
        )
    if facts.has_outcomes and not facts.frauds:
        said.append("None of these payments is known to be fraud: measures that need one have no value.")
    for style, one in charts.scorers(results):
        whose = "The scores" if results.is_of_one_model else f"The {style}'s scores"
        said.append(calibration_warning(facts, one, whose=whose))
    for style, one in charts.contestants(results):
        if one.train_to >= facts.first_day:
            whose = f"The {style}'s model" if results.challenger else "The model"
            said.append(
                f"{whose} was trained on payments of {one.train_from} to {one.train_to}, which are not all "
                "before the days that are replayed here. Its numbers are better than they would be on days to come."
            )
    return [notice(text) for text in said if text]


def _headline(results: ReplayResults) -> list[PageBlock]:
    made = [
        Card(title, form(results.champion), meaning, form(results.challenger) if results.challenger else "")
        for title, form, meaning in (_of_labels(results) if results.facts.has_outcomes else _of_actions(results))
    ]
    return [Heading("In short"), FigureCards(made)]


def _of_actions(results: ReplayResults) -> list[_Headline]:
    whole_ = results.champion.whole
    return [
        (
            "Reviewed",
            lambda one: percent(one.whole.reviewed / one.whole.payments),
            f"{count_of(whole_.reviewed, 'payment')} for an analyst to look at.",
        ),
        (
            "Declined",
            lambda one: percent(one.whole.declined / one.whole.payments),
            f"{count_of(whole_.declined, 'payment')} refused at once.",
        ),
    ]


def _of_labels(results: ReplayResults) -> list[_Headline]:
    facts, champion = results.facts, results.champion
    unit = f", {facts.reference_currency}" if facts.reference_currency else ""
    whole_, capacity, calibration = champion.whole, champion.at_review_capacity, _calibration_of(champion)
    verdict_on_scores = "Far off" if calibration.is_far_off else "1 is perfect"
    return [
        (
            "Frauds stopped",
            lambda one: percent(one.whole.recall),
            f"{whole(whole_.frauds_stopped)} of {count_of(whole_.frauds, 'fraud')} reviewed or declined (recall).",
        ),
        (
            "Right when it stops",
            lambda one: percent(one.whole.precision),
            "Of the payments reviewed or declined, the share that was fraud (precision).",
        ),
        (
            "Mean score by share of frauds",
            lambda one: ratio_text(_calibration_of(one).ratio),
            f"{verdict_on_scores}: {calibration_text(calibration, who='scores')}.",
        ),
        *_of_actions(results),
        (
            f"Net value{unit}",
            lambda one: amount(_money_of(one).net_minor),
            "Loss avoided less reviews and lost margin, against approving everything, at the stated costs.",
        ),
        (
            f"Fraud missed{unit}",
            lambda one: amount(_money_of(one).fraud_missed_minor),
            f"Worth of the {count_of(whole_.frauds - whole_.frauds_stopped, 'fraud')} that got through.",
        ),
        (
            "Average precision",
            lambda one: decimal(one.average_precision),
            "How well scores put fraud first, over all thresholds. 1 is perfect; by chance it would be "
            f"{decimal(facts.frauds / facts.payments, 4)}.",
        ),
        (
            "AUC ROC",
            lambda one: decimal(one.auc_roc),
            "How often a fraud scores higher than a genuine payment. 1 is perfect, 0.5 is chance.",
        ),
        (
            "Card precision at 100",
            lambda one: percent(one.card_precision_at_100),
            "Of the 100 highest scored cards of a day, the share that was compromised, mean over days.",
        ),
        (
            f"{whole(facts.costs.reviews_a_day)} reviews a day",
            lambda one: percent(one.at_review_capacity.recall),
            "Share of frauds found if just the highest scored payments of each day were looked at; "
            f"{percent(capacity.precision)} of those would be fraud.",
        ),
    ]


def _money_of(one: ContestantMeasures) -> Money:
    assert one.whole.money is not None
    return one.whole.money


def _calibration_of(one: ContestantMeasures) -> MeanCalibration:
    assert one.calibration is not None
    return one.calibration


def _ranking(results: ReplayResults) -> list[PageBlock]:
    if not results.facts.has_outcomes:
        return [Heading("Scores"), Figures([charts.score_spread(results.champion, has_outcomes=False)])]
    drawn = [
        *([charts.precision_recall(results)] if results.facts.frauds else []),
        charts.score_spread(results.champion, has_outcomes=True),
        charts.calibration(results),
        charts.card_precision_by_day(results),
    ]
    said = "Scores alone, whatever the policy makes of them. A score is meant to be the probability of fraud."
    return [Heading("Do the scores find fraud?"), Paragraph(said), Figures(drawn)]


def _decisions(results: ReplayResults) -> list[PageBlock]:
    drawn = [charts.actions_by_day(results.champion)]
    if results.facts.has_outcomes:
        drawn.append(charts.frauds_by_day(results.champion))
    whose = [Paragraph("The champion's decisions.")] if results.challenger else []
    reasons = Paragraph(
        "A payment may have several reasons and counts for each; for those in the column alone it was the only one. A "
        "rule that overrides decides alone: nothing else is asked about its payments."
    )
    named = charts.contestants(results) if results.challenger else [("", results.champion)]
    return [
        Heading("Decisions"),
        *whose,
        Figures(drawn),
        Heading("What asked for them", 3),
        reasons,
        *(_reasons(style, one, results) for style, one in named),
    ]


def _reasons(style: str, one: ContestantMeasures, results: ReplayResults) -> PageBlock:
    known, unit = results.facts.has_outcomes, results.facts.reference_currency
    heads = ["reason", "action", "payments", "alone", f"amount {unit}".rstrip()]
    heads += ["frauds", "precision", f"fraud {unit}".rstrip()] if known else []
    rows = []
    for reason in one.by_reason:
        row = [reason.reason, reason.action, whole(reason.payments), whole(reason.alone), amount(reason.amount_minor)]
        if known:
            row += [whole(reason.frauds), fixed_percent(reason.precision), amount(reason.fraud_minor)]
        rows.append(row)
    return (
        PageTable(heads, rows, caption=style.capitalize(), text_columns=2)
        if rows
        else Paragraph("Nothing did.", "soft")
    )


def _thresholds(results: ReplayResults) -> list[PageBlock]:
    if not results.facts.has_outcomes:
        return []
    blocks: list[PageBlock] = [
        Heading("Where to put the thresholds"),
        Paragraph(
            "What any other threshold would have done, score against threshold alone, without rules and segments. "
            "Dotted lines are the thresholds that decided."
        ),
    ]
    for style, one in charts.scorers(results):
        if not results.is_of_one_model:
            blocks.append(Heading(style.capitalize(), 3))
        blocks.append(Figures([charts.threshold_rates(results, one), charts.threshold_money(results, one)]))
    return blocks


def _money(results: ReplayResults) -> list[PageBlock]:
    if not results.facts.has_outcomes:
        return []
    facts, costs = results.facts, results.facts.costs
    both = [one for _, one in charts.contestants(results)]
    monies = [one.whole.money for one in both]
    lines = (
        ("Fraud declined", "fraud_declined_minor", ""),
        ("Fraud sent to review", "fraud_reviewed_minor", ""),
        ("Fraud missed (approved)", "fraud_missed_minor", ""),
        ("Genuine payments declined", "genuine_declined_minor", ""),
        ("Genuine payments sent to review", "genuine_reviewed_minor", ""),
        ("Loss avoided", "loss_avoided_minor", ""),
        ("Cost of reviews", "review_cost_minor", ""),
        ("Margin lost on declined genuine payments", "margin_lost_minor", ""),
        ("Net value against approving everything", "net_minor", "sum"),
    )
    heads = [facts.reference_currency or "amount", *(style for style, _ in charts.contestants(results))]
    rows = [[title, *(amount(getattr(one, name)) for one in monies if one is not None)] for title, name, _ in lines]
    review_cost = f"{facts.reference_currency} {amount(costs.review_cost_minor, digits=2)}".strip()
    stated = [
        ("Missed fraud", f"loses {percent(costs.fraud_loss_share, 0)} of its amount."),
        ("Review", f"costs {review_cost}, and finds the fraud where there is one."),
        ("Declined genuine", f"loses {percent(costs.declined_margin_share)} of its amount, the margin."),
        ("Approving", "costs nothing; net value is held against approving everything."),
        ("Set by", "the section [costs] of the configuration or --costs. The nets are as right as these are."),
    ]
    made = PageTable(heads, rows, row_styles=[style for _, _, style in lines])
    return [Heading("Money"), Beside([made], [Heading("At these costs", 3), Definitions(stated)])]


def _segments(results: ReplayResults) -> list[PageBlock]:
    said = f"The largest {GROUPS_SHOWN} groups of each kind; all are in metrics.json."
    if results.facts.has_outcomes:
        said += f" Groups with fewer than {_FEW_FRAUDS} frauds are grey: their shares rest on little."
    blocks: list[PageBlock] = [Heading("Segments"), Paragraph(said)]
    for name, groups in results.champion.by_segment.items():
        if groups:
            theirs = results.challenger.by_segment[name] if results.challenger else []
            shown, hidden = groups[:GROUPS_SHOWN], len(groups) - GROUPS_SHOWN
            text = category_text if name == "mcc" else str
            blocks += _group_table(_SEGMENT_TITLES[name], shown, theirs, results, hidden=hidden, text=text)
    return blocks


def _days(results: ReplayResults) -> list[PageBlock]:
    days = results.champion.by_day
    theirs = results.challenger.by_day if results.challenger else []
    shown = days[-DAYS_SHOWN:]
    note = f"The last {DAYS_SHOWN} of {len(days)} days; all are in metrics.json." if len(shown) < len(days) else ""
    return [Heading("Days"), *([Paragraph(note)] if note else []), *_group_table("Day", shown, theirs, results)]


def _group_table(
    title: str,
    groups: list[GroupMeasures],
    theirs: list[GroupMeasures],
    results: ReplayResults,
    *,
    hidden: int = 0,
    text: Callable[[str], str] = str,
) -> list[PageBlock]:
    """A row for each group; `text` is how a group's name is written."""
    known, currency = results.facts.has_outcomes, results.facts.reference_currency
    others = {group.name: group for group in theirs}
    heads = [title, "payments", "reviewed", "declined"]
    if known:
        unit = f" {currency}" if currency else ""
        heads = [title, "payments", "frauds", "fraud share", "stopped", "precision", "reviewed", "declined", "AUC"]
        heads += [f"missed{unit}", f"net{unit}"]
    else:
        heads += ["mean score"]
    if others:
        heads += ["challenger stopped", "challenger net"] if known else ["challenger reviewed", "challenger declined"]
    rows = [[text(group.name), *_group_numbers(group, others.get(group.name), known=known)] for group in groups]
    styles = ["faint" if known and group.frauds < _FEW_FRAUDS else "" for group in groups]
    more = [Paragraph(f"and {whole(hidden)} smaller groups", "soft")] if hidden > 0 else []
    return [PageTable(heads, rows, row_styles=styles), *more]


def _group_numbers(group: GroupMeasures, other: GroupMeasures | None, *, known: bool) -> list[str]:
    reviewed, declined = (fixed_percent(count / group.payments, 2) for count in (group.reviewed, group.declined))
    if not known or group.money is None:
        row = [whole(group.payments), reviewed, declined, decimal(group.mean_score, 4)]
        if other is not None:
            row += [fixed_percent(count / other.payments, 2) for count in (other.reviewed, other.declined)]
        return row
    row = [
        *(whole(group.payments), whole(group.frauds), fixed_percent(group.fraud_share, 2)),
        *(fixed_percent(group.recall), fixed_percent(group.precision), reviewed, declined, decimal(group.auc_roc)),
        *(amount(group.money.fraud_missed_minor), amount(group.money.net_minor)),
    ]
    if other is not None and other.money is not None:
        row += [fixed_percent(other.recall), amount(other.money.net_minor)]
    return row


def _method(results: ReplayResults) -> list[PageBlock]:
    facts = results.facts
    entries = [
        (
            "Point in time",
            "Each payment's features hold what was known before it, never itself and no label that had not arrived. "
            "Profiles were warmed up by everything before the first day.",
        ),
        (
            "Measured",
            f"{whole(facts.payments)} payments. Left out were {whole(facts.excluded_known_compromised)} of cards "
            "that were known to be "
            f"compromised by then, taking a label to be known {facts.label_delay_days} days after its payment: such "
            "a card is blocked. Nothing is left out where the first day is not after the champion's training.",
        ),
        ("Stopped", "Reviewed or declined. A fraud that was reviewed counts as found."),
        (
            "Amounts",
            "In the reference currency"
            + (f", {facts.reference_currency}" if facts.reference_currency else "")
            + ", at the exchange rate of each payment's own time.",
        ),
        (
            "Not replayed",
            "Flags of the live system, such as stale profiles or a failed model, and what they ask for: here "
            "profiles are always up to the moment.",
        ),
        (
            "In money",
            "Net value is loss avoided, less reviews, less lost margin. It leaves out what a decline does to a "
            "customer who does not come back, and fraud that a blocked card would have tried next.",
        ),
    ]
    return [Heading("How to read this"), Definitions(entries)]
