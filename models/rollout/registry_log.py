"""The events of rollouts in the log of the model registry: signed, chained, and shared by all hosts.

    started     rollout_started    by a person; names a proposal with its approvals, and the champion
    ready, looked, outcomes        rollout_step       by the program that leads the rollout
    harm, mismatch, gone           rollout_verdict    by that program; it ends the rollout
    paused, resumed, aborted       rollout_paused, rollout_resumed, rollout_aborted    by a person
    promoted    promoted           by a person; it makes the candidate the champion

1. A person's entry is signed with that person's key, the lead's with its own. The signature therefore names the actor.
2. Each reader applies the rules of the registry first (models/registry/registry_rules.py), then the life of a rollout
   (models/rollout/rollout.py). An entry that breaks one of them counts for nothing.
3. A verdict and an abort do not wait for Kafka. Another host may have gone on meanwhile: if the rollout is over by
   then, the late entry changes nothing.
4. A rollback of the champion aborts the rollout: the version that its candidate was compared with is gone.
5. An entry that ends a rollout by the rules of the registry ends it here, also if nobody can read its event. Otherwise
   another rollout could never start. A start that nobody can read is ended by `abort_unread`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import Entry, Value
from paywarden.models.registry.model_log import Overtaken, RegistryLog
from paywarden.models.registry.registry import Registry, Signer, proposal_named
from paywarden.models.registry.registry_rules import Proposal, RegistryState, state_of, version_of
from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.rollout import (
    Agreed,
    ClockBehind,
    EventKind,
    Rollout,
    RolloutEvent,
    Start,
    after,
)
from paywarden.models.rollout.rollout_log import NO_EVENT, event_of, event_record
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import FileState, file_state

CANARY: Final = "canary"
# An entry of the registry has fields of its own for these.
_OWN_FIELDS = ("time_ms", "by", "why")
_KINDS: Mapping[EventKind, str] = {
    EventKind.STARTED: kinds.ROLLOUT_STARTED,
    EventKind.READY: kinds.ROLLOUT_STEP,
    EventKind.LOOKED: kinds.ROLLOUT_STEP,
    EventKind.OUTCOMES: kinds.ROLLOUT_STEP,
    EventKind.GONE: kinds.ROLLOUT_VERDICT,
    EventKind.PAUSED: kinds.ROLLOUT_PAUSED,
    EventKind.RESUMED: kinds.ROLLOUT_RESUMED,
    EventKind.ABORTED: kinds.ROLLOUT_ABORTED,
    EventKind.PROMOTED: kinds.PROMOTED,
}
# The kinds with which a rollout ends by the rules of the registry.
_ENDS: Final = (kinds.ROLLOUT_VERDICT, kinds.ROLLOUT_ABORTED, kinds.PROMOTED)


@dataclass(frozen=True)
class Folded:
    """The events of a log that count, and the newest rollout after them."""

    events: tuple[RolloutEvent, ...] = ()
    rollout: Rollout | None = None


def folded(log: RegistryLog, state: RegistryState) -> Folded:
    """Returns the events of rollouts in a log that count for a reader with this state of the log."""
    ignored = {ignored.number for ignored in state.ignored}
    fold = _Fold()
    for number, entry in enumerate(log.entries, 1):
        if number not in ignored:
            fold.take(entry)
    return Folded(tuple(fold.events), fold.rollout)


class _Fold:
    """Takes the entries that count, in order, and keeps the events of rollouts among them."""

    def __init__(self) -> None:
        self.events: list[RolloutEvent] = []
        self.rollout: Rollout | None = None
        # The versions by the entries that propose them, and what the newest rollout compares: champion and candidate.
        self._proposed: dict[str, Version] = {}
        self._compared: tuple[str, str] = ("", "")

    def take(self, entry: Entry) -> None:
        if entry.kind == kinds.PROPOSED:
            self._proposed[entry.digest] = version_of(entry, {})
            return
        event = self._back(entry) if entry.kind == kinds.ROLLED_BACK else self._event(entry)
        if event is None or not self._took(event):
            ended = self._ended_unread(entry)
            if ended is not None:
                self._took(ended)
        elif event.kind is EventKind.STARTED:
            self._compared = entry.text("champion"), self._proposed[entry.text("proposal")].digest

    def _took(self, event: RolloutEvent) -> bool:
        """Take an event, unless it must not happen now; returns whether it happened."""
        try:
            self.rollout = after(self.rollout, event)
        except Misconfigured:
            return False
        self.events.append(event)
        return True

    def _ended_unread(self, entry: Entry) -> RolloutEvent | None:
        """Returns the end of the rollout by an entry that ends it for the registry, and has no event that counts."""
        if entry.kind not in _ENDS or self.rollout is None or self.rollout.start.name != entry.text("rollout"):
            return None
        told = f"ended by an entry ({entry.kind.replace('_', ' ')}) without an event that counts: {entry.why}"
        return RolloutEvent(EventKind.ABORTED, entry.time_ms, entry.by, told)

    def _back(self, entry: Entry) -> RolloutEvent | None:
        if self.rollout is None or self.rollout.has_ended or entry.text("from") not in self._compared:
            return None
        return RolloutEvent(EventKind.ABORTED, entry.time_ms, entry.by, f"rolled back: {entry.why}")

    def _event(self, entry: Entry) -> RolloutEvent | None:
        """Returns the event of an entry; None for another rollout than the newest, or an unreadable event."""
        if entry.kind not in _KINDS.values() or not entry.text("event"):
            return None
        try:
            record: Mapping[str, Any] = json.loads(entry.text("event"))
            event = event_of({**record, "time_ms": entry.time_ms, "by": entry.by, "why": entry.why})
        except (*NO_EVENT, Misconfigured):
            return None
        if kind_of(event) != entry.kind:
            return None
        if event.start is not None:
            return event if self._is_approved(event.start, entry) else None
        is_of_newest = self.rollout is not None and self.rollout.start.name == entry.text("rollout")
        return event if is_of_newest else None

    def _is_approved(self, start: Start, entry: Entry) -> bool:
        """Returns whether a start has the versions that its entry names, which alone are approved."""
        candidate = self._proposed.get(entry.text("proposal"))
        champions = [one for one in self._proposed.values() if one.digest == entry.text("champion")]
        if candidate is None or not champions or start.name != entry.text("rollout"):
            return False
        return (start.candidate, start.champion) == (candidate, champions[-1])


class RegistryRolloutLog:
    """The log of rollouts inside the log of the registry. See RolloutLog. Not thread-safe."""

    def __init__(self, registry: Registry, signer: Signer | None) -> None:
        """`signer`: the person or program that appends; None only reads."""
        self._registry, self._signer = registry, signer
        self._seen: FileState | None = None
        self._folded = Folded()

    def events(self) -> list[RolloutEvent]:
        """See RolloutLog. The log is read again when its file has changed."""
        seen = file_state(self._registry.log.path)
        if seen is None or seen != self._seen:
            self._folded, self._seen = self._fold(self._registry.log.read()), seen
        return list(self._folded.events)

    def append(self, event: RolloutEvent, known: int) -> bool:
        """See RolloutLog. An event that does not end a rollout needs Kafka where hosts share the log.

        Raises BrokerUnavailable too, and RegistryRefused if the rules of the registry forbid it.
        """
        signer, signed = self._signing(), False

        def make(log: RegistryLog) -> Sequence[Entry]:
            nonlocal signed
            state = state_of(log, self._registry.people, self._registry.rules)
            now = folded(log, state)
            if len(now.events) != known:
                return []
            # Raises if another host has made it impossible in the last moment.
            rollout = after(now.rollout, event)
            kind = kind_of(event)
            oldest_ms = self._registry.rules.oldest_ms(state.newest_ms, signer.name)
            if event.time_ms < oldest_ms and kind == kinds.ROLLOUT_STEP:
                # The lead goes on looking: harm counts whatever its clock says.
                raise ClockBehind(
                    f"rollout not {event.kind.value}: the clock is {(oldest_ms - event.time_ms) // 1000} s too far "
                    "behind the newest entry of the registry's log; it goes on when the clock is right"
                )
            drafts = [(kind, _what(event, rollout, state))]
            signed = True
            return self._registry.signed(log, signer, drafts, event.why or _said(event), event.time_ms)

        log = self._registry.log
        try:
            (log.append_now if kind_of(event) in kinds.LATE_KINDS else log.append)(make)
        except Overtaken:
            # The keeper reads the entries that came first, and tries again.
            return False
        return signed

    def abort_unread(self, event: RolloutEvent) -> str:
        """End a rollout whose start this release cannot read, and return its name; empty if there is none.

        The registry has it under way, and refuses every other one. `event`: the abort. Raises RegistryRefused.
        """
        registry = self._registry
        if not self._unread(registry.log.read()):
            return ""
        name = ""

        def make(log: RegistryLog) -> Sequence[Entry]:
            nonlocal name
            name = self._unread(log)
            drafts = [(kinds.ROLLOUT_ABORTED, {"rollout": name})] if name else []
            return registry.signed(log, self._signing(), drafts, event.why, event.time_ms)

        registry.log.append_now(make)
        return name

    def _unread(self, log: RegistryLog) -> str:
        """Returns the name of the rollout that the registry has under way and nobody can read; empty without one."""
        state = state_of(log, self._registry.people, self._registry.rules)
        read = folded(log, state).rollout
        if state.rollout is None:
            return ""
        # A second start of one name counts for the registry, and for no reader.
        is_read = read is not None and not read.has_ended and read.start.name == state.rollout.name
        return "" if is_read else state.rollout.name

    def _signing(self) -> Signer:
        if self._signer is None:
            raise Misconfigured("[models] key_file: wanted the PEM file of your private key, or give --key")
        return self._signer

    def _fold(self, log: RegistryLog) -> Folded:
        return folded(log, state_of(log, self._registry.people, self._registry.rules))


def approvals_of(registry: Registry, rollout: str) -> list[Agreed]:
    """Returns who registered, proposed and approved the candidate of a rollout, in the order of the log.

    Entries that count for nothing are left out. Raises Misconfigured for a log that cannot be read.
    """
    log = registry.log.read()
    ignored = {one.number for one in state_of(log, registry.people, registry.rules).ignored}
    entries = [entry for number, entry in enumerate(log.entries, 1) if number not in ignored]
    started = (one for one in entries if one.kind == kinds.ROLLOUT_STARTED and one.text("rollout") == rollout)
    start = next(started, None)
    proposal = next((one for one in entries if start is not None and one.digest == start.text("proposal")), None)
    if proposal is None:
        return []

    def is_about(entry: Entry) -> bool:
        if entry.kind == kinds.REGISTERED_BUNDLE:
            return entry.text("bundle") == proposal.text("bundle")
        if entry.kind == kinds.REGISTERED_POLICY:
            return entry.text("policy") == proposal.text("policy")
        is_approval = entry.kind == kinds.APPROVED and entry.text("proposal") == proposal.digest
        return is_approval or entry.digest == proposal.digest

    return [Agreed(one.time_ms, one.by, one.kind.replace("_", " "), one.why) for one in entries if is_about(one)]


def kind_of(event: RolloutEvent) -> str:
    """Returns the kind of an event's entry."""
    if event.judgement is not None and event.judgement.finding in (Finding.HARM, Finding.MISMATCH):
        return kinds.ROLLOUT_VERDICT
    return _KINDS[event.kind]


def proposed_versions(state: RegistryState, text: str) -> tuple[Version, Version]:
    """Returns the champion, and the candidate that a text names among the open proposals. Raises RegistryRefused."""
    proposal = proposal_named(state, text)
    if state.champion is None:
        raise Misconfigured("rollout not started: nothing was promoted yet: wanted a champion to compare with")
    if proposal.version.catalogue != state.champion.catalogue:
        raise Misconfigured(
            f"rollout not started: the candidate is for the feature catalogue {proposal.version.catalogue}, the "
            f"champion's is {state.champion.catalogue}: no host has both; "
            "`paywarden models promote` changes all cards at once"
        )
    return state.champion, proposal.version


def _what(event: RolloutEvent, rollout: Rollout, state: RegistryState) -> dict[str, Value]:
    record = {name: value for name, value in event_record(event).items() if name not in _OWN_FIELDS}
    # Fractions are no values of an entry: other languages write them in other ways.
    what: dict[str, Value] = {
        "rollout": rollout.start.name,
        "event": json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False),
    }
    if event.kind is EventKind.STARTED:
        what |= {"mode": CANARY, "champion": "" if state.champion is None else state.champion.digest}
    if event.kind in (EventKind.STARTED, EventKind.PROMOTED):
        what["proposal"] = _proposal(state, rollout.start.candidate).digest
    return what


def _proposal(state: RegistryState, version: Version) -> Proposal:
    for proposal in state.proposals.values():
        if proposal.version == version:
            return proposal
    raise Misconfigured(f"there is no open proposal of the bundle {version.bundle[:12]} with this policy")


def _said(event: RolloutEvent) -> str:
    """Returns why the lead writes an entry."""
    return event.kind.value if event.judgement is None else event.judgement.line
