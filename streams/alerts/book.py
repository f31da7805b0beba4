"""Keep the open alerts: one for each cause. An alert is raised, may escalate, and clears when the change is over.

    12:05   a feature moves in country=BR      raised: an alert named after the feature
    12:10   the score moves                    attached: the feature explains it
    12:30   profiles are stale since 12:00     escalated: stale profiles explain both, and the alert is renamed
    14:00   the signal is quiet for an hour,   cleared
            with evidence that it is over

The book holds alerts of two kinds of findings: those of the detectors, which this module places, and those of the
weekly comparison with the training window (streams/drift/training_watch.py).

1. Signals that fired in a block are gathered into findings, one for each subject. Each finding is named after the
   segment where the move sits (streams/alerts/causes.py).
2. Findings are placed in turn, causes before their effects. Each finding
   a. is attached to an open alert that has this subject already, or that explains it;
   b. or takes the place of an open alert that it explains: that alert is renamed and escalates, and takes in the other
      alerts the finding explains;
   c. or becomes an alert of its own.
   One explains another only if both may have begun at the same time.
3. Open alerts are followed in blocks of the length that found them. An alert clears if enough blocks in a row were
   quiet (the change is too small, or cannot be told from chance) *and* there is evidence that the change is over. The
   evidence is a cumulative sum of "no change" against "most of the change that was found". A value that hovers about a
   limit gives neither.

Alerts are values: each step returns the alerts whose state changed, as they are then.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paywarden.models.drift.detectors import DAY_MS, LENGTHS_MS, MINUTE_MS, DetectorVerdict
from paywarden.models.drift.signals import Block, Signal
from paywarden.streams.alerts.alerts import (
    Alert,
    AlertSettings,
    Comparison,
    MovedSignal,
    Severity,
    State,
    rank_of,
)
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

# The most attached moves an alert keeps by name. They are most of the record that is sent.
ATTACHED_MAX = 20
# Blocks in a row that must be quiet, by length: twelve of five minutes, four hours, two days.
_QUIET_BLOCKS = dict(zip(LENGTHS_MS, (12, 4, 2), strict=True))
# A change is over when "nothing" is a thousand times more likely than _RECOVERY_SHARE of the change that was found.
_RECOVERY_MIN = math.log(1000)
_RECOVERY_SHARE = 0.7
# Chance alone reaches this deviation in one block out of twenty.
_NOTICEABLE = 2.0


@dataclass(frozen=True)
class SubjectFinding:
    """All signals of one subject that fired in one block.

    `index` is the signal that names the finding, `members` are the indexes of all that fired. The change began between
    `earliest_ms` and `latest_ms`, most likely at `onset_ms`.
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

    def moved(self) -> MovedSignal:
        signal = self.signal
        return MovedSignal(signal.subject, signal.statistic, signal.segment, self.effect, self.deviation)


@dataclass
class AlertBook:
    """The open alerts of one model version, whatever found them. Not thread-safe."""

    open: dict[str, Alert] = field(default_factory=dict)

    def put(self, alert: Alert) -> None:
        """Open an alert, or replace it by what it is now."""
        self.open[alert.alert_id] = alert

    def of(self, comparison: Comparison) -> list[Alert]:
        """Return the open alerts that were found by this comparison."""
        return [alert for alert in self.open.values() if alert.comparison is comparison]

    def acknowledge(self, alert_id: str, *, by: str, until_ms: int = 0) -> bool:
        """Note who has seen an alert. Until `until_ms` it escalates only to critical.

        Returns False if no such alert is open: it has cleared, or belongs to another model version.
        """
        alert = self.open.get(alert_id)
        if alert is None:
            return False
        self.put(replace(alert, acknowledged_by=by, snoozed_until_ms=max(until_ms, alert.snoozed_until_ms)))
        return True

    def close(self, time_ms: int, *comparisons: Comparison) -> list[Alert]:
        """Clear and return the open alerts of these comparisons; of all without any."""
        closed = [alert for alert in self.open.values() if alert.comparison in (comparisons or Comparison)]
        for alert in closed:
            del self.open[alert.alert_id]
        return [replace(alert, state=State.CLEARED, time_ms=time_ms) for alert in closed]

    def changes(self, before: Mapping[str, Alert], now_ms: int) -> list[Alert]:
        """Return the alerts whose state has changed since `before`, and note changes that a snooze holds back."""
        changed = []
        for alert_id, alert in list(self.open.items()):
            earlier = before.get(alert_id)
            if earlier is None:
                changed.append(alert)
                continue
            if not (is_worse(earlier, alert) or alert.held_back or alert.reminders > earlier.reminders):
                continue
            if is_snoozed(alert, now_ms):
                self.put(replace(alert, held_back=True))
                continue
            alert = replace(alert, state=State.ESCALATED, time_ms=now_ms, held_back=False)
            self.put(alert)
            changed.append(alert)
        gone = [alert for alert_id, alert in before.items() if alert_id not in self.open]
        changed += [replace(alert, state=State.CLEARED, time_ms=now_ms) for alert in gone]
        return changed


def is_worse(earlier: Alert, alert: Alert) -> bool:
    """Whether an alert escalates: it is more severe than before, or named after something else.

    Each comparison with training names the segment that moved most this week: another segment is no news.
    """
    is_same = alert.subject == earlier.subject and (
        alert.comparison is Comparison.TRAINING or alert.signal == earlier.signal
    )
    return rank_of(alert.severity) > rank_of(earlier.severity) or not is_same


def is_snoozed(alert: Alert, now_ms: int) -> bool:
    """Whether somebody wants to hear no more of an alert for now, and it is not critical."""
    return now_ms < alert.snoozed_until_ms and alert.severity is not Severity.CRITICAL


@dataclass
class BlockFindings:
    """Puts what the detectors find in blocks into the book of a model version. Not thread-safe."""

    model_version: str
    table: SignalTable
    settings: AlertSettings
    effect_min_of: Mapping[Signal, float]
    book: AlertBook = field(default_factory=AlertBook)
    # If nothing was counted for an alert's signal for this long and three blocks, its traffic is taken to be gone.
    gone_after_ms: int = DAY_MS

    def step(self, block: Block, verdict: DetectorVerdict) -> list[Alert]:
        """Take in the detectors' verdict on a block; return the alerts that were raised, escalated or cleared."""
        before = dict(self.book.open)
        for finding in findings_of(self.table, block, verdict):
            self._place(finding, block, verdict)
        for alert in self.book.of(Comparison.BASELINE):
            self._follow(alert, block, verdict)
        return self.book.changes(before, block.end_ms)

    def _place(self, finding: SubjectFinding, block: Block, verdict: DetectorVerdict) -> None:
        alerts = sorted(
            self.book.of(Comparison.BASELINE),
            key=lambda alert: (_turn(alert.cause), alert.first_seen_ms, alert.alert_id),
        )
        home = self._home(alerts, finding, block, verdict)
        if home is not None:
            self.book.put(self._attached(home, finding, block, verdict))
            return
        explained = [alert for alert in alerts if self._is_explained(alert, finding, block, verdict)]
        if not explained:
            self.book.put(self._raised(finding, block))
            return
        first = min(explained, key=lambda alert: (alert.raised_ms, alert.alert_id))
        self.book.put(self._renamed(first, finding, explained, block))
        for alert in explained:
            if alert is not first:
                # Reported as cleared: its signals live on in the first alert.
                del self.book.open[alert.alert_id]

    def _home(
        self, alerts: Sequence[Alert], finding: SubjectFinding, block: Block, verdict: DetectorVerdict
    ) -> Alert | None:
        """Return the open alert that a finding belongs to; None if it belongs to no alert."""
        for alert in alerts:
            if self._is_of(alert, finding):
                return alert
        for alert in alerts:
            if self._holds(alert, finding, block, verdict):
                return alert
        return None

    def _is_of(self, alert: Alert, finding: SubjectFinding) -> bool:
        """Whether the finding's subject is attached to the alert already, or the alert is named after it."""
        if finding.cause is Cause.TRAFFIC:
            return finding.index in alert.members
        subjects = {self.table.signals[index].subject for index in alert.members}
        return finding.signal.subject in subjects

    def _holds(self, alert: Alert, finding: SubjectFinding, block: Block, verdict: DetectorVerdict) -> bool:
        """Whether an open alert explains a finding."""
        if alert.cause is Cause.PROFILES:
            # Stale profiles change features and scores little by little, so the times need not agree.
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

    def _is_explained(self, alert: Alert, finding: SubjectFinding, block: Block, verdict: DetectorVerdict) -> bool:
        """Whether a finding is the cause of an open alert."""
        if not self._together(alert, finding):
            return False
        if finding.cause is Cause.TRAFFIC:
            comes_after = alert.cause in (Cause.INPUT, Cause.SCORE)
            return comes_after and self._from_traffic(finding.signal, alert.signal, block, verdict)
        if alert.cause is Cause.TRAFFIC:
            return finding.cause is Cause.INPUT and finding.signal.segment == alert.segment
        return finding.cause < alert.cause

    def _from_traffic(self, traffic: Signal, signal: Signal, block: Block, verdict: DetectorVerdict) -> bool:
        """Whether a feature or the score moved because traffic moved."""
        if newcomers_explain(self.table, block, signal, traffic):
            return True
        return mix_explains(self.table, block, verdict, signal, traffic)

    def _together(self, alert: Alert, finding: SubjectFinding) -> bool:
        """Whether an alert and a finding may have begun at the same time."""
        slack_ms = max(alert.slack_ms, self.settings.together_minutes * MINUTE_MS)
        begins, ends = alert.first_seen_ms - slack_ms, alert.first_seen_ms + slack_ms
        return finding.earliest_ms <= ends and finding.latest_ms >= begins

    def _raised(self, finding: SubjectFinding, block: Block) -> Alert:
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
            # A digest of the finding alone, so a block that is evaluated again raises the same alert.
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

    def _naming(self, finding: SubjectFinding, block: Block) -> dict[str, Any]:
        """Return the fields that describe the signal an alert is named after."""
        index = finding.index
        return {
            "subject": finding.signal.subject,
            "statistic": finding.signal.statistic,
            "segment": finding.signal.segment,
            "slack_ms": (finding.latest_ms - finding.earliest_ms) // 2,
            "length_ms": block.length_ms,
            "effect": finding.effect,
            "effect_min": self.effect_min_of[finding.signal],
            **_values_of(block, index),
            "evidence": finding.evidence,
            "evidence_min": finding.evidence_min,
            "shift": finding.shift,
            "window_start_ms": block.start_ms,
            "window_end_ms": block.end_ms,
            "last_counted_ms": block.end_ms,
        }

    def _attached(self, alert: Alert, finding: SubjectFinding, block: Block, verdict: DetectorVerdict) -> Alert:
        alert = replace(alert, members=_union(alert.members, finding.members))
        if finding.signal == alert.signal:
            return replace(alert, evidence=finding.evidence)
        worse = rank_of(self._severity(finding)) > rank_of(alert.severity)
        if worse and not self._moves_still(alert, block, verdict):
            # Otherwise the finding would raise the severity of an alert that names a signal which is back by now.
            return self._renamed(alert, finding, [alert], block)
        alert = replace(alert, attached=_strongest([*alert.attached, finding.moved()]))
        return _with_severity(alert, self._severity(finding))

    def _moves_still(self, alert: Alert, block: Block, verdict: DetectorVerdict) -> bool:
        """Whether the signal an alert is named after moved in its newest block, as it did when the alert was raised."""
        index = self.table.index[alert.signal]
        if block.length_ms == alert.length_ms and verdict.counted[index]:
            return float(verdict.deviation[index]) * alert.shift > 0
        return alert.quiet_blocks == 0

    def _renamed(self, alert: Alert, finding: SubjectFinding, explained: Sequence[Alert], block: Block) -> Alert:
        """Return the alert renamed after the finding that explains it, with everything the finding explains."""
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

    def _severity(self, finding: SubjectFinding) -> Severity:
        return self.settings.severity(finding.signal, finding.effect)

    def _follow(self, alert: Alert, block: Block, verdict: DetectorVerdict) -> None:
        """Update an open alert from a block: how large the change is now, and whether it is over."""
        index = self.table.index[alert.signal]
        if block.length_ms == alert.length_ms and verdict.counted[index] and block.end_ms > alert.raised_ms:
            alert = self._followed(alert, index, block, verdict)
        gone_ms = block.end_ms - alert.last_counted_ms
        over = alert.quiet_blocks >= _QUIET_BLOCKS[alert.length_ms] and alert.recovery >= _RECOVERY_MIN
        if over or gone_ms > self.gone_after_ms + 3 * alert.length_ms:
            del self.book.open[alert.alert_id]
        else:
            self.book.put(alert)

    def _followed(self, alert: Alert, index: int, block: Block, verdict: DetectorVerdict) -> Alert:
        effect, deviation = float(verdict.effect[index]), float(verdict.deviation[index])
        same_way = deviation * alert.shift > 0
        quiet_effect = self.settings.quiet_share * alert.effect_min
        loud = effect >= quiet_effect and same_way and abs(deviation) >= _NOTICEABLE
        spoken = _RECOVERY_SHARE * alert.shift
        alert = replace(
            alert,
            effect=effect,
            **_values_of(block, index),
            window_start_ms=block.start_ms,
            window_end_ms=block.end_ms,
            last_counted_ms=block.end_ms,
            quiet_blocks=0 if loud else alert.quiet_blocks + 1,
            recovery=min(max(0.0, alert.recovery + spoken * spoken / 2 - spoken * deviation), 2 * _RECOVERY_MIN),
        )
        return _with_severity(alert, self.settings.severity(alert.signal, alert.effect))


def findings_of(table: SignalTable, block: Block, verdict: DetectorVerdict) -> list[SubjectFinding]:
    """Return the findings of a block, one for each subject, in the order they are placed, strongest first."""
    groups: dict[str, list[int]] = {}
    for index in verdict.fired.tolist():
        groups.setdefault(table.signals[index].subject, []).append(index)
    findings = [_finding(table, block, verdict, members) for members in groups.values()]
    return sorted(findings, key=lambda finding: (_turn(finding.cause), -abs(finding.deviation), finding.signal.subject))


def _turn(cause: Cause) -> int:
    """Return a cause's place in the order of explaining: traffic before features, as its mix can be checked."""
    return (Cause.PROFILES, Cause.TRAFFIC, Cause.INPUT, Cause.SCORE, Cause.OUTCOME).index(cause)


def _finding(table: SignalTable, block: Block, verdict: DetectorVerdict, members: list[int]) -> SubjectFinding:
    cause = cause_of(table.signals[members[0]].subject)
    if cause is Cause.TRAFFIC:
        first = index = most_moved_traffic(block, members)
    else:
        # Evidence is capped, so for enormous changes only the deviation tells which is larger.
        first = max(members, key=lambda member: (abs(verdict.deviation[member]), -member))
        index = seat_of(table, block, verdict, first)
    blocks = verdict.blocks_since_change(first)
    length_ms, end_ms = block.length_ms, int(verdict.reached_ms[first])
    return SubjectFinding(
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
        # With few blocks, the change may have begun in any of them.
        latest_ms=end_ms - (blocks // 4 if blocks >= 4 else 0) * length_ms,
    )


def _with_severity(alert: Alert, severity: Severity) -> Alert:
    """Return the alert with a severity that is at least this one: while an alert is open, it only grows."""
    return replace(alert, severity=severity) if rank_of(severity) > rank_of(alert.severity) else alert


def _values_of(block: Block, index: int) -> dict[str, Any]:
    """Return the fields of an alert that say where its signal is and where it should be."""
    expected, low, high = block.unchanged(index)
    return {
        "value": float(block.value[index]),
        "expected": expected,
        "unchanged_low": low,
        "unchanged_high": high,
        "count": int(block.count[index]),
    }


def _union(first: Iterable[int], second: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({*first, *second}))


def _named(alert: Alert) -> MovedSignal:
    """Return the signal an alert is named after as a move that can be attached."""
    return MovedSignal(alert.subject, alert.statistic, alert.segment, alert.effect, alert.shift)


def _strongest(moved: Sequence[MovedSignal]) -> tuple[MovedSignal, ...]:
    """Return the strongest move of each subject, strongest first, at most ATTACHED_MAX."""
    best: dict[str, MovedSignal] = {}
    for move in moved:
        strongest = best.get(move.subject)
        if strongest is None or abs(move.deviation) > abs(strongest.deviation):
            best[move.subject] = move
    return tuple(sorted(best.values(), key=lambda move: (-abs(move.deviation), move.subject))[:ATTACHED_MAX])
