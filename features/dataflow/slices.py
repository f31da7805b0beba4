"""Cuts the events of a busy entity into slices, so that no partition waits for one merchant.

    events of m7    ├──── slice 0 ────┼──── slice 1 ────┼──── slice 2 ────┤   in order of places
    folded alone            f0                f1                              without slots
    begins with            nothing            f0             merge(f0, f1)    now with slots

1. `BusyEntities` counts the events of a sample by entity. An entity with more than `events_max` gets slices: equal runs
   of places.
2. Each slice but the last is folded from nothing (features/dataflow/fold.py, Profiles).
3. The profiles are merged here: the one before each slice is that of all events before it, to the bit, since profiles
   merge to the bit (features/kernel/merge.py).
4. The fold with slots begins each slice with its profile.

An entity without slices is folded once. The number of slices changes no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.dataflow.dataflow_engine import Batches, group_starts, values_of
from paywarden.features.profiles.engine import FeatureEngine

SLICE_EVENTS = 1 << 22
"""The most events of an entity that one task folds: some seconds of work."""
_SAMPLED_EVERY = 16
_SEPARATOR = b"\x1e"
# More would make the list of profiles on the driver long.
SLICES_MAX = 4096


def sampled_every(events_max: int) -> int:
    """Returns N: to find busy entities, the events of every N-th payment are counted."""
    return min(_SAMPLED_EVERY, events_max)


@dataclass(frozen=True)
class BusyEntities:
    """Yields the entities with more than `events_max` events, from a sample of keyed events in order of the key."""

    events_max: int
    schema = pa.schema([("_entity", pa.int8()), ("_key", pa.binary()), ("count", pa.int64())])

    def run(self, batches: Batches, _: int) -> Batches:
        open_entity, count = (-1, b""), 0
        found: list[tuple[int, bytes, int]] = []

        def close() -> None:
            if count * sampled_every(self.events_max) > self.events_max:
                found.append((*open_entity, count * sampled_every(self.events_max)))

        for batch in batches:
            entity, keys = batch["_entity"], batch["_key"]
            starts = group_starts(entity, keys)
            names = zip(*(column.take(pa.array(starts)).to_pylist() for column in (entity, keys)), strict=True)
            for mine, events in zip(names, np.diff(np.append(starts, len(keys))).tolist(), strict=True):
                if mine != open_entity:
                    close()
                    open_entity, count = mine, 0
                count += events
        close()
        if found:
            columns = zip(zip(*found, strict=True), self.schema.types, strict=True)
            yield pa.record_batch([pa.array(values, kind) for values, kind in columns], schema=self.schema)


@dataclass(frozen=True)
class Slices:
    """The slices of busy entities. `counts`: by entity and key, how many; `before`: the profile before each slice."""

    counts: Mapping[tuple[int, bytes], int] = field(default_factory=dict)
    stop: int = 0
    """The first place behind all events."""
    before: Mapping[tuple[int, bytes], bytes] = field(default_factory=dict)

    @classmethod
    def of_busy(cls, rows: Iterable[pa.Table], stop: int, events_max: int) -> Slices:
        """Returns slices, without their profiles, from the rows of BusyEntities."""
        busy = [row for table in rows for row in values_of(table)]
        return cls({(entity, key): min(SLICES_MAX, -(-count // events_max)) for entity, key, count in busy}, stop)

    def keys(self, entity: int, keys: pa.Array, place: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.bool_]]:
        """Returns the keys of events of one kind of entity, and which are of a busy one: these end with the slice."""
        busy = pa.array([key for of_entity, key in self.counts if of_entity == entity], pa.binary())
        is_busy = pc.is_in(keys, value_set=busy).to_numpy(zero_copy_only=False)
        if not is_busy.any():
            return keys, is_busy
        texts = keys.to_pylist()
        for row in np.flatnonzero(is_busy).tolist():
            number = min(int(place[row]), self.stop - 1) * self.counts[entity, texts[row]] // self.stop
            texts[row] = sliced(texts[row], number)
        return pa.array(texts, pa.binary()), is_busy

    def with_profiles(
        self, features: FeatureEngine, rows: Iterable[pa.Table]
    ) -> tuple[Slices, list[tuple[int, bytes, bytes]]]:
        """Returns the slices with the profile before each, and the profile of each busy entity after all events.

        `rows` are the profiles of slices that were folded alone.
        """
        alone: dict[tuple[int, bytes], bytes] = {}
        for table in rows:
            for entity, key, state in values_of(table):
                alone[entity, key] = state
        before: dict[tuple[int, bytes], bytes] = {}
        after = []
        for (entity, key), count in self.counts.items():
            so_far = b""
            for number in range(count):
                name = entity, sliced(key, number)
                if so_far:
                    before[name] = so_far
                if (state := alone.get(name)) is not None:
                    so_far = features.merge(entity, [so_far, state]) if so_far else state
            after.append((entity, key, so_far))
        return Slices(self.counts, self.stop, before), after


NO_SLICES = Slices()


def sliced(key: bytes, number: int) -> bytes:
    """Returns the key of a slice. No key of an entity holds the separator."""
    return key + _SEPARATOR + number.to_bytes(2, "big")
