"""Backtests: which rows they may use, what they choose, and that each model is the one it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import lightgbm
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from paywarden.features.history.history import History, history_of_tables
from paywarden.models.backtest.backtest import (
    BacktestRows,
    Family,
    Fit,
    Fold,
    Protocol,
    Summary,
    backtest,
    facts_of,
    fold_of,
    rows_of,
)
from paywarden.models.backtest.handbook import (
    FIRST_DAY,
    PREQUENTIAL,
    require_handbook,
)
from paywarden.models.backtest.models import MODELS, family
from paywarden.models.metrics.evaluation import DAY_MS, METRICS, Days, HandbookMetrics, Split, date_of_day
from paywarden.models.training.candidates import CandidatePath, Parameters, Scores
from paywarden.models.training.search_space import boosted_paths
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_world

# Two folds to choose by, two to test on.
VALIDATION = (Split(Days(0, 3), Days(6, 8), 2), Split(Days(1, 4), Days(7, 9), 2))
TEST = (Split(Days(10, 13), Days(16, 18), 2), Split(Days(11, 14), Days(17, 19), 2))
PROTOCOL = Protocol("small", VALIDATION, TEST)


def small_rows(seed: int = 0) -> BacktestRows:
    """20 days of 120 payments. The first feature separates frauds well, the second a little; some values are absent."""
    random = np.random.default_rng(seed)
    count = 20 * 120
    label = (random.random(count) < 0.15).astype(np.int64)
    vectors = random.normal(size=(count, 3)).astype(np.float32)
    vectors[:, 0] += 2 * label
    vectors[:, 1] += label
    vectors[random.random(count) < 0.3, 1] = np.nan
    return BacktestRows(
        vectors, label, np.sort(np.arange(count) % 20), random.integers(0, 4000, count).astype(np.int32)
    )


ROWS = small_rows()


class Columns:
    """A family that scores with one column of the vectors, and records which column was used on which fold."""

    def __init__(self, *columns: int) -> None:
        self.paths = tuple(CandidatePath({"column": column}) for column in columns)
        self.asked: list[tuple[Split, int]] = []

    def prepare(self, fold: Fold) -> Fit:
        def fit(path: CandidatePath) -> list[Scores]:
            column = path.parameters["column"]
            assert isinstance(column, int)
            self.asked.append((fold.split, column))
            return [np.nan_to_num(fold.test.vectors[:, column]).astype(np.float64)]

        return fit

    def family(self, *, chosen_by: str | None = None, published: Mapping[str, Parameters] | None = None) -> Family:
        return Family("columns", self.paths, self.prepare, chosen_by, published)


class ByMetric(Columns):
    """Candidate 0 has the best AUC ROC, candidate 1 the best average precision, by construction of its scores."""

    def prepare(self, fold: Fold) -> Fit:
        super_fit = super().prepare(fold)
        label = fold.test.label

        def fit(path: CandidatePath) -> list[Scores]:
            super_fit(path)
            frauds = np.flatnonzero(label == 1)
            scores = label.astype(np.float64) * 2
            if path.parameters["column"] == 0:
                # A few genuine payments score above every fraud. They reduce precision at the top, and little else.
                scores[np.flatnonzero(label == 0)[:16]] = 3
            else:
                # A tenth of the frauds scores below everything. The top holds only frauds.
                scores[frauds[-(len(frauds) // 10) :]] = -1
            return [scores]

        return fit


def for_all(parameters: Parameters) -> dict[str, Parameters]:
    return dict.fromkeys(METRICS, parameters)


def mean_of(summary: Summary, metric: str) -> float:
    return float(getattr(summary.mean, metric))


# The choice


def test_the_candidate_with_the_best_validation_mean_is_chosen() -> None:
    result = backtest(ROWS, PROTOCOL, Columns(2, 1, 0).family())
    assert result.chosen == for_all({"column": 0})
    assert [tried.parameters for tried in result.grid] == [{"column": 2}, {"column": 1}, {"column": 0}]
    assert mean_of(result.validation, "auc_roc") == max(mean_of(tried.validation, "auc_roc") for tried in result.grid)


def test_the_test_days_cannot_change_the_choice() -> None:
    spoilt = replace(ROWS, vectors=ROWS.vectors.copy())
    later = ROWS.day > VALIDATION[-1].test.last
    # In the test days the first column means the opposite.
    spoilt.vectors[later, 0] *= -1
    defaults, result = (backtest(rows, PROTOCOL, Columns(0, 1).family()) for rows in (ROWS, spoilt))
    assert result.chosen == defaults.chosen
    assert result.validation == defaults.validation
    assert mean_of(result.test, "auc_roc") < 0.5 < mean_of(defaults.test, "auc_roc")


def test_each_metric_has_its_own_choice_and_is_measured_with_it() -> None:
    alone = {column: backtest(ROWS, PROTOCOL, ByMetric(column).family()) for column in (0, 1)}
    both = backtest(ROWS, PROTOCOL, ByMetric(0, 1).family())
    assert both.chosen["auc_roc"] == {"column": 0}
    assert both.chosen["average_precision"] == {"column": 1}
    for metric in ("auc_roc", "average_precision"):
        column = int(both.chosen[metric]["column"] or 0)
        assert mean_of(both.test, metric) == mean_of(alone[column].test, metric)
        assert mean_of(both.validation, metric) == mean_of(alone[column].validation, metric)
    assert mean_of(both.test, "auc_roc") > mean_of(alone[1].test, "auc_roc")


# Folds and their summary


def test_mean_and_spread_are_over_the_folds() -> None:
    summary = Summary((HandbookMetrics(0.5, 0.2, 0.1), HandbookMetrics(0.7, 0.4, 0.1)))
    assert [round(value, 12) for value in summary.mean.of_the_book().values()] == [0.6, 0.3, 0.1]
    assert [round(value, 12) for value in summary.std.of_the_book().values()] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize("days", [TEST[1].train, TEST[1].test])
def test_a_fold_without_fraud_is_refused_by_its_days(days: Days) -> None:
    label = np.where(days.contains(ROWS.day), 0, ROWS.label)
    with pytest.raises(
        Misconfigured, match=f"from {date_of_day(days.first)} to {date_of_day(days.last)}, got 0 frauds"
    ):
        facts_of(replace(ROWS, label=label), TEST)


def test_rows_have_their_own_cards_and_vectors_with_earlier_history() -> None:
    history, window = small_world.history(), small_world.TRAINING_DAYS
    rows = rows_of(history, window, engine=small_world.engine(), rates=small_world.rates(), label_delay_days=7)
    chosen = window.contains(history.event_time_ms // DAY_MS)
    assert rows.card.tolist() == history.card.codes[chosen].tolist()
    assert np.array_equal(rows.vectors, small_world.table().vectors, equal_nan=True)
    assert rows.day.tolist() == (history.event_time_ms[chosen] // DAY_MS).tolist()


# Paths


def scores_of(model: str, path: CandidatePath, rows: BacktestRows = ROWS) -> list[Scores]:
    return family(model, seed=0, budget=1).prepare(fold_of(rows, TEST[0]))(path)


BOOSTED = boosted_paths(seed=0, budget=3)[2].parameters


@pytest.mark.parametrize(("model", "parameters"), [("rf", {"max_depth": 5}), ("lightgbm", BOOSTED)])
def test_trees_grown_on_are_those_of_a_model_of_that_size(model: str, parameters: Parameters) -> None:
    grown = scores_of(model, CandidatePath(parameters, (5, 10, 15)))
    for size, scores in zip((5, 10, 15), grown, strict=True):
        assert np.array_equal(scores, scores_of(model, CandidatePath(parameters, (size,)))[0])
    assert not np.array_equal(grown[0], grown[1])


def test_a_forest_is_scikit_learns() -> None:
    fold = fold_of(ROWS, TEST[0])
    forest = RandomForestClassifier(n_estimators=12, max_depth=4, random_state=0)
    forest.fit(np.nan_to_num(fold.train.vectors), fold.train.label)
    (scores,) = scores_of("rf", CandidatePath({"max_depth": 4}, (12,)))
    assert np.array_equal(scores, forest.predict_proba(np.nan_to_num(fold.test.vectors))[:, 1])


def test_sharing_bins_gives_the_same_model_as_training_alone() -> None:
    fold = fold_of(ROWS, TEST[0])
    fit = family("lightgbm", seed=4, budget=1).prepare(fold)
    # Other candidates before it leave no trace.
    fit(CandidatePath(BOOSTED, (5,)))
    candidate = {
        "learning_rate": 0.12, "max_depth": 5, "leaves": 24, "l2": 2.0, "min_sum_hessian": 0.5, "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
    }  # fmt: skip
    (scores,) = fit(CandidatePath(candidate, (20,)))
    parameters = TrainingSettings(threads=1, seed=4).lightgbm_parameters() | {
        "learning_rate": 0.12,
        "max_depth": 5,
        "num_leaves": 24,
        "lambda_l2": 2.0,
        "min_sum_hessian_in_leaf": 0.5,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
    }
    alone = lightgbm.train(parameters, lightgbm.Dataset(fold.train.vectors, fold.train.label), 20)
    assert np.array_equal(scores, alone.predict(fold.test.vectors, raw_score=True))
    assert not np.array_equal(scores, fit(CandidatePath(BOOSTED, (20,)))[0])


@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_gives_the_same_bits(model: str) -> None:
    path = family(model, seed=0, budget=1).paths[0]
    short = replace(path, sizes=path.sizes[:1])
    assert np.array_equal(scores_of(model, short)[0], scores_of(model, short)[0])


# The search


def test_a_search_starts_with_the_training_settings_and_repeats_nothing() -> None:
    settings = TrainingSettings()
    paths = boosted_paths(seed=3, budget=40)
    first = paths[0].parameters
    assert len(paths) == 40
    assert len(first) == 7
    for name, value in first.items():
        assert value == getattr(settings, name)
    assert settings.trees in paths[0].sizes
    assert len({tuple(path.parameters.items()) for path in paths}) == 40


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(Misconfigured, match="wanted a model of lr, rf, dt, lightgbm, got 'svm'"):
        family("svm", seed=0, budget=1)


# The handbook's protocol


def history_of_days(days: NDArray[np.int64]) -> History:
    """One payment on each of these days."""
    count = len(days)
    payments = pa.table(
        {
            "payment_id": pa.array([f"p{row}" for row in range(count)], pa.string()),
            "event_time_ms": pa.array(days * DAY_MS + 1, pa.int64()),
            "card_id": pa.array(["c"] * count, pa.string()),
            "merchant_id": pa.array(["m"] * count, pa.string()),
            "amount_minor": pa.array([100] * count, pa.int64()),
            "currency": pa.array(["EUR"] * count, pa.string()),
            **{name: pa.nulls(count, pa.string()) for name in ("device_id", "ip", "mcc", "country", "channel")},
        }
    )
    outcomes = pa.table(
        {
            "payment_id": pa.array([], pa.string()),
            "outcome_time_ms": pa.array([], pa.int64()),
            "label": pa.array([], pa.string()),
            "source": pa.array([], pa.string()),
        }
    )
    return history_of_tables(payments, outcomes)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (np.arange(19_723, 19_753), r"got 0 of these days \(its payments are from 2024-01-01 to 2024-01-30\)"),
        (np.arange(FIRST_DAY, FIRST_DAY + 100), "got 100 of these days"),
        (np.arange(FIRST_DAY + 20, FIRST_DAY + 200), "2018-04-01 to 2018-09-04, got 137 of these days"),
        (np.arange(0), "its payments are from nowhere"),
    ],
)
def test_another_history_is_refused_by_its_days(days: NDArray[np.int64], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        require_handbook(history_of_days(days), PREQUENTIAL)
