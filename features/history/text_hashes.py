"""Hashes ids, to choose among them by what they are and not by where they stand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.jit import compiled


@compiled(releases_gil=True, makes_arrays=True)
def _hash_texts(
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
    """Returns the hash of each text, an array of strings or bytes without nulls."""
    hashes = np.empty(len(texts), dtype=np.uint64)
    if len(texts):
        _, offsets, content = texts.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
        _hash_texts(bounds, np.frombuffer(content or b"", dtype=np.uint8).copy(), 0, len(texts), hashes)
    return hashes
