"""Mature outcomes of both arms: what counts once, and how often the interval of money misses the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from paywarden.models.policy.policy import APPROVE, DECLINE
from paywarden.models.rollout.judgement import Finding, judge_outcomes, judgement_of, judgement_record
from paywarden.models.rollout.outcomes import MatureOutcomes, outcome_counts
from paywarden.models.rollout.plan import plan_of
from paywarden.models.rollout.shares import CIRCLE

PLAN = plan_of([10, 50, 100], fraud_cap=10_000)
CANDIDATE_CARD, CHAMPION_CARD, EARLIER_CARD = (int(CIRCLE * share) for share in (0.3, 0.8, 0.05))
Row = tuple[int, int, int, int, bool, int]


def outcomes_of(rows: list[Row]) -> MatureOutcomes:
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * 6
    columns.insert(5, [True] * len(rows))
    columns += [range(len(rows)), [place % 2 == 1 for place in range(len(rows))]]
    types = (np.int64, np.uint64, np.int8, np.int8, np.bool_, np.bool_, np.int64, np.int64, np.bool_)
    return MatureOutcomes(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def simulated(seed: int, *, cards: int = 3_000, loss_ratio: float = 1.0) -> MatureOutcomes:
    """Returns outcomes of one step, with several frauds of one card and heavy-tailed amounts."""
    random = np.random.default_rng(seed)
    count = random.poisson(1 + random.pareto(2.0, cards))
    card = np.repeat(np.arange(cards), count)
    position = (random.random(cards) * CIRCLE).astype(np.uint64)[card]
    arm = (position < CIRCLE // 10).astype(np.int8)
    fraud = (random.random(cards) < 0.1)[card] & (random.random(len(card)) < 0.5 * np.where(arm, loss_ratio, 1.0) / 2)
    amount = np.minimum(random.pareto(2.5, len(card)) * 5_000, 200_000).astype(np.int64)
    action = np.zeros(len(card), dtype=np.int8)
    step, labelled, decided_ms = np.zeros(len(card), np.int64), np.ones(len(card), bool), np.arange(len(card))
    return MatureOutcomes(step, position, arm, action, fraud, labelled, amount, decided_ms, np.zeros(len(card), bool))


def test_first_frauds_and_bursts_are_measured_for_each_arm() -> None:
    rows = [
        (1, CANDIDATE_CARD, 1, APPROVE, True, 100),
        (1, CANDIDATE_CARD, 1, APPROVE, True, 100),
        (1, CANDIDATE_CARD, 1, DECLINE, True, 100),
        (1, CANDIDATE_CARD + 1, 1, DECLINE, True, 100),
        (1, CHAMPION_CARD, 0, DECLINE, False, 100),
    ]
    counts = outcome_counts(PLAN, outcomes_of(rows))
    assert counts.missed is not None
    champion, candidate = counts.missed
    assert (champion.first_frauds, champion.bursts) == (0, 0)
    assert (candidate.first_frauds, candidate.first_stopped, candidate.bursts) == (2, 1, 1)
    assert candidate.approved_before_stop == 2
    assert champion.line == "0 of 0 first frauds of a card stopped"
    # The fourth payment has a rule among its reasons, the third its score alone.
    assert (candidate.frauds, candidate.by_rules, candidate.by_score) == (4, 1, 1)
    wanted = (
        "(50.0%, 95 % interval 9.5% to 90.5%); of 4 frauds rules and lists stopped 1, and the score 1 of the others "
        "(33.3%, 95 % interval 6.1% to 79.2%); 2.0 payments of a burst approved before the first stop"
    )
    assert candidate.line == f"1 of 2 first frauds of a card stopped {wanted}"
    judgement = judge_outcomes(PLAN, counts)
    assert judgement_of(judgement_record(judgement)) == judgement


def test_a_card_counts_once_and_cards_of_an_earlier_step_not_at_all() -> None:
    counts = outcome_counts(
        PLAN,
        outcomes_of(
            [
                (1, CANDIDATE_CARD, 1, APPROVE, True, 8_000),
                (1, CANDIDATE_CARD, 1, APPROVE, True, 3_000),
                (1, CHAMPION_CARD, 0, DECLINE, False, 100),
                (1, CHAMPION_CARD, 0, DECLINE, True, 100),
                (1, EARLIER_CARD, 1, APPROVE, True, 9_000),
            ]
        ),
    )
    assert counts.cards.tolist() == [[0, 0], [1, 1]]
    assert counts.labelled == 2
    assert counts.events[:, 1].tolist() == [[0, 1], [1, 0], [0, 1]]
    # One card weighs 0.8: its bet on d is d^0.8 / (1 - p + p d^0.8).
    share, gain = PLAN.comparing_share(1), np.array([1.1, 1.25, 1.5, 2, 4, 10]) ** 0.8
    assert counts.amount_evidence == pytest.approx(math.log(float((gain / (1 - share + share * gain)).mean())))


def test_the_interval_of_money_rarely_misses_and_is_the_same_after_it_was_written() -> None:
    missed = 0
    for seed in range(60):
        counts = outcome_counts(PLAN, simulated(seed))
        assert counts.money is not None
        missed += not counts.money.low <= 0 <= counts.money.high
        judgement = judge_outcomes(PLAN, counts)
        assert judgement_of(judgement_record(judgement)) == judgement
    assert missed <= 3


def test_twice_the_fraud_is_harm() -> None:
    counts = outcome_counts(PLAN, simulated(1, cards=60_000, loss_ratio=2.0))
    judgement = judge_outcomes(PLAN, counts)
    assert judgement.finding is Finding.HARM
    assert judgement.money is not None
    assert judgement.money.low > 0
