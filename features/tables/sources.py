"""The files of a table, CSV or Parquet, and their rows in parts.

    files = TableFiles("exports/", mapping)      checks every file's head, and reads nothing else
    for part in files.parts():                   in order; `part.read()` may run in any thread
        rows = part.read()

Bytes of other encodings become UTF-8, and compressed files are decompressed, as they are read.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.history.history import first_line
from paywarden.features.tables.csv_rows import LINE, NEXT, OPEN_LINE, copy_cells, find_cells, find_rows
from paywarden.features.tables.mapping import InputForm
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured

# A row longer than this is no row: a quote was not closed, or the file is no table.
LINE_BYTES_MAX = 1 << 20
_BLOCK_BYTES = 1 << 23
_PART_ROWS = 1 << 17
# A column may have this many bytes of text in `_PART_ROWS` rows. Arrow takes twice as many.
_TEXT_BYTES_MAX = 1 << 30
# A file's first bytes tell its head, its encoding and what else may be wrong with it.
_HEAD_BYTES = LINE_BYTES_MAX
_CSV_ENDINGS, _PARQUET_ENDINGS = (".csv", ".tsv", ".txt"), (".parquet", ".pq")
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"PAR1": "parquet"}

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class TableRows:
    """Rows of one file.

    `numbers` are their positions among all rows of all files, and `lines` their lines, or rows, in their file. Columns
    of CSV are texts, null where a cell is empty. `torn` are the lines of rows with another number of cells, and what
    is wrong with each.
    """

    file: int
    numbers: Int64Array
    lines: Int64Array
    columns: Mapping[str, pa.Array]
    torn: Sequence[tuple[int, str]] = ()

    def __len__(self) -> int:
        return len(self.numbers)


class TablePart(Protocol):
    """Rows that are still to be read. `size` is how much of the table's bytes they are, about."""

    @property
    def size(self) -> int: ...

    @property
    def count(self) -> int: ...

    def read(self) -> TableRows:
        """Returns the rows. Raises Misconfigured with file and line."""
        ...


class TableFiles:
    """The files of a table, in order of their names."""

    def __init__(self, table: str | Path, form: InputForm, wanted: Sequence[str], *, mapping: str = "the mapping"):
        """Raises Misconfigured if a file cannot be read or lacks one of the columns `wanted`."""
        self.paths = files_of(Path(table))
        self._form, self.format = form, form.format or _format_of(self.paths)
        self.names = [str(path) for path in self.paths]
        self.heads = [self._head(path) for path in self.paths]
        for name, head in zip(self.names, self.heads, strict=True):
            wrong = [
                f"{'has two columns' if column in head else 'has no column'} {column!r}"
                for column in wanted
                if head.count(column) != 1
            ]
            if wrong:
                raise Misconfigured(f"{name}: {' and '.join(wrong)}, which {mapping} names; it has {_listed(head)}")
        self._wanted = list(wanted)

    @property
    def size(self) -> int:
        """Returns how many bytes the files have."""
        return sum(path.stat().st_size for path in self.paths)

    def parts(self) -> Iterator[TablePart]:
        """Yield the parts in order."""
        first = 0
        for file in range(len(self.paths)):
            for part in self._csv_parts(file, first) if self.format == "csv" else self._parquet_parts(file, first):
                yield part
                first += part.count

    def first_rows(self, count: int) -> TableRows:
        """Returns about `count` rows from the start of the table, of as many files as it takes, or all it has."""
        parts: list[TableRows] = []
        for part in self.parts():
            rows = part.read()
            kinds = {name: column.type for name, column in rows.columns.items()}
            # Parquet files may differ in their types.
            if parts and kinds != {name: column.type for name, column in parts[0].columns.items()}:
                break
            parts.append(rows)
            if sum(map(len, parts)) >= count:
                break
        if not parts:
            raise Misconfigured(f"{self.names[0]} holds no row")
        columns = {name: pa.concat_arrays([rows.columns[name] for rows in parts])[:count] for name in parts[0].columns}
        numbers, lines = (np.concatenate(one)[:count] for one in ([r.numbers for r in parts], [r.lines for r in parts]))
        return TableRows(0, numbers, lines, columns, parts[0].torn)

    def unreadable_columns(self) -> dict[str, str]:
        """Returns the types of the first Parquet file's columns whose rows are no text, number or time."""
        if self.format != "parquet":
            return {}
        with pq.ParquetFile(self.paths[0]) as source:
            kinds = {field.name: field.type for field in source.schema_arrow}
            binary = [name for name, kind in kinds.items() if _is_binary(kind)]
            rows = next(source.iter_batches(batch_size=_PART_ROWS, columns=binary), None) if binary else None
            texts = set()
            for name in binary:
                if rows is not None:
                    _require_short(str(self.paths[0]), name, rows.column(name))
                if rows is None or _texts_of_binary(rows.column(name)) is not None:
                    texts.add(name)
        return {name: str(kind) for name, kind in kinds.items() if name not in texts and not _is_plain(kind)}

    def _head(self, path: Path) -> list[str]:
        try:
            if self.format == "parquet":
                return list(pq.read_schema(path).names)
            return _csv_head(path, self._form)
        except (*arrow_files.UNREADABLE, EOFError) as error:
            kind = "Parquet" if self.format == "parquet" else "CSV"
            raise Misconfigured(f"{path} cannot be read as {kind}: {first_line(error)}") from error

    def _csv_parts(self, file: int, first: int) -> Iterator[TablePart]:
        path, form, head = self.paths[file], self._form, self.heads[file]
        places = np.array([self._wanted.index(name) if name in self._wanted else -1 for name in head], dtype=np.int64)
        state = np.zeros(3, dtype=np.int64)
        state[LINE] = 1
        delimiter, quote = ord(form.delimiter), ord(form.quote) if form.quote else -1
        is_head, rest = not form.columns, b""
        with closing(_Utf8File(path, form)) as source:
            while True:
                before, block = source.position, source.read(_BLOCK_BYTES)
                data = np.frombuffer(rest + block, dtype=np.uint8)
                state[NEXT], size = 0, source.position - before
                while True:
                    starts, ends, lines = (np.empty(_PART_ROWS, dtype=np.int64) for _ in range(3))
                    count = find_rows(data, len(data), not block, delimiter, quote, starts, ends, lines, state)
                    _check_sizes(path, starts[:count], ends[:count], lines[:count])
                    chosen = slice(1 if is_head and count else 0, count)
                    is_head &= count == 0
                    if count > chosen.start:
                        yield _CsvPart(self, file, first, data, starts[chosen], ends[chosen], lines[chosen],
                                       places, size)  # fmt: skip
                        first, size = first + count - chosen.start, 0
                    if count < _PART_ROWS:
                        break
                rest = data[state[NEXT] :].tobytes()
                if state[OPEN_LINE] and (not block or len(rest) > LINE_BYTES_MAX):
                    where = "before the end of the file" if not block else f"within {LINE_BYTES_MAX} bytes"
                    raise Misconfigured(f"{path}, line {state[OPEN_LINE]}: a quote is opened and not closed {where}")
                if len(rest) > LINE_BYTES_MAX:
                    raise _too_long(path, int(state[LINE]))
                if not block:
                    return

    def _parquet_parts(self, file: int, first: int) -> Iterator[TablePart]:
        path = self.paths[file]
        line = 0
        try:
            with pq.ParquetFile(path) as source:
                total = max(1, source.metadata.num_rows)
                for batch in source.iter_batches(batch_size=_PART_ROWS, columns=self._wanted):
                    size = path.stat().st_size * len(batch) // total
                    yield _ParquetPart(str(path), file, first + line, line, batch, size)
                    line += len(batch)
        except arrow_files.UNREADABLE as error:
            raise Misconfigured(f"{path} cannot be read as Parquet: {first_line(error)}") from error

    @property
    def wanted(self) -> Sequence[str]:
        """Returns the columns that are read."""
        return self._wanted

    @property
    def form(self) -> InputForm:
        """Returns the form of the files."""
        return self._form


@dataclass(frozen=True)
class _CsvPart:
    table: TableFiles
    file: int
    first: int
    data: NDArray[np.uint8]
    starts: Int64Array
    ends: Int64Array
    lines: Int64Array
    places: Int64Array
    size: int

    @property
    def count(self) -> int:
        return len(self.starts)

    def read(self) -> TableRows:
        form, wanted = self.table.form, self.table.wanted
        quote = ord(form.quote) if form.quote else -1
        shape = (len(wanted), len(self.starts))
        cell_starts, cell_ends = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        counts = np.empty(len(self.starts), dtype=np.int64)
        find_cells(self.data, self.starts, self.ends, ord(form.delimiter), quote, self.places, cell_starts, cell_ends,
                   counts)  # fmt: skip
        whole = counts == len(self.places)
        torn: list[tuple[int, str]] = []
        numbers, lines = np.arange(self.first, self.first + self.count), self.lines
        if not whole.all():
            torn = [
                (
                    int(self.lines[row]),
                    f"has {counts[row]} cell{'' if counts[row] == 1 else 's'}; wanted {len(self.places)}",
                )
                for row in np.flatnonzero(~whole)
            ]
            cell_starts, cell_ends = cell_starts[:, whole], cell_ends[:, whole]
            numbers, lines = numbers[whole], lines[whole]
        columns = {}
        for place, name in enumerate(wanted):
            texts = self._texts(cell_starts[place], cell_ends[place], quote)
            self._check_utf8(name, texts, lines)
            columns[name] = _with_missing(texts, form.missing)
        return TableRows(self.file, numbers, lines, columns, torn)

    def _texts(self, starts: Int64Array, ends: Int64Array, quote: int) -> pa.Array:
        content = np.empty(int((ends - starts).sum()), dtype=np.uint8)
        offsets = np.empty(len(starts) + 1, dtype=np.int32)
        size = copy_cells(self.data, starts, ends, quote, offsets, content)
        filled = np.diff(offsets) > 0
        validity = None if filled.all() else pa.py_buffer(np.packbits(filled, bitorder="little").tobytes())
        buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(content[:size])]
        return pa.Array.from_buffers(pa.string(), len(starts), buffers)

    def _check_utf8(self, name: str, texts: pa.Array, lines: Int64Array) -> None:
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raw = texts.cast(pa.binary()).to_pylist()
            line = next((int(line) for text, line in zip(raw, lines, strict=True) if not _is_utf8(text or b"")), 0)
            wanted = '[input] encoding says which, as in encoding = "cp1252"'
            path = self.table.names[self.file]
            raise Misconfigured(f"{path}, line {line}, column {name}: is not UTF-8 text; {wanted}") from error


@dataclass(frozen=True)
class _ParquetPart:
    path: str
    file: int
    first: int
    line: int
    batch: pa.RecordBatch
    size: int

    @property
    def count(self) -> int:
        return len(self.batch)

    def read(self) -> TableRows:
        places = np.arange(self.count)
        columns = {}
        for field, column in zip(self.batch.schema, self.batch.columns, strict=True):
            _require_short(self.path, field.name, column)
            # Some programs write texts without saying that they are texts.
            texts = _texts_of_binary(column) if _is_binary(field.type) else column if _is_plain(field.type) else None
            if texts is None:
                what = f"{field.type} that is no UTF-8 text" if _is_binary(field.type) else field.type
                raise Misconfigured(f"{self.path}: column {field.name} is {what}; wanted texts, numbers or times")
            _require_utf8(self.path, field.name, texts)
            columns[field.name] = texts
        # Rows of Parquet are counted from 1, as lines are.
        return TableRows(self.file, self.first + places, self.line + places + 1, columns)


def value_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a column's values, also where they stand in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_plain(kind: pa.DataType) -> bool:
    """Returns whether values of a type are texts, numbers or times."""
    kind, types = value_type(kind), pa.types
    return not (_is_binary(kind) or types.is_nested(kind) or types.is_duration(kind) or types.is_interval(kind)
                or types.is_fixed_size_binary(kind))  # fmt: skip


def _is_binary(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _require_short(path: str, name: str, column: pa.Array) -> None:
    """Raises Misconfigured for texts that no table of payments has, before a dictionary of them is written out.

    A file of a kilobyte can hold one text of megabytes, and name it in every row.
    """
    kind = value_type(column.type)
    if not (_is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return
    is_dictionary = pa.types.is_dictionary(column.type)
    sizes = pc.binary_length(column.dictionary if is_dictionary else column)
    if (longest := pc.max(sizes).as_py() or 0) > LINE_BYTES_MAX:
        raise Misconfigured(
            f"{path}: column {name} holds a text of {longest} bytes; wanted texts of at most {LINE_BYTES_MAX} bytes"
        )
    if is_dictionary and (total := pc.sum(sizes.take(column.indices)).as_py() or 0) > _TEXT_BYTES_MAX:
        raise Misconfigured(
            f"{path}: column {name} holds {total} bytes of text in {len(column)} rows; wanted at most {_TEXT_BYTES_MAX}"
        )


def _require_utf8(path: str, name: str, column: pa.Array) -> None:
    """Raise Misconfigured for a column that says it is text and is not: nobody has looked at it when it was read."""
    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise Misconfigured(f"{path}: column {name} holds a text that is not UTF-8") from error


def _texts_of_binary(column: pa.Array) -> pa.Array | None:
    """Returns bytes as texts; None if they are not UTF-8."""
    try:
        return column.cast(value_type(column.type)).cast(pa.string())
    except pa.ArrowInvalid:
        return None


class _Utf8File:
    """A file as UTF-8, decompressed. `position` is how far the file itself is read."""

    def __init__(self, path: Path, form: InputForm, *, keeps_bom: bool = False) -> None:
        self._path = path
        self._raw = path.open("rb")
        kind = _COMPRESSED.get(path.suffix.lower(), "")
        self._source: BinaryIO = pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), kind) if kind else self._raw
        is_utf8 = codecs.lookup(form.encoding).name in ("utf-8", "ascii")
        self._decoder = None if is_utf8 else codecs.getincrementaldecoder(form.encoding)()
        self._encoding = form.encoding
        self._line, self._is_start = 1, not keeps_bom

    @property
    def position(self) -> int:
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        """Returns some more bytes, or none at the end. Raises Misconfigured."""
        try:
            data = self._source.read(size)
        except (*arrow_files.UNREADABLE, EOFError) as error:
            raise Misconfigured(f"{self._path}: cannot be read: {first_line(error)}") from error
        if self._is_start:
            self._is_start = False
            if self._decoder is None:
                data = data.removeprefix(codecs.BOM_UTF8)
        if self._decoder is None:
            return bytes(data)
        while True:
            text = self._decoded(data)
            # A block that ends within the first character gives no text, and is not the end.
            if text or not data:
                return text
            data = self._source.read(size)

    def _decoded(self, data: bytes) -> bytes:
        assert self._decoder is not None
        try:
            text = self._decoder.decode(data, not data)
        except UnicodeError as error:
            # Not every encoding says where.
            before = error.object[: error.start] if isinstance(error, UnicodeDecodeError) else b""
            line = self._line + before.count(b"\n")
            raise Misconfigured(f"{self._path}, line {line}: is not {self._encoding} text") from error
        self._line += text.count("\n")
        return text.removeprefix("\ufeff").encode()

    def close(self) -> None:
        self._source.close()
        self._raw.close()


def files_of(table: Path) -> list[Path]:
    """Returns the files of a table in order of their names. Raises Misconfigured if there are none."""
    if table.is_dir():
        endings = (*_CSV_ENDINGS, *_PARQUET_ENDINGS)
        found = [
            path
            for path in sorted(table.iterdir())
            if path.is_file() and path.name[0] not in "._" and _ending(path) in endings
        ]
        if not found:
            raise Misconfigured(f"{table} holds no file that ends in {', '.join(endings)}")
        return found
    if not table.is_file():
        raise Misconfigured(f"the table {table} is not there")
    return [table]


def is_csv(path: Path) -> bool:
    """Returns whether a file is CSV by its name, compressed or not."""
    return _ending(path) in _CSV_ENDINGS


def first_bytes(path: Path, count: int) -> bytes:
    """Returns the first bytes of a file, decompressed, in its own encoding. Raises Misconfigured."""
    with closing(_Utf8File(path, InputForm(encoding="ascii"), keeps_bom=True)) as source:
        return source.read(count)


def _ending(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return name.suffix.lower()


def _format_of(paths: Sequence[Path]) -> str:
    formats = {"parquet" if _ending(path) in _PARQUET_ENDINGS else "csv" for path in paths}
    if len(formats) > 1:
        raise Misconfigured(f"{paths[0].parent} holds CSV and Parquet files; a table is of one kind")
    return formats.pop()


def _csv_head(path: Path, form: InputForm) -> list[str]:
    """Returns the names of a CSV file's columns. Raises Misconfigured for a file that is not CSV."""
    with path.open("rb") as file:
        raw = file.read(8)
    kind = next((kind for magic, kind in _MAGIC.items() if raw.startswith(magic)), "")
    if kind and kind != _COMPRESSED.get(path.suffix.lower(), ""):
        wanted = (
            '[input] format = "parquet"'
            if kind == "parquet"
            else "unpack it"
            if kind == "zip"
            else (f"let its name end in {next(ending for ending, name in _COMPRESSED.items() if name == kind)}")
        )
        raise Misconfigured(f"{path}: is no CSV file but {kind}: {wanted}")
    with closing(_Utf8File(path, form)) as source:
        data = source.read(_HEAD_BYTES)
    found = next((name for bom, name in _BOMS.items() if data.startswith(bom)), "")
    if found:
        raise Misconfigured(f'{path}, line 1: is {found} text; say so: [input] encoding = "{found}"')
    # A NUL here and there makes a row wrong. A third of all bytes is another encoding.
    if data.count(0) * 3 > len(data):
        raise Misconfigured(f'{path}, line 1: holds NUL bytes, as UTF-16 has: [input] encoding = "utf-16-le" or -be')
    if not data:
        raise Misconfigured(f"{path} is empty")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut.
        text = data[: error.start].decode()
        if error.start < len(data) - 4:
            line = text.count("\n") + 1
            wanted = '[input] encoding says which, as in encoding = "cp1252"'
            raise Misconfigured(f"{path}, line {line}: is not UTF-8 text; {wanted}") from error
    if form.columns:
        return list(form.columns)
    return _first_row(path, text, form)


def _first_row(path: Path, text: str, form: InputForm) -> list[str]:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=form.delimiter,
        quotechar=form.quote or None,
        quoting=csv.QUOTE_MINIMAL if form.quote else csv.QUOTE_NONE,
    )
    csv.field_size_limit(max(csv.field_size_limit(), LINE_BYTES_MAX))
    row = next((row for row in reader if row), None)
    if row is None or (len(text) >= _HEAD_BYTES and text.find("\n") < 0):
        raise _too_long(path, 1) if row is not None else Misconfigured(f"{path} holds no line with text")
    return [name.strip() for name in row]


def _too_long(path: Path, line: int) -> Misconfigured:
    wanted = "wanted a table with line ends, and the right quote and delimiter"
    return Misconfigured(f"{path}, line {line}: is longer than {LINE_BYTES_MAX} bytes; {wanted}")


def _check_sizes(path: Path, starts: Int64Array, ends: Int64Array, lines: Int64Array) -> None:
    sizes = ends - starts
    if len(sizes) and int(sizes.max()) > LINE_BYTES_MAX:
        raise _too_long(path, int(lines[int(sizes.argmax())]))


def _with_missing(texts: pa.Array, missing: Sequence[str]) -> pa.Array:
    if not missing:
        return texts
    return pc.if_else(pc.is_in(texts, value_set=pa.array(missing, pa.string())), pa.scalar(None, pa.string()), texts)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:30])
    return shown if len(names) <= 30 else f"{shown} and {len(names) - 30} more"
