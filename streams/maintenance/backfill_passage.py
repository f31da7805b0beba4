"""Load a history on an engine of partitions into the profile store (features/dataflow).

    profiles ─ of each entity, by the partitions of the fold ─┐
    payments that may still get an outcome ─ their records ───┴► store, batch by batch

It writes the records of a backfill in one process, with the same bytes, but in another order, and begins at the start
when it is called again. A record that is there already is not written twice: the store takes the same bytes as the same
record, and refuses others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.dataflow.dataflow_engine import Batches
from paywarden.features.dataflow.events import KIND, KNOWN_MS, OUTCOMES, PAYMENT, known_labels
from paywarden.features.dataflow.fold import RowMaker
from paywarden.features.dataflow.vectors import Passage
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.stores.base import ProfileStore
from paywarden.schemas.payment_fields import TIME_MS_END
from paywarden.streams.maintenance.backfill import RecordEncoder, encoded_keys, require_empty, write_records
from paywarden.streams.maintenance.backfill_progress import (
    FINISHED,
    PAYMENT_PHASE,
    PROGRESS_KEY,
    BackfillOrigin,
    BackfillProgress,
    read_progress,
)

_DAY_S = 86_400
_WRITE_BATCH = 5_000


@dataclass(frozen=True)
class PaymentRecords:
    """Makes the records of payments from a time on, from events."""

    rows: RowMaker
    oldest_ms: int
    schema = pa.schema([("key", pa.binary()), ("record", pa.binary())])

    def run(self, batches: Batches, _: int) -> Batches:
        plan = self.rows.features.plan
        encoder = RecordEncoder(plan)
        for batch in batches:
            kept = (batch[KIND].to_numpy() == PAYMENT) & (batch[KNOWN_MS].to_numpy() >= self.oldest_ms)
            taken = batch.take(pa.array(np.flatnonzero(kept)))
            payments = self.rows.of(taken)
            columns = [
                _keys_of(payments.history, name, fields, plan.key)
                for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True)
            ]
            label = known_labels(taken[OUTCOMES], TIME_MS_END)
            pairs = list(encoder.records(payments.history.payment_id, columns, label, payments.attributes))
            arrays = [pa.array([pair[place] for pair in pairs], pa.binary()) for place in (0, 1)]
            yield pa.record_batch(arrays, schema=self.schema)


def _keys_of(history: Any, name: str, fields: tuple[str, ...], key: IdentityKey) -> list[bytes]:
    column = entity_column(history, name, fields, key=key)
    parts = encoded_keys(column.store_keys())
    return [parts[code] for code in column.codes.tolist()]


@dataclass(frozen=True)
class PassageBackfill:
    """The backfill of one history on an engine. The records of payments go back `outcome_days` from the newest one."""

    passage: Passage[Any]
    store: ProfileStore
    outcome_days: int
    overwrite: bool = False

    def write(self) -> dict[str, int]:
        """Write all records; returns how many of each kind.

        Empty if an earlier run has written all of them. Raises StoreUnavailable, and Misconfigured if the store has
        records that this history did not make.
        """
        plan = self.passage.features.plan
        origin, earlier = self._origin(), read_progress(self.store)
        if earlier is not None and earlier.origin == origin:
            if earlier.phase == FINISHED:
                return {}
        elif not self.overwrite:
            require_empty(self.store, (*plan.entity_names, PAYMENT_PHASE), earlier)
        self._note(origin, plan.entity_names[0])
        written = dict.fromkeys((*plan.entity_names, PAYMENT_PHASE), 0)
        for name, ttl_s, pairs in self._records():
            while batch := dict(islice(pairs, _WRITE_BATCH)):
                write_records(self.store, batch, ttl_s, overwrite=self.overwrite)
                written[name] += len(batch)
        self._note(origin, FINISHED)
        return written

    def _records(self) -> Iterator[tuple[str, int, Iterator[tuple[bytes, bytes]]]]:
        """Yields records in runs of one kind: its name, their time to live, and (key, value) pairs."""
        passage, plan = self.passage, self.passage.features.plan
        for table in passage.profiles():
            entity = table["_entity"].to_numpy()
            for number in np.unique(entity).tolist():
                mine = table.filter(pa.array(entity == number))
                pairs = zip(mine["_key"].to_pylist(), mine["_profile"].to_pylist(), strict=True)
                yield plan.entity_names[number], plan.ttl_s(number), pairs
        ttl_s = self.outcome_days * _DAY_S
        oldest_ms = passage.places.last_payment_ms - ttl_s * 1000
        work = PaymentRecords(passage.rows, oldest_ms)
        for table in passage.engine.tables(passage.engine.map(passage.events, work)):
            yield PAYMENT_PHASE, ttl_s, zip(table["key"].to_pylist(), table["record"].to_pylist(), strict=True)

    def _origin(self) -> BackfillOrigin:
        places, plan = self.passage.places, self.passage.features.plan
        what = (
            sorted(places.by_day.items()),
            places.outcomes,
            places.last_ms,
            self.outcome_days,
            self.passage.columns.names,
        )
        return BackfillOrigin(
            payments=places.payments,
            first_time_ms=min(places.by_day, default=0) * _DAY_S * 1000,
            last_time_ms=places.last_payment_ms,
            digest=hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest(),
            catalogue=plan.digest,
        )

    def _note(self, origin: BackfillOrigin, phase: str) -> None:
        plan = self.passage.features.plan
        ttl_s = max(self.outcome_days * _DAY_S, *(plan.ttl_s(entity) for entity in range(plan.entity_count)))
        self.store.write({PROGRESS_KEY: BackfillProgress(origin, phase, 0).encode()}, ttl_s=ttl_s)
