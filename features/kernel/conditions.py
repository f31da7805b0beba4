"""Answers the conditions of a catalogue about a payment's row.

For example, let condition 0 be `channel == "ecom"` and condition 1 be `amount >= 10_000`. A payment of 50 EUR in a web
shop gives 0b01: only condition 0 holds. Condition 2, `(channel == "ecom") | (amount >= 10_000)`, stands behind its
parts: it is ANY_OF with the value 0b11, and holds since 0b01 & 0b11 is not 0.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.layout import (
    ALL_OF,
    ANY_OF,
    AT_LEAST,
    BELOW,
    BELOW_IF_PRESENT,
    DAY_MS,
    DECLINED,
    DIFFERENT,
    EPOCH_WEEKDAY,
    EQUAL,
    HOUR_AMONG,
    HOUR_MS,
    I64,
    MINUTE_MS,
    OFFSET_ZERO,
    TIME_MS,
    UTC_OFFSET,
    WEEKDAY_AMONG,
)
from paywarden.features.kernel.plan_schema import CONDITION, CONDITION_SIZE, HEAD
from paywarden.features.kernel.toolkit.jit import compiled, inlined


@compiled()
def answers(plan: I64, attributes: I64) -> int:
    """Returns which of the catalogue's conditions hold for a row of attributes: bit i for condition i."""
    held = np.int64(0)
    at = plan[HEAD.conditions_at]
    for condition in range(plan[HEAD.condition_count]):
        actual, operator = attributes[plan[at + CONDITION.attribute]], plan[at + CONDITION.operator]
        is_met = holds_for(attributes, int(held), actual, operator, plan[at + CONDITION.value])
        held |= np.int64(is_met) << condition
        at += CONDITION_SIZE
    return int(held)


@compiled()
def answers_before(plan: I64, attributes: I64, declined: int) -> int:
    """Returns the answers for a row with another code in its DECLINED column."""
    held = np.int64(0)
    at = plan[HEAD.conditions_at]
    for condition in range(plan[HEAD.condition_count]):
        column = plan[at + CONDITION.attribute]
        actual = declined if column == DECLINED else attributes[column]
        operator = plan[at + CONDITION.operator]
        is_met = holds_for(attributes, int(held), actual, operator, plan[at + CONDITION.value])
        held |= np.int64(is_met) << condition
        at += CONDITION_SIZE
    return int(held)


@inlined
def holds_for(attributes: I64, held: int, actual: int, operator: int, value: int) -> bool:
    """Returns whether one condition holds. `actual` is the code that it compares, `held` the answers before it.

    No comparison holds for an amount that is not known, or a text that is not there.
    """
    if operator == EQUAL:
        return bool(actual == value)
    if operator == DIFFERENT:
        return bool(actual != 0 and actual != value)
    if operator == AT_LEAST:
        return bool(actual >= value)
    if operator == BELOW:
        return bool(0 <= actual < value)
    if operator == BELOW_IF_PRESENT:
        return bool(actual != 0 and actual < value)
    if operator == HOUR_AMONG:
        return bool(value >> local_ms(attributes) % DAY_MS // HOUR_MS & 1)
    if operator == WEEKDAY_AMONG:
        return bool(value >> weekday_of(local_ms(attributes)) & 1)
    if operator == ALL_OF:
        return bool(held & value == value)
    return bool((held & value != 0) == (operator == ANY_OF))


@inlined
def local_ms(attributes: I64) -> int:
    """Returns a payment's time, moved to the payer's time zone if it is known."""
    time_ms = attributes[TIME_MS]
    if attributes[UTC_OFFSET] != 0:
        time_ms += (attributes[UTC_OFFSET] - OFFSET_ZERO) * MINUTE_MS
    return int(time_ms)


@inlined
def weekday_of(time_ms: int) -> int:
    """Returns the day of the week of a local time: 0 is Monday."""
    return int((time_ms // DAY_MS + EPOCH_WEEKDAY) % 7)
