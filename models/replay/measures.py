"""Measure a replay's decisions: each contestant by itself, and both compared.

    contestant   a model with a policy. The champion is the one that serves; the challenger might replace it
    measured     the window's payments with a label; with the handbook's protocol, those of cards not known to be
                 compromised
    stopped      reviewed or declined

How it works:

1. `measure_contestant` measures all payments as one group, then by day, reason and segment.
2. `compare` counts pairs of actions, the shift of scores, and five kinds of change.
3. `ReplayResults.to_json` writes everything as metrics.json.

Example: 1,000 payments have 10 frauds. The champion reviews 15 payments and declines 5; 8 of these 20 are frauds. Its
recall is 8 / 10 = 0.80 and its precision 8 / 20 = 0.40.

All measures follow from columns alone, so two replays of the same input give the same measures.
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
from paywarden.models.metrics.bursts import BurstMeasures
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
from paywarden.models.metrics.first_strikes import FirstStrikes, Strikes, bursts_of, first_strikes
from paywarden.models.metrics.policy_value import PolicyValue, gains, policy_value
from paywarden.models.metrics.segments import DecidedPayments, GroupMeasures, by_group
from paywarden.models.metrics.tally import APPROVED, DECLINED, REVIEWED
from paywarden.models.metrics.value_detected import Detected, ScoredPayments, detected
from paywarden.models.metrics.weighted_measures import WeightedMeasures, weighted_measures
from paywarden.models.policy.policy import ACTIONS, Policy
from paywarden.models.replay.replayed_policy import ActionReasons, Decisions
from paywarden.models.replay.stops import Stops, stops

ALL_PAYMENTS, HANDBOOK = "all", "handbook"
PROTOCOLS = (ALL_PAYMENTS, HANDBOOK)
"""Which payments are measured: all, or those that the Fraud Detection Handbook's protocol measures."""

SEGMENTS = ("channel", "country", "mcc", "currency")
NO_VALUE = "(none)"
# At most this many payments of each kind of change are listed.
LISTED_MAX = 20


@dataclass(frozen=True)
class Contestant:
    """A model with a policy. `policy_name` says where the policy comes from, for the report."""

    bundle: Bundle
    policy: Policy
    policy_name: str


@dataclass(frozen=True)
class MeasuredPayments:
    """The measured payments as columns of shape (row_count,). `row`: their rows in the history; `day`: UTC days."""

    history: History
    row: NDArray[np.int64]
    day: NDArray[np.int64]
    fraud: NDArray[np.bool_]
    amount_minor: NDArray[np.int64]
    """In minor units of the reference currency."""
    strikes: Strikes
    """The frauds among them, and which are the first of their card, merchant or device."""
    has_outcomes: bool
    propensity_weight_max: float = 0.0
    """The largest weight that a propensity gives; 0 gives none."""


@dataclass(frozen=True)
class ReplayFacts:
    """The facts of a replay that do not depend on a contestant. Days are dates; both ends belong to the window."""

    first_day: str
    """First measured UTC day."""
    last_day: str
    """Last measured UTC day."""
    payments: int
    """Measured payments."""
    frauds: int
    """Frauds among them."""
    without_outcome: int
    """Measured payments without an outcome, which count as genuine."""
    left_out_unknown: int
    """Payments of the window that are left out, because their label is not known."""
    protocol: str
    """`all`, or `handbook`: without cards already known to be compromised."""
    amount_minor: int
    """Sum of the measured payments' amounts."""
    fraud_minor: int
    """Sum of the frauds' amounts."""
    payments_replayed: int
    """Replayed payments, with those before the window, which fill the profiles."""
    excluded_known_compromised: int
    """With `handbook`: payments left out, because their cards were known to be compromised."""
    label_delay_days: int
    """With `handbook`: the days until a payment's label counts as known."""
    reference_currency: str
    """ISO 4217 code of the reference currency."""
    costs: CostSettings
    """The stated costs."""
    profile_lag: str = "0"
    """The lag of the profiles: `0`, a duration such as `150ms`, or the name of a file of lags."""
    overlay_hosts: int = 0
    """The number of hosts with an overlay; 0 without one."""

    @property
    def has_outcomes(self) -> bool:
        """Whether any measured payment has an outcome. Without outcomes, nothing that needs labels has a value."""
        return self.without_outcome < self.payments


@dataclass(frozen=True)
class ReasonMeasures:
    """The payments for which a reason asked for an action. Precision may be NaN."""

    reason: str
    """The reason, such as `rule:large`."""
    action: str
    """The action that the reason asked for."""
    payments: int
    """Payments with this reason."""
    alone: int
    """Payments with no other reason."""
    frauds: int
    """Frauds among the payments."""
    precision: float
    """Frauds divided by payments."""
    amount_minor: int
    """Sum of the payments' amounts."""
    fraud_minor: int
    """Sum of the frauds' amounts."""


@dataclass(frozen=True)
class ContestantMeasures:
    """The results of one contestant. `actions` counts all payments of the window, all else the measured ones."""

    model_version: str
    """The bundle's version."""
    policy: str
    """The source of the policy."""
    rules: int
    """The number of the policy's rules."""
    policy_segments: int
    """The number of the policy's segments."""
    review_at: float
    """The threshold of review."""
    decline_at: float
    """The threshold of decline."""
    train_from: str
    """First UTC day of training."""
    train_to: str
    """Last UTC day of training."""
    auc_roc: float
    """Area under the ROC curve: how often a fraud scores higher than a genuine payment."""
    average_precision: float
    """Average precision: how well the scores put fraud first, over all thresholds."""
    auc_roc_interval: tuple[float, float]
    """The 95 % interval of `auc_roc`."""
    average_precision_interval: tuple[float, float]
    """The 95 % interval of `average_precision`."""
    card_precision_at_100: float
    """Compromised cards among a day's 100 cards with the highest scores; mean over days."""
    card_precision_per_day: list[float]
    """The same for each day of `by_day`."""
    calibration: MeanCalibration | None
    """Mean score and share of frauds; null without outcomes."""
    weighted: WeightedMeasures | None
    """The measures with propensity weights; null without propensities."""
    policy_value: PolicyValue | None
    """The policy's value with propensity weights; null with fewer than 20 explored payments."""
    actions: dict[str, int]
    """All payments of the window by action."""
    whole: GroupMeasures
    """The measured payments as one group."""
    by_reason: list[ReasonMeasures]
    """The reasons, the most frequent first."""
    at_review_capacity: AtCapacity
    """Frauds that reviews of each day's highest scores would find."""
    threshold_curve: ThresholdCurve
    """The effect of every threshold."""
    reliability: ReliabilityCurve | None
    """Mean scores and shares of frauds in bins; null without outcomes."""
    score_histogram: ScoreHistogram
    """Payments by score."""
    by_day: list[GroupMeasures]
    """The measured payments by UTC day."""
    by_segment: dict[str, list[GroupMeasures]]
    """The measured payments by channel, country, mcc and currency, the largest group first."""
    bursts: dict[str, BurstMeasures]
    """Bursts of fraud by the entity that they have in common: card, merchant and device. Empty without outcomes."""
    first_strikes: dict[str, FirstStrikes]
    """The first frauds of cards, merchants and devices, by the entity. Empty without outcomes."""
    detected: list[Detected]
    """What the scores detect at 5 and at 10 false positives for each fraud. Empty without outcomes."""
    stops: Stops | None
    """How many payments lists, the model, or rules alone stopped. Null without outcomes."""


@dataclass(frozen=True)
class ChangedPayment:
    """A payment for which champion and challenger take different actions. It names no card."""

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
    """One kind of change from champion to challenger."""

    payments: int
    """Payments that changed in this way."""
    amount_minor: int
    """Sum of their amounts."""
    largest: list[ChangedPayment]
    """At most 20, the highest amounts first."""


@dataclass(frozen=True)
class ReplayComparison:
    """Champion and challenger compared, payment by payment."""

    agreement: Agreement
    """How often both take the same action."""
    score_shift: ScoreShift
    """The challenger's scores minus the champion's."""
    value_gain: PolicyValue | None
    """The challenger's policy value minus the champion's; null with fewer than 20 explored payments."""
    changes: dict[str, ActionChange]
    """The changes by kind: fraud_caught, fraud_missed, genuine_declined, genuine_reviewed and genuine_released. Empty
    without outcomes.
    """


@dataclass(frozen=True)
class ReplayResults:
    """The content of metrics.json and report.html. A value that cannot be computed is NaN here, and null in JSON."""

    facts: ReplayFacts
    champion: ContestantMeasures
    challenger: ContestantMeasures | None
    comparison: ReplayComparison | None

    @property
    def is_of_one_model(self) -> bool:
        """Whether both contestants have the same model, or there is no challenger: they differ at most in policy."""
        return self.challenger is None or self.challenger.model_version == self.champion.model_version

    def headline(self) -> dict[str, Any]:
        """Returns the numbers that the command prints: the champion's, and under `challenger` the challenger's."""
        facts = self.facts
        counts = {
            name: getattr(facts, name)
            for name in (
                *("protocol", "profile_lag", "payments", "frauds", "payments_replayed"),
                *("left_out_unknown", "excluded_known_compromised"),
            )
        }
        values: dict[str, Any] = _headline_of(self.champion) | counts
        if self.challenger is not None:
            values["challenger"] = _headline_of(self.challenger)
        plain: dict[str, Any] = _plain(values)
        return plain

    def to_json(self, payments_per_second: float) -> str:
        """Returns metrics.json: the champion's measures at the top, and under `challenger` the challenger's.

        `payments_per_second` is the only value that differs between two replays of the same input.
        """
        values = asdict(self.champion) | asdict(self.facts) | {"payments_per_second": payments_per_second}
        if self.challenger is not None and self.comparison is not None:
            values |= {"challenger": asdict(self.challenger), "comparison": asdict(self.comparison)}
        return json.dumps(_plain(self.headline() | values), indent=2, allow_nan=False) + "\n"


def measure_contestant(
    contestant: Contestant,
    measured: MeasuredPayments,
    decisions: Decisions,
    *,
    causes: Sequence[ActionReasons],
    actions: dict[str, int],
    costs: CostSettings,
) -> ContestantMeasures:
    """Measure the decisions about the measured payments. `actions` counts the actions in the whole window."""
    manifest, score = contestant.bundle.manifest, decisions.score
    decided = DecidedPayments(decisions.action, score, measured.fraud, measured.amount_minor, measured.has_outcomes)
    label = measured.fraud.view(np.int8)
    (whole,) = by_group(["all"], np.zeros(len(score), dtype=np.uint8), decided, costs)
    # Published numbers must equal scikit-learn's to the last bit. The groups' may differ in the last digit.
    auc_roc, average_precision = areas_under_curves(measured.fraud, score)
    whole = replace(whole, auc_roc=auc_roc, average_precision=average_precision)
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
        auc_roc_interval=whole.auc_roc_interval,
        average_precision_interval=whole.average_precision_interval,
        card_precision_at_100=precision.mean if measured.has_outcomes else float("nan"),
        card_precision_per_day=precision.per_day.tolist() if measured.has_outcomes else [],
        calibration=mean_calibration(measured.fraud, score, _cards(measured)) if measured.has_outcomes else None,
        weighted=_weighted(measured, score),
        policy_value=_value(measured, _gains(measured, decisions, costs)),
        actions=actions,
        whole=whole,
        by_reason=_by_reason(measured, decisions, causes),
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
        bursts=bursts_of(measured.strikes, decisions.action, measured.amount_minor) if measured.has_outcomes else {},
        first_strikes=first_strikes(measured.strikes, decisions.action, measured.amount_minor)
        if measured.has_outcomes
        else {},
        detected=detected(_scored(measured, score), decided.falling) if measured.has_outcomes else [],
        stops=stops(contestant.policy, causes, decisions.cause, measured.fraud, measured.amount_minor)
        if measured.has_outcomes
        else None,
    )


def compare(
    measured: MeasuredPayments,
    champion: Decisions,
    challenger: Decisions,
    costs: CostSettings,
) -> ReplayComparison:
    """Compare two contestants' decisions about the measured payments."""
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
    return ReplayComparison(
        agreement=agreement(before, after, measured.fraud),
        score_shift=score_shift(champion.score, challenger.score),
        value_gain=_value(measured, _gains(measured, challenger, costs) - _gains(measured, champion, costs)),
        changes={name: _change(rows, measured, describe) for name, rows in kinds.items()}
        if measured.has_outcomes
        else {},
    )


def count_actions(action: NDArray[np.int8]) -> dict[str, int]:
    """Returns how often each action was taken, by name."""
    return dict(zip(ACTIONS, np.bincount(action, minlength=len(ACTIONS)).tolist(), strict=True))


def _weighted(measured: MeasuredPayments, score: NDArray[np.float64]) -> WeightedMeasures | None:
    """Returns the measures with propensity weights; None without propensities or outcomes."""
    propensity, weight_max = measured.history.propensity, measured.propensity_weight_max
    if propensity is None or not weight_max or not measured.has_outcomes:
        return None
    return weighted_measures(propensity[measured.row], measured.fraud, score, _cards(measured), weight_max)


def _gains(measured: MeasuredPayments, decisions: Decisions, costs: CostSettings) -> NDArray[np.float64]:
    return gains(decisions.action, measured.fraud, measured.amount_minor, costs)


def _value(measured: MeasuredPayments, gain: NDArray[np.float64]) -> PolicyValue | None:
    """Returns the value of these gains; None without propensities or outcomes."""
    propensity = measured.history.propensity
    if propensity is None or not measured.propensity_weight_max or not measured.has_outcomes:
        return None
    return policy_value(gain, propensity[measured.row], _cards(measured))


def _scored(measured: MeasuredPayments, score: NDArray[np.float64]) -> ScoredPayments:
    return ScoredPayments(measured.fraud, score, measured.amount_minor, _cards(measured), measured.strikes)


def _cards(measured: MeasuredPayments) -> NDArray[np.int32]:
    return measured.history.card.codes[measured.row]


def _by_segment(
    column: Coded, row: NDArray[np.int64], decided: DecidedPayments, costs: CostSettings
) -> list[GroupMeasures]:
    """Returns the groups of a text field, the largest first; empty if no payment has the field."""
    names = [*column.names.to_pylist(), NO_VALUE]
    codes = column.codes[row]
    # Code -1, no value, becomes the last group.
    groups = by_group(names, np.where(codes < 0, len(names) - 1, codes), decided, costs)
    if [group.name for group in groups] == [NO_VALUE]:
        return []
    return sorted(groups, key=lambda group: (-group.payments, group.name))


def _by_reason(
    measured: MeasuredPayments, decisions: Decisions, causes: Sequence[ActionReasons]
) -> list[ReasonMeasures]:
    """Returns the reasons, the one with the most payments first. A payment counts for each of its reasons."""
    size, cause, fraud = len(causes), decisions.cause, measured.fraud
    amount = measured.amount_minor
    # Rows: payments, frauds, amount, amount of frauds. Columns: causes. Sums are exact up to 2**53.
    sums = np.array(
        [
            np.bincount(cause, minlength=size),
            np.bincount(cause[fraud], minlength=size),
            np.bincount(cause, weights=amount, minlength=size),
            np.bincount(cause[fraud], weights=amount[fraud], minlength=size),
        ]
    )
    measures = []
    for reason, action in sorted({(reason, action) for action, reasons in causes for reason in reasons}):
        among = [place for place, cause_ in enumerate(causes) if cause_.action == action and reason in cause_.reasons]
        alone = [place for place in among if len(causes[place].reasons) == 1]
        payments, frauds, amount_minor, fraud_minor = (int(part) for part in sums[:, among].sum(axis=1))
        if payments:
            precision = frauds / payments if measured.has_outcomes else float("nan")
            only = int(sums[0, alone].sum())
            measures.append(
                ReasonMeasures(reason, action, payments, only, frauds, precision, amount_minor, fraud_minor)
            )
    return sorted(measures, key=lambda reason: (-reason.payments, reason.reason))


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


def _headline_of(measures: ContestantMeasures) -> dict[str, Any]:
    return {
        "auc_roc": measures.auc_roc,
        "auc_roc_interval": measures.auc_roc_interval,
        "average_precision": measures.average_precision,
        "average_precision_interval": measures.average_precision_interval,
        "card_precision_at_100": measures.card_precision_at_100,
        "calibration": None if measures.calibration is None else asdict(measures.calibration),
        "actions": measures.actions,
        "model_version": measures.model_version,
    }


def _plain(value: Any) -> Any:
    """Returns the value with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
