"""Writes the plan of one entity as the numbers that the kernel interprets (features/kernel/plan_schema.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import ConditionCode, identity_column
from paywarden.features.catalogue.expressions import (
    NUMBER_MEASURES,
    Column,
    NeighbourReduction,
    Recollection,
    Reduction,
    WindowedMeasure,
)
from paywarden.features.kernel import plan_schema
from paywarden.features.profiles.plan_parts import (
    RECENCIES,
    Slots,
    StoredHop,
    StoredLatest,
    StoredMemory,
    StoredTable,
    column_order,
    reading_of,
)
from paywarden.features.profiles.shape import MEASURES, Shape

REDUCTIONS = tuple(Reduction)
RECOLLECTIONS = tuple(Recollection)
NEIGHBOUR_REDUCTIONS = tuple(NeighbourReduction)


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


class PlanWords(list[int]):
    """The plan's numbers while they are written."""

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


class EntityWriter:
    """Writes one entity's part of the plan."""

    def __init__(self, words: PlanWords, conditions: list[ConditionCode], slots: Slots) -> None:
        self._words, self._slots = words, slots
        self._condition_place = {condition: place for place, condition in enumerate(conditions, 1)}
        self._bound_count = 0
        self._places: dict[tuple[int, Column], _Place] = {}

    def write(
        self,
        entity: int,
        shape: Shape,
        tables: list[StoredTable],
        memories: list[StoredMemory],
        latest: list[StoredLatest],
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

    def _write_table(self, at: int, table: StoredTable, tiles_at: int) -> None:
        words = self._words
        columns_at = words.reserve(plan_schema.PlanColumn, len(table.columns))
        for number, (column, offset) in enumerate(zip(table.columns, table.shape.offsets, strict=True)):
            condition = column.condition
            attribute, reading = column.attribute, kernel.READ_TEXT
            if column.measure in NUMBER_MEASURES:
                attribute, reading = reading_of(attribute)
            section = plan_schema.PlanColumn(
                measure=MEASURES.index(column.measure),
                condition=0 if condition is None else self._condition_place[condition.code],
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

    def _write_group(self, at: int, table: StoredTable, age: int, items: list[WindowedMeasure]) -> None:
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
        self, at: int, table: StoredTable, result: _Result, bounds: list[int], windows: list[WindowedMeasure]
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
        )
        words.put(at, section)

    def _write_memory(self, at: int, memory: StoredMemory, values_at: int) -> None:
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

    def _write_latest(self, at: int, latest: StoredLatest, values_at: int) -> None:
        questions = [
            plan_schema.PlanRecollection(
                RECOLLECTIONS.index(asked.recollection), self._slots.of[asked], asked.place, asked.field
            )
            for asked in latest.asked
        ]
        fields = []
        for attribute, is_number in latest.shape.fields:
            column, reading = reading_of(attribute) if is_number else (identity_column(attribute), kernel.READ_TEXT)
            fields.append(plan_schema.PlanRemembered(column, reading))
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


def write_hops(
    words: PlanWords,
    hops: Sequence[StoredHop],
    slots: Slots,
    memories: Sequence[Sequence[StoredMemory]],
    features: Sequence[str],
) -> int:
    """Write the groups of neighbours; returns where they start. `features` are the names in the order of the vector."""
    hops_at = words.reserve(plan_schema.PlanHop, len(hops))
    listed_at = 0
    for number, hop in enumerate(hops):
        kinds = [(memory.attribute, memory.capacity) for memory in memories[hop.source]]
        results = [
            plan_schema.PlanHopResult(
                feature=features.index(result.feature),
                reduction=NEIGHBOUR_REDUCTIONS.index(result.reduction),
                slot=slots.of[result] - slots.hops_at,
            )
            for result in hop.results
        ]
        section = plan_schema.PlanHop(
            source=hop.source,
            target=hop.target,
            memory=kinds.index((hop.attribute, hop.capacity)),
            last=hop.capacity,
            listed_at=listed_at,
            result_count=len(results),
            results_at=words.extend([number for result in results for number in result]),
        )
        words.put(hops_at + number * plan_schema.HOP_SIZE, section)
        listed_at += hop.capacity
    return hops_at


def _result_of(item: WindowedMeasure) -> _Result:
    return _Result(item.reduction, item.column, item.half_life_ms, item.beside, item.summed)


def _result_order(result: _Result) -> tuple[int, ...]:
    others = [order for column in (result.beside, result.summed) if column for order in column_order(column)]
    return (REDUCTIONS.index(result.reduction), result.half_life_ms, *column_order(result.column), *others)


def _weights(hop_ms: int, half_life_ms: int, oldest_age: int) -> list[int]:
    """Returns the weight of a tile of each age, in units of 1 / DECAY_ONE."""
    return [round(kernel.DECAY_ONE * 0.5 ** (age * hop_ms / half_life_ms)) for age in range(oldest_age + 1)]
