"""Read a packed profile's sources in plain Python: which offsets does it contain?"""

from __future__ import annotations


def sources_of(state: bytes) -> dict[int, int]:
    """{source: newest offset} of a packed profile (layout in features/kernel.py)."""
    count, position = _varint(state, 5)
    found = {}
    for _ in range(count):
        source, position = _varint(state, position)
        found[source], position = _varint(state, position)
    return found


def without_sources(state: bytes) -> bytes:
    """The profile as if its events had come from nowhere: what two ways of building it must agree on."""
    count, position = _varint(state, 5)
    for _ in range(2 * count):
        _, position = _varint(state, position)
    return state[:5] + b"\0" + state[position:]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
