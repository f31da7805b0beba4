"""A table that becomes a history, held against a plain reading of the same bytes: Python's csv, decimal, zoneinfo."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.history.history import read_history
from paywarden.features.tables import sources
from paywarden.features.tables.conversion import ConversionBounds, convert_table
from paywarden.features.tables.mapping import parse_mapping
from paywarden.features.tables.sources import TableFiles
from paywarden.features.tables.table_fields import TableConverter
from paywarden.schemas.payment_fields import FIELD

MAPPING = """
[input]
missing = ["NULL"]

[fields]
payment_id = "id"
event_time_ms = { column = "when", format = "%d/%m/%Y %H:%M:%S", zone = "Europe/Berlin" }
card_id = "card"
merchant_id = { column = "shop", prefix = "m-" }
amount_minor = "amount"
currency = "money"
mcc = "mcc"
channel = { column = "entry", values = { W = "ecom", C = "pos" }, other = "refuse" }
declined = "declined"
utc_offset_minutes = { from_zone = true }

[label]
column = "fraud"
fraud = ["1", "chargeback"]
genuine = ["0"]
unknown = ["?"]
time = { column = "told" }
delay = "7d"
"""
COLUMNS = ("id", "when", "card", "shop", "amount", "money", "mcc", "entry", "declined", "fraud", "told", "note")
BERLIN = ZoneInfo("Europe/Berlin")
DIGITS = {"EUR": 2, "JPY": 0, "USD": 2}
NOW_MS = 1_900_000_000_000
BLANKS = " \t\r\n\v\f"


def _mostly(usual: st.SearchStrategy[str], *strange: str) -> st.SearchStrategy[str]:
    return st.integers(0, 39).flatmap(lambda number: usual if number else st.sampled_from(["", "NULL", *strange]))


_WHEN = st.integers(0, 3 * 86_400).map(lambda second: datetime(2026, 3, 28) + timedelta(seconds=second))
CELLS = st.tuples(
    _mostly(st.integers(0, 30).map("p{}".format), "4111111111111111", "a\0b", "p" * 300, "é"),
    _mostly(_WHEN.map("{:%d/%m/%Y %H:%M:%S}".format), "29/03/2026 02:30:00", "25/10/2026 02:30:00", "soon",
            "31/02/2026 00:00:00", "2026-03-29 12:00:00", "01/01/1999 00:00:00", "29/03/2026 12:00"),
    _mostly(st.sampled_from(["c1", "c2", "ü3"]), "4111 1111 1111 1111", "378282246310005"),
    _mostly(st.sampled_from(["1", "2", " 3 "]), "a,b", 'a "b"', "a\nb"),
    _mostly(st.decimals(0, 10_000, places=2).map(str), "-1", "1.005", "1.500", "1e2", "1.5E+1", "nan", "9" * 30,
            "1.2.3", "+7", ".5", "5.", ".", "12 EUR", "100000000000.00", "1e400"),
    _mostly(st.sampled_from(["EUR", "JPY", "USD"]), "eur", "XXX", "EURO"),
    _mostly(st.sampled_from(["5411", "742"]), "12345", "57a1"),
    _mostly(st.sampled_from(["W", "C"]), "ecom"),
    _mostly(st.sampled_from(["true", "N", "0"]), "maybe"),
    _mostly(st.sampled_from(["0", "1", "?", "chargeback"]), "2"),
    _mostly(st.just(""), "2026-04-01T00:00:00Z", "2026-03-01", "2026-03-31 10:00+02:00", "2099-01-01", "late"),
    st.sampled_from(["", "a note", 'with "quotes"', "two\nlines", "a, b", "\r\n"]),
)  # fmt: skip


class _Read(NamedTuple):
    payments: list[dict[str, Any]]
    outcomes: list[tuple[int, int, str, str]]
    refused: list[int]
    repeated: int


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(CELLS, st.integers(0, 19), st.booleans()), min_size=8, max_size=30), st.booleans(), st.booleans()
)
def test_a_mangled_table_becomes_what_a_plain_reading_gives(
    rows: list[tuple[tuple[str, ...], int, bool]], has_bom: bool, has_returns: bool
) -> None:
    end = "\r\n" if has_returns else "\n"
    text = end.join([",".join(COLUMNS), *(_line(*row) for row in rows)])
    wanted = _plainly_read(text)
    with tempfile.TemporaryDirectory() as folder, patch.object(sources, "_CSV_ROWS", 3):
        table, out = Path(folder) / "table.csv", Path(folder) / "out"
        table.write_bytes(b"\xef\xbb\xbf" * has_bom + text.encode())
        mapping = parse_mapping(MAPPING, "mapping.toml")
        files = TableFiles(table, mapping.input, mapping.columns)
        converter = TableConverter(mapping, now_ms=NOW_MS)
        limits = ConversionBounds(1.0)
        if not wanted.payments:
            return
        report = convert_table(files, converter, mapping, out, limits=limits)
        payments = pq.read_table(out / "payments.parquet").to_pylist()
        outcomes = pq.read_table(out / "outcomes.parquet").to_pylist()
        refused = _refused_lines(out / "refused.csv")
        assert len(read_history(out)) == len(payments)
    assert payments == wanted.payments
    assert [(one["outcome_time_ms"], one["payment_id"], one["label"]) for one in outcomes] == [
        (known_ms, payment_id, label) for known_ms, _, payment_id, label in wanted.outcomes
    ]
    assert sorted(refused) == sorted(wanted.refused)
    assert (report.refused, report.repeated) == (len(wanted.refused), wanted.repeated)
    assert report.rows == len(payments) + report.refused + report.repeated


def _line(cells: tuple[str, ...], torn: int, quotes: bool) -> str:
    written = ['"' + cell.replace('"', '""') + '"' if quotes or _needs_quotes(cell) else cell for cell in cells]
    return ",".join(written[:-1] if torn == 0 else [*written, "more"] if torn == 1 else written)


def _needs_quotes(cell: str) -> bool:
    return any(character in cell for character in ',"\n\r')


def _refused_lines(path: Path) -> list[int]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [int(row["line"]) for row in csv.DictReader(file)]


def _plainly_read(text: str) -> _Read:
    reader = csv.reader(io.StringIO(text, newline=""))
    next(reader)
    kept: dict[str, dict[str, Any]] = {}
    labels: dict[str, tuple[int, str] | None] = {}
    order: dict[str, tuple[int, int]] = {}
    refused, repeated, number, line = [], 0, 0, reader.line_num + 1
    for cells in reader:
        start, line = line, reader.line_num + 1
        if not cells:
            continue
        number += 1
        payment = _payment(cells) if len(cells) == len(COLUMNS) else None
        if payment is None:
            refused.append(start)
            continue
        fields, label = payment
        name = fields["payment_id"]
        if name not in kept:
            kept[name], labels[name], order[name] = fields, label, (fields["event_time_ms"], number)
        elif (kept[name], labels[name]) == payment:
            repeated += 1
        else:
            refused.append(start)
    names = sorted(kept, key=order.__getitem__)
    told = [(*label, name) for name in names if (label := labels[name]) is not None]
    outcomes = sorted((known_ms, order[name][1], name, said) for known_ms, said, name in told)
    return _Read([kept[name] for name in names], outcomes, refused, repeated)


def _payment(cells: list[str]) -> tuple[dict[str, Any], tuple[int, str] | None] | None:
    """Returns the fields and the label of a row; None for one to refuse."""
    trimmed = (cell.strip(BLANKS) for cell in cells)
    raw = dict(zip(COLUMNS, (None if cell in ("", "NULL") else cell for cell in trimmed), strict=True))
    moment, currency = _local(raw["when"]), (raw["money"] or "").upper() or None
    amount = _amount(raw["amount"], DIGITS.get(currency or "", 2))
    if moment is None or amount is None or currency not in DIGITS:
        return None
    entry, declined, said = raw["entry"], raw["declined"], raw["fraud"]
    if entry not in (None, "W", "C") or declined not in (None, "true", "N", "0"):
        return None
    if said not in (None, "0", "1", "?", "chargeback"):
        return None
    mcc = raw["mcc"].rjust(4, "0") if raw["mcc"] is not None and raw["mcc"].isdigit() else raw["mcc"]
    event_ms = round(moment.timestamp() * 1000)
    fields = {
        "payment_id": raw["id"],
        "event_time_ms": event_ms,
        "card_id": raw["card"],
        "merchant_id": None if raw["shop"] is None else f"m-{raw['shop']}",
        "device_id": None,
        "ip": None,
        "amount_minor": amount,
        "currency": currency,
        "mcc": mcc,
        "country": None,
        "channel": {None: None, "W": "ecom", "C": "pos"}[entry],
        "utc_offset_minutes": int(moment.utcoffset().total_seconds() // 60),  # type: ignore[union-attr]
        "declined": None if declined is None else declined == "true",
    }
    if any(FIELD[name].problem_of(value) for name, value in fields.items()):
        return None
    fields["never_labelled"] = said in (None, "?")
    told = raw["told"]
    if told == "late":
        return None
    known = event_ms + 7 * 86_400_000
    if told is not None:
        parsed = datetime.fromisoformat(told)
        known = round((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)
        if known < event_ms and said in ("0", "1", "chargeback"):
            return None
    label = None if said in (None, "?") or known > NOW_MS else "genuine" if said == "0" else "fraud"
    return fields, None if label is None else (known, label)


def _local(text: str | None) -> datetime | None:
    try:
        moment = datetime.strptime(text or "", "%d/%m/%Y %H:%M:%S").replace(tzinfo=BERLIN)
    except ValueError:
        return None
    is_there = moment.astimezone(UTC).astimezone(BERLIN).replace(tzinfo=None) == moment.replace(tzinfo=None)
    return moment if is_there else None


def _amount(text: str | None, digits: int) -> int | None:
    if text is None or not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        return None
    scaled = Decimal(text) * 10**digits
    return int(scaled) if scaled == scaled.to_integral_value() and abs(scaled) < 10**18 else None
