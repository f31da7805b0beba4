"""What decisions are worth in money, at costs somebody has to state.

    fraud that was declined or reviewed   its amount times `fraud_loss_share` is not lost
    a review                              costs `review_cost_minor`
    a genuine payment that was declined   loses its amount times `declined_margin_share`

The net is held against approving every payment. A fraud that was reviewed counts as stopped: the analyst finds it.
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

    # Some ten minutes of an analyst.
    review_cost_minor: int = 500
    """What a review costs."""
    fraud_loss_share: float = 1.0
    """How much of a missed fraud's amount is lost: what nobody pays back."""
    declined_margin_share: float = 0.05
    """How much of a declined genuine payment's amount is lost: the margin of the sale."""
    reviews_a_day: int = 100
    """How many payments analysts can look at on a day."""

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
    """Where the money went, in minor units of the reference currency."""

    fraud_declined_minor: int
    """Frauds that were declined."""
    fraud_reviewed_minor: int
    """Frauds that were sent to review."""
    fraud_missed_minor: int
    """Frauds that were approved."""
    genuine_declined_minor: int
    """Genuine payments that were declined."""
    genuine_reviewed_minor: int
    """Genuine payments that were sent to review."""
    loss_avoided_minor: int
    """What stopped frauds would have cost."""
    loss_suffered_minor: int
    """What missed frauds cost."""
    review_cost_minor: int
    """What the reviews cost."""
    margin_lost_minor: int
    """What declined genuine payments would have earned."""
    net_minor: int
    """Loss avoided less reviews and lost margin: what the decisions are worth against approving everything."""


def money_of(count: npt.NDArray[np.int64], amount_minor: npt.NDArray[np.int64], costs: CostSettings) -> Money:
    """The money of one group of a tally: both arrays have shape (actions, 2)."""
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
