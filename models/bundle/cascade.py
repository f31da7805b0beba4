"""Two models that score as one: a small one answers the clear payments, the large one the rest.

    vectors ─► first model ─ margin below `low` or above `high`: clear, and answered
                   │ the others
                   ▼
               large model

A clear payment's score is the first model's own calibrated probability. Everybody else knows one scale of margins, the
large model's: a first model's margin is put on it, so that the large model's calibration makes that probability of it.
Rows are asked about one by one in effect: no row's score depends on what is scored beside it.
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
    """What a bundle's manifest says of its cascade. All shares are of the training window's payments, out of fold.

    Raises ValueError for one that has not passed, or says something that cannot be.
    """

    # Margins of the first model: below `low` and above `high` it answers.
    low: float
    high: float
    # Of the first model: score = 1 / (1 + exp(-(slope * margin + intercept))).
    calibration_slope: float
    calibration_intercept: float
    share_early: float
    # Payments whose action is not the large model's; held out, by thresholds that were chosen without them.
    disagreement: float
    disagreement_held_out: float
    disagreement_max: float
    # Of the large model alone, and what the cascade has less of it.
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
        """From a manifest. Raises ValueError for anything but what `asdict` gave."""
        names = get_type_hints(cls).keys()
        if record.keys() != names:
            raise ValueError(f"it lacks or does not know {', '.join(sorted(names ^ record.keys()))}")
        for name, value in record.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"it has something unusable as {name}")
        return cls(**record)

    def is_clear(self, margins: F64) -> NDArray[np.bool_]:
        """Which of the first model's margins are answers, shape (rows,). One that is no number is none."""
        return np.asarray((margins < self.low) | (margins > self.high), dtype=np.bool_)

    def scale(self, *, slope: float, intercept: float) -> tuple[float, float]:
        """Factor and shift from the first model's margins to those of a model with this calibration."""
        return self.calibration_slope / slope, (self.calibration_intercept - intercept) / slope


class CascadePredictor:
    """Margins on the large model's scale, whichever of the two gave them. Not thread-safe."""

    def __init__(self, first: Predictor, large: Predictor, cascade: Cascade, *, slope: float, intercept: float) -> None:
        """`slope` and `intercept` are the large model's calibration."""
        self.first, self.large, self.cascade = first, large, cascade
        self.native = first.native and large.native
        self.early = 0
        """Of the rows of the last call that succeeded, how many the first model answered."""
        self._factor, self._shift = cascade.scale(slope=slope, intercept=intercept)

    def margins(self, vectors: F32) -> F64:
        margins = self.first.margins(vectors)
        if len(vectors) == 1:
            # The way of a payment alone, without the microseconds that small arrays take.
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
        """Share of these rows that the first model answers."""
        return float(self.cascade.is_clear(self.first.margins(vectors)).mean())


def microseconds_a_row(predictors: Sequence[Predictor], vectors: F32) -> list[float]:
    """What each takes for a row of these, all scored together: the best of some rounds in turns."""
    best = [math.inf] * len(predictors)
    for _ in range(_ROUNDS):
        for place, predictor in enumerate(predictors):
            started = time.perf_counter()
            predictor.margins(vectors)
            best[place] = min(best[place], (time.perf_counter() - started) / len(vectors) * 1e6)
    return best


class Explains(Protocol):
    """Tells what moved a score; see `Explainer`."""

    def reasons(self, vector: F32, count_max: int) -> list[str]: ...


class CascadeExplainer:
    """Reasons of the model that decided. Not thread-safe."""

    def __init__(self, predictor: CascadePredictor, first: Explains, large: Explains) -> None:
        self._predictor, self._first, self._large = predictor, first, large

    def reasons(self, vector: F32, count_max: int) -> list[str]:
        """See `Explainer.reasons`; asks the first model once more whether the payment is clear."""
        row = np.ascontiguousarray(vector).reshape(1, -1)
        is_clear = self._predictor.cascade.is_clear(self._predictor.first.margins(row))[0]
        return (self._first if is_clear else self._large).reasons(vector, count_max)
