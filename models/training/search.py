"""Choose parameters and the number of trees on the last days of the training window.

        train                delay          validation
    ├────────────────────┤              ├─────────────────┤
    first day of the window                    its last day

1. The last `validation_days` are held out, and the `label_delay_days` before them left out: what is trained on is what
   could have been trained on the morning of the first held-out day, with the labels that were known that morning.
   With several folds each one's held-out days are those before the next one's.
2. The first candidate is the settings as they are, the others a seeded sample of the backtest's grid. Each is grown on
   every fold until more trees make the held-out days less likely. The highest mean average precision is the choice, of
   equal ones the first; its number of trees is the mean over the folds.
3. The model of the bundle is then grown on all days with what was chosen. What these numbers say of other days is a
   little too good when several candidates were tried: a backtest has test folds for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.evaluation import DAY_MS, Days, Split, auc_roc, average_precision, date_of_day
from paywarden.models.training.boosting import HeldOut, OnTree, binned, grow, grow_until_worse, grown_on
from paywarden.models.training.calibration import brier_score, log_loss, true_probabilities
from paywarden.models.training.progress import TrainingProgress
from paywarden.models.training.search_space import boosted_paths
from paywarden.models.training.settings import TrainingSettings
from paywarden.models.training.table import TrainingTable
from paywarden.schemas.errors import Misconfigured

FRAUDS_MIN = 20
"""In either part of a fold. With fewer it is chance which candidate, or which number of trees, looks best."""

# The share of a window that is held out where no days are set.
_HELD_OUT_PART = 5


@dataclass(frozen=True)
class FoldResult:
    """How a candidate did on the held-out days of a fold, as probabilities before any calibration."""

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
    """What to train with. Without folds `left_out` says why there are none, and `settings` are as they were."""

    settings: TrainingSettings
    splits: tuple[Split, ...] = ()
    tried: tuple[TriedCandidate, ...] = ()
    chosen: int = 0
    left_out: str = ""

    def record(self) -> dict[str, Any]:
        """All of it for a manifest; `chosen` is a place in `tried`."""
        return {
            "left_out": self.left_out,
            "days": [_days(split) for split in self.splits],
            "tried": [
                {"parameters": dict(one.parameters), "folds": [asdict(fold) for fold in one.folds]}
                for one in self.tried
            ],
            "chosen": self.chosen,
        }


def choose(
    table: TrainingTable,
    window: Days,
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    progress: TrainingProgress,
) -> Choice:
    """The settings to train with. Raises Misconfigured if a search is asked for and there are no folds for it."""
    searching = settings.search_budget > 1
    if not searching and settings.early_stopping_rounds == 0:
        return Choice(settings, left_out="the settings leave nothing to choose")
    try:
        folds = [_Fold.of(table, split, settings) for split in validation_splits(window, settings)]
    except _NoFolds as reason:
        if searching:
            raise Misconfigured(f"parameters cannot be searched: {reason}") from reason
        return Choice(settings, left_out=str(reason))
    candidates = candidate_parameters(settings)
    by_fold = []
    with progress("choosing parameters", len(candidates) * len(folds) * settings.trees) as advance:
        for fold in folds:
            data = binned(table.vectors[fold.train], fold.known[fold.train], settings, feature_names)
            held_out = HeldOut(table.vectors[fold.test], table.label[fold.test])
            tried_here = [replace(settings, **candidate) for candidate in candidates]
            by_fold.append([_result(data, held_out, one, feature_names, advance) for one in tried_here])
    tried = tuple(
        TriedCandidate(candidate, results)
        for candidate, results in zip(candidates, zip(*by_fold, strict=True), strict=True)
    )
    chosen = int(np.argmax([one.average_precision for one in tried]))
    best = tried[chosen]
    return Choice(
        replace(settings, **best.parameters, trees=best.trees),
        splits=tuple(fold.split for fold in folds),
        tried=tried,
        chosen=chosen,
    )


def candidate_parameters(settings: TrainingSettings) -> list[dict[str, Any]]:
    """What is tried: the settings as they are, then others of the grid, as many as the budget has."""
    paths = boosted_paths(seed=settings.seed, budget=max(1, settings.search_budget), defaults=settings)
    return [dict(path.parameters) for path in paths]


def validation_splits(window: Days, settings: TrainingSettings) -> tuple[Split, ...]:
    """The folds, earliest first. Raises a Misconfigured where the window is too short for the first of them."""
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
                f"{settings.label_delay_days} days of label delay and as many to train on before them"
            )
        splits.append(Split(Days(window.first, train_last), Days(test_first, last), settings.label_delay_days))
    return tuple(splits)


class _NoFolds(Misconfigured):
    """Why there is nothing to choose on."""


@dataclass(frozen=True)
class _Fold:
    """A split's rows, as masks over a table's: `train` is sampled as the settings say, `known` are its labels then."""

    split: Split
    train: NDArray[np.bool_]
    test: NDArray[np.bool_]
    known: NDArray[np.int64]

    @classmethod
    def of(cls, table: TrainingTable, split: Split, settings: TrainingSettings) -> _Fold:
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
        return cls(split, train & grown_on(known, settings), test, known)


def _result(
    data: Any, held_out: HeldOut, settings: TrainingSettings, feature_names: Sequence[str], on_tree: OnTree
) -> FoldResult:
    if settings.early_stopping_rounds:
        model, trees = grow_until_worse(data, held_out, settings, feature_names, on_tree=on_tree)
    else:
        model, trees = grow(data, settings, feature_names, on_tree=on_tree), settings.trees
    score = true_probabilities(model.predict(held_out.vectors, num_iteration=trees), settings.genuine_sample_share)
    return FoldResult(
        trees=trees,
        average_precision=average_precision(held_out.label, score),
        auc_roc=auc_roc(held_out.label, score),
        log_loss=log_loss(held_out.label, score),
        brier=brier_score(held_out.label, score),
    )


def _days(split: Split) -> dict[str, str]:
    return {
        "train_from": date_of_day(split.train.first),
        "train_to": date_of_day(split.train.last),
        "test_from": date_of_day(split.test.first),
        "test_to": date_of_day(split.test.last),
    }
