"""Features two hops away: the neighbours that a payment's entity remembers are asked for their own features.

    events of sources ─ exchange by key ─ ListedNeighbours ─┐ the identities of the last merchants of a card
    events of targets ─ KeyedEvents, by identity ───────────┴► exchange by identity ─ NeighbourValues ─► values

A read stands at the place of the payment that asks, before the payment itself: all that is known before this payment
counts, and nothing else. Values go back to the payment by its place, the group of neighbours and the position in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.dataflow.engine import BUCKET, Batches, buckets_of, packed, unpacked_int64
from paywarden.features.dataflow.events import KIND
from paywarden.features.dataflow.fold import (
    ATTRIBUTES,
    ENTITY,
    IS_WANTED,
    KEY,
    KEYED,
    PLACE,
    EntityRun,
    KeyedEvents,
    OpenProfile,
    Window,
    events_of,
    window_buckets,
)
from paywarden.features.dataflow.slices import Slices
from paywarden.features.kernel.pending import READS
from paywarden.features.profiles.engine import FeatureEngine

HOP, POSITION = "_hop", "_position"
ASKED = pa.schema([*KEYED, (HOP, pa.int8()), (POSITION, pa.int8())])
# Of one place, reads come before the event.
HOP_ORDER = (ENTITY, KEY, PLACE, HOP)
NO_HOP = 127


@dataclass(frozen=True)
class ListedNeighbours:
    """Yields a read for each neighbour that stands in a wanted payment's list.

    `slices`: of the sources. `targets`: of the neighbours, by identity.
    """

    features: FeatureEngine
    partitions: int
    slices: Slices
    targets: Slices
    schema = ASKED

    def run(self, batches: Batches, _: int) -> Batches:
        features, plan, profile = self.features, self.features.plan, OpenProfile(self.slices.before)
        none = features.new_slots(0)
        for batch in batches:
            for run in profile.runs(batch):
                wanted = np.flatnonzero(run.rows[IS_WANTED].to_numpy(zero_copy_only=False))
                row = np.full(len(run.rows), -1, dtype=np.int64)
                row[wanted] = np.arange(len(wanted))
                kind = run.rows[KIND].to_numpy().astype(np.uint8)
                attributes = unpacked_int64(run.rows[ATTRIBUTES], plan.row_width)
                lists = np.zeros((len(wanted), len(plan.listed)), dtype=np.int64)
                events = events_of(run, kind, row)
                features.list_in_order(run.entity, events, attributes, run.states, lists)
                row = np.full_like(row, -1)
                events = events_of(run, kind, row)
                profile.close(run, features.apply(run.entity, events, attributes, run.states, none).states)
                yield from self._reads(run, wanted, lists, attributes)

    def _reads(
        self, run: EntityRun, wanted: NDArray[np.int64], lists: NDArray[np.int64], attributes: NDArray[np.int64]
    ) -> Batches:
        start = 0
        place = run.rows[PLACE].to_numpy()
        for number, hop in enumerate(self.features.plan.hops):
            asked = lists[:, start : start + hop.capacity]
            start += hop.capacity
            if hop.source != run.entity:
                continue
            of_wanted, position = np.nonzero(asked)
            identities, rows = asked[of_wanted, position], wanted[of_wanted]
            count = len(rows)
            keys, _ = self.targets.keys(hop.target, packed(identities[:, None]), place[rows])
            arrays = [
                buckets_of(keys, self.partitions),
                pa.array(np.full(count, hop.target, dtype=np.int8)),
                keys,
                pa.array(place[rows]),
                pa.array(np.full(count, READS, dtype=np.int8)),
                pa.array(np.ones(count, dtype=np.int8)),
                pa.array(np.zeros(count, dtype=np.bool_)),
                packed(attributes[rows]),
                pa.array(np.full(count, number, dtype=np.int8)),
                pa.array(position.astype(np.int8)),
            ]
            yield pa.record_batch(arrays, schema=ASKED)


@dataclass(frozen=True)
class TargetEvents:
    """Gives keyed events the columns of reads."""

    keyed: KeyedEvents
    schema = ASKED

    def run(self, batches: Batches, part: int) -> Batches:
        for batch in self.keyed.run(batches, part):
            no_hop = pa.array(np.full(len(batch), NO_HOP, dtype=np.int8))
            yield pa.record_batch([*batch.columns, no_hop, no_hop], schema=ASKED)


@dataclass(frozen=True)
class NeighbourValues:
    """Yields the values that each read finds, float32: missing for a neighbour without any event so far."""

    features: FeatureEngine
    window: Window
    partitions: int
    slices: Slices
    schema = pa.schema(
        [
            (BUCKET, pa.int32()),
            (PLACE, pa.int64()),
            (HOP, pa.int8()),
            (POSITION, pa.int8()),
            ("_values", pa.binary()),
        ]
    )

    def run(self, batches: Batches, _: int) -> Batches:
        plan, profile = self.features.plan, OpenProfile(self.slices.before)
        for batch in batches:
            for run in profile.runs(batch):
                kind = run.rows[KIND].to_numpy().astype(np.uint8)
                attributes = unpacked_int64(run.rows[ATTRIBUTES], plan.row_width)
                hop = run.rows[HOP].to_numpy()
                for number, group in enumerate(plan.hops):
                    reads = np.flatnonzero((kind == READS) & (hop == number))
                    if len(reads):
                        found = np.full((len(reads), len(group.results)), np.nan, dtype=np.float32)
                        self._read(number, run, kind, attributes, reads, found)
                        yield self._batch(run, reads, found)
                states = self._after(run, kind, attributes)
                profile.close(run, states)

    def _read(
        self,
        number: int,
        run: EntityRun,
        kind: NDArray[np.uint8],
        attributes: NDArray[np.int64],
        reads: NDArray[np.int64],
        found: NDArray[np.float32],
    ) -> None:
        """Let the reads of one group find values; those of other groups do nothing."""
        row = np.full(len(kind), -1, dtype=np.int64)
        row[reads] = np.arange(len(reads))
        is_event = (kind != READS) | (row >= 0)
        kept = np.flatnonzero(is_event)
        # A group may lose all of its events, and stay as an empty one.
        groups = np.concatenate(([0], np.cumsum(is_event)))[np.append(run.starts, len(kind))].astype(np.int64)
        events = events_of(run, kind, row)
        events = events._replace(
            groups=groups,
            kind=kind[kept],
            payment=kept,
            weight=events.weight[kept],
            source=events.source[kept],
            offset=events.offset[kept],
            row=row[kept],
        )
        self.features.read_in_order(number, events, attributes, run.states, found)

    def _after(self, run: EntityRun, kind: NDArray[np.uint8], attributes: NDArray[np.int64]) -> list[bytes | None]:
        """Returns the profiles after the events of a run; None where there were only reads so far."""
        is_event = kind != READS
        kept = np.flatnonzero(is_event)
        groups = np.concatenate(([0], np.cumsum(is_event)))[np.append(run.starts, len(kind))].astype(np.int64)
        # Only the last group goes on in another batch.
        last = slice(int(groups[-2]), int(groups[-1]))
        if last.start == last.stop:
            return [run.states[-1]]
        kept = kept[last]
        nowhere = np.full(len(kept), -1, dtype=np.int64)
        whole = events_of(run, kind, np.full(len(kind), -1, dtype=np.int64))
        events = whole._replace(
            groups=np.array([0, len(kept)]),
            kind=kind[kept],
            payment=kept,
            weight=whole.weight[kept],
            source=nowhere,
            offset=nowhere,
            row=nowhere,
        )
        none = self.features.new_slots(0)
        return [*self.features.apply(run.entity, events, attributes, [run.states[-1]], none).states]

    def _batch(self, run: EntityRun, reads: NDArray[np.int64], found: NDArray[np.float32]) -> pa.RecordBatch:
        place = run.rows[PLACE].to_numpy()[reads]
        taken = pa.array(reads)
        arrays = [
            window_buckets(place, self.window, self.partitions),
            pa.array(place),
            run.rows[HOP].take(taken),
            run.rows[POSITION].take(taken),
            packed(found),
        ]
        return pa.record_batch(arrays, schema=self.schema)
