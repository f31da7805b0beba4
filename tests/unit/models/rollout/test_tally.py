"""The cards of a step: each counts once, in the arm that decided first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.rollout_tally import DAY_MS, StepTally
from paywarden.models.rollout.shares import CIRCLE, arm_end, arms_at
from paywarden.schemas.errors import InvalidEvent

PLAN = RolloutPlan()
STEP, START_MS = 2, 1_700_000_000_000
REVIEW, DECLINE = (1 << [measure.name for measure in PLAN.measures].index(name) for name in ("review", "decline"))
# Cards of the champion, of the candidate since this step, and of the candidate since an earlier one.
CHAMPION_CARD, CANDIDATE_CARD, EARLIER_CARD = (int(CIRCLE * share) for share in (0.7, 0.07, 0.03))
Payment = tuple[int, int, int]


def tally_of(payments: Sequence[Payment], parts: int = 1) -> StepTally:
    """Returns a tally of (position, events, ms since the start), added in order of time in some parts."""
    tally = StepTally(PLAN, STEP, START_MS)
    rows = np.array(sorted(payments, key=lambda payment: payment[2]), dtype=object).reshape(-1, 3)
    for part in np.array_split(rows, parts):
        positions = part[:, 0].astype(np.uint64)
        arms = arms_at(positions, PLAN.steps[STEP])
        tally.add(positions, arms, part[:, 1].astype(np.uint64), START_MS + part[:, 2].astype(np.int64))
    return tally


def test_the_worked_example_of_the_module() -> None:
    payments = [(CANDIDATE_CARD, events, ms) for ms, events in enumerate((0, 0, DECLINE, DECLINE))]
    counts = tally_of([*payments, (CHAMPION_CARD, DECLINE, 9)]).counts(START_MS + 10)
    decline = [measure.name for measure in PLAN.measures].index("decline")
    assert counts.cards.tolist() == [1, 1]
    assert counts.first[decline].tolist() == [1, 0]
    assert counts.step[decline].tolist() == counts.day[decline].tolist() == [1, 1]


def test_a_card_of_an_earlier_step_does_not_count() -> None:
    assert tally_of([(EARLIER_CARD, DECLINE, 1)]).counts(START_MS + 2).cards.tolist() == [0, 0]


def test_a_card_keeps_the_arm_that_decided_first() -> None:
    tally = StepTally(PLAN, STEP, START_MS)
    for ms, arm in ((1, 0), (2, 1)):
        tally.add(
            np.array([CHAMPION_CARD], np.uint64), np.array([arm], np.int8), np.array([DECLINE], np.uint64),
            np.array([START_MS + ms]),
        )  # fmt: skip
    counts = tally.counts(START_MS + 3)
    assert (counts.cards.tolist(), counts.step.sum(), tally.switched) == ([1, 0], 1, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([int(CIRCLE * share / 20) for share in range(20)]),
            st.sampled_from([0, REVIEW, DECLINE, REVIEW | DECLINE]),
            st.integers(-5, 3 * DAY_MS),
        ),
        unique_by=lambda payment: payment[2],
        max_size=40,
    ),
    st.integers(1, 5),
)
def test_counts_are_those_of_a_plain_loop_however_payments_are_parted(payments: list[Payment], parts: int) -> None:
    counts = tally_of(payments, parts).counts(START_MS + 3 * DAY_MS)
    seen: set[int] = set()
    of_step: set[tuple[int, int]] = set()
    first = 0
    for position, events, ms in sorted(payments, key=lambda payment: payment[2]):
        if ms < 0 or position < arm_end(PLAN.steps[STEP - 1]):
            continue
        if position not in seen:
            first += events.bit_count()
        seen.add(position)
        of_step |= {(position, bit) for bit in (REVIEW, DECLINE) if events & bit}
    assert counts.cards.sum() == len(seen)
    assert counts.first.sum() == first
    assert counts.step.sum() == len(of_step)


def test_another_arm_is_refused_by_name() -> None:
    with pytest.raises(InvalidEvent, match="arm: wanted 0 or 1, got another arm"):
        StepTally(PLAN, 0, START_MS).add(
            np.array([1], np.uint64), np.array([2], np.int8), np.array([0], np.uint64), np.array([START_MS])
        )
