"""Replays drafts of the policy on the decisions of the last week, and counts the actions that would change.

    week of 4,200,000 decisions ──► 300 of each hour, 50,000 in all ──► each decided twice, from its kept vector
                                                                         the policy now:  review
                                                                         the draft:       decline    one that changes
    of 50,000: 120 review -> decline, 71 of them known fraud             for the week: 10,080, 5,960

1. The index says how many decisions each hour had. From each hour a run of decisions is read, which begins at a time
   that the hour's number gives: the same week gives the same sample.
2. Policy and draft decide about the facts that each decision holds. Models, profiles and clocks do not matter.
3. Counts and money of an hour are multiplied by the share of the hour that was read.

One replay runs at a time (background.py), in one thread, which rests as long as it has worked. It holds some hundred
decisions at once.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paywarden.models.policy.policy import ACTIONS, MODEL_ABSENT, ConfiguredRule, Facts, Policy
from paywarden.ops.console.background import CANCELLED, FAILED, Job, Jobs
from paywarden.ops.console.policy.drafts import IndexedDecisions
from paywarden.ops.recomputation import decision_fields, request_of, vector_of
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.search import Place

DAYS = 7
DECISIONS_MAX = 50_000
"""A replay decides about at most this many decisions: some ten seconds of one core."""
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
HEAVY_SHARE = 0.1
"""A rule that declines a larger share of payments needs a second word."""
_CHANGED_MAX = 50
_MOST = 5
_AT_ONCE = 500
# After each batch the thread rests as long as the batch took, so that pages have a core.
_REST_SHARE = 1.0


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay. All counts cover the week, except `sample` and `left_out`. Money is in minor units.

    `actions`: payments as they were decided, by the policy now and by the draft. `transitions`: those whose action
    would change, with their known outcomes. `changed`: the changed decisions of the sample with the most money.
    `rules`: what each rule hits that the draft adds or changes, with the cards in the sample, the merchants and
    countries with most of the payments, and the other rules that hold for them. `review_s`: the median length of a
    review.
    `left_out`: decisions of the sample that lack a value which the conditions read, by reason. `review_cost_minor`: the
    cost of the reviews that the draft adds a day, less those that it saves.
    """

    first_ms: int
    last_ms: int
    week: int
    sample: int
    actions: tuple[Mapping[str, Any], ...]
    transitions: tuple[Mapping[str, Any], ...]
    changed: tuple[Mapping[str, Any], ...]
    left_out: Mapping[str, int]
    rules: tuple[Mapping[str, Any], ...]
    review_s: float | None
    reviews_a_day_now: float
    reviews_a_day_draft: float
    review_cost_minor: int

    @property
    def heavy(self) -> list[str]:
        """Return what declines more than a tenth of all payments: new or changed rules, or the whole draft."""
        declines = next((one for one in self.actions if one["action"] == "decline"), None)
        total = sum(one["draft"] for one in self.actions)
        found = [f"the rule {one['name']}" for one in self.rules if one["is_heavy"]]
        if declines is not None and total and declines["draft"] > max(declines["now"], HEAVY_SHARE * total):
            found.append("the whole draft")
        return found

    @property
    def hours_a_day(self) -> float | None:
        """Return how many hours of reviewers the draft adds a day; None if nobody has reviewed."""
        added = self.reviews_a_day_draft - self.reviews_a_day_now
        return None if self.review_s is None else added * self.review_s / 3600


@dataclass(frozen=True, kw_only=True)
class Replay(Job):
    """A replay. `done` is a share of the week. `mines`: rules are mined first, and the draft has them; see `notes`."""

    replay_id: str
    draft: str
    digest: str
    result: ReplayResult | None = None
    mines: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MinedDraft:
    """A draft with mined rules, its digest, and lines that say what was found."""

    text: str
    digest: str
    notes: tuple[str, ...]


class DraftMiner(Protocol):
    """Mines a draft (ops/console/policy/mining.py)."""

    batch_s: float

    def run(self, decisions_max: int) -> Iterator[float]:
        """Yield after each batch the share of the week that is done."""

    def draft(self) -> MinedDraft:
        """Return the draft once the week is done."""


class Replays(Jobs[Replay]):
    """The replays of this console."""

    def __init__(
        self,
        decided: IndexedDecisions,
        *,
        review_cost_minor: int,
        decisions_max: int = DECISIONS_MAX,
        miner: Callable[[int], DraftMiner] | None = None,
    ) -> None:
        """`miner`: makes what mines a draft at a time; needed to ask for one."""
        super().__init__("replays")
        self._decided, self._review_cost, self._max, self._miner = decided, review_cost_minor, decisions_max, miner

    def ask(self, draft: str, digest: str, by: str, now_ms: int, *, mines: bool = False) -> Replay:
        """Add a replay of a draft, or of one that is mined first. Raises TemporaryFailure if too many wait."""
        replay_id = secrets.token_hex(6)
        made = Replay(replay_id=replay_id, by=by, asked_ms=now_ms, draft=draft, digest=digest, mines=mines)
        return self._add(replay_id, made)

    def newest_of(self, digest: str) -> Replay | None:
        """Return the newest replay of a draft that has not failed; None without one."""
        ended = (FAILED, CANCELLED)
        return next((one for one in self.all() if one.digest == digest and one.state not in ended), None)

    def _run(self, job_id: str, job: Replay, now_ms: int, stop: threading.Event) -> Mapping[str, Any] | None:
        text = job.draft
        if job.mines:
            assert self._miner is not None
            miner = self._miner(now_ms)
            if not self._went_through(miner, job_id, stop):
                return None
            mined = miner.draft()
            text = mined.text
            if not self._change(job_id, draft=text, digest=mined.digest, notes=mined.notes):
                return None
        now, draft = self._decided.policies(text)
        tally = Tally(now, draft, self._decided, last_ms=now_ms)
        if not self._went_through(tally, job_id, stop):
            return None
        return {"result": tally.result(self._review_cost, self._decided.review_seconds(now_ms))}

    def _went_through(self, work: Tally | DraftMiner, replay_id: str, stop: threading.Event) -> bool:
        """Go through a week; return whether nobody ended it."""
        for share in work.run(self._max):
            if not self._change(replay_id, done=share) or stop.wait(work.batch_s * _REST_SHARE):
                return False
        return True


class Tally:
    """Goes through a week, and sums up."""

    def __init__(self, now: Policy, draft: Policy, decided: IndexedDecisions, *, last_ms: int) -> None:
        self._policies, self._decided = (now, draft), decided
        self._last_ms, self._first_ms = last_ms, last_ms - DAYS * _DAY_MS
        self._features_min = max(now.features_min, draft.features_min)
        if unknown := sorted((now.fields | draft.fields) - decision_fields()):
            raise Misconfigured(f"conditions read fields that no decision holds: {', '.join(unknown)}")
        self._week, self._sample = 0, 0
        # Weighted sums of payments and of their money: by who decides and the action, and by both actions and outcome.
        self._payments: Counter[tuple[str, ...]] = Counter()
        self._minor: Counter[tuple[str, ...]] = Counter()
        self._changed: list[tuple[int, dict[str, Any]]] = []
        self._left_out: Counter[str] = Counter()
        known = set(now.settings.rules)
        self._hits = {rule.name: _Hits(rule) for rule in draft.settings.rules if rule not in known}
        self.batch_s = 0.0

    def run(self, decisions_max: int) -> Iterator[float]:
        """Yield after each batch the share of the week that is done."""
        index = self._decided.index()
        hours = index.hours_between(self._first_ms, self._last_ms)
        self._week = sum(count for _, count in hours)
        each = max(1, decisions_max // max(1, len(hours)))
        for number, (hour, count) in enumerate(hours):
            began = time.perf_counter()
            first, last = _part_of_hour(hour, each / count)
            first, last = max(first, self._first_ms), min(last, self._last_ms)
            # Twice as many as an even hour has in this part: a larger burst is cut off.
            found = index.bodies_between(first, last, 2 * each)
            for start in range(0, len(found), _AT_ONCE):
                self._add(index, found[start : start + _AT_ONCE], count / len(found))
            self.batch_s = time.perf_counter() - began
            yield (number + 1) / len(hours)

    def _add(self, index: DecisionIndex, found: list[tuple[Place, bytes]], weight: float) -> None:
        known = index.outcomes_of({place.payment_hash for place, _ in found})
        for place, body in found:
            try:
                decision = self._decided.decoded(body)
            except InvalidEvent:
                self._left_out["their records cannot be read"] += 1
                continue
            facts = self._facts(decision)
            outcome = known.get(place.payment_hash)
            if facts is not None:
                self._take(place, decision, facts, "" if outcome is None else outcome.label, weight)

    def _facts(self, decision: Mapping[str, Any]) -> Facts | None:
        """Return the values behind the decision. None where the conditions lack a value; the reason is counted."""
        flags, why = tuple(decision["flags"]), ""
        try:
            vector = vector_of(decision)
        except InvalidEvent:
            self._left_out["their vectors cannot be read"] += 1
            return None
        if self._features_min and decision["catalogue_digest"] != self._decided.catalogue_digest:
            why = "they were made with another catalogue"
        elif len(vector) < self._features_min:
            why = "their vectors lack features" if len(vector) else "their vectors were not kept"
        if why:
            self._left_out[why] += 1
            return None
        request = request_of(decision)
        amount = self._decided.rates.convert(request.amount_minor, request.currency, request.event_time_ms)
        return Facts(request, amount, vector, None if MODEL_ABSENT in flags else decision["score"], flags)

    def _take(self, place: Place, decision: Mapping[str, Any], facts: Facts, outcome: str, weight: float) -> None:
        self._sample += 1
        minor = facts.amount or 0
        now, draft = (policy.decide(facts) for policy in self._policies)
        keys: list[tuple[str, ...]] = [("decided", decision["action"]), ("now", now.action), ("draft", draft.action)]
        if now.action != draft.action:
            keys += [(now.action, draft.action, which) for which in dict.fromkeys(("", outcome))]
            row = {name: decision[name] for name in ("payment_id", "amount_minor", "currency", "score")}
            row |= {"place": place.to_text(), "before": now.action, "after": draft.action, "outcome": outcome}
            self._changed.append((minor, {**row, "why": tuple(draft.reasons or now.reasons)}))
        holding = self._policies[1].holding(facts) if self._hits else []
        for name in holding:
            if name in self._hits:
                self._hits[name].add(decision, minor, outcome, weight, holding)
        for key in keys:
            self._payments[key] += weight  # type: ignore[assignment]
            self._minor[key] += weight * minor  # type: ignore[assignment]
        if len(self._changed) > 10 * _CHANGED_MAX:
            self._changed = self._most_money()

    def _most_money(self) -> list[tuple[int, dict[str, Any]]]:
        return sorted(self._changed, key=lambda one: (-one[0], one[1]["place"]))[:_CHANGED_MAX]

    def result(self, review_cost_minor: int, review_s: float | None = None) -> ReplayResult:
        """Return the result of the replay."""
        payments, minor = self._payments, self._minor
        actions = tuple(
            {
                "action": action,
                **{whose: round(payments[whose, action]) for whose in ("decided", "now", "draft")},
                **{f"{whose}_minor": round(minor[whose, action]) for whose in ("now", "draft")},
            }
            for action in ACTIONS
        )
        changes = sorted((key for key in payments if len(key) == 3 and not key[2]), key=lambda key: -minor[key])
        transitions = tuple(
            {
                "before": before,
                "after": after,
                "payments": round(payments[before, after, ""]),
                "money_minor": round(minor[before, after, ""]),
                "frauds": round(payments[before, after, "fraud"]),
                "fraud_minor": round(minor[before, after, "fraud"]),
                "genuine": round(payments[before, after, "genuine"]),
                "genuine_minor": round(minor[before, after, "genuine"]),
            }
            for before, after, _ in changes
        )
        reviews_now, reviews_draft = (payments[whose, "review"] / DAYS for whose in ("now", "draft"))
        return ReplayResult(
            first_ms=self._first_ms,
            last_ms=self._last_ms,
            week=self._week,
            sample=self._sample,
            actions=actions,
            transitions=transitions,
            changed=tuple(one for _, one in self._most_money()),
            left_out=dict(self._left_out),
            rules=tuple(
                hits.view(round(sum(payments["draft", action] for action in ACTIONS))) for hits in self._hits.values()
            ),
            review_s=review_s,
            reviews_a_day_now=reviews_now,
            reviews_a_day_draft=reviews_draft,
            review_cost_minor=round((reviews_draft - reviews_now) * review_cost_minor),
        )


class _Hits:
    """The payments that a rule holds for, weighted as the week has them; cards are those of the sample."""

    def __init__(self, rule: ConfiguredRule) -> None:
        self._rule = rule
        self._payments: Counter[str] = Counter()
        self._minor: Counter[str] = Counter()
        self._cards: set[str] = set()
        self._whom: dict[str, Counter[str]] = {"merchant_id": Counter(), "country": Counter(), "with": Counter()}

    def add(self, decision: Mapping[str, Any], minor: int, outcome: str, weight: float, holding: Sequence[str]) -> None:
        """Add a payment. `holding`: all rules that hold for it."""
        for label in dict.fromkeys(("", outcome)):
            self._payments[label] += weight  # type: ignore[assignment]
            self._minor[label] += weight * minor  # type: ignore[assignment]
        self._cards.add(decision["card_id"])
        others = [name for name in holding if name != self._rule.name]
        for kind, values in (
            ("merchant_id", [decision["merchant_id"]]),
            ("country", [decision["country"]]),
            ("with", others),
        ):
            for value in values:
                self._whom[kind][value or "none"] += weight  # type: ignore[assignment]

    def view(self, total: int) -> dict[str, Any]:
        """Return the hits. `total`: of all payments of the week."""
        share = self._payments[""] / total if total else 0.0
        return {
            "name": self._rule.name,
            "action": self._rule.action,
            "share": share,
            "is_heavy": self._rule.action == "decline" and share > HEAVY_SHARE,
            # A share of the sample's weights is exact to rounding.
            "is_all": share > 0.9999,
            "cards": len(self._cards),
            **{
                f"{name}{unit}": round(counted[label])
                for name, label in (("payments", ""), ("frauds", "fraud"), ("genuine", "genuine"))
                for unit, counted in (("", self._payments), ("_minor", self._minor))
            },
            **{
                kind: [(value, round(count)) for value, count in most.most_common(_MOST)]
                for kind, most in self._whom.items()
            },
        }


def _part_of_hour(hour: int, share: float) -> tuple[int, int]:
    """Return the first and the last millisecond of a share of an hour, at a place that the hour's number gives."""
    start = hour * _HOUR_MS
    if share >= 1.0:
        return start, start + _HOUR_MS - 1
    length = max(1, math.ceil(_HOUR_MS * share))
    # The golden ratio spreads hours evenly over all parts of an hour.
    first = start + int(math.modf(hour * 0.6180339887498949)[0] * (_HOUR_MS - length))
    return first, first + length - 1
