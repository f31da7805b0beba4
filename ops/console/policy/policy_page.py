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
from contextlib import closing, suppress
from dataclasses import replace
from itertools import combinations
from typing import Any, Protocol

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.policy.lists import read_lists
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.models.policy.text import policy_text
from paywarden.models.registry.registry import PolicyFacts
from paywarden.ops.console.background import Kept
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.page_rows import Done, Field, Page, PageRefused, Section, Shown, Visit, not_found
from paywarden.ops.console.people import Role
from paywarden.ops.console.policy.drafts import IndexedDecisions, draft_source
from paywarden.ops.console.policy.mining import RuleMiner
from paywarden.ops.console.policy.replays import DAYS, Replay, Replays
from paywarden.ops.console.shell import status_of
from paywarden.ops.times import now_ms
from paywarden.ops.wiring import bundle_thresholds
from paywarden.ops.wiring.registry import policy_facts
from paywarden.schemas.errors import Misconfigured, PaywardenError
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
_DRAFT = (Field("text", "The text of [policy]", kind="lines", chars_max=_TEXT_CHARS_MAX, is_required=True),)
_PROPOSAL = (
    *_DRAFT,
    Field("why", "Why, for the log", is_required=True),
    Field("passphrase", "The passphrase of your key"),
)


class RecentDecisions(Protocol):
    """The source of decisions: streams/alerts/samples.py, or a list in tests."""

    def between(self, first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        """See DecisionSampler."""

    def close(self) -> None:
        """See DecisionSampler."""


class PolicySection:
    """The section `Policy`."""

    def __init__(
        self, source: Source, desk: Desk, decisions: Callable[[], RecentDecisions], decided: IndexedDecisions
    ) -> None:
        """`decisions`: a sample of the newest. `decided`: those of the index."""
        self._source, self._desk, self._decisions, self._decided = source, desk, decisions, decided
        self._settings = source.section("policy", PolicySettings)
        self._wake = threading.Event()
        # Kafka may take seconds to give a sample, and a page does not wait for it. Each decision of the sample: the
        # rules that fired for it, and the policy that they are of.
        self.fired: Kept[list[tuple[frozenset[str], str]]] = Kept(self._sampled, empty=[], old_ms=_KEPT_MS)
        self.catches: Kept[list[RuleCatch]] = Kept(self._caught, empty=[], old_ms=_KEPT_MS)
        costs = source.section("costs", CostSettings)
        self.replays = Replays(
            decided,
            review_cost_minor=costs.review_cost_minor,
            miner=lambda last_ms: RuleMiner(decided, costs, last_ms=last_ms),
        )

    def section(self) -> Section:
        """Return the section."""
        one = "/policy/replays/{replay_id}"
        pages = (
            Page("/policy", self.show, "The policy, and the catches of each rule"),
            Page("/policy/check", self.check, "Check a draft", "POST", DRAFTERS, _DRAFT, _BYTES_MAX),
            Page("/policy/replay", self.replay, "Replay it on the last week", "POST", DRAFTERS, _DRAFT, _BYTES_MAX),
            Page("/policy/mine", self.mine, "Mine rules from the last week's missed frauds", "POST", DRAFTERS),
            Page(one, self.show_replay, "A replay of a draft, and its result", roles=DRAFTERS),
            Page(f"{one}/version", self.show_replay_version, "A number that changes with it", roles=DRAFTERS),
            Page(f"{one}/cancel", self.cancel_replay, "End a replay", "POST", DRAFTERS),
            Page("/policy/propose", self.propose, "Propose it", "POST", PROPOSERS, _PROPOSAL, _BYTES_MAX),
        )
        return Section("policy", "Policy", "/policy", pages, background=(self.work,))

    def work(self, stop: threading.Event) -> None:
        """Run replays until `stop` is set."""
        while not stop.is_set():
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            while not stop.is_set() and self.replays.step(now_ms(), stop):
                pass

    def show(self, visit: Visit) -> Shown:
        """Show the policy."""
        settings = self._settings
        draft = policy_text(settings, read_lists(settings.lists))
        if settings.lists:
            # Entries of lists may be ids of cards.
            visit.saw("policy")
            draft = draft if visit.person.sees_cards else ""
        return self._shown(visit, draft if len(draft) <= _TEXT_CHARS_MAX else "")

    def check(self, visit: Visit) -> Shown:
        """Show a draft, and the first thing that is wrong with it."""
        draft, problem = visit.text("text"), ""
        try:
            self._facts(draft)
        except Misconfigured as error:
            problem = str(error)
        return self._shown(visit, draft, problem=problem, is_checked=True)

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

    def mine(self, visit: Visit) -> Done:
        """Begin to mine rules, and then to replay the policy with them."""
        made = self.replays.ask("", "", visit.person.name, visit.now_ms, mines=True)
        self._wake.set()
        visit.did("mined", "policy", replay=made.replay_id)
        view = {"replay_id": made.replay_id}
        return Done(f"/policy/replays/{made.replay_id}", "You have asked for rules from missed frauds.", view)

    def _kept(self, visit: Visit, act: Callable[[Visit], Done]) -> Done | Shown:
        """Return the result of an act. If it is refused, the draft stays on the page: going back would lose it."""
        try:
            return act(visit)
        except (PageRefused, PaywardenError) as error:
            if visit.is_api:
                raise
            made = self._shown(visit, visit.text("text"), is_checked=True, refused=str(error))
            return replace(made, status=status_of(error)[0])

    def show_replay(self, visit: Visit) -> Shown:
        """Show a replay: its progress, or its result."""
        found = self._replay(visit)
        is_own = found.by == visit.person.name and not (found.mines and self._settings.lists)
        if not (is_own or visit.person.sees_cards):
            # Entries of lists may be ids of cards. A mined draft has the lists of the settings.
            found = replace(found, draft="")
        view = {
            "replay": found,
            "may_propose": visit.person.may(PROPOSERS) and found.state == "done" and bool(found.draft),
            "has_registry": self._desk.has_registry,
        }
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

    def _replay(self, visit: Visit) -> Replay:
        found = self.replays.find(visit.path["replay_id"])
        if found is None:
            raise not_found("replay of this address: it was one of an older console, or newer ones took its place")
        return found

    def _facts(self, text: str) -> PolicyFacts:
        return policy_facts(self._source, draft_source(text), bundle_thresholds(self._source, None))

    def _shown(
        self, visit: Visit, draft: str, *, problem: str = "", is_checked: bool = False, refused: str = ""
    ) -> Shown:
        """Show the policy, a sample of decisions, what rules caught, and a draft with its faults.

        A threshold of 0 is that of the bundle; `bundle_thresholds` are both of these, 0 where they are not known.
        """
        settings, sample = self._settings, self.fired.known(visit.now_ms)
        lists = read_lists(settings.lists)
        digest = policy_digest(settings, lists)
        counts = Counter(rule for rules, _ in sample for rule in rules)
        alone = Counter(rule for rules, _ in sample if len(rules) == 1 for rule in rules)
        pairs = Counter(pair for rules, _ in sample for pair in combinations(sorted(rules), 2))
        names = {rule.name for rule in settings.rules}
        thresholds = (0.0, 0.0)
        with suppress(Misconfigured):
            thresholds = bundle_thresholds(self._source, None)
        view = {
            "review_at": settings.review_at,
            "decline_at": settings.decline_at,
            "bundle_thresholds": thresholds,
            "rules": [
                {
                    **{name: getattr(one, name) for name in ("name", "when", "action", "override", "until")},
                    "fired": counts[one.name],
                    "alone": alone[one.name],
                }
                for one in settings.rules
            ],
            "segments": [(one.name, one.when) for one in settings.segments],
            "lists": [(name, len(entries)) for name, entries in lists.items()],
            "caught": {
                "catches": self.catches.known(visit.now_ms),
                "counted_ms": self.catches.found_ms,
                "trouble": self.catches.trouble,
            },
            "caught_days": DAYS,
            "sample": len(sample),
            "by_this_policy": sum(own == digest for _, own in sample),
            "sampled_ms": self.fired.found_ms,
            "sample_trouble": self.fired.trouble,
            "unknown_rules": [(name, count) for name, count in counts.most_common() if name not in names],
            "overlaps": [
                {"first": first, "second": second, "payments": count}
                for (first, second), count in pairs.most_common(_OVERLAPS_MAX)
            ],
            "replays": [
                {name: getattr(one, name) for name in ("replay_id", "by", "asked_ms", "digest", "state")}
                for one in self.replays.all()
            ],
            "draft": draft,
            "problem": problem,
            "refused": refused,
            "is_checked": is_checked,
            "may_draft": visit.person.may(DRAFTERS),
            "may_propose": visit.person.may(PROPOSERS),
            "has_registry": self._desk.has_registry,
        }
        return Shown("policy/policy.html", view, "Policy")

    def _sampled(self, now: int) -> list[tuple[frozenset[str], str]]:
        with closing(self._decisions()) as decisions:
            return [(rules_of(one), one["policy_digest"]) for one in decisions.between(now - _HOUR_MS, now)]

    def _caught(self, now: int) -> list[RuleCatch]:
        index = self._decided.index()
        return [index.rule_catch(rule.name, now - DAYS * _DAY_MS) for rule in self._settings.rules]


def rules_of(decision: Mapping[str, Any]) -> frozenset[str]:
    """Return the rules among a decision's reasons."""
    return frozenset(one.removeprefix(_RULE) for one in decision["reasons"] if one.startswith(_RULE))
