"""When labels were known, where a table does not say so.

    median 7 days, sigma 1        a quantile for each share of the labels ─► a table of quantiles
    payment p-17, seed 3          a number from 0 to 1, always the same ─► its delay

A delay depends on the payment's id and the seed alone: not on the order of rows, on files or on threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features import kernel

UNKNOWN, GENUINE, FRAUD = -1, 0, 1

_QUANTILES = 4097
_UNIT_BITS = 53


@dataclass(frozen=True)
class DelayTable:
    """Delays in milliseconds at equally spaced shares from 0 to 1."""

    quantiles_ms: tuple[float, ...]

    def delays_ms(self, shares: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the delay at each share. Between two quantiles it grows in a straight line."""
        table = np.array(self.quantiles_ms)
        found: NDArray[np.int64] = np.interp(shares, np.linspace(0, 1, len(table)), table).astype(np.int64)
        return found


def fixed_delay(delay_ms: int) -> DelayTable:
    """Returns one delay for all."""
    return DelayTable((float(delay_ms), float(delay_ms)))


def delay_of_quantiles(quantiles_ms: Sequence[int]) -> DelayTable:
    """Returns delays with these quantiles: the first is the least, the last the largest."""
    return DelayTable(tuple(map(float, quantiles_ms)))


def lognormal_delay(median_ms: int, sigma: float, most_ms: int) -> DelayTable:
    """Returns delays whose logarithm has a normal distribution, up to `most_ms`."""
    normal = NormalDist()
    # The ends have no quantile. The middle of the outermost steps stands for them.
    shares = np.clip(np.linspace(0, 1, _QUANTILES), 0.5 / _QUANTILES, 1 - 0.5 / _QUANTILES)
    factors = np.exp(sigma * np.array([normal.inv_cdf(share) for share in shares.tolist()]))
    return DelayTable(tuple(np.minimum(median_ms * factors, most_ms).tolist()))


def shares_of(payment_id: pa.Array, seed: int) -> NDArray[np.float64]:
    """Returns a number from 0 to 1 for each payment id, shape (rows,)."""
    bits = hashes_of(payment_id, seed, 0) & (2**_UNIT_BITS - 1)
    shares: NDArray[np.float64] = bits / 2.0**_UNIT_BITS
    return shares


def hashes_of(texts: pa.Array, key_low: int, key_high: int) -> NDArray[np.int64]:
    """Returns a keyed hash of each text, of 62 bits. A missing text has that of an empty one."""
    _, offsets, content = texts.fill_null("").buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    data = np.frombuffer(content, dtype=np.uint8) if content is not None else np.zeros(0, dtype=np.uint8)
    found = np.empty(len(texts), dtype=np.int64)
    kernel.identities_of_texts(data[bounds[0] : bounds[-1]], bounds[1:] - bounds[0], key_low, key_high, found)
    return found
