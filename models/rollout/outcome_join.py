"""Join outcomes to the decisions of a rollout: which payments are mature, and their labels.

    decisions of the rollout ──┐
                               ├──► OutcomeJoin ──► MatureOutcomes ──► outcome_counts ──► judge_outcomes
    outcomes, by payment id ───┘

A payment is mature `label_days` after its decision. These rules are those of `streams/outcomes`, so that a rollout and
the figures of `outcome-metrics` mean the same:

1. The first decision of a payment counts; a decision that was read twice counts once.
2. The outcome that became known last counts. If two became known at one time, fraud counts.
3. A mature payment without an outcome counts as genuine. Such payments alone prove nothing: without `labels_min` cards
   with an outcome the finding is `no data`.

A payment is compared in the step that ran when it was decided. One that was decided by another arm than its step says
is left out: for a moment after a change of the share, a host still acts on the earlier one.

    step 0 (1 %) from 10:00      card A, candidate, 10:20     compared in step 0
    step 1 (5 %) from 11:00      card B, champion,  11:00:01  left out: at 5 % it is the candidate's
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paywarden.models.rollout.outcomes import MatureOutcomes
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.shares import arms_at

DAY_MS = 86_400_000
# Parts are put together when there are this many, so that memory stays that of the rows.
_PARTS_MAX = 64


@dataclass(frozen=True)
class JoinedDecisions:
    """Decisions of a rollout as columns, each of shape (payments,).

    `payment`: `payment_numbers` of the ids. `action`: an index into ACTIONS. `amount`: minor units of the reference
    currency. `by_rule`: a rule or flag is among the reasons of the action.
    """

    payment: NDArray[np.uint64]
    decided_ms: NDArray[np.int64]
    position: NDArray[np.uint64]
    arm: NDArray[np.int8]
    action: NDArray[np.int8]
    amount: NDArray[np.int64]
    by_rule: NDArray[np.bool_]


@dataclass(frozen=True)
class KnownOutcomes:
    """Outcomes as columns, each of shape (outcomes,). `known_ms`: when each became known."""

    payment: NDArray[np.uint64]
    known_ms: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]


def payment_numbers(payment_ids: Iterable[str]) -> NDArray[np.uint64]:
    """Returns a number for each payment id: 64 bits of its hash. Two of ten million share one with a chance of 3e-6."""
    digests = b"".join([blake2b(payment_id.encode(), digest_size=8).digest() for payment_id in payment_ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


_Columns = TypeVar("_Columns", JoinedDecisions, KnownOutcomes)


class OutcomeJoin:
    """Holds the decisions and outcomes of one rollout. 35 bytes a decision, 17 an outcome. Not thread-safe."""

    def __init__(self, plan: RolloutPlan) -> None:
        self._plan = plan
        self._decided: list[JoinedDecisions] = []
        self._known: list[KnownOutcomes] = []

    def add_decisions(self, decided: JoinedDecisions) -> None:
        """Add decisions, in any order and any number of times."""
        self._decided.append(decided)
        if len(self._decided) > _PARTS_MAX:
            self._decided = [_first_decisions(_together(self._decided))]

    def add_outcomes(self, known: KnownOutcomes) -> None:
        """Add outcomes, in any order and any number of times."""
        self._known.append(known)
        if len(self._known) > _PARTS_MAX:
            self._known = [_newest_outcomes(_together(self._known))]

    def mature(self, steps_ms: Sequence[int], now_ms: int) -> MatureOutcomes:
        """Returns the payments that are mature at `now_ms`, in the order in which they began to count.

        `steps_ms`: when each step began that has begun, in rising order.
        """
        if not self._decided:
            return _no_outcomes()
        decided = _first_decisions(_together(self._decided))
        self._decided = [decided]
        mature_ms = decided.decided_ms + round(self._plan.label_days * DAY_MS)
        step = np.searchsorted(np.array(steps_ms, dtype=np.int64), decided.decided_ms, side="right") - 1
        compared = (mature_ms <= now_ms) & (step >= 0) & (step < self._plan.last_step)
        for number in range(min(len(steps_ms), self._plan.last_step)):
            should = arms_at(decided.position, self._plan.steps[number])
            compared &= (step != number) | (should == decided.arm)
        rows = np.flatnonzero(compared)
        counted_ms, is_fraud, is_labelled = mature_ms[rows], np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        if self._known:
            known = _newest_outcomes(_together(self._known))
            self._known = [known]
            place = np.minimum(np.searchsorted(known.payment, decided.payment[rows]), len(known.payment) - 1)
            is_labelled = (known.payment[place] == decided.payment[rows]) & (known.known_ms[place] <= now_ms)
            is_fraud = is_labelled & known.is_fraud[place]
            counted_ms = np.where(is_labelled, np.maximum(counted_ms, known.known_ms[place]), counted_ms)
        order = np.lexsort((decided.payment[rows], counted_ms))
        rows = rows[order]
        return MatureOutcomes(
            step=step[rows],
            position=decided.position[rows],
            arm=decided.arm[rows],
            action=decided.action[rows],
            is_fraud=is_fraud[order],
            is_labelled=is_labelled[order],
            amount=decided.amount[rows],
            decided_ms=decided.decided_ms[rows],
            by_rule=decided.by_rule[rows],
        )


def _together(parts: Sequence[_Columns]) -> _Columns:
    names = [field.name for field in fields(parts[0])]
    return type(parts[0])(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _chosen(columns: _Columns, rows: NDArray[np.intp]) -> _Columns:
    return type(columns)(**{field.name: getattr(columns, field.name)[rows] for field in fields(columns)})


def _first_decisions(decided: JoinedDecisions) -> JoinedDecisions:
    """Returns the first decision of each payment, by payment."""
    order = np.lexsort((decided.decided_ms, decided.payment))
    return _chosen(decided, order[_is_first(decided.payment[order])])


def _newest_outcomes(known: KnownOutcomes) -> KnownOutcomes:
    """Returns the outcome of each payment that counts, by payment."""
    order = np.lexsort((known.is_fraud, known.known_ms, known.payment))[::-1]
    return _chosen(known, order[_is_first(known.payment[order])][::-1])


def _is_first(rising: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Returns which rows differ from the row before; equal ones stand together."""
    return np.append(True, rising[1:] != rising[:-1])[: len(rising)]


def _no_outcomes() -> MatureOutcomes:
    whole, bits, small = np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.int8)
    return MatureOutcomes(whole, np.zeros(0, np.uint64), small, small, bits, bits, whole, whole, bits)
