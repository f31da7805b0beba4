"""The candidates of a search: parameters, and the numbers of trees to try with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TREES = "trees"
"""The parameter in which the candidates of one path differ."""

Parameters = Mapping[str, int | float | None]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class CandidatePath:
    """Candidates that differ only in their number of trees. `sizes`: ascending; empty for a single candidate."""

    parameters: Parameters
    sizes: tuple[int, ...] = ()

    def candidates(self) -> list[Parameters]:
        """Returns the parameters of each candidate, in the order of `sizes`."""
        return [{TREES: size, **self.parameters} for size in self.sizes] or [self.parameters]
