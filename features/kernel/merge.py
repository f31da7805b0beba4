"""Merges profiles of one entity, each of a part of its events: the result is the profile of all events, to the bit.

    merge(fold(a), fold(b)) == fold(a + b)        for any two lists of different events, in any order

It can be exact because a profile holds whole numbers only. Floats arise when a payment reads a profile (rollup.py).

    kept                                  of two profiles
    first payment; last, newest event     the earlier; the later
    offset of a source partition          the larger one
    counts, sums, sums of squares         the sum, tile by tile
    largest, smallest                     the larger one, the smaller one
    bitmaps of distinct values            the bits of both
    latest values, latest payments        the first ones of both lists together, in the order of the memory

A tile that is too far from the newest event of both is dropped, as `update` drops it. For example, a table of two hours
keeps an event of yesterday in fold(b). If `a` has an event of today, neither merge nor fold(a + b) keeps that tile.
"""

from __future__ import annotations

from paywarden.features.kernel.codec import clear, pack, unpack
from paywarden.features.kernel.latest_payments import insert
from paywarden.features.kernel.layout import (
    AMOUNT_MAX,
    AMOUNT_MIN,
    DISTINCT_BITS,
    DISTINCT_VALUES,
    FIRST_MS,
    I64,
    LAST_MS,
    LENGTHS_AT,
    NEWEST_MS,
    NUMBER_MAX,
    NUMBER_MIN,
    OK,
    SOURCES_MAX,
    STATUS_UNIT,
    TOO_MANY_SOURCES,
    U8,
)
from paywarden.features.kernel.numbers import number_kept
from paywarden.features.kernel.plan_schema import (
    COLUMN,
    COLUMN_SIZE,
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
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import advance_source, drop_expired, remember, row_of_tile


@compiled(releases_gil=True)
def merge_packed(plan: I64, entity: int, data: U8, bounds: I64, words: I64, other: I64, out: U8) -> int:
    """Write the merged form of packed profiles to `out`; returns its size, or minus a status and a profile's number.

    Profile i is data[bounds[i] : bounds[i + 1]]. `words` and `other` are scratch. `out` has the engine's largest size.
    """
    clear(plan, entity, words)
    for number in range(len(bounds) - 1):
        status = unpack(plan, entity, data, bounds[number], bounds[number + 1], other)
        if status == OK and not _add_profile(plan, entity, words, other):
            status = TOO_MANY_SOURCES
        if status != OK:
            return int(-status * STATUS_UNIT - number)
    return int(pack(plan, entity, words, out, 0))


@compiled()
def _add_profile(plan: I64, entity: int, words: I64, other: I64) -> bool:
    """Add all that `other` holds to `words`. False if there is no room for another source."""
    section = entity_at(plan, entity)
    tables = plan[section + ENTITY.table_count]
    if other[FIRST_MS] > 0 and (words[FIRST_MS] == 0 or other[FIRST_MS] < words[FIRST_MS]):
        words[FIRST_MS] = other[FIRST_MS]
    words[LAST_MS] = max(words[LAST_MS], other[LAST_MS])
    words[NEWEST_MS] = max(words[NEWEST_MS], other[NEWEST_MS])
    for table in range(tables):
        _add_table(plan, table_at(plan, section, table), table_length_at(table), words, other)
    for memory in range(plan[section + ENTITY.memory_count]):
        _add_memory(plan, memory_at(plan, section, memory), memory_length_at(tables, memory), words, other)
    sources_at = plan[section + ENTITY.sources_at]
    for at in range(sources_at, sources_at + other[LENGTHS_AT]):
        if advance_source(plan, entity, words, other[at], other[at + SOURCES_MAX]) < 0:
            return False
    return True


@inlined
def _add_table(plan: I64, where: int, length: int, words: I64, other: I64) -> None:
    room, tiles_at = plan[where + TABLE.capacity], plan[where + TABLE.tiles_at]
    newest_tile = words[NEWEST_MS] // plan[where + TABLE.hop_ms]
    drop_expired(plan, where, words, length, newest_tile)
    for other_row in range(other[length]):
        tile = other[tiles_at + other_row]
        if tile <= newest_tile - room:
            continue
        row = row_of_tile(plan, where, words, length, words[length], tile)
        for number in range(plan[where + TABLE.column_count]):
            column = plan[where + TABLE.columns_at] + number * COLUMN_SIZE
            for part in range(plan[column + COLUMN.parts]):
                at = plan[column + COLUMN.words_at] + part * room
                words[at + row] = _both(plan[column + COLUMN.measure], words[at + row], other[at + other_row])


@inlined
def _both(measure: int, first: int, second: int) -> int:
    """Returns the value of a measure from its values over two parts of a tile's events. 0 is that of no event."""
    if measure == DISTINCT_BITS:
        return first | second
    if measure == AMOUNT_MAX:
        return max(first, second)
    if measure == AMOUNT_MIN or NUMBER_MAX <= measure <= NUMBER_MIN:
        if first == 0 or second == 0:
            return first + second
        if measure == AMOUNT_MIN:
            return min(first, second)
        is_larger = number_kept(first) > number_kept(second)
        return first if is_larger == (measure == NUMBER_MAX) else second
    return first + second


@inlined
def _add_memory(plan: I64, where: int, length: int, words: I64, other: I64) -> None:
    values_at, times_at = plan[where + MEMORY.values_at], memory_times_at(plan, where)
    for item in range(other[length]):
        time_ms = other[times_at + item]
        if plan[where + MEMORY.kind] == DISTINCT_VALUES:
            remember(plan, where, words, length, other[values_at + item], time_ms)
        else:
            insert(plan, where, words, length, other, values_at + item, plan[where + MEMORY.capacity], time_ms)
