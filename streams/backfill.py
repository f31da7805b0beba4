"""A history into the profile store at once, so that a new deployment starts warm.

Profiles come from the kernel's batch path; what the stream keeps about each payment, for outcomes that are
still to come, is written too. Backfilled records name no Kafka offsets: they are older than the topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from features.engine import FeatureEngine
from features.history import History, final_labels
from features.money import RateTable
from features.passage import Passage
from features.store import ProfileStore
from schemas.store_pb2 import LabelChange, PaymentRecord
from streams.batch import record_key

_DAY_S = 86_400
_WRITE_BATCH = 5_000
# No record of a topic has this source: offsets of a topic start at 0.
BACKFILL_SOURCE = -1


def backfill(
    history: History,
    store: ProfileStore,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    outcome_days: int,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Write the profiles as they are after all of the history; returns how many.

    What is kept about payments goes back `outcome_days` from the newest one. Raises StoreUnavailable.
    """
    passage = Passage(history, engine, rates)
    for _ in passage.chunks(progress=progress):
        pass
    passage.finish()
    count = 0
    for entity, name in enumerate(engine.plan.entity_names):
        keys = _keys(name, getattr(history, name).names.to_pylist())
        pairs = ((key, state) for key, state in zip(keys, passage.profiles[entity], strict=True) if state is not None)
        count += _write(store, pairs, engine.plan.ttl_s(entity))
    _write(store, _payment_records(history, passage, engine, outcome_days), outcome_days * _DAY_S)
    return count


def _write(store: ProfileStore, pairs: Iterator[tuple[bytes, bytes]], ttl_s: int) -> int:
    count = 0
    while batch := dict(islice(pairs, _WRITE_BATCH)):
        store.write(batch, ttl_s=ttl_s)
        count += len(batch)
    return count


def _keys(entity: str, ids: list[str]) -> list[bytes]:
    return [f"{entity}:{identity}".encode() for identity in ids]


def _payment_records(
    history: History, passage: Passage, engine: FeatureEngine, outcome_days: int
) -> Iterator[tuple[bytes, bytes]]:
    if len(history) == 0:
        return
    oldest_ms = int(history.event_time_ms[-1]) - outcome_days * _DAY_S * 1000
    first = int(np.searchsorted(history.event_time_ms, oldest_ms))
    fraud = final_labels(history) == 1
    columns = [getattr(history, name) for name in engine.plan.entity_names]
    keys = [
        [f"{name}:{identity}" for identity in column.names.to_pylist()]
        for name, column in zip(engine.plan.entity_names, columns, strict=True)
    ]
    payment_ids = history.payment_id.slice(first).to_pylist()
    for row, payment_id in enumerate(payment_ids, start=first):
        codes = [int(column.codes[row]) for column in columns]
        record = PaymentRecord(
            source=BACKFILL_SOURCE,
            event_time_ms=int(history.event_time_ms[row]),
            amount=int(passage.amounts[row]),
            keys=[names[code] if code >= 0 else "" for names, code in zip(keys, codes, strict=True)],
        )
        if fraud[row]:
            record.label_changes.append(LabelChange(source=BACKFILL_SOURCE, weight=1))
        yield record_key(payment_id), record.SerializeToString()
