"""Tables of CRC-32, as zlib has it, for compiled loops that work it out themselves."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def crc_tables() -> NDArray[np.int64]:
    """Shape (8, 256): what a byte does to the checksum, and what it does with one to seven zero bytes behind it.

    The first is the plain table, for a byte at a time.
    """
    tables = np.zeros((8, 256), dtype=np.int64)
    # zlib inverts before and after: undone here.
    tables[0] = [zlib.crc32(bytes([byte]), 0xFFFFFFFF) ^ 0xFFFFFFFF for byte in range(256)]
    for number in range(1, 8):
        before = tables[number - 1]
        tables[number] = before >> 8 ^ tables[0][before & 255]
    return tables
