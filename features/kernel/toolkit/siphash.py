"""SipHash-2-4 for compiled code (Aumasson, Bernstein 2012): a keyed 64-bit hash of a short text.

Without the key nobody can find two texts with the same hash other than by trying them out on the service itself. A
checksum such as CRC-32 has no key: anyone makes a thousand texts of one checksum in half a second.

    v0 … v3     the two halves of the key, each mixed with two constants
    each word   two rounds over v0 … v3; the last word has the rest of the text, and its length
    the end     four rounds; the hash is v0 ^ v1 ^ v2 ^ v3

A text of 16 bytes takes ten rounds, some 20 ns.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.layout import I64, IDENTITY_BIT, U8
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import load_word


@inlined
def _rotated(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@inlined
def _round(
    v0: np.uint64, v1: np.uint64, v2: np.uint64, v3: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    v0 += v1
    v1 = _rotated(v1, 13) ^ v0
    v0 = _rotated(v0, 32)
    v2 += v3
    v3 = _rotated(v3, 16) ^ v2
    v0 += v3
    v3 = _rotated(v3, 21) ^ v0
    v2 += v1
    v1 = _rotated(v1, 17) ^ v2
    return v0, v1, _rotated(v2, 32), v3


@compiled()
def siphash(data: U8, at: int, end: int, key_low: int, key_high: int) -> int:
    """Returns SipHash-2-4 of data[at:end] as an int64. The halves of the key are int64s of its bytes, little endian."""
    low, high = np.uint64(key_low), np.uint64(key_high)
    v0, v1 = low ^ np.uint64(0x736F6D6570736575), high ^ np.uint64(0x646F72616E646F6D)
    v2, v3 = low ^ np.uint64(0x6C7967656E657261), high ^ np.uint64(0x7465646279746573)
    last = np.uint64(end - at) << np.uint64(56)
    while at + 8 <= end:
        word = np.uint64(load_word(data, at))
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
        at += 8
    for place in range(at, end):
        last |= np.uint64(data[place]) << np.uint64(8 * (place - at))
    v3 ^= last
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= last
    v2 ^= np.uint64(0xFF)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return np.int64(v0 ^ v1 ^ v2 ^ v3)  # type: ignore[return-value]


@compiled()
def identity_of_text(data: U8, at: int, end: int, key_low: int, key_high: int) -> int:
    """Returns the identity of a text: 62 bits of its hash, and IDENTITY_BIT, which no CRC-32 has."""
    found = np.uint64(siphash(data, at, end, key_low, key_high))
    return np.int64((found >> np.uint64(2)) | np.uint64(IDENTITY_BIT))  # type: ignore[return-value]


@compiled(releases_gil=True)
def identities_of_texts(data: U8, ends: I64, key_low: int, key_high: int, identities: I64) -> None:
    """Fill `identities` with those of texts one after the other: text i ends at ends[i] of `data`."""
    start = 0
    for number in range(len(ends)):
        identities[number] = identity_of_text(data, start, ends[number], key_low, key_high)
        start = ends[number]
