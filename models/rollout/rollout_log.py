"""The log of rollouts: every event that has happened, in order. The state follows from them.

    {"kind": "started", "time_ms": 1764230400000, "by": "ann", "why": "b-42 finds …", "start": {"name": "r-7", …}}
    {"kind": "ready", "time_ms": 1764230401000, "by": "host-1", "why": "", …}
    {"kind": "looked", "time_ms": 1764230411000, "by": "analysis", "step": 0, "judgement": {"finding": "no_data", …}}

The signed log of the registry, which hosts share, has the events (models/rollout/registry_log.py). They get in through
`RolloutKeeper.take`: it refuses an event that must not happen, and writes nothing. After kill -9 at any moment the next
process reads the log and is where it says.

Looks come every few seconds, and a log that grew with each of them would be full after a month. The keeper therefore
notes a look

1. at once if it changes the phase or the step;
2. if its finding is new, and the newest note is older than 1/FINDINGS_A_STEP of the step's age;
3. otherwise when the newest note is older than NOTED_EVERY_MS and than 1/NOTES_A_STEP of the step's age.

A step of a day gets a note every quarter of an hour by its end, one of ten days every two and a half hours. A year of
looks at one step is some eight hundred notes. The keeper adds up how long somebody looked since the newest note, and
the next note says it. A lead that is killed thus costs its step a hundredth of its age at most. Outcomes are noted when
their finding changes, and otherwise as rarely as the third rule says, but at most every OUTCOMES_NOTED_EVERY_MS.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from paywarden.models.bundle.version import Version
from paywarden.models.rollout.judgement import Finding, Judgement, judgement_of, judgement_record
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.rollout import (
    LOOK_GAP_MAX_MS,
    EventKind,
    Phase,
    Rollout,
    RolloutEvent,
    Start,
    after,
)
from paywarden.models.rollout.shares import CardSplit
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import make_parent, open_private

NOTED_EVERY_MS = 300_000
"""Young steps are noted this often: readers of the log see that somebody looks."""
NOTES_A_STEP = 100
"""The alert PaywardenRolloutNotLed has the same number: it waits for the next note."""
FINDINGS_A_STEP = 200
"""A finding at the edge of the margin may change with every look."""
OUTCOMES_NOTED_EVERY_MS = 21_600_000
"""Labels come by the day, for weeks: four thousand lines that say the same would slow down every reader of the log."""
# Everything that reading a record of something else may raise.
NO_EVENT = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)
_FIELDS = {"kind", "time_ms", "by", "why", "start", "step", "judgement"}
# Only looks that need it have it.
_WATCHED = "watched_ms"


class RolloutLog(Protocol):
    """Keeps the events of rollouts."""

    def events(self) -> list[RolloutEvent]:
        """Returns all events in order. Raises Misconfigured for a log that cannot be read."""

    def append(self, event: RolloutEvent, known: int) -> bool:
        """Append an event behind the first `known` ones, durably. Returns False if there are more than those by now.

        Raises Misconfigured for a log that cannot be written.
        """


@contextmanager
def only_leader(log: Path) -> Iterator[None]:
    """Keeps this process the only leader of the rollouts of a log's file; the kernel ends that with the process.

    Raises Misconfigured if another process leads, naming it.
    """
    path = log.with_name(log.name + ".leader")
    try:
        make_parent(path)
        with os.fdopen(open_private(path, os.O_RDWR | os.O_CREAT), "r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = file.read(32).strip() or "unknown"
                raise Misconfigured(
                    f"rollout lead: process {who} leads the rollouts of {log} already: wanted one leader"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
    except OSError as error:
        raise Misconfigured(f"rollout lead: cannot lock {path}: {error.strerror}") from error


@dataclass(frozen=True)
class _Watched:
    """For how long somebody looked at a step since its newest noted look, and when they looked last."""

    of: tuple[str, int, int]
    until_ms: int
    ms: int = 0


class RolloutKeeper:
    """The newest rollout, and the way in for its events. Not thread-safe; several processes may keep the same log."""

    def __init__(self, log: RolloutLog) -> None:
        """Raises Misconfigured for a log that cannot be read."""
        self._log = log
        self._events: list[RolloutEvent] = []
        # When looks and outcomes were last noted, by kind.
        self._noted_ms: dict[EventKind, int] = {}
        self._watched = _Watched(("", -1, 0), 0)
        self.started_ms = 0
        """When the newest rollout was started."""
        self.offered_ms = 0
        """When the newest rollout could get its first cards: at its start, or when it left the shadow."""
        self.steps_ms: list[int] = []
        """When each step of the newest rollout began that has begun."""
        self.rollout: Rollout | None = None
        self.refresh()

    @property
    def events(self) -> Sequence[RolloutEvent]:
        """The events read so far, in order."""
        return self._events

    def refresh(self) -> Rollout | None:
        """Read the events of other processes, and return the newest rollout; None if there has been none."""
        events = self._log.events()
        known = len(self._events)
        if events[:known] != self._events:
            # Another host's rollback, written while Kafka was away, may have come in between.
            self.rollout, known = None, 0
        for event in events[known:]:
            self._note(after(self.rollout, event), event)
        self._events = events
        return self.rollout

    def _note(self, rollout: Rollout, event: RolloutEvent) -> None:
        """Note an event that is in the log, and the rollout after it."""
        self.rollout = rollout
        if event.kind is EventKind.STARTED:
            # The clock may have been ahead in the rollout before it.
            self._noted_ms = {}
        self._noted_ms[event.kind] = event.time_ms
        if event.kind is EventKind.STARTED:
            self.started_ms, self.offered_ms, self.steps_ms = event.time_ms, event.time_ms, []
        elif event.kind is EventKind.RESUMED and rollout.phase is Phase.PENDING:
            self.offered_ms = event.time_ms
        elif rollout.phase in (Phase.RUNNING, Phase.PROVISIONAL) and len(self.steps_ms) == rollout.step:
            self.steps_ms.append(rollout.since_ms)

    def take(self, event: RolloutEvent) -> Rollout:
        """Apply an event, write it if it must be kept, and return the rollout after it.

        Raises Misconfigured for an event that must not happen now; then nothing is written.
        """
        while True:
            before = self.refresh()
            watched = self._watched_with(before, event)
            noted = event if watched is None else _with_time(event, watched.ms, before)
            rollout = after(before, noted)
            if not self._is_notable(before, rollout, noted):
                # A look that changes nothing is not worth a line, and its time counts with the next one.
                self._watched = watched or self._watched
                return rollout
            if self._log.append(noted, len(self._events)):
                return self.refresh() or rollout

    def _watched_with(self, before: Rollout | None, event: RolloutEvent) -> _Watched | None:
        """Returns for how long somebody has looked when this look is done; None for anything but a look at the step."""
        if before is None or event.kind is not EventKind.LOOKED or event.step != before.step:
            return None
        of = before.start.name, before.step, before.looked_ms
        watched = self._watched if self._watched.of == of else _Watched(of, before.looked_ms)
        if before.phase is not Phase.RUNNING:
            return watched
        # A clock that was set back takes nothing away.
        gap_ms = min(max(0, event.time_ms - watched.until_ms), LOOK_GAP_MAX_MS)
        return _Watched(of, event.time_ms, watched.ms + gap_ms)

    def _is_notable(self, before: Rollout | None, rollout: Rollout, event: RolloutEvent) -> bool:
        if before is None or event.kind not in (EventKind.LOOKED, EventKind.OUTCOMES):
            return True
        if (before.phase, before.step) != (rollout.phase, rollout.step):
            return True
        silent_ms, age_ms = event.time_ms - self._noted_ms.get(event.kind, 0), event.time_ms - before.since_ms
        if event.kind is EventKind.OUTCOMES:
            # They are judged when something is new: the next judgement may be far.
            is_new = _finding(before.outcomes) != _finding(rollout.outcomes)
            return is_new or silent_ms >= max(OUTCOMES_NOTED_EVERY_MS, age_ms // NOTES_A_STEP)
        if rollout.phase is Phase.PAUSED and event.watched_ms:
            return True
        is_new = _finding(before.judgement) != _finding(rollout.judgement)
        return silent_ms >= (age_ms // FINDINGS_A_STEP if is_new else max(NOTED_EVERY_MS, age_ms // NOTES_A_STEP))


def _finding(judgement: Judgement | None) -> Finding | None:
    return None if judgement is None else judgement.finding


def _with_time(look: RolloutEvent, watched_ms: int, before: Rollout | None) -> RolloutEvent:
    """Returns a look that says for how long somebody looked, where the time since the look before it does not."""
    assert before is not None, "there is a step to look at"
    counts_ms = LOOK_GAP_MAX_MS if before.phase is Phase.RUNNING else 0
    return replace(look, watched_ms=watched_ms) if watched_ms > counts_ms else look


def event_record(event: RolloutEvent) -> dict[str, Any]:
    """Returns an event as values that JSON can hold."""
    record = {
        "kind": event.kind.value,
        "time_ms": event.time_ms,
        "by": event.by,
        "why": event.why,
        "start": None if event.start is None else _start_record(event.start),
        "step": event.step,
        "judgement": None if event.judgement is None else judgement_record(event.judgement),
    }
    return record | {_WATCHED: event.watched_ms} if event.watched_ms else record


def event_of(record: Mapping[str, Any]) -> RolloutEvent:
    """Returns the event of a record that `event_record` made.

    Raises KeyError, TypeError, ValueError or Misconfigured for anything else.
    """
    if set(record) - {_WATCHED} != _FIELDS:
        raise ValueError(f"wanted the fields {', '.join(sorted(_FIELDS))}")
    kind, start, judgement = EventKind(record["kind"]), record["start"], record["judgement"]
    # The code that applies the event relies on its parts.
    if kind is EventKind.STARTED and start is None:
        raise ValueError("wanted the start")
    if kind in (EventKind.LOOKED, EventKind.OUTCOMES) and judgement is None:
        raise ValueError("wanted a judgement")
    return RolloutEvent(
        kind,
        _whole(record["time_ms"]),
        _text(record["by"]),
        _text(record["why"]),
        None if start is None else _start_of(start),
        _whole(record["step"]),
        None if judgement is None else judgement_of(judgement),
        _whole(record.get(_WATCHED, 0)),
    )


def _start_record(start: Start) -> dict[str, Any]:
    return asdict(start)


def _start_of(record: Mapping[str, Any]) -> Start:
    champion, candidate = (
        Version(**{field.name: _text(record[role][field.name]) for field in fields(Version)})
        for role in ("champion", "candidate")
    )
    plan: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record["plan"].items()
    }
    shadow = record["shadow"]
    if type(shadow) is not bool:
        raise TypeError("wanted true or false")
    salt = _text(record["salt"])
    # Every host makes its split of it, and knows one form.
    if CardSplit(bytes.fromhex(salt)).salt.hex() != salt:
        raise ValueError("wanted a salt in small hex digits")
    return Start(_text(record["name"]), salt, champion, candidate, RolloutPlan(**plan), shadow)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("wanted a text")
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError("wanted a whole number")
    return value
