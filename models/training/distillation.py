"""Distil several models into one of the served size.

How it works:

1. The teachers are `seeds` models that differ in their seed alone: in the rows and features that their trees see. The
   mean of their margins errs less than one model does, but would take `seeds` times as long to serve.
2. Each row gets a soft label, halfway between its true label and the teachers' probability. That probability is out of
   fold: no teacher has seen the row. Otherwise it would only repeat the label.
3. The student has the served size and is trained on the soft labels, with cross-entropy. A fraud that no teacher
   recognises weighs less there, and chance in the labels is smoothed.
4. On the held-out days of the search, a student and a plain model are compared. The student is taken only if its
   average precision is higher (G. Hinton and others, "Distilling the knowledge in a neural network", 2015).

Example: a fraud looks like any other payment, and five teachers give it 0.02. Its soft label is 0.51. A genuine payment
that looks like fraud, 0.80, gets 0.40: trees no longer bend around either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.training.boosting import OnTree, binned, grow, grow_on_shares
from paywarden.models.training.calibration import Weight
from paywarden.models.training.training_settings import TrainingSettings

SOFT_PART = 0.5
"""How much of a soft label is the teachers' probability."""

# Teachers with all rows and all features would be the same model.
_FEATURES_MAX, _ROWS_MAX = 0.5, 0.8


@dataclass(frozen=True)
class Distilled:
    """Average precision of both on the held-out days, and whether the student was taken."""

    seeds: int
    plain_average_precision: float
    student_average_precision: float

    @property
    def is_taken(self) -> bool:
        """Whether the student is better."""
        return self.student_average_precision > self.plain_average_precision

    def in_words(self) -> str:
        """Returns a line for people."""
        verdict = "taken" if self.is_taken else "not taken: it is no better"
        return (
            f"distilled from {self.seeds} models: average precision {self.student_average_precision:.4f} instead of "
            f"{self.plain_average_precision:.4f} on the held-out days, {verdict}"
        )

    def record(self) -> dict[str, Any]:
        """Returns it as a manifest stores it."""
        return asdict(self) | {"is_taken": self.is_taken}


def soft_labels(
    vectors: NDArray[np.float32],
    label: NDArray[np.int64],
    fold: NDArray[np.int64],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    on_tree: OnTree | None = None,
    weight: Weight = None,
) -> NDArray[np.float64]:
    """Returns a soft label for each row, (rows,).

    `fold`: (rows,), the number of each row's block. A block is scored by teachers of all others. With a single block,
    there is no such teacher, and the labels are returned.
    """
    numbers = np.unique(fold)
    soft = label.astype(np.float64)
    if len(numbers) < 2:
        return soft
    for number in numbers:
        held_out = fold == number
        if not 0 < label[~held_out].sum() < np.count_nonzero(~held_out):
            continue
        teachers = [_of_seed(settings, seed) for seed in range(settings.seeds)]
        data = binned(
            vectors[~held_out], label[~held_out], settings, feature_names, None if weight is None else weight[~held_out]
        )
        margins = np.zeros(int(held_out.sum()))
        for teacher in teachers:
            margins += grow(data, teacher, feature_names, on_tree=on_tree).predict(vectors[held_out], raw_score=True)
        probability = calibrated(margins / len(teachers), 1.0, 0.0)
        soft[held_out] = (1.0 - SOFT_PART) * label[held_out] + SOFT_PART * probability
    return soft


def grow_student(
    vectors: NDArray[np.float32],
    soft: NDArray[np.float64],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    on_tree: OnTree | None = None,
    weight: Weight = None,
) -> Any:
    """Returns the student: a model of the served size, trained on soft labels."""
    data = binned(vectors, soft, settings, feature_names, weight)
    return grow_on_shares(data, settings, feature_names, on_tree=on_tree)


def _of_seed(settings: TrainingSettings, seed: int) -> TrainingSettings:
    return replace(
        settings,
        seed=settings.seed + seed,
        feature_fraction=min(settings.feature_fraction, _FEATURES_MAX),
        bagging_fraction=min(settings.bagging_fraction, _ROWS_MAX),
    )
