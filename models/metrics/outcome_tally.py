"""Tally decided payments by score, action and outcome: the basis of all measures of outcomes.

How it works:

1. A tally is one row of whole numbers. Tallies of partitions and days can therefore be added, in any order.
2. A corrected outcome is subtracted as it was added, and then added with the new label. The tally of a single partition
   may have numbers below 0: another partition may have added what it subtracts.
3. Scores are counted in a fixed grid: steps of 0.1 in log-odds from -12 to 12, and SCORE_EDGES. The bins of a
   reliability curve are thus whole bins of the grid.
4. Sums of scores and of their squares are kept beside the counts, in units of 2**-30. Mean scores and Brier scores are
   therefore exact. Only the order of scores within a bin is lost.

Example: a payment with the score 0.25 was declined, and two days later labelled fraud. First it counts as unlabelled;
then `count(..., label=UNLABELLED, times=-1)` and `count(..., label=FRAUD, lag_ms=172_800_000)` move it.
"""

from __future__ import annotations

import math
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.curves import SCORE_EDGES
from paywarden.models.metrics.tally import ACTION_COUNT, FRAUD, GENUINE
from paywarden.schemas.errors import InvalidEvent

UNLABELLED = 2
"""The label of a payment without a known outcome, beside GENUINE and FRAUD."""
LABEL_COUNT = 3
UNIT = 1 << 30
"""The units in a score of 1."""
NO_SCORE = -1
"""The score, in units, of a payment that no model scored."""

_DAY_MS = 86_400_000
_LOG_ODDS_MAX, _STEPS_A_UNIT = 12, 10


def _grid() -> list[int]:
    log_odds = (
        step / _STEPS_A_UNIT for step in range(-_LOG_ODDS_MAX * _STEPS_A_UNIT, _LOG_ODDS_MAX * _STEPS_A_UNIT + 1)
    )
    edges = [1.0 / (1.0 + math.exp(-value)) for value in log_odds]
    return sorted({round(edge * UNIT) for edge in (*edges, *SCORE_EDGES[1:-1])})


EDGES = _grid()
"""The edges of the score bins, in units, rising. A score lies in the bin after the last edge that is not above it."""
BINS = len(EDGES) + 1
LAG_EDGES_MS = tuple(
    round(days * _DAY_MS)
    for days in (1 / 24, 0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 10, 14, 21, 28, 35, 42, 49, 56, 63, 70, 77, 84, 90, 120)
)
"""The edges of the bins of lags from decision to label: bin i begins at edge i - 1, the first bin at 0."""
LAG_BINS = len(LAG_EDGES_MS) + 1

# The index of each part's first number in the row.
_SCORED = BINS + 1
_AMOUNTS = LABEL_COUNT * ACTION_COUNT * _SCORED
_SUMS = _AMOUNTS + LABEL_COUNT * ACTION_COUNT
_SQUARES = _SUMS + LABEL_COUNT * BINS
_LAGS = _SQUARES + LABEL_COUNT
SIZE = _LAGS + 2 * LAG_BINS

_HEAD = struct.Struct("<BH")
_FORMAT = 1
_ZLIB_LEVEL = 1

I64 = NDArray[np.int64]
_EDGES, _LAG_EDGES = np.array(EDGES, dtype=np.int64), np.array(LAG_EDGES_MS, dtype=np.int64)


class OutcomeTally:
    """A tally. `row`: (SIZE,), int64, holds all numbers; the properties are views of it."""

    def __init__(self, row: I64 | None = None) -> None:
        self.row: I64 = np.zeros(SIZE, dtype=np.int64) if row is None else row

    @property
    def counts(self) -> I64:
        """Payments, (LABEL_COUNT, ACTION_COUNT, BINS + 1). The last bin counts payments without a score."""
        return self.row[:_AMOUNTS].reshape(LABEL_COUNT, ACTION_COUNT, _SCORED)

    @property
    def amount_minor(self) -> I64:
        """Sums of amounts in minor units, (LABEL_COUNT, ACTION_COUNT)."""
        return self.row[_AMOUNTS:_SUMS].reshape(LABEL_COUNT, ACTION_COUNT)

    @property
    def score_sums(self) -> I64:
        """Sums of scores in units, (LABEL_COUNT, BINS)."""
        return self.row[_SUMS:_SQUARES].reshape(LABEL_COUNT, BINS)

    @property
    def score_squares(self) -> I64:
        """Sums of squared scores in units, (LABEL_COUNT,)."""
        return self.row[_SQUARES:_LAGS]

    @property
    def lags(self) -> I64:
        """Labelled payments by the time from decision to label, (2, LAG_BINS)."""
        return self.row[_LAGS:].reshape(2, LAG_BINS)

    def count(
        self, *, score_units: int, action: int, amount_minor: int, label: int, lag_ms: int = 0, times: int = 1
    ) -> None:
        """Add a payment, or subtract it with `times` -1. `lag_ms`: from the decision to its label."""
        row = self.row
        cell = label * ACTION_COUNT + action
        score_bin = BINS if score_units == NO_SCORE else bisect_right(EDGES, score_units)
        row[cell * _SCORED + score_bin] += times
        row[_AMOUNTS + cell] += times * amount_minor
        if score_units != NO_SCORE:
            row[_SUMS + label * BINS + score_bin] += times * score_units
            row[_SQUARES + label] += times * (score_units * score_units // UNIT)
        if label != UNLABELLED:
            row[_LAGS + label * LAG_BINS + bisect_right(LAG_EDGES_MS, lag_ms)] += times

    def count_columns(
        self, *, score_units: I64, actions: I64, amount_minor: I64, labels: I64, lag_ms: I64, times: I64
    ) -> None:
        """Run `count` for columns, shape (payments,) each."""
        row = self.row
        cells, is_scored = labels * ACTION_COUNT + actions, score_units != NO_SCORE
        score_bins = np.where(is_scored, np.searchsorted(_EDGES, score_units, side="right"), BINS)
        np.add.at(row, cells * _SCORED + score_bins, times)
        np.add.at(row, _AMOUNTS + cells, times * amount_minor)
        scored, units = np.flatnonzero(is_scored), score_units[is_scored]
        np.add.at(row, _SUMS + labels[scored] * BINS + score_bins[scored], times[scored] * units)
        np.add.at(row, _SQUARES + labels[scored], times[scored] * (units * units // UNIT))
        told = np.flatnonzero(labels != UNLABELLED)
        lag_bins = np.searchsorted(_LAG_EDGES, lag_ms[told], side="right")
        np.add.at(row, _LAGS + labels[told] * LAG_BINS + lag_bins, times[told])

    def to_bytes(self) -> bytes:
        """Returns bytes for `from_bytes`: the format, the number of non-zero entries, and these entries, compressed."""
        places = np.flatnonzero(self.row)
        packed = places.astype("<u2").tobytes() + self.row[places].astype("<i8").tobytes()
        return _HEAD.pack(_FORMAT, len(places)) + zlib.compress(packed, _ZLIB_LEVEL)

    @classmethod
    def from_bytes(cls, stored: bytes) -> OutcomeTally:
        """Returns the tally that `to_bytes` wrote. Raises InvalidEvent for other or damaged bytes."""
        if len(stored) < _HEAD.size or stored[0] != _FORMAT:
            raise InvalidEvent(f"wanted a tally of format {_FORMAT}, got something else, {len(stored)} bytes")
        count = _HEAD.unpack_from(stored)[1]
        try:
            packed = zlib.decompressobj().decompress(stored[_HEAD.size :], count * 10 + 1)
        except zlib.error as error:
            raise InvalidEvent("a stored tally cannot be read: it is damaged") from error
        places = np.frombuffer(packed[: 2 * count], "<u2")
        if len(packed) != count * 10 or (count and int(places.max()) >= SIZE):
            raise InvalidEvent("a stored tally cannot be read: it is damaged")
        tally = cls()
        tally.row[places] = np.frombuffer(packed, "<i8", offset=2 * count)
        return tally


def total(tallies: Iterable[OutcomeTally]) -> OutcomeTally:
    """Returns the sum of tallies."""
    result = OutcomeTally()
    for tally in tallies:
        result.row += tally.row
    return result


def units_of(score: float) -> int:
    """Returns a score in units. Scores outside 0 to 1 become 0 or 1."""
    return round(min(max(score, 0.0), 1.0) * UNIT)


assert (GENUINE, FRAUD) == (0, 1), "labels stand in the rows of a tally by their numbers"
