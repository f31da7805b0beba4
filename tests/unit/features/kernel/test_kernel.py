"""The kernel: the content of a profile as of a moment, for any order of its events."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.features.profiles.plan import compile_plan
from tests.unit.features.kernel.profiles import (
    USUAL,
    Change,
    apply,
    card,
    events_of,
    features,
    label,
    of_card,
    payment,
    profile,
    rows_of,
    vector,
)

# A Sunday at midnight: the beginning of a tile of every hop.
SUNDAY_MS = 1_530_403_200_000
NOON_MS = SUNDAY_MS + 12 * HOUR_MS


@cache
def engine() -> FeatureEngine:
    return FeatureEngine(USUAL)


def seen(name: str, now_ms: int, changes: Sequence[Change], *, amount: int = 0) -> float:
    """One feature of a payment now, after these events of its entity; NaN when it is missing."""
    entity = name.removeprefix("amount_to_").split("_")[0]
    state = profile(engine(), entity, changes) if changes else None
    return features(engine(), now_ms, amount, {entity: state})[name]


# Features of the payment itself.


@given(time_ms=st.integers(1, 4_000_000_000_000))
def test_hour_night_and_weekend_are_those_of_the_utc_calendar(time_ms: int) -> None:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=time_ms)
    found = features(engine(), time_ms, 0, {})
    assert found["hour"] == moment.hour
    assert found["night"] == (moment.time() < datetime.time(7))
    assert found["weekend"] == (moment.isoweekday() >= 6)


def test_an_amount_is_rounded_to_float32() -> None:
    assert features(engine(), NOON_MS, 2**24 + 1, {})["amount"] == 2**24


@given(time_ms=st.integers(DAY_MS, 4_000_000_000_000), offset=st.integers(-1439, 1439))
def test_hours_and_days_are_the_payers_own_where_its_offset_is_known(time_ms: int, offset: int) -> None:
    local = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=time_ms, minutes=offset)
    of = of_card(request.hour("hour"), request.night("night"), request.weekend("weekend"), request.weekday("weekday"))
    found = features(of, time_ms, 0, {}, utc_offset_minutes=offset)
    assert found == {
        "hour": local.hour,
        "night": local.time() < datetime.time(7),
        "weekend": local.isoweekday() >= 6,
        "weekday": local.weekday(),
    }


@pytest.mark.parametrize("offset", [None, 1440, -1440, 10**6])
def test_an_impossible_utc_offset_counts_as_unknown(offset: int | None) -> None:
    assert features(of_card(request.hour("hour")), NOON_MS, 0, {}, utc_offset_minutes=offset)["hour"] == 12


@pytest.mark.parametrize(
    ("amount_minor", "zeros"), [(0, 0), (1, 0), (10, 1), (101, 0), (12_000, 3), (10**11, 11), (10**11 - 1, 0)]
)
def test_round_zeros_are_those_of_the_amount_in_its_own_currency(amount_minor: int, zeros: int) -> None:
    of = of_card(request.round_zeros("zeros"))
    assert features(of, NOON_MS, 777, {}, amount_minor=amount_minor)["zeros"] == zeros


@pytest.mark.parametrize(("amount", "below"), [(0, 1.0), (99, 0.01), (100, 0.5), (199, 0.005)])
def test_below_limit_is_the_distance_to_the_next_limit_as_a_share_of_it(amount: int, below: float) -> None:
    of = of_card(request.below_limit("below", (100, 200)))
    assert features(of, NOON_MS, amount, {}, amount_minor=7)["below"] == np.float32(below)


@pytest.mark.parametrize("amount", [200, 201, 10**11])
def test_below_limit_is_missing_at_and_above_the_last_limit(amount: int) -> None:
    assert np.isnan(features(of_card(request.below_limit("below", (100, 200))), NOON_MS, amount, {})["below"])


# Windows.


@pytest.mark.parametrize(
    ("name", "hop_ms", "length_ms"),
    [
        ("card_count_10m", MINUTE_MS, 10 * MINUTE_MS),
        ("card_count_1h", MINUTE_MS, HOUR_MS),
        ("card_count_1d", HOUR_MS, DAY_MS),
        ("card_count_3d", 6 * HOUR_MS, 3 * DAY_MS),
        ("card_count_7d", DAY_MS, 7 * DAY_MS),
        ("card_count_30d", DAY_MS, 30 * DAY_MS),
    ],
)
def test_a_window_holds_the_tiles_that_touch_it_and_no_other(name: str, hop_ms: int, length_ms: int) -> None:
    # Seen from the middle of a tile, so that the oldest tile is touched but not covered.
    now_ms = SUNDAY_MS + hop_ms // 2
    oldest_ms = SUNDAY_MS - length_ms
    assert seen(name, now_ms, [payment(oldest_ms)]) == 1
    assert seen(name, now_ms, [payment(oldest_ms - 1)]) == 0
    assert seen(name, now_ms, [payment(now_ms)]) == 1
    assert seen(name, now_ms, [payment(SUNDAY_MS + hop_ms - 1)]) == 1
    assert seen(name, now_ms, [payment(SUNDAY_MS + hop_ms)]) == 0
    # The tile goes when the moment has moved on to the next one.
    assert seen(name, SUNDAY_MS + hop_ms, [payment(oldest_ms)]) == 0


def test_a_delayed_window_ends_with_the_last_tile_wholly_before_the_delay() -> None:
    # The share over one day with a delay of seven has tiles of six hours.
    now_ms = SUNDAY_MS
    fraud = "merchant_fraud_share_1d"

    def share(payment_ms: int) -> float:
        return seen(fraud, now_ms, [payment(payment_ms), label(payment_ms, 1)])

    assert share(now_ms - 7 * DAY_MS - 1) == 1
    assert np.isnan(share(now_ms - 7 * DAY_MS))
    assert share(now_ms - 8 * DAY_MS) == 1
    assert np.isnan(share(now_ms - 8 * DAY_MS - 1))
    # A millisecond before midnight the last six hours are not wholly before it.
    assert np.isnan(seen(fraud, now_ms - 1, [payment(now_ms - 7 * DAY_MS - 1)]))


def test_sums_means_and_maxima_are_of_the_window() -> None:
    changes = [payment(NOON_MS - 40 * DAY_MS, 999), payment(NOON_MS - 3 * DAY_MS, 60), payment(NOON_MS - MINUTE_MS, 20)]
    assert seen("card_amount_sum_1h", NOON_MS, changes) == 20
    assert seen("card_amount_mean_1d", NOON_MS, changes) == 20
    assert seen("card_amount_mean_7d", NOON_MS, changes) == 40
    assert seen("card_amount_max_30d", NOON_MS, changes) == 60
    assert seen("amount_to_card_mean_7d", NOON_MS, changes, amount=100) == 2.5
    assert seen("amount_to_card_max_30d", NOON_MS, changes, amount=120) == 2


def test_a_mean_of_zero_makes_its_ratio_missing() -> None:
    assert seen("card_amount_mean_1d", NOON_MS, [payment(NOON_MS, 0)]) == 0
    assert np.isnan(seen("amount_to_card_mean_1d", NOON_MS, [payment(NOON_MS, 0)], amount=5))
    assert seen("card_amount_max_30d", NOON_MS, [payment(NOON_MS, 0)]) == 0


# Point in time.


def test_an_event_sees_the_profile_just_before_it() -> None:
    changes = [payment(NOON_MS, 10), payment(NOON_MS, 30), payment(NOON_MS + 1, 5)]
    slots = engine().new_slots(3)
    engine().apply(0, events_of([changes], with_rows=True), rows_of([changes]), [None], slots)
    vectors = engine().vectors_of_slots(rows_of([changes]), slots)
    named = [dict(zip(USUAL.names, row, strict=True)) for row in vectors.tolist()]
    assert [row["card_count_10m"] for row in named] == [0, 1, 2]
    assert np.isnan(named[0]["card_amount_mean_1d"])
    assert [row["card_amount_mean_1d"] for row in named[1:]] == [10, 20]
    assert np.isnan(named[0]["card_seconds_since_last"])


def test_an_event_applied_before_fills_no_slots() -> None:
    state = profile(engine(), "card", [payment(NOON_MS, 1, source=0, offset=5)])
    slots = engine().new_slots(1)
    again = [[payment(NOON_MS, 1, source=0, offset=5)]]
    applied = engine().apply(0, events_of(again, with_rows=True), rows_of(again), [state], slots).applied
    assert applied.tolist() == [0]
    assert np.isnan(slots).all()


def test_a_fraud_taken_back_leaves_a_share_of_zero() -> None:
    then_ms = NOON_MS - 10 * DAY_MS
    made = [payment(then_ms), payment(then_ms + HOUR_MS)]
    assert seen("merchant_fraud_share_30d", NOON_MS, [*made, label(then_ms, 1)]) == 0.5
    assert seen("merchant_fraud_share_30d", NOON_MS, [*made, label(then_ms, 1), label(then_ms, -1)]) == 0


def test_a_label_that_changes_nothing_leaves_no_trace() -> None:
    made = [payment(NOON_MS)]
    assert profile(engine(), "merchant", [*made, label(NOON_MS + DAY_MS, 0)]) == profile(engine(), "merchant", made)


# Order of arrival.


def test_events_too_late_for_a_table_are_counted_and_not_added() -> None:
    result = apply(engine(), "card", [payment(NOON_MS, 1), payment(NOON_MS - 2 * DAY_MS, 5), payment(NOON_MS, 1)])
    assert result.late == 1
    found = features(engine(), NOON_MS, 0, {"card": result.states[0]})
    assert [found[f"card_count_{window}"] for window in ("1h", "1d", "7d")] == [2, 2, 3]


@pytest.mark.parametrize(("window", "length_ms"), [("1h", HOUR_MS), ("1d", DAY_MS), ("7d", 7 * DAY_MS)])
def test_a_table_keeps_exactly_the_tiles_its_window_can_touch(window: str, length_ms: int) -> None:
    of = of_card(card.count("count", window))
    newest, oldest_ms = payment(SUNDAY_MS), SUNDAY_MS - length_ms
    for old, late in ((payment(oldest_ms), 0), (payment(oldest_ms - 1), 1)):
        in_order, behind = apply(of, "card", [old, newest]), apply(of, "card", [newest, old])
        assert (in_order.late, behind.late) == (0, late)
        assert in_order.states == behind.states
        assert features(of, SUNDAY_MS, 0, {"card": behind.states[0]})["count"] == 2 - late


def test_a_label_is_not_late_for_tables_that_hold_no_labels() -> None:
    # Every label comes days after its payment, and each used to count as late for the tiles of minutes.
    changes = [payment(NOON_MS), payment(NOON_MS + 8 * DAY_MS), label(NOON_MS, 1)]
    assert apply(engine(), "merchant", changes).late == 0
    assert apply(engine(), "card", changes).late == 0
    assert apply(engine(), "merchant", [payment(NOON_MS + 60 * DAY_MS), label(NOON_MS, 1)]).late == 1


def test_a_late_payment_sees_its_longest_windows_cut_short() -> None:
    # A table is cut by the newest event alone. That makes order of arrival not matter in the end, and costs a
    # late payment the tiles that only it could still see.
    oldest, newest = payment(NOON_MS - 30 * DAY_MS), payment(NOON_MS + DAY_MS)
    assert seen("card_count_30d", NOON_MS, [oldest]) == 1
    assert seen("card_count_30d", NOON_MS, [oldest, newest]) == 0
    assert seen("card_count_30d", NOON_MS, [payment(NOON_MS - 29 * DAY_MS), newest]) == 1


@given(data=st.data(), lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_sources_may_interleave_in_any_way(data: st.DataObject, lengths: list[int]) -> None:
    queues = [
        [payment(SUNDAY_MS + (7 * s + o) * HOUR_MS, s + o, source=9 - s, offset=2 * o) for o in range(n)]
        for s, n in enumerate(lengths)
    ]
    in_turn = [change for queue in queues for change in queue]
    order = data.draw(st.permutations([s for s, n in enumerate(lengths) for _ in range(n)]))
    taken = [iter(queue) for queue in queues]
    mixed = [next(taken[s]) for s in order]
    result = apply(engine(), "card", mixed)
    assert result.states == apply(engine(), "card", in_turn).states
    assert result.applied.all()


@given(
    offsets=st.lists(st.integers(0, 2**40), min_size=1, max_size=10, unique=True).map(sorted),
    first=st.integers(0, 9),
    length=st.integers(1, 10),
)
def test_repeated_offsets_change_nothing(offsets: list[int], first: int, length: int) -> None:
    changes = [payment(SUNDAY_MS + offset, 3, source=4, offset=offset) for offset in offsets]
    state = profile(engine(), "card", changes)
    again = changes[first : first + length]
    repeated = apply(engine(), "card", again, state)
    assert repeated.states == [state]
    assert repeated.applied.tolist() == [0] * len(again)
    assert repeated.late == 0
    newer = apply(engine(), "card", [*again, payment(SUNDAY_MS, 3, source=4, offset=offsets[-1] + 1)], state)
    assert newer.applied.tolist() == [0] * len(again) + [1]


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
