"""Measures: what tiles keep and windows make of it, and the conditions that choose the payments they are of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.attributes import Attribute, Condition
from paywarden.features.catalogue.entity import CATEGORIES_MAX, request
from paywarden.features.catalogue.expressions import Feature
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.profiles.money import _RATE_MAX, RATE_SCALE
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX
from tests.unit.features.kernel.profiles import Change, card, label, one, payment

# A Sunday at noon: the beginning of a tile of every hop but a day.
NOON_MS = 1_530_446_400_000
AMOUNT_MAX = AMOUNT_MINOR_MAX * _RATE_MAX // RATE_SCALE


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


@pytest.mark.parametrize("what", [what for what in CONDITIONS if "amount" not in what])
def test_without_the_attribute_a_condition_fails_and_holds_is_missing(what: str) -> None:
    condition, holding, _ = CONDITIONS[what]
    none = payment(NOON_MS, 9)
    assert one(card.count("x", "1d", where=condition), none, [none]) == 0
    assert one(card.share("x", "1d", of=condition), none, [none, payment(NOON_MS, **holding)]) == 0.5
    assert np.isnan(one(request.holds("x", condition), none, []))


@pytest.mark.parametrize(
    ("attribute", "among", "texts"),
    [
        (attributes.channel, ("ecom", "pos", "atm"), ["ecom", "pos", "atm", "moto"]),
        (attributes.mcc, ("9999", "5411"), ["9999", "5411", "0000"]),
        (attributes.country, ("FR", "AA", "ZZ"), ["FR", "AA", "ZZ", "DE"]),
        (attributes.currency, ("EUR",), ["EUR", "USD"]),
    ],
)
def test_a_category_is_its_position_and_any_other_value_the_length(
    attribute: attributes.Attribute, among: tuple[str, ...], texts: list[str]
) -> None:
    feature = request.category("x", attribute, among)
    payments: list[dict[str, Any]] = [{attribute.name: text} for text in texts]
    found = [one(feature, payment(NOON_MS, 0, **fields), []) for fields in payments]
    assert found == list(range(len(among) + 1))


def test_each_of_the_longest_list_of_categories_has_its_place() -> None:
    # More than two bytes, in no order, so that a search has every branch to take.
    among = [f"{(7919 * place) % 10_000:04}" for place in range(CATEGORIES_MAX)]
    feature = request.category("x", attributes.mcc, among)
    for place in (*range(0, CATEGORIES_MAX, 273), CATEGORIES_MAX - 1):
        assert one(feature, payment(NOON_MS, 0, mcc=among[place]), []) == place
    assert one(feature, payment(NOON_MS, 0, mcc="other"), []) == CATEGORIES_MAX


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
def test_a_label_counts_where_its_payment_meets_the_condition(what: str) -> None:
    condition, holding, failing = CONDITIONS[what]
    bad = failing if failing is not None else {}
    then_ms, now = NOON_MS - 2 * DAY_MS, payment(NOON_MS)
    made = [payment(then_ms, 0, **holding), payment(then_ms, 1, **bad)]
    frauds = card.fraud_count("x", "1d", delay="1d", where=condition)
    share = card.fraud_share("x", "1d", delay="1d", where=condition)
    for told, count in ((label(then_ms, 1, amount=0, **holding), 1), (label(then_ms, 1, amount=1, **bad), 0)):
        assert one(frauds, now, [*made, told]) == count
        assert one(share, now, [*made, told]) == count


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
def test_a_full_bitmap_gives_its_largest_estimate(bits: int) -> None:
    changes = [payment(NOON_MS, merchant_id=f"m{number}") for number in range(20 * bits)]
    feature = card.distinct("x", attributes.merchant_id, "1d", bits=bits)
    assert one(feature, payment(NOON_MS), changes) == np.float32(bits * math.log(bits))


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


def test_a_trend_is_one_at_a_steady_rate_and_missing_after_silence() -> None:
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


def test_the_mean_amount_of_a_streak_is_that_of_its_frauds_alone() -> None:
    def days_ago(days: int, amounts: list[int], genuine: int = 0) -> list[Change]:
        time_ms = NOON_MS - days * DAY_MS
        made = [payment(time_ms, amount) for amount in amounts] + [payment(time_ms, 999)] * genuine
        return [*made, *(label(time_ms, 1, amount=amount) for amount in amounts)]

    mean = card.fraud_streak_amount_mean("x", "30d", delay="1d", hop="1d")
    now = payment(NOON_MS, 7)
    streak = [*days_ago(2, [10]), *days_ago(3, [20, 60])]
    # Frauds before the streak, a mixed day, and days within the delay add nothing.
    others = [*days_ago(5, [500], genuine=1), *days_ago(6, [700]), *days_ago(0, [800]), *days_ago(1, [900])]
    assert one(mean, now, [*streak, *others]) == 30
    assert one(mean, now, days_ago(2, [0])) == 0
    # A label that is taken back takes its amount along, and brings it back when the label comes again.
    corrected = [label(NOON_MS - 3 * DAY_MS, weight, amount=60) for weight in (-1, 1)]
    assert one(mean, now, [*streak, *corrected]) == 30
    # A genuine payment in the newest tile that is looked at: there is no streak.
    assert np.isnan(one(mean, now, [*streak, *days_ago(2, [], genuine=1)]))
    assert np.isnan(one(mean, now, days_ago(2, [500], genuine=1)))
    assert np.isnan(one(mean, now, []))


def test_the_smallest_amount_may_be_zero() -> None:
    changes = [payment(NOON_MS, 5), payment(NOON_MS - HOUR_MS, 0), payment(NOON_MS - 2 * HOUR_MS, 9)]
    assert one(card.amount_min("x", "1d"), payment(NOON_MS), changes) == 0
    assert one(card.amount_max("x", "1d"), payment(NOON_MS), changes) == 9
    assert one(card.amount_min("x", "1d"), payment(NOON_MS), changes[:1]) == 5
    assert np.isnan(one(card.amount_min("x", "1d"), payment(NOON_MS), []))


def test_tiles_without_a_matching_payment_have_no_extreme_amounts() -> None:
    remote = attributes.channel == "ecom"
    changes = [
        payment(NOON_MS, 1, channel="pos"),
        payment(NOON_MS - HOUR_MS, 9, channel="ecom"),
        payment(NOON_MS - 2 * HOUR_MS, 2, channel="pos"),
        payment(NOON_MS - 3 * HOUR_MS, 5, channel="ecom"),
        payment(NOON_MS - 4 * HOUR_MS, 99, channel="pos"),
    ]
    now = payment(NOON_MS)
    assert one(card.amount_min("x", "1d", where=remote), now, changes) == 5
    assert one(card.amount_max("x", "1d", where=remote), now, changes) == 9
    for none in (changes[:1], changes[::2]):
        assert np.isnan(one(card.amount_min("x", "1d", where=remote), now, none))
        assert np.isnan(one(card.amount_max("x", "1d", where=remote), now, none))


@given(code=st.integers(-(2**63), 2**63 - 1))
def test_mix_is_the_finaliser_of_splitmix64_without_its_lowest_bit(code: int) -> None:
    mask = 2**64 - 1
    bits = (code + 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & mask
    assert kernel.mix(code) == (bits ^ bits >> 31) >> 1
