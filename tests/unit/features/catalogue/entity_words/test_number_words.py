"""Words for numbers, latest payments, distances and frauds: what they give, and what they refuse."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paywarden.features.catalogue import attributes, fields
from paywarden.features.catalogue.attributes import (
    Attribute,
    DeclaredRow,
    amount,
    country,
    declined,
    ip,
    mcc,
    merchant_id,
)
from paywarden.features.catalogue.entity import Catalogue, Entity, grows_with_age, request
from paywarden.features.catalogue.expressions import Feature, stored_values
from paywarden.features.catalogue.fields import Payment
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.feature_docs import listing_of
from paywarden.features.profiles.profile_view import to_lines, view_profile
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.kernel.profiles import Change, payment, profile, vector

NOON_MS = 1_764_000_000_000
KG = fields.decimal("kg", 1, unit="kg", least=-5, most=500, decimals=3)
ITEMS = fields.integer("items", 2, unit="pieces")
OPENED = fields.time("opened", 3)
TIP = fields.money("tip", 4)
SHOP, HOME = fields.coordinates("shop", 5, personal=False), fields.coordinates("home", 7)
PAYER, RECEIVER = fields.text("payer", 9), fields.text("receiver", 10)
EMAIL, WEIGHT = fields.email("email", 11), fields.decimal("weight", 12, unit="kg", least=0, most=9, decimals=3)
PAYMENT = Payment(KG, ITEMS, OPENED, TIP, SHOP, HOME, PAYER, RECEIVER, EMAIL, WEIGHT)
DECLARED = DeclaredRow(PAYMENT.fields, lambda tip, _: 2 * tip)
card, merchant = Entity("card", key="card_id"), Entity("merchant", key="merchant_id")


def paid(time_ms: int, minor: int = 0, **of: Any) -> Change:
    return payment(time_ms, minor, declared=DECLARED, **of)


def seen(features: Feature | tuple[Feature, ...], now: Change, *before: Change) -> list[float]:
    """The values of a card's features as a payment sees them after others."""
    features = features if isinstance(features, tuple) else (features,)
    of = FeatureEngine(Catalogue((card,), features, PAYMENT))
    state = profile(of, "card", before) if before else None
    rows = np.array([now.row], dtype=np.int64)
    presence = np.array([1 if state is None else 2], dtype=np.uint8)
    out = np.empty((1, len(features)), dtype=np.float32)
    states = np.frombuffer(bytearray(state or b""), dtype=np.uint8)
    of.fill_vectors(rows, presence, states, np.array([0, len(states)]), out)
    return [float(value) for value in out[0]]


def test_numbers_are_in_the_units_of_their_fields() -> None:
    now = paid(NOON_MS, kg=2.5, tip=300, opened=NOON_MS - DAY_MS)
    asked = (request.number("a", KG), request.number("b", TIP), request.seconds_since("c", OPENED))
    assert seen(asked, now) == [2.5, 600, 86_400]
    assert [feature.unit for feature in asked] == ["kg", "minor units", "seconds"]
    assert np.isnan(seen(asked, paid(NOON_MS))).all()


def test_a_time_since_something_is_at_most_its_bound() -> None:
    before = [paid(NOON_MS - 40 * DAY_MS, merchant_id="a"), paid(NOON_MS - 2 * DAY_MS, merchant_id="b")]
    now = paid(NOON_MS, merchant_id="a", opened=NOON_MS + 90 * DAY_MS)
    asked = (
        card.seconds_since_first("a", most="30d"),
        card.seconds_since_last("b", most="30d"),
        card.seconds_since_same("c", merchant_id, most="30d"),
        *card.last("d", 2, most="30d"),
        request.seconds_since("e", OPENED, most="60d"),
    )
    days = [value / 86_400 for value in seen(asked, now, *before)]
    assert days == [30, 2, 30, 2, 30, -60]
    assert np.isnan(seen(asked, paid(NOON_MS))).all()
    assert asked[0].meaning == "time since the card's first payment, at most 30d"


def test_a_catalogue_bounds_the_times_that_bound_themselves_by_nothing() -> None:
    written = (
        card.seconds_since_first("a"),
        card.seconds_since_last("b", most="10d"),
        card.mean("c", "7d", of=OPENED),
        card.seconds_since_fraud("d", "90d"),
        request.amount("e"),
    )
    bounded = Catalogue((card,), written, PAYMENT, seconds_most="30d")
    wanted = (card.seconds_since_first("a", most="30d"), *written[1:])
    assert bounded.features[0] == wanted[0]
    assert [bounded.features[place] == written[place] for place in (1, 2, 4)] == [True, False, True]
    assert [grows_with_age(feature) for feature in Catalogue((card,), written, PAYMENT).features] == [
        *(True, False, True, False, False)
    ]
    assert FeatureEngine(bounded).plan.digest != FeatureEngine(Catalogue((card,), wanted, PAYMENT)).plan.digest
    with pytest.raises(Misconfigured, match=r"test_number_words.py:\d+:\d+: 'a': 'ever' is not a duration such as 30s"):
        Catalogue((card,), written, PAYMENT, seconds_most="ever")


def test_words_for_amounts_and_for_numbers_share_what_they_store() -> None:
    for word in ("sum", "mean", "std", "zscore", "max", "min"):
        named, of_any = getattr(card, f"amount_{word}")("x", "7d"), getattr(card, word)("x", "7d", of=amount)
        assert stored_values(of_any.value) == stored_values(named.value)
        assert (of_any.value, of_any.unit) == (named.value, named.unit)


# Known frauds.


def test_frauds_without_a_delay_take_that_of_the_catalogue() -> None:
    def shape(*features: Feature, **options: str) -> object:
        catalogue = Catalogue((card,), features, **options)  # type: ignore[arg-type]
        return [(feature.value, feature.meaning, feature.unit) for feature in catalogue.features]

    assert shape(card.fraud_share("x", "7d"), label_delay="2d") == shape(card.fraud_share("x", "7d", delay="2d"))
    assert shape(card.fraud_streak("x", "7d")) == shape(card.fraud_streak("x", "7d", delay="7d"))
    assert shape(card.fraud_count("x", "7d", delay="1d"), label_delay="2d") == shape(
        card.fraud_count("x", "7d", delay="1d")
    )


def test_a_copy_of_a_catalogue_may_have_another_delay() -> None:
    features = (card.fraud_share("waits", "7d"), card.fraud_count("fixed", "7d", delay="2d"))
    made = Catalogue((card,), features)
    copied = pickle.loads(pickle.dumps(replace(made, label_delay="1d")))  # noqa: S301
    assert copied.features == Catalogue((card,), features, label_delay="1d").features
    assert copied.features[0] != made.features[0]
    assert copied.features[1] == made.features[1]
    assert [feature.line for feature in copied.features] == [feature.line for feature in features]
    assert replace(copied, label_delay="7d") == made


def test_a_delay_that_does_not_fit_names_the_feature_and_its_line() -> None:
    feature = card.fraud_count("x", "1d", hop="1h")
    with pytest.raises(Misconfigured) as refused:
        Catalogue((card,), (feature,), label_delay="90m")
    wanted = "'x': window '1d' and delay '90m' must be whole hops of 1h"
    assert str(refused.value) == f"feature catalogue, {feature.line}: {wanted}"


# What is refused.

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a mean of a text": (lambda: card.mean("x", "1d", of=merchant_id), "'x': wanted amount, or a field of payment.py"),
    "a mean of the amount in its own currency": (
        lambda: card.mean("x", "1d", of=attributes.amount_minor),
        "'x': wanted amount, or a field of payment.py",
    ),
    "a sum that could overflow": (
        lambda: card.sum("x", "1d", of=ITEMS),
        "'x': sums need a field from -4398046511104 to 4398046511104: give items a `least` and a `most`",
    ),
    "a sum of ages of more than 139 years": (
        lambda: card.sum("x", "1d", of=fields.time("born", 20, earliest="1960-01-01")),
        "'x': sums need ages below 139 years: give born an `earliest` of 1961 or later",
    ),
    "a number that is the amount": (lambda: request.number("x", amount), "'x': wanted a number of payment.py"),
    "a number that is a moment": (lambda: request.number("x", OPENED), "'x': wanted a number of payment.py"),
    "an age of a number": (lambda: request.seconds_since("x", KG), "'x': wanted a moment of payment.py"),
    "a distance to a number": (lambda: request.distance_km("x", HOME, KG), "'x': wanted coordinates"),  # type: ignore[arg-type]
    "a distance from a number": (lambda: card.distance_to_last_km("x", KG), "'x': wanted coordinates"),  # type: ignore[arg-type]
    "a text and a country": (lambda: request.equal("x", mcc, country), "'x': mcc and country are of two kinds"),
    "a text and an e-mail": (lambda: request.equal("x", PAYER, EMAIL), "'x': payer and email are of two kinds"),
    "two numbers of other digits": (lambda: request.equal("x", KG, ITEMS), "'x': kg and items are of two kinds"),
    "an amount and money": (lambda: request.equal("x", amount, TIP), "'x': wanted two texts, countries, flags or"),
    "a field and itself": (lambda: request.equal("x", ip, ip), "'x': ip is always equal to itself"),
    "no payments": (lambda: card.last("x", 0), "'x': wanted 1 to 8 payments, got 0"),
    "too many payments": (lambda: card.last("x", 9), "'x': wanted 1 to 8 payments, got 9"),
    "a list that is no list": (lambda: card.last("x", 1, of=mcc), "'x': `of` must list at most 8 attributes"),  # type: ignore[arg-type]
    "a flag of the last payment": (lambda: card.last("x", 1, of=(declined,)), "'x': wanted amount, or a field of"),
    "a prior above 1": (
        lambda: card.fraud_share_smoothed("x", "1d", delay="1d", prior=2, prior_weight=5),
        "'x': wanted a `prior` from 0 to 1, or the name of an earlier feature, and a whole `prior_weight` from 1 to "
        "1000000, got 2 and 5",
    ),
    "a prior of no weight": (
        lambda: card.fraud_share_smoothed("x", "1d", delay="1d", prior=0.5, prior_weight=0),
        "got 0.5 and 0",
    ),
    "labelled payments that are no yes or no": (
        lambda: card.fraud_share("x", "1d", delay="1d", labelled_only="yes"),  # type: ignore[arg-type]
        "'x': labelled_only must be True or False, got 'yes'",
    ),
    "a field that the payment lacks": (
        lambda: Catalogue((card,), (card.max("x", "1d", of=OPENED),)),
        "'x' uses a field, number 3, which payment lacks",
    ),
    "a latest payment's field that the payment lacks": (
        lambda: Catalogue((card,), card.last("x", 1, of=(RECEIVER,))),
        "'x_1_seconds' uses a field, number 10, which payment lacks",
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_an_invalid_word_is_refused_with_its_line(what: str) -> None:
    declare, reason = WRONG[what]
    with pytest.raises(Misconfigured) as refused:
        declare()
    assert re.match(r"feature catalogue, test_number_words\.py:[0-9:]+: ", str(refused.value))
    assert reason in str(refused.value)


# What operators see.

SHOWN = Catalogue(
    (card, merchant),
    (
        card.std("std", "1d", of=KG),
        card.max("oldest", "1d", of=OPENED),
        *card.last("last", 2, of=(KG, merchant_id)),
        card.distance_to_last_km("jump", HOME),
        card.last_value("tip_before", of=TIP),
        merchant.count("count", "1d"),
    ),
    PAYMENT,
)


def test_a_profile_shows_numbers_and_latest_payments_but_nothing_personal() -> None:
    of = FeatureEngine(SHOWN)
    events = [
        paid(NOON_MS, kg=2.5, opened=NOON_MS - 90_000, merchant_id="M", home_latitude=52.52, home_longitude=13.405),
        paid(NOON_MS + 1, kg=-1, tip=150),
    ]
    view = view_profile(of, SHOWN, 0, profile(of, "card", events), as_of_ms=NOON_MS + HOUR_MS, source_name=str)
    lines = [" ".join(line.split()) for line in to_lines(view)]
    assert "tile from count kg sum kg squares kg max opened" in lines
    assert any(line.endswith("Z 2 1.500 7.250000 90.000") for line in lines)
    assert "latest payments, kg, merchant_id: 2, at most 2" in lines
    assert "2025-11-24T16:00:00Z 2.500 -" in lines
    assert "latest payments, home_latitude, home_longitude: 1, at most 1" in lines
    assert "2025-11-24T16:00:00Z - -" in lines
    assert "52.52" not in "".join(lines)
    shown = {feature["name"]: feature for feature in view["features"]}
    assert (shown["last_1_kg"]["value"], shown["last_2_seconds"]["value"]) == (-1, 3600)
    assert shown["jump"]["missing"] == shown["last_1_merchant_id"]["missing"] == "it depends on the payment"
    (latest,) = [one for one in view["latest_payments"] if "kg" in one["fields"]]
    assert latest["payments"][0] == {"time": "2025-11-24T16:00:00.001Z", "kg": "-1.000", "merchant_id": None}


def test_the_listing_tells_what_numbers_cost() -> None:
    def bytes_of(*features: Feature) -> int:
        catalogue = Catalogue((card,), features, PAYMENT)
        return listing_of(catalogue, FeatureEngine(catalogue)).entities[0].bytes_after_one_payment

    plain = bytes_of(card.count("a", "1d"))
    # A count, a sum and two sums of squares: a few bytes, and a few more for the shape.
    assert 8 < bytes_of(card.count("a", "1d"), card.std("b", "1d", of=KG)) - plain < 40
    assert bytes_of(card.count("a", "1d"), *card.last("b", 8, of=(KG, amount))) - plain < 25


# Other catalogues.


def test_latest_payments_of_another_size_keep_the_latest() -> None:
    def engine(payments: int, *of: Attribute) -> FeatureEngine:
        return FeatureEngine(Catalogue((card,), card.last("x", payments, of=of), PAYMENT))

    events = [paid(NOON_MS + number, number, kg=number) for number in range(5)]
    state = profile(engine(4, KG), "card", events)
    assert engine(2, KG).migrated(0, state) == profile(engine(2, KG), "card", events)
    # Other fields start empty.
    names = engine(1, amount).plan.names
    fresh = vector(engine(1, amount), NOON_MS + 9, 0, {"card": state}, declared=DECLARED)
    assert dict(zip(names, np.isnan(fresh), strict=True)) == {"x_1_seconds": True, "x_1_amount": True}
    kept = vector(engine(8, KG), NOON_MS + 9, 0, {"card": state}, declared=DECLARED)
    assert kept[1::2].tolist()[:4] == [4, 3, 2, 1]
    assert np.isnan(kept[8:]).all()
