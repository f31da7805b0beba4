"""Profiles of parts of an entity's events, merged, have the bytes of the profile of all events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from tests.parity.features_worlds import (
    ENTITY_KEYS,
    FIELDS,
    OWN,
    Said,
    World,
    catalogue_of,
    catalogues,
    change_of,
    declared_row,
    engine,
    own_changes,
    worlds,
)
from tests.unit.features.kernel.profiles import Change, apply, payment, profile

NOON_MS = 1_530_446_400_000
DAY_MS = 86_400_000
# What a payment's `declined` was before, with its label shifted left by DECLINE_BITS.
DECLINED_BEFORE = st.sampled_from([0, 1, 2, 4, 5, 6])
OWN_WORLDS = worlds(16, st.builds(lambda fields, own: {**fields, **own}, FIELDS, OWN))


def assert_merges(of: FeatureEngine, entity: str, whole: Sequence[Change], numbers: Sequence[int]) -> None:
    """Merge the profiles of parts of the events, and compare with the profile of all. `numbers`: each event's part."""
    parts = [[change for change, of_part in zip(whole, numbers, strict=True) if of_part == part] for part in range(3)]
    states = [profile(of, entity, part) for part in parts if part]
    merged = of.merge(of.plan.entity_names.index(entity), states)
    assert merged == profile(of, entity, whole)


def drawn_parts(data: st.DataObject, changes: Sequence[Change]) -> list[int]:
    """Draws the part of each event: parts need not be in order of time."""
    return data.draw(st.lists(st.integers(0, 2), min_size=len(changes), max_size=len(changes)))


def with_sources(data: st.DataObject, changes: Sequence[Change]) -> list[Change]:
    sources = data.draw(st.lists(st.integers(-1, 3), min_size=len(changes), max_size=len(changes)))
    return [
        replace(change, source=source, offset=place)
        for place, (change, source) in enumerate(zip(changes, sources, strict=True))
    ]


@settings(max_examples=20)
@given(world=worlds(20), data=st.data())
def test_every_word_merges_to_the_bit(world: World, data: st.DataObject) -> None:
    for entity in ENTITY_KEYS:
        for ids in {tuple(one.fields.get(key) for key in ENTITY_KEYS[entity]) for one in world.payments}:
            changes = with_sources(data, own_changes(entity, ids, world.heard()))
            if None not in ids and changes:
                assert_merges(engine(), entity, changes, drawn_parts(data, changes))


@settings(max_examples=10)
@given(said=catalogues(), world=worlds(16), data=st.data())
def test_random_declarations_merge_to_the_bit(said: list[Said], world: World, data: st.DataObject) -> None:
    of = FeatureEngine(catalogue_of(said))
    changes = [change_of(event) for event in world.heard()]
    for entity in of.plan.entity_names:
        assert_merges(of, entity, changes, drawn_parts(data, changes))


@settings(max_examples=10)
@given(said=catalogues(is_own=True), world=OWN_WORLDS, data=st.data())
def test_own_fields_merge_to_the_bit(said: list[Said], world: World, data: st.DataObject) -> None:
    of = FeatureEngine(catalogue_of(said, is_own=True))
    filled = declared_row(of.plan.fields)
    changes = [change_of(event, declared=filled) for event in world.heard()]
    for entity in of.plan.entity_names:
        assert_merges(of, entity, changes, drawn_parts(data, changes))


@settings(max_examples=10)
@given(world=worlds(16), data=st.data())
def test_declines_that_arrive_later_merge_to_the_bit(world: World, data: st.DataObject) -> None:
    changes = [change_of(event) for event in world.heard()]
    said = st.lists(st.sampled_from(changes), max_size=8)
    declines = [replace(one, kind=kernel.DECLINE, weight=data.draw(DECLINED_BEFORE)) for one in data.draw(said)]
    changes += declines
    assert_merges(engine(), "card", changes, drawn_parts(data, changes))


def test_a_damaged_profile_is_not_merged() -> None:
    state = profile(engine(), "card", [payment(NOON_MS, 100)])
    with pytest.raises(UnreadableProfile, match="card profile cannot be read: it is damaged"):
        engine().merge(0, [state, state[:-1] + bytes([state[-1] ^ 1])])


def test_an_old_event_of_one_part_is_dropped_as_in_one_fold() -> None:
    old, new = payment(NOON_MS, 100), payment(NOON_MS + 400 * DAY_MS, 200)
    assert_merges(engine(), "card", [old, new], [0, 1])
    assert apply(engine(), "card", [new, old]).late == 1
