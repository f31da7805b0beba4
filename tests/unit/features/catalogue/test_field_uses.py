"""Which features, entities and derived fields use a declared field."""

from __future__ import annotations

from hypothesis import given

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import ip
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request
from paywarden.features.catalogue.field_uses import FieldUses, field_uses
from tests.worlds.stream.declarations import Declaration, declarations

MAIL, ITEMS = fields.email("mail", 1), fields.integer("items", 2, unit="pieces", least=0, most=9)
DOMAIN, NETWORK = fields.email_domain("domain", 3, of=MAIL), fields.network("network", 4, of=ip)
GIFT, KIND, UNUSED = fields.flag("gift", 5), fields.category("kind", 6, ["a"]), fields.text("unused", 7)
HOME, PLACE, OPENED = fields.coordinates("home", 8), fields.coordinates("place", 10), fields.time("opened", 12)
FEE, SHIP = fields.money("fee", 13), fields.country("ship", 14)
card = Entity("card", key="card_id")
pair = Entity("pair", key=("mail", "network"))


def test_every_way_to_use_a_field_is_seen() -> None:
    features = (
        request.number("items", ITEMS),
        request.distance_km("far", HOME, PLACE),
        request.seconds_since("age", OPENED),
        request.category("kind", KIND, ["a", "b"]),
        request.holds("is_gift", GIFT),
        card.count("gifts", "1d", where=GIFT),
        card.mean("items_mean", "1d", of=ITEMS, where=FEE >= 5),
        ratio("items_to_mean", "items", "items_mean"),
        card.distinct("mails", MAIL, "1d"),
        card.is_new("new_domain", DOMAIN),
        *card.last("before", 1, of=(SHIP,)),
        pair.count("pairs", "1d"),
    )
    payment = fields.Payment(MAIL, ITEMS, DOMAIN, NETWORK, GIFT, KIND, UNUSED, HOME, PLACE, OPENED, FEE, SHIP)
    found = field_uses(Catalogue((card, pair), features, payment))
    assert found["mail"] == FieldUses(("pair",), ("domain",), ("mails",))
    assert found["network"] == FieldUses(("pair",))
    assert found["unused"] == FieldUses()
    assert found["items"].features == ("items", "items_mean", "items_to_mean")
    assert found["fee"].features == ("items_mean", "items_to_mean")
    assert found["gift"].features == ("is_gift", "gifts")
    assert {found[f"{name}_{half}itude"].features for name in ("home", "place") for half in ("lat", "long")} == {
        ("far",)
    }
    assert found["domain"].features == ("new_domain",)
    assert (found["opened"].features, found["kind"].features) == (("age",), ("kind",))
    assert "before_1_ship" in found["ship"].features


def test_uses_in_words() -> None:
    assert FieldUses().words == "nothing"
    assert FieldUses(("a",), (), ("x", "y")).summary == "entity a; features x, y"
    assert FieldUses(("a", "b"), ("c",), ("x", "y", "z")).summary == "entities a, b; derived c; 3 features"
    assert FieldUses((), (), ("x", "y", "z")).summary == "3 features"


@given(declaration=declarations())
def test_a_field_that_the_text_of_no_feature_names_is_not_used(declaration: Declaration) -> None:
    """Each random feature says its fields by name: in its meaning."""
    uses = field_uses(declaration.catalogue)
    meanings = {feature.name: feature.meaning for feature in declaration.catalogue.features}
    for name, use in uses.items():
        assert [feature for feature, meaning in meanings.items() if name in meaning.split()] == [
            feature for feature in use.features if name in meanings[feature].split()
        ]
