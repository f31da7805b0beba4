"""The small world's cascade, loaded, and stand-in models for tests of cascades."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import Bundle, load_bundle
from paywarden.models.bundle.cascade import Cascade, CascadePredictor
from tests.worlds.small import small_world

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
DIGEST = small_world.engine().plan.digest
CASCADE = Cascade(
    low=-2.0,
    high=3.0,
    calibration_slope=1.5,
    calibration_intercept=0.5,
    share_early=0.5,
    disagreement=0.0,
    disagreement_held_out=0.0,
    disagreement_max=1e-4,
    average_precision_alone=0.5,
    average_precision_loss=0.0,
)


@cache
def loaded() -> Bundle:
    return load_bundle(small_world.cascade_bundle(), catalogue_digest=DIGEST)


def predictor() -> CascadePredictor:
    found = loaded().predictor
    assert isinstance(found, CascadePredictor)
    return found


def payments(step: int = 20) -> F32:
    return np.ascontiguousarray(small_world.table().vectors[::step])


class Column:
    """A model whose margin is one column of the vector. `asked` records the rows of each call."""

    native = True

    def __init__(self, column: int) -> None:
        self.column, self.asked = column, list[int]()

    def margins(self, vectors: F32) -> F64:
        assert vectors.flags.c_contiguous
        self.asked.append(len(vectors))
        return vectors[:, self.column].astype(np.float64)
