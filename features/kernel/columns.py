"""Columns of numbers in the stored form: each in as many whole bytes as its largest number needs."""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.intrinsics import leading_zeros, load_word, store_word
from paywarden.features.kernel.jit import compiled, inlined
from paywarden.features.kernel.layout import I64, U8

# From so many rows on, reading several bytes at once, which most columns have, is worth what it takes to begin.
_VECTOR_ROWS = 8


@inlined
def width_of(data: U8, widths: int, column: int) -> int:
    """How many bytes a number of a column takes, by the nibble that says it."""
    return int(np.int64(data[widths + (column >> 1)]) >> ((column & 1) << 2) & 15)


@compiled()
def read_columns(
    data: U8, widths: int, column: int, columns: int, position: int, end: int, rows: int, words: I64, at: int, step: int
) -> int:
    """Columns of one length to words[at:], each `step` behind the one before; returns where they end in `data`.

    The first is the `column`-th of the profile, whose widths stand at `widths`; its numbers start at `position`.
    Returns -1 when they end behind `end` or are wider than a number. `words` must have the room.
    """
    readable = len(data) - 8
    for number in range(column, column + columns):
        width = width_of(data, widths, number)
        stop = position + rows * width
        if width > 8 or stop > end:
            return -1
        # Views, because an index that may count from the end keeps a loop from being vectorised.
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
            # Shifted twice: a shift by all 64 bits is not defined.
            mask = (np.int64(1) << 4 * width << 4 * width) - 1
            for row in range(rows):
                numbers[row] = load_word(data, position + width * row) & mask
        else:
            # So near the end of the buffer that eight bytes at once would reach beyond it.
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
    """Write numbers[at : at + rows] as the `column`-th of a profile, and its width; returns where it ends."""
    values = numbers[at : at + rows]
    bits = np.int64(0)
    for row in range(rows):
        bits |= values[row]
    width = (71 - leading_zeros(bits)) >> 3
    if column & 1:
        out[widths + (column >> 1)] |= width << 4
    else:
        out[widths + (column >> 1)] = width
    if width == 1:
        target = out[position : position + rows]
        for row in range(rows):
            target[row] = values[row]
    elif width > 1:
        # In this order: what one writes beyond its end the next overwrites.
        for row in range(rows):
            store_word(out, position + width * row, values[row])
    return int(position + width * rows)
