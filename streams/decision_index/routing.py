"""The expected gain of a look: the money that an analyst's verdict about a payment is expected to save.

    EUR 100, a margin of 5 %    score 0.05                           score 0.80
    without a look              approve 5.00, decline 4.75  → 4.75   approve 80.00, decline 1.00  → 1.00
    verdict fraud (0.8, 0.1)    decline              0.475 → 0.475   decline               0.10  → 0.10
    verdict genuine (0.1, 0.8)  approve              0.50  → 0.50    decline               0.80  → 0.80
    verdict unsure (0.1, 0.1)   decline              0.475 → 0.475   decline               0.10  → 0.10
    gain                        4.75 - 1.45 = 3.30                   1.00 - 1.00 = 0

In brackets: how often analysts give this verdict about a fraud and about a genuine payment, as later outcomes show.

1. Without a look, a payment gets the action that `unreviewed` names. `cheaper` is the one that [costs] expects to cost
   less: approval loses score x amount x fraud_loss_share, a decline (1 - score) x amount x declined_margin_share.
2. After each verdict, the payment gets the action that is cheaper then.
3. The gain is the difference. It is largest for large payments that could go either way, and 0 where no verdict would
   change the action.

Analysts are measured on verdicts about payments with an outcome. PRIOR looks are added: a new team counts as one that
is right in 80 of 100 verdicts and unsure in 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paywarden.models.metrics.costs import CostSettings

VERDICTS = ("fraud", "genuine", "unsure")
UNREVIEWED = ("cheaper", "approve", "decline")
PRIOR: Mapping[tuple[str, str], float] = {
    ("fraud", "fraud"): 16, ("fraud", "genuine"): 2, ("fraud", "unsure"): 2,
    ("genuine", "fraud"): 2, ("genuine", "genuine"): 16, ("genuine", "unsure"): 2,
}  # fmt: skip
"""Looks by outcome and verdict. After 20 measured looks at payments of an outcome, these weigh as much."""


@dataclass(frozen=True)
class MeasuredAnalysts:
    """Looks by the payment's outcome and the verdict: how many, the prior included."""

    looks: Mapping[tuple[str, str], float] = field(default_factory=lambda: PRIOR)

    @classmethod
    def of(cls, counted: Mapping[tuple[str, str], int]) -> MeasuredAnalysts:
        """Returns analysts with these measured looks, by outcome and verdict."""
        return cls({each: prior + counted.get(each, 0) for each, prior in PRIOR.items()})

    def share(self, outcome: str, verdict: str) -> float:
        """Returns how often they give this verdict about payments of an outcome."""
        return self.looks[outcome, verdict] / sum(self.looks[outcome, each] for each in VERDICTS)


def gain_sql(costs: CostSettings, unreviewed: str, analysts: MeasuredAnalysts) -> str:
    """Returns an SQL expression: the gain in whole minor units, of the columns `score` and `worth_minor`.

    It is 0 without a worth: the currency has no rate.
    """

    def approved(share: float) -> str:
        return f"score * {costs.fraud_loss_share * share!r}"

    def declined(share: float) -> str:
        return f"(1 - score) * {costs.declined_margin_share * share!r}"

    def cheaper(of_fraud: float, of_genuine: float) -> str:
        return f"LEAST({approved(of_fraud)}, {declined(of_genuine)})"

    before = {"cheaper": cheaper(1.0, 1.0), "approve": approved(1.0), "decline": declined(1.0)}[unreviewed]
    after = " - ".join(cheaper(analysts.share("fraud", each), analysts.share("genuine", each)) for each in VERDICTS)
    return f"CAST(ROUND(GREATEST(0, COALESCE(worth_minor, 0) * ({before} - {after}))) AS BIGINT)"
