"""The conversion of rows: values, refusals, duplicates, labels, and faults of whole files."""

from __future__ import annotations

import csv
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paywarden.features.catalogue.fields import (
    Payment,
    category,
    coordinates,
    decimal,
    email,
    flag,
    integer,
    money,
    time,
)
from paywarden.features.history.history import read_history
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.tables.tables import (
    HEAD,
    MAPPING,
    MAY_1_NOON_MS,
    ROW,
    column,
    convert,
    csv_of,
    mapping_with,
    outcomes_of,
)

KEY = bytes(range(16))
DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("currency", "amount", "wanted"),
    [
        ("EUR", "12.34", 1234),
        ("JPY", "12", 12),
        ("KWD", "1.234", 1234),
        ("EUR", "1e2", 10_000),
        ("JPY", "12.00", 12),
        ("OMR", "1.234", 1234),
    ],
)
def test_an_amount_has_the_minor_digits_of_its_currency(
    tmp_path: Path, currency: str, amount: str, wanted: int
) -> None:
    mapping = mapping_with(currency=f'{{ constant = "{currency}" }}')
    payments, _ = convert(tmp_path, csv_of(f"p1,2026-05-01,c,m,{amount},0"), mapping)
    assert column(payments, "amount_minor") == [wanted]


def test_amounts_that_are_finer_are_rounded_half_to_even_on_demand(tmp_path: Path) -> None:
    rows = [f"p{n},2026-05-01,c,m,{text},0" for n, text in enumerate(("0.005", "0.015", "0.0151", "0.0149"))]
    mapping = mapping_with(amount_minor='{ column = "amount", round = true }')
    assert column(convert(tmp_path, csv_of(*rows), mapping)[0], "amount_minor") == [0, 2, 2, 1]


def test_other_ways_to_write_numbers_are_settings(tmp_path: Path) -> None:
    mapping = '[input]\ndelimiter = ";"\ndecimal = ","\nthousands = "."\n'
    mapping += mapping_with(amount_minor='{ column = "amount", strip = "€ " }')
    table = "id;when;card;shop;amount;fraud\np1;2026-05-01;c;m;€ 1.234,50;0\n"
    assert column(convert(tmp_path, table, mapping)[0], "amount_minor") == [123_450]


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["1.234,50", "1234,50", "1.00.000,00"], [123_450, 123_450, 10_000_000]),
        (["12,50", "12.50", "1234.5", "1.23.4,00", ".123,00", "1..234", "1.2345,00", "0.855", "00.855"], [1250]),
    ],
)
def test_what_separates_thousands_stands_nowhere_else(tmp_path: Path, texts: list[str], wanted: list[int]) -> None:
    # A price of 12.50 among those with a comma was 1,250.00, without a word; a share of 0.855 was 855.
    number = decimal("weight", 1, unit="kg", least=0, most=10**6, decimals=2)
    form = '[input]\ndelimiter = ";"\ndecimal = ","\nthousands = "."\n'
    rows = "".join(f"p{row};2026-05-01;c;m;{text};0\n" for row, text in enumerate(texts))
    table = f"id;when;card;shop;amount;fraud\n{rows}"
    payments, report = convert(tmp_path, table, form + MAPPING)
    assert (column(payments, "amount_minor"), report.refused) == (wanted, len(texts) - len(wanted))
    weighed = form + mapping_with(amount_minor="{ constant = 1 }", weight='"amount"')
    payments, _ = convert(tmp_path, table, weighed, payment=Payment(number).fields)
    assert column(payments, "weight") == [amount / 100 for amount in wanted]


@pytest.mark.parametrize(
    ("form", "unit", "wanted"),
    [
        ('[input]\ndecimal = ","\n', "major", "an amount of its currency, such as 1999,50"),
        ("", "minor", "a whole number of minor units from 0 to 100000000000"),
    ],
)
def test_a_refused_amount_is_told_in_the_unit_of_the_table(tmp_path: Path, form: str, unit: str, wanted: str) -> None:
    """The error for a table with 12,43 asked for whole numbers of minor units."""
    mapping = form + mapping_with(amount_minor=f'{{ column = "amount", unit = "{unit}" }}')
    _, report = convert(tmp_path, csv_of("p1,2026-05-01,c,m,many,0", "p2,2026-05-01,c,m,5,0"), mapping)
    assert report.reasons == {f"column amount, amount_minor: is no number; wanted {wanted}": 1}


def test_a_propensity_of_the_table_is_that_of_the_history(tmp_path: Path) -> None:
    # No field of a payment: no request brings it.
    rows = [f"p{n},2026-05-01,c,m,1,0,{text}" for n, text in enumerate(("0.25", "1", "", "0", "1.5", "x"))]
    payments, report = convert(tmp_path, csv_of(*rows, head=HEAD + ",kept"), mapping_with(propensity='"kept"'))
    assert column(payments, "propensity") == [0.25, 1.0, None]
    assert report.reasons == {
        "column kept, propensity: is no number; wanted a number above 0 and at most 1": 1,
        "column kept, propensity: is out of bounds; wanted a number above 0 and at most 1": 2,
    }
    kept = read_history(tmp_path / "out").propensity
    assert kept is not None
    assert kept.tolist() == [0.25, 1.0, 1.0]
    payments, _ = convert(tmp_path, csv_of(ROW))
    assert "propensity" not in payments[0]


def test_a_decimal_that_is_missing_is_not_out_of_bounds(tmp_path: Path) -> None:
    # A field from 1 to 9 refused the rows without a value.
    field = decimal("weight", 1, unit="kg", least=1, most=9)
    rows = [f"p{n},2026-05-01,c,m,1,0,{text}" for n, text in enumerate(("1", "", "0.99", "9"))]
    mapping = mapping_with(weight='"weight"')
    payments, report = convert(tmp_path, csv_of(*rows, head=HEAD + ",weight"), mapping, payment=Payment(field).fields)
    assert (column(payments, "weight"), report.refused) == ([1.0, None, 9.0], 1)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('"when"', "2026-05-01T12:00:00Z"),
        ('"when"', "2026-05-01 12:00"),
        ('"when"', "20260501T140000+0200"),
        ('{ column = "when", format = "seconds" }', "1777636800"),
        ('{ column = "when", format = "seconds" }', "1777636800.000000"),
        ('{ column = "when", format = "nanoseconds" }', "1777636800000000000"),
        ('{ column = "when", format = "hours", origin = "2026-05-01" }', "12"),
        ('{ column = "when", format = "days", origin = "2026-05-01" }', "0.5"),
        ('{ column = "when", format = "%d %B %Y %I:%M %p" }', "1 May 2026 12:00 PM"),
        ('{ column = "when", format = "%d/%b/%y %T", zone = "Europe/Berlin" }', "01/MAY/26 14:00:00"),
        ('{ column = "when", format = "%Y-%j %H:%M:%S.%f%z" }', "2026-121 07:00:00.000-05:00"),
        ('{ column = "when", zone = "-03:00" }', "2026-05-01 09:00"),
        ('{ column = "when", zone_column = "shop" }', "2026-05-01 21:00"),
    ],
)
def test_a_time_may_be_written_in_many_ways(tmp_path: Path, source: str, text: str) -> None:
    payments, _ = convert(tmp_path, csv_of(f"p1,{text},c,Asia/Tokyo,1,0"), mapping_with(event_time_ms=source))
    assert column(payments, "event_time_ms") == [MAY_1_NOON_MS]


def test_times_that_a_clock_leaves_out_or_has_twice_are_told_apart(tmp_path: Path) -> None:
    texts = ("2026-03-29 02:30", "2026-10-25 02:30", "2026-03-29 03:00", "2026-03-29 01:59")
    table = csv_of(*(f"p{number},{text},c,m,1,0" for number, text in enumerate(texts)))
    starts = {"first": "2026-10-25T00:30", "second": "2026-10-25T01:30"}
    for ambiguous, wanted in starts.items():
        source = f'{{ column = "when", zone = "Europe/Berlin", ambiguous = "{ambiguous}" }}'
        payments, report = convert(tmp_path, table, mapping_with(event_time_ms=source))
        times = {row["payment_id"]: datetime.fromtimestamp(row["event_time_ms"] / 1000, UTC) for row in payments}
        assert times["p1"].isoformat()[:16] == wanted
        assert (times["p2"] - times["p3"]).total_seconds() == 60
        assert [reason for reason in report.reasons if "leave out in spring" in reason]
    source = '{ column = "when", zone = "Europe/Berlin", ambiguous = "refuse" }'
    payments, report = convert(tmp_path, table, mapping_with(event_time_ms=source))
    assert (len(payments), report.refused) == (2, 2)


def test_a_card_number_is_refused_or_becomes_a_token(tmp_path: Path) -> None:
    table = csv_of(ROW, "p2,2026-05-01,4111111111111111,m1,1,0", "p3,2026-05-02,4111111111111111,m1,1,0")
    _, report = convert(tmp_path, table)
    assert "`hash = true` makes tokens" in next(iter(report.reasons))
    payments, report = convert(tmp_path, table, mapping_with(card_id='{ column = "card", hash = true }'), key=KEY)
    tokens = dict(zip(column(payments, "payment_id"), column(payments, "card_id"), strict=True))
    assert tokens["p2"] == tokens["p3"] != tokens["p1"]
    assert not any(b"4111111111111111" in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_hashing_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"mapping\.toml: card_id is hashed, which needs a key"):
        convert(tmp_path, csv_of(ROW), mapping_with(card_id='{ column = "card", hash = true }'))


def test_of_two_rows_with_one_id_the_first_stays(tmp_path: Path) -> None:
    late = "p1,2026-05-02T12:00:00Z,c1,m1,12.34,0"
    payments, report = convert(tmp_path, csv_of(late, ROW, late, "p2,2026-05-01,c,m,1,0"))
    assert column(payments, "event_time_ms")[-1] == MAY_1_NOON_MS + DAY_MS
    assert (report.payments, report.repeated, report.refused) == (2, 1, 1)
    assert report.examples == {
        "payment_id: is that of an earlier row with other values": [f"{tmp_path / 'table.csv'}, line 3"]
    }


def test_ids_are_made_of_positions_or_of_columns(tmp_path: Path) -> None:
    table = csv_of(ROW, ROW.replace("p1", "p2"))
    payments, _ = convert(tmp_path, table, mapping_with(payment_id='{ made_from = "position" }'))
    assert column(payments, "payment_id") == ["r000000000000", "r000000000001"]
    mapping = mapping_with(payment_id='{ columns = ["card", "when", "amount"] }')
    payments, report = convert(tmp_path, table, mapping)
    assert (len(payments), report.repeated) == (1, 1)


def test_refused_rows_are_listed_without_their_values(tmp_path: Path) -> None:
    rows = (ROW, "p2,soon,c1,m1,1,0", "p3,2026-05-01,c1,m1,1,0,more", "p4,2026-05-01,c1,,1,0", "p5,2026-05-01,c1,m,1,7")
    _, report = convert(tmp_path, csv_of(*rows))
    listed = (tmp_path / "out" / "refused.csv").read_text().splitlines()
    assert [line.split("table.csv,")[1].split(",")[:3] for line in listed[1:]] == [
        ["4", "", ""],
        ["3", "when", "event_time_ms"],
        ["5", "shop", "merchant_id"],
        ["6", "fraud", "label"],
    ]
    assert "soon" not in "".join(listed)
    assert (report.rows, report.payments, report.refused) == (5, 1, 4)


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)"])
def test_no_column_of_a_table_is_a_formula_in_the_list_of_refused_rows(tmp_path: Path, name: str) -> None:
    table = csv_of(ROW, "p2,2026-05-01,c1,,1,0").replace("shop", f'"{name}"')
    convert(tmp_path, table, mapping_with(merchant_id=f"{{ column = {json.dumps(name)} }}"))
    with (tmp_path / "out" / "refused.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1][2] == f"'{name}"


def test_too_many_refused_rows_leave_the_history_as_it_was(tmp_path: Path) -> None:
    convert(tmp_path, csv_of(ROW))
    before = (tmp_path / "out" / "payments.parquet").read_bytes()
    with pytest.raises(
        Misconfigured, match=r"1 of 2 rows were refused, and --refused-max allows 10 %.*line 3: column amount"
    ):
        convert(tmp_path, csv_of(ROW, "p2,2026-05-01,c,m,much,0"), refused_share_max=0.1)
    assert (tmp_path / "out" / "payments.parquet").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "outcomes.parquet", "payments.parquet", "refused.csv",
    ]  # fmt: skip


def test_labels_have_the_time_of_their_column_or_a_delay(tmp_path: Path) -> None:
    mapping = mapping_with().replace('delay = "7d"', 'time = "told"\nfraud_delay = "1d"\ngenuine_delay = "2d"')
    rows = ("p1,2026-05-01,c,m,1,1,2026-05-01T06:00Z", "p2,2026-05-01,c,m,1,1,", "p3,2026-05-01,c,m,1,0,")
    early = "p4,2026-05-01,c,m,1,1,2026-04-30"
    _, report = convert(tmp_path, csv_of(*rows, early, head=HEAD + ",told"), mapping)
    start = MAY_1_NOON_MS - DAY_MS // 2
    told = [(row["payment_id"], row["outcome_time_ms"] - start, row["label"]) for row in outcomes_of(tmp_path)]
    assert told == [("p1", DAY_MS // 4, "fraud"), ("p2", DAY_MS, "fraud"), ("p3", 2 * DAY_MS, "genuine")]
    assert list(report.reasons) == ["column told, label time: lies before its payment"]


def test_a_stated_unknown_label_reaches_the_history(tmp_path: Path) -> None:
    rows = [ROW.replace("p1,", f"p{n},")[:-1] + label for n, label in enumerate(("1", "0", "?", ""))]
    mapping = mapping_with().replace('genuine = ["0"]', 'genuine = ["0"]\nunknown = ["?"]')
    payments, report = convert(tmp_path, csv_of(*rows), mapping)
    assert column(payments, "never_labelled") == [False, False, True, True]
    assert (report.frauds, report.genuine, report.unknown) == (1, 1, 2)
    history = read_history(tmp_path / "out")
    assert history.never_labelled is not None
    assert history.never_labelled.tolist() == [False, False, True, True]
    # Genuine payments whose label is not known yet are not among them.
    payments, _ = convert(tmp_path, csv_of(*rows), mapping, now_ms=MAY_1_NOON_MS + DAY_MS)
    assert column(payments, "never_labelled") == [False, False, True, True]


def test_a_delay_depends_on_the_id_and_the_seed_alone(tmp_path: Path) -> None:
    rows = [f"p{number},2026-05-01,c,m,1,0" for number in range(200)]
    mapping = mapping_with().replace('delay = "7d"', 'delay = { median = "7d", sigma = 1 }\nseed = 3')
    convert(tmp_path, csv_of(*rows), mapping)
    one = {row["payment_id"]: row["outcome_time_ms"] for row in outcomes_of(tmp_path)}
    convert(tmp_path, csv_of(*reversed(rows)), mapping)
    assert one == {row["payment_id"]: row["outcome_time_ms"] for row in outcomes_of(tmp_path)}
    delays = sorted((known - MAY_1_NOON_MS) / DAY_MS + 0.5 for known in one.values())
    assert 5 < delays[100] < 10
    convert(tmp_path, csv_of(*rows), mapping.replace("seed = 3", "seed = 4"))
    assert one != {row["payment_id"]: row["outcome_time_ms"] for row in outcomes_of(tmp_path)}


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    when = [datetime(2026, 5, 1, 12, tzinfo=UTC), datetime(2026, 5, 2, 12, tzinfo=UTC)]
    columns: dict[str, list[Any]] = {
        "id": ["p1", "p2"],
        "card": [7, 8],
        "shop": [1.0, None],
        "amount": [12.34, 1.1],
        "fraud": [True, False],
    }
    for number, unit in enumerate(("ms", "us")):
        times = pa.array(when[number : number + 1], pa.timestamp(unit, tz="UTC"))
        rest = {name: values[number : number + 1] for name, values in columns.items()}
        pq.write_table(pa.table({"when": times, **rest}), folder / f"{number}.parquet")
    mapping = mapping_with().replace('["1"]', '["true"]').replace('["0"]', '["false"]')
    payments, report = convert(tmp_path, folder, mapping)
    assert [(row["card_id"], row["merchant_id"], row["amount_minor"]) for row in payments] == [("7", "1", 1234)]
    assert report.examples == {
        "column shop, merchant_id: is missing or empty; wanted printable text of 1 to 256 bytes": [
            f"{folder / '1.parquet'}, line 1"
        ]
    }


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()])
@pytest.mark.parametrize(
    ("size", "rows", "message"),
    [
        (2 << 20, 2, "column card holds a text of 2097152 bytes; wanted texts of at most 1048576 bytes"),
        (1 << 20, 1100, "column card holds 1153433600 bytes of text in 1100 rows; wanted at most 1073741824"),
    ],
)
def test_a_small_file_of_huge_texts_is_refused_before_they_are_written_out(
    tmp_path: Path, kind: pa.DataType, size: int, rows: int, message: str
) -> None:
    """One text, named in each row of a file of a kilobyte, took as many gigabytes as there are rows."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([b"z" * size]).cast(kind))
    others = {"id": [f"p{row}" for row in range(rows)], "shop": ["m"] * rows, "amount": [1.5] * rows}
    when = pa.array([datetime(2026, 5, 1, 12, tzinfo=UTC)] * rows, pa.timestamp("ms", tz="UTC"))
    path = tmp_path / "bomb.parquet"
    table = pa.table({**others, "card": texts, "when": when, "fraud": ["0"] * rows})
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 40_000
    with pytest.raises(Misconfigured, match=message):
        convert(tmp_path, path)


def test_declared_fields_get_typed_columns(tmp_path: Path) -> None:
    declared = (
        category("product", 1, ["a", "b"]), integer("age", 2, unit="days", least=0, most=9), money("fee", 3),
        flag("is_gift", 4), time("opened", 5), coordinates("home", 6), decimal("weight", 8, unit="kg", least=0, most=9),
        email("buyer", 9),
    )  # fmt: skip
    names = [attribute.name for attribute in Payment(*declared).attributes]
    sources_of = {name: f'"{name}"' for name in names}
    mapping = mapping_with(**{**sources_of, "buyer": '{ column = "buyer", hash = true }'})
    cells = "b,5,1.20,yes,2026-05-01,52.5,13.4,1.25,Ann@Example.com"
    table = csv_of(f"{ROW},{cells}", ROW.replace("p1", "p2") + "," * 9, head=f"{HEAD},{','.join(names)}")
    payments, _ = convert(tmp_path, table, mapping, payment=Payment(*declared).fields, key=KEY)
    assert [payments[1][name] for name in names] == [None] * 9
    assert [payments[0][name] for name in names[:-1]] == ["b", 5, 120, True, 1_777_593_600_000, 52.5, 13.4, 1.25]
    assert payments[0]["buyer"].endswith("@example.com")
    assert "nn" not in payments[0]["buyer"].removesuffix("@example.com")
    schema = pq.read_schema(tmp_path / "out" / "payments.parquet")
    assert [str(schema.field(name).type) for name in names] == [
        "string", "int64", "int64", "bool", "int64", "double", "double", "double", "string",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "table.csv is empty"),
        (HEAD.replace("shop,", "").encode(), "has no column 'shop', which the mapping names; it has id, when, card"),
        (f"{HEAD},shop\n".encode(), "has two columns 'shop'"),
        (csv_of(ROW).encode("utf-16"), r'line 1: is utf-16 text; say so: \[input\] encoding = "utf-16"'),
        (csv_of(ROW).encode("utf-16-le"), "line 1: holds NUL bytes, as UTF-16 has"),
        (csv_of(ROW, ROW.replace("c1", "Zoë")).encode("latin-1"), "line 3: is not UTF-8 text"),
        (csv_of(ROW, ROW.replace("c1", '"c1'), ROW).encode(), "line 3: a quote is opened and not closed"),
        (csv_of(ROW, "x" * (1 << 20) + ROW).encode(), "line 3: is longer than 1048576 characters"),
        (gzip.compress(csv_of(ROW).encode(), mtime=0), r"is no CSV file but gzip: let its name end in \.gz"),
        (b"PAR1 and more", r'is no CSV file but parquet: \[input\] format = "parquet"'),
    ],
)  # fmt: skip
def test_a_fault_of_a_whole_file_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(Misconfigured, match=said) as error:
        convert(tmp_path, content)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "payments.parquet").exists()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252"])
def test_other_encodings_are_settings(tmp_path: Path, encoding: str) -> None:
    content = csv_of(ROW.replace("c1", "Zoë")).encode(encoding)
    payments, _ = convert(tmp_path, content, f'[input]\nencoding = "{encoding}"\n{MAPPING}')
    assert column(payments, "card_id") == ["Zoë"]


def test_compressed_files_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "b.csv").write_text(csv_of(ROW.replace("p1", "p2")))
    (folder / "a.csv.gz").write_bytes(gzip.compress(csv_of(ROW).encode()))
    with pa.CompressedOutputStream(str(folder / "c.csv.zst"), "zstd") as file:
        file.write(csv_of(ROW.replace("p1", "p3"), "p4").encode())
    payments, report = convert(tmp_path, folder)
    assert column(payments, "payment_id") == ["p1", "p2", "p3"]
    assert list(report.examples.values()) == [[f"{folder / 'c.csv.zst'}, line 3"]]


def test_a_file_of_a_folder_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.csv").write_text(csv_of(ROW))
    (tmp_path / "parts" / "b.csv").write_text("id,when\n")
    with pytest.raises(Misconfigured, match=r"b\.csv: has no column 'card'"):
        convert(tmp_path, tmp_path / "parts")


SECOND = """
[label]
file = "{file}"
payment_id = "charge"
time = "reported"
genuine_delay = "30d"
"""


def with_labels_of(folder: Path, rows: str, more: str = "") -> str:
    """Returns a mapping whose labels are those of a second table."""
    (folder / "chargebacks.csv").write_text(f"charge,reported,why\n{rows}", encoding="utf-8")
    fields = MAPPING.partition("[label]")[0]
    return fields + SECOND.format(file=folder / "chargebacks.csv") + more


def test_labels_may_stand_in_a_second_table(tmp_path: Path) -> None:
    rows = [f"p{n},2026-05-01T12:00:00Z,c,m,1,0" for n in range(4)]
    mapping = with_labels_of(tmp_path, "p2,2026-05-09T00:00:00Z,x\np9,2026-05-09,x\np2,2026-05-03,x\n")
    _, report = convert(tmp_path, csv_of(*rows), mapping)
    assert (report.frauds, report.genuine, report.unknown, report.refused) == (1, 3, 0, 0)
    outcomes = outcomes_of(tmp_path)
    known = {row["payment_id"]: row["outcome_time_ms"] for row in outcomes}
    # The first row of a payment counts, and one that names no payment is nobody's.
    assert known["p2"] == 1_778_284_800_000
    assert known["p0"] == MAY_1_NOON_MS + 30 * DAY_MS


def test_a_second_table_may_say_what_each_payment_was(tmp_path: Path) -> None:
    more = 'others = "unknown"\ncolumn = "why"\nfraud = ["x"]\ngenuine = ["g"]\n'
    rows = [f"p{n},2026-05-01T12:00:00Z,c,m,1,0" for n in range(4)]
    mapping = with_labels_of(tmp_path, "p1,2026-05-09,x\np2,2026-05-09,g\np3,2026-05-09,?\n", more)
    _, report = convert(tmp_path, csv_of(*rows), mapping)
    assert (report.frauds, report.genuine, report.unknown, report.refused) == (1, 1, 1, 1)
    (reason,) = report.reasons
    assert reason.endswith("chargebacks.csv: why, label: is not one of the values that [label] lists")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (",2026-05-09,x\n", "chargebacks.csv, line 2, column charge: names no payment"),
        ("p1,2026-05-09\n", "chargebacks.csv, line 2: has 2 cells; wanted 3"),
        ("", "chargebacks.csv holds no row"),
    ],
)
def test_a_fault_of_the_table_of_labels_is_one_line(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        convert(tmp_path, csv_of(ROW), with_labels_of(tmp_path, rows))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_label_with_a_date_is_known_when_the_day_is_over(tmp_path: Path) -> None:
    # A fraud that was reported on its own day was refused, as if it was known before its payment.
    head = HEAD + ",reported"
    mapping = MAPPING + 'time = { column = "reported", zone = "Europe/Berlin" }\n'
    rows = ["p1,2026-05-01T12:00:00Z,c,m,1,1,2026-05-01", "p2,2026-05-01T12:00:00Z,c,m,1,1,2026-05-01T14:00:00"]
    table = csv_of(*rows, "p3,2026-05-01T12:00:00Z,c,m,1,1,2026-04-30", head=head)
    _, report = convert(tmp_path, table, mapping)
    known = [row["outcome_time_ms"] for row in outcomes_of(tmp_path)]
    assert known == [MAY_1_NOON_MS, MAY_1_NOON_MS + 10 * 3_600_000 - 1]
    assert report.reasons == {"column reported, label time: lies before its payment": 1}


def test_a_time_may_stand_in_two_columns(tmp_path: Path) -> None:
    mapping = mapping_with(event_time_ms='{ columns = ["day", "clock"], format = "%d.%m.%Y %H:%M", zone = "+02:00" }')
    rows = ["p1,01.05.2026,14:00,c,m,1,0", "p2,01.05.2026,,c,m,1,0", "p3,01.05.2026,noon,c,m,1,0"]
    payments, report = convert(tmp_path, csv_of(*rows, head="id,day,clock,card,shop,amount,fraud"), mapping)
    assert column(payments, "event_time_ms") == [MAY_1_NOON_MS]
    assert sorted(report.reasons) == [
        "column day + clock, event_time_ms: is no time of its format; wanted the format %d.%m.%Y %H:%M",
        "event_time_ms: is missing or 0; wanted milliseconds since 1970 UTC",
    ]


def test_an_amount_in_parentheses_or_with_its_sign_behind_it_is_no_payment(tmp_path: Path) -> None:
    rows = [f"p{n},2026-05-01,c,m,{text},0" for n, text in enumerate(("$5.00", "($5.00)", "$5.00-", "-5.00"))]
    _, report = convert(tmp_path, csv_of(*rows), mapping_with(amount_minor='{ column = "amount", strip = "$" }'))
    assert (report.payments, report.refused) == (1, 3)


def test_a_row_is_refused_on_the_line_where_it_begins(tmp_path: Path) -> None:
    # Blank lines and quoted line ends count as lines; a NUL and a lone return are no reason to stop.
    strange = (
        ROW.replace("c1", '"c\n1"'),
        "torn",
        "",
        ROW.replace("p1", "p\0"),
        ROW.replace("m1", '"m\r1"'),
        "torn",
        ROW,
    )
    _, report = convert(tmp_path, csv_of("", *strange).encode())
    places = [int(place.rpartition(" ")[2]) for places in report.examples.values() for place in places]
    assert (sorted(places), report.rows, report.refused) == ([3, 5, 7, 8, 10], 6, 5)


def test_a_table_of_refused_rows_alone_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no row of the table is a payment"):
        convert(tmp_path, csv_of("torn"))
    assert not (tmp_path / "out" / "payments.parquet").exists()


def test_an_exact_amount_has_any_number_of_zeros_and_exponents(tmp_path: Path) -> None:
    texts = ("12.340000000000000000000", "0.0001234e+5", "1234E-2", "0000000000000000000000012.34", "12.34e0")
    rows = [f"p{n},2026-05-01,c,m,{text},0" for n, text in enumerate(texts)]
    assert column(convert(tmp_path, csv_of(*rows))[0], "amount_minor") == [1234] * len(texts)
    wrong = ("12.34000000000000000000001", "1e-300", "1e300", "123456789012345678901234", "1e", "e5", "+", "1_0", "١٢")
    _, report = convert(tmp_path, csv_of(ROW, *(f"q{n},2026-05-01,c,m,{text},0" for n, text in enumerate(wrong))))
    assert report.refused == len(wrong)
