"""Conditions of a catalogue, asked about a payment's row."""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.jit import compiled, inlined
from paywarden.features.kernel.layout import AT_LEAST, DIFFERENT, EQUAL, I64
from paywarden.features.kernel.plan_schema import CONDITION, CONDITION_SIZE, HEAD


@compiled()
def answers(plan: I64, attributes: I64) -> int:
    """Which of the catalogue's conditions hold for a row of attributes: bit i for condition i."""
    held = np.int64(0)
    at = plan[HEAD.conditions_at]
    for condition in range(plan[HEAD.condition_count]):
        column, operator = plan[at + CONDITION.attribute], plan[at + CONDITION.operator]
        held |= np.int64(holds(attributes, column, operator, plan[at + CONDITION.value])) << condition
        at += CONDITION_SIZE
    return int(held)


@inlined
def holds(attributes: I64, column: int, operator: int, value: int) -> bool:
    actual = attributes[column]
    if operator == EQUAL:
        return bool(actual == value)
    if operator == DIFFERENT:
        return bool(actual != 0 and actual != value)
    if operator == AT_LEAST:
        return bool(actual >= value)
    return bool(actual < value)
