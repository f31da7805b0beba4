"""Backtest models: choose parameters on validation folds, then measure the chosen ones on test folds.

    validation folds   train ── delay ── test          every candidate of a model is trained and measured
    test folds                train ── delay ── test   only the chosen candidates are

How it works:

1. The point-in-time vectors of all days that any fold needs are computed once.
2. Every candidate of a model is measured on every validation fold. The candidate with the best mean is chosen: one for
   each metric, as the Fraud Detection Handbook does, or one for all metrics (`Family.chosen_by`).
3. The chosen candidates are trained again on each test fold and measured there. No other step uses the test folds.
4. Published parameters are measured on the test folds as well, but never chosen. If they give the published results,
   then data, splits and metrics are the same as in the publication.

Candidates that differ only in their number of trees are grown once and measured at each number (`CandidatePath`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paywarden.features.history.history import History
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.models.metrics.evaluation import (
    METRICS,
    Days,
    HandbookMetrics,
    Split,
    card_precision_ceiling,
    date_of_day,
    measure,
    split_rows,
)
from paywarden.models.metrics.first_strikes import Strikes
from paywarden.models.metrics.labels import GENUINE, LabelCounts
from paywarden.models.metrics.value_detected import MissedFrauds, ScoredPayments, missed_frauds
from paywarden.models.training.candidates import TREES, CandidatePath, Parameters, Scores
from paywarden.models.training.progress import TrainingProgress, no_progress
from paywarden.models.training.table import LabelRules, TrainingTable, training_table
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class Protocol:
    """The folds of a backtest: `validation` compares the candidates, `test` measures the chosen ones."""

    name: str
    validation: tuple[Split, ...]
    test: tuple[Split, ...]

    @property
    def days(self) -> Days:
        """From the first training day of any fold to the last test day of any fold."""
        splits = self.validation + self.test
        return Days(min(split.train.first for split in splits), max(split.test.last for split in splits))


def path_to(candidate: Parameters) -> CandidatePath:
    """Returns a path with this candidate only."""
    others = {name: value for name, value in candidate.items() if name != TREES}
    trees = candidate.get(TREES)
    return CandidatePath(others) if trees is None else CandidatePath(others, (int(trees),))


@dataclass(frozen=True)
class BacktestRows:
    """Payments as columns. `vectors`: (rows, features), float32, missing values are NaN. The others: (rows,).

    `label_counts`: the labels of all payments, also of those that are left out. `strikes`: the frauds among them, and
    which are the first of their card.
    """

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    day: NDArray[np.int64]
    card: NDArray[np.int32]
    label_counts: LabelCounts | None = None
    amount_minor: NDArray[np.int64] | None = None
    strikes: Strikes | None = None

    def chosen(self, mask: NDArray[np.bool_]) -> BacktestRows:
        amount = None if self.amount_minor is None else self.amount_minor[mask]
        strikes = None if self.strikes is None else self.strikes.of(mask)
        return BacktestRows(
            self.vectors[mask], self.label[mask], self.day[mask], self.card[mask], None, amount, strikes
        )

    def missed(self, score: NDArray[np.float64]) -> MissedFrauds | None:
        """Returns what scores of these payments find and miss; None if the payments have no amounts."""
        if self.amount_minor is None or self.strikes is None:
            return None
        return missed_frauds(ScoredPayments(self.label == 1, score, self.amount_minor, self.card, self.strikes))


@dataclass(frozen=True)
class Fold:
    """The rows of one split. `test` has the rows that the split measures."""

    split: Split
    train: BacktestRows
    test: BacktestRows


Fit = Callable[[CandidatePath], list[Scores]]


@dataclass(frozen=True)
class Family:
    """A kind of model with its candidates.

    `prepare`: called once per fold, for work that all candidates share. It returns a function that trains a path and
    returns the scores of the fold's test rows, one array for each of the path's candidates.
    `chosen_by`: the metric that chooses for all metrics; None lets each metric choose its own candidate.
    `published`: published parameters, by metric.
    """

    name: str
    paths: tuple[CandidatePath, ...]
    prepare: Callable[[Fold], Fit]
    chosen_by: str | None = None
    published: Mapping[str, Parameters] | None = None


@dataclass(frozen=True)
class Summary:
    """The metrics of several folds, in the protocol's order."""

    folds: tuple[HandbookMetrics, ...]

    @property
    def mean(self) -> HandbookMetrics:
        return HandbookMetrics(*self._columns().mean(axis=0).tolist())

    @property
    def std(self) -> HandbookMetrics:
        """The standard deviation of these folds, divided by their number and not by one less, as in the Handbook."""
        return HandbookMetrics(*self._columns().std(axis=0).tolist())

    def _columns(self) -> NDArray[np.float64]:
        return np.array([[getattr(fold, metric) for metric in METRICS] for fold in self.folds])


@dataclass(frozen=True)
class Tried:
    """A candidate and its results on the validation folds."""

    parameters: Parameters
    validation: Summary


@dataclass(frozen=True)
class ModelResult:
    """The result of a backtest of one model.

    `chosen`: the chosen parameters by metric. Each metric in `validation` and `test` is measured with its own choice.
    `as_published`: the test results with the published parameters; None without any.
    """

    name: str
    grid: tuple[Tried, ...]
    chosen: Mapping[str, Parameters]
    validation: Summary
    test: Summary
    as_published: Summary | None
    seconds: float


@dataclass(frozen=True)
class FoldFacts:
    """The size of a fold, and the card precision that a perfect oracle would reach."""

    split: Split
    train_payments: int
    train_frauds: int
    test_payments: int
    test_frauds: int
    card_precision_ceiling: float


def rows_of(
    history: History,
    days: Days,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    label_delay_days: int,
    unknown_labels: str = GENUINE,
    progress: Callable[[int], object] | None = None,
) -> BacktestRows:
    """Returns the payments of these days with point-in-time vectors. Earlier payments only fill the profiles.

    Labels are those known `label_delay_days` after the last day; `unknown_labels` says what the others are
    (models/metrics/labels.py). Raises Misconfigured without a payment.
    """
    table = training_table(
        history,
        days,
        engine=engine,
        rates=rates,
        labels=LabelRules(label_delay_days, unknown_labels),
        progress=progress,
    )
    return rows_of_table(table)


def rows_of_table(table: TrainingTable) -> BacktestRows:
    """Returns the payments of a training table. It has all payments with a label."""
    assert table.card is not None
    return BacktestRows(
        table.vectors, table.label, table.day, table.card, table.label_counts, table.amount_minor, table.strikes
    )


def fold_of(rows: BacktestRows, split: Split) -> Fold:
    """Returns the rows of one split. Raises Misconfigured unless both parts have frauds and genuine payments."""
    train, test = split_rows(rows.day, rows.card, rows.label, split)
    fold = Fold(split, rows.chosen(train), rows.chosen(test))
    for part, days in ((fold.train, split.train), (fold.test, split.test)):
        frauds = int(part.label.sum())
        if frauds in (0, len(part.label)):
            raise Misconfigured(
                f"a fold needs frauds and genuine payments from {date_of_day(days.first)} to {date_of_day(days.last)}, "
                f"got {frauds} frauds in {len(part.label)} payments"
            )
    return fold


def facts_of(rows: BacktestRows, splits: Sequence[Split]) -> list[FoldFacts]:
    """Returns the sizes of the folds. Raises Misconfigured as `fold_of` does."""
    return [_facts(fold_of(rows, split)) for split in splits]


def backtest(
    rows: BacktestRows, protocol: Protocol, family: Family, *, progress: TrainingProgress | None = None
) -> ModelResult:
    """Choose a model's parameters on the validation folds and measure them on the test folds."""
    started = time.perf_counter()
    progress = progress or no_progress
    grid = _tried(rows, protocol, family, progress)
    choices = {metric: _best(grid, family.chosen_by or metric) for metric in METRICS}
    chosen = {metric: grid[index].parameters for metric, index in choices.items()}
    test, *as_published = _measured(
        rows, protocol, family, [chosen, *([family.published] if family.published else [])], progress
    )
    return ModelResult(
        name=family.name,
        grid=grid,
        chosen=chosen,
        validation=_by_metric({metric: grid[index].validation for metric, index in choices.items()}),
        test=test,
        as_published=as_published[0] if as_published else None,
        seconds=time.perf_counter() - started,
    )


def _tried(rows: BacktestRows, protocol: Protocol, family: Family, progress: TrainingProgress) -> tuple[Tried, ...]:
    """Measure every candidate on every validation fold."""
    with progress(f"{family.name}: choosing", len(family.paths) * len(protocol.validation)) as advance:
        by_fold = [list(_walk(fold_of(rows, split), family, family.paths, advance)) for split in protocol.validation]
    candidates = [candidate for path in family.paths for candidate in path.candidates()]
    return tuple(
        Tried(parameters, Summary(folds))
        for parameters, folds in zip(candidates, zip(*by_fold, strict=True), strict=True)
    )


def _measured(
    rows: BacktestRows,
    protocol: Protocol,
    family: Family,
    choices: Sequence[Mapping[str, Parameters]],
    progress: TrainingProgress,
) -> list[Summary]:
    """Measure choices (parameters by metric) on the test folds. Equal parameters are trained once."""
    distinct: list[Parameters] = []
    for choice in choices:
        distinct.extend(parameters for parameters in choice.values() if parameters not in distinct)
    paths = [path_to(parameters) for parameters in distinct]
    with progress(f"{family.name}: testing", len(paths) * len(protocol.test)) as advance:
        by_fold = [
            list(_walk(fold_of(rows, split), family, paths, advance, with_missed=True)) for split in protocol.test
        ]
    summaries = [Summary(folds) for folds in zip(*by_fold, strict=True)]
    return [
        _by_metric({metric: summaries[distinct.index(parameters)] for metric, parameters in choice.items()})
        for choice in choices
    ]


def _walk(
    fold: Fold,
    family: Family,
    paths: Sequence[CandidatePath],
    advance: Callable[[int], object],
    *,
    with_missed: bool = False,
) -> Iterator[HandbookMetrics]:
    """Yields the metrics of each candidate of these paths on one fold, with what its scores miss if asked for."""
    fit = family.prepare(fold)
    test = fold.test
    for path in paths:
        for scores in fit(path):
            measured = measure(test.day, test.card, test.label, scores)
            yield replace(measured, missed=test.missed(scores)) if with_missed else measured
        advance(1)


def _best(grid: Sequence[Tried], metric: str) -> int:
    """Returns the index of the candidate with the highest mean. A tie goes to the first, the simplest of a grid."""
    return int(np.argmax([getattr(tried.validation.mean, metric) for tried in grid]))


def _by_metric(summaries: Mapping[str, Summary]) -> Summary:
    """Combine one summary per metric into one: each metric comes from its own summary."""
    columns = [[getattr(fold, metric) for fold in summaries[metric].folds] for metric in METRICS]
    # The variance is that of the area, and belongs to the summary which the area comes from.
    columns.append([fold.auc_roc_variance for fold in summaries["auc_roc"].folds])
    missed = [fold.missed for fold in summaries["average_precision"].folds]
    return Summary(tuple(HandbookMetrics(*values) for values in zip(*columns, missed, strict=True)))


def _facts(fold: Fold) -> FoldFacts:
    return FoldFacts(
        split=fold.split,
        train_payments=len(fold.train.label),
        train_frauds=int(fold.train.label.sum()),
        test_payments=len(fold.test.label),
        test_frauds=int(fold.test.label.sum()),
        card_precision_ceiling=card_precision_ceiling(fold.test.day, fold.test.card, fold.test.label),
    )
