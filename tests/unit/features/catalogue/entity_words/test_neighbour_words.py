"""What a catalogue may ask of neighbours two hops away, and the one line that it gets for anything else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import amount, merchant_id
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request
from paywarden.features.catalogue.expressions import Feature
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.schemas.errors import Misconfigured

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
device = Entity("device", key="device_id")
pair = Entity("pair", key=("card_id", "merchant_id"))
kind = Entity("kind", key="mcc")
ENTITIES = (card, merchant, device, pair, kind)
COUNT = merchant.count("count", "1d")


def told(*features: Feature, entities: tuple[Entity, ...] = ENTITIES) -> str:
    with pytest.raises(Misconfigured) as raised:
        Catalogue(entities, features)
    return str(raised.value)


def told_at_once(make: Callable[[], Feature]) -> str:
    with pytest.raises(Misconfigured) as raised:
        make()
    return str(raised.value)


def worst(feature: str = "count", *, last: int = 4) -> Feature:
    return card.largest_of_last("worst", merchant, feature, last)


def test_a_feature_has_the_unit_of_the_one_it_asks() -> None:
    made = Catalogue(ENTITIES, (merchant.fraud_share("share", "30d"), worst("share"))).features[-1]
    assert made.unit == "share"
    assert made.meaning == "largest share of the last 4 different merchants of the card"
    assert made.missing == "the card has no earlier payment with a merchant, or share is missing for all"
    assert made.entity == "card"


def test_the_digest_changes_with_every_part_of_the_word() -> None:
    other = card.largest_of_last("worst", merchant, "other", 4)
    words = (worst(), worst(last=3), card.mean_of_last("worst", merchant, "count", 4), other)
    digests = {
        FeatureEngine(Catalogue(ENTITIES, (COUNT, merchant.count("other", "2d"), word))).plan.digest for word in words
    }
    assert len(digests) == len(words)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (ratio("asked", "amount", "count"), "'asked'|'amount'"),
        (request.amount("asked"), "'asked'"),
        (merchant.amount_zscore("asked", "1d"), "'asked'"),
        (merchant.is_new("asked", merchant_id), "'asked'"),
        (merchant.count("asked", "1d", including_this=True), "'asked'"),
        (merchant.amount_mean("asked", "1d", including_this=True), "'asked'"),
        (merchant.difference_to_last("asked", of=amount), "'asked'"),
    ],
    ids=["ratio to the amount", "amount", "z-score", "is_new", "count of this", "mean with this", "difference"],
)
def test_a_feature_of_this_payment_is_refused(made: Feature, reason: str) -> None:
    line = told(request.amount("amount"), COUNT, made, worst("asked"))
    assert "compares with the payment that is scored, or counts it" in line
    assert any(name in line for name in reason.split("|"))
    assert line.startswith("feature catalogue, test_neighbour_words.py:")


def test_a_smoothed_share_and_a_ratio_of_the_merchant_are_no_questions_about_this_payment() -> None:
    smoothed = merchant.fraud_share_smoothed("smoothed", "30d", prior=0.1, prior_weight=1)
    more = merchant.count("more", "2d")
    asked = (worst("smoothed"), card.mean_of_last("of_ratio", merchant, "ratio", 4))
    assert len(Catalogue(ENTITIES, (smoothed, COUNT, more, ratio("ratio", "count", "more"), *asked)).features) == 6


def test_a_feature_of_another_entity_is_refused() -> None:
    assert "'worst' uses 'count' of card: wanted a feature of merchant" in told(card.count("count", "1d"), worst())
    mixed = ratio("mixed", "count", "of_card")
    assert "uses 'of_card' of card" in told(COUNT, card.count("of_card", "1d"), mixed, worst("mixed"))


def test_neighbours_of_neighbours_are_refused() -> None:
    far = device.mean_of_last("far", card, "worst", 2)
    assert "'far' uses 'worst', which is two hops away itself" in told(COUNT, worst(), far)


def test_only_an_earlier_feature_can_be_asked() -> None:
    assert "'worst' uses 'count', which is declared after it, in test_neighbour_words.py:" in told(worst(), COUNT)
    assert "uses 'cuont', which is not declared; did you mean 'count'?" in told(COUNT, worst("cuont"))
    assert "'worst' uses itself" in told(COUNT, worst("worst"))


def test_both_entities_must_be_declared() -> None:
    assert "uses the undeclared entity 'merchant'" in told(card.count("count", "1d"), worst(), entities=(card,))
    other = Entity("merchant", key="device_id")
    assert "another entity 'merchant' than the catalogue declares" in told(COUNT, worst(), entities=(card, other))


def test_neighbours_need_one_key_field_with_identities() -> None:
    line = told_at_once(lambda: device.mean_of_last("far", pair, "count", 2))
    assert "pair has 2 key fields (card_id, merchant_id): wanted an entity of one field" in line
    of_kind = card.largest_of_last("worst", kind, "kinds", 2)
    assert "payments have no identity of mcc, which names the kinds" in told(kind.count("kinds", "1d"), of_kind)


def test_an_entity_is_no_neighbour_of_itself() -> None:
    assert "each card has the same card" in told_at_once(lambda: card.mean_of_last("own", card, "count", 2))
    assert "each pair has the same merchant" in told_at_once(lambda: pair.mean_of_last("own", merchant, "count", 2))


@pytest.mark.parametrize("last", [0, 9, -1, True, 2.0, "4"])
def test_the_number_of_neighbours_has_a_limit(last: int) -> None:
    assert f"wanted the last 1 to 8 different merchants, got {last!r}" in told_at_once(lambda: worst(last=last))


def test_arguments_of_other_types_are_refused() -> None:
    wrong_entity = told_at_once(lambda: card.largest_of_last("worst", merchant_id, "count", 4))  # type: ignore[arg-type]
    assert "wanted an entity whose profiles are read, as in merchant, got the field 'merchant_id'" in wrong_entity
    wrong_feature = told_at_once(lambda: card.largest_of_last("worst", merchant, COUNT, 4))  # type: ignore[arg-type]
    assert "wanted the name of an earlier feature of merchant" in wrong_feature


def test_lists_of_neighbours_have_a_limit_and_are_shared() -> None:
    lists = [
        source.mean_of_last(f"{source.name}_{last}", merchant, "count", last)
        for source in (card, device)
        for last in range(1, 6)
    ]
    assert "'device_4': it needs a list of neighbours more than the 8 that there may be" in told(COUNT, *lists)
    twice = [card.largest_of_last(f"again_{last}", merchant, "count", last) for last in range(1, 6)]
    assert len(FeatureEngine(Catalogue(ENTITIES, (COUNT, *lists[:8], *twice))).plan.hops) == 8


def test_neighbours_may_be_named_by_a_declared_field() -> None:
    account = fields.text("account", 3)
    of_account = Entity("account", key="account")
    payment = fields.Payment(account)
    asked = (of_account.count("payments", "1d"), card.mean_of_last("accounts", of_account, "payments", 2))
    plan = FeatureEngine(Catalogue((card, of_account), asked, payment)).plan
    assert plan.hops[0].attribute == account.column
    assert plan.entity_identities[0] == {account.column + 1}
