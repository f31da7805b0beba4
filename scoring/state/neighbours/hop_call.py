"""The compiled half of `Hops`: features two hops away for a whole chunk, from the profiles of its own entities.

    profiles of cards ─► list ─► identities of merchants ─► look up ─► profiles of merchants ─► fill ─► hops

Each step is the compiled function that `Hops` also calls one payment at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import NEIGHBOURS_MAX, OK
from paywarden.features.kernel.neighbours import fill_hops, list_neighbours
from paywarden.features.kernel.plan_schema import HEAD, positions
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.scoring.state.neighbours import look_up as found_by
from paywarden.scoring.state.neighbours.look_up import look_up_neighbours


class HopSlots(NamedTuple):
    """The frame of `fill_bound_hops`. The first six are those of `fill_vectors` (features/kernel/batches.py)."""

    plan: int
    attributes: int
    presence: int
    states: int
    bounds: int
    words: int
    look_up: int
    """int64, one number. The address of the frame of `look_up_neighbours`."""
    values: int
    vector: int
    found: int
    """These three are scratch space of `fill_hops` (features/kernel/neighbours.py)."""
    hops: int
    """Filled: shape (payments, hop slots), float64."""


SLOT = positions(HopSlots)


@compiled(makes_arrays=True)
def fill_bound_hops(frame_at: int, rows: int) -> bool:
    """Fill the hops of the first `rows` payments of a frame. Returns False if a profile or the mirror cannot be read.

    Then the hops hold anything.
    """
    plan = carray(address(frame_at, SLOT.plan), size(frame_at, SLOT.plan), np.int64)
    attributes = carray(address(frame_at, SLOT.attributes), (rows, plan[HEAD.row_width]), np.int64)
    words = carray(address(frame_at, SLOT.words), size(frame_at, SLOT.words), np.int64)
    look_up_at = carray(address(frame_at, SLOT.look_up), 1, np.int64)[0]
    identities = address(look_up_at, found_by.SLOT.identities)
    status = list_neighbours(
        plan,
        attributes,
        carray(address(frame_at, SLOT.presence), size(frame_at, SLOT.presence), np.uint8),
        carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.uint8),
        carray(address(frame_at, SLOT.bounds), size(frame_at, SLOT.bounds), np.int64),
        words,
        carray(identities, (rows, plan[HEAD.listed_count]), np.int64),
    )
    if status != OK or look_up_neighbours(look_up_at, rows) != 0:
        return False
    results = size(frame_at, SLOT.found) // NEIGHBOURS_MAX
    status = fill_hops(
        plan,
        attributes,
        carray(address(look_up_at, found_by.SLOT.presence), size(look_up_at, found_by.SLOT.presence), np.uint8),
        carray(address(look_up_at, found_by.SLOT.states), size(look_up_at, found_by.SLOT.states), np.uint8),
        carray(address(look_up_at, found_by.SLOT.bounds), size(look_up_at, found_by.SLOT.bounds), np.int64),
        words,
        carray(address(frame_at, SLOT.values), size(frame_at, SLOT.values), np.float64),
        carray(address(frame_at, SLOT.vector), plan[HEAD.feature_count], np.float32),
        carray(address(frame_at, SLOT.found), (NEIGHBOURS_MAX, results), np.float32),
        carray(address(frame_at, SLOT.hops), (rows, plan[HEAD.hop_slot_count]), np.float64),
    )
    return bool(status == OK)
