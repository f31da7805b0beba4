"""The kernel: what a profile knows as of a moment, whatever order its events came in."""

from __future__ import annotations

import datetime
import math
import random
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import attributes, kernel
from features.attributes import Attribute, Condition
from features.declare import Catalogue, Entity, request
from features.engine import FeatureEngine, UnreadableProfile
from features.money import _RATE_MAX, AMOUNT_MINOR_MAX, RATE_SCALE
from features.plan import compile_plan
from features.values import Feature
from features.windows import DAY_MS, HOUR_MS, MINUTE_MS
from tests.packed import read_packed
from tests.unit.features.profiles import (
    USUAL,
    Change,
    apply,
    card,
    events_of,
    features,
    label,
    payment,
    profile,
    rows_of,
    vector,
)

# A Sunday at midnight: the beginning of a tile of every hop.
SUNDAY_MS = 1_530_403_200_000
NOON_MS = SUNDAY_MS + 12 * HOUR_MS
AMOUNT_MAX = AMOUNT_MINOR_MAX * _RATE_MAX // RATE_SCALE


@cache
def engine() -> FeatureEngine:
    return FeatureEngine(USUAL)


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


def seen(name: str, now_ms: int, changes: Sequence[Change], *, amount: int = 0) -> float:
    """One feature of a payment now, after these events of its entity; NaN when it is missing."""
    entity = name.removeprefix("amount_to_").split("_")[0]
    state = profile(engine(), entity, changes) if changes else None
    return features(engine(), now_ms, amount, {entity: state})[name]


# What the payment says itself.


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
def test_an_offset_that_no_clock_has_counts_as_not_known(offset: int | None) -> None:
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


# Conditions.

# A condition, what a payment needs for it to hold, and what makes it fail; no attribute answers no to all.
Fields = dict[str, Any]
CONDITIONS: dict[str, tuple[Condition | Attribute, Fields, Fields | None]] = {
    "a flag": (attributes.declined, {"declined": True}, {"declined": False}),
    "a flag that is not set": (attributes.declined == False, {"declined": False}, {"declined": True}),  # noqa: E712
    "a text": (attributes.channel == "ecom", {"channel": "ecom"}, {"channel": "pos"}),
    "another text": (attributes.channel != "ecom", {"channel": "pos"}, {"channel": "ecom"}),
    "a country": (attributes.country == "DE", {"country": "DE"}, {"country": "FR"}),
    "another country": (attributes.country != "DE", {"country": "FR"}, {"country": "DE"}),
    "a currency": (attributes.currency == "USD", {"currency": "USD"}, {"currency": "EUR"}),
    "an own amount at least": (attributes.amount_minor >= 50, {"amount_minor": 50}, {"amount_minor": 49}),
    "an own amount below": (attributes.amount_minor < 50, {"amount_minor": 49}, {"amount_minor": 50}),
    "an own amount": (attributes.amount_minor == 50, {"amount_minor": 50}, {"amount_minor": 51}),
    "an amount of nothing": (attributes.amount == 0, {}, None),
}


@pytest.mark.parametrize("what", list(CONDITIONS))
def test_a_condition_counts_the_payments_it_holds_for(what: str) -> None:
    condition, holding, failing = CONDITIONS[what]
    good = payment(NOON_MS, 0, **holding)
    bad = payment(NOON_MS, 1, **failing) if failing is not None else payment(NOON_MS, 1)
    for count, changes in ((0, [bad]), (1, [good, bad]), (2, [bad, good, good])):
        assert one(card.count("x", "1d", where=condition), good, changes) == count
    assert one(request.holds("x", condition), good, []) == 1
    assert one(request.holds("x", condition), bad, []) == 0


@pytest.mark.parametrize("what", [what for what in CONDITIONS if "amount" not in what])
def test_a_payment_without_the_attribute_answers_no_and_holds_is_missing(what: str) -> None:
    condition, holding, _ = CONDITIONS[what]
    none = payment(NOON_MS, 9)
    assert one(card.count("x", "1d", where=condition), none, [none]) == 0
    assert one(card.share("x", "1d", of=condition), none, [none, payment(NOON_MS, **holding)]) == 0.5
    assert np.isnan(one(request.holds("x", condition), none, []))


# Each word that takes a condition, over two payments that it holds for (60 and 20) and a third (1000) it does not.
CONDITIONED: dict[str, tuple[Callable[[Condition | Attribute], Feature], float]] = {
    "count": (lambda where: card.count("x", "1d", where=where), 2),
    "rate": (lambda where: card.rate("x", "1d", where=where), 2 / 24),
    "share": (lambda where: card.share("x", "1d", of=where), 2 / 3),
    "count_decayed": (lambda where: card.count_decayed("x", "1h", "1d", where=where), 2),
    "distinct": (lambda where: card.distinct("x", attributes.merchant_id, "1d", where=where), 64 * math.log(64 / 63)),
    "amount_sum": (lambda where: card.amount_sum("x", "1d", where=where), 80),
    "amount_mean": (lambda where: card.amount_mean("x", "1d", where=where), 40),
    "amount_std": (lambda where: card.amount_std("x", "1d", where=where), 800**0.5),
    "amount_zscore": (lambda where: card.amount_zscore("x", "1d", where=where), (100 - 40) / 800**0.5),
    "amount_max": (lambda where: card.amount_max("x", "1d", where=where), 60),
    "amount_min": (lambda where: card.amount_min("x", "1d", where=where), 20),
}


@pytest.mark.parametrize("word", list(CONDITIONED))
@pytest.mark.parametrize("what", [what for what in CONDITIONS if "amount" not in what])
def test_every_word_that_takes_a_condition_asks_it(word: str, what: str) -> None:
    make, wanted = CONDITIONED[word]
    condition, holding, failing = CONDITIONS[what]
    assert failing is not None
    changes = [
        payment(NOON_MS, 60, merchant_id="m", **holding),
        payment(NOON_MS, 1000, merchant_id="n", **failing),
        payment(NOON_MS, 20, merchant_id="m", **holding),
    ]
    assert one(make(condition), payment(NOON_MS, 100), changes) == np.float32(wanted)


@pytest.mark.parametrize("what", list(CONDITIONS))
def test_a_label_counts_where_its_payment_answers_yes(what: str) -> None:
    condition, holding, failing = CONDITIONS[what]
    bad = failing if failing is not None else {}
    then_ms, now = NOON_MS - 2 * DAY_MS, payment(NOON_MS)
    made = [payment(then_ms, 0, **holding), payment(then_ms, 1, **bad)]
    frauds = card.fraud_count("x", "1d", delay="1d", where=condition)
    share = card.fraud_share("x", "1d", delay="1d", where=condition)
    for told, count in ((label(then_ms, 1, amount=0, **holding), 1), (label(then_ms, 1, amount=1, **bad), 0)):
        assert one(frauds, now, [*made, told]) == count
        assert one(share, now, [*made, told]) == count


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


def test_what_there_was_none_of_is_missing_and_a_count_is_zero() -> None:
    for changes in ([], [payment(NOON_MS - 60 * DAY_MS, 5)]):
        assert seen("card_count_30d", NOON_MS, changes) == 0
        assert seen("card_amount_sum_1h", NOON_MS, changes) == 0
        for name in (
            "card_amount_mean_30d",
            "card_amount_max_30d",
            "amount_to_card_mean_30d",
            "amount_to_card_max_30d",
        ):
            assert np.isnan(seen(name, NOON_MS, changes, amount=5))
        assert np.isnan(seen("merchant_fraud_share_30d", NOON_MS, changes))


def test_a_mean_of_zero_makes_its_ratio_missing() -> None:
    assert seen("card_amount_mean_1d", NOON_MS, [payment(NOON_MS, 0)]) == 0
    assert np.isnan(seen("amount_to_card_mean_1d", NOON_MS, [payment(NOON_MS, 0)], amount=5))
    assert seen("card_amount_max_30d", NOON_MS, [payment(NOON_MS, 0)]) == 0


def test_all_of_an_entity_that_takes_no_part_is_missing() -> None:
    found = features(engine(), NOON_MS, 7, {"card": None, "merchant": None})
    assert all(np.isnan(value) for name, value in found.items() if name.startswith("device"))
    assert found["card_count_1d"] == found["merchant_count_1d"] == 0
    # Nothing of the one before is left in the scratch.
    device = profile(engine(), "device", [payment(NOON_MS, 1)])
    assert features(engine(), NOON_MS, 7, {"device": device})["device_count_1d"] == 1
    assert np.isnan(features(engine(), NOON_MS, 7, {})["device_count_1d"])


def test_recency_is_seconds_since_the_newest_and_the_oldest_payment() -> None:
    changes = [payment(NOON_MS - 400 * DAY_MS), payment(NOON_MS - 1500), payment(NOON_MS - 2 * DAY_MS)]
    assert seen("card_seconds_since_last", NOON_MS, changes) == 1.5
    assert seen("card_seconds_since_first", NOON_MS, changes) == 400 * 86_400
    assert seen("card_seconds_since_last", NOON_MS - 1600, changes) == 0
    assert np.isnan(seen("card_seconds_since_last", NOON_MS, []))
    assert np.isnan(seen("card_seconds_since_first", NOON_MS, []))


# Point in time.


def test_what_an_event_sees_is_what_was_known_just_before_it() -> None:
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


# Measures.


@given(amounts=st.lists(st.integers(0, 10**7), max_size=30), now=st.integers(0, 10**7))
def test_deviations_and_standard_scores_are_those_of_a_sample(amounts: list[int], now: int) -> None:
    changes = [payment(NOON_MS, amount) for amount in amounts]
    std, score = (
        one(make("x", "1d"), payment(NOON_MS, now), changes) for make in (card.amount_std, card.amount_zscore)
    )
    if len(amounts) < 2:
        assert np.isnan(std)
        assert np.isnan(score)
        return
    wanted = statistics.stdev(amounts)
    assert std == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    if len(set(amounts)) == 1:
        assert std == 0
        assert np.isnan(score)
    else:
        assert score == pytest.approx((now - statistics.fmean(amounts)) / wanted, rel=1e-5, abs=1e-5)


def test_deviations_of_the_largest_amounts_there_can_be_do_not_overflow() -> None:
    changes = [payment(NOON_MS, AMOUNT_MAX - (number % 2) * AMOUNT_MAX // 2) for number in range(1000)]
    wanted = statistics.stdev(change.row[kernel.AMOUNT] for change in changes)
    assert one(card.amount_std("x", "1d"), payment(NOON_MS), changes) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("bits", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("load", [0.1, 0.5, 1.0])
def test_distinct_values_are_estimated_within_three_standard_errors(bits: int, load: float) -> None:
    count = int(bits * load)
    feature = card.distinct("x", attributes.merchant_id, "1d", bits=bits)
    error = (bits * (math.exp(count / bits) - count / bits - 1)) ** 0.5
    estimates = []
    for world in range(10):
        changes = [payment(NOON_MS, merchant_id=f"m{world}-{number}") for number in range(count)]
        estimates.append(one(feature, payment(NOON_MS), changes * 2))
    assert max(abs(estimate - count) for estimate in estimates) <= 3.5 * error
    assert abs(statistics.fmean(estimates) - count) <= 1.5 * error


@pytest.mark.parametrize("bits", [64, 1024])
def test_more_distinct_values_than_the_bitmap_tells_apart_stay_at_its_limit(bits: int) -> None:
    changes = [payment(NOON_MS, merchant_id=f"m{number}") for number in range(20 * bits)]
    feature = card.distinct("x", attributes.merchant_id, "1d", bits=bits)
    assert one(feature, payment(NOON_MS), changes) == np.float32(bits * math.log(bits))


def test_distinct_values_of_several_tiles_are_those_of_all_together() -> None:
    changes = [payment(NOON_MS - hour * HOUR_MS, mcc=code) for hour in range(5) for code in ("5411", "5812", None)]
    wanted = np.float32(64 * math.log(64 / 62))
    assert one(card.distinct("x", attributes.mcc, "1d"), payment(NOON_MS), changes) == wanted


def test_entropy_and_top_share_tell_one_place_from_many() -> None:
    alike = [payment(NOON_MS, mcc="5411")] * 6
    # Ten codes that are known to fall into all of two buckets.
    spread = [payment(NOON_MS, mcc=str(5000 + number)) for number in range(10)]
    places = [kernel.mix(change.row[attributes.mcc.column]) % 2 for change in spread]
    shares = [places.count(place) / 10 for place in (0, 1)]
    entropy = card.entropy("x", attributes.mcc, "1d", buckets=2)
    top = card.top_share("x", attributes.mcc, "1d", buckets=2)
    now = payment(NOON_MS)
    assert (one(entropy, now, alike), one(top, now, alike)) == (0, 1)
    assert one(entropy, now, spread) == np.float32(-sum(share * math.log2(share) for share in shares))
    assert one(top, now, spread) == np.float32(max(shares))
    for none in ([], [now]):
        assert np.isnan(one(entropy, now, none))
        assert np.isnan(one(top, now, none))


def test_a_tile_counts_half_for_every_half_life_of_its_age() -> None:
    changes = [payment(NOON_MS - hour * HOUR_MS, 100) for hour in (0, 1, 2, 24)]
    now = payment(NOON_MS + HOUR_MS // 2)
    weights = [0.5**hour for hour in (0, 1, 2, 24)]
    assert one(card.count_decayed("x", "1h", "1d"), now, changes) == pytest.approx(sum(weights))
    assert one(card.amount_decayed("x", "1h", "1d"), now, changes) == pytest.approx(100 * sum(weights))
    # The frauds of two tiles, a day and two days old: 1/2 and 1/4 of four halves and four quarters.
    made = [payment(NOON_MS - days * DAY_MS) for days in (2, 3) for _ in range(4)]
    told = [label(NOON_MS - days * DAY_MS, 1) for days in (2, 3)]
    share = card.fraud_share_decayed("x", "1d", "3d", delay="1d", hop="1d")
    assert one(share, payment(NOON_MS), [*made, *told]) == 0.25
    assert one(share, payment(NOON_MS), [*made, told[0]]) == pytest.approx(0.25 / (4 * 0.25 + 4 * 0.125))


def test_a_trend_is_one_when_all_is_as_ever_and_missing_after_silence() -> None:
    steady = [payment(NOON_MS - hour * HOUR_MS) for hour in range(7 * 24)]
    trend = card.count_trend("x", "1d", "7d")
    assert one(trend, payment(NOON_MS), steady) == pytest.approx(1, rel=0.05)
    assert one(trend, payment(NOON_MS), steady[:10]) == 7
    assert one(trend, payment(NOON_MS), steady[30:]) == 0
    assert np.isnan(one(trend, payment(NOON_MS), []))


def test_the_age_of_a_fraud_is_that_of_its_tile_in_whole_hops() -> None:
    frauds_ms = [NOON_MS - days * DAY_MS for days in (2, 3, 5)]
    told = [label(time_ms, 1) for time_ms in frauds_ms]
    newest = card.seconds_since_fraud("x", "7d", delay="1d", hop="1d")
    oldest = card.seconds_since_first_fraud("x", "7d", delay="1d", hop="1d")
    now = payment(NOON_MS + 5 * HOUR_MS)
    assert one(newest, now, told) == 2 * 86_400
    assert one(oldest, now, told) == 5 * 86_400
    # A fraud that was taken back is none, and one that is only taken back is less.
    assert one(newest, now, [*told, label(frauds_ms[0], -1)]) == 3 * 86_400
    assert one(oldest, now, [*told, label(frauds_ms[2], -1), label(frauds_ms[2], -1)]) == 3 * 86_400
    assert np.isnan(one(newest, now, [payment(time_ms) for time_ms in frauds_ms]))


def test_a_streak_is_the_frauds_since_the_last_tile_with_a_genuine_payment() -> None:
    def days_ago(days: int, frauds: int, genuine: int = 0) -> list[Change]:
        time_ms = NOON_MS - days * DAY_MS
        return [payment(time_ms)] * (frauds + genuine) + [label(time_ms, 1)] * frauds

    streak = card.fraud_streak("x", "30d", delay="1d", hop="1d")
    seconds = card.fraud_streak_seconds("x", "30d", delay="1d", hop="1d")
    genuine = card.seconds_since_genuine("x", "30d", delay="1d", hop="1d")
    now = payment(NOON_MS)
    # The newest frauds are two and three days old; a tile that is mixed ends the streak and is not of it.
    recent = [*days_ago(2, 1), *days_ago(3, 2)]
    for before in ([], days_ago(5, 4, 1), days_ago(5, 0, 1), [*days_ago(5, 0, 1), *days_ago(6, 9)]):
        changes = [*recent, *before]
        assert one(streak, now, changes) == 3
        assert one(seconds, now, changes) == 3 * 86_400
        assert one(genuine, now, changes) == 5 * 86_400 or (np.isnan(one(genuine, now, changes)) and not before)
    # A day's payments that are not known to be fraud are taken for genuine; those of the delay are not looked at.
    quiet = [*recent, *days_ago(2, 0, 1)]
    assert one(streak, now, quiet) == 0
    assert np.isnan(one(seconds, now, quiet))
    assert one(genuine, now, quiet) == 2 * 86_400
    assert one(streak, now, [*recent, *days_ago(0, 0, 1), *days_ago(1, 0, 1)]) == 3
    assert one(streak, now, []) == 0
    assert np.isnan(one(genuine, now, []))


def test_this_payment_is_included_where_the_feature_says_so() -> None:
    now = payment(NOON_MS, 50)
    assert one(card.count("x", "1d", including_this=True), now, []) == 1
    assert one(card.count("x", "1d", including_this=True), now, [now, now]) == 3
    assert one(card.amount_mean("x", "1d", including_this=True), now, []) == 50
    assert one(card.amount_mean("x", "1d", including_this=True), now, [payment(NOON_MS, 10)]) == 30


def test_the_smallest_amount_may_be_nothing() -> None:
    changes = [payment(NOON_MS, 5), payment(NOON_MS - HOUR_MS, 0), payment(NOON_MS - 2 * HOUR_MS, 9)]
    assert one(card.amount_min("x", "1d"), payment(NOON_MS), changes) == 0
    assert one(card.amount_max("x", "1d"), payment(NOON_MS), changes) == 9
    assert one(card.amount_min("x", "1d"), payment(NOON_MS), changes[:1]) == 5
    assert np.isnan(one(card.amount_min("x", "1d"), payment(NOON_MS), []))


@given(code=st.integers(-(2**63), 2**63 - 1))
def test_mix_is_the_finaliser_of_splitmix64_without_its_lowest_bit(code: int) -> None:
    mask = 2**64 - 1
    bits = (code + 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & mask
    assert kernel.mix(code) == (bits ^ bits >> 31) >> 1


# Memories: the latest distinct values of an attribute.


def remembered(state: bytes) -> list[tuple[int, int]]:
    """(value, when last seen) in a profile that holds nothing but one memory."""
    first, last, newest, sources, items, *rest = read_packed(state).numbers
    seen_ms, found = first + last + newest, []
    for value, before in zip(rest[: 2 * items : 2], rest[1 : 2 * items : 2], strict=True):
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
        value = change.row[attributes.merchant_id.column]
        last[value] = max(last.get(value, 0), change.time_ms)
    latest = sorted(last.items(), key=lambda item: (item[1], item[0]), reverse=True)[:among]
    assert remembered(state) == latest
    shuffled = data.draw(st.permutations(changes))
    cut = data.draw(st.integers(0, len(shuffled)))
    assert profile(of, "card", shuffled[cut:], profile(of, "card", shuffled[:cut])) == state


def test_a_value_is_new_until_it_is_seen_and_again_when_enough_others_came() -> None:
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


def test_the_last_amount_is_the_newest_payments_and_of_one_moment_the_largest() -> None:
    now = payment(NOON_MS, 7)
    assert np.isnan(one(card.last_amount("x"), now, []))
    changes = [payment(NOON_MS - 1, 300), payment(NOON_MS - 1, 500), payment(NOON_MS - 2, 900)]
    assert one(card.last_amount("x"), now, changes) == 500
    assert one(card.last_amount("x"), now, [*changes, payment(NOON_MS, 0)]) == 0


def test_a_payment_older_than_the_newest_does_not_see_what_was_seen_only_later() -> None:
    later = payment(NOON_MS + 1, 5, merchant_id="m", country="FR")
    now = payment(NOON_MS, merchant_id="m", country="DE")
    assert np.isnan(one(card.last_amount("x"), now, [later]))
    assert one(card.is_new("x", attributes.merchant_id), now, [later]) == 1
    assert np.isnan(one(card.seconds_since_same("x", attributes.merchant_id), now, [later]))
    assert np.isnan(one(card.travel_kmh("x"), now, [later]))
    # Of a value only its latest time is kept: that it was seen before, too, is what such a payment loses.
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


# Order of arrival.


def test_events_too_late_for_a_table_are_counted_and_leave_that_table_alone() -> None:
    result = apply(engine(), "card", [payment(NOON_MS, 1), payment(NOON_MS - 2 * DAY_MS, 5), payment(NOON_MS, 1)])
    assert result.late == 1
    found = features(engine(), NOON_MS, 0, {"card": result.states[0]})
    assert [found[f"card_count_{window}"] for window in ("1h", "1d", "7d")] == [2, 2, 3]


@pytest.mark.parametrize(("window", "length_ms"), [("1h", HOUR_MS), ("1d", DAY_MS), ("7d", 7 * DAY_MS)])
def test_a_table_keeps_the_oldest_tile_that_its_window_can_touch_and_no_older(window: str, length_ms: int) -> None:
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


def test_a_payment_older_than_the_newest_event_sees_its_longest_windows_cut_short() -> None:
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
def test_a_stretch_of_offsets_heard_again_changes_nothing(offsets: list[int], first: int, length: int) -> None:
    changes = [payment(SUNDAY_MS + offset, 3, source=4, offset=offset) for offset in offsets]
    state = profile(engine(), "card", changes)
    again = changes[first : first + length]
    repeated = apply(engine(), "card", again, state)
    assert repeated.states == [state]
    assert repeated.applied.tolist() == [0] * len(again)
    assert repeated.late == 0
    newer = apply(engine(), "card", [*again, payment(SUNDAY_MS, 3, source=4, offset=offsets[-1] + 1)], state)
    assert newer.applied.tolist() == [0] * len(again) + [1]


def test_offsets_of_one_source_say_nothing_of_another() -> None:
    state = profile(engine(), "card", [payment(NOON_MS, 1, source=3, offset=100)])
    for source in (0, 2, 4):
        assert apply(engine(), "card", [payment(NOON_MS, 1, source=source, offset=0)], state).applied.tolist() == [1]


def test_as_many_sources_as_there_is_room_for_are_told_apart() -> None:
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
