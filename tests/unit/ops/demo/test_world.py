"""The payments that the demonstration sends."""

from __future__ import annotations

import pyarrow as pa

from paywarden.ops.demo.demo import at_another_hour, past_outcomes


def test_outcomes_of_the_past_are_of_payments_that_were_loaded() -> None:
    """Outcomes of payments that the demonstration sends under other ids became dead letters, one in half a minute."""
    outcomes = pa.table({"payment_id": ["old", "live", "late"], "outcome_time_ms": [1_100, 1_200, 90_000_000]})
    payments = pa.table({"payment_id": ["older", "old", "late"]})
    assert past_outcomes(outcomes, payments, 1_000) == [{"payment_id": "old", "outcome_time_ms": 1_100}]


def test_at_another_hour_people_still_pay_by_their_own_clocks() -> None:
    hour_ms = 3_600_000
    times, offsets = [20 * hour_ms, 30 * hour_ms], [60, -300]
    payments = pa.table({"payment_id": ["a", "b"], "event_time_ms": times, "utc_offset_minutes": offsets})
    outcomes = pa.table({"payment_id": ["a"], "outcome_time_ms": [50 * hour_ms]})
    for hours in range(24):
        moved, known = at_another_hour(payments, outcomes, hours * hour_ms)
        assert moved["event_time_ms"].to_pylist() == [time - hours * hour_ms for time in times]
        assert known["outcome_time_ms"].to_pylist() == [(50 - hours) * hour_ms]
        clocks = zip(moved["event_time_ms"].to_pylist(), moved["utc_offset_minutes"].to_pylist(), strict=True)
        assert [(time // hour_ms + offset // 60) % 24 for time, offset in clocks] == [21, 1]
        assert all(-720 <= offset < 720 for offset in moved["utc_offset_minutes"].to_pylist())
