"""Reads and writes packed profiles in plain Python, in the format that features/kernel/codec.py describes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

from paywarden.features.profiles.shape import decode_shape

_SHAPE_AT = 7
_CHECKSUM_BYTES = 8
_MASK = (1 << 64) - 1
_PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63)
# The columns before the tables: three times, then the lengths of the sections.
_LENGTHS = 3
_TABLES_AT = 4
_SIGN = 1 << 63

Columns = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Packed:
    """The content of a packed profile by column, every number as it is stored."""

    version: int
    digest: int
    shape: bytes
    columns: Columns

    @property
    def numbers(self) -> tuple[int, ...]:
        """All numbers in order: first, last and newest time, lengths, tables, memories, sources."""
        return tuple(chain.from_iterable(self.columns))

    @property
    def source_count(self) -> int:
        """The number of source partitions: the first of the lengths."""
        return self.columns[_LENGTHS][0]

    @property
    def sources_at(self) -> int:
        """The number of the column of sources. Offsets follow."""
        return len(self.columns) - 2

    def with_number(self, place: int, number: int) -> Packed:
        """Returns the profile with another number at index `place` of `numbers`."""
        columns = []
        for column in self.columns:
            inside = 0 <= place < len(column)
            columns.append((*column[:place], number, *column[place + 1 :]) if inside else column)
            place -= len(column)
        return replace(self, columns=tuple(columns))


def read_packed(state: bytes) -> Packed:
    """Returns the content of a packed profile. Raises ValueError for a wrong checksum or a wrong number of bytes."""
    state, stored = state[:-_CHECKSUM_BYTES], state[-_CHECKSUM_BYTES:]
    if checksum_of(state) != stored:
        raise ValueError("the checksum is wrong")
    shape_end = _SHAPE_AT + int.from_bytes(state[5:_SHAPE_AT], "little")
    shape = decode_shape(state[_SHAPE_AT:shape_end])
    sections = list(shape.widths)
    count = _TABLES_AT + sum(sections) + 2
    position = shape_end + (count + 1) // 2
    nibbles = [width for pair in state[shape_end:position] for width in (pair & 15, pair >> 4)]
    widths = iter(nibbles)
    columns: list[tuple[int, ...]] = []

    def read(rows: int) -> None:
        nonlocal position
        width = next(widths)
        stop = position + rows * width
        numbers = [state[at : at + width] for at in range(position, stop, width)] if width else [b""] * rows
        columns.append(tuple(_signed(int.from_bytes(number, "little")) for number in numbers))
        position = stop

    for rows in (1, 1, 1, 1 + len(sections)):
        read(rows)
    source_count, *lengths = columns[_LENGTHS]
    for rows, width in zip([*lengths, source_count], [*sections, 2], strict=True):
        for _ in range(width):
            read(rows)
    if position != len(state) or sum(nibbles[count:]) != 0:
        raise ValueError(f"wanted {position} bytes, got {len(state)}")
    return Packed(state[0], int.from_bytes(state[1:5], "little"), state[_SHAPE_AT:shape_end], tuple(columns))


def write_packed(packed: Packed) -> bytes:
    """Returns the bytes that `read_packed` reads, every column in as few bytes as it needs."""
    return with_widths(packed, widths_of(packed))


def widths_of(packed: Packed) -> list[int]:
    """Returns the bytes that the largest number of each column needs."""
    return [
        max([(_unsigned(number).bit_length() + 7) // 8 for number in column], default=0) for column in packed.columns
    ]


def with_widths(packed: Packed, widths: list[int]) -> bytes:
    """Returns the packed profile with these widths of the columns. A number that does not fit is cut."""
    even = [*widths, 0] if len(widths) % 2 else widths
    head = bytes([packed.version]) + packed.digest.to_bytes(4, "little") + len(packed.shape).to_bytes(2, "little")
    pairs = bytes(low | high << 4 for low, high in zip(even[::2], even[1::2], strict=True))
    body = b"".join(
        _unsigned(number).to_bytes(16, "little")[:width]
        for column, width in zip(packed.columns, widths, strict=True)
        for number in column
    )
    state = head + packed.shape + pairs + body
    return state + checksum_of(state)


def resealed(state: bytes) -> bytes:
    """Returns a profile whose bytes were changed with the checksum of its new bytes."""
    if len(state) <= _CHECKSUM_BYTES:
        return state
    return state[:-_CHECKSUM_BYTES] + checksum_of(state[:-_CHECKSUM_BYTES])


def checksum_of(content: bytes) -> bytes:
    """Returns the checksum of a profile's bytes, as features/kernel/toolkit/checksum.py describes it."""
    lanes = list(_PRIMES)
    words = [content[at : at + 8] for at in range(0, len(content), 8)]
    whole = len(content) // 32 * 4
    for number, word in enumerate(words):
        lane = number % 4 if number < whole else 0
        lanes[lane] = _taken(lanes[lane], int.from_bytes(word, "little"))
    total = _taken(lanes[0], len(content))
    for lane in lanes[1:]:
        total = _taken(total, lane)
    total = (total ^ total >> 32) * _PRIMES[1] & _MASK
    return (total ^ total >> 29).to_bytes(8, "little")


def _taken(lane: int, word: int) -> int:
    mixed = (lane ^ word) * _PRIMES[0] & _MASK
    return (mixed << 29 | mixed >> 35) & _MASK


def sources_of(state: bytes) -> dict[int, int]:
    """Returns {source: newest offset} of a packed profile."""
    packed = read_packed(state)
    sources, offsets = packed.columns[packed.sources_at : packed.sources_at + 2]
    return dict(zip(sources, offsets, strict=True))


def without_sources(state: bytes) -> bytes:
    """Returns the profile without its sources, so that two ways of building it can be compared."""
    return write_packed(with_sources(read_packed(state), ()))


def with_sources(packed: Packed, sources: tuple[tuple[int, int], ...]) -> Packed:
    """Returns the profile with other (source, offset) pairs."""
    columns = list(packed.columns)
    columns[_LENGTHS] = (len(sources), *columns[_LENGTHS][1:])
    both = tuple(source for source, _ in sources), tuple(offset for _, offset in sources)
    columns[packed.sources_at : packed.sources_at + 2] = both
    return replace(packed, columns=tuple(columns))


def _signed(value: int) -> int:
    return value - 2 * _SIGN if value >= _SIGN else value


def _unsigned(number: int) -> int:
    return number % (2 * _SIGN)
