"""Counts what stopped the payments: a list, the model, or rules alone. A list's catch is not credited to the model.

A stopped payment counts for the first of these that is among its reasons:

    lists     a rule that looks an entity up in a list, such as `card_id in lists.blocked`, or blocks it after a known
              fraud, such as `card_frauds_90d > 0`: the entry expires with the window, and its reason is the rule's name
    model     a threshold: the score asked for the action
    rules     other rules and flags

Example: of 10 frauds, 6 are stopped: 4 by `rule:blocked`, of which 3 also scored above the threshold, and 2 by their
score alone. The list stopped 4 and the model 2. The list left 6 frauds to the others, and they stopped 2: a recall of
0.33, and not of 0.60.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.intervals import Interval, share_interval
from paywarden.models.policy.policy import ACTIONS, APPROVE, Policy, is_threshold_reason
from paywarden.models.replay.replayed_policy import ActionReasons

LISTS, MODEL, RULES = "lists", "model", "rules"


@dataclass(frozen=True)
class StoppedPayments:
    """Stopped payments of one kind."""

    payments: int
    """Payments that were reviewed or declined."""
    frauds: int
    """Frauds among them."""
    amount_minor: int
    """Sum of their amounts."""
    fraud_minor: int
    """Sum of the frauds' amounts."""


@dataclass(frozen=True)
class Stops:
    """Stopped payments by who stopped them. Recall is NaN where lists stopped all frauds."""

    by: dict[str, StoppedPayments]
    """Stopped payments by the first that asked for it: `lists` (a rule that looks an entity up in a list, or
    asks whether it has a known fraud), `model` (a
    threshold of the score) or `rules` (other rules and flags).
    """
    unlisted_recall: float
    """The share of unlisted frauds, which no list stopped, that the model or rules stopped."""
    unlisted_recall_interval: Interval
    """The 95 % interval of `unlisted_recall`."""


def stops(
    policy: Policy,
    causes: Sequence[ActionReasons],
    cause: NDArray[np.int32],
    fraud: NDArray[np.bool_],
    amount_minor: NDArray[np.int64],
) -> Stops:
    """Returns who stopped the payments. `cause`, `fraud`, `amount_minor`: of all measured payments, (payments,)."""
    listed, size = policy.listed_reasons, len(causes)
    kinds = [_kind(each, listed) for each in causes]
    # By cause: payments, frauds, amount, amount of frauds. Sums are exact up to 2**53.
    sums = np.stack(
        [
            np.bincount(cause, minlength=size),
            np.bincount(cause[fraud], minlength=size),
            np.bincount(cause, weights=amount_minor, minlength=size),
            np.bincount(cause[fraud], weights=amount_minor[fraud], minlength=size),
        ],
        axis=1,
    )
    by = {
        kind: StoppedPayments(*(int(part) for part in sums[[place == kind for place in kinds]].sum(axis=0)))
        for kind in (LISTS, MODEL, RULES)
    }
    left = int(np.count_nonzero(fraud)) - by[LISTS].frauds
    recall = (by[MODEL].frauds + by[RULES].frauds) / left if left else float("nan")
    return Stops(by, recall, share_interval(recall, left))


def _kind(cause: ActionReasons, listed: frozenset[str]) -> str:
    if cause.action == ACTIONS[APPROVE]:
        return ""
    if listed.intersection(cause.reasons):
        return LISTS
    return MODEL if any(map(is_threshold_reason, cause.reasons)) else RULES
