"""The segments of a training table's payments, for the reference of drift detection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TableSegments:
    """When a table's payments were made, in order, and for each of models/binning.py's DIMENSIONS its texts or None.

    All (rows,).
    """

    time_ms: NDArray[np.int64]
    values: tuple[NDArray[np.object_], ...]
