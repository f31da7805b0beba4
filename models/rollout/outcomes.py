"""Counts mature outcomes of both arms: cards by event, the weight of approved fraud, and money with an interval.

A payment is looked at when it is at least `label_days` old: by then both arms have had the same time for labels to
come. One without an outcome counts as genuine then, as everywhere in Paywarden. Payments stand in the order in which
they began to count, so that a later look only adds cards. A correction from fraud to genuine takes a card out again.

    card A (candidate)    approved, fraud of EUR 80      counts for fraud_approved, weighs 80 / cap
    card A (candidate)    approved, fraud of EUR 30      counts no more: a card counts once
    card B (champion)     declined, genuine              counts for genuine_declined

The interval of money is another matter. It takes all payments, the sums of each card as one observation, and widens a
normal interval so that it covers at all looks (I. Waudby-Smith, D. Arbour, R. Sinha, E. Kennedy, A. Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", 2024). It holds in the limit of many cards,
and heavy tails make that limit far. It is shown to people. The e-value of `fraud_amount` decides: it needs no limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.bursts import measure_bursts
from paywarden.models.metrics.first_strikes import first_of_entities
from paywarden.models.policy.policy import APPROVE, DECLINE
from paywarden.models.rollout.judgement import MissedByArm, MoneyInterval, OutcomeCounts
from paywarden.models.rollout.plan import OUTCOME_MEASURES, RolloutPlan
from paywarden.models.rollout.rollout_evidence import WeightedEvidence
from paywarden.models.rollout.shares import CANDIDATE, CHAMPION, arm_end

# The number of the candidate's cards for which the interval of money is narrowest.
_CARDS_TUNED = 2_000
_PER_PAYMENTS = 1_000


@dataclass(frozen=True)
class MatureOutcomes:
    """Payments with mature outcomes, in the order in which they began to count. All arrays have shape (payments,).

    `step`: the step in which the payment was decided. `action`: an index into ACTIONS. `is_labelled`: somebody said
    what it is. `amount`: minor units of the reference currency. `by_rule`: a rule or flag asked for the action, perhaps
    beside the score.
    """

    step: NDArray[np.int64]
    position: NDArray[np.uint64]
    arm: NDArray[np.int8]
    action: NDArray[np.int8]
    is_fraud: NDArray[np.bool_]
    is_labelled: NDArray[np.bool_]
    amount: NDArray[np.int64]
    decided_ms: NDArray[np.int64]
    by_rule: NDArray[np.bool_]


def outcome_counts(plan: RolloutPlan, outcomes: MatureOutcomes) -> OutcomeCounts:
    """Returns the counts that `judge_outcomes` takes. A fraud larger than the plan's `fraud_cap` weighs no more."""
    strata = plan.last_step
    cards = np.zeros((strata, 2), dtype=np.int64)
    events = np.zeros((len(OUTCOME_MEASURES), strata, 2), dtype=np.int64)
    evidence = WeightedEvidence()
    compared = np.zeros(len(outcomes.step), dtype=bool)
    for step in range(strata):
        known_end = arm_end(plan.steps[step - 1]) if step else 0
        rows = np.flatnonzero((outcomes.step == step) & (outcomes.position >= np.uint64(known_end)))
        compared[rows] = True
        fraud = outcomes.is_fraud[rows]
        missed = rows[fraud & (outcomes.action[rows] == APPROVE)]
        wronged = rows[~fraud & (outcomes.action[rows] == DECLINE)]
        cards[step] = _by_arm(outcomes, _first_of_cards(outcomes, rows))
        first_missed = _first_of_cards(outcomes, missed)
        events[0, step] = events[2, step] = _by_arm(outcomes, first_missed)
        events[1, step] = _by_arm(outcomes, _first_of_cards(outcomes, wronged))
        weights = np.minimum(outcomes.amount[first_missed] / plan.fraud_cap, 1.0)
        evidence.add(weights, outcomes.arm[first_missed] == CANDIDATE, plan.comparing_share(step))
    shares = np.array([plan.comparing_share(step) for step in range(strata)])
    money = _money(outcomes, compared, plan.alpha)
    labelled = len(np.unique(outcomes.position[compared & outcomes.is_labelled]))
    missed = (_missed(outcomes, compared, CHAMPION), _missed(outcomes, compared, CANDIDATE))
    return OutcomeCounts(cards, events, evidence.log_evidence, shares, labelled, money, missed)


def _first_of_cards(outcomes: MatureOutcomes, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Returns the first row of each card among some rows."""
    return rows[np.sort(np.unique(outcomes.position[rows], return_index=True)[1])]


def _by_arm(outcomes: MatureOutcomes, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    return np.bincount(outcomes.arm[rows], minlength=2).astype(np.int64)


def _missed(outcomes: MatureOutcomes, compared: NDArray[np.bool_], arm: int) -> MissedByArm:
    """Returns the first frauds of an arm's cards, and what was approved in bursts of fraud before the first stop."""
    rows = np.flatnonzero(compared & (outcomes.arm == arm) & outcomes.is_fraud)
    card = np.unique(outcomes.position[rows], return_inverse=True)[1].astype(np.int32)
    time_ms, action = outcomes.decided_ms[rows], outcomes.action[rows]
    first = action[first_of_entities(card, time_ms)]
    bursts = measure_bursts(card, time_ms, action, outcomes.amount[rows])
    stopped = action != APPROVE
    by_rules = int(np.count_nonzero(stopped & outcomes.by_rule[rows]))
    approved = (bursts.approved_before_stop, *bursts.approved_before_stop_interval)
    return MissedByArm(
        len(first),
        int(np.count_nonzero(first != APPROVE)),
        len(rows),
        by_rules,
        int(np.count_nonzero(stopped)) - by_rules,
        bursts.bursts,
        *(None if math.isnan(value) else value for value in approved),
    )


def _money(outcomes: MatureOutcomes, rows: NDArray[np.bool_], alpha: float) -> MoneyInterval | None:
    """Returns the losses by approved fraud and the interval of their difference; None where an arm is too small.

    The steps stand together, and a step in which fraud was rife may have more of the candidate's cards than another.
    Weights even that out: a payment counts 1 / its arm's share of the payments of its step.
    """
    lost = (outcomes.is_fraud & (outcomes.action == APPROVE)) * outcomes.amount
    sums = []
    for arm in (CHAMPION, CANDIDATE):
        mine = np.flatnonzero(rows & (outcomes.arm == arm))
        if len(mine) == 0:
            return None
        # The share of the arm in the payments of the step, as it came out.
        steps = np.bincount(outcomes.step[rows], minlength=1)
        ours = np.bincount(outcomes.step[mine], minlength=len(steps))
        weight = (steps / np.maximum(ours, 1))[outcomes.step[mine]]
        _, card = np.unique(outcomes.position[mine], return_inverse=True)
        payments = np.bincount(card, weight)
        loss = np.bincount(card, weight * lost[mine])
        mean = loss.sum() / payments.sum()
        sums.append((mean, float(((loss - mean * payments) ** 2).sum()) / payments.sum() ** 2, len(payments)))
    (theirs, their_variance, _), (ours_mean, our_variance, cards) = sums
    if cards < 2:
        return None
    width = _sequence_factor(cards, alpha) * math.sqrt(their_variance + our_variance)
    difference = ours_mean - theirs
    ends = (difference - width, difference + width)
    return MoneyInterval(*(float(each) * _PER_PAYMENTS for each in (theirs, ours_mean, *ends)))


def _sequence_factor(cards: int, alpha: float) -> float:
    """Returns how many standard errors the interval is wide on each side, valid at all numbers of cards."""
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / _CARDS_TUNED
    grown = cards * rho + 1
    return math.sqrt(2 * grown / (cards * rho) * math.log(math.sqrt(grown) / alpha))
