"""Computes the vector: `assemble` runs the catalogue's program over the slots and the payment's row.

For example, slot 0 is the card's sum of amounts in 30 days, and slot 1 its count. A payment has an amount of 5000. The
program computes ratio("amount_to_mean", "amount", "card_amount_mean_30d"):

    values   0: 4000.0   1: 2.0   | 2: DIVIDE 0 by 1 = 2000.0   3: ATTRIBUTE_VALUE amount = 5000.0
                                  | 4: DIVIDE 3 by 2 = 2.5 -> the feature
"""

from __future__ import annotations

import math

import numpy as np

from paywarden.features.kernel.conditions import answers, holds_for, local_ms, weekday_of
from paywarden.features.kernel.distance import distance_km
from paywarden.features.kernel.layout import (
    ADD,
    AGE_MS,
    AMOUNT,
    AMOUNT_MINOR,
    ATTRIBUTE_VALUE,
    BELOW_LIMIT,
    CATEGORY,
    CLIP,
    DAY_MS,
    DECLARED_NUMBER,
    DEVIATION,
    DIVIDE,
    ENTROPY,
    F32,
    F64,
    HOLDS,
    HOUR,
    HOUR_MS,
    I64,
    MEETS,
    MULTIPLY,
    NIGHT,
    NUMBER,
    NUMBER_ZERO,
    SAME_VALUE,
    SCALE,
    SQUARE_BITS,
    STANDARD_SCORE,
    SUBTRACT,
    SURPRISE,
    TIME_MS,
    TOP_SHARE,
    TRAILING_ZEROS,
    WEEKEND,
)
from paywarden.features.kernel.plan_schema import HEAD, OPERATION, OPERATION_SIZE
from paywarden.features.kernel.toolkit.jit import compiled, inlined

HALF_LOG_2_PI = 0.9189385332046727
# A beta distribution needs two numbers above 0.
SMALLEST_PRIOR = 1e-6


@inlined
def assemble(plan: I64, attributes: I64, values: F64, out: F32) -> None:
    """Compute a vector from attributes and slots. `out`, shape (features,), is overwritten; NaN means missing.

    `values` starts with the slots. The program writes one value for each of its operations behind them.
    """
    position = plan[HEAD.slot_count]
    at = plan[HEAD.program_at]
    for _ in range(plan[HEAD.program_count]):
        operation = plan[at + OPERATION.code]
        if operation == DIVIDE:
            denominator = values[plan[at + OPERATION.second]]
            values[position] = values[plan[at + OPERATION.first]] / denominator if denominator != 0.0 else np.nan
        elif operation < NUMBER:
            values[position] = _from_request(plan, at, operation, attributes)
        elif operation == NUMBER:
            values[position] = plan[at + OPERATION.first]
        elif operation == ADD:
            values[position] = values[plan[at + OPERATION.first]] + values[plan[at + OPERATION.second]]
        elif operation == SCALE:
            value = values[plan[at + OPERATION.first]]
            values[position] = value * plan[at + OPERATION.second] / plan[at + OPERATION.third]
        elif operation == DEVIATION:
            count, total = values[plan[at + OPERATION.first]], values[plan[at + OPERATION.second]]
            low, high = values[plan[at + OPERATION.third]], values[plan[at + OPERATION.fourth]]
            values[position] = _deviation(count, total, low, high)
        elif operation == STANDARD_SCORE:
            deviation = values[plan[at + OPERATION.third]]
            distance = values[plan[at + OPERATION.first]] - values[plan[at + OPERATION.second]]
            values[position] = distance / deviation if deviation != 0.0 else np.nan
        elif operation == ENTROPY:
            values[position] = _entropy(values, plan[at + OPERATION.first], plan[at + OPERATION.second])
        elif operation == TOP_SHARE:
            values[position] = _top_share(values, plan[at + OPERATION.first], plan[at + OPERATION.second])
        elif operation == SUBTRACT:
            values[position] = values[plan[at + OPERATION.first]] - values[plan[at + OPERATION.second]]
        elif operation == CLIP:
            values[position] = _clipped(values[plan[at + OPERATION.first]], float(plan[at + OPERATION.second]))
        elif operation == SURPRISE:
            count, total = values[plan[at + OPERATION.first]], values[plan[at + OPERATION.second]]
            usual, past = values[plan[at + OPERATION.third]], values[plan[at + OPERATION.fourth]]
            values[position] = _surprise(count, total, usual, past)
        elif operation == MULTIPLY:
            values[position] = values[plan[at + OPERATION.first]] * values[plan[at + OPERATION.second]]
        elif operation == MEETS:
            values[position] = answers(plan, attributes) >> plan[at + OPERATION.first] & 1
        else:
            values[position] = _from_fields(plan, at, operation, attributes)
        position += 1
        at += OPERATION_SIZE
    at = plan[HEAD.features_at]
    for feature in range(plan[HEAD.feature_count]):
        out[feature] = np.float32(values[plan[at + feature]])


@compiled(releases_gil=True)
def assemble_rows(plan: I64, attributes: I64, slots: F64, values: F64, out: F32) -> None:
    """Run `assemble` for each row. Shapes (rows, row width), (rows, slots), …, (rows, features)."""
    count = plan[HEAD.slot_count]
    for row in range(len(attributes)):
        for slot in range(count):
            values[slot] = slots[row, slot]
        assemble(plan, attributes[row], values, out[row])


@inlined
def _from_request(plan: I64, at: int, operation: int, attributes: I64) -> float:
    """Returns one value from the payment's own attributes."""
    if operation == ATTRIBUTE_VALUE:
        amount = attributes[plan[at + OPERATION.first]]
        return float(amount) if amount >= 0 else np.nan
    if operation == HOLDS:
        column = plan[at + OPERATION.first]
        if attributes[column] < 0 or (attributes[column] == 0 and column > AMOUNT_MINOR):
            return np.nan
        operator, value = plan[at + OPERATION.second], plan[at + OPERATION.third]
        return 1.0 if holds_for(attributes, 0, attributes[column], operator, value) else 0.0
    if operation == TRAILING_ZEROS:
        return float(_trailing_zeros(attributes[AMOUNT_MINOR]))
    if operation == BELOW_LIMIT:
        return _below_limit(plan, attributes[AMOUNT], plan[at + OPERATION.first], plan[at + OPERATION.second])
    if operation == CATEGORY:
        code = attributes[plan[at + OPERATION.first]]
        return _category(plan, code, plan[at + OPERATION.second], plan[at + OPERATION.third])
    now_ms = local_ms(attributes)
    hour, weekday = now_ms % DAY_MS // HOUR_MS, weekday_of(now_ms)
    if operation == HOUR:
        return float(hour)
    if operation == NIGHT:
        return 1.0 if hour <= 6 else 0.0
    if operation == WEEKEND:
        return 1.0 if weekday >= 5 else 0.0
    return float(weekday)


@compiled()
def _from_fields(plan: I64, at: int, operation: int, attributes: I64) -> float:
    """Returns one value from a payment's declared fields; NaN if the payment lacks one of them."""
    first = attributes[plan[at + OPERATION.first]]
    if first == 0:
        return np.nan
    if operation == DECLARED_NUMBER:
        return float(first - NUMBER_ZERO)
    if operation == AGE_MS:
        return float(attributes[TIME_MS] - (first - NUMBER_ZERO))
    second = attributes[plan[at + OPERATION.second]]
    if second == 0:
        return np.nan
    if operation == SAME_VALUE:
        return 1.0 if first == second else 0.0
    third, fourth = attributes[plan[at + OPERATION.third]], attributes[plan[at + OPERATION.fourth]]
    if third == 0 or fourth == 0:
        return np.nan
    return float(distance_km(first - NUMBER_ZERO, second - NUMBER_ZERO, third - NUMBER_ZERO, fourth - NUMBER_ZERO))


@inlined
def _clipped(value: float, most: float) -> float:
    """Returns a value between -most and most; NaN stays NaN."""
    if value > most:
        return most
    return -most if value < -most else value


@inlined
def _trailing_zeros(amount: int) -> int:
    """Returns the number of decimal zeros at the end: 3 for 12,000. 0 for an amount of 0."""
    zeros = 0
    while amount > 0 and amount % 10 == 0:
        amount //= 10
        zeros += 1
    return zeros


@inlined
def _below_limit(plan: I64, amount: int, limits_at: int, count: int) -> float:
    """Returns how far an amount is below the next limit, as a share: 0.01 for 99 and 100.

    NaN above all limits, and for an amount that is not known.
    """
    if amount < 0:
        return np.nan
    for number in range(limits_at, limits_at + count):
        if amount < plan[number]:
            return float((plan[number] - amount) / plan[number])
    return np.nan


@inlined
def _category(plan: I64, code: int, codes_at: int, count: int) -> float:
    """Returns the position of a code in a list, `count` for any other code, NaN for a missing attribute.

    The codes stand at `codes_at` in ascending order, followed by the position of each.
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


@inlined
def _deviation(count: float, total: float, low: float, high: float) -> float:
    """Returns the sample standard deviation from count, sum and sum of squares; NaN for fewer than two payments."""
    if not count >= 2.0:
        return np.nan
    squares = high * 2.0**SQUARE_BITS + low
    return math.sqrt(max(0.0, squares * count - total * total) / (count * (count - 1.0)))


@compiled()
def _entropy(values: F64, first: int, count: int) -> float:
    """Returns the entropy of counts in bits: 0 when all are in one bucket. NaN without any."""
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


@compiled()
def _top_share(values: F64, first: int, count: int) -> float:
    """Returns the share of the largest count. NaN without any."""
    total, largest = 0.0, 0.0
    for place in range(first, first + count):
        total += values[place]
        largest = max(largest, values[place])
    return largest / total if total > 0.0 else np.nan


@compiled()
def _surprise(count: float, total: float, usual: float, past: float) -> float:
    """Returns how much likelier the usual count of `total` is than `count`, in nats; 0 up to the usual count.

    Both are counts of marked payments. The usual share is uncertain, a Beta(usual, past - usual), so the counts are
    beta-binomial. A share near 1 is as usual as its prior says. The result is rounded to 1/1024, so that the last
    digits of a processor's logarithm make no difference.
    """
    if not (count >= 0.0 and usual >= 0.0):
        return np.nan
    count, usual = min(count, total), max(usual, SMALLEST_PRIOR)
    others = max(past - usual, SMALLEST_PRIOR)
    expected = math.floor(total * (usual / (usual + others)))
    if not count > expected:
        return 0.0
    surprise = _log_weight(expected, total, usual, others) - _log_weight(count, total, usual, others)
    return math.floor(max(0.0, surprise) * 1024.0 + 0.5) / 1024.0


@compiled()
def _log_weight(count: float, total: float, usual: float, others: float) -> float:
    """Returns the logarithm of a beta-binomial probability, but for a term that does not depend on the count."""
    ways = _log_gamma(count + 1.0) + _log_gamma(total - count + 1.0)
    return _log_gamma(count + usual) + _log_gamma(total - count + others) - ways


@compiled()
def _log_gamma(x: float) -> float:
    """Returns the logarithm of the gamma function of a number above 0: Stirling's series from 8 on, errors below 1e-11.

    The C library's own function differs between systems.
    """
    product = 1.0
    while x < 8.0:
        product *= x
        x += 1.0
    square = 1.0 / (x * x)
    series = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / x
    return (x - 0.5) * math.log(x) - x + HALF_LOG_2_PI + series - math.log(product)
