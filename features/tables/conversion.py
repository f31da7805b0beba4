"""Converts a table to a history, out of core: one pass over the table, one over the converted rows.

    files ─ parts ─► fields, refusals ─► rows on disk ─ DuckDB ─► rows with an id of an earlier row
                                                     └ sorted ─► payments.parquet, outcomes.parquet

The files get their names at the very end: a conversion that fails or is interrupted leaves a history unchanged.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paywarden.features.history.history import LABELS, OUTCOMES_FILE, PAYMENTS_FILE, first_line
from paywarden.features.tables.labels import FRAUD, UNKNOWN
from paywarden.features.tables.mapping import TableMapping
from paywarden.features.tables.ordered_rows import DEFAULT_MEMORY_MB, OrderedRows
from paywarden.features.tables.refusals import Reason, Refused
from paywarden.features.tables.sources import TableFiles
from paywarden.features.tables.table_fields import KNOWN_MS, LABEL, TableConverter
from paywarden.schemas.errors import Misconfigured

REFUSED_FILE = "refused.csv"
EXAMPLES = 3
"""How many rows of each reason are named."""
# The share of refused rows is judged only after this many rows.
_ROWS_TO_ESTIMATE = 100_000
_REASONS_MAX = 200
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
# Reasons in the message of a conversion that fails: one that hid the next would cost a run for each.
_REASONS_TOLD = 3
_USED_TWICE = Reason("", "payment_id", "is that of an earlier row with other values")


@dataclass
class ConversionReport:
    """The result of a conversion. `reasons` counts refused rows; `examples` names some by file and line."""

    rows: int = 0
    payments: int = 0
    frauds: int = 0
    genuine: int = 0
    first_ms: int = 0
    last_ms: int = 0
    repeated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """Returns how many rows were refused."""
        return self.reasons.total()

    @property
    def unknown(self) -> int:
        """Returns how many payments have no label."""
        return self.payments - self.frauds - self.genuine


@dataclass(frozen=True)
class ConversionBounds:
    """`refused_share_max` of the rows may be refused, and sorting takes `memory_mb` at most."""

    refused_share_max: float = 0.01
    memory_mb: int = DEFAULT_MEMORY_MB


DEFAULT_LIMITS = ConversionBounds()


def convert_table(
    files: TableFiles,
    converter: TableConverter,
    mapping: TableMapping,
    out: str | Path,
    *,
    limits: ConversionBounds = DEFAULT_LIMITS,
    progress: Callable[[int], object] = int,
) -> ConversionReport:
    """Write the two files of a history, and REFUSED_FILE if a row was refused, and report their content.

    `progress` gets the bytes of each part read. Raises Misconfigured, in one line, for a file that is no table, and
    when more rows were refused than `limits` allow. REFUSED_FILE then stays, the history is as it was.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as room:
            work = Path(room.enter_context(TemporaryDirectory(dir=folder, prefix=".converting-")))
            place = _Place(folder, work, room)
            return _Conversion(files, converter, mapping, place, limits, progress).run()
    except OSError as error:
        raise Misconfigured(f"cannot write a history to {folder}: {error.strerror or error}") from error
    except duckdb.Error as error:
        raise Misconfigured(f"cannot sort the rows in {folder}: {first_line(error)}") from error


class _Place(NamedTuple):
    """The folder of a history, the folder of unfinished files, and the resources to close at the end."""

    folder: Path
    work: Path
    room: ExitStack


class _Conversion:
    def __init__(
        self,
        files: TableFiles,
        converter: TableConverter,
        mapping: TableMapping,
        place: _Place,
        limits: ConversionBounds,
        progress: Callable[[int], object],
    ) -> None:
        folder, work, room = place
        self._files, self._converter, self._folder, self._limits = files, converter, folder, limits
        self._progress = progress
        self._report = ConversionReport()
        rows = OrderedRows(work, converter.schema, memory_mb=limits.memory_mb)
        self._rows = room.enter_context(closing(rows))
        # Ids made of positions are never used twice.
        self._has_ids = mapping.fields["payment_id"].made_from != "position"
        self._partial = {name: folder / f"{name}.partial" for name in (PAYMENTS_FILE, OUTCOMES_FILE, REFUSED_FILE)}
        for path in self._partial.values():
            room.callback(path.unlink, missing_ok=True)
        refused = room.enter_context(self._partial[REFUSED_FILE].open("w", encoding="utf-8", newline=""))
        self._refused_file, self._refused = refused, csv.writer(refused)
        self._refused.writerow(("file", "line", "column", "field", "reason"))

    def run(self) -> ConversionReport:
        self._read()
        self._check_limit()
        self._rows.end()
        if self._has_ids:
            self._drop_repeated()
            self._check_limit()
        self._write_payments()
        self._write_outcomes()
        for name in (PAYMENTS_FILE, OUTCOMES_FILE):
            self._partial[name].replace(self._folder / name)
        self._keep_refused()
        return self._report

    def _read(self) -> None:
        done = 0
        for rows in self._files.parts():
            made = self._converter.convert(rows)
            self._report.rows += rows.count
            self._rows.add(made.payments)
            for refused in made.refused:
                self._refuse(refused)
            done += rows.size
            self._progress(rows.size)
            if self._report.rows > _ROWS_TO_ESTIMATE and done:
                self._check_limit(expected_rows=self._report.rows * max(1.0, self._files.size / done))

    def _refuse(self, refused: Refused) -> None:
        name, reason, report = self._files.names[refused.file], refused.reason, self._report
        self._refused.writerow((_as_text(name), refused.line, _as_text(reason.column), reason.field, reason.text))
        said = str(reason)
        if said not in report.reasons and len(report.reasons) >= _REASONS_MAX:
            said = "other reasons"
        report.reasons[said] += 1
        examples = report.examples.setdefault(said, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{name}, line {refused.line}")

    def _drop_repeated(self) -> None:
        for one in self._rows.repeated():
            if one.is_same:
                self._report.repeated += 1
            else:
                self._refuse(Refused(one.file, one.line, _USED_TWICE))

    def _check_limit(self, expected_rows: float = 0.0) -> None:
        report, most = self._report, self._limits.refused_share_max
        if report.refused <= most * max(report.rows, expected_rows):
            return
        self._keep_refused()
        reasons = [
            f"{count:,} of them, as {report.examples[reason][0]}: {reason}"
            for reason, count in report.reasons.most_common(_REASONS_TOLD)
        ]
        raise Misconfigured(
            f"{report.refused:,} of {report.rows:,} rows were refused, and --refused-max allows {100 * most:g} %. "
            f"{'. '.join(reasons)}. {self._folder / REFUSED_FILE} lists them all"
        )

    def _keep_refused(self) -> None:
        self._refused_file.close()
        if self._report.refused:
            self._partial[REFUSED_FILE].replace(self._folder / REFUSED_FILE)
        else:
            (self._folder / REFUSED_FILE).unlink(missing_ok=True)

    def _write_payments(self) -> None:
        report = self._report
        kept = pa.schema([one for one in self._converter.schema if not one.name.startswith("@")])
        with _writer(self._partial[PAYMENTS_FILE], kept) as writer:
            for table in self._rows.sorted(kept.names, "event_time_ms"):
                writer.write_table(table)
                times = table["event_time_ms"]
                report.first_ms = report.first_ms or int(times[0].as_py())
                report.last_ms = int(times[-1].as_py())
                report.payments += len(table)
        if report.payments == 0:
            raise Misconfigured(f"{self._files.names[0]}: no row of the table is a payment")

    def _write_outcomes(self) -> None:
        schema = pa.schema(
            [("payment_id", pa.string()), ("outcome_time_ms", pa.int64()), ("label", pa.string()),
             ("source", pa.string())]
        )  # fmt: skip
        names = pa.array(LABELS)
        with _writer(self._partial[OUTCOMES_FILE], schema) as writer:
            known = self._rows.sorted(["payment_id", KNOWN_MS, LABEL], f'"{KNOWN_MS}"', f'"{LABEL}" <> {UNKNOWN}')
            for table in known:
                label = np.asarray(table[LABEL].to_numpy())
                self._report.frauds += int((label == FRAUD).sum())
                self._report.genuine += int((label != FRAUD).sum())
                columns = [table["payment_id"], table[KNOWN_MS], names.take(pa.array(label)),
                           pa.nulls(len(table), pa.string())]  # fmt: skip
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _as_text(name: str) -> str:
    """Returns the name of a file or column as a cell that a spreadsheet shows and does not calculate."""
    return f"'{name}" if name.startswith(_FORMULA_SIGNS) else name


def _writer(path: Path, schema: pa.Schema) -> Any:
    # Payment ids never repeat: a dictionary of them would hold the whole column twice.
    repeating = [one.name for one in schema if one.name != "payment_id"]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeating)
