"""Find features that do not help, and train without them if held-out days agree.

How it works:

1. The training days of each validation fold are cut into blocks. A model of the other blocks scores each block, so no
   row is scored by a model that has seen it.
2. One feature after the other, the values are exchanged between payments of the same day (L. Breiman, "Random Forests",
   2001). The rise of the log loss, day by day, is the worth of the feature. Within a day only the feature changes:
   the share of frauds and the age of the data stay.
3. A feature helps if the mean rise over the days is further above 0 than chance explains. Three sets are candidates:
   features whose rise is at most 0, at most one, and at most two standard errors.
4. A model without each set, and one with all features, are grown on the training days and compared on the held-out
   days, which took no part in this. A set is dropped only if average precision is higher and log loss is not. If this
   holds for several sets, the one with the highest average precision is dropped.

The served vector stays the catalogue's; no tree asks for a dropped feature. A catalogue without these features is a
smaller profile and a shorter roll-up.

Example: without `hour` the log loss rises by 0.00002 a day, with a standard error of 0.00003. `hour` is in the second
and the third set. Held-out days give 0.612 with all features, 0.612, 0.617 and 0.609 without each set: the second is
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.evaluation import average_precision
from paywarden.models.training.boosting import HeldOut, OnTree, binned, grow
from paywarden.models.training.calibration import Weight, log_loss, log_losses
from paywarden.models.training.table import blocks_of
from paywarden.models.training.training_settings import TrainingSettings

STANDARD_ERRORS = (0.0, 1.0, 2.0)
"""A set has the features whose rise is at most this many standard errors."""

# More rows hardly change a mean rise, but take long. Frauds are all kept.
_ROWS_MAX = 100_000


@dataclass(frozen=True)
class TriedFeatures:
    """A model without some features. Both measures are means over the folds' held-out days."""

    without: tuple[str, ...]
    average_precision: float
    log_loss: float


@dataclass(frozen=True)
class FeatureChoice:
    """The features that were tried to be dropped. The first of `tried` has all features.

    `rise`: by feature, how much the log loss rose when its values were exchanged, and its standard error.
    `left_out` says why nothing was tried.
    """

    tried: tuple[TriedFeatures, ...] = ()
    rise: Mapping[str, tuple[float, float]] | None = None
    left_out: str = ""

    @property
    def chosen(self) -> TriedFeatures | None:
        """The best set; None if nothing was tried."""
        if not self.tried:
            return None
        whole = self.tried[0]
        better = [
            one
            for one in self.tried[1:]
            if one.average_precision > whole.average_precision and one.log_loss <= whole.log_loss
        ]
        return max(better, key=lambda one: one.average_precision, default=whole)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The features to train without."""
        return () if self.chosen is None else self.chosen.without

    def in_words(self) -> str:
        """Returns a line for people."""
        if self.chosen is None:
            return f"no features dropped: {self.left_out}"
        whole, few = self.tried[0], self.chosen
        if not few.without:
            tried = ", ".join(f"{len(one.without)}" for one in self.tried[1:]) or "0"
            return f"no features dropped: on held-out days no model without some (tried: without {tried}) is better"
        return (
            f"{len(few.without)} features dropped: average precision {few.average_precision:.4f} instead of "
            f"{whole.average_precision:.4f} on held-out days, log loss {few.log_loss:.6f} instead of "
            f"{whole.log_loss:.6f}: {', '.join(few.without)}"
        )

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        return {
            "dropped": [*self.dropped],
            "tried": [asdict(one) | {"without": [*one.without]} for one in self.tried],
            "log_loss_rise": {name: [*pair] for name, pair in (self.rise or {}).items()},
            "not_tried": self.left_out,
        }


def told_of(record: Mapping[str, Any]) -> FeatureChoice:
    """Returns the choice that a manifest stores."""
    tried = tuple(TriedFeatures(**(one | {"without": tuple(one["without"])})) for one in record["tried"])
    rise = {name: (mean, error) for name, (mean, error) in record["log_loss_rise"].items()}
    return FeatureChoice(tried, rise, record["not_tried"])


@dataclass(frozen=True)
class FoldRows:
    """A fold's training rows with their labels as known then, and its held-out rows. `day`: of the training rows."""

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    day: NDArray[np.int64]
    held_out: HeldOut
    weight: Weight = None


def choose_features(
    folds: Sequence[FoldRows],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    is_over: Callable[[], bool],
    on_tree: OnTree | None = None,
) -> FeatureChoice:
    """Returns which features to drop. `settings` have the chosen number of trees.

    `is_over` says whether the time for it is over. If the time ends before the search does, no feature is dropped.
    """
    late = FeatureChoice(left_out="the minutes were over")
    rises: dict[str, list[NDArray[np.float64]]] = {}
    for fold in folds:
        for name, of_days in _rises(fold, settings, feature_names, is_over, on_tree).items():
            rises.setdefault(name, []).append(of_days)
        if is_over():
            return late
    rise = {name: _mean_and_error(np.concatenate(of_days)) for name, of_days in rises.items()}
    if not rise:
        return FeatureChoice(left_out="no block of days has frauds and genuine payments")
    sets: list[tuple[str, ...]] = [()]
    for errors in STANDARD_ERRORS:
        few = tuple(name for name, (mean, error) in rise.items() if mean <= errors * error)
        if few not in sets and len(few) < len(rise):
            sets.append(few)
    measured: list[list[tuple[float, float]]] = [[] for _ in sets]
    for fold in folds:
        data = binned(fold.vectors, fold.label, settings, feature_names, fold.weight)
        for place, without in enumerate(sets):
            if is_over():
                return late
            fewer = replace(settings, leave_out=(*settings.leave_out, *without))
            model = grow(data, fewer, feature_names, on_tree=on_tree)
            score = model.predict(fold.held_out.vectors)
            label, weight = fold.held_out.label, fold.held_out.weight
            measured[place].append((average_precision(label, score, weight), log_loss(label, score, weight)))
    tried = [
        TriedFeatures(without, *np.mean(results, axis=0).tolist())
        for without, results in zip(sets, measured, strict=True)
    ]
    return FeatureChoice(tuple(tried), rise)


def _rises(
    fold: FoldRows,
    settings: TrainingSettings,
    feature_names: Sequence[str],
    is_over: Callable[[], bool],
    on_tree: OnTree | None,
) -> dict[str, NDArray[np.float64]]:
    """Returns by feature the rises of the log loss on the days of a fold, (days,). Features that are left out lack."""
    blocks = blocks_of(fold.day, settings.folds)
    names = [name for name in feature_names if name not in settings.leave_out]
    rises: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for number in np.unique(blocks):
        here = blocks == number
        if not 0 < fold.label[~here].sum() < np.count_nonzero(~here):
            continue
        weight = None if fold.weight is None else fold.weight[~here]
        data = binned(fold.vectors[~here], fold.label[~here], settings, feature_names, weight)
        model = grow(data, settings, feature_names, on_tree=on_tree)
        rows = _thinned(np.flatnonzero(here), fold.label)
        vectors, label, day = fold.vectors[rows], fold.label[rows], fold.day[rows]
        days, day_of_row = np.unique(day, return_inverse=True)
        size = np.bincount(day_of_row)
        usual = np.bincount(day_of_row, _losses(model, vectors, label)) / size
        used = model.feature_importance("split") > 0
        for place, name in enumerate(feature_names):
            if name not in rises:
                continue
            if not used[place]:
                rises[name].append(np.zeros(len(days)))
                continue
            if is_over():
                return {}
            # Rows are in order of days: sorting them by day and chance exchanges values within a day alone.
            chance = np.random.default_rng((settings.seed, number, place)).random(len(rows))
            exchanged = vectors.copy()
            exchanged[:, place] = vectors[np.lexsort((chance, day)), place]
            losses = _losses(model, exchanged, label)
            rises[name].append(np.bincount(day_of_row, losses) / size - usual)
    return {name: np.concatenate(of_blocks) for name, of_blocks in rises.items() if of_blocks}


def _losses(model: Any, vectors: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the log loss of each row, (rows,)."""
    return log_losses(label, model.predict(vectors))


def _thinned(rows: NDArray[np.int64], label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns all frauds among some rows, and every n-th other one, so that about _ROWS_MAX remain. In order."""
    frauds, others = rows[label[rows] == 1], rows[label[rows] == 0]
    return np.sort(np.concatenate((frauds, others[:: max(1, -(-len(others) // _ROWS_MAX))])))


def _mean_and_error(of_days: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the mean over days and its standard error; with a single day chance explains everything."""
    error = float(of_days.std(ddof=1) / np.sqrt(len(of_days))) if len(of_days) > 1 else float("inf")
    return float(of_days.mean()), error
