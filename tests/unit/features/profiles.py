"""Small words for tests of profiles: events of one entity, the profile they make, the vector seen through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import kernel
from features.engine import Applied, Events, FeatureEngine


@dataclass(frozen=True)
class Change:
    """One event as one entity hears of it; `source` -1: it is not checked for having been applied before."""

    kind: int
    time_ms: int
    amount: int
    weight: int
    source: int = -1
    offset: int = 0


def payment(time_ms: int, amount: int = 0, *, source: int = -1, offset: int = 0) -> Change:
    return Change(kernel.PAYMENT, time_ms, amount, 1, source, offset)


def label(time_ms: int, weight: int, *, source: int = -1, offset: int = 0) -> Change:
    """`time_ms` is the payment's time; `weight` is 1 for a fraud, -1 for one taken back, 0 for neither."""
    return Change(kernel.LABEL, time_ms, 0, weight, source, offset)


def events_of(groups: Sequence[Sequence[Change]], *, with_rows: bool = False) -> Events:
    """The columns that an engine takes; `with_rows`: event i fills row i of the slots."""
    changes = [change for group in groups for change in group]

    def column(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    return Events(
        groups=np.concatenate(([0], np.cumsum([len(group) for group in groups]))).astype(np.int64),
        kind=np.array([change.kind for change in changes], dtype=np.uint8),
        time_ms=column([change.time_ms for change in changes]),
        amount=column([change.amount for change in changes]),
        weight=column([change.weight for change in changes]),
        source=column([change.source for change in changes]),
        offset=column([change.offset for change in changes]),
        row=column(list(range(len(changes))) if with_rows else [-1] * len(changes)),
    )


def apply(engine: FeatureEngine, entity: str, changes: Sequence[Change], state: bytes | None = None) -> Applied:
    """One profile brought up to date by its events, in this order."""
    return engine.apply(engine.plan.entity_names.index(entity), events_of([changes]), [state], engine.new_slots(0))


def profile(engine: FeatureEngine, entity: str, changes: Sequence[Change], state: bytes | None = None) -> bytes:
    """The packed profile that `apply` gives."""
    (packed,) = apply(engine, entity, changes, state).states
    return packed


def vector(engine: FeatureEngine, time_ms: int, amount: int, states: Mapping[str, bytes | None]) -> NDArray[np.float32]:
    """A payment's vector as scoring gets it, shape (features,).

    `states` by the entity's name: None when nothing is known of it; one that is not there takes no part.
    """
    found = [states.get(name, b"") for name in engine.plan.entity_names]
    presence = [
        kernel.ABSENT if name not in states else kernel.UNKNOWN if states[name] is None else kernel.KNOWN
        for name in engine.plan.entity_names
    ]
    packed = [state or b"" for state in found]
    bounds = np.concatenate(([0], np.cumsum([len(state) for state in packed]))).astype(np.int64)
    out = np.empty((1, engine.plan.feature_count), dtype=np.float32)
    engine.fill_vectors(
        np.array([[time_ms, amount]], dtype=np.int64),
        np.array(presence, dtype=np.uint8),
        np.frombuffer(bytearray(b"".join(packed)), dtype=np.uint8),
        bounds,
        out,
    )
    row: NDArray[np.float32] = out[0]
    return row


def features(engine: FeatureEngine, time_ms: int, amount: int, states: Mapping[str, bytes | None]) -> dict[str, float]:
    """The same by name."""
    return dict(zip(engine.plan.names, vector(engine, time_ms, amount, states).tolist(), strict=True))
