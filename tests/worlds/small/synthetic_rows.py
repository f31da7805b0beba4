"""Rows with known probabilities of fraud, for tests of training. They involve no feature code."""

from __future__ import annotations

import numpy as np

from paywarden.models.metrics.evaluation import Days
from paywarden.models.training.table import TrainingTable

WINDOW = Days(100, 129)


def synthetic_table(*, rows: int = 9000, width: int = 4, seed: int = 0, days: Days = WINDOW) -> TrainingTable:
    """Returns payments spread evenly over the days, about 4 % of them frauds.

    The log-odds of fraud are -4 + 1.5 × first column + second column. The other columns are noise.
    """
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, width)).astype(np.float32)
    log_odds = -4.0 + 1.5 * vectors[:, 0] + vectors[:, 1]
    label = (random.random(rows) < 1.0 / (1.0 + np.exp(-log_odds))).astype(np.int64)
    day = days.first + np.arange(rows) * (days.last - days.first + 1) // rows
    return TrainingTable(vectors, label, day)
