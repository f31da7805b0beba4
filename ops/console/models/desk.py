"""Shows the registry and the log of rollouts, and lets a person act on them.

The acts are those of `paywarden models` and `paywarden rollout`, by the same functions and rules: the proposer of a
version cannot approve it, by any page or token. Where there is a registry, an act is signed with the key of the person
who does it. The console holds the keys encrypted, NAME.pem in `[console] keys`, and the person types the passphrase for
each act: without it the console can sign nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paywarden.models.replay.report.plots import Drawing
from paywarden.ops.console.charts import intervals
from paywarden.ops.console.inbox.alert_store import Happened
from paywarden.ops.console.models.changes import Changes, ModelFacts, changes_of, facts_of
from paywarden.ops.console.pages import PageRefused
from paywarden.ops.console.people import Person
from paywarden.ops.console.rendering import percent
from paywarden.ops.wiring import registry as wiring
from paywarden.ops.wiring import rollouts
from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.models.registry.registry import PolicyFacts, Registry, Signer
    from paywarden.models.registry.rules import RegisteredVersion, RegistryState
    from paywarden.models.rollout.judgement import Judgement
    from paywarden.models.rollout.plan import RolloutPlan
    from paywarden.models.rollout.rollout import Rollout, RolloutEvent
    from paywarden.models.rollout.rollout import Version as Compared

StepState = Literal["done", "now", "stopped", "ahead"]
_BASIS_POINTS = 10_000
_EARLIER_MAX, _EVENTS_MAX = 10, 50


@dataclass(frozen=True)
class VersionRow:
    """A version: the model's own name, and digests."""

    model_version: str
    digest: str
    bundle: str
    policy: str


@dataclass(frozen=True)
class ProposalRow:
    """A version that is to decide. `is_own`: the person who looks may not approve it."""

    digest: str
    version: VersionRow
    by: str
    time_ms: int
    why: str
    approvers: tuple[str, ...]
    needed: int
    is_approved: bool
    is_own: bool
    changes: Changes
    # The bundle's digest leaves out the native libraries: an approver sees their sha256, and who registered them.
    registered_by: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DecidedRow:
    """That a version became champion."""

    version: VersionRow
    kind: str
    by: str
    time_ms: int
    why: str


@dataclass(frozen=True)
class RegistryView:
    """The registry, newest first. `is_set`: whether there is one. `trouble`: why it cannot be read, or empty.

    `no_log`: the log, where its file is not there: nothing was registered yet, or it is gone.
    """

    champion: VersionRow | None = None
    previous: VersionRow | None = None
    proposals: tuple[ProposalRow, ...] = ()
    history: tuple[DecidedRow, ...] = ()
    ignored: int = 0
    head: str = ""
    trouble: str = ""
    is_set: bool = True
    no_log: str = ""


@dataclass(frozen=True)
class MeasureRow:
    """A measure of the candidate, as a ratio to the champion. `meaning`: in words. `is_harm`: it rolls back."""

    name: str
    is_within: bool
    low: float
    high: float
    evidence: float
    champion_events: int
    candidate_events: int
    # Whether a step waits until it is within.
    has_margin: bool = True
    meaning: str = ""
    is_harm: bool = False


@dataclass(frozen=True)
class JudgementView:
    """The findings of a look. Money: losses by approved fraud, minor units for 1,000 payments.

    `champion_cards`, `candidate_cards`: the cards that were compared. `chart`: the intervals of the measures.
    """

    line: str
    champion_cards: int
    candidate_cards: int
    measures: tuple[MeasureRow, ...]
    chart: Drawing | None = None
    money_champion: float | None = None
    money_candidate: float | None = None
    money_low: float | None = None
    money_high: float | None = None


@dataclass(frozen=True)
class StepRow:
    """A step of a rollout: the candidate's share of the cards, and how long it takes at least; None for the last."""

    share: float
    hours: float | None
    state: StepState


@dataclass(frozen=True)
class EndedRow:
    """An earlier rollout: how it ended, and why."""

    name: str
    phase: str
    cause: str
    time_ms: int


@dataclass(frozen=True)
class RolloutView:
    """The newest rollout. `trouble`: why it cannot be read. `cause`: the reason for the phase.

    `is_by_itself`: the evidence has ended it, and no person. `events`: its changes. `earlier`: the rollouts before it.
    """

    name: str = ""
    line: str = ""
    phase: str = ""
    cause: str = ""
    is_by_itself: bool = False
    steps: tuple[StepRow, ...] = ()
    earlier: tuple[EndedRow, ...] = ()
    version: str = ""
    share: float = 0.0
    since_ms: int = 0
    has_ended: bool = True
    may_be_promoted: bool = False
    champion: str = ""
    candidate: str = ""
    live: JudgementView | None = None
    outcomes: JudgementView | None = None
    events: tuple[Happened, ...] = ()
    trouble: str = ""
    in_shadow: bool = False
    # Where the log is, if it has no rollout.
    log: str = ""


@dataclass(frozen=True)
class Desk:
    """The registry and rollouts of these settings. `keys`: the folder of encrypted keys; empty for none."""

    source: Source
    keys: str

    @property
    def has_registry(self) -> bool:
        """Whether there is a registry at all."""
        return rollouts.has_registry(self.source)

    def may_sign(self, person: Person) -> bool:
        """Whether the console has a key of the person, or needs none."""
        return not self.has_registry or (bool(self.keys) and (Path(self.keys) / f"{person.name}.pem").is_file())

    def registry(self, person: Person, now_ms: int) -> RegistryView:
        """Return the present state of the registry."""
        if not self.has_registry:
            return RegistryView(trouble="there is no registry: [models] people is not set", is_set=False)
        try:
            registry = wiring.model_registry(self.source)
            state = registry.state(now_ms)
        except PaywardenError as error:
            return RegistryView(trouble=str(error))
        needed = registry.rules.approvals
        proposals = [
            ProposalRow(
                one.digest,
                _version(state, one.version),
                one.by,
                one.time_ms,
                one.why,
                tuple(one.approvers(now_ms)),
                needed,
                state.is_approved(one, registry.rules, now_ms),
                person.name in one.not_approvers,
                changes_of(registry, state, one.version),
                state.bundles[one.version.bundle].by,
                state.libraries(one.version),
            )
            for one in state.proposals.values()
        ]
        history = [
            DecidedRow(_version(state, one.version), one.entry.kind, one.entry.by, one.time_ms, one.entry.why)
            for one in reversed(state.history)
        ]
        return RegistryView(
            None if state.champion is None else _version(state, state.champion),
            None if state.previous is None else _version(state, state.previous),
            tuple(sorted(proposals, key=lambda one: -one.time_ms)),
            tuple(history),
            len(state.ignored),
            state.head,
            no_log="" if registry.log.path.exists() else str(registry.log.path),
        )

    def configured(self) -> ModelFacts | None:
        """Return the facts of the bundle in the console's configuration; None without a readable one."""
        from paywarden.models.bundle.bundle import read_manifest
        from paywarden.ops.wiring import ServeSettings

        try:
            return facts_of(read_manifest(Path(self.source.section("serve", ServeSettings).bundle)))
        except PaywardenError:
            return None

    def start_rollout(
        self,
        person: Person,
        passphrase: str,
        versions: tuple[Compared, Compared],
        plan: RolloutPlan,
        why: str,
        now_ms: int,
        *,
        shadow: bool,
    ) -> str:
        """Start a rollout, as `paywarden rollout start` does; returns its state. Raises Misconfigured, PageRefused."""
        from paywarden.models.rollout.log import RolloutKeeper
        from paywarden.models.rollout.registry_log import RegistryRolloutLog
        from paywarden.models.rollout.rollout import EventKind, RolloutEvent

        start = rollouts.start_of("", versions, plan, shadow=shadow, time_ms=now_ms)
        event = RolloutEvent(EventKind.STARTED, now_ms, person.name, why, start)
        if self.has_registry:
            with self._opened(person, passphrase) as (registry, signer):
                return RolloutKeeper(RegistryRolloutLog(registry, signer)).take(replace(event, by=signer.name)).line
        with rollouts.written_rollouts(self.source, _nobody, None) as (log, _):
            return RolloutKeeper(log).take(event).line

    def rollout(self) -> RolloutView:
        """Return the newest rollout in the log."""
        from paywarden.models.rollout.log import RolloutKeeper

        try:
            keeper = RolloutKeeper(rollouts.read_rollouts(self.source))
            history = _history(keeper.events)
        except PaywardenError as error:
            return RolloutView(trouble=str(error), version=f"not known: {error}")
        if not history:
            return RolloutView(log=rollouts.log_in_words(self.source), version="none")
        return _rollout_view(history)

    def happenings(self, first_ms: int, last_ms: int) -> Sequence[Happened]:
        """Return the changes of models and rollouts between two times, for the time line of an alert."""
        from paywarden.models.rollout.log import RolloutKeeper

        found: list[Happened] = []
        try:
            history = _history(RolloutKeeper(rollouts.read_rollouts(self.source)).events)
            found += _happened(history)
            if self.has_registry:
                found += [
                    Happened(one.time_ms, one.entry.kind, one.entry.by, one.entry.why)
                    for one in wiring.model_registry(self.source).state().history
                ]
        except PaywardenError as error:
            found.append(Happened(last_ms, "not known", "", f"what models and rollouts did: {error}"))
        return [one for one in found if first_ms <= one.time_ms <= last_ms]

    def propose_policy(self, person: Person, passphrase: str, facts: PolicyFacts, why: str, now_ms: int) -> str:
        """Register a policy and propose it with the champion's bundle; returns a sentence. Raises RegistryRefused."""
        with self._opened(person, passphrase) as (registry, signer):
            *_, entry = registry.register(signer, None, facts, why=why, now_ms=now_ms)
        return f"Proposed the policy {facts.digest[:12]} as {entry.digest[:12]}"

    def approve(self, person: Person, passphrase: str, proposal: str, why: str, now_ms: int) -> str:
        """Approve a proposal; returns a sentence. Raises RegistryRefused, PageRefused."""
        with self._opened(person, passphrase) as (registry, signer):
            named, _ = registry.approve(signer, proposal, why=why, now_ms=now_ms)
        return f"Approved the proposal {named.digest[:12]}"

    def promote(self, person: Person, passphrase: str, proposal: str, why: str, now_ms: int) -> str:
        """Let a proposed version decide; returns a sentence. Raises RegistryRefused, PageRefused."""
        with self._opened(person, passphrase) as (registry, signer):
            named, _ = registry.promote(signer, proposal, why=why, now_ms=now_ms)
        return f"Promoted the version {named.version.digest[:12]}"

    def roll_back(self, person: Person, passphrase: str, why: str, now_ms: int) -> str:
        """Let the version before the champion decide; returns a sentence. Raises RegistryRefused, PageRefused."""
        with self._opened(person, passphrase) as (registry, signer):
            good, _, _ = registry.roll_back(signer, why=why, now_ms=now_ms)
        return f"Rolled back to the version {good.digest[:12]}"

    def act_on_rollout(self, kind: str, person: Person, passphrase: str, why: str, now_ms: int) -> str:
        """Pause, resume, abort or promote the newest rollout; returns its state. Raises Misconfigured, PageRefused."""
        from paywarden.models.rollout.log import RolloutKeeper
        from paywarden.models.rollout.registry_log import RegistryRolloutLog
        from paywarden.models.rollout.rollout import EventKind, RolloutEvent

        event = RolloutEvent(EventKind(kind), now_ms, person.name, why)
        if self.has_registry:
            with self._opened(person, passphrase) as (registry, signer):
                found = RolloutKeeper(RegistryRolloutLog(registry, signer)).take(replace(event, by=signer.name))
        else:
            with rollouts.written_rollouts(self.source, _nobody, None) as (log, _):
                found = RolloutKeeper(log).take(event)
        try:
            rollouts.deploy_here(self.source, found)
        except Misconfigured as error:
            return f"{found.line}; it is in the log, but this host does not act on it: {error}"
        return found.line

    @contextmanager
    def _opened(self, person: Person, passphrase: str) -> Iterator[tuple[Registry, Signer]]:
        """Yields the registry to write to, and the person with their key."""
        if not self.has_registry:
            raise PageRefused(409, "There is no registry: [models] people is not set.")
        with wiring.shared_registry(self.source, _nobody) as registry:
            yield registry, signer_of(Path(self.keys) if self.keys else None, person, passphrase, registry)


def signer_of(keys: Path | None, person: Person, passphrase: str, registry: Registry) -> Signer:
    """Return a person with their key. Raises PageRefused if the console has none, or not by this passphrase."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from paywarden.models.bundle.signature import fingerprint
    from paywarden.models.registry.registry import Signer

    if keys is None:
        raise PageRefused(409, "The console has no keys: set [console] keys, or use the command `paywarden models`.")
    try:
        content = (keys / f"{person.name}.pem").read_bytes()
    except OSError as error:
        raise PageRefused(409, f"The console has no key of {person.name}.") from error
    try:
        key = load_pem_private_key(content, passphrase.encode())
    except (ValueError, TypeError) as error:
        # A key without a passphrase is refused too: the console could sign with it by itself.
        raise PageRefused(403, "The passphrase is wrong, or the key is not encrypted.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PageRefused(409, f"The key of {person.name} is no Ed25519 key.")
    owner = registry.people.owner(fingerprint(key.public_key()))
    if owner is None or owner.name != person.name:
        raise PageRefused(403, f"The registry's file of people has this key for somebody other than {person.name}.")
    return Signer(owner.name, key)


def _nobody(_: str) -> None:
    return


def _version(state: RegistryState, version: RegisteredVersion) -> VersionRow:
    from paywarden.models.registry.registry import model_version

    return VersionRow(model_version(state, version), version.digest, version.bundle, version.policy)


def _history(events: Sequence[RolloutEvent]) -> list[tuple[RolloutEvent, Rollout]]:
    """Return the events of a log, each with the state after it."""
    from paywarden.models.rollout.rollout import after

    history: list[tuple[RolloutEvent, Rollout]] = []
    rollout: Rollout | None = None
    for event in events:
        rollout = after(rollout, event)
        history.append((event, rollout))
    return history


def _happened(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[Happened]:
    """Return the changes of a rollout, without the looks every few minutes that change nothing."""
    from paywarden.models.rollout.rollout import EventKind

    found: list[Happened] = []
    before: tuple[str, object, int] | None = None
    for event, rollout in history:
        state = rollout.start.name, rollout.phase, rollout.step
        if event.kind in (EventKind.LOOKED, EventKind.OUTCOMES):
            if state != before:
                kind = "rollout rolled back" if rollout.has_ended else "rollout goes on"
                text = rollout.cause if rollout.has_ended else _goes_on(rollout)
                found.append(Happened(event.time_ms, kind, event.by, text))
        else:
            found.append(Happened(event.time_ms, f"rollout {event.kind.value}", event.by, event.why))
        before = state
    return found


def _goes_on(rollout: Rollout) -> str:
    return f"{rollout.start.name}: the candidate gets {percent(rollout.share / _BASIS_POINTS)} of the cards"


def _rollout_view(history: Sequence[tuple[RolloutEvent, Rollout]]) -> RolloutView:
    from paywarden.models.rollout.rollout import BY_A_PERSON

    last, found = history[-1]
    own = [(event, state) for event, state in history if state.start.name == found.start.name]
    ends = {state.start.name: state for _, state in history if state.start.name != found.start.name}
    earlier = tuple(
        EndedRow(name, one.phase.value, one.cause, one.since_ms)
        for name, one in list(ends.items())[::-1][:_EARLIER_MAX]
    )
    return RolloutView(
        found.start.name,
        found.line,
        found.phase.value,
        found.cause,
        found.has_ended and last.kind not in BY_A_PERSON,
        _steps(found),
        earlier,
        f"{found.start.name} {len(history)} {found.time_ms}",
        found.share / _BASIS_POINTS,
        found.since_ms,
        found.has_ended,
        found.may_be_promoted,
        found.start.champion.bundle_digest,
        found.start.candidate.bundle_digest,
        None if found.judgement is None else _judgement(found, found.judgement),
        None if found.outcomes is None else _judgement(found, found.outcomes),
        tuple(_happened(own)[-_EVENTS_MAX:][::-1]),
        in_shadow=found.in_shadow,
    )


def _steps(rollout: Rollout) -> tuple[StepRow, ...]:
    plan = rollout.start.plan
    hours = (*plan.step_hours, None)
    return tuple(
        StepRow(share / _BASIS_POINTS, hours[number], _step_state(rollout, number))
        for number, share in enumerate(plan.steps)
    )


def _step_state(rollout: Rollout, number: int) -> StepState:
    if rollout.phase.value == "promoted" or number < rollout.step:
        return "done"
    if number > rollout.step or rollout.phase.value == "pending":
        return "ahead"
    return "stopped" if rollout.has_ended else "now"


def _judgement(rollout: Rollout, judgement: Judgement) -> JudgementView:
    from paywarden.models.rollout.plan import OUTCOME_MEASURES

    money, plan = judgement.money, rollout.start.plan
    meanings = {one.name: one.meaning for one in (*plan.measures, *OUTCOME_MEASURES)}
    measures = tuple(
        MeasureRow(
            one.name,
            one.is_within,
            one.low,
            one.high,
            one.evidence,
            *one.events,
            one.name in plan.with_margin,
            meanings.get(one.name, ""),
            one.evidence >= 0,
        )
        for one in judgement.measures
    )
    chart = intervals(
        "How often, compared with the champion", [(one.name.replace("_", " "), one.low, one.high) for one in measures]
    )
    view = JudgementView(judgement.line, *judgement.cards, measures, chart)
    if money is None:
        return view
    return replace(
        view,
        money_champion=money.champion,
        money_candidate=money.candidate,
        money_low=money.low,
        money_high=money.high,
    )
