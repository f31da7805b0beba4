"""First strikes: the first fraud of an entity, and how many of them are stopped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.metrics.first_strikes import FirstStrikes, Strikes, first_of_entities, first_strikes
from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.metrics.tally import APPROVED, DECLINED, REVIEWED

Fraud = tuple[int, int, int]
FRAUDS = st.lists(
    st.tuples(st.integers(-1, 4), st.integers(0, 6), st.sampled_from([APPROVED, REVIEWED, DECLINED])), min_size=1
)


def measured(frauds: list[Fraud]) -> FirstStrikes:
    """Frauds are (card, time in ms, action), each of 10 minor units."""
    card, time_ms, action = (np.array(column) for column in zip(*frauds, strict=True))
    is_first = first_of_entities(card.astype(np.int32), time_ms)
    strikes = Strikes(np.arange(len(card)), time_ms, {"card": card.astype(np.int32)}, {"card": is_first})
    return first_strikes(strikes, action.astype(np.int8), np.full(len(card), 10))["card"]


def test_only_the_first_fraud_of_a_card_is_a_first_strike() -> None:
    found = measured([(1, 10, APPROVED), (1, 20, DECLINED), (2, 15, REVIEWED), (2, 30, DECLINED), (-1, 5, DECLINED)])
    assert found == FirstStrikes(2, 1, 0.5, wilson_interval(0.5, 2), 10)


def test_chosen_payments_keep_what_is_a_first_strike() -> None:
    is_first = np.array([True, False, True])
    strikes = Strikes(np.array([1, 3, 4]), np.arange(3), {"card": np.array([7, 7, 8], np.int32)}, {"card": is_first})
    later = strikes.of(np.array([True, False, True, True, True]))
    assert later.place.tolist() == [2, 3]
    assert later.entity["card"].tolist() == [7, 8]
    assert later.is_first["card"].tolist() == [False, True]


@given(st.dictionaries(st.integers(0, 9), st.sampled_from([APPROVED, REVIEWED, DECLINED]), min_size=1))
def test_with_one_fraud_a_card_recall_is_that_of_all_frauds(action_of: dict[int, int]) -> None:
    found = measured([(card, 100 - card, action) for card, action in action_of.items()])
    stopped = sum(action >= REVIEWED for action in action_of.values())
    assert found.recall == pytest.approx(stopped / len(action_of))


@given(FRAUDS, st.randoms())
def test_the_order_of_rows_changes_no_first_strike(frauds: list[Fraud], random: st.DrawFn) -> None:
    shuffled = random.sample(frauds, len(frauds))  # type: ignore[attr-defined]
    assert repr(measured(frauds)) == repr(measured(shuffled))
