"""Decisions measured apart for each of many groups: days, channels, countries.

Payments are put in order of score once, and then brought together by group, which keeps that order: areas under curves
then take a pass over each group instead of a sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from paywarden.models.metrics.costs import CostSettings, Money, money_of
from paywarden.models.metrics.tally import DECLINED, FRAUD, REVIEWED, tally

# Looked at together: what is made of them is then small beside the columns.
_ROWS = 1 << 18


@dataclass(frozen=True)
class DecidedPayments:
    """Measured payments as columns, shape (row_count,) each. `has_outcomes`: whether any label was ever known."""

    action: npt.NDArray[np.int8]
    score: npt.NDArray[np.float64]
    fraud: npt.NDArray[np.bool_]
    amount_minor: npt.NDArray[np.int64]
    """In minor units of the reference currency."""
    has_outcomes: bool

    @cached_property
    def falling(self) -> npt.NDArray[np.intp]:
        """Rows in order of score, the highest first."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True)
class GroupMeasures:
    """One group. A payment is stopped when it is reviewed or declined; precision and recall are of those.

    NaN where there is nothing to divide by; money is None where no outcome is known at all.
    """

    name: str
    """The group's value, such as a channel or a date; `(none)` for payments without the field."""
    payments: int
    """Measured payments of the group."""
    frauds: int
    """Those of them that were fraud."""
    frauds_stopped: int
    """Frauds that were reviewed or declined."""
    reviewed: int
    """Payments that were sent to review."""
    declined: int
    """Payments that were declined."""
    fraud_share: float
    """Frauds by payments."""
    precision: float
    """Frauds among the payments that were reviewed or declined."""
    recall: float
    """Frauds that were reviewed or declined, by all frauds."""
    mean_score: float
    """Mean of the scores."""
    auc_roc: float
    """Area under the ROC curve of the scores."""
    average_precision: float
    """Average precision of the scores."""
    amount_minor: int
    """Amounts of all payments of the group."""
    fraud_minor: int
    """Amounts of its frauds."""
    money: Money | None
    """Where the money went; null where no outcome is known at all."""


def by_group(
    names: Sequence[str], group: npt.NDArray[np.integer], decided: DecidedPayments, costs: CostSettings
) -> list[GroupMeasures]:
    """Measures of every group that has payments, in the order of `names`; `group` holds places in it, (row_count,)."""
    counted = tally(group, len(names), decided.action, decided.fraud, decided.amount_minor)
    if len(names) == 1:
        rows = decided.falling
        return (
            [_measures(names[0], counted.count[0], counted.amount_minor[0], rows, decided, costs)] if len(rows) else []
        )
    # Narrow numbers are put in order by radix.
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
    auc_roc, average_precision = _areas(decided.fraud[rows], score)
    frauds, stopped = int(count[:, FRAUD].sum()), int(count[REVIEWED:].sum())
    found = int(count[REVIEWED:, FRAUD].sum())
    known = decided.has_outcomes
    return GroupMeasures(
        name=name,
        payments=len(rows),
        frauds=frauds,
        frauds_stopped=found,
        reviewed=int(count[REVIEWED].sum()),
        declined=int(count[DECLINED].sum()),
        fraud_share=frauds / len(rows) if known else float("nan"),
        precision=found / stopped if known and stopped else float("nan"),
        recall=found / frauds if frauds else float("nan"),
        mean_score=float(score.mean()),
        auc_roc=auc_roc,
        average_precision=average_precision,
        amount_minor=int(amount_minor.sum()),
        fraud_minor=int(amount_minor[:, FRAUD].sum()),
        money=money_of(count, amount_minor, costs) if known else None,
    )


def _areas(fraud: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> tuple[float, float]:
    """(AUC ROC, average precision) of payments whose scores fall, as models/metrics/evaluation.py defines them."""
    rows, frauds = len(score), float(np.count_nonzero(fraud))
    if not frauds:
        return float("nan"), float("nan")
    genuine = rows - frauds
    # Added up at the end and all at once: a sum of floats depends on their order. The area is of halves, and exact.
    terms, count = np.empty(rows), 0
    area, before, wrongly_before = 0.0, 0.0, 0.0
    total = 0
    for first in range(0, rows, _ROWS):
        last = min(first + _ROWS, rows)
        # A threshold takes all payments of its score: what counts is where one score ends.
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
        # A genuine payment is beaten by every fraud above it, and by half of those with its own score.
        wrongly = flagged - found
        area += float(np.sum(np.diff(wrongly, prepend=wrongly_before) * (found - step / 2)))
        before, wrongly_before = float(found[-1]), float(wrongly[-1])
    average_precision = float(np.sum(terms[:count]))
    return (area / (frauds * genuine) if genuine else float("nan")), average_precision
