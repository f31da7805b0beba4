"""Loops over whole batches, which Python calls.

    apply_events    stream, training, replay: profiles + events      -> new profiles (and slots)
    fill_vectors    scoring:                  profiles + payments    -> vectors

For example, `fill_vectors` with 2 payments and 3 kinds of entity takes 6 profiles and fills 2 vectors. Profile 4 is
that of payment 1 and entity 1: 4 = 1 * 3 + 1. If it is damaged, the result is DAMAGED * STATUS_UNIT + 4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from paywarden.features.kernel.assembly import assemble
from paywarden.features.kernel.codec import clear, pack, packed_bytes_max, unpack
from paywarden.features.kernel.layout import (
    ABSENT,
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
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.jit import compiled, inlined
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
    hops: F64,
) -> int:
    """Fill the vectors of payments from packed profiles.

    `attributes` has shape (payments, row width), `out` (payments, features). `presence` has one entry for each
    payment and entity, payments outermost; the packed profile of entry i is states[bounds[i] : bounds[i + 1]].
    `hops`, shape (payments, hop slots), has what `fill_hops` found out about neighbours.
    Returns OK; otherwise the status times STATUS_UNIT plus the number of the entry it is about.
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
        take_hops(plan, hops, row, values)
        assemble(plan, attributes[row], values, out[row])
    return OK


@inlined
def take_hops(plan: I64, hops: F64, row: int, values: F64) -> None:
    """Copy a payment's results of neighbours into its slots, before `assemble` uses them."""
    for number in range(plan[HEAD.hop_slot_count]):
        values[plan[HEAD.hop_slots_at] + number] = hops[row, number]


class EngineSlots(NamedTuple):
    """The frame of `fill_bound_vectors`: the arrays of `fill_vectors`, with room for the largest batch."""

    plan: int
    attributes: int
    presence: int
    states: int
    bounds: int
    words: int
    values: int
    out: int
    hops: int


SLOT = positions(EngineSlots)


@compiled(makes_arrays=True)
def fill_bound_vectors(frame_at: int, rows: int) -> int:
    """Run `fill_vectors` for the first `rows` payments, with the arrays of a frame."""
    plan = carray(address(frame_at, SLOT.plan), size(frame_at, SLOT.plan), np.int64)
    return fill_vectors(
        plan,
        carray(address(frame_at, SLOT.attributes), (rows, plan[HEAD.row_width]), np.int64),
        carray(address(frame_at, SLOT.presence), size(frame_at, SLOT.presence), np.uint8),
        carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.uint8),
        carray(address(frame_at, SLOT.bounds), size(frame_at, SLOT.bounds), np.int64),
        carray(address(frame_at, SLOT.words), size(frame_at, SLOT.words), np.int64),
        carray(address(frame_at, SLOT.values), size(frame_at, SLOT.values), np.float64),
        carray(address(frame_at, SLOT.out), (rows, plan[HEAD.feature_count]), np.float32),
        carray(address(frame_at, SLOT.hops), (rows, plan[HEAD.hop_slot_count]), np.float64),
    )


class Events(NamedTuple):
    """Events of one kind of entity, grouped by entity: group g is rows groups[g] to groups[g + 1].

    Every column but `groups` has shape (events,).

    - `kind` is PAYMENT, LABEL or DECLINE.
    - `payment` is the row of the event's payment among the attributes.
    - `weight` is 1 for a payment; `update` says what it is for the others.
    - `source` and `offset` say which record of which source partition the event came from. Source -1 means that the
      kernel does not check whether the profile contains the event already.
    - `row` is the row of the slots to fill just before the event is added, or -1 to fill none.

    For example, one card with two payments, and another with one:

        groups   [0, 2, 3]        payment  [0, 2, 1]
        kind     [0, 0, 0]        weight   [1, 1, 1]
        source   [5, 5, 5]        offset   [7, 9, 8]        row  [-1, -1, -1]
    """

    groups: NDArray[np.int64]
    kind: NDArray[np.uint8]
    payment: NDArray[np.int64]
    weight: NDArray[np.int64]
    source: NDArray[np.int64]
    offset: NDArray[np.int64]
    row: NDArray[np.int64]

    def of_groups(self, wanted: slice) -> Events:
        """Returns the events of a run of groups. The new columns share memory with these."""
        groups = self.groups[wanted.start : wanted.stop + 1]
        rows = slice(int(groups[0]), int(groups[-1]))
        return Events(
            groups=groups - groups[0],
            kind=self.kind[rows],
            payment=self.payment[rows],
            weight=self.weight[rows],
            source=self.source[rows],
            offset=self.offset[rows],
            row=self.row[rows],
        )


class PackedProfiles(NamedTuple):
    """Packed profiles one after the other: data[bounds[g] : bounds[g + 1]] is that of group g, empty if unknown."""

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]


class EventResults(NamedTuple):
    """Arrays that `apply_events` overwrites: the new profiles, and which events were added or late."""

    profiles: PackedProfiles
    applied: NDArray[np.uint8]
    """Shape (events,): 1 for an event that was added, 0 for one that the profile contained already."""
    late: NDArray[np.int64]
    """Shape (1,): how many of the added events came too late for at least one table."""


@compiled(releases_gil=True)
def apply_events(
    plan: I64,
    entity: int,
    profiles: PackedProfiles,
    events: Events,
    attributes: I64,
    words: I64,
    slots: F64,
    results: EventResults,
) -> int:
    """Add events to the profiles of one kind of entity, each profile's events in their order.

    `attributes` has shape (payments, row width); `words` is scratch for one profile. Where events.row[i] >= 0,
    slots[events.row[i]] is filled with what the profile knew just before event i.
    An event changes nothing if the profile already contains its offset of its source.
    Returns OK; otherwise the status times STATUS_UNIT plus the group it is about. NO_ROOM asks for more room in
    results.profiles.data.
    """
    bounds, groups = profiles.bounds, events.groups
    out, out_bounds = results.profiles.data, results.profiles.bounds
    applied, late = results.applied, results.late
    kind, payment, weight = events.kind, events.payment, events.weight
    source, offset, row = events.source, events.offset, events.row
    position = 0
    out_bounds[0] = 0
    late[0] = 0
    for group in range(len(groups) - 1):
        if bounds[group] == bounds[group + 1]:
            clear(plan, entity, words)
        else:
            status = unpack(plan, entity, profiles.data, bounds[group], bounds[group + 1], words)
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
