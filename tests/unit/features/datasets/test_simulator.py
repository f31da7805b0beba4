"""The simulator: repeatable, valid as a history, fraudulent in the ways it says, and fast."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.datasets.fraud_patterns import (
    DAY_MS,
    PATTERNS,
    SimulatedPayments,
    SimulatedWorld,
)
from paywarden.features.datasets.simulated_columns import COUNTRIES
from paywarden.features.datasets.simulator import DEFAULT_START_MS, simulate, simulate_columns, split_at
from paywarden.features.history.history import (
    History,
    final_labels,
    history_of_tables,
    labels_known_by,
)
from paywarden.schemas.errors import Misconfigured

CARDS, DAYS, SEED = 2000, 60, 7


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return simulate(cards=CARDS, days=DAYS, seed=SEED)


@pytest.fixture(scope="module")
def history(tables: tuple[pa.Table, pa.Table]) -> History:
    return history_of_tables(*tables)


@pytest.fixture(scope="module")
def columns() -> tuple[SimulatedWorld, SimulatedPayments]:
    end_ms = DEFAULT_START_MS + DAYS * DAY_MS
    return simulate_columns(cards=CARDS, seed=SEED, start_ms=DEFAULT_START_MS, end_ms=end_ms)


def frauds(columns: tuple[SimulatedWorld, SimulatedPayments], pattern: str) -> SimulatedPayments:
    payments = columns[1]
    return payments.take((payments.pattern == PATTERNS.index(pattern)) & payments.is_fraud)


@settings(max_examples=15, deadline=None)
@given(
    cards=st.integers(1, 60),
    days=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    end_time_ms=st.none() | st.integers(1_700_000_000_000, 1_800_000_000_000),
)
def test_the_same_arguments_give_the_same_valid_history(
    cards: int, days: int, seed: int, end_time_ms: int | None
) -> None:
    payments, outcomes = simulate(cards=cards, days=days, seed=seed, end_time_ms=end_time_ms)
    again = simulate(cards=cards, days=days, seed=seed, end_time_ms=end_time_ms)
    assert payments.equals(again[0])
    assert outcomes.equals(again[1])
    history = history_of_tables(payments, outcomes)
    end_ms = DEFAULT_START_MS + days * DAY_MS if end_time_ms is None else end_time_ms
    assert (history.event_time_ms >= end_ms - days * DAY_MS).all()
    assert (history.event_time_ms < end_ms).all()
    assert (history.outcome_time_ms > history.event_time_ms[history.outcome_payment]).all()
    assert (final_labels(history) >= 0).all()


def test_about_one_payment_in_a_hundred_is_fraud(history: History) -> None:
    assert len(history) == pytest.approx(CARDS * DAYS * 1.7, rel=0.1)
    assert 0.005 < (final_labels(history) == 1).mean() < 0.015


@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_every_pattern_is_there(columns: tuple[SimulatedWorld, SimulatedPayments], pattern: str) -> None:
    assert len(frauds(columns, pattern)) > 0.02 * columns[1].is_fraud.sum()


def test_a_country_pays_in_its_currency_and_yen_have_no_decimals(history: History) -> None:
    names = history.country.names.to_pylist()
    currencies = np.array(history.currency.names.to_pylist())[history.currency.codes]
    for country in COUNTRIES:
        rows = history.country.codes == names.index(country.code)
        assert set(currencies[rows]) == {country.currency}
        in_eur = history.amount_minor[rows] / 10**country.minor_digits / country.units_per_eur
        assert 15 < np.median(in_eur) < 80


def test_fraud_is_reported_days_later_and_genuine_payments_after_a_week(history: History) -> None:
    delay_days = (history.outcome_time_ms - history.event_time_ms[history.outcome_payment]) / DAY_MS
    reports = delay_days[history.outcome_fraud]
    assert 2 < np.median(reports) < 6
    assert 0.05 < np.mean(reports < 0.5) < 0.25
    assert reports.max() <= 60
    is_last = np.zeros(len(delay_days), dtype=np.bool_)
    is_last[np.unique(history.outcome_payment, return_index=True)[1]] = True
    assert (delay_days[is_last & ~history.outcome_fraud] >= 7).all()


def test_a_few_reports_are_taken_back(history: History) -> None:
    reported = np.unique(history.outcome_payment[history.outcome_fraud])
    taken_back = final_labels(history)[reported] == 0
    assert 0.002 < taken_back.mean() < 0.06


def test_outcomes_later_than_the_span_are_kept(history: History) -> None:
    end_ms = DEFAULT_START_MS + DAYS * DAY_MS
    assert (history.outcome_time_ms >= end_ms).sum() > 1000
    assert (labels_known_by(history, end_ms) == -1).sum() > 1000


def test_a_split_leaves_a_history_before_and_everything_else_after(tables: tuple[pa.Table, pa.Table]) -> None:
    moment_ms = DEFAULT_START_MS + 40 * DAY_MS
    (past_payments, past_outcomes), (payments, outcomes) = split_at(*tables, moment_ms)
    past = history_of_tables(past_payments, past_outcomes)
    assert past.event_time_ms.max() < moment_ms
    assert past.outcome_time_ms.max() < moment_ms
    assert pc.min(payments["event_time_ms"]).as_py() >= moment_ms
    assert pc.min(outcomes["outcome_time_ms"]).as_py() >= moment_ms
    assert past_payments.num_rows + payments.num_rows == tables[0].num_rows
    assert past_outcomes.num_rows + outcomes.num_rows == tables[1].num_rows


@pytest.mark.parametrize("wrong", [{"cards": 0}, {"days": 0}, {"seed": -1}, {"end_time_ms": 5}])
def test_invalid_arguments_are_refused_by_name(wrong: dict[str, int]) -> None:
    name = next(iter(wrong))
    arguments: dict[str, Any] = {"cards": 5, "days": 5, "seed": 5} | wrong
    with pytest.raises(Misconfigured, match="before 1970" if name == "end_time_ms" else name):
        simulate(**arguments)


def test_enumerations_follow_ordinary_payments_and_change_nothing_else() -> None:
    arguments: dict[str, Any] = {"cards": 300, "days": 20, "seed": 3}
    plain, _ = simulate(**arguments)
    payments, outcomes = simulate(**arguments, with_enumeration=True)
    added = payments.num_rows - plain.num_rows
    assert 0 < added < 0.03 * plain.num_rows
    names = ["event_time_ms", "card_id", "merchant_id", "device_id"]
    known, found = (
        Counter(zip(*(table[name].to_pylist() for name in names), strict=True)) for table in (plain, payments)
    )
    assert known <= found
    assert outcomes.num_rows > 0
