"""Finds payments by their ids, when the ids do not fit into memory.

    ids ──► a 64-bit hash each ──► parts by the hash ──► within a part sorted: (hash, row)
                                                           └─ equal hashes: the ids themselves are compared

Only one part's hashes and rows are in memory at a time. Two ids with equal hashes are compared byte by byte, so the
results are exact and not just probable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.jit import compiled

# The number of ids in a part: about 50 MB, with the memory for sorting.
PART_IDS = 1_000_000
_SCAN_ROWS = 1 << 20
# After this many comparisons, `find_rows` frees the pages that the ids lie on.
_COMPARED_IDS = 50_000


class Ids(NamedTuple):
    """Texts in Arrow's layout: text i is bytes[offsets[i] : offsets[i + 1]]. `hashes` has shape (ids,)."""

    offsets: NDArray[np.int64]
    bytes: NDArray[np.uint8]
    hashes: NDArray[np.uint64]


def first_repeated(ids: Ids, *, part_ids: int = PART_IDS) -> int:
    """Returns the first row with the id of an earlier row, -1 without one."""
    found = [_first_repeated(*part, ids.offsets, ids.bytes) for part in _parts(ids, _part_count(ids, part_ids))]
    return min((row for row in found if row >= 0), default=-1)


def find_rows(
    ids: Ids,
    wanted: Ids,
    rows: NDArray[np.int64],
    *,
    part_ids: int = PART_IDS,
    release: Callable[[], object] = int,
) -> int:
    """Write the row of each wanted id to `rows`, -1 for an unknown id. Returns the number of unknown ids.

    `ids` must be distinct. `release` frees the memory of the columns.
    """
    count = _part_count(ids, part_ids)
    lost = 0
    for (hashes, places), (asked, asked_places) in zip(_parts(ids, count), _parts(wanted, count), strict=True):
        for start in range(0, len(asked), _COMPARED_IDS):
            here = slice(start, start + _COMPARED_IDS)
            lost += _find_rows(
                hashes, places, ids.offsets, ids.bytes,
                asked[here], asked_places[here], wanted.offsets, wanted.bytes, rows,
            )  # fmt: skip
            release()
    return lost


def _part_count(ids: Ids, part_ids: int) -> int:
    return max(1, -(-len(ids.hashes) // part_ids))


def _parts(ids: Ids, count: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield the ascending hashes of each part with their rows. Rows with equal hashes ascend too."""
    for part in range(count):
        rows = _rows_of_part(ids.hashes, part, count)
        hashes = ids.hashes[rows]
        order = np.argsort(hashes, kind="stable")
        yield hashes[order], rows[order]


def _rows_of_part(hashes: NDArray[np.uint64], part: int, count: int) -> NDArray[np.int64]:
    found = [
        np.flatnonzero(hashes[start : start + _SCAN_ROWS] % np.uint64(count) == part) + start
        for start in range(0, len(hashes), _SCAN_ROWS)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


@compiled(releases_gil=True, makes_arrays=True)
def hash_texts(
    offsets: NDArray[np.int64], content: NDArray[np.uint8], first: int, last: int, hashes: NDArray[np.uint64]
) -> None:
    """Write the FNV-1a hashes of texts `first` to `last` (exclusive) to `hashes`, mixed as in MurmurHash3."""
    for row in range(first, last):
        value = np.uint64(0xCBF29CE484222325)
        for place in range(offsets[row], offsets[row + 1]):
            value = (value ^ np.uint64(content[place])) * np.uint64(0x100000001B3)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        hashes[row] = value ^ (value >> np.uint64(33))


def hashes_of(texts: pa.Array) -> NDArray[np.uint64]:
    """Returns the hash of each text, an array of strings or bytes without nulls, as `hash_texts` makes it."""
    hashes = np.empty(len(texts), dtype=np.uint64)
    if len(texts):
        _, offsets, content = texts.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
        hash_texts(bounds, np.frombuffer(content or b"", dtype=np.uint8).copy(), 0, len(texts), hashes)
    return hashes


@compiled(releases_gil=True, makes_arrays=True)
def _is_same(
    offsets: NDArray[np.int64],
    content: NDArray[np.uint8],
    row: int,
    other_offsets: NDArray[np.int64],
    other_content: NDArray[np.uint8],
    other: int,
) -> bool:
    start, size = offsets[row], offsets[row + 1] - offsets[row]
    other_start = other_offsets[other]
    if other_offsets[other + 1] - other_start != size:
        return False
    for place in range(size):  # noqa: SIM110 - compiled: a generator would be slower
        if content[start + place] != other_content[other_start + place]:
            return False
    return True


@compiled(releases_gil=True, makes_arrays=True)
def _first_repeated(
    hashes: NDArray[np.uint64], rows: NDArray[np.int64], offsets: NDArray[np.int64], content: NDArray[np.uint8]
) -> int:
    first = -1
    for place in range(1, len(hashes)):
        before = place - 1
        while before >= 0 and hashes[before] == hashes[place]:
            if _is_same(offsets, content, rows[place], offsets, content, rows[before]):
                if first < 0 or rows[place] < first:
                    first = rows[place]
                break
            before -= 1
    return first


@compiled(releases_gil=True, makes_arrays=True)
def _find_rows(
    hashes: NDArray[np.uint64],
    rows: NDArray[np.int64],
    offsets: NDArray[np.int64],
    content: NDArray[np.uint8],
    wanted_hashes: NDArray[np.uint64],
    wanted_rows: NDArray[np.int64],
    wanted_offsets: NDArray[np.int64],
    wanted_content: NDArray[np.uint8],
    found: NDArray[np.int64],
) -> int:
    """Walk once along both lists of hashes, which are sorted. Returns the number of wanted ids not found."""
    lost, start = 0, 0
    if len(wanted_hashes):
        start = np.searchsorted(hashes, wanted_hashes[0])
    for place in range(len(wanted_hashes)):
        wanted = wanted_rows[place]
        while start < len(hashes) and hashes[start] < wanted_hashes[place]:
            start += 1
        found[wanted] = -1
        at = start
        while at < len(hashes) and hashes[at] == wanted_hashes[place]:
            if _is_same(offsets, content, rows[at], wanted_offsets, wanted_content, wanted):
                found[wanted] = rows[at]
                break
            at += 1
        if found[wanted] < 0:
            lost += 1
    return lost
