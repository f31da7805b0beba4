"""Scores feature vectors with the primary model, else with the fallback model, else with none.

    vectors ─► primary ─ no failure: one call scores all of them
                  │ an exception, or a margin that is NaN or infinite
                  ▼
               one payment after the other: primary ─► fallback ─► no score: rules and flags decide

1. While the primary model works, one call scores a whole chunk.
2. If a model fails on a payment, the chain asks the next model. The payment gets the flag `model_error`.
3. Until the primary works again, every payment is scored alone, so that a payment it fails on affects no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import Bundle, sigmoid
from paywarden.models.bundle.cascade import CascadePredictor
from paywarden.models.bundle.predictor import NativePredictor, bound
from paywarden.models.policy.policy import MODEL_ABSENT, MODEL_ERROR
from paywarden.scoring.metrics.model import PLACES, ModelMetrics
from paywarden.scoring.metrics.shared_metrics import Counter

NO_MODEL = -1
_NO_FLAGS: tuple[str, ...] = ()


class Scored(NamedTuple):
    """Scores of vectors, in order. `models` are indexes into the chain, or NO_MODEL where the score is None.

    `flags` are those of the models only; nearly always empty.
    """

    scores: list[float | None]
    models: list[int]
    flags: list[tuple[str, ...]]


class NativeModel(NamedTuple):
    """A model's function (models/bundle/predictor.py), its calibration, and the counter of payments that it scored.

    The address holds as long as the bundle is loaded.
    """

    address: int
    slope: float
    intercept: float
    scored: Counter


class ModelChain:
    """Scores vectors even when models fail. Not thread-safe."""

    def __init__(self, bundles: Sequence[Bundle], *, metrics: ModelMetrics) -> None:
        """`bundles`: the primary model, and optionally the fallback model."""
        assert 1 <= len(bundles) < len(PLACES)
        self._models = [_Model(bundle, place, metrics) for bundle, place in zip(bundles, PLACES, strict=False)]
        self._primary = self._models[0]
        self._scored_by_none = metrics.scored[PLACES[-1]]
        # The last entry is for NO_MODEL, which is -1.
        self.versions = (*(bundle.manifest.model_version for bundle in bundles), "")
        """The version of each model of the chain; empty for NO_MODEL."""

    @property
    def is_well(self) -> bool:
        """Whether whole chunks may use the primary model: its last call succeeded."""
        return self._primary.is_well

    @property
    def native(self) -> NativeModel | None:
        """The primary model for compiled code that calls it; None unless it is a native library of one model."""
        primary = self._primary
        if not isinstance(primary.predictor, NativePredictor):
            return None
        return NativeModel(primary.predictor.address, primary.slope, primary.intercept, primary.scored)

    def score(self, vectors: NDArray[np.float32]) -> Scored:
        """Returns calibrated probabilities of fraud. `vectors`: shape (rows, features), C-contiguous. Never raises."""
        return self.bind(vectors)(len(vectors))

    def bind(self, vectors: NDArray[np.float32]) -> Callable[[int], Scored]:
        """Returns a function that scores the first `count` rows of `vectors`, as they are when it is called."""
        primary = self._primary
        margins_of, slope, intercept = bound(primary.predictor, vectors), primary.slope, primary.intercept

        def score(count: int) -> Scored:
            if primary.is_well:
                try:
                    margins = margins_of(count)
                except Exception:  # noqa: BLE001 - payments must be answered whatever a model raises; the retry counts it
                    return self._score_singly(vectors[:count])
                # Margins are too small for their sum to overflow, so the sum is finite exactly when all of them are.
                if len(margins) == count and math.isfinite(sum(margins)):
                    primary.scored.add(count)
                    if (cascade := primary.cascade) is not None:
                        # Not in a method of its own: a lone payment then costs one counter and no call.
                        if early := cascade.early:
                            primary.answered_first.add(early)
                        if early < count:
                            primary.answered_large.add(count - early)
                    scores: list[float | None] = [sigmoid(slope * margin + intercept) for margin in margins]
                    return Scored(scores, [0] * count, [_NO_FLAGS] * count)
            return self._score_singly(vectors[:count])

        return score

    def reasons(self, vector: NDArray[np.float32], model: int, count_max: int) -> list[str]:
        """Returns the features that raised this model's score most; see `Explainer.reasons`.

        `vector`: shape (features,). Empty for NO_MODEL. Takes some 15 µs, so ask only for payments not approved.
        """
        if model == NO_MODEL or count_max == 0:
            return []
        return self._models[model].explainer.reasons(vector, count_max)

    def _score_singly(self, vectors: NDArray[np.float32]) -> Scored:
        result = Scored([], [], [])
        for row in range(len(vectors)):
            score, model, flags = self._score_one(vectors[row : row + 1])
            result.scores.append(score)
            result.models.append(model)
            result.flags.append(flags)
        return result

    def _score_one(self, vector: NDArray[np.float32]) -> tuple[float | None, int, tuple[str, ...]]:
        for index, model in enumerate(self._models):
            margin = model.try_margin(vector)
            if margin is not None:
                return sigmoid(model.slope * margin + model.intercept), index, (MODEL_ERROR,) if index else _NO_FLAGS
        self._scored_by_none.add(1)
        return None, NO_MODEL, (MODEL_ERROR, MODEL_ABSENT)


class _Model:
    """A bundle in the chain. `is_well`: its last call succeeded, so whole chunks may use it."""

    def __init__(self, bundle: Bundle, place: str, metrics: ModelMetrics) -> None:
        self.predictor, self.explainer = bundle.predictor, bundle.explainer
        self.slope, self.intercept = bundle.manifest.calibration_slope, bundle.manifest.calibration_intercept
        self.cascade = bundle.predictor if isinstance(bundle.predictor, CascadePredictor) else None
        self.answered_first, self.answered_large = metrics.answered_first, metrics.answered_large
        self.scored, self._errors, self._is_out = metrics.scored[place], metrics.errors[place], metrics.is_out[place]
        self._is_out.set(0)
        self.is_well = True

    def try_margin(self, vector: NDArray[np.float32]) -> float | None:
        """Returns the margin of one vector, shape (1, features); None when the model fails."""
        try:
            margin = float(self.predictor.margins(vector)[0])
        except Exception:  # noqa: BLE001 - see `ModelChain.score`
            margin = math.nan
        self.is_well = math.isfinite(margin)
        self._is_out.set(not self.is_well)
        if not self.is_well:
            self._errors.add(1)
            return None
        self.scored.add(1)
        if self.cascade is not None:
            (self.answered_first if self.cascade.early else self.answered_large).add(1)
        return margin
