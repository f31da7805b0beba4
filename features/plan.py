"""Compile a catalogue into the flat integer plan that the kernel interprets.

The kernel takes one int64 array instead of a dozen small ones: numba's cost of a call grows with its
arguments, and a scoring worker makes one call a payment. The plan is

    header      ENTITY_COUNT, SLOT_COUNT, DERIVED_COUNT, DERIVED_AT, FEATURE_COUNT, FEATURES_AT,
                then the position of each entity's section
    entity      DIGEST, TABLE_COUNT, WORD_COUNT, SLOT_BASE, WINDOW_COUNT, TABLES_AT
    table       one per hop: HOP_MS, CAPACITY (tiles kept), COLUMN_COUNT, BASE (first word), COLUMNS_AT,
                WINDOWS_AT, WINDOW_COUNT
    column      the measure, an index into MEASURES
    window      newest age, oldest age, column, slot
    derived     operation, left, right (indices of values)
    features    the value each feature is

Values are request values, then slots (roll-up results, grouped by entity), then derived values.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from features.declare import (
    DAY_MS,
    Catalogue,
    EntityRecency,
    Feature,
    Measure,
    Operand,
    Recency,
    RequestValue,
    WindowedMeasure,
)
from features.kernel import (
    BASE,
    CAPACITY,
    COLUMN,
    COLUMN_COUNT,
    COLUMNS_AT,
    DERIVED_AT,
    DERIVED_COUNT,
    DIGEST,
    DIVIDE,
    ENTITIES_AT,
    ENTITY_COUNT,
    ENTITY_SIZE,
    FEATURE_COUNT,
    FEATURES_AT,
    HOP_MS,
    NEWEST_AGE,
    OLDEST_AGE,
    SLOT,
    SLOT_BASE,
    SLOT_COUNT,
    TABLE_COUNT,
    TABLE_SIZE,
    TABLES_AT,
    TILE_COUNTS_AT,
    WINDOW_COUNT,
    WINDOW_SIZE,
    WINDOW_TOTAL,
    WINDOWS_AT,
    WORD_COUNT,
)

MEASURES = tuple(Measure)
REQUEST_VALUES = tuple(RequestValue)
RECENCIES = tuple(Recency)
# Recency sees past any window. A store that forgot a card once its windows are empty would call it new where a
# replay, which forgets nothing, does not; an entity that was idle for over a year may as well be new.
RECENCY_REACH_MS = 400 * DAY_MS


@dataclass(frozen=True)
class Plan:
    """A compiled catalogue. `words` is what the kernel reads; `digest` names features and state alike."""

    words: NDArray[np.int64]
    names: tuple[str, ...]
    entity_names: tuple[str, ...]
    entity_keys: tuple[str, ...]
    digest: str
    slot_count: int
    retention_ms: tuple[int, ...]
    packed_bytes_per_event: int
    packed_bytes_fixed: int

    @property
    def feature_count(self) -> int:
        return len(self.names)

    @property
    def entity_count(self) -> int:
        return len(self.entity_names)

    def ttl_s(self, entity: int) -> int:
        """How long a store keeps a profile, from its last write. What expires by then no window or recency sees."""
        return self.retention_ms[entity] // 1000 + DAY_MS // 1000


@dataclass(frozen=True)
class _Table:
    hop_ms: int
    capacity: int
    measures: tuple[Measure, ...]
    windows: tuple[WindowedMeasure, ...]


def compile_plan(catalogue: Catalogue) -> Plan:
    """Lay out tables, slots and derived values for a catalogue."""
    tables = {entity.name: _tables(catalogue, entity.name) for entity in catalogue.entities}
    slots = _slots(catalogue, tables)
    words = _Writer()
    words.reserve(ENTITIES_AT + len(catalogue.entities))
    words.values[ENTITY_COUNT] = len(catalogue.entities)
    words.values[SLOT_COUNT] = len(slots)
    for index, entity in enumerate(catalogue.entities):
        words.values[ENTITIES_AT + index] = len(words.values)
        _write_entity(words, entity.name, tables[entity.name], slots)
    _write_features(words, catalogue, slots)
    return Plan(
        words=np.array(words.values, dtype=np.int64),
        names=catalogue.names,
        entity_names=tuple(entity.name for entity in catalogue.entities),
        entity_keys=tuple(entity.key for entity in catalogue.entities),
        digest=_digest_of(catalogue),
        slot_count=len(slots),
        retention_ms=tuple(_retention_ms(catalogue, entity.name, tables[entity.name]) for entity in catalogue.entities),
        packed_bytes_per_event=max(sum(10 + 10 * len(t.measures) for t in group) for group in tables.values()) + 20,
        packed_bytes_fixed=64 + max(10 * len(group) for group in tables.values()),
    )


class _Writer:
    def __init__(self) -> None:
        self.values: list[int] = []

    def reserve(self, count: int) -> int:
        position = len(self.values)
        self.values.extend([0] * count)
        return position


def _operands(catalogue: Catalogue) -> list[Operand | str | None]:
    return [operand for f in catalogue.features for operand in (f.numerator, f.denominator)]


def _tables(catalogue: Catalogue, entity: str) -> list[_Table]:
    """One table per hop that the entity's features need, finest first."""
    windowed = [w for w in _operands(catalogue) if isinstance(w, WindowedMeasure) and w.entity == entity]
    wanted = list(dict.fromkeys(windowed))
    by_hop: dict[int, list[WindowedMeasure]] = {}
    for item in wanted:
        by_hop.setdefault(item.window.hop_ms, []).append(item)
    return [
        _Table(
            hop_ms=hop_ms,
            capacity=max(item.window.oldest_age for item in items) + 1,
            measures=tuple(m for m in MEASURES if any(item.measure is m for item in items)),
            windows=tuple(items),
        )
        for hop_ms, items in sorted(by_hop.items())
    ]


def _retention_ms(catalogue: Catalogue, entity: str, tables: list[_Table]) -> int:
    """How long after its newest event a profile can still be seen by a feature."""
    windows_ms = max((table.hop_ms * table.capacity for table in tables), default=0)
    has_recency = any(isinstance(o, EntityRecency) and o.entity == entity for o in _operands(catalogue))
    return max(windows_ms, RECENCY_REACH_MS) if has_recency else windows_ms


def _slots(catalogue: Catalogue, tables: dict[str, list[_Table]]) -> dict[Operand, int]:
    """Which slot holds which roll-up result: per entity its windows, then its recencies."""
    slots: dict[Operand, int] = {}
    for entity in catalogue.entities:
        for table in tables[entity.name]:
            for item in table.windows:
                slots[item] = len(slots)
        for recency in RECENCIES:
            slots[EntityRecency(entity.name, recency)] = len(slots)
    return slots


def _write_entity(words: _Writer, entity: str, tables: list[_Table], slots: dict[Operand, int]) -> None:
    section = words.reserve(ENTITY_SIZE)
    tables_at = words.reserve(TABLE_SIZE * len(tables))
    base = TILE_COUNTS_AT + len(tables)
    for index, table in enumerate(tables):
        at = tables_at + index * TABLE_SIZE
        columns_at = words.reserve(len(table.measures))
        for column, measure in enumerate(table.measures):
            words.values[columns_at + column] = MEASURES.index(measure)
        windows_at = words.reserve(WINDOW_SIZE * len(table.windows))
        for number, item in enumerate(table.windows):
            place = windows_at + number * WINDOW_SIZE
            words.values[place + NEWEST_AGE] = item.window.newest_age
            words.values[place + OLDEST_AGE] = item.window.oldest_age
            words.values[place + COLUMN] = table.measures.index(item.measure)
            words.values[place + SLOT] = slots[item]
        words.values[at + HOP_MS] = table.hop_ms
        words.values[at + CAPACITY] = table.capacity
        words.values[at + COLUMN_COUNT] = len(table.measures)
        words.values[at + BASE] = base
        words.values[at + COLUMNS_AT] = columns_at
        words.values[at + WINDOWS_AT] = windows_at
        words.values[at + WINDOW_COUNT] = len(table.windows)
        base += table.capacity * (1 + len(table.measures))
    words.values[section + DIGEST] = _state_digest(tables)
    words.values[section + TABLE_COUNT] = len(tables)
    words.values[section + WORD_COUNT] = base
    words.values[section + WINDOW_TOTAL] = sum(len(table.windows) for table in tables)
    words.values[section + SLOT_BASE] = min(
        slot for operand, slot in slots.items() if getattr(operand, "entity", None) == entity
    )
    words.values[section + TABLES_AT] = tables_at


def _write_features(words: _Writer, catalogue: Catalogue, slots: dict[Operand, int]) -> None:
    slot_base = len(REQUEST_VALUES)
    derived_base = slot_base + len(slots)
    derived: list[tuple[int, int, int]] = []
    value_of: dict[str, int] = {}

    def index_of(operand: Operand | str) -> int:
        if isinstance(operand, str):
            return value_of[operand]
        if isinstance(operand, RequestValue):
            return REQUEST_VALUES.index(operand)
        return slot_base + slots[operand]

    for feature in catalogue.features:
        value = index_of(feature.numerator)
        if feature.denominator is not None:
            derived.append((DIVIDE, value, index_of(feature.denominator)))
            value = derived_base + len(derived) - 1
        value_of[feature.name] = value
    words.values[DERIVED_COUNT] = len(derived)
    words.values[DERIVED_AT] = len(words.values)
    words.values.extend(number for row in derived for number in row)
    words.values[FEATURE_COUNT] = len(catalogue.features)
    words.values[FEATURES_AT] = len(words.values)
    words.values.extend(value_of[name] for name in catalogue.names)


def _state_digest(tables: list[_Table]) -> int:
    """31 bits that name what an entity's packed state holds: hops, how long they are kept, measures."""
    text = json.dumps([(t.hop_ms, t.capacity, [m.value for m in t.measures]) for t in tables])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _digest_of(catalogue: Catalogue) -> str:
    """16 hex digits that change when any feature, or the order of them, changes."""
    text = json.dumps(
        [[asdict(entity) for entity in catalogue.entities], [_described(f) for f in catalogue.features]],
        sort_keys=True,
        default=lambda item: item.value,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(feature: Feature) -> list[object]:
    return [feature.name, _described_operand(feature.numerator), _described_operand(feature.denominator)]


def _described_operand(operand: Operand | str | None) -> object:
    if operand is None or isinstance(operand, str):
        return operand
    # A request value must not look like a feature that has its name.
    return {"request": operand.value} if isinstance(operand, RequestValue) else asdict(operand)
