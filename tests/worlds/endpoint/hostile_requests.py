"""Requests whose bytes protobuf reads as a right request, though no client writes them so.

usual       0a 03 70 2d 31                          field 1, length 3: "p-1"
overlong    0a 83 80 80 80 80 00 70 2d 31           the length in six bytes: protobuf refuses it
groups      … 6b 6b 6b … 6c 6c 6c                   an unknown field of 100 levels
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

_VARINT, _BYTES = 0, 2
# An unknown field of each wire type, and a known field's number with another wire type.
_UNKNOWN = [b"\x68\x01", b"\x6a\x01a", b"\x80\x01\x01", b"\x6d\x00\x00\x00\x00", b"\x69" + bytes(8), b"\x08\x01"]


def varint(number: int, size: int = 1) -> bytes:
    """Returns the varint of a number from 0 to 2**64 - 1 in at least `size` bytes."""
    out = bytearray()
    while number > 127 or len(out) < size - 1:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def groups(depth: int) -> bytes:
    """Returns an unknown field of `depth` groups, one in the other."""
    return b"\x6b" * depth + b"\x6c" * depth


def fields_of(request: ScoreRequest) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field that is set. A number is its varint's."""
    for field, value in request.ListFields():
        yield field.number, value.encode() if isinstance(value, str) else value % 2**64


def written(number: int, value: int | bytes, *, tag_size: int = 1, number_size: int = 1) -> bytes:
    """Returns a field with tag and length, or tag and number, in at least that many bytes."""
    if isinstance(value, bytes):
        return varint(number << 3 | _BYTES, tag_size) + varint(len(value), number_size) + value
    return varint(number << 3 | _VARINT, tag_size) + varint(value, number_size)


@st.composite
def hostile_bodies(draw: st.DrawFn, requests: st.SearchStrategy[ScoreRequest]) -> bytes:
    """Draws a request and writes it in an unusual way. protobuf accepts most of these, and refuses some."""
    fields = [*fields_of(draw(requests))]
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    if draw(st.booleans()):
        # Fields that come twice: the last one counts.
        fields += draw(st.lists(st.sampled_from(fields), max_size=3))
    sizes = st.integers(1, 10) if draw(st.booleans()) else st.just(1)
    parts = [written(*field, tag_size=min(draw(sizes), 5), number_size=draw(sizes)) for field in fields]
    for _ in range(draw(st.integers(0, 2))):
        extra = draw(st.sampled_from(_UNKNOWN) | st.integers(1, 100).map(groups) | st.binary(max_size=3))
        parts.insert(draw(st.integers(0, len(parts))), extra)
    return b"".join(parts)
