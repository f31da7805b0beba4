"""The one implementation of profiles: update, roll-up, vector. Compiled by numba, used by everyone.

A profile in working form is a flat int64 array ("words"): the times of its first and last payment and of its newest
event, the length of each section, and the sections, each at the place that the plan gives it. A section is a table of
columns, and a column stands in one piece: what a window holds of it is a slice.

    sources     how far each source partition is contained: two columns, source (ascending) and offset
    tables      one for each hop, and another for what labels change, since labels are rare: the tiles' numbers (time //
                hop, ascending), then a column for each word of each measure; only tiles that hold something have a row
    memories    the latest distinct values of an attribute: two columns, the value and when it was last seen, newest
                first

In stored form ("packed") the same columns stand one after the other, each in numbers of one width: as many whole
bytes as its largest number needs. So nothing inside a column depends on what came before it:

    byte      LAYOUT_VERSION
    4 bytes   the entity's shape digest, little endian (so are all numbers here)
    2 bytes   length of the shape, then the shape: hops, measures and memories, read only to migrate (features/shape.py)
    nibbles   the width in bytes of each column, 0 (it is all zeros) to 8, two to a byte, the lower nibble first
    bytes     the columns: first payment ms; last and newest event, each relative to the number before it (three columns
              of one number); the lengths of the sections, as one column: sources, tables, memories; then for each
              table the tiles as how many hops they are older than the newest event's, and the measures; for each
              memory the values, and the times relative to the one before, the first to the newest event; sources;
              offsets

1. `update` finds the tile of an event in each table and adds to it. All measures commute, a table is cut by the
   newest event alone, and a memory is the top of a total order: the same events in any order give the same bytes.
2. `roll_up` finds where in each table the windows end, then goes through each measure from the newest tile to the
   oldest, noting the result whenever a window ends.
3. `assemble` runs the catalogue's program over roll-up results and the payment's attributes to the float32 vector.
4. `apply_events` (stream, training, replay) and `fill_vectors` (scoring) are loops over these three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

# Every number the compiled code depends on stands in this file: numba's cache looks at no other.

# Columns of a payment's row of attributes, as far as the code here knows them (features/attributes.py has all).
TIME_MS, AMOUNT, AMOUNT_MINOR, UTC_OFFSET, COUNTRY = 0, 1, 2, 4, 11
ATTRIBUTE_COUNT = 13
# What is stored for an offset of 0 minutes: 0 stands for no offset known.
OFFSET_ZERO = 1440
# Operators of conditions.
EQUAL, DIFFERENT, AT_LEAST, BELOW = range(4)

# The plan. Positions in the header, and where the entities' positions start.
(
    ENTITY_COUNT,
    SLOT_COUNT,
    PROGRAM_COUNT,
    PROGRAM_AT,
    FEATURE_COUNT,
    FEATURES_AT,
    CONDITION_COUNT,
    CONDITIONS_AT,
    PLACES_AT,
    ENTITIES_AT,
) = range(10)
# Positions in an entity's section.
(
    DIGEST,
    SHAPE_SIZE,
    SHAPE_AT,
    TABLE_COUNT,
    TABLES_AT,
    MEMORY_COUNT,
    MEMORIES_AT,
    SLOT_BASE,
    ENTITY_SLOTS,
    RECENCY_SLOT,
    STORED_COLUMNS,
    SOURCES_AT,
    SCRATCH_AT,
    WORD_COUNT,
) = range(14)
ENTITY_SIZE = 14
# Positions in a table's section. A row has WIDTH words, CAPACITY words apart; the tiles' numbers stand at TILES_AT.
# KIND is the kind of events that change it: PAYMENT or LABEL.
HOP_MS, CAPACITY, WIDTH, TILES_AT, COLUMN_COUNT, KIND, COLUMNS_AT, GROUP_COUNT, GROUPS_AT = range(9)
TABLE_SIZE = 9
# Positions in a column's section. CONDITION: 0 for always, else the bit that answers it, plus one. COLUMN_AT is where
# in the words it starts, the first of its PARTS, which are CAPACITY words apart.
MEASURE, CONDITION, ATTRIBUTE, COLUMN_AT, PARTS = range(5)
COLUMN_SIZE = 5
# Positions in a group's section: windows that start at the same age. Its bounds are the ages at which they end.
NEWEST_AGE, BOUND_COUNT, BOUNDS_AT, RESULT_COUNT, RESULTS_AT = range(5)
GROUP_SIZE = 5
# Positions in a result's section: a column reduced in one way, over every window that asks for it, shortest first. The
# column beside it is in another table of the same hop: where that has its tiles, and where its length stands.
(
    REDUCTION,
    RESULT_AT,
    RESULT_MEASURE,
    BESIDE_AT,
    BESIDE_TILES_AT,
    BESIDE_LENGTH_AT,
    RESULT_PARTS,
    WEIGHTS_AT,
    WINDOW_COUNT,
    WINDOWS_AT,
    SUMMED_AT,
) = range(11)
RESULT_SIZE = 11
BOUND, SLOT = range(2)
WINDOW_SIZE = 2
# Positions in a memory's section, and in a recollection's (what is asked of a memory).
MEMORY_ATTRIBUTE, MEMORY_CAPACITY, VALUES_AT, RECOLLECTION_COUNT, RECOLLECTIONS_AT = range(5)
MEMORY_SIZE = 5
RECOLLECTION_KIND, RECOLLECTION_SLOT = range(2)
RECOLLECTION_SIZE = 2
CONDITION_SIZE = 3
PROGRAM_SIZE = 5

# Measures, in the order of features.declare.Measure. Largest and smallest are stored plus one: 0 is none.
(
    COUNT,
    AMOUNT_SUM,
    SQUARES_LOW,
    SQUARES_HIGH,
    AMOUNT_MAX,
    AMOUNT_MIN,
    DISTINCT_BITS,
    BUCKET_COUNTS,
    FRAUD_COUNT,
    FRAUD_AMOUNT,
) = range(10)
# An amount's square has up to 74 bits. It is kept in two sums, split here: neither overflows in 2**23 payments.
SQUARE_BITS = 40
# Reductions of a measure over the tiles of a window, in the order of features.declare.Reduction.
SUM, DECAYED, LARGEST, SMALLEST, UNION, NEWEST, OLDEST, NEWEST_OTHER, STREAK, STREAK_AGE, STREAK_SUM = range(11)
DECAY_ONE = 1 << 30
# What is asked of a memory, in the order of features.declare.Recollection.
LAST_VALUE, IS_NEW, SINCE_SAME, TRAVEL_KMH = range(4)

# Operations of the program that makes values of slots and attributes, in the order of features.declare.Operation.
(
    ATTRIBUTE_VALUE,
    HOUR,
    NIGHT,
    WEEKEND,
    WEEKDAY,
    TRAILING_ZEROS,
    BELOW_LIMIT,
    HOLDS,
    CATEGORY,
    NUMBER,
    ADD,
    DIVIDE,
    SCALE,
    DEVIATION,
    STANDARD_SCORE,
    ENTROPY,
    TOP_SHARE,
) = range(17)

# A profile's words: first and last payment, newest event of any kind; then the length of each section: sources,
# tables, memories.
FIRST_MS, LAST_MS, NEWEST_MS, LENGTHS_AT = range(4)
# One profile hears from every partition of `payments` and `outcomes`; 128 allows 64 of each.
SOURCES_MAX = 128

LAYOUT_VERSION = 4
SHAPE_BYTES_AT = 7
# What the first eight bytes of a stored profile say before its shape.
_HEAD_MASK = (1 << 8 * SHAPE_BYTES_AT) - 1
# Columns of every stored profile beside those of its tables and memories: three times, the lengths, sources, offsets.
FIXED_COLUMNS = 6
# A tile is at most as many hops old as its table has room for: four bytes are plenty, and cannot be below zero.
_AGE_WIDTH_MAX = 4
# From so many rows on reading several bytes at once, which most columns have, outweighs what it takes to begin.
_VECTOR_ROWS = 8
# A number is written eight bytes wide whatever its width: room that a buffer needs behind its end.
SLACK_BYTES = 8

# How many arrays `fill_bound_vectors` takes in one.
BOUND_ARRAYS = 8
# Kinds of events.
PAYMENT, LABEL = 0, 1
# Whether an entity takes part in a payment.
ABSENT, UNKNOWN, KNOWN = 0, 1, 2
# What unpacking can say, and what packing can.
OK, WRONG_VERSION, WRONG_DIGEST, DAMAGED, TOO_MANY_SOURCES, NO_ROOM = 0, 1, 2, 3, 4, 5
STATUS_UNIT = 2**32

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
# 1970-01-01 was a Thursday: day 0 is weekday 3 of a week that starts on Monday.
EPOCH_WEEKDAY = 3
EARTH_RADIUS_KM = 6371.0
# Far beyond any clock, and three of them add up to less than 64 bits hold.
TIME_MS_MAX = 1 << 60
# Clocks of terminals differ: a journey is taken to last a minute at least.
JOURNEY_MS_MIN = 60_000

_Function = TypeVar("_Function", bound=Callable[..., object])
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]


def _compiled(function: _Function) -> _Function:
    """Compile without numba's reference counting.

    Nothing here allocates or returns an array, and counting the arrays that one function hands to another,
    atomically, took two thirds of the time. Division by zero is looked for where it can happen.
    """
    options: dict[str, Any] = {"_nrt": False}
    compiled: _Function = njit(cache=True, error_model="numpy", nogil=True, **options)(function)
    return compiled


def _inlined(function: _Function) -> _Function:
    """Compile into whatever calls it: a call that hands on three arrays takes longer than most of these run."""
    options: dict[str, Any] = {"_nrt": False, "forceinline": True}
    compiled: _Function = njit(cache=True, error_model="numpy", nogil=True, **options)(function)
    return compiled


@intrinsic
def _load_word_intrinsic(typing_context: Any, data: Any, position: Any) -> Any:  # noqa: ARG001
    """Eight bytes from any position as an int64: numba has no unaligned load, and eight loads take far longer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.int64(data, types.int64), generate


@intrinsic
def _store_word_intrinsic(typing_context: Any, data: Any, position: Any, value: Any) -> Any:  # noqa: ARG001
    """Eight bytes of an int64 to any position."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64), generate


@intrinsic
def _place_intrinsic(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """A place in an array, which is not below zero: then no read there looks whether it counts from the end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        builder.assume(builder.icmp_signed(">=", arguments[0], ir.Constant(ir.IntType(64), 0)))
        return arguments[0]

    return types.int64(types.int64), generate


@intrinsic
def _leading_zeros_intrinsic(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """How many of an int64's 64 bits are 0 before the first 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@intrinsic
def _ones_intrinsic(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """How many of an int64's 64 bits are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


@intrinsic
def _pointer_intrinsic(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """A number as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


# Called from compiled code, without the typing context.
load_word: Any = _load_word_intrinsic
store_word: Any = _store_word_intrinsic
_place: Any = _place_intrinsic
_leading_zeros: Any = _leading_zeros_intrinsic
_ones: Any = _ones_intrinsic
pointer: Any = _pointer_intrinsic


@_compiled
def mix(code: int) -> int:
    """The bits of a code so spread that any few of them look random. 63 bits, above or equal 0.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    bits = np.uint64(code) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((bits ^ (bits >> np.uint64(31))) >> np.uint64(1))


# Stored form


@_inlined
def _width_of(data: U8, widths: int, column: int) -> int:
    """How many bytes a number of a column takes, by the nibble that says it."""
    return int(np.int64(data[widths + (column >> 1)]) >> ((column & 1) << 2) & 15)


@_compiled
def _read_columns(
    data: U8, widths: int, column: int, columns: int, position: int, end: int, rows: int, words: I64, at: int, step: int
) -> int:
    """Columns of one length to words[at:], each `step` behind the one before; returns where they end in `data`.

    The first is the `column`-th of the profile, whose widths stand at `widths`; its numbers start at `position`.
    Returns -1 when they end behind `end` or are wider than a number. `words` must have the room.
    """
    readable = len(data) - 8
    for number in range(column, column + columns):
        width = _width_of(data, widths, number)
        stop = position + rows * width
        if width > 8 or stop > end:
            return -1
        # Views, because an index that may count from the end keeps a loop from being vectorised.
        numbers = words[at : at + rows]
        if width == 1 and rows >= _VECTOR_ROWS:
            source = data[position:stop]
            for row in range(rows):
                numbers[row] = source[row]
        elif width == 2 and rows >= _VECTOR_ROWS:
            source = data[position:stop]
            for row in range(rows):
                numbers[row] = np.int64(source[2 * row]) | np.int64(source[2 * row + 1]) << 8
        elif stop - width <= readable:
            # Shifted twice: a shift by all 64 bits is not defined.
            mask = (np.int64(1) << 4 * width << 4 * width) - 1
            for row in range(rows):
                numbers[row] = load_word(data, position + width * row) & mask
        else:
            # So near the end of the buffer that eight bytes at once would reach beyond it.
            for row in range(rows):
                value = np.int64(0)
                for byte in range(width):
                    value |= np.int64(data[position + width * row + byte]) << 8 * byte
                numbers[row] = value
        position = stop
        at += step
    return position


@_compiled
def _write_column(numbers: I64, at: int, rows: int, out: U8, widths: int, column: int, position: int) -> int:
    """Write numbers[at : at + rows] as the `column`-th of a profile, and its width; returns where it ends."""
    values = numbers[at : at + rows]
    bits = np.int64(0)
    for row in range(rows):
        bits |= values[row]
    width = (71 - _leading_zeros(bits)) >> 3
    if column & 1:
        out[widths + (column >> 1)] |= width << 4
    else:
        out[widths + (column >> 1)] = width
    if width == 1:
        target = out[position : position + rows]
        for row in range(rows):
            target[row] = values[row]
    elif width > 1:
        # In this order: what one writes beyond its end the next overwrites.
        for row in range(rows):
            store_word(out, position + width * row, values[row])
    return int(position + width * rows)


@_inlined
def _signed(value: int) -> int:
    """What a number of a label's column stands for. It is stored zigzag: 0, -1, 1, -2, 2."""
    return ((value >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(value & 1)


@_compiled
def clear(plan: I64, entity: int, words: I64) -> None:
    """Make `words` the profile of an entity nothing is known of."""
    section = plan[ENTITIES_AT + entity]
    for number in range(LENGTHS_AT + 1 + plan[section + TABLE_COUNT] + plan[section + MEMORY_COUNT]):
        words[number] = 0


@_compiled
def pack(plan: I64, entity: int, words: I64, out: U8, position: int) -> int:
    """Write the stored form from `position` on; returns where it ends. `out` must have `packed_bytes_max` of room."""
    section = plan[ENTITIES_AT + entity]
    tables, memories = plan[section + TABLE_COUNT], plan[section + MEMORY_COUNT]
    shape_size, shape_at = plan[section + SHAPE_SIZE], plan[section + SHAPE_AT]
    store_word(out, position, LAYOUT_VERSION | plan[section + DIGEST] << 8 | shape_size << 40)
    position += SHAPE_BYTES_AT
    for byte in range(shape_size):
        out[position + byte] = plan[shape_at + byte]
    widths = position + shape_size
    position = widths + ((plan[section + STORED_COLUMNS] + 1) >> 1)
    # What is stored in another way than it is kept goes through the scratch.
    scratch = plan[section + SCRATCH_AT]

    words[scratch] = words[FIRST_MS]
    words[scratch + 1] = words[LAST_MS] - words[FIRST_MS]
    # A label can be newer than the last payment, never older than the newest event.
    words[scratch + 2] = words[NEWEST_MS] - words[LAST_MS]
    for field in range(3):
        position = _write_column(words, scratch + field, 1, out, widths, field, position)
    position = _write_column(words, LENGTHS_AT, 1 + tables + memories, out, widths, 3, position)
    column = 4
    for table in range(tables):
        position = _pack_table(
            plan,
            plan[section + TABLES_AT] + table * TABLE_SIZE,
            words,
            words[LENGTHS_AT + 1 + table],
            scratch,
            out,
            widths,
            column,
            position,
        )
        column += plan[plan[section + TABLES_AT] + table * TABLE_SIZE + WIDTH]
    for memory in range(memories):
        where = plan[section + MEMORIES_AT] + memory * MEMORY_SIZE
        items = words[LENGTHS_AT + 1 + tables + memory]
        values_at = plan[where + VALUES_AT]
        times_at = values_at + plan[where + MEMORY_CAPACITY]
        position = _write_column(words, values_at, items, out, widths, column, position)
        previous = words[NEWEST_MS]
        for item in range(items):
            words[scratch + item] = previous - words[times_at + item]
            previous = words[times_at + item]
        position = _write_column(words, scratch, items, out, widths, column + 1, position)
        column += 2
    for at in (plan[section + SOURCES_AT], plan[section + SOURCES_AT] + SOURCES_MAX):
        position = _write_column(words, at, words[LENGTHS_AT], out, widths, column, position)
        column += 1
    return position


@_inlined
def _pack_table(
    plan: I64, where: int, words: I64, rows: int, scratch: int, out: U8, widths: int, column: int, position: int
) -> int:
    tiles_at, step = plan[where + TILES_AT], plan[where + CAPACITY]
    newest_tile = words[NEWEST_MS] // plan[where + HOP_MS]
    tiles, ages = words[tiles_at : tiles_at + rows], words[scratch : scratch + rows]
    for row in range(rows):
        ages[row] = newest_tile - tiles[row]
    position = _write_column(words, scratch, rows, out, widths, column, position)
    is_signed = plan[where + KIND] == LABEL
    for number in range(1, plan[where + WIDTH]):
        at = tiles_at + number * step
        if is_signed:
            # Zigzag: a correction may take more away than has arrived.
            values, coded = words[at : at + rows], words[scratch : scratch + rows]
            for row in range(rows):
                coded[row] = (values[row] << 1) ^ (values[row] >> 63)
            at = scratch
        position = _write_column(words, at, rows, out, widths, column + number, position)
    return position


@_inlined
def unpack(plan: I64, entity: int, data: U8, start: int, end: int, words: I64) -> int:
    """Read the stored form in data[start:end] into `words`. Returns OK or what is wrong with it.

    What it takes for OK is safe to update: sources ascend, tiles ascend and lie within their table's reach of
    the newest event, memories are in order, and none of them is larger than there is room for.
    """
    section = _place(plan[ENTITIES_AT + entity])
    if end - start < 8:
        return DAMAGED
    head = load_word(data, start) & _HEAD_MASK
    if head != LAYOUT_VERSION | plan[section + DIGEST] << 8 | plan[section + SHAPE_SIZE] << 40:
        if head & 0xFF != LAYOUT_VERSION:
            return WRONG_VERSION
        return DAMAGED if head >> 8 & 0xFFFFFFFF == plan[section + DIGEST] else WRONG_DIGEST
    widths = start + SHAPE_BYTES_AT + plan[section + SHAPE_SIZE]
    columns = plan[section + STORED_COLUMNS]
    position = widths + ((columns + 1) >> 1)
    if position > end or (columns & 1 and data[position - 1] >> 4 != 0):
        return DAMAGED
    tables, memories = plan[section + TABLE_COUNT], plan[section + MEMORY_COUNT]
    position = _read_columns(data, widths, 0, 3, position, end, 1, words, FIRST_MS, 1)
    if position < 0 or not _add_up_times(words):
        return DAMAGED
    position = _read_columns(data, widths, 3, 1, position, end, 1 + tables + memories, words, LENGTHS_AT, 0)
    if position < 0:
        return DAMAGED
    column = 4
    for table in range(tables):
        where = _place(plan[section + TABLES_AT] + table * TABLE_SIZE)
        rows, room, tiles_at = words[LENGTHS_AT + 1 + table], plan[where + CAPACITY], plan[where + TILES_AT]
        if not 0 <= rows <= room or _width_of(data, widths, column) > _AGE_WIDTH_MAX:
            return DAMAGED
        position = _read_columns(data, widths, column, plan[where + WIDTH], position, end, rows, words, tiles_at, room)
        if position < 0 or not _take_tiles(words, tiles_at, rows, room, words[NEWEST_MS] // plan[where + HOP_MS]):
            return DAMAGED
        if plan[where + KIND] == LABEL:
            for number in range(1, plan[where + WIDTH]):
                coded = words[tiles_at + number * room : tiles_at + number * room + rows]
                for row in range(rows):
                    coded[row] = _signed(coded[row])
        column += plan[where + WIDTH]
    for memory in range(memories):
        where = _place(plan[section + MEMORIES_AT] + memory * MEMORY_SIZE)
        items, room, values_at = (
            words[LENGTHS_AT + 1 + tables + memory],
            plan[where + MEMORY_CAPACITY],
            plan[where + VALUES_AT],
        )
        if not 0 <= items <= room:
            return DAMAGED
        position = _read_columns(data, widths, column, 2, position, end, items, words, values_at, room)
        if position < 0 or not _take_memory(words, values_at, items, room):
            return DAMAGED
        column += 2
    sources, sources_at = words[LENGTHS_AT], plan[section + SOURCES_AT]
    if sources > SOURCES_MAX:
        return TOO_MANY_SOURCES
    if sources < 0:
        return DAMAGED
    position = _read_columns(data, widths, column, 2, position, end, sources, words, sources_at, SOURCES_MAX)
    if position != end:
        return DAMAGED
    previous = np.int64(-1)
    for at in range(sources_at, sources_at + sources):
        if words[at] <= previous or words[at + SOURCES_MAX] < 0:
            return DAMAGED
        previous = words[at]
    return OK


@_inlined
def _add_up_times(words: I64) -> bool:
    """Stored times, each relative to the one before, to what they are. False for those of no clock."""
    previous = np.int64(0)
    for field in range(3):
        value = words[field]
        # Looked at before they are added up: sums must not overflow, and compiled code takes it that they do not.
        if not 0 <= value < TIME_MS_MAX:
            return False
        previous += value
        if previous >= TIME_MS_MAX:
            return False
        words[field] = previous
    return True


@_inlined
def _take_tiles(words: I64, at: int, rows: int, room: int, newest_tile: int) -> bool:
    """Ages, none of them below zero or too wide to subtract, to tiles. False if they do not ascend or are too old."""
    tiles = words[at : at + rows]
    for row in range(rows):
        tiles[row] = newest_tile - tiles[row]
    if rows == 0:
        return True
    is_wrong = tiles[0] <= newest_tile - room or tiles[0] < 0
    for row in range(1, rows):
        is_wrong |= tiles[row] <= tiles[row - 1]
    return not is_wrong


@_inlined
def _take_memory(words: I64, values_at: int, items: int, room: int) -> bool:
    """A memory's stored times to what they are. False if its values are not in order."""
    seen = words[NEWEST_MS]
    for at in range(values_at, values_at + items):
        before = words[at + room]
        if before < 0 or (before == 0 and at > values_at and words[at] >= words[at - 1]):
            return False
        seen -= before
        if seen <= 0:
            return False
        words[at + room] = seen
    return True


@_compiled
def packed_bytes_max(plan: I64, entity: int, words: I64) -> int:
    """How much room packing these words may need."""
    section = plan[ENTITIES_AT + entity]
    tables, memories = plan[section + TABLE_COUNT], plan[section + MEMORY_COUNT]
    count = 4 + tables + memories + 2 * words[LENGTHS_AT]
    for table in range(tables):
        width = plan[plan[section + TABLES_AT] + table * TABLE_SIZE + WIDTH]
        count += words[LENGTHS_AT + 1 + table] * width
    for memory in range(memories):
        count += 2 * words[LENGTHS_AT + 1 + tables + memory]
    widths_size = (plan[section + STORED_COLUMNS] + 1) >> 1
    return int(SHAPE_BYTES_AT + plan[section + SHAPE_SIZE] + widths_size + 8 * count + SLACK_BYTES)


# Update


@_compiled
def advance_source(plan: I64, entity: int, words: I64, source: int, offset: int) -> int:
    """Note that `offset` of `source` is contained. 1 if it is news, 0 if it was contained, -1 if no room."""
    count, first = words[LENGTHS_AT], plan[plan[ENTITIES_AT + entity] + SOURCES_AT]
    at = first + count
    while at > first and words[at - 1] >= source:
        at -= 1
    if at < first + count and words[at] == source:
        if offset <= words[at + SOURCES_MAX]:
            return 0
        words[at + SOURCES_MAX] = offset
        return 1
    if count == SOURCES_MAX:
        return -1
    for place in range(first + count, at, -1):
        words[place] = words[place - 1]
        words[place + SOURCES_MAX] = words[place + SOURCES_MAX - 1]
    words[at] = source
    words[at + SOURCES_MAX] = offset
    words[LENGTHS_AT] = count + 1
    return 1


@_inlined
def _drop_expired(plan: I64, where: int, words: I64, length: int, newest_tile: int) -> int:
    """Forget the tiles that no window can reach any more; returns how many are left."""
    room, tiles_at = plan[where + CAPACITY], plan[where + TILES_AT]
    count = words[length]
    oldest = newest_tile - room + 1
    expired = 0
    while expired < count and words[tiles_at + expired] < oldest:
        expired += 1
    if expired > 0:
        count -= expired
        words[length] = count
        for number in range(plan[where + WIDTH]):
            at = tiles_at + number * room
            column = words[at : at + count + expired]
            for row in range(count):
                column[row] = column[row + expired]
    return int(count)


@_inlined
def _row_of_tile(plan: I64, where: int, words: I64, length: int, count: int, tile: int) -> int:
    """The row of a tile, made if there is none. There is room: expired tiles have been dropped."""
    room, tiles_at = plan[where + CAPACITY], plan[where + TILES_AT]
    row = count
    while row > 0 and words[tiles_at + row - 1] >= tile:
        row -= 1
    if row < count and words[tiles_at + row] == tile:
        return row
    for number in range(plan[where + WIDTH]):
        at = tiles_at + number * room
        for place in range(at + count, at + row, -1):
            words[place] = words[place - 1]
        words[at + row] = 0
    words[tiles_at + row] = tile
    words[length] = count + 1
    return row


@_compiled
def answers(plan: I64, attributes: I64) -> int:
    """Which of the catalogue's conditions hold for a row of attributes: bit i for condition i."""
    held = np.int64(0)
    at = plan[CONDITIONS_AT]
    for condition in range(plan[CONDITION_COUNT]):
        held |= np.int64(_holds(attributes, plan[at], plan[at + 1], plan[at + 2])) << condition
        at += CONDITION_SIZE
    return int(held)


@_inlined
def _holds(attributes: I64, column: int, operator: int, value: int) -> bool:
    actual = attributes[column]
    if operator == EQUAL:
        return bool(actual == value)
    if operator == DIFFERENT:
        return bool(actual != 0 and actual != value)
    if operator == AT_LEAST:
        return bool(actual >= value)
    return bool(actual < value)


@_compiled
def _remember(plan: I64, where: int, words: I64, length: int, value: int, time_ms: int) -> None:
    """Keep a value among the latest distinct ones: by the time it was last seen, then by value.

    What is kept is the top of that order over everything ever seen: a value that fell out had as many others after
    it, and times only grow.
    """
    count, room, values_at = words[length], plan[where + MEMORY_CAPACITY], plan[where + VALUES_AT]
    times_at = values_at + room
    found = 0
    while found < count and words[values_at + found] != value:
        found += 1
    if found < count and words[times_at + found] >= time_ms:
        return
    place = found
    if found == count and count < room:
        words[length] = count + 1
    elif found == count:
        place = count - 1
        last_ms = words[times_at + place]
        if not (time_ms > last_ms or (time_ms == last_ms and value > words[values_at + place])):
            return
    while place > 0:
        before_ms = words[times_at + place - 1]
        if before_ms > time_ms or (before_ms == time_ms and words[values_at + place - 1] > value):
            break
        words[values_at + place] = words[values_at + place - 1]
        words[times_at + place] = before_ms
        place -= 1
    words[values_at + place] = value
    words[times_at + place] = time_ms


@_inlined
def _add_payment(plan: I64, where: int, words: I64, row: int, attributes: I64, held: int) -> None:
    """A payment's part of one tile."""
    amount = attributes[AMOUNT]
    column = plan[where + COLUMNS_AT]
    for _ in range(plan[where + COLUMN_COUNT]):
        condition = plan[column + CONDITION]
        if condition == 0 or (held >> (condition - 1)) & 1:
            measure = plan[column + MEASURE]
            at = plan[column + COLUMN_AT] + row
            if measure == COUNT:
                words[at] += 1
            elif measure == AMOUNT_SUM:
                words[at] += amount
            elif measure == AMOUNT_MAX:
                words[at] = max(words[at], amount + 1)
            elif measure == AMOUNT_MIN:
                words[at] = min(words[at], amount + 1) if words[at] > 0 else amount + 1
            elif measure <= SQUARES_HIGH:
                high, low = amount >> 20, amount & 0xFFFFF
                cross = 2 * high * low
                if measure == SQUARES_LOW:
                    words[at] += low * low + ((cross & 0xFFFFF) << 20)
                else:
                    words[at] += high * high + (cross >> 20)
            else:
                value = attributes[plan[column + ATTRIBUTE]]
                if value != 0:
                    bits = mix(value)
                    if measure == DISTINCT_BITS:
                        bits &= 64 * plan[column + PARTS] - 1
                        words[at + (bits >> 6) * plan[where + CAPACITY]] |= np.int64(1) << (bits & 63)
                    else:
                        words[at + (bits & (plan[column + PARTS] - 1)) * plan[where + CAPACITY]] += 1
        column += COLUMN_SIZE


@_compiled
def _add_label(plan: I64, where: int, words: I64, row: int, attributes: I64, held: int, weight: int) -> None:
    """A label's part of one tile."""
    for number in range(plan[where + COLUMN_COUNT]):
        column = plan[where + COLUMNS_AT] + number * COLUMN_SIZE
        condition = plan[column + CONDITION]
        if condition == 0 or (held >> (condition - 1)) & 1:
            is_amount = plan[column + MEASURE] == FRAUD_AMOUNT
            words[plan[column + COLUMN_AT] + row] += weight * attributes[AMOUNT] if is_amount else weight


@_compiled
def update(plan: I64, entity: int, words: I64, kind: int, attributes: I64, weight: int) -> int:
    """Add one event to a profile. Returns how many tables it came too late for.

    `attributes` is the payment's row for both kinds, its time above 0 (0 stands for no payment). `weight` is 1, or
    for a label +1 fraud, -1 fraud taken back, 0 genuine.
    """
    time_ms = attributes[TIME_MS]
    section = plan[ENTITIES_AT + entity]
    tables = plan[section + TABLE_COUNT]
    if kind == LABEL and weight == 0:
        return 0
    words[NEWEST_MS] = max(words[NEWEST_MS], time_ms)
    if kind == PAYMENT:
        if words[FIRST_MS] == 0 or time_ms < words[FIRST_MS]:
            words[FIRST_MS] = time_ms
        words[LAST_MS] = max(words[LAST_MS], time_ms)
        for memory in range(plan[section + MEMORY_COUNT]):
            where = plan[section + MEMORIES_AT] + memory * MEMORY_SIZE
            value = attributes[plan[where + MEMORY_ATTRIBUTE]]
            # 0 is nothing there, but an amount of 0 is an amount.
            if value != 0 or plan[where + MEMORY_ATTRIBUTE] <= AMOUNT_MINOR:
                _remember(plan, where, words, LENGTHS_AT + 1 + tables + memory, value, time_ms)
    held = answers(plan, attributes)
    late = 0
    for table in range(tables):
        where = plan[section + TABLES_AT] + table * TABLE_SIZE
        length = LENGTHS_AT + 1 + table
        hop_ms = plan[where + HOP_MS]
        tile = time_ms // hop_ms
        newest_tile = words[NEWEST_MS] // hop_ms
        count = _drop_expired(plan, where, words, length, newest_tile)
        # A label that comes days later is not late for payments' tables: it has no business there.
        if kind != plan[where + KIND]:
            continue
        if tile <= newest_tile - plan[where + CAPACITY]:
            late += 1
            continue
        row = _row_of_tile(plan, where, words, length, count, tile)
        if kind == PAYMENT:
            _add_payment(plan, where, words, row, attributes, held)
        else:
            _add_label(plan, where, words, row, attributes, held, weight)
    return late


# Roll-up. A window is the rows of a table from its `low` up to `top`, without it: `lows` has one for each age at
# which windows end, `top` is where they all start. Ages ascend, so each window holds those before it.


@_inlined
def _count_below(tiles: I64, end: int, tile: int) -> int:
    """How many of tiles[:end], which ascend, are below a tile. Halved without a branch to guess."""
    # Most windows start behind the newest tile, and the longest ends before the oldest.
    if end == 0 or tiles[end - 1] < tile:
        return end
    if tiles[0] >= tile:
        return 0
    first, count = 0, end
    while count > 1:
        half = count >> 1
        first = first + half if tiles[first + half - 1] < tile else first
        count -= half
    return first + (count == 1 and tiles[first] < tile)


@_compiled
def _estimate_distinct(ones: int, parts: int) -> float:
    """Linear counting (Whang, Vander-Zanden, Taylor 1990): m ln(m / empty), m ln m at most."""
    size = 64.0 * parts
    return size * math.log(size / max(1.0, size - ones))


@_inlined
def _reduce_sums(plan: I64, result: int, words: I64, top: int, lows: I64, room: int, slots: F64) -> None:
    window = _place(plan[result + WINDOWS_AT])
    for part in range(plan[result + RESULT_PARTS]):
        at = _place(plan[result + RESULT_AT] + part * room)
        total, high = np.int64(0), top
        for number in range(plan[result + WINDOW_COUNT]):
            low = _place(lows[plan[window + number * WINDOW_SIZE + BOUND]])
            for value in words[at + low : at + high]:
                total += value
            high = low
            slots[plan[window + number * WINDOW_SIZE + SLOT] + part] = total


@_inlined
def _reduce_extremes(plan: I64, result: int, words: I64, top: int, lows: I64, slots: F64) -> None:
    """LARGEST and SMALLEST: they are stored plus one, and 0 is none."""
    at = _place(plan[result + RESULT_AT])
    is_largest = plan[result + REDUCTION] == LARGEST
    best, high = np.int64(0), top
    window = _place(plan[result + WINDOWS_AT])
    for _ in range(plan[result + WINDOW_COUNT]):
        low = _place(lows[plan[window + BOUND]])
        if is_largest:
            for value in words[at + low : at + high]:
                best = max(best, value)
        else:
            for value in words[at + low : at + high]:
                if value > 0 and (value < best or best == 0):
                    best = value
        high = low
        slots[plan[window + SLOT]] = best - 1 if best > 0 else np.nan
        window += WINDOW_SIZE


@_inlined
def _reduce_beside(
    plan: I64,
    result: int,
    words: I64,
    tiles: I64,
    top: int,
    newest_tile: int,
    now_tile: int,
    bounds: int,
    hop_ms: int,
    slots: F64,
) -> None:
    """NEWEST_OTHER, STREAK, STREAK_AGE and STREAK_SUM: a column that counts some of what the one beside it counts.

    The streak is what was counted since the newest tile in which there is something else. STREAK_SUM adds up a third
    column over it. The column beside stands in a table of its own: both are gone through from their newest tiles.
    """
    reduction = plan[result + REDUCTION]
    counted, beside = words[plan[result + RESULT_AT] :], words[plan[result + BESIDE_AT] :]
    # Without a third column it is the first words of the profile, which nothing asks for.
    summed = words[plan[result + SUMMED_AT] :]
    others_at = plan[result + BESIDE_TILES_AT]
    others = words[others_at : others_at + words[plan[result + BESIDE_LENGTH_AT]]]
    others_top = _count_below(others, len(others), newest_tile + 1)
    window = _place(plan[result + WINDOWS_AT])
    for _ in range(plan[result + WINDOW_COUNT]):
        first_tile = now_tile - plan[bounds + plan[window + BOUND]]
        row, other_row = top, others_top
        streak, total, oldest, other = np.int64(0), np.int64(0), np.nan, np.nan
        while row > 0 or other_row > 0:
            tile = max(tiles[row - 1] if row > 0 else -1, others[other_row - 1] if other_row > 0 else -1)
            if tile < first_tile:
                break
            count, amount, all_count = np.int64(0), np.int64(0), np.int64(0)
            if row > 0 and tiles[row - 1] == tile:
                row -= 1
                count, amount = counted[row], summed[row]
            if other_row > 0 and others[other_row - 1] == tile:
                other_row -= 1
                all_count = beside[other_row]
            if all_count > count:
                other = _age_s(now_tile, tile, hop_ms)
                break
            if count > 0:
                streak += count
                total += amount
                oldest = _age_s(now_tile, tile, hop_ms)
        value = other
        if reduction == STREAK:
            value = float(streak)
        elif reduction == STREAK_AGE:
            value = oldest
        elif reduction == STREAK_SUM:
            value = float(total)
        slots[plan[window + SLOT]] = value
        window += WINDOW_SIZE


@_inlined
def _age_s(now_tile: int, tile: int, hop_ms: int) -> float:
    return (now_tile - tile) * hop_ms / 1000.0


@_inlined
def _reduce_others(
    plan: I64,
    result: int,
    words: I64,
    tiles: I64,
    top: int,
    lows: I64,
    room: int,
    now_tile: int,
    hop_ms: int,
    slots: F64,
) -> None:
    """DECAYED, UNION, NEWEST and OLDEST, each window from the start."""
    reduction, at = plan[result + REDUCTION], plan[result + RESULT_AT]
    window = _place(plan[result + WINDOWS_AT])
    for _ in range(plan[result + WINDOW_COUNT]):
        low = _place(lows[plan[window + BOUND]])
        if reduction == UNION:
            ones = 0
            for part in range(plan[result + RESULT_PARTS]):
                union = np.int64(0)
                for bits in words[at + part * room + low : at + part * room + top]:
                    union |= bits
                ones += _ones(union)
            value = _estimate_distinct(ones, plan[result + RESULT_PARTS])
        elif reduction == DECAYED:
            weights = plan[result + WEIGHTS_AT]
            value = 0.0
            if plan[result + RESULT_MEASURE] in (COUNT, FRAUD_COUNT):
                # Whole numbers that are far from overflowing: added up in any order, so several at once.
                total = np.int64(0)
                counts, counted_in = words[at + low : at + top], tiles[low:top]
                for row in range(top - low):
                    total += counts[row] * plan[_place(weights + now_tile - counted_in[row])]
                value = float(total)
            else:
                for row in range(top - 1, low - 1, -1):
                    value += float(words[at + row]) * float(plan[weights + now_tile - tiles[row]])
            value /= DECAY_ONE
        else:
            value = np.nan
            for row in range(top - 1, low - 1, -1):
                if words[at + row] > 0:
                    value = _age_s(now_tile, tiles[row], hop_ms)
                    if reduction == NEWEST:
                        break
        slots[plan[window + SLOT]] = value
        window += WINDOW_SIZE


@_inlined
def _roll_up_table(plan: I64, where: int, words: I64, rows: int, as_of_ms: int, lows: I64, slots: F64) -> None:
    hop_ms, room = plan[where + HOP_MS], plan[where + CAPACITY]
    now_tile = as_of_ms // hop_ms
    tiles = words[plan[where + TILES_AT] : plan[where + TILES_AT] + rows]
    top = rows
    for group in range(plan[where + GROUP_COUNT]):
        at = _place(plan[where + GROUPS_AT] + group * GROUP_SIZE)
        newest_tile = now_tile - plan[at + NEWEST_AGE]
        top = _count_below(tiles, top, newest_tile + 1)
        low = top
        for bound in range(plan[at + BOUND_COUNT]):
            low = _count_below(tiles, low, now_tile - plan[plan[at + BOUNDS_AT] + bound])
            lows[bound] = low
        result = _place(plan[at + RESULTS_AT])
        for _ in range(plan[at + RESULT_COUNT]):
            reduction = plan[result + REDUCTION]
            if reduction == SUM:
                _reduce_sums(plan, result, words, top, lows, room, slots)
            elif reduction in (LARGEST, SMALLEST):
                _reduce_extremes(plan, result, words, top, lows, slots)
            elif reduction >= NEWEST_OTHER:
                bounds = plan[at + BOUNDS_AT]
                _reduce_beside(plan, result, words, tiles, top, newest_tile, now_tile, bounds, hop_ms, slots)
            else:
                _reduce_others(plan, result, words, tiles, top, lows, room, now_tile, hop_ms, slots)
            result += RESULT_SIZE


@_compiled
def _distance_km(plan: I64, origin: int, destination: int) -> float:
    """Great-circle distance of two countries' middles by the haversine formula; NaN where one lies nowhere."""
    if not 0 < origin <= 676 or not 0 < destination <= 676:
        return np.nan
    at, to = plan[PLACES_AT] + 2 * origin, plan[PLACES_AT] + 2 * destination
    # Latitudes and longitudes are in tenths of a degree, plus 10,000: 0 stands for no such country.
    if plan[at] == 0 or plan[to] == 0:
        return np.nan
    unit = math.pi / 1800.0
    latitude, longitude = (plan[at] - 10_000) * unit, (plan[at + 1] - 10_000) * unit
    other_latitude, other_longitude = (plan[to] - 10_000) * unit, (plan[to + 1] - 10_000) * unit
    half = math.sin((other_latitude - latitude) / 2.0) ** 2
    half += math.cos(latitude) * math.cos(other_latitude) * math.sin((other_longitude - longitude) / 2.0) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


@_inlined
def _recollect(plan: I64, where: int, words: I64, items: int, attributes: I64, slots: F64) -> None:
    """What a memory says about a payment, from what it had seen by then."""
    as_of_ms = attributes[TIME_MS]
    value = attributes[plan[where + MEMORY_ATTRIBUTE]]
    is_there = value != 0 or plan[where + MEMORY_ATTRIBUTE] <= AMOUNT_MINOR
    values = words[plan[where + VALUES_AT] :]
    times_ms = values[plan[where + MEMORY_CAPACITY] :]
    newest = 0
    while newest < items and times_ms[newest] > as_of_ms:
        newest += 1
    same = newest
    while same < items and values[same] != value:
        same += 1
    for number in range(plan[where + RECOLLECTION_COUNT]):
        at = plan[where + RECOLLECTIONS_AT] + number * RECOLLECTION_SIZE
        kind = plan[at + RECOLLECTION_KIND]
        result = np.nan
        if kind == LAST_VALUE:
            if newest < items:
                result = values[newest]
        elif kind == IS_NEW:
            if is_there:
                result = 1.0 if same == items else 0.0
        elif kind == SINCE_SAME:
            if is_there and same < items:
                result = (as_of_ms - times_ms[same]) / 1000.0
        elif is_there and newest < items:
            if values[newest] == value:
                result = 0.0
            else:
                hours = max(as_of_ms - times_ms[newest], JOURNEY_MS_MIN) / HOUR_MS
                result = _distance_km(plan, values[newest], value) / hours
        slots[plan[at + RECOLLECTION_SLOT]] = result


@_inlined
def roll_up(plan: I64, entity: int, words: I64, attributes: I64, slots: F64) -> None:
    """What is known of an entity as of a payment, into its part of `slots`. Shape (SLOT_COUNT,)."""
    section = _place(plan[ENTITIES_AT + entity])
    tables = plan[section + TABLE_COUNT]
    as_of_ms = attributes[TIME_MS]
    lows = words[plan[section + SCRATCH_AT] :]
    for table in range(tables):
        where = _place(plan[section + TABLES_AT] + table * TABLE_SIZE)
        _roll_up_table(plan, where, words, words[LENGTHS_AT + 1 + table], as_of_ms, lows, slots)
    for memory in range(plan[section + MEMORY_COUNT]):
        where = _place(plan[section + MEMORIES_AT] + memory * MEMORY_SIZE)
        _recollect(plan, where, words, words[LENGTHS_AT + 1 + tables + memory], attributes, slots)
    recency = plan[section + RECENCY_SLOT]
    if words[FIRST_MS] == 0:
        slots[recency] = np.nan
        slots[recency + 1] = np.nan
    else:
        slots[recency] = max(0, as_of_ms - words[LAST_MS]) / 1000.0
        slots[recency + 1] = max(0, as_of_ms - words[FIRST_MS]) / 1000.0


@_compiled
def clear_slots(plan: I64, entity: int, slots: F64) -> None:
    """Everything about an entity is missing: the payment has none."""
    section = _place(plan[ENTITIES_AT + entity])
    base = plan[section + SLOT_BASE]
    for slot in range(base, base + plan[section + ENTITY_SLOTS]):
        slots[slot] = np.nan


# The vector


@_inlined
def _trailing_zeros(amount: int) -> int:
    """Decimal zeros at the end: 3 for 12,000. 0 for an amount of 0."""
    zeros = 0
    while amount > 0 and amount % 10 == 0:
        amount //= 10
        zeros += 1
    return zeros


@_inlined
def _below_limit(plan: I64, amount: int, limits_at: int, count: int) -> float:
    """How far below the next limit, as a share of it: 0.01 for 99 and a limit of 100; NaN above all limits."""
    for number in range(limits_at, limits_at + count):
        if amount < plan[number]:
            return float((plan[number] - amount) / plan[number])
    return np.nan


@_inlined
def _category(plan: I64, code: int, codes_at: int, count: int) -> float:
    """The place of an attribute's code among the listed ones; `count` for any other; NaN when it is not there.

    At `codes_at` are the codes, ascending, then the place of each.
    """
    if code == 0:
        return np.nan
    first, last = codes_at, codes_at + count
    while first < last:
        middle = (first + last) // 2
        if plan[middle] < code:
            first = middle + 1
        else:
            last = middle
    if first < codes_at + count and plan[first] == code:
        return float(plan[first + count])
    return float(count)


@_inlined
def _deviation(count: float, total: float, low: float, high: float) -> float:
    """Sample standard deviation from count, sum and sum of squares; NaN of fewer than two."""
    if not count >= 2.0:
        return np.nan
    squares = high * 2.0**SQUARE_BITS + low
    return math.sqrt(max(0.0, squares * count - total * total) / (count * (count - 1.0)))


@_compiled
def _entropy(values: F64, first: int, count: int) -> float:
    """Of counts as shares, in bits: 0 when all are in one place. NaN when there are none."""
    total = 0.0
    for place in range(first, first + count):
        total += values[place]
    if not total > 0.0:
        return np.nan
    entropy = 0.0
    for place in range(first, first + count):
        if values[place] > 0.0:
            share = values[place] / total
            entropy -= share * math.log2(share)
    return entropy


@_compiled
def _top_share(values: F64, first: int, count: int) -> float:
    total, largest = 0.0, 0.0
    for place in range(first, first + count):
        total += values[place]
        largest = max(largest, values[place])
    return largest / total if total > 0.0 else np.nan


@_inlined
def _from_request(plan: I64, at: int, operation: int, attributes: I64) -> float:
    """One value from the payment's own attributes."""
    if operation == ATTRIBUTE_VALUE:
        return float(attributes[plan[at + 1]])
    if operation == HOLDS:
        if attributes[plan[at + 1]] == 0 and plan[at + 1] > AMOUNT_MINOR:
            return np.nan
        return 1.0 if _holds(attributes, plan[at + 1], plan[at + 2], plan[at + 3]) else 0.0
    if operation == TRAILING_ZEROS:
        return float(_trailing_zeros(attributes[AMOUNT_MINOR]))
    if operation == BELOW_LIMIT:
        return _below_limit(plan, attributes[AMOUNT], plan[at + 1], plan[at + 2])
    if operation == CATEGORY:
        return _category(plan, attributes[plan[at + 1]], plan[at + 2], plan[at + 3])
    local_ms = attributes[TIME_MS]
    if attributes[UTC_OFFSET] != 0:
        local_ms += (attributes[UTC_OFFSET] - OFFSET_ZERO) * MINUTE_MS
    hour = (local_ms % DAY_MS) // HOUR_MS
    weekday = (local_ms // DAY_MS + EPOCH_WEEKDAY) % 7
    if operation == HOUR:
        return float(hour)
    if operation == NIGHT:
        return 1.0 if hour <= 6 else 0.0
    if operation == WEEKEND:
        return 1.0 if weekday >= 5 else 0.0
    return float(weekday)


@_inlined
def assemble(plan: I64, attributes: I64, values: F64, out: F32) -> None:
    """Attributes and slots to the vector. `out`: shape (FEATURE_COUNT,), overwritten, missing is NaN.

    `values` starts with the slots; behind them the program writes one value for each of its operations.
    """
    position = plan[SLOT_COUNT]
    at = plan[PROGRAM_AT]
    for _ in range(plan[PROGRAM_COUNT]):
        operation = plan[at]
        if operation == DIVIDE:
            denominator = values[plan[at + 2]]
            values[position] = values[plan[at + 1]] / denominator if denominator != 0.0 else np.nan
        elif operation < NUMBER:
            values[position] = _from_request(plan, at, operation, attributes)
        elif operation == NUMBER:
            values[position] = plan[at + 1]
        elif operation == ADD:
            values[position] = values[plan[at + 1]] + values[plan[at + 2]]
        elif operation == SCALE:
            values[position] = values[plan[at + 1]] * plan[at + 2] / plan[at + 3]
        elif operation == DEVIATION:
            first, second = values[plan[at + 1]], values[plan[at + 2]]
            values[position] = _deviation(first, second, values[plan[at + 3]], values[plan[at + 4]])
        elif operation == STANDARD_SCORE:
            deviation = values[plan[at + 3]]
            distance = values[plan[at + 1]] - values[plan[at + 2]]
            values[position] = distance / deviation if deviation != 0.0 else np.nan
        elif operation == ENTROPY:
            values[position] = _entropy(values, plan[at + 1], plan[at + 2])
        else:
            values[position] = _top_share(values, plan[at + 1], plan[at + 2])
        position += 1
        at += PROGRAM_SIZE
    at = plan[FEATURES_AT]
    for feature in range(plan[FEATURE_COUNT]):
        out[feature] = np.float32(values[plan[at + feature]])


@_compiled
def assemble_rows(plan: I64, attributes: I64, slots: F64, values: F64, out: F32) -> None:
    """`assemble` for each row. Shapes (rows, ATTRIBUTE_COUNT), (rows, SLOT_COUNT), …, (rows, FEATURE_COUNT)."""
    count = plan[SLOT_COUNT]
    for row in range(len(attributes)):
        for slot in range(count):
            values[slot] = slots[row, slot]
        assemble(plan, attributes[row], values, out[row])


@_compiled
def fill_vectors(
    plan: I64,
    attributes: I64,
    presence: U8,
    states: U8,
    bounds: I64,
    words: I64,
    values: F64,
    out: F32,
) -> int:
    """Vectors of payments from packed profiles, as scoring has them.

    `presence` and the profile bounds have one entry for each payment and entity, payments outermost:
    states[bounds[i] : bounds[i + 1]] is the i-th. Returns OK, or what is wrong with a state times STATUS_UNIT
    plus its place among them.
    """
    entities = plan[ENTITY_COUNT]
    for row in range(len(attributes)):
        for entity in range(entities):
            item = row * entities + entity
            if presence[item] == ABSENT:
                clear_slots(plan, entity, values)
                continue
            if presence[item] == UNKNOWN:
                clear(plan, entity, words)
            else:
                status = unpack(plan, entity, states, bounds[item], bounds[item + 1], words)
                if status != OK:
                    return int(status * STATUS_UNIT + item)
            roll_up(plan, entity, words, attributes[row], values)
        assemble(plan, attributes[row], values, out[row])
    return OK


# With reference counting: without it numba makes no arrays, and these have nothing to count.
@njit(cache=True)
def fill_bound_vectors(frame_at: int, rows: int) -> int:
    """`fill_vectors` of the first `rows` payments, all arrays in one: a frame has (address, length) of each, in order.

    Takes the frame's address: numba takes 0.1 µs to look at each array it is called with, and a scoring worker's are
    always the same.
    """
    frame = carray(pointer(frame_at), 2 * BOUND_ARRAYS, np.int64)
    plan = carray(pointer(frame[0]), frame[1], np.int64)
    features = plan[FEATURE_COUNT]
    return fill_vectors(
        plan,
        carray(pointer(frame[2]), (rows, ATTRIBUTE_COUNT), np.int64),
        carray(pointer(frame[4]), frame[5], np.uint8),
        carray(pointer(frame[6]), frame[7], np.uint8),
        carray(pointer(frame[8]), frame[9], np.int64),
        carray(pointer(frame[10]), frame[11], np.int64),
        carray(pointer(frame[12]), frame[13], np.float64),
        carray(pointer(frame[14]), (rows, features), np.float32),
    )


@_compiled
def apply_events(
    plan: I64,
    entity: int,
    states: U8,
    bounds: I64,
    groups: I64,
    kind: U8,
    payment: I64,
    weight: I64,
    source: I64,
    offset: I64,
    row: I64,
    attributes: I64,
    words: I64,
    slots: F64,
    out: U8,
    out_bounds: I64,
    applied: U8,
    late: I64,
) -> int:
    """Update the profiles of one kind of entity, each by its own events in order.

    Group g is one entity: its packed profile is states[bounds[g] : bounds[g + 1]] (empty: unknown) and its
    events are groups[g] to groups[g + 1]. Event i is of the payment attributes[payment[i]]. An event whose `offset`
    of its `source` the profile contains already changes nothing and is not `applied`; source -1 is not checked.
    Where row[i] >= 0, slots[row[i]] is filled with what was known just before event i. `late[0]` counts the
    events that came too late for at least one table.
    The new packed profiles are out[out_bounds[g] : out_bounds[g + 1]].
    Returns OK, or what is wrong with a state times STATUS_UNIT plus its group; NO_ROOM asks for a larger `out`.
    """
    position = 0
    out_bounds[0] = 0
    late[0] = 0
    for group in range(len(groups) - 1):
        if bounds[group] == bounds[group + 1]:
            clear(plan, entity, words)
        else:
            status = unpack(plan, entity, states, bounds[group], bounds[group + 1], words)
            if status != OK:
                return status * STATUS_UNIT + group
        for event in range(groups[group], groups[group + 1]):
            applied[event] = 0
            if source[event] >= 0:
                news = advance_source(plan, entity, words, source[event], offset[event])
                if news < 0:
                    return TOO_MANY_SOURCES * STATUS_UNIT + group
                if news == 0:
                    continue
            if row[event] >= 0:
                roll_up(plan, entity, words, attributes[payment[event]], slots[row[event]])
            applied[event] = 1
            missed = update(plan, entity, words, kind[event], attributes[payment[event]], weight[event])
            late[0] += 1 if missed > 0 else 0
        if position + packed_bytes_max(plan, entity, words) > len(out):
            return NO_ROOM * STATUS_UNIT + group
        position = pack(plan, entity, words, out, position)
        out_bounds[group + 1] = position
    return OK


# Migration


@_compiled
def decode(data: U8, start: int, end: int, table_widths: I64, memories: int, numbers: I64) -> int:
    """The numbers of a profile of any shape, as they are stored; returns how many, or minus what is wrong.

    `start` is where the widths of its columns stand, `table_widths` how many columns each of its tables has.
    `numbers`: the three times, the lengths, and the columns one after the other; what needs more is no profile.
    """
    tables = len(table_widths)
    columns = FIXED_COLUMNS + 2 * memories
    for table in range(tables):
        columns += table_widths[table]
    position = start + ((columns + 1) >> 1)
    at = 4 + tables + memories
    if position > end or at > len(numbers) or (columns & 1 and data[position - 1] >> 4 != 0):
        return -DAMAGED
    position = _read_columns(data, start, 0, 3, position, end, 1, numbers, 0, 1)
    if position < 0:
        return -DAMAGED
    position = _read_columns(data, start, 3, 1, position, end, 1 + tables + memories, numbers, 3, 0)
    column = 4
    # Sources come first among the lengths, and last among the columns.
    for length in range(1, 2 + tables + memories):
        rows = numbers[3 + (length if length <= tables + memories else 0)]
        width = table_widths[length - 1] if length <= tables else 2
        # Looked at before it is multiplied: what is damaged may be too large for that.
        if position < 0 or not 0 <= rows <= len(numbers) or at + rows * width > len(numbers):
            return -DAMAGED
        position = _read_columns(data, start, column, width, position, end, rows, numbers, at, rows)
        at += rows * width
        column += width
    return at if position == end else -DAMAGED


@_compiled
def migrate(plan: I64, entity: int, translation: I64, numbers: I64, words: I64) -> int:
    """Fill `words` from the decoded numbers of a profile of another shape. Returns OK or DAMAGED.

    `translation` (features/shape.py): how many tables and memories the old shape has; then for each old table its
    width, the table it becomes (-1: dropped), how many columns go over, and for each the old and the new place in a
    row and 1 if labels change it; then for each old memory the one it becomes (-1: dropped).
    """
    section = plan[ENTITIES_AT + entity]
    clear(plan, entity, words)
    tables, memories = translation[0], translation[1]
    for field in range(3):
        words[field] = numbers[field]
    if not _add_up_times(words):
        return DAMAGED
    at = 4 + tables + memories
    step = 2
    for table in range(tables):
        width, target, columns = translation[step], translation[step + 1], translation[step + 2]
        rows = numbers[4 + table]
        if target >= 0:
            where = plan[section + TABLES_AT] + target * TABLE_SIZE
            if not _migrate_table(
                plan, where, LENGTHS_AT + 1 + target, translation[step + 3 :], columns, numbers, at, rows, words
            ):
                return DAMAGED
        step += 3 + 3 * columns
        at += rows * width
    for memory in range(memories):
        target, items = translation[step + memory], numbers[4 + tables + memory]
        seen = words[NEWEST_MS]
        for item in range(at, at + items):
            before = numbers[items + item]
            if not 0 <= before < seen:
                return DAMAGED
            seen -= before
            if target >= 0:
                where = plan[section + MEMORIES_AT] + target * MEMORY_SIZE
                length = LENGTHS_AT + 1 + plan[section + TABLE_COUNT] + target
                _remember(plan, where, words, length, numbers[item], seen)
        at += 2 * items
    sources = numbers[3]
    if sources > SOURCES_MAX:
        return DAMAGED
    for source in range(at, at + sources):
        advance_source(plan, entity, words, numbers[source], numbers[source + sources])
    return OK


@_compiled
def _migrate_table(
    plan: I64, where: int, length: int, moves: I64, columns: int, numbers: I64, at: int, rows: int, words: I64
) -> bool:
    """The tiles of a table that another keeps. False when no profile has such tiles."""
    room, tiles_at = plan[where + CAPACITY], plan[where + TILES_AT]
    newest_tile = words[NEWEST_MS] // plan[where + HOP_MS]
    older = newest_tile + 1
    kept = 0
    for number in range(at, at + rows):
        age = numbers[number]
        if not 0 <= age < older:
            return False
        older = age
        if age >= room:
            continue
        words[tiles_at + kept] = newest_tile - age
        for column in range(1, plan[where + WIDTH]):
            words[tiles_at + column * room + kept] = 0
        for move in range(0, 3 * columns, 3):
            value = numbers[number + moves[move] * rows]
            words[tiles_at + moves[move + 1] * room + kept] = _signed(value) if moves[move + 2] else value
        kept += 1
    words[length] = kept
    return True
