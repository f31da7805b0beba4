"""With the Handbook's inputs, the backtest reproduces the Handbook's published results.

This file computes the 15 inputs from their definitions, with windows exact to the millisecond. The catalogue
`book_catalogue` computes them with the feature engine, whose windows consist of tiles.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from paywarden.features.datasets.handbook import convert_table
from paywarden.features.history.history import History, final_labels, history_of_tables
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.backtest.backtest import BacktestRows, Summary, backtest, path_to, rows_of
from paywarden.models.backtest.handbook import (
    LABEL_DELAY_DAYS,
    PREQUENTIAL,
    PROTOCOLS,
    PUBLISHED,
    book_catalogue,
    require_handbook,
)
from paywarden.models.backtest.models import family
from paywarden.models.metrics.evaluation import DAY_MS, METRICS, HandbookMetrics, day_of_time
from tests.checkout import CHECKOUT
from tests.services.missing_tools import HANDBOOK

PROJECT = CHECKOUT
REAL_FILE = Path(os.environ.get("PAYWARDEN_HANDBOOK", PROJECT.parent / "shared" / "data" / "handbook.parquet"))
TOLERANCE = 0.005
WINDOWS_DAYS = (1, 7, 30)
HOUR_MS = 3_600_000
NIGHT_ENDS_MS = 7 * HOUR_MS
DELAY_MS = LABEL_DELAY_DAYS * DAY_MS

pytestmark = [
    pytest.mark.skipif(not REAL_FILE.is_file(), reason=HANDBOOK.reason),
    pytest.mark.timeout(900),
]


@cache
def history() -> History:
    payments, outcomes, _ = convert_table(pq.read_table(REAL_FILE))
    return history_of_tables(payments, outcomes)


class ExactWindows:
    """For every payment at time t: the payments of its entity in (t - older, t - newer]."""

    def __init__(self, entity: NDArray[np.int32], time_ms: NDArray[np.int64]) -> None:
        # Rows are in order of time. A stable sort keeps that order within each entity.
        self.order = np.argsort(entity, kind="stable")
        span = int(time_ms.max()) * 2
        self._key = entity[self.order].astype(np.int64) * span + time_ms[self.order]

    def before(self, age_ms: int) -> NDArray[np.intp]:
        """For each payment, in order of entity and time: the number of payments at least this much older."""
        return np.searchsorted(self._key, self._key - age_ms, side="right")

    def up_to_this(self) -> NDArray[np.intp]:
        """For each payment: the number of payments up to itself, without later ones of the same millisecond."""
        return np.arange(1, len(self._key) + 1)

    def in_order_of_rows(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        result = np.empty(len(values))
        result[self.order] = values
        return result


@cache
def customer_windows() -> ExactWindows:
    return ExactWindows(history().card.codes, history().event_time_ms)


@cache
def terminal_windows() -> ExactWindows:
    return ExactWindows(history().merchant.codes, history().event_time_ms)


def total_between(values: NDArray[np.float64], begin: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.float64]:
    totals = np.concatenate(([0.0], np.cumsum(values)))
    return np.asarray(totals[end] - totals[begin])


@cache
def reference() -> dict[str, NDArray[np.float64]]:
    """Returns the 15 inputs of every payment by the catalogue's names, in its order."""
    data = history()
    amount = data.amount_minor.astype(np.float64)
    fraud = (final_labels(data) == 1).astype(np.float64)
    # 1970-01-01 was a Thursday.
    weekday = (day_of_time(data.event_time_ms) + 3) % 7
    inputs = {
        "amount": amount,
        "weekend": (weekday >= 5).astype(np.float64),
        "night": (data.event_time_ms % DAY_MS < NIGHT_ENDS_MS).astype(np.float64),
    }
    customers, terminals = customer_windows(), terminal_windows()
    for days in WINDOWS_DAYS:
        begin, end = customers.before(days * DAY_MS), customers.up_to_this()
        count = (end - begin).astype(np.float64)
        total = total_between(amount[customers.order], begin, end)
        inputs[f"card_count_{days}d"] = customers.in_order_of_rows(count)
        inputs[f"card_amount_mean_{days}d"] = customers.in_order_of_rows(total / count)
    for days in WINDOWS_DAYS:
        begin, end = terminals.before(DELAY_MS + days * DAY_MS), terminals.before(DELAY_MS)
        count = (end - begin).astype(np.float64)
        frauds = total_between(fraud[terminals.order], begin, end)
        inputs[f"merchant_count_{days}d"] = terminals.in_order_of_rows(count)
        inputs[f"merchant_fraud_share_{days}d"] = terminals.in_order_of_rows(frauds / np.maximum(count, 1.0))
    return inputs


@cache
def exact_rows() -> BacktestRows:
    """Returns the rows of the prequential protocol, which include those of the single split."""
    data = history()
    day = day_of_time(data.event_time_ms)
    wanted = PREQUENTIAL.days.contains(day)
    vectors = np.column_stack([column[wanted] for column in reference().values()]).astype(np.float32)
    label = (final_labels(data) == 1).astype(np.int64)
    return BacktestRows(vectors, label[wanted], day[wanted], data.card.codes[wanted])


@cache
def engine_rows() -> BacktestRows:
    """Returns the same inputs, computed by the feature engine."""
    engine = FeatureEngine(book_catalogue())
    return rows_of(history(), PREQUENTIAL.days, engine=engine, rates=load_rates(), label_delay_days=LABEL_DELAY_DAYS)


def engine_column(name: str) -> NDArray[np.float64]:
    """Returns one of the engine's inputs on the protocol's days."""
    return engine_rows().vectors[:, book_catalogue().names.index(name)].astype(np.float64)


def reference_column(name: str) -> NDArray[np.float64]:
    return reference()[name][PREQUENTIAL.days.contains(day_of_time(history().event_time_ms))]


def exact_counts(windows: ExactWindows, begin: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.float64]:
    counts = windows.in_order_of_rows((end - begin).astype(np.float64))
    return counts[PREQUENTIAL.days.contains(day_of_time(history().event_time_ms))]


def with_the_books_parameters(rows: BacktestRows, protocol_name: str, model: str) -> Summary:
    """Measure the published parameters on the test folds, without searching a grid."""
    protocol, published = PROTOCOLS[protocol_name], PUBLISHED[protocol_name][model]
    assert published.parameters is not None
    whole = family(model, seed=0, budget=1, published=published.parameters)
    # The choice does not matter here.
    short = replace(whole, paths=(path_to(published.parameters["auc_roc"]),))
    result = backtest(rows, replace(protocol, validation=protocol.validation[:1]), short)
    assert result.as_published is not None
    return result.as_published


def assert_close(measured: HandbookMetrics, published: HandbookMetrics, tolerance: float) -> None:
    for metric in METRICS:
        got, wanted = getattr(measured, metric), getattr(published, metric)
        assert got == pytest.approx(wanted, abs=tolerance), (metric, got, wanted)


def test_the_handbooks_history_is_accepted() -> None:
    for protocol in PROTOCOLS.values():
        require_handbook(history(), protocol)


# The book's forests take a minute and a half of a core, and show nothing that these rows do not.
@pytest.mark.parametrize(("protocol", "model"), [("single", "dt"), ("prequential", "lr"), ("prequential", "dt")])
def test_the_published_row_comes_out_of_the_books_own_inputs(protocol: str, model: str) -> None:
    measured = with_the_books_parameters(exact_rows(), protocol, model)
    assert_close(measured.mean, PUBLISHED[protocol][model].test, TOLERANCE)


@pytest.mark.parametrize(("protocol", "model"), [("single", "lr"), ("prequential", "dt")])
def test_the_published_row_comes_out_of_the_books_inputs_by_our_engine(protocol: str, model: str) -> None:
    measured = with_the_books_parameters(engine_rows(), protocol, model)
    assert_close(measured.mean, PUBLISHED[protocol][model].test, TOLERANCE)


def test_the_books_validation_chooses_what_the_book_chose() -> None:
    published = PUBLISHED["prequential"]["lr"]
    result = backtest(exact_rows(), PREQUENTIAL, family("lr", seed=0, budget=1))
    assert published.validation is not None
    assert_close(result.validation.mean, published.validation, TOLERANCE)
    assert_close(result.test.mean, published.test, TOLERANCE)


def test_the_catalogue_of_the_book_declares_the_books_inputs_in_its_order() -> None:
    assert list(book_catalogue().names) == list(reference())


def test_features_of_the_payment_itself_are_the_same_in_both() -> None:
    for name in ("amount", "weekend", "night"):
        assert np.array_equal(engine_column(name), reference_column(name))


@pytest.mark.parametrize(("days", "hop_ms"), [(1, HOUR_MS // 6), (7, HOUR_MS), (30, HOUR_MS)])
def test_a_customers_window_is_the_books_or_longer_by_less_than_a_hop(days: int, hop_ms: int) -> None:
    counts, customers = engine_column(f"card_count_{days}d"), customer_windows()
    longer = exact_counts(customers, customers.before(days * DAY_MS + hop_ms), customers.up_to_this())
    exact = reference_column(f"card_count_{days}d")
    assert np.all((exact <= counts) & (counts <= longer))
    # Windows with the same payments have the same means.
    same = counts == exact
    assert same.mean() > 0.9
    mean = f"card_amount_mean_{days}d"
    np.testing.assert_allclose(engine_column(mean)[same], reference_column(mean)[same], rtol=1e-6)


@pytest.mark.parametrize("days", WINDOWS_DAYS)
def test_a_terminals_window_differs_by_less_than_an_hour_from_the_books(days: int) -> None:
    counts, terminals = engine_column(f"merchant_count_{days}d"), terminal_windows()
    begin, end = terminals.before(DELAY_MS + days * DAY_MS), terminals.before(DELAY_MS)
    begin_early, end_early = terminals.before(DELAY_MS + days * DAY_MS + HOUR_MS), terminals.before(DELAY_MS + HOUR_MS)
    assert np.all(exact_counts(terminals, begin, end_early) <= counts)
    assert np.all(counts <= exact_counts(terminals, begin_early, end))
    share, risk = engine_column(f"merchant_fraud_share_{days}d"), reference_column(f"merchant_fraud_share_{days}d")
    assert np.array_equal(np.isnan(share), counts == 0)
    # A share differs only if payments within an hour of one end of the window differ.
    assert np.isclose(np.nan_to_num(share), risk, rtol=1e-6).mean() > 0.99
