"""The value of decisions in money, at stated costs.

    fraud, declined or reviewed     saves its amount x `fraud_loss_share`
    a review                        costs `review_cost_minor`
    genuine payment, declined       loses its amount x `declined_margin_share`

The net value compares with approving every payment. A reviewed fraud counts as stopped: the analyst finds it.

Example with the defaults, in euros: 8 frauds of 100.00 are stopped, 20 payments reviewed, and 5 genuine payments of
40.00 declined. Net value = 8 x 100.00 - 20 x 5.00 - 5 x 40.00 x 0.05 = 800 - 100 - 10 = 690.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paywarden.models.metrics.tally import APPROVED, DECLINED, FRAUD, GENUINE, REVIEWED
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class CostSettings:
    """Amounts are in minor units of the reference currency."""

    # About ten minutes of an analyst.
    review_cost_minor: int = 500
    """The cost of a review."""
    fraud_loss_share: float = 1.0
    """The lost share of a missed fraud's amount."""
    declined_margin_share: float = 0.05
    """The lost share of a declined genuine payment's amount: the margin of the sale."""
    reviews_a_day: int = 100
    """Payments that analysts can review on a day."""

    def __post_init__(self) -> None:
        if self.review_cost_minor < 0:
            raise Misconfigured(f"[costs] review_cost_minor: wanted at least 0, got {self.review_cost_minor}")
        for name in ("fraud_loss_share", "declined_margin_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise Misconfigured(f"[costs] {name}: wanted a share from 0 to 1, got {value}")
        if self.reviews_a_day < 1:
            raise Misconfigured(f"[costs] reviews_a_day: wanted at least 1, got {self.reviews_a_day}")


@dataclass(frozen=True)
class Money:
    """Sums of amounts, and the value of the decisions, in minor units of the reference currency."""

    fraud_declined_minor: int
    """Declined frauds."""
    fraud_reviewed_minor: int
    """Reviewed frauds."""
    fraud_missed_minor: int
    """Approved frauds."""
    genuine_declined_minor: int
    """Declined genuine payments."""
    genuine_reviewed_minor: int
    """Reviewed genuine payments."""
    loss_avoided_minor: int
    """Loss that the stopped frauds would have caused."""
    loss_suffered_minor: int
    """The loss that the missed frauds caused."""
    review_cost_minor: int
    """The cost of the reviews."""
    margin_lost_minor: int
    """Margin of the declined genuine payments."""
    net_minor: int
    """Loss avoided minus reviews minus lost margin: the value relative to approving everything."""


def money_of(count: npt.NDArray[np.int64], amount_minor: npt.NDArray[np.int64], costs: CostSettings) -> Money:
    """Returns the money of one group of a tally. Both arrays: (actions, 2)."""
    stopped = int(amount_minor[REVIEWED:, FRAUD].sum())
    missed = int(amount_minor[APPROVED, FRAUD])
    declined = int(amount_minor[DECLINED, GENUINE])
    avoided = round(stopped * costs.fraud_loss_share)
    reviews = int(count[REVIEWED].sum()) * costs.review_cost_minor
    margin = round(declined * costs.declined_margin_share)
    return Money(
        fraud_declined_minor=int(amount_minor[DECLINED, FRAUD]),
        fraud_reviewed_minor=int(amount_minor[REVIEWED, FRAUD]),
        fraud_missed_minor=missed,
        genuine_declined_minor=declined,
        genuine_reviewed_minor=int(amount_minor[REVIEWED, GENUINE]),
        loss_avoided_minor=avoided,
        loss_suffered_minor=round(missed * costs.fraud_loss_share),
        review_cost_minor=reviews,
        margin_lost_minor=margin,
        net_minor=avoided - reviews - margin,
    )
