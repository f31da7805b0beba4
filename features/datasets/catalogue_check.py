"""Tries a catalogue on made payments. `paywarden features --check` and the tests of a project run it.

1. Make a few hundred payments of a few cards, merchants and devices, with the declared fields and with labels.
2. Compute every vector as the stream and the endpoint do: event by event, from packed profiles.
3. Compute them as training and replay do: all events of an entity at once.
4. Compute them the plainest way, from the list of events (plain_features.py).
5. All must be the same to the bit. Each feature's range shows whether it has values at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import DeclaredRow, identity_column, row_of
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.datasets.declared_values import declared_values
from paywarden.features.datasets.plain_features import PlainEvents, plain_vector
from paywarden.features.kernel.pending import READS
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.keys import key_maker
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.features.profiles.plan import Plan

_START_MS = 1_764_000_000_000
_DAYS = 25
_DAY_MS = 86_400_000
_RATES = RateTable({"EUR": [(0, RATE_SCALE)], "USD": [(0, RATE_SCALE * 9 // 10)]})
_CARDS, _MERCHANTS, _DEVICES = 24, 9, 16
_MISSING_SHARE = 0.1


@dataclass(frozen=True)
class FeatureRange:
    """A feature's range. `missing` is the share of payments without it; the bounds are NaN if all lack it."""

    name: str
    missing: float
    least: float
    most: float


@dataclass(frozen=True)
class CatalogueCheck:
    """The result. `differences` has one line for each value in which two ways differ.

    `not_plain` names features that the plain way does not know: the other two ways alone were compared.
    """

    payments: int
    features: tuple[FeatureRange, ...]
    differences: tuple[str, ...]
    not_plain: tuple[str, ...]


@dataclass(frozen=True)
class _Event:
    """A payment, or with a `weight` a change of its label, as `kernel.update` has it. `payment` numbers the payment.

    `reads`: the payment only reads a neighbour's profile; the number says where the values go.
    """

    payment: int
    weight: int | None = None
    reads: int | None = None


def check_catalogue(catalogue: Catalogue, *, payments: int = 400, seed: int = 0) -> CatalogueCheck:
    """Returns how a catalogue did on made payments. Raises Misconfigured when a profile could outgrow a record."""
    engine = FeatureEngine(catalogue)
    plan = engine.plan
    made = made_payments(catalogue, payments, seed)
    declared = DeclaredRow(plan.fields, _converted)
    rows = np.array([_row(one, declared) for one in made], dtype=np.int64).reshape(-1, plan.row_width)
    makers = [
        key_maker(name, fields, plan.fields, plan.key)
        for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True)
    ]
    keys = [[make(one) for make in makers] for one in made]
    heard = _heard(made, seed, counts_labels=plan.counts_labels)
    one_by_one, at_once = _one_by_one(engine, rows, keys, heard), _at_once(engine, rows, keys, heard)
    plain, not_plain = _plain(catalogue, plan, at_once, rows, keys, heard)
    differences = _differences(plan.names, one_by_one, at_once, ("event by event", "at once"))
    differences += _differences(plan.names, at_once, plain, ("at once", "the plain way"))
    return CatalogueCheck(len(made), _ranges(plan.names, at_once), differences, not_plain)


def made_payments(catalogue: Catalogue, count: int, seed: int) -> list[dict[str, Any]]:
    """Returns payments as values by name, in order of time: every field of a payment, and the declared ones."""
    rng = np.random.default_rng(seed)
    card = np.minimum(rng.geometric(0.12, count), _CARDS) - 1
    merchant, device = rng.integers(0, _MERCHANTS, count), rng.integers(0, _DEVICES, count)
    # A third of the payments follows another one within minutes.
    time_ms = _START_MS + np.sort(rng.integers(0, _DAYS * _DAY_MS, count))
    soon = rng.random(count) < 0.3
    time_ms[1:][soon[1:]] = time_ms[:-1][soon[1:]] + rng.integers(0, 300_000, int(soon[1:].sum()))
    time_ms.sort()
    amount = np.floor(rng.lognormal(8, 1.2, count)).astype(np.int64)
    made = []
    for place in range(count):
        one: dict[str, Any] = {
            "payment_id": f"p{place}",
            "event_time_ms": int(time_ms[place]),
            "card_id": f"card-{card[place]}",
            "merchant_id": f"merchant-{merchant[place]}",
            "amount_minor": int(amount[place]),
            # The yen has no rate here: such a payment has no amount in the reference currency.
            "currency": ("USD", "JPY")[merchant[place]] if merchant[place] < 2 else "EUR",
        }
        optional: dict[str, Any] = {
            "device_id": f"device-{device[place]}",
            "ip": f"198.18.{device[place] % 3}.{device[place]}",
            "mcc": ("5411", "5812", "5999", "6011")[merchant[place] % 4],
            "country": ("DE", "FR", "US")[merchant[place] % 3],
            "channel": ("ecom", "pos")[merchant[place] % 2],
            "utc_offset_minutes": 60,
            "declined": bool(rng.random() < 0.1),
        }
        made.append(one | {name: value for name, value in optional.items() if rng.random() >= _MISSING_SHARE})
    declared = declared_values(catalogue.payment.fields, card.astype(np.int64), time_ms, amount, seed=seed)
    for name, column in declared.items():
        for one, value in zip(made, column, strict=True):
            if value is not None:
                one[name] = value
    return made


def _converted(amount_minor: int, values: Mapping[str, Any]) -> int | None:
    return _RATES.convert(amount_minor, values["currency"], values["event_time_ms"])


def _row(values: Mapping[str, Any], declared: DeclaredRow) -> list[int]:
    minor: int = values["amount_minor"]
    return row_of(
        values,
        event_time_ms=values["event_time_ms"],
        amount=_converted(minor, values),
        amount_minor=minor,
        declared=declared,
    )


def _heard(made: Sequence[Mapping[str, Any]], seed: int, *, counts_labels: bool) -> list[_Event]:
    """Returns payments and labels in the order in which they become known. One payment in eight is a fraud.

    With `counts_labels`, a third of the other payments are called genuine, and some of these a fraud later.
    """
    rng = np.random.default_rng((seed, 1))
    events = [(one["event_time_ms"], 0, _Event(place)) for place, one in enumerate(made)]
    is_fraud = rng.random(len(made)) < 0.12
    first = kernel.FIRST_LABEL if counts_labels else 0
    for place in np.flatnonzero(is_fraud).tolist():
        known_ms = made[place]["event_time_ms"] + int(rng.integers(0, 9 * _DAY_MS))
        events.append((known_ms, 1, _Event(place, first + 1)))
        if rng.random() < 0.1:
            events.append((known_ms + _DAY_MS, 1, _Event(place, -1)))
    for place in np.flatnonzero(~is_fraud)[::3].tolist() if counts_labels else ():
        known_ms = made[place]["event_time_ms"] + int(rng.integers(0, 9 * _DAY_MS))
        events.append((known_ms, 1, _Event(place, first)))
        if rng.random() < 0.1:
            events.append((known_ms + _DAY_MS, 1, _Event(place, 1)))
    return [event for *_, event in sorted(events, key=lambda event: event[:2])]


def _one_by_one(
    engine: FeatureEngine, rows: NDArray[np.int64], keys: Sequence[Sequence[bytes]], heard: Sequence[_Event]
) -> NDArray[np.float32]:
    """Returns the vectors of payments from packed profiles, as the endpoint makes them."""
    count = engine.plan.entity_count
    out = np.empty((len(rows), engine.plan.feature_count), dtype=np.float32)
    profiles: dict[bytes, bytes] = {}
    key_of = _keys_by_identity(engine.plan, rows, keys)
    for event in heard:
        row = rows[event.payment : event.payment + 1]
        own = keys[event.payment]
        if event.weight is None:
            states = [profiles.get(key, b"") for key in own]
            presence = [
                kernel.KNOWN if state else kernel.UNKNOWN if key else kernel.ABSENT
                for key, state in zip(own, states, strict=True)
            ]
            asked = (row, np.array(presence, dtype=np.uint8), *_packed(states))
            identities = np.zeros((1, len(engine.plan.listed)), dtype=np.int64)
            engine.list_neighbours(*asked, identities)
            others = [
                profiles.get(key_of.get((entity, identity), b""), b"")
                for entity, identity in zip(engine.plan.listed, identities[0].tolist(), strict=True)
            ]
            known = np.where(identities[0] == 0, kernel.ABSENT, kernel.UNKNOWN).astype(np.uint8)
            known[[bool(state) for state in others]] = kernel.KNOWN
            hops = engine.new_hops(1)
            engine.fill_hops(row, known, *_packed(others), hops)
            engine.fill_vectors(*asked, out[event.payment : event.payment + 1], hops)
        for entity in range(count):
            if own[entity]:
                applied = engine.apply(
                    entity,
                    _events([[event]], [-1]),
                    rows,
                    [profiles.get(own[entity])],
                    engine.new_slots(0),
                )
                profiles[own[entity]] = applied.states[0]
    return out


def _packed(states: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns profiles one after the other, and where each begins and ends."""
    bounds = np.concatenate(([0], np.cumsum([len(state) for state in states]))).astype(np.int64)
    return np.frombuffer(bytearray(b"".join(states)), dtype=np.uint8), bounds


def _keys_by_identity(
    plan: Plan, rows: NDArray[np.int64], keys: Sequence[Sequence[bytes]]
) -> dict[tuple[int, int], bytes]:
    """Returns the key of each neighbour by its entity and identity."""
    columns = {hop.target: identity_column(hop.attribute) for hop in plan.hops}
    return {
        (entity, row[column]): own[entity]
        for row, own in zip(rows.tolist(), keys, strict=True)
        for entity, column in columns.items()
    }


def _at_once(
    engine: FeatureEngine, rows: NDArray[np.int64], keys: Sequence[Sequence[bytes]], heard: Sequence[_Event]
) -> NDArray[np.float32]:
    """Returns the vectors of payments with all events of an entity in one call, as training and replay make them."""
    plan = engine.plan
    slots = engine.new_slots(len(rows))
    lists = np.zeros((len(rows), len(plan.listed)), dtype=np.int64)
    for entity in range(plan.entity_count):
        groups: dict[bytes, list[_Event]] = {}
        for event in heard:
            if key := keys[event.payment][entity]:
                groups.setdefault(key, []).append(event)
        in_order = list(groups.values())
        filled = [event.payment if event.weight is None else -1 for group in in_order for event in group]
        events = _events(in_order, filled)
        engine.apply(entity, events, rows, [None] * len(in_order), slots)
        if any(hop.source == entity for hop in plan.hops):
            engine.list_in_order(entity, events, rows, [None] * len(in_order), lists)
    key_of = _keys_by_identity(plan, rows, keys)
    listed_at = 0
    for number, hop in enumerate(plan.hops):
        places = range(listed_at, listed_at + hop.capacity)
        groups = {}
        for event in heard:
            # Before the payment itself is added to any profile, it reads those of its neighbours.
            for place in places if event.weight is None else ():
                if identity := int(lists[event.payment, place]):
                    item = event.payment * hop.capacity + place - listed_at
                    reads = _Event(event.payment, reads=item)
                    groups.setdefault(key_of[hop.target, identity], []).append(reads)
            if key := keys[event.payment][hop.target]:
                groups.setdefault(key, []).append(event)
        in_order = list(groups.values())
        filled = [-1 if event.reads is None else event.reads for group in in_order for event in group]
        found = np.full((len(rows) * hop.capacity, len(hop.results)), np.nan, dtype=np.float32)
        engine.read_in_order(number, _events(in_order, filled), rows, [None] * len(in_order), found)
        engine.combine(number, found, slots)
        listed_at += hop.capacity
    return engine.vectors_of_slots(rows, slots)


def _plain(
    catalogue: Catalogue,
    plan: Plan,
    at_once: NDArray[np.float32],
    rows: NDArray[np.int64],
    keys: Sequence[Sequence[bytes]],
    heard: Sequence[_Event],
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Returns the vectors of the plain way, with `at_once` where it does not know a feature, and these features."""
    out, of_row = at_once.copy(), [tuple(row) for row in rows.tolist()]
    events: dict[bytes, PlainEvents] = {}
    names = [entity.name for entity in catalogue.entities]
    done: set[str] = set()
    columns = {plan.entity_names[hop.target]: identity_column(hop.attribute) for hop in plan.hops}
    others: dict[tuple[str, int], PlainEvents] = {}
    for event in heard:
        own, row = keys[event.payment], of_row[event.payment]
        known = {name: events.setdefault(key, PlainEvents()) for name, key in zip(names, own, strict=True) if key}
        if event.weight is None:
            values = plain_vector(catalogue.features, row, known, others)
            done |= values.keys()
            for column, name in enumerate(catalogue.names):
                if name in values:
                    out[event.payment, column] = values[name]
        others |= {(name, row[column]): known[name] for name, column in columns.items() if name in known}
        for one in known.values():
            if event.weight is None:
                one.payments.append(row)
            else:
                one.labels.append((row, event.weight))
    return out, tuple(name for name in catalogue.names if name not in done)


def _events(groups: Sequence[Sequence[_Event]], filled: Sequence[int]) -> Events:
    """Returns the events of profiles. `filled` are the rows of slots that each event fills, -1 for none."""
    events = [event for group in groups for event in group]
    unchecked = np.full(len(events), -1, dtype=np.int64)
    return Events(
        groups=np.concatenate(([0], np.cumsum([len(group) for group in groups]))).astype(np.int64),
        kind=np.array([_kind_of(event) for event in events], dtype=np.uint8),
        payment=np.array([event.payment for event in events], dtype=np.int64),
        weight=np.array([1 if event.weight is None else event.weight for event in events], dtype=np.int64),
        source=unchecked,
        offset=unchecked,
        row=np.array(filled, dtype=np.int64),
    )


def _kind_of(event: _Event) -> int:
    if event.reads is not None:
        return READS
    return kernel.PAYMENT if event.weight is None else kernel.LABEL


def _ranges(names: Sequence[str], vectors: NDArray[np.float32]) -> tuple[FeatureRange, ...]:
    ranges = []
    for column, name in enumerate(names):
        values = vectors[:, column]
        there = values[~np.isnan(values)]
        bounds = (float(there.min()), float(there.max())) if len(there) else (float("nan"), float("nan"))
        ranges.append(FeatureRange(name, 1 - len(there) / max(1, len(values)), *bounds))
    return tuple(ranges)


def _differences(
    names: Sequence[str], left: NDArray[np.float32], right: NDArray[np.float32], ways: tuple[str, str]
) -> tuple[str, ...]:
    both_missing = np.isnan(left) & np.isnan(right)
    same = (np.ascontiguousarray(left).view(np.uint32) == np.ascontiguousarray(right).view(np.uint32)) | both_missing
    return tuple(
        f"payment {row}, {names[column]}: {float(left[row, column])!r} {ways[0]}, "
        f"{float(right[row, column])!r} {ways[1]}"
        for row, column in np.argwhere(~same).tolist()
    )
