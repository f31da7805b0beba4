"""The bins and segments in which decisions are counted to detect drift.

Histograms over the same bins can be added: over payments, partitions and times. Training therefore fixes the bins once,
from its window, and stores them in the bundle. Later decisions are counted in the same bins.

Example: with score edges 0.1 and 0.5, scores have three bins, and a score of 0.1 lies in the second one. A decision
with channel "web" and no country counts in the segments overall, channel=web, country=none and that of its mcc.
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
"""The index of missing values (NaN), after the bins of a feature: each feature has FEATURE_BINS + 1 counts."""
DIMENSIONS = ("channel", "country", "mcc")
"""The fields of a decision whose values form segments. Segments are named DIMENSION=VALUE."""
OVERALL = "overall"
NONE, OTHER = "none", "other"
"""In place of a value: the decision has none; its value has no segment of its own."""

DIGEST_SIZE = 8


@dataclass(frozen=True)
class Binning:
    """Bins and segments of one model.

    `score_edges`: (score bins - 1,) float64, rising. A score lies in the bin after the last edge that is not above it.
    `feature_edges`: (features, FEATURE_BINS - 1) float32, rising in each row, filled up with infinity.
    `values`: for each of DIMENSIONS the values with a segment of their own, in any order, without NONE and OTHER.
    `flags`: the flags of decisions that are counted by name.
    """

    score_edges: NDArray[np.float64]
    feature_edges: NDArray[np.float32]
    values: tuple[tuple[str, ...], ...]
    flags: tuple[str, ...] = ()

    @property
    def score_bins(self) -> int:
        """The number of score bins."""
        return len(self.score_edges) + 1

    @property
    def feature_count(self) -> int:
        """The number of features of a vector."""
        return len(self.feature_edges)

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """The names of all segments: OVERALL first, then for each dimension its values, NONE and OTHER."""
        names = [OVERALL]
        for dimension, values in zip(DIMENSIONS, self.values, strict=True):
            names += [f"{dimension}={value}" for value in (*values, NONE, OTHER)]
        return tuple(names)

    @cached_property
    def digest(self) -> bytes:
        """DIGEST_SIZE bytes. Counts of two binnings with equal digests may be added."""
        whole = hashlib.sha256(repr((self.values, self.flags)).encode())
        whole.update(self.score_edges.astype("<f8").tobytes() + self.feature_edges.astype("<f4").tobytes())
        return whole.digest()[:DIGEST_SIZE]

    @cached_property
    def digest_text(self) -> str:
        """The digest, in hexadecimal."""
        return self.digest.hex()

    def bins_of_scores(self, scores: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Returns the bin of each score, shape (rows,)."""
        return np.searchsorted(self.score_edges, scores, side="right").astype(np.uint8)

    def bins_of_features(self, vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Returns the bin of each value, MISSING for NaN. `vectors` and the result: (rows, features)."""
        bins = np.empty(vectors.shape, dtype=np.uint8)
        for column, edges in enumerate(self.feature_edges):
            bins[:, column] = np.searchsorted(edges, vectors[:, column], side="right")
        bins[np.isnan(vectors)] = MISSING
        return bins

    def segments_of(self, columns: Sequence[Sequence[str | None]]) -> NDArray[np.uint16]:
        """Returns the segment numbers of each row, OVERALL first, shape (rows, 1 + dimensions).

        `columns`: one column of values for each of DIMENSIONS.
        """
        segments = np.zeros((len(columns[0]), 1 + len(DIMENSIONS)), dtype=np.uint16)
        for place, (numbers, column) in enumerate(zip(self._numbers, columns, strict=True), 1):
            other = numbers[OTHER]
            segments[:, place] = [numbers.get(value, other) for value in column]
        return segments

    @cached_property
    def _numbers(self) -> tuple[dict[str | None, int], ...]:
        """For each dimension, the segment number of each value. None maps to the segment NONE."""
        tables: list[dict[str | None, int]] = []
        number = 1
        for values in self.values:
            table: dict[str | None, int] = {}
            for value in (*values, None, OTHER):
                table[value] = number
                number += 1
            tables.append(table)
        return tuple(tables)
