"""A bundle for tests of everything but the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class CertainBundle:
    """A model that scores every payment as harmless, and explains it by one number of the vector."""

    class manifest:  # noqa: N801
        model_version = "certain"
        calibration_slope, calibration_intercept = 1.0, 0.0

    class predictor:  # noqa: N801
        @staticmethod
        def margins(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.full(len(vectors), -9.0)

    def __init__(self, feature: str, place: int) -> None:
        """`feature`: the name of the number at `place` in the vector."""
        self._feature, self._place = feature, place

    @property
    def explainer(self) -> CertainBundle:
        return self

    def reasons(self, vector: NDArray[np.float32], count_max: int) -> list[str]:
        return [f"feature:{self._feature}={vector[self._place]:g} (+{count_max}.00)"]
