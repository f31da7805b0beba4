"""Computes what a profile knew at the time of a payment: `roll_up` fills the entity's slots.

A window is a run of a table's rows, from `low` to `top` (exclusive). All windows of a group share `top`; `lows` has one
row for each age at which windows end. For example, a table of hops of one hour has the windows 2h and 1d, and a payment
arrives at 15:10:

    row   tile    count
    0     11:00   2           low of 1d: the day reaches back to 15:00 yesterday
    1     13:00   1           low of 2h: it reaches back to 13:00
    2     14:00   3
    3     (end)               top
    count_2h = 3 + 1 = 4      count_1d = 4 + 2 = 6

`roll_up` first finds these rows. Then it goes through each measure from the newest row to the oldest, and writes a
result whenever a window ends. Ages ascend, so each window contains the previous one.
"""

from __future__ import annotations

import math

import numpy as np

from paywarden.features.kernel.latest_payments import recall
from paywarden.features.kernel.layout import (
    COUNT,
    DECAY_ONE,
    DECAYED,
    DISTINCT_VALUES,
    F64,
    FIRST_MS,
    FRAUD_COUNT,
    I64,
    LARGEST,
    LARGEST_NUMBER,
    LAST_MS,
    NEWEST,
    NEWEST_OTHER,
    SMALLEST,
    STREAK,
    STREAK_AGE,
    STREAK_SUM,
    SUM,
    TIME_MS,
    UNION,
)
from paywarden.features.kernel.numbers import number_kept
from paywarden.features.kernel.plan_schema import (
    ENTITY,
    GROUP,
    GROUP_SIZE,
    MEMORY,
    RESULT,
    RESULT_SIZE,
    TABLE,
    WINDOW,
    WINDOW_SIZE,
    entity_at,
    memory_at,
    memory_length_at,
    table_at,
    table_length_at,
)
from paywarden.features.kernel.recollection import recollect
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import bit_count, not_negative


@inlined
def roll_up(plan: I64, entity: int, words: I64, attributes: I64, slots: F64) -> None:
    """Fill an entity's part of `slots`, shape (slots,), with what its profile knew at the time of a payment."""
    section = entity_at(plan, entity)
    tables = plan[section + ENTITY.table_count]
    as_of_ms = attributes[TIME_MS]
    lows = words[plan[section + ENTITY.scratch_at] :]
    for table in range(tables):
        where = table_at(plan, section, table)
        _roll_up_table(plan, where, words, words[table_length_at(table)], as_of_ms, lows, slots)
    for memory in range(plan[section + ENTITY.memory_count]):
        where = memory_at(plan, section, memory)
        items = words[memory_length_at(tables, memory)]
        if plan[where + MEMORY.kind] == DISTINCT_VALUES:
            recollect(plan, where, words, items, attributes, slots)
        else:
            recall(plan, where, words, items, attributes, slots, plan[section + ENTITY.scratch_at])
    recency = plan[section + ENTITY.recency_slot]
    if words[FIRST_MS] == 0:
        slots[recency] = np.nan
        slots[recency + 1] = np.nan
    else:
        slots[recency] = max(0, as_of_ms - words[LAST_MS]) / 1000.0
        slots[recency + 1] = max(0, as_of_ms - words[FIRST_MS]) / 1000.0


@compiled()
def clear_slots(plan: I64, entity: int, slots: F64) -> None:
    """Fill an entity's slots with NaN, for a payment that has no such entity."""
    section = entity_at(plan, entity)
    base = plan[section + ENTITY.slot_base]
    for slot in range(base, base + plan[section + ENTITY.slot_count]):
        slots[slot] = np.nan


@inlined
def _roll_up_table(plan: I64, where: int, words: I64, rows: int, as_of_ms: int, lows: I64, slots: F64) -> None:
    hop_ms, room = plan[where + TABLE.hop_ms], plan[where + TABLE.capacity]
    now_tile = as_of_ms // hop_ms
    tiles = words[plan[where + TABLE.tiles_at] : plan[where + TABLE.tiles_at] + rows]
    top = rows
    for group in range(plan[where + TABLE.group_count]):
        at = not_negative(plan[where + TABLE.groups_at] + group * GROUP_SIZE)
        newest_tile = now_tile - plan[at + GROUP.newest_age]
        top = _count_below(tiles, top, newest_tile + 1)
        low = top
        for bound in range(plan[at + GROUP.bound_count]):
            low = _count_below(tiles, low, now_tile - plan[plan[at + GROUP.bounds_at] + bound])
            lows[bound] = low
        result = not_negative(plan[at + GROUP.results_at])
        for _ in range(plan[at + GROUP.result_count]):
            reduction = plan[result + RESULT.reduction]
            if reduction == SUM:
                _reduce_sums(plan, result, words, top, lows, room, slots)
            elif reduction in (LARGEST, SMALLEST):
                _reduce_extremes(plan, result, words, top, lows, slots)
            elif reduction < NEWEST_OTHER:
                _reduce_others(plan, result, words, tiles, top, lows, room, now_tile, hop_ms, slots)
            elif reduction < LARGEST_NUMBER:
                bounds = plan[at + GROUP.bounds_at]
                _reduce_beside(plan, result, words, tiles, top, newest_tile, now_tile, bounds, hop_ms, slots)
            else:
                _reduce_numbers(plan, result, words, top, lows, slots)
            result += RESULT_SIZE


@inlined
def _count_below(tiles: I64, end: int, tile: int) -> int:
    """Returns how many of the ascending tiles[:end] are below a tile: a binary search without branches to predict."""
    # Two frequent cases: a window starts behind the newest tile, and the longest one ends before the oldest tile.
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


@inlined
def _reduce_sums(plan: I64, result: int, words: I64, top: int, lows: I64, room: int, slots: F64) -> None:
    window = not_negative(plan[result + RESULT.windows_at])
    for part in range(plan[result + RESULT.parts]):
        at = not_negative(plan[result + RESULT.words_at] + part * room)
        total, high = np.int64(0), top
        for number in range(plan[result + RESULT.window_count]):
            low = not_negative(lows[plan[window + number * WINDOW_SIZE + WINDOW.bound]])
            for value in words[at + low : at + high]:
                total += value
            high = low
            slots[plan[window + number * WINDOW_SIZE + WINDOW.slot] + part] = total


@inlined
def _reduce_extremes(plan: I64, result: int, words: I64, top: int, lows: I64, slots: F64) -> None:
    """Reduce LARGEST and SMALLEST. Amounts are stored plus one; 0 means no payment."""
    at = not_negative(plan[result + RESULT.words_at])
    is_largest = plan[result + RESULT.reduction] == LARGEST
    best, high = np.int64(0), top
    window = not_negative(plan[result + RESULT.windows_at])
    for _ in range(plan[result + RESULT.window_count]):
        low = not_negative(lows[plan[window + WINDOW.bound]])
        if is_largest:
            for value in words[at + low : at + high]:
                best = max(best, value)
        else:
            for value in words[at + low : at + high]:
                if value > 0 and (value < best or best == 0):
                    best = value
        high = low
        slots[plan[window + WINDOW.slot]] = best - 1 if best > 0 else np.nan
        window += WINDOW_SIZE


@inlined
def _reduce_numbers(plan: I64, result: int, words: I64, top: int, lows: I64, slots: F64) -> None:
    """Reduce LARGEST_NUMBER and SMALLEST_NUMBER. 0 means that no payment of the tile has the number."""
    at = plan[result + RESULT.words_at]
    sign = 1 if plan[result + RESULT.reduction] == LARGEST_NUMBER else -1
    best, is_there, high = 0, False, top
    for number in range(plan[result + RESULT.window_count]):
        window = plan[result + RESULT.windows_at] + number * WINDOW_SIZE
        low = lows[plan[window + WINDOW.bound]]
        for row in range(low, high):
            if words[at + row] != 0:
                value = sign * number_kept(words[at + row])
                if not is_there or value > best:
                    best, is_there = value, True
        high = low
        slots[plan[window + WINDOW.slot]] = sign * best if is_there else np.nan


@inlined
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
    """Reduce NEWEST_OTHER, STREAK, STREAK_AGE and STREAK_SUM over two columns, such as frauds and payments.

    The first column counts some of the events that the second column, `beside`, counts. The streak is what the first
    column counted since the newest tile in which the second counted more. For example, from the oldest tile to the
    newest: payments 2, 1, 3 and frauds 1, 1, 3 have a streak of 4. STREAK_SUM adds up a third column over the streak.
    The columns stand in two tables, so the loop walks along both from their newest tiles.
    """
    reduction = plan[result + RESULT.reduction]
    counted, beside = words[plan[result + RESULT.words_at] :], words[plan[result + RESULT.beside_at] :]
    # Without a third column these are the first words of the profile; no result uses them.
    summed = words[plan[result + RESULT.summed_at] :]
    others_at = plan[result + RESULT.beside_tiles_at]
    others = words[others_at : others_at + words[plan[result + RESULT.beside_length_at]]]
    others_top = _count_below(others, len(others), newest_tile + 1)
    window = not_negative(plan[result + RESULT.windows_at])
    for _ in range(plan[result + RESULT.window_count]):
        first_tile = now_tile - plan[bounds + plan[window + WINDOW.bound]]
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
        slots[plan[window + WINDOW.slot]] = value
        window += WINDOW_SIZE


@inlined
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
    """Reduce DECAYED, UNION, NEWEST and OLDEST. Each window is computed from its newest row on."""
    reduction, at = plan[result + RESULT.reduction], plan[result + RESULT.words_at]
    window = not_negative(plan[result + RESULT.windows_at])
    for _ in range(plan[result + RESULT.window_count]):
        low = not_negative(lows[plan[window + WINDOW.bound]])
        if reduction == UNION:
            value = _distinct(words, at, room, plan[result + RESULT.parts], low, top)
        elif reduction == DECAYED:
            weights = plan[result + RESULT.weights_at]
            value = 0.0
            if plan[result + RESULT.measure] in (COUNT, FRAUD_COUNT):
                # Integers that cannot overflow here may be added in any order, so the compiler adds several at once.
                total = np.int64(0)
                counts, counted_in = words[at + low : at + top], tiles[low:top]
                for row in range(top - low):
                    total += counts[row] * plan[not_negative(weights + now_tile - counted_in[row])]
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
        slots[plan[window + WINDOW.slot]] = value
        window += WINDOW_SIZE


@inlined
def _distinct(words: I64, at: int, room: int, parts: int, low: int, top: int) -> float:
    """Returns how many different values the bitmaps of some tiles hold together."""
    ones = 0
    for part in range(parts):
        union = np.int64(0)
        for bits in words[at + part * room + low : at + part * room + top]:
            union |= bits
        ones += bit_count(union)
    return _estimate_distinct(ones, parts)


@compiled()
def _estimate_distinct(ones: int, parts: int) -> float:
    """Returns the linear counting estimate (Whang, Vander-Zanden, Taylor 1990): m ln(m / empty), at most m ln m."""
    size = 64.0 * parts
    return size * math.log(size / max(1.0, size - ones))


@inlined
def _age_s(now_tile: int, tile: int, hop_ms: int) -> float:
    return (now_tile - tile) * hop_ms / 1000.0
