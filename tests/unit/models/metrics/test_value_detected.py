"""Value detected at a fixed number of false positives, and the interval of it."""

from __future__ import annotations

from math import isnan

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.first_strikes import Strikes, first_of_entities
from paywarden.models.metrics.value_detected import Detected, ScoredPayments, detected, missed_frauds


def scored(
    fraud: list[bool] | NDArray[np.bool_],
    amount: list[int] | NDArray[np.int64],
    card: list[int] | NDArray[np.int64],
    score: NDArray[np.float64] | None = None,
) -> ScoredPayments:
    """Returns payments, one a second. Without scores, these fall from row to row."""
    is_fraud, codes = np.array(fraud, dtype=np.bool_), np.array(card, dtype=np.int32)
    place = np.flatnonzero(is_fraud)
    entity = {"card": codes[place]}
    strikes = Strikes(place, 1000 * place, entity, {"card": first_of_entities(entity["card"], 1000 * place)})
    falling = np.linspace(1, 0, len(is_fraud)) if score is None else score
    return ScoredPayments(is_fraud, falling, np.array(amount), codes, strikes)


def test_the_threshold_is_the_lowest_with_so_few_false_positives() -> None:
    # The example of the module.
    fraud = [True, False, False, True, *[False] * 20, True]
    at_5, at_10 = detected(scored(fraud, [80, 1, 1, 20, *[1] * 20, 100], [1, 2, 3, 1, *range(4, 24), 24]))
    assert (at_5.flagged, at_5.recall, at_5.amount_recall) == (12, 2 / 3, 0.5)
    # Cards 1 and 24 have a first fraud.
    assert at_5.first_recall == 0.5
    assert (at_10.flagged, at_10.recall, at_10.amount_recall, at_10.first_recall) == (25, 1, 1, 1)
    assert at_5.amount_recall_interval[0] < 0.5 < at_5.amount_recall_interval[1]


def test_payments_of_one_score_are_flagged_together() -> None:
    fraud, score = [True, *[False] * 12, True], np.array([0.9, *[0.5] * 12, 0.4])
    at_5, at_10 = detected(scored(fraud, [10] * 14, list(range(14)), score))
    assert at_5.flagged == 1
    assert at_10.flagged == 14


def test_without_a_fraud_nothing_can_be_detected() -> None:
    for found in detected(scored([False] * 3, [1] * 3, [0, 1, 2])):
        assert found.flagged == 0
        assert isnan(found.threshold)
        assert isnan(found.amount_recall)
        assert isnan(found.amount_recall_interval[0])


def test_frauds_without_an_amount_have_no_value() -> None:
    found = detected(scored([True, False], [0, 5], [0, 1]))[0]
    assert found.recall == 1
    assert isnan(found.amount_recall)


def _world(seed: int, cards: int) -> ScoredPayments:
    """Returns payments of cards, a tenth of them with frauds of one size and likeness."""
    rng = np.random.default_rng(seed)
    card = np.repeat(np.arange(cards), 5)
    bad, size, luck = rng.random(cards) < 0.1, rng.exponential(5000, cards), rng.normal(size=cards)
    fraud = bad[card] & (rng.random(len(card)) < 0.6)
    score = rng.normal(size=len(card)) + np.where(fraud, 1 + luck[card], 0)
    return scored(fraud, np.where(fraud, size[card], 100).astype(np.int64), card, score)


def test_order_and_numbers_of_cards_change_nothing() -> None:
    payments = _world(3, 200)
    shuffled = np.random.default_rng(4).permutation(len(payments.fraud))
    numbers = np.random.default_rng(5).permutation(200)
    place = np.flatnonzero(payments.fraud[shuffled])
    found_at = np.searchsorted(payments.strikes.place, shuffled[place])
    strikes = Strikes(
        place, place, {"card": payments.card[shuffled][place]}, {"card": payments.strikes.is_first["card"][found_at]}
    )
    changed = ScoredPayments(
        payments.fraud[shuffled],
        payments.score[shuffled],
        payments.amount_minor[shuffled],
        numbers[payments.card].astype(np.int32)[shuffled],
        strikes,
    )
    assert detected(changed) == detected(payments)


def test_the_interval_holds_the_truth_in_most_worlds() -> None:
    truth = detected(_world(0, 50_000))[0]
    holds = {"amount_recall": 0, "first_recall": 0, "recall": 0}
    for seed in range(1, 61):
        found = detected(_world(seed, 300))[0]
        for name in holds:
            low, high = getattr(found, f"{name}_interval")
            holds[name] += low <= getattr(truth, name) <= high
    assert min(holds.values()) >= 53, holds


def test_bursts_are_those_of_payments_flagged_at_five() -> None:
    score = np.array([0.1, 0.2, 0.9, *np.linspace(0.8, 0.3, 40)])
    missed = missed_frauds(scored([True] * 3 + [False] * 40, [10] * 43, [1, 1, 1, *range(2, 42)], score))
    assert missed.bursts["card"].approved_before_stop == 2
    record = missed.record()
    assert record["bursts"]["card"]["approved_before_stop_interval"] == [None, None]
    assert Detected(**record["detected"][0]).false_positives_per_fraud == 5
    assert missed.in_words()[2].endswith("(3 payments): 2.0 approved before the first is stopped, 1 stopped")
