"""The input of drift detection: signals, and their values in a block of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRAFFIC, PROFILE_AGE = "traffic", "profile_age"
FEATURE_PREFIX, FLAG_PREFIX = "feature:", "flag:"


@dataclass(frozen=True, slots=True)
class Signal:
    """A number computed for each block of time: the mean over the block's payments of a bounded quantity.

    `subject`: score, action, traffic, feature:NAME, flag:NAME, profile_age; `segment`: overall, or DIMENSION=VALUE.
    """

    subject: str
    statistic: str
    segment: str


def is_histogram(signal: Signal) -> bool:
    """Whether the signal's effect is a PSI (population stability index), not the relative change of a share."""
    return signal.statistic in ("location", "spread")


@dataclass(frozen=True)
class Block:
    """The signals of one model version in one block of time, each array of shape (signals,).

    `value`, `expected`, `sd`: float64; `sd` is the standard deviation of `value` while nothing has changed.
    `count`: int64, the payments that `value` is a mean of. With 0 the value is NaN.
    `effect`: float64, the size of the change, not its certainty. For histograms it is the smallest PSI (population
    stability index) with such a shift of the mean; for shares, the difference relative to the expected value.
    """

    start_ms: int
    length_ms: int
    signals: tuple[Signal, ...]
    value: NDArray[np.float64]
    expected: NDArray[np.float64]
    sd: NDArray[np.float64]
    count: NDArray[np.int64]
    effect: NDArray[np.float64]
    middle: NDArray[np.float64] | None = None
    range: NDArray[np.float64] | None = None

    def unchanged(self, index: int) -> tuple[float, float, float]:
        """Returns a signal's expected value as people mean it, and the lowest and highest value that is unchanged.

        Every signal is a mean of numbers from 0 to 1, so both lie there.
        """
        if self.middle is None or self.range is None:
            expected = float(self.expected[index])
            return expected, expected, expected
        middle, reach = float(self.middle[index]), float(self.range[index])
        return middle, max(middle - reach, 0.0), min(middle + reach, 1.0)

    @property
    def end_ms(self) -> int:
        """The end of the block, exclusive, in milliseconds since the epoch."""
        return self.start_ms + self.length_ms

    def joined(self, other: Block) -> Block:
        """Returns a block with the signals of both, these first. Both must have the same start and length."""
        assert (self.start_ms, self.length_ms) == (other.start_ms, other.length_ms)
        both = (self, other)
        pairs = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("value", "expected", "sd", "count", "effect")
        }
        pairs["middle"] = np.concatenate([block.expected if block.middle is None else block.middle for block in both])
        none = [np.zeros(len(block.signals)) for block in both]
        ranges = [zeros if block.range is None else block.range for block, zeros in zip(both, none, strict=True)]
        pairs["range"] = np.concatenate(ranges)
        return Block(self.start_ms, self.length_ms, self.signals + other.signals, **pairs)
