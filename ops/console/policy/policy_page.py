"""The page of the policy: its rules, the catches of each rule by week, and the drafts (draft_page.py).

How often a rule fires comes from a sample of the last hour's decisions, which name their rules among their reasons. The
builder of rules shows today's values of each name from the same sample. What a rule caught comes from the index of
decisions and outcomes, as of at most a minute ago.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.intervals import Interval, wilson_interval
from paywarden.models.policy.lists import read_lists
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.ops.console.background import Kept
from paywarden.ops.console.exports import export_of
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.page_rows import Done, Page, PageRefused, Section, Shown, Visit, not_found
from paywarden.ops.console.policy.draft_page import DRAFTERS, DraftPages, Spread
from paywarden.ops.console.policy.drafts import IndexedDecisions
from paywarden.ops.console.policy.mining import RuleMiner
from paywarden.ops.console.policy.replays import DAYS, Replay, Replays
from paywarden.ops.console.policy.saved_drafts import SavedDrafts
from paywarden.ops.console.rendering import path_part
from paywarden.ops.recomputation import vector_of
from paywarden.ops.wiring import bundle_thresholds
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from paywarden.streams.decision_index.rule_catches import RuleCatch

_HOUR_MS, _DAY_MS, _KEPT_MS = 3_600_000, 86_400_000, 60_000
_OVERLAPS_MAX = 20
_WEEKS = 12
_RULE = "rule:"
_QUANTILES = (0.5, 0.95, 0.99)
_FREQUENT, _FREQUENT_FIELDS = 4, ("currency", "mcc", "country", "channel")
_CATCH = ("fired", "frauds", "fraud_minor", "genuine", "genuine_minor", "unknown", "unknown_minor", "fraud_share")


@dataclass(frozen=True)
class Recent:
    """A sample of the last hour: the rules that fired for each decision and its policy, and the values of each name.

    `spread`: for a number its median and what 19 of 20 and 99 of 100 are below, for a text the most frequent values.
    """

    fired: list[tuple[frozenset[str], str]]
    spread: Spread


class RecentDecisions(Protocol):
    """The source of decisions: streams/alerts/samples.py, or a list in tests."""

    def between(self, first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        """See DecisionSampler."""

    def close(self) -> None:
        """See DecisionSampler."""


class PolicySection:
    """The section `Policy`."""

    def __init__(
        self,
        source: Source,
        desk: Desk,
        decisions: Callable[[], RecentDecisions],
        decided: IndexedDecisions,
        saved: SavedDrafts,
    ) -> None:
        """`decisions`: a sample of the newest. `decided`: those of the index."""
        self._source, self._desk, self._decisions, self._decided = source, desk, decisions, decided
        self._settings = source.section("policy", PolicySettings)
        # Kafka may take seconds to give a sample, and a page does not wait for it. Each decision of the sample: the
        # rules that fired for it, and the policy that they are of.
        self.fired: Kept[Recent] = Kept(self._sampled, empty=Recent([], {}), old_ms=_KEPT_MS)
        self.catches: Kept[list[RuleCatch]] = Kept(self._caught, empty=[], old_ms=_KEPT_MS)
        costs = source.section("costs", CostSettings)
        self.replays = Replays(
            decided,
            review_cost_minor=costs.review_cost_minor,
            miner=lambda last_ms: RuleMiner(decided, costs, last_ms=last_ms),
        )
        self.drafts = DraftPages(source, desk, decided, saved, self.replays, self._spread_now)

    def _spread_now(self, now_ms: int) -> Spread:
        return self.fired.known(now_ms).spread

    def section(self) -> Section:
        """Return the section."""
        one = "/policy/replays/{replay_id}"
        pages = (
            Page("/policy", self.show, "The policy, and the catches of each rule"),
            Page("/policy/mine", self.mine, "Mine rules from the last week's missed frauds", "POST", DRAFTERS),
            Page(one, self.show_replay, "A replay of a draft, and its result", roles=DRAFTERS),
            Page(f"{one}/version", self.show_replay_version, "A number that changes with it", roles=DRAFTERS),
            Page(f"{one}/cancel", self.cancel_replay, "End a replay", "POST", DRAFTERS),
            *self.drafts.pages(),
            rule := Page("/policy/rules/{rule}", self.show_rule, "What a rule caught by week"),
            export_of(rule, "weeks"),
        )
        return Section("policy", "Policy", "/policy", pages, background=(self.replays.work,))

    def show_rule(self, visit: Visit) -> Shown:
        """Show what a rule caught in each of the last weeks."""
        name = visit.path["rule"]
        weeks = self._decided.index().rule_weeks(name, visit.now_ms - _WEEKS * DAYS * _DAY_MS)
        view = {
            "name": name,
            "rule": next((one for one in self._settings.rules if one.name == name), None),
            "weeks": [
                {
                    "week_ms": one.since_ms,
                    **{part: getattr(one, part) for part in _CATCH},
                    "fraud_share_low": interval[0] if (interval := _interval(one)) else None,
                    "fraud_share_high": interval[1] if interval else None,
                    "is_all": one.is_all,
                }
                for one in weeks
            ],
            "csv_path": visit.csv_address(f"/policy/rules/{path_part(name)}", {}),
            "weeks_max": _WEEKS,
        }
        return Shown("policy/rule.html", view, f"Rule {name}")

    def mine(self, visit: Visit) -> Done:
        """Begin to mine rules, and then to replay the policy with them."""
        made = self.replays.ask("", "", visit.person.name, visit.now_ms, mines=True)
        visit.did("mined", "policy", replay=made.replay_id)
        view = {"replay_id": made.replay_id}
        return Done(f"/policy/replays/{made.replay_id}", "You have asked for rules from missed frauds.", view)

    def show_replay(self, visit: Visit) -> Shown:
        """Show a replay: its progress, or its result."""
        found = self._replay(visit)
        is_own = found.by == visit.person.name and not (found.mines and self._settings.lists)
        if not (is_own or visit.person.sees_cards):
            # Entries of lists may be ids of cards. A mined draft has the lists of the settings.
            found = replace(found, draft="")
        view = {
            "replay": found,
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

    def show(self, visit: Visit) -> Shown:
        """Show the policy, a sample of decisions, what rules caught, and the drafts.

        A threshold of 0 is that of the bundle; `bundle_thresholds` are both of these, 0 where they are not known.
        """
        settings, sample = self._settings, self.fired.known(visit.now_ms).fired
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
            "drafts": self.drafts.all() if visit.person.may(DRAFTERS) else [],
            "may_draft": visit.person.may(DRAFTERS),
        }
        return Shown("policy/policy.html", view, "Policy")

    def _sampled(self, now: int) -> Recent:
        with closing(self._decisions()) as decisions:
            found = decisions.between(now - _HOUR_MS, now)
        return Recent([(rules_of(one), one["policy_digest"]) for one in found], self._values(found))

    def _values(self, found: Sequence[Mapping[str, Any]]) -> Spread:
        """Return the values of the names in decisions of the settings' catalogue."""
        kept = [one for one in found if one.get("vector")]
        if not kept:
            return {}
        digest, names = self._decided.catalogue_digest, [one.name for one in self._decided.catalogue.features]
        vectors = [vector_of(one) for one in kept if one["catalogue_digest"] == digest]
        columns = {"score": np.array([one["score"] for one in kept])}
        matrix = np.array([one for one in vectors if len(one) == len(names)], dtype=np.float64).reshape(-1, len(names))
        columns |= {name: matrix[:, place] for place, name in enumerate(names)}
        spread: dict[str, tuple[Any, ...]] = {}
        for name, column in columns.items():
            known = column[np.isfinite(column)]
            if len(known):
                spread[name] = tuple(map(float, np.quantile(known, _QUANTILES, method="higher")))
        for name in _FREQUENT_FIELDS:
            counted = Counter(one[name] for one in kept if one.get(name))
            spread[name] = tuple((value, count / len(kept)) for value, count in counted.most_common(_FREQUENT))
        return spread

    def _caught(self, now: int) -> list[RuleCatch]:
        index = self._decided.index()
        return [index.rule_catch(rule.name, now - DAYS * _DAY_MS) for rule in self._settings.rules]


def _interval(caught: RuleCatch) -> Interval | None:
    known = caught.frauds + caught.genuine
    return wilson_interval(caught.frauds / known, known) if known else None


def rules_of(decision: Mapping[str, Any]) -> frozenset[str]:
    """Return the rules among a decision's reasons."""
    return frozenset(one.removeprefix(_RULE) for one in decision["reasons"] if one.startswith(_RULE))
