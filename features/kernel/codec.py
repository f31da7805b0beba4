"""Profiles at rest and at work: `pack` writes the stored form, `unpack` reads it.

A profile at work is a flat int64 array ("words"): the times of its first and last payment and of its newest event, the
length of each section, and the sections, each at the place that the plan gives it. A section is a table of columns, and
a column stands in one piece: the part within a window is a slice.

    sources     up to which offset the profile contains each source partition: two columns, source (ascending) and
                offset
    tables      one for each hop of payments, and one for each hop of labels (labels are rare): the tiles' numbers (time
                // hop, ascending), then a column for each word of each measure; only tiles with events have a row
    memories    the latest distinct values of an attribute: two columns, the value and when it was last seen, newest
                first; then fields of the latest payments: a column for each, and the times (latest_payments.py)

In the stored form ("packed") the same columns follow each other. All numbers of a column have one width: as many whole
bytes as the largest of them needs. Therefore reading one number never depends on the previous one:

    byte      LAYOUT_VERSION
    4 bytes   the entity's shape digest, little endian (so are all numbers here)
    2 bytes   length of the shape, then the shape: hops, measures and memories, read only to migrate
    (features/profiles/shape.py)
    nibbles   the width in bytes of each column, 0 (it is all zeros) to 8, two to a byte, the lower nibble first
    bytes     the columns: first payment ms; last and newest event, each relative to the number before it (three columns
              of one number); the lengths of the sections, as one column: sources, tables, memories; then for each
              table the tiles as how many hops they are older than the newest event's, and the measures; for each
              memory the values, and the times relative to the one before, the first to the newest event; sources;
              offsets
    8 bytes   the checksum of all bytes before it (features/kernel/toolkit/checksum.py)

Example: a card made its first payment at time 1,700,000,000,000 ms and its last 60,000 ms later; that one is its newest
event. Its only table has a hop of one hour and one measure, the count; both payments lie in one tile. It has no memory,
and no sources:

    06                       LAYOUT_VERSION
    8D AA 3A 04              digest
    06 00                    the shape has 6 bytes
    01 90 1C 01 00 00        the shape: 1 table, hop 3600 s, 1 column, which is the count; no memories
    26 10 10 00              widths: 6 (first), 2 (last), 0 (newest), 1 (lengths), 0 (age), 1 (count), 0, 0 (sources)
    00 68 E5 CF 8B 01        first payment, ms
    60 EA                    last payment: 60,000 ms after the first
    00 01                    lengths: 0 sources, 1 tile
    02                       count of the tile, whose age of 0 hops takes no bytes
    57 2D 4D F2 5F EC 03 91  checksum
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.latest_payments import are_in_order
from paywarden.features.kernel.layout import (
    CHECKSUM_BYTES,
    DAMAGED,
    DISTINCT_VALUES,
    FIRST_MS,
    I64,
    LABEL,
    LAST_MS,
    LAYOUT_VERSION,
    LENGTHS_AT,
    NEWEST_MS,
    OK,
    SHAPE_BYTES_AT,
    SLACK_BYTES,
    SOURCES_MAX,
    TIME_MS_MAX,
    TOO_MANY_SOURCES,
    U8,
    WRONG_DIGEST,
    WRONG_VERSION,
)
from paywarden.features.kernel.plan_schema import (
    ENTITY,
    MEMORY,
    TABLE,
    entity_at,
    memory_at,
    memory_length_at,
    memory_times_at,
    table_at,
    table_length_at,
)
from paywarden.features.kernel.toolkit.checksum import checksum
from paywarden.features.kernel.toolkit.columns import read_columns, width_of, write_column
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import load_word, store_word
from paywarden.features.kernel.toolkit.varint import unzigzag, zigzag

# Masks the bytes before the shape, out of the first eight.
_HEAD_MASK = (1 << 8 * SHAPE_BYTES_AT) - 1
# The age of a tile is below its table's capacity, so four bytes are plenty. Read as an int64 they are never negative.
_AGE_WIDTH_MAX = 4


@compiled()
def clear(plan: I64, entity: int, words: I64) -> None:
    """Make `words` the profile of an unknown entity."""
    section = entity_at(plan, entity)
    for number in range(LENGTHS_AT + 1 + plan[section + ENTITY.table_count] + plan[section + ENTITY.memory_count]):
        words[number] = 0


@compiled()
def packed_bytes_max(plan: I64, entity: int, words: I64) -> int:
    """Returns the number of bytes that packing these words may need."""
    section = entity_at(plan, entity)
    tables, memories = plan[section + ENTITY.table_count], plan[section + ENTITY.memory_count]
    count = 5 + tables + memories + 2 * words[LENGTHS_AT]
    for table in range(tables):
        width = plan[table_at(plan, section, table) + TABLE.width]
        count += words[table_length_at(table)] * width
    for memory in range(memories):
        width = plan[memory_at(plan, section, memory) + MEMORY.width]
        count += (1 + width) * words[memory_length_at(tables, memory)]
    widths_size = (plan[section + ENTITY.stored_columns] + 1) >> 1
    head_size = SHAPE_BYTES_AT + plan[section + ENTITY.shape_size] + widths_size
    return int(head_size + 8 * count + CHECKSUM_BYTES + SLACK_BYTES)


@compiled(releases_gil=True)
def pack(plan: I64, entity: int, words: I64, out: U8, position: int) -> int:
    """Write the stored form at `position`; returns the end position. `out` must have `packed_bytes_max` of room."""
    section = entity_at(plan, entity)
    start = position
    tables, memories = plan[section + ENTITY.table_count], plan[section + ENTITY.memory_count]
    shape_size, shape_at = plan[section + ENTITY.shape_size], plan[section + ENTITY.shape_at]
    store_word(out, position, LAYOUT_VERSION | plan[section + ENTITY.digest] << 8 | shape_size << 40)
    position += SHAPE_BYTES_AT
    for byte in range(shape_size):
        out[position + byte] = plan[shape_at + byte]
    widths = position + shape_size
    position = widths + ((plan[section + ENTITY.stored_columns] + 1) >> 1)
    # Numbers that are stored differently than they are kept in memory go through the scratch.
    scratch = plan[section + ENTITY.scratch_at]

    words[scratch] = words[FIRST_MS]
    words[scratch + 1] = words[LAST_MS] - words[FIRST_MS]
    # A label can be newer than the last payment. Nothing is newer than the newest event.
    words[scratch + 2] = words[NEWEST_MS] - words[LAST_MS]
    for field in range(3):
        position = write_column(words, scratch + field, 1, out, widths, field, position)
    position = write_column(words, LENGTHS_AT, 1 + tables + memories, out, widths, 3, position)
    column = 4
    for table in range(tables):
        position = _pack_table(
            plan,
            table_at(plan, section, table),
            words,
            words[table_length_at(table)],
            scratch,
            out,
            widths,
            column,
            position,
        )
        column += plan[table_at(plan, section, table) + TABLE.width]
    for memory in range(memories):
        where = memory_at(plan, section, memory)
        items = words[memory_length_at(tables, memory)]
        times_at = memory_times_at(plan, where)
        for values_at in range(plan[where + MEMORY.values_at], times_at, plan[where + MEMORY.capacity]):
            position = write_column(words, values_at, items, out, widths, column, position)
            column += 1
        previous = words[NEWEST_MS]
        for item in range(items):
            words[scratch + item] = previous - words[times_at + item]
            previous = words[times_at + item]
        position = write_column(words, scratch, items, out, widths, column, position)
        column += 1
    for at in (plan[section + ENTITY.sources_at], plan[section + ENTITY.sources_at] + SOURCES_MAX):
        position = write_column(words, at, words[LENGTHS_AT], out, widths, column, position)
        column += 1
    # The checksum reads up to eight bytes at a time, and none of those behind the profile counts.
    store_word(out, position, checksum(out, start, position))
    return position + CHECKSUM_BYTES


@inlined
def _pack_table(
    plan: I64, where: int, words: I64, rows: int, scratch: int, out: U8, widths: int, column: int, position: int
) -> int:
    tiles_at, step = plan[where + TABLE.tiles_at], plan[where + TABLE.capacity]
    newest_tile = words[NEWEST_MS] // plan[where + TABLE.hop_ms]
    tiles, ages = words[tiles_at : tiles_at + rows], words[scratch : scratch + rows]
    for row in range(rows):
        ages[row] = newest_tile - tiles[row]
    position = write_column(words, scratch, rows, out, widths, column, position)
    is_signed = plan[where + TABLE.kind] == LABEL
    for number in range(1, plan[where + TABLE.width]):
        at = tiles_at + number * step
        if is_signed:
            # Zigzag, since the sum can be negative: a correction may take away more than has arrived.
            values, coded = words[at : at + rows], words[scratch : scratch + rows]
            for row in range(rows):
                coded[row] = zigzag(values[row])
            at = scratch
        position = write_column(words, at, rows, out, widths, column + number, position)
    return position


@inlined
def unpack(plan: I64, entity: int, data: U8, start: int, end: int, words: I64) -> int:
    """Read the stored form in data[start:end] into `words`. Returns OK, or the status that says what is wrong.

    After OK the words are safe to update:

    - sources ascend;
    - tiles ascend and lie within their table's reach of the newest event;
    - memories are in order;
    - no section is larger than its room.
    """
    section = entity_at(plan, entity)
    if end - start < 8:
        return DAMAGED
    head = load_word(data, start) & _HEAD_MASK
    version = head & 0xFF
    if version != LAYOUT_VERSION:
        return WRONG_VERSION
    # Checked before anything else is believed, the digest included.
    end -= CHECKSUM_BYTES
    if end - start < SHAPE_BYTES_AT or load_word(data, end) != checksum(data, start, end):
        return DAMAGED
    if head >> 8 != plan[section + ENTITY.digest] | plan[section + ENTITY.shape_size] << 32:
        return DAMAGED if head >> 8 & 0xFFFFFFFF == plan[section + ENTITY.digest] else WRONG_DIGEST
    widths = start + SHAPE_BYTES_AT + plan[section + ENTITY.shape_size]
    columns = plan[section + ENTITY.stored_columns]
    position = widths + ((columns + 1) >> 1)
    if position > end or (columns & 1 and data[position - 1] >> 4 != 0):
        return DAMAGED
    tables, memories = plan[section + ENTITY.table_count], plan[section + ENTITY.memory_count]
    position = read_columns(data, widths, 0, 3, position, end, 1, words, FIRST_MS, 1)
    if position < 0 or not add_up_times(words):
        return DAMAGED
    position = read_columns(data, widths, 3, 1, position, end, 1 + tables + memories, words, LENGTHS_AT, 0)
    if position < 0:
        return DAMAGED
    column = 4
    for table in range(tables):
        where = table_at(plan, section, table)
        rows, width = words[table_length_at(table)], plan[where + TABLE.width]
        room, tiles_at = plan[where + TABLE.capacity], plan[where + TABLE.tiles_at]
        if not 0 <= rows <= room or width_of(data, widths, column) > _AGE_WIDTH_MAX:
            return DAMAGED
        position = read_columns(data, widths, column, width, position, end, rows, words, tiles_at, room)
        if position < 0 or not _take_tiles(words, tiles_at, rows, room, words[NEWEST_MS] // plan[where + TABLE.hop_ms]):
            return DAMAGED
        if plan[where + TABLE.kind] == LABEL:
            for number in range(1, width):
                coded = words[tiles_at + number * room : tiles_at + number * room + rows]
                for row in range(rows):
                    coded[row] = unzigzag(coded[row])
        column += width
    for memory in range(memories):
        where = memory_at(plan, section, memory)
        items, room, values_at, width = (
            words[memory_length_at(tables, memory)],
            plan[where + MEMORY.capacity],
            plan[where + MEMORY.values_at],
            1 + plan[where + MEMORY.width],
        )
        if not 0 <= items <= room:
            return DAMAGED
        position = read_columns(data, widths, column, width, position, end, items, words, values_at, room)
        if position < 0 or not take_times(words, memory_times_at(plan, where), items):
            return DAMAGED
        if plan[where + MEMORY.kind] != DISTINCT_VALUES:
            if not are_in_order(plan, where, words, items):
                return DAMAGED
        elif not _are_distinct(words, values_at, items, room):
            return DAMAGED
        column += width
    sources, sources_at = words[LENGTHS_AT], plan[section + ENTITY.sources_at]
    if sources > SOURCES_MAX:
        return TOO_MANY_SOURCES
    if sources < 0:
        return DAMAGED
    position = read_columns(data, widths, column, 2, position, end, sources, words, sources_at, SOURCES_MAX)
    if position != end:
        return DAMAGED
    previous = np.int64(-1)
    for at in range(sources_at, sources_at + sources):
        if words[at] <= previous or words[at + SOURCES_MAX] < 0:
            return DAMAGED
        previous = words[at]
    return OK


@inlined
def add_up_times(words: I64) -> bool:
    """Turn stored times, each relative to the previous one, into absolute times. False if no clock shows such times."""
    previous = np.int64(0)
    for field in range(3):
        value = words[field]
        # Checked before the addition: the compiler assumes that sums do not overflow.
        if not 0 <= value < TIME_MS_MAX:
            return False
        previous += value
        if previous >= TIME_MS_MAX:
            return False
        words[field] = previous
    return True


@inlined
def _take_tiles(words: I64, at: int, rows: int, room: int, newest_tile: int) -> bool:
    """Turn ages, each 0 to 2**32 - 1, into tile numbers. False if the tiles do not ascend or are too old."""
    tiles = words[at : at + rows]
    for row in range(rows):
        tiles[row] = newest_tile - tiles[row]
    if rows == 0:
        return True
    is_wrong = tiles[0] <= newest_tile - room or tiles[0] < 0
    for row in range(1, rows):
        is_wrong |= tiles[row] <= tiles[row - 1]
    return not is_wrong


@inlined
def take_times(words: I64, times_at: int, items: int) -> bool:
    """Turn a memory's stored times into absolute times. False if they do not descend from the newest event's."""
    seen = words[NEWEST_MS]
    for at in range(times_at, times_at + items):
        before = words[at]
        if before < 0:
            return False
        seen -= before
        if seen <= 0:
            return False
        words[at] = seen
    return True


@inlined
def _are_distinct(words: I64, values_at: int, items: int, room: int) -> bool:
    """Returns whether the values of one time descend, in a memory of distinct values."""
    for at in range(values_at + 1, values_at + items):
        if words[at + room] == words[at + room - 1] and words[at] >= words[at - 1]:
            return False
    return True
