"""The life of alerts: what fires becomes one open alert per cause, which escalates, and clears when all is quiet.

1. What fired in a block is gathered into findings, one a subject, each named where it sits (streams/alerts/causes.py).
2. Each finding, causes before what they explain, goes
   a. to an open alert that it was attached to before, or that explains it: it is attached there;
   b. into the place of an open alert that it explains: that one is renamed and escalates, and takes in others like it;
   c. or becomes an alert of its own.
   One explains the other only if both may have begun at the same time.
3. Open alerts are followed in blocks of the length that found them. An alert clears when enough blocks in a row were
   quiet (too small a change, or none that can be told from chance) *and* there is evidence that the change is over: a
   cumulative sum of "nothing" against "most of what was found". A value that hovers about a limit gives neither.

Alerts are values: each step returns those whose state changed, as they then are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from paywarden.models.drift.detectors import DAY_MS, LENGTHS_MS, MINUTE_MS, DetectorVerdict
from paywarden.models.drift.signals import Block, Signal, is_histogram
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.alerts.causes import (
    Cause,
    SignalTable,
    cause_of,
    mix_explains,
    most_moved_traffic,
    newcomers_explain,
    seat_of,
    traffic_explains,
)

# What is kept by name of what an alert explains; it is most of the record that is sent.
ATTACHED_MAX = 20
# Blocks in a row that must be quiet: an hour, some hours, two days.
_QUIET_BLOCKS = dict(zip(LENGTHS_MS, (12, 4, 2), strict=True))
# A change that a thousand times more speaks against than for is over; spoken of is this share of what was found.
_RECOVERY_MIN = math.log(1000)
_RECOVERY_SHARE = 0.7
# A deviation that chance has in one block of twenty.
_NOTICEABLE = 2.0


class State(StrEnum):
    """Where an alert is in its life."""

    RAISED = "raised"
    ESCALATED = "escalated"
    CLEARED = "cleared"


class Severity(StrEnum):
    """How bad; compare with `rank_of`."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


def rank_of(severity: Severity) -> int:
    """0 for info, 2 for critical."""
    return list(Severity).index(severity)


@dataclass(frozen=True)
class AlertSettings:
    """From when on a change is bad, and when it is over."""

    # PSI of histograms, relative change of shares.
    psi_warning: float = 0.1
    psi_critical: float = 0.25
    share_change_warning: float = 0.4
    share_change_critical: float = 0.8
    # A change under this share of the smallest that may fire is quiet.
    quiet_share: float = 0.5
    # Two changes may have one cause when they began no further apart.
    together_minutes: int = 60

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not 0 < self.psi_warning <= self.psi_critical:
            raise Misconfigured("drift_alerts.psi_warning: wanted more than 0 and no more than psi_critical")
        if not 0 < self.share_change_warning <= self.share_change_critical:
            raise Misconfigured(
                "drift_alerts.share_change_warning: wanted more than 0 and no more than share_change_critical"
            )
        if not 0 < self.quiet_share <= 1:
            raise Misconfigured(f"drift_alerts.quiet_share: wanted more than 0 and at most 1, got {self.quiet_share:g}")
        if self.together_minutes < 1:
            raise Misconfigured(f"drift_alerts.together_minutes: wanted at least 1, got {self.together_minutes}")

    def severity(self, signal: Signal, effect: float) -> Severity:
        """How bad a change of this size is. Stale profiles are never a mere remark."""
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
class Moved:
    """A signal that moved with an alert, where it moved most. `deviation`: in standard deviations of its block."""

    subject: str
    statistic: str
    segment: str
    effect: float
    deviation: float


@dataclass(frozen=True)
class Alert:
    """An alert as it is at `time_ms`, when `state` was entered.

    `effect`, `value`, `expected`, `count`, `evidence` (log10, as its threshold) and the window are of the signal it is
    named after, in the newest block of `length_ms`; `shift` is what was found, in standard deviations of such a block.
    `first_seen_ms`: about when the change began, `slack_ms` early or late.
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
    attached: tuple[Moved, ...] = ()
    # All signals that fired for it, by index, and when the one it is named after was last counted.
    members: tuple[int, ...] = ()
    last_counted_ms: int = 0
    quiet_blocks: int = 0
    recovery: float = 0.0
    acknowledged_by: str = ""
    snoozed_until_ms: int = 0
    # A change of name or severity that was held back while the alert is snoozed.
    held_back: bool = False

    @property
    def signal(self) -> Signal:
        """What it is named after."""
        return Signal(self.subject, self.statistic, self.segment)

    @property
    def cause(self) -> Cause:
        return cause_of(self.subject)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Alert:
        """Exactly what `to_dict` was made of."""
        return cls(
            **{
                **fields,
                "state": State(fields["state"]),
                "severity": Severity(fields["severity"]),
                "attached": tuple(Moved(**moved) for moved in fields["attached"]),
                "members": tuple(fields["members"]),
            }
        )


@dataclass(frozen=True)
class Finding:
    """What fired of one subject in one block. `index` is of the signal that names it, `members` are all that fired.

    The change began some time between `earliest_ms` and `latest_ms`, best `onset_ms`.
    """

    index: int
    signal: Signal
    cause: Cause
    members: tuple[int, ...]
    effect: float
    deviation: float
    evidence: float
    evidence_min: float
    shift: float
    onset_ms: int
    earliest_ms: int
    latest_ms: int

    def moved(self) -> Moved:
        signal = self.signal
        return Moved(signal.subject, signal.statistic, signal.segment, self.effect, self.deviation)


@dataclass
class AlertBook:
    """The open alerts of one model version. Not thread-safe."""

    model_version: str
    table: SignalTable
    settings: AlertSettings
    effect_min_of: Mapping[Signal, float]
    open: dict[str, Alert] = field(default_factory=dict)
    # Of what nothing was counted for so long, and three blocks, it is taken that there is no traffic any more.
    gone_after_ms: int = DAY_MS

    def step(self, block: Block, verdict: DetectorVerdict) -> list[Alert]:
        """Take in what the detectors say of a block; returns the alerts that were raised, escalated or cleared."""
        before = dict(self.open)
        for finding in findings_of(self.table, block, verdict):
            self._place(finding, block, verdict)
        for alert in list(self.open.values()):
            self._follow(alert, block, verdict)
        return self._changes(before, block.end_ms)

    def acknowledge(self, alert_id: str, *, by: str, until_ms: int = 0) -> bool:
        """Note who has seen an alert and, with `until_ms`, until when it does not escalate short of critical.

        False when no such alert is open: it has cleared, or is another model version's.
        """
        alert = self.open.get(alert_id)
        if alert is None:
            return False
        self.open[alert_id] = replace(alert, acknowledged_by=by, snoozed_until_ms=max(until_ms, alert.snoozed_until_ms))
        return True

    def close(self, time_ms: int) -> list[Alert]:
        """Clear everything: the model decides no more."""
        cleared = [replace(alert, state=State.CLEARED, time_ms=time_ms) for alert in self.open.values()]
        self.open.clear()
        return cleared

    def _place(self, finding: Finding, block: Block, verdict: DetectorVerdict) -> None:
        alerts = sorted(self.open.values(), key=lambda alert: (_turn(alert.cause), alert.first_seen_ms, alert.alert_id))
        home = self._home(alerts, finding, block, verdict)
        if home is not None:
            self.open[home.alert_id] = self._attached(home, finding)
            return
        explained = [alert for alert in alerts if self._is_explained(alert, finding, block, verdict)]
        if not explained:
            alert = self._raised(finding, block)
            self.open[alert.alert_id] = alert
            return
        first = min(explained, key=lambda alert: (alert.raised_ms, alert.alert_id))
        self.open[first.alert_id] = self._renamed(first, finding, explained, block)
        for alert in explained:
            if alert is not first:
                # Told as cleared: what it was about lives on in the first.
                del self.open[alert.alert_id]

    def _home(self, alerts: Sequence[Alert], finding: Finding, block: Block, verdict: DetectorVerdict) -> Alert | None:
        """The open alert that what was found belongs to; None when there is none."""
        for alert in alerts:
            if self._is_of(alert, finding):
                return alert
        for alert in alerts:
            if self._holds(alert, finding, block, verdict):
                return alert
        return None

    def _is_of(self, alert: Alert, finding: Finding) -> bool:
        """Whether it was attached before, or is what the alert is named after."""
        if finding.cause is Cause.TRAFFIC:
            return finding.index in alert.members
        subjects = {self.table.signals[index].subject for index in alert.members}
        return finding.signal.subject in subjects

    def _holds(self, alert: Alert, finding: Finding, block: Block, verdict: DetectorVerdict) -> bool:
        """Whether an open alert explains what was found."""
        if alert.cause is Cause.PROFILES:
            # What profiles do to features and scores comes bit by bit.
            return finding.cause is not Cause.TRAFFIC
        if alert.cause in (Cause.SCORE, Cause.OUTCOME):
            return finding.cause is alert.cause
        if alert.cause is Cause.TRAFFIC:
            if traffic_explains(self.table, block, alert.signal, finding.signal):
                return True
            if finding.cause is not Cause.TRAFFIC and self._from_traffic(alert.signal, finding.signal, block, verdict):
                return True
            return finding.cause is Cause.TRAFFIC and self._together(alert, finding)
        if finding.cause is Cause.TRAFFIC and finding.signal.segment != alert.segment:
            return False
        return finding.cause is not Cause.PROFILES and self._together(alert, finding)

    def _is_explained(self, alert: Alert, finding: Finding, block: Block, verdict: DetectorVerdict) -> bool:
        """Whether what was found is the cause of an open alert."""
        if not self._together(alert, finding):
            return False
        if finding.cause is Cause.TRAFFIC:
            comes_after = alert.cause in (Cause.INPUT, Cause.SCORE)
            return comes_after and self._from_traffic(finding.signal, alert.signal, block, verdict)
        if alert.cause is Cause.TRAFFIC:
            return finding.cause is Cause.INPUT and finding.signal.segment == alert.segment
        return finding.cause < alert.cause

    def _from_traffic(self, traffic: Signal, signal: Signal, block: Block, verdict: DetectorVerdict) -> bool:
        """Whether a move of traffic is why a feature or the score moved."""
        if newcomers_explain(self.table, block, signal, traffic):
            return True
        return mix_explains(self.table, block, verdict, signal, traffic)

    def _together(self, alert: Alert, finding: Finding) -> bool:
        """Whether both may have begun at the same time."""
        slack_ms = max(alert.slack_ms, self.settings.together_minutes * MINUTE_MS)
        begins, ends = alert.first_seen_ms - slack_ms, alert.first_seen_ms + slack_ms
        return finding.earliest_ms <= ends and finding.latest_ms >= begins

    def _raised(self, finding: Finding, block: Block) -> Alert:
        name = "\0".join(
            (
                self.model_version,
                str(block.end_ms),
                finding.signal.subject,
                finding.signal.statistic,
                finding.signal.segment,
            )
        )
        return Alert(
            # From what is known of it alone: a block that is worked in again raises the same alert.
            alert_id=hashlib.sha256(name.encode()).hexdigest()[:16],
            model_version=self.model_version,
            state=State.RAISED,
            severity=self._severity(finding),
            time_ms=block.end_ms,
            first_seen_ms=finding.onset_ms,
            raised_ms=block.end_ms,
            members=finding.members,
            **self._naming(finding, block),
        )

    def _naming(self, finding: Finding, block: Block) -> dict[str, Any]:
        """The fields that are of the signal an alert is named after."""
        index = finding.index
        return {
            "subject": finding.signal.subject,
            "statistic": finding.signal.statistic,
            "segment": finding.signal.segment,
            "slack_ms": (finding.latest_ms - finding.earliest_ms) // 2,
            "length_ms": block.length_ms,
            "effect": finding.effect,
            "effect_min": self.effect_min_of[finding.signal],
            "value": float(block.value[index]),
            "expected": float(block.expected[index]),
            "count": int(block.count[index]),
            "evidence": finding.evidence,
            "evidence_min": finding.evidence_min,
            "shift": finding.shift,
            "window_start_ms": block.start_ms,
            "window_end_ms": block.end_ms,
            "last_counted_ms": block.end_ms,
        }

    def _attached(self, alert: Alert, finding: Finding) -> Alert:
        alert = replace(alert, members=_union(alert.members, finding.members))
        if finding.signal == alert.signal:
            return replace(alert, evidence=finding.evidence)
        alert = replace(alert, attached=_strongest([*alert.attached, finding.moved()]))
        return _with_severity(alert, self._severity(finding))

    def _renamed(self, alert: Alert, finding: Finding, explained: Sequence[Alert], block: Block) -> Alert:
        """The same alert under the name of what is behind it."""
        moved = [move for other in explained for move in (*other.attached, _named(other))]
        members = [index for other in explained for index in other.members]
        worst = max((*(other.severity for other in explained), self._severity(finding)), key=rank_of)
        return replace(
            alert,
            **self._naming(finding, block),
            attached=_strongest([move for move in moved if move.subject != finding.signal.subject]),
            members=_union(members, finding.members),
            first_seen_ms=min(alert.first_seen_ms, finding.onset_ms),
            severity=worst,
            quiet_blocks=0,
            recovery=0.0,
        )

    def _severity(self, finding: Finding) -> Severity:
        return self.settings.severity(finding.signal, finding.effect)

    def _follow(self, alert: Alert, block: Block, verdict: DetectorVerdict) -> None:
        """What a block says about an open alert: how large the change is now, and whether it is over."""
        alert = self.open[alert.alert_id]
        index = self.table.index[alert.signal]
        if block.length_ms == alert.length_ms and verdict.counted[index] and block.end_ms > alert.raised_ms:
            alert = self._followed(alert, index, block, verdict)
        gone_ms = block.end_ms - alert.last_counted_ms
        over = alert.quiet_blocks >= _QUIET_BLOCKS[alert.length_ms] and alert.recovery >= _RECOVERY_MIN
        if over or gone_ms > self.gone_after_ms + 3 * alert.length_ms:
            del self.open[alert.alert_id]
        else:
            self.open[alert.alert_id] = alert

    def _followed(self, alert: Alert, index: int, block: Block, verdict: DetectorVerdict) -> Alert:
        effect, deviation = float(verdict.effect[index]), float(verdict.deviation[index])
        same_way = deviation * alert.shift > 0
        quiet_effect = self.settings.quiet_share * alert.effect_min
        loud = effect >= quiet_effect and same_way and abs(deviation) >= _NOTICEABLE
        spoken = _RECOVERY_SHARE * alert.shift
        alert = replace(
            alert,
            effect=effect,
            value=float(block.value[index]),
            expected=float(block.expected[index]),
            count=int(block.count[index]),
            window_start_ms=block.start_ms,
            window_end_ms=block.end_ms,
            last_counted_ms=block.end_ms,
            quiet_blocks=0 if loud else alert.quiet_blocks + 1,
            recovery=min(max(0.0, alert.recovery + spoken * spoken / 2 - spoken * deviation), 2 * _RECOVERY_MIN),
        )
        return _with_severity(alert, self.settings.severity(alert.signal, alert.effect))

    def _changes(self, before: Mapping[str, Alert], now_ms: int) -> list[Alert]:
        """The alerts that others are to hear of."""
        told = []
        for alert_id, alert in list(self.open.items()):
            was = before.get(alert_id)
            if was is None:
                told.append(alert)
                continue
            worse = rank_of(alert.severity) > rank_of(was.severity) or alert.signal != was.signal
            if not (worse or alert.held_back):
                continue
            if now_ms < alert.snoozed_until_ms and alert.severity is not Severity.CRITICAL:
                self.open[alert_id] = replace(alert, held_back=True)
                continue
            alert = replace(alert, state=State.ESCALATED, time_ms=now_ms, held_back=False)
            self.open[alert_id] = alert
            told.append(alert)
        gone = [alert for alert_id, alert in before.items() if alert_id not in self.open]
        told += [replace(alert, state=State.CLEARED, time_ms=now_ms) for alert in gone]
        return told


def findings_of(table: SignalTable, block: Block, verdict: DetectorVerdict) -> list[Finding]:
    """What fired in a block, one finding a subject, in the order in which they are placed; the strongest first."""
    groups: dict[str, list[int]] = {}
    for index in verdict.fired.tolist():
        groups.setdefault(table.signals[index].subject, []).append(index)
    findings = [_finding(table, block, verdict, members) for members in groups.values()]
    return sorted(findings, key=lambda finding: (_turn(finding.cause), -abs(finding.deviation), finding.signal.subject))


def _turn(cause: Cause) -> int:
    """When a cause is asked whether it explains something: traffic before features, since its mix can be checked."""
    return (Cause.PROFILES, Cause.TRAFFIC, Cause.INPUT, Cause.SCORE, Cause.OUTCOME).index(cause)


def _finding(table: SignalTable, block: Block, verdict: DetectorVerdict, members: list[int]) -> Finding:
    cause = cause_of(table.signals[members[0]].subject)
    if cause is Cause.TRAFFIC:
        first = index = most_moved_traffic(block, members)
    else:
        # Caps hold back the evidence of what is enormous: the deviation tells those apart.
        first = max(members, key=lambda member: (abs(verdict.deviation[member]), -member))
        index = seat_of(table, block, verdict, first)
    blocks = verdict.blocks_since_change(first)
    length_ms, end_ms = block.length_ms, int(verdict.reached_ms[first])
    return Finding(
        index=index,
        signal=table.signals[index],
        cause=cause,
        members=_union((), (*members, index)),
        effect=float(verdict.effect[index]),
        deviation=float(verdict.deviation[index]),
        evidence=float(verdict.evidence[first]) / math.log(10),
        evidence_min=float(verdict.threshold[first]) / math.log(10),
        shift=float(verdict.shift[first]),
        onset_ms=end_ms - blocks * length_ms,
        earliest_ms=end_ms - 2 * blocks * length_ms,
        # Of few blocks, any may be the one.
        latest_ms=end_ms - (blocks // 4 if blocks >= 4 else 0) * length_ms,
    )


def _with_severity(alert: Alert, severity: Severity) -> Alert:
    """Severity only grows while an alert is open."""
    return replace(alert, severity=severity) if rank_of(severity) > rank_of(alert.severity) else alert


def _union(first: Iterable[int], second: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({*first, *second}))


def _named(alert: Alert) -> Moved:
    """What an alert was named after, as one of what moved."""
    return Moved(alert.subject, alert.statistic, alert.segment, alert.effect, alert.shift)


def _strongest(moved: Sequence[Moved]) -> tuple[Moved, ...]:
    """Of each subject the strongest move, most first, no more than are kept."""
    best: dict[str, Moved] = {}
    for move in moved:
        known = best.get(move.subject)
        if known is None or abs(move.deviation) > abs(known.deviation):
            best[move.subject] = move
    return tuple(sorted(best.values(), key=lambda move: (-abs(move.deviation), move.subject))[:ATTACHED_MAX])
