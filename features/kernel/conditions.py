"""Answers the conditions of a catalogue about a payment's row.

For example, let condition 0 be `channel == "ecom"` and condition 1 be `amount >= 10_000`. A payment of 50 EUR in a web
shop gives 0b01: only condition 0 holds.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.layout import AT_LEAST, BELOW, DECLINED, DIFFERENT, EQUAL, I64
from paywarden.features.kernel.plan_schema import CONDITION, CONDITION_SIZE, HEAD
from paywarden.features.kernel.toolkit.jit import compiled, inlined


@compiled()
def answers(plan: I64, attributes: I64) -> int:
    """Returns which of the catalogue's conditions hold for a row of attributes: bit i for condition i."""
    held = np.int64(0)
    at = plan[HEAD.conditions_at]
    for condition in range(plan[HEAD.condition_count]):
        column, operator = plan[at + CONDITION.attribute], plan[at + CONDITION.operator]
        held |= np.int64(holds(attributes, column, operator, plan[at + CONDITION.value])) << condition
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
        held |= np.int64(holds_for(actual, plan[at + CONDITION.operator], plan[at + CONDITION.value])) << condition
        at += CONDITION_SIZE
    return int(held)


@inlined
def holds(attributes: I64, column: int, operator: int, value: int) -> bool:
    """Returns whether one condition holds for a row."""
    return holds_for(attributes[column], operator, value)


@inlined
def holds_for(actual: int, operator: int, value: int) -> bool:
    """Returns whether one condition holds. None holds for an amount that is not known, or a text that is not there."""
    if operator == EQUAL:
        return bool(actual == value)
    if operator == DIFFERENT:
        return bool(actual != 0 and actual != value)
    if operator == AT_LEAST:
        return bool(actual >= value)
    if operator == BELOW:
        return bool(0 <= actual < value)
    return bool(actual != 0 and actual < value)
