"""The settings `[rollout]`. A rollout takes them over when it starts, and later changes do not touch it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from paywarden.models.rollout.plan import STEP_HOURS, STEPS, RolloutPlan
from paywarden.models.rollout.shares import checked_steps


@dataclass(frozen=True)
class RolloutSettings:
    """The plan of the next rollout."""

    # Percent of the cards.
    steps: tuple[float, ...] = STEPS
    step_hours: tuple[float, ...] = STEP_HOURS
    segments: tuple[str, ...] = ()
    # How long hosts may take to act on a new share.
    settle_s: float = RolloutPlan.settle_s
    leave_out: tuple[str, ...] = ()
    alpha: float = RolloutPlan.alpha
    margin: float = RolloutPlan.margin
    tolerance: float = RolloutPlan.tolerance
    label_days: float = RolloutPlan.label_days
    fraud_cap: int = RolloutPlan.fraud_cap

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting that is out of range."""
        self.plan()

    def plan(self) -> RolloutPlan:
        """Returns the plan of a rollout that starts now."""
        rest = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "steps"}
        return RolloutPlan(checked_steps(self.steps), **rest)
