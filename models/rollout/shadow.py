"""Compare a challenger in the shadow with the champion: both decide about the same payments, only the champion acts.

A *shadow record* holds both sides of one payment (schemas/avsc/shadow-decisions.avsc):

    payment p-1    champion 0.12 approve    challenger 0.71 decline
    payment p-2    champion 0.65 decline    challenger 0.58 review

Each payment is its own comparison, so differences are *paired*: the risk of the payment itself is the same on both
sides and cancels. Payments of one card are not independent, so the sums of a card are one observation, and intervals
are those of a normal mean over cards. They hold for one look at a finished comparison. A shadow harms nobody, so
nothing has to be stopped early; a rollout's evidence may be looked at at any time (models/rollout/rollout_evidence.py).

A shadow is shed before a payment is. `paired_share` says how much of the champion's traffic the comparison saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.version import Version
from paywarden.models.metrics.comparison import Agreement, ScoreShift, agreement, score_shift
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.intervals import Z_95
from paywarden.models.policy.policy import ACTIONS, APPROVE, DECLINE, REVIEW
from paywarden.schemas.errors import InvalidEvent

SHADOW_TOPIC = "shadow-decisions"

Floats = NDArray[np.float64]


class ShadowSide(NamedTuple):
    """The decision of one side, and what made it. No model gave the score if the bundle is empty."""

    score: float
    action: str
    version: Version


@dataclass(slots=True)
class ShadowRecord:
    """One payment that both sides decided. `decision_id`: of the champion's decision.

    It is not frozen: a challenger makes one for each decision, and a frozen one takes twice as long to make.

    `is_shadow_host`: the challenger decided on a host of its own, with features that the champion's catalogue has not.
    """

    decision_id: str
    payment_id: str
    card_id: str
    decided_time_ms: int
    challenger_name: str
    catalogue_digest: str
    champion: ShadowSide
    challenger: ShadowSide
    challenger_reasons: tuple[str, ...] = ()
    is_shadow_host: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidEvent naming the field that is out of range."""
        for name, (score, action, _) in (("champion", self.champion), ("challenger", self.challenger)):
            if action not in ACTIONS:
                raise InvalidEvent(f"wanted one of {', '.join(ACTIONS)}, got another", field=f"{name}.action")
            if not 0 <= score <= 1:
                raise InvalidEvent(f"wanted 0 to 1, got {score:g}", field=f"{name}.score")
        if not self.challenger_name:
            raise InvalidEvent("wanted the name of a challenger, got an empty text", field="challenger_name")
        if self.champion.version == self.challenger.version:
            raise InvalidEvent("the challenger is the champion", field="challenger.bundle_digest")

    def value(self) -> dict[str, Any]:
        """Returns the record of the topic `shadow-decisions`."""
        champion, challenger = self.champion, self.challenger
        return {
            "decision_id": self.decision_id,
            "payment_id": self.payment_id,
            "card_id": self.card_id,
            "decided_time_ms": self.decided_time_ms,
            "challenger": self.challenger_name,
            "is_shadow_host": self.is_shadow_host,
            "catalogue_digest": self.catalogue_digest,
            "challenger_reasons": list(self.challenger_reasons),
            "champion_bundle_digest": champion.version.bundle,
            "champion_policy_digest": champion.version.policy,
            "champion_score": champion.score,
            "champion_action": champion.action,
            "challenger_bundle_digest": challenger.version.bundle,
            "challenger_policy_digest": challenger.version.policy,
            "challenger_score": challenger.score,
            "challenger_action": challenger.action,
        }


@dataclass(frozen=True)
class ShadowColumns:
    """Shadow records of one champion and one challenger as columns; all have shape (payments,).

    `champion_action`, `challenger_action`: indexes into ACTIONS. `amount`: minor units of the reference currency.
    `fraud`: 1 for fraud, 0 for genuine, -1 while it is not known.
    """

    card: NDArray[np.uint64]
    champion_score: Floats
    challenger_score: Floats
    champion_action: NDArray[np.int8]
    challenger_action: NDArray[np.int8]
    amount: NDArray[np.int64]
    fraud: NDArray[np.int8]


@dataclass(frozen=True)
class PairedDifference:
    """Challenger minus champion, per payment, with the 95 % interval; NaN three times with fewer than two cards."""

    name: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class ShadowComparison:
    """How a challenger in the shadow differs from the champion."""

    payments: int
    cards: int
    labelled: int
    """The payments whose outcome is known."""
    paired_share: float
    """The share of the champion's payments that the challenger decided, too."""
    agreement: Agreement
    score_shift: ScoreShift | None
    """None without payments."""
    differences: tuple[PairedDifference, ...]


def compare_shadow(columns: ShadowColumns, *, champion_payments: int, costs: CostSettings) -> ShadowComparison:
    """Returns the comparison of all payments in `columns`.

    `champion_payments`: how many payments the champion decided in that time, paired or not. Shares are differences of
    shares of payments; `net_minor` is the difference in net value per payment among those with a known outcome.
    """
    count = len(columns.card)
    assert champion_payments >= count, "each shadow record belongs to a payment of the champion"
    champion, challenger = columns.champion_action, columns.challenger_action
    known = columns.fraud >= 0
    every = np.ones(count, dtype=bool)
    value = _value(columns, challenger, costs) - _value(columns, champion, costs)
    parts: Sequence[tuple[str, Floats, NDArray[np.bool_]]] = (
        ("score", columns.challenger_score - columns.champion_score, every),
        *(
            (f"{ACTIONS[action]}_share", (challenger == action).astype(float) - (champion == action), every)
            for action in (APPROVE, REVIEW, DECLINE)
        ),
        ("fraud_approved_share", _both(columns, 1, (APPROVE,)), known),
        ("genuine_declined_share", _both(columns, 0, (DECLINE,)), known),
        ("net_minor", value, known),
    )
    return ShadowComparison(
        payments=count,
        cards=len(np.unique(columns.card)),
        labelled=int(known.sum()),
        paired_share=count / champion_payments if champion_payments else math.nan,
        agreement=agreement(champion, challenger, columns.fraud == 1),
        score_shift=score_shift(columns.champion_score.copy(), columns.challenger_score.copy()) if count else None,
        differences=tuple(_paired(name, values[rows], columns.card[rows]) for name, values, rows in parts),
    )


def _both(columns: ShadowColumns, fraud: int, actions: Sequence[int]) -> Floats:
    """Returns 1 where only the challenger took one of the actions on such a payment, -1 where only the champion did."""
    kind = (columns.fraud == fraud).astype(float)
    ours, theirs = (np.isin(side, actions) for side in (columns.challenger_action, columns.champion_action))
    return np.asarray(kind * (ours.astype(float) - theirs), dtype=np.float64)


def _value(columns: ShadowColumns, action: NDArray[np.int8], costs: CostSettings) -> Floats:
    """Returns the net value of one side's decisions, as models/metrics/costs.py defines it, in minor units."""
    saved = (columns.fraud == 1) & (action != APPROVE)
    lost = (columns.fraud == 0) & (action == DECLINE)
    reviews = (action == REVIEW) * float(costs.review_cost_minor)
    margins = saved * costs.fraud_loss_share - lost * costs.declined_margin_share
    return np.asarray(columns.amount * margins - reviews, dtype=np.float64)


def _paired(name: str, values: Floats, card: NDArray[np.uint64]) -> PairedDifference:
    """Returns the mean difference with its interval; a card's payments are one observation."""
    cards, row = np.unique(card, return_inverse=True)
    if len(cards) < 2:
        return PairedDifference(name, math.nan, math.nan, math.nan)
    mean = float(values.mean())
    residual = np.bincount(row, values - mean)
    spread = math.sqrt(float((residual**2).sum()) * len(cards) / (len(cards) - 1)) / len(values)
    return PairedDifference(name, mean, mean - Z_95 * spread, mean + Z_95 * spread)
