"""Score with two models: a small first model scores the clear payments, a large model the others.

    vectors ─► first model ─ margin below `low` or above `high`: the payment is clear, and scored
                   │ all others
                   ▼
               large model

How it works:

1. The first model gives every row a margin.
2. A row with a margin below `low` or above `high` is clear. Its score is the first model's own calibrated probability.
3. Callers know only the large model's calibration. A clear row's margin is therefore moved to the large model's scale:
   margin x factor + shift, so that the large model's calibration gives exactly that probability.
4. The large model scores the other rows. No row's score depends on the other rows of its batch.

Example: the first model's calibration has slope 1.2 and intercept -0.4, the large model's slope 1.0 and intercept 0.1;
`low` is -6. A row with the first margin -7 is clear. Its log-odds are 1.2 x -7 - 0.4 = -8.8. On the large scale its
margin is -7 x 1.2/1.0 + (-0.4 - 0.1)/1.0 = -8.9, and 1.0 x -8.9 + 0.1 = -8.8 again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.predictor import Predictor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_ROUNDS = 9


@dataclass(frozen=True)
class Cascade:
    """A cascade as described in a bundle's manifest. All shares count the training window's payments, out of fold.

    Raises ValueError for impossible values and for a disagreement above `disagreement_max`.
    """

    # Margins of the first model. Below `low` and above `high` its score is final.
    low: float
    high: float
    # The first model's calibration: score = 1 / (1 + exp(-(slope * margin + intercept))).
    calibration_slope: float
    calibration_intercept: float
    # Share of the payments that the first model scores.
    share_early: float
    # Share of the payments with another action than the large model's. Held out: with thresholds that were chosen
    # without the payment's fold.
    disagreement: float
    disagreement_held_out: float
    disagreement_max: float
    # The large model's average precision, and by how much the cascade's is lower.
    average_precision_alone: float
    average_precision_loss: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"its low threshold {self.low} is above its high one {self.high}")
        for name in ("disagreement", "disagreement_held_out"):
            if not 0.0 <= getattr(self, name) <= self.disagreement_max:
                raise ValueError(f"its {name} {getattr(self, name)} is not within {self.disagreement_max}")

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Cascade:
        """Returns the cascade of a manifest's record. Raises ValueError for other keys or unusable values."""
        names = get_type_hints(cls).keys()
        if record.keys() != names:
            raise ValueError(f"it lacks fields, or has unknown ones: {', '.join(sorted(names ^ record.keys()))}")
        for name, value in record.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"it has something unusable as {name}")
        return cls(**record)

    def is_clear(self, margins: F64) -> NDArray[np.bool_]:
        """Which of the first model's margins are final, shape (rows,). NaN is not."""
        return np.asarray((margins < self.low) | (margins > self.high), dtype=np.bool_)

    def scale(self, *, slope: float, intercept: float) -> tuple[float, float]:
        """Returns factor and shift from the first model's margins to those of a model with this calibration."""
        return self.calibration_slope / slope, (self.calibration_intercept - intercept) / slope

    def margins_of(self, first: F64, large: F64, *, slope: float, intercept: float) -> F64:
        """Returns the margins of both models together, on the scale of the large one with this calibration.

        `first`, `large`: each model's margins of the same rows, and the result: any one shape.
        """
        factor, shift = self.scale(slope=slope, intercept=intercept)
        return np.where(self.is_clear(first), first * factor + shift, large)


class CascadePredictor:
    """A predictor that uses both models. All margins are on the large model's scale. Not thread-safe."""

    def __init__(self, first: Predictor, large: Predictor, cascade: Cascade, *, slope: float, intercept: float) -> None:
        """`slope` and `intercept` are the large model's calibration."""
        self.first, self.large, self.cascade = first, large, cascade
        self.native = first.native and large.native
        self.early = 0
        """The number of rows that the first model scored in the last call that succeeded."""
        self._factor, self._shift = cascade.scale(slope=slope, intercept=intercept)

    def margins(self, vectors: F32) -> F64:
        margins = self.first.margins(vectors)
        if len(vectors) == 1:
            # A single row avoids array operations, which cost microseconds each.
            margin = margins.item()
            if margin < self.cascade.low or margin > self.cascade.high:
                margins[0] = margin * self._factor + self._shift
                self.early = 1
                return margins
            margins = self.large.margins(vectors)
            self.early = 0
            return margins
        unclear = np.flatnonzero(~self.cascade.is_clear(margins))
        result = margins * self._factor + self._shift
        if len(unclear):
            result[unclear] = self.large.margins(np.ascontiguousarray(vectors[unclear]))
        self.early = len(margins) - len(unclear)
        return result

    def share_early(self, vectors: F32) -> float:
        """Returns the share of these rows that the first model scores."""
        return float(self.cascade.is_clear(self.first.margins(vectors)).mean())


def microseconds_a_row(predictors: Sequence[Predictor], vectors: F32) -> list[float]:
    """Returns the microseconds per row of each predictor, for all rows together: the best of nine rounds in turns."""
    best = [math.inf] * len(predictors)
    for _ in range(_ROUNDS):
        for place, predictor in enumerate(predictors):
            started = time.perf_counter()
            predictor.margins(vectors)
            best[place] = min(best[place], (time.perf_counter() - started) / len(vectors) * 1e6)
    return best


class Explains(Protocol):
    """Says which features moved a score; see `Explainer`."""

    def reasons(self, vector: F32, count_max: int) -> list[str]: ...


class CascadeExplainer:
    """Explains a score by the model that gave it. Not thread-safe."""

    def __init__(self, predictor: CascadePredictor, first: Explains, large: Explains) -> None:
        self._predictor, self._first, self._large = predictor, first, large

    def reasons(self, vector: F32, count_max: int) -> list[str]:
        """See `Explainer.reasons`. Scores the row with the first model again to see whether the payment is clear."""
        row = np.ascontiguousarray(vector).reshape(1, -1)
        is_clear = self._predictor.cascade.is_clear(self._predictor.first.margins(row))[0]
        return (self._first if is_clear else self._large).reasons(vector, count_max)
