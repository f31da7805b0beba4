"""Conditions over fields that a project declares, and fields that derive from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import ip
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.fields import Payment
from paywarden.models.policy.policy import ConfiguredRule, PolicySettings, policy_problems
from paywarden.models.policy.rules import Vocabulary, compile_condition
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.requests.schema import RequestSchema

MAIL = fields.email("buyer_email", 1)
PRODUCT = fields.category("product", 3, ["book", "phone"])
PAYMENT = Payment(
    MAIL,
    fields.email_domain("buyer_domain", 2, of=MAIL),
    PRODUCT,
    fields.decimal("weight", 4, unit="kg", least=-5, most=500, decimals=1),
    fields.integer("items", 5, unit="items", least=-10, most=10),
    fields.money("fee_minor", 6),
    fields.flag("is_gift", 7),
    fields.network("ip_network", 8, of=ip),
    fields.country("billing_country", 9),
)
card = Entity("card", "card_id")
# The feature has the name of a field, which a condition then means.
CATALOGUE = Catalogue([card], [card.count("payments", "1d"), request.category("product", PRODUCT, ["book"])], PAYMENT)
LISTS = {"disposable": frozenset({"mail.example"}), "few": frozenset({"1"})}
VOCABULARY = Vocabulary(CATALOGUE.features, ("unknown_card",), LISTS, PAYMENT.fields)
SCHEMA = RequestSchema(PAYMENT.fields)
VALUES: dict[str, Any] = {
    "buyer_email": "Ann@Mail.example", "product": "phone", "weight": 2.25, "items": -3, "fee_minor": 500,
    "is_gift": True, "ip": "192.0.2.7", "billing_country": "DE", "country": "DE",
}  # fmt: skip


def holds(text: str, **values: Any) -> bool:
    condition = compile_condition(text, where="rule", vocabulary=VOCABULARY)
    body = SCHEMA.message(**values).SerializeToString()
    vector = np.array([1.0, 0.0], dtype=np.float32)
    return bool(condition.applies(SCHEMA.payment_of(body), 100, vector.item, math.nan, ()))


@pytest.mark.parametrize(
    "text",
    [
        'product == "phone"',
        'product in ("phone", "book")',
        'product != "book"',
        "buyer_domain in lists.disposable",
        'ip_network == "192.0.2.0/24"',
        "billing_country == country",
        # As the field keeps it: to one digit, and a tie goes to the even neighbour.
        "weight == 2.2",
        "weight * 2 > 4 and weight - items == 5.2",
        "items == -3 and items in (-3, 3)",
        "fee_minor >= 5_00 and fee_minor < amount_minor + 501",
        "is_gift",
        "is_gift and not missing(is_gift) and not missing(buyer_email)",
    ],
)
def test_a_condition_reads_a_declared_field(text: str) -> None:
    assert holds(text, **VALUES)
    # Every comparison with what is missing is false.
    assert not holds(text)


@pytest.mark.parametrize(
    "name", ["buyer_email", "buyer_domain", "product", "weight", "items", "fee_minor", "is_gift", "ip_network"]
)
def test_a_field_that_was_not_sent_is_missing(name: str) -> None:
    assert holds(f"missing({name})")
    assert not holds(f"missing({name})", **VALUES)


def test_a_value_of_zero_or_no_is_there() -> None:
    assert holds("weight == 0 and items == 0 and fee_minor == 0 and not is_gift", weight=0, items=0, fee_minor=0)
    assert not holds("missing(is_gift) or missing(weight) or missing(items)", is_gift=False, weight=0.0, items=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("productt == 'x'", "rule, character 1: there is no name 'productt'; did you mean product"),
        ('buyer_email == "a@b"', "rule, character 1: an e-mail address cannot be compared, only its domain"),
        ('"a@b" == buyer_email', "rule, character 10: an e-mail address cannot be compared"),
        ("buyer_email in lists.disposable", "rule, character 1: an e-mail address cannot be compared"),
        ("fee_minor > 5.5", "rule, character 13: amounts are whole minor units: 500.00 is 500_00, got 5.5"),
        ("product > 1", "rule, character 11: a text cannot be compared with a number"),
        ("weight in lists.few", "rule, character 1: a number cannot be in a list of texts"),
        ("is_gift == 1", "rule, character 12: a yes or no cannot be compared with a number"),
        ("items", "rule, character 1: wanted a condition, got a number"),
        ("missing(is_gift and is_gift)", "rule, character 9: wanted a number or a text, got a yes or no"),
    ],
)
def test_a_wrong_condition_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(Misconfigured) as error:
        compile_condition(text, where="rule", vocabulary=VOCABULARY)
    assert str(error.value).startswith(message)


def test_the_check_of_a_policy_knows_the_fields_of_the_catalogue() -> None:
    rules = [ConfiguredRule("heavy", "weight > 20", "review"), ConfiguredRule("wrong", "wieght > 20", "review")]
    settings = PolicySettings(rules=tuple(rules), review_at=0.5, decline_at=0.9)
    (problem,) = policy_problems(settings, review_at=0, decline_at=0, lists={}, catalogue=CATALOGUE)
    assert problem == "policy.rules \"wrong\", character 1: there is no name 'wieght'; did you mean weight?"
