"""The words for a project's own fields: what they refuse, and the row that a payment gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paywarden.features import kernel
from paywarden.features.catalogue import attributes, fields
from paywarden.features.catalogue.attributes import DeclaredRow, declared_column, row_of, text_code
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.fields import Payment
from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.features.kernel.bands import fill_bands
from paywarden.features.profiles.band_program import band_program
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import key_maker
from paywarden.schemas.errors import Misconfigured

CUSTOMER = fields.text("customer_id", 1, personal=True)
PRODUCT = fields.category("product", 2, ["book", "phone"])
WEIGHT = fields.decimal("weight", 3, unit="kg", least=-5, most=500, decimals=3)
EMAIL = fields.email("buyer_email", 4)
DOMAIN = fields.email_domain("buyer_domain", 5, of=EMAIL)
NETWORK = fields.network("ip_network", 6, of=attributes.ip)
FEE = fields.money("fee_minor", 7)
GIFT = fields.flag("is_gift", 8)
HOME = fields.coordinates("home", 9)
BILLED = fields.country("billing_country", 11)
OPENED = fields.time("account_opened_ms", 12)
ITEMS = fields.integer("items", 13, unit="items", least=0, most=1000)
BIN = fields.bin_number("bin", 14)
PAYMENT = Payment(
    CUSTOMER, PRODUCT, WEIGHT, EMAIL, DOMAIN, NETWORK, FEE, GIFT, HOME, BILLED, OPENED, ITEMS, BIN
)  # fmt: skip
VALUES: dict[str, Any] = {
    "currency": "SEK",
    "ip": "192.0.2.77",
    "customer_id": "c-9",
    "product": "phone",
    "weight": 12.3455,
    "buyer_email": "Ann@Example.COM",
    "fee_minor": 250,
    "is_gift": True,
    "home_latitude": 52.5,
    "home_longitude": -13.25,
    "billing_country": "DE",
    "account_opened_ms": 1_700_000_000_000,
    "items": 3,
    "bin": "45678901",
}


def pair(row: list[int], number: int) -> list[int]:
    return row[declared_column(number) : declared_column(number) + 2]


def test_each_field_has_its_two_columns_of_the_row() -> None:
    declared = DeclaredRow(PAYMENT.fields, lambda amount, values: amount * 2 if values["currency"] == "SEK" else -1)
    row = row_of(VALUES, event_time_ms=1, amount=2, amount_minor=3, declared=declared)
    zero = kernel.NUMBER_ZERO
    assert len(row) == declared.width == kernel.ATTRIBUTE_COUNT + 2 * 14
    assert pair(row, 1) == [text_code("c-9"), LAPTOP_KEY.of("c-9")]
    assert pair(row, 2) == [text_code("phone"), LAPTOP_KEY.of("phone")]
    assert pair(row, 3) == [zero + 12346, 0]
    # Nothing of an address but a keyed hash, which does not tell capital letters from small ones.
    assert pair(row, 4) == [1, LAPTOP_KEY.of("ann@example.com")]
    assert pair(row, 5) == [1, LAPTOP_KEY.of("example.com")]
    assert pair(row, 6) == [1, LAPTOP_KEY.of("192.0.2.0/24")]
    assert pair(row, 7) == [zero + 500, zero + 250]
    assert pair(row, 8) == [2, 0]
    assert pair(row, 9) == [zero + 52_500_000, 0]
    assert pair(row, 10) == [zero - 13_250_000, 0]
    assert pair(row, 11) == [83, 83]
    assert pair(row, 12) == [zero + 1_700_000_000_000, 0]
    assert pair(row, 13) == [zero + 3, 0]
    assert pair(row, 14) == [text_code("45678901"), LAPTOP_KEY.of("45678901")]


def test_a_field_that_is_missing_is_0() -> None:
    declared = DeclaredRow(PAYMENT.fields, lambda amount, _: amount)
    row = row_of({"currency": "EUR"}, event_time_ms=1, amount=2, amount_minor=3, declared=declared)
    assert row[kernel.ATTRIBUTE_COUNT :] == [0] * 28


def test_a_band_begins_at_its_bound_and_follows_the_payers_clock() -> None:
    bands = (
        fields.band("size", 20, of=attributes.amount_minor, bounds=(10_00, 50_00)),
        fields.band("heavy", 21, of=WEIGHT, bounds=(0, 2.5)),
        fields.band("hours", 22, of=attributes.hour),
        fields.band("rest", 23, of=attributes.weekday, bounds=[5]),
    )
    payment = Payment(WEIGHT, *bands)
    # A Friday, 23:30 in UTC.
    friday_ms = 1_530_315_000_000
    given: dict[str, Any] = {"event_time_ms": friday_ms, "currency": "EUR"}
    wanted: list[tuple[dict[str, Any], list[str]]] = [
        ({"amount_minor": 9_99, "weight": -0.001}, ["00", "00", "23", "00"]),
        ({"amount_minor": 10_00, "weight": 2.4994, "utc_offset_minutes": 60}, ["01", "01", "00", "01"]),
        ({"amount_minor": 50_00, "weight": 2.4996, "utc_offset_minutes": -1410}, ["02", "02", "00", "00"]),
        ({"amount_minor": 0}, ["00", "", "23", "00"]),
    ]
    declared = DeclaredRow(payment.fields, lambda amount, _: amount)
    for told, texts in wanted:
        values = given | told
        assert [band.value_of(values) for band in payment.fields.bands] == texts
        row = row_of(
            values,
            event_time_ms=friday_ms,
            amount=1,
            amount_minor=values["amount_minor"],
            declared=declared,
        )
        slow = [pair(row, number) for number in range(20, 24)]
        assert slow == [[1, LAPTOP_KEY.of(text)] if text else [0, 0] for text in texts]
        compiled = np.array(row, dtype=np.int64)
        compiled[attributes.declared_column(20) :] = 0
        fill_bands(band_program(payment.fields, LAPTOP_KEY), compiled)
        assert compiled.tolist() == row
        made = key_maker("e", ("card_id", "size", "heavy"), payment.fields, LAPTOP_KEY)({"card_id": "c", **values})
        assert (made == b"") == (texts[1] == "")


def test_a_moment_may_be_a_date_of_birth() -> None:
    born = fields.time("born", 1, earliest="1900-01-01")
    assert born.field is not None
    assert born.field.minimum == -2_208_988_800_000
    catalogue = Catalogue((Entity("card", "card_id"),), (request.seconds_since("age", born),), Payment(born))
    row = row_of(
        {"born": -86_400_000}, event_time_ms=1000, amount=0, amount_minor=0,
        declared=DeclaredRow(catalogue.payment.fields, lambda amount, _: amount),
    )  # fmt: skip
    engine = FeatureEngine(catalogue)
    assert engine.vectors_of_slots(np.array([row], dtype=np.int64), engine.new_slots(1)).tolist() == [[86_401.0]]


def test_the_digest_follows_the_meaning_of_fields_in_use_and_nothing_else() -> None:
    card = Entity("card", "card_id")

    def digest(*declared: Any, weight: attributes.Attribute = WEIGHT) -> str:
        return FeatureEngine(Catalogue((card,), (request.holds("h", weight >= 2),), Payment(*declared))).plan.digest

    finer = fields.decimal("weight", 3, unit="kg", least=-5, most=500, decimals=4)
    renamed = fields.decimal("mass", 3, unit="kg", least=-5, most=500, decimals=3)
    assert digest(WEIGHT) == digest(WEIGHT, PRODUCT) == digest(renamed, weight=renamed)
    assert digest(WEIGHT) != digest(finer, weight=finer)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a name with capitals": (lambda: fields.text("Customer", 1), "a field's name is lower_case"),
    "a name that payments have": (lambda: fields.text("card_id", 1), "every payment has a field of this name"),
    "a first day too early": (
        lambda: fields.time("a", 1, earliest="1899-12-31"),
        "earliest must be a day from 1900-01-01 to 2099-12-31, got '1899-12-31'",
    ),
    "a first day that is none": (lambda: fields.time("a", 1, earliest="1900"), "earliest must be a day from"),
    "a first day that is a number": (
        lambda: fields.time("a", 1, earliest=1900),  # type: ignore[arg-type]
        "earliest must be a day from 1900-01-01 to 2099-12-31, got 1900",
    ),
    "number 0": (lambda: fields.text("a", 0), "a field's number is 1 to 64, got 0"),
    "a number over the limit": (lambda: fields.text("a", 65), "a field's number is 1 to 64, got 65"),
    "coordinates at the end": (lambda: fields.coordinates("a", 64), "a field's number is 1 to 64, got 65"),
    "a list with a value twice": (lambda: fields.category("a", 1, ["x", "x"]), "`among` lists 'x' twice"),
    "a list that is a text": (
        lambda: fields.category("a", 1, "xy"),
        "`among` must be a list of 1 to 4095 texts, got 'xy'",
    ),
    "a list too long": (
        lambda: fields.category("a", 1, [f"p{place}" for place in range(5000)]),
        "`among` must be a list of 1 to 4095 texts, got 5000 of them",
    ),
    "an empty list": (lambda: fields.category("a", 1, []), "`among` must be a list of 1 to 4095 texts, got 0 of them"),
    "bounds the wrong way": (
        lambda: fields.integer("a", 1, unit="days", least=5, most=1),
        "least and most must be whole numbers, the first one smaller, got 5 and 1",
    ),
    "a number without a unit": (lambda: fields.integer("a", 1, unit=""), "unit must say what the number counts"),
    "too many decimals": (
        lambda: fields.decimal("a", 1, unit="kg", least=0, most=1, decimals=10),
        "decimals must be 0 to 9, got 10",
    ),
    "a network of bits that are text": (
        lambda: fields.network("a", 1, of=attributes.ip, bits="24"),  # type: ignore[arg-type]
        "bits must be 1 to 32, and bits_v6 1 to 128, got '24' and 48",
    ),
    "a network of bits that are a flag": (
        lambda: fields.network("a", 1, of=attributes.ip, bits=True),
        "bits must be 1 to 32, and bits_v6 1 to 128, got True and 48",
    ),
    "a network of no address": (lambda: fields.network("a", 1, of=CUSTOMER), "`of` must be an address, such as ip"),
    "a domain of no e-mail": (lambda: fields.email_domain("a", 1, of=CUSTOMER), "`of` must be an e-mail field"),
    "bands of the amount in the reference currency": (
        lambda: fields.band("a", 1, of=attributes.amount, bounds=(5,)),
        "'a': `of` must be amount_minor, hour, weekday, or a number of payment.py, got the field 'amount'",
    ),
    "bands of a text": (lambda: fields.band("a", 1, of=CUSTOMER, bounds=(5,)), "`of` must be amount_minor, hour"),
    "bands without bounds": (
        lambda: fields.band("a", 1, of=attributes.amount_minor),
        "`bounds` must be 1 to 63 ascending values of the field 'amount_minor', got ()",
    ),
    "bands of a bound that is no list": (
        lambda: fields.band("a", 1, of=attributes.hour, bounds=7),  # type: ignore[arg-type]
        "`bounds` must be 1 to 63 ascending values of the hour, got 7",
    ),
    "bands that do not ascend": (
        lambda: fields.band("a", 1, of=WEIGHT, bounds=(2.5, 2.5)),
        "`bounds` must be 1 to 63 ascending values of the field 'weight', got (2.5, 2.5)",
    ),
    "bands beyond the field": (
        lambda: fields.band("a", 1, of=attributes.weekday, bounds=(7,)),
        "ascending values of the weekday, got (7,)",
    ),
    "bands of a field that is not listed": (
        lambda: Payment(fields.band("a", 1, of=WEIGHT, bounds=(2,))),
        "'a' derives from 'weight', which Payment does not list",
    ),
    "a band in a condition": (
        lambda: fields.band("a", 1, of=attributes.hour) == "07",
        "a has only keyed hashes, which no catalogue can name",
    ),
    "a name twice": (
        lambda: Payment(fields.text("a", 1), fields.text("a", 2)),
        "the field 'a' is declared twice, first in test_fields.py:",
    ),
    "a number twice": (
        lambda: Payment(fields.text("a", 1), fields.flag("b", 1)),
        "'b' has the number 1, which 'a' has already",
    ),
    "a source that is not listed": (lambda: Payment(DOMAIN), "derives from 'buyer_email', which Payment does not list"),
    "an attribute of every payment": (
        lambda: Payment(attributes.ip),
        "Payment takes declared fields one by one",
    ),
    "an address in a condition": (lambda: EMAIL == "ann@example.com", "has only keyed hashes"),
    "a number and a text": (
        lambda: WEIGHT >= "2",  # type: ignore[operator]
        "weight is compared with '2'; it can be compared with a number from -5 to 500",
    ),
    "a number out of bounds": (lambda: WEIGHT >= 501, "it can be compared with a number from -5 to 500"),
    "a feature of a field that the payment lacks": (
        lambda: Catalogue((Entity("card", "card_id"),), (request.holds("h", WEIGHT >= 2),), Payment(CUSTOMER)),
        "'h' uses a field, number 3, which payment lacks",
    ),
    "an entity of a field that the payment lacks": (
        lambda: Catalogue((Entity("customer", "customer_id"),), (request.hour("hour"),)),
        "payments have no key field 'customer_id'",
    ),
    "an entity of a declared number": (
        lambda: Catalogue((Entity("heavy", "weight"),), (request.hour("hour"),), Payment(WEIGHT)),
        "entity 'heavy': 'weight' is a number, and a key field is a text: declare another field in payment.py",
    ),
    "too many entities": (
        lambda: Catalogue([Entity(f"e{n}", "card_id") for n in range(17)], (request.hour("hour"),)),
        "there are 17 entities, at most 16",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_is_refused_with_its_line(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(Misconfigured, match=r"^feature catalogue, test_fields\.py:[0-9]+:[0-9]+: ") as refused:
        make()
    assert message in str(refused.value)
