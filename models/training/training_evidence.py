"""The findings of a training about its own data, for the report of `train` and for the manifest.

    labels     how many payments have which label; after how long frauds became known, beside the delay that the
               catalogue's fraud features wait
    drifting   features that leave their training range (models/training/feature_ranges.py)
    promise    how often fraud will come in later days, as a multiple of the mean score (models/training/promise.py)
    changes    which changes to the settings were tried, what each gained, and which were taken
               (models/training/changes.py)
    label_delays
               what other label delays of the catalogue would gain; none is taken (models/training/changes.py)
    missed     value detected at fixed false positives, first frauds and bursts, out of fold
               (models/metrics/value_detected.py)
    auc_roc_interval
               the 95 % interval of the area under the ROC curve, out of fold

A manifest stores it as `evidence`. It describes the training; it changes no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.auc_variance import auc_variance
from paywarden.models.metrics.evaluation import DAY_MS, auc_roc
from paywarden.models.metrics.intervals import auc_interval
from paywarden.models.metrics.labels import LabelCounts
from paywarden.models.metrics.propensity import effective_size

_DELAY_QUANTILES = (0.5, 0.95)


@dataclass(frozen=True)
class LabelDelay:
    """After how many days frauds became known: half of them, and 95 % of them."""

    frauds: int
    days_p50: float
    days_p95: float

    def in_words(self, feature_delays_ms: Sequence[int]) -> str:
        """Returns a line with the delay of the data and that of the catalogue's fraud features."""
        text = f"half of the frauds are known after {self.days_p50:.1f} days, 95 % after {self.days_p95:.1f}"
        if not feature_delays_ms:
            return text
        waits = " and ".join(f"{delay_ms / DAY_MS:g}" for delay_ms in feature_delays_ms)
        text += f"; fraud features wait {waits} days"
        if max(feature_delays_ms) / DAY_MS < self.days_p50:
            text += ": too short, most frauds are not known by then"
        elif min(feature_delays_ms) / DAY_MS > 2 * max(self.days_p95, 0.5):
            text += ": longer than needed, a shorter label delay would show them sooner"
        return text


def label_delay(fraud_delay_ms: NDArray[np.int64] | None) -> LabelDelay | None:
    """Returns the delay of sorted times in milliseconds, (frauds,); None without a fraud."""
    if fraud_delay_ms is None or not len(fraud_delay_ms):
        return None
    half, most = (float(value) / DAY_MS for value in np.quantile(fraud_delay_ms, _DELAY_QUANTILES))
    return LabelDelay(len(fraud_delay_ms), half, most)


def area_interval(
    fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64] | None
) -> list[float] | None:
    """Returns the 95 % interval of the area under the ROC curve, as a manifest stores it; None for one class."""
    if not 0 < np.count_nonzero(fraud) < len(fraud):
        return None
    weights = np.ones(len(fraud)) if weight is None else weight
    area = auc_roc(fraud.astype(np.int8), score, weight)
    sizes = effective_size(weights[fraud]), effective_size(weights[~fraud])
    return list(auc_interval(area, *sizes, auc_variance(fraud, score, weight)))


def labels_record(
    counts: LabelCounts | None, delay: LabelDelay | None, feature_delays_ms: Sequence[int]
) -> dict[str, Any]:
    """Returns the part `labels` of the manifest's evidence."""
    return {
        "counts": None if counts is None else asdict(counts),
        "fraud_delay": None if delay is None else asdict(delay),
        "feature_delays_days": [delay_ms / DAY_MS for delay_ms in feature_delays_ms],
    }
