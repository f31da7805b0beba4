"""Load a history into the profile store, so that a new deployment starts warm.

1. compute    the profiles, with the kernel's batch path. It is quick, so a resumed backfill repeats it
2. write      batches in a fixed order: profiles, one kind of entity after the other, then the records of payments
              that may still get an outcome
3. note       the checkpoint after every batch, under one key of the store: phase and position, history and catalogue

    progress:backfill    {"phase": "merchant", "position": 15000, "origin": {"digest": "…", …}}

The same call resumes a backfill that was killed at any moment.

What can go wrong:

- A crash between 2 and 3: the next run writes the same batch again, with the same bytes.
- Something else has written to the store, and its records may be newer. A record is written only if the store has none
  or the same one. Otherwise the backfill ends with an error, unless the caller asks to overwrite.

Backfilled records hold no Kafka offsets: they are older than the topic.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.history.declared_columns import holds_hashes
from paywarden.features.history.history import Coded, History, final_labels
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.features.stores.base import ABSENT, ProfileStore, StoreConflict
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.store_pb2 import LabelChange, PaymentRecord
from paywarden.streams.maintenance.backfill_progress import (
    FINISHED,
    PAYMENT_PHASE,
    PROGRESS_KEY,
    BackfillOrigin,
    BackfillProgress,
    read_progress,
)
from paywarden.streams.profiles.events import RecordLayout, record_key

_DAY_S = 86_400
_WRITE_BATCH = 5_000
# The source number of backfilled records. No record of a topic has it: those numbers start at 0.
BACKFILL_SOURCE = -1


@dataclass(frozen=True)
class _Phase:
    """One kind of record: their number, their time to live, and their (key, value) pairs from a position on."""

    name: str
    count: int
    ttl_s: int
    pairs_from: Callable[[int], Iterator[tuple[bytes, bytes]]]


class Backfill:
    """The backfill of one history into a store: call `compute`, then `write`, unless it `is_finished`.

    `counts` has the number of records by kind: profiles by the name of their entity, then "payment".
    """

    def __init__(
        self,
        history: History,
        store: ProfileStore,
        *,
        engine: FeatureEngine,
        rates: RateTable,
        outcome_days: int,
        overwrite: bool = False,
        batch_size: int = _WRITE_BATCH,
    ) -> None:
        """The records of payments go back `outcome_days` from the newest payment. Reads the store, writes nothing.

        Raises Misconfigured if the store has profiles of another origin and `overwrite` is False, InvalidEvent if the
        history has a currency without a rate, StoreUnavailable.
        """
        self._history, self._store, self._engine, self._overwrite = history, store, engine, overwrite
        self._batch_size = batch_size
        self._passage = PointInTimeReplay(history, engine, rates)
        self._first_kept = _first_kept(history, outcome_days)
        self._phases = self._plan_phases(outcome_days)
        self.counts = {phase.name: phase.count for phase in self._phases}
        origin = BackfillOrigin(
            payments=len(history),
            first_time_ms=int(history.event_time_ms[0]) if len(history) else 0,
            last_time_ms=int(history.event_time_ms[-1]) if len(history) else 0,
            digest=_digest_of(history, self._passage, outcome_days),
            catalogue=engine.plan.digest,
        )
        earlier = read_progress(store)
        if earlier is not None and earlier.origin == origin:
            self._progress = earlier
            return
        self._progress = BackfillProgress(origin, self._phases[0].name, 0)
        if not overwrite:
            require_empty(store, self.counts, earlier)

    @property
    def is_finished(self) -> bool:
        """Whether an earlier run has written everything."""
        return self._progress.phase == FINISHED

    @property
    def needs_profiles(self) -> bool:
        """Whether profiles are still to be written, so that `compute` has work."""
        return self._progress.phase not in (PAYMENT_PHASE, FINISHED)

    @property
    def left_count(self) -> int:
        """The number of records that are still to be written."""
        left = self._phases_left()
        return sum(phase.count for phase in left) - (self._progress.position if left else 0)

    def compute(self, progress: Callable[[int], object] | None = None) -> None:
        """Compute the profiles, unless all are written. `progress` gets the number of payments done."""
        if not self.needs_profiles:
            return
        for _ in self._passage.chunks(progress=progress):
            pass
        self._passage.finish()

    def write(self, progress: Callable[[int], object] | None = None) -> int:
        """Write the remaining records; returns their number. `progress` gets the records done.

        Raises StoreUnavailable, after which a new Backfill resumes, and Misconfigured if something else has written to
        the store meanwhile.
        """
        written = 0
        for phase in self._phases_left():
            # Also before the first record: a store with profiles and without this note belongs to another program.
            position = self._note(phase.name, self._progress.position if phase.name == self._progress.phase else 0)
            pairs = phase.pairs_from(position)
            while batch := dict(islice(pairs, self._batch_size)):
                self._write(batch, phase.ttl_s)
                position = self._note(phase.name, position + len(batch))
                written += len(batch)
                if progress is not None:
                    progress(len(batch))
        if not self.is_finished:
            self._note(FINISHED, 0)
        return written

    def _plan_phases(self, outcome_days: int) -> list[_Phase]:
        plan = self._engine.plan
        phases = [
            _Phase(name, self._passage.entities[entity].count, plan.ttl_s(entity), self._profiles_of(entity))
            for entity, name in enumerate(plan.entity_names)
        ]
        kept = len(self._history) - self._first_kept
        return [*phases, _Phase(PAYMENT_PHASE, kept, outcome_days * _DAY_S, self._payment_records_from)]

    def _phases_left(self) -> list[_Phase]:
        names = [*self.counts, FINISHED]
        return self._phases[names.index(self._progress.phase) :]

    def _profiles_of(self, entity: int) -> Callable[[int], Iterator[tuple[bytes, bytes]]]:
        def pairs_from(position: int) -> Iterator[tuple[bytes, bytes]]:
            states = self._passage.profiles[entity]
            pairs = zip(self._passage.entities[entity].store_keys(), states, strict=True)
            for key, state in islice(pairs, position, None):
                assert state is not None, "an entity of a history has a payment there"
                yield key, state

        return pairs_from

    def _payment_records_from(self, position: int) -> Iterator[tuple[bytes, bytes]]:
        """Yields the records of payments, from the oldest that is kept."""
        history, passage = self._history, self._passage
        label, encoder = final_labels(history), RecordEncoder(self._engine.plan)
        key_parts = [encoded_keys(column.store_keys()) for column in passage.entities]
        for first in range(self._first_kept + position, len(history), self._batch_size):
            rows = slice(first, min(first + self._batch_size, len(history)))
            columns = [
                [parts[code] for code in column.codes[rows].tolist()]
                for parts, column in zip(key_parts, passage.entities, strict=True)
            ]
            yield from encoder.records(history.payment_id[rows], columns, label[rows], passage.rows.of(rows))

    def _write(self, batch: dict[bytes, bytes], ttl_s: int) -> None:
        write_records(self._store, batch, ttl_s, overwrite=self._overwrite)

    def _note(self, phase: str, position: int) -> int:
        self._progress = dataclasses.replace(self._progress, phase=phase, position=position)
        # The longest time to live of all records: the note must not outlive every record it speaks of.
        ttl_s = max(phase.ttl_s for phase in self._phases)
        self._store.write({PROGRESS_KEY: self._progress.encode()}, ttl_s=ttl_s)
        return position


def write_records(store: ProfileStore, batch: dict[bytes, bytes], ttl_s: int, *, overwrite: bool) -> None:
    """Write records of which the store has none, or the same ones. Raises Misconfigured if it has others."""
    versions = None if overwrite else dict.fromkeys(batch, ABSENT)
    try:
        store.write(batch, ttl_s=ttl_s, versions=versions)
    except StoreConflict as error:
        raise Misconfigured(
            "something else has written to the store since this backfill began, and what it wrote may be newer: "
            "stop the stream, and write over it with --overwrite"
        ) from error


def require_empty(store: ProfileStore, kinds: Iterable[str], earlier: BackfillProgress | None) -> None:
    """Raises Misconfigured when the store has any record of these kinds, which a backfill could write over."""
    for name in kinds:
        if next(store.scan(name), None) is None:
            continue
        what = "payment records" if name == PAYMENT_PHASE else f"{name} profiles"
        whose = "from a backfill of something else" if earlier is not None else "that no backfill of this wrote"
        raise Misconfigured(
            f"the store holds {what} {whose}, and they may be newer: take an empty store, or write over them with "
            "--overwrite"
        )


def backfill(
    history: History, store: ProfileStore, *, engine: FeatureEngine, rates: RateTable, outcome_days: int
) -> int:
    """Backfill an empty store in one call; returns the number of profiles. Raises the same as Backfill."""
    job = Backfill(history, store, engine=engine, rates=rates, outcome_days=outcome_days)
    job.compute()
    job.write()
    return sum(count for name, count in job.counts.items() if name != PAYMENT_PHASE)


def _first_kept(history: History, outcome_days: int) -> int:
    """Returns the index of the first payment that may still get an outcome."""
    if len(history) == 0:
        return 0
    oldest_ms = int(history.event_time_ms[-1]) - outcome_days * _DAY_S * 1000
    return int(np.searchsorted(history.event_time_ms, oldest_ms))


class RecordEncoder:
    """Makes the records of payments that may still get an outcome."""

    def __init__(self, plan: Plan) -> None:
        self._layout = RecordLayout(plan.fields)
        self._head = PaymentRecord(source=BACKFILL_SOURCE).SerializeToString()
        genuine, fraud = (
            PaymentRecord(label_changes=[LabelChange(source=BACKFILL_SOURCE, weight=weight)]).SerializeToString()
            for weight in (0, 1)
        )
        # By label; the last one is UNKNOWN. A genuine one is kept only where profiles count labelled payments.
        self._labels = [genuine if plan.counts_labels else b"", fraud, b""]

    def records(
        self, payment_id: pa.Array, keys: Sequence[list[bytes]], label: NDArray[np.int8], rows: NDArray[np.int64]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yields the key and the record of each payment. `keys`: a column of `encoded_keys` for each kind of entity.

        `label`: 1 fraud, 0 genuine, -1 unknown.

        Encoded protobuf messages in a row are one message with all their fields, so the parts that all payments share
        are encoded once.
        """
        layout = self._layout
        columns = payment_id.to_pylist(), map(b"".join, zip(*keys, strict=True)), label.tolist(), rows.tolist()
        for one, of_entities, known, row in zip(*columns, strict=True):
            encoded = PaymentRecord(
                attributes=layout.codes_of(row), beside=layout.beside(row), beside_fields=layout.beside_fields
            ).SerializeToString()
            yield record_key(one), self._head + of_entities + self._labels[known] + encoded


def encoded_keys(keys: Sequence[bytes]) -> list[bytes]:
    """Returns the encoded field that names an entity, by the entity's number. The last one, number -1, names none."""
    return [PaymentRecord(keys=[key.decode()]).SerializeToString() for key in (*keys, b"")]


# Fields of a History on which no written record depends, or that are added by name.
_NOT_WRITTEN = ("fields", "declared", "propensity", "never_labelled")


def _digest_of(history: History, passage: PointInTimeReplay, outcome_days: int) -> str:
    """Returns 32 hex digits that change with every input of the written records except the catalogue."""
    digest = hashlib.blake2b(f"{kernel.LAYOUT_VERSION} {outcome_days}".encode(), digest_size=16)
    digest.update(passage.amounts.data)
    fields = [field.name for field in dataclasses.fields(history) if field.name not in _NOT_WRITTEN]
    columns = [getattr(history, name) for name in fields]
    for name, declared in sorted(history.declared.items()):
        digest.update(name.encode())
        columns.append(declared)
    for column in columns:
        for part in (column.codes, column.names) if isinstance(column, Coded) else (column,):
            if isinstance(part, pa.Array) and not holds_hashes(part.type):
                _digest_texts(digest, part)
            else:
                digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _digest_texts(digest: hashlib.blake2b, texts: pa.Array) -> None:
    """Add the lengths of an array's texts and then the texts, without copying them."""
    if len(texts) == 0:
        return
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    digest.update(np.diff(bounds).data)
    if data is not None:
        digest.update(memoryview(data)[bounds[0] : bounds[-1]])
