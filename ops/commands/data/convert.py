"""`paywarden convert`: other data to Paywarden's two files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.ops.progress import progress_bar
from paywarden.ops.reporting import printable, report
from paywarden.ops.times import now_ms, spoken
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.tables.conversion import ConversionReport
    from paywarden.features.tables.mapping import TableMapping
    from paywarden.schemas.payment_fields import PaymentFields

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s?%")
# Reasons that a terminal shows. refused.csv has all.
_REASONS_SHOWN = 12


@click.group()
def convert() -> None:
    """Convert other data to Paywarden's two files."""


@convert.command("handbook")
@click.option("--input", "input_file", type=click.Path(), required=True, help="The book's table: one Parquet file.")
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder for the two files.")
@needs("history")
def convert_handbook(input_file: str, out: str) -> None:
    """Convert the table of the Fraud Detection Handbook.

    Its customers become cards, its terminals merchants.
    """
    from paywarden.features.datasets.handbook import convert_handbook as convert_file

    counts = convert_file(input_file, out)
    click.echo(f"{counts.payments} payments, {counts.frauds} frauds, {counts.cards} cards in {out}")


@convert.command("table")
@click.option("--input", "table", type=click.Path(), required=True, help="CSV or Parquet file, or a folder of these.")
@click.option("--map", "mapping_file", type=click.Path(dir_okay=False), help="Says which column is which field (TOML).")
@click.option("--out", "--output", "out", type=click.Path(file_okay=False), help="Folder for the two files.")
@click.option("--guess", is_flag=True, help="Write a first mapping to the file of --map, from the table's first rows.")
@click.option(
    "--key", "key_file", type=click.Path(dir_okay=False), help="File of 32 hex digits that makes tokens of ids."
)
@click.option(
    "--refused-max", metavar="SHARE", default="1%", show_default=True, help="Fail if more rows than this are refused."
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the counts to this file.")
@click.pass_obj
@needs("history")
def convert_any_table(
    source: Source,
    table: str,
    mapping_file: str | None,
    out: str | None,
    guess: bool,
    key_file: str | None,
    refused_max: str,
    json_file: str | None,
) -> None:
    """Convert any table of payments, CSV or Parquet.

    It may be larger than memory. First let --guess write a mapping, and read it: what a column means is yours to say.
    Then convert. Rows that are no payments are listed in refused.csv, with file, line, column and reason.
    """
    from paywarden.ops import wiring

    fields = wiring.catalogue(source).payment.fields
    if guess:
        _write_guess(table, mapping_file or "mapping.toml", fields)
        return
    if mapping_file is None or out is None:
        raise click.UsageError("say --map FILE and --out DIR, or --guess for a first mapping")
    share = _share(refused_max)
    from paywarden.features.tables.mapping import read_mapping

    _convert(source, table, read_mapping(mapping_file, fields), out, share, key_file, json_file)


def _write_guess(table: str, mapping_file: str, fields: PaymentFields) -> None:
    from paywarden.features.tables.guessing.guess import guess_mapping

    path = Path(mapping_file)
    if path.exists():
        raise Misconfigured(f"{path} is there already: take it away, or name another file with --map")
    guessed = guess_mapping(table, fields)
    _write(path, guessed.mapping)
    click.echo(f"{path}: {len(guessed.found)} of {guessed.column_count} columns are fields of a payment")
    for line in guessed.found:
        click.echo(f"  {printable(line)}")
    for line in guessed.lacking:
        click.echo(f"not found: {printable(line)}")
    if guessed.payment:
        fields_file = path.with_name("payment.py.suggested")
        _write(fields_file, guessed.payment)
        _write(path.with_name("catalogue.py.suggested"), guessed.catalogue)
        click.echo(f"{fields_file}: fields of your own for {guessed.declared_count} columns more")
        click.echo(
            f"{path.with_name('catalogue.py.suggested')}: the packaged features, and one of each of these fields"
        )
        if guessed.left_out_count:
            click.echo(f"  and {guessed.left_out_count} columns for which a payment has no room: choose in that file")
    click.echo("Read them: a guess knows names and values, not what they mean.")


def _convert(
    source: Source,
    table: str,
    mapping: TableMapping,
    out: str,
    refused_share_max: float,
    key_file: str | None,
    json_file: str | None,
) -> None:
    from paywarden.features.history.payment_columns import PAYMENTS_FILE
    from paywarden.features.tables.columns.label_table import LabelTable
    from paywarden.features.tables.conversion import ConversionBounds, convert_table
    from paywarden.features.tables.sources import TableFiles
    from paywarden.features.tables.table_fields import TableConverter

    files = TableFiles(table, mapping.input, mapping.columns, mapping=mapping.name)
    currencies = wiring.stores.rate_table(source).currencies
    has_labels = mapping.label is not None and mapping.label.file
    labels = LabelTable(mapping.label, mapping=mapping.name) if mapping.label is not None and has_labels else None
    converter = TableConverter(mapping, _key(key_file), now_ms=now_ms(), labels=labels)
    with progress_bar("bytes", files.size) as progress:
        done = convert_table(
            files,
            converter,
            mapping,
            out,
            limits=ConversionBounds(refused_share_max),
            progress=progress,
        )
    result = _counts(done)
    if labels is not None:
        result |= {"labels": labels.payment_count, "labels_without_payment": labels.unmet_count}
    without_rate = _without_rate(Path(out) / PAYMENTS_FILE, currencies)
    result["no_rate"] = without_rate.total()
    report(result, None)
    _print_refused(done, Path(out))
    if without_rate:
        named = ", ".join(f"{code} {count:,}" for code, count in without_rate.most_common(_REASONS_SHOWN))
        click.echo(
            f"payments without an exchange rate in [features] rates, whose amounts are missing: {named}", err=True
        )
    if not done.frauds:
        why = "the mapping has no [label]" if mapping.label is None else "no row has a value of [label] fraud"
        click.echo(f"WARNING: no payment is known to be a fraud: {why}. Nothing can be trained or measured.", err=True)
    if json_file is not None:
        refused = {"refused_by_reason": dict(done.reasons.most_common())}
        _write_json(json_file, {**result, **refused})


def _without_rate(payments: Path, currencies: frozenset[str]) -> Counter[str]:
    """Returns how many payments each currency without an exchange rate has."""
    import pyarrow.parquet as pq

    found = Counter[str]()
    with pq.ParquetFile(payments) as file:
        for part in file.iter_batches(columns=["currency"]):
            for one in part["currency"].value_counts().to_pylist():
                found[one["values"]] += one["counts"]
    return Counter({code: count for code, count in found.items() if code not in currencies})


def _counts(done: ConversionReport) -> dict[str, Any]:
    return {
        "rows": done.rows,
        "payments": done.payments,
        "frauds": done.frauds,
        "genuine": done.genuine,
        "not_known": done.unknown,
        "repeated": done.repeated,
        "refused": done.refused,
        "from": spoken(done.first_ms),
        "to": spoken(done.last_ms),
    }


def _print_refused(done: ConversionReport, out: Path) -> None:
    for reason, count in done.reasons.most_common(_REASONS_SHOWN):
        click.echo(f"refused {count:,}: {printable(reason)} ({printable(done.examples[reason][0])})", err=True)
    if len(done.reasons) > _REASONS_SHOWN:
        click.echo(f"and {len(done.reasons) - _REASONS_SHOWN} reasons more: {out / 'refused.csv'}", err=True)


def _share(text: str) -> float:
    """Returns the share of a text such as 1% or 0.5 %."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None or float(match[1]) > 100:
        raise click.UsageError(f"--refused-max: wanted a share such as 1% or 0.05%, got {text!r}")
    return float(match[1]) / 100


def _key(path: str | None) -> bytes:
    """Returns the key of a file; none without a file. Raises Misconfigured, without a word of the content."""
    if path is None:
        return b""
    from paywarden.features.catalogue.identity import KEY_BYTES
    from paywarden.schemas.key_files import read_hex_key

    key = read_hex_key("--key", path)
    if len(key) != KEY_BYTES:
        raise Misconfigured(f"--key: {path} must hold {2 * KEY_BYTES} hex digits (openssl rand -hex {KEY_BYTES})")
    return key


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"cannot write {path}: {error.strerror or error}") from error


def _write_json(path: str, content: Mapping[str, Any]) -> None:
    import json

    _write(Path(path), json.dumps(content, indent=2) + "\n")
