"""The kernel with its buffers: what stream, training, replay and scoring call.

An engine is not thread-safe: it reuses its scratch. Each process, and each thread, makes its own.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.kernel.batches import SLOT, EventResults, Events, PackedProfiles
from paywarden.features.kernel.frame import Frame
from paywarden.features.kernel.plan_schema import entity_section
from paywarden.features.profiles.plan import Plan, compile_plan
from paywarden.features.profiles.shape import Shape, decode_shape, numbers_of, shape_of, translation
from paywarden.features.stores.base import RECORD_BYTES_MAX
from paywarden.schemas.errors import Misconfigured

__all__ = ["AppliedEvents", "Events", "FeatureEngine", "UnreadableProfile"]

_WRONG = {
    kernel.WRONG_VERSION: f"it is not of layout version {kernel.LAYOUT_VERSION}",
    kernel.DAMAGED: "it is damaged",
    kernel.TOO_MANY_SOURCES: f"it has more than {kernel.SOURCES_MAX} source partitions",
}
# Of the arrays that `bind` is given, in their order.
_BOUND_TYPES = (np.int64, np.uint8, np.uint8, np.int64, np.float32)
# What a new tile in every table may add to a profile on average; where it is not enough, room is doubled.
_BYTES_PER_EVENT = 100


class UnreadableProfile(Misconfigured):
    """A stored profile cannot be used; the message says why, not whose it is."""


@dataclass(frozen=True)
class AppliedEvents:
    """`states` are the new packed profiles, one a group; `applied` is 1 for each event that was news."""

    states: list[bytes]
    applied: NDArray[np.uint8]
    late: int


class FeatureEngine:
    """A compiled catalogue, ready to work.

    A profile written under another catalogue is migrated where it is read: what both catalogues keep goes over.
    """

    def __init__(self, catalogue: Catalogue = CATALOGUE) -> None:
        """Raises Misconfigured when a profile of this catalogue could outgrow a store's record."""
        self.plan: Plan = compile_plan(catalogue)
        plan = self.plan
        entities = range(plan.entity_count)
        self.profile_bytes_max = max(plan.profile_bytes_max(entity) for entity in entities)
        if self.profile_bytes_max > RECORD_BYTES_MAX:
            raise Misconfigured(
                f"feature catalogue: a profile may take {self.profile_bytes_max} bytes, a store takes "
                f"{RECORD_BYTES_MAX}: longer hops or shorter windows make it smaller"
            )
        self._make_scratch()

    def _make_scratch(self) -> None:
        plan = self.plan
        self._words = np.zeros(max(map(plan.word_count, range(plan.entity_count))), dtype=np.int64)
        self._values = np.zeros(plan.value_count)
        self._translations: dict[tuple[int, bytes], tuple[Shape, NDArray[np.int64]]] = {}

    def clone_for_thread(self) -> FeatureEngine:
        """An engine of the same catalogue for another thread: it shares nothing that is written to."""
        other = copy.copy(self)
        other._make_scratch()
        return other

    def new_slots(self, row_count: int) -> NDArray[np.float64]:
        """Room for roll-up results, shape (row_count, slots), everything missing."""
        return np.full((row_count, self.plan.slot_count), np.nan)

    def apply(
        self,
        entity: int,
        events: Events,
        attributes: NDArray[np.int64],
        states: Sequence[bytes | None],
        slots: NDArray[np.float64],
    ) -> AppliedEvents:
        """New profiles of one kind of entity from its events; `slots` rows are filled as events ask.

        `attributes`: rows of the payments the events are of, shape (rows, ATTRIBUTE_COUNT). `states`: the packed
        profile of each group, None when unknown. Raises UnreadableProfile.
        """
        current = list(states)
        room = sum(len(state) for state in states if state is not None) * 2 + _BYTES_PER_EVENT * len(events.kind)
        room += _BYTES_PER_EVENT * len(states) + self.profile_bytes_max
        while True:
            status, applied = self._try_to_apply(entity, events, attributes, current, slots, room)
            if applied is not None:
                return applied
            reason = status // kernel.STATUS_UNIT
            if reason == kernel.NO_ROOM:
                room *= 2
            elif reason == kernel.WRONG_DIGEST:
                # All of them at once: after a change of the catalogue there is rarely one alone.
                current = [state and self.migrated(entity, state) for state in current]
            else:
                raise self._unreadable(reason, entity)

    def _try_to_apply(
        self,
        entity: int,
        events: Events,
        attributes: NDArray[np.int64],
        states: Sequence[bytes | None],
        slots: NDArray[np.float64],
        room: int,
    ) -> tuple[int, AppliedEvents | None]:
        bounds = np.zeros(len(states) + 1, dtype=np.int64)
        np.cumsum([0 if state is None else len(state) for state in states], out=bounds[1:])
        # Of a bytearray, because an array over bytes is read-only: to numba another type, compiled apart.
        packed = np.frombuffer(bytearray().join(state for state in states if state is not None), dtype=np.uint8)
        out = np.empty(room, dtype=np.uint8)
        out_bounds = np.zeros(len(states) + 1, dtype=np.int64)
        applied = np.zeros(len(events.kind), dtype=np.uint8)
        late = np.zeros(1, dtype=np.int64)
        results = EventResults(PackedProfiles(out, out_bounds), applied, late)
        status = kernel.apply_events(
            self.plan.words,
            entity,
            PackedProfiles(packed, bounds),
            events,
            attributes,
            self._words,
            slots,
            results,
        )
        if status != kernel.OK:
            return status, None
        ends = out_bounds.tolist()
        buffer = out[: ends[-1]].tobytes()
        return status, AppliedEvents([buffer[a:b] for a, b in itertools.pairwise(ends)], applied, int(late[0]))

    def vectors_of_slots(self, attributes: NDArray[np.int64], slots: NDArray[np.float64]) -> NDArray[np.float32]:
        """Vectors from filled slots. `attributes`: (rows, ATTRIBUTE_COUNT). Result: (rows, features)."""
        out = np.empty((len(attributes), self.plan.feature_count), dtype=np.float32)
        kernel.assemble_rows(self.plan.words, attributes, slots, self._values, out)
        return out

    def fill_vectors(
        self,
        attributes: NDArray[np.int64],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
        out: NDArray[np.float32],
    ) -> None:
        """Vectors from packed profiles; see kernel.fill_vectors for the shapes. Raises UnreadableProfile.

        All arrays are C-contiguous and writable, as `warm_up` has them: others would be compiled for first.
        """
        status = kernel.fill_vectors(
            self.plan.words, attributes, presence, states, bounds, self._words, self._values, out
        )
        if status == kernel.OK:
            return
        if status // kernel.STATUS_UNIT != kernel.WRONG_DIGEST:
            raise self._unreadable(status // kernel.STATUS_UNIT, status % kernel.STATUS_UNIT % self.plan.entity_count)
        self.fill_vectors(attributes, presence, *self._all_migrated(presence, states, bounds), out)

    def bind(
        self,
        attributes: NDArray[np.int64],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
        out: NDArray[np.float32],
    ) -> Callable[[int], None]:
        """A call that does `fill_vectors` of the first so many payments, with what these arrays hold by then.

        For a caller whose arrays stay: looking at them takes as long as the work. They are kept alive. The call
        raises UnreadableProfile.
        """
        entities, rows_max = self.plan.entity_count, len(attributes)
        assert attributes.shape == (rows_max, kernel.ATTRIBUTE_COUNT)
        assert out.shape == (rows_max, self.plan.feature_count)
        assert len(presence) >= rows_max * entities
        assert len(bounds) > rows_max * entities
        given: tuple[NDArray[Any], ...] = (attributes, presence, states, bounds, out)
        for array, kind in zip(given, _BOUND_TYPES, strict=True):
            assert array.dtype == kind
        arrays: dict[str, NDArray[Any]] = {
            "plan": self.plan.words,
            "attributes": attributes,
            "presence": presence,
            "states": states,
            "bounds": bounds,
            "words": self._words,
            "values": self._values,
            "out": out,
        }
        frame = Frame(SLOT, arrays)
        frame_at = frame.address

        def fill(rows: int) -> None:
            assert 0 <= rows <= rows_max
            if kernel.fill_bound_vectors(frame_at, rows) != kernel.OK:
                # Rare: the same again tells what is wrong, and migrates what can be. Naming the frame keeps it alive.
                assert frame.address == frame_at
                items = rows * entities
                self.fill_vectors(attributes[:rows], presence[:items], states, bounds[: items + 1], out[:rows])

        return fill

    def migrated(self, entity: int, state: bytes) -> bytes:
        """A packed profile as this catalogue would have it; one that is its own already comes back as it is.

        Raises UnreadableProfile when it is of another layout version, or damaged.
        """
        if not state or state[0] != kernel.LAYOUT_VERSION:
            raise self._unreadable(kernel.WRONG_VERSION, entity)
        try:
            found = self._translation(entity, *shape_of(state))
            if found is None:
                return state
            shape, steps = found
            numbers = numbers_of(state, shape)
        except Misconfigured:
            raise self._unreadable(kernel.DAMAGED, entity) from None
        if kernel.migrate(self.plan.words, entity, steps, numbers, self._words) != kernel.OK:
            raise self._unreadable(kernel.DAMAGED, entity)
        out = np.empty(self.profile_bytes_max + kernel.SLACK_BYTES, dtype=np.uint8)
        size = kernel.pack(self.plan.words, entity, self._words, out, 0)
        return out[:size].tobytes()

    def _translation(self, entity: int, digest: bytes, encoded: bytes) -> tuple[Shape, NDArray[np.int64]] | None:
        """What shape profiles have, and how they become this catalogue's; None when they are."""
        plan = self.plan
        if int.from_bytes(digest, "little") == entity_section(plan.words, entity).digest:
            return None
        known = self._translations.get((entity, encoded))
        if known is None:
            shape = decode_shape(encoded)
            known = shape, translation(shape, plan.shapes[entity])
            self._translations[entity, encoded] = known
        return known

    def _all_migrated(
        self, presence: NDArray[np.uint8], states: NDArray[np.uint8], bounds: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The same states and bounds with every profile in this catalogue's shape."""
        parts = []
        for item, (start, end) in enumerate(itertools.pairwise(bounds[: len(presence) + 1].tolist())):
            is_known = presence[item] == kernel.KNOWN
            entity = item % self.plan.entity_count
            parts.append(self.migrated(entity, states[start:end].tobytes()) if is_known else b"")
        ends = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=ends[1:])
        return np.frombuffer(bytearray().join(parts), dtype=np.uint8), ends

    def warm_up(self) -> None:
        """Load or compile everything, so that no later call pauses for it."""
        one, none = np.ones(1, dtype=np.int64), np.full(1, -1, dtype=np.int64)
        slots = self.new_slots(1)
        first = np.zeros(1, dtype=np.int64)
        events = Events(np.array([0, 1]), np.zeros(1, np.uint8), first, one, none, one, first)
        attributes = np.ones((1, kernel.ATTRIBUTE_COUNT), dtype=np.int64)
        state = self.apply(0, events, attributes, [None], slots).states[0]
        self.vectors_of_slots(attributes, slots)
        presence = np.full(self.plan.entity_count, kernel.UNKNOWN, dtype=np.uint8)
        presence[0] = kernel.KNOWN
        bounds = np.full(self.plan.entity_count + 1, len(state), dtype=np.int64)
        bounds[0] = 0
        out = np.empty((1, self.plan.feature_count), dtype=np.float32)
        states = np.frombuffer(bytearray(state), dtype=np.uint8)
        self.fill_vectors(attributes, presence, states, bounds, out)
        self.bind(attributes, presence, states, bounds, out)(1)
        # As if it were of another shape: its own, under another digest.
        self.migrated(0, state[:1] + bytes(byte ^ 255 for byte in state[1:5]) + state[5:])

    def _unreadable(self, reason: int, entity: int) -> UnreadableProfile:
        return UnreadableProfile(f"a stored {self.plan.entity_names[entity]} profile cannot be read: {_WRONG[reason]}")
