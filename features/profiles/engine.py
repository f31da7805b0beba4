"""The kernel with its buffers, as stream, training, replay and scoring use it.

    engine = FeatureEngine()                          compiles the catalogue into a plan
    engine.apply(0, events, rows, states, slots)      new packed profiles of entity 0, and slots
    engine.fill_vectors(rows, presence, ...)          vectors from packed profiles

An engine is not thread-safe, since it reuses its scratch. Each process and each thread needs its own.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.kernel.batches import SLOT, EventResults, Events, PackedProfiles
from paywarden.features.kernel.pending import apply_with_pending
from paywarden.features.kernel.plan_schema import entity_section
from paywarden.features.kernel.toolkit.frame import Frame
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
# The types of the arrays that `bind` takes, in their order.
_BOUND_TYPES = (np.int64, np.uint8, np.uint8, np.int64, np.float32, np.float64)
# The bytes that an event adds to a profile on average, with a new tile in every table. If the room is too small, the
# engine doubles it and tries again.
_BYTES_PER_EVENT = 100


class Pending(NamedTuple):
    """Arguments of `apply` where profiles lag and a scoring host sees what they lack (features/kernel/pending.py)."""

    hosts: NDArray[np.int64]
    """Shape (rows of attributes,): the host that answers each payment."""
    limits: NDArray[np.int64]
    """The lifetime of a pending payment in ms, and the most that are added to one profile."""


class UnreadableProfile(Misconfigured):
    """A stored profile cannot be used. The message says why, and does not name the entity's id."""


@dataclass(frozen=True)
class AppliedEvents:
    """The result of `apply`.

    `states` holds the new packed profile of each group. `applied`, shape (events,), is 1 for each event that the
    profile did not contain yet. `late` counts the events that came too late for at least one table.
    """

    states: list[bytes]
    applied: NDArray[np.uint8]
    late: int


class FeatureEngine:
    """A compiled catalogue with its buffers.

    When an engine reads a profile written under another catalogue, it migrates the profile: the measures that both
    catalogues keep go over.
    """

    def __init__(self, catalogue: Catalogue = CATALOGUE, key: IdentityKey = LAPTOP_KEY) -> None:
        """Raises Misconfigured when a profile of this catalogue could outgrow a store's record."""
        self.plan: Plan = compile_plan(catalogue, key)
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
        # A neighbour's values must not overwrite those of the payment.
        self._neighbour_values = np.zeros(plan.value_count if plan.hops else 0)
        self._neighbour_vector = np.zeros(plan.feature_count if plan.hops else 0, dtype=np.float32)
        results_max = max((len(hop.results) for hop in plan.hops), default=0)
        self._neighbour_found = np.zeros((kernel.NEIGHBOURS_MAX, results_max), dtype=np.float32)
        self._translations: dict[tuple[int, bytes], tuple[Shape, NDArray[np.int64]]] = {}

    def clone_for_thread(self) -> FeatureEngine:
        """Returns an engine of the same catalogue for another thread. The two share nothing that is written to."""
        other = copy.copy(self)
        other._make_scratch()
        return other

    def new_slots(self, row_count: int) -> NDArray[np.float64]:
        """Returns slots for roll-up results, shape (row_count, slots), all NaN."""
        return np.full((row_count, self.plan.slot_count), np.nan)

    def apply(
        self,
        entity: int,
        events: Events,
        attributes: NDArray[np.int64],
        states: Sequence[bytes | None],
        slots: NDArray[np.float64],
        pending: Pending | None = None,
    ) -> AppliedEvents:
        """Returns one kind of entity's profiles after their events, and fills rows of `slots` as `events.row` says.

        `attributes` holds the rows of the events' payments, shape (rows, plan.row_width). `states` holds the packed
        profile of each group, None for an unknown entity. With `pending`, events are of the kinds of
        features/kernel/pending.py and have no sources. Raises UnreadableProfile.
        """
        current = list(states)
        room = sum(len(state) for state in states if state is not None) * 2 + _BYTES_PER_EVENT * len(events.kind)
        room += _BYTES_PER_EVENT * len(states) + self.profile_bytes_max
        while True:
            status, applied = self._try_to_apply(entity, events, attributes, current, slots, room, pending)
            if applied is not None:
                return applied
            reason = status // kernel.STATUS_UNIT
            if reason == kernel.NO_ROOM:
                room *= 2
            elif reason == kernel.WRONG_DIGEST:
                # Migrate all profiles at once: after a change of the catalogue, most of them need it.
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
        pending: Pending | None,
    ) -> tuple[int, AppliedEvents | None]:
        out = np.empty(room, dtype=np.uint8)
        out_bounds = np.zeros(len(states) + 1, dtype=np.int64)
        applied = np.zeros(len(events.kind), dtype=np.uint8)
        late = np.zeros(1, dtype=np.int64)
        results = EventResults(PackedProfiles(out, out_bounds), applied, late)
        profiles = _packed(states)
        if pending is None:
            status = kernel.apply_events(
                self.plan.words, entity, profiles, events, attributes, self._words, slots, results
            )
        else:
            queue = np.empty(len(events.kind), dtype=np.int64)
            copied, row = np.empty_like(self._words), np.empty(self.plan.row_width, dtype=np.int64)
            status = apply_with_pending(
                self.plan.words, entity, profiles, events, attributes, self._words, slots, results, pending.hosts,
                queue, copied, row, pending.limits,
            )  # fmt: skip
        if status != kernel.OK:
            return status, None
        ends = out_bounds.tolist()
        buffer = out[: ends[-1]].tobytes()
        return status, AppliedEvents([buffer[a:b] for a, b in itertools.pairwise(ends)], applied, int(late[0]))

    def merge(self, entity: int, states: Sequence[bytes]) -> bytes:
        """Returns the profile of all events whose profiles are in `states`: each event is in one of them.

        It has the bytes that `apply` gives for all events together, in any order. Raises UnreadableProfile.
        """
        profiles = _packed([self.migrated(entity, state) for state in states])
        out = np.empty(self.profile_bytes_max + kernel.SLACK_BYTES, dtype=np.uint8)
        size = kernel.merge_packed(
            self.plan.words, entity, profiles.data, profiles.bounds, self._words, np.empty_like(self._words), out
        )
        if size < 0:
            raise self._unreadable(-size // kernel.STATUS_UNIT, entity)
        return out[:size].tobytes()

    def vectors_of_slots(
        self, attributes: NDArray[np.int64], slots: NDArray[np.float64], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Returns vectors, shape (rows, features), from filled slots. `attributes`: shape (rows, plan.row_width).

        With `out`, a C-contiguous array of this shape, they are written there.
        """
        if out is None:
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
        hops: NDArray[np.float64] | None = None,
    ) -> None:
        """Fill `out` with vectors from packed profiles. kernel.fill_vectors has the shapes. Raises UnreadableProfile.

        All arrays must be C-contiguous and writable, as in `warm_up`. Other arrays would trigger a compilation.
        `hops` are the results of `fill_hops`; without them, features two hops away are missing.
        """
        if hops is None:
            hops = self.new_hops(len(attributes))
        results = out, hops
        self._fill(
            lambda states, bounds: kernel.fill_vectors(
                self.plan.words, attributes, presence, states, bounds, self._words, self._values, *results
            ),
            range(self.plan.entity_count), presence, states, bounds,
        )  # fmt: skip

    def new_hops(self, row_count: int) -> NDArray[np.float64]:
        """Returns results of neighbours, shape (row_count, plan.hop_slot_count), all NaN."""
        return np.full((row_count, self.plan.hop_slot_count), np.nan)

    def list_neighbours(
        self,
        attributes: NDArray[np.int64],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
        identities: NDArray[np.int64],
    ) -> None:
        """Fill `identities` with the neighbours of payments, 0 where there is none, from packed profiles.

        `plan.listed` has the entity of each column. kernel.list_neighbours has the shapes. Raises UnreadableProfile.
        """
        self._fill(
            lambda states, bounds: kernel.list_neighbours(
                self.plan.words, attributes, presence, states, bounds, self._words, identities
            ),
            range(self.plan.entity_count), presence, states, bounds,
        )  # fmt: skip

    def fill_hops(
        self,
        attributes: NDArray[np.int64],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
        hops: NDArray[np.float64],
    ) -> None:
        """Fill `hops` from the packed profiles of neighbours. kernel.fill_hops has the shapes.

        Raises UnreadableProfile.
        """
        self._fill(
            lambda states, bounds: kernel.fill_hops(
                self.plan.words, attributes, presence, states, bounds, self._words, *self.neighbour_scratch, hops
            ),
            self.plan.listed, presence, states, bounds,
        )  # fmt: skip

    def _fill(
        self,
        fill: Callable[[NDArray[np.uint8], NDArray[np.int64]], int],
        entities: Sequence[int],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
    ) -> None:
        """Run a function of the kernel with packed profiles, and with migrated ones if they are of another catalogue.

        `entities` has the entity of each entry of a payment. Raises UnreadableProfile.
        """
        status = fill(states, bounds)
        if status == kernel.OK:
            return
        reason = status // kernel.STATUS_UNIT
        if reason != kernel.WRONG_DIGEST:
            raise self._unreadable(reason, entities[status % kernel.STATUS_UNIT % len(entities)])
        self._fill(fill, entities, presence, *self._all_migrated(entities, presence, states, bounds))

    def list_in_order(
        self,
        entity: int,
        events: Events,
        attributes: NDArray[np.int64],
        states: Sequence[bytes | None],
        lists: NDArray[np.int64],
    ) -> None:
        """Fill rows of `lists`, shape (rows, listed), with neighbours, as `events.row` says.

        The arguments are those of `apply`; the profiles stay as they are. Raises UnreadableProfile.
        """
        profiles = _packed(states)
        status = kernel.list_in_order(self.plan.words, entity, profiles, events, attributes, self._words, lists)
        if status != kernel.OK:
            raise self._unreadable(status // kernel.STATUS_UNIT, entity)

    def read_in_order(
        self,
        hop: int,
        events: Events,
        attributes: NDArray[np.int64],
        states: Sequence[bytes | None],
        found: NDArray[np.float32],
    ) -> None:
        """Fill rows of `found` with values of neighbours of group `hop`. kernel.read_in_order has the shapes.

        The profiles stay as they are. Raises UnreadableProfile.
        """
        profiles, (values, vector, _) = _packed(states), self.neighbour_scratch
        status = kernel.read_in_order(
            self.plan.words, hop, profiles, events, attributes, self._words, values, vector, found
        )
        if status != kernel.OK:
            raise self._unreadable(status // kernel.STATUS_UNIT, self.plan.hops[hop].target)

    def combine(self, hop: int, found: NDArray[np.float32], slots: NDArray[np.float64]) -> None:
        """Fill the hop slots of group `hop` from its neighbours' values. kernel.combine_rows has the shapes."""
        kernel.combine_rows(self.plan.words, hop, found, slots)

    def bind(
        self,
        attributes: NDArray[np.int64],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
        out: NDArray[np.float32],
        hops: NDArray[np.float64] | None = None,
    ) -> Callable[[int], None]:
        """Returns a function that runs `fill_vectors` for the first `rows` payments of these arrays.

        It is for a caller that always uses the same arrays: inspecting them takes as long as the work itself. The
        function uses their content at the time of the call, keeps them alive, and raises UnreadableProfile.
        """
        entities, rows_max = self.plan.entity_count, len(attributes)
        if hops is None:
            hops = self.new_hops(rows_max)
        assert attributes.shape == (rows_max, self.plan.row_width)
        assert hops.shape == (rows_max, self.plan.hop_slot_count)
        assert out.shape == (rows_max, self.plan.feature_count)
        assert len(presence) >= rows_max * entities
        assert len(bounds) > rows_max * entities
        bound: tuple[NDArray[Any], ...] = (attributes, presence, states, bounds, out, hops)
        for array, kind in zip(bound, _BOUND_TYPES, strict=True):
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
            "hops": hops,
        }
        frame = Frame(SLOT, arrays)
        frame_at = frame.address

        def fill(rows: int) -> None:
            assert 0 <= rows <= rows_max
            if kernel.fill_bound_vectors(frame_at, rows) != kernel.OK:
                # Rare. The unbound call migrates profiles, or says what is wrong. The assertion keeps the frame alive.
                assert frame.address == frame_at
                items = rows * entities
                mine = attributes[:rows], presence[:items], states, bounds[: items + 1], out[:rows], hops[:rows]
                self.fill_vectors(*mine)

        return fill

    def migrated(self, entity: int, state: bytes) -> bytes:
        """Returns a packed profile in the shape of this catalogue. A profile of this shape is returned unchanged.

        Raises UnreadableProfile for another layout version or a damaged profile.
        """
        if not state or state[0] != kernel.LAYOUT_VERSION:
            raise self._unreadable(kernel.WRONG_VERSION, entity)
        try:
            shape_and_steps = self._translation(entity, *shape_of(state))
            if shape_and_steps is None:
                return state
            shape, steps = shape_and_steps
            numbers = numbers_of(state, shape)
        except Misconfigured:
            raise self._unreadable(kernel.DAMAGED, entity) from None
        if kernel.migrate(self.plan.words, entity, steps, numbers, self._words) != kernel.OK:
            raise self._unreadable(kernel.DAMAGED, entity)
        out = np.empty(self.profile_bytes_max + kernel.SLACK_BYTES, dtype=np.uint8)
        size = kernel.pack(self.plan.words, entity, self._words, out, 0)
        return out[:size].tobytes()

    def _translation(self, entity: int, digest: bytes, encoded: bytes) -> tuple[Shape, NDArray[np.int64]] | None:
        """Returns the shape of a profile and its translation to this catalogue's shape; None if it has that shape."""
        plan = self.plan
        if int.from_bytes(digest, "little") == entity_section(plan.words, entity).digest:
            return None
        known = self._translations.get((entity, encoded))
        if known is None:
            shape = decode_shape(encoded)
            known = shape, translation(shape, plan.shapes[entity])
            self._translations[entity, encoded] = known
        return known

    def all_migrated(
        self, presence: NDArray[np.uint8], states: NDArray[np.uint8], bounds: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Returns the states and bounds with every profile in this catalogue's shape."""
        return self._all_migrated(range(self.plan.entity_count), presence, states, bounds)

    def _all_migrated(
        self,
        entities: Sequence[int],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Returns the states and bounds with every profile migrated. `entities` has that of each entry of a payment."""
        parts = []
        for item, (start, end) in enumerate(itertools.pairwise(bounds[: len(presence) + 1].tolist())):
            is_known = presence[item] == kernel.KNOWN
            entity = entities[item % len(entities)]
            parts.append(self.migrated(entity, states[start:end].tobytes()) if is_known else b"")
        ends = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=ends[1:])
        return np.frombuffer(bytearray().join(parts), dtype=np.uint8), ends

    @property
    def scratch(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The room for one profile's words and for a payment's values, for compiled code that fills vectors itself."""
        return self._words, self._values

    @property
    def neighbour_scratch(self) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """The arguments `values`, `vector` and `found` of `kernel.fill_hops`. They are empty without hops."""
        return self._neighbour_values, self._neighbour_vector, self._neighbour_found

    def unreadable(self, status: int) -> UnreadableProfile:
        """Returns the error of a status of `kernel.fill_vectors` that is not OK."""
        return self._unreadable(status // kernel.STATUS_UNIT, status % kernel.STATUS_UNIT % self.plan.entity_count)

    def warm_up(self) -> None:
        """Load or compile all compiled code, so that no later call pauses for it."""
        self.plan.key.of("")
        one, none = np.ones(1, dtype=np.int64), np.full(1, -1, dtype=np.int64)
        slots = self.new_slots(1)
        first = np.zeros(1, dtype=np.int64)
        events = Events(np.array([0, 1]), np.zeros(1, np.uint8), first, one, none, one, first)
        attributes = np.ones((1, self.plan.row_width), dtype=np.int64)
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
        if self.plan.hops:
            self._warm_up_hops(attributes, presence, states, bounds)
        # A profile of this shape under another digest looks like one of another shape.
        other = bytearray(state[:1] + bytes(byte ^ 255 for byte in state[1:5]) + state[5:])
        end = len(other) - kernel.CHECKSUM_BYTES
        sealed = kernel.checksum(np.frombuffer(other, dtype=np.uint8), 0, end)
        self.migrated(0, bytes(other[:end]) + sealed.to_bytes(kernel.CHECKSUM_BYTES, "little", signed=True))

    def _warm_up_hops(
        self,
        attributes: NDArray[np.int64],
        presence: NDArray[np.uint8],
        states: NDArray[np.uint8],
        bounds: NDArray[np.int64],
    ) -> None:
        listed = self.plan.listed
        self.list_neighbours(attributes, presence, states, bounds, np.zeros((1, len(listed)), dtype=np.int64))
        nobody = np.full(len(listed), kernel.ABSENT, dtype=np.uint8)
        self.fill_hops(attributes, nobody, states, np.zeros(len(listed) + 1, dtype=np.int64), self.new_hops(1))

    def _unreadable(self, reason: int, entity: int) -> UnreadableProfile:
        return UnreadableProfile(f"a stored {self.plan.entity_names[entity]} profile cannot be read: {_WRONG[reason]}")


def _packed(states: Sequence[bytes | None]) -> PackedProfiles:
    """Returns profiles as the kernel takes them; None for an unknown entity is empty there."""
    bounds = np.zeros(len(states) + 1, dtype=np.int64)
    np.cumsum([0 if state is None else len(state) for state in states], out=bounds[1:])
    # An array over `bytes` would be read-only, which numba compiles separately. Hence the bytearray.
    packed = np.frombuffer(bytearray().join(state for state in states if state is not None), dtype=np.uint8)
    return PackedProfiles(packed, bounds)
