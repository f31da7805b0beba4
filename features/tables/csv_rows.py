"""Finds the rows and cells of a CSV file in its bytes, in compiled code, and makes columns of text from them.

    a block of bytes ─ find_rows ─► where each row starts and ends, and its line
                     ─ find_cells ─► where each wanted cell starts and ends, and how many cells a row has
                     ─ copy_cells ─► a column: Arrow's offsets and bytes

The rules are those of RFC 4180 and of Python's csv module: a cell that begins with a quote goes on to the next quote
that is not doubled, over delimiters and line ends. A quote elsewhere is a character like others. Blank lines are no
rows. A line's number counts line feeds, so it is the number that an editor shows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.jit import compiled, inlined

_LINE_FEED, _RETURN = 10, 13

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]

# Places in the state of `find_rows`.
NEXT, LINE, OPEN_LINE = 0, 1, 2


@compiled(releases_gil=True)
def find_rows(
    data: Bytes,
    size: int,
    is_end: bool,
    delimiter: int,
    quote: int,
    starts: Places,
    ends: Places,
    lines: Places,
    state: Places,
) -> int:
    """Find the rows of data[state[NEXT]:size], which begins with a row. Returns how many there are.

    A row that is not whole stays for the next call, unless `is_end`. `state` is then where that row starts, its line,
    and the line of a quote that is still open (0 without one). `quote` is -1 if there are no quotes. The call ends
    early when `starts` is full.
    """
    at, line, count = state[NEXT], state[LINE], 0
    start, start_line = at, line
    is_quoted, is_cell_start, quote_line = False, True, np.int64(0)
    while at < size:
        byte = data[at]
        if is_quoted:
            if byte == quote:
                if at + 1 < size and data[at + 1] == quote:
                    at += 1
                else:
                    is_quoted = False
            elif byte == _LINE_FEED:
                line += 1
        elif byte == _LINE_FEED:
            end = at - 1 if at > start and data[at - 1] == _RETURN else at
            line += 1
            if end > start:
                starts[count], ends[count], lines[count] = start, end, start_line
                count += 1
            start, start_line, is_cell_start = at + 1, line, True
            if count == len(starts):
                break
        elif byte == delimiter:
            is_cell_start = True
        elif byte == quote and is_cell_start:
            is_quoted, is_cell_start, quote_line = True, False, line
        else:
            is_cell_start = False
        at += 1
    if is_end and at == size and start < size and not is_quoted:
        end = size - 1 if data[size - 1] == _RETURN else size
        if end > start:
            starts[count], ends[count], lines[count] = start, end, start_line
            count += 1
        start = size
    state[NEXT], state[LINE] = start, start_line
    state[OPEN_LINE] = quote_line if is_quoted else 0
    return count


@compiled(releases_gil=True)
def find_cells(
    data: Bytes,
    starts: Places,
    ends: Places,
    delimiter: int,
    quote: int,
    place_of: Places,
    cell_starts: NDArray[np.int64],
    cell_ends: NDArray[np.int64],
    counts: Places,
) -> None:
    """Write where the wanted cells lie, shape (wanted, rows), with their quotes, and the number of cells of each row.

    Cell k of a row goes to place_of[k]; -1 is not wanted.
    """
    for row in range(len(starts)):
        at, end, cell, start = starts[row], ends[row], 0, starts[row]
        is_quoted, is_cell_start = False, True
        while at < end:
            byte = data[at]
            if is_quoted:
                if byte == quote:
                    if at + 1 < end and data[at + 1] == quote:
                        at += 1
                    else:
                        is_quoted = False
            elif byte == delimiter:
                if cell < len(place_of) and place_of[cell] >= 0:
                    cell_starts[place_of[cell], row], cell_ends[place_of[cell], row] = start, at
                cell += 1
                start, is_cell_start = at + 1, True
            else:
                is_quoted, is_cell_start = byte == quote and is_cell_start, False
            at += 1
        if cell < len(place_of) and place_of[cell] >= 0:
            cell_starts[place_of[cell], row], cell_ends[place_of[cell], row] = start, end
        counts[row] = cell + 1


@inlined
def _is_blank(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13


@compiled(releases_gil=True)
def copy_cells(
    data: Bytes, cell_starts: Places, cell_ends: Places, quote: int, offsets: NDArray[np.int32], content: Bytes
) -> int:
    """Write the cells of a column one after the other, without quotes and without the blanks at both ends.

    `content` has room for all of them. Returns how many bytes they are.
    """
    size = 0
    offsets[0] = 0
    for row in range(len(cell_starts)):
        at, end, first = cell_starts[row], cell_ends[row], size
        if at < end and data[at] == quote:
            at += 1
            is_open = True
            while at < end:
                byte = data[at]
                at += 1
                if is_open and byte == quote:
                    if at < end and data[at] == quote:
                        at += 1
                    else:
                        is_open = False
                        continue
                content[size] = byte
                size += 1
            skipped = 0
            while first + skipped < size and _is_blank(content[first + skipped]):
                skipped += 1
            while size > first + skipped and _is_blank(content[size - 1]):
                size -= 1
            if skipped:
                for place in range(first + skipped, size):
                    content[place - skipped] = content[place]
                size -= skipped
        else:
            while at < end and _is_blank(data[at]):
                at += 1
            while end > at and _is_blank(data[end - 1]):
                end -= 1
            for place in range(at, end):
                content[size] = data[place]
                size += 1
        offsets[row + 1] = size
    return size
