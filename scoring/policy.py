"""From a score and what is odd about it to an action, with reasons a person can read.

Thresholds give the action of the score; each flag can ask for a stricter one. The strictest wins, and every
part that asked for it is a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.errors import Misconfigured

# In order of strictness.
ACTIONS = ("approve", "review", "decline")
APPROVE, REVIEW, DECLINE = range(3)

# What can be odd about a decision.
UNKNOWN_CARD = "unknown_card"
UNKNOWN_MERCHANT = "unknown_merchant"
UNKNOWN_DEVICE = "unknown_device"
MIRROR_ABSENT = "mirror_absent"
MIRROR_STALE = "mirror_stale"
PROFILE_UNREADABLE = "profile_unreadable"
FLAGS = (UNKNOWN_CARD, UNKNOWN_MERCHANT, UNKNOWN_DEVICE, MIRROR_ABSENT, MIRROR_STALE, PROFILE_UNREADABLE)


def unknown_flag(entity: str) -> str:
    """The flag of a payment whose entity of this kind has no profile."""
    return f"unknown_{entity}"


def flags_of(entities: Iterable[str]) -> tuple[str, ...]:
    """Every flag there can be with a catalogue of these entities."""
    return tuple(dict.fromkeys((*FLAGS, *map(unknown_flag, entities))))


@dataclass(frozen=True)
class PolicySettings:
    """Thresholds and what flags ask for. An entity never seen before is a normal case: it asks for nothing."""

    # A score at or above takes the action. 0 means: as the bundle says.
    review_at: float = 0.0
    decline_at: float = 0.0
    # Profiles that lag further behind the payments stream are stale.
    stale_after_ms: int = 30_000
    on_unknown_card: str = "approve"
    on_unknown_merchant: str = "approve"
    on_unknown_device: str = "approve"
    # Of any other kind of entity that the feature catalogue declares.
    on_unknown_other: str = "approve"
    on_mirror_absent: str = "review"
    on_mirror_stale: str = "approve"
    on_profile_unreadable: str = "review"


class Policy:
    """A checked policy. Immutable and free of I/O."""

    def __init__(self, settings: PolicySettings, *, review_at: float, decline_at: float) -> None:
        """`review_at` and `decline_at` are the bundle's. Raises Misconfigured naming the setting."""
        self._review_at = settings.review_at or review_at
        self._decline_at = settings.decline_at or decline_at
        self.stale_after_ms = settings.stale_after_ms
        for name, value in (("review_at", self._review_at), ("decline_at", self._decline_at)):
            if not (math.isfinite(value) and 0.0 < value <= 1.0):
                raise Misconfigured(f"policy.{name}: wanted a score above 0 and at most 1, got {value}")
        if self._review_at > self._decline_at:
            raise Misconfigured(
                f"policy.review_at ({self._review_at:.4g}) must not be above policy.decline_at ({self._decline_at:.4g})"
            )
        self._strictness = {flag: _strictness(settings, flag) for flag in FLAGS}
        self._unknown_other = _strictness(settings, unknown_flag("other"))

    def decide(self, score: float | None, flags: Sequence[str]) -> tuple[str, list[str]]:
        """The action and its reasons; no score asks for nothing. An approved payment needs no reason."""
        strictness, reasons = APPROVE, []
        if score is not None and score >= self._decline_at:
            strictness, reasons = DECLINE, ["score_at_or_above_decline_threshold"]
        elif score is not None and score >= self._review_at:
            strictness, reasons = REVIEW, ["score_at_or_above_review_threshold"]
        for flag in flags:
            wanted = self._strictness.get(flag, self._unknown_other)
            if wanted > strictness:
                strictness, reasons = wanted, [flag]
            elif wanted == strictness and wanted > APPROVE:
                reasons.append(flag)
        return ACTIONS[strictness], reasons


def _strictness(settings: PolicySettings, flag: str) -> int:
    action = getattr(settings, f"on_{flag}")
    if action not in ACTIONS:
        raise Misconfigured(f"policy.on_{flag}: wanted one of {', '.join(ACTIONS)}, got {action!r}")
    return ACTIONS.index(action)
