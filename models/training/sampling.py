"""Which payments a model is trained on, when all of them are too many: every fraud, and a share of the genuine ones.

    window   ├──── frauds, and a share of the genuine payments ────┼── all payments ──┤
    weight         1 a fraud, 1 / share a genuine payment                  1

1. A genuine payment is drawn by the hash of its id and the seed. The draw therefore depends neither on the order of the
   rows nor on the number of partitions.
2. A drawn payment stands for 1 / share payments: trees, calibration and measures count it that often (D. Horvitz,
   D. Thompson, 1952). Scores are therefore probabilities among all payments.
3. The newest days are whole. They give all that counts payments one by one: default thresholds, value detected, a
   cascade's thresholds, the reference for drift.

Example: 60 days of 800,000 payments with 2,000 frauds a day, and a share of 0.1. The last 2 days are whole: 1.6 million
rows. The 58 days before give 116,000 frauds and 4.6 million genuine payments, each with the weight 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.history.text_hashes import hashes_of
from paywarden.models.metrics.evaluation import Days, date_of_day

WHOLE_DAYS_MAX, WHOLE_ROWS_MAX = 7, 2_000_000
"""The newest days are whole: at most a week and this many payments, but always the last day."""

_GOLDEN, _FIRST_MIX, _SECOND_MIX = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class GenuineSample:
    """The share of the genuine payments before the day `whole_from` that are drawn, and the seed."""

    share: float
    seed: int
    whole_from: int

    def takes(self, payment_id: pa.Array, label: NDArray[np.integer], day: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which payments are taken. `payment_id`: strings. `label`: 1 for a fraud. All arrays: (payments,)."""
        if self.share >= 1.0:
            return np.ones(len(label), dtype=np.bool_)
        with np.errstate(over="ignore"):
            number = hashes_of(payment_id) + np.uint64(self.seed) * _GOLDEN
        # 64 bits that look random (G. Steele, "SplitMix", 2014).
        number = (number ^ number >> np.uint64(30)) * _FIRST_MIX
        number = (number ^ number >> np.uint64(27)) * _SECOND_MIX
        drawn = (number ^ number >> np.uint64(31)) < np.uint64(self.share * 2.0**64)
        return np.asarray(drawn | (label == 1) | (day >= self.whole_from), dtype=np.bool_)

    def in_words(self) -> str:
        """Returns a clause for people."""
        return f"all frauds, {self.share:g} of the genuine payments, and all from {date_of_day(self.whole_from)} on"

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        return {"share": self.share, "seed": self.seed, "whole_from": date_of_day(self.whole_from)}

    def weights(self, label: NDArray[np.integer], day: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Returns how many payments each taken one stands for; None if each stands for itself."""
        if self.share >= 1.0:
            return None
        return np.where((label == 1) | (day >= self.whole_from), 1.0, 1.0 / self.share)


def whole_days_from(by_day: Mapping[int, int], window: Days) -> int:
    """Returns the first of the newest days that stay whole. `by_day`: the number of payments of each day."""
    first, payments = window.last, by_day.get(window.last, 0)
    while first > max(window.first, window.last - WHOLE_DAYS_MAX + 1):
        payments += by_day.get(first - 1, 0)
        if payments > WHOLE_ROWS_MAX:
            break
        first -= 1
    return first
