"""The page of the policy: its text, the catches of each rule, and a draft that is checked, replayed and proposed.

How often a rule fires comes from a sample of the last hour's decisions, which name their rules among their reasons.
Its catches come from the index of decisions and outcomes, as of at most a minute ago. A draft is text of `[policy]`
alone. It is checked as `paywarden policy check` does, replayed on the last week's decisions (replays.py), and proposed
to the registry, where others approve it as any version (the page of models).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.policy.lists import read_lists
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.models.policy.text import policy_text
from paywarden.ops.console.background_values import Kept
from paywarden.ops.console.models.desk import Desk
from paywarden.ops.console.pages import Done, Field, Page, PageRefused, Section, Shown, Visit, not_found
from paywarden.ops.console.people.people import Role
from paywarden.ops.console.policy.drafts import draft_source
from paywarden.ops.console.policy.replays import DAYS, Replay, Replays, SampledDecisions
from paywarden.ops.times import now_ms
from paywarden.ops.wiring import bundle_thresholds
from paywarden.ops.wiring.registry import policy_facts
from paywarden.schemas.errors import Misconfigured, PaywardenError, TemporaryFailure
from paywarden.schemas.settings import Source
from paywarden.streams.decision_index.rule_catches import RuleCatch

PROPOSERS = frozenset({Role.MODEL_OWNER, Role.LEAD})
DRAFTERS = PROPOSERS | {Role.ANALYST}
_TEXT_CHARS_MAX = 60_000
_BYTES_MAX = 512 * 1024
_HOUR_MS, _DAY_MS, _KEPT_MS = 3_600_000, 86_400_000, 60_000
_OVERLAPS_MAX = 20
_RULE = "rule:"
# How long the background work sleeps at most when nobody wants anything.
_LOOK_S = 2.0


class RecentDecisions(Protocol):
    """The source of decisions: streams/alerts/samples.py, or a list in tests."""

    def between(self, first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        """See DecisionSampler."""

    def close(self) -> None:
        """See DecisionSampler."""


@dataclass(frozen=True)
class Fired:
    """The rules that fired for a decision, and the policy that they are of."""

    rules: frozenset[str]
    policy_digest: str


@dataclass(frozen=True)
class RuleRow:
    """A rule. `fired`: decisions of the sample that name it; `alone`: those that no other rule fired for."""

    name: str
    when: str
    action: str
    override: bool
    fired: int
    alone: int


@dataclass(frozen=True)
class Caught:
    """The catches of rules. `counted_ms`: when they were counted, 0 for never. `trouble`: why they are not newer."""

    catches: tuple[RuleCatch, ...]
    counted_ms: int
    trouble: str


@dataclass(frozen=True)
class ReplayRow:
    """A replay in the list."""

    replay_id: str
    by: str
    asked_ms: int
    digest: str
    state: str


@dataclass(frozen=True)
class ReplayView:
    """A replay. Its draft is empty for people who may not see the entries of its lists."""

    replay: Replay
    may_draft: bool
    may_propose: bool
    has_registry: bool
    decisions_link: str


@dataclass(frozen=True)
class Overlap:
    """Two rules that fired for the same payments."""

    first: str
    second: str
    payments: int


@dataclass(frozen=True)
class PolicyView:
    """The policy of this console's configuration, a sample of decisions, and a draft with its faults.

    `sample`: decisions of the hour before `sampled_ms`, 0 for never; `sample_trouble`: why there is no newer sample.
    `refused`: why the wanted act on the draft was not done. `by_this_policy`: how many of them this policy decided. A
    threshold of 0 is that of the bundle; `bundle_thresholds` are both of these, 0 where they are not known.
    """

    review_at: float
    decline_at: float
    bundle_thresholds: tuple[float, float]
    rules: tuple[RuleRow, ...]
    caught: Caught
    caught_days: int
    segments: tuple[tuple[str, str], ...]
    lists: tuple[tuple[str, int], ...]
    sample: int
    by_this_policy: int
    sampled_ms: int
    sample_trouble: str
    unknown_rules: tuple[tuple[str, int], ...]
    overlaps: tuple[Overlap, ...]
    replays: tuple[ReplayRow, ...]
    draft: str
    problem: str
    refused: str
    is_checked: bool
    may_draft: bool
    may_propose: bool
    has_registry: bool


class PolicySection:
    """The section `Policy`."""

    def __init__(
        self, source: Source, desk: Desk, decisions: Callable[[], RecentDecisions], decided: SampledDecisions
    ) -> None:
        """`decisions`: a sample of the newest. `decided`: those of the index."""
        self._source, self._desk, self._decisions = source, desk, decisions
        self._wake = threading.Event()
        rules = [rule.name for rule in source.section("policy", PolicySettings).rules]

        def caught(now: int) -> tuple[RuleCatch, ...]:
            index = decided.index()
            return tuple(index.rule_catch(rule, now - DAYS * _DAY_MS) for rule in rules)

        # Kafka may take seconds to give a sample, and a page does not wait for it.
        self.fired: Kept[list[Fired]] = Kept(self._sampled, empty=[], old_ms=_KEPT_MS)
        self.catches: Kept[tuple[RuleCatch, ...]] = Kept(caught, empty=(), old_ms=_KEPT_MS)
        self.replays = Replays(decided, review_cost_minor=source.section("costs", CostSettings).review_cost_minor)

    def section(self) -> Section:
        """Returns the section."""
        text = Field("text", "The text of [policy]", kind="lines", chars_max=_TEXT_CHARS_MAX, is_required=True)
        why = Field("why", "Why, for the log", is_required=True)
        passphrase = Field("passphrase", "The passphrase of your key")
        draft, proposal = (text,), (text, why, passphrase)
        one = "/policy/replays/{replay_id}"
        pages = (
            Page("/policy", self.show, "The policy, and the catches of each rule", view=PolicyView),
            Page("/policy/check", self.check, "Check a draft", "POST", DRAFTERS, draft, _BYTES_MAX, PolicyView),
            Page("/policy/replay", self.replay, "Replay it on the last week", "POST", DRAFTERS, draft, _BYTES_MAX),
            Page(one, self.show_replay, "A replay of a draft, and its result", roles=DRAFTERS, view=ReplayView),
            Page(f"{one}/version", self.show_replay_version, "A number that changes with it", roles=DRAFTERS),
            Page(f"{one}/cancel", self.cancel_replay, "End a replay", "POST", DRAFTERS),
            Page("/policy/propose", self.propose, "Propose it", "POST", PROPOSERS, proposal, _BYTES_MAX),
        )
        return Section("policy", "Policy", "/policy", pages, background=(self.work, self.fired.run, self.catches.run))

    def work(self, stop: threading.Event) -> None:
        """Run replays until `stop` is set."""
        while not stop.is_set():
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            while not stop.is_set() and self.replays.step(now_ms(), stop):
                pass

    def show(self, visit: Visit) -> Shown:
        """Show the policy."""
        settings = self._source.section("policy", PolicySettings)
        draft = policy_text(settings, read_lists(settings.lists))
        if settings.lists:
            # Entries of lists may be ids of cards.
            visit.saw("policy")
            draft = draft if visit.person.sees_cards else ""
        return self._shown(visit, draft if len(draft) <= _TEXT_CHARS_MAX else "", "", is_checked=False)

    def check(self, visit: Visit) -> Shown:
        """Show a draft, and the first thing that is wrong with it."""
        draft, problem = visit.text("text"), ""
        try:
            self._facts(draft)
        except Misconfigured as error:
            problem = str(error)
        return self._shown(visit, draft, problem, is_checked=True)

    def propose(self, visit: Visit) -> Done | Shown:
        """Propose a draft to the registry, with the champion's bundle."""
        return self._kept(visit, self._proposed)

    def _proposed(self, visit: Visit) -> Done:
        facts, why = self._facts(visit.text("text")), visit.text("why")
        done = self._desk.propose_policy(visit.person, visit.text("passphrase"), facts, why, visit.now_ms)
        visit.did("proposed", f"policy:{facts.digest[:12]}", why=why)
        return Done("/models", f"{done}.")

    def replay(self, visit: Visit) -> Done | Shown:
        """Begin to replay a draft, once it is right."""
        return self._kept(visit, self._begun)

    def _begun(self, visit: Visit) -> Done:
        facts = self._facts(visit.text("text"))
        made = self.replays.ask(visit.text("text"), facts.digest, visit.person.name, visit.now_ms)
        self._wake.set()
        visit.did("replayed", f"policy:{facts.digest[:12]}", replay=made.replay_id)
        view = {"replay_id": made.replay_id}
        return Done(f"/policy/replays/{made.replay_id}", "You have asked for a replay of your draft.", view)

    def show_replay(self, visit: Visit) -> Shown:
        """Show a replay: its progress, or its result."""
        found = self._replay(visit)
        if found.by != visit.person.name and not visit.person.sees_cards:
            found = replace(found, draft="")
        view = ReplayView(
            found,
            visit.person.may(DRAFTERS),
            visit.person.may(PROPOSERS) and found.state == "done" and bool(found.draft),
            self._desk.has_registry,
            "/decisions",
        )
        return Shown("policy/replay.html", view, "Replay of a draft")

    def show_replay_version(self, visit: Visit) -> Shown:
        """Say whether a replay has come further."""
        found = self._replay(visit)
        return Shown("", {"version": f"{found.state} {found.done:.2f}"}, "Version")

    def cancel_replay(self, visit: Visit) -> Done:
        """End a replay."""
        found = self._replay(visit)
        if not self.replays.cancel(found.replay_id):
            raise PageRefused(409, "The replay is over already.")
        visit.did("cancelled", f"policy:{found.digest[:12]}", replay=found.replay_id)
        return Done("/policy", "The replay is cancelled.")

    def _kept(self, visit: Visit, act: Callable[[Visit], Done]) -> Done | Shown:
        """Returns the result of an act. If it is refused, the draft stays on the page: going back would lose it."""
        try:
            return act(visit)
        except (PageRefused, PaywardenError) as error:
            if visit.is_api:
                raise
            status = 503 if isinstance(error, TemporaryFailure) else 409
            status = error.status if isinstance(error, PageRefused) else status
            made = self._shown(visit, visit.text("text"), "", is_checked=True, refused=str(error))
            return replace(made, status=status)

    def _replay(self, visit: Visit) -> Replay:
        found = self.replays.find(visit.path["replay_id"])
        if found is None:
            raise not_found("replay of this address: it was one of an older console, or newer ones took its place")
        return found

    def _facts(self, text: str) -> Any:
        source = draft_source(text)
        return policy_facts(self._source, source, bundle_thresholds(self._source, None))

    def _shown(self, visit: Visit, draft: str, problem: str, *, is_checked: bool, refused: str = "") -> Shown:
        settings = self._source.section("policy", PolicySettings)
        sample = self.fired.known(visit.now_ms)
        fired = [one.rules for one in sample]
        lists = read_lists(settings.lists)
        digest = policy_digest(settings, lists)
        counts = Counter(rule for rules in fired for rule in rules)
        alone = Counter(rule for rules in fired if len(rules) == 1 for rule in rules)
        pairs = Counter(pair for rules in fired for pair in combinations(sorted(rules), 2))
        names = {rule.name for rule in settings.rules}
        view = PolicyView(
            review_at=settings.review_at,
            decline_at=settings.decline_at,
            bundle_thresholds=self._bundle_thresholds(),
            rules=tuple(
                RuleRow(one.name, one.when, one.action, one.override, counts[one.name], alone[one.name])
                for one in settings.rules
            ),
            segments=tuple((one.name, one.when) for one in settings.segments),
            lists=tuple((name, len(entries)) for name, entries in lists.items()),
            caught=Caught(self.catches.known(visit.now_ms), self.catches.found_ms, self.catches.trouble),
            caught_days=DAYS,
            sample=len(fired),
            by_this_policy=sum(one.policy_digest == digest for one in sample),
            sampled_ms=self.fired.found_ms,
            sample_trouble=self.fired.trouble,
            unknown_rules=tuple((name, count) for name, count in counts.most_common() if name not in names),
            overlaps=tuple(Overlap(*pair, count) for pair, count in pairs.most_common(_OVERLAPS_MAX)),
            replays=tuple(
                ReplayRow(one.replay_id, one.by, one.asked_ms, one.digest, one.state) for one in self.replays.all()
            ),
            draft=draft,
            problem=problem,
            refused=refused,
            is_checked=is_checked,
            may_draft=visit.person.may(DRAFTERS),
            may_propose=visit.person.may(PROPOSERS),
            has_registry=self._desk.has_registry,
        )
        return Shown("policy/policy.html", view, "Policy")

    def _bundle_thresholds(self) -> tuple[float, float]:
        try:
            return bundle_thresholds(self._source, None)
        except Misconfigured:
            return 0.0, 0.0

    def _sampled(self, now_ms: int) -> list[Fired]:
        """Returns the rules that fired for each decision of a sample of the last hour. Raises PaywardenError."""
        with closing(self._decisions()) as decisions:
            return [Fired(rules_of(one), one["policy_digest"]) for one in decisions.between(now_ms - _HOUR_MS, now_ms)]


def rules_of(decision: Mapping[str, Any]) -> frozenset[str]:
    """Returns the rules among a decision's reasons."""
    return frozenset(one.removeprefix(_RULE) for one in decision["reasons"] if one.startswith(_RULE))
