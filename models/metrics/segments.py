"""Measure decisions separately for each of many groups: days, channels, countries.

Payments are sorted by score once. A stable sort by group keeps that order within each group. Areas under curves then
take one pass over each group instead of another sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from paywarden.models.metrics.auc_variance import variance_of_sums
from paywarden.models.metrics.costs import CostSettings, Money, money_of
from paywarden.models.metrics.intervals import FRAUDS_FEW, auc_interval, average_precision_interval, share_interval
from paywarden.models.metrics.tally import DECLINED, FRAUD, REVIEWED, tally

# Rows processed at once, so that temporary arrays are small compared with the columns.
_ROWS = 1 << 18


@dataclass(frozen=True)
class DecidedPayments:
    """Measured payments as columns of shape (row_count,). `has_outcomes`: whether any payment has a known label."""

    action: npt.NDArray[np.int8]
    score: npt.NDArray[np.float64]
    fraud: npt.NDArray[np.bool_]
    amount_minor: npt.NDArray[np.int64]
    """In minor units of the reference currency."""
    has_outcomes: bool

    @cached_property
    def falling(self) -> npt.NDArray[np.intp]:
        """The row numbers in order of score, the highest first."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True)
class GroupMeasures:
    """The measures of one group. A payment is stopped if it is reviewed or declined. NaN where a divisor is 0."""

    name: str
    """The group's value, such as a channel or a date; `(none)` without the field."""
    payments: int
    """Measured payments."""
    frauds: int
    """Frauds among them."""
    frauds_stopped: int
    """Frauds that were reviewed or declined."""
    reviewed: int
    """Reviewed payments."""
    declined: int
    """Declined payments."""
    fraud_share: float
    """Frauds divided by payments."""
    precision: float
    """Share of frauds among reviewed and declined payments."""
    recall: float
    """Share of the frauds that were reviewed or declined."""
    mean_score: float
    """Mean of the scores."""
    auc_roc: float
    """Area under the ROC curve."""
    average_precision: float
    """Average precision."""
    precision_interval: tuple[float, float]
    """Its 95 % interval."""
    recall_interval: tuple[float, float]
    """Its 95 % interval."""
    auc_roc_interval: tuple[float, float]
    """The 95 % interval of `auc_roc`."""
    average_precision_interval: tuple[float, float]
    """The 95 % interval of `average_precision`."""
    amount_minor: int
    """Sum of the payments' amounts."""
    fraud_minor: int
    """Sum of the frauds' amounts."""
    money: Money | None
    """Money; null without known outcomes."""

    @property
    def rests_on_few_frauds(self) -> bool:
        """Whether the frauds are too few for its shares and areas to say much without their intervals."""
        return self.frauds < FRAUDS_FEW


def by_group(
    names: Sequence[str], group: npt.NDArray[np.integer], decided: DecidedPayments, costs: CostSettings
) -> list[GroupMeasures]:
    """Returns the measures of every group with payments, in the order of `names`.

    `group`: (row_count,), indexes into `names`.
    """
    counted = tally(group, len(names), decided.action, decided.fraud, decided.amount_minor)
    if len(names) == 1:
        rows = decided.falling
        return (
            [_measures(names[0], counted.count[0], counted.amount_minor[0], rows, decided, costs)] if len(rows) else []
        )
    # NumPy sorts 16-bit numbers with a radix sort, which is faster.
    narrow = group.astype(np.uint16 if len(names) <= np.iinfo(np.uint16).max else np.int64)
    order = decided.falling[np.argsort(narrow[decided.falling], kind="stable")]
    starts = np.searchsorted(narrow[order], np.arange(len(names) + 1))
    measures = []
    for number, name in enumerate(names):
        rows = order[starts[number] : starts[number + 1]]
        if len(rows):
            measures.append(_measures(name, counted.count[number], counted.amount_minor[number], rows, decided, costs))
    return measures


def _measures(
    name: str,
    count: npt.NDArray[np.int64],
    amount_minor: npt.NDArray[np.int64],
    rows: npt.NDArray[np.intp],
    decided: DecidedPayments,
    costs: CostSettings,
) -> GroupMeasures:
    score = decided.score[rows]
    auc_roc, average_precision, variance = _areas(decided.fraud[rows], score)
    frauds, stopped = int(count[:, FRAUD].sum()), int(count[REVIEWED:].sum())
    found = int(count[REVIEWED:, FRAUD].sum())
    known = decided.has_outcomes
    precision = found / stopped if known and stopped else float("nan")
    recall = found / frauds if frauds else float("nan")
    return GroupMeasures(
        name=name,
        payments=len(rows),
        frauds=frauds,
        frauds_stopped=found,
        reviewed=int(count[REVIEWED].sum()),
        declined=int(count[DECLINED].sum()),
        fraud_share=frauds / len(rows) if known else float("nan"),
        precision=precision,
        recall=recall,
        mean_score=float(score.mean()),
        auc_roc=auc_roc,
        average_precision=average_precision,
        precision_interval=share_interval(precision, stopped),
        recall_interval=share_interval(recall, frauds),
        auc_roc_interval=auc_interval(auc_roc, frauds, len(rows) - frauds, variance),
        average_precision_interval=average_precision_interval(average_precision, frauds),
        amount_minor=int(amount_minor.sum()),
        fraud_minor=int(amount_minor[:, FRAUD].sum()),
        money=money_of(count, amount_minor, costs) if known else None,
    )


def _areas(fraud: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns (area under the ROC curve, average precision, variance of the area).

    The first two are defined in models/metrics/evaluation.py, the third in models/metrics/auc_variance.py.

    Rows must be in order of falling score.
    """
    rows, frauds = len(score), float(np.count_nonzero(fraud))
    if not frauds:
        return float("nan"), float("nan"), float("nan")
    genuine = rows - frauds
    # Terms are summed at the end in one call, because a sum of floats depends on its order. The area is a sum of
    # multiples of one half, and exact.
    terms, count = np.empty(rows), 0
    area, before, false_before = 0.0, 0.0, 0.0
    # The sums from which models/metrics/auc_variance.py computes the variance.
    fraud_sum, genuine_sum = 0.0, 0.0
    total = 0
    for first in range(0, rows, _ROWS):
        last = min(first + _ROWS, rows)
        # A threshold flags all payments with its score. Only the end of each run of equal scores matters.
        ends = np.flatnonzero(score[first + 1 : last + 1] != score[first : min(last, rows - 1)])
        if last == rows:
            ends = np.append(ends, rows - 1 - first)
        found = (total + np.cumsum(fraud[first:last], dtype=np.int64))[ends].astype(np.float64)
        total += int(np.count_nonzero(fraud[first:last]))
        if not len(ends):
            continue
        flagged = first + ends + 1.0
        step = np.diff(found, prepend=before)
        terms[count : count + len(ends)] = step / frauds * found / flagged
        count += len(ends)
        # For each genuine payment, count the frauds above it, and half of the frauds with the same score.
        false_positives = flagged - found
        false_step = np.diff(false_positives, prepend=false_before)
        area += float(np.sum(false_step * (found - step / 2)))
        fraud_sum += float(np.sum(step * (false_positives - false_step / 2) ** 2))
        genuine_sum += float(np.sum(false_step * (frauds - found + step / 2) ** 2))
        before, false_before = float(found[-1]), float(false_positives[-1])
    average_precision = float(np.sum(terms[:count]))
    if not genuine:
        return float("nan"), average_precision, float("nan")
    auc_roc = area / (frauds * genuine)
    return auc_roc, average_precision, variance_of_sums(auc_roc, frauds, genuine, fraud_sum, genuine_sum)
