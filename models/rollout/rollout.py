"""The life of a rollout as a pure function of its events: `after(rollout, event)` gives the next state or refuses.

    pending ──ready──► running step 0 ──within──► step 1 ──within──► … ──► provisional ──outcomes within──► promoted
                          │  ▲                                                │          and somebody promotes
                  paused ◄┘  └ resumed                                        │
                          │                                                   │
                          └── harm · mismatch · candidate gone ──► rolled back ◄┘            aborted ◄── by a person

Three rules hold on every path, whatever comes in which order:

1. Only the finding `within` lets a step go on, after the step's least time. `inconclusive` and `no data` change
   nothing. Promotion needs outcomes that are mature and `within`: a person confirms it and cannot replace it.
2. Harm, a mismatch, a candidate that is gone, a pause and an abort always work, whatever the clock says.
3. After an end (promoted, rolled back, aborted) nothing moves. The next rollout is another one, with another salt.

At 100 % the candidate decides about everything, but only provisionally: hosts keep the champion until the end.

A rollout that starts takes the clock as it is. Otherwise a clock that once was a year ahead would keep the next rollout
from starting for a year.

The time of a step is the sum of the gaps between its looks, each at most LOOK_GAP_MAX_MS. A clock that jumps ahead
therefore skips no step, and nor does an analysis that stood still. Few looks are noted (models/rollout/rollout_log.py).
One that is says for how long somebody looked since the one noted before it:

    noted 10:00   looks every 10 s, not noted   noted 11:00, watched_ms 3,600,000    the step has had an hour more
    noted 10:00   nobody looks                  noted 11:00, watched_ms 0            the step has had ten minutes more
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from paywarden.models.bundle.version import Version
from paywarden.models.rollout.judgement import Finding, Judgement
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.shares import BASIS_POINTS, percent_text
from paywarden.schemas.errors import Misconfigured

LOOK_GAP_MAX_MS = 600_000
"""Looks come every few seconds. A gap of more than ten minutes counts as ten minutes."""
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


class Phase(Enum):
    """Where a rollout is."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    PROVISIONAL = "provisional"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


class ClockBehind(Misconfigured):
    """The clock is behind the newest event of the log: the rollout goes on when the clock is right."""


ENDED = (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED)
"""Phases that nothing leaves."""


class EventKind(Enum):
    """The kinds of events of a rollout."""

    STARTED = "started"
    READY = "ready"
    LOOKED = "looked"
    OUTCOMES = "outcomes"
    PAUSED = "paused"
    RESUMED = "resumed"
    ABORTED = "aborted"
    PROMOTED = "promoted"
    GONE = "gone"


# Only a person does these, and says why.
BY_A_PERSON = (EventKind.STARTED, EventKind.PAUSED, EventKind.RESUMED, EventKind.ABORTED, EventKind.PROMOTED)


@dataclass(frozen=True)
class Start:
    """The two versions and the plan of a rollout, fixed at its start."""

    name: str
    salt: str
    champion: Version
    candidate: Version
    plan: RolloutPlan
    # It begins in the shadow: the candidate gets no card before a person resumes the rollout.
    shadow: bool = False


@dataclass(frozen=True)
class RolloutEvent:
    """Something that happened. `by`: who did it, or the name of the process that found it.

    `start` comes with STARTED. `step` and `judgement` come with LOOKED, `judgement` with OUTCOMES. `watched_ms` comes
    with a LOOKED that is noted long after the one before: how long somebody looked in between.
    """

    kind: EventKind
    time_ms: int
    by: str
    why: str = ""
    start: Start | None = None
    step: int = -1
    judgement: Judgement | None = None
    watched_ms: int = 0


@dataclass(frozen=True)
class Agreed:
    """An act before a rollout that lets its candidate be tried: `what`, such as "approved", and why."""

    time_ms: int
    by: str
    what: str
    why: str


@dataclass(frozen=True)
class Rollout:
    """The state of a rollout after some events."""

    start: Start
    phase: Phase
    step: int
    """The index of the step that runs, or ran last."""
    since_ms: int
    """When the step began, or the phase that has none."""
    looked_ms: int
    """The time of the newest look of the step."""
    elapsed_ms: int
    """The step's time, as its looks count it."""
    time_ms: int
    """The time of the newest event."""
    cause: str = ""
    """The reason for the phase, in one line."""
    judgement: Judgement | None = None
    """The newest finding of the step."""
    outcomes: Judgement | None = None
    """The newest finding about outcomes."""
    in_shadow: bool = False
    """Whether it is pending because it is in the shadow: hosts keep the candidate ready, and challenge with it."""

    @property
    def share(self) -> int:
        """The candidate's share of the cards now, in basis points."""
        if self.phase in (Phase.RUNNING, Phase.PAUSED):
            return self.start.plan.steps[self.step]
        return BASIS_POINTS if self.phase in (Phase.PROVISIONAL, Phase.PROMOTED) else 0

    @property
    def has_ended(self) -> bool:
        return self.phase in ENDED

    @property
    def may_be_promoted(self) -> bool:
        """Whether a person may promote the candidate: its mature outcomes are within the margin."""
        return (
            self.phase is Phase.PROVISIONAL
            and self.outcomes is not None
            and self.outcomes.finding is Finding.WITHIN
            and self.time_ms - self.since_ms >= self.start.plan.label_days * _DAY_MS
        )

    @property
    def line(self) -> str:
        """The state in one line for an operator."""
        place = f" at {percent_text(self.share)}" if self.phase in (Phase.RUNNING, Phase.PAUSED) else ""
        place = " in the shadow" if self.in_shadow else place
        return f"{self.start.name}: {self.phase.value.replace('_', ' ')}{place}" + (
            f", {self.cause}" if self.cause else ""
        )


def after(rollout: Rollout | None, event: RolloutEvent) -> Rollout:
    """Returns the state after an event. Raises Misconfigured, in one line, for an event that must not happen now.

    `rollout`: the newest one, or None if there has been none. It is ClockBehind if the event is older than the log.
    """
    if event.kind in BY_A_PERSON and not (event.by and event.why):
        given = f"by {event.by!r}, why {event.why!r}"
        raise Misconfigured(f"rollout not {event.kind.value}: wanted who and why, got {given}")
    if event.kind is EventKind.STARTED:
        return _started(rollout, event)
    if rollout is None:
        raise Misconfigured(f"rollout not {event.kind.value}: there is no rollout")
    if rollout.has_ended:
        raise Misconfigured(f"rollout not {event.kind.value}: {rollout.start.name} has ended ({rollout.phase.value})")
    if _stops(event):
        # A wrong clock must not keep anybody from stopping.
        return _stopped(rollout, event, max(event.time_ms, rollout.time_ms))
    if event.time_ms < rollout.time_ms:
        raise ClockBehind(
            f"rollout not {event.kind.value}: the clock is {rollout.time_ms - event.time_ms} ms behind the newest "
            f"event of {rollout.start.name}; it goes on when the clock is right"
        )
    return _STEPS[event.kind](rollout, event)


def replayed(events: list[RolloutEvent]) -> Rollout | None:
    """Returns the state after all events, in their order; None without one. Raises as `after` does."""
    rollout = None
    for event in events:
        rollout = after(rollout, event)
    return rollout


def _started(rollout: Rollout | None, event: RolloutEvent) -> Rollout:
    start = event.start
    assert start is not None, "an event STARTED has a start"
    if rollout is not None and not rollout.has_ended:
        raise Misconfigured(
            f"rollout not started: {rollout.start.name} runs already ({rollout.line}): wanted one at a time"
        )
    if rollout is not None and rollout.start.name == start.name:
        raise Misconfigured(f"rollout not started: there was one with the name {start.name}: wanted another name")
    if start.candidate == start.champion:
        raise Misconfigured(
            f"rollout not started: candidate and champion are the same, with digest {start.candidate.bundle[:12]}"
        )
    time_ms = event.time_ms
    cause = f"started by {event.by}: {event.why}"
    return Rollout(start, Phase.PENDING, 0, time_ms, time_ms, 0, time_ms, cause, in_shadow=start.shadow)


def _stops(event: RolloutEvent) -> bool:
    if event.kind in (EventKind.PAUSED, EventKind.ABORTED, EventKind.GONE):
        return True
    found = event.judgement.finding if event.judgement is not None else None
    return found in (Finding.HARM, Finding.MISMATCH)


def _stopped(rollout: Rollout, event: RolloutEvent, time_ms: int) -> Rollout:
    ended = replace(rollout, time_ms=time_ms, since_ms=time_ms, in_shadow=False)
    if event.kind is EventKind.ABORTED:
        return replace(ended, phase=Phase.ABORTED, cause=f"aborted by {event.by}: {event.why}")
    if event.kind is EventKind.GONE:
        return replace(ended, phase=Phase.ROLLED_BACK, cause=f"the candidate is gone: {event.why}")
    if event.kind is EventKind.PAUSED:
        if rollout.phase is not Phase.RUNNING:
            raise Misconfigured(f"rollout not paused: {rollout.start.name} is {rollout.phase.value}, not running")
        cause = f"paused by {event.by}: {event.why}"
        return replace(rollout, phase=Phase.PAUSED, time_ms=time_ms, cause=cause)
    judgement = event.judgement
    assert judgement is not None
    steps = rollout.start.plan.steps
    if event.kind is EventKind.LOOKED and event.step != rollout.step and 0 <= event.step < len(steps):
        # A late look at an earlier step: that step's cards have been with the candidate since, so its harm counts.
        cause = f"at {percent_text(steps[event.step])}: {judgement.line}"
    else:
        cause = judgement.line
    if event.kind is EventKind.OUTCOMES:
        return replace(ended, phase=Phase.ROLLED_BACK, cause=cause, outcomes=judgement)
    return replace(ended, phase=Phase.ROLLED_BACK, cause=cause, judgement=judgement)


def _ready(rollout: Rollout, event: RolloutEvent) -> Rollout:
    if rollout.phase is not Phase.PENDING:
        raise Misconfigured(f"rollout not ready: {rollout.start.name} is {rollout.phase.value}, not pending")
    if rollout.in_shadow:
        raise Misconfigured(f"rollout not ready: {rollout.start.name} is in the shadow until somebody resumes it")
    return replace(
        rollout, phase=Phase.RUNNING, since_ms=event.time_ms, looked_ms=event.time_ms, time_ms=event.time_ms, cause=""
    )


def _resumed(rollout: Rollout, event: RolloutEvent) -> Rollout:
    if rollout.in_shadow:
        cause = f"out of the shadow by {event.by}: {event.why}"
        return replace(rollout, in_shadow=False, since_ms=event.time_ms, time_ms=event.time_ms, cause=cause)
    if rollout.phase is not Phase.PAUSED:
        raise Misconfigured(f"rollout not resumed: {rollout.start.name} is {rollout.phase.value}, not paused")
    return replace(rollout, phase=Phase.RUNNING, looked_ms=event.time_ms, time_ms=event.time_ms, cause="")


def _looked(rollout: Rollout, event: RolloutEvent) -> Rollout:
    """A look without harm: notes it, and takes the next step if the candidate is within and the time is up."""
    assert event.judgement is not None, "an event LOOKED has a judgement"
    if rollout.phase not in (Phase.RUNNING, Phase.PAUSED) or event.step != rollout.step:
        return replace(rollout, time_ms=event.time_ms)
    # Nobody can have looked for longer than there was time.
    gap_ms = event.time_ms - rollout.looked_ms
    watched_ms = min(max(0, event.watched_ms), gap_ms)
    elapsed_ms = rollout.elapsed_ms + watched_ms
    noted = replace(rollout, judgement=event.judgement, time_ms=event.time_ms, looked_ms=event.time_ms)
    if rollout.phase is Phase.PAUSED:
        # The time of looks before the pause counts, the pause itself does not.
        return replace(noted, elapsed_ms=elapsed_ms)
    elapsed_ms = rollout.elapsed_ms + max(watched_ms, min(gap_ms, LOOK_GAP_MAX_MS))
    noted = replace(noted, elapsed_ms=elapsed_ms)
    plan = rollout.start.plan
    if event.judgement.finding is not Finding.WITHIN or elapsed_ms < plan.step_hours[rollout.step] * _HOUR_MS:
        return noted
    step = rollout.step + 1
    phase = Phase.PROVISIONAL if step == plan.last_step else Phase.RUNNING
    cause = "until outcomes are mature" if phase is Phase.PROVISIONAL else ""
    return replace(noted, phase=phase, step=step, since_ms=event.time_ms, elapsed_ms=0, cause=cause, judgement=None)


def _outcomes(rollout: Rollout, event: RolloutEvent) -> Rollout:
    assert event.judgement is not None, "an event OUTCOMES has a judgement"
    return replace(rollout, outcomes=event.judgement, time_ms=event.time_ms)


def _promoted(rollout: Rollout, event: RolloutEvent) -> Rollout:
    if rollout.phase is not Phase.PROVISIONAL:
        raise Misconfigured(f"rollout not promoted: {rollout.line}: wanted one that has reached all cards")
    asked = replace(rollout, time_ms=event.time_ms)
    if not asked.may_be_promoted:
        raise Misconfigured(f"rollout not promoted: {_why_not(asked)}")
    return replace(asked, phase=Phase.PROMOTED, since_ms=event.time_ms, cause=f"promoted by {event.by}: {event.why}")


def _why_not(rollout: Rollout) -> str:
    days = (rollout.time_ms - rollout.since_ms) / _DAY_MS
    if days < rollout.start.plan.label_days:
        return (
            f"{rollout.start.name} has had all cards for {days:.1f} days: "
            f"wanted {rollout.start.plan.label_days:g}, until labels have come"
        )
    found = "none was looked at" if rollout.outcomes is None else rollout.outcomes.line
    return f"the mature outcomes of {rollout.start.name} are not within the margin: {found}"


_STEPS = {
    EventKind.READY: _ready,
    EventKind.LOOKED: _looked,
    EventKind.OUTCOMES: _outcomes,
    EventKind.RESUMED: _resumed,
    EventKind.PROMOTED: _promoted,
}
