"""Apply a policy to the payments of a history.

How it works:

1. A policy with thresholds only compares whole columns of scores with the thresholds.
2. A policy with rules or segments decides payment by payment, through the same `Policy.decide` as live. Only the
   payment's fields that some condition reads are filled in.
   Declared fields have the values that a condition sees live: a decimal with the digits that its field keeps, NaN for a
   missing number, None for a missing flag.
3. Each distinct pair of action and reasons gets a number, its cause. A decision stores its cause: four bytes instead of
   a list of texts.

Example: the causes 0, 1 and 2 are approve without a reason, review by the threshold, and decline by the threshold. The
first payment that the rule `large` sends to review adds cause 3: ("review", ("rule:large",)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from paywarden.features.catalogue.attributes import flag_code, number_code
from paywarden.features.history.declared_columns import holds_hashes
from paywarden.features.history.history import Coded, History
from paywarden.features.history.point_in_time import Chunk
from paywarden.models.policy.policy import ACTIONS, UNKNOWN_RATE, Facts, Policy, threshold_reason
from paywarden.models.policy.rules import TEXT_FIELDS
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import Form, PaymentField

NewColumn = Callable[[int, DTypeLike], NDArray[Any]]
_NUMBER = {action: number for number, action in enumerate(ACTIONS)}


class _Payment:
    """A payment of a history, as conditions read it. Only fields that some condition reads have values.

    Declared fields are attributes, too.
    """

    event_time_ms: int
    amount_minor: int
    card_id: str
    merchant_id: str
    device_id: str
    ip: str
    currency: str
    mcc: str
    country: str
    channel: str


class ActionReasons(NamedTuple):
    """An action and its reasons: every part of the policy that asked for it, or the rule that overrode the others."""

    action: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decisions:
    """Decisions as columns of shape (payments,). `action` indexes ACTIONS, `cause` indexes `ReplayedPolicy.causes`."""

    score: NDArray[np.float64]
    action: NDArray[np.int8]
    cause: NDArray[np.int32]

    @staticmethod
    def empty(count: int, new: NewColumn = np.zeros) -> Decisions:
        """Returns columns for `count` decisions, not filled in yet. `new` makes a column of zeros."""
        return Decisions(new(count, np.float64), new(count, np.int8), new(count, np.int32))

    def of(self, rows: slice | NDArray[np.int64]) -> Decisions:
        """Returns the decisions of some rows. With a slice they share memory with these."""
        return Decisions(self.score[rows], self.action[rows], self.cause[rows])


class ReplayedPolicy:
    """Decides about the payments of a history.

    A replay sets one flag, unknown_rate: the others describe the live mirror and live models.
    """

    def __init__(self, policy: Policy, history: History, amounts: NDArray[np.int64]) -> None:
        """`amounts`: in minor units of the reference currency, UNKNOWN_AMOUNT without a rate, shape (payments,).

        Raises Misconfigured if a condition compares a field for which the history has only keyed hashes.
        """
        self._policy, self._history, self._amounts = policy, history, amounts
        self._fields = sorted(policy.fields)
        # The number of each cause. The first three are those of the thresholds, and have their actions' numbers.
        self._causes = {
            ActionReasons(action, () if action == ACTIONS[0] else (threshold_reason(action),)): number
            for number, action in enumerate(ACTIONS)
        }
        # Code -1, no value, indexes the last element: the empty text.
        self._texts = {
            field: [*history.coded(field).names.to_pylist(), ""]
            for field in self._fields
            if field in TEXT_FIELDS or isinstance(history.declared.get(field), Coded)
        }
        derived = {field.name for field in history.fields.derived}
        for field in derived.intersection(self._texts):
            if holds_hashes(history.coded(field).names.type):
                raise Misconfigured(
                    f"the policy compares {field}, and this history has keyed hashes of it: replay a history with texts"
                )

    @property
    def causes(self) -> list[ActionReasons]:
        """All causes so far. Deciding about more payments may add causes, but never changes their numbers."""
        return list(self._causes)

    def decide(self, chunk: Chunk, scores: NDArray[np.float64]) -> Decisions:
        """Decide about the payments of a chunk. `scores`: shape (rows,)."""
        rows = slice(chunk.first, chunk.last)
        payment = _Payment()
        facts = Facts(payment, 0, chunk.vectors[0], None, ())
        if not self._policy.has_conditions:
            cause = self._policy.actions_of(scores).astype(np.int32)
            facts.amount, facts.flags = None, (UNKNOWN_RATE,)
            for row in np.flatnonzero(self._amounts[rows] < 0).tolist():
                facts.score = float(scores[row])
                cause[row] = self._cause(facts)
        else:
            cause = np.empty(chunk.last - chunk.first, dtype=np.int32)
            columns: list[Iterable[Any]] = [self._column(field, rows) for field in self._fields]
            values = zip(*columns, strict=True) if columns else repeat((), len(scores))
            payments = zip(values, self._amounts[rows].tolist(), chunk.vectors, scores.tolist(), strict=True)
            for row, (fields, amount, facts.vector, facts.score) in enumerate(payments):
                for field, value in zip(self._fields, fields, strict=True):
                    setattr(payment, field, value)
                facts.amount, facts.flags = (amount, ()) if amount >= 0 else (None, (UNKNOWN_RATE,))
                cause[row] = self._cause(facts)
        actions = np.array([_NUMBER[action] for action, _ in self._causes], dtype=np.int8)
        return Decisions(scores, actions[cause], cause)

    def _cause(self, facts: Facts) -> int:
        action, reasons = self._policy.decide(facts)
        # A decision without a reason is an approval: cause 0.
        return self._causes.setdefault(ActionReasons(action, tuple(reasons)), len(self._causes)) if reasons else 0

    def _column(self, field: str, rows: slice) -> list[Any]:
        texts = self._texts.get(field)
        if texts is None:
            if field in self._history.declared:
                return _values_of(self._history.fields.by_name[field], self._history.numbers(field)[rows].tolist())
            numbers: NDArray[np.int64] = getattr(self._history, field)
            return list(numbers[rows].tolist())
        return [texts[code] for code in self._history.coded(field).codes[rows].tolist()]


def _values_of(field: PaymentField, codes: list[int]) -> list[Any]:
    """Returns the values of a declared field that is no text, from its codes (features/catalogue/attributes.py)."""
    if field.form is Form.FLAG:
        flags = {0: None, flag_code(False): False, flag_code(True): True}
        return [flags[code] for code in codes]
    zero = number_code(0)
    if field.is_decimal:
        scale = 10**field.decimals
        return [(code - zero) / scale if code else math.nan for code in codes]
    return [code - zero if code else math.nan for code in codes]
