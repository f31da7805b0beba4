"""Memories of the latest payments: a profile keeps some fields of each, newest first.

For example, a card's memory keeps the amount and the merchant of three payments. A payment of 20.00 arrives:

    time    amount  merchant            time    amount  merchant
    14:00   5.00    a                   14:05   20.00   b
    13:10   1.00    a            ->     14:00   5.00    a
    9:00    80.00   c                   13:10   1.00    a

If two payments have one millisecond, the one with the larger values comes first, field by field. A missing value is
below all others. Therefore the same payments in any order leave the same memory. Numbers are kept as `kept_number`
says, texts as their identities, and 0 is a missing value.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.distance import distance_km
from paywarden.features.kernel.layout import (
    AGO,
    COUNT_SAME,
    DISTANCE_KM,
    F64,
    HOUR_MS,
    I64,
    IS_SAME,
    JOURNEY_MS_MIN,
    NUMBER_OF,
    READ_TEXT,
    TIME_MS,
    WHOLE_PAYMENTS,
)
from paywarden.features.kernel.numbers import has_number, kept_number, number_kept, number_of
from paywarden.features.kernel.plan_schema import (
    MEMORY,
    RECOLLECTION,
    RECOLLECTION_SIZE,
    REMEMBERED,
    REMEMBERED_SIZE,
    memory_times_at,
)
from paywarden.features.kernel.toolkit.jit import compiled, inlined

_BELOW_ALL = -(1 << 62)


@compiled()
def keep_payment(plan: I64, where: int, words: I64, length: int, attributes: I64, scratch: int) -> None:
    """Add a payment to a memory of the latest ones. words[scratch:] has room for its fields."""
    for field in range(plan[where + MEMORY.width]):
        value = _value_of(plan, plan[where + MEMORY.fields_at] + field * REMEMBERED_SIZE, attributes)
        if value == 0 and plan[where + MEMORY.kind] == WHOLE_PAYMENTS:
            return
        words[scratch + field] = value
    insert(plan, where, words, length, words, scratch, 1, attributes[TIME_MS])


@compiled()
def insert(plan: I64, where: int, words: I64, length: int, values: I64, at: int, step: int, time_ms: int) -> None:
    """Put a payment in its place, unless the memory is full of later ones. Field i is values[at + i * step]."""
    room, width, count = plan[where + MEMORY.capacity], plan[where + MEMORY.width], words[length]
    values_at, times_at = plan[where + MEMORY.values_at], memory_times_at(plan, where)
    place = count
    while place > 0:
        before_ms = words[times_at + place - 1]
        if before_ms > time_ms:
            break
        if before_ms == time_ms and _compare(plan, where, values, at, step, words, values_at + place - 1, room) <= 0:
            break
        place -= 1
    if place == room:
        return
    last = min(count, room - 1)
    for field in range(width + 1):
        first = values_at + field * room
        for item in range(last, place, -1):
            words[first + item] = words[first + item - 1]
        words[first + place] = values[at + field * step] if field < width else time_ms
    words[length] = last + 1


@compiled()
def are_in_order(plan: I64, where: int, words: I64, items: int) -> bool:
    """Returns whether the payments of one millisecond stand in their order."""
    room, values_at, times_at = (
        plan[where + MEMORY.capacity],
        plan[where + MEMORY.values_at],
        memory_times_at(plan, where),
    )
    for item in range(1, items):
        if words[times_at + item] == words[times_at + item - 1]:
            at = values_at + item
            if _compare(plan, where, words, at, room, words, at - 1, room) > 0:
                return False
    return True


@compiled()
def recall(plan: I64, where: int, words: I64, items: int, attributes: I64, slots: F64, scratch: int) -> None:
    """Answer the questions to a memory of the latest payments. Only payments by the time of this one count.

    words[scratch:] has room for a number of each payment.
    """
    as_of_ms, times_at = attributes[TIME_MS], memory_times_at(plan, where)
    room = plan[where + MEMORY.capacity]
    newest = 0
    while newest < items and words[times_at + newest] > as_of_ms:
        newest += 1
    for number in range(plan[where + MEMORY.recollection_count]):
        at = plan[where + MEMORY.recollections_at] + number * RECOLLECTION_SIZE
        item, field = newest + plan[at + RECOLLECTION.place], plan[at + RECOLLECTION.field]
        kind = plan[at + RECOLLECTION.kind]
        result = np.nan
        if kind >= COUNT_SAME:
            result = _over_latest(plan, where, words, newest, items, at, attributes, scratch)
        elif item < items:
            kept_at = plan[where + MEMORY.values_at] + field * room + item
            since_ms = as_of_ms - words[times_at + item]
            if kind == AGO:
                result = since_ms / 1000.0
            elif kind == NUMBER_OF:
                if words[kept_at] != 0:
                    result = float(number_kept(words[kept_at]))
            elif kind == IS_SAME:
                mine = _value_of(plan, plan[where + MEMORY.fields_at] + field * REMEMBERED_SIZE, attributes)
                if mine != 0 and words[kept_at] != 0:
                    result = 1.0 if mine == words[kept_at] else 0.0
            else:
                result = _distance_from(plan, where, words, kept_at, room, attributes)
                if kind != DISTANCE_KM:
                    result /= max(since_ms, JOURNEY_MS_MIN) / HOUR_MS
        slots[plan[at + RECOLLECTION.slot]] = result


@compiled()
def _over_latest(
    plan: I64, where: int, words: I64, newest: int, items: int, question: int, attributes: I64, scratch: int
) -> float:
    """Returns how many payments have this payment's value of the last field, or a quantile of their first field.

    A quantile between two numbers is interpolated. Without a second field it is one of all payments.
    """
    is_count, width = plan[question + RECOLLECTION.kind] == COUNT_SAME, plan[where + MEMORY.width]
    values_at, mine, count = plan[where + MEMORY.values_at], 0, 0
    same_at = values_at + (width - 1) * plan[where + MEMORY.capacity]
    if is_count or width > 1:
        mine = _value_of(plan, plan[where + MEMORY.fields_at] + (width - 1) * REMEMBERED_SIZE, attributes)
        if mine == 0:
            return np.nan
    for item in range(newest, items):
        if mine != 0 and words[same_at + item] != mine:
            continue
        if not is_count:
            number, place = number_kept(words[values_at + item]), scratch + count
            while place > scratch and words[place - 1] > number:
                words[place] = words[place - 1]
                place -= 1
            words[place] = number
        count += 1
    if is_count or count == 0:
        return float(count) if is_count else np.nan
    rank = (count - 1) * plan[question + RECOLLECTION.place]
    low, rest = words[scratch + rank // 1000], rank % 1000
    if rest == 0:
        return float(low)
    step = float(words[scratch + rank // 1000 + 1] - low)
    return float(low) + step * float(rest) / 1000.0


@inlined
def _value_of(plan: I64, field: int, attributes: I64) -> int:
    """Returns a field of a payment as it is kept: 0 if the payment lacks it."""
    column, reading = plan[field + REMEMBERED.column], plan[field + REMEMBERED.reading]
    if reading == READ_TEXT:
        return int(attributes[column])
    return kept_number(number_of(attributes, column, reading)) if has_number(attributes, column, reading) else 0


@inlined
def _compare(
    plan: I64, where: int, values: I64, at: int, step: int, others: I64, other_at: int, other_step: int
) -> int:
    """Returns 1 if the values of a payment are larger than those of another, -1 if they are smaller, 0 if equal."""
    for field in range(plan[where + MEMORY.width]):
        section = plan[where + MEMORY.fields_at] + field * REMEMBERED_SIZE
        reading = plan[section + REMEMBERED.reading]
        mine = _rank(values[at + field * step], reading)
        other = _rank(others[other_at + field * other_step], reading)
        if mine != other:
            return 1 if mine > other else -1
    return 0


@inlined
def _rank(kept: int, reading: int) -> int:
    """Returns a kept value as a number whose order is that of the values."""
    if kept == 0:
        return _BELOW_ALL
    return kept if reading == READ_TEXT else number_kept(kept)


@inlined
def _distance_from(plan: I64, where: int, words: I64, kept_at: int, room: int, attributes: I64) -> float:
    """Returns the distance from a kept payment's place to this one's. The first two fields are the coordinates."""
    latitude = plan[where + MEMORY.fields_at]
    longitude = latitude + REMEMBERED_SIZE
    here = _value_of(plan, latitude, attributes), _value_of(plan, longitude, attributes)
    if here[0] == 0 or here[1] == 0 or words[kept_at] == 0 or words[kept_at + room] == 0:
        return np.nan
    return distance_km(
        number_kept(words[kept_at]), number_kept(words[kept_at + room]), number_kept(here[0]), number_kept(here[1])
    )
