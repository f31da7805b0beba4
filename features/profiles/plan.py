"""Compile a catalogue into the flat integer plan that the kernel interprets.

The kernel takes one int64 array instead of a dozen small ones: the cost of a call into compiled code grows with its
arguments, and a scoring worker makes one call a payment. The plan has a head, which says where the parts are, and

    entity      its digest and shape; its tables and memories; where its slots and its profile's sections are
    table       one per hop and kind of event: the hop, how many tiles are kept, and the columns of a row
    column      measure, condition, attribute, and where in a profile's words it starts
    group       windows that start at the same age, the ages at which they end, and the results they share
    result      one reduction of a column, and its slot for each of those ages
    memory      the attribute and the number of values; the questions, and the slots for the answers
    conditions  attribute, operator, value
    program     operations on slots, attributes and earlier results
    features    the number of each feature's value

features/kernel/plan_schema.py describes each section.
The values are the slots (roll-up results, grouped by entity), followed by the results of the program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import Attribute, Condition, identity_column, row_width
from paywarden.features.catalogue.checks import FIELD_COUNTS, columns_of
from paywarden.features.catalogue.countries import load_places
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.expressions import (
    NUMBER_MEASURES,
    Column,
    Derived,
    EntityRecency,
    Expression,
    Latest,
    Measure,
    Operation,
    Recency,
    Recollection,
    Reduction,
    Remembered,
    Stored,
    WindowedMeasure,
    knows_fraud,
    stored_values,
)
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.catalogue.windows import DAY_MS
from paywarden.features.kernel import plan_schema
from paywarden.features.profiles.keys import has_hashed_key
from paywarden.features.profiles.shape import MEASURES, LatestShape, Shape, TableShape, column_shape
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields

# The kernel answers all conditions of a catalogue in one 64-bit number.
CONDITIONS_MAX = 62
RECENCIES = tuple(Recency)
REDUCTIONS = tuple(Reduction)
RECOLLECTIONS = tuple(Recollection)
OPERATIONS = tuple(Operation)
# Recency and memories look back beyond any window. If a store forgot a card when its windows are empty, live scoring
# would call it new, but a replay, which forgets nothing, would not. After a year without payments both may call it new.
RECENCY_REACH_MS = 400 * DAY_MS


@dataclass(frozen=True)
class Plan:
    """A compiled catalogue. The kernel reads `words`; `digest` changes with the features and their order."""

    words: NDArray[np.int64]
    names: tuple[str, ...]
    entity_names: tuple[str, ...]
    entity_keys: tuple[tuple[str, ...], ...]
    digest: str
    slot_count: int
    value_count: int
    shapes: tuple[Shape, ...]
    capacities: tuple[tuple[int, ...], ...]
    retention_ms: tuple[int, ...]
    attribute_columns: tuple[int, ...]
    """The attributes of a payment that any feature uses."""
    entity_identities: tuple[frozenset[int], ...]
    """For each entity the columns of identities that its profiles take in."""
    key: IdentityKey = field(repr=False)
    """Makes identities of texts."""
    fields: PaymentFields = TABLE_ALONE
    """The fields of a payment."""
    label_delays_ms: tuple[int, ...] = ()
    """How long the features of known fraud wait for labels: each delay once, ascending."""

    @property
    def feature_count(self) -> int:
        return len(self.names)

    @property
    def row_width(self) -> int:
        """Returns how many numbers a payment's row has."""
        return row_width(self.fields)

    @property
    def entity_count(self) -> int:
        return len(self.entity_names)

    def ttl_s(self, entity: int) -> int:
        """Returns how many seconds after its last write a store keeps a profile. No feature sees anything older."""
        return self.retention_ms[entity] // 1000 + DAY_MS // 1000

    def word_count(self, entity: int) -> int:
        """Returns the number of words of a profile in working form."""
        return plan_schema.entity_section(self.words, entity).word_count

    def number_count_max(self, entity: int) -> int:
        """Returns the largest count of numbers in a packed profile."""
        shape, capacities = self.shapes[entity], self.capacities[entity]
        rows = sum(table.width * capacity for table, capacity in zip(shape.tables, capacities, strict=True))
        remembered = sum(2 * capacity for _, capacity in shape.memories)
        remembered += sum(latest.width * latest.capacity for latest in shape.latest)
        return 5 + len(shape.widths) + rows + remembered + 2 * kernel.SOURCES_MAX

    def profile_bytes_max(self, entity: int) -> int:
        """Returns the largest size of a packed profile in bytes: all tiles present, every number eight bytes wide."""
        shape = self.shapes[entity]
        widths_size = (shape.stored_columns + 1) // 2
        head_size = kernel.SHAPE_BYTES_AT + len(shape.encode()) + widths_size
        return head_size + 8 * self.number_count_max(entity) + kernel.CHECKSUM_BYTES


@dataclass(frozen=True)
class _Table:
    shape: TableShape
    columns: tuple[Column, ...]
    capacity: int
    windows: tuple[WindowedMeasure, ...]

    def offset(self, column: Column) -> int:
        return self.shape.offsets[self.columns.index(column)]


@dataclass(frozen=True)
class _Memory:
    attribute: int
    capacity: int
    asked: tuple[Remembered, ...]


@dataclass(frozen=True)
class _Latest:
    shape: LatestShape
    asked: tuple[Latest, ...]


@dataclass(frozen=True)
class _Result:
    """One reduction of a column."""

    reduction: Reduction
    column: Column
    half_life_ms: int
    beside: Column | None
    summed: Column | None


class _Place(NamedTuple):
    """Where a column, the tiles of its table, and the table's length stand in a profile's words."""

    column_at: int
    tiles_at: int
    length_at: int


@dataclass(frozen=True)
class _Slots:
    """The slot of each roll-up result, and the first and last slot of each entity."""

    of: dict[Stored, int]
    bounds: list[tuple[int, int]]
    count: int


def compile_plan(catalogue: Catalogue, key: IdentityKey = LAPTOP_KEY) -> Plan:
    """Returns the plan of a catalogue: tables, slots and program. Raises Misconfigured for too many conditions."""
    stored = list(dict.fromkeys(s for feature in catalogue.features for s in stored_values(feature.value)))
    names = [entity.name for entity in catalogue.entities]
    tables = [_tables([s for s in stored if isinstance(s, WindowedMeasure) and s.entity == name]) for name in names]
    memories = [_memories([s for s in stored if isinstance(s, Remembered) and s.entity == name]) for name in names]
    latest = [_latest([s for s in stored if isinstance(s, Latest) and s.entity == name]) for name in names]
    shapes = tuple(
        Shape(
            tuple(table.shape for table in mine),
            tuple((m.attribute, m.capacity) for m in kept),
            tuple(payments.shape for payments in whole),
        )
        for mine, kept, whole in zip(tables, memories, latest, strict=True)
    )
    slots = _slots(names, tables, [[*kept, *whole] for kept, whole in zip(memories, latest, strict=True)])
    conditions = _conditions(tables)
    words = _Words()
    head_at = words.reserve(plan_schema.Head)
    words.extend([0] * len(names))
    for entity, (mine, kept, whole) in enumerate(zip(tables, memories, latest, strict=True)):
        words[plan_schema.ENTITIES_AT + entity] = len(words)
        _EntityWriter(words, conditions, slots).write(entity, shapes[entity], mine, kept, whole)
    asked = [plan_schema.PlanCondition(c.column, c.operator, c.value) for c in conditions]
    conditions_at = words.extend([number for condition in asked for number in condition])
    operations, values = _program(words, catalogue, slots)
    program_at = words.extend([number for operation in operations for number in operation])
    features_at = words.extend(values)
    travels = any(m.recollection is Recollection.TRAVEL_KMH for kept in memories for k in kept for m in k.asked)
    head = plan_schema.Head(
        entity_count=len(names),
        slot_count=slots.count,
        program_count=len(operations),
        program_at=program_at,
        feature_count=len(values),
        features_at=features_at,
        condition_count=len(conditions),
        conditions_at=conditions_at,
        places_at=words.extend(load_places().ravel().tolist()) if travels else 0,
        row_width=row_width(catalogue.payment.fields),
    )
    words.put(head_at, head)
    return Plan(
        words=np.array(words, dtype=np.int64),
        names=catalogue.names,
        entity_names=tuple(names),
        entity_keys=tuple(entity.keys for entity in catalogue.entities),
        digest=_digest_of(catalogue),
        slot_count=slots.count,
        value_count=slots.count + len(operations),
        shapes=shapes,
        capacities=tuple(tuple(table.capacity for table in mine) for mine in tables),
        retention_ms=tuple(_retention_ms(stored, name, mine) for name, mine in zip(names, tables, strict=True)),
        attribute_columns=tuple(sorted(_attributes_asked(catalogue, stored))),
        entity_identities=tuple(map(_identities, tables, memories, latest)),
        key=key,
        fields=catalogue.payment.fields,
        label_delays_ms=tuple(sorted({s.window.delay_ms for s in stored if knows_fraud(s)})),
    )


class _Words(list[int]):
    def reserve(self, kind: type[NamedTuple], count: int = 1) -> int:
        """Reserve room for `count` sections of a kind, filled with 0; returns where it starts."""
        return self.extend([0] * (len(kind._fields) * count))

    def put(self, at: int, section: NamedTuple) -> None:
        """Fill a section that was reserved."""
        self[at : at + len(section)] = section

    def extend(self, numbers: Sequence[int]) -> int:  # type: ignore[override]
        """Add numbers at the end; returns where they start."""
        position = len(self)
        super().extend(numbers)
        return position


def _tables(wanted: Sequence[WindowedMeasure]) -> list[_Table]:
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
        ordered = tuple(sorted(columns[kind], key=_column_order))
        shape = TableShape(kind[0], tuple(map(column_shape, ordered)))
        windows = tuple(item for item in wanted if _table_of(item) == kind)
        tables.append(_Table(shape, ordered, ages[kind] + 1, windows))
    return tables


def _table_of(item: WindowedMeasure) -> tuple[int, bool]:
    """Returns hop and kind of the table that holds the item's column."""
    return item.window.hop_ms, column_shape(item.column).is_label


def _column_order(column: Column) -> tuple[int, ...]:
    """Returns the sort key of a column: its measure first."""
    asked = column.condition
    condition = () if asked is None else (asked.column, asked.operator, asked.value)
    return (MEASURES.index(column.measure), column.attribute, column.parts, *condition)


def _memories(wanted: Sequence[Remembered]) -> list[_Memory]:
    by_kind: dict[tuple[int, int], list[Remembered]] = {}
    for item in wanted:
        by_kind.setdefault((item.attribute, item.capacity), []).append(item)
    return [_Memory(*kind, tuple(items)) for kind, items in sorted(by_kind.items())]


def _latest(wanted: Sequence[Latest]) -> list[_Latest]:
    """Returns the memories of latest payments. Questions about the same fields of as many payments share one."""
    by_kind: dict[tuple[tuple[tuple[int, bool], ...], int, bool], list[Latest]] = {}
    for item in wanted:
        by_kind.setdefault((item.fields, item.capacity, item.is_whole), []).append(item)
    return [_Latest(LatestShape(*kind), tuple(items)) for kind, items in sorted(by_kind.items())]


def _reading(attribute: int) -> tuple[int, int]:
    """Returns the column of the code of a number, and how it is read. features/catalogue/arguments.py names it."""
    if attribute < kernel.ATTRIBUTE_COUNT:
        return attribute, kernel.READ_AMOUNT
    is_age = _is_second(attribute)
    return attribute - is_age, kernel.READ_AGE if is_age else kernel.READ_NUMBER


def _is_second(column: int) -> int:
    """Returns 1 for the second column of a declared field, else 0."""
    return (column - kernel.ATTRIBUTE_COUNT) % 2 if column >= kernel.ATTRIBUTE_COUNT else 0


def _identities(tables: list[_Table], memories: list[_Memory], latest: list[_Latest]) -> frozenset[int]:
    counted = [
        column.attribute
        for table in tables
        for column in table.columns
        if column.measure in (Measure.DISTINCT_BITS, Measure.BUCKET_COUNTS)
    ]
    counted += [attribute for payments in latest for attribute, is_number in payments.shape.fields if not is_number]
    columns = map(identity_column, [*counted, *(memory.attribute for memory in memories)])
    return frozenset(column for column in columns if column >= kernel.CODE_COUNT)


def _slots(
    names: Sequence[str], tables: Sequence[list[_Table]], memories: Sequence[Sequence[_Memory | _Latest]]
) -> _Slots:
    """Number the slots, entity by entity: windows, memories, recencies. Every entity has the recencies."""
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
    return _Slots(of, bounds, count)


def _slot_parts(item: WindowedMeasure) -> int:
    return item.column.parts if item.column.measure is Measure.BUCKET_COUNTS else 1


def _conditions(tables: Sequence[list[_Table]]) -> list[Condition]:
    """Returns each distinct condition once, whatever its text."""
    asked = {}
    for mine in tables:
        for table in mine:
            for column in table.columns:
                if column.condition is not None:
                    asked[_question(column.condition)] = column.condition
    if len(asked) > CONDITIONS_MAX:
        raise Misconfigured(f"feature catalogue: it has {len(asked)} conditions; there may be {CONDITIONS_MAX}")
    return list(asked.values())


def _question(condition: Condition) -> tuple[int, int, int]:
    return condition.column, condition.operator, condition.value


class _EntityWriter:
    """Writes one entity's part of the plan."""

    def __init__(self, words: _Words, conditions: list[Condition], slots: _Slots) -> None:
        self._words, self._slots = words, slots
        self._condition_place = {_question(condition): index + 1 for index, condition in enumerate(conditions)}
        self._bound_count = 0
        self._places: dict[tuple[int, Column], _Place] = {}

    def write(
        self, entity: int, shape: Shape, tables: list[_Table], memories: list[_Memory], latest: list[_Latest]
    ) -> None:
        """Write the entity's sections. A writer is for one entity, so call this once."""
        words = self._words
        section_at = words.reserve(plan_schema.PlanEntity)
        tables_at = words.reserve(plan_schema.PlanTable, len(tables))
        memories_at = words.reserve(plan_schema.PlanMemory, len(memories) + len(latest))
        encoded = shape.encode()
        shape_at = words.extend(list(encoded))
        sources_at = kernel.LENGTHS_AT + 1 + len(shape.widths)
        at = sources_at + 2 * kernel.SOURCES_MAX
        starts = []
        for index, table in enumerate(tables):
            for column in table.columns:
                place = _Place(at + table.offset(column) * table.capacity, at, kernel.LENGTHS_AT + 1 + index)
                self._places[table.shape.hop_ms, column] = place
            starts.append(at)
            at += table.capacity * table.shape.width
        for index, (table, tiles_at) in enumerate(zip(tables, starts, strict=True)):
            self._write_table(tables_at + index * plan_schema.TABLE_SIZE, table, tiles_at)
        for index, memory in enumerate(memories):
            self._write_memory(memories_at + index * plan_schema.MEMORY_SIZE, memory, at)
            at += 2 * memory.capacity
        for index, payments in enumerate(latest, len(memories)):
            self._write_latest(memories_at + index * plan_schema.MEMORY_SIZE, payments, at)
            at += payments.shape.width * payments.shape.capacity
        # The scratch holds one of these: the three times, a column on its way into the stored form, the fields of a
        # payment, or the rows at which the windows of a group end.
        columns = [table.capacity for table in tables] + [memory.capacity for memory in memories]
        columns += [size for one in latest for size in (one.shape.capacity, one.shape.width)]
        scratch_size = max(3, self._bound_count, *columns)
        first, last = self._slots.bounds[entity]
        section = plan_schema.PlanEntity(
            digest=shape.digest([table.capacity for table in tables]),
            shape_size=len(encoded),
            shape_at=shape_at,
            table_count=len(tables),
            tables_at=tables_at,
            memory_count=len(memories) + len(latest),
            memories_at=memories_at,
            slot_base=first,
            slot_count=last - first,
            recency_slot=last - len(RECENCIES),
            stored_columns=shape.stored_columns,
            sources_at=sources_at,
            scratch_at=at,
            word_count=at + scratch_size,
        )
        words.put(section_at, section)

    def _write_table(self, at: int, table: _Table, tiles_at: int) -> None:
        words = self._words
        columns_at = words.reserve(plan_schema.PlanColumn, len(table.columns))
        for number, (column, offset) in enumerate(zip(table.columns, table.shape.offsets, strict=True)):
            condition = column.condition
            attribute, reading = column.attribute, kernel.READ_TEXT
            if column.measure in NUMBER_MEASURES:
                attribute, reading = _reading(attribute)
            section = plan_schema.PlanColumn(
                measure=MEASURES.index(column.measure),
                condition=0 if condition is None else self._condition_place[_question(condition)],
                attribute=attribute,
                identity=identity_column(attribute) if reading == kernel.READ_TEXT else attribute,
                words_at=tiles_at + offset * table.capacity,
                parts=column.parts,
                reading=reading,
            )
            words.put(columns_at + number * plan_schema.COLUMN_SIZE, section)
        ages = sorted({item.window.newest_age for item in table.windows})
        groups_at = words.reserve(plan_schema.PlanGroup, len(ages))
        for number, age in enumerate(ages):
            items = [item for item in table.windows if item.window.newest_age == age]
            self._write_group(groups_at + number * plan_schema.GROUP_SIZE, table, age, items)
        words.put(
            at,
            plan_schema.PlanTable(
                hop_ms=table.shape.hop_ms,
                capacity=table.capacity,
                width=table.shape.width,
                tiles_at=tiles_at,
                column_count=len(table.columns),
                kind=kernel.LABEL if table.shape.is_label else kernel.PAYMENT,
                columns_at=columns_at,
                group_count=len(ages),
                groups_at=groups_at,
            ),
        )

    def _write_group(self, at: int, table: _Table, age: int, items: list[WindowedMeasure]) -> None:
        words = self._words
        bounds = sorted({item.window.oldest_age for item in items})
        results = sorted({_result_of(item) for item in items}, key=_result_order)
        results_at = words.reserve(plan_schema.Result, len(results))
        for number, result in enumerate(results):
            windows = [item for item in items if _result_of(item) == result]
            self._write_result(results_at + number * plan_schema.RESULT_SIZE, table, result, bounds, windows)
        section = plan_schema.PlanGroup(
            newest_age=age,
            bound_count=len(bounds),
            bounds_at=words.extend(bounds),
            result_count=len(results),
            results_at=results_at,
        )
        words.put(at, section)
        self._bound_count = max(self._bound_count, len(bounds))

    def _write_result(
        self, at: int, table: _Table, result: _Result, bounds: list[int], windows: list[WindowedMeasure]
    ) -> None:
        words = self._words
        hop_ms = table.shape.hop_ms
        windows = sorted(windows, key=lambda item: item.window.oldest_age)
        # Zeros if the reduction uses no such column.
        beside, summed_at, weights_at = _Place(0, 0, 0), 0, 0
        if result.beside is not None:
            beside = self._places[hop_ms, result.beside]
        if result.summed is not None:
            assert result.summed in table.columns, "the summed column must be in the table of the counted column"
            summed_at = self._places[hop_ms, result.summed].column_at
        if result.half_life_ms:
            weights_at = words.extend(_weights(hop_ms, result.half_life_ms, windows[-1].window.oldest_age))
        places = [
            plan_schema.PlanWindow(bounds.index(item.window.oldest_age), self._slots.of[item]) for item in windows
        ]
        section = plan_schema.Result(
            reduction=REDUCTIONS.index(result.reduction),
            words_at=self._places[hop_ms, result.column].column_at,
            measure=MEASURES.index(result.column.measure),
            beside_at=beside.column_at,
            beside_tiles_at=beside.tiles_at,
            beside_length_at=beside.length_at,
            parts=result.column.parts,
            weights_at=weights_at,
            window_count=len(windows),
            windows_at=words.extend([number for place in places for number in place]),
            summed_at=summed_at,
            is_keyed=int(
                result.column.measure not in NUMBER_MEASURES
                and identity_column(result.column.attribute) != result.column.attribute
            ),
        )
        words.put(at, section)

    def _write_memory(self, at: int, memory: _Memory, values_at: int) -> None:
        questions = [
            plan_schema.PlanRecollection(RECOLLECTIONS.index(asked.recollection), self._slots.of[asked], 0, 0)
            for asked in memory.asked
        ]
        section = plan_schema.PlanMemory(
            attribute=memory.attribute,
            identity=identity_column(memory.attribute),
            capacity=memory.capacity,
            values_at=values_at,
            recollection_count=len(questions),
            recollections_at=self._words.extend([number for question in questions for number in question]),
            width=1,
            kind=kernel.DISTINCT_VALUES,
            fields_at=0,
        )
        self._words.put(at, section)

    def _write_latest(self, at: int, latest: _Latest, values_at: int) -> None:
        questions = [
            plan_schema.PlanRecollection(
                RECOLLECTIONS.index(asked.recollection), self._slots.of[asked], asked.place, asked.field
            )
            for asked in latest.asked
        ]
        fields = []
        for attribute, is_number in latest.shape.fields:
            column, reading = _reading(attribute) if is_number else (identity_column(attribute), kernel.READ_TEXT)
            fields.append(plan_schema.PlanRemembered(column, reading, column if is_number else attribute))
        section = plan_schema.PlanMemory(
            attribute=0,
            identity=0,
            capacity=latest.shape.capacity,
            values_at=values_at,
            recollection_count=len(questions),
            recollections_at=self._words.extend([number for question in questions for number in question]),
            width=len(fields),
            kind=kernel.WHOLE_PAYMENTS if latest.shape.is_whole else kernel.LATEST_PAYMENTS,
            fields_at=self._words.extend([number for field in fields for number in field]),
        )
        self._words.put(at, section)


def _result_of(item: WindowedMeasure) -> _Result:
    return _Result(item.reduction, item.column, item.half_life_ms, item.beside, item.summed)


def _result_order(result: _Result) -> tuple[int, ...]:
    others = [order for column in (result.beside, result.summed) if column for order in _column_order(column)]
    return (REDUCTIONS.index(result.reduction), result.half_life_ms, *_column_order(result.column), *others)


def _weights(hop_ms: int, half_life_ms: int, oldest_age: int) -> list[int]:
    """Returns the weight of a tile of each age, in units of 1 / DECAY_ONE."""
    return [round(kernel.DECAY_ONE * 0.5 ** (age * hop_ms / half_life_ms)) for age in range(oldest_age + 1)]


def _program(words: _Words, catalogue: Catalogue, slots: _Slots) -> tuple[list[plan_schema.PlanOperation], list[int]]:
    """Returns every operation once, operands first, and the number of each feature's value."""
    program: dict[Derived, int] = {}
    operations: list[plan_schema.PlanOperation] = []
    value_of: dict[str, int] = {}

    def index_of(value: Expression) -> int:
        if isinstance(value, str):
            return value_of[value]
        if not isinstance(value, Derived):
            return slots.of[value]
        if value not in program:
            operands = [index_of(operand) for operand in value.operands]
            numbers = list(value.numbers)
            if value.operation is Operation.BELOW_LIMIT:
                numbers = [words.extend(numbers), len(numbers)]
            if value.operation is Operation.CATEGORY:
                attribute, *codes = numbers
                numbers = [attribute, words.extend(_by_code(codes)), len(codes)]
            operation = [OPERATIONS.index(value.operation), *operands, *numbers]
            unused = [0] * (plan_schema.OPERATION_SIZE - len(operation))
            operations.append(plan_schema.PlanOperation(*operation, *unused))
            program[value] = slots.count + len(operations) - 1
        return program[value]

    for feature in catalogue.features:
        value_of[feature.name] = index_of(feature.value)
    return operations, [value_of[name] for name in catalogue.names]


def _by_code(codes: Sequence[int]) -> list[int]:
    """Returns the codes in ascending order, then the position of each in the list."""
    places = sorted(range(len(codes)), key=codes.__getitem__)
    return [codes[place] for place in places] + places


def _retention_ms(stored: Sequence[Stored], entity: str, tables: list[_Table]) -> int:
    """Returns for how many ms after its newest event a profile can still affect a feature."""
    windows_ms = max((table.shape.hop_ms * table.capacity for table in tables), default=0)
    sees_further = any(isinstance(s, EntityRecency | Remembered | Latest) and s.entity == entity for s in stored)
    return max(windows_ms, RECENCY_REACH_MS) if sees_further else windows_ms


def _attributes_asked(catalogue: Catalogue, stored: Sequence[Stored]) -> set[int]:
    asked = set()
    for item in stored:
        if isinstance(item, Remembered):
            asked.add(item.attribute)
        elif isinstance(item, Latest):
            asked |= {_reading(attribute)[0] if is_number else attribute for attribute, is_number in item.fields}
        elif isinstance(item, WindowedMeasure):
            for column in item.columns:
                is_number = column.measure in NUMBER_MEASURES
                asked.add(_reading(column.attribute)[0] if is_number else column.attribute)
                if column.condition is not None:
                    asked.add(column.condition.column)
    for operation in (d for feature in catalogue.features for d in _derived(feature.value)):
        if operation.operation in FIELD_COUNTS:
            columns = operation.numbers[: FIELD_COUNTS[operation.operation]]
            asked.update(column - _is_second(column) for column in columns)
        elif operation.operation in (Operation.HOUR, Operation.NIGHT, Operation.WEEKEND, Operation.WEEKDAY):
            asked.add(kernel.UTC_OFFSET)
    return asked


def _derived(value: Expression) -> list[Derived]:
    if not isinstance(value, Derived):
        return []
    return [value, *(inner for operand in value.operands for inner in _derived(operand))]


def _digest_of(catalogue: Catalogue) -> str:
    """Returns 16 hex digits that change with any feature and with the order of the features."""
    entities = [[entity.name, *entity.keys] for entity in catalogue.entities]
    features = [[feature.name, _described(feature.value)] for feature in catalogue.features]
    used = set().union(*(columns_of(feature.value) for feature in catalogue.features))
    # Fields that no feature uses may come and go, and so may names: a field is its number and what its values mean.
    keys = {key for entity in catalogue.entities for key in entity.keys}
    fields = [
        [*_meaning_of(one), *(_meaning_in_keys(one) if one.name in keys else ())]
        for one in catalogue.payment.attributes
        if used & {one.column, one.column + 1} or one.name in keys
    ]
    parts = [entities, features, fields] if fields else [entities, features]
    text = json.dumps(parts, sort_keys=True, default=lambda item: item.value)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _meaning_of(attribute: Attribute) -> list[object]:
    if attribute.derived is not None:
        return [type(attribute.derived).__name__, {**asdict(attribute.derived), "name": ""}]
    assert attribute.field is not None
    return [attribute.number, attribute.field.form.value, attribute.field.decimals]


def _meaning_in_keys(attribute: Attribute) -> list[object]:
    """Returns what tells apart two ways to make keys of a field: a profile is found again only under its key."""
    declared = attribute.field or attribute.derived
    assert declared is not None
    return ["hashed" if has_hashed_key(declared) else "plain"]


def _described(value: Expression) -> object:
    if isinstance(value, str):
        return value
    if isinstance(value, Derived):
        # An operation must not look like a feature of the same name.
        return {value.operation.value: [[_described(operand) for operand in value.operands], value.numbers]}
    return asdict(value, dict_factory=_without_names)


def _without_names(members: list[tuple[str, object]]) -> dict[str, object]:
    """Returns the members of an expression as a dict. A condition's meaning does not include its attribute's name."""
    return {name: member for name, member in members if not (name == "attribute" and isinstance(member, str))}
