"""CRC-32 for compiled code, with the same results as `zlib.crc32`: b"abc" gives 0x352441C2.

A longer text is read in blocks of three parts. After every eight bytes of a part the processor waits for the tables,
and meanwhile it works at the other two:

    block     part A, 64 bytes │ part B, 64 bytes │ part C, 64 bytes
    checksum  A's as if 128 zeros followed  ^  B's as if 64 zeros followed  ^  C's
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.toolkit.jit import inlined
from paywarden.features.kernel.toolkit.machine_words import load_word

PART_BYTES = 64
_BLOCK_BYTES = 3 * PART_BYTES


def _tables() -> NDArray[np.uint32]:
    """Returns tables of shape (2 * PART_BYTES, 256): the effect of a byte on the checksum, by how many zeros follow."""
    tables = np.zeros((2 * PART_BYTES, 256), dtype=np.uint32)
    # zlib inverts the checksum before and after. This undoes both.
    tables[0] = [zlib.crc32(bytes([byte]), 0xFFFFFFFF) ^ 0xFFFFFFFF for byte in range(256)]
    for number in range(1, len(tables)):
        before = tables[number - 1]
        tables[number] = before >> 8 ^ tables[0][before & 255]
    return tables


# Constants of the machine code. A function that reads only short texts needs just the first table. The last byte of a
# word is followed by no zeros, its first one by seven.
_TABLES = _tables()[:8].copy()
_TABLE = _TABLES[0].copy()
# The effect of the four bytes of a checksum, the lowest first, when one part or two parts of zeros follow.
_AFTER_ONE = _tables()[PART_BYTES - 1 : PART_BYTES - 5 : -1].copy()
_AFTER_TWO = _tables()[2 * PART_BYTES - 1 : 2 * PART_BYTES - 5 : -1].copy()


@inlined
def crc32_of_text(data: U8, at: int, end: int) -> int:
    """Returns the CRC-32 of a few bytes, computed one byte at a time."""
    crc = np.int64(0xFFFFFFFF)
    for place in range(at, end):
        crc = np.int64(_TABLE[(crc ^ data[place]) & 255]) ^ (crc >> 8)
    return int(crc ^ 0xFFFFFFFF)


@inlined
def _add_word(crc: np.int64, word: int) -> np.int64:
    """Returns the checksum after eight more bytes (Kounavis and Berry, "slicing by 8", 2005)."""
    mixed = word ^ crc
    return np.int64(
        _TABLES[7, mixed & 255]
        ^ _TABLES[6, mixed >> 8 & 255]
        ^ _TABLES[5, mixed >> 16 & 255]
        ^ _TABLES[4, mixed >> 24 & 255]
        ^ _TABLES[3, mixed >> 32 & 255]
        ^ _TABLES[2, mixed >> 40 & 255]
        ^ _TABLES[1, mixed >> 48 & 255]
        ^ _TABLES[0, mixed >> 56 & 255]
    )


@inlined
def _after(tables: NDArray[np.uint32], crc: np.int64) -> np.int64:
    """Returns the checksum as if zeros followed: as many as the tables are for."""
    return np.int64(
        tables[0, crc & 255] ^ tables[1, crc >> 8 & 255] ^ tables[2, crc >> 16 & 255] ^ tables[3, crc >> 24]
    )


@inlined
def crc32_of_record(data: U8, at: int, end: int) -> int:
    """Returns the CRC-32 of a longer text, eight bytes at a time, and three parts at once."""
    crc = np.int64(0xFFFFFFFF)
    while at + _BLOCK_BYTES <= end:
        second, third = np.int64(0), np.int64(0)
        for place in range(at, at + PART_BYTES, 8):
            crc = _add_word(crc, load_word(data, place))
            second = _add_word(second, load_word(data, place + PART_BYTES))
            third = _add_word(third, load_word(data, place + 2 * PART_BYTES))
        crc = _after(_AFTER_TWO, crc) ^ _after(_AFTER_ONE, second) ^ third
        at += _BLOCK_BYTES
    while at + 8 <= end:
        crc = _add_word(crc, load_word(data, at))
        at += 8
    while at < end:
        crc = np.int64(_TABLE[(crc ^ data[at]) & 255]) ^ crc >> 8
        at += 1
    return int(crc ^ 0xFFFFFFFF)
