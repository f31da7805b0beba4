"""Small tables to convert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from paywarden.features.tables.columns.label_table import LabelTable
from paywarden.features.tables.conversion import ConversionBounds, ConversionReport, convert_table
from paywarden.features.tables.mapping import parse_mapping
from paywarden.features.tables.sources import TableFiles
from paywarden.features.tables.table_fields import TableConverter
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields

HEAD = "id,when,card,shop,amount,fraud"
ROW = "p1,2026-05-01T12:00:00Z,c1,m1,12.34,0"
MAPPING = """
[fields]
payment_id = "id"
event_time_ms = "when"
card_id = "card"
merchant_id = "shop"
amount_minor = "amount"
currency = { constant = "EUR" }
[label]
column = "fraud"
fraud = ["1"]
genuine = ["0"]
delay = "7d"
"""
NOW_MS = 1_900_000_000_000
MAY_1_NOON_MS = 1_777_636_800_000


def mapping_with(**fields: str) -> str:
    """Returns MAPPING with other sources of some fields, as TOML."""
    lines = [line for line in MAPPING.splitlines() if line.partition(" =")[0] not in fields]
    lines[lines.index("[fields]") + 1 : lines.index("[fields]") + 1] = [
        f"{name} = {toml}" for name, toml in fields.items()
    ]
    return "\n".join(lines)


def convert(
    folder: Path,
    table: Path | str | bytes,
    mapping: str = MAPPING,
    *,
    payment: PaymentFields = TABLE_ALONE,
    refused_share_max: float = 1.0,
    key: bytes = b"",
    now_ms: int = NOW_MS,
) -> tuple[list[dict[str, Any]], ConversionReport]:
    """Returns the payments of a table, which may be a path or the content of a CSV file, and the report."""
    if not isinstance(table, Path):
        path = folder / "table.csv"
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
        table = path
    parsed = parse_mapping(mapping, "mapping.toml", payment)
    files = TableFiles(table, parsed.input, parsed.columns)
    has_labels = parsed.label is not None and parsed.label.file
    labels = LabelTable(parsed.label) if parsed.label is not None and has_labels else None
    converter = TableConverter(parsed, key, now_ms=now_ms, labels=labels)
    limits = ConversionBounds(refused_share_max)
    report = convert_table(files, converter, parsed, folder / "out", limits=limits)
    return pq.read_table(folder / "out" / "payments.parquet").to_pylist(), report


def csv_of(*rows: str, head: str = HEAD) -> str:
    """Returns a CSV file's text."""
    return "\n".join([head, *rows, ""])


def outcomes_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the outcomes that `convert` wrote."""
    rows: list[dict[str, Any]] = pq.read_table(folder / "out" / "outcomes.parquet").to_pylist()
    return rows


def column(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """Returns a column of rows."""
    return [row[name] for row in rows]
