"""Bursts of fraud: runs of neighbours in time, and what was approved before the first stop."""

from __future__ import annotations

import numpy as np

from paywarden.models.metrics.bursts import BurstMeasures, measure_bursts
from paywarden.models.metrics.tally import APPROVED, DECLINED, REVIEWED


def measured(payments: list[tuple[int, int, bool, int]]) -> BurstMeasures:
    """Payments are (entity, time in ms, is fraud, action), each of 10 minor units."""
    columns = [np.array(column) for column in zip(*sorted(payments, key=lambda row: row[1]), strict=True)]
    entity, time_ms, fraud, action = columns
    amounts = np.full(len(entity), 10)
    return measure_bursts(entity.astype(np.int32), time_ms, fraud.astype(bool), action.astype(np.int8), amounts)


def test_payments_before_the_first_stop_are_counted_by_burst() -> None:
    tester = [
        (7, 1000 * n, True, action) for n, action in enumerate([APPROVED, APPROVED, REVIEWED, APPROVED, DECLINED])
    ]
    other = [(3, 500 + 1000 * n, True, APPROVED) for n in range(3)]
    genuine = [(7, 1500, False, DECLINED), (-1, 1600, True, DECLINED), (4, 0, True, APPROVED), (4, 1, True, APPROVED)]
    found = measured(tester + other + genuine)
    assert found == BurstMeasures(
        bursts=2, payments=8, stopped=1, approved_before_stop=2.5, approved_share=6 / 8, approved_minor=60
    )
