"""Which payments of a rollout are mature, and what they turned out to be: the same in any order of what comes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.policy import APPROVE, DECLINE
from paywarden.models.rollout.judgement import Finding, judge_outcomes
from paywarden.models.rollout.outcome_join import DAY_MS, JoinedDecisions, KnownOutcomes, OutcomeJoin
from paywarden.models.rollout.outcomes import outcome_counts
from paywarden.models.rollout.plan import plan_of
from paywarden.models.rollout.shares import CIRCLE

PLAN = plan_of([10, 50, 100], label_days=1.0)
STEPS_MS = [1_000, 2_000, 3_000]
# Arms of cards at 5, 30 and 80 % of the circle in each step.
ARMS = {0.05: (1, 1, 1), 0.3: (0, 1, 1), 0.8: (0, 0, 1)}


class Decided(NamedTuple):
    payment: int
    decided_ms: int
    place: float
    action: int

    @property
    def arm(self) -> int:
        step = max(0, self.decided_ms // 1_000 - 1)
        return ARMS[self.place][min(step, 2)]


class Told(NamedTuple):
    payment: int
    known_ms: int
    is_fraud: bool


def decisions_of(rows: list[Decided], arms: list[int] | None = None) -> JoinedDecisions:
    return JoinedDecisions(
        np.array([row.payment for row in rows], np.uint64),
        np.array([row.decided_ms for row in rows], np.int64),
        np.array([int(CIRCLE * row.place) for row in rows], np.uint64),
        np.array(arms or [row.arm for row in rows], np.int8),
        np.array([row.action for row in rows], np.int8),
        np.array([row.payment * 10 for row in rows], np.int64),
        np.array([row.payment % 3 == 0 for row in rows], np.bool_),
    )


def outcomes_of(rows: list[Told]) -> KnownOutcomes:
    return KnownOutcomes(
        np.array([row.payment for row in rows], np.uint64),
        np.array([row.known_ms for row in rows], np.int64),
        np.array([row.is_fraud for row in rows], np.bool_),
    )


# Few payments and few moments, so that rows often meet.
PAYMENTS = st.integers(1, 4)
DECIDED = st.lists(
    st.builds(
        Decided, PAYMENTS, st.sampled_from([900, 1_500, 1_600, 2_500, 3_500]), st.sampled_from(list(ARMS)),
        st.sampled_from([APPROVE, DECLINE]),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip
MOMENTS = st.sampled_from([1_500, DAY_MS, DAY_MS + 2_000, 2 * DAY_MS])
TOLD = st.lists(st.builds(Told, PAYMENTS, MOMENTS, st.booleans()), max_size=12)


@given(DECIDED, TOLD, MOMENTS, st.data())
def test_any_order_and_any_repetition_gives_what_one_payment_after_the_other_gives(
    decided: list[Decided], told: list[Told], now_ms: int, data: st.DataObject
) -> None:
    # At one moment a payment has one decision.
    decided = list({(row.payment, row.decided_ms): row for row in decided}.values())
    wanted = []
    for payment in sorted({row.payment for row in decided}):
        row = min((row for row in decided if row.payment == payment), key=lambda row: row.decided_ms)
        mature_ms, step = row.decided_ms + DAY_MS, row.decided_ms // 1_000 - 1
        if mature_ms > now_ms or step not in (0, 1):
            continue
        known = max(((each.known_ms, each.is_fraud) for each in told if each.payment == payment), default=None)
        if known is not None and known[0] > now_ms:
            known = None
        counted_ms = mature_ms if known is None else max(mature_ms, known[0])
        wanted.append((counted_ms, payment, step, row.arm, row.action, bool(known and known[1]), known is not None))
    join = OutcomeJoin(PLAN)
    for rows in (data.draw(st.permutations(decided)), decided):
        for row in rows:
            join.add_decisions(decisions_of([row]))
        join.mature(STEPS_MS, now_ms)
    for each in data.draw(st.permutations(told)):
        join.add_outcomes(outcomes_of([each]))
    found = join.mature(STEPS_MS, now_ms)
    columns = (found.amount // 10, found.step, found.arm, found.action, found.is_fraud, found.is_labelled)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == [row[1:] for row in sorted(wanted)]


def many(count: int, *, frauds: float) -> tuple[JoinedDecisions, KnownOutcomes]:
    """Returns decisions of step 1, and the frauds among them; the candidate misses `frauds` times as many."""
    random = np.random.default_rng(4)
    position = (random.random(count) * CIRCLE).astype(np.uint64)
    arm = (position < CIRCLE // 2).astype(np.int8)
    payment, decided_ms = np.arange(count, dtype=np.uint64), np.full(count, 2_500)
    action = np.where(random.random(count) < 0.03, DECLINE, APPROVE).astype(np.int8)
    rows = np.flatnonzero(random.random(count) < 0.005 * np.where(arm, frauds, 1.0))
    known = KnownOutcomes(payment[rows], np.full(len(rows), DAY_MS // 2), np.ones(len(rows), np.bool_))
    return JoinedDecisions(
        payment, decided_ms, position, arm, action, np.full(count, 5_000), np.zeros(count, bool)
    ), known


def test_labels_decide_and_the_lack_of_labels_decides_nothing() -> None:
    findings = {}
    for name, frauds, is_told in (("same", 1.0, True), ("worse", 2.0, True), ("silence", 2.0, False)):
        decided, known = many(60_000, frauds=frauds)
        join = OutcomeJoin(PLAN)
        join.add_decisions(decided)
        if is_told:
            join.add_outcomes(known)
        for moment, now_ms in (("early", DAY_MS // 2), ("mature", 2 * DAY_MS)):
            judgement = judge_outcomes(PLAN, outcome_counts(PLAN, join.mature(STEPS_MS, now_ms)))
            findings[name, moment] = judgement.finding
    assert findings == {
        ("same", "early"): Finding.NO_DATA,
        ("same", "mature"): Finding.WITHIN,
        ("worse", "early"): Finding.NO_DATA,
        ("worse", "mature"): Finding.HARM,
        ("silence", "early"): Finding.NO_DATA,
        ("silence", "mature"): Finding.NO_DATA,
    }
