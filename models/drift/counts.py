"""Count decisions: how many payments of each segment lie in each bin, in one span of time.

A payment counts in the segment OVERALL and in one segment of each dimension. Example: a web payment from DE with mcc
5411 adds 1 to four segments:

    overall   channel=web   country=DE   mcc=5411

One compiled loop finds the bins of each row and adds the row to all its segments. Counts with the same binning can be
added: counts of minutes, of partitions, of batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.models.drift.binning import DIGEST_SIZE, FEATURE_BINS, Binning
from paywarden.models.metrics.tally import ACTION_COUNT
from paywarden.schemas.errors import InvalidEvent

AGE_EDGES_MS = 1000 << np.arange(11, dtype=np.int64)
"""The age of profiles has twelve bins: less than a second, less than 2, 4, …, 1024 seconds, and more."""
AGE_BINS = len(AGE_EDGES_MS) + 2
AGE_UNKNOWN = AGE_BINS - 1
"""The index of unknown ages, after the twelve bins."""

FORMAT = 1
_WIDTHS = (1, 2, 4, 8)
# Most counts are 0: a higher level would save little.
_ZLIB_LEVEL = 1


@dataclass(frozen=True)
class DecisionRows:
    """Decisions as columns, each of shape (rows,) unless stated otherwise.

    `scores`: float64. NaN means that no model gave a score; it lies in no bin.
    `actions`: 0 to 2, numbered as in models/metrics/tally.py.
    `vectors`: (rows, features), float32.
    `flags`: the names of each decision's flags.
    `ages_ms`: int64, the age of the profiles in milliseconds; negative where it is unknown.
    `values`: one column for each of DIMENSIONS.
    """

    scores: NDArray[np.float64]
    actions: NDArray[np.integer]
    vectors: NDArray[np.float32]
    flags: Sequence[Sequence[str]]
    ages_ms: NDArray[np.int64]
    values: Sequence[Sequence[str | None]]


@dataclass
class Counts:
    """Counts by segment and bin of one binning. All arrays are int64; their first axis is the segment.

    `payments`: (segments,).
    `scores`: (segments, score bins).
    `actions`: (segments, 3).
    `features`: (segments, features, FEATURE_BINS + 1); the last index counts missing values.
    `flags`: (segments, flags + 1): payments with each of the binning's flags, and last those with any other flag.
    `ages`: (segments, AGE_BINS).
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
        """Returns counts in which every number is 0."""
        return cls(binning, *(np.zeros(shape, dtype=np.int64) for shape in _shapes(binning)))

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        """All arrays, in the order in which `to_bytes` stores them."""
        return self.payments, self.scores, self.actions, self.features, self.flags, self.ages

    def add(self, other: Counts) -> None:
        """Add the other counts to these. Both must have the same binning."""
        assert self.binning.digest == other.binning.digest
        for mine, theirs in zip(self.arrays, other.arrays, strict=True):
            mine += theirs

    def copy(self) -> Counts:
        """Returns a copy that can be changed independently."""
        return Counts(self.binning, *(array.copy() for array in self.arrays))

    def count(self, rows: DecisionRows) -> None:
        """Add these decisions to the counts."""
        self.count_binned(binned_rows(self.binning, rows), rows.flags)

    def count_binned(self, rows: BinnedRows, flags: Sequence[Sequence[str]] = ()) -> None:
        """Add decisions whose bins are known. `flags`: as in DecisionRows; empty if no decision has any."""
        results = _CountArrays(self.payments, self.scores, self.actions, self.features, self.ages)
        _count_rows(rows, self.binning.feature_edges, results)
        self._count_flags(rows.segments, flags)

    def _count_flags(self, segments: NDArray[np.uint16], flags: Sequence[Sequence[str]]) -> None:
        places = {name: place for place, name in enumerate(self.binning.flags)}
        other = len(self.binning.flags)
        cells = []
        for row, names in enumerate(flags):
            # A set: a payment with several unknown flags counts once.
            cells += [(row, place) for place in {places.get(name, other) for name in names}]
        if cells:
            row, place = np.array(cells).T
            np.add.at(self.flags, (segments[row], place[:, None]), 1)

    def to_bytes(self) -> bytes:
        """Returns the counts as bytes for `from_bytes`.

        The bytes are the format (1), the binning's digest (DIGEST_SIZE), the width of each array's elements (1 each),
        and then all arrays, compressed with zlib.
        """
        narrow = [array.astype(f"<u{_width(array)}") for array in self.arrays]
        head = bytes([FORMAT]) + self.binning.digest + bytes(array.itemsize for array in narrow)
        return head + zlib.compress(b"".join(array.tobytes() for array in narrow), _ZLIB_LEVEL)

    @classmethod
    def from_bytes(cls, stored: bytes, binning: Binning) -> Counts:
        """Returns the counts that `to_bytes` wrote. Raises InvalidEvent for another binning or unreadable bytes."""
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
    """Returns the counts of these decisions."""
    counts = Counts.empty(binning)
    counts.count(rows)
    return counts


def binned_rows(binning: Binning, rows: DecisionRows) -> BinnedRows:
    """Returns the segments and bins of these decisions. The vectors are not copied if they are contiguous."""
    segments = binning.segments_of(rows.values)
    score_bins = binning.bins_of_scores(rows.scores).astype(np.int16)
    score_bins[np.isnan(rows.scores)] = -1
    ages = np.searchsorted(AGE_EDGES_MS, rows.ages_ms, side="right").astype(np.int8)
    ages[rows.ages_ms < 0] = AGE_UNKNOWN
    vectors = np.ascontiguousarray(rows.vectors, dtype=np.float32)
    assert vectors.shape == (len(segments), binning.feature_count)
    return BinnedRows(segments, score_bins, np.asarray(rows.actions, dtype=np.int8), ages, vectors)


def _shapes(binning: Binning) -> tuple[tuple[int, ...], ...]:
    """The shapes of `Counts.arrays`, in their order."""
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
    """Decompress exactly `size` bytes. Never allocates more than `size` + 1, whatever the input claims."""
    decompressor = zlib.decompressobj()
    try:
        plain = decompressor.decompress(deflated, size + 1)
    except zlib.error as error:
        raise InvalidEvent(f"stored counts cannot be read: {error}") from error
    if len(plain) != size or not decompressor.eof:
        raise InvalidEvent(f"stored counts cannot be read: wanted {size} bytes of them")
    return plain


class BinnedRows(NamedTuple):
    """Rows to count. A named tuple, because compiled code takes no other kind of object with names.

    `segments`: (rows, 1 + dimensions). `score_bin`, below 0 for no score, `action` and `age`: (rows,). `vectors`:
    (rows, features). A row takes 12 bytes besides its vector.
    """

    segments: NDArray[np.uint16]
    score_bin: NDArray[np.int16]
    action: NDArray[np.int8]
    age: NDArray[np.int8]
    vectors: NDArray[np.float32]


class _CountArrays(NamedTuple):
    """The arrays of Counts that the compiled loop adds to."""

    payments: NDArray[np.int64]
    scores: NDArray[np.int64]
    actions: NDArray[np.int64]
    features: NDArray[np.int64]
    ages: NDArray[np.int64]


@compiled()
def _count_rows(rows: BinnedRows, edges: NDArray[np.float32], counts: _CountArrays) -> None:
    """Add rows to counts. `edges` are `Binning.feature_edges`; values are binned as `Binning.bins_of_features` does."""
    places, (feature_count, edge_count) = rows.segments.shape[1], edges.shape
    for row in range(len(rows.segments)):
        score_bin = rows.score_bin[row]
        for place in range(places):
            segment = rows.segments[row, place]
            counts.payments[segment] += 1
            if score_bin >= 0:
                counts.scores[segment, score_bin] += 1
            counts.actions[segment, rows.action[row]] += 1
            counts.ages[segment, rows.age[row]] += 1
        for feature in range(feature_count):
            value = rows.vectors[row, feature]
            # Missing values have the index after the last bin.
            value_bin = edge_count + 1
            if value == value:
                value_bin = 0
                for edge in range(edge_count):
                    value_bin += edges[feature, edge] <= value
            for place in range(places):
                counts.features[rows.segments[row, place], feature, value_bin] += 1
