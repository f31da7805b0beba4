"""A first mapping, guessed from names and values."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.fields import Coordinates, Payment, text
from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.tables.guessing.guess import guess_mapping
from paywarden.features.tables.guessing.number_forms import NumberForm, number_form_of
from paywarden.features.tables.mapping import parse_mapping
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from tests.unit.features.tables.tables import convert

CARDS = ("4111111111111111", "5500005555555559", "378282246310005")
HEAD = (
    "trans_num;trans_date_trans_time;cc_num;merchant;category;amt;gender;lat;merch_long;is_fraud;buyer_email;unix_time"
)


def table(folder: Path, *, head: str = HEAD) -> Path:
    path = folder / "table.csv"
    rows = [
        f"t{n};0{1 + n % 9}/14/2024 12:00:{n:02};{CARDS[n % 3]};m{n % 5};{'ab'[n % 2]}_net;{n},5{n % 10};F;52.5;NULL;"
        f"{int(n == 3)};a{n}@example.com;{1_705_000_000 + n}"
        for n in range(30)
    ]
    path.write_text("\n".join([head, *rows]).replace(",", "."), encoding="utf-8")
    return path


def completed(mapping: str) -> str:
    """Returns a guessed mapping with a column for each field that it did not find."""
    return re.sub(r"^# (event_time_ms|amount_minor|card_id|merchant_id) =", r"\1 =", mapping, flags=re.MULTILINE)


def test_a_guess_is_a_mapping_that_can_be_read(tmp_path: Path) -> None:
    guessed = guess_mapping(table(tmp_path), TABLE_ALONE)
    mapping = parse_mapping(guessed.mapping, "guess")
    assert mapping.fields["payment_id"].column == "trans_num"
    assert mapping.fields["event_time_ms"].column == "trans_date_trans_time"
    assert mapping.fields["event_time_ms"].time.format == "%m/%d/%Y %H:%M:%S"
    assert (mapping.fields["card_id"].column, mapping.fields["card_id"].hash) == ("cc_num", True)
    assert (mapping.fields["merchant_id"].column, mapping.fields["amount_minor"].column) == ("merchant", "amt")
    assert (mapping.input.delimiter, mapping.input.missing) == (";", ("NULL",))
    assert mapping.label is not None
    assert (mapping.label.column, mapping.label.fraud, mapping.label.genuine) == ("is_fraud", ("1",), ("0",))
    assert not any(card in guessed.mapping + guessed.payment for card in CARDS)


@pytest.mark.parametrize(
    ("amounts", "line"),
    [
        ({"EUR": "12.50", "KWD": "3.125", "JPY": "900"}, 'amount_minor = "amount"'),
        ({"EUR": "12.50", "USD": "3.125"}, 'amount_minor = { column = "amount", round = true }'),
        ({"EUR": "12.5000", "KWD": "3.12512"}, 'amount_minor = { column = "amount", round = true }'),
        (
            {"EUR": "1250", "JPY": "900"},
            'amount_minor = "amount"    # whole numbers: if these are cents, unit = "minor"',
        ),
    ],
)
def test_amounts_are_rounded_only_if_finer_than_all_currencies(
    tmp_path: Path, amounts: dict[str, str], line: str
) -> None:
    """With dinars, which have three digits, in the table, euros of three digits were rounded without a word."""
    path, told = tmp_path / "table.csv", list(amounts.items())
    rows = []
    for n in range(30):
        currency, amount = told[n % len(told)]
        rows.append(f"t{n},2024-01-14 12:00:{n:02},c{n % 3},m{n % 5},{amount},{currency},{int(n == 3)}")
    path.write_text("\n".join(["id,when,card,shop,amount,currency,fraud", *rows]), encoding="utf-8")
    guessed = guess_mapping(path, TABLE_ALONE)
    assert line in guessed.mapping.splitlines()
    assert ("whole numbers" in " ".join(guessed.found)) is ("whole" in line)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("{day:02}.03.2025 17.05.09", "%d.%m.%Y %H.%M.%S"),
        ("{day:02}.03.2025 17.05", "%d.%m.%Y %H.%M"),
        ("2025-03-{day:02} 17.05.09", "%Y-%m-%d %H.%M.%S"),
        ("{day:02}-03-2025 17:05:09", "%d-%m-%Y %H:%M:%S"),
        ("{day:02}-03-2025 17:05", "%d-%m-%Y %H:%M"),
        # A shop's export of American times without seconds was said to have no column of times.
        ("03/{day:02}/2025 05:05 PM", "%m/%d/%Y %I:%M %p"),
        ("{day:02}/03/2025 05:05 pm", "%d/%m/%Y %I:%M %p"),
        ("3/{day}/25 5:05 PM", "%m/%d/%y %I:%M %p"),
        ("3/{day}/25 17:05", "%m/%d/%y %H:%M"),
        ("{day:02}.03.25 17:05", "%d.%m.%y %H:%M"),
        ("Mar {day:02}, 2025 05:05 PM", "%b %d, %Y %I:%M %p"),
        ("{day:02}.03.25", "%d.%m.%y"),
    ],
)
def test_times_are_read_as_people_write_them(tmp_path: Path, text: str, form: str) -> None:
    """A Swedish export was said to have no column of times: 17.05.09 is how people write there."""
    path = tmp_path / "table.csv"
    rows = [f"o{day};{text.format(day=day)};{day},50" for day in range(1, 29)]
    path.write_text("\n".join(["order_id;Tidpunkt;amount", *rows]), encoding="utf-8")
    mapping = parse_mapping(completed(guess_mapping(path, TABLE_ALONE).mapping), "guess")
    assert (mapping.fields["event_time_ms"].column, mapping.fields["event_time_ms"].time.format) == ("Tidpunkt", form)


def test_a_column_may_say_in_one_word_when_a_fraud_was_reported(tmp_path: Path) -> None:
    mapping = parse_mapping(
        guess_mapping(table(tmp_path, head=HEAD.replace("unix_time", "reported")), TABLE_ALONE).mapping, "g"
    )
    assert mapping.label is not None
    assert mapping.label.time_column == "reported"


def test_who_rides_pays_who_drives_is_paid_and_a_dispute_is_fraud(tmp_path: Path) -> None:
    """A ride company's export had one card named "unknown", and its label was suggested as a field of a payment."""
    path = tmp_path / "rides.csv.gz"
    rows = [
        f"r-{n};{1_735_689_680_725 + n};u{n % 7};drv{n % 5};{8 + n},02;PLN;{'yes' if n == 3 else 'no'};"
        f"{1_735_989_680_725 + n if n == 3 else ''}"
        for n in range(30)
    ]
    head = "ride_uuid;requested_at_ms;rider;driver;fare_total;currency_code;disputed;disputed_at_ms"
    path.write_bytes(gzip.compress("\n".join([head, *rows]).encode()))
    guessed = guess_mapping(path, TABLE_ALONE)
    mapping = parse_mapping(guessed.mapping, "guess")
    assert (mapping.fields["card_id"].column, mapping.fields["merchant_id"].column) == ("rider", "driver")
    assert mapping.label is not None
    assert (mapping.label.column, mapping.label.fraud, mapping.label.genuine) == ("disputed", ("yes",), ("no",))
    assert mapping.label.time_column == "disputed_at_ms"
    assert guessed.payment == ""


@pytest.mark.parametrize(("name", "value"), [("propensity", "0,1"), ("p_kept", "0.05"), ("Sampling_Rate", "1")])
def test_a_column_may_say_how_likely_a_payment_was_kept(tmp_path: Path, name: str, value: str) -> None:
    # It was left unused, and a model that should have weighed its rows did not.
    lines = [
        f"t{n};2024-01-14 12:00:{n:02};c{n % 3};m1;{n}.50;{value if n % 3 else ''};{int(n == 3)}" for n in range(30)
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join([f"id;time;card;merchant;amount;{name};is_fraud", *lines]), encoding="utf-8")
    assert parse_mapping(guess_mapping(path, TABLE_ALONE).mapping, "g").fields["propensity"].column == name
    path.write_text(path.read_text(encoding="utf-8").replace(f";{value};", ";17.5;"), encoding="utf-8")
    assert "propensity = " not in guess_mapping(path, TABLE_ALONE).mapping


def test_columns_that_no_field_covers_become_declared_fields(tmp_path: Path) -> None:
    guessed = guess_mapping(table(tmp_path), TABLE_ALONE)
    names: dict[str, Any] = {}
    exec(compile(guessed.payment, str(tmp_path / "payment.py"), "exec"), names)  # noqa: S102 - what we wrote ourselves
    fields = {field.name: field.form.value for field in names["PAYMENT"].fields.declared}
    assert fields == {"category": "id", "buyer_email": "e-mail", "unix_time": "instant"}
    assert names["PAYMENT"].fields.by_name["category"].among == ("a_net", "b_net")


def test_a_suggested_field_takes_the_values_that_it_was_made_from(tmp_path: Path) -> None:
    """A public table's birthdays before 2000 and its epoch seconds were outside of their suggested fields."""
    rows = [
        f"p{n},2025-03-{1 + n % 28:02} 12:00:00,c{n % 3},m{n % 5},{n}.50,{int(n == 3)},"
        f"{1953 + n}-0{1 + n % 9}-17,{1_371_816_865 + n},{2 * 10**9 + n},{3 * 10**12 + n}.25"
        for n in range(30)
    ]
    path = tmp_path / "table.csv"
    path.write_text(
        "\n".join(["id,when,card,shop,amount,is_fraud,dob,unix_time,balance,worth", *rows]), encoding="utf-8"
    )
    names: dict[str, Any] = {}
    exec(compile(guess_mapping(path, TABLE_ALONE).payment, "payment.py", "exec"), names)  # noqa: S102 - our own text
    fields = names["PAYMENT"].fields
    assert {field.name: field.form.value for field in fields.declared} == {
        "dob": "instant", "unix_time": "instant", "balance": "integer", "worth": "decimal",
    }  # fmt: skip
    assert fields.by_name["dob"].is_personal
    mapping = parse_mapping(guess_mapping(path, fields).mapping, "guess", fields)
    assert mapping.fields["unix_time"].time.format == "seconds"
    payments, report = convert(tmp_path, path, guess_mapping(path, fields).mapping, payment=fields)
    assert (len(payments), report.refused) == (30, 0)
    assert payments[0]["dob"] == -535_075_200_000  # 1953-01-17


def test_hours_of_the_day_are_no_times_of_payments(tmp_path: Path) -> None:
    """In a public table of transfers the column `hour` became hours since 2024: all payments were of one day."""
    path = tmp_path / "table.csv"
    rows = [f"{n},user_{n % 7},user_{n % 5},{n}.50,{n % 24},{int(n == 3)}" for n in range(60)]
    path.write_text("\n".join(["transaction_id,sender_id,receiver_id,amount,hour,fraud_flag", *rows]), encoding="utf-8")
    guessed = guess_mapping(path, TABLE_ALONE)
    assert "event_time_ms    hour has hours of the day, and no column says which day" in guessed.lacking
    with pytest.raises(Misconfigured, match="must say where event_time_ms comes from"):
        parse_mapping(guessed.mapping, "guess")
    later = path.read_text(encoding="utf-8").replace("hour", "step")
    path.write_text(later, encoding="utf-8")
    assert parse_mapping(guess_mapping(path, TABLE_ALONE).mapping, "guess").fields["event_time_ms"].column == "step"


def test_a_column_whose_name_is_a_word_is_found_again(tmp_path: Path) -> None:
    """A column named `category` was suggested as `own_category`, and a second guess did not fill this field."""
    path = tmp_path / "table.csv"
    rows = [
        f"p{n},2025-03-{1 + n % 28:02} 12:00:00,c{n % 3},m{n % 5},{n}.50,{int(n == 3)},{'ab'[n % 2]}" for n in range(30)
    ]
    path.write_text("\n".join(["id,when,card,shop,amount,is_fraud,country_id", *rows]), encoding="utf-8")
    own = Payment(text("own_country_id", 1))
    mapping = parse_mapping(guess_mapping(path, own.fields).mapping, "guess", own.fields)
    assert mapping.fields["own_country_id"].column == "country_id"


def test_a_table_without_what_a_payment_needs_says_so(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,x\n2,y\n")
    guessed = guess_mapping(tmp_path / "table.csv", TABLE_ALONE)
    assert '# event_time_ms = { column = "?" }    # no column holds times' in guessed.mapping
    assert "# No column says what was fraud." in guessed.mapping
    # A placeholder for the card would make all payments those of one.
    with pytest.raises(Misconfigured, match="must say where event_time_ms, card_id, merchant_id, amount_minor comes"):
        parse_mapping(guessed.mapping, "guess")


SHOPS = ("Händler", "Straße", "Größe")


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_a_table_of_another_country_is_read_by_its_values(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"belege{ending}"
    rows = [
        f"B{n};0{1 + n % 9}.03.2024 12:00:00;{SHOPS[n % 3]};{SHOPS[n % 2]};€ 1.{n:03},50;EUR;"
        f"{('a', chr(34) + 'b' + chr(10) + 'c' + chr(34))[n % 2]};{('x', 'y')[n % 2]}"
        for n in range(30)
    ]
    text = "\n".join(['"Beleg\nNummer";Zeitpunkt;Händler;Größe;Betrag;Währung;Notiz;Weg', *rows])
    path.write_bytes(gzip.compress(text.encode("utf-8-sig")) if ending.endswith("gz") else text.encode("utf-8-sig"))
    guessed = guess_mapping(path, TABLE_ALONE)
    mapping = parse_mapping(completed(guessed.mapping), "guess")
    assert (mapping.input.delimiter, mapping.input.decimal, mapping.input.thousands) == (";", ",", ".")
    assert (mapping.fields["payment_id"].column, mapping.fields["currency"].column) == ("Beleg\nNummer", "Währung")
    assert (mapping.fields["amount_minor"].column, mapping.fields["amount_minor"].strip) == ("Betrag", "€")
    names: dict[str, Any] = {}
    exec(compile(guessed.payment, str(tmp_path / "payment.py"), "exec"), names)  # noqa: S102 - what we wrote ourselves
    assert {field.name for field in names["PAYMENT"].fields.declared} == {"grosse", "weg"}
    assert mapping.fields["merchant_id"].column == "Händler"
    assert "#   'Notiz'" in guessed.mapping


@pytest.mark.parametrize(
    ("texts", "decimal", "thousands"),
    [
        (("12.5", "1000.25"), ".", ""),
        (("12,50", "0,99"), ",", "."),
        (("1,234.50", "12.00"), ".", ","),
        (("1,234", "5,678"), ".", ","),
        (("1'234.50", "3.00"), ".", "'"),
        (("1 234,50 kr", "3,00 kr"), ",", " "),
        (("12:30", "a,b"), ".", ""),
        (("0.855", "0.300"), ".", ""),
        (("0.855", "0,300"), ".", ""),
    ],
)
def test_values_tell_how_numbers_are_written(texts: tuple[str, ...], decimal: str, thousands: str) -> None:
    assert number_form_of([texts, ("x", "y")]) == NumberForm(decimal, thousands)


def test_a_guess_names_columns_whose_numbers_are_written_in_another_way(tmp_path: Path) -> None:
    # Amounts with a comma and shares with a point: the guess took the amounts for words and said nothing.
    path = tmp_path / "eksport.csv"
    path.write_text("id;Kwota;Waga\n" + "".join(f"t{n};1.{n:03},50;0.{n:03}\n" for n in range(30)), encoding="utf-8")
    guessed = guess_mapping(path, TABLE_ALONE)
    mapping = parse_mapping(completed(guessed.mapping), "guess")
    assert (mapping.input.decimal, mapping.input.thousands) == (".", "")
    assert '#   "Kwota": decimal = ",", thousands = "."' in guessed.mapping
    assert 'Waga": decimal' not in guessed.mapping


def test_a_column_of_another_alphabet_has_a_field_with_a_name_that_can_be_read(tmp_path: Path) -> None:
    # "Płatność" was p_atnosc.
    path = tmp_path / "eksport.csv"
    path.write_text("id;Płatność;Cæsar Ørsted\n" + "".join(f"t{n};a{n};b{n}\n" for n in range(30)), encoding="utf-8")
    guessed = guess_mapping(path, TABLE_ALONE)
    assert "\nplatnosc = " in guessed.payment
    assert "\ncaesar_orsted = " in guessed.payment


def test_a_column_that_is_no_text_number_or_time_is_left_out_of_a_guess_with_its_type(tmp_path: Path) -> None:
    table = pa.table(
        {
            "txn_id": [b"a", b"b"],
            "amount": [1.5, 2.5],
            "geo": [{"lat": 1.0}] * 2,
            "raw": [b"\xff", b"x"],
            "took": pa.array([1, 2], pa.duration("s")),
        }
    )
    pq.write_table(table, tmp_path / "table.parquet")
    guessed = guess_mapping(tmp_path / "table.parquet", TABLE_ALONE)
    assert "#   'geo': holds no texts, numbers or times (struct<lat: double>)" in guessed.mapping
    assert "#   'raw': holds no texts, numbers or times (binary)" in guessed.mapping
    assert "#   'took': holds no texts, numbers or times (duration[s])" in guessed.mapping
    assert guessed.column_count == 5
    assert [line.split() for line in guessed.found] == [["payment_id", "txn_id"], ["amount_minor", "amount"]]


def guessed_of(folder: Path, head: str, rows: list[str], *, encoding: str = "utf-8") -> Any:
    path = folder / "export.csv"
    path.write_bytes("\n".join([head, *rows, ""]).encode(encoding))
    return guess_mapping(path, TABLE_ALONE)


def test_a_table_of_windows_keeps_its_signs(tmp_path: Path) -> None:
    # The column was called "Betrag in \u0080".
    guessed = guessed_of(tmp_path, "Beleg-Nr.;Betrag in €", [f"b{n};{n},50" for n in range(30)], encoding="cp1252")
    assert 'encoding = "cp1252"' in guessed.mapping
    assert 'amount_minor = "Betrag in €"' in guessed.mapping
    assert 'currency = { constant = "EUR" }' in guessed.mapping


def test_a_table_in_german_is_read_by_its_names(tmp_path: Path) -> None:
    head = "Buchungs-Nr.;Buchungszeit (Ortszeit);Karten Nr;Händler;Betrag;Währung;Land;Betrug bestätigt;Gemeldet am"
    rows = [
        f"B{n};{1 + n % 28:02}.08.2024 12:00:00;K{n % 9};H{n % 4};{n},50;eur;DE;{('nein', 'ja')[n == 3]};05.09.2024"
        for n in range(60)
    ]
    mapping = parse_mapping(guessed_of(tmp_path, head, rows).mapping, "guess")
    columns = {name: source.column for name, source in mapping.fields.items()}
    assert columns == {
        "payment_id": "Buchungs-Nr.",
        "event_time_ms": "Buchungszeit (Ortszeit)",
        "card_id": "Karten Nr",
        "merchant_id": "Händler",
        "amount_minor": "Betrag",
        "currency": "Währung",
        "country": "Land",
    }
    assert mapping.label is not None
    assert (mapping.label.column, mapping.label.fraud, mapping.label.time_column) == (
        "Betrug bestätigt",
        ("ja",),
        "Gemeldet am",
    )


@pytest.mark.parametrize(
    ("amounts", "line"),
    [
        # A few refunds in parentheses became payments, because a guess stripped "$()".
        (["$5.00"] * 20 + ["$1,234.00"] * 20 + ["($5.00)"], 'amount_minor = { column = "amount", strip = "$" }'),
        (["5.00 CR", "5.00 DR"], "# 'amount' has 'CR', 'DR' at its numbers. Make columns of plain numbers"),
        (["5.00 EUR", "5.00 USD"], "# 'amount' has 'EUR', 'USD' at its numbers. Make columns of plain numbers"),
        (["5.00-", "7.00-"], "# 'amount' has '-' at its numbers. Make columns of plain numbers"),
    ],
)
def test_what_stands_at_amounts_is_left_out_only_if_it_means_nothing(
    tmp_path: Path, amounts: list[str], line: str
) -> None:
    rows = [f't{n};"{amounts[n % len(amounts)].replace("5.0", f"{n + 1}.0")}"' for n in range(3000)]
    guessed = guessed_of(tmp_path, "id;amount", rows)
    assert any(one.startswith(line) for one in guessed.mapping.splitlines()), guessed.mapping
    assert ('thousands = ","' in guessed.mapping) is ("strip" in line)


def test_a_day_and_a_time_in_two_columns_are_one_moment(tmp_path: Path) -> None:
    rows = [f"t{n},{1 + n % 28:02}/02/2025,{n % 24:02}:30" for n in range(60)]
    guessed = guessed_of(tmp_path, "id,Date,Time", rows)
    wanted = 'event_time_ms = { columns = ["Date", "Time"], format = "%d/%m/%Y %H:%M", zone = "UTC" }'
    assert any(line.startswith(wanted) for line in guessed.mapping.splitlines()), guessed.mapping


@pytest.mark.parametrize(
    ("clock", "form"), [("05:30 PM", "%I:%M %p"), ("05:30:09 AM", "%I:%M:%S %p"), ("17:30:09", "%H:%M:%S")]
)
def test_a_time_of_the_day_may_have_twelve_hours(tmp_path: Path, clock: str, form: str) -> None:
    rows = [f"t{n},{1 + n % 28:02}/02/2025,{clock}" for n in range(60)]
    guessed = guessed_of(tmp_path, "id,Date,Time", rows)
    assert f'format = "%d/%m/%Y {form}"' in guessed.mapping


def test_two_columns_of_a_place_become_coordinates_and_are_found_again(tmp_path: Path) -> None:
    """They were two decimals, which no distance can be asked of."""
    head = "id,when,card,shop,amount,fraud,lat,long,merch_lat,merch_long,Breitengrad_Filiale,only_lat"
    rows = [
        f"t{n},2025-01-14 12:00:{n:02},c{n % 3},m{n % 5},1.50,{int(n == 3)},52.{n:02},-13.{n:02},1.5{n},2.5{n},9,4.{n}"
        for n in range(30)
    ]
    guessed = guessed_of(tmp_path, head, rows)
    names: dict[str, Any] = {}
    exec(compile(guessed.payment, str(tmp_path / "payment.py"), "exec"), names)  # noqa: S102 - what we wrote ourselves
    fields: PaymentFields = names["PAYMENT"].fields
    places = {"place_latitude", "place_longitude", "merch_latitude", "merch_longitude"}
    assert places < {field.name for field in fields.declared}
    assert isinstance(names["place"], Coordinates)
    assert guessed.declared_count == len(fields.declared) == 5
    mapping = parse_mapping(guess_mapping(tmp_path / "export.csv", fields).mapping, "g", fields)
    assert {name: mapping.fields[name].column for name in places} == {
        "place_latitude": "lat",
        "place_longitude": "long",
        "merch_latitude": "merch_lat",
        "merch_longitude": "merch_long",
    }


def test_names_of_a_bank_and_of_a_shop_are_known(tmp_path: Path) -> None:
    rows = [f"t{n},2025-01-14 12:00:{n:02},{n % 3}77{n % 7},shop{n % 5},54{n % 3}1,1.50" for n in range(30)]
    told = parse_mapping(guessed_of(tmp_path, "Nr,Datum,Kartentoken,Händler,Branche (MCC),Betrag", rows).mapping, "g")
    assert (told.fields["card_id"].column, told.fields["mcc"].column) == ("Kartentoken", "Branche (MCC)")
    told = parse_mapping(guessed_of(tmp_path, "Nr,Date,Card Fingerprint,Storefront,MCC,Total", rows).mapping, "g")
    assert (told.fields["card_id"].column, told.fields["merchant_id"].column) == ("Card Fingerprint", "Storefront")


def test_day_and_month_are_told_apart_by_all_rows_and_files(tmp_path: Path) -> None:
    # The first 2,000 times were those of a few days, which read as months.
    folder = tmp_path / "days"
    folder.mkdir()
    for day in range(1, 29):
        rows = [f"t{day}-{n},{day:02}/02/2025 12:{n % 60:02}:00" for n in range(300)]
        (folder / f"{day:02}.csv").write_text("\n".join(["id,when", *rows]), encoding="utf-8")
    assert 'format = "%d/%m/%Y %H:%M:%S"' in guess_mapping(folder, TABLE_ALONE).mapping


def test_an_id_that_a_few_rows_repeat_is_still_the_id(tmp_path: Path) -> None:
    rows = [f"o{n if n != 70 else 69},{n}.50" for n in range(400)]
    guessed = guessed_of(tmp_path, "Order ID,Total", rows)
    assert 'payment_id = "Order ID"' in guessed.mapping
    assert "payment_id       Order ID (1 of 400 rows repeat one)" in guessed.found


def test_a_guess_says_what_it_did_not_find_and_what_it_could_be(tmp_path: Path) -> None:
    rows = [f"t{n},2025-02-01T12:00:00Z,x{n % 50},{n}.50,EUR" for n in range(300)]
    guessed = guessed_of(tmp_path, "id,when,wer,amount,currency", rows)
    (card, merchant, label) = guessed.lacking
    assert "'wer' (50 values)" in card
    assert "'wer' (50 values)" in merchant
    assert label.split()[0] == "label"
    assert "'wer' (50 values)" in guessed.mapping


def test_a_column_that_is_not_in_every_file_is_left_out(tmp_path: Path) -> None:
    for name, head in (("a", "id,colour,size"), ("b", "id,size")):
        rows = "".join(f"{name}{n},{'xy'[n % 2]},{n % 3}\n"[: None if name == "a" else 99] for n in range(9))
        text = rows if name == "a" else "".join(f"b{n},{n % 3}\n" for n in range(9))
        (tmp_path / f"{name}.csv").write_text(f"{head}\n{text}", encoding="utf-8")
    guessed = guess_mapping(tmp_path, TABLE_ALONE)
    assert "#   'colour': is not in every file" in guessed.mapping


def test_names_of_columns_that_are_words_of_the_language_of_fields_can_be_run(tmp_path: Path) -> None:
    # `email = email(...)` made a text of the word that the next line called.
    head = "id,email,second email,class,from,time zone,text,note"
    rows = [f"t{n},a{n}@b.de,c{n}@d.de,k{n % 3},f{n % 40},z{n % 2},w{n % 40},v{n % 50}" for n in range(120)]
    guessed = guessed_of(tmp_path, head, rows)
    names: dict[str, Any] = {}
    exec(compile(guessed.payment, str(tmp_path / "payment.py"), "exec"), names)  # noqa: S102 - what we wrote ourselves
    declared = {field.name for field in names["PAYMENT"].fields.declared}
    assert {"own_email", "second_email", "own_from", "own_text", "note"} <= declared, guessed.payment


def test_a_guess_says_how_many_columns_had_no_room(tmp_path: Path) -> None:
    head = ",".join(["id", *(f"v{n}" for n in range(70))])
    rows = [",".join([f"t{n}", *(str(n % (3 + k)) for k in range(70))]) for n in range(60)]
    guessed = guessed_of(tmp_path, head, rows)
    assert (guessed.declared_count, guessed.left_out_count) == (60, 10)
    assert "# 10 columns more could be fields." in guessed.payment


@pytest.mark.parametrize(
    ("head", "label_time"),
    [
        ("Número de operación;Fecha;Tarjeta;Establecimiento;Importe;Contracargo;Fecha de contracargo", True),
        ("Número da transação;Data;Cartão;Estabelecimento;Valor;Estorno;Data do estorno", True),
        ("Numéro de transaction;Date;Carte;Établissement;Montant;Impayé;Date d'impayé", False),
        ("Belegnummer;Datum;Kartennummer;Akzeptanzstelle;Betrag;Rückbuchung;Datum der Rückbuchung", True),
        ("Numero operazione;Data;Carta;Esercizio;Importo;Riaddebito;Data riaddebito", True),
    ],
)
def test_words_of_acquirers_are_known_in_five_languages(tmp_path: Path, head: str, label_time: bool) -> None:
    rows = [
        f"t{n};0{1 + n % 9}.03.2024 12:00:00;k{n % 7};m{n % 5};{n},50;{int(n == 3)};{'11.03.2024' if n == 3 else ''}"
        for n in range(30)
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join([head, *rows]), encoding="utf-8")
    mapping = parse_mapping(guess_mapping(path, TABLE_ALONE).mapping, "guess")
    names = head.split(";")
    assert mapping.fields["card_id"].column == names[2]
    assert mapping.fields["merchant_id"].column == names[3]
    assert mapping.label is not None
    assert mapping.label.column == names[5]
    assert mapping.label.time_column == (names[6] if label_time else "")


def test_labels_are_dated_as_payments_are_where_both_ways_fit(tmp_path: Path) -> None:
    rows = [f"t{n};{10 + n}/03/2024;k{n};m;{n},50;{int(n == 3)};{'04/05/2024' if n == 3 else ''}" for n in range(12)]
    guessed = guessed_of(tmp_path, "id;Fecha;Tarjeta;Comercio;Importe;Fraude;Fecha de fraude", rows)
    label = parse_mapping(guessed.mapping, "guess").label
    assert label is not None
    assert label.time.format == "%d/%m/%Y"


def test_a_guess_suggests_a_catalogue_that_uses_its_fields(tmp_path: Path) -> None:
    rows = [
        f"t{n},2025-02-01T12:00:{n:02}Z,c{n % 7},m{n % 5},{n}.50,EUR,{'ab'[n % 2]}_net,{n % 3},{52 + n / 100},{n / 10},"
        f"a{n}@example.com,{n % 2},note {n}"
        for n in range(60)
    ]
    head = "id,when,card,shop,amount,currency,network,items,lat,lon,mail,is_gift,recipient"
    guessed = guessed_of(tmp_path, head, rows)
    (tmp_path / "payment.py").write_text(guessed.payment, encoding="utf-8")
    (tmp_path / "catalogue.py").write_text(guessed.catalogue, encoding="utf-8")
    for name in ("payment.py", "catalogue.py"):
        (tmp_path / name).chmod(0o644)
    catalogue = load_catalogue(tmp_path / "catalogue.py")
    features = {feature.name for feature in catalogue.features}
    assert {f"own_{name}" for name in ("network", "items", "place", "mail", "is_gift", "recipient")} <= features
    assert features > {feature.name for feature in CATALOGUE.features}
    # A table without such columns needs neither file.
    assert guessed_of(tmp_path, "id,when,card,shop,amount", ["a,2025-02-01T12:00:00Z,c,m,1.50"] * 2).catalogue == ""
