"""The settings `[rollout]`. A rollout takes them over when it starts, and later changes do not touch it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paywarden.models.rollout.plan import STEP_HOURS, STEPS, RolloutPlan
from paywarden.models.rollout.shares import checked_steps
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class RolloutSettings:
    """Where rollouts are written down, and the plan of the next one."""

    log: str = "rollouts.jsonl"
    # Percent of the cards.
    steps: tuple[float, ...] = STEPS
    step_hours: tuple[float, ...] = STEP_HOURS
    segments: tuple[str, ...] = ()
    settle_s: float = 10.0
    leave_out: tuple[str, ...] = ()
    alpha: float = RolloutPlan.alpha
    margin: float = RolloutPlan.margin
    tolerance: float = RolloutPlan.tolerance
    rare_share: float = RolloutPlan.rare_share
    cards_min: int = RolloutPlan.cards_min
    label_days: float = RolloutPlan.label_days
    labels_min: int = RolloutPlan.labels_min
    fraud_cap: int = RolloutPlan.fraud_cap

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting that is out of range."""
        if not self.log:
            raise Misconfigured("rollout log: wanted the path of a file, got an empty text")
        self.plan()

    def plan(self) -> RolloutPlan:
        """Returns the plan of a rollout that starts now."""
        rest = {field.name: getattr(self, field.name) for field in fields(RolloutPlan) if field.name != "steps"}
        return RolloutPlan(checked_steps(self.steps), **rest)
