"""The policy over the payments of a history: by columns where only thresholds ask, else payment by payment."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.history import History
from features.passage import Chunk
from scoring.policy import ACTIONS, Facts, Policy
from scoring.rules import TEXT_FIELDS

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


class ReplayedPolicy:
    """What a policy decides about payments of a history. Flags speak of the live mirror and models; here are none."""

    def __init__(self, policy: Policy, history: History, amounts: NDArray[np.int64]) -> None:
        """`amounts`: in minor units of the reference currency, shape (payments,)."""
        self._policy, self._history, self._amounts = policy, history, amounts
        self._fields = sorted(policy.fields)
        # What code -1 stands for is the last.
        self._texts = {
            field: [*history.coded(field).names.to_pylist(), ""] for field in self._fields if field in TEXT_FIELDS
        }

    def actions(self, chunk: Chunk, scores: NDArray[np.float64]) -> NDArray[np.int8]:
        """Indexes into ACTIONS for the payments of a chunk, shape (rows,). `scores`: likewise."""
        if not self._policy.has_conditions:
            return self._policy.actions_of(scores)
        rows = slice(chunk.first, chunk.last)
        decide = self._policy.decide
        payment = _Payment()
        facts = Facts(payment, 0, chunk.vectors[0], None, ())
        actions = np.empty(chunk.last - chunk.first, dtype=np.int8)
        columns: list[Iterable[Any]] = [self._column(field, rows) for field in self._fields]
        values = zip(*columns, strict=True) if columns else repeat((), len(actions))
        known = zip(values, self._amounts[rows].tolist(), chunk.vectors, scores.tolist(), strict=True)
        for row, (fields, facts.amount, facts.vector, facts.score) in enumerate(known):
            for field, value in zip(self._fields, fields, strict=True):
                setattr(payment, field, value)
            actions[row] = _NUMBER[decide(facts).action]
        return actions

    def _column(self, field: str, rows: slice) -> list[Any]:
        texts = self._texts.get(field)
        if texts is None:
            numbers: NDArray[np.int64] = getattr(self._history, field)
            return list(numbers[rows].tolist())
        return [texts[code] for code in self._history.coded(field).codes[rows].tolist()]
