"""Features of the fields that a project declares: training, stream and scoring give the bits of the plain path."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.keys import entity_key
from tests.parity.comparison import differing, same_bits
from tests.parity.features_worlds import (
    DECLARED,
    FIELDS,
    OWN,
    Heard,
    Payment,
    Said,
    World,
    catalogue_of,
    catalogues,
    change_of,
    declared_row,
    own_fields_words,
    worlds,
)
from tests.parity.plain import plain_vectors
from tests.unit.features.kernel.profiles import Change, bound_vector, profile, vectors

Vectors = NDArray[np.float32]
OWN_WORLDS = worlds(10, st.builds(lambda fields, own: {**fields, **own}, FIELDS, OWN))


@cache
def catalogue() -> Catalogue:
    return cast(Catalogue, own_fields_words(DECLARED))


@cache
def engine() -> FeatureEngine:
    return FeatureEngine(catalogue())


def keys_of(of: FeatureEngine, payment: Payment) -> dict[str, bytes]:
    ids = {
        name: [payment.fields.get(key) for key in keys]
        for name, keys in zip(of.plan.entity_names, of.plan.entity_keys, strict=True)
    }
    return {name: entity_key(name, list(map(str, wanted))) for name, wanted in ids.items() if None not in wanted}


def changes_of(heard: Sequence[Heard], of: FeatureEngine) -> list[Change]:
    declared = declared_row(of.plan.fields)
    return [change_of(event, declared=declared) for event in heard]


def plainly(of: Catalogue, heard: Sequence[Heard], engine: FeatureEngine) -> Vectors:
    """Returns the vectors of the plain way."""
    changes = changes_of(heard, engine)
    return plain_vectors(
        of,
        [
            (keys_of(engine, event.payment), change.row, event.weight)
            for event, change in zip(heard, changes, strict=True)
        ],
    )


def streamed(heard: Sequence[Heard], of: FeatureEngine) -> tuple[Vectors, dict[bytes, bytes]]:
    """Returns (vectors, profiles by key), event by event: each vector from packed profiles, then their update."""
    profiles: dict[bytes, bytes] = {}
    found = []
    for event, change in zip(heard, changes_of(heard, of), strict=True):
        keys = keys_of(of, event.payment)
        if event.weight is None:
            states = {entity: profiles.get(key) for entity, key in keys.items()}
            found.append(vectors(of, [change.row], [states])[0])
            assert same_bits(bound_vector(of, change.row, states), found[-1])
        for entity, key in keys.items():
            profiles[key] = profile(of, entity, [change], profiles.get(key))
    return np.array(found, dtype=np.float32).reshape(len(found), of.plan.feature_count), profiles


def at_once(heard: Sequence[Heard], of: FeatureEngine) -> tuple[Vectors, dict[bytes, bytes]]:
    """Returns the same as training computes it: all events of a profile in one call, then all vectors."""
    changes = changes_of(heard, of)
    rows = np.array([change.row for change in changes], dtype=np.int64)
    asked = [place for place, event in enumerate(heard) if event.weight is None]
    slots = of.new_slots(len(asked))
    profiles: dict[bytes, bytes] = {}
    for number, entity in enumerate(of.plan.entity_names):
        own: dict[bytes, list[int]] = {}
        for place, event in enumerate(heard):
            if (key := keys_of(of, event.payment).get(entity)) is not None:
                own.setdefault(key, []).append(place)
        places = [place for group in own.values() for place in group]
        unchecked = np.full(len(places), -1, dtype=np.int64)
        events = Events(
            groups=np.cumsum([0, *map(len, own.values())], dtype=np.int64),
            kind=np.array([changes[place].kind for place in places], dtype=np.uint8),
            payment=np.array(places, dtype=np.int64),
            weight=np.array([changes[place].weight for place in places], dtype=np.int64),
            source=unchecked,
            offset=unchecked,
            row=np.array([asked.index(place) if place in asked else -1 for place in places], dtype=np.int64),
        )
        states = of.apply(number, events, rows, [None] * len(own), slots).states
        profiles |= dict(zip(own, states, strict=True))
    return of.vectors_of_slots(np.ascontiguousarray(rows[asked]), slots), profiles


def assert_same(got: Vectors, wanted: Vectors, of: FeatureEngine) -> None:
    assert got.shape == wanted.shape
    assert list(differing(of.plan.names, got, wanted)) == []


@settings(max_examples=40)
@given(world=OWN_WORLDS, data=st.data())
def test_features_of_own_fields_have_the_plain_bits_in_any_order(world: World, data: st.DataObject) -> None:
    # Labels arrive before their payments too, and some events come weeks too late for some tables.
    heard = data.draw(st.one_of(st.just(world.heard()), st.permutations(world.heard())))
    one_by_one, profiles = streamed(heard, engine())
    together, same_profiles = at_once(heard, engine())
    assert_same(one_by_one, together, engine())
    assert same_profiles == profiles
    assert_same(one_by_one, plainly(catalogue(), heard, engine()), engine())


@settings(max_examples=40)
@given(said=catalogues(is_own=True), world=OWN_WORLDS)
def test_any_catalogue_of_own_fields_gives_the_plain_vectors(said: list[Said], world: World) -> None:
    read = catalogue_of(said, is_own=True)
    of = FeatureEngine(read)
    heard = world.heard()
    one_by_one, profiles = streamed(heard, of)
    together, same_profiles = at_once(heard, of)
    assert_same(one_by_one, together, of)
    assert same_profiles == profiles
    assert_same(one_by_one, plainly(read, heard, of), of)


@settings(max_examples=60)
@given(world=OWN_WORLDS, data=st.data())
def test_profiles_of_own_fields_do_not_depend_on_order_or_batches(world: World, data: st.DataObject) -> None:
    of = engine()
    _, profiles = streamed(world.heard(), of)
    own: dict[tuple[str, bytes], list[Change]] = {}
    for event, change in zip(world.heard(), changes_of(world.heard(), of), strict=True):
        for entity, key in keys_of(of, event.payment).items():
            own.setdefault((entity, key), []).append(change)
    for (entity, key), changes in own.items():
        shuffled = data.draw(st.permutations(changes))
        cut = data.draw(st.integers(0, len(shuffled)))
        assert profile(of, entity, shuffled[cut:], profile(of, entity, shuffled[:cut])) == profiles[key]


def test_a_sum_of_the_largest_numbers_does_not_overflow() -> None:
    of = engine()
    most = kernel.NUMBER_MAX_IN_SUMS
    payments = [Payment(1_764_000_000_000, 1, 1, {"card_id": "c", "items": sign * most}) for sign in (1, -1, 1, 1)]
    heard = [Heard(payment) for payment in payments]
    found, _ = streamed(heard, of)
    assert_same(found, plainly(catalogue(), heard, of), of)
    by_name = dict(zip(of.plan.names, found[-1].tolist(), strict=True))
    assert by_name["items"] == most
    assert by_name["items_std_30d"] == np.float32(np.std([most, -most, most], ddof=1))
