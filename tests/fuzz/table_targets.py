"""Targets for tables of payments that a project brings along: CSV, Parquet, and the mapping of their columns."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.targets import Target


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="paywarden-fuzz-"))


def table_mapping() -> Target:
    """A mapping, and what it makes of a small table."""
    from paywarden.features.tables.mapping import parse_mapping
    from paywarden.schemas.errors import Misconfigured
    from tests.unit.features.tables.tables import HEAD, ROW, convert, csv_of

    folder = _folder()
    table = csv_of(ROW, ROW.replace("p1", "p2").replace("12.34", "x"), head=HEAD)

    def target(data: bytes) -> None:
        text = data.decode(errors="replace")
        try:
            parse_mapping(text, "mapping.toml")
        except Misconfigured:
            return
        with suppress(Misconfigured):
            convert(folder, table, text, key=b"k" * 32)

    return target


def _table_mapping() -> Iterator[bytes]:
    from tests.unit.features.tables.tables import MAPPING, mapping_with

    yield MAPPING.encode()
    yield mapping_with(
        event_time_ms='{ column = "when", format = "%d/%m/%Y %H:%M", zone = "Europe/Berlin", ambiguous = "second" }',
        card_id='{ column = "card", hash = true, prefix = "c" }',
        channel='{ column = "shop", values = { W = "ecom" }, other = "refuse" }',
    ).encode()
    yield ('[input]\nmissing = ["NULL"]\ndelimiter = ";"\ndecimal = ","\nencoding = "latin-1"\n' + MAPPING).encode()
    yield mapping_with(event_time_ms='{ column = "when", format = "hours", origin = "2020-01-01T00:00:00Z" }').encode()
    yield (MAPPING.replace('delay = "7d"', 'fraud_delay = { p50 = "5d", p90 = "30d" }\ngenuine_delay = "60d"')).encode()
    yield b'[input]\nencoding = "hex"\n' + MAPPING.encode()
    yield b"a = " + b"[" * 3000


def csv_table() -> Target:
    """A CSV file, plain or compressed, as its first byte says: guessed, and converted."""
    from paywarden.features.tables.guessing.guess import guess_mapping
    from paywarden.schemas.errors import Misconfigured
    from paywarden.schemas.payment_fields import TABLE_ALONE
    from tests.unit.features.tables.tables import convert

    folder = _folder()
    endings = (".csv", ".tsv", ".csv.gz", ".csv.zst", ".csv.bz2", ".txt")

    def target(data: bytes) -> None:
        path = folder / f"table{endings[data[0] % len(endings) if data else 0]}"
        path.write_bytes(data[1:])
        with suppress(Misconfigured):
            guess_mapping(path, TABLE_ALONE)
        with suppress(Misconfigured):
            convert(folder, path)
        path.unlink()
        shutil.rmtree(folder / "out", ignore_errors=True)

    return target


def _csv_table() -> Iterator[bytes]:
    import gzip

    from tests.unit.features.tables.tables import HEAD, ROW, csv_of

    usual = csv_of(ROW, ROW.replace("p1", '"p""2"'), ROW.replace("p1", "p3"), head=HEAD).encode()
    yield b"\0" + usual
    yield b"\2" + gzip.compress(usual)
    yield b"\0\xef\xbb\xbf" + usual.replace(b"\n", b"\r\n")
    yield b"\0" + usual.decode().encode("utf-16")
    yield b"\0" + usual + b'p4,"not closed\n'
    yield b"\0" + usual.replace(b",", b";")
    yield b"\0" + usual.replace(b"12.34", b"1e400").replace(b"2026", b"9" * 30)


def parquet_table() -> Target:
    """A Parquet file with other bytes somewhere (`file_targets.patched`): guessed, and converted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from paywarden.features.history.history import read_history
    from paywarden.features.tables.guessing.guess import guess_mapping
    from paywarden.schemas.errors import Misconfigured
    from paywarden.schemas.payment_fields import TABLE_ALONE
    from tests.fuzz.file_targets import patched
    from tests.unit.features.tables.tables import HEAD, ROW, convert

    folder = _folder()
    path = folder / "table.parquet"
    names, cells = HEAD.split(","), ROW.split(",")
    table = pa.table({name: [cell] * 3 for name, cell in zip(names, cells, strict=True)})
    pq.write_table(table, path)
    whole = path.read_bytes()
    convert(folder, path)
    history = folder / "history"
    shutil.copytree(folder / "out", history)
    payments = (history / "payments.parquet").read_bytes()

    def target(data: bytes) -> None:
        path.write_bytes(patched(whole, data))
        with suppress(Misconfigured):
            guess_mapping(path, TABLE_ALONE)
        with suppress(Misconfigured):
            convert(folder, path)
        shutil.rmtree(folder / "out", ignore_errors=True)
        (history / "payments.parquet").write_bytes(patched(payments, data))
        with suppress(Misconfigured):
            read_history(history)

    return target


def _parquet_table() -> Iterator[bytes]:
    yield b"\0\0\0\0"
    yield b"\1\0\0\0PAR1"
    for place in range(40, 1200, 130):
        yield b"\1" + place.to_bytes(3, "little") + b"\xff"
        yield b"\0" + place.to_bytes(3, "little") + b"PAR1"


TARGETS: dict[str, Callable[[], Target]] = {make.__name__: make for make in (table_mapping, csv_table, parquet_table)}
SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "table_mapping": _table_mapping,
    "csv_table": _csv_table,
    "parquet_table": _parquet_table,
}
