"""An alert as a value: its subject, its severity, and its state.

    raised  ──►  escalated (worse, or renamed after its cause)  ──►  cleared

The open alerts of a model version are kept in streams/alerts/book.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from paywarden.models.drift.signals import Signal, is_histogram
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal
from paywarden.streams.alerts.causes import Cause, cause_of


class State(StrEnum):
    """The state of an alert."""

    RAISED = "raised"
    ESCALATED = "escalated"
    CLEARED = "cleared"


class Severity(StrEnum):
    """The severity of an alert; compare with `rank_of`."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Comparison(StrEnum):
    """The reference of an alert: a baseline that follows slow changes, or the training window, which never changes."""

    BASELINE = "baseline"
    TRAINING = "training"


def rank_of(severity: Severity) -> int:
    """Return 0 for info, 1 for warning, 2 for critical."""
    return list(Severity).index(severity)


@dataclass(frozen=True)
class AlertSettings:
    """Limits of an alert's severities, and of the end of a change."""

    # Limits for the PSI of histograms, and for the relative change of shares.
    psi_warning: float = 0.1
    psi_critical: float = 0.25
    share_change_warning: float = 0.4
    share_change_critical: float = 0.8
    # A change is quiet below this share of the smallest change that may fire.
    quiet_share: float = internal(0.5)
    # Two changes may have one cause if they began at most this far apart.
    together_minutes: int = internal(60)

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not 0 < self.psi_warning <= self.psi_critical:
            raise Misconfigured("drift_alerts.psi_warning: wanted more than 0 and no more than psi_critical")
        if not 0 < self.share_change_warning <= self.share_change_critical:
            raise Misconfigured(
                "drift_alerts.share_change_warning: wanted more than 0 and no more than share_change_critical"
            )

    def severity(self, signal: Signal, effect: float) -> Severity:
        """Return how bad a change of this size is. Stale profiles are at least a warning."""
        warning, critical = (
            (self.psi_warning, self.psi_critical)
            if is_histogram(signal)
            else (self.share_change_warning, self.share_change_critical)
        )
        if effect >= critical:
            return Severity.CRITICAL
        stale = cause_of(signal.subject) is Cause.PROFILES
        return Severity.WARNING if effect >= warning or stale else Severity.INFO


@dataclass(frozen=True)
class MovedSignal:
    """A signal that moved with an alert, in the segment where it moved most. `deviation`: in standard deviations."""

    subject: str
    statistic: str
    segment: str
    effect: float
    deviation: float


@dataclass(frozen=True)
class Alert:
    """An alert as it is at `time_ms`, when `state` was entered.

    `effect`, `value`, `expected`, `count`, `evidence` and the window describe the signal it is named after, in the
    newest block of `length_ms`. `evidence` and its threshold are log10. `shift` is the change that was found, in
    standard deviations of such a block. The change began about `first_seen_ms`, give or take `slack_ms`.
    """

    alert_id: str
    model_version: str
    state: State
    severity: Severity
    time_ms: int
    first_seen_ms: int
    slack_ms: int
    raised_ms: int
    subject: str
    statistic: str
    segment: str
    length_ms: int
    effect: float
    effect_min: float
    value: float
    expected: float
    count: int
    evidence: float
    evidence_min: float
    shift: float
    window_start_ms: int
    window_end_ms: int
    attached: tuple[MovedSignal, ...] = ()
    # The indexes of all signals that fired for it, and when the signal it is named after was last counted.
    members: tuple[int, ...] = ()
    last_counted_ms: int = 0
    quiet_blocks: int = 0
    recovery: float = 0.0
    acknowledged_by: str = ""
    snoozed_until_ms: int = 0
    # A change of name or severity that was held back while the alert is snoozed.
    held_back: bool = False
    # The values between which the signal counts as unchanged; both 0 where nobody says.
    unchanged_low: float = 0.0
    unchanged_high: float = 0.0
    # The reference that the current window is compared with.
    comparison: Comparison = Comparison.BASELINE
    # For alerts that compare with the training window: the share of payments that would have to move, and how often the
    # open alert was repeated.
    outside: float = 0.0
    reminders: int = 0

    @property
    def signal(self) -> Signal:
        """The signal the alert is named after."""
        return Signal(self.subject, self.statistic, self.segment)

    @property
    def cause(self) -> Cause:
        return cause_of(self.subject)

    def to_dict(self) -> dict[str, Any]:
        """Return the alert for JSON and `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Alert:
        """Return exactly the alert that `to_dict` was called on."""
        return cls(
            **{
                **fields,
                "state": State(fields["state"]),
                "severity": Severity(fields["severity"]),
                "comparison": Comparison(fields.get("comparison", Comparison.BASELINE)),
                "attached": tuple(MovedSignal(**moved) for moved in fields["attached"]),
                "members": tuple(fields["members"]),
            }
        )
