"""Memories: the latest distinct values of an attribute, and the speed from one country to another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.windows import HOUR_MS, MINUTE_MS
from tests.unit.features.kernel.profiles import card, of_card, one, payment, profile
from tests.worlds.stream.packed import read_packed

# A Sunday at noon: the beginning of a tile of every hop but a day.
NOON_MS = 1_530_446_400_000


def remembered(state: bytes) -> list[tuple[int, int]]:
    """(value, when last seen) in a profile that holds only one memory."""
    (first,), (last,), (newest,), (sources, _), values, ages_ms, _, _ = read_packed(state).columns
    seen_ms, found = first + last + newest, []
    for value, before in zip(values, ages_ms, strict=True):
        seen_ms -= before
        found.append((value, seen_ms))
    assert sources == 0
    return found


SEEN = st.lists(
    st.tuples(st.integers(NOON_MS, NOON_MS + 5), st.sampled_from([f"m{number}" for number in range(9)])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=200)
@given(seen=SEEN, among=st.integers(1, 6), data=st.data())
def test_a_memory_holds_the_latest_distinct_values_whatever_their_order(
    seen: list[tuple[int, str]], among: int, data: st.DataObject
) -> None:
    # Nine merchants in six milliseconds: more than there is room for, and most of them at the same time.
    of = of_card(card.is_new("x", attributes.merchant_id, among=among))
    changes = [payment(time_ms, merchant_id=merchant) for time_ms, merchant in seen]
    state = profile(of, "card", changes)
    last: dict[int, int] = {}
    for change in changes:
        value = change.row[attributes.identity_column(attributes.merchant_id.column)]
        last[value] = max(last.get(value, 0), change.time_ms)
    latest = sorted(last.items(), key=lambda item: (item[1], item[0]), reverse=True)[:among]
    assert remembered(state) == latest
    shuffled = data.draw(st.permutations(changes))
    cut = data.draw(st.integers(0, len(shuffled)))
    assert profile(of, "card", shuffled[cut:], profile(of, "card", shuffled[:cut])) == state


def test_a_value_is_new_again_after_enough_other_values() -> None:
    changes = [payment(NOON_MS + number, merchant_id=f"m{number}") for number in range(4)]
    now = payment(NOON_MS + 1000, merchant_id="m1")
    new = [one(card.is_new("x", attributes.merchant_id, among=2), now, changes[:seen]) for seen in range(5)]
    assert new == [1, 1, 0, 0, 1]
    assert one(card.is_new("x", attributes.merchant_id), now, changes) == 0


def test_a_payment_that_lacks_the_attribute_is_neither_new_nor_remembered() -> None:
    none, some = payment(NOON_MS), payment(NOON_MS, country="DE")
    assert np.isnan(one(card.is_new("x", attributes.country), none, [some]))
    assert np.isnan(one(card.seconds_since_same("x", attributes.country), none, [none, some]))
    assert one(card.is_new("x", attributes.country), some, [none]) == 1


def test_time_since_the_same_value_is_that_of_its_latest_payment() -> None:
    changes = [
        payment(NOON_MS - 5000, merchant_id="m"),
        payment(NOON_MS - 3000, merchant_id="m"),
        payment(NOON_MS - 4000, merchant_id="m"),
        payment(NOON_MS - 1000, merchant_id="n"),
    ]
    now = payment(NOON_MS, merchant_id="m")
    assert one(card.seconds_since_same("x", attributes.merchant_id), now, changes) == 3
    assert np.isnan(one(card.seconds_since_same("x", attributes.merchant_id, among=1), now, changes))


def test_the_last_amount_is_the_largest_of_the_newest_moment() -> None:
    now = payment(NOON_MS, 7)
    assert np.isnan(one(card.last_amount("x"), now, []))
    changes = [payment(NOON_MS - 1, 300), payment(NOON_MS - 1, 500), payment(NOON_MS - 2, 900)]
    assert one(card.last_amount("x"), now, changes) == 500
    assert one(card.last_amount("x"), now, [*changes, payment(NOON_MS, 0)]) == 0


def test_a_late_payment_sees_no_value_that_came_after_it() -> None:
    later = payment(NOON_MS + 1, 5, merchant_id="m", country="FR")
    now = payment(NOON_MS, merchant_id="m", country="DE")
    assert np.isnan(one(card.last_amount("x"), now, [later]))
    assert one(card.is_new("x", attributes.merchant_id), now, [later]) == 1
    assert np.isnan(one(card.seconds_since_same("x", attributes.merchant_id), now, [later]))
    assert np.isnan(one(card.travel_kmh("x"), now, [later]))
    # A memory keeps only the latest time of a value, so a late payment cannot see its earlier times.
    assert one(card.is_new("x", attributes.merchant_id), now, [payment(NOON_MS - 1, merchant_id="m"), later]) == 1


def test_a_journey_is_as_fast_as_the_countries_are_apart() -> None:
    here = payment(NOON_MS, country="DE")
    there = payment(NOON_MS - 2 * HOUR_MS, country="FR")
    # About 800 km between the middles of Germany and France.
    speed = one(card.travel_kmh("x"), here, [there])
    assert 300 < speed < 500
    # Both ways, and the slower the longer ago.
    back = payment(NOON_MS - 2 * HOUR_MS, country="DE")
    assert one(card.travel_kmh("x"), payment(NOON_MS, country="FR"), [back]) == speed
    assert one(card.travel_kmh("x"), payment(NOON_MS + 2 * HOUR_MS, country="DE"), [there]) == pytest.approx(speed / 2)
    # From the other side of the world, over the date line.
    far = one(card.travel_kmh("x"), here, [payment(NOON_MS - HOUR_MS, country="NZ")])
    assert 17_000 < far < 20_000
    near = one(card.travel_kmh("x"), payment(NOON_MS, country="FJ"), [payment(NOON_MS - HOUR_MS, country="WS")])
    assert near < 2_000


def test_a_journey_is_taken_to_last_a_minute_at_least() -> None:
    here = payment(NOON_MS, country="DE")
    minute, moment = (payment(NOON_MS - before_ms, country="FR") for before_ms in (MINUTE_MS, 0))
    assert one(card.travel_kmh("x"), here, [moment]) == one(card.travel_kmh("x"), here, [minute])


def test_nobody_travels_within_a_country_nor_to_or_from_nowhere() -> None:
    def speed(origin: str | None, destination: str | None) -> float:
        changes = [payment(NOON_MS - HOUR_MS, country=origin)]
        return one(card.travel_kmh("x"), payment(NOON_MS, country=destination), changes)

    assert speed("DE", "DE") == 0
    assert speed("ZZ", "ZZ") == 0
    for unknown in ("ZZ", "de", "Germany", None):
        assert np.isnan(speed("DE", unknown))
        assert np.isnan(speed(unknown, "DE"))
    assert np.isnan(one(card.travel_kmh("x"), payment(NOON_MS, country="DE"), []))


def test_a_journey_starts_where_the_last_payment_with_a_country_was() -> None:
    changes = [
        payment(NOON_MS - 2 * HOUR_MS, country="DE"),
        payment(NOON_MS - HOUR_MS, country="FR"),
        payment(NOON_MS - 1),
    ]
    assert one(card.travel_kmh("x"), payment(NOON_MS, country="FR"), changes) == 0
    assert one(card.travel_kmh("x"), payment(NOON_MS, country="DE"), changes) > 0
