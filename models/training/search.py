"""Choose parameters and the number of trees on the last days of the training window.

        train                delay          validation
    ├────────────────────┤              ├─────────────────┤
    first day of the window                    its last day

How it works:

1. The last `validation_days` are held out, and the `label_delay_days` before them are left out. Training uses the rows
   and the labels that were known on the morning of the first held-out day. With several folds, the held-out days of
   each fold come directly before those of the next.
2. The first candidate is the settings themselves. The others are a seeded sample of the backtest's grid.
3. Each candidate is grown on every fold with early stopping: until more trees raise the log loss of the held-out days.
4. The candidate with the highest mean average precision wins; with a tie, the first. Its number of trees is the mean
   over the folds.
5. Changes to these settings are tried on the same held-out days (models/training/changes.py).
6. The bundle's model is then grown on all days with the chosen settings.

With `search_minutes`, at most as many candidates are tried as a constant cost has room for in that time
(models/training/boosting.py); no clock is asked.

Example: the window is 1 to 30 June with one fold, 6 days held out and a label delay of 7 days. Trees are grown on 1 to
17 June with the labels known on 25 June, and 25 to 30 June choose. Candidate 0 stops at 120 trees with average
precision 0.61, candidate 1 at 90 trees with 0.64: the bundle gets 90 trees with candidate 1's parameters.

With several candidates, the winner's numbers are a little too good for other days, because they were used to choose it.
A backtest has test folds for an honest estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.evaluation import DAY_MS, Days, Split, auc_roc, average_precision, date_of_day
from paywarden.models.training.boosting import HeldOut, OnTree, aged, binned, fit_seconds, grow, grow_until_worse
from paywarden.models.training.calibration import brier_score, log_loss
from paywarden.models.training.changes import (
    Change,
    ChangeChoice,
    FoldRows,
    TriedDelay,
    changes_to_try,
    choose_changes,
    gains_of_vectors,
)
from paywarden.models.training.progress import TrainingProgress
from paywarden.models.training.search_space import boosted_paths
from paywarden.models.training.table import TrainingTable
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

MakeVectors = Callable[[], NDArray[np.float32]]

FRAUDS_MIN = 20
"""Both parts of a fold need this many. With fewer, chance decides which candidate or number of trees looks best."""

# Without validation_days, one day in this many is held out.
_HELD_OUT_PART = 5


@dataclass(frozen=True)
class FoldResult:
    """A candidate's results on the held-out days of a fold. Its scores are not calibrated yet."""

    trees: int
    average_precision: float
    auc_roc: float
    log_loss: float
    brier: float


@dataclass(frozen=True)
class TriedCandidate:
    """A candidate's parameters and its results, fold by fold."""

    parameters: Mapping[str, Any]
    folds: tuple[FoldResult, ...]

    @property
    def average_precision(self) -> float:
        """Mean over the folds."""
        return float(np.mean([fold.average_precision for fold in self.folds]))

    @property
    def trees(self) -> int:
        """Mean over the folds, rounded."""
        return max(1, round(float(np.mean([fold.trees for fold in self.folds]))))


@dataclass(frozen=True)
class Choice:
    """The result of a search. Without folds, `left_out` says why, and `settings` are unchanged."""

    settings: TrainingSettings
    splits: tuple[Split, ...] = ()
    tried: tuple[TriedCandidate, ...] = ()
    chosen: int = 0
    left_out: str = ""
    changes: ChangeChoice | None = None
    trees_max: int = 0
    """The cap on trees with early stopping; 0 without it."""

    def record(self) -> dict[str, Any]:
        """Returns the choice as a manifest stores it; `chosen` is an index into `tried`."""
        return {
            "left_out": self.left_out,
            "days": [_days(split) for split in self.splits],
            "tried": [
                {"parameters": dict(candidate.parameters), "folds": [asdict(fold) for fold in candidate.folds]}
                for candidate in self.tried
            ],
            "chosen": self.chosen,
            "trees_max": self.trees_max,
        }


def choose(
    table: TrainingTable,
    window: Days,
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    progress: TrainingProgress,
    codes: Sequence[str] = (),
    growing: Sequence[str] = (),
) -> Choice:
    """Choose the settings to train with. `codes` and `growing`: see `changes_to_try`.

    Raises Misconfigured if a search is configured but no fold is possible.
    """
    searching = settings.search_budget > 1
    # Without early stopping, the settings stay as they are, but for a search.
    if not searching and settings.early_stopping_rounds == 0:
        return Choice(settings, left_out="the settings leave nothing to choose")
    try:
        folds = [_Fold.of(table, split) for split in validation_splits(window, settings)]
    except _NoFolds as reason:
        if searching:
            raise Misconfigured(f"parameters cannot be searched: {reason}") from reason
        return Choice(settings, left_out=str(reason))
    candidates = candidate_parameters(settings)
    if settings.search_minutes:
        of_each = fit_seconds(sum(int(fold.train.sum()) for fold in folds), len(feature_names), settings)
        candidates = candidates[: max(1, int(60 * settings.search_minutes / of_each))]
    with progress("choosing parameters", len(candidates) * len(folds) * settings.trees) as advance:
        parts = [
            (
                binned(
                    table.vectors_of(fold.train),
                    fold.known[fold.train],
                    settings,
                    feature_names,
                    aged(table.weight_of(fold.train), table.day[fold.train], settings),
                ),
                HeldOut(table.vectors_of(fold.test), table.label[fold.test], table.weight_of(fold.test)),
            )
            for fold in folds
        ]
        tried = tuple(
            TriedCandidate(
                candidate,
                tuple(
                    _result(data, held_out, replace(settings, **candidate), feature_names, advance)
                    for data, held_out in parts
                ),
            )
            for candidate in candidates
        )
    chosen = int(np.argmax([candidate.average_precision for candidate in tried]))
    # LightGBM's data keep the rows, and the changes need the memory.
    del parts
    best = tried[chosen]
    best_settings = replace(settings, **best.parameters, trees=best.trees)
    trees_max = settings.trees if settings.early_stopping_rounds else 0
    changes = None
    if settings.choose_seconds and settings.early_stopping_rounds:
        to_try = changes_to_try(
            best_settings,
            day_count=window.last - window.first + 1,
            codes=codes,
            growing=growing,
            is_capped=any(fold.trees == trees_max for fold in best.folds),
        )
        changes = _changes(table, folds, best_settings, feature_names, to_try, progress)
        for one in changes.taken:
            best_settings = one.change.applied(best_settings)
    return Choice(
        best_settings,
        splits=tuple(fold.split for fold in folds),
        tried=tried,
        chosen=chosen,
        changes=changes,
        trees_max=trees_max,
    )


def _changes(
    table: TrainingTable,
    folds: Sequence[_Fold],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    changes: Sequence[Change],
    progress: TrainingProgress,
) -> ChangeChoice:
    """Returns which changes to take."""
    rows = _rows_of(table, folds)
    with progress("choosing changes", len(folds) * (1 + len(changes)) * settings.trees) as advance:
        return choose_changes(rows, settings, feature_names, changes, seconds=settings.choose_seconds, on_tree=advance)


def try_delays(
    table: TrainingTable, delays: Mapping[int, MakeVectors], choice: Choice, feature_names: Sequence[str]
) -> list[TriedDelay]:
    """Measure vectors of other label delays on the held-out days; none without such days, or if no work is allowed.

    `delays`: by days, what makes the vectors of the same rows.
    """
    seconds = choice.settings.choose_seconds
    if not delays or not choice.splits or not seconds:
        return []
    folds, days = [_Fold.of(table, split) for split in choice.splits], sorted(delays)
    others = (_rows_of(replace(table, vectors=delays[one]()), folds) for one in days)
    gains = gains_of_vectors(_rows_of(table, folds), others, choice.settings, feature_names, seconds=seconds)
    return [TriedDelay(one, *gain) for one, gain in zip(days, gains, strict=True)]


def _rows_of(table: TrainingTable, folds: Sequence[_Fold]) -> list[FoldRows]:
    # Without cards, each payment is drawn by itself.
    card: NDArray[np.integer] = np.arange(len(table.label)) if table.card is None else table.card
    return [
        FoldRows(
            table.vectors_of(fold.train),
            fold.known[fold.train],
            table.day[fold.train],
            HeldOut(table.vectors_of(fold.test), table.label[fold.test], table.weight_of(fold.test)),
            card[fold.test],
            table.weight_of(fold.train),
        )
        for fold in folds
    ]


def candidate_parameters(settings: TrainingSettings) -> list[dict[str, Any]]:
    """Returns the candidates: the settings themselves, then a sample of the grid, as many as the budget allows."""
    paths = boosted_paths(seed=settings.seed, budget=max(1, settings.search_budget), defaults=settings)
    return [dict(path.parameters) for path in paths]


def validation_splits(window: Days, settings: TrainingSettings) -> tuple[Split, ...]:
    """Returns the folds, earliest first. Raises Misconfigured if the window is too short for the first one."""
    day_count = window.last - window.first + 1
    held_out = settings.validation_days or max(1, day_count // _HELD_OUT_PART)
    splits = []
    for number in reversed(range(settings.validation_folds)):
        last = window.last - number * held_out
        test_first = last - held_out + 1
        train_last = test_first - settings.label_delay_days - 1
        if train_last - window.first + 1 < held_out:
            raise _NoFolds(
                f"{day_count} days are too short to hold {settings.validation_folds} × {held_out} out, "
                f"with {settings.label_delay_days} days of label delay and {held_out} days to train on before them"
            )
        splits.append(Split(Days(window.first, train_last), Days(test_first, last), settings.label_delay_days))
    return tuple(splits)


class _NoFolds(Misconfigured):
    """Says why there are no folds."""


@dataclass(frozen=True)
class _Fold:
    """A split as masks over a table's rows, (rows,).

    `known`: the labels as known on the first held-out day.
    """

    split: Split
    train: NDArray[np.bool_]
    test: NDArray[np.bool_]
    known: NDArray[np.int64]

    @classmethod
    def of(cls, table: TrainingTable, split: Split) -> _Fold:
        known = table.label_known_by(split.test.first * DAY_MS)
        train = split.train.contains(table.day)
        test = split.test.contains(table.day)
        for label, days in ((known[train], split.train), (table.label[test], split.test)):
            frauds = int(label.sum())
            if frauds < FRAUDS_MIN or frauds == len(label):
                raise _NoFolds(
                    f"there are {frauds} known frauds in {len(label)} payments from {date_of_day(days.first)} to "
                    f"{date_of_day(days.last)}, and at least {FRAUDS_MIN} are needed, beside genuine payments"
                )
        return cls(split, train, test, known)


def _result(
    data: Any, held_out: HeldOut, settings: TrainingSettings, feature_names: Sequence[str], on_tree: OnTree
) -> FoldResult:
    if settings.early_stopping_rounds:
        model, trees = grow_until_worse(data, held_out, settings, feature_names, on_tree=on_tree)
    else:
        model, trees = grow(data, settings, feature_names, on_tree=on_tree), settings.trees
    score = model.predict(held_out.vectors, num_iteration=trees)
    return FoldResult(
        trees=trees,
        average_precision=average_precision(held_out.label, score, held_out.weight),
        auc_roc=auc_roc(held_out.label, score, held_out.weight),
        log_loss=log_loss(held_out.label, score, held_out.weight),
        brier=brier_score(held_out.label, score, held_out.weight),
    )


def _days(split: Split) -> dict[str, str]:
    return {
        "train_from": date_of_day(split.train.first),
        "train_to": date_of_day(split.train.last),
        "test_from": date_of_day(split.test.first),
        "test_to": date_of_day(split.test.last),
    }
