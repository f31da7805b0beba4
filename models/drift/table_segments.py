"""The segments of a training table's payments, for the reference of drift detection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TableSegments:
    """The times of a table's payments, ascending, and their values of DIMENSIONS in models/drift/binning.py.

    `time_ms`: (rows,), milliseconds since the epoch. `values`: one array of texts or None for each dimension, (rows,).
    """

    time_ms: NDArray[np.int64]
    values: tuple[NDArray[np.object_], ...]

    def of(self, rows: NDArray[np.bool_]) -> TableSegments:
        """Returns the segments of some of the payments. `rows`: (rows,)."""
        return TableSegments(self.time_ms[rows], tuple(column[rows] for column in self.values))
