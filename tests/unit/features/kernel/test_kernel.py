"""The kernel: the content of a profile as of a moment, for any order of its events."""

from __future__ import annotations

import random
from functools import cache

import pytest

from paywarden.features import kernel
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.features.profiles.plan import compile_plan
from tests.unit.features.kernel.profiles import (
    USUAL,
    apply,
    card,
    features,
    of_card,
    payment,
    profile,
    vector,
)

# A Sunday at midnight: the beginning of a tile of every hop.
SUNDAY_MS = 1_530_403_200_000
NOON_MS = SUNDAY_MS + 12 * HOUR_MS


@cache
def engine() -> FeatureEngine:
    return FeatureEngine(USUAL)


# Features of the payment itself.


def test_an_amount_is_rounded_to_float32() -> None:
    assert features(engine(), NOON_MS, 2**24 + 1, {})["amount"] == 2**24


@pytest.mark.parametrize("offset", [None, 1440, -1440, 10**6])
def test_an_impossible_utc_offset_counts_as_unknown(offset: int | None) -> None:
    assert features(of_card(request.hour("hour")), NOON_MS, 0, {}, utc_offset_minutes=offset)["hour"] == 12


# Order of arrival.


@pytest.mark.parametrize(("window", "length_ms"), [("1h", HOUR_MS), ("1d", DAY_MS), ("7d", 7 * DAY_MS)])
def test_a_table_keeps_exactly_the_tiles_its_window_can_touch(window: str, length_ms: int) -> None:
    of = of_card(card.count("count", window))
    newest, oldest_ms = payment(SUNDAY_MS), SUNDAY_MS - length_ms
    for old, late in ((payment(oldest_ms), 0), (payment(oldest_ms - 1), 1)):
        in_order, behind = apply(of, "card", [old, newest]), apply(of, "card", [newest, old])
        assert (in_order.late, behind.late) == (0, late)
        assert in_order.states == behind.states
        assert features(of, SUNDAY_MS, 0, {"card": behind.states[0]})["count"] == 2 - late


def test_the_largest_number_of_sources_are_told_apart() -> None:
    order = list(range(kernel.SOURCES_MAX))
    random.Random(1).shuffle(order)
    state = profile(engine(), "card", [payment(NOON_MS, 1, source=source, offset=source) for source in order])
    again = [payment(NOON_MS, 1, source=source, offset=source) for source in order]
    assert apply(engine(), "card", again, state).applied.sum() == 0


# Limits of the plan that the kernel relies on.


def test_more_entities_than_a_byte_can_tell_apart_are_still_named() -> None:
    # The entity of an unreadable profile used to be kept in three bits.
    names = [f"entity{number}" for number in range(12)]
    many = FeatureEngine(Catalogue([Entity(name, key="card_id") for name in names], [request.hour("hour")]))
    assert compile_plan(USUAL).entity_count < len(names)
    with pytest.raises(UnreadableProfile, match="a stored entity11 profile"):
        vector(many, NOON_MS, 0, {"entity11": b"\0\0\0\0\0\0"})
