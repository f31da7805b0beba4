"""The one implementation of profiles: update, roll-up, vector. Compiled by numba, used by everyone.

A profile in working form is a flat int64 array ("words", laid out in features/plan.py): per hop a table of
tiles in ascending order, each row the tile's number (time // hop) and its measures. Only tiles that hold
something exist. In stored form ("packed") the same numbers are variable-length integers:

    byte     LAYOUT_VERSION
    4 bytes  the entity's state digest, big endian
    varints  source count, then (source id, offset) each, ascending by id
             first payment ms; last and newest event, each relative to the number before it (0: none)
             per table: tile count, then per tile its number (relative to the tile before) and its measures

1. `update` finds the tile of an event in each table and adds to it. All measures commute, and a table is cut
   by the newest event alone, so the same events in any order give the same bytes.
2. `roll_up` sums the tiles of each window as of a moment into slots.
3. `assemble` turns request values and slots into the float32 vector.
4. `apply_events` (stream, training, replay) and `fill_vectors` (scoring) are loops over these three.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Every number the compiled code depends on stands in this file: numba's cache looks at no other.
# Positions in the header, and where the entities' positions start.
ENTITY_COUNT, SLOT_COUNT, DERIVED_COUNT, DERIVED_AT, FEATURE_COUNT, FEATURES_AT, ENTITIES_AT = range(7)
# Positions in an entity's section.
DIGEST, TABLE_COUNT, WORD_COUNT, SLOT_BASE, WINDOW_TOTAL, TABLES_AT = range(6)
ENTITY_SIZE = 6
# Positions in a table's section.
HOP_MS, CAPACITY, COLUMN_COUNT, BASE, COLUMNS_AT, WINDOWS_AT, WINDOW_COUNT = range(7)
TABLE_SIZE = 7
# Positions in a window's section.
NEWEST_AGE, OLDEST_AGE, COLUMN, SLOT = range(4)
WINDOW_SIZE = 4
DERIVED_SIZE = 3
DIVIDE = 0

# A profile's words: first and last payment, newest event of any kind, how many sources; then the sources as
# (id, offset) pairs; then how many tiles each table holds; then the tables.
FIRST_MS, LAST_MS, NEWEST_MS, SOURCE_COUNT, SOURCES_AT = range(5)
# One profile hears from every partition of `payments` and `outcomes`; 128 allows 64 of each.
SOURCES_MAX = 128
TILE_COUNTS_AT = SOURCES_AT + 2 * SOURCES_MAX

LAYOUT_VERSION = 1

# Kinds of events.
PAYMENT, LABEL = 0, 1
# Request values, in the order of features.declare.RequestValue.
REQUEST_VALUE_COUNT = 4
# What a request row holds.
REQUEST_TIME_MS, REQUEST_AMOUNT, REQUEST_COLUMNS = 0, 1, 2
# Measures, in the order of features.declare.Measure.
COUNT, AMOUNT_SUM, AMOUNT_MAX, FRAUD_COUNT = 0, 1, 2, 3
# Whether an entity takes part in a payment.
ABSENT, UNKNOWN, KNOWN = 0, 1, 2
# What unpacking can say.
OK, WRONG_VERSION, WRONG_DIGEST, TRUNCATED, TOO_MANY_SOURCES = 0, 1, 2, 3, 4

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
# 1970-01-01 was a Thursday: day 0 is weekday 3 of a week that starts on Monday.
EPOCH_WEEKDAY = 3

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]


@njit(cache=True, inline="always")
def _put_varint(out: U8, position: int, value: int) -> int:
    while value >= 128:
        out[position] = (value & 127) | 128
        value >>= 7
        position += 1
    out[position] = value
    return position + 1


@njit(cache=True)
def _get_varint(data: U8, position: int, end: int) -> tuple[np.int64, int]:
    """Value and next position; position -1 when the data ends first or the number is over 63 bits."""
    value = np.int64(0)
    shift = 0
    while position < end and shift < 63:
        byte = np.int64(data[position])
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    return np.int64(0), -1


@njit(cache=True)
def clear(plan: I64, entity: int, words: I64) -> None:
    """Make `words` the profile of an entity nothing is known of."""
    words[FIRST_MS] = 0
    words[LAST_MS] = 0
    words[NEWEST_MS] = 0
    words[SOURCE_COUNT] = 0
    section = plan[ENTITIES_AT + entity]
    for table in range(plan[section + TABLE_COUNT]):
        words[TILE_COUNTS_AT + table] = 0


@njit(cache=True)
def pack(plan: I64, entity: int, words: I64, out: U8, position: int) -> int:
    """Write the stored form from `position` on; returns where it ends. `out` must be large enough."""
    section = plan[ENTITIES_AT + entity]
    digest = plan[section + DIGEST]
    out[position] = LAYOUT_VERSION
    for byte in range(4):
        out[position + 1 + byte] = (digest >> (24 - 8 * byte)) & 255
    position += 5
    position = _put_varint(out, position, words[SOURCE_COUNT])
    for source in range(words[SOURCE_COUNT]):
        position = _put_varint(out, position, words[SOURCES_AT + 2 * source])
        position = _put_varint(out, position, words[SOURCES_AT + 2 * source + 1])
    position = _put_varint(out, position, words[FIRST_MS])
    position = _put_varint(out, position, words[LAST_MS] - words[FIRST_MS])
    # A label can be newer than the last payment, never older than the newest event.
    position = _put_varint(out, position, words[NEWEST_MS] - words[LAST_MS])
    for table in range(plan[section + TABLE_COUNT]):
        at = plan[section + TABLES_AT] + table * TABLE_SIZE
        width = 1 + plan[at + COLUMN_COUNT]
        count = words[TILE_COUNTS_AT + table]
        position = _put_varint(out, position, count)
        previous = np.int64(0)
        row = plan[at + BASE]
        for _ in range(count):
            position = _put_varint(out, position, words[row] - previous)
            previous = words[row]
            for column in range(1, width):
                # Zigzag: a correction may take more away than has arrived.
                value = words[row + column]
                position = _put_varint(out, position, (value << 1) ^ (value >> 63))
            row += width
    return position


@njit(cache=True)
def unpack(plan: I64, entity: int, data: U8, start: int, end: int, words: I64) -> int:
    """Read the stored form in data[start:end] into `words`. Returns OK or what is wrong with it.

    What it takes for OK is safe to update: sources ascend, tiles ascend and lie within their table's reach of
    the newest event, so none of them can have more rows than there is room for.
    """
    section = plan[ENTITIES_AT + entity]
    if end - start < 5:
        return TRUNCATED
    if data[start] != LAYOUT_VERSION:
        return WRONG_VERSION
    digest = np.int64(0)
    for byte in range(4):
        digest = (digest << 8) | np.int64(data[start + 1 + byte])
    if digest != plan[section + DIGEST]:
        return WRONG_DIGEST
    sources, position = _get_varint(data, start + 5, end)
    if position < 0:
        return TRUNCATED
    if sources > SOURCES_MAX:
        return TOO_MANY_SOURCES
    words[SOURCE_COUNT] = sources
    previous = np.int64(-1)
    for number in range(2 * sources):
        value, position = _get_varint(data, position, end)
        if position < 0:
            return TRUNCATED
        words[SOURCES_AT + number] = value
        if number % 2 == 0:
            if value <= previous:
                return TRUNCATED
            previous = value
    previous = np.int64(0)
    for field in range(3):
        value, position = _get_varint(data, position, end)
        previous += value
        # Two numbers of 63 bits can add up to one that is not.
        if position < 0 or previous < 0:
            return TRUNCATED
        words[field] = previous
    for table in range(plan[section + TABLE_COUNT]):
        at = plan[section + TABLES_AT] + table * TABLE_SIZE
        width = 1 + plan[at + COLUMN_COUNT]
        count, position = _get_varint(data, position, end)
        if position < 0 or count > plan[at + CAPACITY]:
            return TRUNCATED
        words[TILE_COUNTS_AT + table] = count
        newest_tile = words[NEWEST_MS] // plan[at + HOP_MS]
        below = newest_tile - plan[at + CAPACITY]
        previous = np.int64(0)
        row = plan[at + BASE]
        for _ in range(count):
            value, position = _get_varint(data, position, end)
            previous += value
            if position < 0 or not below < previous <= newest_tile:
                return TRUNCATED
            below = previous
            words[row] = previous
            for column in range(1, width):
                value, position = _get_varint(data, position, end)
                if position < 0:
                    return TRUNCATED
                words[row + column] = (value >> 1) ^ -(value & 1)
            row += width
    return OK if position == end else TRUNCATED


@njit(cache=True)
def advance_source(words: I64, source: int, offset: int) -> int:
    """Note that `offset` of `source` is contained. 1 if it is news, 0 if it was contained, -1 if no room."""
    count = words[SOURCE_COUNT]
    place = count
    while place > 0 and words[SOURCES_AT + 2 * (place - 1)] >= source:
        place -= 1
    at = SOURCES_AT + 2 * place
    if place < count and words[at] == source:
        if offset <= words[at + 1]:
            return 0
        words[at + 1] = offset
        return 1
    if count == SOURCES_MAX:
        return -1
    for number in range(SOURCES_AT + 2 * count - 1, at - 1, -1):
        words[number + 2] = words[number]
    words[at] = source
    words[at + 1] = offset
    words[SOURCE_COUNT] = count + 1
    return 1


@njit(cache=True)
def _drop_expired(plan: I64, at: int, words: I64, table: int, newest_tile: int) -> int:
    """Forget the tiles that no window can reach any more; returns how many are left."""
    width = 1 + plan[at + COLUMN_COUNT]
    base = plan[at + BASE]
    count = words[TILE_COUNTS_AT + table]
    oldest = newest_tile - plan[at + CAPACITY] + 1
    expired = 0
    while expired < count and words[base + expired * width] < oldest:
        expired += 1
    if expired > 0:
        kept = (count - expired) * width
        shift = expired * width
        for number in range(base, base + kept):
            words[number] = words[number + shift]
        count -= expired
        words[TILE_COUNTS_AT + table] = count
    return int(count)


@njit(cache=True)
def _row_of_tile(plan: I64, at: int, words: I64, table: int, count: int, tile: int) -> int:
    """The row of a tile, made if there is none. There is room: expired tiles have been dropped."""
    width = 1 + plan[at + COLUMN_COUNT]
    base = plan[at + BASE]
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
    words[TILE_COUNTS_AT + table] = count + 1
    return int(row)


@njit(cache=True)
def update(plan: I64, entity: int, words: I64, kind: int, time_ms: int, amount: int, weight: int) -> int:
    """Add one event to a profile. Returns how many tables it came too late for.

    `amount` is in minor units of the reference currency; `weight` is 1, or for a label +1 fraud, -1 fraud
    taken back, 0 genuine. `time_ms` is the payment's time for both kinds, above 0 (0 stands for no payment).
    """
    if kind == PAYMENT:
        if words[FIRST_MS] == 0 or time_ms < words[FIRST_MS]:
            words[FIRST_MS] = time_ms
        words[LAST_MS] = max(words[LAST_MS], time_ms)
    elif weight == 0:
        return 0
    words[NEWEST_MS] = max(words[NEWEST_MS], time_ms)
    late = 0
    section = plan[ENTITIES_AT + entity]
    for table in range(plan[section + TABLE_COUNT]):
        at = plan[section + TABLES_AT] + table * TABLE_SIZE
        hop_ms = plan[at + HOP_MS]
        tile = time_ms // hop_ms
        newest_tile = words[NEWEST_MS] // hop_ms
        count = _drop_expired(plan, at, words, table, newest_tile)
        columns_at = plan[at + COLUMNS_AT]
        columns = plan[at + COLUMN_COUNT]
        # FRAUD_COUNT is the last measure, so a table that has it has it last. For any other a label that comes
        # days later is not late: it has no business there.
        if kind == LABEL and plan[columns_at + columns - 1] != FRAUD_COUNT:
            continue
        if tile <= newest_tile - plan[at + CAPACITY]:
            late += 1
            continue
        if kind == LABEL:
            words[_row_of_tile(plan, at, words, table, count, tile) + columns] += weight
            continue
        row = _row_of_tile(plan, at, words, table, count, tile)
        for column in range(columns):
            measure = plan[columns_at + column]
            if measure == COUNT:
                words[row + 1 + column] += 1
            elif measure == AMOUNT_SUM:
                words[row + 1 + column] += amount
            elif measure == AMOUNT_MAX:
                words[row + 1 + column] = max(words[row + 1 + column], amount)
    return late


@njit(cache=True)
def roll_up(plan: I64, entity: int, words: I64, as_of_ms: int, slots: F64) -> None:
    """What is known of an entity as of a moment, into its part of `slots`. Shape (SLOT_COUNT,)."""
    section = plan[ENTITIES_AT + entity]
    base = plan[section + SLOT_BASE]
    for table in range(plan[section + TABLE_COUNT]):
        at = plan[section + TABLES_AT] + table * TABLE_SIZE
        columns_at = plan[at + COLUMNS_AT]
        windows_at = plan[at + WINDOWS_AT]
        windows_end = windows_at + WINDOW_SIZE * plan[at + WINDOW_COUNT]
        for window in range(windows_at, windows_end, WINDOW_SIZE):
            is_max = plan[columns_at + plan[window + COLUMN]] == AMOUNT_MAX
            slots[plan[window + SLOT]] = np.nan if is_max else 0.0
        width = 1 + plan[at + COLUMN_COUNT]
        row = plan[at + BASE]
        now_tile = as_of_ms // plan[at + HOP_MS]
        for _ in range(words[TILE_COUNTS_AT + table]):
            age = now_tile - words[row]
            if age < 0:
                break
            for window in range(windows_at, windows_end, WINDOW_SIZE):
                if plan[window + NEWEST_AGE] <= age <= plan[window + OLDEST_AGE]:
                    slot = plan[window + SLOT]
                    column = plan[window + COLUMN]
                    value = float(words[row + 1 + column])
                    if plan[columns_at + column] != AMOUNT_MAX:
                        slots[slot] += value
                    elif not value <= slots[slot]:
                        slots[slot] = value
            row += width
    recency = base + plan[section + WINDOW_TOTAL]
    if words[FIRST_MS] == 0:
        slots[recency] = np.nan
        slots[recency + 1] = np.nan
    else:
        slots[recency] = max(0, as_of_ms - words[LAST_MS]) / 1000.0
        slots[recency + 1] = max(0, as_of_ms - words[FIRST_MS]) / 1000.0


@njit(cache=True)
def clear_slots(plan: I64, entity: int, slots: F64) -> None:
    """The entity takes no part in the payment: everything about it is missing."""
    section = plan[ENTITIES_AT + entity]
    base = plan[section + SLOT_BASE]
    # Two recencies follow the windows.
    for slot in range(base, base + plan[section + WINDOW_TOTAL] + 2):
        slots[slot] = np.nan


@njit(cache=True)
def assemble(plan: I64, request: I64, slots: F64, values: F64, out: F32) -> None:
    """Request values and slots to the vector. `out`: shape (FEATURE_COUNT,), overwritten, missing is NaN."""
    time_ms = request[REQUEST_TIME_MS]
    hour = (time_ms % DAY_MS) // HOUR_MS
    weekday = (time_ms // DAY_MS + EPOCH_WEEKDAY) % 7
    values[0] = request[REQUEST_AMOUNT]
    values[1] = hour
    values[2] = 1.0 if hour <= 6 else 0.0
    values[3] = 1.0 if weekday >= 5 else 0.0
    position = REQUEST_VALUE_COUNT
    for slot in range(plan[SLOT_COUNT]):
        values[position] = slots[slot]
        position += 1
    at = plan[DERIVED_AT]
    for _ in range(plan[DERIVED_COUNT]):
        denominator = values[plan[at + 2]]
        values[position] = values[plan[at + 1]] / denominator if denominator != 0.0 else np.nan
        position += 1
        at += DERIVED_SIZE
    at = plan[FEATURES_AT]
    for feature in range(plan[FEATURE_COUNT]):
        out[feature] = np.float32(values[plan[at + feature]])


@njit(cache=True)
def assemble_rows(plan: I64, requests: I64, slots: F64, values: F64, out: F32) -> None:
    """`assemble` for each row. Shapes (rows, REQUEST_COLUMNS), (rows, SLOT_COUNT), …, (rows, FEATURE_COUNT)."""
    for row in range(len(requests)):
        assemble(plan, requests[row], slots[row], values, out[row])


@njit(cache=True)
def fill_vectors(
    plan: I64,
    requests: I64,
    presence: U8,
    states: U8,
    bounds: I64,
    words: I64,
    slots: F64,
    values: F64,
    out: F32,
) -> int:
    """Vectors of payments from packed profiles, as scoring has them.

    `presence` and the profile bounds have one entry for each payment and entity, payments outermost:
    states[bounds[i] : bounds[i + 1]] is the i-th. Returns OK, or what is wrong with a state times 2**32
    plus the entity it belongs to.
    """
    entities = plan[ENTITY_COUNT]
    for row in range(len(requests)):
        for entity in range(entities):
            item = row * entities + entity
            if presence[item] == ABSENT:
                clear_slots(plan, entity, slots)
                continue
            if presence[item] == UNKNOWN:
                clear(plan, entity, words)
            else:
                status = unpack(plan, entity, states, bounds[item], bounds[item + 1], words)
                if status != OK:
                    return status * 2**32 + entity
            roll_up(plan, entity, words, requests[row, REQUEST_TIME_MS], slots)
        assemble(plan, requests[row], slots, values, out[row])
    return OK


@njit(cache=True)
def apply_events(
    plan: I64,
    entity: int,
    states: U8,
    bounds: I64,
    groups: I64,
    kind: U8,
    time_ms: I64,
    amount: I64,
    weight: I64,
    source: I64,
    offset: I64,
    row: I64,
    words: I64,
    slots: F64,
    out: U8,
    out_bounds: I64,
    applied: U8,
    late: I64,
) -> int:
    """Update the profiles of one kind of entity, each by its own events in order.

    Group g is one entity: its packed profile is states[bounds[g] : bounds[g + 1]] (empty: unknown) and its
    events are groups[g] to groups[g + 1]. An event whose `offset` of its `source` the profile contains already
    changes nothing and is not `applied`; source -1 is not checked. Where row[i] >= 0, slots[row[i]] is filled
    with what was known just before event i. `late[0]` grows by the
    events that came too late for at least one table.
    The new packed profiles are out[out_bounds[g] : out_bounds[g + 1]].
    Returns OK, or what is wrong with a state times 2**32 plus its group.
    """
    position = 0
    out_bounds[0] = 0
    for group in range(len(groups) - 1):
        if bounds[group] == bounds[group + 1]:
            clear(plan, entity, words)
        else:
            status = unpack(plan, entity, states, bounds[group], bounds[group + 1], words)
            if status != OK:
                return status * 2**32 + group
        for event in range(groups[group], groups[group + 1]):
            if source[event] >= 0:
                news = advance_source(words, source[event], offset[event])
                if news < 0:
                    return TOO_MANY_SOURCES * 2**32 + group
                if news == 0:
                    applied[event] = 0
                    continue
            if row[event] >= 0:
                roll_up(plan, entity, words, time_ms[event], slots[row[event]])
            applied[event] = 1
            missed = update(plan, entity, words, kind[event], time_ms[event], amount[event], weight[event])
            late[0] += 1 if missed > 0 else 0
        position = pack(plan, entity, words, out, position)
        out_bounds[group + 1] = position
    return OK
