"""Decisions counted: how many payments of each segment lie in each bin, in one span of time.

Counts of one binning add up, whatever they were counted of: minutes, partitions, batches. Each payment counts in
OVERALL and in one segment of each dimension; one compiled loop finds its bins and counts it in all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.jit import compiled
from paywarden.models.drift.binning import DIGEST_SIZE, FEATURE_BINS, Binning
from paywarden.models.metrics.tally import ACTION_COUNT
from paywarden.schemas.errors import InvalidEvent

AGE_EDGES_MS = 1000 << np.arange(11, dtype=np.int64)
"""The age of profiles has twelve bins: less than a second, less than 2, 4, …, 1024 seconds, and more."""
AGE_BINS = len(AGE_EDGES_MS) + 2
AGE_UNKNOWN = AGE_BINS - 1
"""The place of ages that are not known, behind the bins."""

FORMAT = 1
_WIDTHS = (1, 2, 4, 8)
# Most places hold nothing: more effort would save little.
_ZLIB_LEVEL = 1


@dataclass(frozen=True)
class DecisionRows:
    """Decisions as columns, each of (rows,).

    `scores`: float64, NaN where no model gave one: it lies in no bin. `actions`: 0 to 2, as models/metrics/tally.py
    numbers
    them. `vectors`: (rows, features) float32. `flags`: the names each has. `ages_ms`: int64, negative where not known.
    `values`: for each of DIMENSIONS the rows' values.
    """

    scores: NDArray[np.float64]
    actions: NDArray[np.integer]
    vectors: NDArray[np.float32]
    flags: Sequence[Sequence[str]]
    ages_ms: NDArray[np.int64]
    values: Sequence[Sequence[str | None]]


@dataclass
class Counts:
    """Of one binning; all arrays int64, the segment first.

    `payments`: (segments,). `scores`: (segments, score bins). `actions`: (segments, 3). `features`: (segments,
    features, FEATURE_BINS + 1), the missing last. `flags`: (segments, flags + 1): payments with each of the binning's
    flags, and with one that it does not know. `ages`: (segments, AGE_BINS).
    """

    binning: Binning
    payments: NDArray[np.int64]
    scores: NDArray[np.int64]
    actions: NDArray[np.int64]
    features: NDArray[np.int64]
    flags: NDArray[np.int64]
    ages: NDArray[np.int64]

    @classmethod
    def empty(cls, binning: Binning) -> Counts:
        """Of no payment."""
        return cls(binning, *(np.zeros(shape, dtype=np.int64) for shape in _shapes(binning)))

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        """All of them, in a fixed order."""
        return self.payments, self.scores, self.actions, self.features, self.flags, self.ages

    def add(self, other: Counts) -> None:
        """Count the other's payments too. Both must be of one binning."""
        assert self.binning.digest == other.binning.digest
        for mine, theirs in zip(self.arrays, other.arrays, strict=True):
            mine += theirs

    def copy(self) -> Counts:
        """The same, to be counted on apart."""
        return Counts(self.binning, *(array.copy() for array in self.arrays))

    def count(self, rows: DecisionRows) -> None:
        """Count these payments too."""
        binning = self.binning
        segments = binning.segments_of(rows.values)
        score_bins = binning.bins_of_scores(rows.scores).astype(np.int64)
        score_bins[np.isnan(rows.scores)] = -1
        ages = np.searchsorted(AGE_EDGES_MS, rows.ages_ms, side="right")
        ages[rows.ages_ms < 0] = AGE_UNKNOWN
        vectors = np.ascontiguousarray(rows.vectors, dtype=np.float32)
        assert vectors.shape == (len(segments), binning.feature_count)
        actions = np.asarray(rows.actions, dtype=np.int64)
        _count_rows(
            segments, score_bins, actions, ages, vectors, binning.feature_edges,
            self.payments, self.scores, self.actions, self.features, self.ages,
        )  # fmt: skip
        self._count_flags(segments, rows.flags)

    def _count_flags(self, segments: NDArray[np.uint16], flags: Sequence[Sequence[str]]) -> None:
        known, other = {name: place for place, name in enumerate(self.binning.flags)}, len(self.binning.flags)
        found = []
        for row, names in enumerate(flags):
            # A set: however many of its flags are unknown, a payment counts once.
            found += [(row, place) for place in {known.get(name, other) for name in names}]
        if found:
            row, place = np.array(found).T
            np.add.at(self.flags, (segments[row], place[:, None]), 1)

    def to_bytes(self) -> bytes:
        """For `from_bytes`: the format, the binning's digest, each array's width in bytes, and the arrays, deflated."""
        narrow = [array.astype(f"<u{_width(array)}") for array in self.arrays]
        head = bytes([FORMAT]) + self.binning.digest + bytes(array.itemsize for array in narrow)
        return head + zlib.compress(b"".join(array.tobytes() for array in narrow), _ZLIB_LEVEL)

    @classmethod
    def from_bytes(cls, stored: bytes, binning: Binning) -> Counts:
        """What `to_bytes` wrote. Raises InvalidEvent for counts of another binning, and for what are none."""
        shapes = _shapes(binning)
        head_size = 1 + DIGEST_SIZE + len(shapes)
        widths = stored[1 + DIGEST_SIZE : head_size]
        if len(stored) < head_size or stored[0] != FORMAT or not set(widths) <= set(_WIDTHS):
            raise InvalidEvent(f"wanted counts of format {FORMAT}, got something else, {len(stored)} bytes")
        digest = stored[1 : 1 + DIGEST_SIZE]
        if digest != binning.digest:
            raise InvalidEvent(f"wanted counts of the binning {binning.digest.hex()}, got some of {digest.hex()}")
        sizes = [int(np.prod(shape)) for shape in shapes]
        plain = _inflated(stored[head_size:], sum(size * width for size, width in zip(sizes, widths, strict=True)))
        arrays, start = [], 0
        for shape, size, width in zip(shapes, sizes, widths, strict=True):
            array = np.frombuffer(plain, f"<u{width}", count=size, offset=start)
            arrays.append(array.astype(np.int64).reshape(shape))
            start += size * width
        return cls(binning, *arrays)


def count_rows(binning: Binning, rows: DecisionRows) -> Counts:
    """The counts of these payments."""
    counts = Counts.empty(binning)
    counts.count(rows)
    return counts


def _shapes(binning: Binning) -> tuple[tuple[int, ...], ...]:
    """Of the arrays of Counts, in their order."""
    count = len(binning.segments)
    return (
        (count,),
        (count, binning.score_bins),
        (count, ACTION_COUNT),
        (count, binning.feature_count, FEATURE_BINS + 1),
        (count, len(binning.flags) + 1),
        (count, AGE_BINS),
    )


def _width(array: NDArray[np.int64]) -> int:
    largest = int(array.max(initial=0))
    return next(width for width in _WIDTHS if largest < 1 << 8 * width)


def _inflated(deflated: bytes, size: int) -> bytes:
    """No more than `size` bytes are ever made of them."""
    machine = zlib.decompressobj()
    try:
        plain = machine.decompress(deflated, size + 1)
    except zlib.error as error:
        raise InvalidEvent(f"stored counts cannot be read: {error}") from error
    if len(plain) != size or not machine.eof:
        raise InvalidEvent(f"stored counts cannot be read: wanted {size} bytes of them")
    return plain


@compiled()
def _count_rows(
    segment_of: NDArray[np.uint16],
    score_bin: NDArray[np.int64],
    action: NDArray[np.int64],
    age: NDArray[np.int64],
    vectors: NDArray[np.float32],
    edges: NDArray[np.float32],
    payments: NDArray[np.int64],
    scores: NDArray[np.int64],
    actions: NDArray[np.int64],
    features: NDArray[np.int64],
    ages: NDArray[np.int64],
) -> None:
    """Add rows to the arrays of Counts. A score's bin below zero is none; values are binned as Binning does it."""
    places, (feature_count, edge_count) = segment_of.shape[1], edges.shape
    for row in range(len(segment_of)):
        for place in range(places):
            segment = segment_of[row, place]
            payments[segment] += 1
            if score_bin[row] >= 0:
                scores[segment, score_bin[row]] += 1
            actions[segment, action[row]] += 1
            ages[segment, age[row]] += 1
        for feature in range(feature_count):
            value = vectors[row, feature]
            # Behind the edges of a feature is the place of missing values.
            found = edge_count + 1
            if value == value:
                found = 0
                for edge in range(edge_count):
                    found += edges[feature, edge] <= value
            for place in range(places):
                features[segment_of[row, place], feature, found] += 1
