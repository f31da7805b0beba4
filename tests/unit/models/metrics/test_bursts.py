"""Bursts of fraud: runs of neighbours in time, and what was approved before the first stop."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from paywarden.models.metrics.bursts import BurstMeasures, measure_bursts
from paywarden.models.metrics.tally import APPROVED, DECLINED, REVIEWED


def measured(frauds: list[tuple[int, int, int]]) -> BurstMeasures:
    """Frauds are (entity, time in ms, action), each of 10 minor units."""
    entity, time_ms, action = (np.array(column) for column in zip(*frauds, strict=True))
    return measure_bursts(entity.astype(np.int32), time_ms, action.astype(np.int8), np.full(len(entity), 10))


TESTER = [(7, 1000 * n, action) for n, action in enumerate([APPROVED, APPROVED, REVIEWED, APPROVED, DECLINED])]
OTHER = [(3, 500 + 1000 * n, APPROVED) for n in range(3)]


def test_payments_before_the_first_stop_are_counted_by_burst() -> None:
    found = measured([*TESTER, *OTHER, (-1, 1600, DECLINED), (4, 0, APPROVED), (4, 1, APPROVED)])
    assert (found.bursts, found.payments, found.stopped) == (2, 8, 1)
    assert (found.approved_before_stop, found.approved_share, found.approved_minor) == (2.5, 6 / 8, 60)
    # 2 and 3 payments: the standard error of their mean is 0.5.
    assert found.approved_before_stop_interval == pytest.approx((2.5 - 0.98, 2.5 + 0.98), abs=1e-3)


def test_bursts_of_one_entity_have_no_interval() -> None:
    later = [(7, 10_000_000 + time_ms, action) for _, time_ms, action in TESTER]
    found = measured([*TESTER, *later])
    assert found.bursts == 2
    assert all(isnan(end) for end in found.approved_before_stop_interval)


def test_a_stop_comes_first_among_payments_of_one_millisecond() -> None:
    frauds = [(1, 5, APPROVED), (1, 9, APPROVED), (1, 9, DECLINED)]
    assert measured(frauds).approved_before_stop == measured(frauds[::-1]).approved_before_stop == 1
