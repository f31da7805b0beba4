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

from paywarden.features.dataflow.dataflow_engine import BUCKET, Batches, buckets_of, packed, unpacked_int64
from paywarden.features.dataflow.events import KIND
from paywarden.features.dataflow.fold import (
    ATTRIBUTES,
    ENTITY,
    KEY,
    KEYED,
    PLACE,
    EntityRun,
    KeyedEvents,
    OpenProfile,
    Window,
    window_buckets,
)
from paywarden.features.dataflow.slices import Slices
from paywarden.features.kernel.pending import READS
from paywarden.features.profiles.engine import FeatureEngine

HOP, POSITION = "_hop", "_position"
ASKED = pa.schema([*KEYED, (HOP, pa.int8()), (POSITION, pa.int8())])
# A read sorts before the event of its own place.
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
                wanted = run.wanted()
                attributes = unpacked_int64(run.rows[ATTRIBUTES], plan.row_width)
                lists = np.zeros((len(wanted), len(plan.listed)), dtype=np.int64)
                features.list_in_order(run.entity, run.events(filled=wanted), attributes, run.states, lists)
                profile.close(run, features.apply(run.entity, run.events(), attributes, run.states, none).states)
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
        none = self.features.new_slots(0)
        for batch in batches:
            for run in profile.runs(batch):
                is_read = run.rows[KIND].to_numpy() == READS
                attributes = unpacked_int64(run.rows[ATTRIBUTES], plan.row_width)
                hop = run.rows[HOP].to_numpy()
                for number, group in enumerate(plan.hops):
                    is_mine = is_read & (hop == number)
                    reads = np.flatnonzero(is_mine)
                    if len(reads):
                        # Reads of other groups do nothing.
                        events = run.events(np.flatnonzero(is_mine | ~is_read), reads)
                        found = np.full((len(reads), len(group.results)), np.nan, dtype=np.float32)
                        self.features.read_in_order(number, events, attributes, run.states, found)
                        yield self._batch(run, reads, found)
                # Only the last group goes on in another batch. It has no profile while there are only reads.
                last = run._replace(rows=run.rows.slice(run.starts[-1]), starts=run.starts[:1], states=run.states[-1:])
                kept = np.flatnonzero(~is_read[run.starts[-1] :])
                states = last.states
                if len(kept):
                    events, rows = last.events(kept), attributes[run.starts[-1] :]
                    states = [*self.features.apply(run.entity, events, rows, states, none).states]
                profile.close(run, states)

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
