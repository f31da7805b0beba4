"""Write report.html: the results of a replay, for a fraud analyst to read without help.

How it works:

1. Each function here returns one section as a list of blocks (models/replay/report/page.py).
2. models/replay/report/charts.py draws the plots, live_section.py and comparison.py add their sections.
3. models/replay/report/renderer.py renders the blocks with templates.

Example: the report of 1,000 payments with 10 frauds, 8 of them stopped, begins with the paragraph

    Of 1,000 payments worth EUR 52,310, 10 were fraud (1.0%), worth EUR 4,120. The policy stopped 8 of them, …

The report names no card and no merchant. It names payments only by id, and only the largest that champion and
challenger decide differently about. It depends on the results alone, so the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

from paywarden.features.catalogue.codes.merchant_categories import category_text
from paywarden.models.metrics.costs import Money
from paywarden.models.metrics.curves import MeanCalibration
from paywarden.models.metrics.intervals import FRAUDS_FEW, Interval
from paywarden.models.metrics.segments import GroupMeasures
from paywarden.models.replay.live_comparison import LiveComparison
from paywarden.models.replay.measures import HANDBOOK, ContestantMeasures, ReplayFacts, ReplayResults
from paywarden.models.replay.report import charts
from paywarden.models.replay.report.comparison import changed_payments_section, comparison_section, verdict
from paywarden.models.replay.report.live_section import live_section
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
from paywarden.models.replay.report.summary import (
    calibration_text,
    calibration_warning,
    interval_text,
    measured_text,
    ratio_text,
    stops_text,
    weighted_text,
)

GROUPS_SHOWN = 12
DAYS_SHOWN = 93
# A number's title, a function that formats a contestant's value, and the meaning of the champion's value.
_Headline = tuple[str, Callable[[ContestantMeasures], str], str]
_FEW = f"Groups with fewer than {FRAUDS_FEW} frauds are grey, with 95% intervals in brackets: they say little."
_SEGMENT_TITLES = {"channel": "Channel", "country": "Country", "mcc": "Merchant category", "currency": "Currency"}


def report_html(results: ReplayResults, live: LiveComparison | None = None) -> str:
    """Returns the whole file as text. `live`: the comparison with the live decisions, if an archive was given."""
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
            *_missed(results),
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
    text = f"Payments of {days}, decided again with the features, the model and the policy of the live system."
    sides = Definitions(
        [
            (style.capitalize() if is_compared else "Decided by", _contestant(measures))
            for style, measures in charts.contestants(results)
        ]
    )
    lead = " ".join(filter(None, (_lead(results), verdict(results)))) if facts.has_outcomes else ""
    return [Paragraph(text, "soft"), sides, *([Paragraph(lead, "lead")] if lead else [])]


def _contestant(measures: ContestantMeasures) -> str:
    counts = ((measures.rules, "rule"), (measures.policy_segments, "segment"))
    conditions = " and ".join(count_of(count, name) for count, name in counts if count)
    return (
        f"model {measures.model_version}, trained on {measures.train_from} to {measures.train_to}; "
        f"policy {measures.policy}: review at {measures.review_at:.4g}, decline at {measures.decline_at:.4g}"
        + (f", {conditions}" if conditions else "")
    )


def _lead(results: ReplayResults) -> str:
    facts, group = results.facts, results.champion.whole
    assert group.money is not None
    currency, decider = facts.reference_currency, "The champion" if results.challenger else "The policy"
    stopped = group.money.fraud_declined_minor + group.money.fraud_reviewed_minor
    return (
        f"Of {whole(facts.payments)} payments worth {money(facts.amount_minor, currency)}, {whole(facts.frauds)} "
        f"were fraud ({percent(group.fraud_share)}), worth {money(facts.fraud_minor, currency)}. {decider} stopped "
        f"{whole(group.frauds_stopped)} of them, worth {money(stopped, currency)}. It sent "
        f"{percent(group.reviewed / group.payments)} of all payments to review and declined "
        f"{percent(group.declined / group.payments)}."
    )


def _notices(results: ReplayResults) -> list[PageBlock]:
    facts = results.facts
    texts = []
    if not facts.has_outcomes:
        texts.append(
            "No outcome is known for any of these payments. The report therefore shows only scores and actions: it "
            "cannot say which payments were fraud."
        )
    elif facts.without_outcome:
        texts.append(
            f"{whole(facts.without_outcome)} of {whole(facts.payments)} payments "
            f"({percent(facts.without_outcome / facts.payments)}) "
            "have no outcome and count as genuine. If some of them turn out to be fraud, the true results are worse."
        )
    if facts.has_outcomes and not facts.frauds:
        texts.append("None of these payments is known to be fraud. Numbers that need a fraud are left empty.")
    for style, measures in charts.scorers(results):
        if weighted := weighted_text(measures):
            whose = "" if results.is_of_one_model else f", by the {style}'s scores"
            texts.append(
                f"Weighted figures{whose}: {weighted}. All other figures of this page count each payment once."
            )
        whose = "The scores" if results.is_of_one_model else f"The {style}'s scores"
        texts.append(calibration_warning(facts, measures, whose=whose))
    for style, measures in charts.contestants(results):
        if measures.train_to >= facts.first_day:
            whose = f"The {style}'s model" if results.challenger else "The model"
            texts.append(
                f"{whose} was trained on payments of {measures.train_from} to {measures.train_to}. Some of these days "
                "are replayed here, so the results look better than they would on new days."
            )
    return [notice(text) for text in texts if text]


def _headline(results: ReplayResults) -> list[PageBlock]:
    cards = [
        Card(title, form(results.champion), meaning, form(results.challenger) if results.challenger else "")
        for title, form, meaning in (_of_labels(results) if results.facts.has_outcomes else _of_actions(results))
    ]
    return [Heading("In short"), FigureCards(cards)]


def _of_actions(results: ReplayResults) -> list[_Headline]:
    group = results.champion.whole
    return [
        (
            "Reviewed",
            lambda measures: percent(measures.whole.reviewed / measures.whole.payments),
            f"{count_of(group.reviewed, 'payment')} that analysts have to look at.",
        ),
        (
            "Declined",
            lambda measures: percent(measures.whole.declined / measures.whole.payments),
            f"{count_of(group.declined, 'payment')} refused at once.",
        ),
    ]


def _of_labels(results: ReplayResults) -> list[_Headline]:
    facts, champion = results.facts, results.champion
    unit = f", {facts.reference_currency}" if facts.reference_currency else ""
    group, capacity, calibration = champion.whole, champion.at_review_capacity, _calibration_of(champion)
    judgement = "Far from 1, which would be perfect" if calibration.is_far_off else "1 is perfect"
    return [
        (
            "Frauds stopped",
            lambda measures: percent(measures.whole.recall),
            f"{whole(group.frauds_stopped)} of {count_of(group.frauds, 'fraud')} reviewed or declined (recall"
            f"{interval_text(group.recall_interval, percent)}).",
        ),
        (
            "Precision of stops",
            lambda measures: percent(measures.whole.precision),
            "The share of fraud among the payments that were reviewed or declined"
            f"{interval_text(group.precision_interval, percent)}.",
        ),
        (
            "Mean score / fraud share",
            lambda measures: ratio_text(_calibration_of(measures).ratio),
            f"{judgement}. The scores {calibration_text(calibration, who='').strip()}.",
        ),
        *_of_actions(results),
        (
            f"Net value{unit}",
            lambda measures: amount(_money_of(measures).net_minor),
            "Loss avoided minus the cost of reviews and the lost margin, compared with approving everything.",
        ),
        (
            f"Fraud missed{unit}",
            lambda measures: amount(_money_of(measures).fraud_missed_minor),
            f"The amount of the {count_of(group.frauds - group.frauds_stopped, 'fraud')} that were approved.",
        ),
        (
            "Average precision",
            lambda measures: decimal(measures.average_precision),
            "How well the scores put fraud first, over all thresholds. 1 is perfect; random scores reach "
            f"{decimal(facts.frauds / facts.payments, 4)}. It rests on {count_of(facts.frauds, 'fraud')}"
            f"{interval_text(group.average_precision_interval, decimal)}.",
        ),
        (
            "AUC ROC",
            lambda measures: decimal(measures.auc_roc),
            "Area under the ROC curve: how often a fraud scores higher than a genuine payment. 1 is perfect, 0.5 is "
            f"chance{interval_text(group.auc_roc_interval, decimal)}.",
        ),
        (
            "Card precision at 100",
            lambda measures: percent(measures.card_precision_at_100),
            "The share of compromised cards among the 100 cards with the highest scores of a day, mean over days.",
        ),
        (
            f"{whole(facts.costs.reviews_a_day)} reviews a day",
            lambda measures: percent(measures.at_review_capacity.recall),
            "The share of frauds that analysts would find if they reviewed only the highest scores of each day. "
            f"{percent(capacity.precision)} of their reviews would find fraud.",
        ),
    ]


def _money_of(measures: ContestantMeasures) -> Money:
    assert measures.whole.money is not None
    return measures.whole.money


def _calibration_of(measures: ContestantMeasures) -> MeanCalibration:
    assert measures.calibration is not None
    return measures.calibration


def _ranking(results: ReplayResults) -> list[PageBlock]:
    if not results.facts.has_outcomes:
        return [Heading("Scores"), Figures([charts.score_spread(results.champion, has_outcomes=False)])]
    drawn = [
        *([charts.precision_recall(results)] if results.facts.frauds else []),
        charts.score_spread(results.champion, has_outcomes=True),
        charts.calibration(results),
        charts.card_precision_by_day(results),
    ]
    text = (
        "This section looks at the scores only, not at the policy. A score should be the probability of fraud. The "
        f"curves are of {measured_text(results.facts)}."
    )
    return [Heading("Do the scores find fraud?"), Paragraph(text), Figures(drawn)]


def _decisions(results: ReplayResults) -> list[PageBlock]:
    drawn = [charts.actions_by_day(results.champion)]
    if results.facts.has_outcomes:
        drawn.append(charts.frauds_by_day(results.champion))
    whose = [Paragraph("The champion's decisions.")] if results.challenger else []
    reasons = Paragraph(
        "A payment with several reasons counts for each of them. The column alone counts payments for which the reason "
        "was the only one. A rule that overrides decides by itself, and no other reason is looked for."
    )
    named = charts.contestants(results) if results.challenger else [("", results.champion)]
    return [
        Heading("Decisions"),
        *whose,
        Figures(drawn),
        Heading("Reasons", 3),
        reasons,
        *(_reasons(style, measures, results) for style, measures in named),
    ]


def _reasons(style: str, measures: ContestantMeasures, results: ReplayResults) -> PageBlock:
    known, unit = results.facts.has_outcomes, results.facts.reference_currency
    heads = ["reason", "action", "payments", "alone", f"amount {unit}".rstrip()]
    heads += ["frauds", "precision", f"fraud {unit}".rstrip()] if known else []
    rows = []
    for reason in measures.by_reason:
        row = [reason.reason, reason.action, whole(reason.payments), whole(reason.alone), amount(reason.amount_minor)]
        if known:
            row += [whole(reason.frauds), fixed_percent(reason.precision), amount(reason.fraud_minor)]
        rows.append(row)
    return (
        PageTable(heads, rows, caption=style.capitalize(), text_columns=2)
        if rows
        else Paragraph("No threshold and no rule asked for a review or a decline.", "soft")
    )


def _missed(results: ReplayResults) -> list[PageBlock]:
    if not results.facts.frauds:
        return []
    text = (
        "A first fraud is the earliest of its card, merchant or device in the whole history: no earlier fraud gave it "
        "away. Value detected is the share of the frauds' amount among the highest scores, down to the threshold at "
        "which they hold that many genuine payments for each fraud. Brackets hold 95% intervals."
    )
    blocks: list[PageBlock] = [Heading("What is missed"), Paragraph(text)]
    for style, measures in charts.contestants(results):
        caption = style.capitalize() if results.challenger else ""
        blocks += [_strike_table(measures, caption), _detected_table(measures, caption)]
        if (told := stops_text(measures)) and measures.stops is not None:
            heads = ["stopped by", "payments", "frauds", "amount", "fraud"]
            rows = [
                [name, whole(of.payments), whole(of.frauds), amount(of.amount_minor), amount(of.fraud_minor)]
                for name, of in measures.stops.by.items()
            ]
            blocks += [Paragraph(f"{told[0].upper()}{told[1:]}."), PageTable(heads, rows, caption=caption)]
    return blocks


def _strike_table(measures: ContestantMeasures, caption: str) -> PageBlock:
    heads = ["first frauds of a", "frauds", "stopped", "approved amount", "bursts", "approved before the first stop"]
    rows = []
    for name, found in measures.first_strikes.items():
        burst = measures.bursts[name]
        before = _with_interval(burst.approved_before_stop, burst.approved_before_stop_interval, decimal)
        stopped = _with_interval(found.recall, found.recall_interval, fixed_percent)
        rows.append([name, whole(found.frauds), stopped, amount(found.approved_minor), whole(burst.bursts), before])
    return PageTable(heads, rows, caption=caption)


def _detected_table(measures: ContestantMeasures, caption: str) -> PageBlock:
    heads = ["false positives a fraud", "threshold", "flagged", "value detected", "frauds", "first frauds of cards"]
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
    return PageTable(heads, rows, caption=caption)


def _with_interval(value: float, interval: Interval, form: Callable[[float, int], str]) -> str:
    """Returns a value and its interval, like "61.2% (50.1%–71.0%)"."""
    text = form(value, 1)
    return text if isnan(interval[0]) else f"{text} ({form(interval[0], 1)}–{form(interval[1], 1)})"


def _thresholds(results: ReplayResults) -> list[PageBlock]:
    if not results.facts.has_outcomes:
        return []
    blocks: list[PageBlock] = [
        Heading("Where to put the thresholds"),
        Paragraph(
            "The effect of any other threshold, if it alone decided: without rules and segments. Dotted lines are the "
            f"policy's thresholds. The curves are of {measured_text(results.facts)}."
        ),
    ]
    for style, measures in charts.scorers(results):
        if not results.is_of_one_model:
            blocks.append(Heading(style.capitalize(), 3))
        blocks.append(Figures([charts.threshold_rates(results, measures), charts.threshold_money(results, measures)]))
    return blocks


def _money(results: ReplayResults) -> list[PageBlock]:
    if not results.facts.has_outcomes:
        return []
    facts, costs = results.facts, results.facts.costs
    money_of_each = [_money_of(measures) for _, measures in charts.contestants(results)]
    lines = (
        ("Fraud declined", "fraud_declined_minor", ""),
        ("Fraud sent to review", "fraud_reviewed_minor", ""),
        ("Fraud missed (approved)", "fraud_missed_minor", ""),
        ("Genuine payments declined", "genuine_declined_minor", ""),
        ("Genuine payments sent to review", "genuine_reviewed_minor", ""),
        ("Loss avoided", "loss_avoided_minor", ""),
        ("Cost of reviews", "review_cost_minor", ""),
        ("Margin lost on declined genuine payments", "margin_lost_minor", ""),
        ("Net value compared with approving everything", "net_minor", "sum"),
    )
    heads = [facts.reference_currency or "amount", *(style for style, _ in charts.contestants(results))]
    rows = [[title, *(amount(getattr(of_one, name)) for of_one in money_of_each)] for title, name, _ in lines]
    review_cost = f"{facts.reference_currency} {amount(costs.review_cost_minor, digits=2)}".strip()
    stated = [
        ("Missed fraud", f"loses {percent(costs.fraud_loss_share, 0)} of its amount."),
        ("Review", f"costs {review_cost}. Analysts are assumed to recognise every fraud that they review."),
        ("Declined genuine", f"loses {percent(costs.declined_margin_share)} of its amount, the margin of the sale."),
        ("Approving", "costs nothing. Net values compare with approving everything."),
        ("Set by", "the section [costs] of the configuration, or --costs. Net values are only as good as these."),
    ]
    table = PageTable(heads, rows, row_styles=[style for _, _, style in lines])
    about = Paragraph(f"The money of {measured_text(results.facts)}.")
    return [Heading("Money"), about, Beside([table], [Heading("At these costs", 3), Definitions(stated)])]


def _segments(results: ReplayResults) -> list[PageBlock]:
    text = f"The {GROUPS_SHOWN} largest groups of each kind. All groups are in metrics.json."
    if results.facts.has_outcomes:
        text += f" {_FEW}"
    blocks: list[PageBlock] = [Heading("Segments"), Paragraph(text)]
    for name, groups in results.champion.by_segment.items():
        if groups:
            theirs = results.challenger.by_segment[name] if results.challenger else []
            shown, hidden = groups[:GROUPS_SHOWN], len(groups) - GROUPS_SHOWN
            name_text = category_text if name == "mcc" else str
            blocks += _group_table(_SEGMENT_TITLES[name], shown, theirs, results, hidden=hidden, text=name_text)
    return blocks


def _days(results: ReplayResults) -> list[PageBlock]:
    days = results.champion.by_day
    theirs = results.challenger.by_day if results.challenger else []
    shown = days[-DAYS_SHOWN:]
    note = f"The last {DAYS_SHOWN} of {len(days)} days. All days are in metrics.json." if len(shown) < len(days) else ""
    if results.facts.has_outcomes:
        note = f"{note} {_FEW}".strip()
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
    """Returns a table with a row for each group. `text` formats a group's name."""
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
    styles = ["faint" if known and group.rests_on_few_frauds else "" for group in groups]
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
        *(
            _share_cell(group, group.recall, group.recall_interval),
            _share_cell(group, group.precision, group.precision_interval),
        ),
        *(reviewed, declined, decimal(group.auc_roc)),
        *(amount(group.money.fraud_missed_minor), amount(group.money.net_minor)),
    ]
    if other is not None and other.money is not None:
        row += [fixed_percent(other.recall), amount(other.money.net_minor)]
    return row


def _share_cell(group: GroupMeasures, share: float, interval: Interval) -> str:
    """Returns a share, with its interval in a group of few frauds: "50.0% (9–91)"."""
    if not group.rests_on_few_frauds or isnan(share):
        return fixed_percent(share)
    low, high = (f"{100 * end:.0f}" for end in interval)
    return f"{fixed_percent(share)} ({low}–{high})"


def _left_out(facts: ReplayFacts) -> str:
    text = ""
    if facts.left_out_unknown:
        text += f" {whole(facts.left_out_unknown)} payments have no outcome, and nobody knows whether they were fraud."
    if facts.protocol == HANDBOOK:
        text += (
            f" {whole(facts.excluded_known_compromised)} payments are left out: their cards were already known to be "
            f"compromised and would have been blocked. A label counts as known {facts.label_delay_days} days after its "
            "payment. Nothing is left out if the first day is not after the champion's training."
        )
    return text


def _method(results: ReplayResults) -> list[PageBlock]:
    facts = results.facts
    entries = [
        (
            "Point in time",
            "Each payment's features use only what was known before it: earlier payments, and labels that had arrived. "
            "All payments before the first day filled the profiles.",
        ),
        (
            "Measured",
            f"{measured_text(facts).capitalize()}.{_left_out(facts)} Numbers, curves, reliability, money, segments and "
            "days are all of these payments.",
        ),
        ("Stopped", "Reviewed or declined. A reviewed fraud counts as found."),
        (
            "Amounts",
            "In the reference currency"
            + (f", {facts.reference_currency}" if facts.reference_currency else "")
            + ", at the exchange rate at the time of each payment.",
        ),
        (
            "Not replayed",
            "Flags of the live system, such as stale profiles or a failed model, and the actions they cause. In a "
            "replay, profiles are always up to date.",
        ),
        (
            "In money",
            "Net value is the loss avoided, minus the cost of reviews, minus the lost margin. It does not include "
            "customers who leave after a decline, nor further fraud that a blocked card prevents.",
        ),
    ]
    return [Heading("How to read this"), Definitions(entries)]
