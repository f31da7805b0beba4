"""The catalogue's language: what it declares means what it says, and what is wrong is refused by name."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from features.catalogue import CATALOGUE
from features.declare import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    Catalogue,
    Entity,
    EntityRecency,
    Feature,
    Measure,
    Recency,
    RequestValue,
    Window,
    WindowedMeasure,
    ratio,
    request,
)
from schemas.errors import Misconfigured
from schemas.scoring_pb2 import ScoreRequest

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
amount = request.amount("amount")


def windowed(operand: object) -> WindowedMeasure:
    assert isinstance(operand, WindowedMeasure)
    return operand


def test_the_order_of_features_is_the_order_of_names() -> None:
    features = [card.count("b", "1d"), request.hour("c"), request.night("a")]
    assert Catalogue((card,), features).names == ("b", "c", "a")


def test_a_mean_is_a_sum_over_a_count_of_the_same_window() -> None:
    mean = card.amount_mean("mean", "7d")
    assert windowed(mean.numerator).measure is Measure.AMOUNT_SUM
    assert windowed(mean.denominator).measure is Measure.COUNT
    assert windowed(mean.numerator).window == windowed(mean.denominator).window == Window(7 * DAY_MS, 6 * HOUR_MS, 0)


def test_a_fraud_share_is_frauds_over_payments_of_the_same_delayed_window() -> None:
    share = merchant.fraud_share("share", "30d", delay="7d")
    assert windowed(share.numerator).measure is Measure.FRAUD_COUNT
    assert windowed(share.denominator).measure is Measure.COUNT
    assert (
        windowed(share.numerator).window
        == windowed(share.denominator).window
        == Window(30 * DAY_MS, DAY_MS, 7 * DAY_MS)
    )


def test_each_word_makes_what_it_is_called() -> None:
    assert windowed(card.count("x", "1d").numerator).measure is Measure.COUNT
    assert windowed(card.amount_sum("x", "1d").numerator).measure is Measure.AMOUNT_SUM
    assert windowed(card.amount_max("x", "1d").numerator).measure is Measure.AMOUNT_MAX
    assert card.seconds_since_last("x").numerator == EntityRecency("card", Recency.SINCE_LAST)
    assert card.seconds_since_first("x").numerator == EntityRecency("card", Recency.SINCE_FIRST)
    made = [request.amount("x"), request.hour("x"), request.night("x"), request.weekend("x")]
    assert [feature.numerator for feature in made] == list(RequestValue)
    assert ratio("x", "a", "b") == Feature("x", "a over b", "ratio", "a", "b")


@pytest.mark.parametrize(
    ("length", "hop_ms"),
    [
        ("1m", MINUTE_MS),
        ("10m", MINUTE_MS),
        ("1h", MINUTE_MS),
        ("3h", MINUTE_MS),
        ("4h", HOUR_MS),
        ("1d", HOUR_MS),
        ("2d", 6 * HOUR_MS),
        ("7d", 6 * HOUR_MS),
        ("8d", DAY_MS),
        ("30d", DAY_MS),
    ],
)
def test_a_hop_is_at_most_a_quarter_of_its_window_but_never_under_a_minute(length: str, hop_ms: int) -> None:
    window = windowed(card.count("x", length).numerator).window
    assert window.hop_ms == hop_ms
    assert hop_ms <= max(MINUTE_MS, window.length_ms // 4)


def test_a_hop_can_be_chosen() -> None:
    assert windowed(card.count("x", "30d", hop="6h").numerator).window == Window(30 * DAY_MS, 6 * HOUR_MS, 0)


def test_meanings_speak_of_the_entity_the_window_and_the_delay() -> None:
    assert card.count("x", "1d").meaning == "payments of the card in the last 1d"
    assert "the merchant in the 30d that ended 7d ago" in merchant.fraud_share("x", "30d", delay="7d").meaning


@pytest.mark.parametrize("text", ["", "1", "d", "0d", "01d", "1w", "1D", "-1d", "1.5h", "1 d", "10000d", "1d\n", "७d"])
def test_what_is_not_a_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        card.count("x", text)
    assert f"{text!r} is not a duration" in str(refused.value)


def test_delays_and_hops_are_durations_too() -> None:
    with pytest.raises(Misconfigured, match="'soon' is not a duration"):
        merchant.fraud_share("x", "1d", delay="soon")
    with pytest.raises(Misconfigured, match="'often' is not a duration"):
        card.count("x", "1d", hop="often")


def test_a_window_that_is_not_whole_hops_is_refused() -> None:
    with pytest.raises(Misconfigured, match="window '90m' must be whole hops of 1h"):
        card.count("x", "90m", hop="1h")


def test_a_delay_that_is_not_whole_hops_is_refused() -> None:
    with pytest.raises(Misconfigured, match="window '1d' and delay '90m' must be whole hops of 1h"):
        card.count("x", "1d", delay="90m", hop="1h")


def test_a_refusal_names_the_hop_that_was_taken_when_none_was_given() -> None:
    # The message used to say "whole hops of ''" here.
    with pytest.raises(Misconfigured, match="window '25h' must be whole hops of 6h"):
        card.count("x", "25h")


@pytest.mark.parametrize("name", ["", "Count", "1st", "_x", "a-b", "a b", "é", "x\n", "card.count"])
def test_a_feature_whose_name_is_not_one_is_refused(name: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        Catalogue((card,), (request.amount(name),))
    assert f"{name!r} is not a lower_case name" in str(refused.value)


@pytest.mark.parametrize("name", ["", "Card", "my:card", "a b", "1st"])
def test_an_entity_whose_name_is_not_one_is_refused(name: str) -> None:
    # A colon, for one, would end the entity's part of a profile's key.
    with pytest.raises(Misconfigured) as refused:
        Catalogue((Entity(name, key="card_id"),), (amount,))
    assert f"the entity {name!r} is not a lower_case name" in str(refused.value)


@pytest.mark.parametrize("name", ["payment", "progress"])
def test_an_entity_called_like_other_records_in_store_and_changelog_is_refused(name: str) -> None:
    with pytest.raises(Misconfigured, match=f"cannot be called '{name}'"):
        Catalogue((Entity(name, key="payment_id"),), (amount,))


def test_a_feature_declared_twice_is_refused() -> None:
    with pytest.raises(Misconfigured, match="'amount' is declared twice"):
        Catalogue((card,), (amount, card.count("amount", "1d")))


def test_an_entity_declared_twice_is_refused() -> None:
    with pytest.raises(Misconfigured, match="an entity is declared twice: 'card'"):
        Catalogue((merchant, card, Entity("card", key="device_id")), (amount,))


def test_a_catalogue_without_features_is_refused() -> None:
    with pytest.raises(Misconfigured, match="declares no feature"):
        Catalogue((card,), ())


def test_a_catalogue_without_entities_is_refused() -> None:
    with pytest.raises(Misconfigured, match="declares no entity"):
        Catalogue((), (amount,))


@pytest.mark.parametrize("feature", [merchant.count("x", "1d"), merchant.seconds_since_last("x")])
def test_a_feature_of_an_undeclared_entity_is_refused(feature: Feature) -> None:
    with pytest.raises(Misconfigured, match="'x' is of the undeclared entity 'merchant'"):
        Catalogue((card,), (feature,))


@pytest.mark.parametrize("operands", [("amount", "later"), ("later", "amount"), ("amount", "x"), ("amount", "nothing")])
def test_a_ratio_of_what_is_not_declared_before_it_is_refused(operands: tuple[str, str]) -> None:
    wrong = next(name for name in operands if name != "amount")
    with pytest.raises(Misconfigured, match=f"'x' uses '{wrong}', which is not declared before it"):
        Catalogue((card,), (amount, ratio("x", *operands), request.hour("later")))


def test_the_entities_of_the_catalogue_are_fields_of_payments_and_requests() -> None:
    schema = json.loads(resources.files("schemas").joinpath("payments.avsc").read_text(encoding="utf-8"))
    fields = {field["name"] for field in schema["fields"]}
    for entity in CATALOGUE.entities:
        assert entity.key in fields
        assert entity.key in ScoreRequest.DESCRIPTOR.fields_by_name


def test_the_catalogue_holds_what_the_models_are_promised() -> None:
    wanted = {
        *(f"card_count_{window}" for window in ("10m", "1h", "1d", "7d", "30d")),
        *(f"card_amount_mean_{window}" for window in ("1d", "7d", "30d")),
        *(f"amount_to_card_mean_{window}" for window in ("1d", "7d", "30d")),
        *(f"merchant_fraud_share_{window}" for window in ("1d", "7d", "30d")),
        *("card_seconds_since_last", "hour", "night", "weekend"),
    }
    assert wanted <= set(CATALOGUE.names)
    shares = [f for f in CATALOGUE.features if f.name.startswith("merchant_fraud_share")]
    assert {windowed(f.numerator).window.delay_ms for f in shares} == {7 * DAY_MS}
