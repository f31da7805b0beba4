"""CRC-32 for compiled code, with the same results as `zlib.crc32`: b"abc" gives 0x352441C2."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.toolkit.intrinsics import load_word
from paywarden.features.kernel.toolkit.jit import inlined


def _tables() -> NDArray[np.int64]:
    """Returns tables of shape (8, 256): the effect of a byte on the checksum, when 0 to 7 zero bytes follow it."""
    tables = np.zeros((8, 256), dtype=np.int64)
    # zlib inverts the checksum before and after. This undoes both.
    tables[0] = [zlib.crc32(bytes([byte]), 0xFFFFFFFF) ^ 0xFFFFFFFF for byte in range(256)]
    for number in range(1, 8):
        before = tables[number - 1]
        tables[number] = before >> 8 ^ tables[0][before & 255]
    return tables


# Constants of the machine code. A function that reads only short texts needs just the first table.
_TABLES = _tables()
_TABLE = _TABLES[0].copy()


@inlined
def crc32_of_text(data: U8, at: int, end: int) -> int:
    """Returns the CRC-32 of a few bytes, computed one byte at a time."""
    crc = np.int64(0xFFFFFFFF)
    for place in range(at, end):
        crc = _TABLE[(crc ^ data[place]) & 255] ^ (crc >> 8)
    return int(crc ^ 0xFFFFFFFF)


@inlined
def crc32_of_record(data: U8, at: int, end: int) -> int:
    """Returns the CRC-32 of a longer text, eight bytes at a time (Kounavis and Berry, "slicing by 8", 2005)."""
    crc = np.int64(0xFFFFFFFF)
    while at + 8 <= end:
        word = load_word(data, at)
        low = (word ^ crc) & 0xFFFFFFFF
        high = word >> 32 & 0xFFFFFFFF
        crc = (
            _TABLES[7, low & 255]
            ^ _TABLES[6, low >> 8 & 255]
            ^ _TABLES[5, low >> 16 & 255]
            ^ _TABLES[4, low >> 24]
            ^ _TABLES[3, high & 255]
            ^ _TABLES[2, high >> 8 & 255]
            ^ _TABLES[1, high >> 16 & 255]
            ^ _TABLES[0, high >> 24]
        )
        at += 8
    while at < end:
        crc = _TABLES[0, (crc ^ data[at]) & 255] ^ crc >> 8
        at += 1
    return int(crc ^ 0xFFFFFFFF)
