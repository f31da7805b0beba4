"""Choose how trees see some features: codes as categories or as numbers, and clocks or not, by held-out later days.

How it works:

1. A *change* turns one thing around: a category of the catalogue becomes one for the trees (or a number again), or a
   feature that grows with the age of the data is kept although its range says otherwise (or left out).
2. On each validation fold, a model with the change and one without are grown on the training days and compared on the
   held-out days. The gain is that in average precision, mean over the folds.
3. For its interval, cards are drawn again RESAMPLES times (B. Efron, "Bootstrap methods: another look at the
   jackknife", 1979); both models are measured on the same draws.
4. The change with the highest gain is taken if its interval lies above 0, and the others are tried again on top of it,
   at most ROUNDS times. The gain of the best of several is a little too good for other days.

Example: `channel` as a category gains 0.031 (0.012 to 0.050): taken. `card_seconds_since_first`, kept, gains 0.004
(-0.003 to 0.011): chance may explain that, and it stays left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.intervals import Z_95
from paywarden.models.training.boosting import HeldOut, OnTree, binned, grow
from paywarden.models.training.calibration import Weight
from paywarden.models.training.training_settings import TrainingSettings

ROUNDS = 3
RESAMPLES = 100
CATEGORY, LEFT_OUT = "categorical", "leave_out"
"""The settings that a change adds a feature to, or takes it from."""


@dataclass(frozen=True)
class InputChange:
    """A feature that joins a setting, CATEGORY or LEFT_OUT, or leaves it."""

    setting: str
    feature: str
    joins: bool

    def applied(self, settings: TrainingSettings) -> TrainingSettings:
        """Returns the settings with the change."""
        names = [name for name in getattr(settings, self.setting) if name != self.feature]
        changed: dict[str, Any] = {self.setting: (*names, self.feature) if self.joins else tuple(names)}
        return replace(settings, **changed)

    def in_words(self) -> str:
        """Returns a clause for people."""
        if self.setting == CATEGORY:
            return f"{self.feature} as a {'category' if self.joins else 'number'}"
        return f"{self.feature} {'left out' if self.joins else 'kept'}"


@dataclass(frozen=True)
class TriedChange:
    """A change and its gain in average precision on held-out days, with the 95 % interval."""

    change: InputChange
    gain: float
    low: float
    high: float

    def in_words(self) -> str:
        """Returns a clause for people."""
        return f"{self.change.in_words()}: average precision {self.gain:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


@dataclass(frozen=True)
class InputChoice:
    """The changes that were taken, in order, and the others with their last gain. `is_late`: the minutes were over."""

    taken: tuple[TriedChange, ...] = ()
    others: tuple[TriedChange, ...] = ()
    is_late: bool = False

    def in_words(self) -> list[str]:
        """Returns lines for people."""
        lines = [f"chosen on held-out days: {one.in_words()}" for one in self.taken]
        lines += [f"tried on held-out days, and not chosen: {one.in_words()}" for one in self.others]
        return [*lines, *(["further inputs were not tried: the minutes were over"] if self.is_late else [])]

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        return asdict(self)


def input_choice_of(record: Mapping[str, Any]) -> InputChoice:
    """Returns the choice that a manifest stores."""
    taken, others = (
        tuple(TriedChange(InputChange(**one["change"]), one["gain"], one["low"], one["high"]) for one in record[part])
        for part in ("taken", "others")
    )
    return InputChoice(taken, others, record["is_late"])


def input_changes(settings: TrainingSettings, codes: Sequence[str], clocks: Sequence[str]) -> tuple[InputChange, ...]:
    """Returns the changes to try. `codes`: the catalogue's categories. `clocks`: features that grow with the data."""
    # Categories have no direction.
    of_codes = [
        InputChange(CATEGORY, name, name not in settings.categorical) for name in codes if name not in settings.monotone
    ]
    of_clocks = [InputChange(LEFT_OUT, name, name not in settings.leave_out) for name in clocks]
    return (*of_codes, *of_clocks)


@dataclass(frozen=True)
class InputRows:
    """A fold's training rows with their labels as known then, and its held-out rows. `card`: of the held-out rows."""

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    held_out: HeldOut
    card: NDArray[np.integer]
    weight: Weight = None


def choose_inputs(
    folds: Sequence[InputRows],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    changes: Sequence[InputChange],
    *,
    is_over: Callable[[], bool],
    on_tree: OnTree | None = None,
) -> InputChoice:
    """Returns which changes to take. `settings` have the chosen number of trees.

    `is_over` says whether the time for it is over. A round that does not end in time takes nothing.
    """
    taken: list[TriedChange] = []
    others: list[TriedChange] = []

    def precisions(tried: TrainingSettings) -> NDArray[np.float64]:
        """Returns the mean average precision over the folds, (1 + RESAMPLES,): of all rows, then of each draw."""
        of_folds = []
        for fold in folds:
            data = binned(fold.vectors, fold.label, tried, feature_names, fold.weight)
            model = grow(data, tried, feature_names, on_tree=on_tree)
            score = model.predict(fold.held_out.vectors)
            of_folds.append(_precisions(fold.held_out.label, score, _draws(fold, tried.seed)))
        return np.asarray(np.mean(of_folds, axis=0), dtype=np.float64)

    left = list(changes)
    for _ in range(ROUNDS):
        if not left or is_over():
            break
        before, others = precisions(settings), []
        for change in left:
            if is_over():
                return InputChoice(tuple(taken), tuple(others), is_late=True)
            gains = precisions(change.applied(settings)) - before
            spread = Z_95 * float(gains[1:].std(ddof=1))
            others.append(TriedChange(change, float(gains[0]), float(gains[0]) - spread, float(gains[0]) + spread))
        best = max(others, key=lambda one: one.gain)
        if best.low <= 0:
            break
        taken.append(best)
        others.remove(best)
        left.remove(best.change)
        settings = best.change.applied(settings)
    return InputChoice(tuple(taken), tuple(others), is_late=bool(left) and is_over())


def _draws(fold: InputRows, seed: int) -> Iterator[NDArray[np.float64]]:
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
