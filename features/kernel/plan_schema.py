"""The plan: one flat int64 array that tells the kernel what to compute. This file describes each kind of section.

    head, positions of the entities, then sections in any order: entities, tables, columns, groups, results, …

A description is a NamedTuple with a field for each number of a section. It is used in three ways:

    write   features/profiles/plan_writer.py: words.put(at, PlanTable(hop_ms=60_000, capacity=61, …))
    read    Python:                  section(plan.words, PlanTable, at).capacity
            compiled code:           plan[table + TABLE.capacity]

`TABLE` is a PlanTable whose fields are their own positions: TABLE.hop_ms is 0, TABLE.capacity is 1. If the section of a
table begins at 120, plan[120 + TABLE.capacity] is plan[121]. The functions at the end find where a section begins.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from paywarden.features.kernel.layout import I64, LENGTHS_AT
from paywarden.features.kernel.toolkit.jit import inlined
from paywarden.features.kernel.toolkit.machine_words import not_negative


class Head(NamedTuple):
    """The first numbers of a plan. The position of each entity's section follows them."""

    entity_count: int
    slot_count: int
    program_count: int
    program_at: int
    feature_count: int
    features_at: int
    condition_count: int
    conditions_at: int
    places_at: int
    """The middles of countries, two numbers each; 0 if no feature needs a journey's speed."""
    row_width: int
    """How many numbers a payment's row has: ATTRIBUTE_COUNT, and two for each number of a declared field."""
    hop_count: int
    """How many groups of neighbours there are; those of one source follow each other."""
    hops_at: int
    hop_slots_at: int
    """The first slot of a result of neighbours. These slots stand behind those of all entities."""
    hop_slot_count: int
    listed_count: int
    """How many neighbours the groups have together."""


class PlanEntity(NamedTuple):
    """One kind of entity."""

    digest: int
    """The digest of its shape and capacities; every stored profile carries it."""
    shape_size: int
    shape_at: int
    table_count: int
    tables_at: int
    memory_count: int
    memories_at: int
    slot_base: int
    slot_count: int
    recency_slot: int
    """The slot of the seconds since the last payment. The next slot is for the first payment."""
    stored_columns: int
    sources_at: int
    """Where the sources stand in a profile's words. The offsets stand SOURCES_MAX words further."""
    scratch_at: int
    """Where the stored words end. The scratch behind them has room for a column, or for the windows of a group."""
    word_count: int


class PlanTable(NamedTuple):
    """Tiles of one hop. The words of a row stand `capacity` words apart; the tiles' numbers start at `tiles_at`."""

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
    """0 for no condition, else the number of its bit plus one."""
    attribute: int
    identity: int
    """The column of the attribute's identity; the attribute itself if it has none."""
    words_at: int
    """Where its first part starts in the words. Parts stand the table's capacity apart."""
    parts: int
    reading: int
    """How the attribute is read as a number, for measures of numbers: READ_NUMBER or READ_AGE."""


class PlanGroup(NamedTuple):
    """Windows that start at the same age."""

    newest_age: int
    bound_count: int
    bounds_at: int
    """The ages at which windows end, ascending."""
    result_count: int
    results_at: int


class Result(NamedTuple):
    """One reduction of one column, over each of its windows, the shortest first."""

    reduction: int
    words_at: int
    measure: int
    beside_at: int
    """The second column of a reduction over two. It stands in another table of the same hop."""
    beside_tiles_at: int
    beside_length_at: int
    parts: int
    weights_at: int
    window_count: int
    windows_at: int
    summed_at: int


class PlanWindow(NamedTuple):
    """The slot of a result over one window."""

    bound: int
    """The number of its end among the group's bounds."""
    slot: int


class PlanMemory(NamedTuple):
    """The latest distinct values of an attribute, or some fields of the latest payments."""

    attribute: int
    identity: int
    """As in a column; 0 for latest payments."""
    capacity: int
    values_at: int
    """Where the values stand, one column of `capacity` words after the other. The times stand behind the last one."""
    recollection_count: int
    recollections_at: int
    width: int
    """The number of columns of values: 1 for distinct values, one for each field of latest payments."""
    kind: int
    """DISTINCT_VALUES, LATEST_PAYMENTS, or WHOLE_PAYMENTS: only those with all of the fields."""
    fields_at: int


class PlanRemembered(NamedTuple):
    """A field of the latest payments."""

    column: int
    """Its column in a payment's row: for a text that of its identity."""
    reading: int
    """READ_AMOUNT, READ_NUMBER, READ_AGE or READ_TEXT."""


class PlanRecollection(NamedTuple):
    """A question to a memory."""

    kind: int
    slot: int
    place: int
    """Which payment: 0 is the latest one."""
    field: int
    """The number of the field that the question is about."""


class PlanHop(NamedTuple):
    """A group of features two hops away: those of the last neighbours of one kind that an entity has."""

    source: int
    target: int
    memory: int
    """Which memory of the source holds the identities of the neighbours."""
    last: int
    listed_at: int
    """The place of its first neighbour among those of all groups."""
    result_count: int
    results_at: int


class PlanHopResult(NamedTuple):
    """One result of a group of neighbours."""

    feature: int
    """The number of the feature whose value counts."""
    reduction: int
    slot: int
    """Its place among the hop slots."""


class PlanCondition(NamedTuple):
    """A question about a payment's row."""

    attribute: int
    operator: int
    value: int


class PlanOperation(NamedTuple):
    """A step of the program. The operation decides what its operands mean."""

    code: int
    first: int
    second: int
    third: int
    fourth: int


_Section = TypeVar("_Section", bound=NamedTuple)


def positions(kind: type[_Section]) -> _Section:
    """Returns a description whose fields are their own positions: PlanRecollection(kind=0, slot=1)."""
    return kind._make(range(len(kind._fields)))


def section(words: I64, kind: type[_Section], at: int) -> _Section:
    """Returns the section of a plan that begins at a position."""
    return kind._make(words[at : at + len(kind._fields)].tolist())


def entity_section(words: I64, entity: int) -> PlanEntity:
    """Returns the section of an entity, by its number."""
    return section(words, PlanEntity, int(words[ENTITIES_AT + entity]))


HEAD = positions(Head)
ENTITY = positions(PlanEntity)
TABLE = positions(PlanTable)
COLUMN = positions(PlanColumn)
GROUP = positions(PlanGroup)
RESULT = positions(Result)
WINDOW = positions(PlanWindow)
MEMORY = positions(PlanMemory)
REMEMBERED = positions(PlanRemembered)
RECOLLECTION = positions(PlanRecollection)
HOP = positions(PlanHop)
HOP_RESULT = positions(PlanHopResult)
CONDITION = positions(PlanCondition)
OPERATION = positions(PlanOperation)
# Compiled code steps from one section to the next by their sizes.
ENTITIES_AT = len(HEAD)
TABLE_SIZE, COLUMN_SIZE, GROUP_SIZE, RESULT_SIZE, WINDOW_SIZE = map(len, (TABLE, COLUMN, GROUP, RESULT, WINDOW))
MEMORY_SIZE, REMEMBERED_SIZE, RECOLLECTION_SIZE = len(MEMORY), len(REMEMBERED), len(RECOLLECTION)
HOP_SIZE, HOP_RESULT_SIZE = len(HOP), len(HOP_RESULT)
CONDITION_SIZE, OPERATION_SIZE = len(CONDITION), len(OPERATION)


@inlined
def entity_at(plan: I64, entity: int) -> int:
    """Returns where the section of an entity begins."""
    at: int = not_negative(plan[ENTITIES_AT + entity])
    return at


@inlined
def table_at(plan: I64, entity_section: int, table: int) -> int:
    """Returns where the section of an entity's table begins."""
    at: int = not_negative(plan[entity_section + ENTITY.tables_at] + table * TABLE_SIZE)
    return at


@inlined
def memory_at(plan: I64, entity_section: int, memory: int) -> int:
    """Returns where the section of an entity's memory begins."""
    at: int = not_negative(plan[entity_section + ENTITY.memories_at] + memory * MEMORY_SIZE)
    return at


@inlined
def hop_at(plan: I64, number: int) -> int:
    """Returns where the section of a group of neighbours begins."""
    at: int = not_negative(plan[HEAD.hops_at] + number * HOP_SIZE)
    return at


@inlined
def memory_times_at(plan: I64, memory_section: int) -> int:
    """Returns where the times of a memory stand in a profile's words: behind all of its values."""
    width = plan[memory_section + MEMORY.width]
    return int(plan[memory_section + MEMORY.values_at] + width * plan[memory_section + MEMORY.capacity])


@inlined
def table_length_at(table: int) -> int:
    """Returns where the length of a table stands in a profile's words."""
    return LENGTHS_AT + 1 + table


@inlined
def memory_length_at(table_count: int, memory: int) -> int:
    """Returns where the length of a memory stands in a profile's words: behind the lengths of all tables."""
    return LENGTHS_AT + 1 + table_count + memory
