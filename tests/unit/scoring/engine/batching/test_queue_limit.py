"""What a worker learns about the cost of a payment bounds its chunks."""

from __future__ import annotations

import pytest

from paywarden.scoring.engine.batching.queue_limit import QueueLimit


@pytest.mark.parametrize(("payment_us", "payments"), [(20, 200), (50, 80), (200, 20), (2_000, 16)])
def test_a_chunk_has_fewer_payments_where_each_takes_long(payment_us: int, payments: int) -> None:
    limit = QueueLimit(wait_s_max=0.01, deadline_s=0.04, chunk_payments=32)
    for number in range(200):
        limit.note_chunk(32, 32 * payment_us / 1e6, 32, number / 100)
    assert limit.payments_in(0.004) == pytest.approx(payments, abs=1)
