"""The catalogue's language: it means what it says, and what is wrong is refused with its line, its name and why."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import Any, cast

import pytest

from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.attributes import (
    Condition,
    channel,
    country,
    declined,
    device_id,
    merchant_id,
    utc_offset,
)
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import (
    CATEGORIES_MAX,
    MEMORY_MAX,
    Catalogue,
    Entity,
    distinct_error,
    ratio,
    request,
)
from paywarden.features.catalogue.expressions import (
    Derived,
    Expression,
    Feature,
    Operation,
    WindowedMeasure,
    stored_values,
)
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Window
from paywarden.features.profiles.plan import compile_plan
from paywarden.features.profiles.plan_parts import CONDITIONS_MAX
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
pair = Entity("pair", key=("card_id", "merchant_id"))
amount = request.amount("amount")


def windowed(value: object) -> WindowedMeasure:
    assert isinstance(value, WindowedMeasure)
    return value


# Declarations.


@pytest.mark.parametrize(
    ("length", "hop_ms"),
    [
        ("60s", 15 * SECOND_MS),
        ("1m", 15 * SECOND_MS),
        ("3m", 15 * SECOND_MS),
        ("4m", MINUTE_MS),
        ("10m", MINUTE_MS),
        ("1h", MINUTE_MS),
        ("3h", MINUTE_MS),
        ("4h", HOUR_MS),
        ("1d", HOUR_MS),
        ("2d", 6 * HOUR_MS),
        ("3d", 6 * HOUR_MS),
        ("4d", DAY_MS),
        ("7d", DAY_MS),
        ("30d", DAY_MS),
        ("90d", DAY_MS),
    ],
)
def test_a_hop_is_at_most_a_quarter_of_its_window(length: str, hop_ms: int) -> None:
    window = windowed(card.count("x", length).value).window
    assert window.hop_ms == hop_ms
    assert 4 * hop_ms <= window.length_ms


@pytest.mark.parametrize(("length", "hop_ms"), [("6h", 6 * HOUR_MS), ("7d", 6 * HOUR_MS), ("8d", DAY_MS)])
def test_a_hop_of_a_window_with_a_delay_is_six_hours_or_a_day(length: str, hop_ms: int) -> None:
    assert windowed(card.count("x", length, delay="1d").value).window.hop_ms == hop_ms


def test_a_window_of_whole_hops_ends_with_the_tile_that_it_still_touches() -> None:
    assert (Window(DAY_MS, HOUR_MS, 0).newest_age, Window(DAY_MS, HOUR_MS, 0).oldest_age) == (0, 24)
    delayed = Window(DAY_MS, HOUR_MS, 2 * HOUR_MS)
    assert (delayed.newest_age, delayed.oldest_age) == (3, 26)


def test_meanings_name_entity_window_condition_and_delay() -> None:
    assert card.count("x", "1d").meaning == "number of the card's payments in the last 1d"
    wanted = "number of the card's payments where declined is true in the last 1d"
    assert card.count("x", "1d", where=declined).meaning == wanted
    assert (
        "the merchant's payments in the 30d that ended 7d ago" in merchant.fraud_share("x", "30d", delay="7d").meaning
    )
    assert card.amount_max("x", "1d", where=channel == "ecom").meaning.startswith(
        "largest amount of the card's payments where channel == 'ecom'"
    )
    assert card.count("x", "1d", including_this=True).meaning.endswith(", this one included")


def test_a_feature_says_when_it_is_missing() -> None:
    device = Entity("device", key="device_id")
    assert card.count("x", "1d").missing == "never"
    assert device.count("x", "1d").missing == "the payment has no device_id"
    assert card.amount_mean("x", "1d").missing == "no payments in the window"
    assert device.amount_mean("x", "1d").missing == "no payments in the window; the payment has no device_id"
    assert request.holds("x", declined).missing == "the payment has no declined"
    assert request.category("x", channel, ("pos",)).missing == "the payment has no channel"
    assert request.hour("x").missing == "never"


def test_a_category_says_what_its_numbers_stand_for() -> None:
    short = request.category("x", channel, ("pos", "ecom")).meaning
    assert short == "channel as a number: 'pos' (0), 'ecom' (1); 2 is any other value"
    long = request.category("x", attributes.mcc, [f"{code:04}" for code in range(100)]).meaning
    assert "'0007' (7) … '0099' (99); 100 is any other value" in long


@pytest.mark.parametrize(
    ("attribute", "among", "reason"),
    [
        (channel, (), f"'x': `among` must list 1 to {CATEGORIES_MAX} values, got 0"),
        (channel, "ecom", f"'x': `among` must list 1 to {CATEGORIES_MAX} values, got the text 'ecom'"),
        (channel, [str(n) for n in range(5000)], f"'x': `among` must list 1 to {CATEGORIES_MAX} values, got 5000"),
        (channel, ("pos", "ecom", "pos"), "'x': `among` lists 'pos' twice"),
        (channel, ("plumless", "buckeroo"), "'x': `among` lists 'plumless' and 'buckeroo', which share a checksum"),
        (channel, ("",), "channel is compared with ''; it can be compared with printable text of 1 to 64 bytes"),
        (channel, (5,), "channel is compared with 5; it can be compared with printable text of 1 to 64 bytes"),
        (attributes.country, ("de",), "country is compared with 'de'; it can be compared with two capital letters"),
        (
            attributes.amount,
            ("5",),
            "'x': wanted an attribute whose values can be told apart, such as merchant_id, got",
        ),
    ],
)
def test_an_invalid_list_of_categories_is_refused(attribute: Any, among: Any, reason: str) -> None:
    assert refusal_of(lambda: request.category("x", attribute, among)).startswith(reason)


def test_the_error_of_a_distinct_count_is_what_its_docstring_says() -> None:
    assert distinct_error(64, 64) < 0.12
    assert distinct_error(1024, 1024) < 0.04
    assert distinct_error(10, 64) < distinct_error(64, 64)


def test_an_entity_may_be_named_by_several_fields() -> None:
    assert pair.keys == ("card_id", "merchant_id")
    assert card.keys == ("card_id",)
    assert compile_plan(Catalogue((pair,), (pair.count("x", "1d"),))).entity_keys == (("card_id", "merchant_id"),)


def test_a_declaration_knows_its_line() -> None:
    line = inspect.currentframe().f_lineno  # type: ignore[union-attr]
    made: list[Any] = [Entity("x", key="ip"), card.count("x", "1d"), request.amount("x"), ratio("x", "a", "b")]
    assert {thing.line.rpartition(":")[0] for thing in made} == {f"test_entity.py:{line + 1}"}
    columns = [int(thing.line.rpartition(":")[2]) for thing in made]
    assert columns == sorted(set(columns))
    # Where it stands is not what it is.
    again = card.count("x", "1d")
    assert again == made[1]
    assert again.line != made[1].line


# Errors at the declaration.

Declaration = Callable[[], object]


def refusal_of(declare: Declaration) -> str:
    """Why a declaration is refused, when it is refused with the line it stands in."""
    with pytest.raises(Misconfigured) as refused:
        declare()
    found = re.fullmatch(r"feature catalogue, test_entity\.py:([0-9]+):[0-9]+: (.*)", str(refused.value), re.DOTALL)
    assert found is not None, str(refused.value)
    assert int(found[1]) in {line for *_, line in declare.__code__.co_lines()}
    return found[2]


NOT_A_DURATION = "is not a duration such as 30s, 10m, 1h or 30d"


@pytest.mark.parametrize(
    "text", ["", "1", "d", "0d", "01d", "1w", "1D", "-1d", "1.5h", "1 d", "10000d", "1d\n", "७d", "1dd", "1h30m", "nan"]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    assert refusal_of(lambda: card.count("x", text)) == f"'x': {text!r} {NOT_A_DURATION}"


WRONG: dict[str, tuple[Declaration, str]] = {
    "a window that is a number": (lambda: card.count("x", cast(str, 30)), f"'x': 30 {NOT_A_DURATION}"),
    "a delay that is no duration": (
        lambda: merchant.fraud_share("x", "1d", delay="soon"),
        f"'x': 'soon' {NOT_A_DURATION}",
    ),
    "a hop that is no duration": (lambda: card.count("x", "1d", hop="often"), f"'x': 'often' {NOT_A_DURATION}"),
    "a half-life that is no duration": (
        lambda: card.count_decayed("x", "half", "1d"),
        f"'x': 'half' {NOT_A_DURATION}",
    ),
    "a window that is too short": (
        lambda: card.count("x", "59s"),
        "'x': the window '59s' is not from 1m to 1095d or 'ever'",
    ),
    "a window that is too long": (
        lambda: card.count("x", "1096d"),
        "'x': the window '1096d' is not from 1m to 1095d or 'ever'",
    ),
    "a long window of another word": (lambda: card.rate("x", "91d"), "'x': the window '91d' is not from 1m to 90d"),
    "a word that needs an end": (
        lambda: card.amount_std("x", "ever"),
        "'x': this word takes a window of at most 90d, got 'ever'",
    ),
    "a hop without an end": (lambda: card.count("x", "ever", hop="1h"), "'x': the window 'ever' has no hop"),
    "a delay that is not whole hops of all time": (
        lambda: card.count("x", "ever", delay="36h"),
        "'x': delay '36h' must be whole hops of 1d",
    ),
    "a delay that is too long": (lambda: card.count("x", "1d", delay="91d"), "'x': the delay '91d' is over 90d"),
    "a window that is not whole hops": (
        lambda: card.count("x", "90m", hop="1h"),
        "'x': window '90m' must be whole hops of 1h",
    ),
    "a hop longer than the window": (
        lambda: card.count("x", "1h", hop="1d"),
        "'x': window '1h' must be whole hops of 1d",
    ),
    "a delay that is not whole hops": (
        lambda: card.count("x", "1d", delay="90m", hop="1h"),
        "'x': window '1d' and delay '90m' must be whole hops of 1h",
    ),
    # The message used to say "whole hops of ''" here.
    "a window that is not whole hops of the usual length": (
        lambda: card.count("x", "25h"),
        "'x': window '25h' must be whole hops of 6h",
    ),
    "a window of too many tiles": (
        lambda: card.count("x", "2d", hop="30s"),
        "'x': a hop of 30s makes more than 4096 tiles of window '2d'",
    ),
    "a delay of too many tiles": (
        lambda: card.count("x", "1h", delay="3d", hop="1m"),
        "'x': a hop of 1m makes more than 4096 tiles of window '1h'",
    ),
    "a rate over too short a window": (lambda: card.rate("x", "1s"), "'x': the window '1s' is not from 1m to 90d"),
    "a trend of a window to itself": (
        lambda: card.count_trend("x", "1d", "24h"),
        "'x': the first window, '1d', must be shorter than the second, '24h'",
    ),
    "a trend of a long window to a short one": (
        lambda: card.count_trend("x", "7d", "1d"),
        "'x': the first window, '7d', must be shorter than the second, '1d'",
    ),
    "bits that are no power of two": (
        lambda: card.distinct("x", merchant_id, "1d", bits=100),
        "'x': bits must be 64, 128, 256, 512 or 1024, got 100",
    ),
    "a merchant category that no payment has": (
        lambda: request.category("x", attributes.mcc, ("5411", "grocery")),
        "mcc is compared with 'grocery'; it can be compared with four digits (ISO 18245)",
    ),
    "too many bits": (
        lambda: card.distinct("x", merchant_id, "1d", bits=2048),
        "'x': bits must be 64, 128, 256, 512 or 1024, got 2048",
    ),
    "buckets that are no power of two": (
        lambda: card.entropy("x", merchant_id, "1d", buckets=3),
        "'x': buckets must be 2, 4, 8, 16 or 32, got 3",
    ),
    "one bucket": (
        lambda: card.top_share("x", merchant_id, "1d", buckets=1),
        "'x': buckets must be 2, 4, 8, 16 or 32, got 1",
    ),
    "a memory of nothing": (
        lambda: card.is_new("x", country, among=0),
        f"'x': `among` must be 1 to {MEMORY_MAX}, got 0",
    ),
    "a memory of too much": (
        lambda: card.seconds_since_same("x", country, among=MEMORY_MAX + 1),
        f"'x': `among` must be 1 to {MEMORY_MAX}, got {MEMORY_MAX + 1}",
    ),
    "a journey through nothing": (
        lambda: card.travel_kmh("x", among=0),
        f"'x': `among` must be 1 to {MEMORY_MAX}, got 0",
    ),
    "no limits": (
        lambda: request.below_limit("x", ()),
        "'x': limits must be amounts above 0, each larger than the one before, got ()",
    ),
    "limits that do not ascend": (
        lambda: request.below_limit("x", (2, 1)),
        "'x': limits must be amounts above 0, each larger than the one before, got (2, 1)",
    ),
    "a limit twice": (
        lambda: request.below_limit("x", (1, 1)),
        "'x': limits must be amounts above 0, each larger than the one before, got (1, 1)",
    ),
    "a limit of nothing": (
        lambda: request.below_limit("x", (0, 1)),
        "'x': limits must be amounts above 0, each larger than the one before, got (0, 1)",
    ),
}
for _name, _attribute in (("an amount", attributes.amount), ("a flag", declined), ("an offset", utc_offset)):
    _wanted = f"wanted an attribute whose values can be told apart, such as merchant_id, got {_attribute!r}"
    for _word, _declare in {
        "distinct values of": lambda a=_attribute: card.distinct("x", a, "1d"),
        "the entropy of": lambda a=_attribute: card.entropy("x", a, "1d"),
        "the commonest of": lambda a=_attribute: card.top_share("x", a, "1d"),
        "the newness of": lambda a=_attribute: card.is_new("x", a),
        "the time since the same": lambda a=_attribute: card.seconds_since_same("x", a),
    }.items():
        WRONG[f"{_word} {_name}"] = (_declare, f"'x': {_wanted}")
for _what, _asked in (
    ("a text", cast(Condition, "ecom")),
    ("a truth value", cast(Condition, True)),
    ("an attribute that is no flag", channel),
    ("an amount by itself", attributes.amount),
):
    _reason = f"a condition is a flag, or an attribute compared with a value, got {_asked!r}"
    for _word, _declare in {
        "count where": lambda a=_asked: card.count("x", "1d", where=a),
        "share of": lambda a=_asked: card.share("x", "1d", of=a),
        "frauds where": lambda a=_asked: card.fraud_count("x", "1d", delay="1d", where=a),
        "whether it holds,": lambda a=_asked: request.holds("x", a),
    }.items():
        WRONG[f"{_word} {_what}"] = (_declare, f"'x': {_reason}")


@pytest.mark.parametrize("what", list(WRONG))
def test_an_invalid_argument_is_refused_with_its_line(what: str) -> None:
    declare, reason = WRONG[what]
    assert refusal_of(declare) == reason


@pytest.mark.parametrize("limits", [(99.5, 100), (True, 5), (1, 2**70), "123"])
def test_limits_that_are_no_amounts_are_refused_with_their_line(limits: Any) -> None:
    wanted = f"'x': limits must be amounts above 0, each larger than the one before, got {limits!r}"
    assert refusal_of(lambda: request.below_limit("x", limits)) == wanted


@pytest.mark.parametrize("window", ["1m", "90d"])
def test_the_shortest_and_the_longest_window_are_accepted(window: str) -> None:
    assert card.count("x", window).window == window


def test_the_largest_number_of_tiles_is_accepted() -> None:
    assert windowed(card.count("x", "4095m", hop="1m").value).window.oldest_age == 4095


def test_including_this_payment_and_a_condition_exclude_each_other() -> None:
    """It used to be counted in whether the condition held for it or not."""
    wanted = "'x': `including_this` counts this payment whatever it is: it cannot go with `where`"
    assert refusal_of(lambda: card.count("x", "1d", where=channel == "ecom", including_this=True)) == wanted
    assert refusal_of(lambda: card.amount_mean("x", "1d", where=channel == "ecom", including_this=True)) == wanted


# Errors of the whole catalogue.


def refusal_of_all(features: tuple[Feature, ...], entities: tuple[Entity, ...] = (card, merchant)) -> str:
    with pytest.raises(Misconfigured) as refused:
        Catalogue(entities, features)
    return str(refused.value).removeprefix("feature catalogue")


@pytest.mark.parametrize("name", ["", "Count", "1st", "_x", "a-b", "a b", "é", "x\n", "card.count"])
def test_a_feature_with_an_invalid_name_is_refused(name: str) -> None:
    wrong = request.amount(name)
    assert refusal_of_all((wrong,)) == f", {wrong.line}: {name!r} is not a lower_case name"


@pytest.mark.parametrize("name", ["", "Card", "my:card", "a b", "1st"])
def test_an_entity_with_an_invalid_name_is_refused(name: str) -> None:
    # A colon, for one, would end the entity's part of a profile's key.
    wrong = Entity(name, key="card_id")
    assert refusal_of_all((amount,), (wrong,)) == f", {wrong.line}: the entity {name!r} is not a lower_case name"


@pytest.mark.parametrize("name", ["payment", "progress"])
def test_an_entity_named_like_other_records_of_a_store_is_refused(name: str) -> None:
    wrong = Entity(name, key="card_id")
    assert refusal_of_all((amount,), (wrong,)) == f", {wrong.line}: an entity cannot be called {name!r}"


@pytest.mark.parametrize("key", ["card", "payment_id", ""])
def test_an_entity_of_a_field_that_is_no_key_is_refused(key: str) -> None:
    wrong = Entity("x", key=("card_id", key))
    there = "card_id, channel, currency, device_id, ip, mcc, merchant_id"
    wanted = f", {wrong.line}: entity 'x': payments have no key field {key!r}; there are {there}"
    assert refusal_of_all((amount,), (wrong,)) == wanted


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("amount", "an amount"),
        ("country", "a country"),
        ("declined", "true or false"),
        ("utc_offset_minutes", "a time zone"),
        ("event_time_ms", "a time"),
    ],
)
def test_an_entity_of_a_field_that_is_no_text_is_told_what_to_declare(key: str, kind: str) -> None:
    wrong = Entity("x", key=("card_id", key))
    wanted = f", {wrong.line}: entity 'x': {key!r} is {kind}, and a key field is a text: declare another field in "
    assert refusal_of_all((amount,), (wrong,)) == wanted + "payment.py, as text(…), category(…) or band(…)"


@pytest.mark.parametrize("key", [(), ("card_id", "card_id")])
def test_an_entity_without_a_key_or_with_one_field_twice_is_refused(key: tuple[str, ...]) -> None:
    wrong = Entity("x", key=key)
    wanted = f", {wrong.line}: entity 'x': it needs at least one key field, each field once"
    assert refusal_of_all((amount,), (wrong,)) == wanted


def test_a_feature_declared_twice_is_refused_with_both_lines() -> None:
    first = request.hour("x")
    again = card.count("x", "1d")
    assert first.line != again.line
    assert refusal_of_all((first, again)) == f", {again.line}: 'x' is declared twice, first in {first.line}"


def test_an_entity_declared_twice_is_refused_with_both_lines() -> None:
    again = Entity("card", key="device_id")
    wanted = f", {again.line}: an entity is declared twice: 'card', first in {card.line}"
    assert refusal_of_all((amount,), (merchant, card, again)) == wanted


def test_a_catalogue_without_features_is_refused() -> None:
    assert refusal_of_all(()) == ": it declares no feature"


def test_a_catalogue_has_a_largest_number_of_features() -> None:
    many = [request.hour(f"hour_{number}") for number in range(4001)]
    assert refusal_of_all(tuple(many)) == f", {many[4000].line}: there are 4001 features, at most 4000"
    assert len(Catalogue((card,), many[:4000]).features) == 4000


def test_a_catalogue_without_entities_is_refused() -> None:
    assert refusal_of_all((amount,), ()) == ": it declares no entity"


@pytest.mark.parametrize(
    "feature",
    [
        merchant.count("x", "1d"),
        merchant.seconds_since_last("x"),
        merchant.is_new("x", device_id),
        merchant.amount_zscore("x", "1d"),
        merchant.fraud_streak("x", "7d", delay="1d"),
        merchant.fraud_streak_amount_mean("x", "7d", delay="1d"),
    ],
)
def test_a_feature_of_an_undeclared_entity_is_refused(feature: Feature) -> None:
    wanted = f", {feature.line}: 'x' belongs to the undeclared entity 'merchant'"
    assert refusal_of_all((feature,), (card,)) == wanted


@pytest.mark.parametrize("operands", [("amount", "nothing"), ("nothing", "amount"), ("nothing", "nothing")])
def test_a_ratio_of_an_undeclared_feature_is_refused(operands: tuple[str, str]) -> None:
    wrong = ratio("x", *operands)
    assert refusal_of_all((amount, wrong)) == f", {wrong.line}: 'x' uses 'nothing', which is not declared"


@pytest.mark.parametrize("operands", [("amount", "later"), ("later", "amount")])
def test_a_ratio_of_a_later_feature_is_refused_with_both_lines(operands: tuple[str, str]) -> None:
    wrong = ratio("x", *operands)
    later = request.hour("later")
    wanted = f"'x' uses 'later', which is declared after it, in {later.line}: a feature can use only earlier ones"
    assert refusal_of_all((amount, wrong, later)) == f", {wrong.line}: {wanted}"


def test_a_ratio_of_itself_is_refused() -> None:
    wrong = ratio("x", "amount", "x")
    assert f", {wrong.line}: 'x' uses itself" in refusal_of_all((amount, wrong))


def test_nested_values_are_checked_too() -> None:
    def made(*operands: Expression) -> Feature:
        inside = Derived(Operation.DIVIDE, operands)
        return Feature("x", Derived(Operation.ADD, (inside, "amount")), "", "", "")

    assert "'x' uses 'nothing', which is not declared" in refusal_of_all((amount, made("amount", "nothing")))
    stored = merchant.count("y", "1d").value
    assert "undeclared entity 'merchant'" in refusal_of_all((amount, made("amount", stored)), (card,))


def test_more_conditions_than_one_number_has_bits_are_refused() -> None:
    def features(count: int) -> tuple[Feature, ...]:
        return tuple(card.count(f"x{number}", "1d", where=attributes.amount >= number) for number in range(count))

    assert compile_plan(Catalogue((card,), features(CONDITIONS_MAX))).feature_count == CONDITIONS_MAX
    with pytest.raises(Misconfigured, match=f"it has {CONDITIONS_MAX + 1} conditions; there may be {CONDITIONS_MAX}"):
        compile_plan(Catalogue((card,), features(CONDITIONS_MAX + 1)))


# The shipped catalogue.


def test_the_entities_of_the_catalogue_are_fields_of_payments_and_requests() -> None:
    schema = json.loads(resources.files("paywarden.schemas.avsc").joinpath("payments.avsc").read_text(encoding="utf-8"))
    fields = {field["name"] for field in schema["fields"]}
    for entity in CATALOGUE.entities:
        assert set(entity.keys) <= fields
        assert set(entity.keys) <= set(ScoreRequest.DESCRIPTOR.fields_by_name)


def test_the_catalogue_has_the_features_that_models_expect() -> None:
    wanted = {
        *(f"card_count_{window}" for window in ("10m", "1h", "1d", "7d", "30d")),
        *(f"card_amount_mean_{window}" for window in ("1d", "7d", "30d")),
        *(f"amount_to_card_mean_{window}" for window in ("1d", "7d", "30d")),
        *(f"merchant_fraud_share_{window}" for window in ("1d", "7d", "30d")),
        *("card_seconds_since_last", "hour", "night", "weekend"),
    }
    assert wanted <= set(CATALOGUE.names)
    shares = [f for f in CATALOGUE.features if f.name.startswith("merchant_fraud_share")]
    stored = [windowed(value) for share in shares for value in stored_values(share.value)]
    assert {value.window.delay_ms for value in stored} == {7 * DAY_MS}
