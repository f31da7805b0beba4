"""The checksum at the end of a stored profile: 64 bits, computed eight bytes at a time in four lanes.

    bytes   0 … 7   8 … 15   16 … 23   24 … 31   32 … 39   …
    lane    0       1        2         3         0

A lane takes a word by `lane = rotated((lane ^ word) * PRIME)`. For a given word every step maps lanes one to one, and
so does the mixture of the four lanes at the end. Therefore the checksum of two profiles that differ within one word
always differs: no single flipped bit goes unnoticed, and no damage within eight aligned bytes. Any other damage goes
unnoticed once in 2**64. A checksum finds accidents. It stops nobody who may write to the store.

CRC-32 would be as good against flipped bits, but its tables take four times as long, and a scoring worker checks three
profiles for each payment.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import load_word

# Odd numbers with well mixed bits: the 64-bit primes of xxHash (Collet 2012).
_PRIME_1 = 0x9E3779B185EBCA87
_PRIME_2 = 0xC2B2AE3D27D4EB4F
_PRIME_3 = 0x165667B19E3779F9
_PRIME_4 = 0x85EBCA77C2B2AE63
_STEP = 32


@inlined
def _taken(lane: np.uint64, word: int) -> np.uint64:
    mixed = (lane ^ np.uint64(word)) * np.uint64(_PRIME_1)
    return (mixed << np.uint64(29)) | (mixed >> np.uint64(35))


@inlined
def _mixed(total: np.uint64, lane: np.uint64) -> np.uint64:
    mixed = (total ^ lane) * np.uint64(_PRIME_1)
    return (mixed << np.uint64(29)) | (mixed >> np.uint64(35))


@compiled()
def checksum(data: U8, start: int, end: int) -> int:
    """Returns the checksum of data[start:end], any 64 bits as an int64.

    Eight bytes must be readable behind `end`. They do not count.
    """
    first, second = np.uint64(_PRIME_1), np.uint64(_PRIME_2)
    third, fourth = np.uint64(_PRIME_3), np.uint64(_PRIME_4)
    at = start
    while at + _STEP <= end:
        first = _taken(first, load_word(data, at))
        second = _taken(second, load_word(data, at + 8))
        third = _taken(third, load_word(data, at + 16))
        fourth = _taken(fourth, load_word(data, at + 24))
        at += _STEP
    while at < end:
        word = load_word(data, at)
        if end - at < 8:
            word &= (np.int64(1) << 8 * (end - at)) - 1
        first = _taken(first, word)
        at += 8
    # Without the length, zeros at the end would not count.
    total = _taken(first, end - start)
    total = _mixed(_mixed(_mixed(total, second), third), fourth)
    total = (total ^ (total >> np.uint64(32))) * np.uint64(_PRIME_2)
    return np.int64(total ^ (total >> np.uint64(29)))  # type: ignore[return-value]
