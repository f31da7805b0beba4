"""The plan: one flat int64 array that says what the kernel computes. Each kind of section is described here, once.

    head, positions of the entities, then sections in any order: entities, tables, columns, groups, results, …

A description is a NamedTuple with a field for each number of a section. Three things are made from it:

    write   features/profiles/plan.py:        words.put(at, Table(hop_ms=60_000, capacity=61, …))
    read    Python:                  section(plan.words, Table, at).capacity
            compiled code:           plan[table + TABLE.capacity]

`TABLE` is a Table whose fields are their own positions. The functions at the end find a section.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from paywarden.features.kernel.intrinsics import not_negative
from paywarden.features.kernel.jit import inlined
from paywarden.features.kernel.layout import I64, LENGTHS_AT


class Head(NamedTuple):
    """The first numbers of a plan. Behind them stands the position of each entity."""

    entity_count: int
    slot_count: int
    program_count: int
    program_at: int
    feature_count: int
    features_at: int
    condition_count: int
    conditions_at: int
    places_at: int
    """Middles of countries, two numbers each; 0 if no feature asks for a journey."""


class PlanEntity(NamedTuple):
    """One kind of entity."""

    digest: int
    """Of its shape and capacities; every stored profile carries it."""
    shape_size: int
    shape_at: int
    table_count: int
    tables_at: int
    memory_count: int
    memories_at: int
    slot_base: int
    slot_count: int
    recency_slot: int
    """Seconds since the last payment; the slot behind it is for the first."""
    stored_columns: int
    sources_at: int
    """Where in a profile's words the sources are; the offsets are SOURCES_MAX words further."""
    scratch_at: int
    """Where the words end that are stored. Behind it a column or the windows of a group have room."""
    word_count: int


class PlanTable(NamedTuple):
    """Tiles of one hop. A row has `width` words, `capacity` words apart; the tiles' numbers stand at `tiles_at`."""

    hop_ms: int
    capacity: int
    width: int
    tiles_at: int
    column_count: int
    kind: int
    """The kind of events that change it: PAYMENT or LABEL."""
    columns_at: int
    group_count: int
    groups_at: int


class PlanColumn(NamedTuple):
    """One measure of a table."""

    measure: int
    condition: int
    """0 for always, else the bit that answers it, plus one."""
    attribute: int
    words_at: int
    """Where in the words it starts: the first of its parts, which are the table's capacity apart."""
    parts: int


class PlanGroup(NamedTuple):
    """Windows that start at the same age."""

    newest_age: int
    bound_count: int
    bounds_at: int
    """The ages at which windows end, ascending."""
    result_count: int
    results_at: int


class Result(NamedTuple):
    """A column reduced in one way, over every window that asks for it, shortest first."""

    reduction: int
    words_at: int
    measure: int
    beside_at: int
    """The column beside it is in another table of the same hop."""
    beside_tiles_at: int
    beside_length_at: int
    parts: int
    weights_at: int
    window_count: int
    windows_at: int
    summed_at: int


class PlanWindow(NamedTuple):
    """Where a result over one window goes."""

    bound: int
    """The place of its end among the group's bounds."""
    slot: int


class PlanMemory(NamedTuple):
    """The latest distinct values of an attribute."""

    attribute: int
    capacity: int
    values_at: int
    recollection_count: int
    recollections_at: int


class PlanRecollection(NamedTuple):
    """A question to a memory."""

    kind: int
    slot: int


class PlanCondition(NamedTuple):
    """A question about a payment's row."""

    attribute: int
    operator: int
    value: int


class PlanOperation(NamedTuple):
    """A step of the program. Its operands are values; what they mean depends on the operation."""

    code: int
    first: int
    second: int
    third: int
    fourth: int


_Section = TypeVar("_Section", bound=NamedTuple)


def positions(kind: type[_Section]) -> _Section:
    """The description whose fields are their own positions: of Recollection, kind=0 and slot=1."""
    return kind._make(range(len(kind._fields)))


def section(words: I64, kind: type[_Section], at: int) -> _Section:
    """The section of a plan that begins at a position."""
    return kind._make(words[at : at + len(kind._fields)].tolist())


def entity_section(words: I64, entity: int) -> PlanEntity:
    """The section of an entity, by its number."""
    return section(words, PlanEntity, int(words[ENTITIES_AT + entity]))


HEAD = positions(Head)
ENTITY = positions(PlanEntity)
TABLE = positions(PlanTable)
COLUMN = positions(PlanColumn)
GROUP = positions(PlanGroup)
RESULT = positions(Result)
WINDOW = positions(PlanWindow)
MEMORY = positions(PlanMemory)
RECOLLECTION = positions(PlanRecollection)
CONDITION = positions(PlanCondition)
OPERATION = positions(PlanOperation)
# Compiled code steps from one section to the next by their sizes.
ENTITIES_AT = len(HEAD)
TABLE_SIZE, COLUMN_SIZE, GROUP_SIZE, RESULT_SIZE, WINDOW_SIZE = map(len, (TABLE, COLUMN, GROUP, RESULT, WINDOW))
MEMORY_SIZE, RECOLLECTION_SIZE = len(MEMORY), len(RECOLLECTION)
CONDITION_SIZE, OPERATION_SIZE = len(CONDITION), len(OPERATION)


@inlined
def entity_at(plan: I64, entity: int) -> int:
    """Where the section of an entity begins."""
    at: int = not_negative(plan[ENTITIES_AT + entity])
    return at


@inlined
def table_at(plan: I64, entity_section: int, table: int) -> int:
    """Where the section of an entity's table begins."""
    at: int = not_negative(plan[entity_section + ENTITY.tables_at] + table * TABLE_SIZE)
    return at


@inlined
def memory_at(plan: I64, entity_section: int, memory: int) -> int:
    """Where the section of an entity's memory begins."""
    at: int = not_negative(plan[entity_section + ENTITY.memories_at] + memory * MEMORY_SIZE)
    return at


@inlined
def table_length_at(table: int) -> int:
    """Where in a profile's words the length of a table stands."""
    return LENGTHS_AT + 1 + table


@inlined
def memory_length_at(table_count: int, memory: int) -> int:
    """Where in a profile's words the length of a memory stands: behind those of all tables."""
    return LENGTHS_AT + 1 + table_count + memory
