"""Replays drafts of the policy on the decisions of the last week, and counts the actions that would change.

    week of 4,200,000 decisions ──► 300 of each hour, 50,000 in all ──► each decided twice, from its kept vector
                                                                         the policy now:  review
                                                                         the draft:       decline    one that changes
    of 50,000: 120 review -> decline, 71 of them known fraud             for the week: 10,080, 5,960

1. The index says how many decisions each hour had. From each hour a run of decisions is read, which begins at a time
   that the hour's number gives: the same week gives the same sample.
2. Policy and draft decide about the facts that each decision holds. Models, profiles and clocks do not matter.
3. Counts and money of an hour are multiplied by the share of the hour that was read.

One replay runs at a time, in one thread, which rests as long as it has worked. It holds some hundred decisions at once.
Replays are in memory: a console that starts again has none.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from paywarden.ops.console.background_values import FAULT
from paywarden.schemas.errors import InvalidEvent, Misconfigured, PaywardenError, TemporaryFailure

if TYPE_CHECKING:
    from paywarden.features.profiles.money import RateTable
    from paywarden.models.policy.policy import Facts, Policy
    from paywarden.streams.decision_index.index import DecisionIndex
    from paywarden.streams.decision_index.search import Place

DAYS = 7
DECISIONS_MAX = 50_000
"""A replay decides about at most this many decisions: some ten seconds of one core."""
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_CHANGED_MAX = 50
_KEPT_MAX, _WAITING_MAX = 20, 5
_AT_ONCE = 500
# After each batch the thread rests as long as the batch took, so that pages have a core.
_REST_SHARE = 1.0

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"


@dataclass(frozen=True)
class ActionCount:
    """Payments of the week with an action: as they were decided, by the policy now, and by the draft."""

    action: str
    decided: int
    now: int
    draft: int
    now_minor: int
    draft_minor: int


@dataclass(frozen=True)
class Transition:
    """Payments of the week whose action would change. Money in minor units of the reference currency."""

    before: str
    after: str
    payments: int
    money_minor: int
    frauds: int
    fraud_minor: int
    genuine: int
    genuine_minor: int


@dataclass(frozen=True)
class ChangedDecision:
    """A decision of the sample that the draft changes. `place` is its address; `outcome` is empty while not known."""

    place: str
    payment_id: str
    amount_minor: int
    currency: str
    score: float
    before: str
    after: str
    why: tuple[str, ...]
    outcome: str


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay. All counts are of the week, except `sample` and `left_out`.

    `changed`: the changed decisions of the sample with the most money. `left_out`: decisions of the sample that lack a
    value which the conditions read, by reason. `review_cost_minor`: the cost of the reviews that the draft adds a day,
    less those that it saves.
    """

    first_ms: int
    last_ms: int
    week: int
    sample: int
    actions: tuple[ActionCount, ...]
    transitions: tuple[Transition, ...]
    changed: tuple[ChangedDecision, ...]
    left_out: Mapping[str, int]
    reviews_a_day_now: float
    reviews_a_day_draft: float
    review_cost_minor: int


@dataclass(frozen=True)
class Replay:
    """A replay. `done`: the share of the week that it has gone through. `problem`: why it failed."""

    replay_id: str
    by: str
    asked_ms: int
    draft: str
    digest: str
    state: str = WAITING
    done: float = 0.0
    problem: str = ""
    result: ReplayResult | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in (DONE, FAILED, CANCELLED)


class SampledDecisions(Protocol):
    """The decisions of the index, and the policies and rates to decide about them again."""

    @property
    def rates(self) -> RateTable:
        """The exchange rates of the settings."""

    @property
    def catalogue_digest(self) -> str:
        """The catalogue of the settings, which conditions name features of."""

    def index(self) -> DecisionIndex:
        """Returns the index. Raises TemporaryFailure if its database cannot be used now."""

    def decoded(self, body: bytes) -> Mapping[str, Any]:
        """Returns a decision of the index in the form of its topic. Raises InvalidEvent."""

    def policies(self, draft: str) -> tuple[Policy, Policy]:
        """Returns the policy of the settings, and that of a draft. Raises Misconfigured."""


class Replays:
    """The replays of this console. Thread-safe. `step` is the work of a thread."""

    def __init__(
        self,
        decided: SampledDecisions,
        *,
        review_cost_minor: int,
        decisions_max: int = DECISIONS_MAX,
    ) -> None:
        self._decided, self._review_cost, self._max = decided, review_cost_minor, decisions_max
        self._replays: OrderedDict[str, Replay] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, draft: str, digest: str, by: str, now_ms: int) -> Replay:
        """Add a replay of a draft. Raises TemporaryFailure if too many wait."""
        made = Replay(secrets.token_hex(6), by, now_ms, draft, digest)
        with self._lock:
            if sum(one.state == WAITING for one in self._replays.values()) >= _WAITING_MAX:
                raise TemporaryFailure(f"{_WAITING_MAX} replays wait already: cancel one of them, or ask again later")
            self._replays[made.replay_id] = made
            over = [one.replay_id for one in self._replays.values() if one.is_over]
            for replay_id in over[: max(0, len(self._replays) - _KEPT_MAX)]:
                del self._replays[replay_id]
        return made

    def find(self, replay_id: str) -> Replay | None:
        """Returns the replay of an id; None without one."""
        with self._lock:
            return self._replays.get(replay_id)

    def all(self) -> list[Replay]:
        """Returns the replays, the newest first."""
        with self._lock:
            return list(reversed(self._replays.values()))

    def cancel(self, replay_id: str) -> bool:
        """End a replay; returns whether there was anything to end. A running one ends after its batch."""
        with self._lock:
            found = self._replays.get(replay_id)
            if found is None or found.is_over:
                return False
            self._replays[replay_id] = replace(found, state=CANCELLED)
        return True

    def step(self, now_ms: int, stop: threading.Event) -> bool:
        """Run the replay that has waited longest, to its end or until `stop`; returns whether there was one."""
        with self._lock:
            found = next((one for one in self._replays.values() if one.state == WAITING), None)
        if found is None or not self._change(found.replay_id, state=RUNNING):
            return False
        try:
            now, draft = self._decided.policies(found.draft)
            tally = _Tally(now, draft, self._decided, last_ms=now_ms)
            for share in tally.run(self._max):
                if not self._change(found.replay_id, done=share) or stop.wait(tally.batch_s * _REST_SHARE):
                    return True
        except PaywardenError as error:
            self._change(found.replay_id, state=FAILED, problem=str(error))
        except Exception:
            # The top of the thread logs it. A replay that nobody works on must not look as if it ran.
            self._change(found.replay_id, state=FAILED, problem=FAULT)
            raise
        else:
            self._change(found.replay_id, state=DONE, done=1.0, result=tally.result(self._review_cost))
        return True

    def _change(self, replay_id: str, **values: Any) -> bool:
        """Change a replay that is not over; returns False for one that somebody has cancelled."""
        with self._lock:
            found = self._replays.get(replay_id)
            if found is None or found.is_over:
                return False
            self._replays[replay_id] = replace(found, **values)
        return True


@dataclass
class _Sums:
    """Weighted sums: payments and money."""

    payments: float = 0.0
    minor: float = 0.0

    def add(self, weight: float, minor: int) -> None:
        self.payments += weight
        self.minor += weight * minor


@dataclass
class _Changes:
    all: _Sums = field(default_factory=_Sums)
    fraud: _Sums = field(default_factory=_Sums)
    genuine: _Sums = field(default_factory=_Sums)


class _Tally:
    """Goes through a week, and sums up."""

    def __init__(self, now: Policy, draft: Policy, decided: SampledDecisions, *, last_ms: int) -> None:
        from paywarden.scoring.engine.recomputation import decision_fields

        self._policies, self._decided = (now, draft), decided
        self._last_ms, self._first_ms = last_ms, last_ms - DAYS * _DAY_MS
        self._features_min = max(now.features_min, draft.features_min)
        if unknown := sorted((now.fields | draft.fields) - decision_fields()):
            raise Misconfigured(f"conditions read fields that no decision holds: {', '.join(unknown)}")
        self._week, self._sample = 0, 0
        self._actions: dict[tuple[str, str], _Sums] = {}
        self._changes: dict[tuple[str, str], _Changes] = {}
        self._changed: list[tuple[int, ChangedDecision]] = []
        self._left_out: dict[str, int] = {}
        self.batch_s = 0.0

    def run(self, decisions_max: int) -> Iterator[float]:
        """Yields after each batch the share of the week that is done."""
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
                self._leave_out("their records cannot be read")
                continue
            facts = self._facts(decision)
            if facts is None:
                continue
            outcome = known.get(place.payment_hash)
            self._take(place, decision, facts, "" if outcome is None else outcome.label, weight)

    def _facts(self, decision: Mapping[str, Any]) -> Facts | None:
        """Returns the values behind the decision. None where the conditions lack a value; the reason is counted."""
        from paywarden.models.policy.policy import MODEL_ABSENT, Facts
        from paywarden.scoring.engine.recomputation import request_of, vector_of

        flags = tuple(decision["flags"])
        try:
            vector = vector_of(decision)
        except InvalidEvent:
            self._leave_out("their vectors cannot be read")
            return None
        if self._features_min and decision["catalogue_digest"] != self._decided.catalogue_digest:
            self._leave_out("they were made with another catalogue")
            return None
        if len(vector) < self._features_min:
            self._leave_out("their vectors lack features" if len(vector) else "their vectors were not kept")
            return None
        request = request_of(decision)
        amount = self._decided.rates.convert(request.amount_minor, request.currency, request.event_time_ms)
        return Facts(request, amount, vector, None if MODEL_ABSENT in flags else decision["score"], flags)

    def _take(self, place: Place, decision: Mapping[str, Any], facts: Facts, outcome: str, weight: float) -> None:
        self._sample += 1
        minor = facts.amount or 0
        now, draft = (policy.decide(facts) for policy in self._policies)
        named = (("decided", decision["action"]), ("now", now.action), ("draft", draft.action))
        for whose, action in named:
            self._actions.setdefault((whose, action), _Sums()).add(weight, minor)
        if now.action == draft.action:
            return
        change = self._changes.setdefault((now.action, draft.action), _Changes())
        change.all.add(weight, minor)
        if outcome in ("fraud", "genuine"):
            (change.fraud if outcome == "fraud" else change.genuine).add(weight, minor)
        self._changed.append(
            (
                minor,
                ChangedDecision(
                    place.to_text(),
                    decision["payment_id"],
                    decision["amount_minor"],
                    decision["currency"],
                    decision["score"],
                    now.action,
                    draft.action,
                    tuple(draft.reasons or now.reasons),
                    outcome,
                ),
            )
        )
        if len(self._changed) > 10 * _CHANGED_MAX:
            self._changed = self._most_money()

    def _most_money(self) -> list[tuple[int, ChangedDecision]]:
        return sorted(self._changed, key=lambda one: (-one[0], one[1].place))[:_CHANGED_MAX]

    def _leave_out(self, why: str) -> None:
        """Count a decision that the conditions cannot be asked about."""
        self._left_out[why] = self._left_out.get(why, 0) + 1

    def result(self, review_cost_minor: int) -> ReplayResult:
        """Returns the result of the replay."""
        from paywarden.models.policy.policy import ACTIONS

        def of(whose: str, action: str) -> _Sums:
            return self._actions.get((whose, action), _Sums())

        actions = tuple(
            ActionCount(
                action,
                *(round(of(whose, action).payments) for whose in ("decided", "now", "draft")),
                *(round(of(whose, action).minor) for whose in ("now", "draft")),
            )
            for action in ACTIONS
        )
        transitions = tuple(
            Transition(
                *actions_,
                round(one.all.payments),
                round(one.all.minor),
                round(one.fraud.payments),
                round(one.fraud.minor),
                round(one.genuine.payments),
                round(one.genuine.minor),
            )
            for actions_, one in sorted(self._changes.items(), key=lambda item: -item[1].all.minor)
        )
        reviews_now, reviews_draft = (of(whose, "review").payments / DAYS for whose in ("now", "draft"))
        return ReplayResult(
            first_ms=self._first_ms,
            last_ms=self._last_ms,
            week=self._week,
            sample=self._sample,
            actions=actions,
            transitions=transitions,
            changed=tuple(one for _, one in self._most_money()),
            left_out=dict(self._left_out),
            reviews_a_day_now=reviews_now,
            reviews_a_day_draft=reviews_draft,
            review_cost_minor=round((reviews_draft - reviews_now) * review_cost_minor),
        )


def _part_of_hour(hour: int, share: float) -> tuple[int, int]:
    """Returns the first and the last millisecond of a share of an hour, at a place that the hour's number gives."""
    start = hour * _HOUR_MS
    if share >= 1.0:
        return start, start + _HOUR_MS - 1
    length = max(1, math.ceil(_HOUR_MS * share))
    # The golden ratio spreads hours evenly over all parts of an hour.
    first = start + int(math.modf(hour * 0.6180339887498949)[0] * (_HOUR_MS - length))
    return first, first + length - 1
