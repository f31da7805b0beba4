"""Opens a history that is larger than memory: its columns lie in files, its distinct texts in memory.

    payments.parquet ─ part by part ─► columns of numbers and ids' bytes, in files (features/history/history_columns.py)
                                    └► a dictionary of each text column: cards, merchants, devices, addresses …
    outcomes.parquet ─ part by part ─► times and labels in files ─ ids (features/history/payment_ids.py) ─► rows

The result equals that of `read_history`, number for number, and the same histories are refused with the same messages.

- Disk: a payment takes 72 bytes and its id, and 8 more until outcomes are looked up. A declared text takes 4 bytes
  more, any other declared field 8. An outcome takes 17 bytes, and until then 16 and an id more.
- Memory: a distinct text takes about 150 bytes while the files are read; afterwards its length and 4 bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.history.declared_columns import (
    band_columns,
    codes_of,
    derived_column,
    domain_hashes,
    holds_hashes,
    in_small_letters,
    refuse_wrong_values,
    takes_hashes,
    values_of,
)
from paywarden.features.history.history import (
    ABOUT_LABELS,
    OUTCOME_COLUMNS,
    OUTCOMES_FILE,
    PAYMENT_COLUMNS,
    REQUIRED,
    History,
    absent_columns,
    check_columns,
    checked_numbers,
    first_line,
    fraud_flags,
    never_labelled,
    offset_codes,
    parts_of,
    propensities,
    read_columns,
    refuse_first,
    refuse_unsorted,
    sorted_times,
)
from paywarden.features.history.history_columns import MmapAllocator
from paywarden.features.history.payment_columns import (
    PAYMENTS_FILE,
    Coded,
    Int64Array,
    flag_codes,
    plain_texts,
    refuse_wrong_text,
)
from paywarden.features.history.payment_ids import Ids, find_rows, first_repeated, hash_texts
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import FIELD, FIELDS, TABLE_ALONE, Form, PaymentField, PaymentFields

_PART_ROWS = 1 << 18
_CODED = tuple(field.name for field in FIELDS if field.is_text and field.name != "payment_id")


def open_history(
    directory: str | Path,
    room: MmapAllocator,
    fields: PaymentFields = TABLE_ALONE,
    *,
    part_rows: int = _PART_ROWS,
) -> History:
    """Returns both files as columns in `room`. `fields` are those of a payment.

    Raises Misconfigured that names the file and column of an error.
    """
    with ExitStack() as files:
        columns, absent = read_columns(fields), (*absent_columns(fields), *ABOUT_LABELS)
        payments = files.enter_context(_HistoryFile(Path(directory) / PAYMENTS_FILE, columns, absent))
        outcomes = files.enter_context(_HistoryFile(Path(directory) / OUTCOMES_FILE, OUTCOME_COLUMNS))
        made = _payments(payments, room, files, part_rows, fields)
        ids, event_time_ms = made.ids.whole(), made.numbers["event_time_ms"]
        room.release()
        repeated = first_repeated(ids)
        if repeated >= 0:
            raise Misconfigured(f"{PAYMENTS_FILE}: payment_id must be unique; row {repeated} breaks that")
        room.release()
        told = _outcomes(outcomes, room, files, part_rows)
        outcome_payment = room.new(outcomes.count, np.int64)
        lost = find_rows(ids, told.ids.whole(), outcome_payment, release=room.release)
        if lost:
            about = f"{lost} of {outcomes.count} outcomes"
            raise Misconfigured(f"{OUTCOMES_FILE}: {about} are about payments that {PAYMENTS_FILE} does not hold")
        for part in parts_of(outcomes.count):
            is_early = told.time_ms[part] < event_time_ms[outcome_payment[part]]
            refuse_first(OUTCOMES_FILE, "an outcome cannot be known before its payment is made", is_early, part.start)
        room.release()
        texts = {name: made.texts[name].coded() for name in _CODED}
        declared, amounts = made.declared.columns(texts["ip"], room), made.numbers["amount_minor"]
        bands = band_columns(fields, declared, event_time_ms, made.utc_offset_code, amounts, room)
        return History(
            payment_id=_as_texts(ids),
            event_time_ms=event_time_ms,
            amount_minor=amounts,
            **{name.removesuffix("_id"): coded for name, coded in texts.items()},
            utc_offset_code=made.utc_offset_code,
            declined_code=made.declined_code,
            outcome_payment=outcome_payment,
            outcome_time_ms=told.time_ms,
            outcome_fraud=told.fraud,
            fields=fields,
            declared=declared | bands,
            propensity=made.propensity,
            never_labelled=made.never_labelled,
        )


class _HistoryFile:
    """One of the two files. It is read and checked part by part."""

    def __init__(self, path: Path, columns: dict[str, str], absent: Collection[str] = ()) -> None:
        if not path.is_file():
            raise Misconfigured(f"a history needs the file {path}, which is not there")
        self._path, self._columns = path, columns
        try:
            self._file = pq.ParquetFile(path)
            schema = self._file.schema_arrow
        except arrow_files.UNREADABLE as error:
            raise self._unreadable(error) from error
        self._present = [name for name in columns if name in schema.names]
        self.count = int(self._file.metadata.num_rows)
        check_columns(path.name, schema.empty_table(), columns, absent)

    def __enter__(self) -> _HistoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def parts(self, rows: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield (number of the first row, the rows from there on)."""
        first = 0
        for part in self._tables(self._present, rows):
            for name in self._present:
                if part[name].null_count and self._columns[name] in REQUIRED:
                    raise self._holds_nulls(name, rows)
            yield first, part
            first += len(part)

    def _tables(self, names: list[str], rows: int) -> Iterator[pa.Table]:
        try:
            for batch in self._file.iter_batches(batch_size=rows, columns=names):
                yield pa.Table.from_batches([batch])
        except arrow_files.UNREADABLE as error:
            raise self._unreadable(error) from error

    def _holds_nulls(self, name: str, rows: int) -> Misconfigured:
        count = sum(part[name].null_count for part in self._tables([name], rows))
        return Misconfigured(f"{self._path.name}: column {name} must not be null, and {count} rows are")

    def _unreadable(self, error: Exception) -> Misconfigured:
        return Misconfigured(f"{self._path} cannot be read as Parquet: {first_line(error)}")


class _Texts:
    """Distinct texts: their bytes in a file, and a column of where each begins."""

    def __init__(self, room: MmapAllocator, files: ExitStack, count: int) -> None:
        self._room, self._file = room, files.enter_context(room.new_file())
        self._offsets = room.new(count + 1, np.int64)

    def add(self, first: int, texts: pa.Array) -> None:
        """Add the texts from `first` on. Parts must come in order."""
        _, offsets, content = texts.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
        self._offsets[first + 1 : first + len(bounds)] = self._offsets[first] + bounds[1:] - bounds[0]
        if content is not None:
            self._room.append(self._file, np.frombuffer(content, dtype=np.uint8)[bounds[0] : bounds[-1]])

    def whole(self) -> Ids:
        content = self._room.mapped(self._file, np.uint8)
        hashes = self._room.new(len(self._offsets) - 1, np.uint64)
        hash_texts(self._offsets, content, 0, len(hashes), hashes)
        return Ids(self._offsets, content, hashes)


def _as_texts(ids: Ids) -> pa.Array:
    buffers = [None, pa.py_buffer(ids.offsets), pa.py_buffer(ids.bytes)]
    return pa.Array.from_buffers(pa.large_string(), len(ids.hashes), buffers)


class _Dictionary:
    """A column of repeating values. They are numbered as they arrive, and at the end in the order of `Coded`."""

    def __init__(self, field: PaymentField | None, room: MmapAllocator, count: int) -> None:
        """The values must keep the rules of `field`, if there is one. They are texts, or all are hashes."""
        self._field = field
        self._codes = room.new(count, np.int32)
        self._numbers: dict[str | int, int] = {}
        self._kind: pa.DataType = pa.string()

    def add(self, first: int, values: pa.Array) -> None:
        """Add the values from `first` on. Raises Misconfigured that names the first row that breaks a rule."""
        encoded, numbers = values.dictionary_encode(), self._numbers
        self._kind = values.type
        codes = encoded.indices.fill_null(-1).to_numpy()
        if self._field is not None:
            refuse_wrong_values(self._field, encoded.dictionary, codes, first)
        known = [numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()]
        # Code -1 takes the last entry.
        code = np.array([*known, -1], dtype=np.int32)
        self._codes[first : first + len(encoded)] = code[codes]

    def coded(self) -> Coded:
        names = pa.array(list(self._numbers), self._kind)
        self._numbers = {}
        order = pc.sort_indices(names).to_numpy()
        code = np.empty(len(order) + 1, dtype=np.int32)
        code[order] = np.arange(len(order))
        code[-1] = -1
        for part in parts_of(len(self._codes)):
            self._codes[part] = code[self._codes[part]]
        return Coded(codes=self._codes, names=names.take(pa.array(order)))


class _Declared:
    """The columns of declared fields during reading."""

    def __init__(self, fields: PaymentFields, room: MmapAllocator, count: int) -> None:
        self._fields = fields
        self._texts = {field.name: _Dictionary(field, room, count) for field in fields.declared if field.is_text}
        self._codes = {field.name: room.new(count, np.int64) for field in fields.declared if not field.is_text}
        self._hashes: dict[str, _Dictionary] = {}
        self._room, self._count = room, count

    def add(self, first: int, part: pa.Table) -> None:
        """Add the rows from `first` on. Raises Misconfigured that names the first row that breaks a rule."""
        for field in self._fields.declared:
            if field.is_text:
                self._texts[field.name].add(first, values_of(field, part))
            else:
                self._codes[field.name][first : first + len(part)] = codes_of(field, part, first)
        for derived in self._fields.derived:
            if derived.of in part.column_names and holds_hashes(part[derived.of].type):
                hashes = self._hashes.setdefault(derived.name, _Dictionary(None, self._room, self._count))
                hashes.add(first, domain_hashes(derived, part))

    def columns(self, ip: Coded, room: MmapAllocator) -> dict[str, Coded | Int64Array]:
        """Returns the columns by name. `ip` is the column of addresses of the table."""
        columns: dict[str, Coded | Int64Array] = dict(self._codes)
        for field in self._fields.declared:
            if field.is_text:
                coded = self._texts[field.name].coded()
                columns[field.name] = in_small_letters(coded, room) if field.form is Form.EMAIL else coded
        for derived in self._fields.derived:
            source = ip if derived.of == "ip" else columns[derived.of]
            assert isinstance(source, Coded)
            if takes_hashes(derived, source):
                columns[derived.name] = self._hashes[derived.name].coded()
            else:
                columns[derived.name] = derived_column(derived, source, room)
        return columns


class _Payments:
    """The columns of payments during reading."""

    def __init__(self, room: MmapAllocator, files: ExitStack, count: int, fields: PaymentFields) -> None:
        self.ids = _Texts(room, files, count)
        self.texts = {name: _Dictionary(FIELD[name], room, count) for name in _CODED}
        self.declared = _Declared(fields, room, count)
        self.numbers = {name: room.new(count, np.int64) for name in ("event_time_ms", "amount_minor")}
        self.utc_offset_code = room.new(count, np.int64)
        self.declined_code = room.new(count, np.int64)
        self.propensity: NDArray[np.float64] | None = None
        self.never_labelled: NDArray[np.bool_] | None = None


def _payments(
    file: _HistoryFile, room: MmapAllocator, files: ExitStack, part_rows: int, fields: PaymentFields
) -> _Payments:
    made, previous_ms = _Payments(room, files, file.count, fields), 0
    for first, part in file.parts(part_rows):
        rows = slice(first, first + len(part))
        for name in PAYMENT_COLUMNS:
            if name == "payment_id":
                ids = plain_texts(part[name])
                refuse_wrong_text(FIELD[name], ids, np.arange(len(ids)), first)
                made.ids.add(first, ids)
            elif name in made.texts:
                made.texts[name].add(first, plain_texts(part[name]))
            elif FIELD[name].is_required:
                made.numbers[name][rows] = checked_numbers(part, name, first)
        made.utc_offset_code[rows] = offset_codes(part, first)
        made.declined_code[rows] = flag_codes(part, "declined")
        made.declared.add(first, part)
        if (shares := propensities(part, fields, first)) is not None:
            made.propensity = room.new(file.count, np.float64) if made.propensity is None else made.propensity
            made.propensity[rows] = shares
        if (flags := never_labelled(part, fields)) is not None:
            made.never_labelled = room.new(file.count, np.bool_) if made.never_labelled is None else made.never_labelled
            made.never_labelled[rows] = flags
        time_ms = made.numbers["event_time_ms"][rows]
        refuse_unsorted(PAYMENTS_FILE, "event_time_ms", time_ms, first_row=first, previous_ms=previous_ms)
        previous_ms = int(time_ms[-1])
        room.release()
    return made


class _Outcomes:
    """The columns of outcomes during reading."""

    def __init__(self, room: MmapAllocator, files: ExitStack, count: int) -> None:
        self.ids = _Texts(room, files, count)
        self.time_ms = room.new(count, np.int64)
        self.fraud = room.new(count, np.bool_)


def _outcomes(file: _HistoryFile, room: MmapAllocator, files: ExitStack, part_rows: int) -> _Outcomes:
    told, previous_ms = _Outcomes(room, files, file.count), 0
    for first, part in file.parts(part_rows):
        rows = slice(first, first + len(part))
        time_ms = sorted_times(OUTCOMES_FILE, part, "outcome_time_ms", first_row=first, previous_ms=previous_ms)
        previous_ms = int(time_ms[-1])
        told.time_ms[rows], told.fraud[rows] = time_ms, fraud_flags(part["label"])
        told.ids.add(first, plain_texts(part["payment_id"]))
        room.release()
    return told
