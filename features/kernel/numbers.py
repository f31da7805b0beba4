"""Reads an attribute as a number, and adds numbers to the measures of tables.

    attribute            code in the row               number
    amount               12500                         12500
    basket_weight 2.5    NUMBER_ZERO + 2500            2500, in units of its last digit (three decimals)
    opened_time_ms       NUMBER_ZERO + its ms          the payment's time minus it: its age at the payment, in ms

A moment is read as its age: the moments of later payments are larger, so that a model would learn the date from them.
"""

from __future__ import annotations

from paywarden.features.kernel.layout import (
    I64,
    NUMBER_COUNT,
    NUMBER_MAX,
    NUMBER_MIN,
    NUMBER_SQUARES_LOW,
    NUMBER_SUM,
    NUMBER_ZERO,
    READ_AMOUNT,
    READ_NUMBER,
    TIME_MS,
)
from paywarden.features.kernel.plan_schema import COLUMN
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.varint import unzigzag, zigzag


@inlined
def has_number(attributes: I64, column: int, reading: int) -> bool:
    """Returns whether a payment has the attribute. An amount may be 0, and below 0 it is not known."""
    return bool(attributes[column] >= 0 if reading == READ_AMOUNT else attributes[column] != 0)


@inlined
def number_of(attributes: I64, column: int, reading: int) -> int:
    """Returns the number of an attribute that the payment has."""
    code = attributes[column]
    if reading == READ_AMOUNT:
        return int(code)
    if reading == READ_NUMBER:
        return int(code - NUMBER_ZERO)
    return int(attributes[TIME_MS] - (code - NUMBER_ZERO))


@inlined
def kept_number(number: int) -> int:
    """Returns a number as profiles keep it one by one: above 0, and small for a small number of either sign."""
    return zigzag(number) + 1


@inlined
def number_kept(kept: int) -> int:
    """Returns the number that `kept_number` made `kept` of."""
    return unzigzag(kept - 1)


@compiled()
def add_number(plan: I64, column: int, words: I64, at: int, attributes: I64, sign: int) -> None:
    """Add a payment's number to a measure, words[at]; take it away for a `sign` of -1.

    A payment without the number changes nothing. Nothing is taken from the largest and the smallest number.
    """
    place, reading = plan[column + COLUMN.attribute], plan[column + COLUMN.reading]
    if not has_number(attributes, place, reading):
        return
    measure = plan[column + COLUMN.measure]
    number = number_of(attributes, place, reading)
    if measure == NUMBER_COUNT:
        words[at] += sign
    elif measure == NUMBER_SUM:
        words[at] += sign * number
    elif measure < NUMBER_MAX:
        size = abs(number)
        high, low = size >> 20, size & 0xFFFFF
        cross = 2 * high * low
        if measure == NUMBER_SQUARES_LOW:
            words[at] += sign * (low * low + ((cross & 0xFFFFF) << 20))
        else:
            words[at] += sign * (high * high + (cross >> 20))
    elif sign > 0:
        kept = words[at]
        if (
            kept == 0
            or (measure == NUMBER_MAX and number > number_kept(kept))
            or (measure == NUMBER_MIN and number < number_kept(kept))
        ):
            words[at] = kept_number(number)
