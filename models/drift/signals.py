"""What detection looks at: signals, and their values in a block of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRAFFIC, PROFILE_AGE = "traffic", "profile_age"
FEATURE_PREFIX, FLAG_PREFIX = "feature:", "flag:"


@dataclass(frozen=True, slots=True)
class Signal:
    """One number that a block of time has: a mean, over its payments, of something bounded.

    `subject`: score, action, traffic, feature:NAME, flag:NAME, profile_age; `segment`: overall, or DIMENSION=VALUE.
    """

    subject: str
    statistic: str
    segment: str


def is_histogram(signal: Signal) -> bool:
    """Whether the signal's effect is a histogram's PSI, not the relative change of a share."""
    return signal.statistic in ("location", "spread")


@dataclass(frozen=True)
class Block:
    """The signals of one model version in one block of time, each array of shape (signals,).

    `value`, `expected`, `sd`: float64; `sd` is the standard deviation of `value` when nothing has changed.
    `count`: int64, payments behind the value; with 0 there is no statement.
    `effect`: float64, how large the change is, not how certain: of histograms the PSI that such a move of the mean
    has at least, of shares the difference relative to what is expected.
    """

    start_ms: int
    length_ms: int
    signals: tuple[Signal, ...]
    value: NDArray[np.float64]
    expected: NDArray[np.float64]
    sd: NDArray[np.float64]
    count: NDArray[np.int64]
    effect: NDArray[np.float64]

    @property
    def end_ms(self) -> int:
        """The first moment that is not in the block."""
        return self.start_ms + self.length_ms

    def joined(self, other: Block) -> Block:
        """With the other's signals behind these; of the same span of time."""
        assert (self.start_ms, self.length_ms) == (other.start_ms, other.length_ms)
        pairs = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("value", "expected", "sd", "count", "effect")
        }
        return Block(self.start_ms, self.length_ms, self.signals + other.signals, **pairs)
