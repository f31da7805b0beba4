"""The page of the policy: what it is, how often each rule fires, and a draft that is checked and proposed.

How often a rule fires comes from a sample of the last hour's decisions, which name their rules among their reasons. A
draft is text of `[policy]` alone. It is checked as `paywarden policy check` does, and proposed to the registry, where
others approve it as any version (the page of models). A draft names no file: lists have their entries in it.
"""

from __future__ import annotations

import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

from paywarden.models.policy.lists import read_lists
from paywarden.models.policy.policy import PolicySettings
from paywarden.models.policy.text import policy_text
from paywarden.ops.configuration import bundle_thresholds
from paywarden.ops.console.models.desk import Desk
from paywarden.ops.console.pages import Done, Field, Page, PageRefused, Section, Shown, Visit
from paywarden.ops.console.people.people import Role
from paywarden.ops.wiring.registry import policy_facts
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import Source

PROPOSERS = frozenset({Role.MODEL_OWNER, Role.LEAD})
DRAFTERS = PROPOSERS | {Role.ANALYST}
_TEXT_CHARS_MAX = 60_000
_BYTES_MAX = 512 * 1024
_HOUR_MS, _KEPT_S = 3_600_000, 60.0
_OVERLAPS_MAX = 20
_RULE = "rule:"


class RecentDecisions(Protocol):
    """Where decisions come from: streams/alerts/samples.py, or a list in tests."""

    def between(self, first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        """See DecisionSampler."""

    def close(self) -> None:
        """See DecisionSampler."""


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
class Overlap:
    """Two rules that fired for the same payments."""

    first: str
    second: str
    payments: int


@dataclass(frozen=True)
class PolicyView:
    """The policy of this console's configuration, a sample of decisions, and a draft with what is wrong with it."""

    review_at: float
    decline_at: float
    rules: tuple[RuleRow, ...]
    segments: tuple[tuple[str, str], ...]
    lists: tuple[tuple[str, int], ...]
    sample: int
    sample_trouble: str
    unknown_rules: tuple[tuple[str, int], ...]
    overlaps: tuple[Overlap, ...]
    draft: str
    problem: str
    is_checked: bool
    may_draft: bool
    may_propose: bool
    has_registry: bool


class Policy:
    """The section `Policy`."""

    def __init__(self, source: Source, desk: Desk, decisions: Callable[[], RecentDecisions]) -> None:
        self._source, self._desk, self._decisions = source, desk, decisions
        self._lock = threading.Lock()
        self._known: tuple[float, list[frozenset[str]], str] = (float("-inf"), [], "")

    def section(self) -> Section:
        """Returns the section."""
        text = Field("text", "The text of [policy]", kind="lines", chars_max=_TEXT_CHARS_MAX, is_required=True)
        why = Field("why", "Why, for the log", is_required=True)
        passphrase = Field("passphrase", "The passphrase of your key")
        pages = (
            Page("/policy", self.show, "The policy, and how often each rule fires", view=PolicyView),
            Page("/policy/check", self.check, "Check a draft", "POST", DRAFTERS, (text,), _BYTES_MAX, PolicyView),
            Page(
                "/policy/propose",
                self.propose,
                "Propose it",
                "POST",
                PROPOSERS,
                (text, why, passphrase),
                _BYTES_MAX,
            ),
        )
        return Section("policy", "Policy", "/policy", pages)

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

    def propose(self, visit: Visit) -> Done:
        """Propose a draft to the registry, with the champion's bundle."""
        facts, why = self._facts(visit.text("text")), visit.text("why")
        done = self._desk.propose_policy(visit.person, visit.text("passphrase"), facts, why, visit.now_ms)
        visit.did("proposed", f"policy:{facts.digest[:12]}", why=why)
        return Done("/models", f"{done}.")

    def _facts(self, text: str) -> Any:
        source = draft_source(text)
        return policy_facts(self._source, source, bundle_thresholds(self._source, None))

    def _shown(self, visit: Visit, draft: str, problem: str, *, is_checked: bool) -> Shown:
        settings = self._source.section("policy", PolicySettings)
        fired, trouble = self._sample(visit.now_ms)
        counts = Counter(rule for rules in fired for rule in rules)
        alone = Counter(rule for rules in fired if len(rules) == 1 for rule in rules)
        pairs = Counter(pair for rules in fired for pair in combinations(sorted(rules), 2))
        names = {rule.name for rule in settings.rules}
        view = PolicyView(
            review_at=settings.review_at,
            decline_at=settings.decline_at,
            rules=tuple(
                RuleRow(one.name, one.when, one.action, one.override, counts[one.name], alone[one.name])
                for one in settings.rules
            ),
            segments=tuple((one.name, one.when) for one in settings.segments),
            lists=tuple((name, len(entries)) for name, entries in read_lists(settings.lists).items()),
            sample=len(fired),
            sample_trouble=trouble,
            unknown_rules=tuple((name, count) for name, count in counts.most_common() if name not in names),
            overlaps=tuple(Overlap(*pair, count) for pair, count in pairs.most_common(_OVERLAPS_MAX)),
            draft=draft,
            problem=problem,
            is_checked=is_checked,
            may_draft=visit.person.may(DRAFTERS),
            may_propose=visit.person.may(PROPOSERS),
            has_registry=self._desk.has_registry,
        )
        return Shown("policy/policy.html", view, "Policy")

    def _sample(self, now_ms: int) -> tuple[Sequence[frozenset[str]], str]:
        """Returns the rules of each decision of a sample of the last hour, at most a minute old, or why not."""
        with self._lock:
            read_s, fired, trouble = self._known
            if time.monotonic() - read_s < _KEPT_S:
                return fired, trouble
            try:
                with closing(self._decisions()) as decisions:
                    fired, trouble = [rules_of(one) for one in decisions.between(now_ms - _HOUR_MS, now_ms)], ""
            except (TemporaryFailure, Misconfigured) as error:
                fired, trouble = [], str(error)
            self._known = (time.monotonic(), fired, trouble)
            return fired, trouble


def rules_of(decision: Mapping[str, Any]) -> frozenset[str]:
    """Returns the rules among a decision's reasons."""
    return frozenset(one.removeprefix(_RULE) for one in decision["reasons"] if one.startswith(_RULE))


def draft_source(text: str) -> Source:
    """Returns a draft as settings. Raises Misconfigured, also for other sections and for lists that name files."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"the draft is not TOML: {error}") from error
    if set(content) != {"policy"} or not isinstance(content["policy"], dict):
        raise Misconfigured("the draft: wanted the section [policy] and no other")
    source = Source(content, {}, "the draft")
    settings = source.section("policy", PolicySettings)
    for name, entries in settings.lists.items():
        if any(entry.startswith("@") for entry in entries):
            raise PageRefused(400, f"The list {name} names a file: wanted its entries in the draft.")
    return source
