"""The policy over the payments of a history: by columns where only thresholds ask, else payment by payment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features.history.columns import ColumnAllocator
from paywarden.features.history.history import History
from paywarden.features.history.point_in_time import Chunk
from paywarden.models.policy.policy import ACTIONS, Facts, Policy, threshold_reason
from paywarden.models.policy.rules import TEXT_FIELDS

_NUMBER = {action: number for number, action in enumerate(ACTIONS)}


class _Payment:
    """A payment of a history as conditions read it; only fields that some condition reads are filled in."""

    __slots__ = ("amount_minor", "event_time_ms", *TEXT_FIELDS)

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
    """An action with the reasons for it: every part of the policy that asked for it, or the rule that overrode."""

    action: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decisions:
    """About payments, shape (payments,) each: `action` holds places in ACTIONS, `cause` places in a policy's causes."""

    score: NDArray[np.float64]
    action: NDArray[np.int8]
    cause: NDArray[np.int32]

    @staticmethod
    def empty(count: int, room: ColumnAllocator) -> Decisions:
        """Columns for so many."""
        return Decisions(room.new(count, np.float64), room.new(count, np.int8), room.new(count, np.int32))

    def of(self, rows: slice | NDArray[np.int64]) -> Decisions:
        """Those about some payments; of a slice they share memory."""
        return Decisions(self.score[rows], self.action[rows], self.cause[rows])


class ReplayedPolicy:
    """What a policy decides about payments of a history. Flags speak of the live mirror and models; here are none."""

    def __init__(self, policy: Policy, history: History, amounts: NDArray[np.int64]) -> None:
        """`amounts`: in minor units of the reference currency, shape (payments,)."""
        self._policy, self._history, self._amounts = policy, history, amounts
        self._fields = sorted(policy.fields)
        # Numbers by cause. Those of a policy without conditions are its actions' own.
        self._causes = {
            ActionReasons(action, () if action == ACTIONS[0] else (threshold_reason(action),)): number
            for number, action in enumerate(ACTIONS)
        }
        # What code -1 stands for is the last.
        self._texts = {
            field: [*history.coded(field).names.to_pylist(), ""] for field in self._fields if field in TEXT_FIELDS
        }

    @property
    def causes(self) -> list[ActionReasons]:
        """Every cause so far; more may come with more payments."""
        return list(self._causes)

    def decide(self, chunk: Chunk, scores: NDArray[np.float64]) -> Decisions:
        """What the policy says of the payments of a chunk. `scores`: shape (rows,)."""
        if not self._policy.has_conditions:
            by_score = self._policy.actions_of(scores)
            return Decisions(scores, by_score, by_score.astype(np.int32))
        rows = slice(chunk.first, chunk.last)
        decide, causes = self._policy.decide, self._causes
        payment = _Payment()
        facts = Facts(payment, 0, chunk.vectors[0], None, ())
        cause = np.empty(chunk.last - chunk.first, dtype=np.int32)
        columns: list[Iterable[Any]] = [self._column(field, rows) for field in self._fields]
        values = zip(*columns, strict=True) if columns else repeat((), len(scores))
        known = zip(values, self._amounts[rows].tolist(), chunk.vectors, scores.tolist(), strict=True)
        for row, (fields, facts.amount, facts.vector, facts.score) in enumerate(known):
            for field, value in zip(self._fields, fields, strict=True):
                setattr(payment, field, value)
            action, reasons = decide(facts)
            # Without a reason it is approved, which is the first of the causes.
            cause[row] = causes.setdefault(ActionReasons(action, tuple(reasons)), len(causes)) if reasons else 0
        actions = np.array([_NUMBER[one.action] for one in causes], dtype=np.int8)
        return Decisions(scores, actions[cause], cause)

    def _column(self, field: str, rows: slice) -> list[Any]:
        texts = self._texts.get(field)
        if texts is None:
            numbers: NDArray[np.int64] = getattr(self._history, field)
            return list(numbers[rows].tolist())
        return [texts[code] for code in self._history.coded(field).codes[rows].tolist()]
