"""Compile a catalogue into the flat integer plan that the kernel interprets.

The kernel takes one int64 array instead of a dozen small ones: the cost of a call into compiled code grows with its
arguments, and a scoring worker makes one call a payment. The plan has a head, which says where the parts are, and

    entity      its digest and shape; its tables and memories; where its slots and its profile's sections are
    table       one per hop and kind of event: the hop, how many tiles are kept, and the columns of a row
    column      measure, condition, attribute, and where in a profile's words it starts
    group       windows that start at the same age, the ages at which they end, and the results they share
    result      one reduction of a column, and its slot for each of those ages
    memory      the attribute and the number of values; the questions, and the slots for the answers
    hop         source and target, the memory of the neighbours, their number; the features asked, and the slots
    conditions  attribute, operator, value
    program     operations on slots, attributes and earlier results
    features    the number of each feature's value

features/kernel/plan_schema.py describes each section. plan_parts.py finds the parts of profiles, and
plan_writer.py writes an entity's part.
The values are the slots (roll-up results, grouped by entity; results of neighbours), followed by the results of the
program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import ConditionCode, columns_of_condition, row_width
from paywarden.features.catalogue.checks import columns_of_operation
from paywarden.features.catalogue.codes.countries import load_places
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.expressions import (
    NUMBER_MEASURES,
    Derived,
    Expression,
    Latest,
    Neighbours,
    Operation,
    Recollection,
    Remembered,
    Stored,
    WindowedMeasure,
    knows_fraud,
    stored_values,
)
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.catalogue.windows import DAY_MS, EVER_HOP_MS, Window
from paywarden.features.kernel import plan_schema
from paywarden.features.kernel.layout import LABELLED_COUNT
from paywarden.features.profiles.catalogue_digest import digest_of
from paywarden.features.profiles.plan_parts import (
    Slots,
    StoredHop,
    StoredTable,
    conditions_of,
    hops_of,
    identities_of,
    is_second_column,
    latest_of,
    memories_of,
    numbered_slots,
    plan_condition,
    reading_of,
    tables_of,
)
from paywarden.features.profiles.plan_writer import EntityWriter, PlanWords, write_hops
from paywarden.features.profiles.shape import Shape
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields

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
    categories: tuple[str, ...] = ()
    """The features whose values are names and not amounts."""
    hops: tuple[StoredHop, ...] = ()
    """The groups of features two hops away, in the order in which `listed` has their neighbours."""

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

    @property
    def counts_labels(self) -> bool:
        """Returns whether any profile counts labelled payments: the first label of a payment then changes it."""
        tables = (table for shape in self.shapes for table in shape.tables)
        return any(column.measure == LABELLED_COUNT for table in tables for column in table.columns)

    @property
    def listed(self) -> tuple[int, ...]:
        """Returns the entity of each neighbour that a payment may have: group by group, as many as each lists."""
        return tuple(hop.target for hop in self.hops for _ in range(hop.capacity))

    @property
    def hop_slot_count(self) -> int:
        """Returns the number of results of neighbours."""
        return sum(len(hop.results) for hop in self.hops)

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


def compile_plan(catalogue: Catalogue, key: IdentityKey = LAPTOP_KEY) -> Plan:
    """Returns the plan of a catalogue: tables, slots and program. Raises Misconfigured for too many conditions."""
    stored = list(dict.fromkeys(s for feature in catalogue.features for s in stored_values(feature.value)))
    names = [entity.name for entity in catalogue.entities]
    tables = [tables_of([s for s in stored if isinstance(s, WindowedMeasure) and s.entity == name]) for name in names]
    kept_values = [s for s in stored if isinstance(s, Remembered | Neighbours)]
    memories = [memories_of([s for s in kept_values if s.entity == name]) for name in names]
    latest = [latest_of([s for s in stored if isinstance(s, Latest) and s.entity == name]) for name in names]
    shapes = tuple(
        Shape(
            tuple(table.shape for table in mine),
            tuple((m.attribute, m.capacity) for m in kept),
            tuple(payments.shape for payments in whole),
        )
        for mine, kept, whole in zip(tables, memories, latest, strict=True)
    )
    hops = hops_of(stored, names)
    slots = numbered_slots(names, tables, [[*kept, *whole] for kept, whole in zip(memories, latest, strict=True)], hops)
    operations = [one for feature in catalogue.features for one in _derived(feature.value)]
    conditions = conditions_of(tables, [one.numbers for one in operations if one.operation is Operation.MEETS])
    words = PlanWords()
    head_at = words.reserve(plan_schema.Head)
    words.extend([0] * len(names))
    for entity, (mine, kept, whole) in enumerate(zip(tables, memories, latest, strict=True)):
        words[plan_schema.ENTITIES_AT + entity] = len(words)
        EntityWriter(words, conditions, slots).write(entity, shapes[entity], mine, kept, whole)
    asked = [plan_condition(condition, conditions) for condition in conditions]
    conditions_at = words.extend([number for condition in asked for number in condition])
    program, values = _program(words, catalogue, slots, conditions)
    program_at = words.extend([number for operation in program for number in operation])
    features_at = words.extend(values)
    hops_at = write_hops(words, hops, slots, memories, catalogue.names)
    travels = any(m.recollection is Recollection.TRAVEL_KMH for kept in memories for k in kept for m in k.asked)
    head = plan_schema.Head(
        entity_count=len(names),
        slot_count=slots.count,
        program_count=len(program),
        program_at=program_at,
        feature_count=len(values),
        features_at=features_at,
        condition_count=len(conditions),
        conditions_at=conditions_at,
        places_at=words.extend(load_places().ravel().tolist()) if travels else 0,
        row_width=row_width(catalogue.payment.fields),
        hop_count=len(hops),
        hops_at=hops_at,
        hop_slots_at=slots.hops_at,
        hop_slot_count=slots.count - slots.hops_at,
        listed_count=sum(hop.capacity for hop in hops),
    )
    words.put(head_at, head)
    return Plan(
        words=np.array(words, dtype=np.int64),
        names=catalogue.names,
        entity_names=tuple(names),
        entity_keys=tuple(entity.keys for entity in catalogue.entities),
        digest=digest_of(catalogue),
        slot_count=slots.count,
        value_count=slots.count + len(program),
        shapes=shapes,
        capacities=tuple(tuple(table.capacity for table in mine) for mine in tables),
        retention_ms=tuple(_retention_ms(stored, name, mine) for name, mine in zip(names, tables, strict=True)),
        attribute_columns=tuple(sorted(_attributes_asked(catalogue, stored))),
        entity_identities=tuple(map(identities_of, tables, memories, latest)),
        key=key,
        fields=catalogue.payment.fields,
        label_delays_ms=tuple(sorted({_delay_ms(s.window) for s in stored if knows_fraud(s) and not s.window.is_ever})),
        categories=tuple(feature.name for feature in catalogue.features if feature.unit == "category"),
        hops=tuple(hops),
    )


def _program(
    words: PlanWords, catalogue: Catalogue, slots: Slots, conditions: Sequence[ConditionCode]
) -> tuple[list[plan_schema.PlanOperation], list[int]]:
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
            if value.operation is Operation.MEETS:
                numbers = [conditions.index(value.numbers)]
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


def _retention_ms(stored: Sequence[Stored], entity: str, tables: list[StoredTable]) -> int:
    """Returns for how many ms after its newest event a profile can still affect a feature."""
    mine = [s for s in stored if s.entity == entity]
    sees_further = any(not isinstance(s, WindowedMeasure) or s.window.is_ever for s in mine)
    windows_ms = max(
        (table.shape.hop_ms * table.capacity for table in tables if table.shape.hop_ms != EVER_HOP_MS), default=0
    )
    return max(windows_ms, RECENCY_REACH_MS) if sees_further else windows_ms


def _delay_ms(window: Window) -> int:
    """Returns how long a window of labels waits. One without a delay is the part that "ever" leaves out."""
    return window.delay_ms or window.length_ms


def _attributes_asked(catalogue: Catalogue, stored: Sequence[Stored]) -> set[int]:
    asked = set()
    for item in stored:
        if isinstance(item, Remembered | Neighbours):
            asked.add(item.attribute)
        elif isinstance(item, Latest):
            asked |= {reading_of(attribute)[0] if is_number else attribute for attribute, is_number in item.fields}
        elif isinstance(item, WindowedMeasure):
            for column in item.columns:
                is_number = column.measure in NUMBER_MEASURES
                asked.add(reading_of(column.attribute)[0] if is_number else column.attribute)
                if column.condition is not None:
                    asked |= columns_of_condition(column.condition.code)
    for operation in (d for feature in catalogue.features for d in _derived(feature.value)):
        asked.update(column - is_second_column(column) for column in columns_of_operation(operation))
        if operation.operation in (Operation.HOUR, Operation.NIGHT, Operation.WEEKEND, Operation.WEEKDAY):
            asked.add(kernel.UTC_OFFSET)
    return asked


def _derived(value: Expression) -> list[Derived]:
    if not isinstance(value, Derived):
        return []
    return [value, *(inner for operand in value.operands for inner in _derived(operand))]
