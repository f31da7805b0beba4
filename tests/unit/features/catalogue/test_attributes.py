"""A payment's row of numbers: the same from a record, a request and a history, and the conditions asked of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.attributes import ATTRIBUTES, Condition, row_of
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.rows import HistoryRows
from paywarden.features.kernel.plan_schema import HEAD
from paywarden.features.profiles.plan import compile_plan
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.kernel.profiles import card

# Columns.


def test_an_attribute_stands_at_its_place() -> None:
    # Rows are kept with payments whose outcomes may come later: no place is ever given to another.
    assert [attribute.column for attribute in ATTRIBUTES] == list(range(kernel.CODE_COUNT))
    columns = [attributes.identity_column(attribute.column) for attribute in attributes.KEYED]
    assert columns == list(range(kernel.CODE_COUNT, kernel.ATTRIBUTE_COUNT))
    assert [attribute.name for attribute in ATTRIBUTES[:13]] == [
        *("event_time_ms", "amount", "amount_minor", "currency", "utc_offset_minutes", "declined", "card_id"),
        *("merchant_id", "device_id", "ip", "mcc", "country", "channel"),
    ]


# Codes.


@pytest.mark.parametrize(
    ("text", "code"), [("", 1), ("ecom", 3_058_419_674), ("5411", 1_381_014_860), ("Zürich", 3_540_756_799)]
)
def test_the_code_of_a_text_never_changes(text: str, code: int) -> None:
    # Profiles and payment records are full of them.
    assert attributes.text_code(text) == code


@given(text=st.text())
def test_the_code_of_a_text_is_never_0(text: str) -> None:
    assert 1 <= attributes.text_code(text) <= 2**32


def test_countries_are_numbered_by_their_letters() -> None:
    letters = [chr(ord("A") + number) for number in range(26)]
    codes = [attributes.country_code(first + second) for first in letters for second in letters]
    assert codes == list(range(1, 677))


@given(text=st.text(max_size=3))
@pytest.mark.parametrize("wrong", ["", "D", "de", "DEU", "D1", "ÄÖ", "D\n"])
def test_a_text_that_is_no_country_gets_no_countrys_code(wrong: str, text: str) -> None:
    for candidate in (wrong, text):
        is_country = len(candidate) == 2 and candidate.isascii() and candidate.isalpha() and candidate.isupper()
        assert attributes.is_country(candidate) == is_country
        assert (attributes.country_code(candidate) <= 676) == is_country
        assert attributes.country_code(candidate) > 0


@pytest.mark.parametrize(("minutes", "code"), [(0, 1440), (-1439, 1), (1439, 2879), (1440, 0), (-1440, 0), (2**31, 0)])
def test_an_offset_that_no_clock_has_is_not_there(minutes: int, code: int) -> None:
    assert attributes.offset_code(minutes) == code


# Rows.

FIELDS = {
    "currency": "EUR",
    "utc_offset_minutes": 60,
    "declined": True,
    "card_id": "c",
    "merchant_id": "m",
    "device_id": "d",
    "ip": "10.0.0.1",
    "mcc": "5411",
    "country": "DE",
    "channel": "ecom",
}


def test_a_row_holds_every_attribute_in_its_column() -> None:
    row = row_of({**FIELDS, "payment_id": "p", "amount_minor": 1}, event_time_ms=5, amount=7, amount_minor=9)
    text = attributes.text_code
    assert row == [
        *(5, 7, 9, text("EUR"), 1500, 2, text("c"), text("m"), text("d"), text("10.0.0.1"), text("5411")),
        *(attributes.country_code("DE"), text("ecom")),
        *map(LAPTOP_KEY.of, ("c", "m", "d", "10.0.0.1", "ecom")),
    ]


@pytest.mark.parametrize("name", list(FIELDS))
def test_a_missing_or_null_field_becomes_0(name: str) -> None:
    column = next(attribute.column for attribute in ATTRIBUTES if attribute.name == name)
    absent = {other: value for other, value in FIELDS.items() if other != name}
    for fields in (absent, {**absent, name: None}):
        row = row_of(fields, event_time_ms=5, amount=7, amount_minor=9)
        identity = attributes.identity_column(column)
        assert row[column] == row[identity] == 0
        assert row.count(0) == len({column, identity})


def test_an_empty_text_a_flag_that_is_off_and_no_offset_are_there() -> None:
    row = row_of({"channel": "", "declined": False, "utc_offset_minutes": 0}, event_time_ms=5, amount=0, amount_minor=0)
    assert row[attributes.channel.column] == 1
    assert row[attributes.declined.column] == 1
    assert row[attributes.utc_offset.column] == 1440


NOON_MS = 1_704_110_400_000
WORDS = st.sampled_from(["a", "b", "DE", "FR", "Zürich"])
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "event_time_ms": st.integers(NOON_MS, NOON_MS + 100),
            "amount_minor": st.integers(0, 1000),
            **dict.fromkeys(("card_id", "merchant_id"), WORDS),
            "currency": st.sampled_from(["EUR", "JPY"]),
            **dict.fromkeys(("device_id", "ip", "channel"), st.one_of(st.none(), WORDS)),
            "mcc": st.sampled_from([None, "5411", "0000"]),
            "country": st.sampled_from([None, "DE", "FR"]),
            "utc_offset_minutes": st.one_of(st.none(), st.integers(-1439, 1439)),
            "declined": st.one_of(st.none(), st.booleans()),
        }
    ),
    max_size=8,
).map(lambda records: sorted(records, key=lambda record: _number(record, "event_time_ms")))


def history_of(records: list[dict[str, object]]) -> History:
    kinds = {
        "event_time_ms": pa.int64(),
        "amount_minor": pa.int64(),
        "utc_offset_minutes": pa.int32(),
        "declined": pa.bool_(),
    }
    columns = {
        name: pa.array([record[name] for record in records], kinds.get(name, pa.string()))
        for name in (*FIELDS, "event_time_ms", "amount_minor")
    }
    columns["payment_id"] = pa.array([f"p{number}" for number in range(len(records))], pa.string())
    outcomes = {"payment_id": pa.string(), "outcome_time_ms": pa.int64(), "label": pa.string(), "source": pa.string()}
    return history_of_tables(pa.table(columns), pa.table({name: pa.array([], kind) for name, kind in outcomes.items()}))


@given(records=RECORDS, data=st.data())
def test_a_history_gives_the_rows_that_its_payments_give_one_by_one(
    records: list[dict[str, object]], data: st.DataObject
) -> None:
    amounts = [17 * number for number in range(len(records))]
    rows = HistoryRows(history_of(records), np.array(amounts, dtype=np.int64))
    wanted = [
        row_of(
            record,
            event_time_ms=_number(record, "event_time_ms"),
            amount=a,
            amount_minor=_number(record, "amount_minor"),
        )
        for record, a in zip(records, amounts, strict=True)
    ]
    chosen = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=10)) if records else []
    first = data.draw(st.integers(0, len(records)))
    for asked, numbers in (
        (np.array(chosen, dtype=np.int64), chosen),
        (slice(first, None), list(range(first, len(records)))),
    ):
        found = rows.of(asked)
        assert found.tolist() == [wanted[number] for number in numbers]
        assert found.shape == (len(numbers), kernel.ATTRIBUTE_COUNT)
        assert found.dtype == np.int64
        assert found.flags.c_contiguous


def _number(record: dict[str, object], name: str) -> int:
    value = record[name]
    assert isinstance(value, int)
    return value


# Conditions.


def test_a_condition_has_a_text_of_its_comparison() -> None:
    asked = {
        attributes.channel == "ecom": "channel == 'ecom'",
        attributes.country != "DE": "country != 'DE'",
        attributes.amount >= 220_00: "amount >= 22000",
        attributes.amount_minor < 5: "amount_minor < 5",
        attributes.declined == False: "declined == False",  # noqa: E712
    }
    assert {condition.text for condition in asked} == set(asked.values())


def test_a_condition_written_in_two_ways_is_one_column() -> None:
    # They used to be two columns of the same shape, and only the last one was migrated to another catalogue.
    flag = card.count("a", "1d", where=attributes.declined)
    spoken = card.count("b", "1d", where=attributes.declined == True)  # noqa: E712
    plan = compile_plan(Catalogue((card,), (flag, spoken)))
    assert len(plan.shapes[0].tables[0].columns) == 1
    assert plan.words[HEAD.condition_count] == 1


def test_joined_conditions_are_one_column_in_any_order() -> None:
    is_remote, is_large, declined = attributes.channel == "ecom", attributes.amount >= 5, attributes.declined
    asked = (is_remote & is_large & declined, declined & (is_large & is_remote), is_large & (declined & is_remote))
    assert len({condition.code for condition in asked}) == 1
    assert asked[0].text == "channel == 'ecom' and amount >= 5 and declined"
    assert (~(is_remote | is_large)).text == "not (channel == 'ecom' or amount >= 5)"
    assert is_remote & is_remote == is_remote
    plan = compile_plan(Catalogue((card,), tuple(card.count(f"x{n}", "1d", where=one) for n, one in enumerate(asked))))
    assert plan.words[HEAD.condition_count] == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: attributes.amount >= 5 & attributes.declined, "got 5"),  # type: ignore[operator]
        (lambda: attributes.declined & attributes.mcc, "got the field 'mcc'"),
        (lambda: attributes.hour >= 24, "hour is compared with 24; it is a whole number from 0 to 23"),
        (lambda: attributes.weekday == "Monday", "weekday is compared with 'Monday'; it is a whole number from 0 to 6"),
    ],
)
def test_a_condition_that_nothing_can_join_is_refused(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        wrong()


def test_a_condition_has_no_truth_value() -> None:
    # `and`, `or` and `not` would take it for true, and drop the other half.
    condition = attributes.channel == "ecom"
    with pytest.raises(TypeError, match="the condition channel == 'ecom' is about a payment"):
        bool(condition)
    with pytest.raises(TypeError):
        card.count("x", "1d", where=condition and attributes.declined)


AMOUNT = "is compared with {!r}; it can be compared with a whole number of minor units"
TEXT = "is compared with {!r}; it can be compared with printable text of 1 to 64 bytes"
COUNTRY = "is compared with {!r}; it can be compared with two capital letters"
FLAG = "is compared with {!r}; it can be compared with True or False"
NOTHING = "is compared with {!r}; it can be compared with nothing"
ORDER = "is no amount and no number: only these are at least, or below, another"
WRONG: dict[str, tuple[Callable[[], Condition], str]] = {
    "an amount and a text": (lambda: attributes.amount >= "220", "amount " + AMOUNT.format("220")),  # type: ignore[operator]
    "an amount and a fraction": (lambda: attributes.amount >= 0.5, "amount " + AMOUNT.format(0.5)),
    "an amount and not a number": (
        lambda: attributes.amount < float("nan"),
        "amount " + AMOUNT.format(float("nan")),
    ),
    "an amount and less than nothing": (lambda: attributes.amount >= -1, "amount " + AMOUNT.format(-1)),
    "an amount and True": (lambda: attributes.amount >= True, "amount " + AMOUNT.format(True)),
    "an amount and nothing": (lambda: attributes.amount_minor == None, "amount_minor " + AMOUNT.format(None)),  # noqa: E711
    "an amount and another attribute": (
        lambda: attributes.amount == attributes.amount_minor,
        "amount is compared with",
    ),
    "an amount that is different": (
        lambda: attributes.amount != 5,
        "amount is an amount, and is compared with ==, >= or <",
    ),
    "an amount above": (lambda: attributes.amount > 5, "amount is an amount, and is compared with ==, >= or <"),
    "an amount at most": (lambda: attributes.amount <= 5, "amount is an amount, and is compared with ==, >= or <"),
    "an amount between": (lambda: 3 < attributes.amount < 5, "amount is an amount, and is compared with ==, >= or <"),
    "a text above": (lambda: attributes.mcc > 5, "mcc " + ORDER),
    "a text and a number": (lambda: attributes.channel == 5, "channel " + TEXT.format(5)),
    "a text and nothing in it": (lambda: attributes.channel == "", "channel " + TEXT.format("")),
    "a text and nothing": (lambda: attributes.channel != None, "channel " + TEXT.format(None)),  # noqa: E711
    "a text that no payment has": (
        lambda: attributes.mcc == "grocery",
        "mcc is compared with 'grocery'; it can be compared with four digits (ISO 18245)",
    ),
    "a text at least": (lambda: attributes.mcc >= 5, "mcc " + ORDER),
    "a text below": (lambda: attributes.mcc < 5, "mcc " + ORDER),
    "a country in small letters": (lambda: attributes.country == "de", "country " + COUNTRY.format("de")),
    "a country by its name": (lambda: attributes.country != "Germany", "country " + COUNTRY.format("Germany")),
    "a flag and a number": (lambda: attributes.declined == 1, "declined " + FLAG.format(1)),
    "a flag and a text": (lambda: attributes.declined == "yes", "declined " + FLAG.format("yes")),
    "a flag at least": (lambda: attributes.declined >= 1, "declined " + ORDER),
    "an offset": (lambda: attributes.utc_offset == 60, "utc_offset_minutes " + NOTHING.format(60)),
    "a time": (lambda: attributes.event_time == 5, "event_time_ms " + NOTHING.format(5)),
    "a time at least": (lambda: attributes.event_time >= 5, "event_time_ms " + ORDER),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_a_comparison_that_makes_no_sense_is_refused(what: str) -> None:
    compare, message = WRONG[what]
    with pytest.raises(Misconfigured) as refused:
        compare()
    assert message in str(refused.value)


def test_an_invalid_comparison_is_refused_with_its_line() -> None:
    with pytest.raises(Misconfigured, match=r"^feature catalogue, test_attributes\.py:[0-9]+:[0-9]+: "):
        _ = attributes.channel == 5
