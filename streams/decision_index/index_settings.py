"""The settings of the index of decisions and of the review queue: section [decision_index]."""

from __future__ import annotations

from dataclasses import dataclass, field

from paywarden.models.metrics.costs import CostSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal
from paywarden.streams.decision_index.reviews import ReviewRules
from paywarden.streams.decision_index.routing import UNREVIEWED

_MINUTE_MS, _DAY_MS = 60_000, 86_400_000
_LEAST = {"memory_mb": 64, "review_days": 1, "keep_days": 1}


@dataclass(frozen=True)
class DecisionIndexSettings:
    """Settings of the index's database and of the review queue."""

    # Without an address: the file of DuckDB. One process has it open.
    path: str = "index/decisions.duckdb"
    # postgresql://…, where a team works. It may hold a password.
    address: str = field(default="", repr=False)
    # The schema of the tables in PostgreSQL.
    schema: str = internal("paywarden")
    # Limits of DuckDB.
    memory_mb: int = 1024
    threads: int = internal(2)
    # PostgreSQL ends a statement that takes longer; a server that says nothing is given up 2 s later.
    timeout_ms: int = internal(5_000)
    # An analyst holds a payment for this long.
    claim_minutes: int = internal(15)
    # The share of reviewed payments that a second analyst reviews, too.
    second_review_share: float = 0.05
    # What happens to a payment in review that nobody looks at, for the order of the queue: approve, decline, or
    # cheaper: the action that costs less by [costs].
    unreviewed: str = "cheaper"
    # Older decisions leave the index.
    keep_days: int = 400
    # An older payment leaves the review queue.
    review_days: int = 7

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting that is out of range."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise Misconfigured(f"decision_index.{name}: wanted at least {least}, got {getattr(self, name)}")
        if not 0.0 <= self.second_review_share <= 1.0:
            raise Misconfigured(f"decision_index.second_review_share: wanted 0 to 1, got {self.second_review_share:g}")
        if self.unreviewed not in UNREVIEWED:
            raise Misconfigured(
                f"decision_index.unreviewed: wanted one of {', '.join(UNREVIEWED)}, got {self.unreviewed!r}"
            )

    def reviews(self, costs: CostSettings) -> ReviewRules:
        """Returns the settings of the review queue."""
        return ReviewRules(
            claim_ms=self.claim_minutes * _MINUTE_MS,
            second_share=self.second_review_share,
            age_ms_max=self.review_days * _DAY_MS,
            costs=costs,
            unreviewed=self.unreviewed,
        )
