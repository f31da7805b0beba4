"""Columns of numbers in the stored form. Each column uses as many whole bytes a number as its largest number needs.

numbers 3, 700, 12    700 needs 2 bytes    width 2    bytes 03 00 BC 02 0C 00
numbers 0, 0          0 needs none         width 0    no bytes
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import load_word, store_word

# With at least this many rows, a vectorised loop for widths 1 and 2 is worth its start-up cost.
_VECTOR_ROWS = 8


@inlined
def width_of(data: U8, widths: int, column: int) -> int:
    """Returns how many bytes each number of a column takes, from the column's nibble."""
    return int(np.int64(data[widths + (column >> 1)]) >> ((column & 1) << 2) & 15)


@compiled()
def read_columns(
    data: U8, widths: int, column: int, columns: int, position: int, end: int, rows: int, words: I64, at: int, step: int
) -> int:
    """Read columns of equal length into words[at:], each `step` words behind the previous one.

    The first is the `column`-th of the profile, whose widths stand at `widths`; its numbers start at `position`.
    Returns the position in `data` where the columns end; -1 if they end after `end` or a width is above 8. The caller
    makes sure that `words` has room.
    """
    readable = len(data) - 8
    for number in range(column, column + columns):
        width = width_of(data, widths, number)
        stop = position + rows * width
        if width > 8 or stop > end:
            return -1
        # A view, since the compiler does not vectorise a loop whose index may be negative.
        numbers = words[at : at + rows]
        if width == 1 and rows >= _VECTOR_ROWS:
            source = data[position:stop]
            for row in range(rows):
                numbers[row] = source[row]
        elif width == 2 and rows >= _VECTOR_ROWS:
            source = data[position:stop]
            for row in range(rows):
                numbers[row] = np.int64(source[2 * row]) | np.int64(source[2 * row + 1]) << 8
        elif stop - width <= readable:
            # Two shifts, since one shift by 64 bits is undefined.
            mask = (np.int64(1) << 4 * width << 4 * width) - 1
            for row in range(rows):
                numbers[row] = load_word(data, position + width * row) & mask
        else:
            # Here reading eight bytes at once would reach beyond the end of the buffer.
            for row in range(rows):
                value = np.int64(0)
                for byte in range(width):
                    value |= np.int64(data[position + width * row + byte]) << 8 * byte
                numbers[row] = value
        position = stop
        at += step
    return position


@compiled()
def write_column(numbers: I64, at: int, rows: int, out: U8, widths: int, column: int, position: int) -> int:
    """Write numbers[at : at + rows] as the `column`-th of a profile, and its width; returns the end position."""
    values = numbers[at : at + rows]
    bits = np.int64(0)
    for row in range(rows):
        bits |= values[row]
    width, left = 0, np.uint64(bits)
    while left != 0:
        left >>= np.uint64(8)
        width += 1
    if column & 1:
        out[widths + (column >> 1)] |= width << 4
    else:
        out[widths + (column >> 1)] = width
    if width == 1:
        target = out[position : position + rows]
        for row in range(rows):
            target[row] = values[row]
    elif width > 1:
        # In ascending order: each write of eight bytes overwrites the excess bytes of the previous one.
        for row in range(rows):
            store_word(out, position + width * row, values[row])
    return int(position + width * rows)
