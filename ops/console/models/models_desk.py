"""Shows the registry and the log of rollouts, and lets a person act on them.

The acts are those of `paywarden models` and `paywarden rollout`, by the same functions and rules: the proposer of a
version cannot approve it, by any page or token. An act is signed with the key of the person who does it. The console
holds the keys encrypted, NAME.pem in `[console] keys`, and the person types the passphrase for
each act: without it the console can sign nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.bundle.signature import fingerprint
from paywarden.models.bundle.version import Version
from paywarden.models.registry.registry import PolicyFacts, Registry, Signer
from paywarden.models.registry.registry_settings import ModelRegistrySettings
from paywarden.models.rollout.judgement import Judgement
from paywarden.models.rollout.plan import OUTCOME_MEASURES, RolloutPlan
from paywarden.models.rollout.registry_log import RegistryRolloutLog
from paywarden.models.rollout.rollout import BY_A_PERSON, EventKind, Rollout, RolloutEvent, after
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.ops.console.charts import intervals
from paywarden.ops.console.inbox.alert_store import Happened
from paywarden.ops.console.models.changes import ModelFacts, changes_of, facts_of
from paywarden.ops.console.page_rows import PageRefused
from paywarden.ops.console.people import Person
from paywarden.ops.console.rendering import percent
from paywarden.ops.wiring import ServeSettings, rollouts
from paywarden.ops.wiring import registry as wiring
from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.settings import Source

_BASIS_POINTS = 10_000
_EARLIER_MAX, _EVENTS_MAX = 10, 50
NO_ROLLOUT: dict[str, Any] = {"name": "", "trouble": "", "version": "none", "has_ended": True}
"""The view of a rollout where there is none. `trouble`: why it cannot be read."""


@dataclass(frozen=True)
class Desk:
    """The registry and rollouts of these settings. `keys`: the folder of encrypted keys; empty for none."""

    source: Source
    keys: str

    @property
    def has_registry(self) -> bool:
        """Whether there is a registry."""
        return bool(self.source.section("models", ModelRegistrySettings).people)

    def may_sign(self, person: Person) -> bool:
        """Whether the console has a key of the person."""
        return bool(self.keys) and (Path(self.keys) / f"{person.name}.pem").is_file()

    def registry(self, person: Person, now_ms: int) -> dict[str, Any]:
        """Return the present state of the registry, the newest first.

        `is_set`: whether there is one. `trouble`: why it cannot be read, or empty. `no_log`: the log, where its file is
        not there: nothing was registered yet, or it is gone.
        """
        nothing: dict[str, Any] = {
            "is_set": self.has_registry,
            "champion": None,
            "previous": None,
            "proposals": [],
            "history": [],
        }
        if not self.has_registry:
            return {**nothing, "trouble": "there is no registry: [models] people is not set"}
        try:
            registry = wiring.model_registry(self.source)
            state = registry.state(now_ms)
        except PaywardenError as error:
            return {**nothing, "trouble": str(error)}
        proposals = [
            {
                "digest": one.digest,
                "version": _version(one.version),
                "by": one.by,
                "time_ms": one.time_ms,
                "why": one.why,
                "approvers": list(one.approvers(now_ms)),
                "needed": registry.rules.approvals,
                "is_approved": state.is_approved(one, registry.rules, now_ms),
                # The person who looks may not approve it.
                "is_own": person.name in one.not_approvers,
                "changes": changes_of(registry, state, one.version),
                # The bundle's digest leaves out the native libraries: an approver sees their sha256.
                "registered_by": state.bundles[one.version.bundle].by,
                "libraries": state.libraries(one.version),
            }
            for one in sorted(state.proposals.values(), key=lambda one: -one.time_ms)
        ]
        history = [
            {
                "version": _version(one.version),
                "kind": one.entry.kind,
                "by": one.entry.by,
                "time_ms": one.time_ms,
                "why": one.entry.why,
            }
            for one in reversed(state.history)
        ]
        return {
            "is_set": True,
            "trouble": "",
            "champion": None if state.champion is None else _version(state.champion),
            "previous": None if state.previous is None else _version(state.previous),
            "proposals": proposals,
            "history": history,
            "ignored": len(state.ignored),
            "head": state.head,
            "no_log": "" if registry.log.path.exists() else str(registry.log.path),
        }

    def configured(self) -> ModelFacts | None:
        """Return the facts of the bundle in the console's configuration; None without a readable one."""
        try:
            return facts_of(read_manifest(Path(self.source.section("serve", ServeSettings).bundle)))
        except PaywardenError:
            return None

    def start_rollout(
        self,
        person: Person,
        passphrase: str,
        versions: tuple[Version, Version],
        plan: RolloutPlan,
        why: str,
        now_ms: int,
        *,
        shadow: bool,
    ) -> str:
        """Start a rollout, as `paywarden rollout start` does; returns its state. Raises Misconfigured, PageRefused."""
        start = rollouts.start_of("", versions, plan, shadow=shadow, time_ms=now_ms)
        return self._taken(person, passphrase, RolloutEvent(EventKind.STARTED, now_ms, person.name, why, start))

    def rollout(self) -> dict[str, Any]:
        """Return the newest rollout in the log: see NO_ROLLOUT and `_rollout_view`."""
        if not self.has_registry:
            return NO_ROLLOUT
        try:
            keeper = RolloutKeeper(rollouts.read_rollouts(self.source))
            history = _history(keeper.events)
        except PaywardenError as error:
            return {**NO_ROLLOUT, "trouble": str(error), "version": f"not known: {error}"}
        if not history:
            return NO_ROLLOUT
        return _rollout_view(history)

    def happenings(self, first_ms: int, last_ms: int) -> Sequence[Happened]:
        """Return the changes of models and rollouts between two times, for the time line of an alert."""
        found: list[Happened] = []
        if not self.has_registry:
            return found
        try:
            history = _history(RolloutKeeper(rollouts.read_rollouts(self.source)).events)
            found += _happened(history)
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
        return self._taken(person, passphrase, RolloutEvent(EventKind(kind), now_ms, person.name, why))

    def _taken(self, person: Person, passphrase: str, event: RolloutEvent) -> str:
        """Take an event of a rollout, signed by the person; returns the rollout's state."""
        with self._opened(person, passphrase) as (registry, signer):
            return RolloutKeeper(RegistryRolloutLog(registry, signer)).take(event).line

    @contextmanager
    def _opened(self, person: Person, passphrase: str) -> Iterator[tuple[Registry, Signer]]:
        """Yield the registry to write to, and the person with their key."""
        if not self.has_registry:
            raise PageRefused(409, "There is no registry: [models] people is not set.")
        with wiring.shared_registry(self.source, _nobody) as registry:
            yield registry, signer_of(Path(self.keys) if self.keys else None, person, passphrase, registry)


def signer_of(keys: Path | None, person: Person, passphrase: str, registry: Registry) -> Signer:
    """Return a person with their key. Raises PageRefused if the console has none, or not by this passphrase."""
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


def _version(version: Version) -> dict[str, str]:
    """Return a version: the model's own name, and digests."""
    names = {"digest": version.digest, "bundle": version.bundle, "policy": version.policy}
    return {"model_version": version.model, **names}


def _history(events: Sequence[RolloutEvent]) -> list[tuple[RolloutEvent, Rollout]]:
    """Return the events of a log, each with the state after it."""
    history: list[tuple[RolloutEvent, Rollout]] = []
    rollout: Rollout | None = None
    for event in events:
        rollout = after(rollout, event)
        history.append((event, rollout))
    return history


def _happened(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[Happened]:
    """Return the changes of a rollout, without the looks every few minutes that change nothing."""
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


def _rollout_view(history: Sequence[tuple[RolloutEvent, Rollout]]) -> dict[str, Any]:
    """Return the newest rollout of a log. `cause`: the reason for the phase.

    `is_by_itself`: the evidence has ended it, and no person. `events`: its changes. `earlier`: the rollouts before it.
    """
    last, found = history[-1]
    own = [(event, state) for event, state in history if state.start.name == found.start.name]
    ends = {state.start.name: state for _, state in history if state.start.name != found.start.name}
    return {
        **NO_ROLLOUT,
        "name": found.start.name,
        "line": found.line,
        "phase": found.phase.value,
        "cause": found.cause,
        "is_by_itself": found.has_ended and last.kind not in BY_A_PERSON,
        "steps": _steps(found),
        "earlier": [
            {"name": name, "phase": one.phase.value, "cause": one.cause, "time_ms": one.since_ms}
            for name, one in list(ends.items())[::-1][:_EARLIER_MAX]
        ],
        "version": f"{found.start.name} {len(history)} {found.time_ms}",
        "share": found.share / _BASIS_POINTS,
        "since_ms": found.since_ms,
        "has_ended": found.has_ended,
        "may_be_promoted": found.may_be_promoted,
        "champion": found.start.champion.bundle,
        "candidate": found.start.candidate.bundle,
        "live": None if found.judgement is None else _judgement(found, found.judgement),
        "outcomes": None if found.outcomes is None else _judgement(found, found.outcomes),
        "events": _happened(own)[-_EVENTS_MAX:][::-1],
        "in_shadow": found.in_shadow,
    }


def _steps(rollout: Rollout) -> list[dict[str, Any]]:
    """Return the candidate's share in each step, how long it takes at least (None for the last), and how far it is."""
    plan = rollout.start.plan
    hours = (*plan.step_hours, None)
    return [
        {"share": share / _BASIS_POINTS, "hours": hours[number], "state": _step_state(rollout, number)}
        for number, share in enumerate(plan.steps)
    ]


def _step_state(rollout: Rollout, number: int) -> str:
    if rollout.phase.value == "promoted" or number < rollout.step:
        return "done"
    if number > rollout.step or rollout.phase.value == "pending":
        return "ahead"
    return "stopped" if rollout.has_ended else "now"


def _judgement(rollout: Rollout, judgement: Judgement) -> dict[str, Any]:
    """Return the findings of a look: measures of the candidate as ratios to the champion, and the money.

    Money: losses by approved fraud, minor units for 1,000 payments.
    """
    plan, money = rollout.start.plan, judgement.money
    meanings = {one.name: one.meaning for one in (*plan.measures, *OUTCOME_MEASURES)}
    ratios = [(one.name.replace("_", " "), one.low, one.high) for one in judgement.measures]
    return {
        "line": judgement.line,
        "champion_cards": judgement.cards[0],
        "candidate_cards": judgement.cards[1],
        "measures": [
            {
                **{name: getattr(one, name) for name in ("name", "is_within", "low", "high", "evidence")},
                "champion_events": one.events[0],
                "candidate_events": one.events[1],
                # Whether a step waits until it is within.
                "has_margin": one.name in plan.with_margin,
                "meaning": meanings.get(one.name, ""),
                # It rolls back.
                "is_harm": one.evidence >= 0,
            }
            for one in judgement.measures
        ],
        "chart": intervals("How often, compared with the champion", ratios),
        **{f"money_{name}": None if money is None else getattr(money, name) for name in _MONEY},
    }


_MONEY = ("champion", "candidate", "low", "high")
