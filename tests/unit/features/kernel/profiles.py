"""Small words for tests of profiles: events of one entity, the profile they make, the vector seen through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import row_of
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request
from paywarden.features.catalogue.expressions import Feature
from paywarden.features.kernel.codec import pack, packed_bytes_max, unpack
from paywarden.features.kernel.update import add_payments, update
from paywarden.features.profiles.engine import AppliedEvents, Events, FeatureEngine

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
device = Entity("device", key="device_id")

# A catalogue of usual features that tests may lean on, however the shipped one changes.
USUAL = Catalogue(
    entities=(card, merchant, device),
    features=(
        request.amount("amount"),
        request.hour("hour"),
        request.night("night"),
        request.weekend("weekend"),
        card.count("card_count_10m", "10m"),
        card.count("card_count_1h", "1h"),
        card.count("card_count_1d", "1d"),
        card.count("card_count_3d", "3d"),
        card.count("card_count_7d", "7d"),
        card.count("card_count_30d", "30d"),
        card.amount_sum("card_amount_sum_1h", "1h"),
        card.amount_mean("card_amount_mean_1d", "1d"),
        card.amount_mean("card_amount_mean_7d", "7d"),
        card.amount_mean("card_amount_mean_30d", "30d"),
        card.amount_max("card_amount_max_30d", "30d"),
        card.seconds_since_last("card_seconds_since_last"),
        card.seconds_since_first("card_seconds_since_first"),
        ratio("amount_to_card_mean_1d", "amount", "card_amount_mean_1d"),
        ratio("amount_to_card_mean_7d", "amount", "card_amount_mean_7d"),
        ratio("amount_to_card_mean_30d", "amount", "card_amount_mean_30d"),
        ratio("amount_to_card_max_30d", "amount", "card_amount_max_30d"),
        merchant.count("merchant_count_1h", "1h"),
        merchant.count("merchant_count_1d", "1d"),
        merchant.amount_mean("merchant_amount_mean_30d", "30d"),
        merchant.fraud_share("merchant_fraud_share_1d", "1d", delay="7d"),
        merchant.fraud_share("merchant_fraud_share_7d", "7d", delay="7d"),
        merchant.fraud_share("merchant_fraud_share_30d", "30d", delay="7d"),
        device.count("device_count_1h", "1h"),
        device.count("device_count_1d", "1d"),
        device.amount_mean("device_amount_mean_30d", "30d"),
        device.seconds_since_last("device_seconds_since_last"),
        device.fraud_share("device_fraud_share_30d", "30d", delay="7d"),
    ),
)


@dataclass(frozen=True)
class Change:
    """One event as one entity hears of it: `row` is its payment's (features/catalogue/attributes.py).

    `source` -1: it is not checked for having been applied before.
    """

    kind: int
    row: tuple[int, ...]
    weight: int
    source: int = -1
    offset: int = 0

    @property
    def time_ms(self) -> int:
        return self.row[kernel.TIME_MS]


def row(time_ms: int, amount: int = 0, **fields: Any) -> tuple[int, ...]:
    """A payment's row. Fields may hold `amount_minor`, else `amount`, and `declared`: what fills declared fields."""
    amount_minor, declared = fields.pop("amount_minor", amount), fields.pop("declared", None)
    return tuple(row_of(fields, event_time_ms=time_ms, amount=amount, amount_minor=amount_minor, declared=declared))


def payment(time_ms: int, amount: int = 0, *, source: int = -1, offset: int = 0, **fields: Any) -> Change:
    return Change(kernel.PAYMENT, row(time_ms, amount, **fields), 1, source, offset)


def label(time_ms: int, weight: int, *, amount: int = 0, source: int = -1, offset: int = 0, **fields: Any) -> Change:
    """`time_ms` is the payment's time; `weight` is 1 for a fraud, -1 for one taken back, 0 for neither."""
    return Change(kernel.LABEL, row(time_ms, amount, **fields), weight, source, offset)


def events_of(groups: Sequence[Sequence[Change]], *, with_rows: bool = False) -> Events:
    """The columns that an engine takes; `with_rows`: event i fills row i of the slots. Its payment is row i too."""
    changes = [change for group in groups for change in group]

    def column(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    places = list(range(len(changes)))
    return Events(
        groups=np.concatenate(([0], np.cumsum([len(group) for group in groups]))).astype(np.int64),
        kind=np.array([change.kind for change in changes], dtype=np.uint8),
        payment=column(places),
        weight=column([change.weight for change in changes]),
        source=column([change.source for change in changes]),
        offset=column([change.offset for change in changes]),
        row=column(places if with_rows else [-1] * len(changes)),
    )


def rows_of(groups: Sequence[Sequence[Change]]) -> NDArray[np.int64]:
    """The rows of attributes that `events_of` points to."""
    rows = [change.row for group in groups for change in group]
    return np.array(rows, dtype=np.int64).reshape(-1, len(rows[0]) if rows else kernel.ATTRIBUTE_COUNT)


def apply_groups(
    engine: FeatureEngine, entity: str, groups: Sequence[Sequence[Change]], states: Sequence[bytes | None]
) -> AppliedEvents:
    """Several profiles of one kind of entity, each brought up to date by its own events."""
    number = engine.plan.entity_names.index(entity)
    return engine.apply(number, events_of(groups), rows_of(groups), states, engine.new_slots(0))


def apply(engine: FeatureEngine, entity: str, changes: Sequence[Change], state: bytes | None = None) -> AppliedEvents:
    """One profile brought up to date by its events, in this order."""
    return apply_groups(engine, entity, [changes], [state])


def profile(engine: FeatureEngine, entity: str, changes: Sequence[Change], state: bytes | None = None) -> bytes:
    """The packed profile that `apply` gives."""
    (packed,) = apply(engine, entity, changes, state).states
    return packed


def with_payments(
    engine: FeatureEngine, entity: str, changes: Sequence[Change], state: bytes | None
) -> tuple[bytes, bytes]:
    """Returns a profile with more payments: added one by one, and in one go."""
    plan, number, width = engine.plan, engine.plan.entity_names.index(entity), engine.plan.row_width
    packed = np.frombuffer(state or b"", dtype=np.uint8)
    # Rows with gaps between them, in another order than that of the places.
    rows = np.full(len(changes) * (width + 3), -7, dtype=np.int64)
    places = np.full((len(changes) + 1, 2), -7, dtype=np.int64)
    for place, change in enumerate(changes):
        places[place, 0] = (len(changes) - 1 - place) * (width + 3) + 1
        rows[places[place, 0] :][:width] = change.row
    made = []
    for is_at_once in (False, True):
        words = np.zeros_like(engine.scratch[0])
        if state:
            assert unpack(plan.words, number, packed, 0, len(packed), words) == kernel.OK
        if is_at_once:
            add_payments(plan.words, number, words, rows, places, len(changes))
        else:
            for change in changes:
                update(plan.words, number, words, kernel.PAYMENT, np.array(change.row), 1)
        out = np.zeros(packed_bytes_max(plan.words, number, words), dtype=np.uint8)
        made.append(out[: pack(plan.words, number, words, out, 0)].tobytes())
    return made[0], made[1]


def of_card(*features: Feature) -> FeatureEngine:
    """An engine of these features of a card."""
    return FeatureEngine(Catalogue((card,), features))


def one(feature: Feature, now: Change, changes: Sequence[Change]) -> float:
    """A feature of a card as the payment `now` has it after these events; NaN when it is missing."""
    of = of_card(feature)
    slots = of.new_slots(len(changes) + 1)
    groups = [[*changes, now]]
    of.apply(0, events_of(groups, with_rows=True), rows_of(groups), [None], slots)
    return float(of.vectors_of_slots(rows_of(groups), slots)[-1, 0])


@dataclass(frozen=True)
class Seen:
    """The arrays from which an engine fills vectors; `kernel.fill_vectors` has the shapes."""

    attributes: NDArray[np.int64]
    presence: NDArray[np.uint8]
    states: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    out: NDArray[np.float32]


def seen_by(engine: FeatureEngine, rows: Sequence[Sequence[int]], known: Sequence[Mapping[str, bytes | None]]) -> Seen:
    """Returns the arrays that `vectors` passes to an engine."""
    names = engine.plan.entity_names
    presence = [
        kernel.ABSENT if name not in states else kernel.UNKNOWN if states[name] is None else kernel.KNOWN
        for states in known
        for name in names
    ]
    packed = [states.get(name) or b"" for states in known for name in names]
    return Seen(
        np.array(rows, dtype=np.int64).reshape(-1, engine.plan.row_width),
        np.array(presence, dtype=np.uint8),
        np.frombuffer(bytearray(b"".join(packed)), dtype=np.uint8),
        np.concatenate(([0], np.cumsum([len(state) for state in packed]))).astype(np.int64),
        np.empty((len(rows), engine.plan.feature_count), dtype=np.float32),
    )


ProfileOf = Callable[[str, int], bytes | None]
"""Finds a neighbour's profile by its kind and identity; None when nothing is known of it."""


def hops_of(engine: FeatureEngine, seen: Seen, profile_of: ProfileOf | None) -> NDArray[np.float64]:
    """The results of neighbours of payments, shape (payments, hop slots), as scoring gets them."""
    plan, hops = engine.plan, engine.new_hops(len(seen.attributes))
    if profile_of is None or not plan.hops:
        return hops
    identities = np.full((len(hops), len(plan.listed)), -1, dtype=np.int64)
    engine.list_neighbours(seen.attributes, seen.presence, seen.states, seen.bounds, identities)
    names = [plan.entity_names[entity] for entity in plan.listed]
    found = [
        profile_of(name, identity) if identity else None
        for listed in identities.tolist()
        for name, identity in zip(names, listed, strict=True)
    ]
    presence = np.where(identities.ravel() == 0, kernel.ABSENT, kernel.UNKNOWN).astype(np.uint8)
    presence[[bool(one) for one in found]] = kernel.KNOWN
    bounds = np.concatenate(([0], np.cumsum([len(one or b"") for one in found]))).astype(np.int64)
    states = np.frombuffer(bytearray(b"".join(one or b"" for one in found)), dtype=np.uint8)
    engine.fill_hops(seen.attributes, presence, states, bounds, hops)
    return hops


def vectors(
    engine: FeatureEngine,
    rows: Sequence[Sequence[int]],
    known: Sequence[Mapping[str, bytes | None]],
    profile_of: ProfileOf | None = None,
) -> NDArray[np.float32]:
    """Vectors of payments as scoring gets them, shape (payments, features).

    `known` holds for each payment the profiles by the entity's name: None when nothing is known of it; one that is
    not there takes no part. `profile_of` finds neighbours; without it, features two hops away are missing.
    """
    seen = seen_by(engine, rows, known)
    hops = hops_of(engine, seen, profile_of)
    engine.fill_vectors(seen.attributes, seen.presence, seen.states, seen.bounds, seen.out, hops)
    return seen.out


def bound_vector(
    engine: FeatureEngine,
    asked: Sequence[int],
    states: Mapping[str, bytes | None],
    profile_of: ProfileOf | None = None,
) -> NDArray[np.float32]:
    """One payment's vector by a call that is bound to its arrays, shape (features,)."""
    seen = seen_by(engine, [asked], [states])
    hops = hops_of(engine, seen, profile_of)
    engine.bind(seen.attributes, seen.presence, seen.states, seen.bounds, seen.out, hops)(1)
    found: NDArray[np.float32] = seen.out[0]
    return found


def vector(
    engine: FeatureEngine, time_ms: int, amount: int, states: Mapping[str, bytes | None], **fields: Any
) -> NDArray[np.float32]:
    """One payment's vector, shape (features,)."""
    found: NDArray[np.float32] = vectors(engine, [row(time_ms, amount, **fields)], [states])[0]
    return found


def features(
    engine: FeatureEngine, time_ms: int, amount: int, states: Mapping[str, bytes | None], **fields: Any
) -> dict[str, float]:
    """The same by name."""
    return dict(zip(engine.plan.names, vector(engine, time_ms, amount, states, **fields).tolist(), strict=True))
