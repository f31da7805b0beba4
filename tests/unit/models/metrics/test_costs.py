from __future__ import annotations

import numpy as np

from paywarden.models.metrics.costs import CostSettings, money_of

# By action (approved, reviewed, declined) and label (genuine, fraud).
COUNT = np.array([[900, 4], [60, 10], [5, 20]])
AMOUNT = np.array([[1_000_000, 7_000], [80_000, 15_000], [6_000, 40_000]])


def test_money_goes_where_the_decisions_send_it() -> None:
    money = money_of(COUNT, AMOUNT, CostSettings())
    assert money.fraud_declined_minor == 40_000
    assert money.fraud_reviewed_minor == 15_000
    assert money.fraud_missed_minor == money.loss_suffered_minor == 7_000
    assert money.genuine_declined_minor == 6_000
    assert money.genuine_reviewed_minor == 80_000


def test_the_net_is_loss_avoided_less_reviews_and_lost_margin() -> None:
    costs = CostSettings(review_cost_minor=300, fraud_loss_share=0.8, declined_margin_share=0.1)
    money = money_of(COUNT, AMOUNT, costs)
    assert money.loss_avoided_minor == 44_000
    assert money.loss_suffered_minor == 5_600
    # Reviews that find fraud cost money as well.
    assert money.review_cost_minor == 70 * 300
    assert money.margin_lost_minor == 600
    assert money.net_minor == 44_000 - 21_000 - 600
