"""How decisions are counted to see whether they change: bins of scores and features, and segments.

Histograms over the same bins add up, over payments, partitions and times. So this is decided once, when a model is
trained, from its training window, and goes with the bundle; what is counted later lies in the same bins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FEATURE_BINS = 16
MISSING = FEATURE_BINS
"""The place of missing values (NaN), behind the bins of a feature: each feature has FEATURE_BINS + 1 places."""
DIMENSIONS = ("channel", "country", "mcc")
"""The fields of a decision by whose values it is counted apart."""
OVERALL = "overall"
NONE, OTHER = "none", "other"
"""Of a dimension: no value, and all values that have no segment of their own. Segments are named DIMENSION=VALUE."""

DIGEST_SIZE = 8


@dataclass(frozen=True)
class Binning:
    """Bins and segments of one model.

    `score_edges`: (score bins - 1,) float64, rising. A score lies in the bin after the last edge that is not above it.
    `feature_edges`: (features, FEATURE_BINS - 1) float32, rising in each row, with infinity where there are fewer.
    `values`: for each of DIMENSIONS the values with a segment of their own, in any order, without NONE and OTHER.
    `flags`: those of a decision's flags that are counted by name.
    """

    score_edges: NDArray[np.float64]
    feature_edges: NDArray[np.float32]
    values: tuple[tuple[str, ...], ...]
    flags: tuple[str, ...] = ()

    @property
    def score_bins(self) -> int:
        """How many bins scores have."""
        return len(self.score_edges) + 1

    @property
    def feature_count(self) -> int:
        """How many features a vector has."""
        return len(self.feature_edges)

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """Names of all segments: OVERALL first, then dimension by dimension its values, NONE and OTHER."""
        names = [OVERALL]
        for dimension, values in zip(DIMENSIONS, self.values, strict=True):
            names += [f"{dimension}={value}" for value in (*values, NONE, OTHER)]
        return tuple(names)

    @cached_property
    def digest(self) -> bytes:
        """DIGEST_SIZE bytes: of two binnings with equal digests the counts may be added."""
        whole = hashlib.sha256(repr((self.values, self.flags)).encode())
        whole.update(self.score_edges.astype("<f8").tobytes() + self.feature_edges.astype("<f4").tobytes())
        return whole.digest()[:DIGEST_SIZE]

    @cached_property
    def digest_text(self) -> str:
        """The digest, in hexadecimal."""
        return self.digest.hex()

    def bins_of_scores(self, scores: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The bin of each score, shape (rows,)."""
        return np.searchsorted(self.score_edges, scores, side="right").astype(np.uint8)

    def bins_of_features(self, vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bin of each value, MISSING for NaN. `vectors` and the result: (rows, features)."""
        bins = np.empty(vectors.shape, dtype=np.uint8)
        for column, edges in enumerate(self.feature_edges):
            bins[:, column] = np.searchsorted(edges, vectors[:, column], side="right")
        bins[np.isnan(vectors)] = MISSING
        return bins

    def segments_of(self, columns: Sequence[Sequence[str | None]]) -> NDArray[np.uint16]:
        """Numbers of the segments of each row, shape (rows, 1 + dimensions): OVERALL first.

        `columns`: for each of DIMENSIONS the rows' values.
        """
        found = np.zeros((len(columns[0]), 1 + len(DIMENSIONS)), dtype=np.uint16)
        for place, (known, column) in enumerate(zip(self._numbers, columns, strict=True), 1):
            other = known[OTHER]
            found[:, place] = [known.get(value, other) for value in column]
        return found

    @cached_property
    def _numbers(self) -> tuple[dict[str | None, int], ...]:
        """For each dimension the number of each value's segment; of None, NONE's."""
        tables: list[dict[str | None, int]] = []
        number = 1
        for values in self.values:
            table: dict[str | None, int] = {}
            for value in (*values, None, OTHER):
                table[value] = number
                number += 1
            tables.append(table)
        return tuple(tables)
