"""The finding of a look: harm, a wrong split, a candidate within its margin, or nothing yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.rollout.judgement import (
    Finding,
    Judgement,
    OutcomeCounts,
    harm_evidence,
    judge,
    judge_outcomes,
    judgement_of,
    judgement_record,
    within_margin,
)
from paywarden.models.rollout.plan import RolloutPlan, plan_of
from paywarden.models.rollout.rollout_tally import StepCounts
from paywarden.schemas.errors import Misconfigured

PLAN = RolloutPlan(segments=("country=FR",))
NAMES = [measure.name for measure in PLAN.measures]
STEP = 1
SHARES = {"slow": 0.01, "flag": 0.01, "review": 0.03, "decline": 0.02, "score_upper": 0.1, "score_top": 0.01}


def counts_of(
    cards: int,
    *,
    ratios: Mapping[str, float] | None = None,
    split: float = 1.0,
    day: int = 1,
    step: int = STEP,
    plan: RolloutPlan = PLAN,
) -> StepCounts:
    """Returns counts as expected of this many cards, with the candidate's events multiplied by `ratios`."""
    p = plan.comparing_share(step)
    arms = np.array([cards * (1 - p), cards * p * split])
    events = np.array([arms * SHARES.get(measure.name, 0.0) for measure in plan.measures])
    for name, ratio in (ratios or {}).items():
        events[[measure.name for measure in plan.measures].index(name), 1] *= ratio
    first = np.rint(events).astype(np.int64)
    return StepCounts(np.rint(arms).astype(np.int64), first, first, first, np.array(day))


@pytest.mark.parametrize(
    ("counts", "finding", "line"),
    [
        (counts_of(0), Finding.NO_DATA, "no data: 0 cards of the candidate, 0 of the champion"),
        (counts_of(1_000), Finding.NO_DATA, "no data: 40 cards"),
        (counts_of(6_000), Finding.INCONCLUSIVE, "not known yet: slow, flag not within the margin"),
        (counts_of(200_000), Finding.WITHIN, "every measure is within its margin"),
        (counts_of(200_000, ratios={"decline": 2}), Finding.HARM, "decline is more frequent with the candidate (1."),
        (counts_of(400_000, ratios={"review": 0.3}), Finding.HARM, "review is less frequent with the candidate (0.2"),
        (counts_of(200_000, ratios={"error": 1}, split=0.8), Finding.MISMATCH, "the cards are not split"),
        (counts_of(200_000, split=0.0), Finding.MISMATCH, "the cards are not split"),
    ],
)
def test_a_look_finds_what_there_is(counts: StepCounts, finding: Finding, line: str) -> None:
    judgement = judge(PLAN, STEP, counts)
    assert judgement.finding is finding, judgement.line
    assert judgement.line.startswith(line)


def test_a_candidate_that_is_meant_to_differ_is_no_harm_within_its_tolerance() -> None:
    counts = counts_of(4_000_000, ratios={"decline": 1.12, "review": 0.9})
    assert judge(PLAN, STEP, counts).finding is Finding.HARM
    tolerant = replace(PLAN, tolerance=0.15)
    assert judge(tolerant, STEP, counts).finding is Finding.WITHIN
    assert judge(tolerant, STEP, counts_of(4_000_000, ratios={"review": 0.7})).finding is Finding.HARM


def test_a_harm_that_begins_on_a_later_day_is_found_by_the_evidence_of_that_day() -> None:
    calm = counts_of(2_000_000, day=3)
    late = calm.day.copy()
    late[NAMES.index("decline"), 1] *= 2
    judgement = judge(PLAN, STEP, replace(calm, day=late))
    assert (judgement.finding, judgement.measure) == (Finding.HARM, "decline")


@given(
    st.integers(0, 300_000),
    st.dictionaries(st.sampled_from(NAMES), st.floats(0, 3), max_size=3),
    st.integers(0, PLAN.last_step - 1),
)
def test_many_looks_at_once_are_judged_as_one_look_is(cards: int, ratios: dict[str, float], step: int) -> None:
    counts = counts_of(cards, ratios=ratios, step=step)
    judgement = judge(PLAN, step, counts)
    assert judgement_of(judgement_record(judgement)) == judgement
    twice = StepCounts(*(np.stack([array, array]) for array in vars(counts).values()))
    harms, _ = harm_evidence(PLAN, step, twice)
    assert harms[1].tolist() == [one.evidence for one in judgement.measures]
    if judgement.finding in (Finding.WITHIN, Finding.INCONCLUSIVE):
        assert within_margin(PLAN, step, twice).tolist() == [judgement.finding is Finding.WITHIN] * 2


def outcomes(cards: int, *, frauds: float = 1.0, amount_evidence: float = 0.0, labelled: int = 1_000) -> Judgement:
    shares = np.array([PLAN.comparing_share(step) for step in range(PLAN.last_step)])
    arms = np.stack([cards * (1 - shares), cards * shares], axis=-1)
    events = np.stack([arms * share for share in (0.004, 0.01, 0.004)])
    events[0, :, 1] *= frauds
    rounded = np.rint(events).astype(np.int64)
    return judge_outcomes(PLAN, OutcomeCounts(arms.astype(np.int64), rounded, amount_evidence, shares, labelled))


def test_mature_outcomes_decide_about_fraud_and_money() -> None:
    assert outcomes(0).finding is Finding.NO_DATA
    assert outcomes(5_000).finding is Finding.INCONCLUSIVE
    assert outcomes(400_000).finding is Finding.WITHIN
    assert outcomes(400_000, labelled=PLAN.labels_min - 1).finding is Finding.NO_DATA
    assert (outcomes(400_000, frauds=2).finding, outcomes(400_000, frauds=2).measure) == (
        Finding.HARM,
        "fraud_approved",
    )
    money = outcomes(400_000, amount_evidence=20.0)
    assert (money.finding, money.measure) == (Finding.HARM, "fraud_amount")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.0}, "rollout alpha: wanted above 0 and below 0.5, got 0"),
        ({"margin": math.nan}, "rollout margin: wanted above 0 and below 10, got nan"),
        ({"rare_share": 1.0}, "rollout rare_share: wanted above 0 and below 1, got 1"),
        ({"tolerance": 0.25}, "rollout tolerance: wanted 0 to below 0.25, got 0.25"),
        ({"tolerance": -0.1}, "rollout tolerance: wanted 0 to below 0.25, got -0.1"),
        ({"cards_min": 0}, "rollout cards_min: wanted at least 1, got 0"),
        ({"labels_min": 0}, "rollout labels_min: wanted at least 1, got 0"),
        ({"fraud_cap": 0}, "rollout fraud_cap: wanted at least 1, got 0"),
        ({"label_days": -1.0}, "rollout label_days: wanted at least 0, got -1"),
        ({"step_hours": (1.0,)}, "rollout hours: wanted 2, one for each step but the last, got 1"),
        ({"step_hours": (1.0, -1.0)}, "rollout hours: wanted more than 0, got -1"),
        ({"segments": ("FR",)}, "rollout segments: wanted FIELD=VALUE, such as country=FR, got 'FR'"),
        (
            {"leave_out": ("speed",)},
            "rollout leave_out: wanted some of slow, error, flag, review, decline, score_upper, score_top, got 'speed'",
        ),
        (
            {"leave_out": ("slow", "error", "flag", "review", "decline", "score_upper")},
            "rollout leave_out: wanted at least one measure with a margin left, got none",
        ),
        ({"segments": ("a=1", "a=1")}, "rollout segments: a=1 is there twice"),
        ({"segments": tuple(f"a={n}" for n in range(20))}, "rollout segments: wanted at most 19, got 20"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        plan_of([1, 10, 100], **values)
    assert str(refused.value) == message
    with pytest.raises(Misconfigured, match="wanted at least one below 100 %"):
        plan_of([100])
