"""Choose changes to the settings by held-out later days: inputs, weights of rows, sampling, bins, more trees.

How it works:

1. A *change* gives some settings another value, or adds a feature to a list or removes it. `changes_to_try` names the
   changes.
2. On each validation fold, a model with the change is grown on the training days and compared with the best so far on
   the held-out days. The gain is that in average precision, mean over the folds. Both models have COARSE_BINS bins,
   which takes a quarter of the time; only the change of the bins is compared with the bins of the settings.
3. For its interval, cards are drawn again RESAMPLES times (B. Efron, "Bootstrap methods: another look at the
   jackknife", 1979); both models are measured on the same draws.
4. A change whose interval lies above 0 is taken, and later changes are tried on top of it. Each change is tried once.
   Among a dozen changes, chance may take one; such a change costs little.

The stated seconds set the work, and no clock ends it: a constant says how long a fit takes
(models/training/boosting.py). A larger table is sampled, every n-th row with its weight, so that the changes fit into
the work. A slow machine therefore chooses as a fast one does.

Example: `channel` as a category gains 0.031 (0.012 to 0.050): taken. `card_seconds_since_first`, kept, gains 0.004
(-0.003 to 0.011): chance may explain that, and it stays left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.intervals import Z_95
from paywarden.models.training.boosting import COARSE_BINS, HeldOut, OnTree, aged, binned, coarse, fit_seconds, grow
from paywarden.models.training.calibration import Weight
from paywarden.models.training.training_settings import TrainingSettings

RESAMPLES = 100
DELAYS_DAYS = (1, 3)
"""Label delays of fraud features to try beside the catalogue's own. Each takes another passage over the features."""

CATEGORY, LEFT_OUT = "categorical", "leave_out"
"""The settings that a change adds a feature to, or takes it from."""

ROWS_MIN = 20_000
"""Fewer rows of a fold are never sampled: chance would decide."""

# Values to try beside the defaults: trees of a part of features and rows, frauds that count more, weights that halve
# within a third of the window, and categories that few rows move little.
_FEATURE_PART, _ROW_PART = 0.5, 0.8
_FRAUD_WEIGHT = 5.0
_AGE_PART = 3
_SMOOTHING = 100.0


@dataclass(frozen=True)
class Change:
    """What it does, for people; other values of settings, and features that join or leave lists."""

    words: str
    values: Mapping[str, Any] = field(default_factory=dict)
    joins: Mapping[str, str] = field(default_factory=dict)
    leaves: Mapping[str, str] = field(default_factory=dict)

    def applied(self, settings: TrainingSettings) -> TrainingSettings:
        """Returns the settings with the change."""
        changed = dict(self.values)
        for setting, feature in self.joins.items():
            changed[setting] = tuple(dict.fromkeys((*getattr(settings, setting), feature)))
        for setting, feature in self.leaves.items():
            changed[setting] = tuple(name for name in getattr(settings, setting) if name != feature)
        return replace(settings, **changed)


@dataclass(frozen=True)
class TriedChange:
    """A change and its gain in average precision on held-out days, with the 95 % interval."""

    change: Change
    gain: float
    low: float
    high: float

    @property
    def is_taken(self) -> bool:
        """Whether chance does not explain the gain."""
        return self.low > 0

    def in_words(self) -> str:
        """Returns a clause for people."""
        return f"{self.change.words}: average precision {self.gain:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


@dataclass(frozen=True)
class TriedDelay:
    """Another label delay of the catalogue's fraud features, and its gain as of a change. It is only reported.

    The delay belongs to the declaration, which streams and scoring hosts share; no training may change it.
    """

    days: int
    gain: float
    low: float
    high: float

    def in_words(self) -> str:
        """Returns a line for people."""
        verdict = "set it" if self.low > 0 else "chance may explain that"
        return (
            f'on held-out days, label_delay="{self.days}d" in the catalogue: average precision {self.gain:+.4f} '
            f"({self.low:+.4f} to {self.high:+.4f}): {verdict}"
        )


@dataclass(frozen=True)
class ChangeChoice:
    """The changes that were tried, in order, and those that the work had no room for.

    `rows`: how many rows of the training days each fit used, of how many.
    """

    tried: tuple[TriedChange, ...] = ()
    not_tried: tuple[str, ...] = ()
    rows: tuple[int, int] = (0, 0)

    @property
    def taken(self) -> tuple[TriedChange, ...]:
        """The changes that were taken, in order."""
        return tuple(one for one in self.tried if one.is_taken)

    def in_words(self) -> list[str]:
        """Returns lines for people: the changes that were taken first."""
        lines = [
            f"{'chosen' if one.is_taken else 'not chosen'} on held-out days: {one.in_words()}"
            for one in sorted(self.tried, key=lambda one: not one.is_taken)
        ]
        if self.tried and self.rows[0] < self.rows[1]:
            lines.append(f"changes were tried on {self.rows[0]} of {self.rows[1]} payments of the training days")
        if self.not_tried:
            lines.append(f"not tried within the work of --choose-seconds: {', '.join(self.not_tried)}")
        return lines

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        return asdict(self)


def change_choice_of(record: Mapping[str, Any]) -> ChangeChoice:
    """Returns the choice that a manifest stores."""
    tried = tuple(TriedChange(Change(**one["change"]), one["gain"], one["low"], one["high"]) for one in record["tried"])
    return ChangeChoice(tried, tuple(record["not_tried"]), tuple(record["rows"]))


def changes_to_try(
    settings: TrainingSettings, *, day_count: int, codes: Sequence[str], growing: Sequence[str], is_capped: bool
) -> tuple[Change, ...]:
    """Returns the changes to try, in order: those that cost more come last.

    `codes`: the catalogue's categories. `growing`: features that leave their range with the age of the data.
    `is_capped`: whether early stopping would have grown more trees than the settings allow.
    """
    changes = []
    if settings.feature_fraction == settings.bagging_fraction == 1.0:
        parts = {"feature_fraction": _FEATURE_PART, "bagging_fraction": _ROW_PART}
        changes.append(Change(f"trees of {_FEATURE_PART:.0%} of the features, {_ROW_PART:.0%} of the rows", parts))
    if settings.fraud_weight == 1.0:
        changes.append(Change(f"frauds weigh {_FRAUD_WEIGHT:g} times", {"fraud_weight": _FRAUD_WEIGHT}))
    if not settings.age_half_life_days and (half_life := day_count // _AGE_PART):
        changes.append(Change(f"weights halve every {half_life} days of age", {"age_half_life_days": half_life}))
    for name in growing:
        in_list = {LEFT_OUT: name}
        is_out = name in settings.leave_out
        changes.append(Change(f"{name} kept", leaves=in_list) if is_out else Change(f"{name} left out", joins=in_list))
    smooth = {"category_smoothing": _SMOOTHING}
    # Categories have no direction.
    for name in (name for name in codes if name not in settings.monotone):
        in_list = {CATEGORY: name}
        if name in settings.categorical:
            changes.append(Change(f"{name} as a number", leaves=in_list))
        else:
            changes.append(Change(f"{name} as a category", joins=in_list))
            changes.append(Change(f"{name} as a smoothed category", smooth, in_list))
    if is_capped:
        changes.append(Change(f"{2 * settings.trees} trees", {"trees": 2 * settings.trees}))
    if settings.max_bin > COARSE_BINS:
        changes.append(Change(f"{COARSE_BINS} bins", {"max_bin": COARSE_BINS}))
    return tuple(changes)


@dataclass(frozen=True)
class FoldRows:
    """A fold's training rows with their labels as known then, and its held-out rows.

    `day`: of the training rows. `card`: of the held-out rows.
    """

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    day: NDArray[np.int64]
    held_out: HeldOut
    card: NDArray[np.integer]
    weight: Weight = None

    def thinned(self, rows_max: int) -> FoldRows:
        """Returns at most about `rows_max` rows of either part; each stands for those that are left out."""
        rows, weight = thinned_rows(self.label, self.weight, rows_max)
        later, later_weight = thinned_rows(self.held_out.label, self.held_out.weight, rows_max)
        return FoldRows(
            self.vectors[rows],
            self.label[rows],
            self.day[rows],
            HeldOut(self.held_out.vectors[later], self.held_out.label[later], later_weight),
            self.card[later],
            weight,
        )


def choose_changes(
    folds: Sequence[FoldRows],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    changes: Sequence[Change],
    *,
    seconds: float,
    on_tree: OnTree | None = None,
) -> ChangeChoice:
    """Returns which changes to take. `settings` have the chosen number of trees.

    `seconds` set the work. No clock is asked.
    """
    whole = sum(len(fold.label) for fold in folds)
    # One fit more for the settings themselves. A fit of fine bins takes as long as several.
    wanted = fit_seconds(whole, len(feature_names), coarse(settings)) + sum(
        _seconds(change, settings, whole, len(feature_names)) for change in changes
    )
    folds = _fitting(folds, wanted, seconds)
    rows = sum(len(fold.label) for fold in folds)

    def precisions(tried: TrainingSettings) -> NDArray[np.float64]:
        return _mean_precisions(folds, tried, feature_names, on_tree)

    best, found, skipped = None, [], []
    left = seconds - fit_seconds(rows, len(feature_names), coarse(settings))
    for change in changes:
        left -= _seconds(change, settings, rows, len(feature_names))
        if left < 0:
            skipped.append(change.words)
            continue
        best = precisions(coarse(settings)) if best is None else best
        with_it = change.applied(settings)
        if "max_bin" in change.values:
            # The best so far has coarse bins.
            measured, gains = best, best - precisions(settings)
        else:
            measured = precisions(coarse(with_it))
            gains = measured - best
        found.append(TriedChange(change, *_gain(gains)))
        if found[-1].is_taken:
            settings, best = with_it, measured
    return ChangeChoice(tuple(found), tuple(skipped), (rows, whole))


def gains_of_vectors(
    folds: Sequence[FoldRows],
    others: Iterable[Sequence[FoldRows]],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    seconds: float,
) -> list[tuple[float, float, float]]:
    """Returns what the same rows with each of the other vectors gain in average precision, with 95 % intervals.

    `others` may make each one when it is asked for: only one is in memory.
    """
    of_one = fit_seconds(sum(len(fold.label) for fold in folds), len(feature_names), coarse(settings))

    def precisions(rows: Sequence[FoldRows]) -> NDArray[np.float64]:
        return _mean_precisions(_fitting(rows, 2 * of_one, seconds), coarse(settings), feature_names)

    before = precisions(folds)
    return [_gain(after - before) for after in map(precisions, others)]


def _fitting(folds: Sequence[FoldRows], wanted: float, seconds: float) -> Sequence[FoldRows]:
    """Returns the folds, thinned where their work of `wanted` seconds would take more than `seconds`."""
    if wanted <= seconds:
        return folds
    rows_max = max(ROWS_MIN, int(seconds / wanted * sum(len(fold.label) for fold in folds) / len(folds)))
    return [fold.thinned(rows_max) for fold in folds]


def _mean_precisions(
    folds: Sequence[FoldRows], settings: TrainingSettings, feature_names: Sequence[str], on_tree: OnTree | None = None
) -> NDArray[np.float64]:
    """Returns the mean average precision over the folds, (1 + RESAMPLES,): of all rows, then of each draw."""
    of_folds = []
    for fold in folds:
        data = binned(fold.vectors, fold.label, settings, feature_names, aged(fold.weight, fold.day, settings))
        score = grow(data, settings, feature_names, on_tree=on_tree).predict(fold.held_out.vectors)
        of_folds.append(_precisions(fold.held_out.label, score, _draws(fold, settings.seed)))
    return np.asarray(np.mean(of_folds, axis=0), dtype=np.float64)


def _gain(gains: NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns the gain of all rows, and its 95 % interval by the gains of the draws, (1 + RESAMPLES,)."""
    gain, spread = float(gains[0]), Z_95 * float(gains[1:].std(ddof=1))
    return gain, gain - spread, gain + spread


def _seconds(change: Change, settings: TrainingSettings, rows: int, features: int) -> float:
    """Returns how long the fit of a change takes."""
    is_of_bins = "max_bin" in change.values
    return fit_seconds(rows, features, settings if is_of_bins else coarse(change.applied(settings)))


def thinned_rows(label: NDArray[np.int64], weight: Weight, rows_max: int) -> tuple[NDArray[np.int64], Weight]:
    """Returns some rows, in order, and how many payments each stands for: up to a quarter of them are frauds."""
    if len(label) <= rows_max:
        return np.arange(len(label)), weight
    frauds, genuine = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    each_fraud = max(1, -(-len(frauds) // (rows_max // 4)))
    frauds = frauds[::each_fraud]
    each_genuine = max(1, -(-len(genuine) // max(1, rows_max - len(frauds))))
    rows = np.sort(np.concatenate((frauds, genuine[::each_genuine])))
    stands = np.where(label[rows] == 1, float(each_fraud), float(each_genuine))
    return rows, stands if weight is None else stands * weight[rows]


def _draws(fold: FoldRows, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yields how often each held-out row counts: once, and RESAMPLES times as its card is drawn."""
    cards, place = np.unique(fold.card, return_inverse=True)
    weight = np.ones(len(place)) if fold.held_out.weight is None else fold.held_out.weight
    yield weight
    random = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield random.poisson(1.0, len(cards))[place] * weight


def _precisions(
    label: NDArray[np.int64], score: NDArray[np.float64], draws: Iterable[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Returns the average precision with each of the weights, (draws,); 0 without a fraud."""
    order = np.argsort(-score, kind="stable")
    is_fraud = label[order]
    ends = np.flatnonzero(np.append(score[order][1:] != score[order][:-1], True))
    found = []
    for drawn in draws:
        weight = drawn[order]
        flagged, caught = np.cumsum(weight)[ends], np.cumsum(weight * is_fraud)[ends]
        share = np.divide(caught, flagged, out=np.zeros_like(caught), where=flagged > 0)
        found.append(float(np.diff(caught, prepend=0.0) @ share) / float(caught[-1]) if caught[-1] else 0.0)
    return np.array(found)
