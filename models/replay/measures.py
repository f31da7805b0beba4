"""What a replay found: one contestant's decisions measured, and two contestants held against each other.

    contestant   a model with a policy; the champion is what serves or would serve, the challenger what might replace it
    measured     the window's payments, less those of cards known to be compromised
    stopped      reviewed or declined

Everything here follows from columns, so two replays of the same input give the same measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.history.history import Coded, History
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.metrics.auc import areas_under_curves
from paywarden.models.metrics.comparison import Agreement, ScoreShift, agreement, score_shift
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.curves import (
    AtCapacity,
    MeanCalibration,
    ReliabilityCurve,
    ScoreHistogram,
    ThresholdCurve,
    at_capacity,
    mean_calibration,
    reliability,
    score_histogram,
    threshold_curve,
)
from paywarden.models.metrics.evaluation import CARDS_A_DAY, card_precision_at_k, date_of_day
from paywarden.models.metrics.segments import DecidedPayments, GroupMeasures, by_group
from paywarden.models.metrics.tally import APPROVED, DECLINED, REVIEWED
from paywarden.models.policy.policy import ACTIONS, Policy
from paywarden.models.replay.replayed_policy import ActionReasons, Decisions

SEGMENTS = ("channel", "country", "mcc", "currency")
NO_VALUE = "(none)"
# As many payments of a kind of change as a report names.
LISTED_MAX = 20


@dataclass(frozen=True)
class Contestant:
    """A model with a policy. `policy_name` says where the policy is from, for people."""

    bundle: Bundle
    policy: Policy
    policy_name: str


@dataclass(frozen=True)
class MeasuredPayments:
    """The measured payments: their rows in the history, and columns of shape (row_count,)."""

    history: History
    row: NDArray[np.int64]
    day: NDArray[np.int64]
    fraud: NDArray[np.bool_]
    amount_minor: NDArray[np.int64]
    """In minor units of the reference currency."""
    has_outcomes: bool


@dataclass(frozen=True)
class ReplayFacts:
    """What was replayed, whoever decided. Days are dates, both included.

    `payments` and `frauds` are those that were measured; `without_outcome` of those count as genuine, as in training.
    """

    first_day: str
    """First UTC day that was measured."""
    last_day: str
    """Last UTC day that was measured."""
    payments: int
    """Payments that were measured."""
    frauds: int
    """Those of them that were fraud."""
    without_outcome: int
    """Measured payments without any outcome; they count as genuine."""
    amount_minor: int
    """Amounts of the measured payments."""
    fraud_minor: int
    """Amounts of the frauds among them."""
    payments_replayed: int
    """Payments that were run through, those that warm profiles up included."""
    excluded_known_compromised: int
    """Payments of the window that are not measured: their cards were known to be compromised."""
    label_delay_days: int
    """How many days after its payment a label is taken to be known."""
    reference_currency: str
    """ISO 4217 code of the currency that amounts are compared in."""
    costs: CostSettings
    """What was taken for costs."""

    @property
    def has_outcomes(self) -> bool:
        """Whether anything is known of any measured payment: without, nothing that needs labels has a value."""
        return self.without_outcome < self.payments


@dataclass(frozen=True)
class ReasonMeasures:
    """The payments that a reason asked an action for; of `alone` it was the only reason. Precision may be NaN."""

    reason: str
    """The reason, such as `rule:large`."""
    action: str
    """The action it asked for."""
    payments: int
    """Payments it asked about."""
    alone: int
    """Those of them for which it was the only reason."""
    frauds: int
    """Frauds among the payments."""
    precision: float
    """Frauds by payments."""
    amount_minor: int
    """Amounts of the payments."""
    fraud_minor: int
    """Amounts of the frauds."""


@dataclass(frozen=True)
class ContestantMeasures:
    """How one contestant did. `actions` are of all payments of the window, the rest of the measured ones."""

    model_version: str
    """The bundle's version."""
    policy: str
    """Where the policy is from."""
    rules: int
    """How many rules the policy has."""
    policy_segments: int
    """How many segments the policy has."""
    review_at: float
    """Scores from here on are reviewed."""
    decline_at: float
    """Scores from here on are declined."""
    train_from: str
    """First UTC day the model was trained on."""
    train_to: str
    """Last UTC day the model was trained on."""
    auc_roc: float
    """Area under the ROC curve: how often a fraud scores higher than a genuine payment."""
    average_precision: float
    """Average precision: how well scores put fraud first, over all thresholds."""
    card_precision_at_100: float
    """Of the 100 highest scored cards of a day, the share that was compromised; mean over days."""
    card_precision_per_day: list[float]
    """The same of each day of `by_day`; empty without outcomes."""
    calibration: MeanCalibration | None
    """Mean score and share of frauds; null without outcomes."""
    actions: dict[str, int]
    """All payments of the window by action, the ones that are not measured included."""
    whole: GroupMeasures
    """The measured payments as one group."""
    by_reason: list[ReasonMeasures]
    """Reasons, those of the most payments first."""
    at_review_capacity: AtCapacity
    """What would be found if analysts looked at the highest scores of each day."""
    threshold_curve: ThresholdCurve
    """What every threshold would have done."""
    reliability: ReliabilityCurve | None
    """Scores against shares of frauds, in bins; null without outcomes."""
    score_histogram: ScoreHistogram
    """Payments by score."""
    by_day: list[GroupMeasures]
    """The measured payments by UTC day."""
    by_segment: dict[str, list[GroupMeasures]]
    """The same by channel, country, mcc and currency, the largest group first."""


@dataclass(frozen=True)
class ChangedPayment:
    """A payment that the two decide differently about. It names no card."""

    payment_id: str
    """The payment's id."""
    day: str
    """Its UTC day."""
    amount_minor: int
    """Its amount."""
    champion_score: float
    """The champion's score."""
    challenger_score: float
    """The challenger's score."""
    champion_action: str
    """The champion's action."""
    challenger_action: str
    """The challenger's action."""


@dataclass(frozen=True)
class ActionChange:
    """One kind of change between the two; `largest` are those of the highest amounts, at most LISTED_MAX."""

    payments: int
    """Payments that changed in this way."""
    amount_minor: int
    """Their amounts."""
    largest: list[ChangedPayment]
    """Those of the highest amounts, at most 20."""


@dataclass(frozen=True)
class Comparison:
    """The challenger held against the champion, payment by payment. `changes` is empty where no outcome is known."""

    agreement: Agreement
    """How often both take the same action."""
    score_shift: ScoreShift
    """The challenger's scores less the champion's."""
    changes: dict[str, ActionChange]
    """By kind of change: fraud_caught, fraud_missed, genuine_declined, genuine_reviewed and genuine_released. Empty
    without outcomes.
    """


@dataclass(frozen=True)
class ReplayResults:
    """Everything metrics.json and report.html are made of. A value that cannot be computed is NaN, or null in JSON."""

    facts: ReplayFacts
    champion: ContestantMeasures
    challenger: ContestantMeasures | None
    comparison: Comparison | None

    @property
    def is_of_one_model(self) -> bool:
        """Whether all scores are of one model: two contestants then differ in policy alone."""
        return self.challenger is None or self.challenger.model_version == self.champion.model_version

    def headline(self) -> dict[str, Any]:
        """The few numbers that callers depend on: the champion's, and a challenger's under its own name."""
        facts = self.facts
        of_all = {
            name: getattr(facts, name)
            for name in ("payments", "frauds", "payments_replayed", "excluded_known_compromised")
        }
        values: dict[str, Any] = _headline_of(self.champion) | of_all
        if self.challenger is not None:
            values["challenger"] = _headline_of(self.challenger)
        plain: dict[str, Any] = _plain(values)
        return plain

    def to_json(self, payments_per_second: float) -> str:
        """metrics.json: the champion's measures at the top, and the challenger's under its own name.

        `payments_per_second` is the only value that differs between two replays of the same input.
        """
        values = asdict(self.champion) | asdict(self.facts) | {"payments_per_second": payments_per_second}
        if self.challenger is not None and self.comparison is not None:
            values |= {"challenger": asdict(self.challenger), "comparison": asdict(self.comparison)}
        return json.dumps(_plain(self.headline() | values), indent=2, allow_nan=False) + "\n"


def measure_contestant(
    contestant: Contestant,
    measured: MeasuredPayments,
    made: Decisions,
    *,
    causes: Sequence[ActionReasons],
    actions: dict[str, int],
    costs: CostSettings,
) -> ContestantMeasures:
    """Measure the decisions about the measured payments; `actions` counts those about all payments of the window."""
    manifest, score = contestant.bundle.manifest, made.score
    decided = DecidedPayments(made.action, score, measured.fraud, measured.amount_minor, measured.has_outcomes)
    label = measured.fraud.view(np.int8)
    (whole,) = by_group(["all"], np.zeros(len(score), dtype=np.uint8), decided, costs)
    # To the last bit those numbers that are held against others': the groups' may differ in the last digit.
    area, precise = areas_under_curves(measured.fraud, score)
    whole = replace(whole, auc_roc=area, average_precision=precise)
    precision = card_precision_at_k(measured.day, _cards(measured), label, score, CARDS_A_DAY)
    days = np.unique(measured.day)
    review_at, decline_at = contestant.policy.thresholds
    return ContestantMeasures(
        model_version=manifest.model_version,
        policy=contestant.policy_name,
        rules=contestant.policy.rule_count,
        policy_segments=contestant.policy.segment_count,
        review_at=review_at,
        decline_at=decline_at,
        train_from=manifest.train_from,
        train_to=manifest.train_to,
        auc_roc=whole.auc_roc,
        average_precision=whole.average_precision,
        card_precision_at_100=precision.mean if measured.has_outcomes else float("nan"),
        card_precision_per_day=precision.per_day.tolist() if measured.has_outcomes else [],
        calibration=mean_calibration(measured.fraud, score, _cards(measured)) if measured.has_outcomes else None,
        actions=actions,
        whole=whole,
        by_reason=_by_reason(measured, made, causes),
        at_review_capacity=at_capacity(measured.day, measured.fraud, score, measured.amount_minor, costs.reviews_a_day),
        threshold_curve=threshold_curve(measured.fraud, score, measured.amount_minor, costs),
        reliability=reliability(measured.fraud, score) if measured.has_outcomes else None,
        score_histogram=score_histogram(measured.fraud, score),
        by_day=by_group(
            [date_of_day(day) for day in days.tolist()],
            np.searchsorted(days, measured.day).astype(np.int32),
            decided,
            costs,
        ),
        by_segment={name: _by_segment(measured.history.coded(name), measured.row, decided, costs) for name in SEGMENTS},
    )


def compare(
    measured: MeasuredPayments,
    champion: Decisions,
    challenger: Decisions,
) -> Comparison:
    """Hold two contestants' decisions about the measured payments against each other."""
    before, after = champion.action, challenger.action
    was_stopped, is_stopped = before >= REVIEWED, after >= REVIEWED
    kinds = {
        "fraud_caught": measured.fraud & ~was_stopped & is_stopped,
        "fraud_missed": measured.fraud & was_stopped & ~is_stopped,
        "genuine_declined": ~measured.fraud & (before < DECLINED) & (after == DECLINED),
        "genuine_reviewed": ~measured.fraud & (before == APPROVED) & (after == REVIEWED),
        "genuine_released": ~measured.fraud & (before > APPROVED) & (after == APPROVED),
    }
    describe = _describer(measured, champion, challenger)
    return Comparison(
        agreement=agreement(before, after, measured.fraud),
        score_shift=score_shift(champion.score, challenger.score),
        changes={name: _change(rows, measured, describe) for name, rows in kinds.items()}
        if measured.has_outcomes
        else {},
    )


def count_actions(action: NDArray[np.int8]) -> dict[str, int]:
    """How often each action was taken, by name."""
    return dict(zip(ACTIONS, np.bincount(action, minlength=len(ACTIONS)).tolist(), strict=True))


def _cards(measured: MeasuredPayments) -> NDArray[np.int32]:
    return measured.history.card.codes[measured.row]


def _by_segment(
    column: Coded, row: NDArray[np.int64], decided: DecidedPayments, costs: CostSettings
) -> list[GroupMeasures]:
    """Groups of a text field, the largest first; empty where no payment has the field."""
    names = [*column.names.to_pylist(), NO_VALUE]
    codes = column.codes[row]
    # What code -1 stands for is the last.
    groups = by_group(names, np.where(codes < 0, len(names) - 1, codes), decided, costs)
    if [group.name for group in groups] == [NO_VALUE]:
        return []
    return sorted(groups, key=lambda group: (-group.payments, group.name))


def _by_reason(measured: MeasuredPayments, made: Decisions, causes: Sequence[ActionReasons]) -> list[ReasonMeasures]:
    """The reasons that there were, those of the most payments first. A payment counts for each of its reasons."""
    size, cause, fraud = len(causes), made.cause, measured.fraud
    amount = measured.amount_minor
    # By cause: payments, frauds, amount, amount of frauds. Sums are exact up to 2**53.
    sums = np.array(
        [
            np.bincount(cause, minlength=size),
            np.bincount(cause[fraud], minlength=size),
            np.bincount(cause, weights=amount, minlength=size),
            np.bincount(cause[fraud], weights=amount[fraud], minlength=size),
        ]
    )
    found = []
    for reason, action in sorted({(reason, action) for action, reasons in causes for reason in reasons}):
        among = [place for place, one in enumerate(causes) if one.action == action and reason in one.reasons]
        alone = [place for place in among if len(causes[place].reasons) == 1]
        payments, frauds, amount_minor, fraud_minor = (int(part) for part in sums[:, among].sum(axis=1))
        if payments:
            precision = frauds / payments if measured.has_outcomes else float("nan")
            only = int(sums[0, alone].sum())
            found.append(ReasonMeasures(reason, action, payments, only, frauds, precision, amount_minor, fraud_minor))
    return sorted(found, key=lambda one: (-one.payments, one.reason))


def _change(
    is_changed: NDArray[np.bool_], measured: MeasuredPayments, describe: Callable[[int], ChangedPayment]
) -> ActionChange:
    rows = np.flatnonzero(is_changed)
    amount = measured.amount_minor[rows]
    largest = rows[np.argsort(-amount, kind="stable")[:LISTED_MAX]]
    return ActionChange(len(rows), int(amount.sum()), [describe(row) for row in largest.tolist()])


def _describer(
    measured: MeasuredPayments,
    champion: Decisions,
    challenger: Decisions,
) -> Callable[[int], ChangedPayment]:
    def describe(row: int) -> ChangedPayment:
        return ChangedPayment(
            payment_id=_text(measured.history.payment_id[int(measured.row[row])]),
            day=date_of_day(int(measured.day[row])),
            amount_minor=int(measured.amount_minor[row]),
            champion_score=float(champion.score[row]),
            challenger_score=float(challenger.score[row]),
            champion_action=ACTIONS[champion.action[row]],
            challenger_action=ACTIONS[challenger.action[row]],
        )

    return describe


def _text(value: pa.Scalar) -> str:
    return str(value.as_py())


def _headline_of(one: ContestantMeasures) -> dict[str, Any]:
    return {
        "auc_roc": one.auc_roc,
        "average_precision": one.average_precision,
        "card_precision_at_100": one.card_precision_at_100,
        "calibration": None if one.calibration is None else asdict(one.calibration),
        "actions": one.actions,
        "model_version": one.model_version,
    }


def _plain(value: Any) -> Any:
    """The same with null for what is not a number."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
