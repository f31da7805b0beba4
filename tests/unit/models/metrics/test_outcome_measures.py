"""Tallies of outcomes and their measures, compared with columns of payments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss

from paywarden.models.metrics.costs import CostSettings, money_of
from paywarden.models.metrics.curves import SCORE_EDGES
from paywarden.models.metrics.outcome_measures import measure
from paywarden.models.metrics.outcome_tally import (
    EDGES,
    LAG_EDGES_MS,
    NO_SCORE,
    UNIT,
    UNLABELLED,
    OutcomeTally,
    total,
    units_of,
)
from paywarden.models.metrics.tally import FRAUD, GENUINE, tally
from paywarden.schemas.errors import InvalidEvent

COSTS = CostSettings()
DAY_MS = 86_400_000


class Payments:
    """Columns of payments, and their tally."""

    def __init__(self, seed: int, rows: int = 400) -> None:
        chance = np.random.default_rng(seed)
        self.score = chance.beta(0.4, 3, rows)
        self.label = np.where(chance.random(rows) < self.score, FRAUD, chance.choice([GENUINE, UNLABELLED], rows))
        self.action = np.searchsorted([0.2, 0.5], self.score)
        self.amount = chance.integers(0, 10_000, rows)
        self.lag = chance.integers(0, 95 * DAY_MS, rows)
        self.tally = OutcomeTally()
        for row in range(rows):
            self.count(row, self.tally)

    @property
    def fraud(self) -> NDArray[np.bool_]:
        return np.asarray(self.label == FRAUD)

    def count(self, row: int, into: OutcomeTally, times: int = 1) -> None:
        into.count(
            score_units=units_of(self.score[row]),
            action=int(self.action[row]),
            amount_minor=int(self.amount[row]),
            label=int(self.label[row]),
            lag_ms=int(self.lag[row]),
            times=times,
        )


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_those_of_the_payments(seed: int) -> None:
    payments = Payments(seed)
    fraud, action = payments.fraud, payments.action
    found = measure(payments.tally, COSTS)
    assert found.payments == len(fraud)
    assert found.frauds == fraud.sum()
    assert found.labelled == (payments.label != UNLABELLED).sum()
    assert found.actions == tuple(np.bincount(action, minlength=3).tolist())
    assert found.shares["precision"].value == pytest.approx(fraud[action > 0].mean())
    assert found.shares["recall"].value == pytest.approx((action > 0)[fraud].mean())
    # All payments in one bin of the grid share a threshold.
    bins = np.searchsorted(np.array(EDGES) / UNIT, payments.score, side="right")
    assert found.shares["average_precision"].value == pytest.approx(average_precision_score(fraud, bins))
    assert found.shares["average_precision"].value == pytest.approx(
        average_precision_score(fraud, payments.score), abs=0.02
    )
    assert found.brier_score == pytest.approx(brier_score_loss(fraud, payments.score))
    assert found.mean_score == pytest.approx(payments.score.mean())
    coarse = np.searchsorted(SCORE_EDGES[1:-1], payments.score, side="right")
    gaps = [abs(payments.score[coarse == one].sum() - fraud[coarse == one].sum()) for one in np.unique(coarse)]
    assert found.calibration_error == pytest.approx(sum(gaps) / len(fraud))
    whole = tally(np.zeros(len(fraud), dtype=np.int64), 1, action, fraud, payments.amount)
    assert found.money == money_of(whole.count[0], whole.amount_minor[0], COSTS)
    lags = payments.lag[payments.label != UNLABELLED]
    assert found.label_lag_p50_ms == pytest.approx(np.median(lags), rel=0.2)


@given(st.integers(0, 100), st.lists(st.integers(0, 29), max_size=30))
def test_subtracting_undoes_counting_and_parts_add_up(seed: int, removed: list[int]) -> None:
    payments = Payments(seed, rows=30)
    more, less = OutcomeTally(), OutcomeTally()
    for row in removed:
        payments.count(row, more)
        payments.count(row, less, times=-1)
    np.testing.assert_array_equal(total([more, payments.tally, less]).row, payments.tally.row)
    np.testing.assert_array_equal(OutcomeTally.from_bytes(less.to_bytes()).row, less.row)


def test_an_empty_tally_has_no_measures() -> None:
    found = measure(OutcomeTally(), COSTS)
    assert found.payments == 0
    assert (found.brier_score, found.calibration_error, found.mean_score, found.fraud_share) == (None,) * 4
    assert all(share.value is None and share.whole == 0 for share in found.shares.values())
    assert found.fraud_lag_p99_ms is None


def test_a_lag_beyond_all_bins_is_the_last_edge() -> None:
    found = OutcomeTally()
    found.count(score_units=0, action=0, amount_minor=0, label=FRAUD, lag_ms=400 * DAY_MS)
    assert measure(found, COSTS).fraud_lag_p50_ms == LAG_EDGES_MS[-1]


@pytest.mark.parametrize("damage", [b"", b"\x09\x00\x00", b"\x01\x02\x00abc"])
def test_bytes_that_are_not_a_tally_are_refused(damage: bytes) -> None:
    with pytest.raises(InvalidEvent):
        OutcomeTally.from_bytes(damage)


def test_a_tally_that_is_cut_off_is_refused() -> None:
    with pytest.raises(InvalidEvent):
        OutcomeTally.from_bytes(Payments(1).tally.to_bytes()[:-20])


COUNTED = st.tuples(
    st.sampled_from([NO_SCORE, 0, EDGES[0], EDGES[0] - 1, EDGES[-1], UNIT]) | st.integers(0, UNIT),
    st.integers(0, 2),
    st.integers(0, 10**11),
    st.sampled_from([GENUINE, FRAUD, UNLABELLED]),
    st.sampled_from([0, LAG_EDGES_MS[0], LAG_EDGES_MS[0] - 1, LAG_EDGES_MS[-1], 2**40]),
    st.sampled_from([1, -1]),
)


@given(st.lists(COUNTED, max_size=8))
def test_payments_counted_by_column_give_the_tally_of_single_ones(payments: list[tuple[int, ...]]) -> None:
    one_by_one, by_column = OutcomeTally(), OutcomeTally()
    for units, action, amount, label, lag_ms, times in payments:
        one_by_one.count(score_units=units, action=action, amount_minor=amount, label=label, lag_ms=lag_ms, times=times)
    columns = np.array(payments, dtype=np.int64).reshape(-1, 6).T
    by_column.count_columns(
        score_units=columns[0],
        actions=columns[1],
        amount_minor=columns[2],
        labels=columns[3],
        lag_ms=columns[4],
        times=columns[5],
    )
    assert np.array_equal(by_column.row, one_by_one.row)
