"""Finds the parts of profiles that a catalogue's features need: tables, memories, slots and conditions.

For example, `card_count_1h` and `card_amount_sum_1h` share a table of 61 rows, one a minute, with two columns. Each has
a slot for its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import ConditionCode, identity_column, parts_of
from paywarden.features.catalogue.expressions import (
    Column,
    EntityRecency,
    Latest,
    Measure,
    Neighbours,
    Recency,
    Remembered,
    Stored,
    WindowedMeasure,
)
from paywarden.features.kernel.plan_schema import PlanCondition
from paywarden.features.profiles.shape import MEASURES, LatestShape, TableShape, column_shape
from paywarden.schemas.errors import Misconfigured

# The kernel answers all conditions of a catalogue in one 64-bit number.
CONDITIONS_MAX = 62
RECENCIES = tuple(Recency)


@dataclass(frozen=True)
class StoredTable:
    shape: TableShape
    columns: tuple[Column, ...]
    capacity: int
    windows: tuple[WindowedMeasure, ...]

    def offset(self, column: Column) -> int:
        return self.shape.offsets[self.columns.index(column)]


@dataclass(frozen=True)
class StoredMemory:
    attribute: int
    capacity: int
    asked: tuple[Remembered, ...]


@dataclass(frozen=True)
class StoredLatest:
    shape: LatestShape
    asked: tuple[Latest, ...]


@dataclass(frozen=True)
class StoredHop:
    """A group of results two hops away: of the last `capacity` neighbours of kind `target` of a `source`."""

    source: int
    target: int
    attribute: int
    capacity: int
    results: tuple[Neighbours, ...]


@dataclass(frozen=True)
class Slots:
    """The slot of each roll-up result, and the first and last slot of each entity.

    The results of neighbours stand behind those of all entities, from `hops_at` on.
    """

    of: dict[Stored, int]
    bounds: list[tuple[int, int]]
    hops_at: int
    count: int


def tables_of(wanted: Sequence[WindowedMeasure]) -> list[StoredTable]:
    """Returns one table for each hop and kind of event, by ascending hop, payments before labels."""
    columns: dict[tuple[int, bool], set[Column]] = {}
    ages: dict[tuple[int, bool], int] = {}
    for item in wanted:
        for column in item.columns:
            kind = item.window.hop_ms, column_shape(column).is_label
            columns.setdefault(kind, set()).add(column)
            ages[kind] = max(ages.get(kind, 0), item.window.oldest_age)
    tables = []
    for kind in sorted(columns):
        ordered = tuple(sorted(columns[kind], key=column_order))
        shape = TableShape(kind[0], tuple(map(column_shape, ordered)))
        windows = tuple(item for item in wanted if _table_of(item) == kind)
        tables.append(StoredTable(shape, ordered, ages[kind] + 1, windows))
    return tables


def _table_of(item: WindowedMeasure) -> tuple[int, bool]:
    """Returns hop and kind of the table that holds the item's column."""
    return item.window.hop_ms, column_shape(item.column).is_label


def column_order(column: Column) -> tuple[int, ...]:
    """Returns the sort key of a column: its measure first."""
    condition = () if column.condition is None else column.condition.code
    return (MEASURES.index(column.measure), column.attribute, column.parts, *condition)


def memories_of(wanted: Sequence[Remembered | Neighbours]) -> list[StoredMemory]:
    """Returns the memories of distinct values. One of neighbours alone has no question."""
    by_kind: dict[tuple[int, int], list[Remembered]] = {}
    for item in wanted:
        asked = by_kind.setdefault((item.attribute, item.capacity), [])
        if isinstance(item, Remembered):
            asked.append(item)
    return [StoredMemory(*kind, tuple(items)) for kind, items in sorted(by_kind.items())]


def latest_of(wanted: Sequence[Latest]) -> list[StoredLatest]:
    """Returns the memories of latest payments. Questions about the same fields of as many payments share one."""
    by_kind: dict[tuple[tuple[tuple[int, bool], ...], int, bool], list[Latest]] = {}
    for item in wanted:
        by_kind.setdefault((item.fields, item.capacity, item.is_whole), []).append(item)
    return [StoredLatest(LatestShape(*kind), tuple(items)) for kind, items in sorted(by_kind.items())]


def hops_of(stored: Sequence[Stored], entities: Sequence[str]) -> list[StoredHop]:
    """Returns the groups of neighbours, those of one source one after the other."""
    groups: dict[tuple[int, int, int, int], list[Neighbours]] = {}
    for item in stored:
        if isinstance(item, Neighbours):
            group = entities.index(item.entity), entities.index(item.target), item.attribute, item.capacity
            groups.setdefault(group, []).append(item)
    return [StoredHop(*group, tuple(results)) for group, results in sorted(groups.items(), key=lambda one: one[0])]


def reading_of(attribute: int) -> tuple[int, int]:
    """Returns the column of the code of a number, and how it is read.

    features/catalogue/entity_words/arguments.py names the code.
    """
    if attribute < kernel.ATTRIBUTE_COUNT:
        return attribute, kernel.READ_AMOUNT
    is_age = is_second_column(attribute)
    return attribute - is_age, kernel.READ_AGE if is_age else kernel.READ_NUMBER


def is_second_column(column: int) -> int:
    """Returns 1 for the second column of a declared field, else 0."""
    return (column - kernel.ATTRIBUTE_COUNT) % 2 if column >= kernel.ATTRIBUTE_COUNT else 0


def identities_of(
    tables: list[StoredTable], memories: list[StoredMemory], latest: list[StoredLatest]
) -> frozenset[int]:
    counted = [
        column.attribute
        for table in tables
        for column in table.columns
        if column.measure in (Measure.DISTINCT_BITS, Measure.BUCKET_COUNTS)
    ]
    counted += [attribute for payments in latest for attribute, is_number in payments.shape.fields if not is_number]
    columns = map(identity_column, [*counted, *(memory.attribute for memory in memories)])
    return frozenset(column for column in columns if column >= kernel.CODE_COUNT)


def numbered_slots(
    names: Sequence[str],
    tables: Sequence[list[StoredTable]],
    memories: Sequence[Sequence[StoredMemory | StoredLatest]],
    hops: Sequence[StoredHop],
) -> Slots:
    """Number the slots, entity by entity: windows, memories, recencies. Every entity has the recencies.

    Then come the results of neighbours.
    """
    of: dict[Stored, int] = {}
    bounds, count = [], 0
    for name, mine, kept in zip(names, tables, memories, strict=True):
        first = count
        for table in mine:
            for item in table.windows:
                of[item] = count
                count += _slot_parts(item)
        for memory in kept:
            for asked in memory.asked:
                of[asked] = count
                count += 1
        for recency in RECENCIES:
            of[EntityRecency(name, recency)] = count
            count += 1
        bounds.append((first, count))
    results = [result for hop in hops for result in hop.results]
    of |= {result: place for place, result in enumerate(results, count)}
    return Slots(of, bounds, count, count + len(results))


def _slot_parts(item: WindowedMeasure) -> int:
    return item.column.parts if item.column.measure is Measure.BUCKET_COUNTS else 1


def conditions_of(tables: Sequence[list[StoredTable]], met: Sequence[ConditionCode]) -> list[ConditionCode]:
    """Returns each distinct condition once, whatever its text, behind its parts. `met` are those of payments."""
    asked: dict[ConditionCode, None] = {}

    def add(code: ConditionCode) -> None:
        for part in parts_of(code):
            add(part)
        asked[code] = None

    columns = [column for mine in tables for table in mine for column in table.shape.columns]
    for code in (*(column.condition for column in columns), *met):
        if code is not None:
            add(code)
    if len(asked) > CONDITIONS_MAX:
        raise Misconfigured(f"feature catalogue: it has {len(asked)} conditions; there may be {CONDITIONS_MAX}")
    return list(asked)


def plan_condition(code: ConditionCode, conditions: Sequence[ConditionCode]) -> PlanCondition:
    """Returns a condition as the kernel reads it: the value of a joined one has the bits of its parts."""
    if parts := parts_of(code):
        return PlanCondition(0, code[1], sum(1 << conditions.index(part) for part in parts))
    return PlanCondition(*code)
