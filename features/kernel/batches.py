"""Loops over whole batches: what Python calls. The stream, training and replay apply events, scoring fills vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.assemble import assemble
from paywarden.features.kernel.codec import clear, pack, packed_bytes_max, unpack
from paywarden.features.kernel.frame import address, size
from paywarden.features.kernel.jit import compiled
from paywarden.features.kernel.layout import (
    ABSENT,
    ATTRIBUTE_COUNT,
    F32,
    F64,
    I64,
    NO_ROOM,
    OK,
    STATUS_UNIT,
    TOO_MANY_SOURCES,
    U8,
    UNKNOWN,
)
from paywarden.features.kernel.plan_schema import HEAD, positions
from paywarden.features.kernel.rollup import clear_slots, roll_up
from paywarden.features.kernel.update import advance_source, update


@compiled(releases_gil=True)
def fill_vectors(
    plan: I64,
    attributes: I64,
    presence: U8,
    states: U8,
    bounds: I64,
    words: I64,
    values: F64,
    out: F32,
) -> int:
    """Vectors of payments from packed profiles, as scoring has them.

    `presence` and the profile bounds have one entry for each payment and entity, payments outermost:
    states[bounds[i] : bounds[i + 1]] is the i-th. Returns OK, or what is wrong with a state times STATUS_UNIT
    plus its place among them.
    """
    entities = plan[HEAD.entity_count]
    for row in range(len(attributes)):
        for entity in range(entities):
            item = row * entities + entity
            if presence[item] == ABSENT:
                clear_slots(plan, entity, values)
                continue
            if presence[item] == UNKNOWN:
                clear(plan, entity, words)
            else:
                status = unpack(plan, entity, states, bounds[item], bounds[item + 1], words)
                if status != OK:
                    return int(status * STATUS_UNIT + item)
            roll_up(plan, entity, words, attributes[row], values)
        assemble(plan, attributes[row], values, out[row])
    return OK


class EngineSlots(NamedTuple):
    """The frame of `fill_bound_vectors`: the arrays of `fill_vectors`, for as many payments as there may be."""

    plan: int
    attributes: int
    presence: int
    states: int
    bounds: int
    words: int
    values: int
    out: int


SLOT = positions(EngineSlots)


@compiled(makes_arrays=True)
def fill_bound_vectors(frame_at: int, rows: int) -> int:
    """`fill_vectors` of the first `rows` payments, with the arrays of a frame."""
    plan = carray(address(frame_at, SLOT.plan), size(frame_at, SLOT.plan), np.int64)
    return fill_vectors(
        plan,
        carray(address(frame_at, SLOT.attributes), (rows, ATTRIBUTE_COUNT), np.int64),
        carray(address(frame_at, SLOT.presence), size(frame_at, SLOT.presence), np.uint8),
        carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.uint8),
        carray(address(frame_at, SLOT.bounds), size(frame_at, SLOT.bounds), np.int64),
        carray(address(frame_at, SLOT.words), size(frame_at, SLOT.words), np.int64),
        carray(address(frame_at, SLOT.values), size(frame_at, SLOT.values), np.float64),
        carray(address(frame_at, SLOT.out), (rows, plan[HEAD.feature_count]), np.float32),
    )


@compiled(releases_gil=True)
def apply_events(
    plan: I64,
    entity: int,
    states: U8,
    bounds: I64,
    groups: I64,
    kind: U8,
    payment: I64,
    weight: I64,
    source: I64,
    offset: I64,
    row: I64,
    attributes: I64,
    words: I64,
    slots: F64,
    out: U8,
    out_bounds: I64,
    applied: U8,
    late: I64,
) -> int:
    """Update the profiles of one kind of entity, each by its own events in order.

    Group g is one entity: its packed profile is states[bounds[g] : bounds[g + 1]] (empty: unknown) and its
    events are groups[g] to groups[g + 1]. Event i is of the payment attributes[payment[i]]. An event whose `offset`
    of its `source` the profile contains already changes nothing and is not `applied`; source -1 is not checked.
    Where row[i] >= 0, slots[row[i]] is filled with what was known just before event i. `late[0]` counts the
    events that came too late for at least one table.
    The new packed profiles are out[out_bounds[g] : out_bounds[g + 1]].
    Returns OK, or what is wrong with a state times STATUS_UNIT plus its group; NO_ROOM asks for a larger `out`.
    """
    position = 0
    out_bounds[0] = 0
    late[0] = 0
    for group in range(len(groups) - 1):
        if bounds[group] == bounds[group + 1]:
            clear(plan, entity, words)
        else:
            status = unpack(plan, entity, states, bounds[group], bounds[group + 1], words)
            if status != OK:
                return status * STATUS_UNIT + group
        for event in range(groups[group], groups[group + 1]):
            applied[event] = 0
            if source[event] >= 0:
                news = advance_source(plan, entity, words, source[event], offset[event])
                if news < 0:
                    return TOO_MANY_SOURCES * STATUS_UNIT + group
                if news == 0:
                    continue
            if row[event] >= 0:
                roll_up(plan, entity, words, attributes[payment[event]], slots[row[event]])
            applied[event] = 1
            missed = update(plan, entity, words, kind[event], attributes[payment[event]], weight[event])
            late[0] += 1 if missed > 0 else 0
        if position + packed_bytes_max(plan, entity, words) > len(out):
            return NO_ROOM * STATUS_UNIT + group
        position = pack(plan, entity, words, out, position)
        out_bounds[group + 1] = position
    return OK
