"""The one implementation of profiles: update, roll-up, vector. Compiled by numba, used by everyone.

A profile in working form is a flat int64 array ("words"): the times of its first and last payment and of its newest
event, a directory, and the sections the directory points to. Sections are

    sources     how far each source partition is contained: (source, offset), ascending
    tables      one for each hop: rows in ascending order, each the tile's number (time // hop) and its measures;
                only tiles that hold something exist
    memories    the latest distinct values of an attribute: (value, when it was last seen), newest first

In stored form ("packed") the same numbers stand one after the other, each in as few whole bytes as it needs:

    byte      LAYOUT_VERSION
    4 bytes   the entity's shape digest, little endian (so are all numbers here)
    2 bytes   length of the shape, then the shape: hops, measures and memories, read only to migrate (features/shape.py)
    4 bytes   how many numbers follow
    nibbles   the width in bytes of each number, 0 to 8, two to a byte, the lower nibble first
    bytes     the numbers: first payment ms; last and newest event, each relative to the number before it; the length
              of each section; the rows of tables (tiles relative to the one before); memories (times relative to
              the one before, the first to the newest event); sources

1. `update` finds the tile of an event in each table and adds to it. All measures commute, a table is cut by the
   newest event alone, and a memory is the top of a total order: the same events in any order give the same bytes.
2. `roll_up` finds where in each table the windows end, then walks each measure from the newest tile to the oldest,
   noting the result whenever a window ends.
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
    SOURCES_BASE,
    FLAT_AT,
    WORD_COUNT,
) = range(13)
ENTITY_SIZE = 13
# Positions in a table's section. Columns from LABELS_FROM on are changed by labels, those before by payments.
HOP_MS, CAPACITY, WIDTH, BASE, COLUMN_COUNT, LABELS_FROM, COLUMNS_AT, GROUP_COUNT, GROUPS_AT = range(9)
TABLE_SIZE = 9
# Positions in a column's section. CONDITION: 0 for always, else the bit that answers it, plus one.
MEASURE, CONDITION, ATTRIBUTE, OFFSET, PARTS = range(5)
COLUMN_SIZE = 5
# Positions in a group's section: windows that start at the same age. Its bounds are the ages at which they end.
NEWEST_AGE, BOUND_COUNT, BOUNDS_AT, RESULT_COUNT, RESULTS_AT = range(5)
GROUP_SIZE = 5
# Positions in a result's section: a column reduced in one way, over every window that asks for it, shortest first.
REDUCTION, RESULT_OFFSET, BESIDE_OFFSET, RESULT_PARTS, WEIGHTS_AT, WINDOW_COUNT, WINDOWS_AT, SUMMED_OFFSET = range(8)
RESULT_SIZE = 8
BOUND, SLOT = range(2)
WINDOW_SIZE = 2
# Positions in a memory's section, and in a recollection's (what is asked of a memory).
MEMORY_ATTRIBUTE, MEMORY_CAPACITY, MEMORY_BASE, RECOLLECTION_COUNT, RECOLLECTIONS_AT = range(5)
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
    NUMBER,
    ADD,
    DIVIDE,
    SCALE,
    DEVIATION,
    STANDARD_SCORE,
    ENTROPY,
    TOP_SHARE,
) = range(16)

# A profile's words: first and last payment, newest event of any kind, how many places the directory has; then the
# directory, (length, base) of each section: sources, tables, memories.
FIRST_MS, LAST_MS, NEWEST_MS, DIRECTORY_AT = range(4)
# One profile hears from every partition of `payments` and `outcomes`; 128 allows 64 of each.
SOURCES_MAX = 128

LAYOUT_VERSION = 2
SHAPE_BYTES_AT = 7
# What comes before the shape and, after it, the count of numbers.
HEADER_BYTES = SHAPE_BYTES_AT + 4
# A number may be written eight bytes wide before its width is known: room that a buffer needs behind its end.
SLACK_BYTES = 8

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
    compiled: _Function = njit(cache=True, error_model="numpy", **options)(function)
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
_load_word: Any = _load_word_intrinsic
_store_word: Any = _store_word_intrinsic
_leading_zeros: Any = _leading_zeros_intrinsic
_ones: Any = _ones_intrinsic
_pointer: Any = _pointer_intrinsic


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


@_compiled
def decode(data: U8, start: int, end: int, numbers: I64, at: int) -> int:
    """The numbers in data[start:end] to numbers[at:]; returns how many, or minus what is wrong.

    `start` is where their count stands. One number more than there are may be written, as padding.
    """
    if end - start < 4:
        return -DAMAGED
    count = np.int64(data[start]) | np.int64(data[start + 1]) << 8
    count |= np.int64(data[start + 2]) << 16 | np.int64(data[start + 3]) << 24
    pairs = (count + 1) >> 1
    position = start + 4 + pairs
    if position > end or at + 2 * pairs > len(numbers):
        return -DAMAGED
    pair = start + 4
    stop = pair + pairs
    wide = np.int64(0)
    # Both numbers of a pair are read eight bytes wide and cut: 15 + 8 bytes reach no further than the buffer.
    readable = len(data) - 24
    while pair < stop and position <= readable:
        widths = np.int64(data[pair])
        first, second = widths & 15, widths >> 4
        wide |= (first + 7) | (second + 7)
        # Shifted twice: a shift by all 64 bits is not defined, and by 0 must leave the number 0.
        numbers[at] = _load_word(data, position) & ((np.int64(1) << 4 * first << 4 * first) - 1)
        position += first
        numbers[at + 1] = _load_word(data, position) & ((np.int64(1) << 4 * second << 4 * second) - 1)
        position += second
        at += 2
        pair += 1
    while pair < stop:
        widths = np.int64(data[pair])
        for width in (widths & 15, widths >> 4):
            if width > 8 or position + width > end:
                return -DAMAGED
            value = np.int64(0)
            for byte in range(width):
                value |= np.int64(data[position + byte]) << 8 * byte
            numbers[at] = value
            position += width
            at += 1
        pair += 1
    # A width above 8 makes one of the sums above reach 16.
    if position != end or wide >= 16:
        return -DAMAGED
    return int(count)


@_compiled
def _encode(numbers: I64, first: int, count: int, out: U8, position: int) -> int:
    """Write count numbers, numbers[first:] and on, with their count before them; returns where they end."""
    for byte in range(4):
        out[position + byte] = (count >> 8 * byte) & 255
    pair = position + 4
    position = pair + ((count + 1) >> 1)
    # What is beyond the last number is written as 0, of no bytes.
    numbers[first + count] = 0
    for at in range(first, first + count, 2):
        value = numbers[at]
        low = (71 - _leading_zeros(value)) >> 3
        _store_word(out, position, value)
        position += low
        value = numbers[at + 1]
        high = (71 - _leading_zeros(value)) >> 3
        _store_word(out, position, value)
        position += high
        out[pair] = low | high << 4
        pair += 1
    return position


@_compiled
def clear(plan: I64, entity: int, words: I64) -> None:
    """Make `words` the profile of an entity nothing is known of, with every section at its full-size place."""
    section = plan[ENTITIES_AT + entity]
    words[FIRST_MS] = 0
    words[LAST_MS] = 0
    words[NEWEST_MS] = 0
    entry = DIRECTORY_AT
    words[entry] = 0
    words[entry + 1] = plan[section + SOURCES_BASE]
    for table in range(plan[section + TABLE_COUNT]):
        entry += 2
        words[entry] = 0
        words[entry + 1] = plan[plan[section + TABLES_AT] + table * TABLE_SIZE + BASE]
    for memory in range(plan[section + MEMORY_COUNT]):
        entry += 2
        words[entry] = 0
        words[entry + 1] = plan[plan[section + MEMORIES_AT] + memory * MEMORY_SIZE + MEMORY_BASE]


@_compiled
def pack(plan: I64, entity: int, words: I64, out: U8, position: int) -> int:
    """Write the stored form from `position` on; returns where it ends. `out` must have `packed_bytes_max` of room.

    Uses the flat part of `words`: a profile that lies there (`spread` was not asked for) cannot be packed.
    """
    section = plan[ENTITIES_AT + entity]
    tables, memories = plan[section + TABLE_COUNT], plan[section + MEMORY_COUNT]
    flat = plan[section + FLAT_AT]
    words[flat] = words[FIRST_MS]
    words[flat + 1] = words[LAST_MS] - words[FIRST_MS]
    # A label can be newer than the last payment, never older than the newest event.
    words[flat + 2] = words[NEWEST_MS] - words[LAST_MS]
    at = flat + 3
    for entry in range(1 + tables + memories):
        words[at] = words[DIRECTORY_AT + 2 * entry]
        at += 1
    for table in range(tables):
        where = plan[section + TABLES_AT] + table * TABLE_SIZE
        width = plan[where + WIDTH]
        columns_at = plan[where + COLUMNS_AT]
        labels = columns_at + plan[where + LABELS_FROM] * COLUMN_SIZE
        columns_end = columns_at + plan[where + COLUMN_COUNT] * COLUMN_SIZE
        row = words[DIRECTORY_AT + 2 + 2 * table + 1]
        previous = np.int64(0)
        for _ in range(words[DIRECTORY_AT + 2 + 2 * table]):
            words[at] = words[row] - previous
            previous = words[row]
            for column in range(1, width):
                words[at + column] = words[row + column]
            for column in range(labels, columns_end, COLUMN_SIZE):
                # Zigzag: a correction may take more away than has arrived.
                value = words[row + plan[column + OFFSET]]
                words[at + plan[column + OFFSET]] = (value << 1) ^ (value >> 63)
            at += width
            row += width
    for memory in range(memories):
        entry = DIRECTORY_AT + 2 + 2 * (tables + memory)
        item = words[entry + 1]
        previous = words[NEWEST_MS]
        for _ in range(words[entry]):
            words[at] = words[item]
            words[at + 1] = previous - words[item + 1]
            previous = words[item + 1]
            at += 2
            item += 2
    item = words[DIRECTORY_AT + 1]
    for number in range(2 * words[DIRECTORY_AT]):
        words[at + number] = words[item + number]
    at += 2 * words[DIRECTORY_AT]

    out[position] = LAYOUT_VERSION
    for byte in range(4):
        out[position + 1 + byte] = (plan[section + DIGEST] >> 8 * byte) & 255
    shape_size = plan[section + SHAPE_SIZE]
    out[position + 5] = shape_size & 255
    out[position + 6] = shape_size >> 8
    position += SHAPE_BYTES_AT
    shape_at = plan[section + SHAPE_AT]
    for byte in range(shape_size):
        out[position + byte] = plan[shape_at + byte]
    return _encode(words, flat, at - flat, out, position + shape_size)


@_compiled
def unpack(plan: I64, entity: int, data: U8, start: int, end: int, words: I64, spread: bool) -> int:
    """Read the stored form in data[start:end] into `words`. Returns OK or what is wrong with it.

    With `spread` every section is moved to where it has room to grow; without, the profile can only be rolled up.
    What it takes for OK is safe to update: sources ascend, tiles ascend and lie within their table's reach of
    the newest event, memories are in order, and none of them is larger than there is room for.
    """
    section = plan[ENTITIES_AT + entity]
    if end - start < HEADER_BYTES:
        return DAMAGED
    if data[start] != LAYOUT_VERSION:
        return WRONG_VERSION
    digest = np.int64(0)
    for byte in range(4):
        digest |= np.int64(data[start + 1 + byte]) << 8 * byte
    if digest != plan[section + DIGEST]:
        return WRONG_DIGEST
    flat = plan[section + FLAT_AT]
    count = decode(data, start + SHAPE_BYTES_AT + plan[section + SHAPE_SIZE], end, words, flat)
    if count < 0:
        return -count
    tables, memories = plan[section + TABLE_COUNT], plan[section + MEMORY_COUNT]
    at = flat + 4 + tables + memories
    stop = flat + count
    if at > stop:
        return DAMAGED
    previous = np.int64(0)
    for field in range(3):
        value = words[flat + field]
        # Looked at before they are added up: sums must not overflow, and compiled code takes it that they do not.
        if not 0 <= value < TIME_MS_MAX:
            return DAMAGED
        previous += value
        if previous >= TIME_MS_MAX:
            return DAMAGED
        words[field] = previous
    for table in range(tables):
        where = plan[section + TABLES_AT] + table * TABLE_SIZE
        rows = words[flat + 4 + table]
        width = plan[where + WIDTH]
        if not 0 <= rows <= plan[where + CAPACITY] or at + rows * width > stop:
            return DAMAGED
        entry = DIRECTORY_AT + 2 + 2 * table
        words[entry] = rows
        words[entry + 1] = at
        newest_tile = words[NEWEST_MS] // plan[where + HOP_MS]
        below = newest_tile - plan[where + CAPACITY]
        tile = np.int64(0)
        labels = plan[where + COLUMNS_AT] + plan[where + LABELS_FROM] * COLUMN_SIZE
        columns_end = plan[where + COLUMNS_AT] + plan[where + COLUMN_COUNT] * COLUMN_SIZE
        for _ in range(rows):
            if not 0 <= words[at] <= newest_tile:
                return DAMAGED
            tile += words[at]
            if not below < tile <= newest_tile:
                return DAMAGED
            below = tile
            words[at] = tile
            for column in range(labels, columns_end, COLUMN_SIZE):
                value = words[at + plan[column + OFFSET]]
                words[at + plan[column + OFFSET]] = ((value >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(value & 1)
            at += width
    for memory in range(memories):
        where = plan[section + MEMORIES_AT] + memory * MEMORY_SIZE
        items = words[flat + 4 + tables + memory]
        if not 0 <= items <= plan[where + MEMORY_CAPACITY] or at + 2 * items > stop:
            return DAMAGED
        entry = DIRECTORY_AT + 2 + 2 * (tables + memory)
        words[entry] = items
        words[entry + 1] = at
        seen = words[NEWEST_MS]
        for item in range(items):
            if words[at + 1] < 0:
                return DAMAGED
            if item > 0 and words[at + 1] == 0 and words[at] >= words[at - 2]:
                return DAMAGED
            seen -= words[at + 1]
            if seen <= 0:
                return DAMAGED
            words[at + 1] = seen
            at += 2
    sources = words[flat + 3]
    if sources > SOURCES_MAX:
        return TOO_MANY_SOURCES
    if sources < 0 or at + 2 * sources != stop:
        return DAMAGED
    words[DIRECTORY_AT] = sources
    words[DIRECTORY_AT + 1] = at
    for number in range(at, stop, 2):
        if words[number] < 0 or words[number + 1] < 0 or (number > at and words[number] <= words[number - 2]):
            return DAMAGED
    if spread:
        _spread(plan, section, words)
    return OK


@_compiled
def _spread(plan: I64, section: int, words: I64) -> None:
    """Move every section to its full-size place, which lies before the flat part."""
    tables, memories = plan[section + TABLE_COUNT], plan[section + MEMORY_COUNT]
    _move(words, DIRECTORY_AT, 2, plan[section + SOURCES_BASE])
    for table in range(tables):
        where = plan[section + TABLES_AT] + table * TABLE_SIZE
        _move(words, DIRECTORY_AT + 2 + 2 * table, plan[where + WIDTH], plan[where + BASE])
    for memory in range(memories):
        where = plan[section + MEMORIES_AT] + memory * MEMORY_SIZE
        _move(words, DIRECTORY_AT + 2 + 2 * (tables + memory), 2, plan[where + MEMORY_BASE])


@_compiled
def _move(words: I64, entry: int, width: int, base: int) -> None:
    old = words[entry + 1]
    for number in range(words[entry] * width):
        words[base + number] = words[old + number]
    words[entry + 1] = base


@_compiled
def packed_bytes_max(plan: I64, entity: int, words: I64) -> int:
    """How much room packing these words may need."""
    section = plan[ENTITIES_AT + entity]
    tables, memories = plan[section + TABLE_COUNT], plan[section + MEMORY_COUNT]
    count = 4 + tables + memories + 2 * words[DIRECTORY_AT]
    for table in range(tables):
        width = plan[plan[section + TABLES_AT] + table * TABLE_SIZE + WIDTH]
        count += words[DIRECTORY_AT + 2 + 2 * table] * width
    for memory in range(memories):
        count += 2 * words[DIRECTORY_AT + 2 + 2 * (tables + memory)]
    return int(HEADER_BYTES + plan[section + SHAPE_SIZE] + (count + 1) // 2 + 8 * count + SLACK_BYTES)


# Update


@_compiled
def advance_source(words: I64, source: int, offset: int) -> int:
    """Note that `offset` of `source` is contained. 1 if it is news, 0 if it was contained, -1 if no room."""
    count, base = words[DIRECTORY_AT], words[DIRECTORY_AT + 1]
    place = count
    while place > 0 and words[base + 2 * (place - 1)] >= source:
        place -= 1
    at = base + 2 * place
    if place < count and words[at] == source:
        if offset <= words[at + 1]:
            return 0
        words[at + 1] = offset
        return 1
    if count == SOURCES_MAX:
        return -1
    for number in range(base + 2 * count - 1, at - 1, -1):
        words[number + 2] = words[number]
    words[at] = source
    words[at + 1] = offset
    words[DIRECTORY_AT] = count + 1
    return 1


@_compiled
def _drop_expired(plan: I64, where: int, words: I64, entry: int, newest_tile: int) -> int:
    """Forget the tiles that no window can reach any more; returns how many are left."""
    width = plan[where + WIDTH]
    count, base = words[entry], words[entry + 1]
    oldest = newest_tile - plan[where + CAPACITY] + 1
    expired = 0
    while expired < count and words[base + expired * width] < oldest:
        expired += 1
    if expired > 0:
        kept = (count - expired) * width
        shift = expired * width
        for number in range(base, base + kept):
            words[number] = words[number + shift]
        count -= expired
        words[entry] = count
    return int(count)


@_compiled
def _row_of_tile(plan: I64, where: int, words: I64, entry: int, count: int, tile: int) -> int:
    """The row of a tile, made if there is none. There is room: expired tiles have been dropped."""
    width = plan[where + WIDTH]
    base = words[entry + 1]
    place = count
    while place > 0 and words[base + (place - 1) * width] >= tile:
        place -= 1
    row = base + place * width
    if place < count and words[row] == tile:
        return int(row)
    for number in range(base + count * width - 1, row - 1, -1):
        words[number + width] = words[number]
    words[row] = tile
    for column in range(1, width):
        words[row + column] = 0
    words[entry] = count + 1
    return int(row)


@_compiled
def answers(plan: I64, attributes: I64) -> int:
    """Which of the catalogue's conditions hold for a row of attributes: bit i for condition i."""
    held = np.int64(0)
    at = plan[CONDITIONS_AT]
    for condition in range(plan[CONDITION_COUNT]):
        held |= np.int64(_holds(attributes, plan[at], plan[at + 1], plan[at + 2])) << condition
        at += CONDITION_SIZE
    return int(held)


@_compiled
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
def _remember(plan: I64, where: int, words: I64, entry: int, value: int, time_ms: int) -> None:
    """Keep a value among the latest distinct ones: by the time it was last seen, then by value.

    What is kept is the top of that order over everything ever seen: a value that fell out had as many others after
    it, and times only grow.
    """
    count, base = words[entry], words[entry + 1]
    found = 0
    while found < count and words[base + 2 * found] != value:
        found += 1
    if found < count and words[base + 2 * found + 1] >= time_ms:
        return
    place = found
    if found == count and count < plan[where + MEMORY_CAPACITY]:
        words[entry] = count + 1
    elif found == count:
        place = count - 1
        last = base + 2 * place
        if not (time_ms > words[last + 1] or (time_ms == words[last + 1] and value > words[last])):
            return
    while place > 0:
        before = base + 2 * (place - 1)
        if words[before + 1] > time_ms or (words[before + 1] == time_ms and words[before] > value):
            break
        words[before + 2] = words[before]
        words[before + 3] = words[before + 1]
        place -= 1
    words[base + 2 * place] = value
    words[base + 2 * place + 1] = time_ms


@_compiled
def _add_payment(plan: I64, where: int, words: I64, row: int, attributes: I64, held: int) -> None:
    """A payment's part of one tile."""
    amount = attributes[AMOUNT]
    column = plan[where + COLUMNS_AT]
    for _ in range(plan[where + LABELS_FROM]):
        condition = plan[column + CONDITION]
        if condition == 0 or (held >> (condition - 1)) & 1:
            measure = plan[column + MEASURE]
            at = row + plan[column + OFFSET]
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
                        words[at + (bits >> 6)] |= np.int64(1) << (bits & 63)
                    else:
                        words[at + (bits & (plan[column + PARTS] - 1))] += 1
        column += COLUMN_SIZE


@_compiled
def _add_label(plan: I64, where: int, words: I64, row: int, attributes: I64, held: int, weight: int) -> None:
    """A label's part of one tile."""
    for number in range(plan[where + LABELS_FROM], plan[where + COLUMN_COUNT]):
        column = plan[where + COLUMNS_AT] + number * COLUMN_SIZE
        condition = plan[column + CONDITION]
        if condition == 0 or (held >> (condition - 1)) & 1:
            is_amount = plan[column + MEASURE] == FRAUD_AMOUNT
            words[row + plan[column + OFFSET]] += weight * attributes[AMOUNT] if is_amount else weight


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
                _remember(plan, where, words, DIRECTORY_AT + 2 + 2 * (tables + memory), value, time_ms)
    held = answers(plan, attributes)
    late = 0
    for table in range(tables):
        where = plan[section + TABLES_AT] + table * TABLE_SIZE
        entry = DIRECTORY_AT + 2 + 2 * table
        hop_ms = plan[where + HOP_MS]
        tile = time_ms // hop_ms
        newest_tile = words[NEWEST_MS] // hop_ms
        count = _drop_expired(plan, where, words, entry, newest_tile)
        # For a table without such columns a label that comes days later is not late: it has no business there.
        if kind == LABEL and plan[where + LABELS_FROM] == plan[where + COLUMN_COUNT]:
            continue
        if tile <= newest_tile - plan[where + CAPACITY]:
            late += 1
            continue
        row = _row_of_tile(plan, where, words, entry, count, tile)
        if kind == PAYMENT:
            _add_payment(plan, where, words, row, attributes, held)
        else:
            _add_label(plan, where, words, row, attributes, held, weight)
    return late


# Roll-up. Rows of a table are walked from the newest, at `top`, down to where each window ends, in `lows`: word
# positions both, of the row after the first and of the last.


@_compiled
def _sum_down(words: I64, row: int, low: int, width: int, offset: int) -> int:
    total = np.int64(0)
    while row > low:
        row -= width
        total += words[row + offset]
    return int(total)


@_compiled
def _union_size(words: I64, row: int, low: int, width: int, offset: int) -> int:
    union = np.int64(0)
    while row > low:
        row -= width
        union |= words[row + offset]
    return int(_ones(union))


@_compiled
def _estimate_distinct(ones: int, parts: int) -> float:
    """Linear counting (Whang, Vander-Zanden, Taylor 1990): m ln(m / empty), m ln m at most."""
    size = 64.0 * parts
    return size * math.log(size / max(1.0, size - ones))


@_compiled
def _reduce_sums(plan: I64, result: int, words: I64, top: int, lows: I64, width: int, slots: F64) -> None:
    window = plan[result + WINDOWS_AT]
    for part in range(plan[result + RESULT_PARTS]):
        offset = plan[result + RESULT_OFFSET] + part
        total, row = np.int64(0), top
        for number in range(plan[result + WINDOW_COUNT]):
            low = lows[plan[window + number * WINDOW_SIZE + BOUND]]
            total += _sum_down(words, row, low, width, offset)
            row = low
            slots[plan[window + number * WINDOW_SIZE + SLOT] + part] = total


@_compiled
def _reduce_extremes(plan: I64, result: int, words: I64, top: int, lows: I64, width: int, slots: F64) -> None:
    """LARGEST and SMALLEST: they are stored plus one, and 0 is none."""
    offset = plan[result + RESULT_OFFSET]
    is_largest = plan[result + REDUCTION] == LARGEST
    best, row = np.int64(0), top
    window = plan[result + WINDOWS_AT]
    for _ in range(plan[result + WINDOW_COUNT]):
        low = lows[plan[window + BOUND]]
        while row > low:
            row -= width
            value = words[row + offset]
            if value > best if is_largest else value > 0 and (value < best or best == 0):
                best = value
        slots[plan[window + SLOT]] = best - 1 if best > 0 else np.nan
        window += WINDOW_SIZE


@_compiled
def _reduce_beside(
    plan: I64, result: int, words: I64, top: int, lows: I64, width: int, now_tile: int, hop_ms: int, slots: F64
) -> None:
    """NEWEST_OTHER, STREAK, STREAK_AGE and STREAK_SUM: a column that counts some of what the one beside it counts.

    The streak is what was counted since the newest tile in which there is something else. STREAK_SUM adds up a third
    column over it.
    """
    reduction, offset = plan[result + REDUCTION], plan[result + RESULT_OFFSET]
    # Without a third column it is the tile's number, which nothing asks for.
    beside, summed = plan[result + BESIDE_OFFSET], plan[result + SUMMED_OFFSET]
    window = plan[result + WINDOWS_AT]
    for _ in range(plan[result + WINDOW_COUNT]):
        low = lows[plan[window + BOUND]]
        row = top
        streak, total, oldest, other = np.int64(0), np.int64(0), np.nan, np.nan
        while row > low:
            row -= width
            age_s = (now_tile - words[row]) * hop_ms / 1000.0
            if words[row + beside] > words[row + offset]:
                other = age_s
                break
            if words[row + offset] > 0:
                streak += words[row + offset]
                total += words[row + summed]
                oldest = age_s
        value = other
        if reduction == STREAK:
            value = float(streak)
        elif reduction == STREAK_AGE:
            value = oldest
        elif reduction == STREAK_SUM:
            value = float(total)
        slots[plan[window + SLOT]] = value
        window += WINDOW_SIZE


@_compiled
def _reduce_others(
    plan: I64, result: int, words: I64, top: int, lows: I64, width: int, now_tile: int, hop_ms: int, slots: F64
) -> None:
    """DECAYED, UNION, NEWEST and OLDEST, each window from the start."""
    reduction, offset = plan[result + REDUCTION], plan[result + RESULT_OFFSET]
    window = plan[result + WINDOWS_AT]
    for _ in range(plan[result + WINDOW_COUNT]):
        low = lows[plan[window + BOUND]]
        if reduction == UNION:
            ones = 0
            for part in range(plan[result + RESULT_PARTS]):
                ones += _union_size(words, top, low, width, offset + part)
            value = _estimate_distinct(ones, plan[result + RESULT_PARTS])
        elif reduction == DECAYED:
            weights = plan[result + WEIGHTS_AT]
            value = 0.0
            row = top
            while row > low:
                row -= width
                value += float(words[row + offset]) * float(plan[weights + now_tile - words[row]])
            value /= DECAY_ONE
        else:
            value = np.nan
            row = top
            while row > low:
                row -= width
                if words[row + offset] > 0:
                    value = (now_tile - words[row]) * hop_ms / 1000.0
                    if reduction == NEWEST:
                        break
        slots[plan[window + SLOT]] = value
        window += WINDOW_SIZE


@_compiled
def _roll_up_table(plan: I64, where: int, words: I64, entry: int, as_of_ms: int, lows: I64, slots: F64) -> None:
    hop_ms = plan[where + HOP_MS]
    width = plan[where + WIDTH]
    now_tile = as_of_ms // hop_ms
    base = words[entry + 1]
    top = base + words[entry] * width
    for group in range(plan[where + GROUP_COUNT]):
        at = plan[where + GROUPS_AT] + group * GROUP_SIZE
        newest_tile = now_tile - plan[at + NEWEST_AGE]
        while top > base and words[top - width] > newest_tile:
            top -= width
        row = top
        for bound in range(plan[at + BOUND_COUNT]):
            oldest_tile = now_tile - plan[plan[at + BOUNDS_AT] + bound]
            while row > base and words[row - width] >= oldest_tile:
                row -= width
            lows[bound] = row
        result = plan[at + RESULTS_AT]
        for _ in range(plan[at + RESULT_COUNT]):
            reduction = plan[result + REDUCTION]
            if reduction == SUM:
                _reduce_sums(plan, result, words, top, lows, width, slots)
            elif reduction in (LARGEST, SMALLEST):
                _reduce_extremes(plan, result, words, top, lows, width, slots)
            elif reduction >= NEWEST_OTHER:
                _reduce_beside(plan, result, words, top, lows, width, now_tile, hop_ms, slots)
            else:
                _reduce_others(plan, result, words, top, lows, width, now_tile, hop_ms, slots)
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


@_compiled
def _recollect(plan: I64, where: int, words: I64, entry: int, attributes: I64, slots: F64) -> None:
    """What a memory says about a payment, from what it had seen by then."""
    as_of_ms = attributes[TIME_MS]
    value = attributes[plan[where + MEMORY_ATTRIBUTE]]
    is_there = value != 0 or plan[where + MEMORY_ATTRIBUTE] <= AMOUNT_MINOR
    items = words[entry]
    newest = words[entry + 1]
    stop = newest + 2 * items
    while newest < stop and words[newest + 1] > as_of_ms:
        newest += 2
    same = newest
    while same < stop and words[same] != value:
        same += 2
    for number in range(plan[where + RECOLLECTION_COUNT]):
        at = plan[where + RECOLLECTIONS_AT] + number * RECOLLECTION_SIZE
        kind = plan[at + RECOLLECTION_KIND]
        result = np.nan
        if kind == LAST_VALUE:
            if newest < stop:
                result = words[newest]
        elif kind == IS_NEW:
            if is_there:
                result = 1.0 if same == stop else 0.0
        elif kind == SINCE_SAME:
            if is_there and same < stop:
                result = (as_of_ms - words[same + 1]) / 1000.0
        elif is_there and newest < stop:
            if words[newest] == value:
                result = 0.0
            else:
                hours = max(as_of_ms - words[newest + 1], JOURNEY_MS_MIN) / HOUR_MS
                result = _distance_km(plan, words[newest], value) / hours
        slots[plan[at + RECOLLECTION_SLOT]] = result


@_compiled
def roll_up(plan: I64, entity: int, words: I64, attributes: I64, slots: F64) -> None:
    """What is known of an entity as of a payment, into its part of `slots`. Shape (SLOT_COUNT,).

    The end of `words` is scratch: one number for each bound of the largest group.
    """
    section = plan[ENTITIES_AT + entity]
    tables = plan[section + TABLE_COUNT]
    as_of_ms = attributes[TIME_MS]
    lows = words[plan[section + WORD_COUNT] :]
    for table in range(tables):
        where = plan[section + TABLES_AT] + table * TABLE_SIZE
        _roll_up_table(plan, where, words, DIRECTORY_AT + 2 + 2 * table, as_of_ms, lows, slots)
    for memory in range(plan[section + MEMORY_COUNT]):
        where = plan[section + MEMORIES_AT] + memory * MEMORY_SIZE
        _recollect(plan, where, words, DIRECTORY_AT + 2 + 2 * (tables + memory), attributes, slots)
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
    section = plan[ENTITIES_AT + entity]
    base = plan[section + SLOT_BASE]
    for slot in range(base, base + plan[section + ENTITY_SLOTS]):
        slots[slot] = np.nan


# The vector


@_compiled
def _trailing_zeros(amount: int) -> int:
    """Decimal zeros at the end: 3 for 12,000. 0 for an amount of 0."""
    zeros = 0
    while amount > 0 and amount % 10 == 0:
        amount //= 10
        zeros += 1
    return zeros


@_compiled
def _below_limit(plan: I64, amount: int, limits_at: int, count: int) -> float:
    """How far below the next limit, as a share of it: 0.01 for 99 and a limit of 100; NaN above all limits."""
    for number in range(limits_at, limits_at + count):
        if amount < plan[number]:
            return float((plan[number] - amount) / plan[number])
    return np.nan


@_compiled
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


@_compiled
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


@_compiled
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
                status = unpack(plan, entity, states, bounds[item], bounds[item + 1], words, False)
                if status != OK:
                    return int(status * STATUS_UNIT + item)
            roll_up(plan, entity, words, attributes[row], values)
        assemble(plan, attributes[row], values, out[row])
    return OK


# With reference counting: without it numba makes no arrays, and these have nothing to count.
@njit(cache=True)
def fill_bound_vector(frame: I64) -> int:
    """`fill_vectors` of one payment with every array in one: `frame` holds (address, length) of each, in order.

    numba takes 0.1 µs to look at each array it is called with, and a scoring worker's are always the same.
    """
    plan = carray(_pointer(frame[0]), frame[1], np.int64)
    features = plan[FEATURE_COUNT]
    return fill_vectors(
        plan,
        carray(_pointer(frame[2]), (1, ATTRIBUTE_COUNT), np.int64),
        carray(_pointer(frame[4]), frame[5], np.uint8),
        carray(_pointer(frame[6]), frame[7], np.uint8),
        carray(_pointer(frame[8]), frame[9], np.int64),
        carray(_pointer(frame[10]), frame[11], np.int64),
        carray(_pointer(frame[12]), frame[13], np.float64),
        carray(_pointer(frame[14]), (1, features), np.float32),
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
            status = unpack(plan, entity, states, bounds[group], bounds[group + 1], words, True)
            if status != OK:
                return status * STATUS_UNIT + group
        for event in range(groups[group], groups[group + 1]):
            applied[event] = 0
            if source[event] >= 0:
                news = advance_source(words, source[event], offset[event])
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
def migrate(plan: I64, entity: int, translation: I64, numbers: I64, count: int, words: I64) -> int:
    """Fill `words` from the decoded numbers of a profile of another shape. Returns OK or DAMAGED.

    `translation` (features/shape.py): how many tables and memories the old shape has; then for each old table its
    width, the table it becomes (-1: dropped), how many columns go over, and for each the old and the new offset and
    1 if labels change it; then for each old memory the one it becomes (-1: dropped).
    """
    section = plan[ENTITIES_AT + entity]
    clear(plan, entity, words)
    tables, memories = translation[0], translation[1]
    at = 4 + tables + memories
    if count < at:
        return DAMAGED
    words[FIRST_MS] = numbers[0]
    words[LAST_MS] = numbers[0] + numbers[1]
    words[NEWEST_MS] = numbers[0] + numbers[1] + numbers[2]
    step = 2
    for table in range(tables):
        width, target, columns = translation[step], translation[step + 1], translation[step + 2]
        step += 3
        rows = numbers[4 + table]
        # Looked at before it is multiplied: what is damaged may be too large for that.
        if not 0 <= rows <= count or at + rows * width > count:
            return DAMAGED
        if target >= 0:
            where = plan[section + TABLES_AT] + target * TABLE_SIZE
            entry = DIRECTORY_AT + 2 + 2 * target
            oldest = words[NEWEST_MS] // plan[where + HOP_MS] - plan[where + CAPACITY] + 1
            tile = np.int64(0)
            for number in range(rows):
                tile += numbers[at + number * width]
                if tile < oldest:
                    continue
                if words[entry] == plan[where + CAPACITY]:
                    return DAMAGED
                row = _row_of_tile(plan, where, words, entry, words[entry], tile)
                for column in range(columns):
                    value = numbers[at + number * width + translation[step + 3 * column]]
                    if translation[step + 3 * column + 2]:
                        value = ((value >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(value & 1)
                    words[row + translation[step + 3 * column + 1]] = value
        step += 3 * columns
        at += rows * width
    for memory in range(memories):
        target = translation[step + memory]
        items = numbers[4 + tables + memory]
        if not 0 <= items <= count or at + 2 * items > count:
            return DAMAGED
        seen = words[NEWEST_MS]
        for number in range(items):
            seen -= numbers[at + 2 * number + 1]
            if target >= 0:
                where = plan[section + MEMORIES_AT] + target * MEMORY_SIZE
                entry = DIRECTORY_AT + 2 + 2 * (plan[section + TABLE_COUNT] + target)
                _remember(plan, where, words, entry, numbers[at + 2 * number], seen)
        at += 2 * items
    sources = numbers[3]
    if not 0 <= sources <= SOURCES_MAX or at + 2 * sources != count:
        return DAMAGED
    for number in range(sources):
        advance_source(words, numbers[at + 2 * number], numbers[at + 2 * number + 1])
    return OK
