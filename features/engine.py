"""The kernel with its buffers: what stream, training, replay and scoring call.

An engine is not thread-safe: it reuses its scratch. Each process, and each thread, makes its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import kernel
from features.catalogue import CATALOGUE
from features.declare import Catalogue
from features.plan import Plan, compile_plan
from features.store import RECORD_BYTES_MAX
from schemas.errors import Misconfigured

_WRONG = {
    kernel.WRONG_VERSION: f"it is not of layout version {kernel.LAYOUT_VERSION}",
    kernel.WRONG_DIGEST: "it belongs to another feature catalogue",
    kernel.TRUNCATED: "it is damaged",
    kernel.TOO_MANY_SOURCES: f"it has more than {kernel.SOURCES_MAX} source partitions",
}


class UnreadableProfile(Misconfigured):
    """A stored profile cannot be used with this catalogue; the message says why, not whose it is."""


@dataclass(frozen=True)
class Events:
    """Events of one kind of entity, grouped by entity: group g is rows groups[g] to groups[g + 1].

    All columns have shape (events,). `row` is where the vector's slots of an event go, -1 for nowhere;
    `source` is -1 for events that are not checked for having been applied before.
    """

    groups: NDArray[np.int64]
    kind: NDArray[np.uint8]
    time_ms: NDArray[np.int64]
    amount: NDArray[np.int64]
    weight: NDArray[np.int64]
    source: NDArray[np.int64]
    offset: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Applied:
    """`states` are the new packed profiles, one a group; `applied` is 1 for each event that was news."""

    states: list[bytes]
    applied: NDArray[np.uint8]
    late: int


class FeatureEngine:
    """A compiled catalogue, ready to work."""

    def __init__(self, catalogue: Catalogue = CATALOGUE) -> None:
        """Raises Misconfigured when a profile of this catalogue could outgrow a store's record."""
        self.plan: Plan = compile_plan(catalogue)
        plan = self.plan
        word_count = max(
            int(plan.words[plan.words[kernel.ENTITIES_AT + entity] + kernel.WORD_COUNT])
            for entity in range(plan.entity_count)
        )
        self._words = np.zeros(word_count, dtype=np.int64)
        # A variable-length integer of 63 bits takes nine bytes; five bytes of header come first.
        self.profile_bytes_max = 5 + 9 * word_count
        if self.profile_bytes_max > RECORD_BYTES_MAX:
            raise Misconfigured(
                f"feature catalogue: a profile may take {self.profile_bytes_max} bytes, a store takes "
                f"{RECORD_BYTES_MAX}: longer hops or shorter windows make it smaller"
            )
        self._slots = np.full(plan.slot_count, np.nan)
        derived_count = int(plan.words[kernel.DERIVED_COUNT])
        self._values = np.empty(kernel.REQUEST_VALUE_COUNT + plan.slot_count + derived_count)

    def new_slots(self, row_count: int) -> NDArray[np.float64]:
        """Room for roll-up results, shape (row_count, slots), everything missing."""
        return np.full((row_count, self.plan.slot_count), np.nan)

    def apply(self, entity: int, events: Events, states: Sequence[bytes | None], slots: NDArray[np.float64]) -> Applied:
        """New profiles of one kind of entity from its events; `slots` rows are filled as events ask.

        `states`: the packed profile of each group, None when unknown. Raises UnreadableProfile.
        """
        plan, event_count = self.plan, len(events.kind)
        lengths = [0 if state is None else len(state) for state in states]
        bounds = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        # Of a bytearray, because an array over bytes is read-only: to numba another type, compiled apart.
        packed = np.frombuffer(bytearray().join(state for state in states if state is not None), dtype=np.uint8)
        room = bounds[-1] + len(states) * plan.packed_bytes_fixed + event_count * plan.packed_bytes_per_event
        out = np.empty(int(room), dtype=np.uint8)
        out_bounds = np.zeros(len(states) + 1, dtype=np.int64)
        applied = np.zeros(event_count, dtype=np.uint8)
        late = np.zeros(1, dtype=np.int64)
        status = kernel.apply_events(
            plan.words, entity, packed, bounds, events.groups, events.kind, events.time_ms, events.amount,
            events.weight, events.source, events.offset, events.row, self._words, slots, out, out_bounds,
            applied, late,
        )  # fmt: skip
        if status != kernel.OK:
            raise self._unreadable(status // 2**32, entity)
        buffer, ends = out.tobytes(), out_bounds.tolist()
        return Applied([buffer[a:b] for a, b in itertools.pairwise(ends)], applied, int(late[0]))

    def vectors_of_slots(self, requests: NDArray[np.int64], slots: NDArray[np.float64]) -> NDArray[np.float32]:
        """Vectors from filled slots. `requests`: (rows, 2): time ms, amount. Result: (rows, features)."""
        out = np.empty((len(requests), self.plan.feature_count), dtype=np.float32)
        kernel.assemble_rows(self.plan.words, requests, slots, self._values, out)
        return out

    def fill_vectors(
        self,
        requests: NDArray[np.int64],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
        out: NDArray[np.float32],
    ) -> None:
        """Vectors from packed profiles; see kernel.fill_vectors for the shapes. Raises UnreadableProfile.

        All arrays are C-contiguous and writable, as `warm_up` has them: others would be compiled for first.
        """
        status = kernel.fill_vectors(
            self.plan.words, requests, presence, states, bounds, self._words, self._slots, self._values, out
        )
        if status != kernel.OK:
            raise self._unreadable(status // 2**32, status % 2**32)

    def warm_up(self) -> None:
        """Load or compile everything, so that no later call pauses for it."""
        one = np.ones(1, dtype=np.int64)
        slots = self.new_slots(1)
        events = Events(
            np.array([0, 1]), np.zeros(1, np.uint8), one, one, one, one * 0, one, np.zeros(1, dtype=np.int64)
        )
        state = self.apply(0, events, [None], slots).states[0]
        requests = np.ones((1, kernel.REQUEST_COLUMNS), dtype=np.int64)
        self.vectors_of_slots(requests, slots)
        presence = np.full(self.plan.entity_count, kernel.UNKNOWN, dtype=np.uint8)
        presence[0] = kernel.KNOWN
        bounds = np.full(self.plan.entity_count + 1, len(state), dtype=np.int64)
        bounds[0] = 0
        out = np.empty((1, self.plan.feature_count), dtype=np.float32)
        self.fill_vectors(requests, presence, np.frombuffer(bytearray(state), dtype=np.uint8), bounds, out)

    def _unreadable(self, reason: int, entity: int) -> UnreadableProfile:
        return UnreadableProfile(f"a stored {self.plan.entity_names[entity]} profile cannot be read: {_WRONG[reason]}")
