"""Adds one event to a profile.

For each table it finds the tile of the event and adds to that tile's measures. For example, a table has a hop of one
hour and keeps the count and the sum of amounts. A payment of 25.00 at 14:35 arrives:

    tile    count  sum              tile    count  sum
    13:00   2      4000     ->      13:00   2      4000
    14:00   1      1000             14:00   2      3500

The same events in any order give the same bytes, for five reasons:

- all measures commute;
- only the newest event decides which tiles a table drops;
- a decline adds and takes away what its payment would have added had it known;
- an amount that is not known adds nothing to sums, extremes and sketches of amounts, while counts count its payment;
- a memory holds the first entries of a total order.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.conditions import answers, answers_before
from paywarden.features.kernel.latest_payments import keep_payment
from paywarden.features.kernel.layout import (
    AMOUNT,
    AMOUNT_MAX,
    AMOUNT_MIN,
    AMOUNT_MINOR,
    AMOUNT_SUM,
    BUCKET_COUNTS,
    COUNT,
    DECLINE,
    DECLINE_BITS,
    DISTINCT_BITS,
    DISTINCT_VALUES,
    FIRST_LABEL,
    FIRST_MS,
    FRAUD_AMOUNT,
    FRAUD_COUNT,
    FRAUD_SQUARES_LOW,
    I64,
    LABEL,
    LABELLED_COUNT,
    LAST_MS,
    LENGTHS_AT,
    NEWEST_MS,
    NUMBER_COUNT,
    PAYMENT,
    SOURCES_MAX,
    SQUARES_HIGH,
    SQUARES_LOW,
    TIME_MS,
)
from paywarden.features.kernel.numbers import add_number
from paywarden.features.kernel.plan_schema import (
    COLUMN,
    COLUMN_SIZE,
    ENTITY,
    MEMORY,
    TABLE,
    entity_at,
    memory_at,
    memory_length_at,
    table_at,
    table_length_at,
)
from paywarden.features.kernel.toolkit.jit import compiled, inlined


@compiled()
def update(plan: I64, entity: int, words: I64, kind: int, attributes: I64, weight: int) -> int:
    """Add one event to a profile. Returns the number of tables for which it came too late.

    `attributes` is the payment's row for all kinds of events; its time is above 0, since 0 means no payment.
    `weight` is 1 for a payment. For a label it is +1 (fraud), -1 (a fraud taken back) or 0 (genuine), plus FIRST_LABEL
    if the payment had no label before. For a decline it is what the row's DECLINED column held before, plus two bits
    shifted left by DECLINE_BITS: whether the payment is a known fraud, and whether it has a label.
    """
    time_ms = attributes[TIME_MS]
    section = entity_at(plan, entity)
    tables = plan[section + ENTITY.table_count]
    if kind == LABEL and weight == 0:
        return 0
    words[NEWEST_MS] = max(words[NEWEST_MS], time_ms)
    if kind == PAYMENT:
        _note_payment_time(words, time_ms)
        _remember_payment(plan, section, words, attributes)
    held = answers(plan, attributes)
    held_before, fraud, labelled = held, 0, 0
    if kind == DECLINE:
        held_before = answers_before(plan, attributes, weight & ((1 << DECLINE_BITS) - 1))
        fraud, labelled = weight >> DECLINE_BITS & 1, weight >> DECLINE_BITS >> 1
    elif kind == LABEL:
        fraud, labelled = (weight + 1) % FIRST_LABEL - 1, (weight + 1) // FIRST_LABEL
    late = 0
    for table in range(tables):
        where = table_at(plan, section, table)
        length = table_length_at(table)
        hop_ms = plan[where + TABLE.hop_ms]
        tile = time_ms // hop_ms
        newest_tile = words[NEWEST_MS] // hop_ms
        count = drop_expired(plan, where, words, length, newest_tile)
        # Payments change only payments' tables, labels only labels' tables. A label is never late for the former.
        if kind == DECLINE:
            if not _is_asked(plan, where, held ^ held_before):
                continue
        elif kind != plan[where + TABLE.kind]:
            continue
        if plan[where + TABLE.kind] == LABEL and fraud == 0 and not (labelled and _counts_labels(plan, where)):
            continue
        if tile <= newest_tile - plan[where + TABLE.capacity]:
            late += 1
            continue
        row = row_of_tile(plan, where, words, length, count, tile)
        if kind == PAYMENT:
            _add_payment(plan, where, words, row, attributes, held)
        elif kind == DECLINE:
            _move_payment(plan, where, words, row, attributes, held_before, held, fraud, labelled)
        else:
            _add_label(plan, where, words, row, attributes, held, fraud, labelled)
    return late


@inlined
def _note_payment_time(words: I64, time_ms: int) -> None:
    if words[FIRST_MS] == 0 or time_ms < words[FIRST_MS]:
        words[FIRST_MS] = time_ms
    words[LAST_MS] = max(words[LAST_MS], time_ms)


@inlined
def _remember_payment(plan: I64, section: int, words: I64, attributes: I64) -> None:
    """Add a payment to the memories of a profile."""
    tables, time_ms = plan[section + ENTITY.table_count], attributes[TIME_MS]
    for memory in range(plan[section + ENTITY.memory_count]):
        where = memory_at(plan, section, memory)
        length = memory_length_at(tables, memory)
        if plan[where + MEMORY.kind] != DISTINCT_VALUES:
            keep_payment(plan, where, words, length, attributes, plan[section + ENTITY.scratch_at])
            continue
        value = attributes[plan[where + MEMORY.identity]]
        # 0 means that the payment lacks the attribute, but an amount of 0 is an amount.
        if value > 0 or (value == 0 and plan[where + MEMORY.attribute] <= AMOUNT_MINOR):
            remember(plan, where, words, length, value, time_ms)


@compiled()
def advance_source(plan: I64, entity: int, words: I64, source: int, offset: int) -> int:
    """Record that the profile contains `source` up to `offset`.

    Returns 1 if the offset is new, 0 if the profile contained it already, -1 if there is no room for another source.
    """
    count, first = words[LENGTHS_AT], plan[entity_at(plan, entity) + ENTITY.sources_at]
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


@inlined
def drop_expired(plan: I64, where: int, words: I64, length: int, newest_tile: int) -> int:
    """Drop the tiles that no window can reach any more; returns how many remain."""
    room, tiles_at = plan[where + TABLE.capacity], plan[where + TABLE.tiles_at]
    count = words[length]
    oldest = newest_tile - room + 1
    expired = 0
    while expired < count and words[tiles_at + expired] < oldest:
        expired += 1
    if expired > 0:
        count -= expired
        words[length] = count
        for number in range(plan[where + TABLE.width]):
            at = tiles_at + number * room
            column = words[at : at + count + expired]
            for row in range(count):
                column[row] = column[row + expired]
    return int(count)


@inlined
def row_of_tile(plan: I64, where: int, words: I64, length: int, count: int, tile: int) -> int:
    """Returns the row of a tile; inserts it if needed. There is room, since expired tiles have been dropped."""
    room, tiles_at = plan[where + TABLE.capacity], plan[where + TABLE.tiles_at]
    row = count
    while row > 0 and words[tiles_at + row - 1] >= tile:
        row -= 1
    if row < count and words[tiles_at + row] == tile:
        return row
    for number in range(plan[where + TABLE.width]):
        at = tiles_at + number * room
        for place in range(at + count, at + row, -1):
            words[place] = words[place - 1]
        words[at + row] = 0
    words[tiles_at + row] = tile
    words[length] = count + 1
    return row


@compiled()
def remember(plan: I64, where: int, words: I64, length: int, value: int, time_ms: int) -> None:
    """Keep a value among the latest distinct ones, ordered by the time it was last seen, then by the value itself.

    The memory always holds the first of all values ever seen, in this order. A dropped value had `capacity`
    later values, and their times only grow.
    """
    count, room, values_at = words[length], plan[where + MEMORY.capacity], plan[where + MEMORY.values_at]
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


@inlined
def _sketched(plan: I64, column: int, attributes: I64) -> int:
    """Returns the value that a column's sketch takes in: the identity of a text, or its public code without one."""
    value = attributes[plan[column + COLUMN.identity]]
    if value == 0:
        value = attributes[plan[column + COLUMN.attribute]]
    return int(value)


@inlined
def _add_payment(plan: I64, where: int, words: I64, row: int, attributes: I64, held: int) -> None:
    """Add a payment to one tile."""
    column = plan[where + TABLE.columns_at]
    for _ in range(plan[where + TABLE.column_count]):
        _add_to_column(plan, where, column, words, row, attributes, held)
        column += COLUMN_SIZE


@inlined
def _add_to_column(plan: I64, where: int, column: int, words: I64, row: int, attributes: I64, held: int) -> None:
    """Add a payment to one measure of a tile, if the measure's condition holds."""
    condition = plan[column + COLUMN.condition]
    if condition == 0 or (held >> (condition - 1)) & 1:
        amount, measure = attributes[AMOUNT], plan[column + COLUMN.measure]
        at = plan[column + COLUMN.words_at] + row
        if measure == COUNT:
            words[at] += 1
        elif amount < 0 and measure <= AMOUNT_MIN:
            return
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
        elif measure >= NUMBER_COUNT:
            add_number(plan, column, words, at, attributes, 1)
        else:
            value = _sketched(plan, column, attributes)
            if value > 0:
                bits = mix(value)
                if measure == DISTINCT_BITS:
                    bits &= 64 * plan[column + COLUMN.parts] - 1
                    words[at + (bits >> 6) * plan[where + TABLE.capacity]] |= np.int64(1) << (bits & 63)
                else:
                    words[at + (bits & (plan[column + COLUMN.parts] - 1)) * plan[where + TABLE.capacity]] += 1


@compiled()
def _is_asked(plan: I64, where: int, conditions: int) -> bool:
    """Returns whether any column of a table has one of these conditions."""
    found = False
    for number in range(plan[where + TABLE.column_count]):
        condition = plan[plan[where + TABLE.columns_at] + number * COLUMN_SIZE + COLUMN.condition]
        found |= condition != 0 and (conditions >> (condition - 1)) & 1 == 1
    return found


@inlined
def _counts_labels(plan: I64, where: int) -> bool:
    """Returns whether a table of labels counts labelled payments. Such columns stand behind all others."""
    last = plan[where + TABLE.columns_at] + (plan[where + TABLE.column_count] - 1) * COLUMN_SIZE
    return bool(plan[last + COLUMN.measure] == LABELLED_COUNT)


@compiled()
def _move_payment(
    plan: I64,
    where: int,
    words: I64,
    row: int,
    attributes: I64,
    before: int,
    after: int,
    fraud: int,
    labelled: int,
) -> None:
    """Add a payment, or its label, to the columns whose condition holds now, and take it from those that held before.

    An extreme or a sketch keeps every value that it took in: nothing can be taken from it.
    """
    amount, room = attributes[AMOUNT], plan[where + TABLE.capacity]
    for number in range(plan[where + TABLE.column_count]):
        column = plan[where + TABLE.columns_at] + number * COLUMN_SIZE
        condition, measure = plan[column + COLUMN.condition], plan[column + COLUMN.measure]
        if condition == 0:
            continue
        sign = (after >> (condition - 1) & 1) - (before >> (condition - 1) & 1)
        if sign == 0 or (amount < 0 and AMOUNT_SUM <= measure <= AMOUNT_MIN):
            continue
        at = plan[column + COLUMN.words_at] + row
        if plan[where + TABLE.kind] == LABEL:
            words[at] += sign * _label_part(measure, amount, fraud, labelled)
            continue
        high, low = amount >> 20, amount & 0xFFFFF
        cross = 2 * high * low
        if measure == COUNT:
            words[at] += sign
        elif measure == AMOUNT_SUM:
            words[at] += sign * amount
        elif measure == SQUARES_LOW:
            words[at] += sign * (low * low + ((cross & 0xFFFFF) << 20))
        elif measure == SQUARES_HIGH:
            words[at] += sign * (high * high + (cross >> 20))
        elif measure == AMOUNT_MAX:
            if sign > 0:
                words[at] = max(words[at], amount + 1)
        elif measure == AMOUNT_MIN:
            if sign > 0:
                words[at] = min(words[at], amount + 1) if words[at] > 0 else amount + 1
        elif measure >= NUMBER_COUNT:
            add_number(plan, column, words, at, attributes, sign)
        else:
            value = _sketched(plan, column, attributes)
            if value > 0:
                bits = mix(value)
                if measure == BUCKET_COUNTS:
                    words[at + (bits & (plan[column + COLUMN.parts] - 1)) * room] += sign
                elif sign > 0:
                    bits &= 64 * plan[column + COLUMN.parts] - 1
                    words[at + (bits >> 6) * room] |= np.int64(1) << (bits & 63)


@compiled()
def _add_label(
    plan: I64, where: int, words: I64, row: int, attributes: I64, held: int, fraud: int, labelled: int
) -> None:
    """Add a label to one tile."""
    for number in range(plan[where + TABLE.column_count]):
        column = plan[where + TABLE.columns_at] + number * COLUMN_SIZE
        condition = plan[column + COLUMN.condition]
        if condition == 0 or (held >> (condition - 1)) & 1:
            part = _label_part(plan[column + COLUMN.measure], attributes[AMOUNT], fraud, labelled)
            words[plan[column + COLUMN.words_at] + row] += part


@inlined
def _label_part(measure: int, amount: int, fraud: int, labelled: int) -> int:
    """Returns what a label adds to a measure of labels. An amount that is not known adds nothing.

    `fraud` and `labelled` say how many known frauds, and labelled payments, there are more.
    """
    if measure == LABELLED_COUNT:
        return labelled
    if measure == FRAUD_COUNT:
        return fraud
    amount = max(0, amount)
    if measure == FRAUD_AMOUNT:
        return fraud * amount
    high, low = amount >> 20, amount & 0xFFFFF
    cross = 2 * high * low
    if measure == FRAUD_SQUARES_LOW:
        return fraud * (low * low + ((cross & 0xFFFFF) << 20))
    return fraud * (high * high + (cross >> 20))


@compiled()
def mix(code: int) -> int:
    """Returns a hash of a code, 63 bits, at least 0: any few of its bits look random.

    It is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    bits = np.uint64(code) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((bits ^ (bits >> np.uint64(31))) >> np.uint64(1))
