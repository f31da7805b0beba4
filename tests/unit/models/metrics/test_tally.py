from __future__ import annotations

import numpy as np

from paywarden.models.metrics.tally import APPROVED, DECLINED, FRAUD, GENUINE, REVIEWED, tally


def test_every_payment_is_counted_once_in_its_cell() -> None:
    counted = tally(
        np.array([0, 0, 2, 2, 2]),
        3,
        np.array([APPROVED, DECLINED, REVIEWED, REVIEWED, APPROVED]),
        np.array([False, True, True, False, True]),
        np.array([1, 20, 300, 4000, 50000]),
    )
    assert counted.count.shape == counted.amount_minor.shape == (3, 3, 2)
    assert counted.count.sum() == 5
    assert counted.amount_minor[0, APPROVED, GENUINE] == 1
    assert counted.amount_minor[0, DECLINED, FRAUD] == 20
    assert counted.amount_minor[2, REVIEWED].tolist() == [4000, 300]
    assert counted.amount_minor[2, APPROVED, FRAUD] == 50000
    assert counted.count[1].sum() == 0
