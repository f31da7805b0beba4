"""Decisions measured apart for each of many groups: days, channels, countries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.costs import CostSettings, Money, money_of
from models.evaluation import auc_roc, average_precision
from models.tally import DECLINED, FRAUD, REVIEWED, tally


@dataclass(frozen=True)
class Decided:
    """Measured payments as columns, shape (row_count,) each. `has_outcomes`: whether any label was ever known."""

    action: npt.NDArray[np.int8]
    score: npt.NDArray[np.float64]
    fraud: npt.NDArray[np.bool_]
    amount_minor: npt.NDArray[np.int64]
    """In minor units of the reference currency."""
    has_outcomes: bool


@dataclass(frozen=True)
class GroupMeasures:
    """One group. A payment is stopped when it is reviewed or declined; precision and recall are of those.

    NaN where there is nothing to divide by; money is None where no outcome is known at all.
    """

    name: str
    payments: int
    frauds: int
    frauds_stopped: int
    reviewed: int
    declined: int
    fraud_share: float
    precision: float
    recall: float
    mean_score: float
    auc_roc: float
    average_precision: float
    amount_minor: int
    fraud_minor: int
    money: Money | None


def by_group(
    names: Sequence[str], group: npt.NDArray[np.integer], decided: Decided, costs: CostSettings
) -> list[GroupMeasures]:
    """Measures of every group that has payments, in the order of `names`; `group` holds places in it, (row_count,)."""
    counted = tally(group, len(names), decided.action, decided.fraud, decided.amount_minor)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(names) + 1))
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
    decided: Decided,
    costs: CostSettings,
) -> GroupMeasures:
    label, score = decided.fraud[rows].astype(np.int64), decided.score[rows]
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
        auc_roc=auc_roc(label, score),
        average_precision=average_precision(label, score),
        amount_minor=int(amount_minor.sum()),
        fraud_minor=int(amount_minor[:, FRAUD].sum()),
        money=money_of(count, amount_minor, costs) if known else None,
    )
