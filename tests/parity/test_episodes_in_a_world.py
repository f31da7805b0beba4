"""Episodes in a made world with enumerations and flash sales, as perf.enumeration measures them in larger ones."""

from __future__ import annotations

from collections import Counter

import numpy as np

from perf.enumeration import measure


def test_enumerations_are_seen_early_and_flash_sales_are_quiet() -> None:
    counts: Counter[str] = Counter()
    passed = measure(counts, 7, 5_000, 21)
    assert passed
    assert float(np.median(passed)) <= 8
    assert counts["flash_sales"] >= 5
    assert counts["flash_sale_alarms"] == 0
    assert counts["false_alarms"] == 0
