"""Words of eight bytes at any position, and their bits.

For example, `load_word(data, 3)` reads data[3:11] as one little-endian int64. The compiler makes one instruction of the
eight bytes, as of the sum in `bit_count`, because no index here can be negative.

Numbers are of any type, since compiled code passes Python's and NumPy's alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.toolkit.jit import inlined

_LARGEST = 0x7FFF_FFFF_FFFF_FFFF
_HALVES, _PAIRS = np.uint64(0x5555_5555_5555_5555), np.uint64(0x3333_3333_3333_3333)
_NIBBLES, _ALL_BYTES = np.uint64(0x0F0F_0F0F_0F0F_0F0F), np.uint64(0x0101_0101_0101_0101)


@inlined
def _byte(data: U8, at: np.uint64, place: int) -> np.uint64:
    return np.uint64(data[at + np.uint64(place)]) << np.uint64(8 * place)


@inlined
def load_word(data: U8, position: Any) -> Any:
    """Read eight bytes at any position as an int64."""
    at = np.uint64(position)
    low = _byte(data, at, 0) | _byte(data, at, 1) | _byte(data, at, 2) | _byte(data, at, 3)
    high = _byte(data, at, 4) | _byte(data, at, 5) | _byte(data, at, 6) | _byte(data, at, 7)
    return np.int64(low | high)


@inlined
def store_word(data: U8, position: Any, value: Any) -> None:
    """Write the eight bytes of an int64 at any position."""
    at, word = np.uint64(position), np.uint64(value)
    for place in range(8):
        data[at + np.uint64(place)] = np.uint8(word >> np.uint64(8 * place))


@inlined
def not_negative(value: Any) -> Any:
    """Returns the same number, which must not be negative. Indexing with it needs no check of its sign."""
    return value & _LARGEST


@inlined
def bit_count(value: Any) -> Any:
    """Returns how many of an int64's 64 bits are 1."""
    bits = np.uint64(value)
    bits -= (bits >> np.uint64(1)) & _HALVES
    bits = (bits & _PAIRS) + ((bits >> np.uint64(2)) & _PAIRS)
    bits = (bits + (bits >> np.uint64(4))) & _NIBBLES
    return np.int64((bits * _ALL_BYTES) >> np.uint64(56))
