"""Make days of decisions as tallies, for tests of the evaluation and the watch of outcomes."""

from __future__ import annotations

import numpy as np

from paywarden.models.metrics.outcome_tally import UNLABELLED, OutcomeTally, units_of
from paywarden.models.metrics.tally import APPROVED, DECLINED, FRAUD

_DAY_MS = 86_400_000


class Days:
    """Draws days with a number of payments, a share of frauds, and a share of frauds declined with a high score."""

    def __init__(self, seed: int, *, payments: int = 2000, fraud_share: float = 0.02) -> None:
        self._chance = np.random.default_rng(seed)
        self.payments, self.fraud_share = payments, fraud_share
        self.recall, self.wrongly_declined = 0.8, 0.005

    def next(self) -> OutcomeTally:
        chance, found = self._chance, OutcomeTally()
        frauds = int(chance.binomial(self.payments, self.fraud_share))
        caught = int(chance.binomial(frauds, self.recall))
        genuine = self.payments - frauds
        wrong = int(chance.binomial(genuine, self.wrongly_declined))
        _count(found, DECLINED, FRAUD, 0.9, caught)
        _count(found, APPROVED, FRAUD, 0.01, frauds - caught)
        _count(found, DECLINED, UNLABELLED, 0.9, wrong)
        _count(found, APPROVED, UNLABELLED, 0.01, genuine - wrong)
        return found


def _count(tally: OutcomeTally, action: int, label: int, score: float, times: int) -> None:
    tally.count(
        score_units=units_of(score), action=action, amount_minor=100, label=label, lag_ms=2 * _DAY_MS, times=times
    )
