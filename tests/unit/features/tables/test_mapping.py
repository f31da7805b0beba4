"""Mistakes in a mapping are refused with file, line and key."""

from __future__ import annotations

import pytest

from paywarden.features.catalogue.fields import Payment, email
from paywarden.features.tables.mapping import parse_mapping
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.tables.tables import MAPPING, mapping_with

SECOND = (
    MAPPING.partition("[label]")[0]
    + '[label]\nfile = "chargebacks.csv"\npayment_id = "charge"\ntime = "reported"\ngenuine_delay = "30d"\n'
)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("[fields", "mapping.toml: Expected"),
        ("[fiels]\n", r"mapping\.toml, line 1: \[fiels\]: there is no such section"),
        (mapping_with(card='"x"'), r"line 3: \[fields\] card: is no field of a payment; there are payment_id"),
        (MAPPING.replace('card_id = "card"\n', ""), r"\[fields\] must say where card_id comes from"),
        (mapping_with(card_id='{ colum = "card" }'), r"line 3: \[fields\] card_id: there is no key 'colum'"),
        (mapping_with(card_id='{ column = "card", constant = "x" }'), "card_id: must have one of column, constant"),
        (
            mapping_with(card_id='{ constant = "c1" }'),
            r"line 3: \[fields\] card_id: a constant makes all payments those",
        ),
        (
            mapping_with(merchant_id='{ constant = "Unknown" }'),
            "merchant_id: 'Unknown' is no merchant; name the column",
        ),
        (mapping_with(card_id='{ column = "card", format = "iso" }'), "card_id: format is not for this field"),
        (mapping_with(event_time_ms='{ column = "when", format = "%d/%m" }'), "event_time_ms: format must be iso"),
        (mapping_with(event_time_ms='{ column = "when", format = "%Q" }'), "format has %Q, which is not one of %Y"),
        (mapping_with(event_time_ms='{ column = "when", zone = "Mars" }'), "zone must be a name such as Europe/Berlin"),
        (mapping_with(event_time_ms='{ column = "when", format = "hours" }'), "times in hours need an origin"),
        (mapping_with(amount_minor='{ column = "amount", unit = "cents" }'), "unit must be major or minor"),
        (mapping_with(channel='{ column = "c", other = "refuse" }'), "other is for a source with values"),
        (mapping_with(channel='{ column = "c", values = { W = 1 } }'), "values: W must be a text"),
        (mapping_with(utc_offset_minutes="{ from_zone = 1 }"), "from_zone must be true or false"),
        (MAPPING.replace('"7d"', '"7 weeks"'), r"\[label\] delay: must be \"7d\", {"),
        (MAPPING.replace('"7d"', '{ quantiles = ["7d", "1d"] }'), r"\[label\] delay: must be"),
        (MAPPING.replace('delay = "7d"', ""), r"\[label\] delay: must say when a label was known"),
        (MAPPING.replace('["0"]', '["1"]'), r"\[label\] genuine: lists a value that another label has"),
        ('[input]\ndelimiter = "::"\n' + MAPPING, r"line 2: \[input\] delimiter: must be one ASCII character"),
        ('[input]\nencoding = "utf-7000"\n' + MAPPING, r"line 2: \[input\] encoding: is not the name of a text"),
        (
            mapping_with(amount_minor='{ column = "amount", strip = "$()" }'),
            r"amount_minor: strip must not have \( \) - or",
        ),
        (
            mapping_with(event_time_ms='{ columns = ["a", "b"], format = "seconds" }'),
            "event_time_ms: columns are for times that are texts",
        ),
        (MAPPING + 'others = "unknown"\n', r"\[label\] others: is for labels of a second table: name it with `file`"),
        (SECOND.replace('payment_id = "charge"\n', ""), r"\[label\] payment_id: must name its column with the ids"),
        (SECOND + 'others = "fraud"\n', r"\[label\] others: must be genuine or unknown, got 'fraud'"),
        (SECOND + 'input = { delimiter = "::" }\n', r"\[label\] input: delimiter: must be one ASCII character"),
        (SECOND + 'input = { quot = "x" }\n', r"\[label\] input: there is no key 'quot'"),
        (
            SECOND.replace("genuine_delay", "seed = 1 #"),
            r"\[label\] genuine_delay: must say when a payment that the file",
        ),
        (SECOND + 'column = "why"\n', r"\[label\] fraud: must list the values that mean fraud"),
        (
            SECOND.replace('payment_id = "id"', 'payment_id = { made_from = "position" }'),
            r"\[label\] payment_id: \"charge\" has the ids of a column; \[fields\] payment_id must name that column",
        ),
    ],
)
def test_a_mistake_is_refused_where_it_stands(mapping: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said) as error:
        parse_mapping(mapping, "mapping.toml")
    assert "\n" not in str(error.value)


def test_an_address_is_never_taken_in_clear() -> None:
    fields = Payment(email("buyer", 1)).fields
    with pytest.raises(Misconfigured, match=r"\[fields\] buyer: must have hash = true"):
        parse_mapping(mapping_with(buyer='"mail"'), "mapping.toml", fields)
    assert parse_mapping(mapping_with(buyer='{ column = "mail", hash = true }'), "mapping.toml", fields)


def test_a_constant_may_be_the_one_merchant_of_a_table() -> None:
    mapping = parse_mapping(mapping_with(merchant_id='{ constant = "shop-1" }'), "mapping.toml")
    assert mapping.fields["merchant_id"].constant == "shop-1"


def test_all_mistakes_of_a_mapping_are_named_at_once() -> None:
    wrong = mapping_with(card_id='{ constant = "unknown" }', amount_minor='{ column = "amount", unit = "cents" }')
    wrong = wrong.replace('merchant_id = "shop"\n', "").replace('"7d"', '"7 weeks"')
    with pytest.raises(Misconfigured) as error:
        parse_mapping('[input]\ndelimiter = "::"\n' + wrong, "mapping.toml")
    said = str(error.value)
    assert said.startswith("5 mistakes: mapping.toml, line 2: [input] delimiter")
    parts = (
        "card_id: a constant",
        "unit must be major",
        "must say where merchant_id comes from",
        "[label] delay: must be",
    )
    assert [part for part in parts if part not in said] == []
    assert "\n" not in said
