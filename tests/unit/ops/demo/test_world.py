"""The payments that the demonstration sends."""

from __future__ import annotations

import pyarrow as pa

from paywarden.ops.demo.demo import past_outcomes


def test_outcomes_of_the_past_are_of_payments_that_were_loaded() -> None:
    """Outcomes of payments that the demonstration sends under other ids became dead letters, one in half a minute."""
    outcomes = pa.table({"payment_id": ["old", "live", "late"], "outcome_time_ms": [1_100, 1_200, 90_000_000]})
    payments = pa.table({"payment_id": ["older", "old", "late"]})
    assert past_outcomes(outcomes, payments, 1_000) == [{"payment_id": "old", "outcome_time_ms": 1_100}]
