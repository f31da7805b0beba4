"""What a search tries: parameters, and the numbers of trees to try with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TREES = "trees"
"""The parameter that a path grows along."""

Parameters = Mapping[str, int | float | None]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class CandidatePath:
    """Candidates that share their parameters but the number of trees, `sizes`, ascending. No sizes: one candidate."""

    parameters: Parameters
    sizes: tuple[int, ...] = ()

    def candidates(self) -> list[Parameters]:
        """The parameters of each, in the order of their scores."""
        return [{TREES: size, **self.parameters} for size in self.sizes] or [self.parameters]
