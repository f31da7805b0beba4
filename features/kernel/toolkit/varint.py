"""Varints: seven bits a byte, the lowest first; every byte but the last has its highest bit set (LEB128).

    300 = 0b10_0101100  ->  ac 02

Protobuf, Avro and the shapes of profiles use varints. Avro first turns signed numbers into unsigned ones (zigzag): 0,
-1, 1, -2 become 0, 1, 2, 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.toolkit.jit import inlined


def encode_varint(number: int) -> bytes:
    """Returns the varint of a number that is not negative."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode_varints(data: bytes) -> Iterator[int]:
    """Returns the numbers that the bytes hold. Raises ValueError when the last one has no end."""
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0
    if shift:
        raise ValueError("the last varint has no end")


def encode_zigzag(number: int) -> int:
    """Returns the unsigned number of a signed one: 0, 1, 2, 3 for 0, -1, 1, -2."""
    return (number << 1) ^ (number >> 63)


def decode_zigzag(coded: int) -> int:
    """Returns the signed number: 0, -1, 1, -2 for 0, 1, 2, 3. The mask removes the copies of the sign bit."""
    return ((coded >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(coded & 1)


# For compiled code.

zigzag = inlined(encode_zigzag)
unzigzag = inlined(decode_zigzag)


@inlined
def read_varint(data: U8, at: int, end: int) -> tuple[int, int]:
    """Returns the 64-bit number that begins at `at`, and where it ends; -1 if it does not end before `end`.

    Also -1 for a number that is not in its shortest form (`80 00` for 0): readers differ in what they make of it.
    """
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(64):
        byte = data[at]
        # The tenth byte has room for one bit.
        if shift == np.uint64(63) and byte > 1:
            break
        value |= np.uint64(byte & 127) << shift
        at += 1
        if byte < 128:
            if byte == 0 and shift > np.uint64(0):
                break
            return int(np.int64(value)), at
        shift += np.uint64(7)
    return 0, -1


@inlined
def varint_size(number: int) -> int:
    """Returns how many bytes a 64-bit number takes. A negative one is written as if it had no sign."""
    left, size = np.uint64(number), 1
    while left > np.uint64(127):
        left >>= np.uint64(7)
        size += 1
    return size


@inlined
def write_varint(out: U8, at: int, number: int) -> int:
    """Write a 64-bit number, a negative one as if it had no sign, as protobuf does; returns the end position."""
    left = np.uint64(number)
    while left > np.uint64(127):
        out[at] = left & np.uint64(127) | np.uint64(128)
        left >>= np.uint64(7)
        at += 1
    out[at] = left
    return at + 1
