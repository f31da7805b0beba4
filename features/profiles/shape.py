"""The shape of an entity's profiles: the hops, measures and memories that their numbers stand for.

Every packed profile carries its shape, about forty bytes. After a change of the catalogue the profile can still be
read: shared measures go over, old ones are dropped, and new ones start empty. A shape consists of varints
(features/kernel/toolkit/varint.py):

    table count, and for each: hop in seconds, column count, columns
    column      4 x measure, + 2 if it counts an attribute, + 1 if it has a condition;
                then attribute and parts; then the condition's attribute, operator and value, as in ConditionCode
    memory count, and for each: attribute, capacity; for one of latest payments: 0, 2 x capacity, + 1 if it holds only
                payments that have all of its fields; field count, and for each: 2 x attribute, + 1 if it is a number

For example, 01 90 1C 01 00 00 is one table with a hop of 3600 s and one column, the count, and no memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import ConditionCode
from paywarden.features.catalogue.expressions import LABEL_MEASURES, Column, Measure
from paywarden.features.catalogue.windows import SECOND_MS
from paywarden.features.kernel.migrate import Move, TableChange
from paywarden.features.kernel.toolkit.varint import decode_varints, encode_varint
from paywarden.features.stores.base import RECORD_BYTES_MAX
from paywarden.schemas.errors import Misconfigured

MEASURES = tuple(Measure)
_LABEL_MEASURES = frozenset(map(MEASURES.index, LABEL_MEASURES))
# The widest column has 32 words. A shape with more than 64 is damaged, and its rows could overflow.
_PARTS_MAX = 64
# The engine refuses a catalogue whose largest profile, with numbers of eight bytes, exceeds a store's record.
_NUMBERS_MAX = RECORD_BYTES_MAX // 8
_DAMAGED = "it is damaged"
# Stands for the attribute in a memory of latest payments: no memory holds the values of a payment's time.
_LATEST = kernel.TIME_MS


@dataclass(frozen=True)
class ColumnShape:
    """One column of a table. Two equal shapes mean the same."""

    measure: int
    attribute: int
    parts: int
    condition: ConditionCode | None

    @property
    def is_label(self) -> bool:
        return self.measure in _LABEL_MEASURES


@dataclass(frozen=True)
class TableShape:
    """A table's hop and columns.

    `offsets` are the places of the columns in a row; the first word is the tile. `width` is the length of the row.
    """

    hop_ms: int
    columns: tuple[ColumnShape, ...]

    @property
    def is_label(self) -> bool:
        """Whether labels change it. Otherwise payments do; never both."""
        return any(column.is_label for column in self.columns)

    @property
    def offsets(self) -> tuple[int, ...]:
        places = [1]
        for column in self.columns:
            places.append(places[-1] + column.parts)
        return tuple(places[:-1])

    @property
    def width(self) -> int:
        return 1 + sum(column.parts for column in self.columns)


@dataclass(frozen=True)
class LatestShape:
    """A memory of the latest payments. `fields` are (attribute, whether it is kept as a number).

    `is_whole`: it holds only payments that have all of its fields.
    """

    fields: tuple[tuple[int, bool], ...]
    capacity: int
    is_whole: bool

    @property
    def width(self) -> int:
        """Returns the number of its columns: a value for each field, and the time."""
        return len(self.fields) + 1


@dataclass(frozen=True)
class Shape:
    """Tables by ascending hop, payments before labels; memories as (attribute, capacity); then latest payments."""

    tables: tuple[TableShape, ...]
    memories: tuple[tuple[int, int], ...]
    latest: tuple[LatestShape, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Returns the number of columns of each section of a packed profile. Each word of a row is one column."""
        return (
            *(table.width for table in self.tables),
            *(2 for _ in self.memories),
            *(latest.width for latest in self.latest),
        )

    @property
    def stored_columns(self) -> int:
        """Returns the number of columns of a packed profile."""
        return kernel.FIXED_COLUMNS + sum(self.widths)

    def digest(self, capacities: Sequence[int]) -> int:
        """Returns 32 bits that change with the shape and with the number of tiles that each table keeps."""
        text = self.encode() + b"".join(capacity.to_bytes(4, "little") for capacity in capacities)
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")

    def encode(self) -> bytes:
        """Returns the bytes that a packed profile carries."""
        numbers = [len(self.tables)]
        for table in self.tables:
            numbers += [table.hop_ms // SECOND_MS, len(table.columns)]
            for column in table.columns:
                counts = column.parts != 1 or column.attribute != 0
                numbers.append(4 * column.measure + 2 * counts + (column.condition is not None))
                numbers += [column.attribute, column.parts] if counts else []
                numbers += column.condition or ()
        numbers.append(len(self.memories) + len(self.latest))
        for memory in self.memories:
            numbers += memory
        for latest in self.latest:
            numbers += [_LATEST, 2 * latest.capacity + latest.is_whole, len(latest.fields)]
            numbers += [2 * attribute + is_number for attribute, is_number in latest.fields]
        return b"".join(map(encode_varint, numbers))


def column_shape(column: Column) -> ColumnShape:
    """Returns the shape of a column of the catalogue."""
    asked = None if column.condition is None else column.condition.code
    return ColumnShape(MEASURES.index(column.measure), column.attribute, column.parts, asked)


def shape_of(state: bytes) -> tuple[bytes, bytes]:
    """Returns the bytes of a packed profile's digest and shape. Raises Misconfigured if it is too short for them.

    The checksum is not verified here.
    """
    start = kernel.SHAPE_BYTES_AT
    size = int.from_bytes(state[start - 2 : start], "little")
    if len(state) < start + size:
        raise Misconfigured(_DAMAGED)
    return state[1:5], state[start : start + size]


def decode_shape(data: bytes) -> Shape:
    """Returns the shape that `encode` wrote. Raises Misconfigured for other bytes."""
    try:
        numbers = iter([*decode_varints(data)])
        tables = tuple(_decode_table(numbers) for _ in range(next(numbers)))
        memories, latest = _decode_memories(numbers)
    except (StopIteration, RuntimeError, ValueError):
        # A generator turns a StopIteration inside it into a RuntimeError.
        raise Misconfigured(_DAMAGED) from None
    parts = [column.parts for table in tables for column in table.columns]
    if next(numbers, None) is not None or any(table.hop_ms <= 0 for table in tables):
        raise Misconfigured(_DAMAGED)
    if not all(0 < count <= _PARTS_MAX for count in parts):
        raise Misconfigured(_DAMAGED)
    return Shape(tables, memories, latest)


def numbers_of(state: bytes, shape: Shape) -> NDArray[np.int64]:
    """Returns the numbers that a packed profile of this shape holds, as `kernel.decode` orders them.

    Raises Misconfigured.
    """
    data = np.frombuffer(bytearray(state), dtype=np.uint8)
    end = len(data) - kernel.CHECKSUM_BYTES
    stored = int.from_bytes(state[end:], "little", signed=True)
    if end < kernel.SHAPE_BYTES_AT or stored != kernel.checksum(data, 0, end):
        raise Misconfigured(_DAMAGED)
    widths = np.array(shape.widths, dtype=np.int64)
    numbers = np.empty(_NUMBERS_MAX, dtype=np.int64)
    start = kernel.SHAPE_BYTES_AT + len(shape_of(state)[1])
    count = kernel.decode(data, start, end, widths, numbers)
    if count < 0:
        raise Misconfigured(_DAMAGED)
    # Zeros take no bytes: the bytes alone do not bound how many payments of one moment a memory says it holds.
    capacities = [capacity for _, capacity in shape.memories] + [latest.capacity for latest in shape.latest]
    first = 4 + len(shape.tables)
    if any(
        length > capacity
        for length, capacity in zip(numbers[first : first + len(capacities)].tolist(), capacities, strict=True)
    ):
        raise Misconfigured(_DAMAGED)
    return numbers[:count]


def translation(old: Shape, new: Shape) -> NDArray[np.int64]:
    """Returns how an old profile's numbers become a new one's. `kernel.migrate` has the layout."""
    steps = [len(old.tables), len(old.memories) + len(old.latest)]
    tables = {(table.hop_ms, table.is_label): index for index, table in enumerate(new.tables)}
    for table in old.tables:
        target = tables.get((table.hop_ms, table.is_label), -1)
        moves = _moves(table, new.tables[target]) if target >= 0 else []
        steps += TableChange(table.width, target, len(moves))
        for move in moves:
            steps += move
    for target in _memory_targets(old, new):
        steps += [target, 1]
    for latest in old.latest:
        steps += [_latest_target(latest, new), len(latest.fields)]
    return np.array(steps, dtype=np.int64)


def _moves(old: TableShape, new: TableShape) -> list[Move]:
    """Returns a move for every word that both tables have."""
    places = dict(zip(new.columns, new.offsets, strict=True))
    return [
        Move(offset + part, places[column] + part, int(column.is_label))
        for column, offset in zip(old.columns, old.offsets, strict=True)
        if column in places
        for part in range(column.parts)
    ]


def _memory_targets(old: Shape, new: Shape) -> list[int]:
    """Returns the new memory of each old one: of the same attribute, and of the same capacity if there is one."""
    targets = []
    for attribute, capacity in old.memories:
        same = [i for i, (other, _) in enumerate(new.memories) if other == attribute]
        exact = [i for i in same if new.memories[i][1] == capacity]
        targets.append((exact or same or [-1])[0])
    return targets


def _latest_target(old: LatestShape, new: Shape) -> int:
    """Returns the new memory of an old one of latest payments: of the same fields, and of the same size if possible."""
    same = [
        (other.capacity != old.capacity, number)
        for number, other in enumerate(new.latest, len(new.memories))
        if (other.fields, other.is_whole) == (old.fields, old.is_whole)
    ]
    return min(same)[1] if same else -1


def _decode_memories(numbers: Iterator[int]) -> tuple[tuple[tuple[int, int], ...], tuple[LatestShape, ...]]:
    memories: list[tuple[int, int]] = []
    latest: list[LatestShape] = []
    for _ in range(next(numbers)):
        attribute, size = next(numbers), next(numbers)
        if attribute == _LATEST:
            count = next(numbers)
            if count > _PARTS_MAX:
                raise Misconfigured(_DAMAGED)
            fields = tuple((code >> 1, bool(code & 1)) for code in (next(numbers) for _ in range(count)))
            latest.append(LatestShape(fields, size >> 1, bool(size & 1)))
        elif latest:
            raise Misconfigured(_DAMAGED)
        else:
            memories.append((attribute, size))
    return tuple(memories), tuple(latest)


def _decode_condition(numbers: Iterator[int]) -> ConditionCode:
    code: list[int] = []
    open_parts = 1
    while open_parts:
        code += (next(numbers), next(numbers), next(numbers))
        open_parts += (code[-3] if code[-2] >= kernel.ALL_OF else 0) - 1
    return tuple(code)


def _decode_table(numbers: Iterator[int]) -> TableShape:
    hop_ms = next(numbers) * SECOND_MS
    columns = []
    for _ in range(next(numbers)):
        head = next(numbers)
        attribute, parts = (next(numbers), next(numbers)) if head & 2 else (0, 1)
        condition = _decode_condition(numbers) if head & 1 else None
        columns.append(ColumnShape(head >> 2, attribute, parts, condition))
    if len({column.is_label for column in columns}) > 1:
        raise Misconfigured(_DAMAGED)
    return TableShape(hop_ms, tuple(columns))
